"""What the engine is asked, and what it answers.

Values only: an item names a stream and what to do with it; an outcome is what became of it. No HTTP, no JSON.
Invariant: every item gets exactly one outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forecaster import StreamState
from service.engine.coming import Coming
from service.engine.verdicts import Judgement
from service.models.served import ServedModel, Want
from service.problems import Problem
from service.store import IdempotencyKey, StreamRecord, Value

__all__ = [
    "HEAVIEST",
    "Bundle",
    "Create",
    "Delete",
    "Item",
    "Look",
    "Observe",
    "Outcome",
    "Precondition",
    "Render",
    "Result",
    "Single",
    "wanted",
]


HEAVIEST = 32_768
"""Observations that fill a micro-batch; a long history counts for no more, so that others have room beside it. Of one
stream, they are a second or two of folding."""


@dataclass(slots=True)
class Outcome:
    """What became of an item.

    Attributes
    ----------
    record
        The stream afterwards; before, for a deleted one.
    model
        The one model behind this outcome.
    judgement
        What became of observations.
    quantiles
        The forecast asked for, float64 [Q, H].
    created
        Whether there was no such stream before.
    reply
        The same as the item's `render` wrote it.
    state
        A copy of the stream's, if that was asked for.
    replayed
        Whether `reply` is one that was given before, under the item's key.
    places
        Where each observation lay in the distribution forecast for it, float64, one per observation; NaN for those
        that are missing, refused or known already. None if the request changed nothing.
    surprises
        How far out each of them lay: `forecaster.marginals.surprise` of `places`.
    refusal
        Why there is no forecast, though one was asked for with observations: they are taken all the same, and
        `quantiles` are of no level and no step.
    """

    record: StreamRecord
    model: ServedModel
    judgement: Judgement | None = None
    quantiles: npt.NDArray[np.float64] | None = None
    created: bool = False
    reply: bytes | None = None
    state: StreamState | None = None
    replayed: bool = False
    places: npt.NDArray[np.float64] | None = None
    surprises: npt.NDArray[np.float64] | None = None
    refusal: Problem | None = None


Result = Outcome | Problem
"""What an item gets."""

Render = Callable[[Outcome, Want], bytes]
"""Writes a forecast for whoever asked; runs while the disk works."""


class Precondition(NamedTuple):
    """What a write asks of the stream it meets; judged with the write itself, so nothing can come in between.

    Attributes
    ----------
    versions
        The stream is at one of these; None: at any. It exists in either case.
    absent
        Instead of all that: no such stream exists.

    Examples
    --------
    >>> Precondition((3, 4)).holds(4), Precondition(None).holds(None), Precondition(absent=True).holds(None)
    (True, False, True)
    """

    versions: tuple[int, ...] | None = None
    absent: bool = False

    def holds(self, version: int | None) -> bool:
        """Whether a stream at `version` will do; None = there is none."""
        if self.absent or version is None:
            return self.absent and version is None
        return self.versions is None or version in self.versions

    def __str__(self) -> str:
        if self.absent:
            return "no such stream to exist"
        if self.versions is None:
            return "the stream to exist"
        return f"version {' or '.join(map(str, self.versions))}"


class Single:
    """Gives one outcome to one waiting coroutine. Made and settled on the event loop."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settle(self, _item: Item, result: Result) -> bool:
        """Wake the coroutine, unless its client has gone. Whether it was the last outcome of the request: always."""
        if not self.future.done():
            if isinstance(result, Problem):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)
        return True


class Bundle:
    """Collects the outcomes of many items for one waiting coroutine, by `id`: the items themselves know this bundle."""

    __slots__ = ("future", "results", "waiting")

    def __init__(self, count: int) -> None:
        self.future: asyncio.Future[dict[int, Result]] = asyncio.get_running_loop().create_future()
        self.results: dict[int, Result] = {}
        self.waiting = count

    def settle(self, item: Item, result: Result) -> bool:
        """Keep one result; wake the coroutine with the last. Whether it was that."""
        self.results[id(item)] = result
        self.waiting -= 1
        if not self.waiting and not self.future.done():
            self.future.set_result(self.results)
        return not self.waiting


class Item:
    """Something to do with one stream."""

    __slots__ = ("__weakref__", "ticket", "unique_id")
    writes = True
    needs_state = True  # of its stream, as it is before

    def __init__(self, ticket: Single | Bundle, unique_id: str) -> None:
        self.ticket = ticket
        self.unique_id = unique_id

    @property
    def weight(self) -> int:
        """What it takes of the room for what waits."""
        return 1


class Look(Item):
    """Describe a stream, with a forecast if wanted, and then with a copy of its state if that is wanted too."""

    __slots__ = ("copy", "future", "render", "want")
    writes = False

    def __init__(
        self,
        ticket: Single | Bundle,
        unique_id: str,
        want: Want | None = None,
        render: Render | None = None,
        future: Coming | None = None,
        *,
        copy: bool = False,
    ) -> None:
        super().__init__(ticket, unique_id)
        self.want = want
        self.render = render
        self.future = future
        self.copy = copy


class _Carrying(Item):
    """Something to do with observations of one stream."""

    __slots__ = ("precondition", "steps", "values")

    def __init__(
        self,
        ticket: Single | Bundle,
        unique_id: str,
        steps: list[int],
        values: list[Value],
        precondition: Precondition | None,
    ) -> None:
        super().__init__(ticket, unique_id)
        self.steps = steps
        self.values = values
        self.precondition = precondition

    @property
    def weight(self) -> int:
        """Observations it carries, up to the most that count."""
        return min(len(self.steps), HEAVIEST)


class Observe(_Carrying):
    """Take observations; all or none of them if `whole`, and once only if under a `key`.

    Each is placed in what was forecast for it if the caller wants it `placed`. What cannot be forecast costs the
    forecast alone; `refusal` says so beforehand.
    """

    __slots__ = ("future", "key", "placed", "refusal", "render", "revise", "want", "whole")

    def __init__(
        self,
        ticket: Single | Bundle,
        unique_id: str,
        steps: list[int],
        values: list[Value],
        *,
        revise: bool = False,
        whole: bool = True,
        placed: bool = True,
        want: Want | None = None,
        refusal: Problem | None = None,
        render: Render | None = None,
        future: Coming | None = None,
        precondition: Precondition | None = None,
        key: IdempotencyKey | None = None,
    ) -> None:
        super().__init__(ticket, unique_id, steps, values, precondition)
        self.key = key
        self.render = render
        self.revise = revise
        self.whole = whole
        self.placed = placed
        self.want = want
        self.refusal = refusal
        self.future = future


class Create(_Carrying):
    """Create or replace a stream, whatever its state; `steps` ascend strictly.

    Attributes
    ----------
    warmed
        Its state, if it was folded beforehand, and the key of the model.
    """

    __slots__ = ("static", "warmed")
    needs_state = False

    def __init__(
        self,
        ticket: Single | Bundle,
        unique_id: str,
        steps: list[int],
        values: list[Value],
        precondition: Precondition | None = None,
        static: str | None = None,
    ) -> None:
        super().__init__(ticket, unique_id, steps, values, precondition)
        self.static = static
        self.warmed: tuple[str, StreamState] | None = None

    @property
    def weight(self) -> int:
        """Steps of its history, up to the most that count: gaps are folded like values."""
        return min(self.steps[-1] - self.steps[0] + 1, HEAVIEST)

    def state_under(self, key: str) -> StreamState | None:
        """Its state under a model, if it comes with that."""
        return self.warmed[1] if self.warmed is not None and self.warmed[0] == key else None


class Delete(Item):
    """Forget a stream and its log, whatever its state."""

    __slots__ = ("precondition",)
    needs_state = False

    def __init__(self, ticket: Single | Bundle, unique_id: str, precondition: Precondition | None = None) -> None:
        super().__init__(ticket, unique_id)
        self.precondition = precondition


def wanted(item: Item) -> Want | None:
    """The forecast an item wants."""
    return item.want if isinstance(item, Observe | Look) else None
