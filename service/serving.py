"""How uvicorn is run: the one place for its options, used by the service and by the benchmark's reference endpoint."""

from __future__ import annotations

import gc
import signal
import sys

import uvicorn
from starlette.types import ASGIApp

__all__ = ["run"]

_SWITCH_SECONDS = 0.0002


def run(app: ASGIApp, *, host: str, port: int, log_level: str = "warning", drain_seconds: int = 30) -> None:
    """Serve until SIGTERM or SIGINT; what was taken in is finished first."""
    # Event loop and engine share one interpreter lock. The engine gives it up at every tensor operation and, with the
    # default of 5 ms, would wait that long to get it back while requests are being parsed.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # What the libraries built while importing lives as long as the process; walking through its hundreds of thousands
    # of objects again and again would stop every request for a tenth of a second.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    # uvicorn shuts down in good order and then raises the signal again, which would end the process with an error.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.run(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        proxy_headers=False,
        log_level=log_level,
        timeout_graceful_shutdown=drain_seconds,
        # A client that keeps its connection for long must not be cut between two observations.
        timeout_keep_alive=75,
    )
