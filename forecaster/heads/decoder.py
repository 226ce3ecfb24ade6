"""The decoder of every head: from a hidden state to rows of raw shape for every step of the horizon, at once.

Knows hidden states, features and anchors in scaled coordinates; nothing of time or series, nor of what its rows mean.
Per horizon step it weighs the anchors (a seasonal baseline known at the cutoff), corrects that baseline, and emits rows
of raw shape; a local network amends all of these by what is known of the step beforehand, where anything is.

Axes: B any leading axes, A anchor, R row of raw shape, H horizon step, P hidden size, F feature, X number known of a
coming step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from forecaster.dropout import Dropout
from forecaster.heads.local import LocalNetwork
from forecaster.kernels import bend, weigh

__all__ = ["Decoder", "HeadSizes"]

LARGEST_RANK = 48
"""Beyond so many steps, a horizon is decoded as mixtures of that many learnt curves over it: weights of their own for
every step of a long horizon are more than most data can fix."""


class HeadSizes(NamedTuple):
    """Sizes of a decoder: P, F, A, H, X of the axes above, and the dropout on the hidden state, in training only.

    `members` decoders, each with a hidden state of its own, answer side by side.
    """

    hidden_size: int
    num_features: int
    num_anchors: int
    horizon: int
    dropout: float
    num_known: int = 0
    members: int = 1


class Decoder(nn.Module):
    """Direct multi-horizon decoder (in the manner of MQ-RNN, Wen et al., 2017).

    Starts, before training, from the mean of the anchors: all corrections are zero.

    Parameters
    ----------
    sizes
        Of the decoder.
    first_shape
        Raw shape before training, one value per row.
    """

    def __init__(self, sizes: HeadSizes, first_shape: Sequence[float]) -> None:
        super().__init__()
        self.sizes, self.first_shape = sizes, tuple(first_shape)
        hidden, horizon = sizes.hidden_size, sizes.horizon
        self.dropout = Dropout(sizes.dropout)
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
        self.started: Tensor
        self.register_buffer("started", self.bias.detach().clone(), persistent=False)

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

    @torch.no_grad()
    def prefer(self, shares: Tensor) -> None:
        """Start from a mean of the anchors with these shares [A, H], each more than 0."""
        self.bias[: self.rows[0]] = shares.log()
        self.started.copy_(self.bias)

    @torch.no_grad()
    def start_from(self, correction: Tensor, shape: Tensor) -> None:
        """Start from a correction [H] of that mean, and from a raw shape [R, H]; from the first ones where NaN."""
        for rows, told in ((slice(self.rows[0], self.rows[0] + 1), correction), (slice(-self.rows[2], None), shape)):
            self.bias[rows] = torch.where(torch.isnan(told), self.bias[rows], told)
        self.started.copy_(self.bias)

    @torch.no_grad()
    def pull(self, share: float) -> None:
        """Keep a share of what was learnt since the start: 1 changes nothing, 0 leaves what the data fixed before."""
        learnt = [self.mixture.weight, self.autoregression.weight]
        if self.local is not None:
            learnt += [self.local.output.weight, self.local.output.bias]
        for weights in learnt:
            weights *= share
        self.bias.copy_(torch.lerp(self.started, self.bias, share))

    def forward(
        self, hidden: Tensor, features: Tensor, anchors: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Baseline, correction and raw shape of every step, or of the first steps: of as many as `anchors` has.

        Parameters
        ----------
        hidden, features, anchors
            Shapes [B, P], [B, F] and [B, A, H].
        known
            What is known of each coming step, shape [B, H, X]; None if nothing is.

        Returns
        -------
        tuple of Tensor
            Shapes [B, H], [B, H] and [B, R, H].
        """
        steps = anchors.shape[-1]
        context = self._context(hidden)
        decoded = self._along(self.mixture, context, steps).add_(self.bias[:, :steps])
        if self.local is not None:
            decoded = decoded + self.local(known, context).transpose(-1, -2)
        return self._read(decoded, self._along(self.autoregression, features, steps).squeeze(-2), anchors)

    def first(
        self, hidden: Tensor, features: Tensor, anchors: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward` of the first step alone, one leading axis, which comes last: shapes [B], [B] and [R, B].

        An axis of many moments instead of one step is what PyTorch is fast along.
        """
        context = self._context(hidden)
        decoded = torch.addmm(self.bias[:, :1], self._first_rows(self.mixture), context.t())
        if self.local is not None:
            decoded = decoded + self.local(known, context).squeeze(-2).t()
        return self._read(
            decoded, features @ self._first_rows(self.autoregression)[0], anchors.squeeze(-1).t().contiguous()
        )

    def _context(self, hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not hidden.is_cpu:
            return functional.gelu(self.context(self.dropout(hidden))) + hidden
        straight, context = hidden.reshape(-1, hidden.shape[-1]).contiguous(), self.context
        sums = torch.mm(self.dropout(straight) if self.training else straight, context.weight.t())
        bend(sums.numpy(), context.bias.numpy(), straight.numpy())
        return sums.view(hidden.shape)

    def _read(self, decoded: Tensor, autoregression: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, _, rows = self.rows
        correction, shape = decoded.select(-2, count), decoded.narrow(-2, count + 1, rows)
        if torch.is_grad_enabled() or not decoded.is_cpu:
            baseline = (decoded.narrow(-2, 0, count).softmax(-2) * anchors).sum(-2)
        else:
            baseline = torch.empty_like(autoregression)
            steps = baseline.shape[-1]
            weigh(
                decoded.reshape(-1, count + 1 + rows, steps).numpy(),
                anchors.reshape(-1, count, steps).numpy(),
                baseline.view(-1, steps).numpy(),
            )
        return baseline, correction + autoregression, shape

    def _first_rows(self, linear: nn.Linear) -> Tensor:
        """Weights of a layer's rows at the first step, shape [rows, inputs]."""
        weight = linear.weight.view(-1, self.rank, linear.weight.shape[-1])
        return weight[:, 0] if self.curves is None else torch.einsum("rki,k->ri", weight, self.curves[:, 0])

    def _along(self, linear: nn.Linear, inputs: Tensor, steps: int) -> Tensor:
        """The first steps of a layer's rows, or of the mixtures of curves that its rows are, shape [B, rows, steps]."""
        weight: Tensor = linear.weight
        if self.curves is None and steps < self.rank:
            weight = weight.view(-1, self.rank, weight.shape[-1])[:, :steps].flatten(0, 1)
        width = steps if self.curves is None else self.rank
        found = functional.linear(inputs, weight).reshape(*inputs.shape[:-1], weight.shape[0] // width, width)
        return found if self.curves is None else found @ self.curves[:, :steps]
