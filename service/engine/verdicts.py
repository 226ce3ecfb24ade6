"""The rules of event time for one stream, as a pure function of what is known and what arrives.

It knows no store, no model and no clock. Words, one per observation:

========== ==========================================================================================
accepted   new, at the end of the stream; a gap before it is filled with missing steps
late       a step that had been filled as missing now has its value (or is confirmed as missing)
duplicate  the same value for the same ds again: acknowledged, nothing changes
revised    another value for a known ds, where the caller asked to revise
conflict   another value for a known ds, where the caller did not
too_old    before the first step of the stream's retained log
gap_too_long  further after the stream's last step than may be filled
busy       more steps after it than are folded at once, gaps included: to be sent again when those before are taken
========== ==========================================================================================

A value is y, with covariates if there are any; one without them says nothing about covariates that are known.
(`invalid`, `unknown_stream`, and `busy` of a stream that cannot be written at present, are decided before it is looked
at.) Invariant: once what was `busy` has been sent again, the outcome depends on the set of observations, not on how
it was cut into requests, duplicated or, within the gap limit, shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from service.store.values import Value, merged

__all__ = ["TAKEN", "Judgement", "Verdict", "judge"]


class Verdict(StrEnum):
    """What became of one observation."""

    ACCEPTED = "accepted"
    LATE = "late"
    DUPLICATE = "duplicate"
    REVISED = "revised"
    CONFLICT = "conflict"
    TOO_OLD = "too_old"
    GAP_TOO_LONG = "gap_too_long"
    UNKNOWN_STREAM = "unknown_stream"
    BUSY = "busy"
    INVALID = "invalid"

    @property
    def refused(self) -> bool:
        """Whether the observation was not taken."""
        return self not in TAKEN


TAKEN = (Verdict.ACCEPTED, Verdict.LATE, Verdict.DUPLICATE, Verdict.REVISED)
"""Of observations that are in the log now, in the order of replies."""


@dataclass(slots=True)
class Judgement:
    """What a set of observations does to one stream.

    Attributes
    ----------
    verdicts
        One per observation, in the order given.
    inserted, updated
        step → value of new and of changed rows of the log; y None = missing.
    filled
        Steps between the old and the new last step that nobody reported.
    last_step
        The stream's last step afterwards.
    refuses
        Whether an observation is not taken.
    """

    verdicts: list[Verdict]
    last_step: int
    filled: int = 0
    inserted: dict[int, Value] = field(default_factory=dict)
    updated: dict[int, Value] = field(default_factory=dict)
    refuses: bool = False

    @property
    def changes(self) -> bool:
        """Whether anything is to be stored."""
        return bool(self.inserted or self.updated)


def judge(
    first_step: int,
    last_step: int,
    known: Mapping[int, Value],
    steps: list[int],
    values: Sequence[Value],
    *,
    revise: bool,
    max_gap: int,
    reach: int,
) -> Judgement:
    """Judge observations against a stream's log.

    Parameters
    ----------
    first_step, last_step
        Where the stream's retained log begins and ends.
    known
        step → value of the log's rows, at least of those among `steps`.
    steps, values
        The observations, in any order; None = missing.
    revise
        Whether another value for a known ds replaces it.
    max_gap
        Most missing steps filled in one go.
    reach
        Most steps, filled ones included, by which the stream grows.

    Examples
    --------
    >>> found = judge(0, 4, {4: 1.0}, [4, 6, 6], [1.0, 2.0, 3.0], revise=False, max_gap=10, reach=100)
    >>> [verdict.value for verdict in found.verdicts], found.filled, found.inserted
    (['duplicate', 'accepted', 'conflict'], 1, {6: 2.0})
    """
    count, furthest = len(steps), last_step + reach
    if count and 0 <= (gap := steps[0] - last_step - 1) <= max_gap and steps[-1] == steps[0] + count - 1 <= furthest:
        if count == 1 or steps == list(range(steps[0], steps[0] + count)):  # the usual case: nothing to weigh
            return Judgement([Verdict.ACCEPTED] * count, steps[-1], gap, dict(zip(steps, values, strict=True)))
    verdicts = [Verdict.INVALID] * count
    out = Judgement(verdicts, last_step)
    inserted, updated = out.inserted, out.updated
    # In order of time, so that a shuffled request fills no gap that its own observations close.
    for i in sorted(range(count), key=steps.__getitem__):
        step, value = steps[i], values[i]
        gap = step - last_step - 1
        if gap > max_gap:
            verdicts[i] = Verdict.GAP_TOO_LONG
        elif step > furthest:
            verdicts[i] = Verdict.BUSY
            last_step = step
        elif step > last_step:
            verdicts[i] = Verdict.ACCEPTED
            out.filled += gap
            last_step = out.last_step = step
            inserted[step] = value
        elif step < first_step:
            verdicts[i] = Verdict.TOO_OLD
        elif step in inserted or step in known:
            present = inserted[step] if step in inserted else updated.get(step, known.get(step))
            value = merged(present, value)
            if present == value:
                verdicts[i] = Verdict.DUPLICATE
            elif not revise:
                verdicts[i] = Verdict.CONFLICT
            else:
                verdicts[i] = Verdict.REVISED
                (inserted if step in inserted else updated)[step] = value
        else:
            verdicts[i] = Verdict.LATE
            inserted[step] = value
    out.refuses = any(verdict.refused for verdict in verdicts)
    return out
