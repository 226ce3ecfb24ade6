"""What Ctrl-C and SIGTERM do to a command: an exception each, put off where it would leave something half-done."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ended", "interruptible", "undisturbed"]

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_BOTH = tuple(_WORDS)
_AGAIN_SECONDS = 0.05


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end the block as `KeyboardInterrupt`; neither where this process was started ignoring it.

    Yields the signals that came, which tell of them whatever a library makes of the exception on its way: Lightning an
    exit, Typer a status. One that comes where nothing can be raised, as while a generator is collected, comes again.
    """
    asked: list[int] = []
    if not _is_main():
        yield asked
        return

    def end(number: int, _frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    def unheard(what: sys.UnraisableHookArgs) -> None:
        if not (asked and isinstance(what.exc_value, KeyboardInterrupt)):
            hook(what)
            return
        later = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (threading.main_thread().ident, asked[0]))
        again.append(later)
        later.start()

    before = {number: found for number in _BOTH if (found := signal.getsignal(number)) is not signal.SIG_IGN}
    hook, again = sys.unraisablehook, list[threading.Timer]()
    try:
        sys.unraisablehook = unheard
        for number in before:
            signal.signal(number, end)
        yield asked
    finally:
        sys.unraisablehook = hook
        for later in again:
            later.cancel()
            later.join()
        for number, found in before.items():
            signal.signal(number, found or signal.SIG_DFL)


def ended(asked: list[int]) -> tuple[str, int]:
    """One word and an exit status for who was asked to end, by Ctrl-C if no signal is known."""
    number = signal.Signals(asked[0] if asked else signal.SIGINT)
    return _WORDS[number], 128 + number


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
