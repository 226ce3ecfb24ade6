"""A transaction in two parts, which two threads may run: its statements, and its end.

It knows the course of one transaction, not what it writes. Invariant: unless it is ended, nothing is written.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NoReturn

from service.store.records import StreamRecord
from service.store.replies import StoredReply

__all__ = ["Course", "Transaction"]

Course = Generator[None, Sequence[StoredReply], list[StreamRecord]]
"""Runs the statements, then waits for replies to keep, ends and returns the records of created streams."""


class Transaction:
    """One whose statements have run, and which waits for its end.

    Parameters
    ----------
    course
        Not begun; the statements run here, and what they raise is raised.
    """

    def __init__(self, course: Course) -> None:
        self._course = course
        next(course)

    def end(self, replies: Sequence[StoredReply] = ()) -> list[StreamRecord]:
        """Keep replies and make it durable; records of the created streams, with their ids.

        Raises
        ------
        UnknownOutcome
            The database failed while the transaction ended, or the connection to it did.
        SQLAlchemyError
            The database failed before that; nothing was written.
        """
        try:
            self._course.send(replies)
        except StopIteration as ended:
            found: list[StreamRecord] = ended.value
            return found
        raise RuntimeError("a transaction has gone on beyond its end")

    def undo(self, error: BaseException) -> NoReturn:
        """Write nothing, and raise what was the reason."""
        self._course.throw(error)
        raise RuntimeError("a transaction has gone on after it was undone")
