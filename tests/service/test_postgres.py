"""The same store on PostgreSQL, two processes' worth of engines on it; skipped where there is no server binary."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.app import create_app
from service.settings import Settings
from service.store import Store
from tests.service.kit import LocalClient, free_port, history, observations, recompute

BASE = 473352


def binaries() -> Path | None:
    """Folder of initdb and postgres."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """A throw-away server; the URL of its database."""
    pytest.importorskip("psycopg")
    folder = binaries()
    if folder is None:
        pytest.skip("there is no PostgreSQL server binary here")
    user = None
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    home = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True, user=user).stdout.strip())
    port = free_port()
    run = {
        "check": True,
        "capture_output": True,
        "user": user,
        "cwd": home,
        "env": {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
    }
    subprocess.run([folder / "initdb", "-D", home / "data", "-U", "forecaster", "--auth=trust", "-E", "UTF8"], **run)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {home}"
    subprocess.run([folder / "pg_ctl", "-D", home / "data", "-w", "-o", options, "-l", home / "log", "start"], **run)
    try:
        yield f"postgresql+psycopg://forecaster@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([folder / "pg_ctl", "-D", home / "data", "-w", "-m", "immediate", "stop"], **run)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def url(server) -> str:
    """The database, emptied."""
    store = Store.open(server)
    with store._engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE streams, observations, snapshots")
    store.close()
    return server


def test_two_replicas_on_one_database_agree(url, artifact, tiny_forecaster):
    """Each takes every other observation, also late and revised ones; both forecast from the whole log."""
    settings = Settings(model=str(artifact), store=url)
    log = {0: 5.0}
    with LocalClient(create_app(settings)) as one, LocalClient(create_app(settings)) as two:
        assert one.put("/v1/streams/a", json=history([5.0])).status_code == 201
        for i, (hour, y) in enumerate([(1, 6.0), (2, 7.0), (5, 8.0), (3, None), (6, 9.0), (2, 1.0), (7, 2.0)]):
            reply = (one, two)[i % 2].post(
                "/v1/streams/a/observations", json=observations((hour, y), on_conflict="revise")
            )
            assert reply.status_code == 200, reply.text
            log[hour] = y
        found = [replica.get("/v1/streams/a/forecast").json() for replica in (one, two)]
        described = [replica.get("/v1/streams/a").json() for replica in (one, two)]

    expected = tiny_forecaster.forecast(recompute(tiny_forecaster, [{BASE + h: y for h, y in log.items()}]))[0]
    assert described[0] == described[1]
    assert described[0]["version"] == 8
    for reply in found:
        np.testing.assert_allclose(np.array(list(reply["quantiles"].values())).T, expected, rtol=1e-5)


def test_bulk_restart_listing_and_deletion_work_the_same(url, artifact):
    settings = Settings(model=str(artifact), store=url, snapshot_every=2)
    lines = "\n".join(f'{{"unique_id":"s{i % 3}","ds":"2024-01-01T{1 + i // 3:02d}:00","y":{i}}}' for i in range(30))
    headers = {"content-type": "application/x-ndjson"}
    with LocalClient(create_app(settings)) as client:
        for i in range(3):
            client.put(f"/v1/streams/s{i}", json=history([1.0]))
        first = client.post("/v1/observations", content=lines, headers=headers).json()
        before = client.get("/v1/streams/s1/forecast").json()
    with LocalClient(create_app(settings)) as client:
        again = client.post("/v1/observations", content=lines, headers=headers).json()
        after = client.get("/v1/streams/s1/forecast").json()
        client.delete("/v1/streams/s0")
        listed = client.get("/v1/streams").json()["streams"]

    assert (first["counts"], again["counts"]) == ({"accepted": 30}, {"duplicate": 30})
    assert [found["unique_id"] for found in listed] == ["s1", "s2"]
    assert after["version"] == before["version"]
    for level in before["quantiles"]:
        np.testing.assert_allclose(after["quantiles"][level], before["quantiles"][level], rtol=1e-5)
