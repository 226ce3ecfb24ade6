"""Logs that take long to fold keep nobody waiting: they are folded beside the engine, and asked for again."""

from __future__ import annotations

import json
import random
import threading

import pytest
from sqlalchemy.exc import OperationalError

from service.app import create_app
from service.engine import beside, folding, microbatch, planning, residents
from service.engine.folding import LONGEST
from service.routes import observations as bulk_route
from service.store.copying import LogRow, StreamRow
from tests.forecaster.kit import assert_same_state
from tests.service.kit import LocalClient, ds, history, observations, recompute, until

BASE = 473352
LINES = {"content-type": "application/x-ndjson"}


@pytest.fixture
def settings(settings, any_store_url):
    """On either kind of store."""
    return settings.model_copy(update={"store": any_store_url, "snapshot_every": 40})


def idle(client: LocalClient) -> None:
    """Wait until nothing is folded beside the engine."""
    until(lambda: not client.service.engine._residents._beside.at_work)


def drop_all_snapshots(client: LocalClient) -> None:
    """As if none had been stored."""
    with client.service.store._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM snapshots")


def damage_all_snapshots(client: LocalClient) -> None:
    """As if a disk had lost them, or a release had written them that has another format."""
    with client.service.store._engine.begin() as connection:
        connection.execute(client.service.store._tables.snapshots.update().values(state=bytes(99)))


def line(name: str, hour: int) -> str:
    """A row of a bulk body."""
    return json.dumps({"unique_id": name, "ds": ds(hour), "y": 4.0}) + "\n"


def test_others_are_served_while_a_log_that_takes_long_is_folded(settings, tiny_forecaster):
    """As after an import without snapshots: its own stream is to be asked again, and nothing of it is lost."""
    length = 6 * LONGEST  # so long that it takes longer than the requests here
    log = {BASE + hour: float(3 + hour % 5) for hour in range(length)}
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/short", json=history([5.0, 6.0]))
        row = StreamRow("long", BASE, max(log), 1, len(log), 0, None, None)
        client.service.store.load([row], [[LogRow("long", *y, None) for y in log.items()]], [], replace=False)

        observed = {"json": observations((length, 4.0)), "headers": {"idempotency-key": "once"}}
        refused = client.post("/v1/streams/long/observations", **observed)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert client.post("/v1/streams/short/observations", json=observations((2, 7.0))).is_success
        assert client.post("/v1/observations", content=line("long", 9), headers=LINES).status_code == 503
        both = client.post("/v1/observations", content=line("long", 9) + line("short", 3), headers=LINES).json()
        assert both["verdicts"] == ["busy", "accepted"]
        assert (both["refused"][0]["row"], "is being folded" in both["refused"][0]["detail"]) == (0, True)
        assert client.post("/v1/forecasts", json={"streams": ["long"]}).status_code == 503
        forecasts = client.post("/v1/forecasts", json={"streams": ["short", "long"]}).json()
        assert [found["unique_id"] for found in forecasts["forecasts"]] == ["short"]
        assert [(found["unique_id"], found["status"]) for found in forecasts["refused"]] == [("long", 503)]
        assert client.service.engine._residents.get("long") is None, "the other one waited for it"
        until(lambda: client.post("/v1/streams/long/observations", **observed).is_success)
        held = client.service.engine._residents
        found = held.slab.gather([held.get("long").row])
        idle(client)
    assert_same_state(found, recompute(tiny_forecaster, [log | {max(log) + 1: 4.0}]))


@pytest.fixture
def few(monkeypatch):
    """Fifty steps are a long log; folding them beside the engine waits for the event."""
    go_on = threading.Event()
    for module in (beside, folding, microbatch, planning, residents):
        monkeypatch.setattr(module, "LONGEST", 50)
    for name in ("_restore", "_rewind"):
        fold = getattr(beside.Beside, name)
        monkeypatch.setattr(beside.Beside, name, lambda *args, fold=fold: go_on.wait(60) and fold(*args))
    return go_on


def test_others_and_the_stream_itself_are_served_while_a_change_far_back_in_a_long_log_is_folded(
    few, settings, tiny_forecaster
):
    """The change is refused until that is done, and then taken at once, though the log has grown."""
    log = {BASE + hour: float(3 + hour % 5) for hour in range(60)}
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/short", json=history([5.0, 6.0]))
        client.put("/v1/streams/long", json=history(list(log.values())))
        path, change = "/v1/streams/long/observations", observations((2, 9.0), (61, 4.0), on_conflict="revise")
        refused = client.post(path, json=change)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert client.get("/v1/streams/long").json()["version"] == 1
        assert client.post(path, json=observations((60, 8.0))).json()["version"] == 2
        both = line("long", 2) + line("short", 2)
        reply = client.post("/v1/observations?on_conflict=revise", content=both, headers=LINES).json()
        assert reply["verdicts"] == ["busy", "accepted"]
        few.set()
        idle(client)
        taken = client.post(path, json=change)

        assert (taken.status_code, taken.json()["version"], taken.json()["revised"]) == (200, 3, 1)
        assert None not in taken.json()["places"]
        assert client.post(path, json=change).json()["duplicate"] == 2
        few.clear()
        other = observations((2, 7.0), on_conflict="revise")
        assert client.post(path, json=other).status_code == 503, "folded with another value"
        log |= {BASE + 2: 9.0, BASE + 60: 8.0, BASE + 61: 4.0}
        held = client.service.engine._residents
        found = held.slab.gather([held.get("long").row])
        assert_same_state(found, recompute(tiny_forecaster, [log]))
        snapshots = client.service.store.recover(["long"], client.service.engine.model.key)["long"].snapshot_step
        assert snapshots == BASE + 61, "the next start would fold all of it"
        few.set()
        idle(client)
    with LocalClient(create_app(settings)) as client:
        until(lambda: client.post(path, json=other).is_success)
        held = client.service.engine._residents
        found = held.slab.gather([held.get("long").row])
        assert_same_state(found, recompute(tiny_forecaster, [log | {BASE + 2: 7.0}]))
        idle(client)


def test_what_has_been_folded_of_a_log_that_did_more_than_grow_meanwhile_is_not_used(few, settings, tiny_forecaster):
    """By another process, as this one refuses what would do that."""
    log = {BASE + hour: float(3 + hour % 5) for hour in range(60)}
    path, change = "/v1/streams/long/observations", observations((2, 9.0), on_conflict="revise")
    with LocalClient(create_app(settings)) as client, LocalClient(create_app(settings)) as other:
        client.put("/v1/streams/long", json=history(list(log.values())))
        assert client.post(path, json=change).status_code == 503
        few.set()
        idle(client)
        assert other.post(path, json=observations((58, 1.0), on_conflict="revise")).status_code == 503
        until(lambda: other.post(path, json=observations((58, 1.0), on_conflict="revise")).is_success)
        assert client.post(path, json=change).status_code == 503
        until(lambda: client.post(path, json=change).is_success)
        held = client.service.engine._residents
        found = held.slab.gather([held.get("long").row])
        assert_same_state(found, recompute(tiny_forecaster, [log | {BASE + 2: 9.0, BASE + 58: 1.0}]))
        idle(client)
        idle(other)


def check_stored_with_the_next_step(client):
    """A state of sixty steps that was handed over in memory."""
    assert client.post("/v1/streams/long/observations", json=observations((60, 4.0))).is_success
    store, key = client.service.store, client.service.engine.model.key
    until(lambda: store.recover(["long"], key)["long"].snapshot_step == BASE + 60)
    idle(client)


def test_a_long_log_is_served_while_the_store_takes_no_snapshots(few, settings, monkeypatch, tiny_forecaster):
    """A full disk can be read; its snapshot is stored when there is room again."""
    few.set()
    log = {BASE + hour: float(3 + hour % 5) for hour in range(60)}
    with LocalClient(create_app(settings)) as client:
        store = client.service.store
        row = StreamRow("long", BASE, max(log), 1, len(log), 0, None, None)
        store.load([row], [[LogRow("long", *y, None) for y in log.items()]], [], replace=False)
        with monkeypatch.context() as full:

            def refuse(*_args, **_options):
                raise OperationalError("", {}, Exception("full"))

            full.setattr(store, "save_snapshots", refuse)
            assert client.get("/v1/streams/long/forecast").status_code == 503
            until(lambda: client.get("/v1/streams/long/forecast").is_success)
            held = client.service.engine._residents
            assert_same_state(held.slab.gather([held.get("long").row]), recompute(tiny_forecaster, [log]))
        check_stored_with_the_next_step(client)


@pytest.mark.parametrize("spoil", [drop_all_snapshots, damage_all_snapshots])
def test_a_stream_whose_long_log_has_no_state_is_deleted_and_replaced_at_once(few, settings, tiny_forecaster, spoil):
    """Neither needs the state, and both see the stream as it is."""
    log, path = [float(3 + hour % 5) for hour in range(60)], "/v1/streams/long"
    with LocalClient(create_app(settings)) as client:
        client.put(path, json=history(log))
        client.put(f"{path}er", json=history(log))
    with LocalClient(create_app(settings)) as client:
        spoil(client)
        assert client.get(path).status_code == 503
        assert client.put(path, json=history([1.0]), headers={"if-match": '"2"'}).status_code == 412
        assert client.delete(path, headers={"if-none-match": "*"}).status_code == 412
        replaced = client.put(path, json=history([1.0, 2.0]), headers={"if-match": '"1"'})
        assert (replaced.status_code, replaced.json()["version"]) == (200, 2)
        assert client.delete(f"{path}er", headers={"if-match": '"1"'}).status_code == 204
        assert client.delete(f"{path}er").status_code == 404
        assert client.get(f"{path}er").status_code == 404
        few.set()
        idle(client)
        assert client.post(f"{path}/observations", json=observations((2, 3.0))).json()["version"] == 3
        assert client.put(f"{path}er", json=history(log)).status_code == 201
        held = client.service.engine._residents
        found = [held.slab.gather([held.get(name).row]) for name in ("long", "longer")]
    assert_same_state(found[0], recompute(tiny_forecaster, [{BASE + hour: hour + 1.0 for hour in range(3)}]))
    assert_same_state(found[1], recompute(tiny_forecaster, [{BASE + hour: y for hour, y in enumerate(log)}]))


def test_a_long_log_whose_newest_snapshot_is_damaged_keeps_nobody_waiting(few, settings, tiny_forecaster):
    """Another one of its step is not stored; it is handed over in memory, and stored with the next step."""
    log = {BASE + hour: float(3 + hour % 5) for hour in range(60)}
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/long", json=history(list(log.values())))
        client.put("/v1/streams/short", json=history([5.0, 6.0]))
    with LocalClient(create_app(settings)) as client:
        damage_all_snapshots(client)
        assert client.get("/v1/streams/long/forecast").status_code == 503
        assert client.get("/v1/streams/short/forecast").is_success
        few.set()
        until(lambda: client.get("/v1/streams/long/forecast").is_success)
        held = client.service.engine._residents
        assert_same_state(held.slab.gather([held.get("long").row]), recompute(tiny_forecaster, [log]))
        check_stored_with_the_next_step(client)


def test_another_change_than_the_one_that_was_folded_is_folded_anew(few, settings, tiny_forecaster):
    """Two clients revise the same value; the state is made of that which was taken."""
    log = {BASE + hour: float(3 + hour % 5) for hour in range(60)}
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/long", json=history(list(log.values())))
        path = "/v1/streams/long/observations"
        few.set()
        assert client.post(path, json=observations((2, 9.0), on_conflict="revise")).status_code == 503
        idle(client)
        other = observations((2, 7.0), on_conflict="revise")
        assert client.post(path, json=other).status_code == 503
        until(lambda: client.post(path, json=other).is_success)
        held = client.service.engine._residents
        found = held.slab.gather([held.get("long").row])
    assert_same_state(found, recompute(tiny_forecaster, [log | {BASE + 2: 7.0}]))


def test_changes_far_back_in_several_logs_are_folded_a_few_at_a_time_with_others_in_between(
    settings, tiny_forecaster, monkeypatch
):
    """Together they would keep all others waiting for as long as one that is folded beside; each gets its verdict."""
    for module in (beside, folding, microbatch, planning, residents):
        monkeypatch.setattr(module, "LONGEST", 50)
    seen, begin = [], microbatch.MicroBatch.begin

    def watched(self, items):
        begin(self, items)
        seen.append(sum(step.folded for step in self._plan.rewinds))

    names, values = [f"s{i}" for i in range(6)], [float(3 + hour % 5) for hour in range(40)]
    with LocalClient(create_app(settings.model_copy(update={"snapshot_every": 1000}))) as client:
        for name in names:
            client.put(f"/v1/streams/{name}", json=history(values))
        client.put("/v1/streams/short", json=history(values))
        drop_all_snapshots(client)
        monkeypatch.setattr(microbatch.MicroBatch, "begin", watched)
        rows = [line(name, 2) for name in names] + [line("short", 40)]
        reply = client.post("/v1/observations?on_conflict=revise", content="".join(rows), headers=LINES)
        keyed = {"json": observations((2, 4.0), on_conflict="revise"), "headers": {"idempotency-key": "once"}}

        assert reply.json()["counts"] == {"revised": 6, "accepted": 1}
        assert sum(seen) == 6 * 40
        assert max(seen) <= 50 + 40
        assert client.post("/v1/streams/s0/observations", **keyed).json()["duplicate"] == 1
        held = client.service.engine._residents
        found = held.slab.gather([held.get(name).row for name in names])
    log = {BASE + hour: y for hour, y in enumerate(values)} | {BASE + 2: 4.0}
    assert_same_state(found, recompute(tiny_forecaster, [log] * 6))


@pytest.mark.parametrize("spoil", [drop_all_snapshots, damage_all_snapshots])
def test_cold_streams_are_restored_a_few_at_a_time_with_others_in_between(
    few, settings, tiny_forecaster, monkeypatch, spoil
):
    """As after a start with a model that has no states yet: whatever asks for all of them gets its answer."""
    monkeypatch.setattr(microbatch, "TOGETHER", 50)
    seen, restore, begin = [], residents.restore, microbatch.MicroBatch.begin

    def restored(*asked):
        found = restore(*asked)
        seen[-1] += sum(found.unsaved)
        return found

    def watched(self, items):
        seen.append(0)
        begin(self, items)

    names, values = [f"s{i}" for i in range(6)], [float(3 + hour % 5) for hour in range(40)]
    monkeypatch.setattr(residents, "restore", restored)
    monkeypatch.setattr(microbatch.MicroBatch, "begin", watched)
    with LocalClient(create_app(settings)) as client:
        for name in names:
            client.put(f"/v1/streams/{name}", json=history(values))
    with LocalClient(create_app(settings.model_copy(update={"snapshot_every": 1000}))) as client:
        spoil(client)
        rows = "".join(line(name, 40) for name in [*names, "unknown"])
        reply = client.post("/v1/observations", content=rows, headers=LINES).json()
        assert reply["counts"] == {"accepted": 6, "unknown_stream": 1}
        assert (sum(seen), max(seen)) == (6 * 40, 2 * 40)
        assert len(client.post("/v1/forecasts", json={"streams": names}).json()["forecasts"]) == 6
        held = client.service.engine._residents
        found = held.slab.gather([held.get(name).row for name in names])
    log = {BASE + hour: y for hour, y in enumerate(values)} | {BASE + 40: 4.0}
    assert_same_state(found, recompute(tiny_forecaster, [log] * 6))


def test_gaps_of_many_streams_are_filled_a_few_at_a_time_with_others_in_between(settings, tiny_forecaster, monkeypatch):
    """As after an outage, in a transaction each; whoever comes in between is not kept waiting for all of them."""
    monkeypatch.setattr(microbatch, "TOGETHER", 50)
    seen, append = [], microbatch.MicroBatch._append

    def watched(self, plan):
        seen.append(sum(step.record.last_step - step.resident.record.last_step for step in plan.appends))
        return append(self, plan)

    monkeypatch.setattr(microbatch.MicroBatch, "_append", watched)
    names = [f"s{i:02}" for i in range(12)]
    with LocalClient(create_app(settings)) as client:
        for name in names:
            client.put(f"/v1/streams/{name}", json=history([5.0, 6.0]))
        rows = "".join(line(name, hour) for name in names for hour in (9, 12))
        reply = client.post("/v1/observations", content=rows, headers=LINES).json()
        held = client.service.engine._residents
        found = held.slab.gather([held.get(name).row for name in names])

    assert (reply["counts"], reply["filled"]) == ({"accepted": 24}, 12 * 9)
    assert (sum(seen), max(seen)) == (12 * 11, 5 * 11)
    log = {BASE: 5.0, BASE + 1: 6.0, BASE + 9: 4.0, BASE + 12: 4.0}
    assert_same_state(found, recompute(tiny_forecaster, [log] * 12))


def test_very_many_rows_of_one_stream_are_folded_a_part_at_a_time(settings, tiny_forecaster, monkeypatch):
    """In whatever order they stand in the body; the verdicts are the rows' own."""
    monkeypatch.setattr(bulk_route, "HEAVIEST", 10)
    seen, append = [], microbatch.MicroBatch._append

    def watched(self, plan):
        seen.extend(len(step.inserted) for step in plan.appends)
        return append(self, plan)

    monkeypatch.setattr(microbatch.MicroBatch, "_append", watched)
    hours = [*range(2, 30), 17, 200_000]
    random.Random(3).shuffle(hours)
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history([5.0, 6.0]))
        rows = "".join(line("a", hour) for hour in hours)
        reply = client.post("/v1/observations", content=rows, headers=LINES).json()
        held = client.service.engine._residents
        found = held.slab.gather([held.get("a").row])

    assert max(seen) == 10
    assert sum(seen) == 28
    expected = ["gap_too_long" if hour > 30 else "accepted" for hour in hours]
    expected[len(hours) - 1 - hours[::-1].index(17)] = "duplicate"
    assert reply["verdicts"] == expected
    log = {BASE: 5.0, BASE + 1: 6.0} | {BASE + hour: 4.0 for hour in range(2, 30)}
    assert_same_state(found, recompute(tiny_forecaster, [log]))


def test_gaps_make_no_request_of_one_stream_longer_than_others_can_wait(few, settings, tiny_forecaster):
    """A few values, each after the longest gap, are as much to fold as if there were none: so many at a time."""
    sparse = list(range(12, 210, 11))
    log = {BASE: 5.0, BASE + 1: 6.0} | {BASE + hour: 4.0 for hour in sparse}
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history([5.0, 6.0]))
        client.put("/v1/streams/b", json=history([5.0, 6.0]))
        path = "/v1/streams/a/observations"
        refused = client.post(path, json=observations(*((hour, 4.0) for hour in sparse)))
        assert (refused.status_code, refused.json()["type"]) == (413, "urn:forecaster:problem:too-large")
        assert ds(67) in refused.json()["detail"], "the first that does not fit"
        assert client.get("/v1/streams/a").json()["version"] == 1
        for start in range(0, len(sparse), 5):
            parts = observations(*((hour, 4.0) for hour in sparse[start : start + 5]))
            assert client.post(path, json=parts).json()["accepted"] == len(parts["observations"])

        rows, seen = "".join(line("b", hour) for hour in reversed(sparse)), []
        while not seen or "busy" in seen[-1]["counts"]:
            seen.append(client.post("/v1/observations", content=rows, headers=LINES).json())
        assert seen[0]["counts"] == {"accepted": 5, "busy": 13}
        assert "send it again" in seen[0]["refused"][0]["detail"]
        assert seen[-1]["counts"] == {"accepted": 3, "duplicate": 15}
        held = client.service.engine._residents
        found = held.slab.gather([held.get(name).row for name in "ab"])
    assert_same_state(found, recompute(tiny_forecaster, [log] * 2))


def test_a_change_far_back_that_also_makes_the_log_much_longer_is_taken_in_the_end(few, settings, tiny_forecaster):
    log = {BASE + hour: float(3 + hour % 5) for hour in range(60)}
    change = {2: 9.0} | {hour: 4.0 for hour in range(69, 115)}
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history(list(log.values())))
        few.set()
        path, sent = "/v1/streams/a/observations", observations(*change.items(), on_conflict="revise")
        assert client.post(path, json=sent).status_code == 503
        idle(client)
        assert client.post(path, json=sent).is_success
        held = client.service.engine._residents
        found = held.slab.gather([held.get("a").row])
    assert_same_state(found, recompute(tiny_forecaster, [log | {BASE + hour: y for hour, y in change.items()}]))
