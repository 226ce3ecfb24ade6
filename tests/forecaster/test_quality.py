"""Live quality: sums in the state against a backtest of the same forecasts, scored by the library's own metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from forecaster import Config, Forecaster, StreamState
from forecaster.baselines import seasonal_naive
from forecaster.metrics import coverage, wql
from forecaster.quality import KEPT, QUANTITIES, figures
from tests.forecaster.kit import COVERED, TINY, config_of, forecaster_of

LEVELS = (0.1, 0.5, 0.9)
LONG = replace(config_of("linear", (4, 12)), horizon=30)


def stream(length: int, seed: int) -> np.ndarray:
    """A noisy season of counts, sometimes 0."""
    noise = np.random.default_rng(seed).gamma(2, 3, length)
    return np.round(np.maximum(8 + 8 * np.sin(np.arange(length) * np.pi / 2) + noise - 6, 0))


def backtested(forecaster: Forecaster, y: np.ndarray, first: int, period: int) -> tuple[np.ndarray, ...]:
    """Truth, quantiles and naive forecasts from every cutoff that is scored, NaN where the truth has not come yet.

    With known covariates, truth counts as come when the next flight begins.
    """
    horizon, season = forecaster.config.horizon, forecaster.config.seasonality[0]
    truths, quantiles, naives = [], [], []
    for end in range(period, len(y)):
        if (first + end - 1) % period == 0:
            state = forecaster.warm_up([y[:end]], [first])
            quantiles.append(forecaster.forecast(state, horizon, LEVELS)[0])
            naives.append(seasonal_naive(y[:end], horizon, season))
            truths.append(np.concatenate([y[end : end + horizon], np.full(max(end + horizon - len(y), 0), np.nan)]))
            if forecaster.config.covariates.known and end + period > len(y):
                truths[-1][:] = np.nan
    return np.stack(truths), np.stack(quantiles), np.stack(naives)


@pytest.mark.parametrize(
    ("config", "period"),
    [
        (TINY, 8),
        (LONG, 31),
        (replace(TINY, support="nonnegative"), 8),
        (config_of("log", (4,), calibration="off"), 8),
        (config_of("log", (4,), head="student_t"), 8),
        (config_of("linear", (4,), head="zero_inflated"), 8),
        (COVERED[0], 8),
        (COVERED[1], 8),
    ],
    ids=["quantile", "long", "nonnegative", "uncalibrated", "student", "counts", "known", "known, linear"],
)
def test_figures_are_those_of_a_backtest_of_the_same_forecasts(config: Config, period: int) -> None:
    forecaster, first = forecaster_of(config, 2), 5
    y = stream(150, 1)
    truth, quantiles, naive = backtested(forecaster, y, first, period)

    quality = forecaster.quality(forecaster.warm_up([y], [first]))
    found = figures(quality.total[0])

    assert len(quality.steps) == min(config.horizon, 10)
    scored = np.array(quality.steps) - 1
    for place, step in enumerate(scored):
        true, told, dull = truth[:, step], quantiles[:, step], naive[:, step]
        known = ~np.isnan(true)
        error, naive_error = np.abs(true - told[:, 1])[known], np.abs(true - dull)[known]
        assert found.count[place] == known.sum() > 2
        assert found.mae[place] == pytest.approx(error.mean(), rel=1e-4)
        assert found.relative_mae[place] == pytest.approx(error.sum() / naive_error.sum(), rel=1e-4)
        assert found.wql[place] == pytest.approx(wql(true[:, None], told[:, None], LEVELS), rel=1e-4)
        assert found.coverage_80[place] == pytest.approx(coverage(true, told[:, 0], told[:, 2]), abs=1e-6)
    fading = float(KEPT) ** np.arange(len(truth))[::-1]
    first_step = np.abs(truth[:, scored[0]] - quantiles[:, scored[0], 1])
    known = ~np.isnan(first_step)
    recent = (first_step[known] * fading[-known.sum() :]).sum()
    assert quality.recent[0, QUANTITIES.index("error"), 0] == pytest.approx(recent, rel=1e-4)


@pytest.mark.parametrize("config", [TINY, LONG, config_of("linear", (4,), head="negative_binomial"), COVERED[0]])
def test_figures_do_not_depend_on_how_a_series_is_cut(config: Config) -> None:
    """In one chunk, in pieces, one by one, and as changes of a slab, with gaps and rows of different lengths."""
    forecaster = forecaster_of(config, 2)
    y = np.stack([stream(90, 1), stream(90, 2), stream(90, 3)])
    y[0, [40, 41, 60]] = np.nan
    start = forecaster.initial_state([0, 3, -11])
    whole = forecaster.fold(start, torch.from_numpy(y))
    pieces, slab = start, start.select([0, 1, 2])
    for a, b in ((0, 1), (1, 30), (30, 32), (32, 90)):
        pieces = forecaster.fold(pieces, torch.from_numpy(y[:, a:b]))
    for step in range(90):
        change = forecaster.change(slab, torch.tensor([2, 0, 1]), torch.from_numpy(y[[2, 0, 1], step]))
        slab.assign([2, 0, 1], change)

    for other in (pieces, slab):
        for found, expected in ((other.quality, whole.quality), (other.issued, whole.issued)):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    assert (whole.quality[:, 0, 0] > 0).all()


def test_a_change_seldom_carries_scores(tiny_forecaster: Forecaster) -> None:
    slab = tiny_forecaster.warm_up([stream(60, 1)], [0])
    long = forecaster_of(LONG, 2)
    slab = long.warm_up([stream(60, 1)], [0])
    sizes = []
    for _ in range(31):
        change = long.change(slab, torch.tensor([0]), torch.tensor([5.0]))
        sizes.append((change.quality.shape[-1] > 0, change.issued.shape[-1] > 0))
        slab.assign([0], change)

    assert [sum(column) for column in zip(*sizes, strict=True)] == [10, 1]


def test_half_of_a_recent_sum_is_from_the_last_fourteen_forecasts() -> None:
    assert 1 - KEPT**14 == pytest.approx(0.5, abs=0.02)


def test_scores_survive_as_bytes_and_scale_with_the_series(tiny_forecaster: Forecaster) -> None:
    state = tiny_forecaster.warm_up([stream(90, 1), 1000 * stream(90, 1)], [0, 0])
    back: StreamState = tiny_forecaster.state_from_bytes(state.to_bytes())
    quality = tiny_forecaster.quality(back)
    one, thousand = figures(quality.total[0]), figures(quality.total[1])

    assert torch.equal(back.quality, state.quality)
    np.testing.assert_allclose(thousand.mae, 1000 * one.mae, rtol=1e-4)
    for name in ("count", "relative_mae", "wql", "coverage_80"):
        np.testing.assert_allclose(getattr(thousand, name), getattr(one, name), rtol=1e-4)


def test_nothing_scored_has_no_figures(tiny_forecaster: Forecaster) -> None:
    found = figures(tiny_forecaster.quality(tiny_forecaster.initial_state([0])).total[0])

    assert (found.count == 0).all()
    assert all(np.isnan(getattr(found, name)).all() for name in ("mae", "relative_mae", "wql", "coverage_80"))


def test_recent_figures_are_half_of_the_last_fourteen_forecasts() -> None:
    """What any number of older ones weigh, 1 / (1 - KEPT) less these, is about as much."""
    last = sum(KEPT**age for age in range(14))

    assert last * (1 - KEPT) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_figures_of_series_of_any_unit_are_what_their_sums_say(unit: float) -> None:
    found = figures(np.array([8, 4 * unit, 5 * unit, 3 * unit, 40 * unit, 6]))

    assert found.count == 8
    assert found.mae == pytest.approx(0.5 * unit)
    assert found.relative_mae == pytest.approx(0.8)
    assert found.wql == pytest.approx(0.05)
    assert found.coverage_80 == 0.75
