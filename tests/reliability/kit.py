"""What the reliability suite shares: clients with their own books, and audits.

A book knows, for every step of every stream, which values may be in the log: what was acknowledged must be, what was
sent and not answered may be. An audit compares it with the log as it is on disk, and the state that a server serves
from with a recomputation from that log.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
import numpy as np

from forecaster import Forecaster
from service.benchmark.load import Client, request_bytes
from service.store import Store
from tests.service.kit import ds, history, observations, recompute
from tests.service.processes import Server

BASE = 473352  # step of the first hour
Value = float | None | str
ABSENT = "absent"


class Book:
    """What one client knows of its streams: for each step the values that may be in the log."""

    def __init__(self, names: list[str]) -> None:
        self.possible: dict[str, dict[int, set[Value]]] = {name: {0: {10.0}} for name in names}
        self.acknowledged = 0

    def sends(self, name: str, hour: int, y: float | None) -> None:
        """From now on this value may be there."""
        self.possible[name].setdefault(hour, {ABSENT}).add(y)

    def hears(self, name: str, hour: int, y: float | None) -> None:
        """It is there, and nothing else."""
        self.possible[name][hour] = {y}
        self.acknowledged += 1

    def last(self, name: str) -> int:
        """The latest hour that may be there."""
        return max(self.possible[name])


class Writer:
    """A client with a book: appends, leaves gaps, fills them, revises, repeats what was not answered."""

    def __init__(self, number: int, seed: int, streams: int = 3, prefix: str = "") -> None:
        self.book = Book([f"w{number}-{k}" for k in range(streams)])
        self._prefix = f"{prefix}/v1/streams/"
        self._random = random.Random(f"{seed} {number} {prefix}")
        self.at_work: list[tuple[str, int, float]] = []
        self.refused = 0

    async def create(self, client: Client) -> None:
        """Make the streams."""
        for name in self.book.possible:
            body = json.dumps(history([10.0])).encode()
            status = 0
            # Cold, it may take longer than a test's little patience.
            while status not in (200, 201):
                status, reply = await client.exchange(request_bytes("PUT", f"{self._prefix}{name}", body))
                assert status in (200, 201, 503), reply

    def _next(self) -> list[tuple[str, int, float]]:
        chance = self._random
        if self.at_work and chance.random() < 0.8:
            return self.at_work  # as most clients do that got no answer
        name = chance.choice(list(self.book.possible))
        y = round(chance.uniform(5, 20), 3)
        last, kind = self.book.last(name), chance.random()
        if kind < 0.75:
            return [(name, last + 1 + k, y + k) for k in range(1 + (kind < 0.1))]
        if kind < 0.85:
            return [(name, last + chance.choice((2, 3)), y)]
        return [(name, chance.randint(max(0, last - 20), last), y)]

    async def write(self, port: int, stop: asyncio.Event) -> None:
        """Until told to stop or cut off."""
        client = None
        try:
            _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
            while not stop.is_set():
                rows = self._next()
                self.at_work = rows
                for name, hour, y in rows:
                    self.book.sends(name, hour, y)
                body = observations(*((hour, y) for _, hour, y in rows), on_conflict="revise", horizon=1)
                path = f"{self._prefix}{rows[0][0]}/observations"
                status, reply = await client.exchange(request_bytes("POST", path, json.dumps(body).encode()))
                if status in (429, 503):
                    self.refused += 1
                    await asyncio.sleep(0.01)
                    continue
                assert status == 200, reply
                self.at_work = []
                for name, hour, y in rows:
                    self.book.hears(name, hour, y)
        except OSError:
            pass
        finally:
            if client is not None:
                client.close()


def create_all(writers: list[Writer], port: int) -> None:
    """Make the streams of all writers."""

    async def create() -> None:
        for writer in writers:
            _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
            await writer.create(client)
            client.close()

    asyncio.run(create())


def load(writers: list[Writer], port: int, until: Any) -> None:
    """Let all writers write until `until`, a coroutine function, returns; whoever is cut off stops by itself."""

    async def run() -> None:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(writer.write(port, stop)) for writer in writers]
        await until()
        stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 120)

    asyncio.run(run())


def read_log(url: str) -> dict[str, dict[int, float | None]]:
    """Stream → (hour → value), from the database itself; refuses to find a row twice."""
    store = Store.open(url)
    try:
        found = {}
        records = store.page_by_id(0, 100_000)
        for record in records:
            rows = store.log(record.id)
            assert len({step for step, _ in rows}) == len(rows), record.unique_id
            found[record.unique_id] = {step - BASE: y for step, y in rows}
            assert (record.first_step, record.last_step) == (rows[0][0], rows[-1][0]), record.unique_id
            assert record.observations == len(rows), record.unique_id
        return found
    finally:
        store.close()


def audit(books: list[Book], url: str) -> dict[str, dict[int, float | None]]:
    """Hold the log against the books; returns it."""
    logs = read_log(url)
    for book in books:
        for name, possible in book.possible.items():
            rows = logs[name]
            wrong = {
                hour: (rows.get(hour, ABSENT), values)
                for hour, values in possible.items()
                if rows.get(hour, ABSENT) not in values
            }
            assert not wrong, f"{name}: found and possible values differ: {wrong}"
            assert set(rows) <= set(possible), f"{name}: nobody sent {set(rows) - set(possible)}"
    return logs


def audit_states(
    server: Server, logs: dict[str, dict[int, float | None]], forecaster: Forecaster, prefix: str = ""
) -> None:
    """Forecasts of a server are those of a recomputation from the log, to 1e-5 of each row's largest value."""
    names = sorted(logs)
    expected = forecaster.forecast(
        recompute(forecaster, [{BASE + hour: y for hour, y in logs[name].items()} for name in names])
    )
    with httpx.Client(base_url=server.url + prefix, timeout=60, verify=False) as client:
        for name, quantiles in zip(names, expected, strict=True):
            found = client.get(f"/v1/streams/{name}/forecast").json()
            assert found["cutoff"] == ds(max(logs[name])), name
            values = np.array(list(found["quantiles"].values())).T
            np.testing.assert_allclose(values, quantiles, rtol=0, atol=1e-5 * np.abs(quantiles).max(), err_msg=name)
