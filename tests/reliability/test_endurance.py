"""R28: however long a process lives, it holds no more descriptors, threads and bytes, and its states are right."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.reliability.kit import Writer, audit, audit_states, create_all, load
from tests.service.kit import ds, history, observations, until
from tests.service.processes import Server

EXTRAS = 40  # streams beside those of the writers, twice as many as there are places in memory
PLACES = 20


class Held(NamedTuple):
    """What a process has of the system."""

    descriptors: int
    threads: int
    megabytes: int

    @classmethod
    def by(cls, pid: int) -> Held:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        size = pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000
        return cls(len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), size)


def everything_else(client: httpx.Client, turn: int, chance: random.Random) -> None:
    """What writers do not do: bulk bodies for more streams than memory has places, keys, refusals, brief readers."""
    names = [f"x{i}" for i in range(EXTRAS)]
    rows = [{"unique_id": name, "ds": ds(turn + 1), "y": round(chance.uniform(5, 20), 3)} for name in names]
    lines = "\n".join(map(json.dumps, rows))
    reply = client.post("/v1/observations", content=lines, headers={"content-type": "application/x-ndjson"})
    assert reply.json()["counts"] == {"accepted": EXTRAS}, reply.text
    keyed = {"idempotency-key": f'"turn {turn}"'}
    for _ in range(2):
        body = observations((turn + 1, rows[0]["y"]), horizon=1)
        reply = client.post("/v1/streams/x0/observations", json=body, headers=keyed)
        assert reply.json()["duplicate"] == 1, reply.text
    assert client.post("/v1/streams/x0/observations", content=b"{" * 900).status_code == 400
    assert client.post("/v1/observations", content=b"\xff" * 900).status_code in (400, 415, 422)
    assert client.put("/v1/streams/brief", json=history([1.0] * 30)).status_code in (200, 201)
    with client.stream("GET", "/v1/streams/brief/events") as events:
        next(events.iter_lines())
    assert client.get("/v1/streams/brief/forecast?num_samples=9").status_code == 200
    assert client.delete("/v1/streams/brief").status_code == 204
    series = [{"unique_id": name, **history([5.0, 6.0] * 20)} for name in names]
    assert client.post("/v1/forecasts", json={"series": series}).status_code == 200
    for path in ("/v1/quality", "/v1/streams", "/metrics", "/readyz"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(("turns", "growth"), [(4, 1.3), pytest.param(400, 1.1, marks=pytest.mark.soak)])
def test_a_process_is_the_same_after_any_time(artifact, any_store_url, tmp_path, tiny_forecaster, seed, turns, growth):
    chance = random.Random(seed)
    writers = [Writer(number, seed) for number in range(8)]
    # Started as a user would: what is compiled before the service begins is not under its bounds.
    server = Server(
        None, artifact, any_store_url, tmp_path / "log", snapshot_every="8", max_resident=str(PLACES)
    ).start()
    held: list[Held] = []

    def settled() -> bool:
        """Connections of a turn are closed in a moment; pools of them may still grow by a few."""
        now, usual = Held.by(server.pid), held[1]
        return now.descriptors <= usual.descriptors + 4 and now.threads <= usual.threads + 4

    create_all(writers, server.port)
    with httpx.Client(base_url=server.url, timeout=120, trust_env=False, verify=False) as client:
        for i in range(EXTRAS):
            client.put(f"/v1/streams/x{i}", json=history([10.0])).raise_for_status()
        for turn in range(turns):
            wanted = sum(writer.book.acknowledged for writer in writers) + 200

            async def written(wanted: int = wanted) -> None:
                while sum(writer.book.acknowledged for writer in writers) < wanted:
                    await asyncio.sleep(0.01)

            load(writers, server.port, written)
            everything_else(client, turn, chance)
            if turn > 1:
                until(settled)
            held.append(Held.by(server.pid))
    logs = audit([writer.book for writer in writers], any_store_url)
    audit_states(server, logs, tiny_forecaster)
    assert server.stop() == 0, server.log_text()
    assert "Traceback" not in server.log_text()
    sizes = [each.megabytes for each in held[:: max(turns // 16, 1)]]
    print(f"{turns} turns: {held[-1]}, megabytes on the way {sizes}")  # noqa: T201
    assert held[-1].megabytes <= growth * held[turns // 4].megabytes
