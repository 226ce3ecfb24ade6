"""Evaluation: a trained forecaster answers a task as it would serve it, by the verbs of carried state.

The state is warmed up to the first origin and folded on from origin to origin; the states of many origins are decoded
as one batch, which changes no forecast. Also measures what a state weighs and what one more observation takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from forecaster import Forecaster, StreamState
from pipelines.benchmarks.protocols import Task
from pipelines.benchmarks.scores import LEVELS, score_batches

__all__ = ["costs", "evaluate", "forecast_batches", "warm_state"]

LARGEST_BATCH = 2**21
"""Quantiles decoded at once, over origins, series and steps."""

UPDATE_ROWS = 512
"""Series in the micro-batch whose update is timed."""

Float = npt.NDArray[np.float64]


def evaluate(forecaster: Forecaster, task: Task) -> dict[str, float]:
    """Metrics of a forecaster over all origins of a task."""
    return score_batches(task, forecast_batches(forecaster, task, warm_state(forecaster, task)))


def warm_state(forecaster: Forecaster, task: Task, last: int | None = None) -> StreamState:
    """State of all series at the first origin, after all of their past or only its last `last` steps."""
    return forecaster.warm_up_panel(task.learnable if last is None else task.learnable.tail(last))


def forecast_batches(forecaster: Forecaster, task: Task, state: StreamState) -> Iterator[tuple[Sequence[int], Float]]:
    """Fold on from origin to origin and decode.

    Parameters
    ----------
    forecaster
        Trained for the task's horizon.
    task
        Gives the origins and the values between them.
    state
        At the first origin.

    Yields
    ------
    tuple
        Some W origins, by the steps from them to the end, and their quantiles at `LEVELS`, shape [W, N, H, 9].
    """
    horizon, origins = task.protocol.horizon, task.protocol.origins
    size = max(1, LARGEST_BATCH // (len(task.panel) * horizon * len(LEVELS)))
    panel = task.panel.with_covariates(forecaster.config.covariates)
    for first in range(0, len(origins), size):
        lefts, states, futures = origins[first : first + size], [], []
        for left in lefts:
            past = panel.drop_last(left)
            if left != origins[0]:
                new = past.tail(task.protocol.step)
                given = np.stack([table[: task.protocol.step] for table in new.tables])
                state = forecaster.fold(
                    state, torch.from_numpy(np.stack(new.values)), covariates=torch.from_numpy(given)
                )
            states.append(state)
            futures.append(past.future(horizon))
        quantiles = forecaster.forecast(
            StreamState.concat(states), horizon, LEVELS, torch.from_numpy(np.concatenate(futures))
        )
        yield lefts, quantiles.reshape(len(lefts), len(task.panel), horizon, len(LEVELS))


def costs(forecaster: Forecaster, task: Task, rounds: int = 30) -> dict[str, float]:
    """What serving takes.

    Returns
    -------
    dict
        `parameters`; `state_bytes` of one series; `update_us`, microseconds per observation folded in a micro-batch of
        512 series, and `update_us_single`, alone; `forecast_us_single`, one observation and the forecast that follows
        it, of one series (medians of `rounds`).
    """
    warm = warm_state(forecaster, task, last=2 * forecaster.config.ring_length)
    future = task.learnable.with_covariates(forecaster.config.covariates).future(task.protocol.horizon)[:1]
    found = {"parameters": float(forecaster.num_parameters), "state_bytes": float(len(warm.select([0]).to_bytes()[0]))}
    values = torch.from_numpy(np.nan_to_num(task.between(task.protocol.test, task.protocol.test - 1)[:, 0]))
    for name, rows, decode in (
        ("update_us", UPDATE_ROWS, False),
        ("update_us_single", 1, False),
        ("forecast_us_single", 1, True),
    ):
        picked = torch.arange(rows) % len(warm)
        state, y, seconds = warm.select(picked), values[picked], []
        for _ in range(rounds):
            started = time.perf_counter()
            state = forecaster.observe(state, y)
            if decode:
                forecaster.forecast(state, task.protocol.horizon, LEVELS, torch.from_numpy(future))
            seconds.append(time.perf_counter() - started)
        found[name] = 1e6 * statistics.median(seconds) / rows
    return found
