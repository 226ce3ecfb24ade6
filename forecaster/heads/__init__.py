"""Heads: from a hidden state to the distribution of every step of the horizon, at once.

A `Head` is a decoder shared by all of them, and a reading of what it decodes: quantiles, a Student-t density, or
counts. `HEADS` names them as the configuration does.
"""

from collections.abc import Callable

from forecaster.heads.head import Head, HeadSizes, Levels
from forecaster.heads.quantile import QuantileHead

__all__ = ["HEADS", "Head", "HeadSizes", "Levels", "QuantileHead"]

HEADS: dict[str, Callable[..., Head]] = {"quantile": QuantileHead}
"""Heads by their name in the configuration; made from sizes, transform and levels."""
