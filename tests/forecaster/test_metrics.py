"""Metrics against plain loops over the definitions, and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster.metrics import coverage, mase, msis, naive_error, owa, smape, wql
from tests.forecaster.kit import Float, series

LEVELS = (0.1, 0.3, 0.5, 0.8)


def table(seed: int, missing: float, count: int = 3, horizon: int = 5) -> tuple[Float, Float, Float]:
    """Truth, rising quantiles at LEVELS, and scaling errors."""
    generator = np.random.default_rng(seed)
    y = generator.normal(3, 5, (count, horizon))
    y[generator.random(y.shape) < missing] = np.nan
    quantiles = np.sort(generator.normal(3, 5, (count, horizon, len(LEVELS))), -1)
    return y, quantiles, generator.random(count) + 0.1


DRAWS = {"seed": st.integers(0, 2**16), "missing": st.sampled_from([0.0, 0.3, 0.9])}


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


@given(**DRAWS)
def test_smape_and_mase_equal_a_loop(seed: int, missing: float) -> None:
    y, quantiles, error = table(seed, missing)
    forecast = quantiles[..., 2]

    found_smape, found_mase = smape(y, forecast), mase(y, forecast, error)

    for i in range(len(y)):
        known = [(a, f) for a, f in zip(y[i], forecast[i], strict=True) if not math.isnan(a)]
        assert found_smape[i] == pytest.approx(
            mean([200 * abs(a - f) / (abs(a) + abs(f)) for a, f in known]), nan_ok=True
        )
        assert found_mase[i] == pytest.approx(mean([abs(a - f) for a, f in known]) / error[i], nan_ok=True)


@given(**DRAWS)
def test_wql_equals_a_loop(seed: int, missing: float) -> None:
    y, quantiles, _ = table(seed, missing)

    per_level = []
    for place, level in enumerate(LEVELS):
        loss = total = 0.0
        for i, h in np.ndindex(*y.shape):
            if not math.isnan(y[i, h]):
                error = y[i, h] - quantiles[i, h, place]
                loss += 2 * (level * error if error > 0 else (level - 1) * error)
                total += abs(y[i, h])
        per_level.append(loss / total if total else math.nan)
    assert wql(y, quantiles, LEVELS) == pytest.approx(mean(per_level), nan_ok=True)


@given(**DRAWS)
def test_a_missing_forecast_is_never_taken_for_a_right_one(seed: int, missing: float) -> None:
    y, quantiles, error = table(seed, missing)
    known = ~np.isnan(y).all(-1)
    nothing = np.full_like(quantiles, np.nan)

    assert math.isnan(wql(y, nothing, LEVELS))
    for found in (smape(y, nothing[..., 0]), mase(y, nothing[..., 0], error)):
        assert np.isnan(found[known]).all()


@given(**DRAWS)
def test_coverage_and_msis_equal_a_loop(seed: int, missing: float) -> None:
    y, quantiles, error = table(seed, missing)
    lower, upper = quantiles[..., 0], quantiles[..., 3]

    found = msis(y, lower, upper, error)

    inside = []
    for i in range(len(y)):
        scores = []
        for a, lo, up in zip(y[i], lower[i], upper[i], strict=True):
            if not math.isnan(a):
                inside.append(float(lo <= a <= up))
                scores.append((up - lo) + (2 / 0.05) * max(lo - a, 0) + (2 / 0.05) * max(a - up, 0))
        assert found[i] == pytest.approx(mean(scores) / error[i], nan_ok=True)
    assert coverage(y, lower, upper) == pytest.approx(mean(inside), nan_ok=True)


@given(history=series(max_size=40), seasonality=st.integers(1, 12))
def test_the_scaling_error_equals_a_loop(history: Float, seasonality: int) -> None:
    pairs = [(history[t], history[t - seasonality]) for t in range(seasonality, len(history))]
    expected = mean([abs(a - b) for a, b in pairs if not math.isnan(a) and not math.isnan(b)])

    assert naive_error(history, seasonality) == pytest.approx(expected, nan_ok=True)


def test_a_perfect_forecast_has_no_error() -> None:
    y = np.array([[1.0, -2.0, 0.0]])

    assert smape(y, y).tolist() == [0.0]
    assert mase(y, y, np.array([0.5])).tolist() == [0.0]
    assert wql(y, np.repeat(y[..., None], 4, -1), LEVELS) == 0.0
    assert coverage(y, y, y) == 1.0
    assert msis(y, y, y, np.array([1.0])).tolist() == [0.0]


def test_smape_is_200_at_worst() -> None:
    assert smape(np.array([[1.0, 5.0]]), np.array([[0.0, -5.0]])).tolist() == [200.0]


def test_a_series_without_seasonal_change_has_no_scaled_error() -> None:
    y = np.array([[1.0], [2.0]])

    assert np.isnan(mase(y, y + 1, np.array([0.0, np.nan]))).all()
    assert np.isnan(msis(y, y - 1, y + 1, np.array([0.0, np.nan]))).all()


def test_at_the_median_wql_is_the_weighted_absolute_error() -> None:
    y, forecast = np.array([[10.0, 20.0]]), np.array([[12.0, 17.0]])

    assert wql(y, forecast[..., None], [0.5]) == pytest.approx(5 / 30)


def test_nothing_known_is_no_number() -> None:
    nothing = np.full((2, 3), np.nan)

    assert np.isnan(smape(nothing, nothing + 1)).all()
    assert math.isnan(wql(nothing, np.zeros((2, 3, 4)), LEVELS))
    assert math.isnan(coverage(nothing, nothing, nothing))
    assert math.isnan(naive_error(np.array([1.0, 2.0]), 5))


@pytest.mark.parametrize(
    ("scores", "naive2", "published"),
    [
        ((9.328, 0.893), (18.383, 2.395), 0.440),
        ((11.506, 0.819), (18.383, 2.395), 0.484),
        ((13.912, 1.193), (18.383, 2.395), 0.628),
        ((7.817, 2.356), (9.161, 2.777), 0.851),
    ],
)
def test_owa_reproduces_the_table_of_the_m4_competition(
    scores: tuple[float, float], naive2: tuple[float, float], published: float
) -> None:
    assert owa(*scores, *naive2) == pytest.approx(published, abs=6e-4)


def test_against_a_perfect_reference_there_is_no_overall_average() -> None:
    assert math.isnan(owa(1.0, 1.0, 0.0, 0.0))
    assert math.isnan(owa(1.0, 1.0, 2.0, 0.0))
