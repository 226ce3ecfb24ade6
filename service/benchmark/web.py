"""HTTP measurements against real server processes: single observations, and histories sent anew; what they run on.

Single observations: keep-alive clients in a process of their own, one observation per request, each answered with
its durable acknowledgement and a full forecast; the reference is stock FastAPI with the same shapes, in its own
process with the same uvicorn settings, and nothing behind it. The two take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from service.benchmark.load import Client, request_bytes

__all__ = [
    "START",
    "create_streams",
    "ds_of",
    "free_port",
    "measure_histories",
    "measure_singles",
    "post",
    "run_load",
    "running_process",
    "running_service",
    "store_of",
]

_CREATING = 32  # clients that create streams
_STREAMS_PER_CLIENT = 16
_STARTING = 180  # seconds that a process may take until it answers; the first start compiles kernels
START = datetime(2024, 1, 1)
"""Hour 0 of the benchmarks."""


def measure_singles(
    model: Path, folder: Path, horizon: int, *, seconds: float, rounds: int, clients: int
) -> Iterator[dict[str, Any]]:
    """Requests per second and latencies of single observations."""
    names = [f"bench-{c}-{s}" for c in range(clients) for s in range(_STREAMS_PER_CLIENT)]
    with running_service(model, folder) as port, _bare(horizon) as bare_port:
        create_streams(port, names, hours=200)
        hour = 200
        ours: list[dict[str, float]] = []
        reference: list[dict[str, float]] = []
        for _ in range(rounds):
            reference.append(run_load(bare_port, clients, seconds, hour))
            ours.append(run_load(port, clients, seconds, hour))
            hour = int(ours[-1]["next_hour"])
        value, bare = (statistics.median(r["per_second"] for r in runs) for runs in (ours, reference))
        yield {
            "benchmark": "http_single_observations",
            "value": round(value),
            "unit": "requests/s",
            "reference": round(bare),
            "reference_is": "stock FastAPI endpoint with the same request and reply shapes and nothing behind it",
            "ratio": round(value / bare, 3),
            "p50_ms": round(statistics.median(r["p50_ms"] for r in ours), 2),
            "p99_ms": round(statistics.median(r["p99_ms"] for r in ours), 2),
            "reference_p50_ms": round(statistics.median(r["p50_ms"] for r in reference), 2),
            "reference_p99_ms": round(statistics.median(r["p99_ms"] for r in reference), 2),
            "clients": clients,
            "failures": int(sum(r["failures"] for r in (*ours, *reference))),
        }


def measure_histories(
    model: Path, folder: Path, *, seconds: float, rounds: int, clients: int, history: int = 672
) -> Iterator[dict[str, Any]]:
    """New forecasts per second from carried states, against the same service folding a history at each request."""
    names = [f"bench-{c}-{s}" for c in range(clients) for s in range(_STREAMS_PER_CLIENT)]
    with running_service(model, folder) as port:
        create_streams(port, names, hours=history)
        hour = history
        carried: list[dict[str, float]] = []
        anew: list[dict[str, float]] = []
        for _ in range(rounds):
            anew.append(run_load(port, clients, seconds, 0, history))
            carried.append(run_load(port, clients, seconds, hour))
            hour = int(carried[-1]["next_hour"])
    value, reference = (statistics.median(r["per_second"] for r in runs) for runs in (carried, anew))
    yield {
        "benchmark": "http_carried_states",
        "value": round(value),
        "unit": "new forecasts/s",
        "reference": round(reference, 1),
        "reference_is": f"POST /v1/forecasts with {history} steps at each request, nothing stored",
        "ratio": round(value / reference, 1),
        "target": 50,
        "p50_ms": round(statistics.median(r["p50_ms"] for r in carried), 2),
        "p99_ms": round(statistics.median(r["p99_ms"] for r in carried), 2),
        "reference_p50_ms": round(statistics.median(r["p50_ms"] for r in anew), 2),
        "reference_p99_ms": round(statistics.median(r["p99_ms"] for r in anew), 2),
        "clients": clients,
        "failures": int(sum(r["failures"] for r in (*carried, *anew))),
    }


def ds_of(hour: int) -> str:
    """The ds of an hour of the benchmarks."""
    return (START + timedelta(hours=hour)).isoformat()


def create_streams(port: int, names: list[str], hours: int) -> None:
    """Create streams with a history of so many hours."""
    body = json.dumps({"ds": [ds_of(h) for h in range(hours)], "y": [10.0 + h % 24 for h in range(hours)]}).encode()

    async def create(some: list[str]) -> None:
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
        for name in some:
            while (answer := await client.exchange(request_bytes("PUT", f"/v1/streams/{name}", body)))[0] == 503:
                await asyncio.sleep(0.01)  # it may have fewer places than there are clients here
            status, reply = answer
            if status != 201:
                raise RuntimeError(f"stream {name} was not created: {reply.decode()}")
        client.close()

    async def create_all() -> None:
        await asyncio.gather(*(create(names[k::_CREATING]) for k in range(_CREATING)))

    asyncio.run(create_all())


def post(url: str, body: bytes, kind: str) -> Any:
    """The reply to a body."""
    request = urllib.request.Request(url, body, {"content-type": kind}, method="POST")
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.loads(reply.read())


def run_load(port: int, clients: int, seconds: float, first_hour: int, history: int = 0) -> dict[str, float]:
    """One run of the load generator, and what it saw."""
    numbers = (port, clients, seconds, first_hour, history)
    command = [sys.executable, "-m", "service.benchmark.load", *map(str, numbers)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@contextmanager
def running_service(model: Path | str, folder: Path, **environment: str) -> Iterator[int]:
    """The service in a process of its own, on a new store; the port it listens on."""
    port = free_port()
    command = ["-m", "service", "--model", str(model), "--store", store_of(folder, port), "--port", str(port)]
    with running_process(command, port, **environment):
        yield port


def store_of(folder: Path, port: int) -> str:
    """The store of the service that listens on a port."""
    return f"sqlite:///{folder / f'bench-{port}.db'}"


@contextmanager
def _bare(horizon: int) -> Iterator[int]:
    port = free_port()
    with running_process(["-m", "service.benchmark.bare", str(port), str(horizon)], port):
        yield port


@contextmanager
def running_process(arguments: list[str], port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process, from when it answers on a port until the context ends."""
    process = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + _STARTING
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{arguments} did not answer within {_STARTING} s; status {process.returncode}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
