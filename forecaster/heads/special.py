"""Functions that PyTorch lacks: the regularised incomplete beta function, and the quantiles that follow from it.

All are vectorised over float64 tensors of any shapes that broadcast, and need no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "betainc",
    "negative_binomial_cdf",
    "negative_binomial_log_prob",
    "negative_binomial_quantile",
    "student_t_cdf",
    "student_t_quantile",
]

TINY = 1e-300
CONVERGED = 1e-13
MOST_TERMS = 2000
"""Far more than any arguments up to `LARGEST_MEAN` take (some hundreds)."""

LARGEST_MEAN = 1e4
"""Quantiles of negative binomials of larger mean are those of this mean and the same relative variance, stretched."""


def betainc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Regularised incomplete beta function I_x(a, b), by the continued fraction of DLMF 8.17.22.

    Evaluated with the modified Lentz method (Thompson and Barnett, J. Comput. Phys. 64, 1986), on the side of the
    symmetry I_x(a, b) = 1 - I_{1-x}(b, a) where it converges fast.

    Examples
    --------
    >>> one, x = torch.tensor(1.0, dtype=torch.float64), torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    >>> betainc(one, 2 * one, x)  # 1 - (1 - x)²
    tensor([0.0000, 0.4375, 1.0000], dtype=torch.float64)
    """
    a, b, x = _broadcast(a.double(), b.double(), x.double())
    swap = x > (a + 1) / (a + b + 2)
    a, b, x = torch.where(swap, b, a), torch.where(swap, a, b), torch.where(swap, 1 - x, x)
    log_front = a * x.log() + b * torch.log1p(-x) + torch.lgamma(a + b) - torch.lgamma(a + 1) - torch.lgamma(b)
    tail = torch.where(x > 0, log_front.exp() * _continued_fraction(a, b, x), 0.0)
    return torch.where(swap, 1 - tail, tail)


def _continued_fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    ratio = torch.ones_like(x)
    inverse = _away_from_zero(1 - (a + b) * x / (a + 1)).reciprocal()
    value = inverse
    for m in range(1, MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        inverse = _away_from_zero(1 + even * inverse).reciprocal()
        ratio = _away_from_zero(1 + even / ratio)
        value = value * inverse * ratio
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        inverse = _away_from_zero(1 + odd * inverse).reciprocal()
        ratio = _away_from_zero(1 + odd / ratio)
        value = value * inverse * ratio
        if m % 4 == 0 and not bool(((inverse * ratio - 1).abs() >= CONVERGED).any()):  # NaN waits for nothing
            break
    return value


def _broadcast(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = torch.broadcast_tensors(*tensors)  # type: ignore[no-untyped-call]
    return first, second, third


def _away_from_zero(value: Tensor) -> Tensor:
    return torch.where(value.abs() < TINY, TINY, value)


def student_t_cdf(t: Tensor, df: Tensor) -> Tensor:
    """Distribution function of Student's t (DLMF 8.17, Abramowitz and Stegun 26.7.1)."""
    outside = betainc(df / 2, torch.full_like(df, 0.5), df / (df + t.square()))  # both tails
    return torch.where(t > 0, 1 - outside / 2, outside / 2)


def student_t_quantile(level: Tensor, df: Tensor) -> Tensor:
    """Quantile function of Student's t, to a relative 3e-6 for `df` of 3 or more.

    Hill, "Algorithm 396: Student's t-quantiles", CACM 13(10), 1970.
    """
    outside = 2 * torch.minimum(level, 1 - level)  # both tails
    a = 1 / (df - 0.5)
    b = 48 / a.square()
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * (a * (math.pi / 2)).sqrt() * df
    far = (d * outside) ** (2 / df)
    x = torch.special.ndtri(outside / 2)
    square = x.square()
    c = torch.where(df < 5, c + 0.3 * (df - 4.5) * (x + 0.6), c)
    c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
    near = (((((0.4 * square + 6.3) * square + 36) * square + 94.5) / c - square - 3) / b + 1) * x
    in_middle = torch.expm1(a * near.square())
    in_tail = ((1 / (((df + 6) / (df * far) - 0.089 * d - 0.822) * (df + 2) * 3) + 0.5 / (df + 4)) * far - 1) * (
        df + 1
    ) / (df + 2) + 1 / far
    size = (df * torch.where(far > 0.05 + a, in_middle, in_tail)).sqrt()
    return torch.sign(level - 0.5) * size


def negative_binomial_log_prob(y: Tensor, mean: Tensor, dispersion: Tensor) -> Tensor:
    """Log probability of y = 0, 1, 2, … where the variance is mean + dispersion * mean² (the form called NB2)."""
    number = 1 / dispersion
    choices = torch.lgamma(y + number) - torch.lgamma(number) - torch.lgamma(y + 1)
    return choices - number * torch.log1p(dispersion * mean) - y * torch.log1p(number / mean)


def negative_binomial_cdf(y: Tensor, mean: Tensor, dispersion: Tensor) -> Tensor:
    """Probability of at most y = -1, 0, 1, … (DLMF 8.17.24)."""
    number = 1 / dispersion
    below = betainc(number, (y + 1).clamp(min=TINY), number / (number + mean))
    return torch.where(y < 0, 0.0, below)


@torch.no_grad()
def negative_binomial_quantile(level: Tensor, mean: Tensor, dispersion: Tensor) -> Tensor:
    """Smallest whole number that is not exceeded with probability `level`; to a ten-thousandth where it is large.

    A Newton search on the distribution function: on the logarithm of the nearer tail, which is almost straight in y or,
    below the median of a skewed law, in log y. It is kept inside bounds that always hold (Cantelli's inequality) and
    halves them now and then, so the answer is exact whatever the path there.
    """
    level, mean, dispersion = _broadcast(level, mean, dispersion)
    shape = level.shape
    stretch = (mean / LARGEST_MEAN).clamp(min=1).reshape(-1)
    p, m, alpha = level.reshape(-1), mean.reshape(-1), dispersion.reshape(-1)
    alpha = (alpha + 1 / m - stretch / m).clamp(min=0.1 / LARGEST_MEAN)  # 1 / mean + dispersion stays
    m = m / stretch
    deviation = (m + alpha * m.square()).sqrt()
    odds = (p / (1 - p)).sqrt()
    low = (torch.floor(m - deviation / odds) - 1).clamp(min=-1)  # too low, always
    high = torch.ceil(m + deviation * odds) + 1  # enough, always
    guess = torch.ceil(_first_guess(p, m, alpha, deviation))
    active = torch.nonzero(high - low > 1).squeeze(1)
    turn = 0
    while len(active):
        turn += 1
        p_, m_, alpha_, lower, upper = p[active], m[active], alpha[active], low[active], high[active]
        y = guess[active]
        if turn % 4 == 0:  # in the middle of the logarithms: bounds of skewed laws are far apart
            y = torch.floor(((lower + 2) * (upper + 2)).sqrt() - 2)
        y = torch.minimum(torch.maximum(y, lower + 1), upper - 1)
        reached = negative_binomial_cdf(y, m_, alpha_)
        slope = negative_binomial_log_prob(y, m_, alpha_).exp().clamp(min=TINY)
        enough = reached >= p_
        low[active], high[active] = torch.where(enough, lower, y), torch.where(enough, y, upper)
        left = 1 - reached
        upward = left.clamp(min=TINY) / slope * (left.clamp(min=TINY) / (1 - p_)).log()
        downward = reached.clamp(min=TINY) / slope * (p_ / reached.clamp(min=TINY)).log()
        downward = torch.where(alpha_ > 0.05, (y + 1) * torch.expm1((downward / (y + 1)).clamp(-50, 50)), downward)
        step = torch.ceil(torch.where(p_ > 0.5, upward, downward).clamp(-1e12, 1e12))
        # A guess that stays where it is asks for its neighbour below, which then ends the search.
        guess[active] = torch.where(enough, torch.minimum(y + step, y - 1), y + step.clamp(min=1))
        active = active[high[active] - low[active] > 1]
    return torch.round(high * stretch).reshape(shape)


def _first_guess(p: Tensor, m: Tensor, alpha: Tensor, deviation: Tensor) -> Tensor:
    """Expansion of Cornish and Fisher; where it fails, of strong skewness, the lower tail of a gamma law."""
    z = torch.special.ndtri(p)
    expansion = m + deviation * (z + (1 + 2 * alpha * m) / deviation * (z.square() - 1) / 6)
    tail = alpha * m * (alpha * (p.log() + torch.lgamma(1 + 1 / alpha))).exp()
    return torch.where((alpha > 1) & (p < 0.7), tail, expansion) - 0.5
