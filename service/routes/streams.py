"""Streams: create or replace, describe, forget, observe, forecast."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from forecaster import InputError, StreamState
from service.bodies.covariates import read_future, read_static, read_values
from service.bodies.described import ForecastReply, ObservedReply, StreamReply
from service.bodies.forms import JSON, form_of, one_forecast_body, stream_frame
from service.bodies.histories import read_history
from service.bodies.replies import description, json_reply, observed, stream_forecast
from service.bodies.schemas import (
    ForecastQuery,
    Observation,
    ObservationsRequest,
    StreamForecastRequest,
    StreamHistory,
)
from service.engine.coming import Coming
from service.engine.folding import Glance
from service.engine.items import Create, Delete, Look, Observe, Outcome, Single
from service.engine.microbatch import warm_up
from service.models.served import ServedModel, Want
from service.problems import Problem, from_library, invalid
from service.routes.common import (
    aside,
    beside,
    check_json,
    engine_of,
    forecast_query,
    idempotency_key_of,
    needs,
    parsed,
    precondition_of,
    refuse_header,
    refuse_query,
    service_of,
    unique_id_of,
)
from service.routes.describing import (
    ARROW_CONTENT,
    ETAG,
    IF_MATCH,
    IF_NONE_MATCH,
    NAME,
    answer,
    body_of_model,
    described,
    query,
)
from service.runtime import Service
from service.sampling import Draw, draw_of, with_samples
from service.store import IdempotencyKey, StoredReply, Value

__all__ = ["add_to"]

_QUERY = (
    NAME,
    query("horizon", {"type": "integer", "minimum": 1}, "steps to forecast; default: the trained horizon", 2),
    query("quantile_levels", {"type": "string"}, "separated by commas; default: 0.1 to 0.9", "0.1,0.5,0.9"),
    query("future", {"enum": ["missing"]}, "forecast without known covariates, for models that have any"),
    query("num_samples", {"type": "integer", "minimum": 1, "maximum": 1000}, "joint sample paths beside quantiles"),
    query("seed", {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, "of the sample paths"),
)
_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "names this request: sent again, it gets the very reply of the first time, which is kept for "
    "FORECASTER_IDEMPOTENCY_HOURS, 24 unless set otherwise",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_OBSERVED = answer("durable, exactly once, and the new forecast, or why there is none", ObservedReply, headers=ETAG)
_FOUND = {200: answer("the forecast", ForecastReply, content=ARROW_CONTENT, headers=ETAG)}
_WRITES = (IF_MATCH, IF_NONE_MATCH)
_TAKEN = ("/forecast", "/quality", "/events")
"""Endings of paths that are read about another stream, so that a stream so named could not be."""
_NO_KEY = "If-Match or If-None-Match keep it from happening twice"
_LONG = 8192  # steps; folding more takes so long that others must not wait behind it
_FORECAST_QUERY = frozenset(("horizon", "quantile_levels", "future", "num_samples", "seed"))


def add_to(app: FastAPI) -> None:
    """Add the routes of this resource."""
    name = "/v1/streams/{unique_id:path}"
    add = partial(app.add_api_route, tags=["streams"], response_class=Response)
    # Names may hold slashes, so the longer paths come first.
    add(
        f"{name}/observations",
        _observe,
        name="observe",
        methods=["POST"],
        summary="Observe, durably, all or nothing, and forecast where this model can",
        openapi_extra=described(
            {200: _OBSERVED},
            *(404, 409, 412, 428),
            body=body_of_model(ObservationsRequest),
            parameters=(NAME, *_WRITES, _KEY),
        ),
    )
    add(
        f"{name}/forecast",
        _forecast,
        name="forecast_stream",
        methods=["GET"],
        summary="Forecast from where it stands",
        openapi_extra=described(_FOUND, 404, 406, 409, parameters=_QUERY),
    )
    add(
        f"{name}/forecast",
        _forecast_with_future,
        name="forecast_stream_with_future",
        methods=["POST"],
        summary="Forecast from where it stands and what is known of the coming steps",
        openapi_extra=described(_FOUND, 404, 406, 409, body=body_of_model(StreamForecastRequest), parameters=(NAME,))
        | needs("read"),
    )
    add(
        name,
        _put,
        name="put_stream",
        methods=["PUT"],
        status_code=201,
        summary="Create or replace with a history",
        openapi_extra=described(
            {
                200: answer("replaced", StreamReply, headers=ETAG),
                201: answer("created", StreamReply, headers=ETAG),
            },
            *(404, 412, 428),  # with a line break in its name it is nothing that there could be a route for
            body=body_of_model(StreamHistory),
            parameters=(NAME, *_WRITES),
        ),
    )
    add(
        name,
        _get,
        name="get_stream",
        methods=["GET"],
        summary="Where it stands",
        openapi_extra=described({200: answer("where it stands", StreamReply, headers=ETAG)}, 404, parameters=(NAME,)),
    )
    add(
        name,
        _delete,
        name="delete_stream",
        methods=["DELETE"],
        status_code=204,
        summary="Forget it and its log",
        openapi_extra=described({204: answer("forgotten")}, 404, 412, 428, parameters=(NAME, *_WRITES)),
    )


async def _observe(request: Request) -> Response:
    refuse_query(request)
    check_json(request)
    engine = engine_of(request)
    content = await request.body()
    body = await parsed(content, ObservationsRequest)
    model = engine.model
    unique_id = unique_id_of(request)
    key = idempotency_key_of(request, content)
    try:
        want = model.want(body.horizon, body.quantile_levels)
        steps, values = await aside(content, _read, model, body.observations)
    except InputError:
        # It may have been answered by another version, which understood it.
        kept = None if key is None else await _kept(service_of(request), unique_id, key)
        if kept is None:
            raise
        return _observed(kept.body, kept.version, replayed=True)
    future, refusal = await aside(content, _coming, model, body, want)
    ticket = Single()
    item = Observe(
        ticket,
        unique_id,
        steps,
        values,
        revise=body.on_conflict == "revise",
        want=want,
        refusal=refusal,
        render=observed,
        future=future,
        precondition=precondition_of(request),
        key=key,
    )
    if key is None:
        engine.submit([item])
        outcome = await ticket.future
    else:
        with service_of(request).at_work.alone(unique_id, key.text):
            engine.submit([item])
            outcome = await ticket.future
    return _observed(outcome.reply, outcome.record.version, replayed=outcome.replayed)


def _read(model: ServedModel, observations: Sequence[Observation]) -> tuple[list[int], list[Value]]:
    steps = model.dates.steps([o.ds for o in observations])
    given = [o.covariates for o in observations]
    return steps, read_values(model, [o.y for o in observations], given, takes_back=True)


def _coming(model: ServedModel, body: ObservationsRequest, want: Want) -> tuple[Coming | None, Problem | None]:
    """What is told of the coming steps, or why this model cannot forecast by it."""
    try:
        return read_future(model, body.future, want.horizon, model.dates), None
    except InputError as error:
        return None, from_library(error)


def _observed(body: bytes | None, version: int, *, replayed: bool) -> Response:
    reply = json_reply(body, version=version)
    if replayed:
        reply.raw_headers.append((b"idempotent-replayed", b"true"))
    return reply


async def _kept(service: Service, unique_id: str, key: IdempotencyKey) -> StoredReply | None:
    """What the very same request was answered before, if that is still known."""
    name, since = (unique_id, key.text), int(time.time()) - service.settings.replies_seconds
    found = await service.questions.ask(partial(service.store.replies, [name], since))
    kept = found.get(name)
    return kept if kept is not None and kept.key == key else None


async def _forecast(request: Request) -> Response:
    query = forecast_query(request, _FORECAST_QUERY)
    return await _look(request, query, query.future)


async def _forecast_with_future(request: Request) -> Response:
    refuse_query(request)
    check_json(request)
    content = await request.body()
    body = await parsed(content, StreamForecastRequest)
    return await _look(request, body, body.future, content)


async def _look(
    request: Request, asked: ForecastQuery | StreamForecastRequest, future: Any, content: bytes = b""
) -> Response:
    form = form_of(request.scope)
    engine = engine_of(request)
    want = engine.model.want(asked.horizon, asked.quantile_levels)
    draw = draw_of(asked.num_samples, asked.seed, want.horizon)
    model = engine.model
    known = await aside(content, read_future, model, future, want.horizon, model.dates)
    ticket = Single()
    render = None if draw is not None else stream_forecast if form == JSON else stream_frame
    engine.submit([Look(ticket, unique_id_of(request), want, render, known, copy=draw is not None)])
    outcome = await ticket.future
    reply = outcome.reply
    if draw is not None:
        reply = await beside(request, _with_samples, outcome, want, draw, known, form)
    return json_reply(reply, version=outcome.record.version, media_type=form)


def _with_samples(outcome: Outcome, want: Want, draw: Draw, known: Coming | None, form: str, _: Glance) -> bytes:
    return one_forecast_body(with_samples(outcome, want, draw, known), form)


async def _put(request: Request) -> Response:
    refuse_query(request)
    refuse_header(request, "Idempotency-Key", _NO_KEY)
    check_json(request)
    engine = engine_of(request)
    service = service_of(request)
    unique_id = unique_id_of(request)
    if unique_id.endswith(_TAKEN):
        raise invalid(f"no stream can be called {unique_id!r}: {', '.join(_TAKEN)} end the paths of other streams")
    body = await parsed(await request.body(), StreamHistory)
    longest = service.settings.max_history_steps
    # A long history takes long enough to check that others must not wait behind it.
    model = engine.model
    history = await run_in_threadpool(read_history, model, unique_id, body, longest)
    static = read_static(model, unique_id, body.static)
    ticket = Single()
    item = Create(ticket, unique_id, history.steps, history.values, precondition_of(request), static)
    while history.length > _LONG and item.state_under(engine.model.key) is None:
        # Once more if another model serves by now: else the engine would fold it, and all others wait.
        model = engine.model
        item.warmed = model.key, await service.beside(_warm_up, model, item)
    engine.submit([item])
    outcome = await ticket.future
    reply = description(outcome.record, outcome.model)
    return json_reply(reply, status=201 if outcome.created else 200, version=outcome.record.version)


def _warm_up(model: ServedModel, item: Create, glance: Glance) -> StreamState:
    with torch.inference_mode():
        return warm_up(model, [item], glance)


async def _get(request: Request) -> Response:
    refuse_query(request)
    engine = engine_of(request)
    ticket = Single()
    engine.submit([Look(ticket, unique_id_of(request))])
    outcome = await ticket.future
    return json_reply(description(outcome.record, outcome.model), version=outcome.record.version)


async def _delete(request: Request) -> Response:
    refuse_query(request)
    refuse_header(request, "Idempotency-Key", _NO_KEY)
    engine = engine_of(request)
    ticket = Single()
    engine.submit([Delete(ticket, unique_id_of(request), precondition_of(request))])
    await ticket.future
    return Response(status_code=204)
