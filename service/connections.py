"""Connections that no client can keep for nothing: uvicorn's HTTP protocol with bounds on time and memory.

uvicorn waits for a request for ever, takes heads of any size, and keeps a reply for a client that never reads. One look
per connection every few seconds finds who owes something for too long; a request that comes in one piece, as nearly all
do, pays for one comparison. Also, uvicorn sends a reply's head and body apart; here they go together, which spares both
sides a system call. It knows sockets and no routes. Invariant: nothing is cut off while it is our turn.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.problems import MEDIA_TYPE, Problem

__all__ = ["Bounds", "bounded_protocol"]

_LARGEST_HEAD = 65_536  # bytes
_LAST_CALL = 0.1  # seconds
_OVERHEAD = 10  # times the limit of a body that one request may send, chunk sizes, trailers and a refused body included


class Bounds(NamedTuple):
    """What a client may take.

    Attributes
    ----------
    head_seconds
        Until a request's head is complete, the first after connecting included.
    body_seconds
        From there until its body is.
    read_seconds
        During which a client takes nothing of a reply that waits for it.
    max_connections
        Open at a time.
    max_body_bytes
        Of a request.
    """

    head_seconds: float
    body_seconds: float
    read_seconds: float
    max_connections: int
    max_body_bytes: int


def bounded_protocol(bounds: Bounds) -> type[HttpToolsProtocol]:
    """The protocol with these bounds, to be given to uvicorn as its ``http`` option."""
    return type("BoundedProtocol", (_Bounded,), {"bounds": bounds})


class _Gathering:
    """A transport that sends what is written within one turn of the event loop in one go, at its end."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        """All else is the transport's."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold it until the turn ends."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """Send what is held, then close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._held and not self.is_closing():
            self._transport.writelines(self._held)
        self._held = []


class _Bounded(HttpToolsProtocol):
    bounds: Bounds

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watch: asyncio.TimerHandle | None = None
        self._owed: object = None  # what the client owed at the last look
        self._owed_since = 0.0
        self._last_call = False
        self._counted: object = None  # the request whose bytes are counted
        self._taken = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or say that there are too many."""
        super().connection_made(cast(asyncio.Transport, _Gathering(transport, self.loop)))
        if len(self.connections) > self.bounds.max_connections:
            self._close_with(
                Problem(503, "overloaded", "too many connections; try again", headers={"retry-after": "1"})
            )
            return
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching, and keep nothing alive: what one owes at first is oneself."""
        self._owed = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Begin the request, if it says once whom it is for (RFC 9112, section 3.2)."""
        hosts = 0
        for name, _ in self.headers:
            hosts += name == b"host"
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            self._close_with(Problem(400, "malformed-http", f"the request has {hosts} Host headers, expected one"))
            raise ValueError("Host")  # nothing after it is parsed
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse, and count the bytes of a request that does not come in one piece."""
        super().data_received(data)
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope or cycle.more_body:
            self._count(len(data))

    def _count(self, size: int) -> None:
        in_head = self.cycle is None or self.cycle.scope is not self.scope
        if self.scope is self._counted:
            self._taken += size
        else:
            # What came may have held the end of the request before, or whole requests.
            self._counted, self._taken = self.scope, 0
            if in_head and self.scope is not None:
                self._taken = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if in_head and self._taken > _LARGEST_HEAD:
            self._close_with(Problem(431, "head-too-large", f"the request's head is larger than {_LARGEST_HEAD} bytes"))
        elif self._taken > _LARGEST_HEAD + _OVERHEAD * self.bounds.max_body_bytes:
            self.transport.abort()

    def _look(self) -> None:
        """See whether the client still owes what it owed at the last look."""
        bounds, now = self.bounds, self.loop.time()
        owed, seconds = self._owes()
        if owed is not self._owed:
            self._owed, self._owed_since, self._last_call = owed, now, False
        elif owed is not None and now - self._owed_since >= seconds:
            if not self._last_call:
                # If it was us who stood still, what the client sent meanwhile is read before the next look.
                self._last_call = True
                self._watch = self.loop.call_later(_LAST_CALL, self._look)
                return
            if owed is self.flow:
                logging.getLogger("service").info("a client that reads nothing of its reply was cut off")
                self.transport.abort()
            else:
                self._close_with(Problem(408, "too-slow", f"the request was not complete within {seconds:g} s"))
            return
        pause = min(5.0, max(0.05, min(bounds.head_seconds, bounds.body_seconds, bounds.read_seconds) / 4))
        self._watch = self.loop.call_later(pause, self._look)

    def _owes(self) -> tuple[object, float]:
        """What the client has to do next, None if it is not its turn; and how long that may take."""
        if self.flow.write_paused:
            return self.flow, self.bounds.read_seconds
        cycle = self.cycle
        if self.scope is None:
            return self, self.bounds.head_seconds
        if cycle is None or cycle.scope is not self.scope:
            return self.scope, self.bounds.head_seconds
        if cycle.more_body:
            # Also of a request that was answered before its end.
            return cycle, self.bounds.body_seconds
        # One is at work, or between two of them uvicorn's own clock runs.
        return None, 0.0

    def _close_with(self, problem: Problem) -> None:
        """Say why, unless a reply to this request has begun, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.scope is not self.scope or not self.cycle.response_started:
            self.transport.write(_raw(problem))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed is a problem like any other."""
        self._close_with(Problem(400, "malformed-http", msg.rstrip(".").lower()))


def _raw(problem: Problem) -> bytes:
    body = problem.body()
    phrase = HTTPStatus(problem.status).phrase
    head = f"HTTP/1.1 {problem.status} {phrase}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
    extra = "".join(f"{name}: {value}\r\n" for name, value in problem.headers.items())
    return f"{head}{extra}connection: close\r\n\r\n".encode() + body
