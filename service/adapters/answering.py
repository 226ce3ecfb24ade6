"""What the adapters share: one way from a foreign body to a foreign reply, beside the engine, errors included.

It knows no foreign format. Invariants: nothing is kept, as with every stateless forecast; an error has the shape that
the caller's own client reads, and never a traceback.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from forecaster import InputError
from service.bodies.schemas import MOST_BRACKETS, ForecastsRequest, check_brackets
from service.engine.folding import Glance
from service.front import TooLarge
from service.models.served import ServedModel
from service.problems import Problem, explained
from service.routes.common import beside, check_json, hosted_of, needs, refuse_query, service_of
from service.routes.describing import answer as answer_of
from service.routes.describing import described

__all__ = [
    "Asked",
    "add_forecast",
    "as_json",
    "made_up_start",
    "missing_as_none",
    "read_json",
    "validated",
    "without_utc",
]


class Asked(NamedTuple):
    """A foreign request, as it came, and who is to answer."""

    body: bytes
    kind: str
    model: ServedModel
    named: str | None  # how the model is called at this address
    max_history_steps: int


Answer = Callable[[Asked, Glance], bytes]
"""From a foreign request to the body of its reply; runs beside the engine."""


def add_forecast(
    app: FastAPI,
    path: str,
    name: str,
    answer: Answer,
    refusal: Callable[[Problem], Response],
    *,
    summary: str,
    description: str,
    body: dict[str, Any],
    reply: Any,
    error: Any,
) -> None:
    """Add a route that forecasts in another system's words; `body` as OpenAPI has it, examples of reply and error."""
    own = _json(error)
    takes_json_alone = list(body["content"]) == ["application/json"]
    extra = described({200: answer_of("the forecasts", content=_json(reply))}, body=body)
    responses = extra["responses"]
    for status in (400, 404, 409, 413, 415, 422, 500, 503):
        told = responses.setdefault(str(status), {"description": HTTPStatus(status).phrase, "content": {}})
        told["content"] = {**own, **(told["content"] if status == 413 else {})}

    async def endpoint(request: Request) -> Response:
        try:
            refuse_query(request)
            if takes_json_alone:
                check_json(request)
            service = service_of(request)
            kind = request.headers.get("content-type", "").lower()
            model, named = service.require_engine().model, hosted_of(request).name
            asked = Asked(await request.body(), kind, model, named, service.settings.max_history_steps)
            return Response(await beside(request, answer, asked), media_type="application/json")
        except (ClientDisconnect, TooLarge):
            raise  # the front door's
        except Exception as error:
            return refusal(explained(error, request.method, path))

    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        tags=["adapters"],
        name=name,
        summary=summary,
        description=description,
        response_class=Response,
        openapi_extra=extra | needs("read"),
    )


def _json(example: Any) -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}, "example": example}}


def read_json(body: bytes, most_brackets: int = MOST_BRACKETS) -> Any:
    """JSON, and the NaN that Python's own writer leaves in it.

    Raises
    ------
    Problem
        400 if it is neither, 422 for very many brackets.
    """
    check_brackets(body, most_brackets)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            found = json.loads(body)
            json.dumps(found, ensure_ascii=False).encode()  # half a character, as an escape, has no bytes
            return found
        except (ValueError, RecursionError) as error:
            first = (str(error).splitlines() or ["too deep"])[0]
            raise Problem(400, "malformed-json", f"the body is not JSON: {first}") from error


def missing_as_none(values: Sequence[Any]) -> list[Any]:
    """The same with None for NaN."""
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]


def validated(series: list[dict[str, Any]], **wanted: Any) -> ForecastsRequest:
    """The request as this service's own clients would have sent it."""
    return ForecastsRequest.model_validate({"series": series, **wanted})


def without_utc(ds: str, model: ServedModel) -> str:
    """A time written as UTC as a model without a time zone has it: as it stands.

    Other protocols' clients write all times so.
    """
    return ds if model.dates.calendar.time_zone is not None else ds.removesuffix("Z").removesuffix("+00:00")


def made_up_start(model: ServedModel, name: str) -> str | int:
    """Where a series begins that does not say so: anywhere, for a model that takes no notice of dates.

    Raises
    ------
    InputError
        The model does.
    """
    covariates = model.forecaster.config.covariates
    if covariates.country or covariates.calendar not in ((), ("auto",)):
        raise InputError(
            f"series {name!r} has no start, but this model uses the calendar; say when the first value was"
        )
    return model.dates.text(0)


as_json = partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY)
