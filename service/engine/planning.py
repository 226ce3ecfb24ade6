"""What each item of a micro-batch does, or why it is refused, before anything is computed or changed.

It knows residents, the log and the rules of event time; no states and no transaction. Invariant: an item is planned or
has its result, never both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from forecaster import InputError
from service.engine.folding import LONGEST
from service.engine.items import Create, Delete, Item, Look, Observe, Precondition, Result, wanted
from service.engine.residents import Resident, Residents
from service.engine.verdicts import Judgement, Verdict, judge
from service.models.served import Want
from service.problems import Problem, conflict, from_library, unknown_stream
from service.store import Store, StreamRecord
from service.store.values import Value, count_missing

__all__ = ["Plan", "Planner", "Step"]

Float = npt.NDArray[np.float64]


@dataclass(slots=True)
class Step:
    """One item on its way: what it does to which stream."""

    item: Item
    resident: Resident
    record: StreamRecord
    judgement: Judgement | None = None
    places: Float | None = None
    surprises: Float | None = None
    folded: int = 0  # steps, anew
    refusal: Problem | None = None
    """Why there is no forecast with what was observed."""

    @property
    def inserted(self) -> dict[int, Value]:
        """What it adds to the log: step → value."""
        return {} if self.judgement is None else self.judgement.inserted

    @property
    def want(self) -> Want | None:
        """The forecast that it gets."""
        return wanted(self.item) if self.refusal is None else None

    @property
    def follows(self) -> bool:
        """Whether it adds the one step after the stream's last."""
        return self.record.last_step == self.resident.record.last_step + 1 and len(self.inserted) == 1


@dataclass
class Plan:
    """The items by what they need."""

    appends: list[Step] = field(default_factory=list)
    rewinds: list[Step] = field(default_factory=list)
    reads: list[Step] = field(default_factory=list)
    creates: list[tuple[Create, StreamRecord | None]] = field(default_factory=list)
    deletes: list[tuple[Delete, StreamRecord]] = field(default_factory=list)
    filled: int = 0
    """Steps that nobody observed, of all that is appended and changed."""

    @cached_property
    def rows(self) -> torch.Tensor:
        """Rows of the slab of what is appended; ask when the plan is made."""
        return torch.from_numpy(np.array([step.resident.row for step in self.appends], dtype=np.int64))

    @property
    def placed(self) -> bool:
        """Whether places are asked for of what is appended; together, they cost no more than one alone."""
        return any(isinstance(step.item, Observe) and step.item.placed for step in self.appends)


class Planner:
    """Plans one micro-batch.

    Parameters
    ----------
    residents
        Streams in memory, with the model that is to answer.
    store
        The truth about earlier observations.
    max_gap
        Most missing steps filled in one go.
    results
        Gets the refusals.
    """

    def __init__(self, residents: Residents, store: Store, max_gap: int, results: dict[Item, Result]) -> None:
        self._residents = residents
        self._model = residents.model
        self._store = store
        self._max_gap = max_gap
        self._reach = LONGEST + max_gap  # a full item after a gap
        self._results = results

    def plan(self, items: Sequence[Item]) -> Plan:
        """Say what items of distinct streams do, each stream touched."""
        plan = Plan()
        observed: list[tuple[Observe, Resident]] = []
        for item in items:
            resident = self._residents.get(item.unique_id)
            record = self._residents.record(item.unique_id) if resident is None else resident.record
            if not self._meets(item, record):
                continue
            if isinstance(item, Create):
                plan.creates.append((item, record))
            elif isinstance(item, Delete) and record is not None:
                plan.deletes.append((item, record))
            elif resident is None:
                self._results[item] = unknown_stream(item.unique_id)
            elif isinstance(item, Observe):
                observed.append((item, resident))
            else:
                assert isinstance(item, Look)
                if refusal := self._refused_want(item, resident.record.last_step):
                    self._results[item] = refusal
                    continue
                plan.reads.append(Step(item, resident, resident.record))
        self._judge(plan, observed)
        return plan

    def _meets(self, item: Item, record: StreamRecord | None) -> bool:
        """Whether the item's precondition holds; if not, its result says so."""
        precondition: Precondition | None = getattr(item, "precondition", None)
        found = record.version if record else None
        if precondition is None or precondition.holds(found):
            return True
        where = "does not exist" if found is None else f"is at version {found}"
        self._results[item] = Problem(
            412,
            "version-mismatch",
            f"stream {item.unique_id!r} {where}; the request asks for {precondition}",
            version=found,
        )
        return False

    def _judge(self, plan: Plan, observed: list[tuple[Observe, Resident]]) -> None:
        looked_up = {
            resident.record.id: [step for step in item.steps if step <= resident.record.last_step]
            for item, resident in observed
            if min(item.steps) <= resident.record.last_step
        }
        known = self._store.known(looked_up) if looked_up else {}
        for item, resident in observed:
            record = resident.record
            judgement = judge(
                record.log_step,
                record.last_step,
                known.get(record.id, {}),
                item.steps,
                item.values,
                revise=item.revise,
                max_gap=self._max_gap,
                reach=self._reach,
            )
            if item.whole and judgement.refuses and (refusal := self._refusal(item, record, judgement)):
                self._results[item] = refusal
                continue
            after = record
            plan.filled += judgement.filled
            if judgement.changes:
                inserted, updated = judgement.inserted, judgement.updated
                missing = record.missing + count_missing(list(inserted.values()))
                if updated:
                    before = known[record.id]
                    missing += count_missing(list(updated.values())) - count_missing([before[step] for step in updated])
                after = StreamRecord(
                    record.id,
                    record.unique_id,
                    record.first_step,
                    judgement.last_step,
                    record.version + 1,
                    record.observations + len(inserted),
                    missing,
                    record.static,
                    record.retained_step,
                )
            # What is observed is never refused for what a forecast would need.
            refusal = item.refusal or self._refused_want(item, judgement.last_step)
            step = Step(item, resident, after, judgement, refusal=refusal)
            if not judgement.changes:
                plan.reads.append(step)
            elif judgement.updated or min(judgement.inserted) <= record.last_step:
                plan.rewinds.append(step)
            else:
                plan.appends.append(step)

    def _refused_want(self, item: Observe | Look, cutoff: int) -> Problem | None:
        """Why the wanted forecast cannot be made, before anything changes: the model may be another by now."""
        if item.want is None:
            return None
        known = self._model.forecaster.config.covariates.known
        try:
            self._model.check(item.want)
            self._model.dates.check_end(cutoff, item.want.horizon)
            if known:
                future = item.future
                if future is None or (future.table is not None and future.table.shape[1] != len(known)):
                    raise InputError(f"model {self._model.name} {self._model.version} needs other covariates")
                future.check(cutoff, item.want.horizon, self._model.dates)
        except InputError as error:
            return from_library(error)
        return None

    def _refusal(self, item: Observe, record: StreamRecord, judgement: Judgement) -> Problem | None:
        refused = [i for i, verdict in enumerate(judgement.verdicts) if verdict.refused]
        if not refused:
            return None
        dates = self._model.dates
        verdict, ds = judgement.verdicts[refused[0]], dates.text(item.steps[refused[0]])
        last, name = dates.text(record.last_step), f"stream {item.unique_id!r}"
        rows = [{"ds": dates.text(item.steps[i]), "verdict": judgement.verdicts[i]} for i in refused[:20]]
        if verdict is Verdict.CONFLICT:
            if item.steps[refused[0]] in judgement.inserted:
                detail = (
                    f'the request has two values for ds {ds} of {name}; with "on_conflict": "revise" the last counts'
                )
                return conflict(detail, observations=rows)
            detail = f'{name} already has another value at ds {ds}; send "on_conflict": "revise" to replace it'
            return conflict(detail, observations=rows)
        if verdict is Verdict.TOO_OLD:
            detail = f"ds {ds} lies before the log of {name}, which begins at {dates.text(record.log_step)}"
            return Problem(422, "too-old", detail, observations=rows)
        if verdict is Verdict.BUSY:
            detail = (
                f"ds {ds} lies more than {self._reach} steps after {last}, the last ds of {name}, gaps included; "
                "send the observations in parts"
            )
            return Problem(413, "too-large", detail, observations=rows)
        return Problem(
            422,
            "gap-too-long",
            f"ds {ds} leaves a gap of more than {self._max_gap} steps after {last}, the last ds of {name}",
            observations=rows,
            max_gap_steps=self._max_gap,
        )
