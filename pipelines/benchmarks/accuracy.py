"""Accuracy: every data set trained from nothing with the default configuration, scored, and written down.

One MLflow run per set and seed, tagged with both, so that the curves and the configuration behind each figure stay.
The seasonal naive of each protocol stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forecaster import Config, Forecaster, InputError
from pipelines.benchmarks.evaluation import costs, evaluate
from pipelines.benchmarks.protocols import Protocol, Task, check_files, load
from pipelines.benchmarks.scores import naive_scores
from pipelines.connection import connect, tracking_uri_or_default
from pipelines.console import Reporter
from pipelines.tracking import start_run
from pipelines.train import train_model

__all__ = ["AccuracyRequest", "measure", "run_accuracy"]

EXPERIMENT = "bench-accuracy"

Snapshot = tuple[float, Forecaster]
"""Seconds since training began, and the weights at that time."""


@dataclass(frozen=True, slots=True)
class AccuracyRequest:
    """What to measure.

    Parameters
    ----------
    folder
        With the parquet files of the data sets.
    protocols
        Which of them.
    seeds
        A model each.
    minutes
        Time box of a training.
    overrides
        Changes to the default configuration, dotted keys.
    tracking_uri
        MLflow store.
    label
        Name of the variant that the overrides make.
    experiment
        In MLflow.
    milestones
        Whether to score the weights of every candidate of a race and of every epoch, for the time that training took
        to reach the seasonal naive's WQL and that of a rival.
    rivals
        Name and WQL of the best other method, by set.
    """

    folder: str
    protocols: Sequence[Protocol]
    seeds: Sequence[int] = (0,)
    minutes: float = 10.0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    tracking_uri: str | None = None
    label: str = "default"
    experiment: str = EXPERIMENT
    milestones: bool = False
    rivals: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse before the work starts.

        Raises
        ------
        InputError
            Files are missing, or a number or an override is impossible.
        """
        check_files(self.protocols, self.folder)
        if not self.minutes > 0:
            raise InputError(f"--minutes must be above 0, not {self.minutes}")
        for protocol in self.protocols:
            for seed in self.seeds:
                self.config(protocol, seed)

    def config(self, protocol: Protocol, seed: int) -> Config:
        """Configuration of one training; where a validation part is prescribed, nothing learns from it at the end."""
        prescribed = {"training.finish": 0.0} if protocol.validation else {}
        return protocol.config.with_overrides({**self.overrides, **prescribed, "training.seed": seed})


def run_accuracy(request: AccuracyRequest, reporter: Reporter | None = None) -> Iterator[dict[str, Any]]:
    """Measure set after set, seed after seed.

    Yields
    ------
    dict
        One row per training, as soon as it is scored; see `measure`.

    Raises
    ------
    InputError
        As in `AccuracyRequest.check`, before anything is trained.
    """
    reporter = reporter or Reporter(quiet=True)
    request.check()
    uri = tracking_uri_or_default(request.tracking_uri)
    client = connect(uri, create=True)
    for protocol in request.protocols:
        task = load(protocol, request.folder)
        naive = naive_scores(task)
        for seed in request.seeds:
            config = request.config(protocol, seed)
            name = f"{protocol.name}, {request.label}, seed {seed}"
            reporter.notice(f"{name}: {task.panel}")
            with start_run(client, request.experiment, name, tracking_uri=uri) as run:
                run.log_config(config)
                run.log_panel(task.learnable, source=", ".join(protocol.files), context="training")
                run.log_environment()
                snapshots: list[Snapshot] = []
                row = measure(
                    task,
                    config,
                    minutes=request.minutes,
                    reporter=reporter,
                    on_epoch=run.log_epoch,
                    snapshots=snapshots if request.milestones else None,
                )
                if request.milestones:
                    row |= milestones(task, snapshots, naive["wql"], request.rivals.get(protocol.name))
                row |= {"label": request.label, "seed": seed, "run_id": run.run_id}
                row |= {f"seasonal_naive_{name}": value for name, value in naive.items()}
                run.log_metrics({name: value for name, value in row.items() if isinstance(value, float)}, "test/")
                run.tag({"benchmark.set": protocol.name, "benchmark.label": request.label, "benchmark.seed": str(seed)})
            yield row


def measure(
    task: Task,
    config: Config,
    *,
    minutes: float,
    reporter: Reporter | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    snapshots: list[Snapshot] | None = None,
) -> dict[str, Any]:
    """Train on what a task allows, then score.

    Parameters
    ----------
    task, config
        What to learn, and with which model.
    minutes
        Time box of the training.
    reporter, on_epoch
        Told how it goes.
    snapshots
        Gets the weights of every candidate of a race and of every epoch.

    Returns
    -------
    dict
        `set`; all metrics of `Scores.metrics`; `seconds` of training, `epochs`; `parameters`, `state_bytes`,
        `update_us`, `update_us_single`, `forecast_us_single`; `origins`, `seconds_to_score` at all of them.
    """
    import forecaster.training  # noqa: F401  (its import takes seconds, which are not training)

    protocol = task.protocol
    started = time.monotonic()
    fitted = train_model(
        task.learnable,
        config,
        max_minutes=minutes,
        validation=protocol.validation or None,
        reporter=reporter,
        on_epoch=on_epoch,
        on_weights=None if snapshots is None else lambda *snapshot: snapshots.append(snapshot),
    )
    trained = time.monotonic()
    metrics = evaluate(fitted.forecaster, task)
    scored = time.monotonic()
    return {
        "set": protocol.name,
        **metrics,
        "seconds": trained - started,
        "epochs": len(fitted.history),
        **costs(fitted.forecaster, task),
        "origins": len(protocol.origins),
        "seconds_to_score": scored - trained,
    }


def milestones(
    task: Task, snapshots: Sequence[Snapshot], naive: float, rival: tuple[str, float] | None
) -> dict[str, Any]:
    """Seconds of training until the test part's WQL was as low as others'.

    Scored after the training, so that its clock holds nothing but training. To be seen, not to choose weights by.

    Returns
    -------
    dict
        `seconds_to_naive_wql`; `rival`, `rival_wql` and `seconds_to_rival_wql` if there is one. None: never.
    """
    targets = {"seconds_to_naive_wql": naive} | ({"seconds_to_rival_wql": rival[1]} if rival else {})
    reached: dict[str, Any] = dict.fromkeys(targets)
    for seconds, forecaster in snapshots:
        if None not in reached.values():
            break
        score = evaluate(forecaster, task)["wql"]
        for name, target in targets.items():
            if reached[name] is None and score <= target:
                reached[name] = seconds
    return reached | ({"rival": rival[0], "rival_wql": rival[1]} if rival else {})
