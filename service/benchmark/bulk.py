"""Bulk measurements against a real server process: durable observations of many streams, and histories of many anew.

Two senders at a time, each with bodies of its own streams, so that one body is read while another is at work. The
reference of carried states is the same service folding whole histories, many in one request.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from service.benchmark.web import START, create_streams, ds_of, post, running_service
from service.bodies.bulk import ARROW, JSON_LINES

__all__ = ["arrow_rows", "measure_bulk"]

_SENDERS = 2
_TARGETS = {"json_lines": 50_000, "arrow": 100_000}  # observations/s
_HISTORIES = 64  # in one request
_LONG = 672  # steps of a history


def measure_bulk(
    model: Path, folder: Path, *, rounds: int, streams: int = 10_000, steps: int = 5
) -> Iterator[dict[str, Any]]:
    """Durable observations per second of bulk bodies, acknowledged row by row; and what histories sent anew come to.

    Each round, every sender posts two bodies with so many steps of each of its streams.
    """
    names = [f"bulk-{i}" for i in range(streams)]
    shares = [names[k::_SENDERS] for k in range(_SENDERS)]
    with running_service(model, folder) as port:
        create_streams(port, names, hours=200)
        hour = 200
        observe = f"http://127.0.0.1:{port}/v1/observations"
        common = {"rows_per_body": steps * len(shares[0]), "streams": streams, "senders": _SENDERS}
        for label, kind, write in (("json_lines", JSON_LINES, _json_lines), ("arrow", ARROW, arrow_rows)):
            target, rates = _TARGETS[label], []
            for _ in range(rounds):
                bodies = [[write(share, hour, steps), write(share, hour + steps, steps)] for share in shares]
                seconds, replies = _posted(observe, bodies, kind)
                sent = 2 * steps * streams
                if sum(reply["counts"].get("accepted", 0) for reply in replies) != sent:
                    raise RuntimeError(f"bulk rows were not accepted: {[reply['counts'] for reply in replies]}")
                rates.append(sent / seconds)
                hour += 2 * steps
            value = statistics.median(rates)
            yield {
                "benchmark": f"bulk_{label}",
                "value": round(value),
                "unit": "durable observations/s",
                "reference": target,
                "reference_is": "the declared target",
                "ratio": round(value / target, 3),
                **common,
            }
        anew = statistics.median(_histories_per_second(port) for _ in range(rounds))
    yield {
        "benchmark": "bulk_carried_states",
        "value": round(value),
        "unit": "updates/s",
        "reference": round(anew, 1),
        "reference_is": f"POST /v1/forecasts with {_HISTORIES} histories of {_LONG} steps in a request, one step ahead",
        "ratio": round(value / anew, 1),
        "target": 50,
        **common,
    }


def _posted(url: str, bodies: Sequence[Sequence[bytes]], kind: str) -> tuple[float, list[Any]]:
    """Seconds until every sender has had its replies, one body after the other; and the replies."""
    with ThreadPoolExecutor(len(bodies)) as senders:
        started = time.perf_counter()
        replies = list(senders.map(lambda own: [post(url, body, kind) for body in own], bodies))
        return time.perf_counter() - started, [reply for own in replies for reply in own]


def _histories_per_second(port: int) -> float:
    """Series per second whose whole histories come with the request."""
    ds = [ds_of(h) for h in range(_LONG)]
    series = [
        {"unique_id": f"anew-{i}", "ds": ds, "y": [10 + (h + i) % 24 for h in range(_LONG)]} for i in range(_HISTORIES)
    ]
    body = json.dumps({"series": series, "horizon": 1}).encode()
    seconds, replies = _posted(f"http://127.0.0.1:{port}/v1/forecasts", [[body, body]] * _SENDERS, "application/json")
    return sum(len(reply["forecasts"]) for reply in replies) / seconds


def _json_lines(names: list[str], hour: int, steps: int) -> bytes:
    lines: list[str] = []
    for h in range(hour, hour + steps):
        ds = ds_of(h)
        lines.extend(f'{{"unique_id":"{name}","ds":"{ds}","y":{10 + h % 24}.5}}' for name in names)
    return "\n".join(lines).encode()


def arrow_rows(names: list[str], hour: int, steps: int) -> bytes:
    """One row of each stream at each hour, as an Arrow stream."""
    hours = np.repeat(np.arange(hour, hour + steps), len(names))
    table = pa.table(
        {
            "unique_id": pa.array(names * steps).dictionary_encode(),
            "ds": pa.array(np.datetime64(START, "s") + hours * np.timedelta64(3600, "s")),
            "y": pa.array(10.5 + hours % 24),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body
