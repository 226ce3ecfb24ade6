"""How micro-batches form: items gather on the event loop and go to the engine a list at a time.

It knows the event loop and the engine's queue, not what items are for. A micro-batch of thirty costs hardly more than
one of three, and loop and engine share one interpreter lock, so the loop hands over once it has read what is there to
read, and lets those that were just answered come back before it does. The engine takes what is short at once, if it has
nothing else to do, and the rest from its queue.
If the engine is stuck, because a database hangs, say, nobody is left waiting: those at work are told that their outcome
is not known, the rest and whoever comes later that it may try again. Invariants: a client alone waits for nothing but
the loop's own turns; nobody waits for longer than the micro-batch before took, from its end; order is kept. Everything
here runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter

from service.engine.items import Item
from service.problems import Problem, outcome_unknown, overloaded, unavailable

__all__ = ["Intake"]

_STUCK = "the store does not answer at present; nothing was changed"
_GRACE_SHARE = 0.8
_LONGEST_GRACE = 0.004  # seconds
_FEW = 32  # lists handed over that are not worth a look for answered ones


class Intake:
    """Items on their way to the engine.

    Parameters
    ----------
    loop
        Where everything here is called.
    queue
        Takes lists of items, and at the end the last call.
    max_pending
        Bound on the weight of what waits or is at work, to be passed by one request: what it takes of memory.
    max_waiting
        Bound on the requests among them: how long the last one waits.
    full
        A list of so many items waits for no more.
    stall_seconds
        After so long without an outcome the engine counts as stuck.
    at_once
        Begins with items right here, if that may be; asked only while the engine has nothing else to do.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: SimpleQueue[list[Item] | Callable[[], None]],
        *,
        max_pending: int,
        max_waiting: int,
        full: int,
        stall_seconds: float,
        at_once: Callable[[list[Item]], bool],
    ) -> None:
        self.pending = 0
        self.waiting = 0
        self._loop = loop
        self._queue = queue
        self._max_pending = max_pending
        self._max_waiting = max_waiting
        self._full = full
        self._stall_seconds = stall_seconds
        self._at_once = at_once
        self._stalled = False
        self._handed_over: list[list[Item]] = []
        self._tidy_at = _FEW
        self._watch: asyncio.TimerHandle | None = None
        self._gathered: list[Item] = []
        self._at_work = 0
        self._working_since = 0.0
        self._gathering = False
        self._expected = 0
        self._grace_ends = 0.0
        self._grace: asyncio.TimerHandle | None = None
        self._closed = False

    def submit(self, items: list[Item]) -> None:
        """Take the items of one request in.

        Raises
        ------
        Problem
            503 if too much is waiting or the engine is stopping.
        """
        if self._closed:
            raise unavailable("the service is stopping")
        if self._stalled:
            raise unavailable(_STUCK)
        weight = items[0].weight if len(items) == 1 else sum(item.weight for item in items)
        # What it weighs itself does not count, or a large body could not get in as long as anything else waits.
        if self.waiting >= self._max_waiting or self.pending >= self._max_pending:
            raise overloaded()
        self.pending += weight
        self.waiting += 1
        self._gathered.extend(items)
        if not self._at_work:
            self._gather()
        if self._grace is not None and len(self._gathered) >= min(self._expected, self._full):
            self._turn(0)

    def settled(self, items: int, weight: int, requests: int) -> None:
        """So many items have their outcomes, the last ones of so many requests."""
        self.pending -= weight
        self.waiting -= requests
        self._at_work -= items
        self._stalled = False
        now = perf_counter()
        took, self._working_since = now - self._working_since, now
        # Also if nobody waits yet: the first to come back would be at work alone while all others gather behind it.
        self._expected = len(self._gathered) + items
        self._grace_ends = now + min(_GRACE_SHARE * took, _LONGEST_GRACE)
        if self._gathered:
            self._gather()

    def busy_seconds(self) -> float:
        """How long the micro-batch at work has taken so far; 0 if none is at work."""
        return perf_counter() - self._working_since if self._at_work else 0.0

    def close(self, last: Callable[[], None]) -> None:
        """Hand over what is there, then the last call; refuse whatever comes later."""
        self._closed = True
        self._hand_over()
        self._queue.put(last)

    def _gather(self) -> None:
        if not self._gathering:
            self._gathering = True
            # The first turn only gets behind the requests that were read along with this one.
            self._loop.call_soon(self._turn, 0)

    def _turn(self, seen: int) -> None:
        """Hand over unless this turn of the event loop brought more, or answered clients may still come back."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        found = len(self._gathered)
        left = self._grace_ends - perf_counter() if found < self._expected else 0.0
        if found >= self._full or (found <= seen and left <= 0):
            self._gathering = False
            self._hand_over()
        elif found > seen:
            self._loop.call_soon(self._turn, found)
        else:
            # Looking at every turn would take the interpreter lock from the engine and the core from the clients.
            self._grace = self._loop.call_later(left, self._turn, found)

    def _hand_over(self) -> None:
        if self._gathered:
            idle = not self._at_work
            if idle:
                self._handed_over.clear()
                self._working_since = perf_counter()
            elif len(self._handed_over) >= self._tidy_at:
                self._tidy()
            self._handed_over.append(self._gathered)
            self._at_work += len(self._gathered)
            if self._watch is None:
                self._watch = self._loop.call_later(self._stall_seconds, self._check)
            items, self._gathered = self._gathered, []
            if not (idle and self._at_once(items)):
                self._queue.put(items)

    def _check(self) -> None:
        """Give nobody false hope once the engine has been at one micro-batch for too long."""
        self._watch = None
        if not self._at_work:
            return
        self._tidy()
        left = self._stall_seconds - self.busy_seconds()
        if left <= 0:
            self._stalled = True
            for items in self._handed_over:
                self._fail(items, outcome_unknown())
            self.pending -= sum(item.weight for item in self._gathered)
            self.waiting -= len({id(item.ticket) for item in self._gathered})
            self._fail(self._gathered, unavailable(_STUCK))
            self._gathered = []
        self._watch = self._loop.call_later(max(left, self._stall_seconds / 4), self._check)

    def _tidy(self) -> None:
        """Let go of what has been answered: an engine that never runs out of work would keep replies for long."""
        self._handed_over = [items for items in self._handed_over if not all(i.ticket.future.done() for i in items)]
        self._tidy_at = 2 * len(self._handed_over) + _FEW

    @staticmethod
    def _fail(items: list[Item], problem: Problem) -> None:
        for item in items:
            if not item.ticket.future.done():
                item.ticket.future.set_exception(problem)
