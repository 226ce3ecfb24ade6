"""Slow, greedy and broken clients on real sockets: cut off in time, told why, and nobody else notices."""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from service.connections import Bounds, bounded_protocol
from tests.service.kit import ROOT, history, observations, until
from tests.service.processes import HTTP, Server, Template

MOST = 60  # connections
HEAD = b"POST /v1/forecasts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@contextmanager
def serving(template: Template, artifact: Path, folder: Path, **bounds: str) -> Iterator[Server]:
    """A server with a stream."""
    with Server(template, artifact, f"sqlite:///{folder / 'log.db'}", folder / "log", **bounds).start() as running:
        until(lambda: HTTP.put(f"{running.url}/v1/streams/a", json=history([1.0, 2.0])).is_success)
        yield running


@pytest.fixture(scope="module")
def hasty(template, artifact, tmp_path_factory):
    """One that waits for nobody."""
    bounds = {"head_seconds": "1.5", "body_seconds": "1.5", "read_seconds": "1.5"}
    with serving(template, artifact, tmp_path_factory.mktemp("hasty"), **bounds) as running:
        yield running


@pytest.fixture(scope="module")
def server(template, artifact, tmp_path_factory):
    """One that waits as long as usual: this machine may be slow too."""
    bounds = {"max_connections": str(MOST), "max_body_bytes": "65536"}
    with serving(template, artifact, tmp_path_factory.mktemp("server"), **bounds) as running:
        yield running


def connect(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


def problem(reply: bytes) -> dict:
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head, reply
    found = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {found['status']} ".encode())
    return found


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/fore",
        HEAD,
        HEAD + b"content-length: 5000\r\n\r\n" + b'{"series":',
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{}",
    ],
    ids=["nothing", "half a line", "half a head", "a false content-length", "half a chunk"],
)
def test_who_does_not_finish_a_request_is_told_and_cut_off(hasty, sent):
    with connect(hasty) as connection:
        connection.sendall(sent)
        found = problem(everything(connection))

    assert (found["status"], found["type"]) == (408, "urn:forecaster:problem:too-slow")
    assert "not complete within" in found["detail"]


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_drop_at_a_time_is_no_progress(hasty, part):
    """What counts is the whole request, not that something comes now and then."""
    line = HEAD if part == "head" else HEAD + b"content-length: 5000\r\n\r\n"
    started = time.monotonic()
    with connect(hasty) as connection:
        connection.sendall(line)
        connection.settimeout(0.1)
        reply = b""
        while not reply and time.monotonic() < started + 60:
            try:
                connection.sendall(b"x")
                reply = connection.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break

    assert reply == b"" or problem(reply)["status"] == 408
    assert time.monotonic() < started + 60


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"x" * 70_000, 431),
        (HEAD + b"".join(b"x-%d: y\r\n" % i for i in range(9000)), 431),
        (b"what is this\r\n\r\n", 400),
        (HEAD + b"content-length: -1\r\n\r\n", 400),
        (HEAD + b"content-length: 5, 6\r\n\r\n", 400),
        (HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"content-length: 99999999999999999999\r\n\r\n", 400),
    ],
    ids=["long path", "many headers", "no HTTP", "negative", "two lengths", "length and chunks", "no number"],
)
def test_what_is_no_usable_request_is_one_problem(server, sent, status):
    with connect(server) as connection:
        connection.sendall(sent)
        found = problem(everything(connection))

    assert found["status"] == status


@pytest.mark.parametrize("told", [True, False])
def test_who_sends_too_much_may_send_on_and_still_reads_why_it_is_refused(server, told):
    """A connection that is closed with something unread is reset, and the reply with it."""
    part = b"x" * 32_768
    length = b"content-length: %d\r\n\r\n" % (8 * len(part)) if told else b"transfer-encoding: chunked\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(HEAD + length)
        for _ in range(8):
            time.sleep(0.02)
            connection.sendall(part if told else b"8000\r\n" + part + b"\r\n")
        if not told:
            connection.sendall(b"0\r\n\r\n")
        found = problem(everything(connection))

    assert (found["status"], found["type"]) == (413, "urn:forecaster:problem:too-large")


def test_a_length_that_is_too_small_leaves_rubbish_that_is_refused(server):
    body = json.dumps(observations((5, 1.0))).encode()
    head = b"POST /v1/streams/a/observations HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (len(body) - 4)
    with connect(server) as connection:
        connection.sendall(head + body)
        reply = everything(connection)

    assert reply.startswith(b"HTTP/1.1 400 ")
    assert HTTP.get(f"{server.url}/v1/streams/a").json()["version"] == 1


def test_who_never_reads_is_cut_off(hasty):
    """A reply that nobody takes must not be kept for ever."""
    with connect(hasty) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        requests = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 500
        connection.settimeout(25)  # the usual bound is 30
        cut_off = False
        while not cut_off:
            try:
                connection.sendall(requests)
            except TimeoutError:
                break
            except ConnectionError:
                cut_off = True

    assert cut_off


def test_too_many_connections_are_refused_and_the_next_one_is_welcome(server):
    crowd = [connect(server) for _ in range(MOST)]
    try:
        with connect(server) as one_more:
            found = problem(everything(one_more))
        assert (found["status"], found["type"]) == (503, "urn:forecaster:problem:overloaded")
    finally:
        for connection in crowd:
            connection.close()

    def let_in() -> bool:
        try:
            return HTTP.get(f"{server.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    until(let_in)


def test_ordinary_clients_keep_their_connections(hasty):
    """Idle for longer than any of the bounds, then used again."""
    with connect(hasty) as connection:
        for pause in (0.0, 3.0, 3.0):
            time.sleep(pause)
            connection.sendall(b"GET /v1/streams/a HTTP/1.1\r\nhost: x\r\n\r\n")
            reply = b""
            while not reply.endswith(b"}}"):
                reply += (part := connection.recv(65536))
                assert part, "the connection was closed"
            assert reply.startswith(b"HTTP/1.1 200 ")


def test_a_port_in_use_ends_the_process_with_a_failure():
    code = "import sys; from service import serving; serving.run(None, host='127.0.0.1', port=int(sys.argv[1]))"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = subprocess.run([sys.executable, "-c", code, str(taken.getsockname()[1])], cwd=ROOT, check=False)

    assert done.returncode == 1


def test_a_body_that_is_not_complete_when_the_service_ends_is_refused_in_one_line(template, artifact, tmp_path):
    with serving(template, artifact, tmp_path, drain_seconds="1") as server, connect(server) as slow:
        slow.sendall(HEAD + b"content-length: 1000\r\nexpect: 100-continue\r\n\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.1 100 ")  # the route waits for the body now
        slow.sendall(b"{")
        status, reply = server.stop(), everything(slow)

        assert status == 0
        assert reply.startswith(b"HTTP/1.1 503 ")
        assert b"the service ends, and the request is not complete" in reply
        assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("hosts", [0, 2])
def test_a_request_says_once_whom_it_is_for(server, hosts):
    """RFC 9112, section 3.2; nothing after it on the connection is done."""
    head = b"DELETE /v1/streams/a HTTP/1.1\r\n"
    with connect(server) as connection:
        connection.sendall(head + b"host: x\r\n" * hosts + b"\r\n" + head + b"host: x\r\n\r\n")
        assert f"{hosts} Host headers" in problem(everything(connection))["detail"]
    assert HTTP.get(f"{server.url}/v1/streams/a").is_success


def test_a_request_of_http_1_0_needs_no_host(server):
    with connect(server) as connection:
        connection.sendall(b"GET /v1/streams/a HTTP/1.0\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_has_ended_leaves_nothing_for_the_garbage_collector():
    bounds = Bounds(head_seconds=60, body_seconds=60, read_seconds=60, max_connections=99, max_body_bytes=4096)
    protocol = bounded_protocol(bounds)
    listener = socket.create_server(("127.0.0.1", 0))

    async def hello(scope, _receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    options = {"loop": "uvloop", "lifespan": "off", "log_config": None}
    server = uvicorn.Server(uvicorn.Config(hello, http=protocol, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()

    def left() -> list[object]:
        return [found for found in gc.get_objects() if type(found) is protocol]

    gc.disable()
    try:
        for asked in (b"", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTTP/1.0\r\nconnection: close\r\n\r\n"):
            for _ in range(5):
                with socket.create_connection(listener.getsockname(), timeout=60) as connection:
                    connection.sendall(asked)
                    assert not asked or connection.recv(99).startswith(b"HTTP/1.1 204")
        until(lambda: not left())
    finally:
        gc.enable()
        server.should_exit = True
        thread.join(60)
