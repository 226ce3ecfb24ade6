"""Requests with an `Idempotency-Key` that are at work in this process: a second one of the same name is told to wait.

It keeps names and nothing else; what was answered is the store's to know. Used on the event loop only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.problems import Problem

__all__ = ["AtWork"]


class AtWork:
    """Names of requests at work."""

    def __init__(self) -> None:
        self._names: set[tuple[str, str]] = set()

    @contextmanager
    def alone(self, unique_id: str, key: str) -> Iterator[None]:
        """While this request is at work.

        Raises
        ------
        Problem
            409 if one of the same name is.
        """
        name = (unique_id, key)
        if name in self._names:
            detail = f"a request with Idempotency-Key {key!r} is still at work; send this one again later"
            raise Problem(409, "still-running", detail, headers={"retry-after": "1"})
        self._names.add(name)
        try:
            yield
        finally:
            self._names.discard(name)
