"""R3, R24, R25, R26: restarts, evictions, clocks and orderly ends change no state."""

from __future__ import annotations

import asyncio
import json
import random
import time

import httpx
import pytest

from service.app import create_app
from service.models.served import load_model
from service.settings import Settings
from service.store import Store
from tests.reliability.kit import BASE, Writer, audit, audit_states, create_all, load, read_log
from tests.service.kit import LocalClient, ds, history, observations
from tests.service.processes import Server


@pytest.mark.parametrize(("series", "steps"), [(40, 30), pytest.param(1000, 1000, marks=pytest.mark.soak)])
def test_streams_far_beyond_memory_through_restarts_equal_one_batch(
    template, artifact, any_store_url, tmp_path, tiny_forecaster, seed, series, steps
):
    """R3, R26. Ten times more streams than places in memory; bodies cut and mixed at random; kills between."""
    chance = random.Random(seed)
    server = Server(
        template, artifact, any_store_url, tmp_path / "log", max_resident=str(series // 10), snapshot_every="8"
    )
    values = {f"s{i}": [round(chance.uniform(5, 20), 3) for _ in range(steps)] for i in range(series)}
    done = dict.fromkeys(values, 1)
    server.start()
    headers = {"content-type": "application/x-ndjson"}
    with httpx.Client(base_url=server.url, timeout=120, verify=False) as client:
        for name, y in values.items():
            client.put(f"/v1/streams/{name}", json=history(y[:1])).raise_for_status()
        lives = 1
        while waiting := [name for name in values if done[name] < steps]:
            rows = []
            for name in chance.sample(waiting, min(len(waiting), chance.randint(1, series // 2))):
                count = chance.randint(1, min(steps - done[name], steps // 5))
                rows += [(name, hour) for hour in range(done[name], done[name] + count)]
                done[name] += count
            lines = "\n".join(json.dumps({"unique_id": n, "ds": ds(h), "y": values[n][h]}) for n, h in rows)
            reply = client.post("/v1/observations", content=lines, headers=headers)
            assert reply.json()["counts"] == {"accepted": len(rows)}, reply.text
            if chance.random() < 0.1:
                chance.choice((server.kill, server.stop))()
                server.start()
                lives += 1
        resident = next(
            line for line in client.get("/metrics").text.splitlines() if line.startswith("forecaster_resident_streams ")
        )
    logs = read_log(any_store_url)
    assert logs == {name: dict(enumerate(y)) for name, y in values.items()}
    audit_states(server, logs, tiny_forecaster)
    print(f"{lives} lives, {resident}")  # noqa: T201
    assert float(resident.split()[1]) <= series // 10


def test_sigterm_under_load_finishes_what_was_taken_in_and_leaves_whole_snapshots(
    artifact, store_url, tmp_path, tiny_forecaster, seed
):
    """R25. Exit status 0; no reply is lost that was promised; the next start has nothing to fold."""
    writers = [Writer(number, seed) for number in range(8)]
    settings = {"FORECASTER_FAREWELL_SECONDS": "3", "FORECASTER_LOG_LEVEL": "info", "FORECASTER_ACCESS_LOG": "false"}
    server = Server(None, artifact, store_url, tmp_path / "log", **settings).start()
    create_all(writers, server.port)
    seen: list[int] = []

    async def terminate() -> None:
        while sum(writer.book.acknowledged for writer in writers) < 200:
            await asyncio.sleep(0.005)
        assert server.process is not None
        async with httpx.AsyncClient(base_url=server.url, timeout=60, verify=False) as client:
            server.process.terminate()
            before = sum(writer.book.acknowledged for writer in writers)
            while True:
                try:
                    seen.append((await client.get("/readyz")).status_code)
                except httpx.TransportError:
                    break
                await asyncio.sleep(0.02)
            assert sum(writer.book.acknowledged for writer in writers) > before, "it answered until it left"

    load(writers, server.port, terminate)
    assert server.stop() == 0, server.log_text()
    assert 503 in seen
    assert "Traceback" not in server.log_text()
    audit([writer.book for writer in writers], store_url)
    store = Store.open(store_url)
    names = [name for writer in writers for name in writer.book.possible]
    recovered = store.recover(names, load_model(artifact).key)
    store.close()
    assert {name: recovery.tail for name, recovery in recovered.items() if recovery.tail} == {}


def test_whatever_the_clock_says_event_time_decides(artifact, tmp_path, monkeypatch, seed):
    """R24. The same requests under a clock that jumps by hours, also backwards, end in the same states."""

    def story(number: int, clock) -> list:
        settings = Settings(model=str(artifact), store=f"sqlite:///{tmp_path / f'{number}.db'}", snapshot_every=4)
        replies = []
        with monkeypatch.context() as patch, LocalClient(create_app(settings)) as client:
            if clock is not None:
                patch.setattr(time, "time", clock)
                patch.setattr(time, "time_ns", lambda: int(clock() * 1e9))
            client.put("/v1/streams/a", json=history([5.0, 6.0]))
            for hour, y in ((2, 7.0), (5, 8.0), (3, 1.0), (6, 9.0), (2, 2.0), (7, None)):
                body = observations((hour, y), on_conflict="revise")
                replies.append(client.post("/v1/streams/a/observations", json=body).json())
        return replies

    chance, real = random.Random(seed), time.time
    jumps = story(1, lambda: real() + chance.uniform(-3600, 3600))
    back = story(2, lambda: 1000.0 - time.monotonic())

    assert story(0, None) == jumps == back
    assert BASE == 473352
