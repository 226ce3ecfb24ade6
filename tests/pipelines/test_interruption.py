"""Being asked to end, amid what must not be cut short."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from pipelines.interruption import ended, interruptible, undisturbed

pytestmark = pytest.mark.usefixtures("interruptible")


def test_who_asks_amid_a_block_is_heard_after_it() -> None:
    done = []

    def asked() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        asked()
    assert done == [1]


def test_who_asks_amid_a_block_that_fails_is_heard_whoever_catches_the_failure() -> None:
    def failing() -> None:
        try:
            with undisturbed():
                signal.raise_signal(signal.SIGINT)
                raise OSError("the server is away")
        except OSError:
            pass

    with pytest.raises(KeyboardInterrupt):
        failing()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_asks_where_nothing_can_be_raised_is_heard_after_it(
    capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    class Collected:
        def __del__(self) -> None:
            signal.raise_signal(number)

    asked: list[int] = []

    def collecting() -> None:
        with interruptible() as signals:
            one = Collected()
            try:
                del one
                time.sleep(30)
            finally:
                asked.extend(signals)

    before, hook = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)], sys.unraisablehook

    with pytest.raises(KeyboardInterrupt):
        collecting()

    assert ended(asked)[1] == 128 + number
    assert capfd.readouterr().err == ""
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert sys.unraisablehook is hook
