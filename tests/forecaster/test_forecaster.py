"""The forecaster's verbs: what they answer, what they refuse, and that they keep nothing."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from forecaster import Calendar, Config, Forecaster, InputError, NetworkConfig, Panel
from forecaster.covariates import static_size
from tests.forecaster.kit import (
    COVERED,
    TINY,
    assert_same_forecast,
    assert_same_state,
    config_of,
    forecaster_of,
    network_of,
)

HISTORY = 20 + 5 * np.sin(np.arange(50) * np.pi / 2) + np.random.default_rng(0).normal(size=50)


def test_by_default_nine_levels_of_the_trained_horizon_are_answered(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([HISTORY, HISTORY[:9]], [0, 5])

    found = tiny_forecaster.forecast(state)

    assert found.shape == (2, 6, 9)
    assert found.dtype == np.float64
    levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    np.testing.assert_array_equal(found, tiny_forecaster.forecast(state, 6, levels))


def test_by_default_a_model_of_few_levels_answers_only_what_it_was_trained_for() -> None:
    forecaster = forecaster_of(dataclasses.replace(TINY, quantile_levels=(0.25, 0.5, 0.75)))
    state = forecaster.warm_up([HISTORY], [0])

    np.testing.assert_array_equal(forecaster.forecast(state), forecaster.forecast(state, 6, (0.3, 0.4, 0.5, 0.6, 0.7)))
    with pytest.raises(InputError, match=r"0.1 is outside 0.25 to 0.75"):
        forecaster.forecast(state, 6, [0.1])


def test_levels_between_trained_ones_are_interpolated(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([HISTORY], [0])
    trained = TINY.quantile_levels

    at_trained = tiny_forecaster.forecast(state, 6, trained)[0]
    found = tiny_forecaster.forecast(state, 6, [0.9, 0.03, 0.55, 0.5])[0]

    for step in range(6):
        np.testing.assert_allclose(
            found[step], np.interp([0.9, 0.03, 0.55, 0.5], trained, at_trained[step]), rtol=1e-12
        )


@pytest.mark.parametrize("horizon", [1, 5, 6, 7, 12, 13, 24])
def test_a_shorter_horizon_is_the_beginning_of_a_longer_one(tiny_forecaster: Forecaster, horizon: int) -> None:
    state = tiny_forecaster.warm_up([HISTORY, HISTORY[:3]], [0, 0])

    np.testing.assert_array_equal(
        tiny_forecaster.forecast(state, horizon), tiny_forecaster.forecast(state, 24)[:, :horizon]
    )


def test_beyond_the_trained_horizon_the_medians_are_observed_by_a_copy(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([HISTORY], [0])

    long = tiny_forecaster.forecast(state, 18, [0.5])[0, :, 0]

    for block in range(3):
        own = tiny_forecaster.forecast(state, 6, [0.5])[0, :, 0]
        np.testing.assert_allclose(long[6 * block : 6 * block + 6], own, rtol=1e-6)
        state = tiny_forecaster.fold(state, torch.from_numpy(own).unsqueeze(0))


def test_a_rolled_block_is_never_surer_than_the_step_it_starts_from(tiny_linear_forecaster: Forecaster) -> None:
    state = tiny_linear_forecaster.warm_up([HISTORY], [0])

    found = tiny_linear_forecaster.forecast(state, 24, [0.1, 0.5, 0.9])[0]

    width = found[:, 2] - found[:, 0]
    for start in (6, 12, 18):
        assert (width[start : start + 6] >= width[start - 1]).all()


def test_a_series_that_never_observed_anything_has_no_forecast_and_disturbs_none(tiny_forecaster: Forecaster) -> None:
    silent = np.full(7, np.nan)

    found = tiny_forecaster.forecast(tiny_forecaster.warm_up([silent, HISTORY, silent[:0]], [0, 0, 0]), 24)

    assert np.isnan(found[[0, 2]]).all()
    alone = tiny_forecaster.forecast(tiny_forecaster.warm_up([HISTORY], [0]), 24)
    assert_same_forecast(found[[1]], alone)


def test_one_observation_is_enough_for_a_forecast(tiny_forecaster: Forecaster) -> None:
    found = tiny_forecaster.forecast(tiny_forecaster.warm_up([np.array([12.0])], [0]))

    assert np.isfinite(found).all()
    assert 0 < found[0, 0, 4] < 100


@pytest.mark.parametrize("horizon", [0, -1, 25, 10**9])
def test_a_horizon_that_cannot_be_answered_is_refused(tiny_forecaster: Forecaster, horizon: int) -> None:
    with pytest.raises(InputError, match=f"horizon is {horizon}, expected 1 to 24"):
        tiny_forecaster.forecast(tiny_forecaster.warm_up([HISTORY], [0]), horizon)


@pytest.mark.parametrize("levels", [[0.0], [1.0], [0.5, 0.99], [0.02], [-0.5], [float("nan")], [float("inf")]])
def test_a_level_beyond_the_trained_ones_is_refused(tiny_forecaster: Forecaster, levels: list[float]) -> None:
    with pytest.raises(InputError, match=r"quantile level .* is outside 0.025 to 0.975"):
        tiny_forecaster.forecast(tiny_forecaster.warm_up([HISTORY], [0]), 6, levels)


def test_levels_that_would_share_a_name_are_refused(tiny_forecaster: Forecaster) -> None:
    with pytest.raises(InputError, match=r"0.1234567, 0.12345678: six digits name them"):
        tiny_forecaster.check_levels([0.1234567, 0.12345678])

    assert tiny_forecaster.check_levels([0.5, 0.123457, 0.5]) == (0.5, 0.123457, 0.5)


def test_no_levels_at_all_are_refused(tiny_forecaster: Forecaster) -> None:
    with pytest.raises(InputError, match="empty"):
        tiny_forecaster.forecast(tiny_forecaster.warm_up([HISTORY], [0]), 6, [])


def test_many_long_ragged_histories_come_back_in_their_own_order(tiny_forecaster: Forecaster) -> None:
    generator = np.random.default_rng(4)
    histories = [generator.normal(10, 1, int(n)) for n in generator.integers(0, 40, 300)]
    histories[7] = generator.normal(10, 1, 1300)

    state = tiny_forecaster.warm_up(histories, list(range(300)))

    assert state.last_step.tolist() == [row + len(y) - 1 for row, y in enumerate(histories)]
    for row in (0, 7, 123, 299):
        assert_same_state(state.select([row]), tiny_forecaster.warm_up([histories[row]], [row]))


def test_rows_of_length_zero_stay_as_they_are(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([HISTORY, HISTORY[:5]], [0, 0])

    folded = tiny_forecaster.fold(state, torch.full((2, 3), 9.0, dtype=torch.float64), torch.tensor([0, 2]))

    assert folded.to_bytes()[0] == state.to_bytes()[0]
    assert (folded.last_step - state.last_step).tolist() == [0, 2]


def test_folding_nothing_changes_nothing(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([HISTORY], [0])

    assert tiny_forecaster.fold(state, torch.empty(1, 0, dtype=torch.float64)).to_bytes() == state.to_bytes()
    assert len(tiny_forecaster.warm_up([], [])) == 0
    assert tiny_forecaster.forecast(tiny_forecaster.warm_up([], [])).shape == (0, 6, 9)


def test_histories_and_batches_given_are_not_written_to(tiny_forecaster: Forecaster) -> None:
    history = np.where(np.arange(50) % 5 == 0, np.nan, HISTORY)
    kept, table = history.copy(), torch.tensor([[1.0, torch.nan, 3.0]], dtype=torch.float64)
    kept_table = table.clone()

    state = tiny_forecaster.warm_up([history], [0])
    tiny_forecaster.fold(state, table, torch.tensor([2]))

    np.testing.assert_array_equal(history, kept)
    assert torch.equal(table.nan_to_num(-1), kept_table.nan_to_num(-1))


def test_a_missing_value_moves_the_clock_and_one_slot_of_the_ring(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([HISTORY], [0])

    after = tiny_forecaster.observe(state, torch.tensor([torch.nan], dtype=torch.float64))

    assert after.last_step.tolist() == [50]
    assert after.silence.tolist() == [1]
    moved = after.ring[0] != state.ring[0]
    assert moved.nonzero().flatten().tolist() == [50 % len(moved)]
    assert torch.isfinite(after.ring).all()
    assert np.isfinite(tiny_forecaster.forecast(after)).all()


def test_threads_may_share_a_forecaster(tiny_forecaster: Forecaster) -> None:
    states = [tiny_forecaster.warm_up([HISTORY[row:]], [row]) for row in range(16)]
    expected = [tiny_forecaster.forecast(state, 24) for state in states]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda state: tiny_forecaster.forecast(state, 24), states * 5))

    for one, two in zip(found, expected * 5, strict=True):
        np.testing.assert_array_equal(one, two)


def test_later_training_of_the_network_does_not_reach_the_forecaster() -> None:
    network = network_of(config_of("linear", (3,)), seed=5)
    forecaster = Forecaster(network)
    before = forecaster.fingerprint()

    with torch.no_grad():
        next(network.parameters()).add_(1.0)

    assert forecaster.fingerprint() == before


def test_fresh_weights_come_from_the_seed_alone_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()

    first, second, other = (Forecaster.create(TINY, seed) for seed in (1, 1, 2))

    assert first.fingerprint() == second.fingerprint() != other.fingerprint()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_before_training_the_forecast_is_near_the_seasonal_pattern() -> None:
    fresh = Forecaster.create(Config("h", 4, (4,), transform="linear", network=NetworkConfig(hidden_size=8)))
    history = np.tile([10.0, 20.0, 30.0, 20.0], 12)

    found = fresh.forecast(fresh.warm_up([history], [0]), 4, [0.5])[0, :, 0]

    assert np.corrcoef(found, history[:4])[0, 1] > 0.99


# -- frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_a_frame_of_forecasts_continues_every_series(zone: str | None) -> None:
    forecaster = forecaster_of(dataclasses.replace(TINY, time_zone=zone))
    calendar = Calendar("h", zone)
    first = int(calendar.parse(["2024-03-30T20:00" + ("+01:00" if zone else "")])[0])
    panel = Panel.from_series(calendar, [("b", first, HISTORY[:4]), ("a", first + 3, HISTORY)])

    frame = forecaster.forecast_frame(panel, 7, [0.1, 0.5, 0.975])

    assert list(frame.columns) == ["unique_id", "ds", "0.1", "0.5", "0.975"]
    assert frame["unique_id"].tolist() == ["b"] * 7 + ["a"] * 7
    history = panel.to_frame()
    for name in ("a", "b"):
        ds = frame.loc[frame["unique_id"] == name, "ds"]
        last = history.loc[history["unique_id"] == name, "ds"].iloc[-1]
        assert ds.tolist() == pd.date_range(last, periods=8, freq="h")[1:].tolist()
    state = forecaster.warm_up(panel.values, panel.first_steps.tolist())
    np.testing.assert_array_equal(
        frame[["0.1", "0.5", "0.975"]].to_numpy().reshape(2, 7, 3), forecaster.forecast(state, 7, [0.1, 0.5, 0.975])
    )


def test_a_frame_has_nine_levels_by_default(tiny_forecaster: Forecaster) -> None:
    frame = tiny_forecaster.forecast_frame(Panel.from_series(Calendar("h"), [("a", 0, HISTORY)]))

    assert list(frame.columns[2:]) == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]
    assert len(frame) == 6


def test_integer_steps_stay_integers_in_a_frame() -> None:
    forecaster = forecaster_of(dataclasses.replace(TINY, freq="1"))

    frame = forecaster.forecast_frame(Panel.from_series(Calendar("1"), [("a", 10, HISTORY[:5])]), 3)

    assert frame["ds"].tolist() == [15, 16, 17]


@pytest.mark.parametrize("calendar", [Calendar("D"), Calendar("h", "UTC"), Calendar("1")])
def test_series_of_another_calendar_are_refused(tiny_forecaster: Forecaster, calendar: Calendar) -> None:
    panel = Panel.from_series(calendar, [("a", 0, HISTORY)])

    with pytest.raises(InputError, match="but the model was trained for freq 'h'"):
        tiny_forecaster.forecast_frame(panel)


def test_a_model_without_anchors_starts_from_the_level_and_one_with_them_from_the_season() -> None:
    """Fresh weights: the correction is zero, so that the median is what the forecast starts from."""
    raw = dataclasses.replace(TINY, network=dataclasses.replace(TINY.network, anchored=False))
    medians = []
    for config in (TINY, raw):
        forecaster = Forecaster.create(config)
        medians.append(forecaster.forecast(forecaster.warm_up([HISTORY], [0]), 6, [0.5])[0, :, 0])

    assert np.ptp(medians[0]) > 1
    assert np.ptp(medians[1]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("several", [1, 3])
def test_a_forecast_after_several_values_is_not_the_one_after_the_first(
    several: int, tiny_forecaster: Forecaster
) -> None:
    """What a state has at hand of its forecast goes where more is folded."""
    state = tiny_forecaster.observe(tiny_forecaster.warm_up([np.arange(20.0)], [0]), torch.tensor([5.0]))

    after = tiny_forecaster.fold(state, torch.full((1, several), 40.0))

    np.testing.assert_allclose(tiny_forecaster.forecast(after), tiny_forecaster.forecast(after.select([0])), rtol=1e-6)


@pytest.mark.parametrize("config", [TINY, *COVERED])
def test_an_empty_panel_has_an_empty_state_and_an_empty_forecast(config: Config) -> None:
    forecaster = forecaster_of(config)
    panel = Panel(
        Calendar("h"),
        [],
        np.empty(0, np.int64),
        [],
        config.covariates,
        [],
        np.empty((0, static_size(config.covariates))),
    )

    assert len(forecaster.warm_up_panel(panel)) == 0
    for frame in (forecaster.forecast_frame(panel, 3, [0.5]), forecaster.simulate_frame(panel, 3)):
        assert len(frame) == 0
        assert set(frame.columns) in ({"unique_id", "ds", "0.5"}, {"unique_id", "sample", "ds", "y"})


def chunk(rows: int, steps: int) -> torch.Tensor:
    return torch.ones(rows, steps, dtype=torch.float64)


@pytest.mark.parametrize("config", [TINY, config_of(cell="gru"), COVERED[0]], ids=["lstm", "gru", "covariates"])
@pytest.mark.parametrize("rows", [1, 3])
def test_as_many_rows_of_values_as_the_state_has_or_none_are_folded(config: Config, rows: int) -> None:
    """Compiled loops would read what lies behind an array, and keep it."""
    forecaster = forecaster_of(config)
    state = forecaster.warm_up([HISTORY, HISTORY[:9]], [0, 5])
    before = state.to_bytes()
    y = chunk(rows, 1)

    for verb in (
        lambda: forecaster.observe(state, y[:, 0]),
        lambda: forecaster.observe(state, y),
        lambda: forecaster.fold(state, y),
        lambda: forecaster.fold(state, y[0]),
        lambda: forecaster.fold_and_place(state, y),
        lambda: forecaster.place(forecaster.ahead(state), y[:, 0]),
        lambda: forecaster.change(state, torch.tensor([0, 1]), y[:, 0]),
    ):
        with pytest.raises(InputError, match=r"^y has shape .*, expected \[2"):
            verb()
    assert state.to_bytes() == before


@pytest.mark.parametrize("lengths", [[5, 1], [1, -1], [1], [1, 1, 1]])
def test_lengths_beyond_the_values_are_refused(tiny_forecaster: Forecaster, lengths: list[int]) -> None:
    state = tiny_forecaster.warm_up([HISTORY, HISTORY[:9]], [0, 5])

    for verb in (tiny_forecaster.fold, tiny_forecaster.fold_and_place):
        with pytest.raises(InputError, match=r"^lengths "):
            verb(state, chunk(2, 4), torch.tensor(lengths))


def test_rows_that_are_not_there_do_not_step(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([HISTORY], [0])

    with pytest.raises(IndexError):
        tiny_forecaster.change(state, torch.tensor([2**40]), chunk(1, 1)[0])


@pytest.mark.parametrize("columns", [0, 2, 4])
def test_covariates_have_the_columns_of_the_model_or_are_refused(columns: int) -> None:
    forecaster = forecaster_of(COVERED[0])
    state = forecaster.warm_up([HISTORY], [0])
    y, table = chunk(1, 2), torch.ones(1, 2, columns, dtype=torch.float64)

    for verb in (
        lambda: forecaster.fold(state, y, None, table),
        lambda: forecaster.fold_and_place(state, y, None, table),
        lambda: forecaster.observe(state, y[:, 0], table[:, 0]),
        lambda: forecaster.change(state, torch.tensor([0]), y[:, 0], table[:, 0]),
    ):
        with pytest.raises(InputError, match=r"^covariates has shape .*, expected \[1, .*3\]"):
            verb()
    with pytest.raises(InputError, match=r"^tables\[0\] has shape"):
        forecaster.warm_up([HISTORY], [0], [np.ones((50, columns))])
    with pytest.raises(InputError, match=r"^static has shape \[1, 9\], expected \[1, 3\]"):
        forecaster.initial_state([0], torch.ones(1, 9))


def test_one_of_everything_is_wanted_for_each_history(tiny_forecaster: Forecaster) -> None:
    with pytest.raises(InputError, match="first_steps has 1 entries for 2 histories"):
        tiny_forecaster.warm_up([HISTORY, HISTORY], [0])
    with pytest.raises(InputError, match="tables has 1 entries for 2 histories"):
        tiny_forecaster.warm_up([HISTORY, HISTORY], [0, 0], [np.empty((50, 0))])
    with pytest.raises(InputError, match=r"^tables\[0\] has shape \[4, 0\], expected at least 50 steps"):
        tiny_forecaster.warm_up([HISTORY], [0], [np.empty((4, 0))])


@pytest.mark.parametrize("other", [config_of(cell="gru"), config_of(hidden_size=9), config_of(seasonality=(5,))])
def test_a_state_of_another_model_is_neither_folded_nor_forecast_from(
    tiny_forecaster: Forecaster, other: Config
) -> None:
    state = tiny_forecaster.warm_up([HISTORY], [0])

    for verb in (lambda f: f.forecast(state), lambda f: f.fold(state, chunk(1, 3))):
        with pytest.raises(InputError, match="the state is of another model"):
            verb(forecaster_of(other))


@pytest.mark.parametrize("other", [config_of(hidden_size=80), config_of(members=3), config_of(seasonality=(5,))])
def test_what_a_state_of_another_model_remembers_is_not_forecast_from(
    tiny_forecaster: Forecaster, other: Config
) -> None:
    """Loops would read on beyond the end of arrays that are too short."""
    forecaster, rows, y = forecaster_of(other), torch.tensor([0]), chunk(1, 1)[:, 0]
    state = tiny_forecaster.warm_up([HISTORY], [0])

    for remembering in (tiny_forecaster.observe(state, y), tiny_forecaster.change(state, rows, y)):
        for verb in (lambda s: forecaster.forecast(s), lambda s: forecaster.ahead(s)):
            with pytest.raises(InputError, match="the state is of another model"):
                verb(remembering)
    with pytest.raises(InputError, match="the state is of another model"):
        forecaster.change(state, rows, y)


def test_what_is_no_number_is_refused_as_that(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([HISTORY], [0])

    for horizon in (2.0, "2"):
        with pytest.raises(InputError, match=rf"^horizon is {horizon!r}, expected 1 to 24"):
            tiny_forecaster.forecast(state, horizon)  # type: ignore[arg-type]
    for levels in (0.5, ["high"]):
        with pytest.raises(InputError, match=r"^quantile_levels is .*, expected a list of numbers"):
            tiny_forecaster.forecast(state, 2, levels)  # type: ignore[arg-type]
    np.testing.assert_array_equal(tiny_forecaster.forecast(state, np.int64(2)), tiny_forecaster.forecast(state, 2))


def test_future_values_that_no_column_takes_are_refused(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([HISTORY], [0])

    with pytest.raises(InputError, match=r"has no columns to be known .* found shape \[1, 2, 1\]"):
        tiny_forecaster.forecast(state, 2, future=torch.ones(1, 2, 1))
