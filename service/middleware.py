"""Two thin ASGI layers around the application: a limit on body size, and request metrics.

They know no route and parse nothing. Invariant: no more than the limit of a body is ever held in memory.
"""

from __future__ import annotations

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import MEDIA_TYPE, Problem

__all__ = ["BodyLimit", "RequestMetrics"]


class BodyLimit:
    """Refuse bodies of more than `limit` bytes, declared or real, before anything parses them."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length":
                if not value.isdigit() or int(value) > self.limit:
                    await self._refuse(receive, send)
                    return
                break
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise _TooLarge
            return message

        try:
            await self.app(scope, counted, send)
        except _TooLarge:
            # Raised while the body was read, hence before any reply began.
            await self._refuse(receive, send)

    async def _refuse(self, receive: Receive, send: Send) -> None:
        problem = Problem(413, "too-large", f"the body is larger than {self.limit} bytes; send it in parts")
        body = problem.body()
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        # Closing at once would reset the connection of a client that still sends, and lose the reply it should read.
        drained = 0
        while drained < 8 * self.limit:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                break
            drained += len(message.get("body", b""))
        await send({"type": "http.response.body", "body": b""})


class _TooLarge(BaseException):
    """Passes through every handler of ordinary errors on its way out."""


class RequestMetrics:
    """Count requests and time them, by route template and status."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event stream."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "none")
            scope["app"].state.service.metrics.request(scope["method"], path, status, perf_counter() - started)
