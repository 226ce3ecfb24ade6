"""Model swaps under load: the champion's alias moves to and fro in a real registry while clients observe and forecast.

Each run of the load is as long as the time from swap to swap, and the alias moves when a third of it has passed. The
reference is the same load, with nothing moving, before and after.
"""

from __future__ import annotations

import json
import shutil
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forecaster import Forecaster
from service.benchmark.web import create_streams, run_load, running_service

__all__ = ["measure_swaps"]

_STREAMS_PER_CLIENT = 16
_POLL_SECONDS = 1


def measure_swaps(model: Path, folder: Path, *, minutes: float, every: float, clients: int) -> Iterator[dict[str, Any]]:
    """Failures, mixed replies, and the 99th percentile of runs with a swap relative to those without."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    registry = MlflowClient(uri, uri)
    registry.create_registered_model("bench")
    other = folder / "other"
    Forecaster.create(Forecaster.load(model).config, seed=1).save(other)
    versions = [
        _register(registry, folder / f"source-{place}", artifact) for place, artifact in enumerate((model, other))
    ]
    registry.set_registered_model_alias("bench", "champion", versions[0])
    names = [f"bench-{c}-{s}" for c in range(clients) for s in range(_STREAMS_PER_CLIENT)]
    environment = {"FORECASTER_TRACKING_URI": uri, "FORECASTER_POLL_SECONDS": str(_POLL_SECONDS)}
    with running_service("models:/bench@champion", folder, **environment) as port:
        _wait_for(port, versions[0])
        create_streams(port, names, hours=200)
        steady = [run_load(port, clients, every, 200)]
        swapping: list[dict[str, float]] = []
        for number in range(1, max(1, round(60 * minutes / every)) + 1):
            hour = int((swapping or steady)[-1]["next_hour"])
            version = versions[number % 2]
            move = threading.Timer(every / 3, registry.set_registered_model_alias, ("bench", "champion", version))
            move.start()
            swapping.append(run_load(port, clients, every, hour))
            move.join()
            _wait_for(port, version)
        steady.append(run_load(port, clients, every, int(swapping[-1]["next_hour"])))
    before, during = (statistics.median(run["p99_ms"] for run in runs) for runs in (steady, swapping))
    runs = [*steady, *swapping]
    yield {
        "benchmark": "http_model_swaps",
        "value": round(during, 2),
        "unit": "ms, p99 with swaps",
        "reference": round(before, 2),
        "reference_is": "p99 of the same load without swaps",
        "ratio": round(during / before, 3),
        "worst_p99_ms": round(max(run["p99_ms"] for run in swapping), 2),
        "swaps": len(swapping),
        "swaps_seen_by_a_client": int(sum(run["changes"] for run in swapping)),
        "requests": int(sum(run["requests"] for run in runs)),
        "failed_requests": int(sum(run["failures"] for run in runs)),
        "replies_of_several_versions": int(sum(run["mixed"] for run in runs)),
        "seconds_between_swaps": every,
        "clients": clients,
    }


def _register(registry: Any, source: Path, artifact: Path) -> str:
    """A version whose artifact lies where the training pipeline puts it."""
    shutil.copytree(artifact, source / "artifacts" / "forecaster")
    return str(registry.create_model_version("bench", str(source)).version)


def _wait_for(port: int, version: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=30) as reply:
                served = json.loads(reply.read())["models"]
            if served and served[0]["version"] == version:
                return
        except (urllib.error.URLError, TimeoutError):
            pass
        time.sleep(0.2)
    raise RuntimeError(f"version {version} did not serve within {seconds} s")
