"""What the service's tests share: a real server process that can be killed, times as text, states side by side."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from forecaster import Forecaster, StreamState

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2024, 1, 1)


def ds(hour: int) -> str:
    """ISO text of an hour after the start."""
    return (START + timedelta(hours=hour)).isoformat()


def history(values: Sequence[float | None], first: int = 0) -> dict[str, Any]:
    """A PUT body of consecutive hours."""
    return {"ds": [ds(first + i) for i in range(len(values))], "y": list(values)}


def observations(*pairs: tuple[int, float | None], **more: Any) -> dict[str, Any]:
    """A POST body."""
    return {"observations": [{"ds": ds(hour), "y": y} for hour, y in pairs], **more}


def dense_values(log: dict[int, float | None], first: int, last: int) -> np.ndarray:
    """Values of consecutive steps, NaN where there is none."""
    return np.array([np.nan if log.get(s) is None else log[s] for s in range(first, last + 1)], dtype=np.float64)


def assert_same_state(found: StreamState, expected: StreamState, tolerance: float = 1e-5) -> None:
    """Equal in every field, up to the tolerance where numbers are real."""
    for name in ("age", "silence", "last_step"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    for name in ("hidden", "cell", "ring", "statistics"):
        np.testing.assert_allclose(
            getattr(found, name).numpy(), getattr(expected, name).numpy(), rtol=tolerance, atol=tolerance, err_msg=name
        )


def recompute(forecaster: Forecaster, logs: Iterable[dict[int, float | None]]) -> StreamState:
    """States of whole logs in one batch."""
    logs = list(logs)
    firsts = [min(log) for log in logs]
    return forecaster.warm_up(
        [dense_values(log, first, max(log)) for log, first in zip(logs, firsts, strict=True)], firsts
    )


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """``python -m service`` in a process of its own."""

    def __init__(self, model: str | Path, store: str, log: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable,
            "-m",
            "service",
            "--model",
            str(model),
            "--store",
            store,
            "--port",
            str(self.port),
        ]
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> Server:
        """Start, and wait until it serves."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        end = time.monotonic() + 90
        while True:
            assert self.process.poll() is None, self._log.read_text()
            if time.monotonic() > end:
                self.kill()
                raise AssertionError("the server did not come up: " + self._log.read_text())
            try:
                if httpx.get(f"{self.url}/{'readyz' if ready else 'healthz'}").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)

    def kill(self) -> None:
        """Power off: nothing in the process gets to run again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end; returns its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)

    def log_text(self) -> str:
        """What it wrote so far."""
        return self._log.read_text()

    def __enter__(self) -> Server:
        return self if self.process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class LocalClient:
    """An application on an event loop in a thread of this process, asked synchronously."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._stack = AsyncExitStack()

    def __enter__(self) -> LocalClient:
        self._thread.start()
        self.call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        await self._stack.enter_async_context(self.app.router.lifespan_context(self.app))
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self._client = await self._stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://service")
        )

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine on the application's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    @property
    def service(self) -> Any:
        """What runs behind the routes at the root."""
        return self.app.state.host.hosted[None].service

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request."""
        return self.call(self._client.request(method, path, **options))  # type: ignore[no-any-return]

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **options)

    def put(self, path: str, **options: Any) -> httpx.Response:
        """PUT."""
        return self.request("PUT", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """POST."""
        return self.request("POST", path, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        """DELETE."""
        return self.request("DELETE", path, **options)


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that happens by itself."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def run(coroutine: Any) -> Any:
    """Run to completion on a loop of its own."""
    return asyncio.run(coroutine)
