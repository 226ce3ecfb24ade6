"""The pipeline as assets: panel → trained model → backtest → registered version → promotion.

Each asset calls one step of `pipelines.train`, the same that the command line runs in a row, hands an id on and shows
what came of it in Dagster's pages. The panel is copied once per run, so that every step sees the same bytes. An error
of the user's making is final; anything else is tried again, twice.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dagster as dg

from forecaster import InputError
from pipelines.console import Reporter
from pipelines.data import write_frame
from pipelines.orchestration.settings import ScheduleSettings
from pipelines.orchestration.stores import storage_folder
from pipelines.train import Plan, TrainRequest, backtest_step, fit_step, prepare, promotion_step, register_step

__all__ = ["ASSETS", "train_request"]

RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)
Settings = dg.ResourceParam[ScheduleSettings]


def step(*, after: Sequence[dg.AssetsDefinition] = ()) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make an asset of a function: its parameters name the assets that it needs, `after` those it only waits for."""
    return dg.asset(group_name="training", io_manager_key="json_store", retry_policy=RETRIES, deps=after)


@step()
def panel(context: dg.AssetExecutionContext, settings: Settings) -> str:
    """The data, read, checked and copied."""
    path = storage_folder(context.instance) / "panel.parquet"
    with bad_input_is_final():
        found = prepare(train_request(settings), Reporter()).panel
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frame(found.to_frame(), path)
    sizes = {"series": len(found), "steps": int(found.lengths.sum())}
    context.add_output_metadata({**sizes, "source": settings.data, "fingerprint": found.fingerprint()})
    return str(path)


@step()
def trained_model(context: dg.AssetExecutionContext, settings: Settings, panel: str) -> str:
    """A model fitted on all but the held-out tail; the id of the MLflow run that holds it."""
    with bad_input_is_final():
        trained = fit_step(plan_of(settings, panel), train_request(settings), Reporter())
    context.log.info(f"{trained.epochs} epochs in {trained.seconds:.0f} s, MLflow run {trained.run_id}")
    context.add_output_metadata({"run_id": trained.run_id, "epochs": trained.epochs, "seconds": trained.seconds})
    return trained.run_id


@step()
def backtest(context: dg.AssetExecutionContext, settings: Settings, panel: str, trained_model: str) -> dict[str, float]:
    """The model's errors over the held-out windows, beside those of the seasonal naive."""
    with bad_input_is_final():
        result = backtest_step(trained_model, plan_of(settings, panel), train_request(settings))
    metrics = {} if result is None else {name: float(value) for name, value in result.metrics.items()}
    context.add_output_metadata(metrics)
    return metrics


@step(after=[backtest])
def registered_version(context: dg.AssetExecutionContext, settings: Settings, trained_model: str) -> str:
    """The model as the next version in the registry, alias `challenger`."""
    with bad_input_is_final():
        version = register_step(trained_model, train_request(settings))
    context.add_output_metadata({"model": settings.name, "version": version})
    return version


@step()
def promotion(context: dg.AssetExecutionContext, settings: Settings, panel: str, registered_version: str) -> bool:
    """The gate's decision, carried out: whether the version is champion now."""
    with bad_input_is_final():
        _, decision = promotion_step(registered_version, plan_of(settings, panel), train_request(settings))
    outcome = "promoted" if decision.promoted else "not promoted"
    context.log.info(f"version {registered_version} of model {settings.name!r} is {outcome}: {decision.reason}")
    context.add_output_metadata({"version": registered_version, "outcome": outcome, "reason": decision.reason})
    return decision.promoted


ASSETS = (panel, trained_model, backtest, registered_version, promotion)


def train_request(settings: ScheduleSettings) -> TrainRequest:
    """Say in the command line's words what the schedule trains."""
    return TrainRequest(
        data=settings.data,
        freq=settings.freq,
        horizon=settings.horizon,
        seasonality=settings.season,
        seed=settings.seed,
        config_file=settings.config,
        overrides=settings.overrides,
        name=settings.name,
        max_minutes=settings.max_minutes,
        n_windows=settings.windows,
        step_size=settings.step,
        margin=settings.margin,
        tracking_uri=settings.tracking_uri,
    )


def plan_of(settings: ScheduleSettings, panel: str) -> Plan:
    """What is trained, read from the run's copy of the data; what is written about it names the data themselves."""
    return prepare(replace(train_request(settings), data=panel))


@contextmanager
def bad_input_is_final() -> Iterator[None]:
    """Turn the user's mistakes into failures that are not tried again: the same input would fail again."""
    try:
        yield
    except InputError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
