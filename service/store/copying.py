"""A store's streams as rows, out at one moment and in as one transaction, for backups.

It knows SQL and step numbers; files are written elsewhere. Invariants: what comes out was true at one moment; what goes
in is there as a whole or not at all, and a stream that is there already is only replaced if that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from secrets import token_hex
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Select, and_, case, delete, func, insert, select

from service.errors import StoreError
from service.store.database import chunks, lock_for_writing, reading
from service.store.statements import append, rename
from service.store.tables import Tables
from service.store.values import value_of
from service.store.versions import version_before_new

__all__ = ["Dump", "LogRow", "SnapshotRow", "StreamRow", "dump", "load"]

_BATCH = 20_000


class StreamRow(NamedTuple):
    """A stream as of the copy; see `service.store.StreamRecord`."""

    unique_id: str
    first_step: int
    last_step: int
    version: int
    observations: int
    missing: int
    static: str | None
    retained_step: int | None


class LogRow(NamedTuple):
    """An observation."""

    unique_id: str
    step: int
    y: float | None
    covariates: str | None


class SnapshotRow(NamedTuple):
    """A state."""

    unique_id: str
    model_key: str
    step: int
    state: bytes


class Dump(NamedTuple):
    """Streams, and batches of what their logs and snapshots hold, ordered by stream and step."""

    streams: list[StreamRow]
    log: Iterator[list[LogRow]]
    snapshots: Iterator[list[SnapshotRow]]


def dump(engine: Engine, tables: Tables, until: int | None) -> Iterator[Dump]:
    """Everything up to a step, seen at one moment. Yields once; the moment lasts until it is asked again.

    Raises
    ------
    StoreError
        A log has been trimmed beyond that step.
    """
    streams, log, snapshots = tables.streams.c, tables.observations.c, tables.snapshots.c
    begins = func.coalesce(streams.retained_step, streams.first_step)
    rows = (
        select(streams.unique_id, log.step, log.y, log.covariates)
        .join_from(tables.observations, tables.streams, log.stream_id == streams.id)
        .where(log.step >= begins)
        .order_by(log.stream_id, log.step)
    )
    states = (
        select(streams.unique_id, snapshots.model_key, snapshots.step, snapshots.state)
        .join_from(tables.snapshots, tables.streams, snapshots.stream_id == streams.id)
        .order_by(snapshots.stream_id, snapshots.model_key, snapshots.step)
    )
    if until is not None:
        rows = rows.where(streams.first_step <= until, log.step <= until)
        states = states.where(streams.first_step <= until, snapshots.step <= until)
    with reading(engine) as connection:
        found = [StreamRow(*row) for row in connection.execute(_whole(tables))]
        if until is not None:
            found = _cut(connection, tables, found, until)
        yield Dump(
            found,
            ([LogRow(*row) for row in part] for part in _parts(connection, rows)),
            ([SnapshotRow(*row) for row in part] for part in _parts(connection, states)),
        )


def _whole(tables: Tables) -> Select[str, int, int, int, int, int, str, int]:
    c = tables.streams.c
    return select(
        c.unique_id, c.first_step, c.last_step, c.version, c.observations, c.missing, c.static, c.retained_step
    ).order_by(c.id)


def _parts(connection: Connection, query: Select[*tuple[Any, ...]]) -> Iterator[Sequence[Sequence[Any]]]:
    # On PostgreSQL this reads through a cursor of the server's, so that memory stays small.
    yield from connection.execute(query, execution_options={"yield_per": _BATCH}).partitions()


def _cut(connection: Connection, tables: Tables, rows: list[StreamRow], until: int) -> list[StreamRow]:
    """Streams as they were at a step; what was revised or came late before it stays so."""
    streams, log = tables.streams.c, tables.observations.c
    after = and_(log.stream_id == streams.id, log.step > until)
    kept = tables.observations.alias().c
    last = (
        select(func.max(kept.step))
        .where(
            kept.stream_id == streams.id,
            kept.step <= until,
            kept.step >= func.coalesce(streams.retained_step, streams.first_step),
        )
        .correlate(tables.streams)
        .scalar_subquery()
    )
    lost = (
        select(streams.unique_id, last, func.count(log.step), func.sum(case((log.y.is_(None), 1), else_=0)))
        .join_from(tables.streams, tables.observations, after)
        .where(streams.last_step > until)
        .group_by(streams.id, streams.unique_id, streams.retained_step, streams.first_step)
    )
    changed = {name: (step, count, missing) for name, step, count, missing in connection.execute(lost)}
    out = []
    for row in rows:
        if row.first_step > until:
            continue
        if row.unique_id in changed:
            step, count, missing = changed[row.unique_id]
            if row.retained_step is not None and step is None:
                step = row.retained_step - 1
                if step > until:
                    raise StoreError(
                        f"stream {row.unique_id!r} cannot be copied as of step {until}: its log has been trimmed and "
                        f"begins at step {row.retained_step}"
                    )
            # Another version, because this one may have been told to clients for something else.
            row = row._replace(
                last_step=step,
                version=row.version + 1,
                observations=row.observations - count,
                missing=row.missing - missing,
            )
        out.append(row)
    return out


def load(
    engine: Engine,
    tables: Tables,
    streams: Sequence[StreamRow],
    log: Iterable[Sequence[LogRow]],
    snapshots: Iterable[Sequence[SnapshotRow]],
    *,
    replace: bool,
) -> None:
    """Write streams with their logs and snapshots, in one transaction.

    They get their names last, and only then are those of the same names locked, so that a server's other writers wait
    for a moment and not for the whole log.

    Raises
    ------
    StoreError
        Some are there already, and are not to be replaced.
    """
    table = tables.streams
    names = [row.unique_id for row in streams]
    ids: dict[str, int] = {}
    mark = f"\x01{token_hex(8)}"  # what clients name is printable
    with engine.begin() as connection:
        lock_for_writing(connection)
        if not replace:
            _refuse(_found(connection, tables, names))
        for part in chunks(list(enumerate(names))):
            values = [streams[i]._asdict() | {"unique_id": f"{mark}{i}"} for i, _ in part]
            written = connection.execute(insert(table).returning(table.c.unique_id, table.c.id), values)
            ids.update((names[int(row[0].removeprefix(mark))], row[1]) for row in written)
        for rows in log:
            append(connection, [(ids[r.unique_id], r.step, value_of(r.y, r.covariates)) for r in rows])
        for states in snapshots:
            values = [
                {"stream_id": ids[s.unique_id], "model_key": s.model_key, "step": s.step, "state": s.state}
                for s in states
            ]
            if values:
                connection.execute(insert(tables.snapshots), values)
        there = _found(connection, tables, names)
        if not replace:
            _refuse(there)
        versions = _make_room(connection, tables, there)
        before = version_before_new(connection, tables.facts)
        named = [
            (ids[r.unique_id], r.unique_id, max(r.version, versions.get(r.unique_id, before) + 1)) for r in streams
        ]
        rename(connection, named)


def _found(connection: Connection, tables: Tables, names: Sequence[str]) -> dict[int, str]:
    """Those of these streams that are there: id → unique_id, in order of id."""
    streams = tables.streams.c
    found: dict[int, str] = {}
    for part in chunks(names):
        query = select(streams.id, streams.unique_id).where(streams.unique_id.in_(part))
        found.update((row[0], row[1]) for row in connection.execute(query))
    return dict(sorted(found.items()))


def _refuse(there: dict[int, str]) -> None:
    for unique_id in there.values():
        raise StoreError(f"stream {unique_id!r} is there already; nothing was changed (--replace replaces)")


def _make_room(connection: Connection, tables: Tables, there: dict[int, str]) -> dict[str, int]:
    """Forget streams, with the replies that tell what is no longer there; their versions by name."""
    streams = tables.streams.c
    versions: dict[str, int] = {}
    parts = list(chunks(list(there)))
    for part in parts:  # all of them first, in the order that other writers keep to
        locked = select(streams.unique_id, streams.version).where(streams.id.in_(part)).order_by(streams.id)
        versions.update((row[0], row[1]) for row in connection.execute(locked.with_for_update()))
    for part in parts:
        for table in (tables.observations, tables.snapshots):
            connection.execute(delete(table).where(table.c.stream_id.in_(part)))
        connection.execute(delete(tables.replies).where(tables.replies.c.unique_id.in_([there[i] for i in part])))
        connection.execute(delete(tables.streams).where(streams.id.in_(part)))
    return versions
