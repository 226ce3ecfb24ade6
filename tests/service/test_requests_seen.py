"""Request ids and log lines: every reply says which request it answers, and so does the log."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from service.app import create_app
from service.logs import Answered, LogWriter
from tests.service.kit import LocalClient, history
from tests.service.processes import HTTP, Server

SEEN = Answered(0.5, "r-1", "GET", "/v1/streams", "/v1/streams", 200, 0.0123456789, None)


@pytest.fixture
def told(settings):
    """The application, and what it says of its requests."""
    entries: list[Answered] = []
    with LocalClient(create_app(settings, log=entries.append)) as running:
        yield running, entries


def test_every_reply_carries_the_clients_id_or_a_new_one(told):
    client, entries = told
    given = client.get("/v1/streams", headers={"x-request-id": "trace/7:a.b-c"})
    made = [client.get("/v1/streams"), client.get("/v1/streams", headers={"x-request-id": "bad\tid"})]

    assert given.headers["x-request-id"] == "trace/7:a.b-c"
    ids = [reply.headers["x-request-id"] for reply in made]
    assert len(set(ids)) == 2
    assert "bad\tid" not in ids
    assert [entry.request_id for entry in entries] == ["trace/7:a.b-c", *ids]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/streams/none", None),
        ("GET", "/nothing", None),
        ("PATCH", "/v1/streams/a", None),
        ("PUT", "/v1/streams/a", b"{"),
        ("PUT", "/v1/streams/a", b"x" * 70_000),
    ],
)
def test_a_problem_names_its_request(told, method, path, body):
    client, entries = told
    reply = client.request(method, path, content=body, headers={"x-request-id": "mine"})

    assert reply.status_code >= 400
    assert reply.json()["request_id"] == "mine"
    assert reply.headers.get_list("x-request-id") == ["mine"]
    assert (entries[-1].method, entries[-1].path, entries[-1].status) == (method, path, reply.status_code)


def test_a_line_per_request_and_per_record_in_order(capsys):
    stream = io.StringIO()
    writer = LogWriter(stream, "info", as_json=True)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    writer.open()
    try:
        writer.request(SEEN)
        logging.getLogger("service").info("hello %s", "there")
        logging.getLogger("elsewhere").info("nobody asked")
        try:
            raise ValueError("what")
        except ValueError:
            logging.getLogger("elsewhere").exception("went wrong")
        writer.request(SEEN._replace(key="me"))
        writer.close()
    finally:
        root.handlers[:], root.level = before
        logging.getLogger("service").setLevel(logging.NOTSET)
        logging.getLogger("uvicorn").setLevel(logging.NOTSET)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]

    assert lines[0] == {
        "time": "1970-01-01T00:00:00.500Z", "level": "info", "logger": "service.requests",
        "message": "GET /v1/streams 200", "request_id": "r-1", "method": "GET", "route": "/v1/streams",
        "path": "/v1/streams", "status": 200, "seconds": 0.012346,
    }  # fmt: skip
    assert [line["message"] for line in lines[1:]] == ["hello there", "went wrong", "GET /v1/streams 200"]
    assert "ValueError: what" in lines[2]["traceback"]
    assert lines[3]["key"] == "me"


def test_a_log_that_nobody_reads_costs_lines_and_never_a_request():
    class Stuck(io.StringIO):
        released = threading.Event()

        def writelines(self, lines):
            self.released.wait(60)
            super().writelines(lines)

    stream = Stuck()
    writer = LogWriter(stream, "info", as_json=False)
    writer._thread.start()
    for _ in range(50_000):
        writer.request(SEEN)
        writer._handler.emit(logging.LogRecord("service", logging.ERROR, __file__, 1, "failed", (), None))
    assert writer._queue.qsize() <= 40_000
    Stuck.released.set()
    writer.close()
    writer._thread.join(60)
    lines = stream.getvalue().splitlines()

    dropped = [line for line in lines if "were dropped" in line]
    assert len(dropped) == 1
    assert int(dropped[0].split(": ")[1].split()[0]) + len(lines) - 1 == 100_000
    assert sum("failed" in line for line in lines) > 20_000


def test_a_text_line_stays_one_line_whatever_the_path():
    stream = io.StringIO()
    writer = LogWriter(stream, "info", as_json=False)
    writer._thread.start()
    writer.request(SEEN._replace(path="/v1/streams/a\nforged status=200"))
    said = ("GET %s failed", ("/v1/streams/a\nforged status=200",))
    writer._handler.emit(logging.LogRecord("service", logging.ERROR, __file__, 1, *said, None))
    writer.close()

    assert stream.getvalue().count("\n") == 2


@pytest.mark.parametrize("switched_on", [True, False])
def test_the_service_writes_a_json_line_per_request_if_asked(template, artifact, tmp_path, switched_on):
    settings = {"FORECASTER_LOG_LEVEL": "info", "FORECASTER_LOG_FORMAT": "json"}
    settings["FORECASTER_ACCESS_LOG"] = str(switched_on)
    with Server(template, artifact, f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "log", **settings).start() as server:
        reply = HTTP.put(f"{server.url}/v1/streams/a", json=history([1.0]), headers={"x-request-id": "first"})
        assert reply.headers["x-request-id"] == "first"
        server.stop()
    lines = [json.loads(line) for line in server.log_text().splitlines()]

    mine = [line for line in lines if line.get("request_id") == "first"]
    assert [line["message"] for line in mine] == (["PUT /v1/streams/{unique_id} 201"] if switched_on else [])
    assert any("Uvicorn running" in line["message"] for line in lines)


def test_half_a_character_in_a_line_does_not_end_the_log():
    out = io.StringIO()
    writer = LogWriter(out, "info", as_json=True)
    writer.open()
    try:
        logging.getLogger("service.test").warning("a path of %s", "\udcff")
        logging.getLogger("service.test").warning("the next line")
    finally:
        writer.close()

    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == [
        "a path of \udcff",
        "the next line",
    ]
