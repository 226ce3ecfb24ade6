"""The store: the observation log, which is the truth, and snapshots of states, which only make recovery fast.

It knows SQL and step numbers; no calendar, no model, no HTTP. Invariants: one `commit` is one transaction and returns
only when it is durable; a stream's version grows by one with every change, from above those of deleted streams, and a
commit that expected another version changes nothing; no snapshot outlives a change of the log before its step, and none
is older than the retained log needs, so whatever snapshot there is, the log after it is whole.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from itertools import count
from secrets import token_hex
from threading import Lock
from typing import Any, Self

from sqlalchemy import Connection, Engine, and_, event, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from service.errors import StaleStreams, StoreError, UnknownOutcome
from service.store.copying import Dump, LogRow, SnapshotRow, StreamRow, dump, load
from service.store.database import SERVER, chunks, impatient, is_busy, open_database, reading
from service.store.reading import Reader
from service.store.records import Changes, Filter, Recovery, StreamRecord
from service.store.replies import StoredReply, forget_replies, read_replies, write_replies
from service.store.schema import prepare_schema
from service.store.snapshots import drop_snapshots, save_snapshots
from service.store.tables import Tables, build_tables
from service.store.transaction import Course, Transaction
from service.store.trimming import raise_floors, sweep
from service.store.values import Value
from service.store.writing import Writer

__all__ = ["Store"]

_LOST_RACES = ("40P01", "40001")  # PostgreSQL: deadlock, serialisation failure
_SLEPT = "25P03"  # PostgreSQL has undone a transaction in which nothing happened for too long


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
        self._reader = Reader(tables)
        self._writer = Writer(tables)
        self.era = 0
        """Another one where the server has begun anew or is another: it may have lost what it had said, and may give
        versions that it has given before."""
        self._server: Any = None
        if not self.is_embedded:
            event.listen(engine, "checkout", self._look_at_server)

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

    def _look_at_server(self, _connection: Any, record: Any, _proxy: Any) -> None:
        server = record.info.get(SERVER)
        if server != self._server:
            self.era += self._server is not None
            self._server = server

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

    def add_covariates(self, names: Collection[str]) -> frozenset[str]:
        """Note that a model knows covariates of these names; return all names that any has known."""
        table = self._tables.covariates
        while True:
            with self._engine.begin() as connection:
                noted = frozenset(connection.execute(select(table.c.name)).scalars())
            if noted.issuperset(names):
                return noted
            try:
                with self._engine.begin() as connection:
                    connection.execute(insert(table), [{"name": name} for name in sorted(set(names) - noted)])
            except IntegrityError:
                continue  # another process was first; see what it wrote

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
        try:
            with self._engine.begin() as connection:
                if not connection.execute(update(facts).where(facts.c.name == "probe").values(value=value)).rowcount:
                    connection.execute(insert(facts).values(name="probe", value=value))
        except IntegrityError:
            self.probe()  # another process was the first ever to probe: now there is a row to update

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

    def is_still_at(self, moment: int) -> bool:
        """Whether `moment` would say the same; False too where telling it means to wait for another thread."""
        if self._own is None or not self._turn.acquire(blocking=False):
            return False
        try:
            return _data_version(self._own) == moment
        except (DBAPIError, sqlite3.Error):
            return False
        finally:
            self._turn.release()

    @contextmanager
    def _writing(self, *, wait: bool = True) -> Iterator[Connection]:
        """A transaction that makes no new moment for this store.

        Raises
        ------
        _Taken
            Another thread is writing, and this one is not to `wait`.
        """
        if self._own is None:
            with self._engine.begin() as connection:
                yield connection
            return
        if not self._turn.acquire(blocking=wait):
            raise _Taken
        try:
            with self._own.begin():
                yield self._own
        finally:
            self._turn.release()

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
        with self._engine.connect() as connection:
            return self._reader.versions(connection, stream_ids)

    def has_only_grown(self, record: StreamRecord) -> bool:
        """Whether all of a log that was retained is there still, as it was."""
        with self._engine.connect() as connection:
            return self._reader.has_only_grown(connection, record)

    def known(self, wanted: Mapping[int, Sequence[int]]) -> dict[int, dict[int, Value]]:
        """Stream id → (step → value) of the log's rows, at least of those among the wanted steps."""
        with self._engine.connect() as connection:
            return self._reader.known(connection, wanted)

    def records(self, unique_ids: Sequence[str]) -> list[StreamRecord]:
        """Streams by name, those that exist."""
        with self._engine.connect() as connection:
            return self._reader.records(connection, unique_ids)

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
            for chunk in chunks(unique_ids):
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
        with reading(self._engine) as connection:
            return self._reader.recover(connection, unique_ids, model_key, most, longest)

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
        with reading(self._engine) as connection:
            return self._reader.recover_before(connection, record, model_key, step, skip, most)

    def log(self, stream_id: int, after: int | None = None, until: int | None = None) -> list[tuple[int, Value]]:
        """(step, value) of the log of one stream after a step, up to another one, in order."""
        with self._engine.connect() as connection:
            return self._reader.log(connection, stream_id, after, until)

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
        changes, replies_since
            As in `begin`.
        proceed
            The statements run at once, but the transaction ends only when this has a result, and is undone if it fails;
            its exception is raised then. The result are replies to keep. None: nothing to wait for.
        moment
            Of a SQLite file: write only if it is still at this one. None: whatever else has been written.

        Returns
        -------
        Records of the created streams, with their ids.

        Raises
        ------
        StaleStreams
            As `begin`, and if anything was written since `moment`.
        UnknownOutcome, SQLAlchemyError
            As `begin` and `Transaction.end`.
        """
        transaction = Transaction(self._course(changes, replies_since, moment, wait=True))
        try:
            replies = proceed.result() if proceed is not None else []
        except BaseException as error:
            transaction.undo(error)
        return transaction.end(replies)

    def begin(self, changes: Changes, replies_since: int = 0) -> Transaction | None:
        """Run the statements of a micro-batch's transaction, unless that means waiting for somebody; to be ended.

        Parameters
        ----------
        changes
            What to write.
        replies_since
            Replies that were kept before are overwritten.

        Returns
        -------
        None, and nothing was written, if another thread or process is writing, or the database is a server.

        Raises
        ------
        StaleStreams
            Another process changed or created one of the streams; nothing was written.
        SQLAlchemyError
            The database failed; nothing was written.
        """
        if not self.is_embedded:
            return None
        try:
            return Transaction(self._course(changes, replies_since, None, wait=False))
        except _Taken:
            return None
        except DBAPIError as error:
            if is_busy(error):
                return None
            raise

    def _course(self, changes: Changes, replies_since: int, moment: int | None, *, wait: bool) -> Course:
        created: list[StreamRecord] = []
        ending = False
        try:
            with self._writing(wait=wait) as connection:
                if changes.era not in (None, self.era) or (moment is not None and _data_version(connection) != moment):
                    raise StaleStreams(())  # whose they are shows at their next touch
                with nullcontext() if wait else impatient(connection):
                    created = self._writer.write(connection, changes)
                if replies := (yield):
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

    def forget_replies(self, before: int, limit: int) -> int:
        """Forget up to `limit` replies that were kept before a time; returns how many."""
        with self._writing() as connection:
            return forget_replies(connection, self._tables.replies, before, limit)

    def save_snapshots(
        self, model_key: str, states: Mapping[StreamRecord, bytes], *, bases: int = 0, era: int | None = None
    ) -> int:
        """Store states, each only if its stream's log has at most grown since; see `service.store.snapshots`.

        None of them if they were folded in another `era` than this one.
        """
        with self._writing() as connection:
            if era not in (None, self.era):
                return 0
            return save_snapshots(connection, self._tables, model_key, states, bases)

    def drop_snapshots(self, keep: Iterable[str], after: int, limit: int) -> int | None:
        """Forget the snapshots of all models but those in `keep`, a page of streams; see `service.store.snapshots`."""
        return drop_snapshots(self._engine, self._tables, keep, after, limit)

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


class _Taken(Exception):
    """Another thread is writing."""


def _data_version(connection: Connection) -> int:
    driver: Any = connection.connection.driver_connection
    ((version,),) = driver.execute("PRAGMA data_version").fetchall()
    return int(version)
