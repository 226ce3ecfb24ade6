"""Questions to a store beside the engine: few at a time, and nobody waits for one that hangs.

It knows threads and no SQL. Each question has a thread of its own, as a database that hangs would keep those of a pool,
and with them whoever else is served from it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from service.problems import unavailable

__all__ = ["Questions"]

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
            503 if there is none in time.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._places.acquire()
                loop = asyncio.get_running_loop()
                answer: asyncio.Future[_T] = loop.create_future()
                arguments = (loop, answer, question)
                threading.Thread(target=self._answer, args=arguments, name="question", daemon=True).start()
                return await answer
        except TimeoutError as error:
            raise unavailable("the store does not answer at present") from error

    def _answer(
        self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any], question: Callable[[], object]
    ) -> None:
        found, raised = None, None
        try:
            found = question()
        except Exception as error:
            raised = error

        def tell() -> None:
            self._places.release()
            if answer.done():
                return  # nobody waits for it any more
            if raised is None:
                answer.set_result(found)
            else:
                answer.set_exception(raised)

        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:
            pass  # the loop has been closed
