"""The pipeline as assets: panel → trained model → backtest → registered version → promotion.

Each asset calls one plain function of `pipelines`, the same that the command line calls, hands its result on and shows
it in Dagster's pages. An error of the user's making is not retried; anything else is, twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from forecaster import InputError, Panel
from pipelines.data import read_panel
from pipelines.orchestration.settings import ScheduleSettings
from pipelines.promotion import GateRules
from pipelines.steps import LoggedModel, backtest_and_log, fit_and_log, judge_and_apply, register_logged
from pipelines.train import TrainRequest

__all__ = ["ASSETS", "train_request"]

GROUP = "training"
RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)
OPTIONS: dict[str, Any] = {"group_name": GROUP, "retry_policy": RETRIES, "io_manager_key": "json_store"}

Settings = dg.ResourceParam[ScheduleSettings]
Table = dict[str, Any]


@dg.asset(**OPTIONS | {"io_manager_key": "panel_store"})
def panel(context: dg.AssetExecutionContext, settings: Settings) -> Panel:
    """The data as a validated panel."""
    with no_retry_for_bad_input():
        read = read_panel(settings.data, settings.freq, notice=context.log.info)
    context.add_output_metadata({
        "series": len(read),
        "steps": int(read.lengths.sum()),
        "fingerprint": read.fingerprint(),
    })
    return read


@dg.asset(**OPTIONS)
def trained_model(context: dg.AssetExecutionContext, settings: Settings, panel: Panel) -> Table:
    """A model fitted on all but the held-out tail, logged as an MLflow run."""
    with no_retry_for_bad_input():
        logged = fit_and_log(train_request(settings), panel)
    context.add_output_metadata({"run_id": logged.run_id, "epochs": logged.epochs, "seconds": logged.seconds})
    return logged.to_dict()


@dg.asset(**OPTIONS)
def backtest(context: dg.AssetExecutionContext, settings: Settings, panel: Panel, trained_model: Table) -> Table:
    """The model's error over the held-out windows, beside the seasonal naive."""
    with no_retry_for_bad_input():
        metrics = backtest_and_log(train_request(settings), panel, LoggedModel(**trained_model))
    context.add_output_metadata(dict(metrics))
    return metrics


@dg.asset(**OPTIONS)
def registered_version(
    context: dg.AssetExecutionContext, settings: Settings, panel: Panel, trained_model: Table, backtest: Table
) -> str:
    """The model as the next version in the registry, alias `challenger`."""
    with no_retry_for_bad_input():
        version = register_logged(train_request(settings), panel, LoggedModel(**trained_model), backtest)
    context.add_output_metadata({"model": settings.name, "version": version})
    return version


@dg.asset(**OPTIONS)
def promotion(
    context: dg.AssetExecutionContext, settings: Settings, panel: Panel, backtest: Table, registered_version: str
) -> Table:
    """The gate's decision, carried out."""
    with no_retry_for_bad_input():
        decision = judge_and_apply(train_request(settings), panel, registered_version, backtest)
    outcome = {"version": registered_version, "promoted": decision.promoted, "reason": decision.reason}
    context.add_output_metadata(outcome)
    return outcome


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
        rules=GateRules(margin=settings.margin),
        tracking_uri=settings.tracking_uri,
    )


@contextmanager
def no_retry_for_bad_input() -> Iterator[None]:
    """Turn the caller's mistakes into failures that are final: the same input would fail again."""
    try:
        yield
    except InputError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
