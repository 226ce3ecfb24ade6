"""Very many streams: bytes on disk, starts, memory at its cap, first forecasts of cold streams, crash and backup.

The store is made by what an import and a model swap do, `Store.load` and `rederive`, so each stream has a day of log
and a snapshot at its end. Before every start the file leaves the page cache, so a cold stream is read from the disk.
Invariant: a stream called cold has not been asked for since the process that answers began.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from service.backup import export_streams, import_streams
from service.benchmark.bulk import arrow_rows
from service.benchmark.load import Client, request_bytes
from service.benchmark.web import ds_of, free_port, post, running_process
from service.bodies.bulk import ARROW
from service.engine.rederive import rederive
from service.models.served import ServedModel, load_model
from service.store import Store
from service.store.copying import LogRow, StreamRow

__all__ = ["measure_streams"]

_HOURS = 24  # of log per stream
_PART = 1000  # streams written, or observed, in one go
_ASKED = 2000  # cold streams asked for, at most
_CROWD = 16
_TARGET_MS = 50
_CAPPED = 20  # one of so many streams may be in memory


def measure_streams(model: Path, folder: Path, streams: int, *, backup: bool = True) -> Iterator[dict[str, Any]]:
    """What so many streams cost on disk and in memory, and how soon a cold one, or all after a crash, can be had."""
    path = folder / "streams.db"
    served = load_model(model)
    made = _make(path, served, streams)
    yield _said(
        streams, "streams_bytes", made["bytes"], "bytes/stream", made["bare_bytes"],
        f"16 bytes of each of {_HOURS} observations, and the state's own", **made,
    )  # fmt: skip
    names = [_name(place) for place in np.random.default_rng(0).permutation(streams)]
    asked = min(_ASKED, streams // 8)
    cap = max(2 * asked, streams // _CAPPED)
    alone, crowd, rest = names[:asked], names[asked : 2 * asked], names[2 * asked :]
    with _started(model, folder / "empty.db", cap) as (_, _, seconds):
        empty = seconds
    with _started(model, path, cap) as (process, port, seconds):
        yield _said(
            streams, "streams_start", round(seconds, 2), "s until ready", round(empty, 2), "the same on a new store"
        )
        for label, some, clients in (("alone", alone, 1), ("crowd", crowd, _CROWD)):
            cold, warm = (_asked_for(port, some, clients) for _ in range(2))
            found = {f"{name}_ms": value for name, value in cold.items()}
            found |= {f"warm_{name}_ms": value for name, value in warm.items()}
            yield _said(
                streams, f"streams_cold_{label}", cold["p99"], "ms, p99", _TARGET_MS, "the declared target",
                asked=len(some), clients=clients, **found,
            )  # fmt: skip
        touched = rest[: 3 * cap]
        before = _megabytes(process)
        _observe(port, touched[:cap])
        full = _megabytes(process)
        started = time.perf_counter()
        _observe(port, touched[cap:])
        rate = len(touched[cap:]) / (time.perf_counter() - started)
        _asked_for(port, touched[-1:], 1)  # answered when those before it have been counted
        yield _said(
            streams, "streams_memory", _megabytes(process), "MB resident", full, "the same when the cap was reached",
            megabytes_before=before, cap=cap, resident=_resident(port), touched=len(touched),
            restored_per_second=round(rate),
        )  # fmt: skip
        process.kill()
        process.wait()
    with _started(model, path, cap) as (_, port, again):
        # Some of these have their last observation in a snapshot, some only in the log.
        first = _asked_for(port, touched[-asked:], 1)
        yield _said(
            streams, "streams_killed", round(again, 2), "s until ready", round(seconds, 2), "the start before kill -9",
            **{f"{name}_ms": value for name, value in first.items()},
        )  # fmt: skip
    if backup:
        yield _backup(path, folder, streams)


def _said(
    streams: int, benchmark: str, value: float, unit: str, reference: float, reference_is: str, **more: Any
) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "value": value,
        "unit": unit,
        "reference": reference,
        "reference_is": reference_is,
        "ratio": round(value / reference, 3),
        **more,
        "streams": streams,
        "load": round(os.getloadavg()[0], 1),
    }


def _name(place: int) -> str:
    return f"meter-{place:07d}"


def _make(path: Path, served: ServedModel, streams: int) -> dict[str, Any]:
    first = int(served.forecaster.calendar.parse([ds_of(0)])[0])
    steps = range(first, first + _HOURS)
    rng = np.random.default_rng(0)
    day = 10 + 4 * np.sin(np.arange(_HOURS) * 2 * np.pi / 24)
    calendar = served.forecaster.calendar

    def log() -> Iterator[list[LogRow]]:
        for start in range(0, streams, _PART):
            count = min(_PART, streams - start)
            y = np.round(day * rng.uniform(0.5, 50, (count, 1)) + rng.normal(size=(count, _HOURS)), 2).tolist()
            yield [
                LogRow(_name(start + place), step, value, None)
                for place, line in enumerate(y)
                for step, value in zip(steps, line, strict=True)
            ]

    rows = [StreamRow(_name(k), first, steps[-1], 1, _HOURS, 0, None, None) for k in range(streams)]
    url = f"sqlite:///{path}"
    started = time.perf_counter()
    with closing(Store.open(url)) as store:
        store.claim_calendar(calendar.freq, calendar.time_zone)
        store.load(rows, log(), (), replace=False)
    loaded, of_log = time.perf_counter(), path.stat().st_size
    with closing(Store.open(url)) as store:
        rederive(served, store)
        (sample,) = store.recover([_name(0)], served.key).values()
    assert sample.snapshot is not None
    return {
        "bytes": round(path.stat().st_size / streams),
        "bare_bytes": 16 * _HOURS + len(sample.snapshot),
        "log_bytes": round(of_log / streams),
        "snapshot_bytes": round((path.stat().st_size - of_log) / streams),
        "load_seconds": round(loaded - started, 1),
        "snapshot_seconds": round(time.perf_counter() - loaded, 1),
    }


@contextmanager
def _started(model: Path, path: Path, cap: int) -> Iterator[tuple[subprocess.Popen[bytes], int, float]]:
    """The service on a store that is not in the page cache: process, port, and the seconds until it was ready."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    port = free_port()
    command = ["-m", "service", "--model", str(model), "--store", f"sqlite:///{path}", "--port", str(port)]
    started = time.perf_counter()
    with running_process(command, port, FORECASTER_MAX_RESIDENT=str(cap)) as process:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30).close()
        yield process, port, time.perf_counter() - started


def _asked_for(port: int, names: Sequence[str], clients: int) -> dict[str, float]:
    """Milliseconds until streams' forecasts were there, each asked for once."""

    async def ask(some: Sequence[str]) -> list[float]:  # in the order in which they were asked for
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
        times = []
        for name in some:
            request = request_bytes("GET", f"/v1/streams/{name}/forecast", b"")
            started = time.perf_counter()
            status, reply = await client.exchange(request)
            times.append(time.perf_counter() - started)
            if status != 200:
                raise RuntimeError(f"no forecast of {name}: {reply.decode()}")
        client.close()
        return times

    async def ask_all() -> list[list[float]]:
        return await asyncio.gather(*(ask(names[k::clients]) for k in range(clients)))

    of_clients = [1e3 * np.array(times) for times in asyncio.run(ask_all())]
    times = np.concatenate(of_clients)
    p50, p95, p99 = np.quantile(times, (0.5, 0.95, 0.99))
    # The first of each client told apart: a process that has just begun makes machine code and connections then.
    first, most = max(some[0] for some in of_clients), max(some[1:].max(initial=0) for some in of_clients)
    found = {"p50": p50, "p95": p95, "p99": p99, "max_of_first": first, "max_of_others": most}
    return {name: round(float(value), 2) for name, value in found.items()}


def _observe(port: int, names: Sequence[str]) -> None:
    """One more durable observation of each stream."""
    for start in range(0, len(names), _PART):
        some = list(names[start : start + _PART])
        reply = post(f"http://127.0.0.1:{port}/v1/observations", arrow_rows(some, _HOURS, 1), ARROW)
        if reply["counts"] != {"accepted": len(some)}:
            raise RuntimeError(f"rows were not accepted: {reply['counts']}")


def _megabytes(process: subprocess.Popen[bytes]) -> float:
    """What a process has in memory."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _resident(port: int) -> int:
    """Streams in memory, as the service counts them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return int(float(next(line for line in lines if line.startswith("forecaster_resident_streams ")).split()[1]))


def _backup(path: Path, folder: Path, streams: int) -> dict[str, Any]:
    """Export everything, and import it into a new store."""
    started = time.perf_counter()
    with closing(Store.open(f"sqlite:///{path}")) as store:
        export_streams(store, folder / "backup")
    exported = time.perf_counter()
    with closing(Store.open(f"sqlite:///{folder / 'restored.db'}")) as store:
        import_streams(store, folder / "backup")
    imported = time.perf_counter() - exported
    size = sum(file.stat().st_size for file in (folder / "backup").iterdir())
    return _said(
        streams, "streams_backup", round(imported, 3), "s to import", round(exported - started, 3), "s to export",
        backup_bytes=round(size / streams),
    )  # fmt: skip
