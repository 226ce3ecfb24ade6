"""Requests under an Idempotency-Key: answered once, and then with the same bytes, whatever happened in between."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import Future
from dataclasses import replace

import httpx
import pytest

from forecaster import CovariatesConfig
from service.app import create_app
from service.engine import engine
from service.errors import StaleStreams
from service.store import Changes, IdempotencyKey, NewStream, Store, StoredReply, StreamRecord
from tests.forecaster.kit import config_of, forecaster_of
from tests.service.kit import LocalClient, ds, history, observations
from tests.service.processes import HTTP, Server

PATH = "/v1/streams/a/observations"
BASE = 473352


@pytest.fixture
def stream(client):
    """A stream of ten hours."""
    assert client.put("/v1/streams/a", json=history([1.0] * 10)).status_code == 201
    return client


def post(client, pairs, key, path=PATH, **options):
    return client.post(path, json=observations(*pairs), headers={"idempotency-key": key}, **options)


def test_a_repeat_gets_the_reply_of_the_first_time(settings, any_store_url):
    with LocalClient(create_app(settings.model_copy(update={"store": any_store_url}))) as client:
        client.put("/v1/streams/a", json=history([1.0] * 10))
        first = post(client, [(10, 2.0)], '"one"')
        assert client.post(PATH, json=observations((11, 3.0))).json()["version"] == 3
        again = post(client, [(10, 2.0)], "one")

        assert (first.status_code, first.json()["accepted"], first.headers["etag"]) == (200, 1, '"2"')
        assert (again.status_code, again.content, again.headers["etag"]) == (200, first.content, '"2"')
        assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
        assert client.get("/v1/streams/a").json()["version"] == 3


def test_a_kept_reply_survives_a_restart_and_other_processes_know_it(settings):
    with LocalClient(create_app(settings)) as one, LocalClient(create_app(settings)) as other:
        one.put("/v1/streams/a", json=history([1.0] * 10))
        first = post(one, [(10, 2.0)], "one")
        assert post(other, [(10, 2.0)], "one").content == first.content
    with LocalClient(create_app(settings)) as later:
        assert post(later, [(10, 2.0)], "one").content == first.content


def test_two_processes_that_get_the_same_request_at_once_answer_with_one_reply(settings):
    with LocalClient(create_app(settings)) as one, LocalClient(create_app(settings)) as other:
        one.put("/v1/streams/a", json=history([1.0]))
        for hour in range(1, 9):
            replies = {}
            threads = [
                threading.Thread(target=lambda c=c: replies.update({c: post(c, [(hour, 2.0)], f"k{hour}")}))  # noqa: B023
                for c in (one, other)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert {reply.status_code for reply in replies.values()} == {200}
            assert len({reply.content for reply in replies.values()}) == 1
            assert replies[one].json()["accepted"] == 1


def test_the_key_of_another_request_is_refused_and_nothing_changes(stream):
    post(stream, [(10, 2.0)], "one")
    before = stream.get("/v1/streams/a").json()
    reply = post(stream, [(11, 2.0)], "one")

    assert (reply.status_code, reply.json()["type"]) == (422, "urn:forecaster:problem:key-reused")
    assert stream.get("/v1/streams/a").json() == before


def test_the_same_key_at_another_stream_is_another_request(stream):
    stream.put("/v1/streams/b", json=history([1.0] * 10))
    replies = [post(stream, [(10, 2.0)], "one", f"/v1/streams/{name}/observations").json() for name in "ab"]

    assert [(reply["unique_id"], reply["accepted"]) for reply in replies] == [("a", 1), ("b", 1)]


def test_a_refused_request_may_come_again_under_its_key(stream):
    assert post(stream, [(99, 2.0)], "one").status_code == 422
    assert post(stream, [(10, 2.0)], "one").json()["accepted"] == 1


def test_a_repeat_that_changes_nothing_has_its_reply_kept_too(stream):
    stream.post(PATH, json=observations((10, 2.0)))
    first = post(stream, [(10, 2.0)], "one")
    stream.post(PATH, json=observations((11, 2.0)))

    assert first.json()["duplicate"] == 1
    assert post(stream, [(10, 2.0)], "one").content == first.content


def test_a_repeat_with_a_precondition_that_the_first_one_used_up_is_answered(stream):
    headers = {"idempotency-key": "one", "if-match": '"1"'}
    replies = [stream.post(PATH, json=observations((10, 2.0)), headers=headers) for _ in range(2)]

    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].content == replies[1].content


def test_a_request_that_is_still_at_work_is_not_done_twice(stream):
    gate = threading.Event()
    stream.service.engine._queue.put(gate.wait)

    async def both():
        send = stream._client.post
        body, headers = observations((10, 2.0)), {"idempotency-key": "one"}
        first = asyncio.create_task(send(PATH, json=body, headers=headers))
        while not stream.service.at_work._names:
            await asyncio.sleep(0.001)
        second = await send(PATH, json=body, headers=headers)
        gate.set()
        return await first, second

    first, second = stream.call(both())

    assert (second.status_code, second.json()["type"]) == (409, "urn:forecaster:problem:still-running")
    assert second.headers["retry-after"] == "1"
    assert first.json()["accepted"] == 1
    assert post(stream, [(10, 2.0)], "one").content == first.content


def test_replies_are_kept_as_long_as_it_says_and_no_longer(stream, settings):
    post(stream, [(10, 2.0)], "one")
    engine = stream.service.store._engine
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE replies SET stored_at = stored_at - {24 * 3600 - 60}")
    assert post(stream, [(10, 2.0)], "one").json()["accepted"] == 1
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE replies SET stored_at = stored_at - 61")
    assert post(stream, [(11, 2.0)], "one").json()["accepted"] == 1  # the key is free again
    assert post(stream, [(11, 2.0)], "one").headers["idempotent-replayed"] == "true"
    assert stream.service.store.forget_replies(2**40, 9) == 1
    assert post(stream, [(11, 2.0)], "one").json()["duplicate"] == 1


def test_very_many_old_replies_are_forgotten_a_little_at_a_time(settings, any_store_url, monkeypatch):
    """One micro-batch after the other, as each waits for it."""
    monkeypatch.setattr(engine, "_FORGET_AT_ONCE", 2)
    with LocalClient(create_app(settings.model_copy(update={"store": any_store_url}))) as client:
        client.put("/v1/streams/a", json=history([1.0] * 10))
        for hour in range(10, 15):
            post(client, [(hour, 2.0)], f"key-{hour}")
        client.get("/v1/quality")  # answered after the last one's housekeeping, which is after its reply
        found = []
        for _ in range(5):
            with client.service.store._engine.begin() as connection:
                found.append(connection.exec_driver_sql("SELECT count(*) FROM replies").scalar())
                if len(found) == 1:
                    connection.exec_driver_sql("UPDATE replies SET stored_at = stored_at - 100000")
                    client.service.engine._forget_at = 0.0
            client.get("/v1/streams/a")
            client.get("/v1/quality")
        assert found == [5, 3, 1, 0, 0]


def test_a_stream_that_is_forgotten_takes_its_replies_along(stream):
    post(stream, [(10, 2.0)], "one")
    stream.delete("/v1/streams/a")
    assert post(stream, [(10, 2.0)], "one").status_code == 404
    stream.put("/v1/streams/a", json=history([1.0] * 10))

    assert "idempotent-replayed" not in post(stream, [(10, 2.0)], "one").headers


def test_a_stream_that_is_replaced_takes_its_replies_along(stream):
    """What they acknowledged is in the log no longer, so what comes again is taken again."""
    before = stream.get("/v1/streams/a").json()["version"]
    post(stream, [(10, 2.0)], "one")
    stream.put("/v1/streams/a", json=history([1.0] * 10))

    again = post(stream, [(10, 2.0)], "one")

    assert "idempotent-replayed" not in again.headers
    assert (again.json()["accepted"], again.json()["version"]) == (1, before + 3)
    assert stream.get("/v1/streams/a").json()["counts"]["observations"] == 11


def test_no_reply_is_kept_of_a_stream_that_another_process_has_just_deleted(settings, any_store_url, monkeypatch):
    """Not even where it tells of no change: in the stream's next life it would be given as an answer."""
    shared = settings.model_copy(update={"store": any_store_url})
    with LocalClient(create_app(shared)) as client, LocalClient(create_app(shared)) as other:
        client.put("/v1/streams/a", json=history([1.0] * 10))
        store, course = client.service.store, type(client.service.store)._course

        def deleted_meanwhile(*args, **options):
            monkeypatch.undo()
            assert other.delete("/v1/streams/a").status_code == 204
            return course(*args, **options)

        monkeypatch.setattr(type(store), "_course", deleted_meanwhile)
        assert post(client, [(9, 1.0)], "one").status_code == 404
        client.put("/v1/streams/a", json=history([1.0] * 9))

        again = post(client, [(9, 1.0)], "one")

    assert "idempotent-replayed" not in again.headers
    assert again.json()["accepted"] == 1


def test_of_two_processes_that_answered_one_request_the_first_keeps_its_reply(any_store_url):
    """The other one's transaction is undone, and it gives the first one's reply."""
    one, two = Store.open(any_store_url), Store.open(any_store_url)
    record = one.commit(Changes(created=[NewStream(StreamRecord(0, "a", 0, 0, 1, 1, 0), None, [(0, 1.0)])]))[0]
    reply = StoredReply("a", IdempotencyKey("once", b"digest"), 2, b"first", 1000)

    def commit(store: Store, step: int, version: int, reply: StoredReply) -> None:
        after = record._replace(last_step=step, version=version, observations=step + 1)
        done: Future[list[StoredReply]] = Future()
        done.set_result([reply])
        changes = Changes(inserted=[(record.id, step, 1.0)], streams=[(after, version - 1)])
        store.commit(changes, done, replies_since=900)

    commit(one, 1, 2, reply)
    with pytest.raises(StaleStreams):
        commit(two, 2, 3, reply._replace(body=b"second"))

    assert two.replies([("a", "once")], 0)["a", "once"].body == b"first"
    assert [step for step, _ in two.log(record.id)] == [0, 1]
    commit(two, 2, 3, reply._replace(key=IdempotencyKey("twice", b"digest")))
    one.close()
    two.close()


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "ä".encode(), "a\tb"])
def test_a_key_that_is_none_is_refused(stream, key):
    reply = post(stream, [(10, 2.0)], key)

    assert (reply.status_code, reply.json()["type"]) == (400, "urn:forecaster:problem:malformed-key")


@pytest.mark.parametrize("header", ["idempotency-key", "if-match", "if-none-match"])
def test_a_bulk_body_takes_no_key_and_no_precondition(stream, header):
    line = json.dumps({"unique_id": "a", "ds": ds(10), "y": 1.0})
    before = stream.get("/v1/streams/a").json()

    reply = stream.post("/v1/observations", content=line, headers={header: "*", "content-type": "application/x-ndjson"})

    assert reply.status_code == 422
    assert f"takes no {header.title()}" in reply.json()["detail"]
    assert stream.get("/v1/streams/a").json() == before


def test_a_replacement_takes_no_key_and_neither_does_a_deletion(stream):
    """It would be done again, and what others observed in between be lost."""
    before, headers = stream.get("/v1/streams/a").json(), {"idempotency-key": "one"}

    assert stream.put("/v1/streams/a", json={"ds": [ds(0)], "y": [1.0]}, headers=headers).status_code == 422
    assert stream.delete("/v1/streams/a", headers=headers).status_code == 422
    assert stream.get("/v1/streams/a").json() == before


# -- real processes ----------------------------------------------------------------------------------------------------


class Client:
    """Sends one observation after the other, each under a key of its own, until it has an answer."""

    def __init__(self, name):
        self.name = name
        self.replies: list[bytes] = []

    @property
    def hour(self):
        return len(self.replies) + 1

    async def write(self, url):
        try:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                while True:
                    reply = await self.send(client, self.hour)
                    if reply.status_code == 409:
                        continue  # the one before it, whose connection broke, is still at work
                    assert reply.status_code == 200, reply.text
                    # Never "duplicate": whoever was not told before is told now what became of it.
                    assert (reply.json()["accepted"], reply.json()["version"]) == (1, self.hour + 1)
                    self.replies.append(reply.content)
        except httpx.TransportError:
            pass

    async def send(self, client, hour):
        return await post(client, [(hour, float(hour))], f"key-{hour}", f"/v1/streams/{self.name}/observations")


def test_after_kills_and_cut_connections_every_request_has_been_done_once_and_is_answered(template, artifact, tmp_path):
    """Power cuts under load, and connections cut right after a request was sent."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    server = Server(template, artifact, url, tmp_path / "log").start()
    clients = [Client(f"c{number}") for number in range(6)]
    for client in clients:
        HTTP.put(f"{server.url}/v1/streams/{client.name}", json=history([0.0])).raise_for_status()

    async def write_until(count):
        tasks = [asyncio.create_task(client.write(server.url)) for client in clients]
        while sum(len(client.replies) for client in clients) < count:
            assert not all(task.done() for task in tasks), [task.exception() for task in tasks]
            await asyncio.sleep(0.001)
        server.kill()
        await asyncio.gather(*tasks)

    for count in (60, 150):
        asyncio.run(write_until(count))
        server.start()
    with server:
        for client in clients:
            # The very bytes that httpx will send again.
            body = httpx.Request("POST", "http://a", json=observations((client.hour, float(client.hour)))).content
            head = f"POST /v1/streams/{client.name}/observations HTTP/1.1\r\nhost: a\r\n"
            head += f"idempotency-key: key-{client.hour}\r\ncontent-length: {len(body)}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", server.port)) as cut:
                cut.sendall(head.encode() + body)

        async def ask_again(client):
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
                while (reply := await client.send(http, client.hour)).status_code == 409:
                    pass
                client.replies.append(reply.content)
                return [(await client.send(http, hour + 1)).content for hour in range(len(client.replies))]

        async def ask_all():
            return await asyncio.gather(*map(ask_again, clients))

        answers = asyncio.run(ask_all())

    store = Store.open(url)
    for client, replayed in zip(clients, answers, strict=True):
        assert replayed == client.replies
        assert json.loads(client.replies[-1])["accepted"] == 1
        log = store.recover([client.name], "none")[client.name].tail
        assert log == [(BASE + hour, float(hour)) for hour in range(len(client.replies) + 1)]
    store.close()


@pytest.mark.parametrize("other", [{"horizon": 2}, {"covariates": CovariatesConfig(known=("price",))}])
def test_a_repeat_gets_the_reply_of_the_first_time_from_a_model_that_would_refuse_it(settings, tmp_path, other):
    body = {**observations((10, 2.0)), "horizon": 20}
    headers = {"idempotency-key": "one"}
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history([1.0] * 10))
        first = client.post(PATH, json=body, headers=headers)
        assert first.status_code == 200, first.text
    forecaster_of(replace(config_of(), **other)).save(tmp_path / "other")
    with LocalClient(create_app(settings.model_copy(update={"model": str(tmp_path / "other")}))) as client:
        again = client.post(PATH, json=body, headers=headers)
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["etag"] == first.headers["etag"]
        changed = client.post(PATH, json={**body, **observations((11, 2.0))}, headers=headers)
        assert changed.status_code == 422


def test_a_reply_without_the_forecast_is_kept_as_any_other(settings, tmp_path):
    forecaster_of(replace(config_of(), covariates=CovariatesConfig(known=("price",)))).save(tmp_path / "other")
    with LocalClient(create_app(settings.model_copy(update={"model": str(tmp_path / "other")}))) as client:
        client.put("/v1/streams/a", json=history([1.0] * 10))
        new, key = observations((10, 3.0)), {"idempotency-key": "one"}
        refused, repeated = client.post(PATH, json=new, headers=key), client.post(PATH, json=new, headers=key)
        assert (refused.status_code, refused.json()["accepted"]) == (200, 1)
        assert refused.json()["no_forecast"]["status"] == 422
        assert (repeated.content, repeated.headers["idempotent-replayed"]) == (refused.content, "true")
