"""Fixtures of the service's tests: artifacts on disk, and an application in this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from forecaster import Forecaster
from service.app import create_app
from service.settings import Settings
from service.store import Store
from tests.forecaster.kit import TINY, forecaster_of
from tests.service.kit import VALUES, LocalClient, history
from tests.service.processes import Template
from tests.service.servers import new_database, postgres_server


@pytest.fixture(scope="session")
def artifact(tiny_forecaster: Forecaster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as an artifact folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_forecaster.save(folder)
    return folder


@pytest.fixture(scope="session")
def challenger() -> Forecaster:
    """The tiny configuration with other weights."""
    return forecaster_of(TINY, 1)


@pytest.fixture(scope="session")
def challenger_artifact(challenger: Forecaster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The challenger as an artifact folder."""
    folder = tmp_path_factory.mktemp("models") / "challenger"
    challenger.save(folder)
    return folder


@pytest.fixture(scope="session")
def template(artifact: Path) -> Iterator[Template]:
    """Forks servers."""
    running = Template(artifact)
    yield running
    running.close()


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """A new SQLite file."""
    return f"sqlite:///{tmp_path / 'log.db'}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A server of its own for this run; the URL of its first database."""
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def any_store_url(request: pytest.FixtureRequest, store_url: str) -> str:
    """A new database of either kind."""
    return store_url if request.param == "sqlite" else new_database(request.getfixturevalue("postgres"))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with its tables and nothing in them."""
    path = tmp_path_factory.mktemp("store") / "log.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def settings(artifact: Path, store_url: str, empty_store: Path, tmp_path: Path) -> Settings:
    """Small bounds, so that tests reach them; the tables of the store are there, as making them takes a while."""
    shutil.copy(empty_store, tmp_path / "log.db")
    return Settings(
        model=str(artifact), store=store_url, max_gap_steps=10, max_history_steps=2000, max_body_bytes=65536
    )


@pytest.fixture
def client(settings: Settings) -> Iterator[LocalClient]:
    """The application, running in this process."""
    with LocalClient(create_app(settings)) as running:
        yield running


@pytest.fixture
def stream(client):
    """A stream of forty hours."""
    assert client.put("/v1/streams/a", json=history(VALUES)).status_code == 201
    return "/v1/streams/a"
