"""The engine: one micro-batch after the other of whatever is waiting, in a thread of its own or, if short, at once.

While one waits for the disk only, the next one of other streams begins; it is committed after it, and fails or
succeeds by itself. A short one that needs nothing but what is in memory runs on the event loop: on another core the
interpreter finds nothing in its caches. It knows items and residents; no HTTP, no registry. Invariants: who works on
residents has the turn; items of one stream are done in the order they came; the model changes only while no micro-batch
is under way; what was taken in when the engine is told to stop is done first; the event loop never waits for the store,
for the turn or for a long fold.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from sqlalchemy.exc import SQLAlchemyError

from service.engine.attempts import Attempts
from service.engine.intake import Intake
from service.engine.items import HEAVIEST, Item, Look, Observe, Outcome, Result
from service.engine.microbatch import MicroBatch
from service.engine.residents import Residents
from service.engine.subscriptions import Subscriptions
from service.engine.survey import Survey
from service.errors import first_line
from service.metrics import Metrics
from service.models.served import ServedModel
from service.problems import unavailable
from service.store import Store

if TYPE_CHECKING:
    from service.tracing import Tracing

__all__ = ["Engine", "Limits"]

_LAST_SNAPSHOTS = 0.8  # of the time to end in
_FORGET_EVERY = 60.0  # seconds between two looks for replies that have been kept long enough
_FORGET_AT_ONCE = 500  # after a quiet night there may be very many, and a micro-batch waits for each look
_SHORT = 0.008  # seconds that a micro-batch may take of the event loop
_STEP = 256  # numbers of a forecast that take as long as a step
_T = TypeVar("_T")


def _work(items: Sequence[Item]) -> int:
    """How much it is to begin with them, if they take a step each: a measure to compare others with."""
    wants = [item.want for item in items if isinstance(item, Observe | Look)]
    return _STEP * len(items) + sum(want.horizon * len(want.quantile_levels) for want in wants if want is not None)


def _go_on() -> None:
    """Nothing: who takes this from the queue has ended what was under way."""


class _UnderWay(NamedTuple):
    """A micro-batch that has begun and not ended, and when it began."""

    items: list[Item]
    batch: MicroBatch
    started: float


@dataclass(frozen=True)
class Limits:
    """Bounds the engine keeps; see `service.settings.Settings`."""

    max_gap: int
    max_pending: int
    max_waiting: int
    max_batch: int
    max_resident: int
    snapshot_every: int
    bases: int
    check_versions: bool
    replies_seconds: int
    stall_seconds: float


class Engine:
    """Serves one model over one store.

    Parameters
    ----------
    store
        Observation log and snapshots.
    model
        The model at the start.
    limits
        Bounds.
    metrics
        Told about every micro-batch.
    loop
        Where outcomes are delivered.
    subscriptions
        Told of streams that have changed.
    tracing
        Told about every micro-batch; None: nobody asked for traces.
    """

    def __init__(
        self,
        store: Store,
        model: ServedModel,
        limits: Limits,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        subscriptions: Subscriptions,
        tracing: Tracing | None = None,
    ) -> None:
        self.model = model
        self._subscriptions = subscriptions
        self._tracing = tracing
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._loop = loop
        self._residents = Residents(model, store, metrics, limits.max_resident, limits.bases)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._full = min(limits.max_batch, limits.max_resident)  # streams of a micro-batch are in memory together
        self._queue: SimpleQueue[list[Item] | Callable[[], None]] = SimpleQueue()
        self._backlog: deque[Item] = deque()
        self._turn = threading.Lock()
        self._under_way: _UnderWay | None = None
        self._latest = math.inf, 1  # seconds that the latest micro-batch took to begin, and its work
        self._intake = Intake(
            loop,
            self._queue,
            max_pending=limits.max_pending,
            max_waiting=limits.max_waiting,
            full=self._full,
            stall_seconds=limits.stall_seconds,
            at_once=self._at_once,
        )
        metrics.pending.set_function(lambda: self._intake.pending)
        metrics.busy_seconds.set_function(self._intake.busy_seconds)
        self._stopping = False
        self._snapshots_until = math.inf
        self._forget_at = time.monotonic() + _FORGET_EVERY
        self._started = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    # -- called from the event loop or other threads ---------------------------------------------------------------

    def start(self) -> None:
        """Begin to work."""
        self._metrics.serves(self.model.name, self.model.version)
        self._thread.start()
        self._started = True

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes items."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, items: list[Item]) -> None:
        """Queue items; each one's ticket is settled on the event loop. Call it on the event loop.

        Raises
        ------
        Problem
            503 if too much is waiting or the engine is stopping.
        """
        if not self.alive:
            raise unavailable("the service is stopping")
        if self._tracing is not None:
            self._tracing.submitted(items)
        self._intake.submit(items)

    def swap(self, model: ServedModel) -> Future[None]:
        """Serve `model` from the next micro-batch on; states are restored under it on touch."""

        def change(_before: Residents) -> None:
            limits = self._limits
            self._residents = Residents(model, self._store, self._metrics, limits.max_resident, limits.bases)
            self.model = model
            self._metrics.serves(model.name, model.version)
            self._loop.call_soon_threadsafe(self._subscriptions.wake_all)

        return self._between(change)

    def survey(self, unique_ids: Sequence[str] | None = None) -> Future[Survey]:
        """What past forecasts of streams in memory were worth; of all of them, or of those named."""
        return self._between(lambda residents: residents.survey(unique_ids))

    def _between(self, work: Callable[[Residents], _T]) -> Future[_T]:
        """Do something short between two micro-batches."""
        done: Future[_T] = Future()

        def call() -> None:
            if not done.set_running_or_notify_cancel():
                return  # nobody waits for it any more
            try:
                done.set_result(work(self._residents))
            except Exception as error:
                done.set_exception(error)

        self._queue.put(call)
        return done

    def trimmed(self, begins: Mapping[str, tuple[int, int]]) -> None:
        """Learn where logs begin now: unique_id → (stream id, step)."""
        self._between(lambda residents: residents.trimmed(begins))

    @property
    def crashed(self) -> bool:
        """Whether the thread has ended though nobody told it to."""
        return self._started and not self._thread.is_alive() and not self._stopping

    def busy_seconds(self) -> float:
        """How long the micro-batch at work has taken so far; 0 if none is. Call it on the event loop."""
        return self._intake.busy_seconds()

    def stop(self, seconds: float | None = None) -> bool:
        """Do what has arrived, write snapshots as far as there is time, and end. Blocks; not for the event loop.

        Parameters
        ----------
        seconds
            To wait for that; None: as long as it takes.

        Returns
        -------
        Whether it has ended.
        """
        if seconds is not None:
            self._snapshots_until = time.monotonic() + _LAST_SNAPSHOTS * seconds

        def last() -> None:
            self._stopping = True

        try:
            self._loop.call_soon_threadsafe(self._intake.close, last)
        except RuntimeError:
            # The loop has been closed under us: nothing more can have come.
            self._queue.put(last)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with torch.inference_mode():
            while True:
                items = self._take()
                with self._turn:
                    if items:
                        self._process(items)
                    elif self._under_way is not None:
                        self._end()
                    elif self._stopping:
                        break
            try:
                left = self._residents.save(self._residents.unsaved(), self._snapshots_until)
                if left:
                    logging.getLogger("service").warning("no time for the last snapshots of %d streams", left)
            except Exception:
                # Snapshots only make the next start faster.
                logging.getLogger("service").exception("no snapshots at shutdown")
            self._writer.shutdown()

    def _take(self) -> list[Item]:
        """Everything that waits, of each stream the items up to and including the first write.

        Nothing at the end, and where there is nothing while a micro-batch is under way.
        """
        batch: list[Item] = []
        kept: deque[Item] = deque()
        writing: set[str] = set()
        reading: set[str] = set()
        weight = 0

        def offer(item: Item) -> None:
            nonlocal weight
            name = item.unique_id
            full = len(batch) >= self._full or weight >= HEAVIEST
            if full or name in writing or (item.writes and name in reading):
                # From here on the stream's items wait, in order.
                writing.add(name)
                kept.append(item)
                return
            (writing if item.writes else reading).add(name)
            batch.append(item)
            weight += item.weight

        for item in self._backlog:
            offer(item)
        while True:
            try:
                entry = self._queue.get(block=not (batch or self._under_way or self._stopping))
            except Empty:
                break
            if callable(entry):
                with self._turn:
                    self._end()
                    entry()
                if self._stopping:
                    break
                continue
            for item in entry:
                offer(item)
            if len(batch) >= self._full or weight >= HEAVIEST:
                break
        self._backlog = kept
        return batch

    def _process(self, items: list[Item]) -> None:
        """Begin a micro-batch, beside the one that is under way if that only waits for the disk; then end that one."""
        before = self._under_way
        if before is not None and not self._goes_beside(items, before):
            self._end()
            before = None
        started = perf_counter()
        # SQLite tells what others have written only between two transactions.
        batch = self._micro_batch(late=before is not None and self._store.is_embedded)
        if before is not None:
            # It may be durable long before this one has begun.
            before.batch.tell(self._deliver)
            self._residents.staying = [item.unique_id for item in before.items]
        under_way = self._begin(items, batch, started)
        if before is not None:
            self._residents.staying = [item.unique_id for item in under_way.items]
            self._end()
            self._residents.staying = ()
        self._under_way = under_way

    def _begin(self, items: list[Item], batch: MicroBatch, started: float) -> _UnderWay:
        batch.begin(items)
        if batch.postponed:
            self._backlog.extendleft(reversed(batch.postponed))
            later = set(batch.postponed)
            items = [item for item in items if item not in later]
        self._latest = perf_counter() - started, max(_work(items), 1)
        return _UnderWay(items, batch, started)

    def _goes_beside(self, items: list[Item], before: _UnderWay) -> bool:
        """Whether a micro-batch of these items has nothing to do with the one under way, which leaves time for it."""
        if not before.batch.is_committing or len(items) + len(before.items) > self._limits.max_resident:
            return False
        return {item.unique_id for item in items}.isdisjoint(item.unique_id for item in before.items)

    def _end(self) -> None:
        """End the micro-batch that is under way, if one is."""
        if self._under_way is None:
            return
        under_way, self._under_way = self._under_way, None
        attempts = self._attempts()
        results, due = attempts.finish(under_way.items, under_way.batch)
        ended = perf_counter()
        if not under_way.batch.has_told:
            self._deliver(results)
        self._note(under_way, results, ended, attempts.parts)
        self._housekeep(due)

    def _note(
        self, under_way: _UnderWay, results: dict[Item, Result], ended: float, parts: list[tuple[str, float, float]]
    ) -> None:
        try:
            self._count(under_way.items, results, perf_counter() - under_way.started, parts)
            if self._tracing is not None:
                self._tracing.batch(under_way.items, under_way.started, ended, parts)
        except Exception:
            # The outcomes are out; counting must not take the engine down.
            logging.getLogger("service").exception("counting failed")

    # -- on the event loop -----------------------------------------------------------------------------------------

    def _at_once(self, items: list[Item]) -> bool:
        """Begin a micro-batch here, on the event loop, if it is short; nothing else waits or is at work."""
        seconds, work = self._latest
        if len(items) > self._full or seconds * max(_work(items) / work, 1) > _SHORT:
            return False
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if self._under_way is not None or not self._needs_no_store(items):
                return False
            with torch.inference_mode():
                self._under_way = self._begin(items, self._micro_batch(asked=True), perf_counter())
            batch = self._under_way.batch
            if batch.has_failed or batch.postponed:
                self._queue.put(_go_on)
            elif batch.is_committing:
                batch.when_committed(partial(self._call_soon, self._end_at_once, batch))
            else:
                self._loop.call_soon(self._end_at_once, batch)
            return True
        finally:
            self._turn.release()

    def _needs_no_store(self, items: list[Item]) -> bool:
        """Whether each item looks at, or adds one step to, another stream in memory that nobody else has changed.

        None of them wants a forecast beyond the trained horizon either, for which states are rolled on.
        """
        names = {item.unique_id for item in items}
        if len(names) < len(items) or not self._residents.are_current(
            names, check_versions=self._limits.check_versions
        ):
            return False
        for item in items:
            if isinstance(item, Observe):
                resident = self._residents.get(item.unique_id)
                if item.key is not None or resident is None or item.steps != [resident.record.last_step + 1]:
                    return False
            elif not isinstance(item, Look):
                return False
            if item.want is not None and item.want.horizon > self.model.forecaster.config.horizon:
                return False
        return True

    def _end_at_once(self, batch: MicroBatch) -> None:
        """End a micro-batch that began on the event loop, unless whoever has the turn does."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            under_way = self._under_way
            if under_way is None or under_way.batch is not batch:
                return
            if batch.has_failed:
                self._queue.put(_go_on)  # what follows may take long
                return
            self._under_way = None
            attempts = self._attempts()
            with torch.inference_mode():
                results, due = attempts.finish(under_way.items, batch)
            if not batch.has_told:
                self._settle(results)
            # Replies first.
            self._loop.call_soon(self._note, under_way, results, perf_counter(), attempts.parts)
            if due or time.monotonic() >= self._forget_at:
                self._queue.put(partial(self._housekeep, due))
        finally:
            self._turn.release()

    def _call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call something on the event loop, from another thread."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            # It has been closed under us: nobody waits any more, but what was committed stays.
            self._queue.put(_go_on)

    # -- wherever the turn is ----------------------------------------------------------------------------------------

    def _micro_batch(self, *, late: bool = False, asked: bool = False) -> MicroBatch:
        now = int(time.time())
        return MicroBatch(
            self._residents,
            self._store,
            max_gap=self._limits.max_gap,
            check_versions=self._limits.check_versions and not asked,
            late=late,
            writer=self._writer,
            now=now,
            replies_since=now - self._limits.replies_seconds,
        )

    def _attempts(self) -> Attempts:
        return Attempts(self._residents, self._micro_batch, self._metrics, self._limits.snapshot_every)

    def _deliver(self, results: dict[Item, Result]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, results)
        except RuntimeError:
            # The loop has been closed under us: nobody waits any more, but what was committed stays.
            logging.getLogger("service").warning("%d outcomes had nobody waiting", len(results))

    def _settle(self, results: dict[Item, Result]) -> None:
        weight = requests = 0
        for item, result in results.items():
            weight += item.weight
            requests += item.ticket.settle(item, result)
        self._intake.settled(len(results), weight, requests)
        if self._subscriptions:
            self._subscriptions.changed(
                item.unique_id for item, result in results.items() if item.writes and isinstance(result, Outcome)
            )

    def _count(
        self, items: list[Item], results: dict[Item, Result], seconds: float, parts: list[tuple[str, float, float]]
    ) -> None:
        metrics = self._metrics
        metrics.batch_size.observe(len(items))
        metrics.batch_seconds.observe(seconds)
        metrics.parts(parts)
        outcomes = [result for result in results.values() if isinstance(result, Outcome)]
        judgements = [outcome.judgement for outcome in outcomes if outcome.judgement is not None]
        for verdict, count in Counter(chain.from_iterable(found.verdicts for found in judgements)).items():
            metrics.observed(verdict, count)
        if refused := sum(outcome.refusal is not None for outcome in outcomes):
            metrics.refused_forecasts.inc(refused)
        filled = sum(found.filled for found in judgements)
        surprises = [outcome.surprises for outcome in outcomes if outcome.surprises is not None]
        if surprises:
            metrics.placed(np.concatenate(surprises))
        if filled:
            metrics.filled.inc(filled)

    def _housekeep(self, due: Sequence[str]) -> None:
        residents = self._residents
        try:
            residents.save([resident for name in due if (resident := residents.get(name)) is not None])
            self._forget_replies()
        except SQLAlchemyError as error:
            logging.getLogger("service").warning("housekeeping: %s", first_line(error))
        except Exception:
            # The outcomes are out; snapshots must not take the engine down.
            logging.getLogger("service").exception("housekeeping failed")
        finally:
            self._metrics.resident.set(len(residents))

    def _forget_replies(self) -> None:
        now = time.monotonic()
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_EVERY
            before = int(time.time()) - self._limits.replies_seconds
            if self._store.forget_replies(before, _FORGET_AT_ONCE) == _FORGET_AT_ONCE:
                self._forget_at = now
