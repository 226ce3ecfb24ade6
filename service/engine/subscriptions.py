"""Who waits for a change of which stream: told when one was committed here, and never waited for.

Readers are admitted once and stay for long, so where API keys have changed all of them end, come back and are asked
anew.

It keeps one flag per reader and no outcomes, so a slow reader costs nothing and finds the latest when it looks. Used on
the event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["Subscriptions"]


class Subscriptions:
    """Readers by the stream they read."""

    def __init__(self) -> None:
        self.closed = False
        self.term = 0  # readers of an earlier one are to end
        self._by_stream: dict[str, set[asyncio.Event]] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many readers there are."""
        return self._count

    @contextmanager
    def to(self, unique_id: str) -> Iterator[asyncio.Event]:
        """A flag that is set whenever the stream may have changed."""
        flag = asyncio.Event()
        readers = self._by_stream.setdefault(unique_id, set())
        readers.add(flag)
        self._count += 1
        try:
            yield flag
        finally:
            self._count -= 1
            readers.discard(flag)
            if not readers and self._by_stream.get(unique_id) is readers:
                del self._by_stream[unique_id]

    def changed(self, unique_ids: Iterable[str]) -> None:
        """These streams have changed."""
        for unique_id in unique_ids:
            for flag in self._by_stream.get(unique_id, ()):
                flag.set()

    def wake_all(self) -> None:
        """All of them have, for all that is known."""
        self.changed(list(self._by_stream))

    def renew(self) -> None:
        """Let all readers end who are there now."""
        self.term += 1
        self.wake_all()

    def close(self) -> None:
        """Let all readers end, and take no more."""
        self.closed = True
        self.renew()
