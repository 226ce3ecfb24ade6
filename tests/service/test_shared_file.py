"""Several processes on one SQLite file: whatever one has acknowledged, the others know."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.errors import StaleStreams
from service.store import Changes, NewStream, Store, StreamRecord
from tests.service.kit import LocalClient, history, observations
from tests.service.processes import Server

PATH = "/v1/streams/a"
WRITES = f"{PATH}/observations"


def created(store: Store) -> StreamRecord:
    """A stream of one observation."""
    return store.commit(Changes(created=[NewStream(StreamRecord(0, "a", 0, 0, 1, 1, 0), None, [(0, 1.0)])]))[0]


def appended(record: StreamRecord) -> Changes:
    """One more observation of that stream."""
    after = record._replace(version=2, last_step=1, observations=2)
    return Changes(inserted=[(record.id, 1, 1.0)], streams=[(after, 1)])


def test_what_one_process_acknowledges_is_seen_by_reads_forecasts_and_preconditions_of_the_other(
    template, artifact, store_url, tmp_path
):
    """Real processes with no setting of their own; also after one was killed, and another began in its place."""
    values = [5.0, 6.0]
    with (
        Server(template, artifact, store_url, tmp_path / "1").start() as one,
        Server(template, artifact, store_url, tmp_path / "2").start() as two,
        httpx.Client(timeout=60) as client,
    ):
        client.put(one.url + PATH, json=history(values)).raise_for_status()

        def write(server: Server, **headers: str) -> httpx.Response:
            body = observations((len(values), float(len(values) % 7)), horizon=1)
            reply = client.post(server.url + WRITES, json=body, headers={"if-match": "*", **headers})
            if reply.status_code == 200:
                values.append(float(len(values) % 7))
            return reply

        def passes(writer: Server, reader: Server) -> None:
            for path in (PATH, f"{PATH}/forecast"):
                assert client.get(reader.url + path).status_code == 200  # it is in the reader's memory now
                acknowledged = write(writer).headers["etag"]
                found = [client.get(server.url + path) for server in (reader, writer)]
                assert {reply.headers["etag"] for reply in found} == {acknowledged}
            quantiles = [list(reply.json()["quantiles"].values()) for reply in found]
            np.testing.assert_allclose(*quantiles, rtol=1e-5)

            before, after = acknowledged, write(writer).headers["etag"]
            assert write(reader, **{"if-match": before}).status_code == 412
            assert write(reader, **{"if-match": after}).status_code == 200

        passes(one, two)
        passes(two, one)
        one.kill()
        one.start()
        passes(one, two)
        passes(two, one)
        store = Store.open(store_url)
        assert [y for _, y in store.log(store.page("", 1)[0].id)] == values
        store.close()


def test_streams_that_were_not_asked_for_when_another_wrote_are_looked_up_when_they_are(settings):
    """That somebody wrote is learnt once, and holds for every stream in memory."""
    names = [f"/v1/streams/s{i}" for i in range(4)]
    with LocalClient(create_app(settings)) as one, LocalClient(create_app(settings)) as two:
        for name in names:
            one.put(name, json=history([1.0, 2.0]))
            assert two.get(name).json()["version"] == 1
        for name in names:
            one.post(f"{name}/observations", json=observations((2, 3.0)))
        for name in names:  # one after the other, with writes of its own between
            assert two.get(name).json()["version"] == 2
            assert two.post(f"{name}/observations", json=observations((3, 4.0))).json()["version"] == 3
        one.delete(names[0])
        assert two.get(names[0]).status_code == 404
        one.put(names[0], json=history([9.0]))
        assert two.get(names[0]).json()["counts"]["observations"] == 1


def test_alone_on_a_file_nothing_is_looked_up(settings, monkeypatch):
    """Neither what serving writes nor its snapshots are taken for another's."""
    looked_up: list[int] = []
    versions = Store.versions
    monkeypatch.setattr(Store, "versions", lambda self, ids: looked_up.append(len(ids)) or versions(self, ids))
    with LocalClient(create_app(settings.model_copy(update={"snapshot_every": 1}))) as client:
        client.put(PATH, json=history([1.0]))
        for hour in range(1, 20):
            client.post(WRITES, json=observations((hour, 1.0)))
            assert client.get(PATH).json()["version"] == hour + 1
        assert client.service.metrics.snapshots._value.get() >= 19
        assert looked_up == []
        with LocalClient(create_app(settings)) as other:
            other.post(WRITES, json=observations((20, 1.0)))
        assert client.get(PATH).json()["version"] == 21
        assert looked_up


def test_a_moment_is_another_one_exactly_if_another_has_written(store_url):
    one, two = Store.open(store_url), Store.open(store_url)
    record = created(one)
    mine, others = one.moment(), two.moment()

    changes = appended(record)
    one.commit(changes)
    assert one.save_snapshots("key", {changes.streams[0][0]: b"state"}) == 1
    assert one.forget_replies(2**40, 9) == 0

    assert one.moment() == mine
    assert two.moment() != others
    assert two.moment() == two.moment()
    one.probe()  # not what serving writes
    assert one.moment() != mine
    one.close()
    two.close()


def test_a_moment_is_another_one_after_a_transaction_of_ones_own_was_undone(store_url):
    """What another wrote just before it is not lost in it."""
    one, two = Store.open(store_url), Store.open(store_url)
    record = created(one)
    mine = one.moment()
    changes = appended(record)
    two.commit(changes)
    with pytest.raises(Exception, match="changed by another process"):
        one.commit(changes)
    assert one.moment() != mine
    one.close()
    two.close()


def test_while_another_process_writes_a_transaction_is_not_begun_but_waited_for(store_url):
    store = Store.open(store_url)
    record = created(store)
    changes = appended(record)
    other = sqlite3.connect(store_url.removeprefix("sqlite:///"), check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    assert store.begin(changes) is None
    assert store.log(record.id) == [(0, 1.0)]

    with ThreadPoolExecutor(1) as writer:
        committed = writer.submit(store.commit, changes)
        with pytest.raises(TimeoutError):
            committed.result(timeout=0.2)
        other.rollback()
        committed.result()
    assert store.log(record.id)[-1] == (1, 1.0)
    other.close()
    store.close()


def test_a_stream_that_is_held_is_changed_by_nobody_else_until_the_transaction_ends(store_url):
    """A reply that tells of it is kept then, and must not outlive it."""
    one, two = Store.open(store_url), Store.open(store_url)
    record = created(one)
    transaction = one.begin(Changes(held=[(record.id, 1)]))

    assert two.begin(Changes(deleted=[record])) is None
    transaction.end([])
    two.begin(Changes(deleted=[record])).end([])
    with pytest.raises(StaleStreams):
        one.begin(Changes(held=[(record.id, 1)]))
    one.close()
    two.close()


def test_what_is_known_as_of_a_moment_is_written_only_if_nobody_has_written_since(store_url):
    one, two = Store.open(store_url), Store.open(store_url)
    record = created(one)
    moment = one.moment()
    two.commit(Changes(created=[NewStream(StreamRecord(0, "b", 0, 0, 1, 1, 0), None, [(0, 1.0)])]))
    changes = appended(record)

    with pytest.raises(StaleStreams):
        one.commit(changes, moment=moment)
    assert one.log(record.id) == [(0, 1.0)]
    one.commit(changes, moment=one.moment())
    assert one.log(record.id) == [(0, 1.0), (1, 1.0)]
    one.close()
    two.close()


def test_moments_may_be_asked_for_from_many_threads(store_url):
    store = Store.open(store_url)
    record = created(store)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(store.moment) for _ in range(200)]
        for step in range(1, 20):
            after = record._replace(version=step + 1, last_step=step, observations=step + 1)
            store.commit(Changes(inserted=[(record.id, step, 1.0)], streams=[(after, step)]))
        assert len({future.result() for future in asked}) == 1
    store.close()
