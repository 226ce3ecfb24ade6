"""The front door: one thin ASGI layer that bounds, routes, admits, answers and counts every request of every model.

FastAPI describes the routes (OpenAPI, docs) and answers what none of them takes. Its own chain of layers and its
resolution of dependencies cost several times a request's share of a micro-batch, and the endpoints here need neither:
they read bodies and write replies by themselves. Invariants: no more than the limit of a body is ever held in memory,
and of all bodies that come in parts or packed no more than that of a few; where API keys are needed, nothing of a body
is read before the request's key is admitted, and where none is, nothing of what a page of another origin sends, and
nothing for a name that is not known to be this machine's; whatever an endpoint raises becomes a problem. Below its
prefix a named model has the same routes as the one at the root.
"""

from __future__ import annotations

import re
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from itertools import count
from secrets import token_hex
from threading import Lock
from time import perf_counter, time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.coding import pack, unpack
from service.errors import let_go
from service.logs import Answered
from service.naming import PREFIX, ROOT
from service.negotiation import header_of
from service.origins import FETCH_SITE, HOST, ORIGIN, check_host, check_origin
from service.problems import MEDIA_TYPE, Problem, explained, nothing_there, overloaded, problem_response, unavailable

__all__ = ["AT_ROOT", "KEY_SCHEME", "Front", "TooLarge", "scope_of"]

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]

KEY_SCHEME = "key"
"""Name of the API key's scheme in OpenAPI."""
AT_ROOT: dict[str, Any] = {"servers": [{"url": "/"}]}
"""OpenAPI description, which the front door obeys, of a route of the whole process, which is not below prefixes."""

_BODIES = 16  # of the largest size, held at a time; what comes in one piece does not count, what it unpacks to does
_CONTENT_LENGTH = b"content-length"
_AUTHORIZATION = b"authorization"
_REQUEST_ID = b"x-request-id"
_CONTENT_ENCODING = b"content-encoding"
_READ_HERE = frozenset((_CONTENT_LENGTH, _AUTHORIZATION, _REQUEST_ID, _CONTENT_ENCODING, FETCH_SITE, HOST, ORIGIN))
_SAFE = frozenset(("GET", "HEAD"))
_USABLE_ID = re.compile(rb"[\w.:/+=@-]{1,128}").fullmatch


class Front:
    """Answers by the endpoints of `app`'s routes; what no route takes goes on to `rest`.

    Parameters
    ----------
    app
        Has its routes; they are tried in order.
    rest
        FastAPI's own layers.
    limit
        Larger bodies, declared or real, packed or unpacked, are refused before anything parses them.
    pack_from
        Replies of so many bytes are packed for those who accept that.
    log
        Told of every request; None: nobody wants to know.
    allowed
        Host names that are answered without API keys, see `origins.check_host`.
    """

    def __init__(
        self,
        app: FastAPI,
        rest: ASGIApp,
        limit: int,
        pack_from: int,
        log: Callable[[Answered], None] | None,
        allowed: frozenset[str],
    ) -> None:
        self._app = app
        self._rest = rest
        self._limit = limit
        self._room = _Room(_BODIES * limit)
        self._pack_from = pack_from
        self._log = log
        self._allowed = allowed
        self._routes = [
            (method, route.path_regex.match, route, scope_of(route, method))
            for route in app.routes
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        ]
        self._numbers = count(1)
        self._process = token_hex(6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        started = perf_counter()
        method, path = scope["method"], scope["path"]
        heads = {name: value for name, value in scope["headers"] if name in _READ_HERE}
        name = heads.get(_REQUEST_ID)
        if name is None or not _USABLE_ID(name):
            name = b"%s-%x" % (self._process.encode(), next(self._numbers))
        request_id = name.decode()
        scope["request_id"] = request_id
        template, status, key = "none", 500, None
        host = scope["host"] = self._app.state.host
        named = None
        if path.startswith(PREFIX):
            named, path = _split(path)
        hosted = scope["hosted"] = host.hosted.get(named)
        span = None if host.tracing is None else host.tracing.begin(method, scope["headers"], started)
        call = _Call(scope, receive, self._limit, self._room, heads.get(_CONTENT_ENCODING, b"").decode("latin-1"))

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_REQUEST_ID, name)]
            await send(message)

        try:
            if _CONTENT_LENGTH in heads and method not in ("GET", "HEAD") and self._too_much(heads[_CONTENT_LENGTH]):
                await self._refuse(receive, watched, request_id)
                return
            route, needed = self._route(scope, "GET" if method == "HEAD" else method, path)
            others = [] if route is not None else self._methods(path, named)
            if route is None and named is None and not others:
                await self._rest(scope, receive, watched)
                return
            try:
                if route is None or (named is not None and _is_at_root(route)):
                    raise nothing_there(method, scope["path"], others)
                if hosted is not None or named is None:
                    template = route.path_format
                keys = host.keys
                if keys is None:
                    check_host(heads.get(HOST), self._allowed)
                if keys is not None and needed is not None:
                    asked = None if _is_at_root(route) else ROOT if named is None else named
                    key = keys.admit(heads.get(_AUTHORIZATION), needed, asked, started).name
                elif method not in _SAFE and (FETCH_SITE in heads or ORIGIN in heads):
                    check_origin(heads)
                if hosted is None and named is not None:
                    raise host.unknown(named)
                endpoint: Endpoint = route.endpoint
                response = await endpoint(call)
            except ClientDisconnect:
                status = 499  # nobody is there to read it; the metrics tell it from our own failures
                return
            except TooLarge:
                # Raised while the body was read, hence before any reply began.
                await self._refuse(receive, watched, request_id)
                return
            except Exception as error:
                response = problem_response(explained(error, method, scope["path"]), request_id)
                let_go(error)
            status = response.status_code
            if len(getattr(response, "body", b"")) >= self._pack_from:
                await pack(response, header_of(scope, b"accept-encoding"))
            if method == "HEAD":
                response = _head_of(response)
            response.raw_headers.append((_REQUEST_ID, name))
            await response(scope, receive, send)
        finally:
            call.let_go()
            seconds = perf_counter() - started
            (host.requests if hosted is None else hosted.metrics).request(method, template, status, seconds)
            if named is not None and template != "none":
                template = PREFIX + named + template
            if span is not None:
                host.tracing.end(span, method, template, status, request_id)
            if self._log is not None:
                self._log(Answered(time(), request_id, method, template, scope["path"], status, seconds, key))

    def _route(self, scope: Scope, method: str, path: str) -> tuple[APIRoute | None, str | None]:
        for accepted, match, route, needed in self._routes:
            if accepted == method and (found := match(path)):
                scope["route"], scope["path_params"] = route, found.groupdict()
                return route, needed
        return None, None

    def _methods(self, path: str, named: str | None) -> list[str]:
        """What can be done there, by the model at the root or a named one."""
        routes = (route for route in self._routes if named is None or not _is_at_root(route[2]))
        found = {method for method, match, _, _ in routes if match(path) is not None}
        return sorted(found | {"HEAD"} if "GET" in found else found)

    def _too_much(self, declared: bytes) -> bool:
        return not declared.isdigit() or len(declared) > 19 or int(declared) > self._limit

    async def _refuse(self, receive: Receive, send: Send, request_id: str) -> None:
        problem = Problem(413, "too-large", f"the body is larger than {self._limit} bytes; send it in parts")
        body = problem.body(request_id)
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (_CONTENT_LENGTH, str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        # Closing at once would reset the connection of a client that still sends, and lose the reply it should read.
        drained = 0
        while drained < 8 * self._limit:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                break
            drained += len(message.get("body", b""))
        await send({"type": "http.response.body", "body": b""})


class _Room:
    """What is left, in bytes, for bodies that are being received, unpacked or answered."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.lock = Lock()  # bodies are unpacked in threads


class _Call(Request):
    """A request whose body is bounded and usually whole in its first message."""

    def __init__(self, scope: Scope, receive: Receive, limit: int, room: _Room, coding: str) -> None:
        super().__init__(scope, receive)
        self._held: int | None = 0  # None: it is over
        self._limit = limit
        self._room = room
        self._coding = coding

    def hold(self, size: int) -> None:
        """Take so many bytes of the room, until the request is over.

        Raises
        ------
        Problem
            503 if there are no more, or nobody waits for the answer any longer.
        """
        with self._room.lock:
            if self._held is None or self._room.left < size:
                raise overloaded()
            self._room.left -= size
            self._held += size

    def let_go(self) -> None:
        """Give back what was held: the request is over."""
        with self._room.lock:
            self._room.left += self._held or 0
            self._held = None

    async def body(self) -> bytes:
        """The whole body, unpacked.

        Raises
        ------
        ClientDisconnect
            The client has gone before it was complete.
        Problem
            It cannot be unpacked, or not within the limit; 503 if too much of others is held, or the service ends.
        """
        packed = await self._packed_body()
        return await unpack(packed, self._coding, self._limit, self.hold) if self._coding else packed

    async def _packed_body(self) -> bytes:
        parts = bytearray()
        while True:
            try:
                message = await self._receive()
            except CancelledError:  # by the server, at the end of its time to drain
                raise unavailable("the service ends, and the request is not complete") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body: bytes = message.get("body", b"")
            if len(parts) + len(body) > self._limit:
                raise TooLarge
            if not message.get("more_body") and not parts:
                return body
            parts += body
            if not message.get("more_body"):
                return bytes(parts)
            self.hold(len(body))


def _head_of(response: Response) -> Response:
    """What HEAD gets: everything but the body."""
    found = Response(status_code=response.status_code)
    found.raw_headers = response.raw_headers
    return found


def _split(path: str) -> tuple[str | None, str]:
    """A model's name and a path of its own; None and the same path if none is named."""
    name, slash, rest = path[len(PREFIX) :].partition("/")
    return (name, slash + rest) if slash else (None, path)


def _is_at_root(route: APIRoute) -> bool:
    return "servers" in (route.openapi_extra or {})


def scope_of(route: APIRoute, method: str) -> str | None:
    """The scope that a route needs of a key: as its OpenAPI security says, else by method; None: no key is needed."""
    security = (route.openapi_extra or {}).get("security")
    if security is None:
        return "read" if method in ("GET", "HEAD") else "write"
    return str(security[0][KEY_SCHEME][0]) if security else None


class TooLarge(Exception):
    """The real body is larger than the limit."""
