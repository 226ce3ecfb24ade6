"""A survey: what the forecasts of all resident streams were worth, the worst first.

A value, made between two micro-batches from what the states say (`forecaster.quality`). It knows sums and names; no
store, no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from forecaster.quality import Figures, figures
from service.models.served import ServedModel

__all__ = ["ORDERS", "Rank", "Survey"]

Float = npt.NDArray[np.float64]

ORDERS = ("relative_mae", "wql", "coverage_80")
"""What streams are put in order by: the larger the worse, and coverage the further from 0.8."""

Rank = tuple[float, str]
"""How bad a stream is, and its name: where the next page begins after."""


@dataclass(frozen=True)
class Survey:
    """Sums of scores of N streams.

    Attributes
    ----------
    model
        Whose forecasts they were.
    unique_ids, last_steps
        The streams, and where each stood.
    total, recent
        Sums over the scored steps of all forecasts, and with the older ones fading, shape [Q, N].
    """

    model: ServedModel
    unique_ids: Sequence[str]
    last_steps: Sequence[int]
    total: Float
    recent: Float

    def pooled(self) -> tuple[Figures, Figures]:
        """Figures of all streams together, from all and from recent forecasts."""
        return figures(self.total.sum(1)), figures(self.recent.sum(1))

    @cached_property
    def by_stream(self) -> Figures:
        """Figures of each stream from its recent forecasts."""
        return figures(self.recent)

    def worst(self, order: str, after: Rank | None, limit: int) -> list[tuple[int, Rank]]:
        """Numbers of the streams that come next in an order, with their places; those without figures are left out."""
        value = getattr(self.by_stream, order)
        badness = np.abs(value - 0.8) if order == "coverage_80" else value
        known = np.flatnonzero(~np.isnan(badness))
        names = np.array(self.unique_ids, dtype=object)[known]
        ranked: list[int] = known[np.lexsort((names, -badness[known]))].tolist() if len(known) else []
        if after is not None:
            worse, name = after
            ranked = [i for i in ranked if (-badness[i], self.unique_ids[i]) > (-worse, name)]
        return [(i, (float(badness[i]), self.unique_ids[i])) for i in ranked[:limit]]
