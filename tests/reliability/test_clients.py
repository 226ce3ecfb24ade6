"""R5, R6, R20, R22, R23, R27: clients that repeat, vanish, poison, dawdle and crowd, against a real server."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import time
from typing import Any

import pytest

from service.benchmark.load import Client, request_bytes
from tests.reliability.kit import ABSENT, Book, Writer, audit, audit_states, create_all, load, read_log
from tests.service.kit import history, observations, until
from tests.service.processes import HTTP, Server


def observe(name: str, *pairs: tuple[int, float], **more: Any) -> bytes:
    """A whole request."""
    body = json.dumps(observations(*pairs, horizon=1, **more)).encode()
    return request_bytes("POST", f"/v1/streams/{name}/observations", body)


async def connected(port: int) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


async def send_and_vanish(port: int, request: bytes, after: float) -> None:
    """Never read the reply; the connection is reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await asyncio.sleep(after)
    linger = writer.get_extra_info("socket")
    linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.close()
    del reader


@pytest.mark.parametrize("count", [40, pytest.param(5000, marks=pytest.mark.soak)])
def test_what_is_delivered_many_times_counts_once(server, any_store_url, tiny_forecaster, seed, count):
    """R5, R6. Each observation one to five times at once, some without waiting for a reply; a restart in the middle."""
    chance = random.Random(seed)
    names = [f"s{i}" for i in range(5)]
    book = Book(names)
    wanted = [(chance.choice(names), round(chance.uniform(5, 20), 3)) for _ in range(count)]

    async def deliver(rows: list[tuple[str, float]]) -> None:
        clients = [await connected(server.port) for _ in range(4)]
        for name, y in rows:
            hour = book.last(name) + 1
            book.sends(name, hour, y)
            request = observe(name, (hour, y))
            lost = [
                send_and_vanish(server.port, request, chance.choice((0.0, 0.002))) for _ in range(chance.randint(0, 2))
            ]
            heard = [client.exchange(request) for client in clients[: chance.randint(1, 3)]]
            replies = await asyncio.gather(*lost, *heard)
            for reply in replies[len(lost) :]:
                assert reply[0] == 200, reply
            taken = sum(json.loads(reply[1])["accepted"] for reply in replies[len(lost) :])
            assert taken <= 1
            if not lost:
                assert taken == 1
            book.hears(name, hour, y)
        for client in clients:
            client.close()

    server.start()
    for name in names:
        HTTP.put(f"{server.url}/v1/streams/{name}", json=history([10.0])).raise_for_status()
    asyncio.run(deliver(wanted[: count // 2]))
    server.kill()
    server.start()
    # Once more, after the restart, the last of each.
    for name in names:
        hour = book.last(name)
        (y,) = book.possible[name][hour]
        reply = HTTP.post(f"{server.url}/v1/streams/{name}/observations", json=observations((hour, y)))
        assert reply.json()["accepted"] == 0
    asyncio.run(deliver(wanted[count // 2 :]))
    for name in names:
        assert HTTP.get(f"{server.url}/v1/streams/{name}").json()["version"] == len(book.possible[name])
    audit_states(server, audit([book], any_store_url), tiny_forecaster)


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.soak)])
def test_clients_that_leave_in_the_middle_leave_all_or_nothing(server, any_store_url, tiny_forecaster, seed, count):
    """R27. Cut off before, while and after the engine works, whole bodies and halves, beside well-behaved writers."""
    chance = random.Random(seed)
    writers = [Writer(number, seed) for number in range(3)]
    names = [f"v{i}" for i in range(6)]
    book = Book(names)
    server.start()
    create_all(writers, server.port)
    for name in names:
        HTTP.put(f"{server.url}/v1/streams/{name}", json=history([10.0])).raise_for_status()

    async def leave() -> None:
        for _ in range(count):
            name = chance.choice(names)
            hour = book.last(name) + 1
            rows = [(hour + k, round(chance.uniform(5, 20), 3)) for k in range(chance.randint(1, 3))]
            request = observe(name, *rows)
            if chance.random() < 0.3:
                request = request[: chance.randrange(len(request))]
            for step, y in rows:
                book.sends(name, step, y)
            await send_and_vanish(server.port, request, chance.choice((0.0, 0.001, 0.005)))

    load(writers, server.port, leave)
    # All requests are to a few streams, one write of each per micro-batch: the slower the disk, the more still wait.
    least, since = float("inf"), time.monotonic()
    while waiting := pending(server.url):
        if waiting < least:
            least, since = waiting, time.monotonic()
        assert time.monotonic() < since + 60, f"{waiting} are counted as waiting, and nothing moves"
        time.sleep(0.1)
    logs = audit([book, *(writer.book for writer in writers)], any_store_url)
    audit_states(server, logs, tiny_forecaster)
    arrived = sum(len(logs[name]) - 1 for name in names)
    print(f"{arrived} of what nobody waited for arrived; gaps filled where requests were halved")  # noqa: T201
    assert HTTP.get(f"{server.url}/readyz").status_code == 200


def pending(url: str) -> float:
    """What waits for the engine, by its own count."""
    lines = HTTP.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("forecaster_pending "))


def poisoned(chance: random.Random, hour: int) -> bytes:
    """A body that was right once."""
    good = json.dumps({"observations": [{"ds": f"2024-01-01T{hour % 24:02d}:00", "y": 1.5}], "horizon": 2})
    deep = "[" * chance.choice((50, 5000, 50_000))
    values = (
        "NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e999", "null", '"1"', "true", "[]", "{}", deep, "0x10",
        '"9999-12-31T00:00"', '"0001-01-01"', '"2024-01-01T00:00+05:00"', '"2024-02-30"', "9" * 400, '"\\ud800"',
        '"\\u0000"', "\N{ARABIC-INDIC DIGIT ONE}",
    )  # fmt: skip
    kind = chance.randrange(4)
    if kind == 0:
        return good.replace("1.5", chance.choice(values)).encode()
    if kind == 1:
        start = good.index('"2024')
        return (good[:start] + chance.choice(values) + good[start + 18 :]).encode()
    body = bytearray(good.encode())
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(body))
        if kind == 2:
            body[place] = chance.randrange(256)
        else:
            del body[place]
    return bytes(body)


@pytest.mark.parametrize("cases", [400, pytest.param(200_000, marks=pytest.mark.soak)])
def test_poison_is_refused_and_touches_nothing(template, artifact, store_url, tmp_path, tiny_forecaster, seed, cases):
    """R20. Never a 5xx, always a problem, and the state stays the fold of what was accepted."""
    chance = random.Random(seed)
    statuses: dict[int, int] = {}

    async def feed(port: int) -> None:
        clients = [await connected(port) for _ in range(4)]
        for number in range(cases // len(clients)):
            paths = [f"/v1/streams/{chance.choice(('a', 'b', 'a%2F..', '%00', '%ff'))}/observations" for _ in clients]
            requests = [request_bytes("POST", path, poisoned(chance, number)) for path in paths]
            replies = await asyncio.gather(*(c.exchange(r) for c, r in zip(clients, requests, strict=True)))
            for (status, reply), request in zip(replies, requests, strict=True):
                statuses[status] = statuses.get(status, 0) + 1
                assert status == 200 or 400 <= status < 500, (status, request, reply)
                if status != 200:
                    assert json.loads(reply)["status"] == status
        for client in clients:
            client.close()

    with Server(template, artifact, store_url, tmp_path / "log").start() as server:
        for name in ("a", "b", "control"):
            HTTP.put(f"{server.url}/v1/streams/{name}", json=history([1.0, 2.0])).raise_for_status()
        before = HTTP.get(f"{server.url}/v1/streams/control/forecast").json()
        asyncio.run(feed(server.port))
        assert HTTP.get(f"{server.url}/v1/streams/control/forecast").json() == before
        audit_states(server, read_log(store_url), tiny_forecaster)
    print(statuses)  # noqa: T201
    assert statuses.get(422, 0) > 0
    assert statuses.get(400, 0) > 0


def latencies(port: int, name: str, seconds: float, first: int) -> tuple[list[float], int]:
    """Of one polite client."""

    async def run() -> tuple[list[float], int]:
        client, hour, found = await connected(port), first, []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            status, reply = await client.exchange(observe(name, (hour, 1.0 + hour % 7)))
            assert status == 200, reply
            found.append(time.perf_counter() - started)
            hour += 1
        client.close()
        return sorted(found), hour

    return asyncio.run(run())


@pytest.mark.parametrize(("crowd", "seconds"), [(150, 2.0), pytest.param(1000, 30.0, marks=pytest.mark.soak)])
def test_slow_senders_are_cut_off_and_others_hardly_notice(
    template, artifact, store_url, tmp_path, seed, crowd, seconds
):
    """R22. Each sends a byte now and then, and never comes to an end."""
    bounds = {"head_seconds": "1", "body_seconds": "1", "read_seconds": "1"}
    with Server(template, artifact, store_url, tmp_path / "log", **bounds).start() as server:
        HTTP.put(f"{server.url}/v1/streams/a", json=history([1.0, 2.0])).raise_for_status()
        alone, hour = latencies(server.port, "a", seconds, 2)
        chance = random.Random(seed)
        starts = (b"POST /v1/str", b"POST /v1/forecasts HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n{", b"")
        slow = []
        for _ in range(crowd):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            connection.sendall(chance.choice(starts))
            slow.append(connection)
        crowded, _ = latencies(server.port, "a", seconds, hour)
        cut_off = 0
        for connection in slow:
            try:
                reply = connection.recv(65536)
            except ConnectionError:
                reply = b""
            cut_off += reply == b"" or reply.startswith(b"HTTP/1.1 408")
            connection.close()
        assert cut_off == crowd
        p99 = [found[int(len(found) * 0.99) - 1] * 1e3 for found in (alone, crowded)]
        print(f"p99 alone {p99[0]:.1f} ms, beside {crowd} slow senders {p99[1]:.1f} ms")  # noqa: T201


class Pusher:
    """A client that sends as fast as it may and comes back when it is told to."""

    def __init__(self, number: int) -> None:
        self.name, self.book = f"p{number}", Book([f"p{number}"])
        self.refused = 0

    async def push(self, client: Client, end: float) -> None:
        while time.perf_counter() < end:
            hour = self.book.last(self.name) + (ABSENT not in self.book.possible[self.name][self.book.last(self.name)])
            y = 1.0 + hour % 7
            self.book.sends(self.name, hour, y)
            status, reply = await client.exchange(observe(self.name, (hour, y)))
            if status == 200:
                self.book.hears(self.name, hour, y)
            else:
                assert status == 503, reply
                assert b"urn:forecaster:problem:overloaded" in reply
                self.refused += 1
                await asyncio.sleep(1.0)  # Retry-After
        client.close()


@pytest.mark.parametrize("seconds", [2.0, pytest.param(120.0, marks=pytest.mark.soak)])
def test_overload_is_shed_and_what_is_let_in_is_served(
    template, artifact, store_url, tmp_path, tiny_forecaster, seconds
):
    """R23. Far more clients than places: the rest hears 503, comes back, and nothing acknowledged is lost."""
    few, many, places = 16, 160, 48
    server = Server(template, artifact, store_url, tmp_path / "log", max_pending=str(places))
    pushers = [Pusher(number) for number in range(many)]

    async def phase(clients: list[Pusher]) -> float:
        before = sum(pusher.book.acknowledged for pusher in clients)
        connections = await asyncio.gather(*(connected(server.port) for _ in clients))
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)  # so that all are there at once, however fast it is
        end = time.perf_counter() + seconds  # from now on, as a busy machine may take that long to connect them all
        pushing = [asyncio.create_task(pusher.push(own, end)) for pusher, own in zip(clients, connections, strict=True)]
        await asyncio.sleep(0)  # each has sent
        server.process.send_signal(signal.SIGCONT)
        await asyncio.gather(*pushing)
        return (sum(pusher.book.acknowledged for pusher in clients) - before) / seconds

    with server.start():
        for pusher in pushers:
            HTTP.put(f"{server.url}/v1/streams/{pusher.name}", json=history([10.0])).raise_for_status()
        asyncio.run(phase(pushers[:few]))
        peak = asyncio.run(phase(pushers[:few]))
        goodput = asyncio.run(phase(pushers))
        until(lambda: HTTP.get(f"{server.url}/readyz").status_code == 200)
        after = asyncio.run(phase(pushers[:few]))
        refused = sum(pusher.refused for pusher in pushers)
        print(f"peak {peak:.0f}/s, overloaded {goodput:.0f}/s ({refused} refused), afterwards {after:.0f}/s")  # noqa: T201
        assert refused > 0
        logs = audit([pusher.book for pusher in pushers], store_url)
        audit_states(server, logs, tiny_forecaster)
