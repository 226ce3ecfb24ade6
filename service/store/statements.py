"""Statements of many rows each: append to the log, advance streams that nobody else advanced, rename them.

Plain SQL that SQLite and PostgreSQL share, because one statement with many rows costs one trip through driver and
interpreter lock where `executemany` costs one per row. Invariant: rows are cut into blocks of a limited number of
sizes, so that the database sees no more distinct statements than it keeps prepared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import cast

from sqlalchemy import Connection

from service.store.values import Covered, Value

__all__ = ["advance", "append", "rename"]

_LARGEST = 512
_WHOLE = 64  # so many rows or fewer are one statement, as are those of most micro-batches of single observations

Row = tuple[int | float | str | None, ...]


def append(connection: Connection, rows: Sequence[tuple[int, int, Value]]) -> None:
    """Insert (stream id, step, value) into the log."""
    covered = [(stream_id, step, *value) for stream_id, step, value in rows if isinstance(value, Covered)]
    if covered:
        _run(connection, _append_covered_sql, covered)
        rows = [row for row in rows if not isinstance(row[2], Covered)]
    _run(connection, _append_sql, cast(Sequence[Row], rows))


def advance(connection: Connection, rows: Sequence[tuple[int, int, int, int, int]]) -> int:
    """Update streams by (id, expected version, last step, observations, missing); returns how many had that version."""
    return _run(connection, _advance_sql, rows)


def rename(connection: Connection, rows: Sequence[tuple[int, str, int]]) -> None:
    """Give streams (id) another (unique_id, version)."""
    _run(connection, _rename_sql, rows)


def _run(connection: Connection, statement: Callable[[int, str], str], rows: Sequence[Row]) -> int:
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    touched = 0
    for block in _blocks(rows):
        parameters = tuple(chain.from_iterable(block))
        touched += connection.exec_driver_sql(statement(len(block), mark), parameters).rowcount
    return touched


def _blocks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Rows in blocks whose sizes are powers of two, but for the last."""
    start = 0
    while (left := len(rows) - start) > 0:
        size = left if left <= _WHOLE else min(_LARGEST, 1 << (left.bit_length() - 1))
        yield rows[start : start + size]
        start += size


@cache
def _append_sql(count: int, mark: str) -> str:
    row = f"({mark}, {mark}, {mark})"
    return f"INSERT INTO observations (stream_id, step, y) VALUES {', '.join([row] * count)}"


@cache
def _append_covered_sql(count: int, mark: str) -> str:
    row = f"({mark}, {mark}, {mark}, {mark})"
    return f"INSERT INTO observations (stream_id, step, y, covariates) VALUES {', '.join([row] * count)}"


@cache
def _advance_sql(count: int, mark: str) -> str:
    # The casts tell PostgreSQL the types of a bare list of values; both databases call its columns column1 and so on.
    row = f"({', '.join([f'CAST({mark} AS BIGINT)'] * 5)})"
    return (
        "UPDATE streams SET version = streams.version + 1, last_step = v.column3, observations = v.column4, "
        f"missing = v.column5 FROM (VALUES {', '.join([row] * count)}) AS v "
        "WHERE streams.id = v.column1 AND streams.version = v.column2"
    )


@cache
def _rename_sql(count: int, mark: str) -> str:
    row = f"(CAST({mark} AS BIGINT), {mark}, CAST({mark} AS BIGINT))"
    return (
        "UPDATE streams SET unique_id = v.column2, version = v.column3 "
        f"FROM (VALUES {', '.join([row] * count)}) AS v WHERE streams.id = v.column1"
    )
