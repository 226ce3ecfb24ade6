"""Errors an operator or the engine can act on; the HTTP side has its own in `problems`.

::

    ServiceError
    ├── StoreError          the store cannot be used: newer schema, other frequency, unreachable
    ├── ModelError          no usable model behind the reference
    ├── StaleStreams        another process changed these streams first; read again and retry
    ├── UnknownOutcome      the store failed while a transaction ended; it may be kept or undone
    └── GivenUp             nobody waits any longer for what was being done
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "GivenUp",
    "ModelError",
    "ServiceError",
    "StaleStreams",
    "StoreError",
    "UnknownOutcome",
    "first_line",
    "let_go",
]

_CREDENTIALS = re.compile(r"//[^/\s]+@")


class ServiceError(Exception):
    """Root of the service's own errors; the text is one clear line."""


class StoreError(ServiceError):
    """The store cannot be used."""


class ModelError(ServiceError):
    """The model reference leads to nothing that can serve."""


class StaleStreams(ServiceError):
    """What is in memory about these streams is out of date."""

    def __init__(self, unique_ids: Iterable[str]) -> None:
        self.unique_ids = list(unique_ids)
        super().__init__(f"{len(self.unique_ids)} streams were changed by another process")


class UnknownOutcome(ServiceError):
    """The store failed while a transaction ended, so nobody knows whether it is kept."""


class GivenUp(ServiceError):
    """Nobody waits any longer for what was being done."""


def let_go(error: BaseException | None) -> None:
    """Take from an error, and from what caused it, the frames that it passed through, once it has been told.

    They hold what its request held and mostly, by way of a future, the error itself: none of that would go before the
    garbage collector looks, which is seldom here.
    """
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    r"""What an error says, in one line, without users and passwords of URLs; its name where it says nothing.

    Examples
    --------
    >>> first_line(OSError("disk full\nat byte 7")), first_line(MemoryError())
    ('disk full', 'MemoryError')
    >>> first_line(OSError("no answer from http://me:secret@registry/api"))
    'no answer from http://registry/api'
    """
    return _CREDENTIALS.sub("//", (str(error).splitlines() or [type(error).__name__])[0])
