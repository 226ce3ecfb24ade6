"""Overload: three times as many observations as the service takes at best, the way back, and what the log holds then.

The peak is the best of closed loops of few and many clients over the same streams. Then observations arrive evenly,
whatever becomes of those before (see `arrivals`): at half the peak, at `TIMES` the peak, and at half the peak again.
Goodput is observations acknowledged per second. The service has recovered when the 99th percentile of one second is
near that of the seconds before. At the end log and states are held against what the clients were told.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forecaster import Forecaster
from service.benchmark.arrivals import FIRST_HOUR, stream_of, value_of
from service.benchmark.web import create_streams, running_service, store_of
from service.store import Store, Value

__all__ = ["TIMES", "audited", "measure_overload"]

TIMES = 3
"""How much more than the peak arrives."""
_MODERATE = 0.5  # of the peak
_LOOPS = (32, 128, 512)  # clients, and once all of them
_RECOVERED = 1.5  # times the 99th percentile of the median second before
_STATES = 100  # streams whose forecast is held against a recomputation from the log
_TOLERANCE = 1e-5  # of a forecast's largest value


def measure_overload(
    model: Path,
    folder: Path,
    *,
    seconds: float,
    rounds: int,
    minutes: float,
    clients: int,
    streams: int,
    places: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Goodput during overload relative to the peak, time to recover, and what was lost or taken twice.

    With fewer `places` for waiting requests than clients more arrivals are sent, and what is too much is refused.
    """
    book = folder / "book.json"
    most = min(clients, places or clients)
    loops = sorted({*(loop for loop in _LOOPS if loop < most), most})
    with running_service(model, folder, **({"FORECASTER_MAX_WAITING": str(places)} if places else {})) as port:
        create_streams(port, [stream_of(number) for number in range(streams)], hours=FIRST_HOUR)
        arrive = [str(port), str(book), str(streams)]
        _arrive(arrive, loops[0], [(math.inf, 1.0)])
        found = [
            {loop: float(_arrive(arrive, loop, [(math.inf, seconds)])[0]["taken_per_second"]) for loop in loops}
            for _ in range(rounds)
        ]
        peaks = {loop: statistics.median(peak[loop] for peak in found) for loop in loops}
        best = max(loops, key=lambda loop: peaks[loop])
        peak = peaks[best]
        calm = _MODERATE * peak
        steps = [(calm, 2 * seconds), (TIMES * peak, 60 * minutes), (calm, 6 * seconds)]
        before, during, after = _arrive(arrive, clients, steps)
        differing = _differing(port, Forecaster.load(model), store_of(folder, port))
    told = json.loads(book.read_text())
    lost, doubled = _audit(store_of(folder, port), told)
    usual = statistics.median(p99 for p99 in before["p99_ms_by_second"] if p99 is not None)
    late = [p99 is None or p99 > _RECOVERED * usual for p99 in after["p99_ms_by_second"]]
    yield {
        "benchmark": "http_overload",
        "value": round(during["taken_per_second"]),
        "unit": "observations/s acknowledged",
        "reference": round(peak),
        "reference_is": f"peak: the closed loop of {best} clients, the best of {', '.join(map(str, loops))}",
        "ratio": round(during["taken_per_second"] / peak, 3),
        "target": 0.9,
        "arrived_per_second": round(during["arrived_per_second"]),
        "sent_per_second": round(during["sent_per_second"]),
        "refused_per_second": round(during["refused_per_second"]),
        "p50_ms": round(during["p50_ms"], 2),
        "p99_ms": round(during["p99_ms"], 2),
        "refused_p99_ms": during["refused_p99_ms"] and round(during["refused_p99_ms"], 2),
        "before_p99_ms": round(usual, 2),
        "after_p99_ms": round(statistics.median(p99 for p99 in after["p99_ms_by_second"] if p99 is not None), 2),
        # At most: the first second that was as usual is counted whole.
        "recovery_seconds": late.index(False) + 1 if False in late else None,
        "acknowledged": sum(taken for taken, _ in told),
        "unanswered": sum(doubtful for _, doubtful in told),
        "lost": lost,
        "doubled": doubled,
        "states_that_differ": differing,
        "statuses": {status: during["statuses"][status] for status in sorted(during["statuses"])},
        "lost_connections": after["lost_connections"],
        "seconds": round(during["seconds"], 1),
        "clients": clients,
        "places": places,
        "streams": streams,
    }


def _arrive(where: list[str], clients: int, steps: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """What the load generator saw, step by step."""
    command = [sys.executable, "-m", "service.benchmark.arrivals", *where, str(clients)]
    command += [f"{rate}:{length}" for rate, length in steps]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def _audit(url: str, told: list[list[int]]) -> tuple[int, int]:
    """The sums of `audited` over all streams."""
    store = Store.open(url)
    try:
        records = {record.unique_id: record for record in store.page_by_id(0, len(told) + 1)}
        found = [
            audited(
                {step - record.first_step: value for step, value in store.log(record.id)}, record.observations, *clients
            )
            for record, clients in ((records[stream_of(number)], pair) for number, pair in enumerate(told))
        ]
        return sum(lost for lost, _ in found), sum(doubled for _, doubled in found)
    finally:
        store.close()


def audited(log: Mapping[int, Value], counted: int, taken: int, doubtful: int) -> tuple[int, int]:
    """Of one stream: observations that were acknowledged and are not in the log as they were sent; and those too many.

    Parameters
    ----------
    log
        Hour → value.
    counted
        Observations that the stream itself says it has.
    taken
        How many were acknowledged.
    doubtful
        How many more were sent, and not answered.
    """
    told = range(FIRST_HOUR, FIRST_HOUR + taken)
    return sum(log.get(hour) != value_of(hour) for hour in told), max(0, max(len(log), counted) - told.stop - doubtful)


def _differing(port: int, forecaster: Forecaster, url: str) -> int:
    """Streams whose forecast is not that of a recomputation from the log: one taken twice would show here too."""
    store = Store.open(url)
    try:
        differing = 0
        for record in store.page_by_id(0, _STATES):
            rows = store.log(record.id)
            state = forecaster.warm_up([np.array([value for _, value in rows], dtype=np.float64)], [record.first_step])
            expected = forecaster.forecast(state)[0]
            address = f"http://127.0.0.1:{port}/v1/streams/{record.unique_id}/forecast"
            with urllib.request.urlopen(address, timeout=60) as reply:
                found = np.array(list(json.loads(reply.read())["quantiles"].values())).T
            differing += not np.allclose(found, expected, rtol=0, atol=_TOLERANCE * np.abs(expected).max())
        return differing
    finally:
        store.close()
