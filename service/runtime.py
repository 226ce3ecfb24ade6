"""The running service of one model: store, engine and registry watcher, put together, started and stopped.

It knows the parts and no HTTP. Invariants: a model that the store or the calendar does not fit never reaches the
engine; stopping drains what was taken in.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from sqlalchemy.exc import SQLAlchemyError

from service.asking import Probe, Questions
from service.at_work import AtWork
from service.challenger import Challenger
from service.engine import Engine, Limits
from service.engine.subscriptions import Subscriptions
from service.engine.trimmer import Trimmer
from service.errors import GivenUp, ModelError, ServiceError, StoreError, first_line, let_go
from service.metrics import Metrics
from service.models.registry import MlflowRegistry, parse_reference
from service.models.served import ServedModel, load_model
from service.models.watcher import Taker, Watcher
from service.problems import overloaded, unavailable
from service.retention import least_steps, steps_of
from service.settings import Settings
from service.store import Store
from service.switching import Switch

if TYPE_CHECKING:
    from service.tracing import Tracing

__all__ = ["Readiness", "Service"]

_T = TypeVar("_T")
_STATELESS_WAITING = 64
_STATELESS_BEGUN = 2  # one at work, and the next, so that the thread need not wait for the event loop
_PROBE_SECONDS = 3.0
_QUESTIONS = 8  # at a time; the pool of connections to a database server has 15


@dataclass(slots=True)
class Readiness:
    """What was checked: text per part, and the failing ones; `settled` unless it has yet to be seen what is there."""

    details: dict[str, str] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    settled: bool = True

    @property
    def ready(self) -> bool:
        """Whether everything needed works."""
        return not self.failing


class Service:
    """Everything behind the routes of one model.

    Parameters
    ----------
    settings
        What the operator chose for it.
    store
        Opened.
    model
        Serves from the start; None if a registry is to be asked first.
    metrics
        Told what happens.
    tracing
        Told about micro-batches; None: nobody asked for traces.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        model: ServedModel | None,
        metrics: Metrics,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.metrics = metrics
        self.at_work = AtWork()
        self.subscriptions = Subscriptions()
        self.metrics.event_readers.set_function(lambda: len(self.subscriptions))
        self.switch = Switch(
            store,
            self._begin,
            self.metrics,
            admit=self._admit,
            serves=self._trim,
            keep_seconds=settings.rollback_hours * 3600,
        )
        self.challenger: Challenger | None = None
        if settings.challenger is not None:
            streams, seconds = settings.challenger_streams, settings.poll_seconds
            self.challenger = Challenger(
                settings.store,
                lambda: self.engine,
                self.metrics,
                admit=self._note_covariates,
                streams=streams,
                seconds=seconds,
            )
        self._challenger_watcher: Watcher | None = None
        self._first_model = model
        self._watcher: Watcher | None = None
        self._trimmer: Trimmer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stateless = ThreadPoolExecutor(1, thread_name_prefix="stateless")
        self._stateless_waiting = 0
        self._stateless_turn = asyncio.Semaphore(_STATELESS_BEGUN)
        self._probe = Probe(store)
        self.questions = Questions(_QUESTIONS, settings.stall_seconds)
        self._tracing = tracing
        self.leaving = False
        self.ended = True

    @classmethod
    def open(cls, settings: Settings, metrics: Metrics, tracing: Tracing | None = None) -> Self:
        """Open the store and, if the model is a folder, load it.

        Raises
        ------
        ServiceError
            One of them cannot be used.
        """
        model = None
        if parse_reference(settings.model) is None:
            model = load_model(Path(settings.model))
        store = Store.open(settings.store)
        try:
            if model is not None:
                _claim(store, model)
                _check_retention(settings, model)
        except (StoreError, ModelError):
            store.close()
            raise
        return cls(settings, store, model, metrics, tracing)

    async def start(self) -> None:
        """Start engine and watcher; call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        torch.set_num_threads(self.settings.torch_threads)
        if self._first_model is not None:
            # It asks the database, which must not make the other models of this process wait.
            await asyncio.to_thread(self.switch.take, self._first_model)
        self._watcher = self._watch(self.settings.model, self.switch, self.settings.model_cache)
        if self._watcher is not None:
            self._watcher.start()
        if self.challenger is not None:
            await asyncio.to_thread(self._challenge, self.challenger)

    async def stop(self) -> None:
        """Stop watching, finish what was taken in, write snapshots, close the store."""
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)
        if self._trimmer is not None:
            await asyncio.to_thread(self._trimmer.stop, self.settings.drain_seconds)
        if self._challenger_watcher is not None:
            await asyncio.to_thread(self._challenger_watcher.stop)
        if self.challenger is not None:
            await asyncio.to_thread(self.challenger.close)
        self.switch.close()
        if self.engine is not None:
            self.ended = await asyncio.to_thread(self.engine.stop, self.settings.drain_seconds)
        self._stateless.shutdown(wait=False, cancel_futures=True)  # nobody waits for it any more
        if self.ended:
            self.store.close()
        else:
            logging.getLogger("service").error("the store hangs: ended without the last snapshots")

    def _watch(self, model: str, taker: Taker, cache: Path | None) -> Watcher | None:
        """Follow a model; None if it is a folder."""
        reference = parse_reference(model)
        if reference is None:
            return None
        settings = self.settings
        uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        seconds, metrics = settings.poll_seconds, self.metrics
        return Watcher(reference, MlflowRegistry(uri), taker, cache=cache, poll_seconds=seconds, metrics=metrics)

    def _challenge(self, challenger: Challenger) -> None:
        """Begin to follow the challenger; one that cannot be used harms nobody."""
        name = self.settings.challenger or ""
        try:
            self._challenger_watcher = self._watch(name, challenger, None)
            if self._challenger_watcher is not None:
                self._challenger_watcher.start()
            else:
                challenger.take(load_model(Path(name)))
        except (ServiceError, OSError, SQLAlchemyError) as error:
            challenger.trouble = first_line(error)
            logging.getLogger("service").error("no challenger: %s", challenger.trouble)

    def leave(self) -> None:
        """Say from now on that it is not ready, and let readers of events go elsewhere."""
        self.leaving = True
        self.subscriptions.close()

    # -- models ----------------------------------------------------------------------------------------------------

    def _admit(self, model: ServedModel) -> None:
        """Refuse a model that cannot serve this store.

        Raises
        ------
        ModelError
            Its calendar is not the store's, or has no use for the retention that is set.
        """
        try:
            _claim(self.store, model)
        except StoreError as error:
            raise ModelError(str(error)) from error
        _check_retention(self.settings, model)
        self._note_covariates(model)

    def _note_covariates(self, model: ServedModel) -> None:
        """Take what a model knows from requests from now on, whichever serves: one may be put back in haste."""
        names = self.store.add_covariates(model.covariates)
        for one in [model] if self.engine is None else [model, self.engine.model]:
            one.further = names - one.covariates

    def _begin(self, model: ServedModel) -> Engine:
        settings = self.settings
        limits = Limits(
            max_gap=self.max_gap_steps(model),
            max_pending=settings.max_pending,
            max_waiting=settings.max_waiting,
            max_batch=settings.max_batch,
            max_resident=settings.max_resident,
            snapshot_every=settings.snapshot_every,
            bases=2 if settings.retention else 0,
            check_versions=not settings.exclusive_store,
            replies_seconds=settings.replies_seconds,
            stall_seconds=settings.stall_seconds,
        )
        assert self._loop is not None
        engine = Engine(self.store, model, limits, self.metrics, self._loop, self.subscriptions, self._tracing)
        engine.start()
        return engine

    def _trim(self, model: ServedModel) -> None:
        """Trim logs by the model's snapshots from now on, if anything is to be trimmed."""
        span, forecaster = self.settings.retention, model.forecaster
        if span is None:
            return
        keep = max(steps_of(span, forecaster.calendar), least_steps(forecaster, self.max_gap_steps(model)))
        if self._trimmer is None:
            self._trimmer = Trimmer(self.store, self.metrics, self.require_engine().trimmed, self.settings.trim_seconds)
            self._trimmer.follow(model, keep)
            self._trimmer.start()
        else:
            self._trimmer.follow(model, keep)

    def max_gap_steps(self, model: ServedModel) -> int:
        """Longest gap that is filled."""
        if self.settings.max_gap_steps is not None:
            return self.settings.max_gap_steps
        return max(168, 2 * max(model.forecaster.config.seasonality))

    @property
    def engine(self) -> Engine | None:
        """Works for the model that serves; None while there is no model."""
        return self.switch.engine

    # -- questions -------------------------------------------------------------------------------------------------

    def require_engine(self) -> Engine:
        """The engine.

        Raises
        ------
        Problem
            503 while there is no model.
        """
        if self.engine is None:
            raise unavailable(f"there is no model to serve yet: {self.watcher_trouble()}")
        return self.engine

    @property
    def settled(self) -> bool:
        """Whether it has been seen what there is to serve."""
        return self.engine is not None or self._watcher is None or self._watcher.looked

    def watcher_trouble(self) -> str | None:
        """What is wrong with the registry or the newest version; None if nothing is."""
        return None if self._watcher is None else self._watcher.trouble

    def challenged(self) -> dict[str, Any] | None:
        """The challenger with its figures, and what is wrong with it or with its registry; None if none is wanted."""
        if self.challenger is None:
            return None
        found = self.challenger.describe()
        watched = None if self._challenger_watcher is None else self._challenger_watcher.trouble
        return found | {"trouble": found["trouble"] or watched}

    def healthy(self) -> str | None:
        """What only a new process would heal; None if nothing is wrong."""
        if self.engine is not None and self.engine.crashed:
            return "the engine's thread has ended"
        return None

    async def readiness(self) -> Readiness:
        """Check model, engine and store."""
        found = Readiness()
        trouble = self.watcher_trouble()
        if trouble is not None:
            found.details["registry"] = trouble
        if self.leaving:
            found.failing["service"] = "leaving"
            found.details.update(found.failing)
            self.metrics.ready.set(0)
            return found
        engine = self.engine
        if engine is None:
            found.failing["model"] = f"none yet ({trouble})"
            found.settled = self.settled
        else:
            found.details["model"] = f"{engine.model.name} {engine.model.version}"
            found.details["engine"] = "works"
            if not engine.alive:
                found.failing["engine"] = "stopped"
            elif (seconds := engine.busy_seconds()) > self.settings.stall_seconds:
                found.failing["engine"] = f"busy with one micro-batch for {seconds:.0f} s"
        failure = await self._probe.failure(_PROBE_SECONDS)
        if failure is None:
            found.details["store"] = f"writable in {self._probe.seconds * 1e3:.1f} ms"
        else:
            found.failing["store"] = failure
        found.details.update(found.failing)
        self.metrics.ready.set(found.ready)
        return found

    async def beside(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Do long work on the one thread beside the engine: it never takes more than one core from it.

        In the order in which it came, one after the other. The work's last argument is a `Glance`: when this is
        cancelled, what has not begun is not done, and what has ends at its next glance.

        Raises
        ------
        Problem
            503 if too much is waiting.
        """
        if self._stateless_waiting >= _STATELESS_WAITING:
            raise overloaded()
        self._stateless_waiting += 1
        gone = threading.Event()

        def glance() -> None:
            if gone.is_set():
                raise GivenUp("nobody waits for it any longer")

        def begin() -> _T:
            glance()
            return work(*arguments, glance)

        try:
            # Most wait here, not in the thread's queue, so who goes takes along what was to be done.
            await self._stateless_turn.acquire()
            running = asyncio.get_running_loop().run_in_executor(self._stateless, begin)
            running.add_done_callback(self._next_turn)
            return await asyncio.shield(running)
        finally:
            gone.set()
            self._stateless_waiting -= 1

    def _next_turn(self, ended: asyncio.Future[Any]) -> None:
        self._stateless_turn.release()
        if not ended.cancelled() and isinstance(error := ended.exception(), GivenUp):  # nobody is there to hear of it
            let_go(error)


def _claim(store: Store, model: ServedModel) -> None:
    calendar = model.forecaster.calendar
    store.claim_calendar(calendar.freq, calendar.time_zone)


def _check_retention(settings: Settings, model: ServedModel) -> None:
    if settings.retention is not None:
        steps_of(settings.retention, model.forecaster.calendar)
