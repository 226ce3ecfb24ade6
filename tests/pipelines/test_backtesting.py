"""What is held out of training, and what a champion that cannot be measured means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Calendar, InputError, Panel
from pipelines.backtesting import MOST_WINDOWS, can_be_learnt_from, hold_out, run_backtest
from tests.pipelines.kit import long_frame, random_forecaster


def panel_of(*lengths: int) -> Panel:
    return Panel.from_series(Calendar("1"), [(f"s{i}", 0, np.arange(n) + 1.0) for i, n in enumerate(lengths)])


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=40), min_size=1, max_size=5), st.integers(1, 12))
def test_windows_that_nobody_asked_for_leave_whatever_can_be_learnt_from_so(
    observed: list[list[bool]], horizon: int
) -> None:
    series = [(f"s{i}", 0, np.where(seen, 1.0, np.nan)) for i, seen in enumerate(observed)]
    panel = Panel.from_series(Calendar("1"), series)

    assert can_be_learnt_from(hold_out(panel, horizon).training) == can_be_learnt_from(panel)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.integers(1, 30))
def test_training_never_sees_a_step_that_judges(lengths: list[int], horizon: int) -> None:
    panel = panel_of(*lengths)
    windows = hold_out(panel, horizon)

    held = windows.horizon + (windows.n_windows - 1) * windows.step_size if windows.n_windows else 0
    assert 0 <= windows.n_windows <= MOST_WINDOWS
    for unique_id, _, y in windows.training:
        assert len(y) == len(panel.series(panel.index_of(unique_id))) - held


@pytest.mark.parametrize(("length", "n_windows"), [(17, 0), (18, 1), (60, 1), (119, 1), (120, 2), (240, 4), (5000, 4)])
def test_longer_series_give_more_windows_and_too_short_ones_none(length: int, n_windows: int) -> None:
    assert hold_out(panel_of(length), 6).n_windows == n_windows


@pytest.mark.parametrize(
    ("lengths", "n_windows"),
    [
        ((500, 500, 500, 20, 20, 20, 20), 2),  # of horizon 24: the long ones are most of the data
        ((72, *[9] * 8), 1),
        ((72, *[9] * 9), 0),  # ... and now no longer
        ((72, 72, 9), 1),
        ((71, *[9] * 3), 0),
    ],
)
def test_a_crowd_of_short_series_does_not_keep_the_long_ones_from_being_judged(
    lengths: tuple[int, ...], n_windows: int
) -> None:
    assert hold_out(panel_of(*lengths), 24).n_windows == n_windows


@pytest.mark.parametrize(("length", "n_windows"), [(3, 0), (4, 1)])
def test_a_window_leaves_as_many_steps_as_it_takes_to_learn(length: int, n_windows: int) -> None:
    assert hold_out(panel_of(length), 1).n_windows == n_windows


def test_windows_can_be_chosen() -> None:
    windows = hold_out(panel_of(100), 6, n_windows=3, step_size=2)

    assert windows.training.lengths.tolist() == [100 - (6 + 2 * 2)]
    assert hold_out(panel_of(100), 6, n_windows=0).training.lengths.tolist() == [100]


@pytest.mark.parametrize(("n_windows", "step_size"), [(-1, 6), (1, 0), (20, 6)])
def test_impossible_windows_are_refused(n_windows: int, step_size: int) -> None:
    with pytest.raises(InputError):
        hold_out(panel_of(100), 6, n_windows=n_windows, step_size=step_size)


def test_a_panel_on_another_grid_is_refused() -> None:
    daily = long_frame()
    daily["ds"] = np.concatenate(
        [np.datetime64("2024-01-01") + np.arange(n).astype("timedelta64[D]") for n in daily.groupby("unique_id").size()]
    )

    with pytest.raises(InputError, match="freq 'D'"):
        run_backtest(random_forecaster(), Panel.from_frame(daily, "D"), horizon=6, n_windows=1, step_size=6)
