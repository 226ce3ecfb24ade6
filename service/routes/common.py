"""What routes share: the running service behind a request, bodies as models, preconditions, pages."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, TypeVar, cast

import orjson
from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.bodies.schemas import ForecastQuery, RequestBody, check_unique_id, read_body
from service.engine import Engine
from service.engine.items import Precondition
from service.front import KEY_SCHEME
from service.hosting import Host, Hosted
from service.negotiation import header_of
from service.problems import Problem, from_validation, invalid
from service.runtime import Service
from service.store import IdempotencyKey

__all__ = [
    "aside",
    "beside",
    "check_json",
    "engine_of",
    "forecast_query",
    "foreign_cursor",
    "host_of",
    "hosted_of",
    "idempotency_key_of",
    "limit_of",
    "needs",
    "parsed",
    "precondition_of",
    "read_cursor",
    "refuse_header",
    "refuse_query",
    "service_of",
    "unique_id_of",
    "until_gone",
    "write_cursor",
]

_LIST = "quantile_levels"
"""The one query parameter that may come several times."""
_LARGE = 2**18  # bytes; parsing more takes so long that others must not wait behind it
_JSON = b"application/json"
_M = TypeVar("_M", bound=RequestBody)
_T = TypeVar("_T")


def host_of(request: Request) -> Host:
    """All models of this application."""
    return cast(Host, request.scope["host"])


def hosted_of(request: Request) -> Hosted:
    """The model that the path names, or the one at the root.

    Raises
    ------
    Problem
        404 if there is none at the root.
    """
    hosted: Hosted | None = request.scope["hosted"]
    if hosted is None:
        raise host_of(request).unknown(None)
    return hosted


def service_of(request: Request) -> Service:
    """The service of that model.

    Raises
    ------
    Problem
        404 if there is none at the root, 503 if it cannot be opened.
    """
    hosted: Hosted | None = request.scope["hosted"]
    return hosted_of(request).required() if hosted is None or hosted.service is None else hosted.service


def engine_of(request: Request) -> Engine:
    """The engine, if there is a model yet.

    Raises
    ------
    Problem
        503 without a model.
    """
    return service_of(request).require_engine()


def check_json(request: Request) -> None:
    """Refuse a body that says it is something else: a page of any site may have a browser send text or a form here.

    Raises
    ------
    Problem
        415 with the type.
    """
    for name, value in request.scope["headers"]:
        if name == b"content-type" and value != _JSON:
            kind = value.decode("latin-1").partition(";")[0].strip().lower()
            if kind and kind != "application/json" and not kind.endswith("+json"):
                raise Problem(415, "unsupported-type", f"the body has type {kind}; expected application/json")


async def beside(request: Request, work: Callable[..., _T], *arguments: object) -> _T:
    """As `Service.beside`, for what only answers a request: it is given up once the client has gone.

    Raises
    ------
    ClientDisconnect
        The client has gone.
    Problem
        503 if too much is waiting.
    """
    working = asyncio.ensure_future(service_of(request).beside(work, *arguments))
    gone = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def until_gone(receive: Receive) -> None:
    """Wait until the client has gone, or has its reply; a body is passed over."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def aside(body: bytes, work: Callable[..., _T], *arguments: object) -> _T:
    """Do work on a body, in a thread if the body is large."""
    return work(*arguments) if len(body) < _LARGE else await asyncio.to_thread(work, *arguments)


async def parsed(body: bytes, model: type[_M]) -> _M:
    """A JSON body as `model`.

    Raises
    ------
    ValidationError, Problem
        It is not one.
    """
    return read_body(model, body) if len(body) < _LARGE else await asyncio.to_thread(_read, model, body)


def _read(model: type[_M], body: bytes) -> _M:
    """The same with mistakes put into words, for which what was found is made out at length."""
    try:
        return read_body(model, body)
    except ValidationError as error:
        raise from_validation(error) from None


def needs(scope: str | None) -> dict[str, Any]:
    """OpenAPI description, which the front door obeys, of the scope a key needs where its method does not tell.

    Without it a GET needs ``read`` and anything else ``write``; None: no key is needed.
    """
    return {"security": [] if scope is None else [{KEY_SCHEME: [scope]}]}


def unique_id_of(request: Request) -> str:
    """The stream named in the path.

    Raises
    ------
    Problem
        422 if it cannot be a name.
    """
    name: str = request.path_params["unique_id"]
    if "\ufffd" in name:  # what bytes that are no text became, different ones alike
        raise invalid("the unique_id in the path is not UTF-8")
    try:
        return check_unique_id(name)
    except ValueError as error:
        raise invalid(str(error)) from error


def precondition_of(request: Request) -> Precondition | None:
    """What ``If-Match`` or ``If-None-Match: *`` asks of the stream, before a write.

    Raises
    ------
    Problem
        422 if it is not the ETag of a stream, 428 if there is neither and the service requires one.
    """
    wanted, unwanted = header_of(request.scope, b"if-match"), header_of(request.scope, b"if-none-match")
    if unwanted is not None:
        if unwanted != "*" or wanted is not None:
            raise invalid("If-None-Match can only be *, and not together with If-Match")
        return Precondition(absent=True)
    if wanted is None:
        if service_of(request).settings.require_if_match:
            detail = (
                'this service takes writes to a stream only with If-Match: "version", or If-None-Match: * for a new one'
            )
            raise Problem(428, "precondition-required", detail)
        return None
    if wanted == "*":
        return Precondition()
    tags = [tag.strip() for tag in wanted.split(",")]
    # A weak tag matches nothing (RFC 9110, section 13.1.1): a mistake, where 412 would look like a lost race.
    numbers = [tag[1:-1] for tag in tags if len(tag) > 2 and tag[0] == tag[-1] == '"']
    if len(numbers) < len(tags) or not all(text.isdecimal() and len(text) <= 18 for text in numbers):
        raise invalid(f'If-Match is {wanted!r}, expected a stream version such as "7"')
    return Precondition(tuple(map(int, numbers)))


def idempotency_key_of(request: Request, body: bytes) -> IdempotencyKey | None:
    """What ``Idempotency-Key`` names a request by, as text or as the quoted text of a structured field.

    Raises
    ------
    Problem
        400 if it cannot be one.
    """
    header = header_of(request.scope, b"idempotency-key")
    if header is None:
        return None
    text = header[1:-1] if len(header) > 1 and header[0] == header[-1] == '"' else header
    if not 1 <= len(text) <= 255 or not text.isascii() or not text.isprintable():
        raise Problem(400, "malformed-key", "Idempotency-Key must have 1 to 255 printable ASCII characters")
    return IdempotencyKey(text, sha256(body).digest())


def refuse_header(request: Request, name: str, reason: str) -> None:
    """Refuse a header whose promise is not given here, rather than pass over it.

    Raises
    ------
    Problem
        422 with the reason.
    """
    if header_of(request.scope, name.lower().encode()) is not None:
        raise invalid(f"this request takes no {name}: {reason}")


def forecast_query(request: Request, allowed: frozenset[str]) -> ForecastQuery:
    """The query string of a forecast.

    Raises
    ------
    Problem, ValidationError
        A parameter is unknown or cannot be read.
    """
    refuse_query(request, allowed)
    query = request.query_params
    return ForecastQuery.model_validate({name: query.getlist(name) if name == _LIST else query[name] for name in query})


def refuse_query(request: Request, allowed: frozenset[str] = frozenset()) -> None:
    """Refuse query parameters that mean nothing here, and those that come twice, as one of them would be passed over.

    Raises
    ------
    Problem
        422 naming the first one.
    """
    if request.scope["query_string"]:
        query = request.query_params
        for name in query:
            if name not in allowed:
                expected = ", ".join(sorted(allowed)) or "none"
                raise invalid(f"query parameter {name!r} is unknown; expected {expected}")
            if name != _LIST and len(query.getlist(name)) > 1:
                raise invalid(f"query parameter {name!r} appears {len(query.getlist(name))} times, expected once")


def limit_of(request: Request) -> int:
    """How many entries a page may have.

    Raises
    ------
    Problem
        422 if it is not 1 to 1000.
    """
    text = request.query_params.get("limit", "100")
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= 1000:
        raise invalid(f"limit is {text[:40]!r}, expected 1 to 1000")
    return int(text)


def write_cursor(place: Sequence[Any]) -> str:
    """Where the next page begins, as clients get it."""
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def read_cursor(text: str, size: int) -> list[Any]:
    """What clients send back, so many values.

    Raises
    ------
    Problem
        422 if it cannot be one.
    """
    try:
        place = orjson.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except ValueError as error:
        raise foreign_cursor() from error
    if not isinstance(place, list) or len(place) != size:
        raise foreign_cursor()
    return place


def foreign_cursor() -> Problem:
    """422: this service did not give it out."""
    return invalid("cursor is not one that this service gave out")
