"""Real MLflow stores for the pipelines' tests; the schema is made once and copied, because making it takes seconds."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from forecaster import Panel
from pipelines.connection import connect
from tests.pipelines.kit import long_frame


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MLflow database with its schema and nothing in it."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}", create=True)
    return path


@pytest.fixture
def tracking_uri(tmp_path: Path, empty_database: Path) -> Iterator[str]:
    """A store of its own for one test."""
    import mlflow

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    yield f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


@pytest.fixture(scope="session")
def panel() -> Panel:
    """Three hourly series of 120 steps."""
    return Panel.from_frame(long_frame(), "h")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: a shell starts what it runs in the background with SIGINT ignored, the tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
