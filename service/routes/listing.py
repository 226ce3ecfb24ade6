"""The list of streams: filtered, in the order of their names, a page at a time.

It knows the store, not the engine: a listing is as of the last commit. Invariant: whoever follows the cursors meets
every stream that is there all the while exactly once, whatever is created or deleted meanwhile.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Self

from fastapi import FastAPI, Request, Response

from service.bodies.described import StreamsReply
from service.bodies.replies import description, json_reply
from service.models.dates import Dates
from service.problems import invalid
from service.routes.common import (
    engine_of,
    foreign_cursor,
    hosted_of,
    limit_of,
    read_cursor,
    refuse_query,
    service_of,
    write_cursor,
)
from service.routes.describing import LIMIT, answer, described, query
from service.store import Filter

__all__ = ["add_to"]

_QUERY = (
    LIMIT,
    query("cursor", {"type": "string"}, "next_cursor of the page before; it carries the filters along"),
    query("prefix", {"type": "string"}, "of unique_id", "plant-"),
    query("cutoff_from", {"type": "string"}, "a ds: streams that have got as far as that"),
    query("cutoff_before", {"type": "string"}, "a ds: streams that have not, for example because they fell silent"),
)
_NAMES = frozenset(parameter["name"] for parameter in _QUERY)
_LINK = {"Link": {"description": "the next page, if there is one", "schema": {"type": "string"}}}


def add_to(app: FastAPI) -> None:
    """Add the routes of this resource."""
    app.add_api_route(
        "/v1/streams",
        _list,
        name="list_streams",
        methods=["GET"],
        tags=["streams"],
        summary="Streams by unique_id, a page at a time",
        response_class=Response,
        openapi_extra=described({200: answer("a page", StreamsReply, headers=_LINK)}, parameters=_QUERY),
    )


class _Cursor(NamedTuple):
    """Where the next page begins, and of which list."""

    after: str
    chosen: Filter

    def text(self) -> str:
        """As clients get it."""
        return write_cursor([self.after, *self.chosen])

    @classmethod
    def read(cls, text: str) -> Self:
        """What clients send back.

        Raises
        ------
        Problem
            422 if this service did not give it out.
        """
        after, prefix, first, before = read_cursor(text, 4)
        texts = all(type(text) is str and text.isprintable() for text in (after, prefix))
        steps = all(bound is None or (type(bound) is int and abs(bound) < 2**63) for bound in (first, before))
        if not texts or not steps:
            raise foreign_cursor()
        return cls(after, Filter(prefix, first, before))


async def _list(request: Request) -> Response:
    refuse_query(request, _NAMES)
    model = engine_of(request).model
    query = request.query_params
    limit = limit_of(request)
    prefix = query.get("prefix", "")
    if not prefix.isprintable():
        raise invalid(f"prefix is {prefix!r}; a unique_id holds printable characters only")
    chosen = Filter(
        prefix,
        _step(model.dates, query.get("cutoff_from")),
        _step(model.dates, query.get("cutoff_before")),
    )
    after = ""
    if "cursor" in query:
        cursor = _Cursor.read(query["cursor"])
        if chosen not in (Filter(), cursor.chosen):
            raise invalid("cursor is of a list with other filters; leave them out, the cursor carries them along")
        after, chosen = cursor
    service = service_of(request)
    records = await service.questions.ask(partial(service.store.page, after, limit + 1, chosen))
    shown = records[:limit]
    more = _Cursor(shown[-1].unique_id, chosen).text() if len(records) > limit else None
    reply = json_reply({"streams": [description(r, model) for r in shown], "next_cursor": more})
    if more is not None:
        path = f"{hosted_of(request).prefix}/v1/streams"
        reply.raw_headers.append((b"link", f'<{path}?limit={limit}&cursor={more}>; rel="next"'.encode()))
    return reply


def _step(dates: Dates, ds: str | None) -> int | None:
    if ds is None:
        return None
    head, _, offset = ds.rpartition(" ")
    if len(offset) == 5 and offset[2] == ":" and len(head) > 10:  # after a time: it was a plus that nobody escaped
        ds = f"{head}+{offset}"
    is_number = dates.calendar.is_integer and ds.removeprefix("-").isdecimal() and len(ds) <= 18
    return dates.steps([int(ds) if is_number else ds])[0]
