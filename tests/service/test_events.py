"""Server-sent events: every reader gets the newest forecast, none of them makes anybody wait."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time

import httpx
import pytest

from service.app import create_app
from service.models.served import ServedModel
from service.routes import events
from tests.forecaster.kit import config_of, forecaster_of
from tests.service.kit import LocalClient, history, observations, until
from tests.service.processes import Server

PATH = "/v1/streams/a"


class Reader:
    """A client of events, on the application's loop; its connection takes what it is told to take."""

    def __init__(self, client, path=f"{PATH}/events", query="", headers=()):
        self.client = client
        self.status, self.headers, self.ended = 0, {}, False
        self._text = ""
        self._scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers],
        }

    def __enter__(self):
        self.client.call(self._begin())
        return self

    def __exit__(self, *_):
        self.client.call(self._leave())

    async def _begin(self):
        self._gone = asyncio.Event()
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self.client.app(self._scope, self._receive, self._send))

    async def _leave(self):
        self._gone.set()
        await asyncio.wait_for(self._task, 50)

    async def _receive(self):
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        else:
            self._text += message["body"].decode()
            self.ended = not message.get("more_body")
        self._arrived.set()

    def next(self):
        """The next event, or None at the end."""
        return self.client.call(asyncio.wait_for(self._next(), 50))

    async def _next(self):
        while True:
            event, end, rest = self._text.partition("\n\n")
            if end:
                self._text = rest
                fields = dict(line.split(": ", 1) for line in event.splitlines())
                if "event" in fields:
                    return {**fields, "data": json.loads(fields["data"])}
            elif self.ended:
                return None
            else:
                self._arrived.clear()
                await self._arrived.wait()

    @property
    def text(self):
        """What has come and was not taken."""
        return self._text

    @property
    def silent(self):
        """Whether nothing has come that was not taken."""
        return "event" not in self._text


@pytest.fixture
def stream(client):
    assert client.put(PATH, json=history([float(10 + i % 4) for i in range(20)])).status_code == 201
    return client


def observe(client, hour, y=1.0):
    assert client.post(f"{PATH}/observations", json=observations((hour, y))).status_code == 200


def test_a_reader_gets_the_forecast_that_stands_and_each_new_one(stream):
    with Reader(stream, query="horizon=3&quantile_levels=0.5") as reader:
        for hour in range(20, 23):
            event, expected = reader.next(), stream.get(f"{PATH}/forecast?horizon=3&quantile_levels=0.5").json()
            assert (event["event"], event["data"]) == ("forecast", expected)
            assert event["id"] == f"{expected['version']}-{expected['model']['version']}"
            observe(stream, hour)
        assert (reader.status, reader.headers[b"content-type"]) == (200, b"text/event-stream")
        assert "forecaster_event_readers 1.0" in stream.get("/metrics").text
    assert "forecaster_event_readers 0.0" in stream.get("/metrics").text


def test_bulk_bodies_replacements_and_late_values_make_events_and_repeats_do_not(stream):
    line = b'{"unique_id":"a","ds":"2024-01-01T20:00:00","y":3.0}'
    with Reader(stream) as reader:
        versions = [reader.next()["data"]["version"]]
        for _ in range(2):  # the second time it changes nothing
            stream.post("/v1/observations", content=line, headers={"content-type": "application/x-ndjson"})
        versions.append(reader.next()["data"]["version"])
        stream.put(PATH, json=history([1.0, 2.0]))
        versions.append(reader.next()["data"]["version"])

    assert versions == [1, 2, 3]


def test_a_line_now_and_then_keeps_proxies_from_closing_a_quiet_connection(stream, monkeypatch):
    monkeypatch.setattr("service.routes.events._HEARTBEAT", 0.05)

    with Reader(stream) as reader:
        assert reader.next()["event"] == "forecast"
        until(lambda: reader.text.count(": nothing new\n\n") >= 2)
        assert reader.silent


def test_a_reader_that_comes_back_gets_an_event_only_if_something_is_new(stream):
    with Reader(stream) as reader:
        last = reader.next()["id"]
    with Reader(stream, headers=[("last-event-id", last)]) as reader:
        observe(stream, 20)
        assert reader.next()["data"]["version"] == 2
        assert reader.silent
    observe(stream, 21)
    with Reader(stream, headers=[("last-event-id", last)]) as reader:
        assert reader.next()["data"]["version"] == 3


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_new_model_makes_an_event(settings, challenger, monkeypatch, exclusive):
    """At once, not when the reader looks by itself, which it does the less often where nobody else writes."""
    monkeypatch.setattr(events, "_HEARTBEAT", 3600)
    monkeypatch.setattr(events, "_ELSEWHERE", 3600)
    with LocalClient(create_app(settings.model_copy(update={"exclusive_store": exclusive}))) as stream:
        assert stream.put(PATH, json=history([float(10 + i % 4) for i in range(20)])).status_code == 201
        with Reader(stream) as reader:
            assert reader.next()["data"]["model"]["name"] == "tiny"
            stream.service.switch.take(ServedModel("other", "2", challenger))
            event = reader.next()

    assert (event["id"], event["data"]["model"]) == ("1-2", {"name": "other", "version": "2"})


def test_a_new_model_that_cannot_answer_ends_the_events_and_says_why_to_who_comes_back(stream):
    shorter = ServedModel("shorter", "2", forecaster_of(config_of().with_overrides({"horizon": 2}), 1))
    with Reader(stream, query="horizon=24") as reader:
        assert len(reader.next()["data"]["ds"]) == 24
        stream.service.engine.swap(shorter).result(60)
        observe(stream, 20)
        assert reader.next() is None
    with Reader(stream, query="horizon=24") as reader:
        stream.call(asyncio.wait_for(reader._task, 50))
        assert reader.status == 422


def test_a_stream_that_is_forgotten_ends_its_events(stream):
    with Reader(stream) as reader:
        reader.next()
        stream.delete(PATH)
        assert reader.next()["event"] == "deleted"
        assert reader.next() is None


def test_a_stream_without_a_forecast_has_events_once_it_has_one(client):
    client.put(PATH, json=history([1.0]))
    with Reader(client) as reader:
        assert reader.next()["data"]["version"] == 1


def test_what_another_process_commits_makes_events_too(settings):
    with LocalClient(create_app(settings)) as one, LocalClient(create_app(settings)) as other:
        one.put(PATH, json=history([1.0] * 5))
        with Reader(other) as reader:
            assert reader.next()["data"]["version"] == 1
            observe(one, 5)
            assert reader.next()["data"]["version"] == 2


@pytest.mark.parametrize(
    ("path", "query", "headers", "status"),
    [
        ("/v1/streams/nobody/events", "", (), 404),
        (f"{PATH}/events", "horizon=0", (), 422),
        (f"{PATH}/events", "num_samples=3", (), 422),
        (f"{PATH}/events", "quantile_levels=0.0001", (), 422),
        (f"{PATH}/events", "", [("accept", "application/json")], 406),
    ],
)
def test_events_that_cannot_be_given_are_refused_as_anything_else(stream, path, query, headers, status):
    with Reader(stream, path, query, headers) as reader:
        stream.call(asyncio.wait_for(reader._task, 50))

        assert (reader.status, reader.headers[b"content-type"]) == (status, b"application/problem+json")


def test_there_are_only_so_many_readers(settings):
    with LocalClient(create_app(settings.model_copy(update={"max_event_readers": 1}))) as client:
        client.put(PATH, json=history([1.0] * 5))
        with Reader(client) as first:
            first.next()
            with Reader(client) as second:
                client.call(asyncio.wait_for(second._task, 50))
                assert (second.status, second.headers[b"retry-after"]) == (503, b"1")


def test_however_many_readers_come_at_once(settings):
    with LocalClient(create_app(settings.model_copy(update={"max_event_readers": 3}))) as client:
        client.put(PATH, json=history([1.0] * 5))
        readers = [Reader(client) for _ in range(20)]

        async def begin():
            for reader in readers:
                await reader._begin()
            await asyncio.gather(*(reader._arrived.wait() for reader in readers))

        client.call(begin())
        assert sorted(reader.status for reader in readers) == [200] * 3 + [503] * 17
        for reader in readers:
            client.call(reader._leave())


def test_a_slow_reader_misses_what_was_superseded_and_nobody_waits_for_it(stream):
    with SlowReader(stream) as reader:
        assert reader.next()["data"]["version"] == 1
        reader.hold()
        for hour in range(20, 30):
            observe(stream, hour)
        reader.release()
        versions = [reader.next()["data"]["version"]]
        while versions[-1] < 11:
            versions.append(reader.next()["data"]["version"])

    assert versions == sorted(set(versions))
    assert len(versions) <= 3


class SlowReader(Reader):
    """Takes nothing while it is held."""

    async def _begin(self):
        self._free = asyncio.Event()
        self._free.set()
        await super()._begin()

    async def _send(self, message):
        await self._free.wait()
        await super()._send(message)

    def hold(self):
        self.client._loop.call_soon_threadsafe(self._free.clear)
        self.client.call(asyncio.sleep(0))

    def release(self):
        self.client._loop.call_soon_threadsafe(self._free.set)


def test_readers_that_never_read_are_cut_off_and_the_others_are_told_when_the_service_leaves(
    template, artifact, tmp_path
):
    """A real process: kernel buffers full, writers never wait; SIGTERM ends the events of the others."""
    server = Server(template, artifact, f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "log", read_seconds="1").start()
    levels = ",".join(f"0.{i:03d}" for i in range(50, 950, 10))
    with server, httpx.Client(base_url=server.url, timeout=30) as client, socket.socket() as deaf:
        client.put(PATH, json=history([1.0] * 20)).raise_for_status()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        query = f"horizon=24&quantile_levels={levels}"
        deaf.sendall(f"GET {PATH}/events?{query} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        hour, end = 20, time.monotonic() + 60
        while "forecaster_event_readers 1.0" not in client.get("/metrics").text:
            assert time.monotonic() < end
        while "forecaster_event_readers 0.0" not in client.get("/metrics").text:
            for _ in range(20):
                observe(client, hour)
                hour += 1
            assert time.monotonic() < end, "never cut off"

        with client.stream("GET", f"{PATH}/events") as reply:
            lines = reply.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            server.process.send_signal(signal.SIGTERM)
            assert not any(line.startswith("data:") for line in lines)  # and the reply has an end
        assert server.wait() == 0
