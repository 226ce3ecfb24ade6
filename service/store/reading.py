"""What requests need of the store: snapshots and logs to rebuild states from, versions, and what is in the log already.

It knows SQL and bytes. Invariant: statements are made once, not with every read. Those of SQLAlchemy are in cycles,
which only the garbage collector finds, and it would stop every request for a tenth of a second while it looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, and_, bindparam, func, select

from service.errors import StaleStreams
from service.store.database import BEFORE_ALL, chunks
from service.store.records import Recovery, StreamRecord
from service.store.tables import Tables
from service.store.values import Value, value_of

__all__ = ["Reader"]

_LAST = 2**62  # a step after any


class Reader:
    """Reads for requests.

    Parameters
    ----------
    tables
        Of the store.
    """

    def __init__(self, tables: Tables) -> None:
        streams, snapshots, observations = tables.streams, tables.snapshots.c, tables.observations.c
        ids: BindParameter[Any] = bindparam("b_ids", expanding=True)
        model_key: BindParameter[Any] = bindparam("b_model_key")
        columns = select(observations.stream_id, observations.step, observations.y, observations.covariates)
        self._by_name = select(streams).where(streams.c.unique_id.in_(bindparam("b_names", expanding=True)))
        self._by_id = select(streams).where(streams.c.id == bindparam("b_id"))
        newest = (
            select(snapshots.stream_id, func.max(snapshots.step).label("step"))
            .where(snapshots.stream_id.in_(ids), snapshots.model_key == model_key)
            .group_by(snapshots.stream_id)
            .subquery()
        )
        self._states = select(snapshots.stream_id, snapshots.step, snapshots.state).join(
            newest,
            and_(
                snapshots.stream_id == newest.c.stream_id,
                snapshots.step == newest.c.step,
                snapshots.model_key == model_key,
            ),
        )
        self._tails = (
            columns.outerjoin_from(tables.observations, newest, observations.stream_id == newest.c.stream_id)
            .where(observations.stream_id.in_(ids), observations.step > func.coalesce(newest.c.step, BEFORE_ALL))
            .order_by(observations.stream_id, observations.step)
        )
        self._versions = select(streams.c.id, streams.c.version, streams.c.retained_step).where(streams.c.id.in_(ids))
        self._has_only_grown = select(streams.c.id).where(
            streams.c.id == bindparam("b_id"),
            func.coalesce(streams.c.rewound_version, 0) <= bindparam("b_version"),
            streams.c.retained_step.is_not_distinct_from(bindparam("b_retained")),
        )
        self._between = columns.where(
            observations.stream_id.in_(ids), observations.step.between(bindparam("b_first"), bindparam("b_last"))
        )
        self._among = columns.where(
            observations.stream_id == bindparam("b_id"),
            observations.step.in_(bindparam("b_steps", expanding=True)),
        )
        self._state_before = (
            select(snapshots.step, snapshots.state)
            .where(
                snapshots.stream_id == bindparam("b_id"),
                snapshots.model_key == model_key,
                snapshots.step < bindparam("b_step"),
            )
            .order_by(snapshots.step.desc())
            .offset(bindparam("b_skip"))
            .limit(1)
        )
        self._log = (
            select(observations.step, observations.y, observations.covariates)
            .where(
                observations.stream_id == bindparam("b_id"),
                observations.step > bindparam("b_after"),
                observations.step <= bindparam("b_until"),
            )
            .order_by(observations.step)
        )

    def records(self, connection: Connection, unique_ids: Sequence[str]) -> list[StreamRecord]:
        """Streams by name, those that exist."""
        found: list[StreamRecord] = []
        for chunk in chunks(unique_ids):
            found.extend(StreamRecord(*row) for row in connection.execute(self._by_name, {"b_names": chunk}))
        return found

    def recover(
        self, connection: Connection, unique_ids: Sequence[str], model_key: str, most: float, longest: float
    ) -> tuple[dict[str, Recovery], list[str]]:
        """Latest snapshots and the log after them; see `Store.recover_some`."""
        found: dict[str, Recovery] = {}
        left: list[str] = []
        for chunk in chunks(unique_ids):
            if left:
                left.extend(chunk)
                continue
            records = self.records(connection, chunk)
            if not records:
                continue  # new names, as a rule
            states = self._latest_states(connection, [record.id for record in records], model_key)
            chosen: list[StreamRecord] = []
            too_long: set[int] = set()
            for record in records:
                steps = record.last_step - (states[record.id][0] if record.id in states else record.log_step - 1)
                if steps > longest:
                    chosen.append(record)
                    too_long.add(record.id)
                    continue
                most -= steps
                if most >= 0 or not (found or chosen):
                    chosen.append(record)
                    if most < 0:
                        too_long.add(record.id)
                else:
                    left.append(record.unique_id)
            tails = self._latest_tails(connection, [r.id for r in chosen if r.id not in too_long], model_key)
            for record in chosen:
                step, state = states.get(record.id, (None, None))
                tail = tails.get(record.id, [])
                if state is None and record.retained_step is not None:
                    tail = [row for row in tail if row[0] >= record.retained_step]
                found[record.unique_id] = Recovery(record, state, step, tail, record.id in too_long)
        return found, left

    def _latest_states(
        self, connection: Connection, ids: Sequence[int], model_key: str
    ) -> dict[int, tuple[int, bytes]]:
        """Stream id → step and state of the latest snapshot."""
        rows = connection.execute(self._states, {"b_ids": ids, "b_model_key": model_key})
        return {row[0]: (row[1], row[2]) for row in rows}

    def _latest_tails(
        self, connection: Connection, ids: Sequence[int], model_key: str
    ) -> dict[int, list[tuple[int, Value]]]:
        """Stream id → (step, value) of the log after the latest snapshot."""
        tails: dict[int, list[tuple[int, Value]]] = {i: [] for i in ids}
        rows = connection.execute(self._tails, {"b_ids": ids, "b_model_key": model_key})
        for stream_id, step, y, covariates in rows:
            tails[stream_id].append((step, value_of(y, covariates)))
        return tails

    def recover_before(
        self, connection: Connection, record: StreamRecord, model_key: str, step: int, skip: int, most: float
    ) -> Recovery:
        """A snapshot that has not folded `step`, and the log after it; see `Store.recover_before`.

        Raises
        ------
        StaleStreams
            The stream is gone.
        """
        row = connection.execute(self._by_id, {"b_id": record.id}).one_or_none()
        if row is None:
            raise StaleStreams([record.unique_id])
        now = StreamRecord(*row)
        wanted = {"b_id": record.id, "b_model_key": model_key, "b_step": step, "b_skip": skip}
        found = connection.execute(self._state_before, wanted).one_or_none()
        after = now.log_step - 1 if found is None else found[0]
        too_long = now.last_step - after > most
        tail = [] if too_long else self.log(connection, record.id, after)
        return Recovery(now, found and found[1], found and found[0], tail, too_long)

    def log(
        self, connection: Connection, stream_id: int, after: int | None, until: int | None = None
    ) -> list[tuple[int, Value]]:
        """(step, value) of the log of one stream after a step, up to another one, in order."""
        wanted = {
            "b_id": stream_id,
            "b_after": BEFORE_ALL if after is None else after,
            "b_until": _LAST if until is None else until,
        }
        return [(row[0], value_of(row[1], row[2])) for row in connection.execute(self._log, wanted)]

    def versions(self, connection: Connection, stream_ids: Sequence[int]) -> dict[int, tuple[int, int | None]]:
        """Stream id → (version, retained step), of those that exist."""
        found: dict[int, tuple[int, int | None]] = {}
        for chunk in chunks(stream_ids):
            rows = connection.execute(self._versions, {"b_ids": chunk})
            found.update((row[0], (row[1], row[2])) for row in rows)
        return found

    def has_only_grown(self, connection: Connection, record: StreamRecord) -> bool:
        """Whether all of a log that was retained is there still, as it was."""
        wanted = {"b_id": record.id, "b_version": record.version, "b_retained": record.retained_step}
        return connection.execute(self._has_only_grown, wanted).first() is not None

    def known(self, connection: Connection, wanted: Mapping[int, Sequence[int]]) -> dict[int, dict[int, Value]]:
        """Stream id → (step → value) of the log's rows, at least of those among the wanted steps."""
        asked = sum(len(steps) for steps in wanted.values())
        first, last = min(map(min, wanted.values())), max(map(max, wanted.values()))
        if (last - first + 1) * len(wanted) <= 4 * asked + 1000:
            # Usual for a repeated bulk body: many streams, the same few steps.
            query = self._between
            parts = [{"b_ids": chunk, "b_first": first, "b_last": last} for chunk in chunks(list(wanted))]
        else:
            query = self._among
            parts = [
                {"b_id": stream_id, "b_steps": chunk}
                for stream_id, steps in wanted.items()
                for chunk in chunks(sorted(set(steps)))
            ]
        found: dict[int, dict[int, Value]] = {stream_id: {} for stream_id in wanted}
        for part in parts:
            for stream_id, step, y, covariates in connection.execute(query, part):
                found[stream_id][step] = value_of(y, covariates)
        return found
