"""Trimming the log: where a stream's retained log begins is moved up to a snapshot, then what lies before is deleted.

It knows SQL and step numbers. Invariants: a log begins right after a snapshot of the serving model that holds all it
has lost; moving it up and voiding older snapshots is one transaction, after which the rows before count for nothing, so
they go in transactions as small as wanted, beside serving.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine, Select, bindparam, delete, func, select, update

from service.store.tables import Tables

__all__ = ["raise_floors", "sweep"]


def raise_floors(engine: Engine, tables: Tables, model_key: str, keep: int, ids: Sequence[int]) -> dict[int, int]:
    """Let logs begin after the newest snapshot that is at least `keep` steps old.

    Parameters
    ----------
    engine, tables
        The store.
    model_key
        Whose snapshots count: the model that serves.
    keep
        Steps of each log that stay, at least.
    ids
        Streams to look at.

    Returns
    -------
    Where the logs that moved begin now, by stream id.
    """
    query = _candidates(tables, model_key, keep, ids)
    with engine.connect() as connection:
        if not connection.execute(query).first():
            return {}
    streams, snapshots = tables.streams.c, tables.snapshots.c
    with engine.begin() as connection:
        # With the streams locked, no rewind can void the snapshots that are found now.
        _lock(connection, tables, ids)
        rows = [{"b_id": stream_id, "b_step": step} for stream_id, step in connection.execute(query)]
        if rows:
            moved = update(tables.streams).where(streams.id == bindparam("b_id"))
            connection.execute(moved.values(retained_step=bindparam("b_step") + 1), rows)
            void = delete(tables.snapshots).where(snapshots.stream_id == bindparam("b_id"))
            connection.execute(void.where(snapshots.step < bindparam("b_step")), rows)
    return {row["b_id"]: row["b_step"] + 1 for row in rows}


def _candidates(tables: Tables, model_key: str, keep: int, ids: Sequence[int]) -> Select[int, int]:
    streams, snapshots = tables.streams.c, tables.snapshots.c
    return (
        select(snapshots.stream_id, func.max(snapshots.step))
        .join_from(tables.snapshots, tables.streams, snapshots.stream_id == streams.id)
        .where(
            streams.id.in_(ids),
            snapshots.model_key == model_key,
            snapshots.step <= streams.last_step - keep,
            snapshots.step >= func.coalesce(streams.retained_step, streams.first_step),
        )
        .group_by(snapshots.stream_id)
    )


def sweep(engine: Engine, tables: Tables, ids: Sequence[int], rows: int) -> int:
    """Delete what lies before the retained logs, at most about `rows` rows in one transaction; returns how many.

    0 means that nothing is left to delete.
    """
    streams, observations = tables.streams.c, tables.observations.c
    first = (
        select(observations.step)
        .where(observations.stream_id == streams.id)
        .order_by(observations.step)
        .limit(1)
        .scalar_subquery()
    )
    query = select(streams.id, streams.retained_step, first).where(
        streams.id.in_(ids), streams.retained_step.is_not(None), first < streams.retained_step
    )
    with engine.connect() as connection:
        before = [row[0] for row in connection.execute(query.order_by(streams.id))]
    if not before:
        return 0
    gone = delete(tables.observations).where(
        observations.stream_id == bindparam("b_id"), observations.step < bindparam("b_step")
    )
    room, found = rows, []
    with engine.begin() as connection:
        # Locked and read again, because a log may have been replaced meanwhile by one that is whole.
        _lock(connection, tables, before)
        for stream_id, retained, start in connection.execute(query.where(streams.id.in_(before)).order_by(streams.id)):
            until = min(retained, start + max(room, 1))
            found.append({"b_id": stream_id, "b_step": until})
            room -= until - start
            if room <= 0:
                break
        return connection.execute(gone, found).rowcount if found else 0


def _lock(connection: Connection, tables: Tables, ids: Sequence[int]) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        streams = tables.streams.c
        connection.execute(select(streams.id).where(streams.id.in_(ids)).order_by(streams.id).with_for_update())
