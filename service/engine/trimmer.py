"""The trimmer: a thread that keeps every stream's log as long as the operator wants it, a little at a time.

It knows the store and which model serves, and nothing of requests. Invariant: it works a bounded share of the time, in
short transactions, so that those of the engine never wait for long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from sqlalchemy.exc import SQLAlchemyError

from service.errors import first_line
from service.metrics import Metrics
from service.models.served import ServedModel
from service.store import Store

__all__ = ["Trimmer"]

_STREAMS = 500  # looked at in one go
_ROWS = 5000  # deleted in one transaction
_REST = 3.0  # times as long as the work before


class Trimmer:
    """Trims logs until it is stopped.

    Parameters
    ----------
    store
        The truth.
    metrics
        Told what went.
    tell
        Called with unique_id → (stream id, where the log begins now) of streams that were trimmed.
    pause
        Seconds between two passes over all streams.
    """

    def __init__(
        self, store: Store, metrics: Metrics, tell: Callable[[Mapping[str, tuple[int, int]]], None], pause: float
    ) -> None:
        self._store = store
        self._tell = tell
        self._metrics = metrics
        self._pause = pause
        self._task: tuple[ServedModel, int] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="trimmer", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def follow(self, model: ServedModel, keep: int) -> None:
        """Keep `keep` steps from now on, by the snapshots of `model`."""
        self._task = (model, keep)
        self._metrics.retention_steps.set(keep)

    def stop(self, seconds: float) -> None:
        """Finish the transaction at hand, and end; a database that does not answer is waited for so long."""
        self._stopping.set()
        self._thread.join(seconds)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self.trim()
            except SQLAlchemyError as error:
                logging.getLogger("service").warning("the log is not trimmed: %s", first_line(error))
            self._stopping.wait(self._pause)

    def trim(self) -> None:
        """One pass over all streams."""
        after = 0
        while self._task is not None and not self._stopping.is_set():
            model, keep = self._task
            started = time.monotonic()
            records = self._store.page_by_id(after, _STREAMS)
            if not records:
                return
            ids = [record.id for record in records]
            after = ids[-1]
            moved = self._store.raise_floors(model.key, keep, ids)
            self._metrics.trimmed_streams.inc(len(moved))
            self._tell({r.unique_id: (r.id, moved[r.id]) for r in records if r.id in moved})
            is_done = False
            while not self._stopping.wait(_REST * (time.monotonic() - started)) and not is_done:
                started = time.monotonic()
                gone = self._store.sweep(ids, _ROWS)
                self._metrics.trimmed_rows.inc(gone)
                is_done = not gone
