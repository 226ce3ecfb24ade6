"""The demo, act by act: train and judge, serve and replay, crash and recover, swap the model.

Every part is the real one: the pipelines that `forecaster train` runs, a server process over HTTP, SIGKILL. Whatever
it claims, it has checked; a check that fails ends the demo with an error.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pipelines.console import Reporter
from pipelines.demo.acts import check_state, crash, replay, swap
from pipelines.demo.board import running_board
from pipelines.demo.cities import load_cities
from pipelines.demo.processes import ServerProcess, free_port
from pipelines.demo.stage import HORIZON, MODEL, Stage, prepare_folder, request, stage_of
from pipelines.registry import CHAMPION
from pipelines.tables import metrics_table
from pipelines.train import TrainResult, train

__all__ = ["run_demo"]

FIRST_MINUTES = 1.5
RUNS = "/#/experiments?workflowType=machine_learning"
"""Where MLflow's pages list runs; they begin with what they have for prompts."""

SWAP_OBSERVATIONS = 192
"""Kept for the model swap: the last four days of both cities."""


def run_demo(
    folder: str | Path = "demo-run", *, keep: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Run the whole demo.

    Parameters
    ----------
    folder
        Working folder; emptied first if an earlier demo made it.
    keep
        Leave the service and the MLflow UI running.
    reporter
        Told what happens; standard error by default.

    Returns
    -------
    dict
        What was measured and proven.

    Raises
    ------
    InputError
        The folder holds something else.
    ForecasterError
        A part failed, or a claim did not hold.
    """
    started = time.monotonic()
    reporter = reporter or Reporter()
    path = prepare_folder(Path(folder))
    cities = load_cities()
    cities.history.to_csv(path / "history.csv", index=False)
    tracking_uri = f"sqlite:///{path}/mlflow.db"
    first = first_act(path, tracking_uri, reporter)
    with stage_of(path, tracking_uri, cities, reporter) as stage:
        stage.results["first_model"] = first.to_dict()
        second_act(stage)
        epilogue(stage, keep=keep)
        results = stage.results
    seconds = time.monotonic() - started
    reporter.heading(f"done in {seconds:.0f} s: every claim above was checked")
    return {**results, "seconds": round(seconds, 1)}


def first_act(path: Path, tracking_uri: str, reporter: Reporter) -> TrainResult:
    """Train, judge, register, promote."""
    reporter.heading("1. Train on all but the last four weeks, judge against the seasonal naive, register, promote")
    reporter.notice(
        f"the same as: forecaster train {path}/history.csv --freq h --horizon {HORIZON} --season 24 --season 168 "
        f"--name {MODEL} --max-minutes {FIRST_MINUTES} --windows 14 --step 24 --tracking-uri {tracking_uri}"
    )
    result = train(request(path, tracking_uri, minutes=FIRST_MINUTES, seed=0), reporter)
    reporter.table(*metrics_table(result.metrics))
    verdict = "is champion" if result.promoted else "was refused"
    reporter.notice(f"version {result.version} of model {MODEL!r} {verdict}: {result.reason}")
    return result


def second_act(stage: Stage) -> None:
    """Serve, replay, crash, recover, swap."""
    reporter, observations = stage.reporter, stage.observations
    reporter.heading("2. Start the server and replay the last four weeks over HTTP, one observation at a time")
    seconds = stage.server.start()
    reporter.notice(f"the service answers at {stage.url} after {seconds:.1f} s")
    for name in stage.cities.names:
        stage.client.create(name, stage.cities.history[stage.cities.history["unique_id"] == name])
    half = len(observations) // 2
    with running_board(reporter, stage.scoreboard) as board:
        replay(stage, observations[:half], board)
    reporter.heading("3. kill -9 while observations are under way, restart, compare")
    crash(stage, observations[half:])
    check_state(stage)
    rest = observations[len(stage.client.acknowledged) :]
    with running_board(reporter, stage.scoreboard) as board:
        replay(stage, rest[:-SWAP_OBSERVATIONS], board)
    reporter.heading("4. Train another version and swap it in while observations keep coming")
    swap(stage, rest[-SWAP_OBSERVATIONS:])
    check_state(stage)
    score = stage.scoreboard.total
    stage.results["live"] = {
        "observations": score.observations,
        "mae": score.mae,
        "seasonal_naive_mae": score.naive_mae,
        "coverage_80": score.coverage,
        "latency_p50_ms": score.latency_ms(0.5),
        "latency_p99_ms": score.latency_ms(0.99),
    }
    reporter.notice(
        f"{score.observations} observations streamed: error {score.mae:.2f} °F, "
        f"seasonal naive {score.naive_mae:.2f} °F, {score.coverage:.0%} inside the 80 % band"
    )


def epilogue(stage: Stage, *, keep: bool) -> None:
    """Say where to look; with `keep`, leave it all running."""
    reporter = stage.reporter
    reporter.heading("5. Look around")
    if not keep:
        reporter.notice(
            f"MLflow UI: mlflow ui --backend-store-uri {stage.tracking_uri}   then open http://127.0.0.1:5000{RUNS}"
        )
        reporter.notice(
            f"service:   forecaster serve --model models:/{MODEL}@{CHAMPION} "
            f"--store sqlite:///{stage.folder}/forecaster.db --tracking-uri {stage.tracking_uri}   then open http://127.0.0.1:8000/docs"
        )
        reporter.notice("KEEP=1 make demo leaves both running")
        return
    port = free_port()
    ui = ServerProcess(
        ["-m", "mlflow", "ui", "--backend-store-uri", stage.tracking_uri, "--port", str(port), "--workers", "1"],
        {"MLFLOW_DISABLE_TELEMETRY": "true"},
        f"http://127.0.0.1:{port}/health",
        stage.folder / "mlflow-ui.log",
    )
    ui.start()
    reporter.notice(f"MLflow UI: http://127.0.0.1:{port}{RUNS}")
    reporter.notice(f"API docs:  {stage.url}/docs")
    reporter.notice(f"still running; stop with: kill {stage.server.pid} {ui.pid}")
    stage.results["kept"] = {
        "service": stage.url,
        "mlflow": f"http://127.0.0.1:{port}",
        "pids": [stage.server.pid, ui.pid],
    }
    ui.release()
    stage.server.release()
