"""What Ctrl-C and SIGTERM do to a command: an exception each, put off where it would leave something half-done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Terminated", "terminable", "undisturbed"]

_BOTH = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """By SIGTERM, and otherwise what Ctrl-C is."""


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, as `Terminated`, whatever a library makes of it on the way."""
    if not _is_main():
        yield
        return
    asked = False

    def end(*_: object) -> None:
        nonlocal asked
        asked = True
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt as error:
        if asked and not isinstance(error, Terminated):
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put both off until the block is done: amid a transaction they would leave a database locked. Twice is at once."""
    before = {number: found for number in _BOTH if callable(found := signal.getsignal(number))}
    if not _is_main():
        yield
        return
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        asked.append(number)
        restore()

    def restore() -> None:
        for number, found in before.items():
            signal.signal(number, found)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()
        # Also where the block fails: whoever catches that would go on as if nobody had asked.
        if asked:
            before[signal.Signals(asked[0])](asked[0], None)
