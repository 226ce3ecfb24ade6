"""Short micro-batches run on the event loop, and nothing else does: it waits for no store, no lock and no long fold."""

from __future__ import annotations

import math
import sqlite3
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from service.app import create_app
from service.engine import engine as engine_module
from service.engine.attempts import Attempts
from service.engine.items import Look, Observe, Single
from service.engine.microbatch import MicroBatch
from service.store import Transaction
from tests.service.kit import VALUES, LocalClient, ds, history, observations, until
from tests.service.servers import new_database


@pytest.fixture
def where(client, stream, monkeypatch):
    """Of every micro-batch, whether it began on the event loop."""
    assert stream == "/v1/streams/a"
    return watch(client, monkeypatch)


def watch(client, monkeypatch):
    seen: list[bool] = []
    begin = MicroBatch.begin

    def watched(self, items):
        seen.append(threading.current_thread() is client._thread)
        begin(self, items)

    post(client, (40, 1.0))  # the first ones may take long
    post(client, (41, 1.0))
    quiet(client)
    monkeypatch.setattr(engine_module, "_SHORT", math.inf)  # however slow this machine is
    monkeypatch.setattr(MicroBatch, "begin", watched)
    return seen


def quiet(client):
    """Wait until the thread has counted what it has answered."""
    engine = client.service.engine
    until(lambda: engine._queue.empty() and not engine._turn.locked() and engine._under_way is None)


def observe(client, *pairs, headers=None):
    quiet(client)
    return post(client, *pairs, headers=headers)


def post(client, *pairs, headers=None):
    reply = client.post("/v1/streams/a/observations", json=observations(*pairs), headers=headers or {})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_next_step_of_a_stream_in_memory_and_a_look_at_one_run_at_once(client, where):
    assert observe(client, (42, 3.0))["accepted"] == 1
    assert observe(client, (43, None))["accepted"] == 1
    assert client.get("/v1/streams/a/forecast").status_code == 200
    assert client.get("/v1/streams/a").json()["version"] == 5
    assert where == [True] * 4


@pytest.mark.parametrize(
    ("pairs", "headers"),
    [
        ([(50, 1.0)], {}),  # a gap is filled
        ([(42, 1.0), (43, 1.0)], {}),
        ([(41, 1.0)], {}),  # looked up in the log
        ([(42, 1.0)], {"idempotency-key": "k"}),
    ],
)
def test_what_may_need_the_store_or_more_than_a_step_runs_in_the_thread(client, where, pairs, headers):
    observe(client, *pairs, headers=headers)
    assert where == [False]


def test_streams_that_are_not_in_memory_or_not_there_are_left_to_the_thread(client, where):
    client.put("/v1/streams/b", json=history([1.0]))
    client.service.engine._residents.drop(["a"])
    observe(client, (42, 1.0))
    assert client.get("/v1/streams/none").status_code == 404
    assert client.delete("/v1/streams/b").status_code == 204
    assert where == [False] * 4


def test_a_forecast_beyond_the_trained_horizon_and_very_many_numbers_are_left_to_the_thread(client, where, monkeypatch):
    monkeypatch.setattr(engine_module, "_SHORT", 0.008)
    trained = client.service.engine.model.forecaster.config.horizon
    client.service.engine._latest = 0.001, 256 + 9 * trained
    for query in (f"horizon={trained}", f"horizon={trained + 1}"):
        quiet(client)
        assert client.get(f"/v1/streams/a/forecast?{query}").status_code == 200
    quiet(client)
    client.service.engine._latest = 0.007, 256 + 9 * trained
    levels = ",".join(f"{i / 100:.2f}" for i in range(10, 91))
    assert client.get(f"/v1/streams/a/forecast?quantile_levels={levels}").status_code == 200
    assert where == [True, False, False]


def test_two_items_of_one_stream_are_done_one_after_the_other_by_the_thread(client, where):
    engine = client.service.engine

    async def ask():
        tickets = [Single(), Single()]
        steps = [engine.model.dates.steps([ds(hour)]) for hour in (42, 43)]
        engine.submit([Observe(t, "a", s, [1.0]) for t, s in zip(tickets, steps, strict=True)])
        return [(await ticket.future).record.version for ticket in tickets]

    assert client.call(ask()) == [4, 5]
    assert True not in where


def test_what_has_taken_long_runs_in_the_thread_until_it_does_not(client, where, monkeypatch):
    monkeypatch.setattr(engine_module, "_SHORT", 0.008)
    client.service.engine._latest = 1.0, 1
    observe(client, (42, 1.0))
    client.service.engine._latest = 0.0, 1
    observe(client, (43, 1.0))
    assert where == [False, True]


def test_more_streams_than_a_micro_batch_has_go_to_the_thread(client, where):
    client.put("/v1/streams/b", json=history([1.0]))
    quiet(client)
    engine = client.service.engine
    engine._full = 1
    where.clear()

    async def look():
        tickets, want = [Single(), Single()], engine.model.want(None, None)
        engine.submit([Look(ticket, name, want) for ticket, name in zip(tickets, "ab", strict=True)])
        return [(await ticket.future).record.unique_id for ticket in tickets]

    assert client.call(look()) == ["a", "b"]
    assert where == [False] * 2


def test_what_another_process_wrote_is_looked_up_by_the_thread(client, where, store_url):
    with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as other, other:
        other.execute("UPDATE streams SET version = version + 1 WHERE unique_id = 'a'")
    assert observe(client, (42, 1.0))["version"] == 5
    assert where[0] is False


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_server_is_asked_by_the_thread_unless_nobody_else_uses_it(settings, postgres, monkeypatch, exclusive):
    settings = settings.model_copy(update={"store": new_database(postgres), "exclusive_store": exclusive})
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history(VALUES))
        where = watch(client, monkeypatch)
        assert [observe(client, (hour, 1.0))["version"] for hour in (42, 43, 44)] == [4, 5, 6]
        assert client.get("/v1/streams/a").json()["cutoff"] == ds(44)
    assert where[:3] == [exclusive] * 3


@contextmanager
def another_thread_writes(client, _store_url):
    with client.service.store._turn:
        yield


@contextmanager
def another_process_writes(_client, store_url):
    with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def the_thread_is_at_work(client, _store_url):
    begun, go_on = threading.Event(), threading.Event()

    def work(_residents):
        begun.set()
        go_on.wait(60)

    done: Future[None] = client.service.engine._between(work)
    assert begun.wait(60)
    yield
    go_on.set()
    done.result(60)


@contextmanager
def the_disk_is_at_work(client, _store_url):
    go_on, end = threading.Event(), Transaction.end

    def slowly(self, *asked):
        go_on.wait(60)
        return end(self, *asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transaction, "end", slowly)
        yield
        go_on.set()
        until(lambda: not client.service.engine.busy_seconds())


@pytest.mark.parametrize(
    "busy", [another_thread_writes, another_process_writes, the_thread_is_at_work, the_disk_is_at_work]
)
def test_the_event_loop_waits_for_nobody(client, where, store_url, busy):
    engine = client.service.engine
    with ThreadPoolExecutor(1) as threads:
        with busy(client, store_url):
            reply = threads.submit(post, client, (42, 3.0))
            until(lambda: engine._intake.pending == 1)
            for _ in range(20):
                assert client.get("/v1/models").status_code == 200
            assert not reply.done()
        assert reply.result(60)["version"] == 4
    assert observe(client, (43, 3.0))["version"] == 5


def test_a_commit_that_fails_is_ended_by_the_thread_and_memory_stays_right(client, where, monkeypatch):
    from sqlalchemy.exc import OperationalError

    ended, finish = [], Attempts.finish

    def watched(self, items, begun=None):
        ended.append(threading.current_thread() is client._thread)
        return finish(self, items, begun)

    def fail(self, *_asked):
        self.undo(OperationalError("commit", {}, Exception("disk full")))

    monkeypatch.setattr(Attempts, "finish", watched)
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "end", fail)
        reply = client.post("/v1/streams/a/observations", json=observations((42, 1.0)))
    assert reply.status_code == 503
    assert (where[0], ended[0]) == (True, False)
    assert observe(client, (42, 1.0))["version"] == 4


def test_what_begins_at_once_is_done_before_the_engine_stops(client, where):
    engine = client.service.engine
    with ThreadPoolExecutor(2) as threads:
        with the_disk_is_at_work(client, None):
            reply = threads.submit(observe, client, (42, 3.0))
            until(lambda: engine._under_way is not None)
            stopped = threads.submit(engine.stop, 60)
            until(lambda: not engine._queue.empty() or not engine._thread.is_alive() or engine._turn.locked())
        assert stopped.result(60)
        assert reply.result(60)["version"] == 4
    assert where == [True]
