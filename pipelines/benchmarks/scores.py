"""Scores over many origins, added up batch by batch, so that no protocol needs all its forecasts in memory.

Built on the library's metrics: sums where a metric is a ratio of sums, averages of averages where it is one per window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from forecaster.baselines import naive2, seasonal_naive
from forecaster.forecaster import DEFAULT_LEVELS
from forecaster.metrics import coverage, mase, owa, smape, wql
from pipelines.benchmarks.protocols import Task

__all__ = ["LEVELS", "Scores", "naive_scores", "score_batches"]

LEVELS = DEFAULT_LEVELS
"""The quantile levels of WQL and of the central 80 % interval."""

LOOK_BACK = 60
"""Seasons that the seasonal naive looks back at most for a known value."""

Float = npt.NDArray[np.float64]


class Scores:
    """Collects forecasts of one task, then answers with its metrics.

    Parameters
    ----------
    task
        Gives the denominators.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        count = len(task.panel)
        self.windows: dict[str, Float] = {name: np.zeros(count) for name in ("smape", "mase", "ape")}
        self.counts: dict[str, Float] = {name: np.zeros(count) for name in self.windows}
        self.squares = {"mse": 0.0, "mse_mean": 0.0, "mae": 0.0}
        self.known = self.size = self.loss = self.inside = 0.0
        self.spread = True

    def add(self, y: Float, quantiles: Float) -> None:
        """Count W origins of all N series.

        Parameters
        ----------
        y
            Truth, shape [W, N, H]; NaN counts nothing.
        quantiles
            At `LEVELS`, shape [W, N, H, 9]; or one point forecast, shape [W, N, H, 1], which has no interval. Where one
            of a known truth is missing (NaN), so are `mse`, `mse_mean`, `mae` and `wql`.
        """
        self.spread &= quantiles.shape[-1] == len(LEVELS)
        middle, mean = quantiles[..., quantiles.shape[-1] // 2], quantiles.mean(-1)
        errors = np.tile(self.task.naive_errors, len(y)), y.reshape(-1, y.shape[-1]), middle.reshape(-1, y.shape[-1])
        for name, values in (("smape", smape(*errors[1:])), ("mase", mase(errors[1], errors[2], errors[0]))):
            self._average(name, values.reshape(y.shape[:2]))
        with np.errstate(divide="ignore", invalid="ignore"):
            ape = np.where(y != 0, np.abs(y - middle) / np.abs(y), np.nan)
        self._average("ape", ape.transpose(0, 2, 1).reshape(-1, y.shape[1]))
        known = ~np.isnan(y)
        count = int(known.sum())
        self.known += count
        for name, error in (("mse", y - middle), ("mse_mean", y - mean)):
            self.squares[name] += float(np.sum(error**2, where=known))
        self.squares["mae"] += float(np.sum(np.abs(y - middle), where=known))
        size = float(np.nansum(np.abs(y)))
        if self.spread and count:
            flat = quantiles.reshape(-1, *quantiles.shape[2:])
            self.loss += wql(errors[1], flat, LEVELS) * size if size else 0.0
            self.inside += coverage(y, quantiles[..., 0], quantiles[..., -1]) * count
        self.size += size

    def _average(self, name: str, values: Float) -> None:
        """Add values, shape [any, N], to the averages per series."""
        self.windows[name] += np.nansum(values, 0)
        self.counts[name] += (~np.isnan(values)).sum(0)

    def metrics(self) -> dict[str, float]:
        """All metrics.

        Returns
        -------
        dict
            `smape`, `mase` (averaged over windows, then over series), `mape` (in percent, over all known steps of a
            series, then over series), `mse` and `mae` (of the median, which is served as the point), `mse_mean` (of the
            mean of the quantiles), and `wql` and `coverage_80` if there were quantiles; `owa` if the protocol has one
            origin.
        """
        averages = {}
        for name, total in self.windows.items():
            counts = self.counts[name]
            averages[name] = float(np.mean(total[counts > 0] / counts[counts > 0])) if counts.any() else float("nan")
        result = {"smape": averages["smape"], "mase": averages["mase"], "mape": 100 * averages["ape"]}
        result |= {name: total / self.known for name, total in self.squares.items()}
        if self.spread:
            result |= {"wql": self.loss / self.size if self.size else float("nan")}
            result |= {"coverage_80": self.inside / self.known}
        if len(self.task.protocol.origins) == 1:
            result["owa"] = owa(result["smape"], result["mase"], *naive2_errors(self.task))
        return result


def score_batches(task: Task, batches: Iterable[tuple[Sequence[int], Float]]) -> dict[str, float]:
    """Metrics of quantiles [W, N, H, Q] at batches of origins."""
    scores = Scores(task)
    for lefts, quantiles in batches:
        scores.add(task.truth(lefts), quantiles)
    return scores.metrics()


def naive_scores(task: Task) -> dict[str, float]:
    """Metrics of the seasonal naive, as a forecast whose quantiles all are the same."""
    protocol = task.protocol

    def at(left: int) -> Float:
        histories = [y[: len(y) - left][-LOOK_BACK * protocol.period :] for y in task.panel.values]
        point = np.stack([seasonal_naive(history, protocol.horizon, protocol.period) for history in histories])
        return np.repeat(point[None, ..., None], len(LEVELS), -1)

    return score_batches(task, (([left], at(left)) for left in protocol.origins))


def naive2_errors(task: Task) -> tuple[float, float]:
    """SMAPE and MASE of Naive2 from the first origin."""
    protocol = task.protocol
    (y,) = task.truth([protocol.test])
    point = np.stack([naive2(history, protocol.horizon, protocol.period) for history in task.histories])
    return float(np.nanmean(smape(y, point))), float(np.nanmean(mase(y, point, task.naive_errors)))
