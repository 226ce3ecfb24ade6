"""Being asked to end, amid what must not be cut short."""

from __future__ import annotations

import signal

import pytest

from pipelines.interruption import undisturbed

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
