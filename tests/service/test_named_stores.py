"""A named model's store: apart from all others, with migrations and backups of its own, on both kinds of database."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from service.backup import main
from service.errors import StoreError
from service.naming import check_model_name, store_of
from service.store import Changes, NewStream, Store, StreamRecord
from service.store.database import open_database
from service.store.schema import prepare_schema
from tests.service.test_migrations import described

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,39}", fullmatch=True)
URLS = [
    "sqlite:///log.db",
    "sqlite:////a/b.c/log",
    "sqlite:///x.y.db",
    "postgresql://u:p%40@h/db",
    "postgresql:///d?schema=s",
]


@given(st.lists(NAMES, unique=True, min_size=2, max_size=4), st.sampled_from(URLS))
def test_stores_of_different_names_are_different_and_none_is_the_one_without_a_name(names, url):
    found = [url, *(store_of(url, check_model_name(name)) for name in names)]

    assert len(set(found)) == len(found)
    assert store_of(url, None) == url
    assert [store_of(url, name) for name in names] == found[1:]


@pytest.mark.parametrize("name", ["", "-a", "_a", "a/b", "a.b", "A", "ä", "a" * 41, "a b", "..", "a\n", "%61"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="expected a name of 1 to 40"):
        check_model_name(name)


def put(store: Store, unique_id: str, *values: float) -> None:
    rows = list(enumerate(values))
    record = StreamRecord(0, unique_id, 0, len(rows) - 1, 1, len(rows), 0)
    store.commit(Changes(created=[NewStream(record, None, rows)]))


def test_streams_of_one_id_lie_apart_under_calendars_of_their_own(any_store_url):
    stores = {name: Store.open(store_of(any_store_url, name)) for name in (None, "load", "bikes-2")}
    for (name, store), freq in zip(stores.items(), ("h", "1", "D"), strict=True):
        store.claim_calendar(freq, None)
        put(store, "a", *(range(len(name)) if name else [7.0]))
    for name, store in stores.items():
        (record,) = store.page("", 9)
        assert [y for _, y in store.log(record.id)] == ([*range(len(name))] if name else [7.0])
        store.probe()
        store.close()
    again = Store.open(store_of(any_store_url, "load"))
    with pytest.raises(StoreError, match="holds streams of freq '1'"):
        again.claim_calendar("h", None)
    again.close()


def test_a_named_store_is_migrated_by_itself_and_becomes_what_any_other_is(any_store_url):
    Store.open(any_store_url).close()
    named = store_of(any_store_url, "load")
    old = open_database(named)
    prepare_schema(old, "0001")
    old.dispose()
    before = described(named)
    assert before != described(any_store_url)
    Store.open(named).close()

    assert described(named) == described(any_store_url)


def test_a_backup_of_a_named_store_goes_out_and_in_by_its_name(any_store_url, tmp_path, capsys):
    named = Store.open(store_of(any_store_url, "load"))
    named.claim_calendar("1", None)
    put(named, "a", 1.0, 2.0)
    named.close()
    out, back = str(tmp_path / "out"), f"sqlite:///{tmp_path / 'back.db'}"

    assert main(["export", out, "--store", any_store_url, "--named", "load", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["streams"] == 1
    assert main(["import", out, "--store", back, "--named", "other"]) == 0
    assert (tmp_path / "back.other.db").exists()
    assert not (tmp_path / "back.db").exists()
    assert main(["export", str(tmp_path / "none"), "--store", back, "--named", "No/Name"]) == 2
    assert main(["export", str(tmp_path / "none"), "--store", any_store_url]) == 2, "the other store is a new one"


def test_who_may_use_a_schema_need_not_be_allowed_to_make_one(postgres, request):
    from tests.service.servers import new_database

    url = new_database(postgres)
    named = store_of(url, "load")
    Store.open(named).close()
    admin = create_engine(url)
    with admin.begin() as connection:
        for statement in (
            "CREATE ROLE worker LOGIN",
            'GRANT USAGE ON SCHEMA "forecaster_load" TO worker',
            'GRANT ALL ON ALL TABLES IN SCHEMA "forecaster_load" TO worker',
        ):
            connection.execute(text(statement))
    admin.dispose()
    worker = url.replace("://forecaster@", "://worker@")
    Store.open(store_of(worker, "load")).close()

    with pytest.raises(StoreError, match="permission denied"):
        Store.open(store_of(worker, "new"))
