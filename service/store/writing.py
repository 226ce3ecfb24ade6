"""What one micro-batch changes, as statements of one transaction.

It knows SQL, and nothing of when the transaction ends. Invariants: a stream's version grows by one with every change,
from above those of deleted streams; where another process was faster, nothing is written; statements are made once.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, delete, insert, select, update

from service.errors import StaleStreams
from service.store.database import chunks, lock_for_writing
from service.store.records import Changes, NewStream, StreamRecord
from service.store.statements import advance, append
from service.store.tables import Tables
from service.store.values import Covered, Value, y_of
from service.store.versions import note_deleted, version_before_new

__all__ = ["Writer"]


class Writer:
    """Writes changes.

    Parameters
    ----------
    tables
        Of the store.
    """

    def __init__(self, tables: Tables) -> None:
        self._facts = tables.facts
        observations, snapshots, streams = tables.observations, tables.snapshots, tables.streams
        stream_id: BindParameter[Any] = bindparam("b_id")
        ids: BindParameter[Any] = bindparam("b_ids", expanding=True)
        expected = streams.c.id == stream_id, streams.c.version == bindparam("b_expected")
        self._insert = insert(streams).returning(streams.c.id)
        self._replace = update(streams).where(*expected)
        # Locks the row and checks the version before the log goes.
        self._lock = update(streams).where(*expected).values(version=streams.c.version)
        self._forget_stream = delete(streams).where(streams.c.id == stream_id)
        self._number = update(streams).where(streams.c.id == stream_id).values(version=bindparam("b_version"))
        self._share = (
            select(streams.c.id, streams.c.version)
            .where(streams.c.id.in_(ids))
            .order_by(streams.c.id)
            .with_for_update(read=True)
        )
        self._retained = select(streams.c.id, streams.c.retained_step).where(streams.c.id.in_(ids))
        self._mark_rewound = update(streams).where(streams.c.id == stream_id).values(rewound_version=streams.c.version)
        self._update = (
            update(observations)
            .where(observations.c.stream_id == stream_id, observations.c.step == bindparam("b_step"))
            .values(y=bindparam("b_y"), covariates=bindparam("b_covariates"))
        )
        self._void = delete(snapshots).where(
            snapshots.c.stream_id == stream_id, snapshots.c.step >= bindparam("b_step")
        )
        self._clear_all = [delete(table).where(table.c.stream_id == stream_id) for table in (observations, snapshots)]
        self._clear_replies = delete(tables.replies).where(tables.replies.c.unique_id == bindparam("b_name"))

    def write(self, connection: Connection, changes: Changes) -> list[StreamRecord]:
        """Run the statements; records of the created streams, with their ids.

        Raises
        ------
        StaleStreams
            Another process changed or created one of the streams.
        """
        if changes.held:
            lock_for_writing(connection)  # on SQLite, a question alone holds nobody up
            self._hold(connection, dict(changes.held))
        if changes.streams:
            self._advance_streams(connection, changes.streams)
        created = [self._create(connection, new) for new in changes.created]
        if any(new.replaces is None for new in changes.created):
            created = self._numbered(connection, changes.created, created)
        if changes.deleted:
            self._forget(connection, changes.deleted)
        # In the order of the table, so that each page of it is met once.
        append(connection, sorted(changes.inserted))
        if changes.updated:
            connection.execute(self._update, [_changed(*row) for row in changes.updated])
        if changes.rewound:
            self._check_retained(connection, changes)
            connection.execute(self._void, [{"b_id": i, "b_step": s} for i, s in changes.rewound])
            connection.execute(self._mark_rewound, [{"b_id": i} for i, _ in changes.rewound])
        return created

    def _hold(self, connection: Connection, versions: dict[int, int]) -> None:
        """Have whoever would change or delete these streams wait, in order of id like those who do."""
        for chunk in chunks(sorted(versions)):
            for stream_id, version in connection.execute(self._share, {"b_ids": chunk}):
                if versions[stream_id] == version:
                    del versions[stream_id]
        if versions:
            raise StaleStreams(())  # whose they are shows at their next touch

    def _advance_streams(self, connection: Connection, streams: list[tuple[StreamRecord, int]]) -> None:
        # In order of id, so that two processes seldom wait for each other's row locks.
        rows = sorted((r.id, version, r.last_step, r.observations, r.missing) for r, version in streams)
        if advance(connection, rows) != len(rows):
            raise StaleStreams(record.unique_id for record, _ in streams)

    def _check_retained(self, connection: Connection, changes: Changes) -> None:
        # Trimming changes no version. Its own update waits for ours of the same rows, so what is read here stays.
        rewound = {stream_id for stream_id, _ in changes.rewound}
        records = {record.id: record for record, _ in changes.streams if record.id in rewound}
        for chunk in chunks(list(records)):
            for stream_id, retained in connection.execute(self._retained, {"b_ids": chunk}):
                if retained == records[stream_id].retained_step:
                    del records[stream_id]
        if records:
            raise StaleStreams(record.unique_id for record in records.values())

    def _create(self, connection: Connection, new: NewStream) -> StreamRecord:
        record = new.record
        values: dict[str, Any] = {name: getattr(record, name) for name in record._fields if name != "id"}
        if new.replaces is None:
            stream_id = connection.execute(self._insert, values).scalar_one()
        else:
            stream_id = new.replaces.id
            values["rewound_version"] = record.version
            expected = {"b_id": stream_id, "b_expected": new.replaces.version}
            if connection.execute(self._replace, values | expected).rowcount != 1:
                raise StaleStreams([record.unique_id])
            self._clear(connection, stream_id, record.unique_id)
        append(connection, [(stream_id, s, y) for s, y in new.rows])
        return record._replace(id=stream_id)

    def _numbered(
        self, connection: Connection, news: list[NewStream], created: list[StreamRecord]
    ) -> list[StreamRecord]:
        """The created streams, new ones with versions that no deleted one had."""
        before = version_before_new(connection, self._facts)
        if not before:
            return created
        records = [
            record._replace(version=before + record.version) if new.replaces is None else record
            for new, record in zip(news, created, strict=True)
        ]
        connection.execute(self._number, [{"b_id": record.id, "b_version": record.version} for record in records])
        return records

    def _forget(self, connection: Connection, records: list[StreamRecord]) -> None:
        for record in records:
            if connection.execute(self._lock, {"b_id": record.id, "b_expected": record.version}).rowcount != 1:
                raise StaleStreams([record.unique_id])
            self._clear(connection, record.id, record.unique_id)
            connection.execute(self._forget_stream, {"b_id": record.id})
        note_deleted(connection, self._facts, max(record.version for record in records))

    def _clear(self, connection: Connection, stream_id: int, unique_id: str) -> None:
        """Let go of a log, its snapshots, and the replies that tell what is in it no longer."""
        for statement in self._clear_all:
            connection.execute(statement, {"b_id": stream_id})
        connection.execute(self._clear_replies, {"b_name": unique_id})


def _changed(stream_id: int, step: int, value: Value) -> dict[str, Any]:
    covariates = value.covariates if isinstance(value, Covered) else None
    return {"b_id": stream_id, "b_step": step, "b_y": y_of(value), "b_covariates": covariates}
