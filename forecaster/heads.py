"""The quantile head: from a hidden state to all quantiles of all steps of the horizon, at once.

Knows hidden states, features and anchors in scaled coordinates; nothing of time, series or units. Per horizon step it
weighs the anchors (a seasonal baseline known at the cutoff), corrects that baseline, and spreads quantiles around the
result so that they cannot cross.

Axes: B any leading axes, A anchor, Q quantile level, H horizon step, P hidden size, F feature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["QuantileHead"]

FIRST_SPREAD = 0.05
"""Distance between neighbouring quantiles before training, in units."""


class QuantileHead(nn.Module):
    """Direct multi-horizon quantile decoder (in the manner of MQ-RNN, Wen et al., 2017, without its local network).

    Starts, before training, from the mean of the anchors with a narrow band: the correction is zero.

    Parameters
    ----------
    hidden_size, num_features, num_anchors, horizon
        Sizes P, F, A and H.
    num_levels
        Number of quantile levels Q, odd; the middle one is the median.
    dropout
        On the hidden state, in training only.
    """

    def __init__(
        self, *, hidden_size: int, num_features: int, num_anchors: int, horizon: int, num_levels: int, dropout: float
    ) -> None:
        super().__init__()
        self.horizon, self.num_levels, self.num_anchors = horizon, num_levels, num_anchors
        self.dropout = nn.Dropout(dropout)
        self.context = nn.Linear(hidden_size, hidden_size)
        self.weight = nn.Linear(hidden_size, horizon * num_anchors)
        self.center = nn.Linear(hidden_size, horizon)
        self.autoregression = nn.Linear(num_features, horizon, bias=False)
        self.spread = nn.Linear(hidden_size, horizon * (num_levels - 1))
        # Row q sums the spreads between level q and the median, nearest first: rows share their leading terms, so that
        # rounding cannot make quantiles cross.
        half = num_levels // 2
        lower = torch.ones(half, half).tril()
        outward = torch.zeros(num_levels, num_levels - 1)
        outward[:half, :half], outward[half + 1 :, half:] = -lower.flip(0), lower
        self.outward: Tensor
        self.register_buffer("outward", outward, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start from the mean of the anchors, a zero correction and a narrow, even spread."""
        for linear in (self.weight, self.center, self.autoregression):
            linear.weight.zero_()
        self.weight.bias.zero_()
        self.center.bias.zero_()
        nn.init.normal_(self.spread.weight, std=0.01)
        self.spread.bias.fill_(torch.tensor(FIRST_SPREAD).expm1().log().item())  # inverse of softplus

    def forward(self, hidden: Tensor, features: Tensor, anchors: Tensor) -> Tensor:
        """Quantiles in scaled coordinates.

        Parameters
        ----------
        hidden, features, anchors
            Shapes [B, P], [B, F] and [B, A, H].

        Returns
        -------
        Tensor
            Shape [B, Q, H], rising along Q.
        """
        leading = hidden.shape[:-1]
        context = functional.gelu(self.context(self.dropout(hidden))) + hidden
        weights = self.weight(context).reshape(*leading, self.num_anchors, self.horizon).softmax(-2)
        center = (weights * anchors).sum(-2) + self.center(context) + self.autoregression(features)
        spread = functional.softplus(self.spread(context)).reshape(*leading, self.num_levels - 1, self.horizon)
        quantiles: Tensor = self.outward @ spread + center.unsqueeze(-2)
        return quantiles
