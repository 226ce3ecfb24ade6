"""Readiness tells the truth: about a store that fails or hangs, a stuck or dead engine, and a service that leaves."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from functools import partial
from pathlib import Path

import pytest

from service import runtime
from service.app import create_app
from service.asking import Probe, Questions
from service.engine.trimmer import Trimmer
from service.metrics import Metrics
from service.models.served import ServedModel
from service.store import Store
from tests.service.kit import LocalClient, assert_problem, history, observations, replace_commit, until


@pytest.fixture
def hasty(settings):
    """The application, quick to lose patience; tests of other things ask the usual one, as the disk may be slow."""
    settings = settings.model_copy(update={"stall_seconds": 1.0, "drain_seconds": 5})
    with LocalClient(create_app(settings)) as running:
        # The first calls load compiled code, which may take longer than that.
        until(lambda: running.put("/v1/streams/first", json=history([1.0])).is_success)
        until(lambda: running.post("/v1/streams/first/observations", json=observations((1, 1.0))).is_success)
        yield running


def test_a_store_that_hangs_is_asked_once_and_found_out(client, monkeypatch):
    monkeypatch.setattr(runtime, "_PROBE_SECONDS", 0.05)
    released, asked = threading.Event(), []

    def hang():
        asked.append(1)
        released.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(client.service.store, "probe", hang)
        for _ in range(3):
            assert_problem(client.get("/readyz"), 503, "store: does not answer within 0.05 s")
        assert client.get("/healthz").status_code == 200
        assert len(asked) == 1
        released.set()
    until(lambda: client.get("/readyz").status_code == 200)


def test_a_stuck_engine_leaves_nobody_waiting_and_loses_nothing(hasty, monkeypatch):
    """Those at work are told that their outcome is unknown, others that nothing changed; then all goes on."""
    for name in "ab":
        new = partial(hasty.put, f"/v1/streams/{name}", json=history([1.0]), headers={"if-none-match": "*"})
        until(lambda new=new: new().status_code in (201, 412))
    released, commit = threading.Event(), hasty.service.store.commit

    def hang(*arguments):
        released.wait(60)
        return commit(*arguments)

    replies = {}

    def observe(name):
        replies[name] = hasty.post(f"/v1/streams/{name}/observations", json=observations((1, 2.0)))

    with monkeypatch.context() as patch:
        replace_commit(patch, hasty.service.store, hang)
        first = threading.Thread(target=observe, args=("a",))
        first.start()
        until(lambda: hasty.service.engine.busy_seconds() > 0)
        second = threading.Thread(target=observe, args=("b",))
        second.start()
        first.join()
        second.join()
        assert_problem(replies["a"], 503, "not known", "not taken twice")
        assert_problem(replies["b"], 503, "nothing was changed")
        assert_problem(hasty.post("/v1/streams/b/observations", json=observations((1, 2.0))), 503, "does not answer")
        assert_problem(hasty.get("/readyz"), 503, "engine: busy")
        assert_problem(hasty.get("/v1/quality"), 503, "does not answer")
        released.set()
    until(lambda: hasty.get("/readyz").status_code == 200)
    until(lambda: hasty.service.engine.busy_seconds() == 0)

    assert hasty.get("/v1/streams/a").json()["version"] == 2
    assert hasty.get("/v1/streams/b").json()["version"] == 1
    again = hasty.post("/v1/streams/a/observations", json=observations((1, 2.0))).json()
    assert (again["duplicate"], again["accepted"]) == (1, 0)
    assert hasty.post("/v1/streams/b/observations", json=observations((1, 2.0))).json()["accepted"] == 1
    assert (hasty.service.engine._intake.pending, hasty.service.engine._intake.waiting) == (0, 0)


def test_a_commit_that_fails_at_its_very_end_may_have_been_kept_and_nobody_is_told_otherwise(client, monkeypatch):
    """As when the connection breaks before the database's answer arrives; nothing in memory is behind afterwards."""
    client.put("/v1/streams/a", json=history([1.0]))
    dialect = client.service.store._engine.dialect
    commit = dialect.do_commit

    def lost(connection):
        commit(connection)
        raise sqlite3.OperationalError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(dialect, "do_commit", lost)
        kept = client.post("/v1/streams/a/observations", json=observations((1, 2.0)))
        created = client.put("/v1/streams/b", json=history([3.0]))
    for reply in (kept, created):
        assert_problem(reply, 503, "not known", "not taken twice")
        assert reply.json()["type"].endswith(":outcome-unknown")

    assert client.get("/v1/streams/a").json()["version"] == 2
    assert client.get("/v1/streams/b").json()["version"] == 1
    assert client.post("/v1/streams/a/observations", json=observations((1, 2.0))).json()["duplicate"] == 1


def test_a_trimmer_whose_database_hangs_does_not_keep_the_process_from_ending(settings, tiny_forecaster, monkeypatch):
    store, asked, released = Store.open(settings.store), threading.Event(), threading.Event()

    def hang(*_asked):
        asked.set()
        released.wait(60)
        return []

    monkeypatch.setattr(store, "page_by_id", hang)
    trimmer = Trimmer(store, Metrics(), lambda _begins: None, 60.0)
    trimmer.follow(ServedModel("tiny", "1", tiny_forecaster), 100)
    trimmer.start()
    assert asked.wait(60)

    trimmer.stop(0.05)

    assert trimmer._thread.is_alive()
    released.set()
    trimmer.stop(60)
    assert not trimmer._thread.is_alive()
    store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_died_is_not_alive(hasty, monkeypatch):
    """Only a new process helps, so liveness says so, and who waited is not left alone."""

    def die(_items):
        raise SystemExit

    monkeypatch.setattr(hasty.service.engine, "_process", die)
    reply = hasty.put("/v1/streams/a", json=history([1.0]))

    assert_problem(reply, 503, "not known")
    assert_problem(hasty.get("/healthz"), 503, "engine")
    assert_problem(hasty.get("/readyz"), 503, "engine: stopped")


def test_who_leaves_is_not_ready_and_still_answers(client):
    assert client.get("/readyz").status_code == 200
    client.service.leave()

    assert_problem(client.get("/readyz"), 503, "service: leaving")
    assert "forecaster_ready 0.0" in client.get("/metrics").text
    assert client.put("/v1/streams/a", json=history([1.0])).status_code == 201


def test_a_store_is_asked_anew_after_an_answer_that_nobody_waited_for():
    asked, released = [], threading.Event()

    class Dying:
        def probe(self) -> None:
            asked.append(1)
            if len(asked) > 1:
                raise OSError("the disk died")
            assert released.wait(60)

    async def twice() -> tuple[str | None, str | None]:
        probe = Probe(Dying())
        first = await probe.failure(0.02)
        released.set()
        await probe._answer  # it has come by then, and nobody has looked at it
        return first, await probe.failure(60)

    assert asyncio.run(twice()) == ("does not answer within 0.02 s", "not writable: the disk died")


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_acknowledged_into_a_file_that_is_gone(client, settings, tmp_path, replaced):
    client.put("/v1/streams/a", json=history([1.0, 2.0])).raise_for_status()
    path = Path(settings.store.removeprefix("sqlite:///"))
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    if replaced:
        shutil.move(copy, path)

    assert_problem(client.post("/v1/streams/a/observations", json=observations((2, 1.0))), 503, "")
    named = {"idempotency-key": "k"}
    assert_problem(client.post("/v1/streams/a/observations", json=observations((2, 1.0)), headers=named), 503, "")
    reply = client.get("/v1/streams")
    assert_problem(reply, 503, "the store cannot be read at present")
    assert reply.headers["retry-after"] == "1"
    assert_problem(client.get("/readyz"), 503, "removed or replaced")


def test_a_question_that_raises_gives_its_place_back():
    async def ask() -> list[str]:
        questions, told = Questions(1, 5), []
        for _ in range(3):
            try:
                await questions.ask(partial(int, "none"))
            except ValueError as error:
                told.append(str(error))
        return told

    assert len(asyncio.run(ask())) == 3
