"""Live quality: what a stream's past forecasts were worth, scored as their truth arrived.

One forecast at a time is scored, the one in flight of `forecaster.calibration`, at up to twelve steps of its horizon,
as it was issued (with known covariates: as it would have been, had those been known that came). The sums of the scores
are part of the state: a function of the log and the model, so that a restart, an eviction, a rewind or a swap there and
back gives the same figures. Knows sums; no series, no files.

Axes: B row, Q quantity, S scored step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["KEPT", "QUANTITIES", "Figures", "Quality", "figures"]

Float = npt.NDArray[np.float64]

QUANTITIES = ("count", "error", "naive_error", "loss", "size", "covered")
"""How many truths came; sums of the absolute errors of the median and of the seasonal naive forecast, of the pinball
losses at three levels, and of the absolute truths; how many truths lay within the 80 % interval: Q of them."""

KEPT = 0.95
"""What a recent sum keeps from forecast to forecast: half of it is from the last fourteen."""


@dataclass(frozen=True)
class Figures:
    """Accuracy from sums; NaN where nothing came, or a denominator is 0.

    Attributes
    ----------
    count
        Truths that came.
    mae
        Mean absolute error of the median, in units of y.
    relative_mae
        The same relative to that of the seasonal naive forecast.
    wql
        Weighted quantile loss over the levels 0.1, 0.5 and 0.9, as in `forecaster.metrics`.
    coverage_80
        Share of truths within the 80 % interval.
    """

    count: Float
    mae: Float
    relative_mae: Float
    wql: Float
    coverage_80: Float


class Quality(NamedTuple):
    """Sums of scores of B streams.

    Attributes
    ----------
    steps
        The horizon steps that are scored, S of them.
    total, recent
        Sums over all forecasts, and with the older ones fading, float64, shape [B, Q, S].
    """

    steps: tuple[int, ...]
    total: Float
    recent: Float


def figures(sums: Float) -> Figures:
    """Accuracy from sums whose first axis is Q; further axes are kept."""
    count, error, naive_error, loss, size, covered = sums
    return Figures(
        count,
        _ratio(error, count),
        _ratio(error, naive_error),
        _ratio(2 / 3 * loss, size),
        _ratio(covered, count),
    )


def _ratio(above: Float, below: Float) -> Float:
    ratio: Float = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)
    return ratio[()]  # a number, not an array of none
