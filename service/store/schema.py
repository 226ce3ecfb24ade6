"""The schema's version: revisions that a database lacks are run when it is opened, and a newer database is refused.

It knows Alembic, and no table but the one fact by which releases before it named the version. Invariant: all of it is
one transaction that excludes other starting processes, so a database has the whole of a revision or nothing of it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, column, func, inspect, select, table
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from service.errors import StoreError
from service.store import revisions
from service.store.database import NAMESPACE, quoted

__all__ = ["newest_revision", "prepare_schema"]

_LOCK = 0x666F7265  # any number; PostgreSQL's advisory lock for changing the schema
_VERSION_TABLE = "store_revision"
_FACTS = table("facts", column("name"), column("value"))


def newest_revision() -> str:
    """The revision that this code works with."""
    newest = _script().get_current_head()
    assert newest is not None
    return newest


def _script() -> ScriptDirectory:
    folder = Path(revisions.__file__).parent
    return ScriptDirectory(folder, version_locations=[folder])


def prepare_schema(engine: Engine, target: str | None = None) -> None:
    """Bring a database to a revision: a new one from nothing, an old one from where it is.

    Parameters
    ----------
    engine
        An opened database.
    target
        Revision; None: the newest.

    Raises
    ------
    StoreError
        The store has a newer schema, or cannot be reached.
    """
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
                _make_namespace(connection)
            _upgrade(connection, target or newest_revision())
            connection.commit()
    except OperationalError as error:
        raise StoreError(f"the store {engine.url} cannot be opened: {error.orig}".splitlines()[0]) from error
    except SQLAlchemyError as error:
        raise StoreError(f"the store is not usable: {error}".splitlines()[0]) from error


def _make_namespace(connection: Connection) -> None:
    name = connection.get_execution_options().get(NAMESPACE)
    if name is None:
        return
    # Asked first, because who may use a schema need not be allowed to make one.
    if connection.execute(select(func.to_regnamespace(quoted(name)).is_(None))).scalar():
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted(name)}")


def _upgrade(connection: Connection, target: str) -> None:
    script = _script()

    def steps(heads: Collection[str], _context: MigrationContext) -> list[MigrationStep]:
        return list(script._upgrade_revs(target, next(iter(heads), "base")))

    context = MigrationContext.configure(connection, opts={"version_table": _VERSION_TABLE, "fn": steps})
    found = context.get_current_revision()
    before = _before_alembic(connection) if found is None else None
    found = found or before
    if found == target and before is None:
        return
    if found is not None and found not in {revision.revision for revision in script.walk_revisions()}:
        raise StoreError(
            f"the store has schema version {int(found)}, newer than {int(newest_revision())}, the newest this code "
            "knows; start the newer service"
        )
    if before is not None:
        context.stamp(script, before)
    context.run_migrations(op=Operations(context))
    # Releases from before Alembic look here, and go away if they find a higher number than theirs.
    here = _FACTS.c.name == "schema_version"
    version = str(int(target))
    if not connection.execute(_FACTS.update().where(here).values(value=version)).rowcount:
        connection.execute(_FACTS.insert().values(name="schema_version", value=version))


def _before_alembic(connection: Connection) -> str | None:
    """The revision of a database that such a release left behind; None for a new database."""
    if not inspect(connection).has_table("facts"):
        return None
    found = connection.execute(select(_FACTS.c.value).where(_FACTS.c.name == "schema_version")).scalar()
    return None if found is None else f"{int(found):04d}"
