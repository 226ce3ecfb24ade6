"""What the demo's acts share: the folder, the server, the client, the score; set up once and always taken down."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forecaster import InputError
from pipelines.console import Reporter
from pipelines.demo.cities import Cities
from pipelines.demo.processes import ServerProcess, free_port
from pipelines.demo.scoreboard import Scoreboard
from pipelines.demo.stream import Client, Observation
from pipelines.plan import TrainRequest
from pipelines.registry import CHAMPION

__all__ = ["HORIZON", "MODEL", "Stage", "prepare_folder", "request", "stage_of"]

MODEL = "temperatures"
HORIZON = 48
MARKER = ".forecaster-demo"


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
def stage_of(path: Path, tracking_uri: str, cities: Cities, reporter: Reporter) -> Iterator[Stage]:
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
    replay = cities.replay
    stamps = replay["ds"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    observations = [
        Observation(name, ds, y)
        for name, ds, y in zip(replay["unique_id"].tolist(), stamps.tolist(), replay["y"].tolist(), strict=True)
    ]
    client = Client(url, scoreboard)
    try:
        yield Stage(path, reporter, cities, observations, server, client, scoreboard, tracking_uri, url)
    finally:
        client.close()
        server.stop()
