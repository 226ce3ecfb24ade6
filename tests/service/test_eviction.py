"""R26: far more streams than fit into memory; the cap holds, and a stream that left answers as if it had stayed."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import ExitStack, closing
from itertools import count

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.app import create_app
from service.engine import residents
from service.engine.residents import Residents
from service.settings import Settings
from tests.forecaster.kit import assert_same_state
from tests.service.kit import LocalClient, ds, history, observations, recompute

BASE = 473352
CAP = 6
LINES = {"content-type": "application/x-ndjson"}


def test_ten_times_more_streams_than_fit_answer_as_if_all_had_stayed(settings, tiny_forecaster):
    """Bulk and single observations, late ones among them, in an order that brings everyone back again and again."""
    names = [f"s{i}" for i in range(10 * CAP)]
    logs = {name: {0: 5.0} for name in names}
    chance = random.Random(1)
    tight = settings.model_copy(update={"max_resident": CAP, "snapshot_every": 4})
    with LocalClient(create_app(tight)) as client:
        engine = client.service.engine
        for name in names:
            client.put(f"/v1/streams/{name}", json=history([5.0]))
        for _ in range(12):
            lines = []
            for name in chance.sample(names, 15):
                hour = max(logs[name]) + chance.randint(1, 3)
                for step in {hour, max(hour - chance.randint(0, 2), 0)} - set(logs[name]):
                    logs[name][step] = round(chance.uniform(1, 9), 2)
                    lines.append({"unique_id": name, "ds": ds(step), "y": logs[name][step]})
            reply = client.post("/v1/observations", content="\n".join(map(json.dumps, lines)), headers=LINES)
            assert set(reply.json()["counts"]) <= {"accepted", "late"}, reply.text
            assert len(engine._residents) <= CAP
        found = {name: client.get(f"/v1/streams/{name}/forecast").json() for name in names}
        assert client.service.metrics.restored._value.get() > 10 * CAP

    expected = tiny_forecaster.forecast(
        recompute(tiny_forecaster, [{BASE + h: y for h, y in logs[name].items()} for name in names])
    )
    for name, quantiles in zip(names, expected, strict=True):
        np.testing.assert_allclose(np.array(list(found[name]["quantiles"].values())).T, quantiles, rtol=1e-5)


def test_the_longest_idle_leave_first(settings):
    tight = settings.model_copy(update={"max_resident": 3})
    with LocalClient(create_app(tight)) as client:
        for name in "abc":
            client.put(f"/v1/streams/{name}", json=history([5.0]))
        client.get("/v1/streams/a")
        client.put("/v1/streams/d", json=history([5.0]))
        client.get("/v1/streams/c")

        assert set(client.service.engine._residents._by_name) == {"a", "c", "d"}


def test_a_store_that_takes_no_snapshots_does_not_make_memory_grow(settings):
    """As when the disk is full: what can be read is still read, by way of older snapshots or the whole log."""
    tight = settings.model_copy(update={"max_resident": CAP, "snapshot_every": 1000})
    with LocalClient(create_app(tight)) as client:
        with closing(sqlite3.connect(settings.store.removeprefix("sqlite:///"))) as disk:
            disk.execute("CREATE TRIGGER full BEFORE INSERT ON snapshots BEGIN SELECT RAISE(ABORT, 'full'); END")
        for i in range(3 * CAP):
            assert client.put(f"/v1/streams/s{i}", json=history([5.0, 6.0])).status_code == 201
        assert len(client.service.engine._residents) <= CAP
        for i in range(3 * CAP):
            assert client.post(f"/v1/streams/s{i}/observations", json=observations((2, 7.0))).json()["accepted"] == 1
            assert client.get(f"/v1/streams/s{i}").json()["version"] == 2
        assert len(client.service.engine._residents) <= CAP
        assert client.service.metrics.restored._value.get() >= 3 * CAP
        with closing(sqlite3.connect(settings.store.removeprefix("sqlite:///"))) as disk:
            disk.execute("DROP TRIGGER full")


def test_a_store_that_fails_without_a_word_fails_no_micro_batch(settings, monkeypatch, caplog):
    tight = settings.model_copy(update={"max_resident": CAP, "snapshot_every": 1000})
    with LocalClient(create_app(tight)) as client:

        def fail(*_, **__):
            raise MemoryError

        monkeypatch.setattr(client.service.store, "save_snapshots", fail)
        for i in range(2 * CAP):
            assert client.put(f"/v1/streams/s{i}", json=history([5.0, 6.0])).status_code == 201
        assert "evicted without snapshots: MemoryError" in caplog.text
        assert "a micro-batch of" not in caplog.text


# -- the law: at no moment more than the cap, and nobody can tell ------------------------------------------------------

CAPS = (1, 3, 20)
NAMES = st.integers(0, 15)
REQUESTS = st.one_of(
    st.tuples(st.just("bulk"), st.lists(st.tuples(NAMES, st.integers(0, 8), st.floats(1, 99, width=16)), max_size=24)),
    st.tuples(st.just("forecasts"), st.lists(NAMES, min_size=1, max_size=16, unique=True)),
    st.tuples(st.just("put"), NAMES, st.lists(st.floats(1, 99, width=16), min_size=1, max_size=9)),
    st.tuples(st.just("get"), NAMES),
    st.tuples(st.just("delete"), NAMES),
)


@pytest.fixture(scope="module")
def clients(artifact, tmp_path_factory):
    """Services that differ in their caps; the roomiest has room for all of an example. Every admission is watched."""
    admit, runs = Residents.add, count()

    def watched(self, *arguments, **options):
        added = admit(self, *arguments, **options)
        assert len(self) <= self._capacity
        assert self.slab.capacity - len(self.slab._free) == len(self)
        return added

    folder = tmp_path_factory.mktemp("caps")
    with pytest.MonkeyPatch.context() as patched, ExitStack() as stack:
        patched.setattr(Residents, "add", watched)
        chosen = Settings(model=str(artifact), snapshot_every=4)
        by_cap = {}
        for cap in CAPS:
            own = {"store": f"sqlite:///{folder / f'{cap}.db'}", "max_resident": cap}
            by_cap[cap] = stack.enter_context(LocalClient(create_app(chosen.model_copy(update=own))))
        yield by_cap, runs


def ask(client: LocalClient, run: int, request):
    kind, given_, *more = request
    if kind == "bulk":
        rows = [{"unique_id": f"{run}-{name}", "ds": ds(hour), "y": y} for name, hour, y in given_]
        return client.post("/v1/observations", content="\n".join(map(json.dumps, rows)), headers=LINES)
    if kind == "forecasts":
        return client.post("/v1/forecasts", json={"streams": [f"{run}-{name}" for name in given_]})
    path = f"/v1/streams/{run}-{given_}"
    if kind == "put":
        return client.put(path, json=history(more[0]))
    return client.get(f"{path}/forecast") if kind == "get" else client.delete(path)


def alike(found, expected) -> bool:
    """Equal, up to rounding."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            key == "request_id" or alike(found[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return found == pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else found == expected


@hypothesis.settings(max_examples=12)
@given(st.lists(REQUESTS, max_size=20))
def test_no_request_brings_more_streams_into_memory_than_the_cap_and_none_can_tell_it(clients, requests):
    by_cap, runs = clients
    run = next(runs)
    start = [("put", name, [5.0, 6.0]) for name in range(0, 16, 2)]
    for request in (*start, *requests, ("forecasts", list(range(16)))):
        replies = {cap: ask(client, run, request) for cap, client in by_cap.items()}
        expected = replies.pop(max(CAPS))
        for cap, reply in replies.items():
            assert reply.status_code == expected.status_code < 500, (cap, request, reply.text)
            assert reply.headers.get("etag") == expected.headers.get("etag")
            assert reply.content == expected.content or alike(reply.json(), expected.json()), (cap, request)


def test_whole_logs_are_read_a_few_at_a_time(settings, any_store_url, challenger_artifact, challenger, monkeypatch):
    """As after a start under a model that has no snapshots yet; those that have them come all at once."""
    settings = settings.model_copy(update={"store": any_store_url})
    logs = {f"s{i}": {BASE + hour: float(3 + i + hour % 5) for hour in range(5)} for i in range(9)}
    lines = "\n".join(json.dumps({"unique_id": name, "ds": ds(5), "y": 4.0}) for name in logs)
    with LocalClient(create_app(settings)) as client:
        for name, log in logs.items():
            client.put(f"/v1/streams/{name}", json=history(list(log.values())))
    monkeypatch.setattr(residents, "MOST_STEPS", 10)
    with LocalClient(create_app(settings.model_copy(update={"model": str(challenger_artifact)}))) as client:
        engine, recover, read = client.service.engine, client.service.store.recover_some, []
        monkeypatch.setattr(client.service.store, "recover_some", lambda *a: read.append(recover(*a)) or read[-1])
        reply = client.post("/v1/observations", content=lines, headers=LINES).json()

        assert reply["counts"] == {"accepted": 9}
        assert [len(part) for part, _ in read] == [2, 2, 2, 2, 1]
        for log in logs.values():
            log[BASE + 5] = 4.0
        found = engine._residents.slab.gather([engine._residents.get(name).row for name in logs])
        assert_same_state(found, recompute(challenger, logs.values()))
    with LocalClient(create_app(settings.model_copy(update={"model": str(challenger_artifact)}))) as client:
        recover, read = client.service.store.recover_some, []
        monkeypatch.setattr(client.service.store, "recover_some", lambda *a: read.append(recover(*a)) or read[-1])
        client.post("/v1/observations", content=lines, headers=LINES)
        assert [len(part) for part, _ in read] == [9]
