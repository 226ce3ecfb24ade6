"""Fixtures of the reliability suite: seeds that are printed, servers from a template, a library of disk faults."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.conftest import any_store_url, artifact, postgres, store_url, template
from tests.service.processes import Server, Template

__all__ = ["any_store_url", "artifact", "postgres", "store_url", "template"]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """RELIABILITY_SEED, else 1 in the default suite and a new one in the long forms; printed."""
    chosen = os.environ.get("RELIABILITY_SEED")
    long = request.node.get_closest_marker("soak") is not None
    found = int(chosen) if chosen else (time.time_ns() // 1000 % 10**9 if long else 1)
    print(f"RELIABILITY_SEED={found}")  # noqa: T201
    return found


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library of disk faults."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("disk faults need a C compiler")
    target = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).parent / "faults.c"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", target, source, "-ldl"], check=True)
    return target


@pytest.fixture(scope="session")
def faulty_template(artifact: Path, faults: Path) -> Iterator[Template]:
    """Forks servers whose disk can be told to fail."""
    running = Template(artifact, faults)
    yield running
    running.close()


@pytest.fixture
def server(template: Template, artifact: Path, any_store_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server on a new store of either kind, not yet started; snapshots are frequent."""
    found = Server(template, artifact, any_store_url, tmp_path / "log", snapshot_every="8")
    yield found
    found.kill()
