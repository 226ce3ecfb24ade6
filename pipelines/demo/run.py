"""The demo, act by act: train and judge, serve and replay, crash and recover, swap the model.

Every part is the real one: the pipelines that `forecaster train` runs, a server process over HTTP, SIGKILL. Whatever
it claims, it has checked; a check that fails ends the demo with an error.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd

from forecaster import ForecasterError, InputError, Panel
from pipelines.connection import connect
from pipelines.console import Reporter
from pipelines.demo.board import Board, running_board
from pipelines.demo.cities import Cities, load_cities
from pipelines.demo.processes import ServerProcess, free_port
from pipelines.demo.scoreboard import Scoreboard
from pipelines.demo.stream import Client, Observation
from pipelines.registry import CHAMPION, load_model, promote
from pipelines.tables import metrics_table
from pipelines.train import TrainRequest, TrainResult, train

__all__ = ["run_demo"]

MODEL = "temperatures"
HORIZON = 48
MARKER = ".forecaster-demo"
TOLERANCE = 1e-4
FIRST_MINUTES, SECOND_MINUTES = 1.5, 0.4
SWAP_SECONDS = 60.0


@dataclass(slots=True)
class Stage:
    """What the acts share."""

    folder: Path
    reporter: Reporter
    cities: Cities
    observations: list[Observation]
    server: ServerProcess
    client: Client
    scoreboard: Scoreboard
    tracking_uri: str
    url: str
    results: dict[str, Any] = field(default_factory=dict)


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
    with stage_of(path, tracking_uri, cities, reporter, keep=keep) as stage:
        stage.results["first_model"] = first.to_dict()
        second_act(stage)
        epilogue(stage, keep=keep)
        stage.results["seconds"] = round(time.monotonic() - started, 1)
    reporter.heading(f"done in {stage.results['seconds']:.0f} s: every claim above was checked")
    return stage.results


def first_act(path: Path, tracking_uri: str, reporter: Reporter) -> TrainResult:
    """Train, judge, register, promote."""
    reporter.heading("1. Train on all but the last four weeks, judge against the seasonal naive, register, promote")
    reporter.notice(
        f"the same as: forecaster train {path}/history.csv --freq h --horizon {HORIZON} --season 24 --season 168 --name {MODEL} "
        f"--max-minutes {FIRST_MINUTES} --windows 14 --step 24 --tracking-uri {tracking_uri}"
    )
    result = train(request(path, tracking_uri, minutes=FIRST_MINUTES, seed=0), reporter)
    reporter.table(*metrics_table(result.metrics))
    reporter.notice(
        f"version {result.version} of model {MODEL!r} {'is champion' if result.promoted else 'was refused'}: {result.reason}"
    )
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
        replay(stage, rest[:-192], board)
    reporter.heading("4. Train another version and swap it in while observations keep coming")
    swap(stage, rest[-192:])
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
        f"{score.observations} observations streamed: error {score.mae:.2f} °F, seasonal naive {score.naive_mae:.2f} °F, "
        f"{score.coverage:.0%} inside the 80 % band"
    )


def replay(stage: Stage, observations: Sequence[Observation], board: Board) -> None:
    """Stream observations and keep the board up to date."""
    for observation in observations:
        stage.client.observe(observation)
        board.update(observation.ds)


def crash(stage: Stage, observations: Sequence[Observation]) -> None:
    """Kill the server under load, restart it, and check that every acknowledged observation is still there.

    Raises
    ------
    ForecasterError
        One was lost, or the server would not come back.
    """
    gone = threading.Event()

    def send() -> None:
        try:
            stage.client.observe_all(observations)
        except httpx.TransportError:
            gone.set()

    before = len(stage.client.acknowledged)
    sender = threading.Thread(target=send, name="sender")
    sender.start()
    time.sleep(0.3)
    pid = stage.server.pid
    stage.server.kill()
    sender.join()
    if not gone.is_set():
        raise ForecasterError("the server was killed too late: all observations had been sent")
    known = len(stage.client.acknowledged)
    stage.reporter.notice(
        f"killed process {pid} with {known} observations acknowledged, {known - before} of them in the last 0.3 s"
    )
    seconds = stage.server.start()
    for name in stage.cities.names:
        last = max(o.ds for o in stage.client.acknowledged if o.unique_id == name)
        cutoff = stage.client.forecast(name)["cutoff"]
        # One more may be there: the observation whose acknowledgement the kill cut off.
        if pd.Timestamp(cutoff) < pd.Timestamp(last):
            raise ForecasterError(
                f"observations of {name} were lost: acknowledged up to {last}, the server knows them up to {cutoff}"
            )
    stage.results["crash"] = {"acknowledged": known, "restart_seconds": round(seconds, 2), "lost": 0}
    stage.reporter.notice(f"restarted in {seconds:.1f} s; nothing acknowledged was lost")


def check_state(stage: Stage) -> None:
    """Compare the service's forecasts with a batch recompute from the log that the client kept.

    Raises
    ------
    ForecasterError
        They differ.
    """
    live = {name: stage.client.forecast(name) for name in stage.cities.names}
    version = next(iter(live.values()))["model"]["version"]
    model = load_model(f"models:/{MODEL}/{version}", stage.tracking_uri).forecaster
    known = pd.concat([stage.cities.history, stage.cities.replay], ignore_index=True).sort_values(
        ["unique_id", "ds"], kind="stable"
    )
    known = known[[row.ds <= pd.Timestamp(live[row.unique_id]["cutoff"]) for row in known.itertuples()]]
    batch = model.forecast_frame(Panel.from_frame(known, "h"))
    worst = 0.0
    for name, forecast in live.items():
        rows = batch[batch["unique_id"] == name]
        for level, values in forecast["quantiles"].items():
            expected = rows[level].to_numpy(dtype=float)
            worst = max(worst, float(np.max(np.abs(np.array(values) - expected) / np.maximum(np.abs(expected), 1e-9))))
    if not worst <= TOLERANCE:
        raise ForecasterError(
            f"live forecasts differ from a batch recompute by {worst:.2g} relative, more than {TOLERANCE:g}"
        )
    stage.results.setdefault("batch_difference", []).append(worst)
    stage.reporter.notice(
        f"forecasts equal a batch recompute with version {version}: largest relative difference {worst:.1e}"
    )


def swap(stage: Stage, observations: Sequence[Observation]) -> None:
    """Train and promote a second version, and stream on until replies name it, without one failed request.

    Raises
    ------
    ForecasterError
        A request failed, or the new version did not appear in time.
    """
    result = train(request(stage.folder, stage.tracking_uri, minutes=SECOND_MINUTES, seed=1), stage.reporter)
    stage.reporter.notice(
        f"version {result.version}: the gate says {'yes' if result.promoted else 'no'}, {result.reason}"
    )
    if not result.promoted:
        promote(connect(stage.tracking_uri), MODEL, result.version, force=True)
        stage.reporter.notice("promoted by hand, to show the swap")
    started, sent, failed, asked = time.monotonic(), 0, 0, 0
    with running_board(stage.reporter, stage.scoreboard) as board:
        while stage.client.versions[-1] != result.version or sent < len(observations):
            if time.monotonic() - started > SWAP_SECONDS:
                raise ForecasterError(
                    f"the service still answers with version {stage.client.versions[-1]} after {SWAP_SECONDS:g} s"
                )
            if sent < len(observations):
                stage.client.observe(observations[sent])
                board.update(observations[sent].ds)
                sent += 1
                time.sleep(0.02)  # spreads the last days over the seconds that the swap takes
            else:
                version = str(stage.client.forecast(stage.cities.names[asked % 2])["model"]["version"])
                stage.client.versions.append(version)
                asked += 1
                time.sleep(0.05)
    changes = sum(a != b for a, b in zip(stage.client.versions, stage.client.versions[1:], strict=False))
    stage.results["swap"] = {
        "version": result.version,
        "failed_requests": failed,
        "changes": changes,
        "second_model": result.to_dict(),
    }
    stage.reporter.notice(
        f"replies name version {result.version}; {sent + asked} requests during the swap, none failed, none went back to the old version"
        if changes == 1
        else f"replies name version {result.version}, after {changes} changes"
    )
    if changes != 1:
        raise ForecasterError(f"replies changed between model versions {changes} times, expected once")


def epilogue(stage: Stage, *, keep: bool) -> None:
    """Say where to look; with `keep`, leave it all running."""
    reporter = stage.reporter
    reporter.heading("5. Look around")
    if not keep:
        reporter.notice(
            f"MLflow UI: mlflow ui --backend-store-uri {stage.tracking_uri}   then open http://127.0.0.1:5000"
        )
        reporter.notice(
            f"service:   forecaster serve --model models:/{MODEL}@{CHAMPION} --store sqlite:///{stage.folder}/forecaster.db "
            f"--tracking-uri {stage.tracking_uri}   then open http://127.0.0.1:8000/docs"
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
    reporter.notice(f"MLflow UI: http://127.0.0.1:{port}")
    reporter.notice(f"API docs:  {stage.url}/docs")
    reporter.notice(f"still running; stop with: kill {stage.server.pid} {ui.pid}")
    stage.results["kept"] = {
        "service": stage.url,
        "mlflow": f"http://127.0.0.1:{port}",
        "pids": [stage.server.pid, ui.pid],
    }
    ui.release()
    stage.server.release()


def request(path: Path, tracking_uri: str, *, minutes: float, seed: int) -> TrainRequest:
    """Describe one of the demo's trainings."""
    return TrainRequest(
        data=str(path / "history.csv"),
        freq="h",
        horizon=HORIZON,
        seasonality=(24, 168),
        seed=seed,
        name=MODEL,
        max_minutes=minutes,
        n_windows=14,
        step_size=24,
        tracking_uri=tracking_uri,
    )


def prepare_folder(path: Path) -> Path:
    """Return an empty working folder, absolute; one of an earlier demo is emptied.

    Raises
    ------
    InputError
        It holds something that no demo has put there.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; the demo needs a folder")
    if path.is_dir() and any(path.iterdir()):
        if not (path / MARKER).exists():
            raise InputError(f"{path} is not empty and no demo made it; name another folder with --folder")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / MARKER).touch()
    return path


@contextmanager
def stage_of(path: Path, tracking_uri: str, cities: Cities, reporter: Reporter, *, keep: bool) -> Iterator[Stage]:
    """Set up server and client; neither outlives the block, unless the demo ends well and is to leave them."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "FORECASTER_MODEL": f"models:/{MODEL}@{CHAMPION}",
        "FORECASTER_STORE": f"sqlite:///{path}/forecaster.db",
        "FORECASTER_HOST": "127.0.0.1",
        "FORECASTER_PORT": str(port),
        "FORECASTER_POLL_SECONDS": "1",
        "FORECASTER_MODEL_CACHE": str(path / "model-cache"),
        "FORECASTER_TRACKING_URI": tracking_uri,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true"),
    }
    server = ServerProcess(["-m", "service"], environment, f"{url}/readyz", path / "service.log")
    histories = {name: rows["y"].tolist() for name, rows in cities.history.groupby("unique_id", sort=False)}
    scoreboard = Scoreboard({str(name): values for name, values in histories.items()})
    observations = [Observation(row.unique_id, row.ds.isoformat(), float(row.y)) for row in cities.replay.itertuples()]
    client = Client(url, scoreboard)
    try:
        yield Stage(path, reporter, cities, observations, server, client, scoreboard, tracking_uri, url)
    finally:
        client.close()
        server.stop()
