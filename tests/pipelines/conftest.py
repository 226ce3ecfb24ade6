"""Real MLflow stores for the pipelines' tests; the schema is made once and copied, because making it takes seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forecaster import Panel
from pipelines.connection import connect
from tests.pipelines.kit import Ran, long_frame, store_in


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MLflow database with its schema and nothing in it."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}", create=True)
    return path


@pytest.fixture
def tracking_uri(tmp_path: Path, empty_database: Path) -> Iterator[str]:
    """A store of its own for one test."""
    with store_in(tmp_path, empty_database) as uri:
        yield uri


@pytest.fixture(scope="session")
def panel() -> Panel:
    """Three hourly series of 120 steps."""
    return Panel.from_frame(long_frame(), "h")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ran]]:
    """Run a command line in this process, through the `main` that the console script calls."""
    import mlflow

    from pipelines.cli import main

    for key in [key for key in os.environ if key.startswith(("MLFLOW_", "FORECASTER_"))]:
        monkeypatch.delenv(key)

    def call(*arguments: str) -> Ran:
        capfd.readouterr()
        status = main(arguments)
        captured = capfd.readouterr()
        return Ran(status, captured.out, captured.err)

    yield call
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: a shell starts what it runs in the background with SIGINT ignored, the tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
