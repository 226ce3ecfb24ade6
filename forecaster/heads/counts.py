"""Heads for counts: negative binomial, and negative binomial with more zeros than it would have by itself.

Counts have a unit of their own, one, so these heads read the decoder's center as a mean in units of y; the rest of the
network sees scaled values as always.

Axes as in `forecaster.heads.head`; K is baseline, correction, dispersion and, zero-inflated, the logit of a zero.
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
from forecaster.heads.special import (
    negative_binomial_cdf,
    negative_binomial_log_prob,
    negative_binomial_quantile,
)
from forecaster.kernels import LARGEST_LOG, SHIFT
from forecaster.scaling import Frame, Transform, restore

__all__ = ["NegativeBinomialHead", "ZeroInflatedHead"]

FAINT = 0.01
"""Mean, in counts, from which the forecast of a series of nothing but zeros starts."""

SMALLEST_DISPERSION, LARGEST_DISPERSION = 5e-4, 1e4
"""The least leaves 2 % of deviation around large means: whoever is surer than that has no use for counts."""

LARGEST_REACH = 1e9
"""In place of no bound at all, which times nothing is no number."""

FIRST_DISPERSION = 0.5
FIRST_ZERO_LOGIT = -2.0
LARGEST_ZERO_LOGIT = 7.0
"""At most 99.9 % of zeros are inflation; a small mean makes the others."""


class NegativeBinomialHead(DistributionHead):
    """Negative binomial with mean m and variance m + dispersion * m².

    The mean is the restored baseline times exp(pace * correction). The pace is the unit of the frame and the relative
    deviation of a Poisson count in quadrature, so that a series without any spread yet can be corrected too.

    Parameters
    ----------
    sizes, transform, levels, nonnegative
        As in `Head`.
    """

    discrete = True

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        transform: Transform,
        levels: Sequence[float],
        nonnegative: bool,
        more_shape: Sequence[float] = (),
    ) -> None:
        first = math.log(math.expm1(FIRST_DISPERSION))  # through softplus
        super().__init__(
            sizes, transform=transform, levels=levels, nonnegative=nonnegative, first_shape=[first, *more_shape]
        )

    def assemble(self, baseline: Tensor, correction: Tensor, shape: Tensor, steps: int) -> Tensor:
        """Baseline and correction in scaled coordinates, dispersion, and what a subclass adds: K = 2 + R."""
        del steps
        dispersion = functional.softplus(shape[..., :1, :].float()).clamp(SMALLEST_DISPERSION, LARGEST_DISPERSION)
        return torch.cat([torch.stack([baseline, correction], -2), dispersion, shape[..., 1:, :]], -2)

    def mean(self, parameters: Tensor, frame: Frame) -> Tensor:
        """Mean, above 0, in units of y, float64, shape [B, H]."""
        baseline, correction = parameters[..., 0, :].float(), parameters[..., 1, :].double()
        shift = SHIFT * frame.scale + FAINT
        level = (restore(baseline, frame, self.transform) + shift.unsqueeze(-1)).clamp(min=FAINT)
        pace = (frame.unit.square() + 1 / (1 + frame.location.clamp(min=0))).sqrt()
        mean = level * (pace.unsqueeze(-1) * correction).clamp(-LARGEST_LOG, LARGEST_LOG).exp()
        # As continuous forecasts: no more than the sum of the recent values; one count where that is less.
        return torch.minimum(mean, (min(self.reach, LARGEST_REACH) * frame.scale).clamp(min=1).unsqueeze(-1))

    def loss(self, parameters: Tensor, target: Tensor, frame: Frame, weight: Tensor) -> Tensor:
        """Negative log probability."""
        del weight
        known = ~torch.isnan(target)
        return -mean_known(self._log_prob(parameters, torch.where(known, target, 0.0), frame), known)

    def quantiles(self, parameters: Tensor, frame: Frame, levels: Levels) -> Tensor:
        """Whole numbers: the smallest that are not exceeded with each level's probability."""
        mean, dispersion = self.mean(parameters, frame), parameters[..., 2, :].double()
        return negative_binomial_quantile(level_tensor(levels), mean.unsqueeze(-2), dispersion.unsqueeze(-2))

    def admit(self, y: Tensor, frame: Frame) -> Tensor:
        """Whole numbers of 0 or more."""
        del frame
        return torch.round(y).clamp(min=0)

    def point(self, parameters: Tensor, frame: Frame) -> Tensor:
        """The mean: a rolled state that observed medians would often see nothing but zeros."""
        return self.mean(parameters, frame)

    def log_prob(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """Log probability; minus infinity for what is no count."""
        possible = (y >= 0) & (y == torch.round(y)) | torch.isnan(y)
        return torch.where(possible, self._log_prob(parameters, torch.where(possible, y, 0.0), frame), -torch.inf)

    def cdf(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """Probability of at most y."""
        return negative_binomial_cdf(torch.floor(y), self.mean(parameters, frame), parameters[..., 2, :].double())

    def _log_prob(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        return negative_binomial_log_prob(y, self.mean(parameters, frame), parameters[..., 2, :].double())


class ZeroInflatedHead(NegativeBinomialHead):
    """Zero with some probability, else negative binomial (Lambert, Technometrics 34(1), 1992, there with Poisson).

    The mean is that of the mixture, whatever the probability of the zero.

    Parameters
    ----------
    sizes, transform, levels, nonnegative
        As in `Head`.
    """

    def __init__(self, sizes: HeadSizes, *, transform: Transform, levels: Sequence[float], nonnegative: bool) -> None:
        super().__init__(
            sizes, transform=transform, levels=levels, nonnegative=nonnegative, more_shape=[FIRST_ZERO_LOGIT]
        )

    def quantiles(self, parameters: Tensor, frame: Frame, levels: Levels) -> Tensor:
        """Whole numbers: 0 up to the probability of the zero, then quantiles of the rest."""
        mean, dispersion, zero = (part.unsqueeze(-2) for part in self._mixture(parameters, frame))
        share = torch.sigmoid(zero)
        rest = (level_tensor(levels) - share) / (1 - share)
        positive = negative_binomial_quantile(rest.clamp(min=1e-9), mean, dispersion)
        return torch.where(rest > 0, positive, 0.0)

    def cdf(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        """Probability of at most y."""
        mean, dispersion, zero = self._mixture(parameters, frame)
        share = torch.sigmoid(zero)
        rest = negative_binomial_cdf(torch.floor(y), mean, dispersion)
        return torch.where(y < 0, 0.0, share + (1 - share) * rest)

    def _log_prob(self, parameters: Tensor, y: Tensor, frame: Frame) -> Tensor:
        mean, dispersion, zero = self._mixture(parameters, frame)
        rest = functional.logsigmoid(-zero) + negative_binomial_log_prob(y, mean, dispersion)
        return torch.where(y == 0, torch.logaddexp(functional.logsigmoid(zero), rest), rest)

    def _mixture(self, parameters: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and dispersion of the negative binomial, and the logit of the zero, each [B, H]."""
        zero = parameters[..., 3, :].double().clamp(max=LARGEST_ZERO_LOGIT)
        return self.mean(parameters, frame) * (1 + zero.exp()), parameters[..., 2, :].double(), zero
