"""OpenAPI descriptions of routes that read and write by themselves: bodies, parameters, and every status they answer.

It knows the shapes and no behaviour. Invariant: a route answers no status that is not described; a test holds the
service to that, with requests made from the description. What the connection answers before any route is told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from service.bodies.bulk import ARROW
from service.bodies.described import EXAMPLES, Problem
from service.problems import MEDIA_TYPE

__all__ = [
    "ARROW_CONTENT",
    "ETAG",
    "IF_MATCH",
    "IF_NONE_MATCH",
    "LIMIT",
    "NAME",
    "NO_MODEL",
    "answer",
    "body_of_model",
    "described",
    "problems",
    "query",
]

_JSON = "application/json"
_KEYED = (401, 403, 429)  # what any request may meet where API keys are needed; 403 also a page of another origin
_BODY = (400, 413, 415, 422)  # what any body may meet
_ANY = (500, 503)
_TAG = {"type": "string", "pattern": '^"[0-9]{1,18}"$'}

NAME: dict[str, Any] = {
    "name": "unique_id",
    "in": "path",
    "required": True,
    "description": "any printable text that does not end in /forecast, /quality or /events; slashes need no escape",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "example": "plant-1",
}
IF_MATCH: dict[str, Any] = {
    "name": "If-Match",
    "in": "header",
    "description": "do it only at this version of the stream, its ETag; several separated by commas; *: any",
    "schema": {"type": "string"},
}
IF_NONE_MATCH: dict[str, Any] = {
    "name": "If-None-Match",
    "in": "header",
    "description": "*: do it only if there is no such stream",
    "schema": {"type": "string", "enum": ["*"]},
}
LIMIT: dict[str, Any] = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
}
ARROW_CONTENT: dict[str, Any] = {ARROW: {"schema": {"type": "string", "format": "binary"}}}
ETAG: dict[str, Any] = {"ETag": {"description": "the stream's version", "schema": _TAG}}


def query(name: str, schema: Mapping[str, Any], description: str = "", example: Any = None) -> dict[str, Any]:
    """A query parameter."""
    found: dict[str, Any] = {"name": name, "in": "query", "schema": schema}
    if description:
        found["description"] = description
    if example is not None:
        found["example"] = example
    return found


def answer(
    description: str,
    model: type[BaseModel] | None = None,
    *,
    content: Mapping[str, Any] | None = None,
    headers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One answer: JSON of a model, other content, or nothing."""
    found: dict[str, Any] = {"description": description}
    whole = dict(content or {})
    if model is not None:
        whole[_JSON] = {"schema": _ref(model), "example": EXAMPLES[model]}
    if whole:
        found["content"] = whole
    if headers:
        found["headers"] = headers
    return found


def body_of_model(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON body that a route reads by itself."""
    return {"required": True, "content": {_JSON: {"schema": _ref(model), "example": EXAMPLES[model]}}}


def problems(*statuses: int) -> dict[str, Any]:
    """Refusals, by status."""
    return {str(status): _problem(status) for status in sorted(statuses)}


def described(
    answers: Mapping[int, Mapping[str, Any]],
    *refusals: int,
    body: Mapping[str, Any] | None = None,
    parameters: Sequence[Mapping[str, Any]] = (),
    keyed: bool = True,
) -> dict[str, Any]:
    """What FastAPI is to add to its description of a route.

    Parameters
    ----------
    answers
        By status, those that are no refusals.
    *refusals
        Statuses of refusals that are this route's own.
    body, parameters
        What it takes.
    keyed
        Whether it needs an API key where keys are needed.
    """
    statuses = {*refusals, *_ANY, *(_KEYED if keyed else ()), *(_BODY if body else ()), *((422,) if parameters else ())}
    found: dict[str, Any] = {
        "responses": {**{str(status): told for status, told in answers.items()}, **problems(*statuses)}
    }
    if body:
        found["requestBody"] = body
    if parameters:
        found["parameters"] = list(parameters)
    return found


def _problem(status: int, kind: str | None = None, detail: str | None = None) -> dict[str, Any]:
    phrase = HTTPStatus(status).phrase
    detail = detail or _DETAILS.get(status, phrase.lower())
    example = EXAMPLES[Problem] | {"status": status, "title": phrase, "detail": detail}
    example["type"] = f"urn:forecaster:problem:{kind or _KINDS.get(status, 'invalid')}"
    return {"description": phrase, "content": {MEDIA_TYPE: {"schema": _ref(Problem), "example": example}}}


_KINDS = {
    400: "malformed-json",
    401: "unauthorised",
    403: "forbidden",
    404: "unknown-stream",
    406: "not-acceptable",
    409: "conflict",
    412: "version-mismatch",
    413: "too-large",
    415: "unsupported-type",
    428: "precondition-required",
    429: "rate-limited",
    500: "internal",
    503: "overloaded",
}
_DETAILS = {
    404: "stream 'plant-1' is not known; create it first with PUT /v1/streams/{unique_id}",
    409: "stream 'plant-1' already has another value at ds 2025-01-01T03:00:00; "
    'send "on_conflict": "revise" to replace it',
    412: "stream 'plant-1' is at version 2; the request asks for version 1",
    422: "horizon is 999, expected 1 to 192",
}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


NO_MODEL: dict[str, Any] = {
    "404": _problem(404, "unknown-model", "there is no model named 'bike'; there are: bikes, sales")
}
"""What any path of a model may meet where models are named."""
