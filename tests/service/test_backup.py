"""Backups: what is exported and imported is the same store, at a time of the past too, and damage is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from pipelines.data import read_panel
from service import backup
from service.app import create_app
from service.backup import export_streams, import_streams, main
from service.errors import StoreError
from service.store import Changes, NewStream, Store, StreamRecord
from service.store.copying import LogRow, StreamRow
from tests.forecaster.kit import assert_identical_state, assert_same_state
from tests.service.kit import ROOT, LocalClient, ds, history, observations, until
from tests.service.servers import new_database
from tests.service.test_replay import Machine

BASE = 473352
Y = [float(5 + i * 7 % 11) for i in range(200)]


def states(machine: Machine, store: Store, names: list[str]):
    """As a service with that store would have them."""
    other = Machine.__new__(Machine)
    other.store, other.logs, other.begins = store, {}, {}
    other.serve(machine.model)
    with torch.inference_mode():
        other.residents.touch(names, check_versions=False)
        return other.residents.slab.gather([other.residents.get(name).row for name in names])


@pytest.fixture
def machine(tiny_forecaster, tmp_path):
    """A store with a long stream, trimmed, and two short ones."""
    (tmp_path / "here").mkdir()
    made = Machine(tiny_forecaster, tmp_path / "here")
    made.store.claim_calendar("h", None)
    made.create("b", [BASE + 40, BASE + 41, BASE + 43], [1.0, None, 3.0])
    made.create("a", [BASE], [5.0])
    made.create("c", [BASE + 70], [7.0])
    for start in range(1, 61, 10):
        made.go_on("a", Y[start : start + 10])
        made.trim(15, 1000) if start == 31 else None
    assert BASE < made.begins["a"] < BASE + 40
    yield made
    made.close()


def test_an_export_is_the_same_store_again(machine, any_store_url, tmp_path):
    machine.trim(12, 1)  # and much that has been trimmed is still to be deleted
    machine.store.add_covariates({"price"})
    made = export_streams(machine.store, tmp_path / "out")
    store = Store.open(any_store_url)
    read = import_streams(store, tmp_path / "out")

    assert made == read
    assert store.add_covariates(()) == {"price"}
    assert (made["streams"], made["until"]) == (3, None)
    assert made["observations"] == sum(s >= machine.begins[name] for name, log in machine.logs.items() for s in log)
    assert [r._replace(id=0) for r in store.page("", 9)] == [r._replace(id=0) for r in machine.store.page("", 9)]
    names = ["a", "b", "c"]
    assert_identical_state(states(machine, store, names), states(machine, machine.store, names))
    with pytest.raises(StoreError, match="stream 'b' is there already; nothing was changed"):
        import_streams(store, tmp_path / "out")
    before = store.page("", 9)
    import_streams(store, tmp_path / "out", replace=True)
    after = store.page("", 9)
    assert [r.version for r in after] == [r.version + 1 for r in before]
    assert_identical_state(states(machine, store, names), states(machine, machine.store, names))
    store.close()


@pytest.mark.parametrize("hour", [39, 40, 45, 60, 70])
def test_a_store_is_restored_to_a_time_of_the_past(machine, store_url, tmp_path, hour):
    """R29: later observations are gone, states are what they were then."""
    until = {name: {step: y for step, y in log.items() if step <= BASE + hour} for name, log in machine.logs.items()}
    then = {name: log for name, log in until.items() if log}
    made = export_streams(machine.store, tmp_path / "out", ds(hour))
    store = Store.open(store_url)
    import_streams(store, tmp_path / "out")

    records, before = ({r.unique_id: r for r in one.page("", 9)} for one in (store, machine.store))
    assert set(records) == set(then)
    for name, log in then.items():
        found = records[name]
        missing = sum(y is None for y in log.values())
        assert (found.last_step, found.observations, found.missing) == (max(log), len(log), missing)
        if log == machine.logs[name]:
            assert found._replace(id=0) == before[name]._replace(id=0)
        else:  # clients know its version for something else
            assert found.version > before[name].version
    assert made["observations"] == sum(len(store.log(r.id)) for r in records.values())
    again = Machine.__new__(Machine)
    again.store, again.logs, again.begins = store, then, {}
    again.serve(machine.model)
    again.check_states(then)
    store.close()


@pytest.mark.parametrize("hour", [41, 42, 43, 47, 48, 69, 70])
def test_what_came_after_a_time_of_the_past_is_in_no_count_and_no_version_is_told_twice(
    machine, store_url, tmp_path, hour
):
    """Of "b", hours 41 and 47 are missing, nothing was ever told of 42 and 44 to 46; and "c" begins at hour 70."""
    machine.observe({"b": [(BASE + 47, None), (BASE + 48, 2.0)]}, revise=False, whole=True)
    assert max(machine.logs["b"]) == BASE + 48
    logs = {name: {s: y for s, y in log.items() if s <= BASE + hour} for name, log in machine.logs.items()}
    before = {record.unique_id: record for record in machine.store.page("", 9)}
    export_streams(machine.store, tmp_path / "out", ds(hour))
    store = Store.open(store_url)
    import_streams(store, tmp_path / "out")

    found = {record.unique_id: record for record in store.page("", 9)}
    assert set(found) == {name for name, log in logs.items() if log}
    for name, record in found.items():
        log, was = logs[name], before[name]
        assert record.last_step == max(log)
        assert record.observations == len(log)
        assert record.missing == sum(y is None for y in log.values())
        assert (record.version > was.version) == (max(log) < was.last_step)
        assert (record.first_step, record.retained_step) == (was.first_step, was.retained_step)
        assert dict(store.log(record.id)) == {step: y for step, y in log.items() if step >= machine.begins[name]}
    store.close()


def test_what_is_sent_again_to_a_store_that_was_set_back_is_taken_again(settings, tmp_path):
    """The reply that was kept under its key told of what the import has undone."""
    key = {"idempotency-key": "k"}
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history([1.0]))
        export_streams(client.service.store, tmp_path / "out")
        client.post("/v1/streams/a/observations", json=observations((1, 2.0)), headers=key).raise_for_status()
    store = Store.open(settings.store)
    import_streams(store, tmp_path / "out", replace=True)
    store.close()
    with LocalClient(create_app(settings)) as client:
        assert client.get("/v1/streams/a").json()["cutoff"] == ds(0)
        again = client.post("/v1/streams/a/observations", json=observations((1, 2.0)), headers=key)

        assert "idempotent-replayed" not in again.headers
        assert again.json()["accepted"] == 1
        assert client.get("/v1/streams/a").json()["cutoff"] == ds(1)


def test_a_store_that_is_being_served_takes_an_import_and_nothing_is_judged_by_what_was_before(
    machine, settings, any_store_url, tmp_path, monkeypatch
):
    """What is observed while the import is at work is judged after it, by the versions and the log it has brought.

    With a server, only in its last moment: what is observed before that is answered before, and gives way with its log.
    """
    export_streams(machine.store, tmp_path / "out")
    begun, go_on = threading.Event(), threading.Event()
    read = backup._read

    def slowly(path, kind):
        begun.set()
        assert go_on.wait(30)
        yield from read(path, kind)

    monkeypatch.setattr(backup, "_read", lambda path, kind: (slowly if kind is LogRow else read)(path, kind))
    store = Store.open(any_store_url)
    with (
        LocalClient(create_app(settings.model_copy(update={"store": any_store_url}))) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        for name in ("a", "b", "other"):
            client.put(f"/v1/streams/{name}", json=history([1.0, 2.0]))
        loading = threads.submit(import_streams, store, tmp_path / "out", replace=True)
        assert begun.wait(30)
        write = partial(client.post, "/v1/streams/a/observations")
        writing = threads.submit(write, json=observations((2, 9.0)), headers={"if-match": '"1"'})
        if embedded := any_store_url.startswith("sqlite"):
            until(lambda: client.service.engine.busy_seconds() > 0.1)
        else:
            assert writing.result(60).status_code == 200
        go_on.set()
        loading.result(60)

        assert writing.result(60).status_code == (412 if embedded else 200)
        expected = {record.unique_id: record for record in machine.store.page("", 9)}
        for name in ("a", "b", "c"):
            found = client.get(f"/v1/streams/{name}").json()
            assert found["version"] == max(expected[name].version, {"a": 2 if embedded else 3, "b": 2, "c": 1}[name])
            assert found["cutoff"] == ds(expected[name].last_step - BASE)
        assert write(json=observations((61, 9.0))).json()["accepted"] == 1
        machine.go_on("a", [9.0])
        assert client.post("/v1/streams/other/observations", json=observations((2, 3.0))).json()["version"] == 2
        assert_same_state(states(machine, store, ["a", "b"]), states(machine, machine.store, ["a", "b"]))
    store.close()


def test_a_time_that_has_been_trimmed_away_cannot_be_restored(machine, tmp_path):
    for hour in (1, machine.begins["a"] - BASE - 2):
        with pytest.raises(StoreError, match=r"stream 'a' cannot be copied as of step .*: its log has been trimmed"):
            export_streams(machine.store, tmp_path / "out", ds(hour))

    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_the_last_step_before_a_trimmed_log_can_be_restored_from_its_snapshot(machine, store_url, tmp_path):
    """No row is left of it, and the state is all that there is."""
    last = machine.begins["a"] - 1
    export_streams(machine.store, tmp_path / "out", ds(last - BASE))
    machine.store.close()
    machine.store = Store.open(store_url)
    import_streams(machine.store, tmp_path / "out")
    machine.serve(machine.model)

    (record,) = machine.store.page("", 9)
    assert (record.unique_id, record.last_step, record.observations) == ("a", last, last - BASE + 1)
    machine.logs = {"a": {step: y for step, y in machine.logs["a"].items() if step <= last}}
    machine.check()
    machine.go_on("a", [9.0, 8.0])
    machine.check()


def test_rows_that_a_trim_has_not_deleted_yet_are_not_copied(tiny_forecaster, store_url, tmp_path):
    (tmp_path / "here").mkdir()
    machine = Machine(tiny_forecaster, tmp_path / "here")
    machine.store.claim_calendar("h", None)
    machine.create("a", [BASE + hour for hour in range(20)], Y[:20])
    machine.go_on("a", Y[20:40])
    machine.trim(15, sweep=1)
    (record,) = machine.store.page("", 9)
    assert len(machine.store.log(record.id)) == 39
    assert machine.begins["a"] > BASE + 20

    with pytest.raises(StoreError, match="its log has been trimmed"):
        export_streams(machine.store, tmp_path / "early", ds(19))
    made = export_streams(machine.store, tmp_path / "out")
    store = Store.open(store_url)
    import_streams(store, tmp_path / "out")

    retained = {step: y for step, y in machine.logs["a"].items() if step >= machine.begins["a"]}
    assert dict(store.log(store.page("", 9)[0].id)) == retained
    assert made["observations"] == len(retained)
    store.close()
    machine.close()


def test_a_stream_that_comes_back_with_an_import_has_no_version_that_it_had_before_it_was_deleted(
    machine, any_store_url, tmp_path
):
    """Or a client's If-Match would hold for what it has never seen."""
    export_streams(machine.store, tmp_path / "out")
    store = Store.open(any_store_url)
    old = StreamRecord(0, "b", BASE, BASE, 700, 1, 0)
    (record,) = store.commit(Changes(created=[NewStream(old, None, [(BASE, 1.0)])]))
    store.commit(Changes(deleted=[record]))

    import_streams(store, tmp_path / "out")

    assert min(found.version for found in store.page("", 9)) > 700
    store.close()


def test_a_stream_that_is_created_while_one_of_its_name_is_imported_stays(postgres):
    """A server's other writers do not wait for an import until it gives its streams their names."""
    url = new_database(postgres)
    importing, serving = Store.open(url), Store.open(url)

    def rows():
        created = StreamRecord(0, "a", 0, 0, 1, 1, 0)
        serving.commit(Changes(created=[NewStream(created, None, [(0, 7.0)])]))
        yield [LogRow("a", 0, 1.0, None)]

    with pytest.raises(StoreError, match="stream 'a' is there already; nothing was changed"):
        importing.load([StreamRow("a", 0, 0, 1, 1, 0, None, None)], rows(), [], replace=False)

    (record,) = serving.page("", 9)
    assert serving.log(record.id) == [(0, 7.0)]
    importing.close()
    serving.close()


def test_what_is_damaged_or_does_not_fit_is_refused_and_changes_nothing(machine, store_url, tmp_path):
    export_streams(machine.store, tmp_path / "out")
    with pytest.raises(StoreError, match="exists already"):
        export_streams(machine.store, tmp_path / "out")
    store = Store.open(store_url)
    manifest = tmp_path / "out" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreError, match="has format 2, newer than 1"):
        import_streams(store, tmp_path / "out")
    manifest.write_text(text.replace('"until"', '"unto"'))
    with pytest.raises(StoreError, match="is no export of streams"):
        import_streams(store, tmp_path / "out")
    manifest.write_text(text.replace('"covariates": []', '"covariates": [1]'))
    with pytest.raises(StoreError, match="is no export of streams"):
        import_streams(store, tmp_path / "out")
    manifest.write_text(text.replace('"covariates": [],', ""))
    with closing(Store.open(f"sqlite:///{tmp_path / 'other.db'}")) as other:
        import_streams(other, tmp_path / "out")
    manifest.write_text(text[:50])
    with pytest.raises(StoreError, match="is no export of streams"):
        import_streams(store, tmp_path / "out")
    manifest.write_text(text)
    file = tmp_path / "out" / "observations.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + b"x" + whole[201:])
    with pytest.raises(StoreError, match=r"observations.parquet is not what the manifest says"):
        import_streams(store, tmp_path / "out")
    file.write_bytes(whole)
    assert store.page("", 9) == []
    store.claim_calendar("D", None)
    with pytest.raises(StoreError, match="holds streams of freq 'D'"):
        import_streams(store, tmp_path / "out")
    store.close()


def test_the_commands_export_what_training_can_read_and_import_it(machine, tmp_path, capsys):
    out, url = tmp_path / "out", f"sqlite:///{tmp_path / 'new.db'}"
    command = [sys.executable, "-m", "pipelines", "streams", "export", str(out), "--store", machine.url, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["command"], said["streams"]) == ("streams export", 3)
    panel = read_panel(str(out / "observations.parquet"), "h")
    assert sorted(panel.unique_ids) == ["a", "b", "c"]
    assert main(["import", str(out), "--store", url]) == 0
    assert main(["import", str(out), "--store", url]) == 2
    assert main(["import", str(Path("no such folder")), "--store", url]) == 2
    assert main(["export", str(tmp_path / "o"), "--store", url, "--until", "yesterday"]) == 2
    assert main(["export", str(tmp_path / "o"), "--store", f"sqlite:///{tmp_path / 'none.db'}"]) == 2
    assert main(["import", str(tmp_path), "--store", f"sqlite:///{tmp_path / 'none.db'}"]) == 2
    assert not (tmp_path / "none.db").exists()
    assert "Traceback" not in capsys.readouterr().err
