"""Snapshots of states: written while streams go on, thinned out, and forgotten with their models.

It knows SQL and bytes. Invariants: none outlives a change of the log before its step, and none is older than the
retained log needs, so whatever snapshot there is, the log after it is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, delete, func, insert, select

from service.store.database import BEFORE_ALL, chunks, lock_for_writing
from service.store.records import StreamRecord
from service.store.tables import Tables

__all__ = ["drop_snapshots", "save_snapshots"]


def save_snapshots(
    connection: Connection, tables: Tables, model_key: str, states: Mapping[StreamRecord, bytes], bases: int
) -> int:
    """Store states, each only if its stream's log has at most grown since.

    The two newest snapshots of a stream and model remain, and the one that a trimmed log begins after.

    Parameters
    ----------
    connection, tables
        The store, in a transaction that has done nothing yet.
    model_key
        Which weights the states belong to.
    states
        Stream record as of the state → bytes of the state.
    bases
        How many of the oldest remain besides, to trim the log to one day.

    Returns
    -------
    How many were stored.
    """
    streams, snapshots = tables.streams.c, tables.snapshots.c
    lock_for_writing(connection)
    valid: dict[int, tuple[range, int]] = {}  # versions, and the least step: the retained log follows it
    spared: dict[int, int] = {}
    older: dict[int, list[int]] = {}
    for chunk in chunks([record.id for record in states]):
        # The locks keep another process's rewind from slipping in between.
        query = select(streams.id, streams.version, streams.rewound_version, streams.retained_step)
        locked = query.where(streams.id.in_(chunk)).order_by(streams.id).with_for_update()
        for stream_id, version, rewound, retained in connection.execute(locked):
            valid[stream_id] = (
                range(rewound or 0, version + 1),
                BEFORE_ALL if retained is None else retained - 1,
            )
            spared[stream_id] = bases if retained is None else max(bases, 1)
        stored = select(snapshots.stream_id, snapshots.step).where(
            snapshots.stream_id.in_(chunk), snapshots.model_key == model_key
        )
        for stream_id, step in connection.execute(stored.order_by(snapshots.step.desc())):
            older.setdefault(stream_id, []).append(step)
    fresh: list[dict[str, Any]] = []
    for record, state in states.items():
        versions, least = valid.get(record.id, (range(0), 0))
        step = record.last_step
        if record.version in versions and step >= least and step not in older.get(record.id, ()):
            fresh.append({"stream_id": record.id, "model_key": model_key, "step": step, "state": state})
    if not fresh:
        return 0
    connection.execute(insert(tables.snapshots), fresh)
    _thin(connection, tables, model_key, [(row["stream_id"], row["step"]) for row in fresh], older, spared)
    return len(fresh)


def _thin(
    connection: Connection,
    tables: Tables,
    model_key: str,
    fresh: Sequence[tuple[int, int]],
    older: Mapping[int, Sequence[int]],
    spared: Mapping[int, int],
) -> None:
    """Forget what lies between the two newest snapshots of a stream and as many of the oldest as are spared."""
    snapshots = tables.snapshots.c
    stale = []
    for stream_id, step in fresh:
        # Where another process was faster, what is fresh is not the newest.
        steps = sorted([*older.get(stream_id, []), step], reverse=True)
        count = spared[stream_id]
        if len(steps) > 2 + count:
            oldest = steps[-count] if count else BEFORE_ALL
            stale.append({"b_id": stream_id, "b_after": oldest, "b_before": steps[1]})
    if stale:
        connection.execute(
            delete(tables.snapshots).where(
                snapshots.stream_id == bindparam("b_id"),
                snapshots.model_key == model_key,
                snapshots.step > bindparam("b_after"),
                snapshots.step < bindparam("b_before"),
            ),
            stale,
        )


def drop_snapshots(engine: Engine, tables: Tables, keep: Iterable[str], after: int, limit: int) -> int | None:
    """Forget the snapshots of all models but those in `keep`, of up to `limit` streams whose id is above `after`.

    Returns
    -------
    The last of these ids; None if there were none.
    """
    streams, snapshots = tables.streams.c, tables.snapshots.c
    page = select(streams.id).where(streams.id > after).order_by(streams.id).limit(limit).subquery()
    with engine.connect() as connection:
        last: int | None = connection.execute(select(func.max(page.c.id))).scalar()
    if last is not None:
        gone = delete(tables.snapshots).where(
            snapshots.stream_id.between(after + 1, last), snapshots.model_key.not_in(list(keep))
        )
        with engine.begin() as connection:
            connection.execute(gone)
    return last
