"""Databases of earlier releases: upgraded when opened to what a new one is, by as many processes as start at once."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from service.errors import StoreError
from service.store import Store
from service.store.database import open_database
from service.store.schema import newest_revision, prepare_schema
from service.store.tables import build_tables

# As the releases before Alembic made them, and a little data: types by kind of database.
OLD = """
CREATE TABLE facts (name VARCHAR(64) NOT NULL, value VARCHAR(255) NOT NULL, PRIMARY KEY (name));
INSERT INTO facts VALUES ('schema_version', '{version}'), ('calendar', 'h');
CREATE TABLE streams (id {id}, unique_id VARCHAR(255) NOT NULL, first_step BIGINT NOT NULL,
    last_step BIGINT NOT NULL, version BIGINT NOT NULL, observations BIGINT NOT NULL, missing BIGINT NOT NULL,
    {static} UNIQUE (unique_id) {primary});
INSERT INTO streams (unique_id, first_step, last_step, version, observations, missing) VALUES ('a', 0, 2, 1, 3, 0);
CREATE TABLE observations (stream_id {key} NOT NULL, step BIGINT NOT NULL, y {double}, {covariates}
    PRIMARY KEY (stream_id, step), FOREIGN KEY(stream_id) REFERENCES streams (id)) {options};
INSERT INTO observations (stream_id, step, y) VALUES (1, 0, 1.0), (1, 1, NULL), (1, 2, 3.0);
CREATE TABLE snapshots (stream_id {key} NOT NULL, model_key VARCHAR(64) NOT NULL, step BIGINT NOT NULL,
    state {blob} NOT NULL, PRIMARY KEY (stream_id, model_key, step), FOREIGN KEY(stream_id) REFERENCES streams (id));
INSERT INTO snapshots VALUES (1, 'm', 2, '{bytes}')
"""
KINDS = {
    "sqlite": {
        "id": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT", "primary": "", "key": "INTEGER", "double": "DOUBLE",
        "options": "WITHOUT ROWID", "blob": "BLOB", "bytes": "state",
    },
    "postgresql": {
        "id": "BIGSERIAL NOT NULL", "primary": ", PRIMARY KEY (id)", "key": "BIGINT", "double": "DOUBLE PRECISION",
        "options": "", "blob": "BYTEA", "bytes": "state",
    },
}  # fmt: skip
COLUMNS = {1: {"static": "", "covariates": ""}, 2: {"static": "static TEXT,", "covariates": "covariates TEXT,"}}


def make_old(url: str, version: int) -> None:
    """A database as an earlier release left it behind."""
    engine = open_database(url)
    text = OLD.format(version=version, **KINDS[engine.dialect.name], **COLUMNS[version])
    with engine.begin() as connection:
        for statement in text.split(";"):
            connection.exec_driver_sql(statement)
    engine.dispose()


def described(url: str) -> dict[str, object]:
    """Everything the database says about its tables, order included."""
    engine = open_database(url)
    found: dict[str, object] = {}
    inspector = inspect(engine)
    for table in sorted(inspector.get_table_names()):
        columns = [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)]
        found[table] = (
            columns,
            inspector.get_pk_constraint(table)["constrained_columns"],
            [(f["constrained_columns"], f["referred_table"]) for f in inspector.get_foreign_keys(table)],
            sorted((i["name"], i["column_names"]) for i in inspector.get_indexes(table)),
            [u["column_names"] for u in inspector.get_unique_constraints(table)],
        )
        if engine.dialect.name == "sqlite":
            with engine.connect() as connection:
                sql = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).scalar_one()
            found[f"{table}, kept how"] = ("WITHOUT ROWID" in sql, "AUTOINCREMENT" in sql)
    engine.dispose()
    return found


def version_fact(url: str) -> str:
    """What releases before Alembic look at."""
    engine = open_database(url)
    with engine.connect() as connection:
        query = "SELECT value FROM facts WHERE name = 'schema_version'"
        found = connection.exec_driver_sql(query).scalar_one()
    engine.dispose()
    return str(found)


def empty_like(url: str, request: pytest.FixtureRequest) -> str:
    """Another new database of the same kind."""
    if url.startswith("sqlite"):
        return url.replace("log.db", "other.db")
    from tests.service.servers import new_database

    return new_database(request.getfixturevalue("postgres"))


@pytest.mark.parametrize("version", [1, 2])
def test_an_old_database_becomes_what_a_new_one_is_and_keeps_its_rows(any_store_url, version, request):
    make_old(any_store_url, version)
    for _ in range(2):
        store = Store.open(any_store_url)
        assert store.log(1) == [(0, 1.0), (1, None), (2, 3.0)]
        (record,) = store.page("", 9)
        assert (record.static, record.log_step) == (None, 0)
        assert store.recover_before(record, "m", 3).snapshot_step == 2
        store.claim_calendar("h", None)
        store.close()
    new = empty_like(any_store_url, request)
    Store.open(new).close()

    assert described(any_store_url) == described(new)
    assert version_fact(any_store_url) == version_fact(new) == str(int(newest_revision()))


@pytest.mark.parametrize("number", range(1, int(newest_revision())))
def test_a_database_of_any_earlier_revision_becomes_what_a_new_one_is(any_store_url, number, request):
    old = open_database(any_store_url)
    prepare_schema(old, f"{number:04d}")
    old.dispose()
    assert version_fact(any_store_url) == str(number)
    Store.open(any_store_url).close()
    new = empty_like(any_store_url, request)
    Store.open(new).close()

    assert described(any_store_url) == described(new)


def test_the_revisions_lead_to_the_tables_that_the_code_describes(any_store_url):
    store = Store.open(any_store_url)
    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "store_revision"})
        differences = compare_metadata(context, build_tables().metadata)
    store.close()

    assert differences == []


def test_a_newer_database_is_refused_and_left_as_it_is(any_store_url):
    store = Store.open(any_store_url)
    with store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE store_revision SET version_num = '0099'")
    before = described(any_store_url)

    with pytest.raises(StoreError, match=r"schema version 99, newer than \d+, the newest this code knows"):
        Store.open(any_store_url)

    assert described(any_store_url) == before
    store.close()


def test_a_database_of_a_newer_release_from_before_alembic_is_refused_too(any_store_url):
    make_old(any_store_url, 2)
    engine = open_database(any_store_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE facts SET value = '99' WHERE name = 'schema_version'")
    engine.dispose()

    with pytest.raises(StoreError, match="schema version 99, newer than"):
        Store.open(any_store_url)
    assert "store_revision" not in described(any_store_url)


@pytest.mark.parametrize("version", [None, 1])
def test_many_processes_may_start_at_once_on_a_new_or_old_database(template, any_store_url, tmp_path, version):
    if version is not None:
        make_old(any_store_url, version)
    code = f"from service.store import Store; s = Store.open({any_store_url!r}); s.claim_calendar('h', None); s.probe()"
    logs = [tmp_path / f"log{number}" for number in range(4)]
    processes = [template.run(code, log=log) for log in logs]

    statuses = [process.wait(60) for process in processes]
    errors = [log.read_text() for log in logs]

    assert statuses == [0] * 4, errors
    assert errors == [""] * 4
    assert version_fact(any_store_url) == str(int(newest_revision()))
