"""Trimmed logs: states stay what they were, late data has a clear verdict, a new model begins where the log does."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from service.app import create_app
from service.engine.rederive import rederive
from service.engine.trimmer import Trimmer
from service.errors import ModelError, StaleStreams
from service.hosting import Host
from service.metrics import Metrics
from service.models.served import ServedModel
from service.retention import least_steps, steps_of
from service.settings import Settings
from service.store import Changes, NewStream, Store, StreamRecord
from tests.forecaster.kit import assert_same_state, config_of, forecaster_of
from tests.service.kit import LocalClient, ds, history, observations, recompute, until
from tests.service.test_replay import VALUES, Machine

BASE = 473352
Y = [float(5 + i * 7 % 11) for i in range(1000)]


def streamed(machine: Machine, steps: int, every: int = 10) -> None:
    """One stream, value by value, with a snapshot every few."""
    machine.create("a", [0], Y[:1])
    for step in range(1, steps):
        machine.observe({"a": [(step, Y[step])]}, revise=False, whole=True)
        if step % every == 0:
            with torch.inference_mode():
                machine.residents.save(machine.residents.unsaved())


def test_the_oldest_and_the_newest_snapshots_stay(any_store_url):
    store = Store.open(any_store_url)
    record = store.commit(Changes(created=[NewStream(StreamRecord(0, "a", 0, 0, 1, 1, 0), None, [(0, 1.0)])]))[0]

    def steps() -> list[int | None]:
        found = [store.recover_before(record, "key", 1000, skip).snapshot_step for skip in range(6)]
        return [step for step in found if step is not None]

    def grow(count: int, bases: int) -> None:
        nonlocal record
        for _ in range(count):
            before, record = record, record._replace(last_step=record.last_step + 1, version=record.version + 1)
            store.commit(Changes(inserted=[(record.id, record.last_step, 1.0)], streams=[(record, before.version)]))
            store.save_snapshots("key", {record: b"state"}, bases=bases)

    grow(5, 2)
    assert steps() == [5, 4, 2, 1]
    assert store.raise_floors("key", 3, [record.id]) == {record.id: 3}
    assert steps() == [5, 4, 2]
    grow(3, 2)
    assert steps() == [8, 7, 4, 2]
    grow(2, 0)  # trimming has been turned off, but what the log begins after is needed still
    assert steps() == [10, 9, 2]
    store.close()


def test_a_stream_that_is_replaced_while_its_log_is_trimmed_has_all_of_its_new_one(settings, monkeypatch):
    trimmed = settings.model_copy(update={"retention": "1", "trim_seconds": 3600.0, "snapshot_every": 2})
    whole = history(Y[:60])
    with LocalClient(create_app(trimmed)) as client:
        client.put("/v1/streams/a", json=history(Y[:1]))
        for hour in range(1, 60):
            client.post("/v1/streams/a/observations", json=observations((hour, Y[hour])))
        store, raise_floors = client.service.store, type(client.service.store).raise_floors

        def replaced_meanwhile(*args):
            moved = raise_floors(*args)
            gap = {name: [*values[:3], *values[4:]] for name, values in whole.items()}
            assert client.put("/v1/streams/a", json=gap).status_code == 200
            return moved

        monkeypatch.setattr(type(store), "raise_floors", replaced_meanwhile)
        client.service._trimmer.trim()
        late = client.post("/v1/streams/a/observations", json=observations((3, Y[3])))

    assert (late.status_code, late.json().get("late")) == (200, 1)


def test_trimming_goes_by_a_snapshot_that_is_old_enough_and_deletes_in_small_parts(any_store_url):
    store = Store.open(any_store_url)
    rows = [(s, float(s)) for s in range(100)]
    names = ("a", "b", "c")
    records = store.commit(
        Changes(created=[NewStream(StreamRecord(0, n, 0, 59, 1, 60, 0), None, rows[:60]) for n in names])
    )
    a, b, c = records
    store.save_snapshots("key", {a: b"at 59", b: b"at 59"})
    after = [r._replace(last_step=99, version=2, observations=100) for r in (a, b, c)]
    store.commit(Changes(inserted=[(r.id, *row) for r in after for row in rows[60:]], streams=[(r, 1) for r in after]))
    store.save_snapshots("other", {after[2]: b"at 99"})
    ids = [r.id for r in records]

    assert store.raise_floors("key", 41, ids) == {}
    assert store.raise_floors("other", 41, ids) == {}
    assert store.raise_floors("key", 40, ids) == {a.id: 60, b.id: 60}
    assert store.raise_floors("key", 40, ids) == {}
    assert [store.sweep(ids, 25) for _ in range(6)] == [25, 25, 25, 25, 20, 0]
    assert [len(store.log(i)) for i in ids] == [40, 40, 100]
    assert [r.log_step for r in store.page("", 9)] == [60, 60, 0]
    recovery = store.recover(["a"], "other")["a"]
    assert (recovery.snapshot, recovery.tail[0][0], len(recovery.tail)) == (None, 60, 40)
    store.close()


def test_a_log_that_was_trimmed_meanwhile_is_not_changed_as_if_it_had_not_been(any_store_url):
    """What was folded again began before the log does now; trimming changes no version that would tell."""
    store = Store.open(any_store_url)
    record = store.commit(
        Changes(created=[NewStream(StreamRecord(0, "a", 0, 9, 1, 10, 0), None, [(s, 1.0) for s in range(10)])])
    )[0]
    after = record._replace(last_step=10, version=2, observations=11)
    store.commit(Changes(inserted=[(record.id, 10, 1.0)], streams=[(after, 1)]))
    store.save_snapshots("key", {after: b"at 10"})
    grown = after._replace(last_step=19, version=3, observations=20)
    store.commit(Changes(inserted=[(record.id, s, 1.0) for s in range(11, 20)], streams=[(grown, 2)]))
    revised = Changes(
        updated=[(record.id, 15, 2.0)], streams=[(grown._replace(version=4), 3)], rewound=[(record.id, 15)]
    )

    assert store.raise_floors("key", 5, [record.id]) == {record.id: 11}
    with pytest.raises(StaleStreams):
        store.commit(revised)
    known = store.page("", 1)[0]
    assert known.version == 3
    store.commit(replace(revised, streams=[(known._replace(version=4), 3)]))
    store.close()


class Clock:
    """In place of the module `time`: only working and waiting take time, a second for each call of the store."""

    def __init__(self) -> None:
        self.worked = self.waited = 0.0

    def monotonic(self) -> float:
        return self.worked + self.waited

    def work(self) -> None:
        self.worked += 1

    def wait(self, seconds: float) -> bool:
        self.waited += seconds
        return False


def test_one_pass_of_the_trimmer_sees_every_stream_in_small_parts_and_leaves_most_of_the_time_to_others(
    any_store_url, tiny_forecaster, monkeypatch
):
    store, model = Store.open(any_store_url), ServedModel("tiny", "1", tiny_forecaster)
    rows = [(s, float(s)) for s in range(50)]
    new = [NewStream(StreamRecord(0, f"s{i}", 0, 49, 1, 50, 0), None, rows) for i in range(7)]
    records = store.commit(Changes(created=new))
    assert list(store.raise_floors(model.key, 1, [r.id for r in records])) == []
    for record in records:
        if record.unique_id != "s3":  # of which there is no snapshot to begin after
            before = record._replace(last_step=20 + record.id % 3)
            store.save_snapshots(model.key, {before: b"state"})
    clock, told, metrics, sizes = Clock(), {}, Metrics(), []
    raise_floors, sweep = store.raise_floors, store.sweep

    def raised(key: str, keep: int, ids: list[int]) -> dict[int, int]:
        clock.work()
        assert len(ids) <= 2
        return raise_floors(key, keep, ids)

    def swept(ids: list[int], most: int) -> int:
        clock.work()
        sizes.append(sweep(ids, most))
        return sizes[-1]

    monkeypatch.setattr("service.engine.trimmer._STREAMS", 2)
    monkeypatch.setattr("service.engine.trimmer._ROWS", 9)
    monkeypatch.setattr("service.engine.trimmer.time", clock)
    monkeypatch.setattr(store, "raise_floors", raised)
    monkeypatch.setattr(store, "sweep", swept)
    trimmer = Trimmer(store, metrics, told.update, 60.0)
    monkeypatch.setattr(trimmer._stopping, "wait", clock.wait)
    trimmer.follow(model, 25)

    trimmer.trim()

    begins = {r.unique_id: 0 if r.unique_id == "s3" else 21 + r.id % 3 for r in records}
    assert {r.unique_id: store.log(r.id)[0][0] for r in records} == begins
    assert told == {r.unique_id: (r.id, begins[r.unique_id]) for r in records if r.unique_id != "s3"}
    assert metrics.trimmed_streams._value.get() == 6
    assert metrics.trimmed_rows._value.get() == sum(begins.values()) == sum(sizes)
    assert max(sizes) <= 9
    assert clock.waited >= 3 * clock.worked
    store.close()


def test_a_store_that_fails_for_a_while_is_trimmed_when_it_is_back(store_url, tiny_forecaster, monkeypatch, caplog):
    store, model = Store.open(store_url), ServedModel("tiny", "1", tiny_forecaster)
    rows = [(step, float(step)) for step in range(100)]
    (record,) = store.commit(Changes(created=[NewStream(StreamRecord(0, "a", 0, 99, 1, 100, 0), None, rows)]))
    store.save_snapshots(model.key, {record._replace(last_step=59): b"state"})
    page, failures = store.page_by_id, iter([True, True])

    def unreliable(*asked):
        if next(failures, False):
            raise OperationalError("SELECT", {}, ConnectionError("the database is away"))
        return page(*asked)

    monkeypatch.setattr(store, "page_by_id", unreliable)
    trimmer = Trimmer(store, Metrics(), lambda _begins: None, 0.01)
    trimmer.follow(model, 40)
    trimmer.start()
    until(lambda: len(store.log(record.id)) == 40)
    trimmer.stop(60)

    said = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    assert [line.startswith("the log is not trimmed: ") for line in said] == [True, True]
    store.close()


def test_rows_that_are_not_deleted_yet_count_for_nothing(tiny_forecaster, tmp_path):
    machine = Machine(tiny_forecaster, tmp_path)
    streamed(machine, 60)
    machine.trim(30, sweep=1)
    machine.check()
    machine.residents.drop(["a"])
    machine.check()
    other = ServedModel("other", "2", forecaster_of(tiny_forecaster.config, 5))
    with torch.inference_mode():
        rederive(other, machine.store)
        state = other.forecaster.state_from_bytes([machine.store.recover(["a"], other.key)["a"].snapshot])
    begins = machine.begins["a"]
    assert begins > 0
    assert_same_state(state, recompute(other.forecaster, [{s: Y[s] for s in range(begins, 60)}]))
    machine.close()


def test_a_new_model_begins_where_the_log_does_and_the_old_one_comes_back_as_it_was(tiny_forecaster, tmp_path):
    machine = Machine(tiny_forecaster, tmp_path)
    first = machine.model
    streamed(machine, 60)
    machine.trim(30, sweep=1000)
    begins = machine.begins["a"]
    assert begins > 0
    second = ServedModel("other", "2", forecaster_of(tiny_forecaster.config, 5))
    with torch.inference_mode():
        machine.residents.save(machine.residents.unsaved())
        rederive(second, machine.store)
    machine.serve(second)
    machine.check_states({"a": {step: y for step, y in machine.logs["a"].items() if step >= begins}})
    machine.observe({"a": [(60, 3.0)]}, revise=False, whole=True)
    machine.observe({"a": [(begins, 9.5)]}, revise=True, whole=True)
    machine.check_states({"a": {step: y for step, y in machine.logs["a"].items() if step >= begins}})
    assert machine.residents._metrics.begun_states._value.get() == 1  # the rewind; rederiving counts for itself

    machine.serve(first)
    machine.check()
    machine.close()


def test_back_to_a_model_whose_snapshots_a_trim_has_passed_is_no_hole_in_its_past(tiny_forecaster, tmp_path):
    machine = Machine(tiny_forecaster, tmp_path)
    first, second = machine.model, ServedModel("other", "2", forecaster_of(tiny_forecaster.config, 5))
    streamed(machine, 21)  # the first model's last snapshot is of step 20
    with torch.inference_mode():
        rederive(second, machine.store)
    machine.serve(second)
    for step in range(21, 80):
        machine.observe({"a": [(step, Y[step])]}, revise=False, whole=True)
        if step % 10 == 0:
            with torch.inference_mode():
                machine.residents.save(machine.residents.unsaved())
    machine.trim(20, sweep=1000)
    begins = machine.begins["a"]
    assert begins > 22

    machine.serve(first)

    machine.check_states({"a": {step: y for step, y in machine.logs["a"].items() if step >= begins}})
    assert machine.residents._metrics.begun_states._value.get() == 1
    machine.close()


@pytest.mark.parametrize("trimmed", [False, True])
def test_states_that_another_process_forgets_are_missed_only_where_logs_are_trimmed(trimmed, tiny_forecaster, tmp_path):
    """It swaps at another time, and does not know the model that serves here: the fold is that of what is retained."""
    machine = Machine(tiny_forecaster, tmp_path)
    streamed(machine, 60)
    if trimmed:
        machine.trim(30, sweep=1000)
    machine.store.drop_snapshots(["what-serves-there"], 0, 100)
    machine.check()
    machine.residents.drop(["a"])

    machine.check_states({"a": {step: y for step, y in machine.logs["a"].items() if step >= machine.begins["a"]}})

    assert (machine.begins["a"] > 0, machine.residents._metrics.begun_states._value.get()) == (trimmed, int(trimmed))
    machine.close()


ROUNDS = st.tuples(
    st.lists(VALUES, min_size=1, max_size=6),  # come in turn, a snapshot after each
    st.tuples(st.integers(1, 4), st.sampled_from([1, 4, 1000])),  # trimmed: steps to keep, rows to delete
    st.lists(st.tuples(st.integers(0, 8), VALUES), max_size=3),  # come late: steps back from the end
    st.sampled_from(["go on", "go on", "evict", "restart"]),
)


@settings(max_examples=25)
@given(rounds=st.lists(ROUNDS, min_size=3, max_size=6))
def test_whatever_is_trimmed_late_data_and_recovery_give_the_fold_of_all_that_came(rounds, tiny_forecaster):
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(tiny_forecaster, Path(folder))
        machine.create("a", [0], [5.0])
        for values, trimmed, late, then in rounds:
            machine.go_on("a", values)
            machine.trim(*trimmed)
            for back, y in late:
                step = max(max(machine.logs["a"]) - back, 0)
                machine.observe({"a": [(step, y)]}, revise=True, whole=True)
            if then == "evict":
                machine.residents.drop(["a"])
            elif then == "restart":
                machine.store.close()
                machine.start()
            machine.check()
        assert machine.residents._metrics.begun_states._value.get() == 0
        machine.close()


def test_a_damaged_snapshot_of_a_trimmed_log_is_passed_over_for_the_one_before(tiny_forecaster, tmp_path):
    machine = Machine(tiny_forecaster, tmp_path)
    streamed(machine, 60)
    machine.trim(20, sweep=1000)
    with machine.store._engine.begin() as connection:
        newest = "(SELECT max(step) FROM snapshots)"
        connection.exec_driver_sql(f"UPDATE snapshots SET state = zeroblob(length(state)) WHERE step = {newest}")
    machine.residents.drop(["a"])

    machine.check()

    assert machine.residents._metrics.damaged_snapshots._value.get() == 1
    assert machine.residents._metrics.begun_states._value.get() == 0
    machine.close()


def test_late_data_meets_a_log_that_was_trimmed_behind_the_engines_back(client, tiny_forecaster):
    """The verdict is right at the first attempt, though what the engine has in memory is older."""
    client.put("/v1/streams/a", json=history(Y[:20]))
    service = client.service
    (record,) = service.store.page("", 9)
    model = service.engine.model
    with torch.inference_mode():
        state = tiny_forecaster.warm_up([np.array(Y[:10])], [BASE])
    with service.store._engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO snapshots VALUES (?, ?, ?, ?)", (record.id, model.key, BASE + 9, state.to_bytes()[0])
        )
    assert service.store.raise_floors(model.key, 5, [record.id]) == {record.id: BASE + 10}

    old = client.post("/v1/streams/a/observations", json=observations((4, 1.0), on_conflict="revise"))
    late = client.post("/v1/streams/a/observations", json=observations((10, 1.0), on_conflict="revise"))
    described = client.get("/v1/streams/a").json()

    assert (old.status_code, old.json()["type"].rpartition(":")[2]) == (422, "too-old")
    assert ds(10) in old.json()["detail"]
    assert late.status_code == 200
    assert (described["first_ds"], described["log_ds"], described["version"]) == (ds(0), ds(10), 2)
    log = {BASE + i: y for i, y in enumerate(Y[:20])} | {BASE + 10: 1.0}
    expected = tiny_forecaster.forecast(recompute(tiny_forecaster, [log]))[0]
    np.testing.assert_allclose(np.array(list(late.json()["quantiles"].values())).T, expected, rtol=1e-5)


def test_a_service_trims_as_it_goes_and_recovers_from_what_is_left(artifact, store_url, tiny_forecaster):
    """The log stays bounded, and the forecast is that of all that ever came."""
    options = {"retention": "30", "trim_seconds": 0.02, "snapshot_every": 10, "max_gap_steps": 5}
    settings = Settings(model=str(artifact), store=store_url, **options)
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history(Y[:1]))
        end, hour = time.monotonic() + 60, 0
        # Of a stream that is faster than the trimmer, snapshots to begin after come when it goes on.
        while hour < 149 or client.get("/v1/streams/a").json()["log_ds"] <= ds(hour - 100):
            assert time.monotonic() < end
            time.sleep(0.1 if hour >= 149 else 0)
            hour += 1
            assert client.post("/v1/streams/a/observations", json=observations((hour, Y[hour]))).status_code == 200
        assert "forecaster_retention_steps 30.0" in client.get("/metrics").text
    with LocalClient(create_app(settings)) as client:
        found = client.get("/v1/streams/a/forecast").json()

    store = Store.open(store_url)
    (record,) = store.page("", 9)
    store.sweep([record.id], 10_000)
    rows = store.log(record.id)
    store.close()
    assert 30 <= len(rows) <= 100
    assert rows[0][0] == record.log_step
    expected = tiny_forecaster.forecast(
        recompute(tiny_forecaster, [{BASE + i: y for i, y in enumerate(Y[: hour + 1])}])
    )[0]
    np.testing.assert_allclose(np.array(list(found["quantiles"].values())).T, expected, rtol=1e-5)


def test_what_a_model_needs_is_kept_whatever_was_asked_for(artifact, store_url, tiny_forecaster):
    settings = Settings(model=str(artifact), store=store_url, retention="1", max_gap_steps=7)
    with LocalClient(create_app(settings)) as client:
        least = least_steps(tiny_forecaster, 7)
        assert least == tiny_forecaster.config.ring_length + 7
        assert f"forecaster_retention_steps {least}.0" in client.get("/metrics").text


@pytest.mark.parametrize("text", ["0", "-5", "soon", "", "-3D", "0h", "5.5"])
def test_a_retention_that_is_no_span_is_refused(text):
    with pytest.raises(ValidationError, match="expected a number of steps such as 5000"):
        Settings(retention=text)


def test_a_span_of_time_needs_a_calendar(tmp_path, store_url):
    steps = forecaster_of(config_of().with_overrides({"freq": "1"}))
    steps.save(tmp_path / "steps")

    with pytest.raises(ModelError, match="span of time, but freq '1' counts bare steps"):
        Host.open(Settings(model=str(tmp_path / "steps"), store=store_url, retention="90D"))
    assert steps_of("90", steps.calendar) == 90
