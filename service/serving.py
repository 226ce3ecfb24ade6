"""How uvicorn is run: the one place for its options, used by the service and by the benchmark's reference endpoint."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from service.connections import Bounds, bounded_protocol

__all__ = ["run"]

_SWITCH_SECONDS = 0.0002


def run(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    log_level: str = "warning",
    drain_seconds: int = 30,
    farewell_seconds: float = 0.0,
    leaving: Callable[[], None] | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; what was taken in is finished first.

    Parameters
    ----------
    app
        What to serve.
    host, port
        Where.
    log_level
        Of uvicorn's own loggers.
    drain_seconds
        Time for requests in flight at the end.
    farewell_seconds
        For so long requests are still taken after the signal, so that balancers can see that this one leaves.
    leaving
        Called at the signal.
    bounds
        What a client may take of time and memory; default: what uvicorn lets it take.
    """
    # Event loop and engine share one interpreter lock. The engine gives it up at every tensor operation and, with the
    # default of 5 ms, would wait that long to get it back while requests are being parsed.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # What the libraries built while importing lives as long as the process; walking through its hundreds of thousands
    # of objects again and again would stop every request for a tenth of a second. Requests leave no cycles behind, so
    # looking for some among the objects of a bulk body, which go by themselves, is only work.
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)
    # uvicorn shuts down in good order and then raises the signal again, which would end the process with an error.
    signal.signal(signal.SIGTERM, lambda *_: None)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools" if bounds is None else bounded_protocol(bounds),
        ws="none",
        access_log=False,
        proxy_headers=False,
        log_config=None,
        log_level=log_level,
        timeout_graceful_shutdown=drain_seconds,
        # A client that keeps its connection for long must not be cut between two observations.
        timeout_keep_alive=75,
    )
    server = _Server(config, farewell_seconds, leaving)
    try:
        server.run()
    except (KeyboardInterrupt, SystemExit):
        pass  # raised by uvicorn again after everything has ended in good order, or after it said why it cannot start
    if not server.started:
        sys.exit(1)


class _Server(uvicorn.Server):
    """Says that it leaves before it does."""

    def __init__(self, config: uvicorn.Config, farewell_seconds: float, leaving: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._farewell_seconds = farewell_seconds
        self._leaving = leaving
        self._left_at: float | None = None

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop serving; asked ten times a second."""
        if not await super().on_tick(counter):
            return False
        if self._left_at is None:
            self._left_at = time.monotonic()
            if self._leaving is not None:
                self._leaving()
        return self.force_exit or time.monotonic() - self._left_at >= self._farewell_seconds
