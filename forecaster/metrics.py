"""Accuracy metrics, in the one form used here; see each for its source.

Plain functions over arrays of one cutoff each; axes: N series, H horizon step, Q quantile level. A missing truth (NaN)
counts nothing. Errors per series pass over a step without a forecast, as published scores of naive forecasts of series
with gaps do; a series without any has none, and wql is missing. Averages over series are taken last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["coverage", "mase", "msis", "naive_error", "owa", "smape", "wql"]

Float = npt.NDArray[np.float64]


def smape(y: Float, forecast: Float) -> Float:
    """Symmetric mean absolute percentage error, 0 to 200, in the form of the M4 competition.

    Parameters
    ----------
    y, forecast
        Shape [N, H].

    Returns
    -------
    ndarray
        Per series, shape [N]; NaN where no truth is known. Where truth and forecast are both 0 the error is 0.

    Examples
    --------
    >>> smape(np.array([[100.0, 0.0]]), np.array([[50.0, 0.0]]))
    array([33.33333333])
    """
    size = np.abs(y) + np.abs(forecast)
    ratio = np.divide(np.abs(y - forecast), size, out=np.zeros_like(size), where=size != 0)
    return _mean(np.where(np.isnan(y), np.nan, 200 * ratio))


def naive_error(history: Float, seasonality: int) -> float:
    """Mean absolute seasonal difference of a history, the denominator of MASE and MSIS; NaN if it has none.

    Examples
    --------
    >>> naive_error(np.array([1.0, 2.0, 2.0, 4.0]), 2)
    1.5
    """
    difference = np.abs(history[seasonality:] - history[:-seasonality])
    known = difference[~np.isnan(difference)]
    return float(known.mean()) if len(known) else float("nan")


def mase(y: Float, forecast: Float, error: Float) -> Float:
    """Mean absolute scaled error (Hyndman and Koehler, 2006), per series, shape [N].

    Parameters
    ----------
    y, forecast
        Shape [N, H].
    error
        `naive_error` of each series' history, shape [N]; a series whose error is 0 or unknown gets NaN.
    """
    scaled: Float = _mean(np.abs(y - forecast)) / _positive(error)
    return scaled


def owa(smape_value: float, mase_value: float, smape_naive2: float, mase_naive2: float) -> float:
    """Overall weighted average of M4: mean of both errors relative to those of Naive2; NaN where Naive2 has none.

    Examples
    --------
    >>> round(owa(9.328, 0.893, 18.383, 2.395), 3)
    0.44
    """
    if not (smape_naive2 > 0 and mase_naive2 > 0):
        return float("nan")
    return 0.5 * (smape_value / smape_naive2 + mase_value / mase_naive2)


def wql(y: Float, quantiles: Float, levels: Sequence[float]) -> float:
    """Weighted quantile loss: twice the pinball loss summed over everything, over the sum of |y|; mean over levels.

    Parameters
    ----------
    y
        Shape [N, H].
    quantiles
        Shape [N, H, Q].
    levels
        The Q levels.

    Returns
    -------
    float
        NaN where nothing is known but 0, and where a known truth was not forecast.

    Examples
    --------
    >>> round(wql(np.array([[10.0]]), np.array([[[8.0, 11.0]]]), [0.5, 0.9]), 3)
    0.11
    """
    level = np.asarray(levels)
    error = y[..., None] - quantiles
    loss = np.where(error >= 0, level * error, (level - 1) * error)
    loss = np.where(np.isnan(y)[..., None], 0.0, loss)
    total = np.nansum(np.abs(y))
    return float(2 * loss.sum(axis=(0, 1)).mean() / total) if total > 0 else float("nan")


def coverage(y: Float, lower: Float, upper: Float) -> float:
    """Share of known truths inside [lower, upper], all of one shape."""
    known = ~np.isnan(y)
    return float(((y >= lower) & (y <= upper))[known].mean()) if known.any() else float("nan")


def msis(y: Float, lower: Float, upper: Float, error: Float, level: float = 0.95) -> Float:
    """Mean scaled interval score of M4 (Gneiting and Raftery, 2007), per series, shape [N].

    Parameters
    ----------
    y, lower, upper
        Truth and central interval, shape [N, H].
    error
        `naive_error` of each series' history, shape [N].
    level
        Nominal coverage of the interval.
    """
    penalty = 2 / (1 - level)
    score = (upper - lower) + penalty * np.maximum(lower - y, 0) + penalty * np.maximum(y - upper, 0)
    scaled: Float = _mean(np.where(np.isnan(y), np.nan, score)) / _positive(error)
    return scaled


def _positive(error: Float) -> Float:
    return np.where(error > 0, error, np.nan)


def _mean(values: Float) -> Float:
    """Mean over the last axis of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    total = np.where(known, values, 0).sum(-1)
    mean: Float = np.divide(total, count, out=np.full(values.shape[:-1], np.nan), where=count > 0)
    return mean
