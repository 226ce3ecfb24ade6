"""The load generator: keep-alive clients that each send one request after the other, in a process of its own.

``python -m service.benchmark.load PORT CLIENTS SECONDS FIRST_HOUR [HISTORY]`` posts single observations and prints one
JSON object: requests, how many of them were answered per second, p50 and p99 of those in milliseconds, failures,
replies that name more than one model version, and how often a client saw another version than before. With HISTORY
every request carries that many steps instead of one, and asks for a forecast of a series that the service does not
know. A client that is refused rests a moment. It knows just enough HTTP/1.1 to find the end of a reply; requests are
built before the clock starts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import datetime, timedelta
from typing import NamedTuple, cast

import uvloop

__all__ = ["Client", "observation_request", "request_bytes"]

_STREAMS_PER_CLIENT = 16
_REST = 0.05  # seconds that a refused client waits, so that refusing is not what is measured


class Client(asyncio.Protocol):
    """One connection; `exchange` sends a request and waits for the whole reply."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Collect a reply until its declared length."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        start = self._buffer.find(b"content-length: ", 0, end) + 16
        length = int(self._buffer[start : self._buffer.find(b"\r\n", start)])
        if len(self._buffer) >= end + 4 + length and self._waiter is not None and not self._waiter.done():
            reply, self._buffer = self._buffer, b""
            self._waiter.set_result((int(reply[9:12]), reply[end + 4 :]))

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error or ConnectionError("the server closed the connection"))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the reply."""
        assert self._transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiter


def request_bytes(method: str, path: str, body: bytes, kind: str = "application/json") -> bytes:
    """A whole HTTP/1.1 request."""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def observation_request(unique_id: str, ds: str, y: float) -> bytes:
    """One observation of one stream."""
    body = json.dumps({"observations": [{"ds": ds, "y": y}]}).encode()
    return request_bytes("POST", f"/v1/streams/{unique_id}/observations", body)


def history_request(unique_id: str, texts: list[str], first: int) -> bytes:
    """A forecast after a history that comes with the request."""
    series = {"unique_id": unique_id, "ds": texts, "y": [10 + (first + h) % 24 for h in range(len(texts))]}
    return request_bytes("POST", "/v1/forecasts", json.dumps({"series": [series]}).encode())


_VERSION = b'"version":"'  # a model's; that of a stream is a number


class _Seen(NamedTuple):
    """What one client met: how long each answer took, and all refusals together, rests included."""

    times: list[float]
    failures: int
    failing: float
    mixed: int
    changes: int
    hours: int


async def _client(port: int, number: int, seconds: float, first_hour: int, history: int) -> _Seen:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    start = datetime(2024, 1, 1)
    hours = int(seconds * 40)
    texts = [(start + timedelta(hours=first_hour + h)).isoformat() for h in range(hours + history)]
    if history:
        requests = [history_request(f"bench-{number}", texts[h : h + history], h) for h in range(hours)]
    else:
        requests = [
            observation_request(f"bench-{number}-{s}", ds, 10 + (h % 24))
            for h, ds in enumerate(texts)
            for s in range(_STREAMS_PER_CLIENT)
        ]
    times: list[float] = []
    failures = mixed = changes = sent = 0
    failing = 0.0
    version = None
    end = time.perf_counter() + seconds
    for request in requests:
        started = time.perf_counter()
        if started > end:
            break
        status, body = await client.exchange(request)
        took = time.perf_counter() - started
        sent += 1
        if status != 200:
            failures += 1
            failing += took + _REST
            await asyncio.sleep(_REST)
            continue
        times.append(took)
        _, *named = body.split(_VERSION)
        found = named[0].partition(b'"')[0] if named else version
        mixed += len(named) > 1
        changes += version is not None and found != version
        version = found
    client.close()
    return _Seen(times, failures, failing, mixed, changes, -(-sent // _STREAMS_PER_CLIENT))


async def _load(port: int, clients: int, seconds: float, first_hour: int, history: int = 0) -> dict[str, float]:
    results = await asyncio.gather(*(_client(port, n, seconds, first_hour, history) for n in range(clients)))
    times = sorted(t for seen in results for t in seen.times)
    failures = sum(seen.failures for seen in results)
    if not times:
        raise RuntimeError(f"none of {failures} requests was answered")
    return {
        "requests": len(times) + failures,
        # From the clients' own clocks: building the requests took time before the first was sent.
        "per_second": clients * len(times) / (sum(times) + sum(seen.failing for seen in results)),
        "p50_ms": 1e3 * times[len(times) // 2],
        "p99_ms": 1e3 * times[int(len(times) * 0.99)],
        "failures": failures,
        "mixed": sum(seen.mixed for seen in results),
        "changes": max(seen.changes for seen in results),
        "next_hour": first_hour + max(seen.hours for seen in results),
    }


if __name__ == "__main__":
    _port, _clients, _seconds, *_hours = sys.argv[1:]
    sys.stdout.write(
        json.dumps(uvloop.run(_load(int(_port), int(_clients), float(_seconds), *map(int, _hours)))) + "\n"
    )
