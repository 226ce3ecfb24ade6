"""Many forecasts in one request: from histories that come with it, nothing kept, or of streams from where they stand.

Both are the same fold and decode. Invariant: a stream that is not there, or busy, costs only itself; what cannot be
read refuses the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from forecaster import InputError
from service.bodies.covariates import read_future
from service.bodies.described import ForecastsReply
from service.bodies.forms import forecasts_body, form_of, streams_body
from service.bodies.replies import Forecast, Json, json_reply
from service.bodies.schemas import ForecastsRequest
from service.engine.folding import Glance
from service.engine.items import Bundle, Item, Look, Outcome
from service.models.served import ServedModel, Want
from service.problems import Problem, common_failure
from service.routes.common import beside, check_json, engine_of, needs, parsed, refuse_query, service_of
from service.routes.describing import ARROW_CONTENT, answer, body_of_model, described
from service.stateless import check_reply_size, forecast_histories

__all__ = ["add_to"]


def add_to(app: FastAPI) -> None:
    """Add the routes of this resource."""
    app.add_api_route(
        "/v1/forecasts",
        _forecast,
        name="forecast_many",
        methods=["POST"],
        tags=["forecasts"],
        summary="Forecast from histories in the request, or many streams from where they stand",
        response_class=Response,
        openapi_extra=described(
            {200: answer("the forecasts, in the order of the request", ForecastsReply, content=ARROW_CONTENT)},
            406,
            body=body_of_model(ForecastsRequest),
        )
        | needs("read"),
    )


async def _forecast(request: Request) -> Response:
    refuse_query(request)
    check_json(request)
    form = form_of(request.scope)
    body = await parsed(await request.body(), ForecastsRequest)
    service, engine = service_of(request), engine_of(request)
    if body.streams is None:
        longest = service.settings.max_history_steps
        content = await beside(request, _from_histories, engine.model, body, longest, form)
        return json_reply(content, media_type=form)
    want = engine.model.want(body.horizon, body.quantile_levels)
    check_reply_size(len(body.streams), want)
    ticket = Bundle(len(body.streams))
    # Thousands of names, or their futures, take long enough that others must not wait behind them.
    looks = await asyncio.to_thread(_looks, ticket, body, want, engine.model)
    engine.submit(looks)
    results = await ticket.future
    content = await asyncio.to_thread(_of_streams, looks, results, engine.model, want, form)
    return json_reply(content, media_type=form)


def _from_histories(model: ServedModel, body: ForecastsRequest, longest: int, form: str, glance: Glance) -> bytes:
    return forecasts_body(forecast_histories(model, body, longest, glance), form)


def _looks(ticket: Bundle, body: ForecastsRequest, want: Want, model: ServedModel) -> list[Item]:
    looks: list[Item] = []
    for name in body.streams or ():
        future: Any = body.future.get(name) if isinstance(body.future, dict) else body.future
        try:
            known = read_future(model, future, want.horizon, model.dates)
        except InputError as error:
            raise InputError(f"stream {name!r}: {error}") from error
        looks.append(Look(ticket, name, want, future=known))
    return looks


def _of_streams(
    looks: Sequence[Item], results: Mapping[int, Outcome | Problem], model: ServedModel, want: Want, form: str
) -> bytes:
    found: list[Forecast] = []
    refused: list[Json] = []
    if failure := common_failure(results.values()):
        raise failure
    for look in looks:
        result = results[id(look)]
        if isinstance(result, Problem):
            refused.append({"unique_id": look.unique_id, **result.members()})
            continue
        found.append(Forecast.of_stream(result, want))
    return streams_body(found, refused, form, model, want)
