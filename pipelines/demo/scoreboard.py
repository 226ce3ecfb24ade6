"""Keeps score while observations stream in: each forecast is compared with the truth when the truth arrives.

Every forecast that covers an observation counts, from one step ahead to the whole horizon, and so does the seasonal
naive made at the same cutoff. Knows no HTTP and no terminal.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["CityScore", "Scoreboard"]

SEASON = 24


@dataclass(slots=True)
class CityScore:
    """Running sums of one city."""

    observations: int = 0
    pairs: int = 0
    absolute_error: float = 0.0
    naive_error: float = 0.0
    inside: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def mae(self) -> float:
        """Mean absolute error of the median."""
        return self.absolute_error / self.pairs if self.pairs else float("nan")

    @property
    def naive_mae(self) -> float:
        """Mean absolute error of the seasonal naive at the same cutoffs."""
        return self.naive_error / self.pairs if self.pairs else float("nan")

    @property
    def coverage(self) -> float:
        """Share of observations inside the 80 % band."""
        return self.inside / self.pairs if self.pairs else float("nan")

    def latency_ms(self, share: float) -> float:
        """Quantile of the request latency, in milliseconds."""
        return float(np.quantile(self.latencies, share)) * 1000.0 if self.latencies else float("nan")


class Scoreboard:
    """Scores of several series.

    Parameters
    ----------
    histories
        Values of each series up to the first streamed observation.
    """

    def __init__(self, histories: Mapping[str, Sequence[float]]) -> None:
        self._values = {name: list(values) for name, values in histories.items()}
        # A forecast lies here, by the position of its cutoff, until the last step it covers has come.
        self._open: dict[str, deque[tuple[int, np.ndarray]]] = {name: deque() for name in histories}
        self.scores: dict[str, CityScore] = defaultdict(CityScore)

    def add_forecast(self, name: str, quantiles: Mapping[str, Sequence[float]]) -> None:
        """Remember a forecast made now: its 0.1, 0.5 and 0.9 quantiles, one value per step."""
        bands = np.array([quantiles["0.1"], quantiles["0.5"], quantiles["0.9"]])
        self._open[name].append((len(self._values[name]), bands))

    def add_observation(self, name: str, y: float, seconds: float) -> None:
        """Compare an observation with every open forecast that covers it."""
        values, waiting, score = self._values[name], self._open[name], self.scores[name]
        position = len(values)
        while waiting and position - waiting[0][0] >= waiting[0][1].shape[1]:
            waiting.popleft()
        for cutoff, bands in waiting:
            low, median, high = bands[:, position - cutoff]
            naive = values[cutoff - SEASON + (position - cutoff) % SEASON]
            if np.isnan(naive):
                continue
            score.pairs += 1
            score.absolute_error += abs(y - median)
            score.naive_error += abs(y - naive)
            score.inside += bool(low <= y <= high)
        values.append(y)
        score.observations += 1
        score.latencies.append(seconds)

    @property
    def total(self) -> CityScore:
        """All series together."""
        total = CityScore()
        for score in self.scores.values():
            total.observations += score.observations
            total.pairs += score.pairs
            total.absolute_error += score.absolute_error
            total.naive_error += score.naive_error
            total.inside += score.inside
            total.latencies += score.latencies
        return total
