"""Features: what the network sees at each step, and the seasonal anchors its forecast starts from.

Pure functions of a `History`; sizes follow from the configuration alone. Anchors are values of the recent past that
could simply be repeated: the last value, the value one season before the target, the mean over the seasons in the ring,
and the last value with its season taken off and that of the target put on. They are moved along the ring's trend, as
far as that is steady. One more is a linear forecast: cycles of the shortest season, in fitted weights.

Axes: B row, T step, W ring value (oldest first), F feature, A anchor, H horizon step.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from forecaster import kernels
from forecaster.kernels import FINE, SCALARS
from forecaster.scaling import History, num_blocks

__all__ = ["anchors", "feature_size", "features", "naive", "num_anchors", "num_cycles", "pooled_size"]


def pooled_size(ring_length: int) -> int:
    """Number of ring features: all of a short ring; `FINE` values and at most `FINE` block means of a long one."""
    blocks = num_blocks(ring_length)
    return FINE + blocks if blocks else ring_length


@cache
def feature_size(ring_length: int) -> int:
    """Number of features F."""
    return pooled_size(ring_length) + SCALARS


def features(history: History) -> Tensor:
    """Network inputs, float32, shape [B, T, F], a view: the recent ring, scalars, block means of the older ring.

    The scalars are logarithms of unit, of mean absolute differences at lag 1 and at the shortest season and of age and
    silence, the location relative to the scale, and the share of the ring that was ever observed.
    """
    return history.table[..., -feature_size(history.ring_length) :]


def num_anchors(seasonality: tuple[int, ...], ring_length: int) -> int:
    """Number of anchors A."""
    means = _mean_season(seasonality, ring_length)
    level = 1 if means and means[-1] > 1 else 0
    return len(_last_season(seasonality)) + len(means) + level + (1 if num_cycles(seasonality, ring_length) else 0)


def num_cycles(seasonality: tuple[int, ...], ring_length: int) -> int:
    """Cycles K of the shortest season that are blended: as many as fit into the ring, 0 if only one does."""
    count = ring_length // seasonality[0]
    return count if count >= 2 else 0


def naive(scaled: Tensor, seasonality: tuple[int, ...], horizon: int) -> Tensor:
    """The seasonal naive forecast: the latest cycle of the first season, shape [..., H], from the ring [..., W]."""
    return scaled[..., scaled.shape[-1] - seasonality[0] + torch.arange(horizon) % seasonality[0]]


def anchors(scaled: Tensor, seasonality: tuple[int, ...], horizon: int, blend: Tensor) -> Tensor:
    """Candidate forecasts in scaled coordinates, shape [..., A, H], from the scaled ring [..., W].

    The last one is a blend of the cycles in the ring, with the weights [J, K] of every coming cycle, oldest first.
    """
    width = scaled.shape[-1]
    count, periods, mean_periods, lag = _plan(seasonality, width)
    found = scaled.new_empty(*scaled.shape[:-1], count, horizon)
    kernels.cycles(
        scaled.reshape(-1, width).numpy(), periods, mean_periods, lag, seasonality[0], blend.numpy(),
        found.view(-1, count, horizon).numpy(),
    )  # fmt: skip
    return found


@cache
def _plan(seasonality: tuple[int, ...], width: int) -> tuple[int, kernels.Int64, kernels.Int64, int]:
    """Number of anchors, periods of the latest cycles and of the mean ones, and the lag that tells the trend."""
    periods, mean_periods = _last_season(seasonality), _mean_season(seasonality, width)
    numbers = np.array(periods, dtype=np.int64), np.array(mean_periods, dtype=np.int64)
    return num_anchors(seasonality, width), *numbers, _trend_lag(seasonality, width)


def _last_season(seasonality: tuple[int, ...]) -> list[int]:
    """Periods whose latest cycle is an anchor; the longest comes last. Period 1 is the last value."""
    return sorted({1, *seasonality})


def _mean_season(seasonality: tuple[int, ...], ring_length: int) -> list[int]:
    """Periods that fit at least twice into the ring; period 1 gives its mean."""
    return [period for period in _last_season(seasonality) if ring_length // period >= 2]


def _trend_lag(seasonality: tuple[int, ...], ring_length: int) -> int:
    """Steps between the values whose changes tell the trend: whole seasons, about a quarter of the ring.

    0 where the ring does not hold the longest season twice: what is season and what is trend, it cannot tell.
    """
    longest = seasonality[-1]
    return longest * max(ring_length // 4 // longest, 1) if ring_length >= 2 * longest else 0
