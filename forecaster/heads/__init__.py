"""Heads: from a hidden state to the distribution of every step of the horizon, at once.

A `Head` is a decoder shared by all of them, and a reading of what it decodes: quantiles, a Student-t density, or
counts. `HEADS` names them as the configuration does.
"""

from collections.abc import Callable

from forecaster.heads.counts import NegativeBinomialHead, ZeroInflatedHead
from forecaster.heads.decoder import HeadSizes
from forecaster.heads.distribution import DistributionHead
from forecaster.heads.head import Head, Levels
from forecaster.heads.quantile import QuantileHead
from forecaster.heads.student_t import StudentTHead

__all__ = [
    "HEADS",
    "DistributionHead",
    "Head",
    "HeadSizes",
    "Levels",
    "NegativeBinomialHead",
    "QuantileHead",
    "StudentTHead",
    "ZeroInflatedHead",
]

HEADS: dict[str, Callable[..., Head]] = {
    "quantile": QuantileHead,
    "student_t": StudentTHead,
    "negative_binomial": NegativeBinomialHead,
    "zero_inflated": ZeroInflatedHead,
}
"""Heads by their name in the configuration; made from sizes, transform, levels and whether y is never below 0."""
