"""How items gather on the event loop: in order, at once when idle, bounded, and all handed over at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from queue import SimpleQueue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import intake as intake_module
from service.engine.intake import Intake
from service.engine.items import Item, Outcome, Single
from service.problems import Problem
from tests.service.kit import run

Queue = SimpleQueue[list[Item] | Callable[[], None]]


class _Heavy(Item):
    """An item of a given weight."""

    __slots__ = ("_weight",)

    def __init__(self, unique_id: str, weight: int) -> None:
        super().__init__(None, unique_id)  # type: ignore[arg-type]
        self._weight = weight

    @property
    def weight(self) -> int:
        return self._weight


def _item(number: int, weight: int = 1) -> Item:
    return _Heavy(str(number), weight)


def _intake(queue: Queue, **bounds: int) -> Intake:
    return Intake(
        asyncio.get_running_loop(),
        queue,
        at_once=lambda _items: False,
        **({"max_pending": 10**6, "max_waiting": 10**6, "full": 1000, "stall_seconds": 30} | bounds),
    )


class _Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


async def _until(done: Callable[[], bool]) -> None:
    for _ in range(10_000_000):
        if done():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happened")


def test_an_idle_engine_gets_at_once_what_one_turn_of_the_loop_brought():
    async def story() -> None:
        queue: Queue = SimpleQueue()
        intake = _intake(queue)
        items = [_item(n) for n in range(5)]
        for item in items:
            asyncio.get_running_loop().call_soon(intake.submit, [item])
        await _until(lambda: not queue.empty())
        assert queue.get_nowait() == items
        assert queue.empty()

    run(story())


def test_while_the_engine_works_the_rest_gathers_and_goes_when_it_is_done():
    async def story() -> None:
        queue: Queue = SimpleQueue()
        intake = _intake(queue)
        intake.submit([_item(0)])
        await _until(lambda: not queue.empty())
        queue.get_nowait()
        later = [_item(n) for n in range(1, 4)]
        for item in later:
            intake.submit([item])
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert queue.empty(), "the engine is at work"
        intake.settled(1, 1, 1)
        # Nobody comes back, and yet the wait ends.
        await _until(lambda: not queue.empty())
        assert queue.get_nowait() == later

    run(story())


async def _answered(intake: Intake, queue: Queue, count: int, seconds: float) -> None:
    """So many items go to the engine together and take so long."""
    for number in range(count):
        intake.submit([_item(number)])
    await _until(lambda: not queue.empty())
    assert len(queue.get_nowait()) == count
    time.sleep(seconds)
    intake.settled(count, count, count)


def test_the_first_to_come_back_waits_for_the_others_that_were_answered_with_it(monkeypatch):
    """Alone at work, it would keep all others waiting for as long as they took together."""
    monkeypatch.setattr(intake_module, "_LONGEST_GRACE", 1e9)

    async def story() -> None:
        queue: Queue = SimpleQueue()
        intake = _intake(queue)
        await _answered(intake, queue, 3, seconds=50)
        back = [_item(n) for n in range(3)]
        for item in back:
            for _ in range(5):
                await asyncio.sleep(0)
            assert queue.empty(), "not all are back"
            intake.submit([item])
        await _until(lambda: not queue.empty())
        assert queue.get_nowait() == back

    passed = _Clock()
    monkeypatch.setattr(intake_module, "perf_counter", passed.read)
    monkeypatch.setattr(time, "sleep", passed.wait)
    run(story())


@pytest.mark.parametrize("took", [0.003, 60.0])
def test_whoever_is_waited_for_in_vain_is_not_waited_for_long(monkeypatch, took):
    """No longer than what the others took, nor than a few milliseconds."""
    passed = _Clock()
    monkeypatch.setattr(intake_module, "perf_counter", passed.read)
    monkeypatch.setattr(time, "sleep", passed.wait)

    async def story() -> None:
        queue: Queue = SimpleQueue()
        intake = _intake(queue)
        await _answered(intake, queue, 2, seconds=took)
        intake.submit([_item(0)])
        for _ in range(5):
            await asyncio.sleep(0)
        assert intake._grace is not None
        assert 0 < intake._grace.when() - asyncio.get_running_loop().time() <= min(took, 0.004)
        passed.wait(0.004)
        await _until(lambda: not queue.empty())

    run(story())


def test_a_client_alone_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(intake_module, "_LONGEST_GRACE", 1e9)
    passed = _Clock()
    monkeypatch.setattr(intake_module, "perf_counter", passed.read)
    monkeypatch.setattr(time, "sleep", passed.wait)

    async def story() -> None:
        queue: Queue = SimpleQueue()
        intake = _intake(queue)
        for _ in range(3):
            await _answered(intake, queue, 1, seconds=50)
            assert intake._grace is None

    run(story())


def test_of_an_engine_that_never_runs_out_of_work_nothing_is_kept_that_was_answered():
    """What was answered holds its reply."""

    async def story() -> None:
        queue: Queue = SimpleQueue()
        intake = _intake(queue, full=1)
        waiting: list[Item] = []
        for number in range(2000):
            item = Item(Single(), str(number))
            waiting.append(item)
            intake.submit([item])
            if intake._at_work:
                intake._gather()
            await _until(lambda: not queue.empty())
            queue.get_nowait()
            if len(waiting) > 20:
                intake.settled(1, 1, int(waiting.pop(0).ticket.settle(item, Outcome(None, None))))
            assert intake._at_work
        assert len(intake._handed_over) <= 100

    run(story())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.integers(0, 3)), max_size=30), st.integers(1, 5))
def test_every_item_is_handed_over_once_and_in_order(steps: list[tuple[int, bool, int]], full: int):
    """Whatever the turns of loop and engine."""

    async def story() -> None:
        queue: Queue = SimpleQueue()
        intake = _intake(queue, full=full)
        sent: list[Item] = []
        found: list[Item] = []
        lasts: set[Item] = set()

        def settle(entry: list[Item]) -> None:
            found.extend(entry)
            intake.settled(len(entry), len(entry), sum(item in lasts for item in entry))

        def work() -> None:
            while not queue.empty():
                entry = queue.get_nowait()
                assert isinstance(entry, list)
                assert entry, "an empty list wakes the engine for nothing"
                settle(entry)

        for count, engine_works, turns in steps:
            items = [_item(len(sent) + n) for n in range(count)]
            sent += items
            lasts.add(items[-1])
            intake.submit(items)
            for _ in range(turns):
                await asyncio.sleep(0)
            if engine_works:
                work()
        closing: list[int] = []
        intake.close(lambda: closing.append(1))
        while not queue.empty():
            entry = queue.get_nowait()
            if isinstance(entry, list):
                assert not closing
                settle(entry)
            else:
                entry()
        assert found == sent
        assert closing == [1]
        assert (intake.pending, intake.waiting) == (0, 0)

    run(story())


def test_too_much_is_refused_but_a_large_body_gets_in_while_others_wait():
    async def story() -> None:
        intake = _intake(SimpleQueue(), max_pending=10)
        intake.submit([_item(3, weight=9)])
        intake.submit([_item(0, weight=50)])
        intake.settled(1, 9, 1)
        with pytest.raises(Problem, match="too many") as refused:
            intake.submit([_item(1)])
        assert refused.value.status == 503
        intake.settled(1, 50, 1)
        intake.submit([_item(2)])
        assert intake.pending == 1

    run(story())


def test_an_engine_that_goes_on_is_not_stuck_however_much_waits_for_it():
    """Many writes to one stream are as many micro-batches, while nothing new is handed over."""

    async def story() -> None:
        intake = _intake(SimpleQueue(), stall_seconds=10)
        intake.submit([_item(0), _item(1)])
        await _until(lambda: bool(intake._at_work))
        intake._working_since -= 60
        assert intake.busy_seconds() > 59
        intake.settled(1, 1, 0)
        assert intake.busy_seconds() < 10
        intake.settled(1, 1, 1)
        assert intake.busy_seconds() == 0

    run(story())


def test_no_more_requests_wait_than_there_are_places_however_little_they_carry():
    async def story() -> None:
        intake = _intake(SimpleQueue(), max_waiting=2)
        intake.submit([_item(n) for n in range(50)])
        intake.submit([_item(50)])
        with pytest.raises(Problem, match="too many") as refused:
            intake.submit([_item(51)])
        assert (refused.value.status, refused.value.headers) == (503, {"retry-after": "1"})
        intake.settled(49, 49, 0)
        with pytest.raises(Problem, match="too many"):
            intake.submit([_item(51)])
        intake.settled(1, 1, 1)
        intake.submit([_item(51)])
        assert intake.waiting == 2

    run(story())


def test_after_closing_everything_is_refused():
    async def story() -> None:
        queue: Queue = SimpleQueue()
        intake = _intake(queue)
        intake.submit([_item(0)])
        intake.close(lambda: None)
        with pytest.raises(Problem, match="stopping"):
            intake.submit([_item(1)])
        assert [type(queue.get_nowait()).__name__ for _ in range(queue.qsize())] == ["list", "function"]

    run(story())
