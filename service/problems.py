"""Every error the service answers with, as RFC 9457 problem details.

One place translates foreign errors (validation, unknown routes, the library's, the unexpected) to one JSON shape.
Invariant: a client never sees a traceback, and a refused request has changed nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from forecaster import ForecasterError, InputError

__all__ = [
    "MEDIA_TYPE",
    "Problem",
    "busy",
    "common_failure",
    "conflict",
    "explained",
    "failed",
    "from_library",
    "install",
    "invalid",
    "nothing_there",
    "outcome_unknown",
    "overloaded",
    "problem_of",
    "problem_response",
    "shortened",
    "still_folded",
    "unanswered",
    "unavailable",
    "unknown_stream",
]

MEDIA_TYPE = "application/problem+json"
_BUSY = "stream-busy"
_BRANCH = re.compile(r"(dict|list|literal|nullable|function-\w+)\[")  # how pydantic calls a member of a union


class Problem(Exception):
    """A refusal with everything its reply needs.

    Parameters
    ----------
    status
        HTTP status.
    kind
        Short stable name of the problem; becomes the ``type`` ``urn:forecaster:problem:<kind>``.
    detail
        One line for a human: what was found and what was expected.
    headers
        Extra reply headers.
    extensions
        Extra members of the problem object.
    """

    def __init__(
        self, status: int, kind: str, detail: str, *, headers: dict[str, str] | None = None, **extensions: Any
    ) -> None:
        # A client's own text may have got into it.
        detail = shortened(detail)
        if not detail.isprintable():
            detail = "".join(c if c.isprintable() else repr(c)[1:-1] for c in detail)
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = headers or {}
        self.extensions = extensions

    def members(self) -> dict[str, Any]:
        """The problem object."""
        return {
            "type": f"urn:forecaster:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.extensions,
        }

    def body(self, request_id: str | None = None) -> bytes:
        """The same as JSON, with the id of the request that it answers."""
        members = self.members() if request_id is None else self.members() | {"request_id": request_id}
        return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY, default=str)


def invalid(detail: str, **extensions: Any) -> Problem:
    """422: the request was understood and is wrong."""
    return Problem(422, "invalid", detail, **extensions)


def conflict(detail: str, **extensions: Any) -> Problem:
    """409: the request contradicts what is stored."""
    return Problem(409, "conflict", detail, **extensions)


def unknown_stream(unique_id: str) -> Problem:
    """404: no such stream."""
    return Problem(
        404, "unknown-stream", f"stream {unique_id!r} is not known; create it first with PUT /v1/streams/{{unique_id}}"
    )


def nothing_there(method: str, path: str, methods: Sequence[str] = ()) -> Problem:
    """404: no route, or 405 where there are other `methods`."""
    if methods:
        return Problem(
            405, "method-not-allowed", f"{method} is not allowed at {path}", headers={"allow": ", ".join(methods)}
        )
    return Problem(404, "unknown-route", f"there is nothing at {path}; see /docs")


def unavailable(detail: str) -> Problem:
    """503: not now; nothing was changed, and the same request may be sent again."""
    return Problem(503, "unavailable", detail, headers={"retry-after": "1"})


def busy(detail: str) -> Problem:
    """503: not this stream, not now; nothing was changed, and others are as they always are."""
    return Problem(503, _BUSY, detail, headers={"retry-after": "1"})


def still_folded(unique_id: str) -> Problem:
    """503: others are not to wait until a long log has a state."""
    return busy(f"the long log of stream {unique_id!r} is being folded; nothing was changed, try again")


def common_failure(results: Iterable[object]) -> Problem | None:
    """What fails a request about several streams as a whole: a failure that is no stream's own, or all being busy."""
    found = list(results)
    failures = [result for result in found if isinstance(result, Problem) and result.status >= 500]
    common = (failure for failure in failures if failure.kind != _BUSY or len(failures) == len(found))
    return next(common, None)


def outcome_unknown() -> Problem:
    """503: it may have been taken or not, and the same request may be sent again."""
    detail = (
        "the store has not said in time that it has this, so it is not known whether this was taken; "
        "send it again: what was taken is not taken twice"
    )
    return Problem(503, "outcome-unknown", detail, headers={"retry-after": "1"})


def overloaded() -> Problem:
    """503: too much is waiting."""
    return Problem(
        503, "overloaded", "too many requests are waiting; send this one again", headers={"retry-after": "1"}
    )


def failed() -> Problem:
    """500: our fault; details go to the log only."""
    return Problem(500, "internal", "the service failed on this request; the cause is in its log")


def unanswered(version: int) -> Problem:
    """500: our fault, but what was sent is kept."""
    detail = (
        "the observations are durable, but their forecast could not be made; the cause is in the service's log, and "
        "they may be sent again: what was taken is not taken twice"
    )
    return Problem(500, "taken-without-forecast", detail, version=version)


def problem_response(problem: Problem, request_id: str | None = None) -> Response:
    """The reply for a problem."""
    return Response(problem.body(request_id), problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def from_validation(error: ValidationError) -> Problem:
    """One line for the first mistake, and up to twenty of them as ``errors``."""
    errors = [e | {"msg": e["msg"].removeprefix("Value error, ")} for e in error.errors(include_url=False)]
    first = errors[0]
    if first["type"] == "json_invalid":
        return Problem(
            400, "malformed-json", f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}"
        )
    shown = [
        {
            "at": shortened("/".join(str(part) for part in e["loc"] if not _BRANCH.match(str(part)))),
            "message": shortened(e["msg"]),
            "found": shortened(_glimpse(e.get("input"), 80), 80),
        }
        for e in errors[:20]
    ]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where, what, found = shown[0].values()
    return invalid(f"{where or 'the body'}: {what}, found {found}{more}", errors=shown)


def from_library(error: ForecasterError) -> Problem:
    """The library's one-line message: the caller's input, or our artifact."""
    return invalid(str(error)) if isinstance(error, InputError) else unavailable(str(error))


def problem_of(error: Exception) -> Problem | None:
    """The problem that an error means; None if it is unexpected."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ValidationError):
        return from_validation(error)
    if isinstance(error, ForecasterError):
        return from_library(error)
    return None


def explained(error: Exception, method: str, path: str) -> Problem:
    """The problem that an error means; what is unexpected goes to the log and is 500."""
    problem = problem_of(error)
    if problem is None:
        logging.getLogger("service").error("%s %s failed", method, path, exc_info=error)
        problem = failed()
    return problem


def shortened(text: str, limit: int = 500) -> str:
    """The same, as far as one line has room for it."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _glimpse(value: Any, room: int) -> str:
    """How a value begins: its text as far as it may be shown, however large it is."""
    if isinstance(value, str):
        return repr(value[: room + 1])
    if not isinstance(value, dict | list):
        return repr(value)
    parts: list[str] = []
    for part in value:
        if room < 0:
            break
        parts.append(_glimpse(part, room))
        if isinstance(value, dict):
            parts[-1] += f": {_glimpse(value[part], room)}"
        room -= len(parts[-1]) + 2
    return ", ".join(parts).join("{}" if isinstance(value, dict) else "[]")


def install(app: FastAPI) -> None:
    """Answer as problems what no route of `app` takes."""

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            problem = nothing_there(request.method, request.url.path)
        elif error.status_code == 405:
            problem = Problem(405, "method-not-allowed", f"{request.method} is not allowed at {request.url.path}")
        else:
            problem = Problem(error.status_code, "http", str(error.detail))
        problem.headers.update(error.headers or {})
        return problem_response(problem, request.scope.get("request_id"))

    async def on_anything(request: Request, error: Exception) -> Response:
        problem = explained(error, request.method, request.url.path)
        return problem_response(problem, request.scope.get("request_id"))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_anything)
