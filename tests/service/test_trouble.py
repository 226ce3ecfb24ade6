"""What a client is told in trouble: one leaves, a neighbour or the store fails, too much or too long work waits."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import orjson
import pytest
import torch

from forecaster import Forecaster
from service import stateless
from service.app import create_app
from service.bodies.replies import observed
from service.engine import engine as engine_module
from service.engine import folding as folding_module
from service.engine import items, microbatch
from service.engine.items import Create, Delete, Observe, Precondition, Single
from service.engine.microbatch import MicroBatch
from service.errors import UnknownOutcome
from service.models.served import ServedModel
from service.routes import forecasts, streams
from service.store import Transaction
from tests.forecaster.kit import assert_same_state
from tests.service.kit import (
    VALUES,
    LocalClient,
    assert_problem,
    ds,
    history,
    observations,
    recompute,
    replace_commit,
    state_of,
    until,
)


def held_commits(client, monkeypatch):
    """Let commits wait; two events: one has begun, all may go on."""
    commit, begun, go_on = client.service.store.commit, threading.Event(), threading.Event()

    def slowly(*asked):
        begun.set()
        assert go_on.wait(30)
        return commit(*asked)

    replace_commit(monkeypatch, client.service.store, slowly)
    return begun, go_on


def test_a_client_that_leaves_while_it_sends_gets_nothing_and_changes_nothing(client, stream, caplog):
    parts = iter(
        [
            {"type": "http.request", "body": json.dumps(observations((40, 1.0))).encode()[:-1], "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    before, sent = client.get(stream).json(), []

    async def receive():
        return next(parts)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": f"{stream}/observations", "query_string": b"", "headers": []}
    client.call(client.app(scope, receive, send))

    assert sent == []
    assert client.get(stream).json() == before
    assert not caplog.records
    assert 'status="499"' in client.get("/metrics").text


class Leaving:
    """A stateless forecast whose client leaves when it is told to."""

    def __init__(self, client, name, hours=(0,)):
        self._client, self._sent = client, []
        series = {"unique_id": name, "ds": [ds(hour) for hour in hours], "y": [1.0] * len(hours)}
        body = json.dumps({"series": [series]}).encode()
        self._parts = [{"type": "http.request", "body": body}]
        self._task = client.call(self._begin())

    async def _begin(self):
        self._gone = asyncio.Event()
        scope = {"type": "http", "method": "POST", "path": "/v1/forecasts", "query_string": b"", "headers": []}
        return asyncio.create_task(self._client.app(scope, self._receive, self._send))

    async def _receive(self):
        if self._parts:
            return self._parts.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self._sent.append(message)

    def leave(self):
        """Go, and see how the service takes it; what it has sent."""

        async def end():
            self._gone.set()
            await asyncio.wait_for(self._task, 50)

        self._client.call(end())
        return self._sent


@pytest.fixture
def folding(monkeypatch):
    """Stateless forecasts: names of series that were begun and ended, and what tells of a begin and allows an end."""
    begun, go_on, forecast = threading.Semaphore(0), threading.Semaphore(0), forecasts.forecast_histories
    names, ended = [], []

    def slowly(model, body, *asked):
        names.append(body.series[0].unique_id)
        begun.release()
        try:
            assert go_on.acquire(timeout=60)
            return forecast(model, body, *asked)
        finally:
            ended.append(names[-1])

    monkeypatch.setattr(forecasts, "forecast_histories", slowly)
    return names, ended, begun, go_on


def test_histories_of_clients_that_have_gone_are_not_folded(client, folding):
    """But for the one at work; the rest leave their places to others."""
    names, _, begun, go_on = folding
    first = Leaving(client, "first")
    assert begun.acquire(timeout=30)
    waiting = [Leaving(client, f"w{i}") for i in range(5)]
    until(lambda: client.service._stateless_waiting == 6)
    assert [one.leave() for one in (first, *waiting)] == [[]] * 6
    assert client.service._stateless_waiting == 0
    with ThreadPoolExecutor(1) as threads:
        body = {"series": [{"unique_id": "last", "ds": [ds(0)], "y": [1.0]}], "horizon": 1}
        last = threads.submit(client.post, "/v1/forecasts", json=body)
        until(lambda: client.service._stateless_waiting == 1)
        for _ in range(2):
            go_on.release()
        assert last.result(30).status_code == 200
    assert names == ["first", "last"]
    assert 'status="499"} 6.0' in client.get("/metrics").text


def test_a_history_whose_client_goes_while_it_is_folded_is_not_folded_to_its_end(client, monkeypatch):
    """Or the next in line would wait for what nobody wants, of very many steps in few bytes."""
    begun, go_on, fold, widths = threading.Event(), threading.Event(), Forecaster.fold, []

    def slowly(self, state, y, *further):
        widths.append(y.shape[1])
        begun.set()
        assert go_on.wait(60)
        return fold(self, state, y, *further)

    monkeypatch.setattr(folding_module, "_UNSEEN", 100)
    monkeypatch.setattr(Forecaster, "fold", slowly)
    left = Leaving(client, "left", (0, 1_900))
    assert begun.wait(30)
    assert left.leave() == []
    go_on.set()
    body = {"series": [{"unique_id": "next", "ds": [ds(0), ds(149)], "y": [1.0, 2.0]}], "horizon": 1}
    assert client.post("/v1/forecasts", json=body).status_code == 200
    assert widths == [100, 100, 50]


def test_very_many_series_are_decoded_some_at_a_time_to_the_same_forecasts(client, monkeypatch):
    """Between two parts it is looked whether the client has gone."""
    series = [{"unique_id": f"s{i}", **history(VALUES[: 10 + i])} for i in range(5)]
    together = client.post("/v1/forecasts", json={"series": series}).json()["forecasts"]
    forecast, sizes = Forecaster.forecast, []

    def noted(self, state, *further):
        sizes.append(len(state))
        return forecast(self, state, *further)

    monkeypatch.setattr(stateless, "_DECODED", 2)
    monkeypatch.setattr(Forecaster, "forecast", noted)
    apart = client.post("/v1/forecasts", json={"series": series}).json()["forecasts"]
    assert sizes == [2, 2, 1]
    for one, other in zip(apart, together, strict=True):
        assert (one["unique_id"], one["ds"]) == (other["unique_id"], other["ds"])
        for level, quantiles in one["quantiles"].items():
            np.testing.assert_allclose(quantiles, other["quantiles"][level], rtol=1e-5)


def test_a_drain_does_not_wait_for_a_history_whose_client_has_gone(settings, folding):
    _, ended, begun, go_on = folding
    with LocalClient(create_app(settings)) as client:
        left = Leaving(client, "left")
        assert begun.acquire(timeout=30)
        assert left.leave() == []
    assert ended == []
    go_on.release()
    until(lambda: ended == ["left"])


def test_bodies_that_come_slowly_are_held_up_to_a_bound_all_together(client, stream):
    scope = {"type": "http", "method": "POST", "path": f"{stream}/observations", "query_string": b"", "headers": []}

    async def story():
        release, statuses = asyncio.Event(), []

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def upload():
            first = iter([{"type": "http.request", "body": b" " * 40_000, "more_body": True}])

            async def receive():
                for message in first:
                    return message
                await release.wait()
                return {"type": "http.request", "body": b"", "more_body": False}

            await client.app(dict(scope), receive, send)

        for _ in range(2):  # what was held is free again
            release.clear()
            statuses.clear()
            tasks = [asyncio.ensure_future(upload()) for _ in range(30)]
            while len(statuses) < 4:  # 26 bodies of 40,000 bytes are less than 16 of the largest size, 65,536
                await asyncio.sleep(0.001)
            release.set()
            await asyncio.gather(*tasks)
            assert statuses == [503] * 4 + [400] * 26

    client.call(story())
    assert client.post(f"{stream}/observations", json=observations((40, 1.0))).status_code == 200


def test_an_unexpected_failure_is_a_500_without_its_cause(client, stream, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(client.service.engine._residents.model.forecaster, "change", fail)
        reply = client.post(f"{stream}/observations", json=observations((40, 1.0)))

    assert_problem(reply, 500, "log")
    assert "secret" not in reply.text
    assert client.get(stream).json()["version"] == 1
    assert client.post(f"{stream}/observations", json=observations((40, 1.0))).json()["accepted"] == 1


def test_what_was_committed_before_an_unexpected_failure_is_answered_as_done(client):
    """One item of a micro-batch breaks while its forecast is written; the others are not judged a second time."""
    for name in ("gone", "kept", "guilty"):
        client.put(f"/v1/streams/{name}", json=history([1.0]))
    engine, step = client.service.engine, client.service.engine.model.dates.steps([ds(1)])[0]

    def broken(_outcome, _want):
        raise RuntimeError("cannot be written")

    async def ask():
        def observe(name, **more):
            return Observe(Single(), name, [step], [2.0], want=engine.model.want(None, None), **more)

        items = [
            Delete(Single(), "gone", Precondition((1,))),
            Create(Single(), "new", [step], [3.0], Precondition(absent=True)),
            observe("kept", render=observed, precondition=Precondition((1,))),
            observe("guilty", render=broken, precondition=Precondition((1,))),
        ]
        engine.submit(items)
        return await asyncio.gather(*(item.ticket.future for item in items), return_exceptions=True)

    gone, new, kept, guilty = client.call(ask())

    assert gone.record.unique_id == "gone"
    assert (new.created, new.record.version) == (True, 1)
    assert (kept.record.version, orjson.loads(kept.reply)["version"]) == (2, 2)
    assert (guilty.status, guilty.extensions) == (500, {"version": 2})
    assert "durable" in guilty.detail
    assert client.get("/v1/streams/gone").status_code == 404
    assert [client.get(f"/v1/streams/{name}").json()["version"] for name in ("new", "kept", "guilty")] == [1, 2, 2]


def test_whose_neighbour_fails_is_told_what_became_of_its_observations(client, stream):
    """They have been taken by then, and are not to be judged as if they came again."""
    client.put("/v1/streams/b", json=history([1.0] * 40))
    engine, want = client.service.engine, client.service.engine.model.want(3, (0.5,))

    def fail(outcome, asked):
        if outcome.record.unique_id == "b" and outcome.judgement:
            raise RuntimeError("cannot be written")
        return observed(outcome, asked)

    async def ask():
        tickets, steps = [Single(), Single()], engine.model.dates.steps([ds(40)])
        engine.submit([Observe(t, n, steps, [5.0], want=want, render=fail) for t, n in zip(tickets, "ab", strict=True)])
        return await asyncio.gather(*(ticket.future for ticket in tickets), return_exceptions=True)

    well, failed = client.call(ask())

    reply = orjson.loads(well.reply)
    assert (reply["accepted"], reply["duplicate"], reply["version"], len(reply["quantiles"]["0.5"])) == (1, 0, 2, 3)
    assert reply["places"] != [None]
    assert (failed.status, failed.extensions) == (500, {"version": 2})


@pytest.mark.parametrize("told_early", [False, True])
def test_memory_that_fails_to_follow_the_store_is_made_anew_from_it(client, stream, monkeypatch, told_early):
    """Half of a state is written, then something breaks: what was committed stays, whether it has been told or not."""
    engine, log = client.service.engine, {step: y for step, y in enumerate(VALUES)}
    slab = type(engine._residents.slab)
    scatter, failed = slab.scatter, []

    def breaks(self, rows, states, ahead=None):
        scatter(self, rows, self.gather(rows).amended(ring=torch.full_like(self.gather(rows).ring, 1e6)))
        failed.append(rows)
        raise RuntimeError("no memory")

    if told_early:  # as when the next micro-batch begins beside the one that waits for the disk
        begin = MicroBatch.begin

        def begins(self, items):
            begin(self, items)
            if self._transaction is not None:
                self.tell(engine._deliver)

        monkeypatch.setattr(MicroBatch, "begin", begins)
    with monkeypatch.context() as patch:
        patch.setattr(slab, "scatter", breaks)
        reply = client.post(f"{stream}/observations", json=observations((40, 7.0)))
        until(lambda: bool(failed))  # what is told early is told before memory follows
    log[40] = 7.0

    assert (reply.status_code, reply.json()["version"]) == (200 if told_early else 500, 2)
    found = client.get(f"{stream}/forecast").json()
    anew = {"unique_id": "a", "ds": [ds(hour) for hour in log], "y": list(log.values())}
    expected = client.post("/v1/forecasts", json={"series": [anew]}).json()["forecasts"][0]
    assert (found["version"], found["cutoff"]) == (2, ds(40))
    for level, quantiles in expected["quantiles"].items():
        assert found["quantiles"][level] == pytest.approx(quantiles, rel=1e-5)


@pytest.mark.parametrize(("headers", "kept"), [({}, True), ({"idempotency-key": "k"}, False)])
def test_who_gets_no_forecast_is_told_what_became_of_the_observations(client, stream, monkeypatch, headers, kept):
    """Without a key they are durable before the reply is written; with one, neither is there without the other."""

    def fail(*_args, **_options):
        raise RuntimeError("cannot be decoded")

    forecaster = client.service.engine.model.forecaster
    before = client.get(stream).json()["version"]
    with monkeypatch.context() as patch:
        patch.setattr(forecaster, "forecast_and_ahead", fail)
        body = observations((40, 1.0))
        reply = client.post(f"{stream}/observations", json=body, headers={"if-match": f'"{before}"', **headers})

    assert_problem(reply, 500, "durable" if kept else "the service failed")
    problem = reply.json()
    assert problem["type"].endswith("taken-without-forecast" if kept else "internal")
    assert problem.get("version") == (before + 1 if kept else None)
    assert client.get(stream).json()["version"] == before + kept
    again = client.post(f"{stream}/observations", json=body, headers=headers).json()
    assert (again["duplicate"], again["accepted"]) == (kept, not kept)


@pytest.mark.parametrize("part", ["statements", "all of it, by the writer"])
def test_a_store_that_fails_is_a_503_and_nothing_changes(client, stream, monkeypatch, part):
    from sqlalchemy.exc import OperationalError

    def fail(*_args):
        raise OperationalError("insert", {}, Exception("disk full"))

    before, store = state_of(client), client.service.store
    with monkeypatch.context() as patch:
        if part == "statements":
            patch.setattr(store, "begin", fail)
        else:
            replace_commit(patch, store, fail)
        reply = client.post(f"{stream}/observations", json=observations((40, 1.0)))

    assert_problem(reply, 503, "nothing was changed")
    assert reply.headers["retry-after"] == "1"
    assert state_of(client) == before


def test_a_micro_batch_that_fails_is_counted_with_parts_of_its_own(client, stream, monkeypatch):
    """And not with those of the one before, which has been counted."""
    from sqlalchemy.exc import OperationalError

    def fail():
        raise OperationalError("select", {}, Exception("the disk has gone"))

    def counted(name):
        found = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
        return {series: float(value) for series, _, value in found}

    def ask(hour):
        (done,) = counted("forecaster_batch_seconds_count").values()
        reply = client.post(f"{stream}/observations", json=observations((hour, 1.0)))
        wait_for(done + 1)
        return reply.status_code

    def wait_for(batches):
        """Replies come before their micro-batch is counted."""
        until(lambda: counted("forecaster_batch_seconds_count") == {"forecaster_batch_seconds_count": batches})

    wait_for(1)  # the one that made the stream
    assert ask(40) == 200
    before = counted("forecaster_batch_part_seconds_count")
    monkeypatch.setattr(client.service.store, "is_still_at", lambda _moment: False)  # so the store is asked at length
    monkeypatch.setattr(client.service.store, "moment", fail)
    assert ask(41) == 503
    assert counted("forecaster_batch_part_seconds_count") == before
    assert counted("forecaster_failed_commits_total") == {"forecaster_failed_commits_total": 1.0}


def test_a_store_that_fails_at_the_end_of_a_transaction_leaves_the_outcome_open_and_memory_right(
    client, stream, monkeypatch
):
    """Whether it was kept, the next look at the store tells."""

    def fail(transaction, *asked):
        end(transaction, *asked)
        raise UnknownOutcome("the disk has gone")

    end, before = Transaction.end, client.get(stream).json()["version"]
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "end", fail)
        reply = client.post(f"{stream}/observations", json=observations((40, 1.0)))

    assert_problem(reply, 503, "not known")
    again = client.post(f"{stream}/observations", json=observations((40, 1.0))).json()
    assert (again["duplicate"], again["version"]) == (1, before + 1)


def test_too_much_waiting_is_shed_with_a_time_to_retry(client, stream, monkeypatch):
    engine = client.service.engine
    monkeypatch.setattr(engine._intake, "pending", 10**9)

    reply = client.post(f"{stream}/observations", json=observations((40, 1.0)))

    assert_problem(reply, 503, "waiting")
    assert reply.headers["retry-after"] == "1"
    monkeypatch.setattr(engine._intake, "pending", 0)


def test_what_was_answered_waits_no_more_whatever_it_carried(client, stream):
    lines = "\n".join(json.dumps({"unique_id": name, "ds": ds(40), "y": 1.0}) for name in ("a", "b", "unknown"))
    assert (
        client.post("/v1/observations", content=lines, headers={"content-type": "application/x-ndjson"}).status_code
        == 200
    )
    assert client.post(f"{stream}/observations", json=observations((41, 1.0))).status_code == 200
    assert client.get("/v1/streams/unknown").status_code == 404

    intake = client.service.engine._intake
    assert (intake.pending, intake.waiting) == (0, 0)


def test_readiness_turns_when_the_store_cannot_be_written(client, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def fail():
        raise OperationalError("update", {}, Exception("read-only"))

    monkeypatch.setattr(client.service.store, "probe", fail)

    assert_problem(client.get("/readyz"), 503, "store: not writable")
    assert client.get("/healthz").status_code == 200


def test_a_parameter_that_means_nothing_is_refused_where_something_is_stored(client):
    client.put("/v1/streams/a", json=history([1.0]))

    assert_problem(client.post("/v1/streams/a/observations?horizon=2", json=observations((1, 2.0))), 422, "'horizon'")
    assert_problem(client.get("/v1/models?name=a"), 422, "'name'")
    assert client.get("/v1/streams/a").json()["version"] == 1


def test_the_longest_history_leaves_room_for_others(settings, monkeypatch):
    """However many steps it has, it counts for a micro-batch; here also with few places for what waits."""
    monkeypatch.setattr(items, "HEAVIEST", 4)
    with LocalClient(create_app(settings.model_copy(update={"max_pending": 10}))) as client:
        client.put("/v1/streams/a", json=history([1.0]))
        begun, go_on = held_commits(client, monkeypatch)
        with ThreadPoolExecutor(2) as threads:
            long = threads.submit(client.put, "/v1/streams/long", json=history(VALUES))
            assert begun.wait(30)
            other = threads.submit(client.post, "/v1/streams/a/observations", json=observations((1, 1.0)))
            until(lambda: client.service.engine._intake.pending == 5 or other.done())
            go_on.set()
            assert (long.result(30).status_code, other.result(30).status_code) == (201, 200)


def test_a_long_history_is_folded_beside_the_engine_and_nobody_waits_for_it(
    client, stream, challenger, tiny_forecaster, monkeypatch
):
    """Its state is that of any other; under a model that came meanwhile it is folded once more, beside it again."""
    begun, go_on, fold, by_engine = threading.Event(), threading.Event(), streams.warm_up, []

    def slowly(*asked):
        begun.set()
        assert go_on.wait(30)
        return fold(*asked)

    monkeypatch.setattr(streams, "warm_up", slowly)
    monkeypatch.setattr(streams, "_LONG", 50)
    monkeypatch.setattr(microbatch, "warm_up", lambda model, creates: by_engine.extend(creates) or fold(model, creates))
    values = [float(5 + i % 7) for i in range(60)]
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(client.put, f"/v1/streams/{name}", json=history(values)) for name in ("x", "y")]
        assert begun.wait(30)
        assert client.put("/v1/streams/short", json=history([1.0])).status_code == 201
        assert client.post(f"{stream}/observations", json=observations((40, 1.0))).json()["accepted"] == 1
        go_on.set()
        assert [put.result(30).status_code for put in waiting] == [201, 201]

        def check(forecaster):
            residents = client.service.engine._residents
            found = residents.slab.gather([residents.get(name).row for name in ("x", "y", "short")])
            logs = [dict(enumerate(y, 473352)) for y in (values, values, [1.0])]
            assert_same_state(found, recompute(forecaster, logs))

        check(tiny_forecaster)
        begun.clear()
        go_on.clear()
        waiting = [threads.submit(client.put, f"/v1/streams/{name}", json=history(values)) for name in ("x", "y")]
        assert begun.wait(30)
        client.service.switch.take(ServedModel("other", "2", challenger))
        client.get("/v1/streams/short")
        go_on.set()
        assert [put.result(30).status_code for put in waiting] == [200, 200]
        check(challenger)
    assert {item.unique_id for item in by_engine} == {"short"}


def test_histories_with_gaps_share_a_micro_batch_as_those_without(client, monkeypatch):
    """Gaps are folded like values, so what a micro-batch may take counts them."""
    monkeypatch.setattr(items, "HEAVIEST", 6)
    monkeypatch.setattr(engine_module, "HEAVIEST", 6)
    seen, begin = [], MicroBatch.begin

    def watched(self, items):
        seen.append(sum(item.steps[-1] - item.steps[0] + 1 for item in items if isinstance(item, Create)))
        begin(self, items)

    monkeypatch.setattr(MicroBatch, "begin", watched)
    sparse = {"ds": [ds(0), ds(4)], "y": [1.0, 2.0]}
    client.put("/v1/streams/a", json=history([1.0]))
    begun, go_on = held_commits(client, monkeypatch)
    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(client.post, "/v1/streams/a/observations", json=observations((1, 1.0)))
        assert begun.wait(30)
        puts = [threads.submit(client.put, f"/v1/streams/s{i}", json=sparse) for i in range(4)]
        until(lambda: client.service.engine._intake.waiting == 5)
        go_on.set()
        assert [put.result(30).status_code for put in (first, *puts)] == [200, 201, 201, 201, 201]
    assert max(seen) == 10, "one that comes before it is full, and one that fills it"
