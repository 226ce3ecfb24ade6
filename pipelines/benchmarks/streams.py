"""Streams: whether a carried state ages, and how soon a new one is of use.

Age: a model that has learnt from a twenty-fifth of every series follows the rest as a stream; its forecasts are
compared with those of fresh states, warmed up on as many steps as it was trained on, at the same origins. Cold start:
states that have seen only the last few steps before an origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from forecaster import Forecaster, InputError
from forecaster.baselines import seasonal_naive
from pipelines.benchmarks.accuracy import AccuracyRequest
from pipelines.benchmarks.evaluation import warm_state
from pipelines.benchmarks.protocols import PROTOCOLS, Task, load
from pipelines.benchmarks.report import WORDS, Table, group, number
from pipelines.benchmarks.scores import LEVELS, Scores
from pipelines.console import Reporter
from pipelines.train import train_model

__all__ = ["age_rows", "cold_rows", "run_streams", "streams_table", "young"]

AGES = (1, 2, 5, 10, 15, 20, 25)
"""Bounds of the age groups, in lengths of the part that was learnt from."""

STARTS = (1, 8, 32, 168)
"""Steps seen before a cold start's forecast."""

SAMPLE = 12
"""Origins per age group, evenly spaced."""

Float = npt.NDArray[np.float64]


def young(task: Task) -> Task:
    """The same series with all but the first twenty-fifth of the shortest to be forecast."""
    shortest = int(task.panel.lengths.min())
    return replace(task, protocol=replace(task.protocol, test=shortest - shortest // AGES[-1], validation=0))


def age_rows(forecaster: Forecaster, task: Task) -> Iterator[dict[str, Any]]:
    """One row per age group and method.

    Parameters
    ----------
    forecaster
        Trained on `task.learnable`.
    task
        From `young`.
    """
    length = int(task.panel.lengths.min()) - task.protocol.test
    follow = follower(forecaster, task)
    for low, high in pairwise(AGES):
        first, last = (task.protocol.test + length * (1 - age) for age in (low, high))
        lefts = [left for left in task.protocol.origins if max(last, 0) < left <= first]
        scores = {name: Scores(task) for name in ("carried", "fresh", "seasonal naive")}
        for left in sample(lefts, SAMPLE):
            y = task.truth([left])
            scores["carried"].add(y, follow(left))
            scores["fresh"].add(y, short_memory(forecaster, task, left, length))
            scores["seasonal naive"].add(y, naive(task, left, length))
        for name, found in scores.items():
            yield {"set": task.protocol.name, "group": f"age {low} to {high} x", "method": name, **found.metrics()}


def cold_rows(forecaster: Forecaster, task: Task) -> Iterator[dict[str, Any]]:
    """One row per number of steps seen and method; None for all of the past."""
    lefts = sample(task.protocol.origins, 2 * SAMPLE)
    for seen in (*STARTS, None):
        follow = follower(forecaster, task) if seen is None else partial(short_memory, forecaster, task, seen=seen)
        scores = {name: Scores(task) for name in ("carried", "seasonal naive")}
        for left in lefts:
            y = task.truth([left])
            scores["carried"].add(y, follow(left))
            scores["seasonal naive"].add(y, naive(task, left, seen))
        label = "all steps seen" if seen is None else f"{seen} steps seen"
        for name, found in scores.items():
            yield {"set": task.protocol.name, "group": label, "method": name, **found.metrics()}


def sample(lefts: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly spaced, the first and the last included."""
    return [lefts[round(place)] for place in np.linspace(0, len(lefts) - 1, min(most, len(lefts)))]


def follower(forecaster: Forecaster, task: Task) -> Callable[[int], Float]:
    """Quantiles [1, N, H, 9] from states that are carried from the first origin on, at later and later origins."""
    state, at = warm_state(forecaster, task), task.protocol.test

    def follow(left: int) -> Float:
        nonlocal state, at
        if left < at:
            state, at = forecaster.fold(state, torch.from_numpy(task.between(at, left))), left
        return forecaster.forecast(state, task.protocol.horizon, LEVELS)[None]

    return follow


def short_memory(forecaster: Forecaster, task: Task, left: int, seen: int) -> Float:
    """Quantiles [1, N, H, 9] of states that have seen only so many steps before an origin."""
    state = warm_state(forecaster, replace(task, protocol=replace(task.protocol, test=left)), seen)
    return forecaster.forecast(state, task.protocol.horizon, LEVELS)[None]


def naive(task: Task, left: int, seen: int | None) -> Float:
    """Seasonal naive [1, N, H, 9] from as many steps; the last value where a season was not seen."""
    points = []
    for y in task.panel.values:
        past = y[: len(y) - left][-(seen or len(y)) :]
        points.append(seasonal_naive(past, task.protocol.horizon, task.protocol.period))
    return np.repeat(np.stack(points)[None, ..., None], len(LEVELS), -1)


def run_streams(request: AccuracyRequest, reporter: Reporter | None = None) -> Iterator[dict[str, Any]]:
    """Both measurements on every set of a request, with a model each.

    Yields
    ------
    dict
        `set`, `group` (an age, or steps seen), `method`, and all metrics.

    Raises
    ------
    InputError
        As in `AccuracyRequest.check`, or a set has covariates: it knows its streams by y alone.
    """
    request.check()
    if covered := [protocol.name for protocol in request.protocols if protocol.covariates.dynamic]:
        raise InputError(f"bench streams measures sets without covariates, not {', '.join(covered)}")
    for protocol in request.protocols:
        task = load(protocol, request.folder)
        for part, rows in ((young(task), age_rows), (task, cold_rows)):
            config = request.config(part.protocol, request.seeds[0])
            fitted = train_model(part.learnable, config, max_minutes=request.minutes, reporter=reporter)
            yield from rows(fitted.forecaster, part)


def streams_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line per group; the set's own metric and the WQL of every method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns = ["set", "state", "metric", *methods, *(f"WQL, {method}" for method in methods)]
    lines = []
    for (name, label), found in group(rows, "set", "group").items():
        targets = PROTOCOLS[name].targets
        metric = targets[0].metric if targets else "mase"
        by_method = {row["method"]: row for row in found}
        values = [
            number(by_method[method][key], 3) if method in by_method else "-"
            for key in (metric, "wql")
            for method in methods
        ]
        lines.append([name, label, WORDS[metric], *values])
    return columns, lines
