"""What every head has in common: the decoder, and the protocol of what its output means.

The decoder knows hidden states, features and anchors in scaled coordinates; nothing of time or series. Per horizon step
it weighs the anchors (a seasonal baseline known at the cutoff), corrects that baseline, and emits rows of raw shape; a
local network amends all of these by what is known of the step beforehand, where anything is.
A head says what these are the parameters of, and alone knows the way from them to units of y.

Axes: B any leading axes, A anchor, K parameter, R row of raw shape, L asked quantile level, H horizon step, P hidden
size, F feature, X number known of a coming step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from forecaster.local import LocalNetwork
from forecaster.scaling import Frame, Transform

__all__ = ["Head", "HeadSizes", "Levels", "level_tensor"]

LARGEST_RANK = 48
"""Beyond so many steps, a horizon is decoded as mixtures of that many learnt curves over it: weights of their own for
every step of a long horizon are more than most data can fix."""

Levels = tuple[float, ...] | Tensor
"""Quantile levels: the same for every step as a tuple, or float64, broadcastable to [B, L, H]."""


class HeadSizes(NamedTuple):
    """Sizes of the decoder: P, F, A, H, X of the axes above, and the dropout on the hidden state, in training only."""

    hidden_size: int
    num_features: int
    num_anchors: int
    horizon: int
    dropout: float
    num_known: int = 0


class Head(nn.Module, ABC):
    """Direct multi-horizon decoder (in the manner of MQ-RNN, Wen et al., 2017).

    Starts, before training, from the mean of the anchors: all corrections are zero.

    Parameters
    ----------
    sizes
        Of the decoder.
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
        self.first_shape = tuple(first_shape)
        hidden, horizon = sizes.hidden_size, sizes.horizon
        self.dropout = nn.Dropout(sizes.dropout)
        self.context = nn.Linear(hidden, hidden)
        self.rank = min(horizon, LARGEST_RANK)
        self.rows = [sizes.num_anchors, 1, len(self.first_shape)]
        self.mixture = nn.Linear(hidden, sum(self.rows) * self.rank, bias=False)
        self.autoregression = nn.Linear(sizes.num_features, self.rank, bias=False)
        self.curves = nn.Parameter(torch.empty(self.rank, horizon)) if self.rank < horizon else None
        self.bias = nn.Parameter(torch.empty(sum(self.rows), horizon))
        self.local = (
            LocalNetwork(
                num_inputs=sizes.num_known,
                num_context=hidden,
                num_outputs=sum(self.rows),
                width=hidden,
                horizon=horizon,
            )
            if sizes.num_known
            else None
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start from the mean of the anchors, a zero correction and the first shape."""
        self.autoregression.weight.zero_()
        self.mixture.weight.zero_()
        nn.init.normal_(self.mixture.weight[-self.rows[2] * self.rank :], std=0.01)
        self.bias.zero_()
        self.bias[-self.rows[2] :] = torch.tensor(self.first_shape).unsqueeze(-1)
        if self.curves is not None:
            # The slowest cosines (type II of the discrete transform): a long horizon starts smooth.
            place = (torch.arange(self.sizes.horizon) + 0.5) * math.pi / self.sizes.horizon
            self.curves.copy_(torch.cos(torch.arange(self.rank).unsqueeze(-1) * place) * math.sqrt(2))
            self.curves[0] = 1.0

    def forward(self, hidden: Tensor, features: Tensor, anchors: Tensor, known: Tensor | None = None) -> Tensor:
        """Parameters of every step's distribution, or of the first steps': of as many as `anchors` has.

        Parameters
        ----------
        hidden, features, anchors
            Shapes [B, P], [B, F] and [B, A, H].
        known
            What is known of each coming step, shape [B, H, X]; None if nothing is.

        Returns
        -------
        Tensor
            Shape [B, K, H].
        """
        steps = anchors.shape[-1]
        context = functional.gelu(self.context(self.dropout(hidden))) + hidden
        decoded = self._along(self.mixture, context, steps) + self.bias[:, :steps]
        if self.local is not None:
            decoded = decoded + self.local(known, context).transpose(-1, -2)
        weights, correction, shape = torch.split(decoded, self.rows, -2)
        correction = (correction + self._along(self.autoregression, features, steps)).squeeze(-2)
        baseline = (weights.softmax(-2) * anchors).sum(-2)
        return self.assemble(baseline, correction, shape)

    def _along(self, linear: nn.Linear, inputs: Tensor, steps: int) -> Tensor:
        """The first steps of a layer's rows, or of the mixtures of curves that its rows are, shape [B, rows, steps]."""
        weight: Tensor = linear.weight
        if self.curves is None and steps < self.rank:
            weight = weight.view(-1, self.rank, weight.shape[-1])[:, :steps].flatten(0, 1)
        width = steps if self.curves is None else self.rank
        found = functional.linear(inputs, weight).reshape(*inputs.shape[:-1], len(weight) // width, width)
        return found if self.curves is None else found @ self.curves[:, :steps]

    @abstractmethod
    def assemble(self, baseline: Tensor, correction: Tensor, shape: Tensor) -> Tensor:
        """Parameters [B, K, H] from what was decoded, shapes [B, H], [B, H] and [B, R, H]."""

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
    def interval(self, parameters: Tensor, y: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Probabilities of less than y [B, H] and of at most y, float64, shape [B, H] each; as if any y were admitted.

        They differ where the distribution has an atom.
        """

    def place(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """Where y [B, H] lies in the distributions, from 0 to 1: the probability integral transform, float64, [B, H].

        On an atom, the middle of what the atom takes.
        """
        below, at_most = self.interval(parameters, y, frame)
        if self.nonnegative and not self.discrete:  # all that would lie below 0 lies at 0
            holds = self._holds(frame).unsqueeze(-1)
            below = torch.where(holds & (y <= 0), 0.0, below)
            at_most = torch.where(holds & (y < 0), 0.0, at_most)
        return (below + at_most) / 2

    def admit(self, y: Tensor, frame: Frame) -> Tensor:
        """The nearest values to y [B, L, H] that this head may forecast in this frame.

        Where y is known never to be below 0, that is none below 0, unless the recent values prove that wrong.
        """
        if not self.nonnegative:
            return y
        return torch.maximum(y, torch.where(self._holds(frame), 0.0, -torch.inf)[..., None, None])

    @staticmethod
    def _holds(frame: Frame) -> Tensor:
        """Whether no recent value was below 0: mean and mean magnitude differ by negative values alone."""
        return frame.location >= frame.scale * (1 - 1e-12)

    def stretch(self, parameters: Tensor, factors: Tensor) -> Tensor:
        """Parameters [B, K, H] with distances to the median multiplied by `factors` [B, 2, H], below and above it."""
        del factors
        return parameters

    def reset_calibration(self) -> None:
        """Take back what `calibrate` did."""

    def calibrate(self, parameters: Tensor, target: Tensor, frame: Frame) -> None:
        """Adapt what is decoded from now on so that it covers what it says on windows that were not learnt from.

        Parameters
        ----------
        parameters
            Decoded for these windows, shape [N, K, H].
        target
            In units of y, float64, shape [N, H]; NaN is unknown.
        frame
            Coordinates, fields of shape [N].
        """

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
