"""The backtest: the forecasts of the serving code, scored as a plain loop scores them, blind to what came after."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from forecaster import Backtest, Calendar, Forecaster, InputError, Panel, PanelError, backtest
from forecaster.baselines import naive2, seasonal_naive
from forecaster.metrics import naive_error, owa
from tests.forecaster.kit import TINY, Float, forecaster_of

HORIZON, WINDOWS, STEP, SEASON = 5, 3, 4, 4
LEVELS = ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]


def histories() -> list[Float]:
    generator = np.random.default_rng(1)
    made = [20 + 6 * np.sin(np.arange(n) * np.pi / 2 + n) + generator.normal(size=n) for n in (40, 61, 33)]
    made[1][[10, 50, 58]] = np.nan
    return made


def panel_of(values: list[Float]) -> Panel:
    return Panel.from_series(Calendar("h"), [(f"s{i}", 100 * i, y) for i, y in enumerate(values)])


@pytest.fixture(scope="module")
def outcome(tiny_forecaster: Forecaster) -> Backtest:
    return backtest(tiny_forecaster, panel_of(histories()), horizon=HORIZON, n_windows=WINDOWS, step_size=STEP)


def cutoffs(n: int) -> list[int]:
    """Number of values before each window."""
    return [n - HORIZON - STEP * (WINDOWS - 1 - w) for w in range(WINDOWS)]


def test_every_series_window_and_step_has_one_row(outcome: Backtest) -> None:
    assert list(outcome.forecasts.columns) == ["unique_id", "cutoff", "ds", "step", "y", "seasonal_naive", *LEVELS]
    assert len(outcome.forecasts) == 3 * WINDOWS * HORIZON
    assert not outcome.forecasts.duplicated(["unique_id", "cutoff", "ds"]).any()
    for _, rows in outcome.forecasts.groupby(["unique_id", "cutoff"]):
        assert rows["step"].tolist() == list(range(1, HORIZON + 1))
        assert rows["ds"].tolist() == pd.date_range(rows["cutoff"].iloc[0], periods=HORIZON + 1, freq="h")[1:].tolist()


def test_forecasts_are_those_of_the_serving_code_at_each_cutoff(outcome: Backtest, tiny_forecaster: Forecaster) -> None:
    calendar = Calendar("h")
    for i, y in enumerate(histories()):
        for cut in cutoffs(len(y)):
            state = tiny_forecaster.warm_up([y[:cut]], [100 * i])
            at = calendar.to_index([100 * i + cut - 1])[0]
            rows = outcome.forecasts.query(
                "unique_id == @name and cutoff == @at", local_dict={"name": f"s{i}", "at": at}
            )
            expected = tiny_forecaster.forecast(state, HORIZON)[0]
            np.testing.assert_allclose(rows[LEVELS].to_numpy(), expected, rtol=1e-5)
            np.testing.assert_array_equal(rows["y"], y[cut : cut + HORIZON])
            np.testing.assert_array_equal(rows["seasonal_naive"], seasonal_naive(y[:cut], HORIZON, SEASON))


def test_metrics_equal_a_loop_over_the_rows(outcome: Backtest, tiny_forecaster: Forecaster) -> None:
    smapes: dict[str, list[float]] = {"model": [], "naive": [], "naive2": []}
    mases: dict[str, list[float]] = {"model": [], "naive": [], "naive2": []}
    msis, inside, total = [], [], 0.0
    losses = {"model": dict.fromkeys(LEVELS, 0.0), "naive": dict.fromkeys(LEVELS, 0.0)}
    for i, y in enumerate(histories()):
        for cut in cutoffs(len(y)):
            state = tiny_forecaster.warm_up([y[:cut]], [100 * i])
            quantiles = tiny_forecaster.forecast(state, HORIZON, [float(v) for v in LEVELS])[0]
            outer = tiny_forecaster.forecast(state, HORIZON, [0.025, 0.975])[0]
            points = {
                "model": quantiles[:, 4],
                "naive": seasonal_naive(y[:cut], HORIZON, SEASON),
                "naive2": naive2(y[:cut], HORIZON, SEASON),
            }
            error = naive_error(y[:cut], SEASON)
            known = [h for h in range(HORIZON) if not math.isnan(y[cut + h])]
            for name, point in points.items():
                pairs = [(y[cut + h], point[h]) for h in known]
                smapes[name].append(np.mean([200 * abs(a - f) / (abs(a) + abs(f)) for a, f in pairs]))
                mases[name].append(np.mean([abs(a - f) for a, f in pairs]) / error)
            scores = []
            for h in known:
                truth = y[cut + h]
                total += abs(truth)
                inside.append(quantiles[h, 0] <= truth <= quantiles[h, 8])
                low, high = outer[h]
                scores.append(high - low + 40 * max(low - truth, 0) + 40 * max(truth - high, 0))
                for q, level in enumerate(LEVELS):
                    for name, value in (("model", quantiles[h, q]), ("naive", points["naive"][h])):
                        gap = truth - value
                        losses[name][level] += 2 * (float(level) * gap if gap > 0 else (float(level) - 1) * gap)
            msis.append(np.mean(scores) / error)

    reference = np.mean(smapes["naive2"]), np.mean(mases["naive2"])
    expected = {
        "smape": np.mean(smapes["model"]),
        "mase": np.mean(mases["model"]),
        "owa": owa(np.mean(smapes["model"]), np.mean(mases["model"]), *reference),  # type: ignore[arg-type]
        "wql": np.mean([loss / total for loss in losses["model"].values()]),
        "coverage_80": np.mean(inside),
        "msis": np.mean(msis),
        "seasonal_naive_smape": np.mean(smapes["naive"]),
        "seasonal_naive_mase": np.mean(mases["naive"]),
        "seasonal_naive_owa": owa(np.mean(smapes["naive"]), np.mean(mases["naive"]), *reference),  # type: ignore[arg-type]
        "seasonal_naive_wql": np.mean([loss / total for loss in losses["naive"].values()]),
    }
    assert set(outcome.metrics) == set(expected)
    for name, value in expected.items():
        assert outcome.metrics[name] == pytest.approx(value, rel=1e-4), name


def test_tables_by_window_step_and_series_agree_with_the_rows(outcome: Backtest) -> None:
    rows = outcome.forecasts.assign(
        error=lambda f: (f["y"] - f["0.5"]).abs(), inside=lambda f: f["y"].between(f["0.1"], f["0.9"])
    )
    known = rows[rows["y"].notna()]

    by_step = known.groupby("step").agg(mae=("error", "mean"), coverage_80=("inside", "mean")).reset_index()
    pd.testing.assert_frame_equal(outcome.by_step[["step", "mae", "coverage_80"]], by_step, check_dtype=False)
    assert outcome.by_window["window"].tolist() == list(range(WINDOWS))
    assert set(outcome.by_window.columns) == {"window", *outcome.metrics}
    assert outcome.by_series["unique_id"].tolist() == ["s0", "s1", "s2"]
    assert outcome.by_series["mase"].mean() == pytest.approx(outcome.metrics["mase"])


@pytest.mark.parametrize("change", [1e6, np.nan, -5.0])
def test_what_came_after_a_cutoff_changes_no_forecast_and_no_baseline_of_it(
    outcome: Backtest, tiny_forecaster: Forecaster, change: float
) -> None:
    columns = ["unique_id", "cutoff", "ds", "step", "seasonal_naive", *LEVELS]
    for window in range(WINDOWS):
        changed = [y.copy() for y in histories()]
        for y in changed:
            y[cutoffs(len(y))[window] :] = change

        found = backtest(tiny_forecaster, panel_of(changed), horizon=HORIZON, n_windows=WINDOWS, step_size=STEP)

        per_window = 3 * HORIZON
        until = slice(0, per_window * (window + 1))
        pd.testing.assert_frame_equal(found.forecasts[columns].iloc[until], outcome.forecasts[columns].iloc[until])


def test_a_series_too_short_for_every_window_is_left_out(tiny_forecaster: Forecaster) -> None:
    tail = HORIZON + (WINDOWS - 1) * STEP
    values = [
        *histories(),
        np.arange(float(tail)),
        np.arange(float(tail + 1)) + 1,
        np.r_[np.nan, np.arange(float(tail))],
    ]

    found = backtest(tiny_forecaster, panel_of(values), horizon=HORIZON, n_windows=WINDOWS, step_size=STEP)

    assert found.forecasts["unique_id"].unique().tolist() == ["s0", "s1", "s2", "s4"]


def test_histories_shorter_than_a_season_are_judged_against_their_last_values(tiny_forecaster: Forecaster) -> None:
    short = panel_of([np.array([3.0, 5, *np.full(HORIZON, 7)]), np.array([2.0, 4, *np.full(HORIZON, 5)])])

    found = backtest(tiny_forecaster, short, horizon=HORIZON, n_windows=1, step_size=1)

    # Two of the four phases of a season were never seen.
    np.testing.assert_array_equal(found.forecasts["seasonal_naive"], [5, 5, 3, 5, 5, 4, 4, 2, 4, 4])
    assert found.metrics["seasonal_naive_wql"] > 0


def test_one_window_is_the_end_of_every_series(tiny_forecaster: Forecaster) -> None:
    found = backtest(tiny_forecaster, panel_of(histories()), horizon=3, n_windows=1, step_size=1)

    for i, y in enumerate(histories()):
        np.testing.assert_array_equal(found.forecasts.query(f"unique_id == 's{i}'")["y"], y[-3:])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"horizon": 0}, InputError),
        ({"horizon": TINY.max_horizon + 1}, InputError),
        ({"n_windows": 0}, PanelError),
        ({"step_size": 0}, PanelError),
        ({"n_windows": 1000}, PanelError),
    ],
)
def test_what_cannot_be_scored_is_refused(
    tiny_forecaster: Forecaster, options: dict[str, int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        backtest(tiny_forecaster, panel_of(histories()), **({"horizon": 3, "n_windows": 1, "step_size": 1} | options))


def test_another_calendar_is_refused(tiny_forecaster: Forecaster) -> None:
    panel = Panel.from_series(Calendar("D"), [("a", 0, histories()[0])])

    with pytest.raises(InputError, match="freq 'D'"):
        backtest(tiny_forecaster, panel, horizon=3, n_windows=1, step_size=1)


def test_series_that_a_baseline_foretells_exactly_do_not_stop_a_backtest(tiny_forecaster: Forecaster) -> None:
    found = backtest(tiny_forecaster, panel_of([np.full(60, 5.0)]), horizon=3, n_windows=2, step_size=1)

    assert np.isfinite(found.metrics["smape"])
    assert math.isnan(found.metrics["mase"])
    assert math.isnan(found.metrics["owa"])
    assert found.metrics["seasonal_naive_wql"] == 0


def test_a_model_of_few_levels_is_scored_by_those_that_it_answers() -> None:
    forecaster = forecaster_of(replace(TINY, quantile_levels=(0.25, 0.5, 0.75)))

    found = backtest(forecaster, panel_of(histories()), horizon=HORIZON, n_windows=WINDOWS, step_size=STEP)

    assert list(found.forecasts.columns)[6:] == LEVELS[2:7]
    assert {"mase", "wql", "seasonal_naive_wql"} <= set(found.metrics)
    assert not {"coverage_80", "msis"} & set(found.metrics)
    assert math.isfinite(found.metrics["wql"])
    assert found.by_step["mae"].notna().all()
    assert found.by_step["coverage_80"].isna().all()
