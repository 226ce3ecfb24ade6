"""R29 with processes that are ended half-way: an import and an export are there as a whole or not at all."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from service.backup import export_streams, import_streams
from service.store import Store
from service.store.copying import LogRow, SnapshotRow, StreamRow
from tests.reliability.kit import BASE
from tests.service.kit import ds, history, observations, until
from tests.service.processes import HTTP, Template

NAMES = [f"s{number}" for number in range(30)]
STEPS = 1000

HERE = "here\n"

# The program itself, which says so when it has read or written some rows of one kind, and then stands still.
HELD = """
import signal, sys
from service import backup, programs
# A shell that runs the tests in the background lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
kind, number = sys.argv[1].split(":")
read, write = backup._read, backup._write

def held(name, parts):
    for count, part in enumerate(parts):
        yield part
        if (name, count) == (kind, int(number)):
            print("here", flush=True)
            signal.pause()

backup._read = lambda path, row: held("read " + path.stem, read(path, row))
backup._write = lambda path, schema, tables: write(path, schema, held("write " + path.stem, tables))
sys.exit(programs.main(["streams", *sys.argv[2:]]))
"""


@contextmanager
def held(template: Template, log: Path, at: str, *arguments: object):
    """A process that stands still at some place, and is not there any more afterwards; it writes into a file."""
    process = template.run(HELD, at, *arguments, log=log)
    try:
        until(lambda: process.poll() is not None or (log.exists() and log.read_text() == HERE))
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)


@pytest.fixture
def exported(tmp_path, tiny_forecaster):
    """A folder of 30 streams of 1,000 steps, with snapshots."""
    store = Store.open(f"sqlite:///{tmp_path / 'source.db'}")
    store.claim_calendar("h", None)
    rows = [StreamRow(name, BASE, BASE + STEPS - 1, 1, STEPS, 0, None, None) for name in NAMES]
    log = [[LogRow(name, BASE + hour, float(3 + hour % 5), None) for hour in range(STEPS)] for name in NAMES]
    states = tiny_forecaster.warm_up([[float(3 + hour % 5) for hour in range(STEPS)]], [BASE]).to_bytes()
    snapshots = [SnapshotRow(name, "other", BASE + STEPS - 1, states[0]) for name in NAMES]
    store.load(rows, log, [snapshots], replace=False)
    export_streams(store, tmp_path / "exported")
    store.close()
    return tmp_path / "exported"


def everything(url: str) -> dict[str, int]:
    """How many rows each table of a store has."""
    engine = create_engine(url)
    with engine.connect() as connection:
        tables = ("streams", "observations", "snapshots")
        found = {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in tables}
    engine.dispose()
    return found


@pytest.mark.parametrize(
    ("at", "number"),
    [
        ("read observations:0", signal.SIGKILL),
        ("read snapshots:0", signal.SIGKILL),
        ("read observations:0", signal.SIGINT),
        pytest.param("read snapshots:0", signal.SIGTERM, marks=pytest.mark.soak),
    ],
)
def test_an_import_that_is_ended_half_way_has_changed_nothing(template, server, exported, tmp_path, at, number):
    """Beside a server on the same store, which goes on; `--replace` or not, it can be done again."""
    server.start()
    for name in ("s0", "own"):
        HTTP.put(f"{server.url}/v1/streams/{name}", json=history([1.0, 2.0])).raise_for_status()
    before, log = everything(server.store), tmp_path / "import"

    with (
        held(template, log, at, "import", exported, "--store", server.store, "--replace") as process,
        ThreadPoolExecutor(2) as threads,
    ):
        writing = [
            threads.submit(
                HTTP.post, f"{server.url}/v1/streams/{name}/observations", json=observations((2, 3.0), horizon=1)
            )
            for name in ("s0", "own")
        ]
        process.send_signal(number)
        status = process.wait(60)
        assert [reply.result(60).status_code for reply in writing] == [200, 200]

    assert status == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    said = {signal.SIGINT: "forecaster: interrupted\n", signal.SIGTERM: "forecaster: terminated\n"}
    assert log.read_text() == HERE + said.get(number, "")
    after = everything(server.store)
    assert (after["streams"], after["observations"]) == (before["streams"], before["observations"] + 2)
    for name in ("s0", "own"):
        found = HTTP.get(f"{server.url}/v1/streams/{name}").json()
        assert (found["version"], found["cutoff"]) == (2, ds(2))
    store = Store.open(server.store)
    import_streams(store, exported, replace=True)
    store.close()
    assert everything(server.store)["streams"] == len(NAMES) + 1
    assert HTTP.get(f"{server.url}/v1/streams/s0").json()["cutoff"] == ds(STEPS - 1)


@pytest.mark.parametrize(
    ("at", "number"),
    [
        ("write observations:0", signal.SIGKILL),
        ("write streams:0", signal.SIGINT),
        ("write snapshots:0", signal.SIGTERM),
        pytest.param("write snapshots:0", signal.SIGKILL, marks=pytest.mark.soak),
    ],
)
def test_an_export_that_is_ended_half_way_leaves_no_folder_that_could_be_taken_for_one(
    template, exported, tmp_path, at, number
):
    """It leaves nothing at all, unless it had no time to."""
    url, out = f"sqlite:///{tmp_path / 'source.db'}", tmp_path / "to" / "out"
    before = everything(url)

    with held(template, tmp_path / "export", at, "export", out, "--store", url) as process:
        process.send_signal(number)
        process.wait(60)

    left = os.listdir(out.parent)
    assert all(name.startswith(".out-") for name in left) if number == signal.SIGKILL else left == []
    store = Store.open(url)
    export_streams(store, out)
    store.close()
    assert everything(url) == before
