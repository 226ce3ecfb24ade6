"""Many clients at once: nothing lost, doubled or misordered, checked against the clients' own logs."""

from __future__ import annotations

import asyncio
import json
import random

import httpx
import numpy as np

from service.benchmark.load import Client, request_bytes
from service.store import Store
from tests.service.kit import ds, history, observations, recompute, run
from tests.service.processes import HTTP, Server

BASE = 473352
STREAMS = 500
CLIENTS = 64
SHARED = [f"shared-{k}" for k in range(4)]
HOURS = 5


def test_sixty_four_clients_on_five_hundred_streams(template, artifact, tmp_path, tiny_forecaster):
    """Each stream has one writer that keeps order; four streams have many, whose values arrive in any order."""
    names = [f"s{i}" for i in range(STREAMS - len(SHARED))]
    logs = {name: {0: 10.0} for name in (*names, *SHARED)}
    answers: dict[str, list[dict]] = {name: [] for name in logs}

    async def ask(client: Client, method: str, path: str, body: object) -> dict:
        status, reply = await client.exchange(request_bytes(method, path, json.dumps(body).encode()))
        assert status in (200, 201), reply
        return json.loads(reply)

    async def work(number: int, port: int) -> None:
        chance = random.Random(number)
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
        mine = names[number::CLIENTS]
        for name in (*mine, *(SHARED if number == 0 else ())):
            await ask(client, "PUT", f"/v1/streams/{name}", history([10.0]))
        await created.wait()
        plan = [(name, hour) for hour in range(1, HOURS) for name in mine]
        if number < 40:
            # Forty clients fill the shared streams together, each with hours of its own.
            plan += [(name, number + 1) for name in SHARED]
            plan.sort(key=lambda pair: (pair[0] in SHARED and chance.random() * HOURS) or pair[1])
        for name, hour in plan:
            y = round(chance.uniform(5, 20), 3)
            answer = await ask(client, "POST", f"/v1/streams/{name}/observations", observations((hour, y), horizon=1))
            logs[name][hour] = y
            answers[name].append(answer)
        client.close()

    async def all_of_it(port: int) -> None:
        tasks = [asyncio.create_task(work(number, port)) for number in range(CLIENTS)]
        await asyncio.sleep(0)
        while True:
            listed = HTTP.get(f"http://127.0.0.1:{port}/metrics").text
            if f"forecaster_resident_streams {STREAMS}.0" in listed or any(task.done() for task in tasks):
                break
            await asyncio.sleep(0.05)
        created.set()
        await asyncio.gather(*tasks)

    created = asyncio.Event()
    with Server(template, artifact, f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "log").start() as server:
        run(all_of_it(server.port))
        forecasts = {}
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for name in (*names[::10], *SHARED):
                forecasts[name] = client.get(f"/v1/streams/{name}/forecast").json()

    store = Store.open(f"sqlite:///{tmp_path / 'log.db'}")
    recovered = store.recover(list(logs), "none")
    store.close()
    for name, log in logs.items():
        assert recovered[name].tail == sorted((BASE + hour, y) for hour, y in log.items()), name
        # Every observation changed the stream exactly once.
        assert sorted(answer["version"] for answer in answers[name]) == list(range(2, len(log) + 1))
    for name in names:
        assert [answer["cutoff"] for answer in answers[name]] == [ds(hour) for hour in range(1, HOURS)]
    checked = list(forecasts)
    states = recompute(tiny_forecaster, [{BASE + h: y for h, y in logs[name].items()} for name in checked])
    for name, quantiles in zip(checked, tiny_forecaster.forecast(states), strict=True):
        np.testing.assert_allclose(np.array(list(forecasts[name]["quantiles"].values())).T, quantiles, rtol=1e-5)
