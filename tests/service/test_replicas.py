"""Several replicas over one PostgreSQL: any takes any stream, and none writes over what it has not seen."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from sqlalchemy.exc import SQLAlchemyError

from service.app import create_app
from service.models.served import load_model
from service.settings import Settings
from service.store import Changes, NewStream, Store, StoredReply, StreamRecord, database
from tests.service.kit import LocalClient, ds, history, observations, recompute, until
from tests.service.processes import Server
from tests.service.servers import new_database

BASE = 473352
PATH = "/v1/streams/a/observations"


@pytest.fixture
def url(postgres: str) -> str:
    """An empty database."""
    return new_database(postgres)


def assert_forecasts(replies, forecaster, log) -> None:
    """All of them are made of the log."""
    expected = forecaster.forecast(recompute(forecaster, [{BASE + h: y for h, y in log.items()}]))[0]
    for reply in replies:
        np.testing.assert_allclose(np.array(list(reply["quantiles"].values())).T, expected, rtol=1e-5)


def test_a_replica_that_was_paused_does_not_write_over_what_came_meanwhile(
    template, url, artifact, tmp_path, tiny_forecaster
):
    """R11: real processes, one stopped while the other goes on; what waited at its door is judged by the log of now."""
    with (
        Server(template, artifact, url, tmp_path / "1").start() as one,
        Server(template, artifact, url, tmp_path / "2").start() as two,
    ):
        here, there = (httpx.Client(base_url=server.url, timeout=120) for server in (one, two))
        here.put("/v1/streams/a", json=history([5.0])).raise_for_status()
        log = {0: 5.0}
        for hour in (1, 2):
            here.post(PATH, json=observations((hour, 6.0 + hour))).raise_for_status()
            log[hour] = 6.0 + hour
        assert one.process is not None
        one.process.send_signal(signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(3) as waiting:
                # Into the socket of the stopped process: a value the other one gets too, another value for the same ds,
                # and one for an hour that the other has passed by then.
                asked = [
                    waiting.submit(httpx.post, f"{one.url}{PATH}", json=body, timeout=120)
                    for body in (observations((3, 1.0)), observations((4, 99.0)), observations((5, 7.0)))
                ]
                for hour, y in ((3, 1.0), (4, 2.0), (6, 3.0), (7, 4.0)):
                    there.post(PATH, json=observations((hour, y))).raise_for_status()
                    log[hour] = y
                one.process.send_signal(signal.SIGCONT)
                same, other, late = (future.result() for future in asked)
        finally:
            one.process.send_signal(signal.SIGCONT)
        log[5] = 7.0

        assert (same.status_code, same.json()["duplicate"]) == (200, 1)
        assert (other.status_code, other.json()["type"].rpartition(":")[2]) == (409, "conflict")
        assert (late.status_code, late.json()["late"], late.json()["cutoff"]) == (200, 1, ds(7))
        found = [client.get("/v1/streams/a/forecast").json() for client in (here, there)]
        assert {reply["version"] for reply in found} == {8}
        assert_forecasts(found, tiny_forecaster, log)
        here.close()
        there.close()


def test_lists_that_hang_in_the_database_keep_nobody_else_waiting(url, artifact):
    """A table that somebody has locked; each is told in time, and histories are read all the while."""
    settings = Settings(model=str(artifact), store=url, stall_seconds=2.0)
    engine = database.open_database(url)
    with LocalClient(create_app(settings)) as client, engine.connect() as other:
        until(lambda: client.put("/v1/streams/a", json=history([1.0])).is_success)  # compiled code is loaded

        async def ask():
            async def put():
                return await client._client.put("/v1/streams/b", json=history([1.0]))

            lists = [asyncio.ensure_future(client._client.get("/v1/streams")) for _ in range(60)]
            await asyncio.sleep(0.5)
            return await asyncio.gather(asyncio.wait_for(put(), 20), *lists)

        other.exec_driver_sql("LOCK TABLE streams IN ACCESS EXCLUSIVE MODE")
        replies = client.call(asyncio.wait_for(ask(), 30))
        assert {reply.status_code for reply in replies} == {503}
        assert {reply.json()["type"].rpartition(":")[2] for reply in replies[1:]} == {"unavailable"}
        other.rollback()
        until(lambda: client.get("/v1/streams").is_success)
        until(lambda: client.put("/v1/streams/b", json=history([1.0])).is_success)
    engine.dispose()


def test_a_transaction_of_a_stopped_process_does_not_keep_the_others_waiting(url, monkeypatch):
    """It holds locks until the server undoes it; when it goes on it learns that nothing was written."""
    one, two = Store.open(url), Store.open(url)
    record = one.commit(Changes(created=[NewStream(StreamRecord(0, "a", 0, 0, 1, 1, 0), None, [(0, 1.0)])]))[0]
    monkeypatch.setattr(database, "IDLE_SECONDS", 1)
    one._engine.dispose()  # its next connection has the shorter time
    after = record._replace(last_step=1, version=2, observations=2)

    def changes(y: float) -> Changes:
        return Changes(inserted=[(record.id, 1, y)], streams=[(after, 1)])

    asleep, awake = threading.Event(), threading.Event()

    class Asleep(Future[list[StoredReply]]):
        """What a commit waits for when it has written all and holds its locks."""

        def result(self, timeout: float | None = None) -> list[StoredReply]:
            asleep.set()
            assert awake.wait(60)
            return []

    with ThreadPoolExecutor(1) as stopped:
        half_done = stopped.submit(one.commit, changes(1.0), Asleep())
        assert asleep.wait(60)
        two.commit(changes(2.0))
        awake.set()
        with pytest.raises(SQLAlchemyError, match="idle-in-transaction"):
            half_done.result()
    assert two.log(record.id) == one.log(record.id) == [(0, 1.0), (1, 2.0)]
    one.close()
    two.close()


def test_replicas_write_the_same_streams_at_once(url, artifact, tiny_forecaster):
    """Everyone writes everywhere, late and in bulk; nothing is refused, lost or doubled, and all agree in the end."""
    settings = Settings(model=str(artifact), store=url, snapshot_every=3)
    names = [f"s{i}" for i in range(6)]
    logs = {name: {0: 5.0} for name in names}
    chance = random.Random(3)
    plan = [(name, hour) for name in names for hour in range(1, 25)]
    chance.shuffle(plan)
    plan.sort(key=lambda pair: pair[1] + chance.random() * 6)  # roughly in order, so many are late
    with LocalClient(create_app(settings)) as one, LocalClient(create_app(settings)) as two:
        for name in names:
            one.put(f"/v1/streams/{name}", json=history([5.0]))

        async def write(client: LocalClient, part: list[tuple[str, int]]) -> list[int]:
            bodies = [(n, observations((h, float(h % 7 + 1)), horizon=1)) for n, h in part]
            replies = [
                await asyncio.gather(
                    *(client._client.post(f"/v1/streams/{n}/observations", json=b) for n, b in bodies[i : i + 8])
                )
                for i in range(0, len(bodies), 8)
            ]
            return [reply.status_code for group in replies for reply in group]

        running = [
            asyncio.run_coroutine_threadsafe(write(client, plan[i::2]), client._loop)
            for i, client in enumerate((one, two))
        ]
        statuses = [status for future in running for status in future.result(120)]
        for name, hour in plan:
            logs[name][hour] = float(hour % 7 + 1)
        assert statuses == [200] * len(plan)
        for name in names:
            found = [client.get(f"/v1/streams/{name}/forecast").json() for client in (one, two)]
            assert {reply["version"] for reply in found} == {25}
            assert_forecasts(found, tiny_forecaster, logs[name])


def test_one_replica_trims_and_swaps_while_another_serves(
    url, artifact, challenger_artifact, tiny_forecaster, challenger
):
    """Late data meets the trimmed log through either; each answers by its own model, also after the other's swap."""
    bounds = {"snapshot_every": 2, "max_gap_steps": 2, "retention": "1", "trim_seconds": 3600}
    settings = Settings(model=str(artifact), store=url, **bounds)
    log = {hour: float(5 + hour * 7 % 11) for hour in range(60)}
    with LocalClient(create_app(settings)) as one, LocalClient(create_app(settings)) as two:
        one.put("/v1/streams/a", json=history([log[0]]))
        for hour in range(1, 60):
            (one if hour % 5 else two).post(PATH, json=observations((hour, log[hour])))
        assert two.get("/v1/streams/a").json()["log_ds"] == ds(0)
        one.service._trimmer.trim()
        begins = one.get("/v1/streams/a").json()["log_ds"]
        assert begins > ds(0)

        before = two.post(PATH, json=observations((0, 1.0), on_conflict="revise"))
        assert (before.status_code, before.json()["type"].rpartition(":")[2]) == (422, "too-old")
        assert two.post(PATH, json=observations((58, 1.0), on_conflict="revise")).status_code == 200
        log[58] = 1.0
        found = [client.get("/v1/streams/a/forecast").json() for client in (one, two)]
        assert_forecasts(found, tiny_forecaster, log)

        one.service.switch.take(load_model(challenger_artifact))
        assert two.post(PATH, json=observations((57, 2.0), on_conflict="revise")).status_code == 200
        log[57] = 2.0
        assert_forecasts([two.get("/v1/streams/a/forecast").json()], tiny_forecaster, log)
        kept = {hour: y for hour, y in log.items() if ds(hour) >= begins}
        assert_forecasts([one.get("/v1/streams/a/forecast").json()], challenger, kept)
