"""The store: the observation log, which is the truth, and snapshots of states, which only make recovery fast.

It knows SQL and step numbers; no calendar, no model, no HTTP. Invariants: one `commit` is one transaction and returns
only when it is durable; a stream's version grows by one with every change, from above those of deleted streams, and a
commit that expected another version changes nothing; no snapshot outlives a change of the log before its step, and none
is older than the retained log needs, so whatever snapshot there is, the log after it is whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from secrets import token_hex
from threading import Lock
from typing import Any, NamedTuple, Self, TypeVar

from sqlalchemy import Connection, Engine, Subquery, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from service.errors import StaleStreams, StoreError, UnknownOutcome
from service.store.copying import Dump, LogRow, SnapshotRow, StreamRow, dump, load
from service.store.database import open_database, reading
from service.store.replies import StoredReply, forget_replies, read_replies, write_replies
from service.store.schema import prepare_schema
from service.store.statements import advance, append
from service.store.tables import Tables, build_tables
from service.store.trimming import raise_floors, sweep
from service.store.values import Covered, Value, value_of, y_of
from service.store.versions import note_deleted, version_before_new

__all__ = ["Changes", "Filter", "NewStream", "Recovery", "Store", "StreamRecord"]

_CHUNK = 500  # parameters of one IN list
_BEFORE_ALL = -(2**62)
_LOST_RACES = ("40P01", "40001")  # PostgreSQL: deadlock, serialisation failure
_SLEPT = "25P03"  # PostgreSQL has undone a transaction in which nothing happened for too long
_T = TypeVar("_T")


class StreamRecord(NamedTuple):
    """One row of the stream table.

    `retained_step` None: nothing has been trimmed. `rewound_version`: since that change of the log before its end, it
    has only grown; None: it never did anything else.
    """

    id: int
    unique_id: str
    first_step: int
    last_step: int
    version: int
    observations: int
    missing: int
    static: str | None = None
    retained_step: int | None = None
    rewound_version: int | None = None

    @property
    def log_step(self) -> int:
        """First step of the log that is retained."""
        return self.first_step if self.retained_step is None else self.retained_step


class Filter(NamedTuple):
    """Which streams to list: by the beginning of their name, and where they stand (`last_step` from, and before)."""

    prefix: str = ""
    first: int | None = None
    before: int | None = None


class Recovery(NamedTuple):
    """What is needed to rebuild one state: a snapshot, if there is one, and the log after it.

    A log that is too long to be held at once is not in `tail` but to be read a stretch at a time.
    """

    record: StreamRecord
    snapshot: bytes | None
    snapshot_step: int | None
    tail: list[tuple[int, Value]]
    too_long: bool = False


class NewStream(NamedTuple):
    """A stream to create (`replaces` None) or to replace, with its whole log."""

    record: StreamRecord
    replaces: StreamRecord | None
    rows: list[tuple[int, Value]]


@dataclass(slots=True)
class Changes:
    """Everything one micro-batch changes.

    Attributes
    ----------
    inserted, updated
        (stream id, step, value) of log rows.
    streams
        (record after the change, version before it).
    rewound
        (stream id, step): snapshots from this step on are void.
    created
        Streams with a new log.
    deleted
        Streams to forget.
    """

    inserted: list[tuple[int, int, Value]] = field(default_factory=list)
    updated: list[tuple[int, int, Value]] = field(default_factory=list)
    streams: list[tuple[StreamRecord, int]] = field(default_factory=list)
    rewound: list[tuple[int, int]] = field(default_factory=list)
    created: list[NewStream] = field(default_factory=list)
    deleted: list[StreamRecord] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.streams or self.created or self.deleted)


class Store:
    """Observation log and snapshots in one SQL database.

    Parameters
    ----------
    engine, tables
        An opened database whose schema is ready, and its description; see `Store.open`.
    """

    def __init__(self, engine: Engine, tables: Tables) -> None:
        self._engine = engine
        self._tables = tables
        # SQLite tells a connection whether anybody else has written, so what serving writes goes over one and the same.
        self._own = engine.connect() if self.is_embedded else None
        self._turn = Lock()
        self._moments = count(1)
        observations, snapshots = tables.observations.c, tables.snapshots.c
        self._update = (
            update(tables.observations)
            .where(observations.stream_id == bindparam("b_id"), observations.step == bindparam("b_step"))
            .values(y=bindparam("b_y"), covariates=bindparam("b_covariates"))
        )
        self._void = delete(tables.snapshots).where(
            snapshots.stream_id == bindparam("b_id"), snapshots.step >= bindparam("b_step")
        )
        streams = tables.streams
        self._mark_rewound = (
            update(streams).where(streams.c.id == bindparam("b_id")).values(rewound_version=streams.c.version)
        )

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a store by URL, creating its schema where it is new and upgrading it where it is old.

        Raises
        ------
        StoreError
            The URL is not understood, the database cannot be reached, or its schema is newer than this code.
        """
        engine = open_database(url)
        try:
            prepare_schema(engine)
        except StoreError:
            engine.dispose()
            raise
        return cls(engine, build_tables())

    def close(self) -> None:
        """Close all connections."""
        if self._own is not None:
            self._own.close()
        self._engine.dispose()

    @property
    def is_embedded(self) -> bool:
        """Whether this is a SQLite file."""
        return self._engine.dialect.name == "sqlite"

    # -- facts -----------------------------------------------------------------------------------------------------

    def claim_calendar(self, freq: str, time_zone: str | None) -> None:
        """Bind a new store to a calendar; step numbers mean nothing without it.

        Raises
        ------
        StoreError
            The store already holds steps of another calendar.
        """
        wanted = f"{freq} {time_zone or ''}".strip()
        facts = self._tables.facts
        query = select(facts.c.value).where(facts.c.name == "calendar")
        for _ in range(2):
            try:
                with self._engine.begin() as connection:
                    found = connection.execute(query).scalar()
                    if found is None:
                        connection.execute(insert(facts).values(name="calendar", value=wanted))
                        found = wanted
            except IntegrityError:
                continue  # another process was first; see what it wrote
            if found != wanted:
                raise StoreError(f"the store holds streams of freq {found!r}, but the model has freq {wanted!r}")
            return

    def calendar(self) -> tuple[str, str | None] | None:
        """Frequency and time zone that the store is bound to; None for a new one."""
        facts = self._tables.facts
        with self._engine.connect() as connection:
            found = connection.execute(select(facts.c.value).where(facts.c.name == "calendar")).scalar()
        if found is None:
            return None
        freq, _, time_zone = found.partition(" ")
        return freq, time_zone or None

    def probe(self) -> None:
        """Write something durably.

        Raises
        ------
        SQLAlchemyError
            It cannot be done at present.
        """
        facts = self._tables.facts
        # SQLite writes nothing where a row gets the value that it has.
        value = token_hex(8)
        with self._engine.begin() as connection:
            if not connection.execute(update(facts).where(facts.c.name == "probe").values(value=value)).rowcount:
                connection.execute(insert(facts).values(name="probe", value=value))

    # -- who else writes -------------------------------------------------------------------------------------------

    def moment(self) -> int:
        """A number that is another one than before if somebody else may have written since.

        What `commit`, `save_snapshots` and `forget_replies` of this store write does not count where that can be told,
        on SQLite; with a server, every moment is another one.
        """
        if self._own is None:
            return next(self._moments)
        with self._turn:
            return _data_version(self._own)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that makes no new moment for this store."""
        if self._own is None:
            with self._engine.begin() as connection:
                yield connection
        else:
            with self._turn, self._own.begin():
                yield self._own

    # -- reading ---------------------------------------------------------------------------------------------------

    def page(self, after: str, limit: int, chosen: Filter | None = None) -> list[StreamRecord]:
        """Up to `limit` streams whose unique_id sorts after `after`, those that are chosen."""
        streams = self._tables.streams
        prefix, first, before = chosen or Filter()
        query = select(streams).where(streams.c.unique_id > after).order_by(streams.c.unique_id).limit(limit)
        if prefix:
            # LIKE would take upper for lower case on SQLite.
            query = query.where(func.substr(streams.c.unique_id, 1, len(prefix)) == prefix)
            if self.is_embedded:
                # There names sort by code point, so the index can skip what comes before and after.
                query = query.where(streams.c.unique_id.between(prefix, prefix + chr(0x10FFFF)))
        if first is not None:
            query = query.where(streams.c.last_step >= first)
        if before is not None:
            query = query.where(streams.c.last_step < before)
        with self._engine.connect() as connection:
            return [StreamRecord(*row) for row in connection.execute(query)]

    def count(self) -> int:
        """How many streams there are."""
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(self._tables.streams)).scalar_one()

    def page_by_id(self, after: int, limit: int) -> list[StreamRecord]:
        """Up to `limit` streams whose id is above `after`."""
        streams = self._tables.streams
        query = select(streams).where(streams.c.id > after).order_by(streams.c.id).limit(limit)
        with self._engine.connect() as connection:
            return [StreamRecord(*row) for row in connection.execute(query)]

    def versions(self, stream_ids: Sequence[int]) -> dict[int, tuple[int, int | None]]:
        """Stream id → (version, retained step), of those that exist."""
        streams = self._tables.streams.c
        found: dict[int, tuple[int, int | None]] = {}
        with self._engine.connect() as connection:
            for chunk in _chunks(stream_ids):
                query = select(streams.id, streams.version, streams.retained_step).where(streams.id.in_(chunk))
                found.update((row[0], (row[1], row[2])) for row in connection.execute(query))
        return found

    def has_only_grown(self, record: StreamRecord) -> bool:
        """Whether all of a log that was retained is there still, as it was."""
        c = self._tables.streams.c
        query = select(c.id).where(
            c.id == record.id,
            func.coalesce(c.rewound_version, 0) <= record.version,
            c.retained_step.is_not_distinct_from(record.retained_step),
        )
        with self._engine.connect() as connection:
            return connection.execute(query).first() is not None

    def known(self, wanted: Mapping[int, Sequence[int]]) -> dict[int, dict[int, Value]]:
        """Stream id → (step → value) of the log's rows, at least of those among the wanted steps."""
        found: dict[int, dict[int, Value]] = {stream_id: {} for stream_id in wanted}
        lows = {stream_id: min(steps) for stream_id, steps in wanted.items()}
        highs = {stream_id: max(steps) for stream_id, steps in wanted.items()}
        asked = sum(len(steps) for steps in wanted.values())
        low, high = min(lows.values()), max(highs.values())
        observations = self._tables.observations.c
        columns = select(observations.stream_id, observations.step, observations.y, observations.covariates)
        with self._engine.connect() as connection:
            if (high - low + 1) * len(wanted) <= 4 * asked + 1000:
                # Usual for a repeated bulk body: many streams, the same few steps.
                queries = [
                    columns.where(observations.stream_id.in_(chunk), observations.step.between(low, high))
                    for chunk in _chunks(list(wanted))
                ]
            else:
                queries = [
                    columns.where(observations.stream_id == stream_id, observations.step.in_(chunk))
                    for stream_id, steps in wanted.items()
                    for chunk in _chunks(sorted(set(steps)))
                ]
            for query in queries:
                for stream_id, step, y, covariates in connection.execute(query):
                    found[stream_id][step] = value_of(y, covariates)
        return found

    def unfolded(self, unique_ids: Sequence[str], model_key: str) -> dict[str, int]:
        """unique_id → steps of the log after the latest snapshot, of those streams that exist."""
        streams, snapshots = self._tables.streams.c, self._tables.snapshots.c
        begin = func.coalesce(streams.retained_step, streams.first_step) - 1
        query = (
            select(streams.unique_id, streams.last_step - func.coalesce(func.max(snapshots.step), begin))
            .outerjoin_from(
                self._tables.streams,
                self._tables.snapshots,
                and_(snapshots.stream_id == streams.id, snapshots.model_key == model_key),
            )
            .group_by(streams.id)
        )
        found: dict[str, int] = {}
        with self._engine.connect() as connection:
            for chunk in _chunks(unique_ids):
                found.update((row[0], row[1]) for row in connection.execute(query.where(streams.unique_id.in_(chunk))))
        return found

    def recover(self, unique_ids: Sequence[str], model_key: str) -> dict[str, Recovery]:
        """Latest snapshot and the log after it, of those streams that exist, all seen at one moment."""
        return self.recover_some(unique_ids, model_key, math.inf)[0]

    def recover_some(
        self, unique_ids: Sequence[str], model_key: str, most: float, longest: float = math.inf
    ) -> tuple[dict[str, Recovery], list[str]]:
        """As `recover`, of as many streams as have `most` steps after their snapshots together, at least one.

        One that has more by itself, or more than `longest`, is found without its log.

        Returns
        -------
        found, left
            Those, and the streams that are to be asked for again.
        """
        streams = self._tables.streams
        found: dict[str, Recovery] = {}
        left: list[str] = []
        with reading(self._engine) as connection:
            for chunk in _chunks(unique_ids):
                if left:
                    left.extend(chunk)
                    continue
                records = [
                    StreamRecord(*row)
                    for row in connection.execute(select(streams).where(streams.c.unique_id.in_(chunk)))
                ]
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
                tails = self._tails(connection, [r.id for r in chosen if r.id not in too_long], model_key)
                for record in chosen:
                    step, state = states.get(record.id, (None, None))
                    tail = tails.get(record.id, [])
                    if state is None and record.retained_step is not None:
                        tail = [row for row in tail if row[0] >= record.retained_step]
                    found[record.unique_id] = Recovery(record, state, step, tail, record.id in too_long)
        return found, left

    def _newest(self, ids: Sequence[int], model_key: str) -> Subquery:
        """Of each stream, the step of its latest snapshot."""
        snapshots = self._tables.snapshots.c
        return (
            select(snapshots.stream_id, func.max(snapshots.step).label("step"))
            .where(snapshots.stream_id.in_(ids), snapshots.model_key == model_key)
            .group_by(snapshots.stream_id)
            .subquery()
        )

    def _latest_states(
        self, connection: Connection, ids: Sequence[int], model_key: str
    ) -> dict[int, tuple[int, bytes]]:
        """Stream id → step and state of the latest snapshot."""
        snapshots, newest = self._tables.snapshots.c, self._newest(ids, model_key)
        query = select(snapshots.stream_id, snapshots.step, snapshots.state).join(
            newest,
            and_(
                snapshots.stream_id == newest.c.stream_id,
                snapshots.step == newest.c.step,
                snapshots.model_key == model_key,
            ),
        )
        return {row[0]: (row[1], row[2]) for row in connection.execute(query)}

    def _tails(self, connection: Connection, ids: Sequence[int], model_key: str) -> dict[int, list[tuple[int, Value]]]:
        """Stream id → (step, value) of the log after the latest snapshot."""
        observations, newest = self._tables.observations.c, self._newest(ids, model_key)
        query = (
            select(observations.stream_id, observations.step, observations.y, observations.covariates)
            .outerjoin_from(self._tables.observations, newest, observations.stream_id == newest.c.stream_id)
            .where(observations.stream_id.in_(ids), observations.step > func.coalesce(newest.c.step, _BEFORE_ALL))
            .order_by(observations.stream_id, observations.step)
        )
        rows: dict[int, list[tuple[int, Value]]] = {i: [] for i in ids}
        for stream_id, step, y, covariates in connection.execute(query):
            rows[stream_id].append((step, value_of(y, covariates)))
        return rows

    def recover_before(
        self, record: StreamRecord, model_key: str, step: int, skip: int = 0, most: float = math.inf
    ) -> Recovery:
        """A snapshot of one stream that has not folded `step`, and the log after it, seen at one moment.

        Parameters
        ----------
        record
            Of the stream.
        model_key
            Which weights the snapshot belongs to.
        step
            The snapshot is older than this.
        skip
            How many of the newest such snapshots to pass over; beyond the oldest there is none, and the log is all
            that is retained.
        most
            Steps of a log that may be held at once; a longer one is found without.

        Raises
        ------
        StaleStreams
            The stream is gone.
        """
        streams, snapshots = self._tables.streams, self._tables.snapshots.c
        query = (
            select(snapshots.step, snapshots.state)
            .where(snapshots.stream_id == record.id, snapshots.model_key == model_key, snapshots.step < step)
            .order_by(snapshots.step.desc())
            .offset(skip)
            .limit(1)
        )
        with reading(self._engine) as connection:
            row = connection.execute(select(streams).where(streams.c.id == record.id)).one_or_none()
            if row is None:
                raise StaleStreams([record.unique_id])
            now = StreamRecord(*row)
            found = connection.execute(query).one_or_none()
            after = now.log_step - 1 if found is None else found[0]
            too_long = now.last_step - after > most
            tail = [] if too_long else self._log(connection, record.id, after)
        return Recovery(now, found and found[1], found and found[0], tail, too_long)

    def log(self, stream_id: int, after: int | None = None, until: int | None = None) -> list[tuple[int, Value]]:
        """(step, value) of the log of one stream after a step, up to another one, in order."""
        with self._engine.connect() as connection:
            return self._log(connection, stream_id, after, until)

    def _log(
        self, connection: Connection, stream_id: int, after: int | None, until: int | None = None
    ) -> list[tuple[int, Value]]:
        observations = self._tables.observations.c
        query = (
            select(observations.step, observations.y, observations.covariates)
            .where(observations.stream_id == stream_id, observations.step > (_BEFORE_ALL if after is None else after))
            .order_by(observations.step)
        )
        if until is not None:
            query = query.where(observations.step <= until)
        return [(row[0], value_of(row[1], row[2])) for row in connection.execute(query)]

    def replies(self, wanted: Sequence[tuple[str, str]], since: int) -> dict[tuple[str, str], StoredReply]:
        """Replies by (unique_id, key text), of those that were kept since a time."""
        with self._engine.connect() as connection:
            return read_replies(connection, self._tables.replies, wanted, since)

    @contextmanager
    def dump(self, until: int | None = None) -> Iterator[Dump]:
        """Everything up to a step, seen at one moment, while the context lasts; see `service.store.copying`."""
        yield from dump(self._engine, self._tables, until)

    # -- writing ---------------------------------------------------------------------------------------------------

    def commit(
        self,
        changes: Changes,
        proceed: Future[list[StoredReply]] | None = None,
        replies_since: int = 0,
        moment: int | None = None,
    ) -> list[StreamRecord]:
        """Make a micro-batch durable, in one transaction.

        Parameters
        ----------
        changes
            What to write.
        proceed
            The statements run at once, but the transaction ends only when this has a result, and is undone if it fails;
            its exception is raised then. The result are replies to keep. None: nothing to wait for.
        replies_since
            Replies that were kept before are overwritten.
        moment
            Of a SQLite file: write only if it is still at this one. None: whatever else has been written.

        Returns
        -------
        Records of the created streams, with their ids.

        Raises
        ------
        StaleStreams
            Another process changed or created one of the streams, or any if there is a `moment`; nothing was written.
        UnknownOutcome
            The database failed while the transaction ended, or the connection to it did.
        SQLAlchemyError
            The database failed before that; nothing was written.
        """
        created: list[StreamRecord] = []
        ending = False
        try:
            with self._writing() as connection:
                if moment is not None and _data_version(connection) != moment:
                    raise StaleStreams(())  # whose they are shows at their next touch
                if changes.streams:
                    self._advance_streams(connection, changes.streams)
                created.extend(self._create(connection, new) for new in changes.created)
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
                if proceed is not None and (replies := proceed.result()):
                    write_replies(connection, replies, replies_since)
                ending = True
        except IntegrityError as error:
            # Only another writer can have put a row where this process saw none.
            names = [record.unique_id for record, _ in changes.streams] + [n.record.unique_id for n in changes.created]
            raise StaleStreams(names) from error
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state in _LOST_RACES:
                # The server has undone this one of two transactions that waited for each other.
                raise StaleStreams(record.unique_id for record, _ in changes.streams) from error
            if ending and state != _SLEPT:
                raise UnknownOutcome(f"a transaction could not be ended: {error.orig}") from error
            raise
        return created

    def _advance_streams(self, connection: Connection, streams: list[tuple[StreamRecord, int]]) -> None:
        # In order of id, so that two processes seldom wait for each other's row locks.
        rows = sorted((r.id, version, r.last_step, r.observations, r.missing) for r, version in streams)
        if advance(connection, rows) != len(rows):
            raise StaleStreams(record.unique_id for record, _ in streams)

    def _check_retained(self, connection: Connection, changes: Changes) -> None:
        # Trimming changes no version. Its own update waits for ours of the same rows, so what is read here stays.
        streams = self._tables.streams.c
        rewound = {stream_id for stream_id, _ in changes.rewound}
        records = {record.id: record for record, _ in changes.streams if record.id in rewound}
        for chunk in _chunks(list(records)):
            for stream_id, retained in connection.execute(
                select(streams.id, streams.retained_step).where(streams.id.in_(chunk))
            ):
                if retained == records[stream_id].retained_step:
                    del records[stream_id]
        if records:
            raise StaleStreams(record.unique_id for record in records.values())

    def _create(self, connection: Connection, new: NewStream) -> StreamRecord:
        record = new.record
        streams = self._tables.streams
        values: dict[str, Any] = {name: getattr(record, name) for name in record._fields if name != "id"}
        if new.replaces is None:
            stream_id = connection.execute(insert(streams).values(**values).returning(streams.c.id)).scalar_one()
        else:
            stream_id = new.replaces.id
            values["rewound_version"] = record.version
            replaced = (
                update(streams)
                .where(streams.c.id == stream_id, streams.c.version == new.replaces.version)
                .values(**values)
            )
            if connection.execute(replaced).rowcount != 1:
                raise StaleStreams([record.unique_id])
            self._clear(connection, stream_id)
        append(connection, [(stream_id, s, y) for s, y in new.rows])
        return record._replace(id=stream_id)

    def _numbered(
        self, connection: Connection, news: list[NewStream], created: list[StreamRecord]
    ) -> list[StreamRecord]:
        """The created streams, new ones with versions that no deleted one had."""
        before = version_before_new(connection, self._tables.facts)
        if not before:
            return created
        streams = self._tables.streams
        records = [
            record._replace(version=before + record.version) if new.replaces is None else record
            for new, record in zip(news, created, strict=True)
        ]
        begin = update(streams).where(streams.c.id == bindparam("b_id")).values(version=bindparam("b_version"))
        connection.execute(begin, [{"b_id": record.id, "b_version": record.version} for record in records])
        return records

    def _forget(self, connection: Connection, records: list[StreamRecord]) -> None:
        streams = self._tables.streams.c
        for record in records:
            # Locks the row and checks the version before the log goes.
            locked = (
                update(self._tables.streams)
                .where(streams.id == record.id, streams.version == record.version)
                .values(version=record.version)
            )
            if connection.execute(locked).rowcount != 1:
                raise StaleStreams([record.unique_id])
            self._clear(connection, record.id)
            replies = self._tables.replies
            connection.execute(delete(replies).where(replies.c.unique_id == record.unique_id))
            connection.execute(delete(self._tables.streams).where(streams.id == record.id))
        note_deleted(connection, self._tables.facts, max(record.version for record in records))

    def _clear(self, connection: Connection, stream_id: int) -> None:
        for table in (self._tables.observations, self._tables.snapshots):
            connection.execute(delete(table).where(table.c.stream_id == stream_id))

    def forget_replies(self, before: int, limit: int) -> int:
        """Forget up to `limit` replies that were kept before a time; returns how many."""
        with self._writing() as connection:
            return forget_replies(connection, self._tables.replies, before, limit)

    def save_snapshots(self, model_key: str, states: Mapping[StreamRecord, bytes], *, bases: int = 0) -> int:
        """Store states, each only if its stream's log has at most grown since.

        The two newest snapshots of a stream and model remain, and the one that a trimmed log begins after.

        Parameters
        ----------
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
        streams, snapshots = self._tables.streams.c, self._tables.snapshots.c
        with self._writing() as connection:
            if self.is_embedded:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            valid: dict[int, tuple[range, int]] = {}  # versions, and the least step: the retained log follows it
            spared: dict[int, int] = {}
            older: dict[int, list[int]] = {}
            for chunk in _chunks([record.id for record in states]):
                # The locks keep another process's rewind from slipping in between.
                query = select(streams.id, streams.version, streams.rewound_version, streams.retained_step)
                locked = query.where(streams.id.in_(chunk)).order_by(streams.id).with_for_update()
                for stream_id, version, rewound, retained in connection.execute(locked):
                    valid[stream_id] = (
                        range(rewound or 0, version + 1),
                        _BEFORE_ALL if retained is None else retained - 1,
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
            connection.execute(insert(self._tables.snapshots), fresh)
            stale = []
            for row in fresh:
                stream_id = row["stream_id"]
                # Where another process was faster, what is fresh is not the newest.
                steps = sorted([*older.get(stream_id, []), row["step"]], reverse=True)
                count = spared[stream_id]
                if len(steps) > 2 + count:
                    oldest = steps[-count] if count else _BEFORE_ALL
                    stale.append({"b_id": stream_id, "b_after": oldest, "b_before": steps[1]})
            if stale:
                connection.execute(
                    delete(self._tables.snapshots).where(
                        snapshots.stream_id == bindparam("b_id"),
                        snapshots.model_key == model_key,
                        snapshots.step > bindparam("b_after"),
                        snapshots.step < bindparam("b_before"),
                    ),
                    stale,
                )
            return len(fresh)

    def raise_floors(self, model_key: str, keep: int, stream_ids: Sequence[int]) -> dict[int, int]:
        """Let logs begin after the model's newest snapshot at least `keep` steps old; where those that moved begin."""
        return raise_floors(self._engine, self._tables, model_key, keep, stream_ids)

    def sweep(self, stream_ids: Sequence[int], rows: int) -> int:
        """Delete about `rows` of the rows before the retained logs; returns how many, 0 when there are none."""
        return sweep(self._engine, self._tables, stream_ids, rows)

    def load(
        self,
        streams: Sequence[StreamRow],
        log: Iterable[Sequence[LogRow]],
        snapshots: Iterable[Sequence[SnapshotRow]],
        *,
        replace: bool,
    ) -> None:
        """Write whole streams, all or none; see `service.store.copying`."""
        load(self._engine, self._tables, streams, log, snapshots, replace=replace)

    def drop_snapshots(self, keep: Iterable[str], after: int, limit: int) -> int | None:
        """Forget the snapshots of all models but those in `keep`, of up to `limit` streams whose id is above `after`.

        Returns
        -------
        The last of these ids; None if there were none.
        """
        streams, snapshots = self._tables.streams.c, self._tables.snapshots.c
        page = select(streams.id).where(streams.id > after).order_by(streams.id).limit(limit).subquery()
        with self._engine.connect() as connection:
            last: int | None = connection.execute(select(func.max(page.c.id))).scalar()
        if last is not None:
            gone = delete(self._tables.snapshots).where(
                snapshots.stream_id.between(after + 1, last), snapshots.model_key.not_in(list(keep))
            )
            with self._engine.begin() as connection:
                connection.execute(gone)
        return last


def _data_version(connection: Connection) -> int:
    driver: Any = connection.connection.driver_connection
    ((version,),) = driver.execute("PRAGMA data_version").fetchall()
    return int(version)


def _changed(stream_id: int, step: int, value: Value) -> dict[str, Any]:
    covariates = value.covariates if isinstance(value, Covered) else None
    return {"b_id": stream_id, "b_step": step, "b_y": y_of(value), "b_covariates": covariates}


def _chunks(items: Sequence[_T]) -> Iterator[list[_T]]:
    source = iter(items)
    while chunk := list(islice(source, _CHUNK)):
        yield chunk
