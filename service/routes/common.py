"""What all routes share: the running service behind a request, bodies as models, and waiting for the engine."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from fastapi import Request
from pydantic import BaseModel

from service.bodies.schemas import check_unique_id
from service.engine import Engine
from service.engine.items import Outcome, Single
from service.problems import Problem, invalid
from service.runtime import Service

__all__ = ["body_of", "engine_of", "if_match", "model_body", "outcome_of", "service_of", "unique_id_of"]

_M = TypeVar("_M", bound=BaseModel)


def service_of(request: Request) -> Service:
    """The service this application runs."""
    return cast(Service, request.app.state.service)


def engine_of(request: Request) -> Engine:
    """The engine, if there is a model yet.

    Raises
    ------
    Problem
        503 without a model.
    """
    return service_of(request).require_engine()


async def body_of(request: Request, model: type[_M]) -> _M:
    """The body as `model`, straight from bytes."""
    return model.model_validate_json(await request.body())


def model_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI description of a body that a route reads by itself."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def unique_id_of(request: Request) -> str:
    """The stream named in the path.

    Raises
    ------
    Problem
        422 if it cannot be a name.
    """
    try:
        return check_unique_id(request.path_params["unique_id"])
    except ValueError as error:
        raise invalid(str(error)) from error


def if_match(request: Request) -> int | None:
    """The stream version that ``If-Match`` asks for.

    Raises
    ------
    Problem
        422 if it is not the ETag of a stream.
    """
    for name, value in request.scope["headers"]:
        if name == b"if-match":
            header = value.decode("latin-1")
            break
    else:
        return None
    if header == "*":
        return None
    text = header.strip().strip('"')
    if not text.isdecimal() or len(text) > 18:
        raise invalid(f'If-Match is {header!r}, expected a stream version such as "7"')
    return int(text)


async def outcome_of(ticket: Single) -> Outcome:
    """Wait for the engine."""
    return await ticket.future


def refuse_query(request: Request, allowed: frozenset[str] = frozenset()) -> None:
    """Refuse query parameters that mean nothing here.

    Raises
    ------
    Problem
        422 naming the first one.
    """
    if request.scope["query_string"]:
        for name in request.query_params:
            if name not in allowed:
                expected = ", ".join(sorted(allowed)) or "none"
                raise Problem(422, "invalid", f"query parameter {name!r} is unknown; expected {expected}")
