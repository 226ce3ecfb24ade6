"""Marginals: the distribution of every coming step, from one state, at any quantile level.

The first block of steps is what the head decodes from the state; each later one what it decodes from a copy of the
state that went on without the truth. Knows heads and what they decoded; folds nothing itself.

Axes: B row, K parameter, L quantile level, H trained horizon, N step of the whole horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forecaster.heads import Head, Levels
from forecaster.scaling import Frame

__all__ = ["Decoded", "Marginals", "level_name", "locate", "surprise"]


class Decoded(NamedTuple):
    """What was decoded at one moment: parameters [B, K, H] in a frame with fields of shape [B]."""

    parameters: Tensor
    frame: Frame

    def steps(self, steps: slice) -> Decoded:
        """Some of its horizon steps."""
        return Decoded(self.parameters[..., steps], self.frame)


def level_name(level: float) -> str:
    """What a quantile level is called, in columns and replies: six digits at most.

    Examples
    --------
    >>> level_name(0.1), level_name(0.975), level_name(1 / 3)
    ('0.1', '0.975', '0.333333')
    """
    return f"{level:g}"


def locate(head: Head, block: Decoded, y: Tensor) -> Tensor:
    """Where y [B] lies in the distribution of a block's first step, above 0 and below 1; shape [B], float64.

    NaN where y is NaN, or the location of the block is: there it says nothing.
    """
    return head.place(block.parameters[..., :1], y.double().unsqueeze(-1), block.frame).squeeze(-1)


def surprise(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far out values lay, on either side: 0 at the median, 1 if one in ten lies as far out, 2 if one in a hundred.

    Parameters
    ----------
    places
        Places in a distribution, between 0 and 1; NaN is missing.

    Examples
    --------
    >>> surprise(np.array([0.5, 0.95, 0.005]))
    array([0., 1., 2.])
    """
    out: npt.NDArray[np.float64] = np.abs(np.log10(2 * np.minimum(places, 1 - places)))
    return out


class Marginals:
    """Distributions of the N coming steps of B rows.

    Parameters
    ----------
    head
        Gives the parameters their meaning.
    blocks
        One per trained horizon; together at least N steps.
    horizon
        N.
    """

    def __init__(self, head: Head, blocks: Sequence[Decoded], horizon: int) -> None:
        self.head, self.blocks, self.horizon = head, blocks, horizon

    def quantiles(self, levels: tuple[float, ...]) -> Tensor:
        """Quantiles of all steps at the same levels, in units of y, float64, shape [B, L, N]."""
        width = self.head.sizes.horizon
        parts = [
            self._quantiles(number, slice(0, min(width, self.horizon - number * width)), levels)
            for number in range(-(-self.horizon // width))
        ]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def at_step(self, step: int, levels: Tensor) -> Tensor:
        """Quantiles of the step after `step` others, at levels [B, L] of each row's own; shape [B, L]."""
        number, place = divmod(step, self.head.sizes.horizon)
        return self._quantiles(number, slice(place, place + 1), levels.unsqueeze(-1)).squeeze(-1)

    def _quantiles(self, number: int, steps: slice, levels: Levels) -> Tensor:
        """Quantiles of some steps of one block.

        A later block knows nothing of the errors before it, so its spread is added to that of its cutoff in quadrature,
        as for independent errors.
        """
        parameters, frame = self.blocks[number].steps(steps)
        if number == 0:
            return self.head.quantiles(parameters, frame, levels)
        before = self._around(number - 1, _and_median(levels))
        quantiles = self.head.quantiles(parameters, frame, _and_median(levels))
        center = quantiles[:, -1:]
        around = quantiles[:, :-1] - center
        return self.head.admit(center + torch.sign(around) * _quadrature(around, before), frame)

    def _around(self, number: int, levels: Levels) -> Tensor:
        """Quantiles of a block's last step less their median, which is the last of `levels`."""
        width = self.head.sizes.horizon
        last = self._quantiles(number, slice(width - 1, width), levels)
        return last[:, :-1] - last[:, -1:]


def _quadrature(one: Tensor, two: Tensor) -> Tensor:
    """Root of the sum of squares; `torch.hypot` rounds differently at different places of a batch."""
    one, two = one.abs(), two.abs()
    larger = torch.maximum(one, two)
    ratio = torch.where(larger > 0, torch.minimum(one, two) / larger, 0.0)
    return larger * (ratio * ratio + 1).sqrt()


def _and_median(levels: Levels) -> Levels:
    if isinstance(levels, tuple):
        return (*levels, 0.5)
    return torch.cat([levels, torch.full_like(levels[:, :1], 0.5)], 1)
