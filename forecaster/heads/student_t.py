"""The Student-t head: a location, a scale and degrees of freedom per step, in scaled coordinates.

Axes as in `forecaster.heads.head`; K is location, scale, degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from forecaster.heads.decoder import HeadSizes
from forecaster.heads.distribution import DistributionHead, mean_known
from forecaster.heads.head import Levels, level_tensor
from forecaster.heads.special import student_t_cdf, student_t_quantile
from forecaster.scaling import Frame, Transform, log_slope, restore, transform

__all__ = ["StudentTHead"]

FEWEST_DF = 3.0
"""Degrees of freedom beyond which the variance exists, and to which the formula of the quantiles holds."""

SMALLEST_SCALE = 1e-3
"""In units: keeps the likelihood of a series that repeats itself exactly within bounds."""

FIRST_SCALE, FIRST_DF = 0.2, 5.0


class StudentTHead(DistributionHead):
    """Student's t in scaled coordinates: under the log transform, y plus its shift is log-Student-t.

    Parameters
    ----------
    sizes, transform, levels, nonnegative
        As in `Head`.
    """

    stretchable = True

    def __init__(self, sizes: HeadSizes, *, transform: Transform, levels: Sequence[float], nonnegative: bool) -> None:
        first = [math.log(math.expm1(FIRST_SCALE)), math.log(math.expm1(FIRST_DF - FEWEST_DF))]  # through softplus
        super().__init__(sizes, transform=transform, levels=levels, nonnegative=nonnegative, first_shape=first)

    def assemble(self, baseline: Tensor, correction: Tensor, shape: Tensor, steps: int) -> Tensor:
        """Location, scale and degrees of freedom: K = 3."""
        del steps
        scale, df = functional.softplus(shape.float()).unbind(-2)
        return torch.stack([baseline + correction, scale + SMALLEST_SCALE, df + FEWEST_DF], -2)

    def loss(self, parameters: Tensor, target: Tensor, frame: Frame, weight: Tensor) -> Tensor:
        """Negative log density in scaled coordinates; that in units of y differs by a term without parameters."""
        del weight
        known = ~torch.isnan(target)
        scaled = self.scaled(torch.where(known, target, frame.location.unsqueeze(-1)), frame)
        return -mean_known(_log_density(parameters.float(), scaled), known)

    def stretch(self, parameters: Tensor, factors: Tensor) -> Tensor:
        """One scale serves both sides: it takes the geometric mean of their factors."""
        location, scale, df = parameters.unbind(-2)
        return torch.stack([location, scale * factors.prod(-2).sqrt(), df], -2)

    def quantiles(self, parameters: Tensor, frame: Frame, levels: Levels) -> Tensor:
        """Quantiles of the scaled coordinate, carried to y: the way there rises, so they stay quantiles."""
        location, scale, df = (part.unsqueeze(-2) for part in parameters.double().unbind(-2))
        scaled = location + scale * student_t_quantile(level_tensor(levels), df)
        return self.admit(restore(scaled.flatten(-2).float(), frame, self.transform).reshape(scaled.shape), frame)

    def log_prob(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """Log density per unit of y."""
        scaled = transform(y, frame, self.transform)
        return _log_density(parameters.double(), scaled.double()) + log_slope(y, frame, self.transform)

    def cdf(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """Probability of at most y."""
        location, scale, df = parameters.double().unbind(-2)
        return student_t_cdf((transform(y, frame, self.transform).double() - location) / scale, df)


def _log_density(parameters: Tensor, scaled: Tensor) -> Tensor:
    location, scale, df = parameters.unbind(-2)
    square = ((scaled - location) / scale).square()
    shape = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * torch.log(df * math.pi)
    return shape - scale.log() - (df + 1) / 2 * torch.log1p(square / df)
