"""Questions to a store beside the engine: each in a thread of its own, and nobody waits for one that hangs.

It knows threads, and of SQL only that it fails. A database that hangs would keep the threads of a pool, and with them
whoever else is served from it; so questions have none in common, and few are asked at a time.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from service.errors import first_line
from service.problems import unavailable
from service.store import Store

__all__ = ["Probe", "Questions"]

_T = TypeVar("_T")


class Questions:
    """Asks in turn.

    Parameters
    ----------
    places
        Questions at a time; one that hangs keeps its place until it ends.
    patience
        Seconds to wait, for a place and for the answer.
    """

    def __init__(self, places: int, patience: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._patience = patience

    async def ask(self, question: Callable[[], _T]) -> _T:
        """The answer, or what the question raises.

        Raises
        ------
        Problem
            503 if there is none in time, or the store is away.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._places.acquire()
                return await _apart(question, "question", self._places.release)
        except TimeoutError as error:
            raise unavailable("the store does not answer at present") from error
        except (SQLAlchemyError, sqlite3.Error) as error:
            logging.getLogger("service").error("the store failed: %s", first_line(error))
            raise unavailable("the store cannot be read at present") from error


class Probe:
    """Asks whether a store takes data; once at a time, since a question that hangs holds a thread for ever.

    Parameters
    ----------
    store
        Is asked to write something durably.

    Attributes
    ----------
    seconds
        What that took the last time.
    """

    def __init__(self, store: Store) -> None:
        self.seconds = 0.0
        self._store = store
        self._answer: asyncio.Future[str | None] | None = None

    async def failure(self, patience: float) -> str | None:
        """What is wrong; None if a small write was durable just now."""
        if self._answer is None or self._answer.done():  # an answer that nobody waited for is an old one
            self._answer = _apart(self._ask, "probe")
        answer = self._answer
        done, _ = await asyncio.wait([answer], timeout=patience)
        if not done:
            return f"does not answer within {patience:g} s"
        if self._answer is answer:  # else another that waited for it has asked anew
            self._answer = None
        return answer.result()

    def _ask(self) -> str | None:
        started = time.perf_counter()
        try:
            self._store.probe()
        except Exception as error:
            return f"not writable: {getattr(error, 'orig', error)}".splitlines()[0]
        self.seconds = time.perf_counter() - started
        return None


def _apart(question: Callable[[], _T], name: str, ended: Callable[[], None] | None = None) -> asyncio.Future[_T]:
    """The answer to come of a question, asked in a thread of this name; `ended` is called even if nobody waits."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_T] = loop.create_future()

    def work() -> None:
        try:
            found = question()
        except Exception as error:
            told(partial(answer.set_exception, error))
        else:
            told(partial(answer.set_result, found))

    def told(settle: Callable[[], None]) -> None:
        def tell() -> None:
            if ended is not None:
                ended()
            if not answer.done():  # else nobody waits for it any more
                settle()

        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:
            pass  # the loop has been closed

    threading.Thread(target=work, name=name, daemon=True).start()
    return answer
