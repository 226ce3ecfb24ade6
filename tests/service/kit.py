"""What the service's tests share: an application in this process, times as text, what a state should be."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from forecaster import Forecaster, StreamState
from service.store import Store

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2024, 1, 1)
VALUES = [float(10 + i % 4) for i in range(40)]
"""Forty hours."""
_TAKEN: list[socket.socket] = []  # ports, until the process ends


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


def recompute(forecaster: Forecaster, logs: Iterable[dict[int, float | None]]) -> StreamState:
    """States of whole logs in one batch."""
    logs = list(logs)
    firsts = [min(log) for log in logs]
    return forecaster.warm_up(
        [dense_values(log, first, max(log)) for log, first in zip(logs, firsts, strict=True)], firsts
    )


def free_port() -> int:
    """A port nobody listens on, and that neither another test nor an outgoing connection gets while no server does."""
    while True:
        port = 15_000 + secrets.randbelow(17_000)  # not `random`, which starts alike in all processes of a test run
        taken = socket.socket(type=socket.SOCK_DGRAM)  # the same number elsewhere, which all processes here ask for
        try:
            with socket.socket() as tried:
                tried.bind(("127.0.0.1", port))
            taken.bind(("127.0.0.1", port))
        except OSError:
            taken.close()
            continue
        _TAKEN.append(taken)
        return port


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
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

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


def replace_commit(patch: pytest.MonkeyPatch, store: Store, commit: Callable[..., Any]) -> None:
    """Have every transaction run by `commit`, short ones included."""
    patch.setattr(store, "commit", commit)
    patch.setattr(store, "begin", lambda *_asked: None)


def assert_problem(reply: httpx.Response, status: int, *words: str) -> None:
    """RFC 9457, one line, no traceback."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:forecaster:problem:")
    assert "\n" not in body["detail"]
    assert "Traceback" not in reply.text
    for word in words:
        assert word in body["detail"]


def state_of(client: LocalClient, path: str = "/v1/streams/a") -> tuple[Any, Any]:
    """Everything a client can see of a stream."""
    return client.get(path).json(), client.get(f"{path}/forecast").json()


async def chunks(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    """An async body of unknown length."""
    for part in parts:
        yield part
