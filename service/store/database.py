"""Opening a database: pragmas, the schema of a PostgreSQL URL (`?schema=NAME`), and consistent reads.

It knows the two dialects and nothing of streams. Invariant: a connection given out commits durably (WAL with
synchronous=FULL on SQLite, the server's own synchronous commit on PostgreSQL).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from service.errors import StoreError

__all__ = [
    "BEFORE_ALL",
    "IDLE_SECONDS",
    "NAMESPACE",
    "SERVER",
    "chunks",
    "impatient",
    "is_busy",
    "lock_for_writing",
    "open_database",
    "quoted",
    "reading",
]

_BUSY_SECONDS = 30
_PATIENT = f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}"
_CACHE_KIB = 16384  # as many pages as a full micro-batch touches streams; the default of 2,000 reads them anew
_PREPARED = 256  # statements that a connection keeps; those of the hot path come in some 140 lengths
_CHUNK = 500  # parameters of one IN list
_T = TypeVar("_T")
BEFORE_ALL = -(2**62)
"""A step before any."""
IDLE_SECONDS = 30
"""How long a process may do nothing within a transaction, which keeps rows locked, before the server undoes it."""
SERVER = "server"
"""Of a connection to a server, since when it runs, to the microsecond: so which one it is, by whatever address."""
_WHICH_SERVER = "SELECT pg_postmaster_start_time()::text"
# A connection that has gone silent is given up after half a minute; the kernel would take up to two hours.
_SILENCE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}
_REACHED = {"connect_timeout": 10}
NAMESPACE = "namespace"
"""Execution option that names the PostgreSQL schema, if the URL does; here "schema" means the tables' version."""


def open_database(url: str) -> Engine:
    """Connect lazily to a SQLite file or a PostgreSQL server.

    Raises
    ------
    StoreError
        The URL is not understood or is of another kind of database.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        kind = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        raise StoreError(
            f"the store URL {_hidden(url)} is not understood; expected sqlite:///FILE or postgresql://…"
        ) from None
    if kind == "postgresql":
        namespace = parsed.query.get("schema")
        if not (namespace is None or isinstance(namespace, str)):
            raise StoreError(f"the store URL {_hidden(url)} names more than one schema")
        parsed = parsed.difference_update_query(["schema"])
        options = {name: value for name, value in (_REACHED | _SILENCE).items() if name not in parsed.query}
        engine = create_engine(
            parsed, pool_pre_ping=True, connect_args=options, execution_options={NAMESPACE: namespace}
        )
        event.listen(engine, "connect", partial(_configure_postgres, namespace))
        event.listen(engine, "handle_error", _give_up_ended_sessions)
        return engine
    if kind != "sqlite":
        raise StoreError(f"the store cannot be {kind}; expected sqlite:///FILE or postgresql://…")
    if parsed.database in (None, "", ":memory:"):
        raise StoreError(
            "the store must be a file: a log in memory would not survive, so nothing could be acknowledged"
        )
    options = {"timeout": _BUSY_SECONDS, "check_same_thread": False, "cached_statements": _PREPARED}
    engine = create_engine(parsed, connect_args=options)
    same = _SameFile(str(parsed.database))
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "connect", same.on_connect)
    event.listen(engine, "begin", same.on_begin)
    return engine


class _SameFile:
    """Refuses to work on where the file is not the one that was opened first.

    SQLite goes on writing to a file that has been removed, and whatever it acknowledged would be gone with the process.
    """

    def __init__(self, path: str) -> None:
        self._path = path if path.startswith("file:") else os.path.abspath(path)
        self._first: tuple[int, int] | None = None

    def on_connect(self, _connection: object, _record: object) -> None:
        if self._first is None and not self._path.startswith("file:"):
            self._first = self._found()

    def on_begin(self, _connection: Connection) -> None:
        if self._first is not None and self._found() != self._first:
            gone = sqlite3.OperationalError("the file was removed or replaced while it was in use; start anew on it")
            raise OperationalError("BEGIN", None, gone)

    def _found(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _hidden(url: str) -> str:
    """The URL without anything before an @: it may hold a password."""
    return repr(url.rpartition("@")[2])


def quoted(identifier: str) -> str:
    """An identifier as SQL has it."""
    return '"' + identifier.replace('"', '""') + '"'


def _configure_postgres(namespace: str | None, connection: Any, record: Any) -> None:
    # A process that was stopped in the middle of a transaction must not keep the others from its streams; when it goes
    # on, it finds its transaction undone.
    connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
    record.info[SERVER] = connection.execute(_WHICH_SERVER).fetchone()
    if namespace is not None:
        connection.execute(f"SET search_path TO {quoted(namespace)}")
    connection.commit()


def _give_up_ended_sessions(context: ExceptionContext) -> None:
    if getattr(context.original_exception, "sqlstate", None) == "25P03":
        context.is_disconnect = True


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(_PATIENT)
    # Switching to WAL does not wait for a lock, whatever the busy timeout says.
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    cursor.execute("PRAGMA synchronous = FULL")
    # What undoes one statement of many rows would be a file, made and removed with every micro-batch.
    cursor.execute("PRAGMA temp_store = MEMORY")
    cursor.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    cursor.close()


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection on which every query sees the same moment."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection
    else:
        with engine.execution_options(isolation_level="REPEATABLE READ").connect() as connection:
            yield connection


def lock_for_writing(connection: Connection) -> None:
    """Begin a transaction of SQLite as a writer's: one that only becomes it may fail instead of waiting its turn."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def impatient(connection: Connection) -> Iterator[None]:
    """Have statements fail on SQLite, instead of waiting, where another process is writing: see `is_busy`."""
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        yield
    finally:
        driver.execute(_PATIENT)


def is_busy(error: DBAPIError) -> bool:
    """Whether SQLite failed because another process is writing."""
    return getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def chunks(items: Sequence[_T]) -> Iterator[list[_T]]:
    """Items, so many at a time as one query asks for."""
    source = iter(items)
    while chunk := list(islice(source, _CHUNK)):
        yield chunk
