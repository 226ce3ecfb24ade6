"""Bulk observations: many streams in one body, a verdict for every row."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from fastapi import FastAPI, Request, Response

from service.bodies.arrow_size import check_arrow_size
from service.bodies.bulk import ARROW, JSON_LINES, Rows, read_arrow, read_json_lines, verdicts_reply
from service.bodies.described import VerdictsReply
from service.bodies.replies import json_reply
from service.engine.items import HEAVIEST, Bundle, Item, Observe, Result
from service.models.served import ServedModel
from service.problems import Problem, invalid
from service.routes.common import engine_of, refuse_header, refuse_query, service_of
from service.routes.describing import answer, described, query

__all__ = ["add_to"]

_READERS = {JSON_LINES: read_json_lines, ARROW: read_arrow}
# What JSON lines are also called; no name is registered.
_READERS |= dict.fromkeys(
    (
        "application/jsonl",
        "application/jsonlines",
        "application/json-lines",
        "application/ndjson",
        "application/x-jsonlines",
    ),
    read_json_lines,
)
_QUERY = frozenset(("on_conflict", "min_surprise"))
_PARAMETERS = (
    query("on_conflict", {"enum": ["refuse", "revise"], "default": "refuse"}, "what another y for a known ds means"),
    query(
        "min_surprise",
        {"type": "number", "minimum": 0},
        "list only rows at least so surprising: 3 is one in a thousand",
    ),
)
_LINES = (
    '{"unique_id":"plant-1","ds":"2025-01-01T03:00:00","y":110.2}\n'
    '{"unique_id":"plant-9","ds":"2025-01-01T03:00:00","y":null}\n'
)
_BODY: dict[str, Any] = {
    "required": True,
    "description": "one Row per line, or an Arrow IPC stream with its columns",
    "content": {
        JSON_LINES: {"schema": {"type": "string"}, "example": _LINES},
        ARROW: {"schema": {"type": "string", "format": "binary"}},
    },
}


def add_to(app: FastAPI) -> None:
    """Add the routes of this resource."""
    app.add_api_route(
        "/v1/observations",
        _observe,
        name="observe_many",
        methods=["POST"],
        tags=["observations"],
        summary="Observe many streams, durably, with a verdict per row",
        response_class=Response,
        openapi_extra=described({200: answer("a verdict per row", VerdictsReply)}, body=_BODY, parameters=_PARAMETERS),
    )


async def _observe(request: Request) -> Response:
    refuse_query(request, _QUERY)
    on_conflict = request.query_params.get("on_conflict", "refuse")
    if on_conflict not in ("refuse", "revise"):
        raise invalid(f"on_conflict is {on_conflict!r}, expected refuse or revise")
    min_surprise = _threshold(request.query_params.get("min_surprise"))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    reader = _READERS.get(kind)
    if reader is None:
        raise Problem(415, "unsupported-type", f"the body has type {kind or 'none'}; expected {JSON_LINES} or {ARROW}")
    # Its rows need no key, and its streams are committed one micro-batch after the other.
    refuse_header(request, "Idempotency-Key", "a row that comes again is acknowledged and changes nothing")
    for name in ("If-Match", "If-None-Match"):
        refuse_header(request, name, "it is about one stream, and bulk bodies are of many")
    engine = engine_of(request)
    limit = service_of(request).settings.max_body_bytes
    body = await request.body()
    # Bulk bodies take long enough to read that others must not wait behind them.
    rows, groups = await asyncio.to_thread(_read, reader, body, engine.model, limit)
    if not rows.unique_ids:
        raise invalid("the body has no rows")
    results: list[Result] = []
    if groups:
        ticket = Bundle(len(groups))
        revise, placed = on_conflict == "revise", min_surprise is not None
        items = await asyncio.to_thread(_items, ticket, rows, groups, revise=revise, placed=placed)
        engine.submit(items)
        found = await ticket.future
        results = [found[id(item)] for item in items]
    return await asyncio.to_thread(_reply, rows, [numbers for _, numbers in groups], results, min_surprise)


def _read(reader: Any, body: bytes, model: ServedModel, limit: int) -> tuple[Rows, list[tuple[str, list[int]]]]:
    if reader is read_arrow:
        check_arrow_size(body, limit)
    rows: Rows = reader(body, model)
    return rows, rows.groups(HEAVIEST)


def _items(
    ticket: Bundle, rows: Rows, groups: list[tuple[str, list[int]]], *, revise: bool, placed: bool
) -> list[Item]:
    return [
        Observe(
            ticket,
            name,
            [step for i in numbers if (step := rows.steps[i]) is not None],
            [rows.values[i] for i in numbers],
            revise=revise,
            whole=False,
            placed=placed,
        )
        for name, numbers in groups
    ]


def _threshold(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise invalid(f"min_surprise is {text[:40]!r}, expected a number of 0 or more")
    return found


def _reply(rows: Rows, groups: list[list[int]], results: list[Result], min_surprise: float | None) -> Response:
    return json_reply(verdicts_reply(rows, groups, results, min_surprise))
