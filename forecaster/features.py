"""Features: what the network sees at each step, and the seasonal anchors its forecast starts from.

Pure functions of a `History`; sizes follow from the configuration alone. Anchors are values of the recent past that
could simply be repeated: the last value, the value one season before the target, the mean over the seasons in the ring.

Axes: B row, T step, W ring value (oldest first), F feature, A anchor, H horizon step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from forecaster.scaling import History

__all__ = ["anchors", "feature_size", "features", "num_anchors", "pooled_size"]

FINE = 96
"""Rings longer than twice this are seen finely for this many recent values, and in block means before that."""

SCALARS = 7


def pooled_size(ring_length: int) -> int:
    """Number of ring features: all of a short ring; `FINE` values and at most `FINE` block means of a long one."""
    if ring_length <= 2 * FINE:
        return ring_length
    block = math.ceil((ring_length - FINE) / FINE)
    return FINE + (ring_length - FINE) // block


def feature_size(ring_length: int) -> int:
    """Number of features F."""
    return pooled_size(ring_length) + SCALARS


def features(history: History) -> Tensor:
    """Network inputs, float32, shape [B, T, F]: the scaled ring, then logarithms of scales and clocks."""
    frame = history.frame
    relative_location = torch.where(frame.scale > 0, frame.location / frame.scale, 0.0).float()
    scalars = [
        torch.log(frame.unit).float() * 0.5,
        torch.log(history.differences[..., 0] + 1e-4) * 0.5,
        torch.log(history.differences[..., 1] + 1e-4) * 0.5,
        relative_location,
        torch.log1p(history.age.float()) * 0.125,
        torch.log1p(history.silence.float()) * 0.5,
        history.filled,
    ]
    return torch.cat([_pool(history.scaled), torch.stack(scalars, -1)], -1)


def _pool(scaled: Tensor) -> Tensor:
    width = scaled.shape[-1]
    if width <= 2 * FINE:
        return scaled
    block = math.ceil((width - FINE) / FINE)
    coarse = (
        scaled[..., (width - FINE) % block : width - FINE]
        .reshape(*scaled.shape[:-1], (width - FINE) // block, block)
        .mean(-1)
    )
    return torch.cat([coarse, scaled[..., width - FINE :]], -1)


def num_anchors(seasonality: tuple[int, ...], ring_length: int) -> int:
    """Number of anchors A."""
    return len(_last_season(seasonality)) + len(_mean_season(seasonality, ring_length))


def anchors(scaled: Tensor, seasonality: tuple[int, ...], horizon: int) -> Tensor:
    """Candidate forecasts in scaled coordinates, shape [..., A, H], from the scaled ring [..., W]."""
    width = scaled.shape[-1]
    cycles = [scaled[..., width - period :] for period in _last_season(seasonality)]
    for period in _mean_season(seasonality, width):
        cycles.append(scaled[..., width % period :].reshape(*scaled.shape[:-1], width // period, period).mean(-2))
    return torch.stack([_repeat(cycle, horizon) for cycle in cycles], -2)


def _repeat(cycle: Tensor, horizon: int) -> Tensor:
    """First `horizon` values of an endless repetition of `cycle` [..., period]."""
    period = cycle.shape[-1]
    if period == 1:
        return cycle.expand(*cycle.shape[:-1], horizon)
    return torch.cat([cycle] * -(-horizon // period), -1)[..., :horizon] if period < horizon else cycle[..., :horizon]


def _last_season(seasonality: tuple[int, ...]) -> list[int]:
    """Periods whose latest cycle is an anchor; the longest comes last. Period 1 is the last value."""
    return sorted({1, *seasonality})


def _mean_season(seasonality: tuple[int, ...], ring_length: int) -> list[int]:
    """Periods that fit at least twice into the ring; period 1 gives its mean."""
    return [period for period in _last_season(seasonality) if ring_length // period >= 2]
