"""The load generator of overload: requests arrive at a given rate whatever becomes of them, in a process of its own.

``python -m service.benchmark.arrivals PORT BOOK STREAMS CLIENTS RATE:SECONDS...`` posts single observations, step after
step, and prints one JSON object per step. Keep-alive clients share the streams; an arrival goes to whichever client
waits for nothing, and is dropped if there is none. With the rate ``inf`` every such client sends: a closed loop. Who is
refused is free again at once and keeps its observation: nobody here heeds ``Retry-After``. BOOK is a file of how many
observations of each stream were acknowledged and how many more may have been taken, read first and written at the end.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from array import array
from collections import Counter, deque
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import uvloop

__all__ = ["FIRST_HOUR", "stream_of", "value_of"]

FIRST_HOUR = 200
"""All streams are created with the hours before it."""
_TICK = 0.001  # seconds
_PATIENCE = 60.0  # seconds for the last replies
_CONNECTING = 100  # at a time
_START = datetime(2024, 1, 1)


def stream_of(number: int) -> str:
    """Name of a stream."""
    return f"crowd-{number}"


def value_of(hour: int) -> float:
    """What is observed at an hour."""
    return 10.5 + hour % 24


@lru_cache(maxsize=4096)
def _rest(hour: int) -> bytes:
    """What follows a request's first lines, the same for all streams."""
    ds = (_START + timedelta(hours=hour)).isoformat()
    body = json.dumps({"observations": [{"ds": ds, "y": value_of(hour)}]})
    return f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


class _Client(asyncio.Protocol):
    """One connection; its streams take turns, and each gets its next hour when the one before is acknowledged."""

    def __init__(self, crowd: _Crowd, streams: list[int]) -> None:
        self.sent: int | None = None  # the stream whose reply it waits for
        self._crowd = crowd
        self._streams = deque(streams)
        self._sent_at = 0.0
        self._reply = b""
        self._missing = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be there for arrivals."""
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._crowd.idle.append(self)

    def send(self, now: float) -> None:
        """Send the next observation."""
        assert self._transport is not None
        self.sent, self._sent_at = self._streams[0], now
        self._transport.write(self._crowd.heads[self.sent] + _rest(FIRST_HOUR + self._crowd.taken[self.sent]))

    def data_received(self, data: bytes) -> None:
        """Wait for the whole reply."""
        if self._missing:
            self._missing -= len(data)
        else:
            self._reply += data
            end = self._reply.find(b"\r\n\r\n")
            if end < 0:
                return
            length = self._reply.find(b"content-length: ", 0, end) + 16
            length = int(self._reply[length : self._reply.find(b"\r", length)])
            self._missing = end + 4 + length - len(self._reply)
        if not self._missing and self.sent is not None:
            status, self._reply, stream, self.sent = int(self._reply[9:12]), b"", self.sent, None
            if status == 200:
                self._crowd.taken[stream] += 1
                self._streams.rotate(-1)
            self._crowd.answered(self, status, self._sent_at)

    def connection_lost(self, _error: Exception | None) -> None:
        """Whether what it waits for was taken, nobody knows."""
        self._crowd.lost(self)


class _Crowd:
    """All clients, their book, and what they see during a step."""

    def __init__(self, taken: list[int]) -> None:
        self.taken = taken
        self.heads = [
            f"POST /v1/streams/{stream_of(number)}/observations HTTP/1.1\r\nhost: localhost\r\n".encode()
            for number in range(len(taken))
        ]
        self.idle: deque[_Client] = deque()
        self.lost_connections = 0
        self._closed = False
        self._began = 0.0
        self._forget(0.0)

    def _forget(self, seconds: float) -> None:
        self._sent = 0
        self._statuses: Counter[int] = Counter()
        self._taken_after = [array("d") for _ in range(math.ceil(seconds) + 1)]
        self._refused_after = array("d")

    def answered(self, client: _Client, status: int, sent_at: float) -> None:
        """A whole reply has come."""
        now = perf_counter()
        self._statuses[status] += 1
        if status == 200:
            self._taken_after[min(int(now - self._began), len(self._taken_after) - 1)].append(now - sent_at)
        else:
            self._refused_after.append(now - sent_at)
        self.idle.append(client)
        if self._closed:
            self._send(1, now)

    def lost(self, client: _Client) -> None:
        """A connection is no more."""
        self.lost_connections += 1
        if client.sent is None:
            self.idle.remove(client)

    def _send(self, count: int, now: float) -> None:
        for _ in range(min(count, len(self.idle))):
            self.idle.popleft().send(now)
            self._sent += 1

    async def step(self, rate: float, seconds: float) -> dict[str, Any]:
        """Let requests arrive; replies to what was sent in the step before count where they come."""
        self._forget(seconds)
        self._began = perf_counter()
        self._closed = rate == math.inf
        arrived = 0
        while (now := perf_counter()) < self._began + seconds:
            if self._closed:
                self._send(len(self.idle), now)
            else:
                due = int((now - self._began) * rate)
                self._send(due - arrived, now)
                arrived = due
            await asyncio.sleep(_TICK)
        wall = perf_counter() - self._began
        # On a busy machine the last look may have been long before the end; what nobody was there to send arrived too.
        arrived = self._sent if self._closed else int(wall * rate)
        self._closed = False
        taken = sorted(time for times in self._taken_after for time in times)
        return {
            "seconds": wall,
            "arrived_per_second": arrived / wall,
            "sent_per_second": self._sent / wall,
            "taken_per_second": len(taken) / wall,
            "refused_per_second": len(self._refused_after) / wall,
            "statuses": {str(status): count for status, count in self._statuses.items()},
            "p50_ms": _quantile_ms(taken, 0.5),
            "p99_ms": _quantile_ms(taken, 0.99),
            "refused_p99_ms": _quantile_ms(sorted(self._refused_after), 0.99),
            "p99_ms_by_second": [_quantile_ms(sorted(times), 0.99) for times in self._taken_after[: int(seconds)]],
            "lost_connections": self.lost_connections,
        }


def _quantile_ms(times: list[float], share: float) -> float | None:
    return 1e3 * times[int(len(times) * share)] if times else None


async def _connect(client: _Client, port: int) -> None:
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)


async def _run(port: int, book: Path, streams: int, clients: int, steps: list[tuple[float, float]]) -> None:
    known = json.loads(book.read_text()) if book.exists() else [[0, 0]] * streams
    if any(doubtful for _, doubtful in known):
        raise RuntimeError("of some streams it is not known what was taken; they cannot go on")
    crowd = _Crowd([taken for taken, _ in known])
    everybody = [_Client(crowd, list(range(number, streams, clients))) for number in range(clients)]
    for first in range(0, clients, _CONNECTING):
        await asyncio.gather(*(_connect(client, port) for client in everybody[first : first + _CONNECTING]))
    for rate, seconds in steps:
        sys.stdout.write(json.dumps(await crowd.step(rate, seconds)) + "\n")
        sys.stdout.flush()
    end = perf_counter() + _PATIENCE
    while any(client.sent is not None for client in everybody) and perf_counter() < end:
        await asyncio.sleep(0.01)
    doubtful = Counter(client.sent for client in everybody)
    book.write_text(json.dumps([[taken, doubtful[number]] for number, taken in enumerate(crowd.taken)]))


if __name__ == "__main__":
    _port, _book, _streams, _clients, *_steps = sys.argv[1:]
    _pairs = [(float(rate), float(seconds)) for rate, seconds in (step.split(":") for step in _steps)]
    uvloop.run(_run(int(_port), Path(_book), int(_streams), int(_clients), _pairs))
