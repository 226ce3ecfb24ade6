"""What every head has in common: decoders, and the protocol of what their output means.

A head says what the decoders' rows are the parameters of, and alone knows the way from them to units of y. The members
of an ensemble have a decoder each; their forecast is the mean of their parameters (of quantiles: Vincent's average).

Axes: B any leading axes, M member, A anchor, K parameter, R row of raw shape, L asked quantile level, H horizon step, P
hidden size of a member, F feature, X number known of a coming step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from forecaster import blas
from forecaster.heads.decoder import Decoder, HeadSizes
from forecaster.heads.packed import PackedDecoders
from forecaster.kernels import SLIGHT
from forecaster.scaling import Frame, Transform, transform

__all__ = ["Head", "Levels", "level_tensor"]

Levels = tuple[float, ...] | Tensor
"""Quantile levels: the same for every step as a tuple, or float64, broadcastable to [B, L, H]."""

LARGEST_TARGET = 1e10
"""In scaled coordinates: there a constant series doubles. Further away, errors would drown all others, or overflow."""


class Head(nn.Module, ABC):
    """From hidden states to parameters, and from those to losses, quantiles and points in units of y.

    Parameters
    ----------
    sizes
        Of the decoders.
    transform
        Of the model: the way between scaled coordinates and y.
    levels
        Quantile levels the model is trained for, rising, 0.5 in the middle.
    nonnegative
        Whether y is known never to be below 0.
    first_shape
        Raw shape before training, one value per row.
    """

    discrete = False
    """Whether quantiles are whole numbers."""

    stretchable = False
    """Whether `stretch` does anything."""

    reach = math.inf
    """Magnitude that no continuous forecast exceeds, in mean magnitudes of the recent values: how many these are. So it
    stays below the sum of them all, where a burst among zeros makes one unit of scaled coordinates a power of ten."""

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        transform: Transform,
        levels: Sequence[float],
        nonnegative: bool,
        first_shape: Sequence[float],
    ) -> None:
        super().__init__()
        self.sizes, self.transform = sizes, transform
        self.levels = tuple(levels)
        self.nonnegative = nonnegative
        self.decoders = nn.ModuleList(Decoder(sizes, first_shape) for _ in range(sizes.members))
        self._packed: PackedDecoders | None = None

    def pack(self) -> None:
        """Keep the decoders' weights as forecasts read them; they change no more."""
        self._packed = PackedDecoders([cast(Decoder, decoder) for decoder in self.decoders])

    def packed(self) -> PackedDecoders:
        """The decoders' weights as forecasts read them."""
        return self._packed or PackedDecoders([cast(Decoder, decoder) for decoder in self.decoders])

    def forward(self, hidden: Tensor, features: Tensor, anchors: Tensor, known: Tensor | None = None) -> Tensor:
        """Parameters of every step's distribution, or of the first steps': of as many as `anchors` has.

        Parameters
        ----------
        hidden, features, anchors
            Shapes [B, M x P], member after member, [B, F] and [B, A, H].
        known
            What is known of each coming step, shape [B, H, X]; None if nothing is.

        Returns
        -------
        Tensor
            Shape [B, K, H]: the mean over the members. In training each member's own, shape [M, B, K, H], if there are
            several: members that learn together from their mean would grow alike.
        """
        steps = anchors.shape[-1]
        alone = steps == 1 and hidden.dim() == 2
        if not alone and not self.training and blas.multiplies(hidden):
            mean = self.assemble_mean(self.packed().decode(hidden, features, anchors, known))
            return mean.view(*hidden.shape[:-1], *mean.shape[1:])
        parts = torch.split(hidden, self.sizes.hidden_size, -1) if self.sizes.members > 1 else (hidden,)
        found = []
        for decoder, part in zip(self.decoders, parts, strict=True):
            decode = cast(Decoder, decoder).first if alone else cast(Decoder, decoder).forward
            parameters = self.assemble(*decode(part, features, anchors, known), steps)
            found.append(parameters.t().unsqueeze(-1) if alone else parameters)
        if len(found) == 1:
            return found[0]
        return torch.stack(found) if self.training else torch.stack(found).mean(0)

    @abstractmethod
    def assemble(self, baseline: Tensor, correction: Tensor, shape: Tensor, steps: int) -> Tensor:
        """Parameters [B, K, H] from what was decoded, shapes [B, H], [B, H] and [B, R, H].

        The last axis holds the first `steps` steps, or, where that is 1, any number of first steps.
        """

    def assemble_mean(self, decoded: Tensor) -> Tensor:
        """The mean of the members' parameters, shape [N, K, H], from what all of them decoded, [M, N, 2 + R, H]."""
        steps = decoded.shape[-1]
        found = [self.assemble(part[:, 0], part[:, 1], part[:, 2:], steps) for part in decoded]
        return torch.stack(found).mean(0) if len(found) > 1 else found[0]

    @abstractmethod
    def loss(self, parameters: Tensor, target: Tensor, frame: Frame, weight: Tensor) -> Tensor:
        """Mean loss over known targets, a scalar; 0 if none is known.

        Parameters
        ----------
        parameters
            Shape [B, K, H].
        target
            In units of y, float64, shape [B, H]; NaN is unknown and counts nothing.
        frame
            Coordinates, fields of shape [B].
        weight
            What an error in scaled coordinates is worth, shape [B]. Likelihoods are free of scale and do without it.
        """

    def scaled(self, target: Tensor, frame: Frame) -> Tensor:
        """Targets [B, H], as a loss has them: in scaled coordinates, where a jump from next to nothing has no bound."""
        return transform(target, frame, self.transform).clamp(-LARGEST_TARGET, LARGEST_TARGET)

    @abstractmethod
    def quantiles(self, parameters: Tensor, frame: Frame, levels: Levels) -> Tensor:
        """Quantiles in units of y, float64, shape [B, L, H], never crossing.

        Parameters
        ----------
        parameters
            Shape [B, K, H].
        frame
            Coordinates, fields of shape [B].
        levels
            Between 0 and 1, exclusive.
        """

    @abstractmethod
    def place(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """Where y [B, H] lies in the distributions: the probability integral transform, float64, [B, H].

        By `EDGE` above 0 and below 1, at least. On an atom, the middle of what the atom takes; where y is known never
        to be below 0, all below lies at 0. NaN where y is, or the location of the frame.
        """

    def admit(self, y: Tensor, frame: Frame) -> Tensor:
        """The nearest values to y [B, L, H] that this head may forecast in this frame.

        None further from 0 than `reach` allows; and where y is known never to be below 0, none below 0, unless the
        recent values prove that wrong.
        """
        most = (self.reach * frame.scale)[..., None, None] if math.isfinite(self.reach) else torch.tensor(torch.inf)
        least = torch.where(self._holds(frame), 0.0, -torch.inf)[..., None, None] if self.nonnegative else -most
        return torch.minimum(torch.maximum(y, torch.maximum(least, -most)), most)

    @staticmethod
    def _holds(frame: Frame) -> Tensor:
        """Whether no recent value was below 0 but slightly: mean and mean magnitude differ by negative values alone."""
        return frame.location >= frame.scale * (1 - SLIGHT)

    def start_from(self, errors: Tensor, weights: Tensor) -> None:
        """Start from how the truth lay around the first mean of the anchors, and not from the first shape.

        Parameters
        ----------
        errors
            In scaled coordinates, shape [N, H]; NaN is unknown.
        weights
            Of each row in the loss, shape [N].
        """

    def pull(self, share: float) -> None:
        """Keep a share of what the decoders have learnt since they started."""
        for decoder in self.decoders:
            cast(Decoder, decoder).pull(share)

    def stretch(self, parameters: Tensor, factors: Tensor) -> Tensor:
        """Parameters [B, K, H] with distances to the median multiplied by `factors` [B, 2, H], below and above it."""
        del factors
        return parameters

    def reset_calibration(self) -> None:
        """Take back what `calibrate` did."""

    def around(self, parameters: Tensor, center: Tensor) -> Tensor:
        """Parameters [N, K, H] whose median is `center` [N, H], in scaled coordinates, for `drift`."""
        del center
        return parameters

    def calibrate(self, parameters: Tensor, target: Tensor, frame: Frame, expected: float | Tensor) -> None:
        """Adapt what is decoded from now on so that it covers what it says on windows that were not learnt from.

        Parameters
        ----------
        parameters
            Decoded for these windows, shape [N, K, H].
        target
            In units of y, float64, shape [N, H]; NaN is unknown.
        frame
            Coordinates, fields of shape [N].
        expected
            How many times as wide intervals should be without any window; a number, or shape [H].
        """

    def drift(self, parameters: Tensor, target: Tensor, frame: Frame, moments: int) -> Tensor:
        """How many times as wide intervals should be after what came, at least 1, shape [H].

        Parameters
        ----------
        parameters, target, frame
            As for `calibrate`, of the latest windows.
        moments
            Different cutoffs among them: what happens at one time happens to all series.
        """
        del parameters, frame, moments
        return torch.ones(target.shape[1])

    def widen(self, factors: Tensor) -> None:
        """Multiply all distances to the median that are decoded from now on, by `factors` [H] of at least 1."""

    def point(self, parameters: Tensor, frame: Frame) -> Tensor:
        """What a rolled copy of the state observes in place of the truth, float64, shape [B, H]: the median."""
        return self.quantiles(parameters, frame, (0.5,)).squeeze(-2)

    @property
    def answered(self) -> tuple[float, float]:
        """Lowest and highest level that a forecast answers; 0 and 1 themselves never are."""
        return 0.0, 1.0


def level_tensor(levels: Levels) -> Tensor:
    """Levels that broadcast against [B, L, H]."""
    return levels if isinstance(levels, Tensor) else torch.tensor(levels, dtype=torch.float64).unsqueeze(-1)
