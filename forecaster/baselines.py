"""Baselines that every model must beat: seasonal naive, and the Naive2 method of the M competitions.

Plain functions of one history; missing values are skipped, never learnt from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["naive2", "seasonal_naive"]

Float = npt.NDArray[np.float64]


def seasonal_naive(history: Float, horizon: int, seasonality: int) -> Float:
    """Repeat the latest known value of each phase of the season, and the last one of all where a phase has none.

    Parameters
    ----------
    history
        Shape [T]; NaN is missing.
    horizon
        Steps H to forecast.
    seasonality
        Period in steps; 1 repeats the last value.

    Returns
    -------
    ndarray
        Shape [H]; NaN only of a history in which nothing is known.

    Examples
    --------
    >>> seasonal_naive(np.array([1.0, 2.0, 3.0, np.nan]), 3, 2)
    array([3., 2., 3.])
    """
    observed = history[~np.isnan(history)]
    last = observed[-1] if len(observed) else np.nan
    padded = np.full(-(-max(len(history), 1) // seasonality) * seasonality, np.nan)
    padded[len(padded) - len(history) :] = history
    cycles = padded.reshape(-1, seasonality)
    known = ~np.isnan(cycles)
    latest = len(cycles) - 1 - np.argmax(known[::-1], axis=0)
    cycle = np.where(known.any(axis=0), cycles[latest, np.arange(seasonality)], last)
    return np.resize(cycle, horizon)


def naive2(history: Float, horizon: int, seasonality: int) -> Float:
    """Last value of the seasonally adjusted history, re-seasonalised: the reference of OWA.

    Adjusts by classical multiplicative decomposition if the history is positive, of three seasons or more, and passes
    the 90 % autocorrelation test for seasonality (Makridakis, Spiliotis and Assimakopoulos, "The M4 Competition", IJF
    36, 2020); else repeats the last value. Gaps are closed by linear interpolation first.

    Returns
    -------
    ndarray
        Shape [horizon].
    """
    known = np.flatnonzero(~np.isnan(history))
    if not len(known):
        return np.full(horizon, np.nan)
    y = np.interp(np.arange(len(history)), known, history[known])
    if seasonality == 1 or not _is_seasonal(y, seasonality) or y.min() <= 0:
        return np.full(horizon, y[-1])
    indices = _seasonal_indices(y, seasonality)
    phases = np.arange(len(y), len(y) + horizon) % seasonality
    result: Float = y[-1] / indices[(len(y) - 1) % seasonality] * indices[phases]
    return result


def _is_seasonal(y: Float, seasonality: int) -> bool:
    """Whether the autocorrelation at the seasonal lag exceeds its 90 % limit given those at shorter lags."""
    if len(y) < 3 * seasonality:
        return False
    centered = y - y.mean()
    variance = float((centered**2).sum())
    if variance == 0:
        return False
    correlation = np.array([(centered[lag:] * centered[:-lag]).sum() / variance for lag in range(1, seasonality + 1)])
    limit = 1.645 * np.sqrt((1 + 2 * (correlation[:-1] ** 2).sum()) / len(y))
    return bool(abs(correlation[-1]) > limit)


def _seasonal_indices(y: Float, seasonality: int) -> Float:
    """Multiplicative indices of each phase, mean 1, from ratios to a centred moving average."""
    weights = np.ones(seasonality) / seasonality
    if seasonality % 2 == 0:
        weights = np.concatenate([[0.5], np.ones(seasonality - 1), [0.5]]) / seasonality
    trend = np.convolve(y, weights, mode="valid")
    offset = (len(weights) - 1) // 2
    ratios = y[offset : offset + len(trend)] / trend
    phases = (np.arange(len(trend)) + offset) % seasonality
    indices = np.array([ratios[phases == phase].mean() for phase in range(seasonality)])
    result: Float = indices / indices.mean()
    return result
