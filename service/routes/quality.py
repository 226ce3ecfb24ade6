"""Live quality: what past forecasts were worth, of one stream and of all that are in memory, worst first.

It translates figures to JSON. They are of the model that serves: after a swap, of the new one over the same log.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response

from forecaster.quality import Quality, figures
from service.bodies.described import QualityReply, SurveyReply
from service.bodies.replies import json_reply
from service.engine.items import Look, Single
from service.engine.survey import ORDERS, Rank, Survey
from service.models.served import ServedModel
from service.problems import invalid, unavailable
from service.routes.common import (
    engine_of,
    foreign_cursor,
    limit_of,
    read_cursor,
    refuse_query,
    service_of,
    unique_id_of,
    write_cursor,
)
from service.routes.describing import ETAG, LIMIT, NAME, answer, described, query

__all__ = ["add_to"]

_QUERY = (
    query("order", {"enum": list(ORDERS), "default": ORDERS[0]}, "what worst means"),
    LIMIT,
    query("cursor", {"type": "string"}, "next_cursor of the page before"),
)


def add_to(app: FastAPI) -> None:
    """Add the routes of this resource."""
    app.add_api_route(
        "/v1/streams/{unique_id:path}/quality",
        _stream,
        name="stream_quality",
        methods=["GET"],
        tags=["quality"],
        summary="What its past forecasts were worth, by step of the horizon",
        response_class=Response,
        openapi_extra=described(
            {200: answer("figures of its forecasts", QualityReply, headers=ETAG)}, 404, parameters=(NAME,)
        ),
    )
    app.add_api_route(
        "/v1/quality",
        _all,
        name="quality",
        methods=["GET"],
        tags=["quality"],
        summary="What past forecasts of the streams in memory were worth, worst first",
        response_class=Response,
        openapi_extra=described({200: answer("figures of all, and the worst", SurveyReply)}, parameters=_QUERY),
    )


async def _stream(request: Request) -> Response:
    refuse_query(request)
    ticket = Single()
    engine_of(request).submit([Look(ticket, unique_id_of(request), copy=True)])
    outcome = await ticket.future
    assert outcome.state is not None
    model, record = outcome.model, outcome.record
    reply = {
        "unique_id": record.unique_id,
        "cutoff": model.dates.text(record.last_step),
        "model": model.label,
        "scored_from": _scored_from(model),
        **_figures(model.forecaster.quality(outcome.state)),
    }
    return json_reply(reply, version=record.version)


def _scored_from(model: ServedModel) -> str | int | None:
    """The earliest cutoff whose forecast is scored, as a ds."""
    first = model.forecaster.scored_from
    return None if first is None else model.dates.text(first)


def _figures(quality: Quality) -> dict[str, Any]:
    """Figures of one stream, over all steps and by step."""
    total, recent = quality.total[0], quality.recent[0]
    return {
        "total": asdict(figures(total.sum(1))),
        "recent": asdict(figures(recent.sum(1))),
        "by_step": {"step": quality.steps, "total": asdict(figures(total)), "recent": asdict(figures(recent))},
    }


async def _all(request: Request) -> Response:
    refuse_query(request, frozenset(parameter["name"] for parameter in _QUERY))
    query = request.query_params
    order = query.get("order", ORDERS[0])
    if order not in ORDERS:
        raise invalid(f"order is {order!r}, expected {', '.join(ORDERS)}")
    limit = limit_of(request)
    after = _rank(query["cursor"]) if "cursor" in query else None
    try:
        async with asyncio.timeout(service_of(request).settings.stall_seconds):
            survey = await asyncio.wrap_future(engine_of(request).survey())
    except TimeoutError as error:
        raise unavailable("the engine does not answer at present") from error
    return json_reply(await asyncio.to_thread(_page, survey, order, after, limit))


def _page(survey: Survey, order: str, after: Rank | None, limit: int) -> dict[str, Any]:
    found = survey.worst(order, after, limit + 1)
    shown = found[:limit]
    total, recent = survey.pooled()
    columns = asdict(survey.by_stream)
    return {
        "model": survey.model.label,
        "scored_from": _scored_from(survey.model),
        "streams": len(survey.unique_ids),
        "total": asdict(total),
        "recent": asdict(recent),
        "worst": [
            {
                "unique_id": survey.unique_ids[i],
                "cutoff": survey.model.dates.text(survey.last_steps[i]),
                **{name: column[i] for name, column in columns.items()},
            }
            for i, _ in shown
        ],
        "next_cursor": write_cursor(shown[-1][1]) if len(found) > limit else None,
    }


def _rank(cursor: str) -> Rank:
    worse, name = read_cursor(cursor, 2)
    if type(worse) not in (int, float) or not math.isfinite(worse) or type(name) is not str:
        raise foreign_cursor()
    return float(worse), name
