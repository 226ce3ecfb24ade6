"""The engine: one thread that turns whatever is waiting into one micro-batch after the other.

It knows items and residents; no HTTP, no registry. Invariants: items of one stream are done in the order they came;
the model changes only between two micro-batches; what was taken in when the engine is told to stop is done first.
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
from itertools import chain
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from sqlalchemy.exc import SQLAlchemyError

from service.engine.intake import Intake
from service.engine.items import HEAVIEST, Item, Observe, Outcome, wanted
from service.engine.microbatch import MicroBatch, Result
from service.engine.residents import Residents
from service.engine.subscriptions import Subscriptions
from service.engine.survey import Survey
from service.errors import StaleStreams, UnknownOutcome
from service.metrics import Metrics
from service.models.served import ServedModel
from service.problems import Problem, failed, outcome_unknown, unanswered, unavailable
from service.store import Store

if TYPE_CHECKING:
    from service.tracing import Tracing

__all__ = ["Engine", "Limits"]

_STALE_RETRIES = 3
_STALE_RETRIES_ALONE = 20  # each loss is another's success, so this many in a row are rare
_LAST_SNAPSHOTS = 0.8  # of the time to end in
_FORGET_EVERY = 60.0  # seconds between two looks for replies that have been kept long enough
_FORGET_AT_ONCE = 500  # after a quiet night there may be very many, and a micro-batch waits for each look
_T = TypeVar("_T")


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
        self._parts: list[tuple[str, float, float]] = []  # of the latest micro-batch
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._loop = loop
        self._residents = Residents(model, store, metrics, limits.max_resident, limits.bases)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._full = min(limits.max_batch, limits.max_resident)  # streams of a micro-batch are in memory together
        self._queue: SimpleQueue[list[Item] | Callable[[], None]] = SimpleQueue()
        self._backlog: deque[Item] = deque()
        self._intake = Intake(
            loop,
            self._queue,
            max_pending=limits.max_pending,
            max_waiting=limits.max_waiting,
            full=self._full,
            stall_seconds=limits.stall_seconds,
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
                if items:
                    self._process(items)
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
        """Everything that waits, of each stream the items up to and including the first write; empty at the end."""
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
                entry = self._queue.get(block=not batch and not self._stopping)
            except Empty:
                break
            if callable(entry):
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
        started = time.perf_counter()
        results, due = self._attempt(items)
        ended = time.perf_counter()
        self._deliver(results)
        try:
            self._count(items, results, time.perf_counter() - started)
            if self._tracing is not None:
                self._tracing.batch(items, started, ended, self._parts)
            self._housekeep(due)
        except Exception:
            # The outcomes are out; counting and snapshots must not take the engine down.
            logging.getLogger("service").exception("housekeeping failed")

    def _attempt(self, items: list[Item]) -> tuple[dict[Item, Result], list[str]]:
        now = int(time.time())
        for _ in range(_STALE_RETRIES if len(items) > 1 else _STALE_RETRIES_ALONE):
            batch = MicroBatch(
                self._residents,
                self._store,
                max_gap=self._limits.max_gap,
                check_versions=self._limits.check_versions,
                writer=self._writer,
                now=now,
                replies_since=now - self._limits.replies_seconds,
            )
            try:
                results = batch.run(items)
                self._parts = batch.parts
                if batch.scores is not None:
                    self._metrics.scored(batch.scores)
                every = self._limits.snapshot_every
                return results, [r.record.unique_id for r in batch.due if r.unsaved >= every]
            except StaleStreams as stale:
                self._residents.doubt(stale.unique_ids)
            except (SQLAlchemyError, UnknownOutcome) as error:
                return self._without_store(items, error), []
            except Exception:
                return self._apart(items, batch.taken()), []
        if len(items) > 1:
            # Others change some of these streams all the time; the fewer at once, the likelier that none of them is.
            half = len(items) // 2
            (first, due), (second, more) = self._attempt(items[:half]), self._attempt(items[half:])
            return first | second, due + more
        return {
            item: unavailable("this stream is being changed by others; send the request again") for item in items
        }, []

    def _without_store(self, items: list[Item], error: SQLAlchemyError | UnknownOutcome) -> dict[Item, Result]:
        self._metrics.failed_commits.inc()
        logging.getLogger("service").error("the store failed: %s", str(error).splitlines()[0])
        unknown = isinstance(error, UnknownOutcome)
        if unknown:
            # What is in memory may be behind what is stored.
            self._residents.drop([item.unique_id for item in items])
        refused: dict[Item, Result] = {
            item: outcome_unknown()
            if unknown
            else unavailable("the store does not accept data at present; nothing was changed")
            for item in items
            if item.writes
        }
        reads = [item for item in items if not item.writes]
        if reads and refused:
            refused.update(self._attempt(reads)[0])
        else:
            refused.update((item, unavailable("the store cannot be read at present")) for item in reads)
        return refused

    def _apart(self, items: list[Item], taken: Mapping[Item, Outcome]) -> dict[Item, Result]:
        """After an unexpected failure: drop what is in memory, and find the guilty item by running each alone."""
        logging.getLogger("service").exception("a micro-batch of %d items failed", len(items))
        self._residents.drop([item.unique_id for item in items])
        results: dict[Item, Result] = dict(taken)
        for item in items:
            found = taken.get(item)
            if found is not None and wanted(item) is None:
                continue
            if isinstance(item, Observe) and found is not None:
                item.precondition = None  # it held; now only the forecast is missing
            again = self._attempt([item])[0][item] if len(items) > 1 else failed()
            if found is not None and isinstance(again, Problem):
                again = unanswered(found.record.version)
            results[item] = again
        return results

    def _deliver(self, results: dict[Item, Result]) -> None:
        def settle() -> None:
            weight = requests = 0
            for item, result in results.items():
                weight += item.weight
                requests += item.ticket.settle(item, result)
            self._intake.settled(len(results), weight, requests)
            if self._subscriptions:
                self._subscriptions.changed(
                    item.unique_id for item, result in results.items() if item.writes and isinstance(result, Outcome)
                )

        try:
            self._loop.call_soon_threadsafe(settle)
        except RuntimeError:
            # The loop has been closed under us: nobody waits any more, but what was committed stays.
            logging.getLogger("service").warning("%d outcomes had nobody waiting", len(results))

    def _count(self, items: list[Item], results: dict[Item, Result], seconds: float) -> None:
        metrics = self._metrics
        metrics.batch_size.observe(len(items))
        metrics.batch_seconds.observe(seconds)
        metrics.parts(self._parts)
        outcomes = [result for result in results.values() if isinstance(result, Outcome)]
        judgements = [outcome.judgement for outcome in outcomes if outcome.judgement is not None]
        for verdict, count in Counter(chain.from_iterable(found.verdicts for found in judgements)).items():
            metrics.observed(verdict, count)
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
            logging.getLogger("service").warning("housekeeping: %s", str(error).splitlines()[0])
        finally:
            self._metrics.resident.set(len(residents))

    def _forget_replies(self) -> None:
        now = time.monotonic()
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_EVERY
            before = int(time.time()) - self._limits.replies_seconds
            if self._store.forget_replies(before, _FORGET_AT_ONCE) == _FORGET_AT_ONCE:
                self._forget_at = now
