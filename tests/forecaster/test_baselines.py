"""Baselines against plain loops, and where they must be exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster.baselines import naive2, seasonal_naive
from tests.forecaster.kit import Float, series


@given(history=series(max_size=40), horizon=st.integers(1, 20), seasonality=st.integers(1, 12))
def test_seasonal_naive_repeats_the_latest_known_value_of_each_phase(
    history: Float, horizon: int, seasonality: int
) -> None:
    found = seasonal_naive(history, horizon, seasonality)

    for h in range(horizon):
        t = len(history) + h - seasonality
        while t >= 0 and (t >= len(history) or math.isnan(history[t])):
            t -= seasonality
        observed = history[~np.isnan(history)]
        last = observed[-1] if len(observed) else np.nan
        np.testing.assert_equal(found[h], history[t] if t >= 0 else last)


def naive2_by_hand(y: list[float], horizon: int, m: int) -> list[float]:
    """The Naive2 of the M4 organisers' program, written from its description for a complete positive history."""
    n, mean = len(y), sum(y) / len(y)

    def autocorrelation(lag: int) -> float:
        return sum((y[t] - mean) * (y[t - lag] - mean) for t in range(lag, n)) / sum((v - mean) ** 2 for v in y)

    seasonal = False
    if m > 1 and n >= 3 * m:
        limit = 1.645 * math.sqrt((1 + 2 * sum(autocorrelation(lag) ** 2 for lag in range(1, m))) / n)
        seasonal = abs(autocorrelation(m)) > limit
    if not seasonal:
        return [y[-1]] * horizon
    ratios: dict[int, list[float]] = {}
    half = m // 2
    for t in range(half, n - half):
        window = [y[s] for s in range(t - half, t + half + 1)]
        if m % 2 == 0:
            average = (window[0] / 2 + sum(window[1:-1]) + window[-1] / 2) / m
        else:
            average = sum(window) / m
        ratios.setdefault(t % m, []).append(y[t] / average)
    indices = {phase: sum(values) / len(values) for phase, values in ratios.items()}
    level = sum(indices.values()) / m
    last = y[-1] / (indices[(n - 1) % m] / level)
    return [last * indices[(n + h) % m] / level for h in range(horizon)]


@given(
    seed=st.integers(0, 2**16),
    m=st.integers(1, 8),
    cycles=st.floats(1, 8),
    strength=st.sampled_from([0.0, 0.1, 0.5]),
    noise=st.sampled_from([0.01, 0.2]),
)
def test_naive2_equals_the_method_written_by_hand(
    seed: int, m: int, cycles: float, strength: float, noise: float
) -> None:
    generator = np.random.default_rng(seed)
    n = max(2, int(m * cycles))
    y = 50 * (1 + strength * np.sin(2 * np.pi * np.arange(n) / m)) * np.exp(noise * generator.normal(size=n))

    np.testing.assert_allclose(naive2(y, 10, m), naive2_by_hand(y.tolist(), 10, m), rtol=1e-9)


def test_naive2_continues_a_pure_season_exactly() -> None:
    y = np.tile([10.0, 20.0, 15.0, 40.0], 10)

    np.testing.assert_allclose(naive2(y, 6, 4), np.resize([10.0, 20.0, 15.0, 40.0], 6))


def test_naive2_believes_in_a_season_from_three_of_it_on() -> None:
    y = np.where(np.arange(36) % 12 == 3, 20.0, 10.0)

    np.testing.assert_array_equal(naive2(y[:35], 12, 12), np.full(12, 10.0))
    assert naive2(y, 12, 12)[3] > 15


@pytest.mark.parametrize(
    "history",
    [
        np.array([5.0]),
        np.array([1.0, 2.0, 3.0, 5.0]),
        np.array([-1.0, 5.0] * 12),
        np.array([0.0, 5.0] * 12),
        np.full(30, 5.0),
    ],
)
def test_naive2_repeats_the_last_value_where_there_is_no_season_to_adjust(history: Float) -> None:
    np.testing.assert_array_equal(naive2(history, 3, 4), [5.0, 5.0, 5.0])


def test_gaps_do_not_stop_either_baseline() -> None:
    y = np.tile([10.0, 20.0, 15.0, 40.0], 10)
    gappy = y.copy()
    gappy[[3, 17, 39]] = np.nan

    assert np.isfinite(naive2(gappy, 6, 4)).all()
    np.testing.assert_array_equal(seasonal_naive(gappy, 4, 4), [10.0, 20.0, 15.0, 40.0])


@pytest.mark.parametrize("history", [np.array([]), np.full(5, np.nan)])
def test_nothing_known_is_no_forecast(history: Float) -> None:
    assert np.isnan(seasonal_naive(history, 3, 2)).all()
    assert np.isnan(naive2(history, 3, 2)).all()
