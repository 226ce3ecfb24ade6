"""Which model serves: states are derived under a new one before it does, and kept under the one before for a way back.

It knows store, engine and models; no registry, no HTTP. Invariants: a model serves only if it is admitted; the way back
needs no replay from the start of any log, only of what came since.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from service.engine import Engine
from service.engine.folding import MOST_STEPS
from service.engine.rederive import rederive
from service.errors import first_line
from service.metrics import Metrics
from service.models.served import ServedModel
from service.store import Store

__all__ = ["Kept", "Replay", "Switch"]

_FEW = 10_000  # steps, folded in a fraction of a second
_STREAMS = 200  # whose snapshots go in one transaction
_HASTE = 2.0
"""Seconds that a way back waits for what came meanwhile to be folded beforehand; the rest is folded on touch."""


@dataclass(slots=True)
class Replay:
    """Deriving the states of all streams under a model: how many streams there are, and how many are done."""

    model: ServedModel
    streams: int
    done: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """The model before, and until when (`time.monotonic`) the way back to it is short."""

    model: ServedModel
    until: float


class Switch:
    """Takes models in and puts them to work; used by one thread, looked at by others.

    Parameters
    ----------
    store
        Whose streams they serve.
    begin
        Makes and starts the engine of the first model.
    metrics
        Told about swaps and replays.
    admit
        Raises ModelError for a model that cannot serve this store.
    serves
        Told which model serves from now on.
    keep_seconds
        How long the model before, and the states under it, are kept.
    """

    def __init__(
        self,
        store: Store,
        begin: Callable[[ServedModel], Engine],
        metrics: Metrics,
        *,
        admit: Callable[[ServedModel], None],
        serves: Callable[[ServedModel], None],
        keep_seconds: float,
    ) -> None:
        self.engine: Engine | None = None
        self.replay: Replay | None = None
        self.kept: Kept | None = None
        self._store = store
        self._begin = begin
        self._metrics = metrics
        self._admit = admit
        self._serves = serves
        self._keep_seconds = keep_seconds
        self._leaving: ServedModel | None = None  # serves until the swap that is under way, and is kept after it
        self._forgetting: threading.Timer | None = None
        self._lock = threading.Lock()  # of `kept` and its snapshots
        self._closed = threading.Event()

    def take(self, model: ServedModel) -> None:
        """Serve a model: derive all states under it, then switch; the other way round where they are kept. Blocks.

        Raises
        ------
        ModelError
            It cannot serve this store.
        """
        self._admit(model)
        if self.engine is None:
            self.engine = self._begin(model)
            self._serves(model)
            self._forget_later()  # which other models left states here, before this process began, nobody knows
            return
        before = self._leaving = self.engine.model
        back = self.recall(model.name, model.version) is not None
        try:
            if back:
                caught_up = self._derive(model, time.monotonic() + _HASTE)
                self._put_to_work(model)
                if not caught_up:
                    self._derive(model)
            else:
                self._derive(model)
                # What came in during the first pass; and who is so busy that his states came too late.
                self._derive(model, most=_FEW)
                self._put_to_work(model)
        finally:
            self.replay = None
        if back:
            self._metrics.rollbacks.inc()
        self._keep(before)

    def recall(self, name: str, version: str) -> ServedModel | None:
        """The model before, if it is that version and still kept."""
        kept = self.kept
        return kept.model if kept is not None and (kept.model.name, kept.model.version) == (name, version) else None

    def close(self) -> None:
        """Forget nothing any more."""
        self._closed.set()
        if self._forgetting is not None:
            self._forgetting.cancel()

    def _derive(self, model: ServedModel, deadline: float | None = None, most: int = MOST_STEPS) -> bool:
        replay = self.replay = Replay(model, self._store.count())

        def told(done: int, steps: int) -> bool:
            replay.done = done
            self._metrics.replayed_steps.inc(steps)
            self._metrics.replay_progress.set(min(done / max(replay.streams, 1), 1.0))
            return deadline is None or time.monotonic() < deadline

        self._metrics.replay_progress.set(0)
        finished = rederive(model, self._store, told, most)
        self._metrics.replay_progress.set(1)
        return finished

    def _put_to_work(self, model: ServedModel) -> None:
        assert self.engine is not None
        self.engine.swap(model).result()
        self._serves(model)
        self._metrics.swaps.inc()

    def _keep(self, before: ServedModel) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        with self._lock:
            self.kept = Kept(before, time.monotonic() + self._keep_seconds)
            self._leaving = None
            self._drop_snapshots()
        self._forget_later()

    def _forget_later(self) -> None:
        self._forgetting = threading.Timer(self._keep_seconds, self._forget)
        self._forgetting.daemon = True
        self._forgetting.start()

    def _forget(self) -> None:
        with self._lock:
            if self.kept is None or time.monotonic() >= self.kept.until:
                self.kept = None
                self._drop_snapshots()

    def _drop_snapshots(self) -> None:
        """Forget the states of models that neither serve nor are kept nor are coming or leaving."""
        try:
            after: int | None = 0
            while after is not None and not self._closed.is_set():
                started = time.monotonic()
                after = self._store.drop_snapshots(self._needed(), after, _STREAMS)
                self._closed.wait(time.monotonic() - started)  # those of the engine come in between
        except SQLAlchemyError as error:
            # They only take place, until the next swap; the models have changed by now.
            said = first_line(error)
            logging.getLogger("service").warning("snapshots of former models stay: %s", said)

    def _needed(self) -> list[str]:
        # In this order: what was leaving is kept by then, and what was coming serves.
        leaving, replay, kept = self._leaving, self.replay, self.kept
        assert self.engine is not None
        models = [self.engine.model] + [one.model for one in (replay, kept) if one is not None]
        return [model.key for model in models + ([leaving] if leaving is not None else [])]
