"""Heads with a density: trained by likelihood, able to say how probable a value is.

Axes as in `forecaster.heads.head`.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from forecaster.heads.head import Head
from forecaster.kernels import EDGE
from forecaster.scaling import Frame

__all__ = ["DistributionHead"]


class DistributionHead(Head):
    """A head whose parameters are those of a distribution."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """Logarithm of density or probability of y [B, H], in units of y, float64, shape [B, H]."""

    @abstractmethod
    def cdf(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """Probability of at most y [B, H], float64, shape [B, H]."""

    def place(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """From the distribution function."""
        at_most = self.cdf(parameters, y, frame)
        below = self.cdf(parameters, y - 1, frame) if self.discrete else at_most
        if self.nonnegative and not self.discrete:
            holds = self._holds(frame).unsqueeze(-1)
            below = torch.where(holds & (y <= 0), 0.0, below)
            at_most = torch.where(holds & (y < 0), 0.0, at_most)
        unknown = torch.isnan(y) | torch.isnan(frame.location).unsqueeze(-1)
        return torch.where(unknown, torch.nan, ((below + at_most) / 2).clamp(EDGE, 1 - EDGE))


def mean_known(values: Tensor, known: Tensor) -> Tensor:
    """Mean where `known`; 0 if nothing is."""
    return torch.where(known, values, 0.0).sum() / known.sum().clamp(min=1)
