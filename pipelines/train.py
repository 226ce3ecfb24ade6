"""The training pipeline in five steps: prepare, fit, backtest, register, decide.

The weights are found on every series without its last held-out windows. Those windows judge them, and they judge the
champion's in the same way; the registered model is then finished on all of the data, and its judged twin stays with
the run. Nothing is written before the input has been checked. The steps hand over nothing but a
run id and a version, so that a scheduler may run or repeat each in a process of its own; `train` runs them in a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forecaster import Backtest, Config, Forecaster, ForecasterError, Panel
from pipelines.backtesting import Rival, measure_champion, run_backtest
from pipelines.connection import RegistryError, connect, tracking_uri_or_default, without_password
from pipelines.console import Reporter
from pipelines.loading import load_judged, load_model
from pipelines.notes import note_of
from pipelines.plan import Plan, TrainRequest, prepare
from pipelines.promotion import Decision, decide, lacking
from pipelines.registry import (
    CHALLENGER,
    CHAMPION,
    apply_decision,
    describe_version,
    register,
    rival_of,
    run_of_version,
    version_of_alias,
)
from pipelines.tracking import backtest_metrics, choices_of, model_uri_of, resume_run, start_run

if TYPE_CHECKING:
    from forecaster.training import Fitted

__all__ = [
    "Plan",
    "TrainRequest",
    "TrainResult",
    "TrainedRun",
    "backtest_step",
    "fit_step",
    "prepare",
    "promotion_step",
    "register_step",
    "train",
    "train_model",
]


BESIDE_FITTING = 2.0
"""What is done before and after the fit, by what is done before, but for the backtest ..."""

VALUE_SECONDS, STEP_SECONDS = 1e-5, 4e-5
"""... which takes about so many for each observed value, and for each step of the longest series, as steps wait for one
another: all are folded, once more where a champion is measured."""

LARGEST_BESIDE = 0.5
"""Share of a time box that goes to that at most; too short a box has to be exceeded."""

TAGGED_METRICS = ("wql", "mase", "coverage_80", "seasonal_naive_wql")
"""Shown beside each version in the registry; all others are on the run and on the logged model."""


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished fit: the MLflow run that holds it, the model, its judged twin, what it took, why `out` lacks it."""

    run_id: str
    forecaster: Forecaster
    judged: Forecaster
    epochs: int
    seconds: float
    unsaved: str | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a training.

    Parameters
    ----------
    model, version, run_id, tracking_uri
        Where to find it.
    promoted, reason
        The gate's decision.
    metrics
        Of the backtest; empty if no window could be held out.
    champion_version, champion_metrics
        The rival on the same windows.
    n_windows
        Backtest windows held out.
    epochs, seconds
        Of fitting.
    out
        Folder with the artifact, if one was asked for.
    fingerprint
        Of the model.
    """

    model: str
    version: str
    run_id: str
    tracking_uri: str
    promoted: bool
    reason: str
    metrics: dict[str, float]
    champion_version: str | None
    champion_metrics: dict[str, float]
    n_windows: int
    epochs: int
    seconds: float
    out: str | None
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values to be printed: no user, no password, and the aliases that the version has now."""
        uri = without_password(self.tracking_uri)
        return {**asdict(self), "tracking_uri": uri, "aliases": [CHALLENGER, *([CHAMPION] if self.promoted else [])]}


def train(request: TrainRequest, reporter: Reporter | None = None) -> TrainResult:
    """Run all steps.

    Parameters
    ----------
    request
        What to do.
    reporter
        Told what happens; silent by default.

    Returns
    -------
    TrainResult
        The registered version and the gate's decision.

    Raises
    ------
    InputError
        Data or configuration are wrong; nothing was written.
    RegistryError
        MLflow cannot be reached.
    ForecasterError
        Everything was done, but the model could not be saved to `out`.
    """
    reporter = reporter or Reporter(quiet=True)
    began = time.monotonic()
    plan = prepare(request, reporter)
    trained = fit_step(plan, request, reporter, began=began)
    if plan.windows.n_windows:
        reporter.notice("backtest: every series is folded once more")  # long, of very many
    result = backtest_step(trained.run_id, plan, request, model=trained.judged)
    version = register_step(trained.run_id, request)
    try:
        rival, decision = promotion_step(version, plan, request)
    except RegistryError as error:
        raise RegistryError(
            f"version {version} of model {request.name!r} is registered, but not judged: {error}"
        ) from error
    if trained.unsaved is not None:
        verdict = "is champion now" if decision.promoted else "stays challenger"
        raise ForecasterError(f"version {version} of model {request.name!r} {verdict}, but {trained.unsaved}")
    return TrainResult(
        model=request.name,
        version=version,
        run_id=trained.run_id,
        tracking_uri=tracking_uri_or_default(request.tracking_uri),
        promoted=decision.promoted,
        reason=decision.reason,
        metrics={} if result is None else dict(result.metrics),
        champion_version=None if rival is None else rival.version,
        champion_metrics={} if rival is None else rival.metrics,
        n_windows=plan.windows.n_windows,
        epochs=trained.epochs,
        seconds=round(trained.seconds, 3),
        out=request.out,
        fingerprint=trained.forecaster.fingerprint(),
    )


def fit_step(
    plan: Plan, request: TrainRequest, reporter: Reporter | None = None, *, began: float | None = None
) -> TrainedRun:
    """Open a run, fit on what training may see, log everything about it and the model, save to `out`.

    Parameters
    ----------
    plan, request, reporter
        As made by `prepare`.
    began
        When the time box began, on the monotonic clock; None: now.
    """
    began = time.monotonic() if began is None else began
    tracking_uri = tracking_uri_or_default(request.tracking_uri)
    client = connect(tracking_uri, create=True)
    windows = plan.windows
    models = 2 if version_of_alias(client, request.name, CHAMPION) else 1
    backtests = models * backtest_seconds(plan.panel) if windows.n_windows else 0.0
    (latest,) = plan.panel.calendar.format([int(plan.panel.last_steps.max())])
    with start_run(client, request.name, run_name(request.data, latest), tracking_uri=tracking_uri) as run:
        run.log_config(plan.config)
        run.log_panel(plan.panel, source=request.data, context="training")
        run.log_environment()
        started = time.monotonic()
        fitted = train_model(
            plan.panel,
            plan.config,
            held_out=windows.held_out,
            max_minutes=minutes_to_fit(request.max_minutes, (started - began) / 60, backtests / 60),
            reporter=reporter,
            on_epoch=run.log_epoch,
        )
        seconds = time.monotonic() - started
        for reason in fitted.reasons:
            (reporter or Reporter(quiet=True)).notice(reason)
        unsaved = None
        if request.out is not None:
            try:
                fitted.forecaster.save(request.out)
            except ForecasterError as error:  # its run can hold it all the same
                unsaved = str(error)
            said = unsaved or f"the model is in {request.out}, whatever becomes of its run"
            (reporter or Reporter(quiet=True)).notice(said)
        run.log_rest()
        run.log_chosen(plan.config, fitted.forecaster.config, fitted.reasons)
        run.log_model(fitted.forecaster, plan.panel)
        run.log_judged(fitted.judged)
        run.log_learning_curve(fitted.history)
        return TrainedRun(run.run_id, fitted.forecaster, fitted.judged, len(fitted.history), seconds, unsaved)


def minutes_to_fit(box: float | None, spent: float, backtests: float) -> float | None:
    """Minutes of a time box that are left for the fit, after those spent and before backtests; None without a box.

    Examples
    --------
    >>> minutes_to_fit(10, 0.25, 0.5), minutes_to_fit(1, 5, 0), minutes_to_fit(None, 5, 0)
    (9.0, 0.5, None)
    """
    beside = BESIDE_FITTING * spent + backtests
    return None if box is None else box - min(beside, LARGEST_BESIDE * box)


def backtest_seconds(panel: Panel) -> float:
    """About how long one model's backtest will take."""
    return VALUE_SECONDS * panel.observed + STEP_SECONDS * float(panel.lengths.max())


def run_name(data: str, latest: str | int) -> str:
    """What a run is of, for people: data and its end. MLflow's databases have room for 250 characters."""
    return f"{Path(data).absolute().stem[:200]} to {latest}"


def backtest_step(
    run_id: str, plan: Plan, request: TrainRequest, *, model: Forecaster | None = None
) -> Backtest | None:
    """Backtest a run's judged twin on the held-out windows and log the result; None if there is no window.

    Parameters
    ----------
    run_id
        The run that trained the model.
    plan, request
        As for the fit.
    model
        The run's judged twin if it is at hand; None loads it.
    """
    windows = plan.windows
    client = connect(request.tracking_uri)
    model_uri = model_uri_of(client, run_id)
    with resume_run(client, run_id) as run:
        run.tag({"backtest.n_windows": str(windows.n_windows), "backtest.step_size": str(windows.step_size)})
        if windows.n_windows == 0:
            return None
        if model is None:
            model = load_judged(client, run_id) or load_model(model_uri, request.tracking_uri).forecaster
        result = run_backtest(
            model, plan.panel, horizon=windows.horizon, n_windows=windows.n_windows, step_size=windows.step_size
        )
        run.log_backtest(result, model_uri=model_uri)
        run.log_backtest_plots(result, plan.panel, plan.config)
        return result


def register_step(run_id: str, request: TrainRequest) -> str:
    """Register a run's model as the next version with alias `challenger`; done before, it returns the same version."""
    client = connect(request.tracking_uri)
    metrics = backtest_metrics(client, run_id) or {}
    tags = {f"backtest.{key}": f"{metrics[key]:.6g}" for key in TAGGED_METRICS if key in metrics}
    return register(client, request.name, model_uri_of(client, run_id), run_id=run_id, tags=tags)


def promotion_step(version: str, plan: Plan, request: TrainRequest) -> tuple[Rival | None, Decision]:
    """Measure the champion on the challenger's windows, ask the gate, carry out and write down its decision.

    Returns
    -------
    tuple
        The champion as measured (None if there was none), and the decision.
    """
    client = connect(request.tracking_uri)
    run_id = run_of_version(client, request.name, version)
    while True:
        rival = measure_champion(client, request.name, plan.windows, version, tracking_uri=request.tracking_uri)
        if rival_of(client, request.name, version) == (None if rival is None else rival.version):
            break  # if not, another became champion meanwhile, and that is the one to beat
    metrics = backtest_metrics(client, run_id)
    decision = decide(
        metrics,
        None if rival is None else rival.metrics,
        margin=request.margin,
        lacks=() if rival is None or rival.config is None else lacking(plan.config, rival.config),
    )
    if rival is not None and rival.problem is not None:
        decision = Decision(decision.promoted, (*decision.reasons, f"champion {rival.version}: {rival.problem}"))
    apply_decision(client, request.name, version, decision)
    note = note_of(request, plan, metrics or {}, rival, decision, choices_of(client, run_id))
    describe_version(client, request.name, version, note)
    with resume_run(client, run_id) as run:
        run.describe(note)
        if rival is not None:
            run.log_metrics(rival.metrics, "champion/")
        status = "promoted" if decision.promoted else "refused"
        run.tag({"model.version": version, "promotion.status": status, "promotion.reason": decision.reason})
    return rival, decision


def train_model(
    panel: Panel,
    config: Config,
    *,
    held_out: int = 0,
    validation: int | None = None,
    max_minutes: float | None = None,
    reporter: Reporter | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    on_weights: Callable[[float, Forecaster], None] | None = None,
) -> Fitted:
    """Fit a model, reporting each epoch.

    Parameters
    ----------
    panel
        All series.
    config
        The model.
    held_out
        Steps at the end of each series that the judged twin may not see.
    validation
        Steps before those to validate on; None: as the configuration says.
    max_minutes
        Longest time spent; None for no limit.
    reporter
        Gets a bar or a line per epoch; silent by default.
    on_epoch
        Also told about each epoch.
    on_weights
        Handed the weights of each epoch, also of the candidates of a race, with the seconds since the start.
    """
    from forecaster.training import fit

    with (reporter or Reporter(quiet=True)).progress("training") as say:

        def report(row: dict[str, float]) -> None:
            if on_epoch is not None:
                on_epoch(row)
            say(row["progress"], epoch_text(row))

        try:
            return fit(
                panel,
                config,
                held_out=held_out,
                validation=validation,
                max_minutes=max_minutes,
                on_epoch=report,
                on_weights=on_weights,
            )
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit of its own
                raise KeyboardInterrupt from end
            raise


def epoch_text(row: Mapping[str, float]) -> str:
    """One epoch in a few words."""
    parts = [f"epoch {int(row['epoch'])}"]
    for key, label in (("train_loss", "training loss"), ("val_loss", "validation loss")):
        if key in row:
            parts.append(f"{label} {row[key]:.4f}")
    if "gradient_norm" in row:
        parts.append(f"gradient {row['gradient_norm']:.2f}")
    if "seconds" in row:
        parts.append(f"{row['seconds']:.1f} s")
    return ", ".join(parts)
