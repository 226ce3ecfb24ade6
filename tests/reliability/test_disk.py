"""R2, R13, R14: a disk that dies, fails, fills or forgets, call by call, below a real server on SQLite."""

from __future__ import annotations

import errno
import random
import shutil
import sqlite3
from contextlib import closing

import httpx
import pytest

from tests.reliability.kit import Book, audit, audit_states, read_log
from tests.service.kit import history, observations
from tests.service.processes import HTTP, Server

DIES, FAILS, FLUSHES_FAIL = 1, 2, 3
STREAMS = ("a", "b")


@pytest.fixture
def folder(tmp_path):
    """Holds nothing but the store, so that only its calls are counted."""
    made = tmp_path / "disk"
    made.mkdir()
    return made


def server_on(template, artifact, folder, number=0) -> Server:
    return Server(
        template, artifact, f"sqlite:///{folder / 'log.db'}", folder.parent / f"log{number}", snapshot_every="4"
    )


def script(url: str, book: Book, seed: int, length: int = 24) -> int:
    """A fixed sequence of requests, each booked; ends where the server ends. Returns how many were accepted."""
    chance = random.Random(seed)
    answered = 0
    try:
        with httpx.Client(base_url=url, timeout=30, verify=False) as client:
            for _ in range(length):
                name = chance.choice(STREAMS)
                last = book.last(name)
                hour = last + 1 if chance.random() < 0.8 else chance.randint(0, last)
                y = round(chance.uniform(5, 20), 3)
                book.sends(name, hour, y)
                body = observations((hour, y), on_conflict="revise", horizon=1)
                reply = client.post(f"/v1/streams/{name}/observations", json=body)
                if reply.status_code == 200:
                    book.hears(name, hour, y)
                    answered += 1
                else:
                    assert reply.status_code == 503, reply.text
                    assert reply.headers["retry-after"] == "1"
    except httpx.TransportError:
        pass
    return answered


def create(url: str) -> None:
    for name in STREAMS:
        HTTP.put(f"{url}/v1/streams/{name}", json=history([10.0]), timeout=30).raise_for_status()


def prepared(template, artifact, folder) -> None:
    """A store with two streams."""
    with server_on(template, artifact, folder) as server:
        server.start()
        create(server.url)
        server.kill()


def fault(folder, mode, at, error=errno.EIO) -> dict:
    return {"folder": str(folder), "mode": mode, "at": at, "error": error}


@pytest.mark.parametrize("deaths", [6, pytest.param(None, marks=pytest.mark.soak)], ids=["some", "every"])
def test_dying_at_any_write_or_flush_leaves_all_or_nothing_of_each_request(
    faulty_template, artifact, folder, tmp_path, tiny_forecaster, seed, deaths
):
    """R2. Every other death also loses what was written and not flushed, half of the last write included."""
    prepared(faulty_template, artifact, folder)
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    chance = random.Random(seed)
    at, died, finished = 0, 0, 0
    while finished < 3 and (deaths is None or died < deaths):
        at += 1 if deaths is None else chance.randint(3, 20)
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        book = Book(list(STREAMS))
        server = server_on(faulty_template, artifact, folder, at)
        with server.start(fault=fault(folder, DIES, at)):
            if script(server.url, book, seed) == 24:
                finished += 1  # the script has fewer calls than this
                server.kill()
            else:
                server.wait()
                died += 1
            server.start()
            logs = audit([book], f"sqlite:///{folder / 'log.db'}")
            audit_states(server, logs, tiny_forecaster)
            # What was not answered may be sent again.
            assert script(server.url, book, seed + 1, 3) == 3
            server.kill()
        with closing(sqlite3.connect(folder / "log.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        audit([book], f"sqlite:///{folder / 'log.db'}")
    print(f"died {died} times, at calls up to {at}")  # noqa: T201
    assert died == (deaths or died)
    assert died > 3


FAILURES = {"EIO": (FAILS, errno.EIO), "disk full": (FAILS, errno.ENOSPC), "fsync fails": (FLUSHES_FAIL, errno.EIO)}
SHORT = {("EIO", 30), ("disk full", 1), ("fsync fails", 31)}


@pytest.mark.parametrize(
    ("failure", "at"),
    [
        pytest.param(failure, at, marks=[] if (failure, at) in SHORT else pytest.mark.soak)
        for failure in FAILURES
        for at in (1, 30, 31, 67)
    ],
)
def test_a_failing_disk_is_503_and_heals_without_a_restart(
    faulty_template, artifact, folder, tiny_forecaster, seed, failure, at
):
    """R13. Nothing is acknowledged that is not there; not ready meanwhile; then all goes on in the same process."""
    mode, error = FAILURES[failure]
    prepared(faulty_template, artifact, folder)
    book = Book(list(STREAMS))
    server = server_on(faulty_template, artifact, folder, 1)
    # Opening the store writes too; that part is R2's.
    opening = 25
    with server.start(fault=fault(folder, mode, opening + at, error)):
        pid = server.pid
        assert server.alive
        answered = script(server.url, book, seed, 60)
        assert answered < 60, "the disk never failed"
        assert HTTP.get(f"{server.url}/readyz", timeout=30).status_code == 503
        assert HTTP.get(f"{server.url}/healthz", timeout=30).status_code == 200
        (folder / "healed").touch()
        # The first commit after that may still be refused, since SQLite starts its file anew.
        for _ in range(50):
            if HTTP.get(f"{server.url}/readyz", timeout=30).status_code == 200:
                break
        assert script(server.url, book, seed + 1, 12) == 12
        logs = audit([book], f"sqlite:///{folder / 'log.db'}")
        audit_states(server, logs, tiny_forecaster)
        assert server.pid == pid
        server.kill()
        server.start()
        audit_states(server, audit([book], f"sqlite:///{folder / 'log.db'}"), tiny_forecaster)


@pytest.mark.parametrize("flips", [20, pytest.param(400, marks=pytest.mark.soak)])
def test_a_flipped_bit_in_a_snapshot_is_found_and_the_log_decides(
    template, artifact, folder, tiny_forecaster, seed, flips
):
    """R14. Each snapshot of a stream is damaged somewhere; the state is folded anew, never served as it is."""
    url = f"sqlite:///{folder / 'log.db'}"
    chance = random.Random(seed)
    names = [f"s{i}" for i in range(flips)]
    server = server_on(template, artifact, folder)
    with server.start():
        with httpx.Client(base_url=server.url, timeout=60, verify=False) as client:
            for name in names:
                values = [round(chance.uniform(5, 20), 3) for _ in range(9)]
                client.put(f"/v1/streams/{name}", json=history(values)).raise_for_status()
        server.stop()  # leaves a snapshot of each
        with closing(sqlite3.connect(folder / "log.db")) as connection:
            rows = connection.execute("SELECT rowid, state FROM snapshots").fetchall()
            assert len(rows) == flips
            for number, (row, state) in enumerate(rows):
                damaged = bytearray(state)
                if number % 3:
                    place = chance.randrange(len(damaged) * 8)
                    damaged[place // 8] ^= 1 << place % 8
                else:
                    del damaged[chance.randrange(len(damaged)) :]
                connection.execute("UPDATE snapshots SET state = ? WHERE rowid = ?", (bytes(damaged), row))
            connection.commit()
        server.start()
        audit_states(server, read_log(url), tiny_forecaster)
        metrics = HTTP.get(f"{server.url}/metrics").text
        assert f"forecaster_damaged_snapshots_total {flips}.0" in metrics


def test_a_damaged_database_is_refused_or_answers_503_and_is_never_believed(template, artifact, folder, seed):
    """R14. Pages of the database itself overwritten: SQLite has no checksums, but what it cannot read is not served."""
    server = server_on(template, artifact, folder)
    with server.start():
        create(server.url)
        server.stop()
        data = bytearray((folder / "log.db").read_bytes())
        data[:100] = bytes(100)
        (folder / "log.db").write_bytes(data)
        with pytest.raises(AssertionError, match="the server ended"):
            server.start()
    assert "forecaster: the store" in server.log_text().splitlines()[-1]


def test_a_torn_end_of_the_write_ahead_log_costs_nothing_that_was_acknowledged(
    template, artifact, folder, tiny_forecaster, seed
):
    """R14. Bytes of a commit that never ended lie behind the last whole one."""
    prepared(template, artifact, folder)
    book = Book(list(STREAMS))
    server = server_on(template, artifact, folder, 1)
    with server.start():
        assert script(server.url, book, seed) == 24
        server.kill()
        wal = folder / "log.db-wal"
        assert wal.stat().st_size > 0
        with wal.open("ab") as file:
            file.write(random.Random(seed).randbytes(5000))
        server.start()
        audit_states(server, audit([book], f"sqlite:///{folder / 'log.db'}"), tiny_forecaster)


def test_an_artifact_with_any_damaged_file_is_refused(artifact, tmp_path, seed):
    """R14. Every file of a model, bit by bit: refused with one line, or the same model."""
    from service.errors import ModelError
    from service.models.served import load_model

    chance = random.Random(seed)
    fingerprint = load_model(artifact).key
    for file in sorted(path.name for path in artifact.iterdir()):
        for number in range(6):
            damaged = tmp_path / f"{file}-{number}"
            shutil.copytree(artifact, damaged)
            data = bytearray((damaged / file).read_bytes())
            if number == 0:
                del data[chance.randrange(len(data)) :]
            else:
                place = chance.randrange(len(data) * 8)
                data[place // 8] ^= 1 << place % 8
            (damaged / file).write_bytes(data)
            try:
                found = load_model(damaged).key
            except ModelError:
                continue
            assert found == fingerprint, f"{file} was believed"
