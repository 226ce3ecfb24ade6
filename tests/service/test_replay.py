"""Law 9 at the engine's level: whatever happens on the way, a state is the fold of its log."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.items import Create, Delete, Look, Observe, Outcome
from service.engine.microbatch import MicroBatch
from service.engine.residents import Residents
from service.engine.verdicts import Verdict
from service.errors import StaleStreams
from service.metrics import Metrics
from service.models.served import ServedModel, Want
from service.problems import Problem
from service.store import Store
from tests.forecaster.kit import assert_same_state
from tests.service.kit import recompute, replace_commit

MAX_GAP = 6


class Box:
    """A ticket that only keeps the result."""

    def settle(self, item, result):
        raise AssertionError("results are read from the batch")


class Machine:
    """Residents over a real store, driven without threads or HTTP, beside a plain dict per stream."""

    def __init__(self, forecaster, folder: Path) -> None:
        self.model = ServedModel("tiny", "1", forecaster)
        self.url = f"sqlite:///{folder / 'log.db'}"
        self.logs: dict[str, dict[int, float | None]] = {}
        self.begins: dict[str, int] = {}
        self.writer = ThreadPoolExecutor(1)
        self.start()

    def start(self) -> None:
        self.store = Store.open(self.url)
        self.serve(self.model)

    def serve(self, model: ServedModel) -> None:
        self.model = model
        self.residents = Residents(model, self.store, Metrics(), capacity=100, bases=2)

    def close(self) -> None:
        self.store.close()
        self.writer.shutdown()

    def run(self, *items):
        with torch.inference_mode():
            for _ in range(2):
                batch = MicroBatch(
                    self.residents,
                    self.store,
                    max_gap=MAX_GAP,
                    check_versions=False,
                    writer=self.writer,
                    now=0,
                    replies_since=0,
                )
                try:
                    results = batch.run(items)
                    break
                except StaleStreams as stale:  # as the engine does; only trimming changes streams behind its back
                    self.residents.drop(stale.unique_ids)
        return [results[item] for item in items]

    def create(self, name: str, steps: list[int], values: list[float | None]) -> None:
        (outcome,) = self.run(Create(Box(), name, steps, values))
        assert isinstance(outcome, Outcome)
        self.logs[name] = dict(zip(steps, values, strict=True))
        self.begins[name] = steps[0]

    def observe(self, requests: dict[str, list[tuple[int, float | None]]], *, revise: bool, whole: bool) -> None:
        items = [
            Observe(Box(), n, [s for s, _ in pairs], [y for _, y in pairs], revise=revise, whole=whole)
            for n, pairs in requests.items()
        ]
        for item, result in zip(items, self.run(*items), strict=True):
            if isinstance(result, Problem):
                assert result.status in self.refusals(item, whole=whole), result
                continue
            for step, y, verdict in sorted(
                zip(item.steps, item.values, result.judgement.verdicts, strict=True), key=lambda t: t[0]
            ):
                if not verdict.refused:
                    self.logs[item.unique_id][step] = y
                # A repeat may still be known as one where the log is about to go.
                if verdict is not Verdict.DUPLICATE:
                    assert (verdict is Verdict.TOO_OLD) == (step < self.begins[item.unique_id])

    def refusals(self, item: Observe, *, whole: bool) -> set[int]:
        """With what status a request may be refused as a whole, as far as the dict tells."""
        log = self.logs.get(item.unique_id)
        if log is None:
            return {404}
        if not whole:
            return set()
        told, last, found = dict(log), max(log), set()
        for step, y in sorted(zip(item.steps, item.values, strict=True), key=lambda pair: pair[0]):
            if step < self.begins[item.unique_id] or step > last + MAX_GAP + 1:
                found.add(422)
            if not item.revise and step in told and told[step] != y:
                found.add(409)
            told[step], last = y, max(last, step)
        return found

    def go_on(self, name: str, values: list[float | None]) -> None:
        """One value after the other, with a snapshot after each."""
        for y in values:
            self.observe({name: [(max(self.logs[name]) + 1, y)]}, revise=False, whole=True)
            with torch.inference_mode():
                self.residents.save(self.residents.unsaved())

    def trim(self, keep: int, sweep: int) -> None:
        """Let logs begin later where that loses nothing, and delete some rows; memory may learn of it or not."""
        records = {record.id: record for record in self.store.page("", 100)}
        moved = self.store.raise_floors(self.model.key, keep, list(records))
        for stream_id, step in moved.items():
            assert self.begins[records[stream_id].unique_id] < step <= records[stream_id].last_step - keep + 1
            self.begins[records[stream_id].unique_id] = step
        self.store.sweep(list(records), sweep)
        if sweep % 2:
            self.residents.trimmed({records[i].unique_id: (i, step) for i, step in moved.items()})

    def check_states(self, logs: dict[str, dict[int, float | None]]) -> None:
        """Every stream's state is the fold of its log."""
        names = sorted(logs)
        with torch.inference_mode():
            self.residents.touch(names, check_versions=False)
            found = self.residents.slab.gather([self.residents.get(name).row for name in names])
            assert_same_state(found, recompute(self.model.forecaster, [logs[name] for name in names]))

    def check(self) -> None:
        """Every stream's state, version of the log and record equal a recompute from the dict."""
        names = sorted(self.logs)
        if not names:
            return
        self.check_states(self.logs)
        residents = [self.residents.get(name) for name in names]
        for name, resident in zip(names, residents, strict=True):
            retained = {step: y for step, y in self.logs[name].items() if step >= self.begins[name]}
            assert dict(self.store.log(resident.record.id, self.begins[name] - 1)) == retained
            assert resident.record.last_step == max(self.logs[name])
            assert resident.record.observations == len(self.logs[name])
            assert resident.record.missing == sum(y is None for y in self.logs[name].values())


NAMES = st.sampled_from("abc")
VALUES = st.one_of(st.none(), st.sampled_from([3.0, 70.0]), st.floats(1, 100))
PAIRS = st.lists(st.tuples(st.integers(-8, MAX_GAP + 2), VALUES), min_size=1, max_size=4)
"""Steps count from the end of the log, or nearly all requests would be far beyond it, and refused."""
ACTIONS = st.one_of(
    st.tuples(st.just("observe"), st.dictionaries(NAMES, PAIRS, min_size=1), st.booleans(), st.booleans()),
    st.tuples(st.just("create"), NAMES, st.lists(st.floats(1, 100), min_size=1, max_size=8), st.integers(0, 10)),
    st.tuples(st.just("forget memory"), st.sampled_from(["restart", "drop", "snapshot", "snapshot", "delete"]), NAMES),
    st.tuples(st.just("trim"), st.integers(0, 4), st.sampled_from([1, 4, 1000])),
)


@settings(max_examples=60)
@given(actions=st.lists(ACTIONS, min_size=4, max_size=14))
def test_any_history_of_requests_restarts_and_snapshots_ends_in_the_fold_of_the_log(actions, tiny_forecaster):
    """Splits, shuffles, duplicates, late and revised values, gaps, deletions, evictions, restarts, trimming."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(tiny_forecaster, Path(folder))
        machine.create("a", [0, 1, 3], [5.0, None, 7.0])
        machine.create("b", list(range(6, 14)), [3.0] * 8)
        for action in actions:
            if action[0] == "observe":
                _, requests, revise, whole = action
                ends = {name: max(log) for name, log in machine.logs.items()}
                steps = {n: [(ends[n] + ahead, y) for ahead, y in pairs] for n, pairs in requests.items() if n in ends}
                machine.observe(steps, revise=revise, whole=whole) if steps else None
            elif action[0] == "create":
                _, name, values, first = action
                machine.create(name, list(range(first, first + len(values))), values)
            elif action[0] == "trim":
                machine.trim(*action[1:])
            else:
                _, what, name = action
                if what == "restart":
                    machine.store.close()
                    machine.start()
                elif what == "drop":
                    machine.residents.drop([name])
                elif what == "snapshot":
                    with torch.inference_mode():
                        machine.residents.save(machine.residents.unsaved())
                elif name in machine.logs:
                    machine.run(Delete(Box(), name))
                    del machine.logs[name]
        machine.check()
        machine.residents.drop(list(machine.logs))
        machine.check()
        machine.close()


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_what_a_restart_has_folded_again_counts_towards_the_next_snapshot(tiny_forecaster, tmp_path, with_snapshot):
    """Or each restart would fold as much again."""
    machine = Machine(tiny_forecaster, tmp_path)
    machine.create("a", list(range(20)), [float(i + 1) for i in range(20)])
    with torch.inference_mode():
        machine.residents.save(machine.residents.unsaved() if with_snapshot else [])
    machine.observe({"a": [(20, 3.0), (22, 4.0)]}, revise=False, whole=True)
    machine.residents.drop(["a"])

    machine.check()

    assert machine.residents.get("a").unsaved == (3 if with_snapshot else 23)
    machine.close()


def test_a_damaged_snapshot_is_passed_over_and_the_log_decides(tiny_forecaster, tmp_path):
    machine = Machine(tiny_forecaster, tmp_path)
    machine.create("a", list(range(20)), [float(i + 1) for i in range(20)])
    with torch.inference_mode():
        machine.residents.save(machine.residents.unsaved())
    with machine.store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE snapshots SET state = zeroblob(length(state))")
    machine.observe({"a": [(20, 3.0)]}, revise=False, whole=True)
    machine.residents.drop(["a"])

    machine.check()

    assert machine.residents._metrics.damaged_snapshots._value.get() == 1
    machine.close()


def test_a_failed_commit_changes_nothing_in_memory(tiny_forecaster, tmp_path, monkeypatch):
    machine = Machine(tiny_forecaster, tmp_path)
    machine.create("a", [0, 1, 2], [1.0, 2.0, 3.0])

    def fail(*_args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        replace_commit(patch, machine.store, fail)
        with pytest.raises(OSError, match="disk full"):
            machine.observe({"a": [(3, 4.0)]}, revise=False, whole=True)
    machine.check()
    machine.close()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_fold_that_fails_writes_nothing_and_leaves_the_store_free(tiny_forecaster, tmp_path, monkeypatch, steps):
    """The statements have run by then, in the engine's thread."""
    machine = Machine(tiny_forecaster, tmp_path)
    machine.create("a", [0, 1, 2], [1.0, 2.0, 3.0])
    new = [(3 + k, float(k)) for k in range(steps)]

    def fail(*_args, **_options):
        raise ArithmeticError("cannot be folded")

    with monkeypatch.context() as patch:
        patch.setattr(tiny_forecaster, "change", fail)
        patch.setattr(tiny_forecaster, "fold", fail)
        patch.setattr(tiny_forecaster, "fold_and_place", fail)
        with pytest.raises(ArithmeticError, match="cannot be folded"):
            machine.observe({"a": new}, revise=False, whole=True)
    machine.check()
    machine.observe({"a": new}, revise=False, whole=True)
    machine.check()
    machine.close()


def test_snapshots_that_there_is_no_time_for_are_left_and_counted(tiny_forecaster, tmp_path):
    machine = Machine(tiny_forecaster, tmp_path)
    for name in "abc":
        machine.create(name, [0, 1, 2], [1.0, 2.0, 3.0])
    unsaved = machine.residents.unsaved()

    assert len(unsaved) == machine.residents.save(unsaved, until=time.monotonic()) == 3
    assert machine.residents.unsaved() == unsaved
    assert machine.residents.save(unsaved) == 0
    assert machine.residents.unsaved() == []
    machine.check()
    machine.close()


def test_looking_changes_nothing(tiny_forecaster, tmp_path):
    machine = Machine(tiny_forecaster, tmp_path)
    machine.create("a", [0, 1, 2], [1.0, 2.0, 3.0])
    want = machine.model.want(3, [0.5])

    first, second = (machine.run(Look(Box(), "a", want))[0] for _ in range(2))

    assert first.quantiles.tolist() == second.quantiles.tolist()
    assert first.record == second.record
    machine.check()
    machine.close()


@pytest.mark.parametrize("want", [Want(25, (0.5,)), Want(3, (0.999,))])
def test_a_forecast_that_the_model_cannot_make_any_more_costs_no_observation(tiny_forecaster, tmp_path, want):
    """A request is checked against the model of that moment, and may meet another one."""
    machine = Machine(tiny_forecaster, tmp_path)
    for name in "abc":
        machine.create(name, [0, 1, 3], [1.0, 2.0, 3.0])
    good = Observe(Box(), "d", [4], [1.0], want=machine.model.want(3, [0.5]))
    machine.create("d", [3], [1.0])

    items = Observe(Box(), "a", [4], [4.0], want=want), Observe(Box(), "b", [2], [4.0], want=want)
    *observed, refused, taken = machine.run(*items, Look(Box(), "c", want), good)

    assert refused.status == 422
    assert [(found.refusal.status, found.quantiles.size) for found in observed] == [(422, 0)] * 2
    assert (taken.quantiles.shape, taken.refusal) == ((1, 3), None)
    machine.logs["a"][4] = machine.logs["b"][2] = 4.0
    machine.logs["d"][4] = 1.0
    machine.check()
    machine.close()


@pytest.mark.parametrize("company", [{"a"}, {"a", "b"}, {"a", "c"}, {"a", "d"}, {"a", "b", "c", "d", "e"}])
@pytest.mark.parametrize("horizon", [3, 9])  # the second is beyond the trained one
def test_forecasts_of_one_micro_batch_are_those_of_the_logs_whatever_its_items_do(
    tiny_forecaster, tmp_path, company, horizon
):
    """One value appended, several appended, one late, one looked at, one appended without a forecast."""
    machine = Machine(tiny_forecaster, tmp_path)
    for place, name in enumerate("abcde"):
        machine.create(name, [0, 1, 3, 4], [5.0 + place, None, 7.0, 6.0])
    want = machine.model.want(horizon, [0.1, 0.5])
    items = {
        "a": Observe(Box(), "a", [5], [8.0], want=want),
        "b": Observe(Box(), "b", [5, 6], [8.0, 9.0], want=want),
        "c": Observe(Box(), "c", [2], [8.0], want=want),
        "d": Look(Box(), "d", want),
        "e": Observe(Box(), "e", [5], [3.0]),
    }

    results = machine.run(*(items[name] for name in sorted(company)))

    for name, result in zip(sorted(company), results, strict=True):
        item = items[name]
        if isinstance(item, Observe):
            machine.logs[name].update(zip(item.steps, item.values, strict=True))
        if item.want is not None:
            state = recompute(tiny_forecaster, [machine.logs[name]])
            expected = tiny_forecaster.forecast(state, horizon, [0.1, 0.5])[0].T
            np.testing.assert_allclose(result.quantiles, expected, rtol=1e-4, err_msg=name)
    machine.check()
    machine.close()
