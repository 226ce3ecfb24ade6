"""The quantile head: the decoder's rows are quantiles in scaled coordinates, which cannot cross.

Axes as in `forecaster.heads.head`; Q trained quantile level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from forecaster import kernels
from forecaster.heads.decoder import Decoder, HeadSizes
from forecaster.heads.head import Head, Levels
from forecaster.heads.widening import widening
from forecaster.losses import pinball_loss
from forecaster.scaling import Frame, Transform, memory, restore, transform

__all__ = ["QuantileHead"]

DRIFTING = 0.1
"""The level, with its mirror image, whose interval is held against the latest windows."""

DEAREST = 1.05
"""By how much calibration may raise the loss on its windows, in units of y: with logarithms of bursts among zeros, an
interval twice as wide is a power as high."""

FIRST_SPREAD = 0.05
"""Distance between neighbouring quantiles before training, in units."""


SMALLEST_SPREAD = 0.005
"""... and at least, where it starts from the data."""


class QuantileHead(Head):
    """Quantiles at the trained levels, spread outward from the median by softplus steps.

    Between trained levels the quantile function is linear in y. Beyond the outermost it has the tails of a
    generalised Pareto distribution of index `kernels.TAIL` through the outermost two: they are for sample paths and for
    the places of observations, a forecast does not answer there.

    Parameters
    ----------
    sizes, transform, levels, nonnegative
        As in `Head`.
    """

    stretchable = True

    def __init__(self, sizes: HeadSizes, *, transform: Transform, levels: Sequence[float], nonnegative: bool) -> None:
        first = math.log(math.expm1(FIRST_SPREAD))  # inverse of softplus
        super().__init__(
            sizes, transform=transform, levels=levels, nonnegative=nonnegative, first_shape=[first] * (len(levels) - 1)
        )
        # Row q sums the spreads between level q and the median, nearest first: rows share their leading terms, so that
        # rounding cannot make quantiles cross.
        number = len(self.levels)
        half = number // 2
        lower = torch.ones(half, half).tril()
        outward = torch.zeros(number, number - 1)
        outward[:half, :half], outward[half + 1 :, half:] = -lower.flip(0), lower
        self.outward: Tensor
        self.register_buffer("outward", outward, persistent=False)
        # Factor of each step between neighbouring levels: 1 until calibrated, and left out in training.
        self.widening: Tensor
        self.register_buffer("widening", torch.ones(number - 1, sizes.horizon))
        self._levels = np.array(self.levels)
        self.trained: Tensor
        self.register_buffer("trained", torch.tensor(self.levels), persistent=False)

    def assemble(self, baseline: Tensor, correction: Tensor, shape: Tensor, steps: int) -> Tensor:
        """Quantiles in scaled coordinates: K = Q, rising."""
        if shape.is_cpu and not torch.is_grad_enabled():
            decoded = torch.cat([baseline.unsqueeze(-2), correction.unsqueeze(-2), shape], -2)
            found = self._spread(decoded.reshape(1, -1, *decoded.shape[-2:]), steps)
            return found.view(*shape.shape[:-2], *found.shape[1:])
        spread = functional.softplus(shape)
        if not self.training:
            spread *= self.widening[:, :steps]
        quantiles: Tensor = self.outward @ spread + (baseline + correction).unsqueeze(-2)
        return quantiles

    def assemble_mean(self, decoded: Tensor) -> Tensor:
        """In one loop over all members."""
        return self._spread(decoded, decoded.shape[-1])

    def _spread(self, decoded: Tensor, steps: int) -> Tensor:
        """The mean of the quantiles of all members, [N, Q, H], without gradient, of `decoded` [M, N, 2 + R, H]."""
        widening = torch.ones_like(self.widening) if self.training else self.widening
        if steps < self.sizes.horizon or decoded.shape[-1] > steps:
            widening = widening[:, :steps].expand(-1, decoded.shape[-1]).contiguous()
        quantiles = decoded.new_empty(decoded.shape[1], len(self.levels), decoded.shape[-1])
        kernels.spread(decoded.numpy(), widening.numpy(), quantiles.numpy())
        return quantiles

    def loss(self, parameters: Tensor, target: Tensor, frame: Frame, weight: Tensor) -> Tensor:
        """Weighted pinball loss in scaled coordinates."""
        return pinball_loss(parameters, self.scaled(target, frame), self.trained, weight.unsqueeze(-1))

    def start_from(self, errors: Tensor, weights: Tensor) -> None:
        """From the quantiles of the errors at every step where any is known."""
        found = _quantiles(errors, weights, self.trained)
        middle = len(self.levels) // 2
        gaps = found.diff(dim=0).clamp(min=SMALLEST_SPREAD)
        steps = torch.cat([gaps[:middle].flip(0), gaps[middle:]])
        shape = steps + torch.log(-torch.expm1(-steps))  # the inverse of softplus
        for decoder in self.decoders:
            cast(Decoder, decoder).start_from(found[middle], shape)

    def reset_calibration(self) -> None:
        """Steps as decoded."""
        self.widening.fill_(1.0)

    def around(self, parameters: Tensor, center: Tensor) -> Tensor:
        """Quantiles moved side by side."""
        middle = len(self.levels) // 2
        return parameters - parameters[:, middle : middle + 1] + center.unsqueeze(1)

    def calibrate(self, parameters: Tensor, target: Tensor, frame: Frame, expected: float | Tensor) -> None:
        """Widen or narrow the steps between neighbouring quantiles, as far as it does not cost too much."""
        distance, steps = self._from_median(parameters, target, frame)
        tails = [2 * level for level in reversed(self.levels[: steps.shape[1]])]
        factors = widening(distance, steps, tails, expected).repeat(2, 1)
        most = DEAREST * self._error(parameters, target, frame)
        for share in (1.0, 0.75, 0.5, 0.25, 0.0):
            kept = factors**share
            if not self._error(self._widened(parameters, kept), target, frame) > most:
                break
        self.widening *= kept

    def _widened(self, parameters: Tensor, factors: Tensor) -> Tensor:
        """Quantiles whose steps are that many times as wide, factors [Q - 1, H] from the median outward by side."""
        middle = len(self.levels) // 2
        gaps = parameters.diff(dim=1)
        steps = torch.cat([gaps[:, :middle].flip(1), gaps[:, middle:]], 1) * factors
        return parameters[:, middle : middle + 1] + self.outward @ steps

    def _error(self, parameters: Tensor, target: Tensor, frame: Frame) -> float:
        """Sum of the pinball losses of all levels in units of y."""
        over = target.unsqueeze(1) - self._admitted(parameters, frame)
        level = self.trained.double().unsqueeze(-1)
        return float(torch.maximum(level * over, (level - 1) * over).nansum())

    def drift(self, parameters: Tensor, target: Tensor, frame: Frame, moments: int) -> Tensor:
        """By the interval between the levels nearest to 10 and 90 %; the mean of what blocks and latest windows say."""
        distance, steps = self._from_median(parameters, target, frame)
        tail = min(self.levels[: steps.shape[1]], key=lambda level: abs(level - DRIFTING))
        inside = steps[:, : steps.shape[1] - self.levels.index(tail)].sum(1, keepdim=True)
        return widening(distance, inside, [2 * tail], observations=moments).squeeze(0).clamp(min=1).sqrt()

    def widen(self, factors: Tensor) -> None:
        """All steps between neighbouring quantiles."""
        self.widening *= factors

    def _from_median(self, parameters: Tensor, target: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Distances of the truth from the median [N, H], and the steps between quantiles on its side [N, E, H]."""
        middle = len(self.levels) // 2
        signed = transform(target, frame, self.transform) - parameters[:, middle]
        gaps = parameters.diff(dim=1)
        below, above = gaps[:, :middle].flip(1), gaps[:, middle:]
        return signed.abs(), torch.where((signed < 0).unsqueeze(1), below, above)

    def stretch(self, parameters: Tensor, factors: Tensor) -> Tensor:
        """Signed distances to the median; products and sums keep the order of what they are applied to."""
        stretched = torch.empty_like(parameters, memory_format=torch.contiguous_format)
        kernels.stretch(parameters.contiguous().numpy(), factors.contiguous().numpy(), stretched.numpy())
        return stretched

    def quantiles(self, parameters: Tensor, frame: Frame, levels: Levels) -> Tensor:
        """Trained quantiles, or those between and beyond them."""
        if isinstance(levels, Tensor):
            # In tails, what float32 rounds off grows with how far they reach; `place` restores in float64, too.
            restored = restore(parameters.double().flatten(-2), frame, self.transform).reshape(parameters.shape)
            return self.admit(self._invert(restored, levels), frame)
        trained = self.levels
        if (rows := _rows(levels, trained)) is not None:
            return self._admitted(parameters if rows == slice(0, len(trained)) else parameters[..., rows, :], frame)
        mixing = np.array([np.interp(levels, trained, row) for row in np.eye(len(trained))])
        return self.admit(torch.from_numpy(mixing.T) @ self._restored(parameters, frame), frame)

    def place(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """On the quantile function through the trained quantiles, tails included."""
        found = torch.empty(y.shape, dtype=torch.float64)
        location, scale, unit = map(memory, frame)
        kernels.place(
            parameters.contiguous().numpy(), (location, scale, unit), self._levels, y.numpy(),
            self.transform == "log", self.nonnegative, found.numpy(),
        )  # fmt: skip
        return found

    @property
    def answered(self) -> tuple[float, float]:
        """The outermost trained levels."""
        return self.levels[0], self.levels[-1]

    def _admitted(self, parameters: Tensor, frame: Frame) -> Tensor:
        """Some of the quantiles [N, L, H] in units of y, as `admit` has them."""
        return self._restored(parameters, frame, self.nonnegative, float(self.reach))

    def _restored(self, parameters: Tensor, frame: Frame, nonnegative: bool = False, reach: float = math.inf) -> Tensor:
        """Float32 [N, L, H] in units of y: `restore` and `admit` in one loop, without gradient."""
        y = np.empty(parameters.shape)
        location, scale, unit = map(memory, frame)
        kernels.restore(
            memory(parameters.detach()), (location, scale, unit), self.transform == "log", nonnegative, reach, y
        )
        return torch.from_numpy(y)

    def _invert(self, quantiles: Tensor, levels: Tensor) -> Tensor:
        """The quantile function through `quantiles` [B, Q, H] at any levels [B, L, H]."""
        trained = torch.tensor(self.levels, dtype=torch.float64)
        levels = (levels + torch.zeros_like(quantiles[..., :1, :])).contiguous()  # of full shape
        above = torch.searchsorted(trained, levels).clamp(1, len(trained) - 1)
        low, high = quantiles.gather(-2, above - 1), quantiles.gather(-2, above)
        share = (levels - trained[above - 1]) / (trained[above] - trained[above - 1])
        between = torch.lerp(low, high, share.clamp(0, 1))
        return between + (_tail(trained.flip(0).neg() + 1, 1 - levels) - _tail(trained, levels)) * (high - low)


def _tail(trained: Tensor, levels: Tensor) -> Tensor:
    """Distances of levels below the lowest trained one from its quantile, in widths of the lowest two; 0 for others."""
    ratio = math.pow(trained[1] / trained[0], kernels.TAIL)
    return ratio * ((trained[0] / levels).clamp(min=1).pow(kernels.TAIL) - 1) / (ratio - 1)


@lru_cache(maxsize=1024)
def _rows(levels: tuple[float, ...], trained: tuple[float, ...]) -> slice | list[int] | None:
    """Where levels stand among the trained ones, side by side or not; None if one of them is between two."""
    if not set(levels) <= set(trained):
        return None
    places = [trained.index(level) for level in levels]
    rows = slice(places[0], places[-1] + 1)
    return rows if places == list(range(rows.start, rows.stop)) else places


def _quantiles(errors: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """Weighted quantiles [Q, H] of errors [N, H]; NaN at steps without any weight."""
    known = ~torch.isnan(errors)
    ordered, order = errors.nan_to_num(0.0).sort(0)
    shares = (weights.unsqueeze(1) * known).gather(0, order).cumsum(0)
    total = shares[-1:].clone()
    places = torch.searchsorted(shares.t().contiguous(), (total * levels.unsqueeze(1)).t().contiguous())
    return torch.where(total > 0, ordered.gather(0, places.t().clamp(max=len(errors) - 1)), torch.nan)
