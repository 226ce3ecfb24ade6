"""Marginals: the distribution of every coming step, from one state, at any quantile level.

The first block of steps is what the head decodes from the state; each later one what it decodes from a copy of the
state that went on without the truth. Knows heads and what they decoded; folds nothing itself.

Axes: B row, K parameter, L quantile level, H trained horizon, N step of the whole horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.heads import Head, Levels
from forecaster.scaling import Frame

__all__ = ["Block", "Marginals"]


class Block(NamedTuple):
    """What was decoded at one moment: parameters [B, K, H] in a frame with fields of shape [B]."""

    parameters: Tensor
    frame: Frame

    def steps(self, steps: slice) -> Block:
        """Some of its horizon steps."""
        return Block(self.parameters[..., steps], self.frame)


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

    def __init__(self, head: Head, blocks: Sequence[Block], horizon: int) -> None:
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
        return self.head.admit(center + torch.sign(around) * torch.hypot(around, before), frame)

    def _around(self, number: int, levels: Levels) -> Tensor:
        """Quantiles of a block's last step less their median, which is the last of `levels`."""
        width = self.head.sizes.horizon
        last = self._quantiles(number, slice(width - 1, width), levels)
        return last[:, :-1] - last[:, -1:]


def _and_median(levels: Levels) -> Levels:
    if isinstance(levels, tuple):
        return (*levels, 0.5)
    return torch.cat([levels, torch.full_like(levels[:, :1], 0.5)], 1)
