"""New forecasts of a stream as server-sent events, for as long as the client stays.

The stream's newest forecast is sent at once, and again whenever its log or the model has changed. Readers hold no
queue: one that is slower than its stream misses what was superseded, and nobody waits for it. An event's id tells
version and model, so a reader that comes back with ``Last-Event-ID`` gets an event only if something is new.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from starlette.types import Receive, Scope, Send

from service.bodies.covariates import read_future
from service.bodies.replies import stream_forecast
from service.engine import Engine
from service.engine.coming import Coming
from service.engine.items import Look, Outcome, Single
from service.engine.subscriptions import Subscriptions
from service.models.served import Want
from service.negotiation import header_of, preferred
from service.problems import Problem, unavailable
from service.routes.common import engine_of, forecast_query, service_of, unique_id_of, until_gone
from service.routes.describing import NAME, answer, described, query

__all__ = ["add_to"]

EVENTS = "text/event-stream"
_QUERY = frozenset(("horizon", "quantile_levels", "future"))
_PARAMETERS: tuple[dict[str, Any], ...] = (
    NAME,
    query("horizon", {"type": "integer", "minimum": 1}, "steps to forecast; default: the trained horizon", 2),
    query("quantile_levels", {"type": "string"}, "separated by commas; default: 0.1 to 0.9", "0.1,0.5,0.9"),
    query("future", {"enum": ["missing"]}, "forecast without known covariates, for models that have any"),
    {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}, "description": "id of the last event"},
)
_EXAMPLE = (
    'id: 2-3\nevent: forecast\ndata: {"unique_id":"plant-1","cutoff":"2025-01-01T03:00:00",...}\n\n'
    "event: deleted\ndata: {}\n\n"
)
_CONTENT = {EVENTS: {"schema": {"type": "string"}, "example": _EXAMPLE}}
_HEARTBEAT = 15.0  # seconds; proxies close connections on which nothing happens for longer
_ELSEWHERE = 1.0  # seconds between two looks at what other processes have committed


def add_to(app: FastAPI) -> None:
    """Add the routes of this resource."""
    app.add_api_route(
        "/v1/streams/{unique_id:path}/events",
        _events,
        name="stream_events",
        methods=["GET"],
        tags=["streams"],
        summary="New forecasts as they are made, as server-sent events",
        response_class=Response,
        openapi_extra=described(
            {200: answer("events for as long as the client stays", content=_CONTENT)}, 404, 406, parameters=_PARAMETERS
        ),
    )


async def _events(request: Request) -> Response:
    query = forecast_query(request, _QUERY)
    accept = header_of(request.scope, b"accept")
    if preferred(accept, (EVENTS,)) is None:
        raise Problem(406, "not-acceptable", f"events come as {EVENTS}, but Accept is {accept!r}")
    service, engine = service_of(request), engine_of(request)
    term = service.subscriptions.term
    if service.subscriptions.closed:
        raise unavailable("the service is stopping")
    want = engine.model.want(query.horizon, query.quantile_levels)
    known = read_future(engine.model, query.future, want.horizon, engine.model.dates)
    asked = _Asked(engine, unique_id_of(request), want, known)
    await asked.look(None)  # a stream that is not there is refused as anywhere else
    if len(service.subscriptions) >= service.settings.max_event_readers:
        raise unavailable(f"there are {service.settings.max_event_readers} readers of events already")
    shared = not service.settings.exclusive_store
    last = header_of(request.scope, b"last-event-id")
    return _EventStream(asked, service.subscriptions, term, last, shared=shared)


class _Asked(NamedTuple):
    """What a reader wants to be told of."""

    engine: Engine
    unique_id: str
    want: Want
    known: Coming | None

    async def look(self, want: Want | None) -> Outcome:
        """The stream as it stands, with its forecast if wanted."""
        ticket = Single()
        self.engine.submit([Look(ticket, self.unique_id, want, stream_forecast, self.known)])
        return await ticket.future

    async def event(self, last: str | None, *, told: bool) -> tuple[bytes, str | None]:
        """What to send to a reader whose last event was `last`, nothing if nothing is new; and the id afterwards.

        Where nobody `told` of anything new, it is looked for without a forecast first, which is much the cheaper.

        Raises
        ------
        Problem
            404 if the stream is gone, 422 if the model has changed to one that cannot answer, 503 if the engine takes
            no more questions.
        """
        try:
            if not told and _name(await self.look(None)) == last:
                return b"", last
            outcome = await self.look(self.want)
        except Problem as problem:
            if problem.status != 409:
                raise
            return b"", last  # there is nothing to forecast from yet
        name = _name(outcome)
        if name == last:
            return b"", last
        assert outcome.reply is not None
        return b"id: %s\nevent: forecast\ndata: %s\n\n" % (name.encode(), outcome.reply), name


class _EventStream(Response):
    """Sends events until the client goes, the stream cannot be forecast any more, or the readers' term ends."""

    def __init__(
        self, asked: _Asked, subscriptions: Subscriptions, term: int, last: str | None, *, shared: bool
    ) -> None:
        self.status_code = 200
        self.raw_headers = [
            (b"content-type", EVENTS.encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        self._asked = asked
        self._subscriptions = subscriptions
        self._term = term
        self._last = last
        self._pause = _ELSEWHERE if shared else _HEARTBEAT

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Answer one request."""
        # Subscribed first, as nothing may come between counting the readers and being one of them.
        with self._subscriptions.to(self._asked.unique_id) as changed:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            gone = asyncio.ensure_future(until_gone(receive))
            try:
                await _write(send, b"retry: 2000\n\n")
                await self._tell(changed, gone, send)
            finally:
                gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _tell(self, changed: asyncio.Event, gone: asyncio.Future[None], send: Send) -> None:
        clock = asyncio.get_running_loop().time
        beat = clock() + _HEARTBEAT
        while not gone.done() and self._subscriptions.term == self._term:
            told = changed.is_set() or self._last is None
            changed.clear()
            try:
                event, self._last = await self._asked.event(self._last, told=told)
            except Problem as problem:
                if problem.status == 404:
                    await _write(send, b"event: deleted\ndata: {}\n\n")
                if problem.status != 503:
                    return  # who comes back is told why as anywhere else
                event = b""
                await asyncio.sleep(_ELSEWHERE)  # too much is waiting; a forecast is still due
                changed.set()
            if not event and clock() >= beat:
                event = b": nothing new\n\n"
            if event:
                await _write(send, event)
                beat = clock() + _HEARTBEAT
            waiting = asyncio.ensure_future(changed.wait())
            await asyncio.wait((waiting, gone), timeout=self._pause, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()


def _name(outcome: Outcome) -> str:
    return f"{outcome.record.version}-{outcome.model.version}"


async def _write(send: Send, event: bytes) -> None:
    """Hand an event to the connection, which waits while the client does not read."""
    await send({"type": "http.response.body", "body": event, "more_body": True})
