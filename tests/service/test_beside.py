"""A micro-batch begins while the one before it is being committed: of other streams, whatever becomes of that one."""

from __future__ import annotations

import gc
import json
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError

from service.app import create_app
from service.engine.microbatch import MicroBatch
from service.errors import StaleStreams, UnknownOutcome
from tests.service.kit import LocalClient, ds, history, observations, recompute, replace_commit, until

BASE = 473352
LINES = {"content-type": "application/x-ndjson"}


def bulk(client: LocalClient, rows):
    """Post rows (name, hour, y), in micro-batches of as many streams as the settings say."""
    lines = [json.dumps({"unique_id": name, "ds": ds(hour), "y": y}) for name, hour, y in rows]
    return client.post("/v1/observations", content="\n".join(lines), headers=LINES)


@pytest.fixture
def begun(monkeypatch):
    """Names of the streams of every micro-batch that has been folded, as it was."""
    seen: list[list[str]] = []
    begin = MicroBatch.begin

    def watched(self, items):
        begin(self, items)
        seen.append([item.unique_id for item in items])

    monkeypatch.setattr(MicroBatch, "begin", watched)
    return seen


@pytest.fixture
def pairs(settings, any_store_url):
    """A service whose micro-batches have two streams, with streams a to d at hour 0, on either kind of store."""
    settings = settings.model_copy(update={"store": any_store_url, "max_batch": 2})
    with LocalClient(create_app(settings)) as client:
        for name in "abcd":
            client.put(f"/v1/streams/{name}", json=history([5.0]))
        yield client


def after_commits(client, monkeypatch, *then):
    """Call these, one after each of the next commits, before the engine learns of it."""
    commit, calls = client.service.store.commit, iter(then)

    def watched(*asked):
        records = commit(*asked)
        next(calls, lambda: None)()
        return records

    replace_commit(monkeypatch, client.service.store, watched)


def assert_follows_log(client, forecaster, names):
    """What is served of streams is made of their logs."""
    store = client.service.store
    logs = {record.unique_id: dict(store.log(record.id)) for record in store.page("", 1000)}
    expected = forecaster.forecast(recompute(forecaster, [logs[name] for name in names]))
    for name, quantiles in zip(names, expected, strict=True):
        found = client.get(f"/v1/streams/{name}/forecast").json()
        np.testing.assert_allclose(np.array(list(found["quantiles"].values())).T, quantiles, rtol=1e-5)
    return logs


def test_other_streams_are_folded_while_the_disk_works(pairs, begun, monkeypatch, tiny_forecaster):
    begun.clear()
    after_commits(pairs, monkeypatch, lambda: until(lambda: begun == [["a", "b"], ["c", "d"]]))
    assert bulk(pairs, [(name, 1, 6.0) for name in "abcd"]).json()["counts"] == {"accepted": 4}
    assert_follows_log(pairs, tiny_forecaster, "abcd")


def test_streams_whose_micro_batch_is_under_way_give_no_place_to_those_of_the_next(
    settings, any_store_url, begun, monkeypatch, tiny_forecaster
):
    """They are the longest idle but for those that leave, and a few more leave than must."""
    settings = settings.model_copy(update={"store": any_store_url, "max_batch": 5, "max_resident": 10})
    first, idle, second = ([f"{kind}{i}" for i in range(5)] for kind in ("first", "idle", "second"))
    with LocalClient(create_app(settings)) as client:
        for name in (*second, *idle, *first):
            client.put(f"/v1/streams/{name}", json=history([5.0]))
        begun.clear()
        after_commits(client, monkeypatch, lambda: until(lambda: begun == [first, second]))
        # The second ones change nothing: a state that was written over would stay so.
        reply = bulk(client, [*((name, 1, 6.0) for name in first), *((name, 0, 5.0) for name in second)])
        assert reply.json()["counts"] == {"accepted": 5, "duplicate": 5}
        assert_follows_log(client, tiny_forecaster, [*second, *first])


def test_replies_leave_when_they_are_durable_whatever_is_folded_then(pairs, monkeypatch):
    """One micro-batch is durable while the next one is still being folded."""
    folding, go_on, append = threading.Event(), threading.Event(), MicroBatch._append

    def slowly(self, plan):
        if any(step.item.unique_id == "c" for step in plan.appends):
            folding.set()
            assert go_on.wait(30)
        return append(self, plan)

    monkeypatch.setattr(MicroBatch, "_append", slowly)
    after_commits(pairs, monkeypatch, lambda: folding.wait(30))
    engine, settled = pairs.service.engine, []
    deliver = engine._deliver
    monkeypatch.setattr(
        engine, "_deliver", lambda results: settled.append([i.unique_id for i in results]) or deliver(results)
    )
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(bulk, pairs, [(name, 1, 6.0) for name in "abcd"])
        until(lambda: settled == [["a", "b"]])
        assert not go_on.is_set()
        go_on.set()
        assert reply.result(30).json()["counts"] == {"accepted": 4}
    assert settled == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("failure", "kept"),
    [
        (StaleStreams(["a", "b"]), None),
        (OperationalError("", {}, Exception("full")), False),
        (UnknownOutcome("?"), True),
    ],
)
def test_a_commit_that_fails_takes_nothing_with_it(pairs, begun, monkeypatch, tiny_forecaster, failure, kept):
    """Whether it was undone, is to be tried again, or nobody knows; what was folded beside it is its own affair."""
    commit, failing = pairs.service.store.commit, iter([True])
    begun.clear()

    def unreliable(*asked):
        if not next(failing, False):
            return commit(*asked)
        until(lambda: len(begun) == 2)
        if kept:
            commit(*asked)
        raise failure

    replace_commit(monkeypatch, pairs.service.store, unreliable)
    reply = bulk(pairs, [(name, 1, 6.0) for name in "abcd"])
    assert reply.status_code == (200 if kept is None else 503)
    logs = assert_follows_log(pairs, tiny_forecaster, "abcd")
    assert [BASE + 1 in logs[name] for name in "abcd"] == [kept is not False] * 2 + [True] * 2
    again = bulk(pairs, [(name, 1, 6.0) for name in "abcd"]).json()["counts"]
    assert again == ({"accepted": 2, "duplicate": 2} if kept is False else {"duplicate": 4})


def test_memory_that_fails_to_follow_is_made_anew_from_the_log(pairs, begun, monkeypatch, tiny_forecaster):
    remember, failing = MicroBatch._remember, iter([True])

    def unreliable(self, *what):
        if next(failing, False):
            raise RuntimeError("no memory")
        remember(self, *what)

    begun.clear()
    after_commits(pairs, monkeypatch, lambda: until(lambda: len(begun) == 2))
    monkeypatch.setattr(MicroBatch, "_remember", unreliable)
    assert bulk(pairs, [(name, 1, 6.0) for name in "abcd"]).json()["counts"] == {"accepted": 4}
    assert pairs.get("/v1/streams/a").json()["version"] == 2
    assert_follows_log(pairs, tiny_forecaster, "abcd")


def test_what_others_wrote_meanwhile_is_known(pairs, begun, monkeypatch, settings):
    """Also where nothing would have been written: a gap that was too long when the rows came is none any more."""
    other = LocalClient(create_app(settings.model_copy(update={"store": str(pairs.service.settings.store)})))

    def write():
        until(lambda: len(begun) == 2)
        other.post("/v1/streams/d/observations", json=observations((9, 7.0))).raise_for_status()

    with other:
        other.get("/v1/streams/d")
        begun.clear()
        after_commits(pairs, monkeypatch, write)
        reply = bulk(pairs, [("a", 1, 6.0), ("b", 1, 6.0), ("c", 1, 6.0), ("d", 15, 6.0)]).json()
        # A server was asked before the other wrote; SQLite tells no sooner than between two transactions.
        last = "accepted" if pairs.service.store.is_embedded else "gap_too_long"
        assert reply["verdicts"] == ["accepted", "accepted", "accepted", last]


def test_micro_batches_leave_nothing_to_the_garbage_collector(pairs, begun, monkeypatch):
    """Alone or beside each other; else it would stop all requests again and again."""
    made, init = [], MicroBatch.__init__

    def watched(self, *arguments, **options):
        made.append(weakref.ref(self))
        init(self, *arguments, **options)

    monkeypatch.setattr(MicroBatch, "__init__", watched)
    gc.disable()
    try:
        begun.clear()
        after_commits(pairs, monkeypatch, lambda: until(lambda: len(begun) == 2))
        assert bulk(pairs, [(name, 1, 6.0) for name in "abcd"]).json()["counts"] == {"accepted": 4}
        for hour in range(2, 5):
            pairs.post("/v1/streams/a/observations", json=observations((hour, 6.0))).raise_for_status()
            pairs.get("/v1/streams/a/forecast").raise_for_status()
        pairs.get("/v1/quality")  # between two micro-batches, so the last one has ended
        until(lambda: len([found for found in made if found() is not None]) <= 1)
        assert len(made) == 8
    finally:
        gc.enable()


def test_requests_at_random_with_commits_that_fail_and_another_process(
    settings, any_store_url, monkeypatch, tiny_forecaster
):
    """Few places in memory, streams in any order, bodies at once; log and states are those of what was acknowledged."""
    beside, tell = [], MicroBatch.tell
    monkeypatch.setattr(MicroBatch, "tell", lambda self, results: beside.append(1) or tell(self, results))
    chance, lock = random.Random(11), threading.Lock()
    names = [f"s{i}" for i in range(24)]
    tight = settings.model_copy(
        update={"store": any_store_url, "max_batch": 3, "max_resident": 9, "snapshot_every": 2, "max_gap_steps": 99}
    )

    def unreliable(commit):
        def committed(*asked):
            with lock:
                fate, pause = chance.random(), chance.random() / 100
            if fate < 0.04:
                raise StaleStreams(record.unique_id for record, _ in asked[0].streams)
            if fate < 0.08:
                raise OperationalError("", {}, Exception("full"))
            records = commit(*asked)
            time.sleep(pause)
            if fate < 0.12:
                raise UnknownOutcome("?")
            return records

        return committed

    def write(client: LocalClient, seed: int) -> None:
        own = random.Random(seed)
        for _ in range(12):
            rows = [(name, own.randint(1, 30), 0.0) for name in own.sample(names, 12)]
            rows = [(name, hour, float(3 + hour % 7)) for name, hour, _ in rows]
            while (reply := bulk(client, rows)).status_code == 503:
                pass
            assert set(reply.json()["counts"]) <= {"accepted", "late", "duplicate"}, reply.text
            with lock:
                acknowledged.update((name, BASE + hour) for name, hour, _ in rows)

    acknowledged: set[tuple[str, int]] = {(name, BASE) for name in names}
    with LocalClient(create_app(tight)) as one, LocalClient(create_app(tight)) as two:
        for name in names:
            one.put(f"/v1/streams/{name}", json=history([3.0 + 0])).raise_for_status()
        for client in (one, two):
            store, begin = client.service.store, client.service.store.begin
            replace_commit(monkeypatch, store, unreliable(store.commit))
            # Some of the short ones go the short way all the same.
            monkeypatch.setattr(
                store, "begin", lambda *asked, begin=begin: begin(*asked) if chance.random() < 0.5 else None
            )
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(write, client, seed) for seed, client in enumerate((one, two, one, two))]:
                done.result(120)
        monkeypatch.undo()
        assert len(beside) > 20
        for client in (one, two):
            logs = assert_follows_log(client, tiny_forecaster, names)
            assert len(client.service.engine._residents) <= 9
    assert {(name, step) for name, log in logs.items() for step in log} == acknowledged
