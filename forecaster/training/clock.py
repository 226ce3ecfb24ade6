"""Time and history of a training of several stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from forecaster.forecaster import Forecaster
from forecaster.network import ForecastNetwork

__all__ = ["Clock"]


class Clock:
    """Time and history of a run of several stages."""

    def __init__(
        self,
        seconds: float | None,
        on_epoch: Callable[[dict[str, float]], None] | None,
        on_weights: Callable[[float, Forecaster], None] | None = None,
    ) -> None:
        self.started = time.monotonic()
        self.seconds, self.on_epoch, self.on_weights = seconds, on_epoch, on_weights
        self.history: list[dict[str, float]] = []
        self.share_before, self.share = 0.0, 0.0

    def until(self, share: float) -> Clock:
        """Enter the stage that ends at this share of the run."""
        self.share_before, self.share = self.share, share
        return self

    def keep_free(self, seconds: float) -> None:
        """Let the last stage end so much earlier."""
        if self.seconds is not None:
            self.seconds -= seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def remaining(self) -> float:
        """Seconds that are left of this stage, below 0 where it should be over; infinite without a time box."""
        return math.inf if self.seconds is None else self.seconds * self.share - self.elapsed

    @property
    def seconds_left(self) -> float | None:
        """Seconds of this stage, a second at least, whatever those before it took; None without a time box."""
        return None if self.seconds is None else max(self.remaining, 1.0)

    def add(self, row: dict[str, float], network: ForecastNetwork) -> None:
        """Keep a row, with its place in the whole run, and tell; also of the weights."""
        row["epoch"], row["seconds"] = float(len(self.history)), self.elapsed
        row["progress"] = self.share_before + (self.share - self.share_before) * row["progress"]
        self.history.append(row)
        if self.on_epoch is not None:
            self.on_epoch(row)
        self.show(network, row["seconds"])

    def show(self, network: ForecastNetwork, seconds: float) -> None:
        """Tell of the weights as they are at this time, if they are asked for."""
        if self.on_weights is not None:
            self.on_weights(seconds, Forecaster(network))
