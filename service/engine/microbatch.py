"""One micro-batch: many items of different streams become one fold, one transaction and one decode.

It knows residents and store, and no queue, thread or HTTP. The order is the guarantee: everything that can fail is
computed on copies before the transaction ends, then memory follows; forecasts are decoded meanwhile. Between `begin`
and `end` only the disk has work to do, so a batch of other streams may begin. Invariant: if `end` raises, no state has
changed, and the store at most as if the process had died just after the commit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from itertools import chain, repeat
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from forecaster import StreamState
from forecaster.marginals import Decoded, surprise
from service.engine.coming import Coming
from service.engine.folding import LONGEST, TOGETHER, Glance, begin, dense, fold_ragged, numbers, stretch_of
from service.engine.items import Create, Item, Look, Observe, Outcome, Result
from service.engine.planning import Plan, Planner, Step
from service.engine.residents import Resident, Residents
from service.engine.verdicts import Verdict
from service.models.served import ServedModel, Want
from service.problems import Problem, still_folded
from service.store import Changes, NewStream, Store, StoredReply, StreamRecord, Transaction
from service.store.values import count_missing

__all__ = ["MicroBatch", "warm_up"]

Float = npt.NDArray[np.float64]

_NOTHING = Want(0, ())


class _Folded(NamedTuple):
    """States after the items, and what appended ones say of the next step."""

    appended: StreamState | None
    ahead: Decoded | None
    rewound: StreamState | None
    created: StreamState | None


class MicroBatch:
    """Runs items of distinct streams against residents and store.

    Parameters
    ----------
    residents
        Streams in memory, under the model that every outcome of this batch names.
    store
        The truth.
    max_gap
        Most missing steps filled in one go.
    check_versions
        Whether other processes write to the same store.
    late
        Whether that is looked at when the transaction begins, since until then the store is at work for another batch.
    writer
        Runs the transaction beside fold and decode.
    now
        Seconds since 1970, as kept replies note them.
    replies_since
        Replies that were kept before are as if there were none.

    Attributes
    ----------
    due
        Streams whose state has changed.
    scores
        What truths added to the sums of scores.
    parts
        Name, begin and end of what took its time.
    postponed
        Items that others need not wait for in this micro-batch, in order; they have no results. Only of one that was
        begun by itself: `run` does them all.
    """

    def __init__(
        self,
        residents: Residents,
        store: Store,
        *,
        max_gap: int,
        check_versions: bool,
        writer: Executor,
        now: int,
        replies_since: int,
        late: bool = False,
    ) -> None:
        self._residents = residents
        self._model = residents.model
        self._store = store
        self._max_gap = max_gap
        self._check_versions = check_versions
        self._late = late
        self._writer = writer
        self._now = now
        self._replies_since = replies_since
        self._results: dict[Item, Result] = {}
        self._plan = Plan()
        self._folded: _Folded | None = None
        self._transaction: Future[list[StreamRecord]] | None = None
        self._records: list[StreamRecord] | None = None  # of created streams, once all is committed
        self._failure: BaseException | None = None
        self._failed = False
        self._tells = False
        self._copies: dict[Item, StreamState] = {}
        self._begun = 0
        self.due: list[Resident] = []
        self.scores: Float | None = None
        self.parts: list[tuple[str, float, float]] = []
        self.postponed: list[Item] = []
        self._room: float = LONGEST
        self._together: float = TOGETHER

    def run(self, items: Sequence[Item]) -> dict[Item, Result]:
        """Begin, and end."""
        self._room = self._together = math.inf
        self.begin(items)
        return self.end()

    def begin(self, items: Sequence[Item]) -> None:
        """Do everything but wait for the disk; what goes wrong is raised by `end`."""
        try:
            self._begin(items)
        except BaseException as error:
            self._failure, self._failed = error, True

    def _begin(self, items: Sequence[Item]) -> None:
        asked = self._check_versions and not self._late
        names = [item.unique_id for item in items]
        stateless = {item.unique_id for item in items if not item.needs_state}
        long, later = self._residents.touch(names, check_versions=asked, most=self._together, stateless=stateless)
        if later:
            self.postponed = [item for item in items if item.unique_id in later]
            items = [item for item in items if item.unique_id not in later]
        self._results.update((item, still_folded(item.unique_id)) for item in items if item.unique_id in long)
        keyed = [item for item in items if isinstance(item, Observe) and item.key is not None]
        if keyed:
            self._replay(keyed)
        planner = Planner(self._residents, self._store, self._max_gap, self._results)
        plan = self._plan = planner.plan([item for item in items if item not in self._results])
        if plan.filled:
            self._put_off(plan)
        rewound = self._rewind(plan)
        created = self._warm_up(plan.creates)
        changes = self._changes(plan)
        # The transaction ends after the fold; the disk works beside the decoding from the same copies. Where replies
        # are to be kept, it waits for them too.
        folded: Future[list[StoredReply]] = Future()
        moment = self._residents.moment if self._check_versions and self._late else None
        begun = self._write(changes) if changes.is_short and not self._late else None
        if begun is None and (changes or keyed or moment is not None):
            commit = partial(self._store.commit, changes, folded, self._replies_since, moment)
            self._transaction = self._writer.submit(self._timed, commit)

        def finish(replies: list[StoredReply]) -> None:
            folded.set_result(replies)
            if begun is not None:
                self._transaction = self._writer.submit(self._timed, partial(begun.end, replies))

        started = perf_counter()
        try:
            appended = self._append(plan)
            self.parts.append(("fold", started, started := perf_counter()))
            if not keyed:
                finish([])
            forecasts, ahead = self._decode(plan, appended, rewound)
            if ahead is None and appended is not None and plan.placed:
                # Who asks where a value lay will ask again, and what the next one is held against is at hand now.
                ahead = self._residents.slab.foretell(appended)
            self._conclude(plan, forecasts)
            self.parts.append(("decode", started, perf_counter()))
            if keyed:
                finish(self._to_keep(keyed))
        except BaseException as error:
            if not folded.done():
                folded.set_exception(error)
                if begun is not None:
                    begun.undo(error)
            raise
        self._folded = _Folded(appended, ahead, rewound, created)

    def end(self) -> dict[Item, Result]:
        """Wait for the disk, then let memory follow; one result per item.

        Raises
        ------
        StaleStreams
            Another process was faster; drop these residents and run again.
        UnknownOutcome
            The store failed, and may have kept it all the same.
        SQLAlchemyError
            The store failed.
        """
        # Let go of what may hold this micro-batch: waiting for the garbage collector costs every request.
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            self._records = transaction.result()
        elif not self._failed:
            self._records = []
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # which knows this frame
        assert self._folded is not None
        self._remember(self._plan, self._folded)
        self._take_in(self._plan, self._records or [], self._folded.created)
        return self.results

    @property
    def results(self) -> dict[Item, Result]:
        """One per item, if all went well."""
        return {**self._results, **self._moved(self._records or [])}

    @property
    def has_failed(self) -> bool:
        """Whether something has gone wrong so far, which `end` raises."""
        transaction = self._transaction
        return self._failed or (transaction is not None and transaction.done() and transaction.exception() is not None)

    def when_committed(self, call: Callable[[], None]) -> None:
        """Have something called once the disk need not be waited for any more, by whichever thread knows first."""
        assert self._transaction is not None
        self._transaction.add_done_callback(lambda _: call())

    @property
    def is_committing(self) -> bool:
        """Whether nothing but the disk is being waited for."""
        return not self._failed and self._transaction is not None and not self._transaction.done()

    def tell(self, results: Callable[[dict[Item, Result]], None]) -> None:
        """Have the results told as soon as they are durable, by whichever thread knows first; if ever they are."""
        assert self._transaction is not None
        self._tells = True

        def done(transaction: Future[list[StreamRecord]]) -> None:
            if not self._failed and transaction.exception() is None:
                results({**self._results, **self._moved(transaction.result())})

        self._transaction.add_done_callback(done)

    @property
    def has_told(self) -> bool:
        """Whether `tell` has made the results known, or is about to; ask after `end`."""
        return self._tells and not self._failed and self._records is not None

    def taken(self) -> dict[Item, Outcome]:
        """What has been committed although `end` raised, without forecasts: it must not be judged a second time."""
        if self._records is None:
            return {}
        observed = (*self._plan.appends, *self._plan.rewinds)
        outcomes = {
            s.item: Outcome(s.record, self._model, s.judgement, places=s.places, surprises=s.surprises)
            for s in observed
        }
        return self._moved(self._records) | outcomes

    def _timed(self, commit: Callable[[], list[StreamRecord]]) -> list[StreamRecord]:
        started = perf_counter()
        try:
            return commit()
        finally:
            self.parts.append(("commit", started, perf_counter()))

    def _write(self, changes: Changes) -> Transaction | None:
        """Run the statements here: of a few rows, that takes less than sharing the interpreter lock with the writer."""
        started = perf_counter()
        try:
            return self._store.begin(changes, self._replies_since)
        finally:
            self.parts.append(("statements", started, perf_counter()))

    # -- requests that may have come before ------------------------------------------------------------------------

    def _replay(self, keyed: list[Observe]) -> None:
        """Answer what was answered before."""
        asked = [(item.unique_id, item.key.text) for item in keyed if item.key]
        found = self._store.replies(asked, self._replies_since)
        for item, name in zip(keyed, asked, strict=True):
            kept, resident = found.get(name), self._residents.get(item.unique_id)
            if kept is None or resident is None:
                continue
            if kept.key != item.key:
                detail = f"Idempotency-Key {kept.key.text!r} came with another request before; use a new one"
                self._results[item] = Problem(422, "key-reused", detail)
                continue
            record = resident.record._replace(version=kept.version)
            self._results[item] = Outcome(record, self._model, reply=kept.body, replayed=True)

    def _to_keep(self, keyed: list[Observe]) -> list[StoredReply]:
        """Replies of this micro-batch that may be asked for again."""
        kept = []
        for item in keyed:
            result = self._results.get(item)  # none yet if postponed
            if isinstance(result, Outcome) and not result.replayed:
                assert item.key is not None
                assert result.reply is not None
                version = result.record.version
                kept.append(StoredReply(item.unique_id, item.key, version, result.reply, self._now))
        return kept

    # -- compute on copies -----------------------------------------------------------------------------------------

    def _put_off(self, plan: Plan) -> None:
        """Leave to the next micro-batch what this one has no room for: what is filled is folded like what is there."""
        steps, plan.appends, room = plan.appends, [], self._together
        for step in steps:
            if room <= 0:
                self.postponed.append(step.item)
                continue
            plan.appends.append(step)
            room -= step.record.last_step - step.resident.record.last_step

    def _append(self, plan: Plan) -> StreamState | None:
        if not plan.appends:
            return None
        steps, placed = plan.appends, plan.placed
        forecaster, slab = self._model.forecaster, self._residents.slab
        if all(step.follows for step in steps):
            values = [value for step in steps for value in step.inserted.values()]
            ys, table = stretch_of(forecaster, values)
            y, covariates = numbers(ys), None if table is None else torch.from_numpy(table)
            if placed:
                places = forecaster.place(slab.ahead(plan.rows, covariates), y)
                for row, step in enumerate(steps):
                    step.places = _placed(step, step.resident.record.last_step, places[row : row + 1])
            return slab.change(plan.rows, y, covariates)
        stretches = [dense(forecaster, s.inserted, s.resident.record.last_step, s.record.last_step) for s in steps]
        found: dict[int, Float] = {}
        appended = fold_ragged(forecaster, slab.gather(plan.rows), stretches, found if placed else None)
        if placed:
            for row, step in enumerate(steps):
                step.places = _placed(step, step.resident.record.last_step, found[row])
        return appended

    def _rewind(self, plan: Plan) -> StreamState | None:
        """States of streams whose logs change before their end; of those alone that others need not wait for.

        Each is folded by itself, so they share what may be folded in one go, but the first is folded whatever it takes.
        """
        steps, plan.rewinds, parts = plan.rewinds, [], []
        for step in steps:
            assert step.judgement is not None
            if self._room <= 0:
                self.postponed.append(step.item)
                continue
            changed = step.judgement.inserted | step.judgement.updated
            rewound = self._residents.rewound(step.resident.record, changed, step.judgement.last_step)
            if rewound is None:
                self._results[step.item] = still_folded(step.item.unique_id)
                continue
            plan.rewinds.append(step)
            step.folded = step.judgement.last_step - rewound.after
            self._room -= step.folded
            step.places = _placed(step, rewound.after, rewound.places)
            self._begun += rewound.begun
            parts.append(rewound.state)
        return StreamState.concat(parts) if parts else None

    def _warm_up(self, creates: list[tuple[Create, StreamRecord | None]]) -> StreamState | None:
        if not creates:
            return None
        # Those that come with their states first.
        creates.sort(key=lambda create: create[0].state_under(self._model.key) is None)
        states = [s for item, _ in creates if (s := item.state_under(self._model.key)) is not None]
        if len(states) < len(creates):
            states.append(warm_up(self._model, [item for item, _ in creates[len(states) :]]))
        return StreamState.concat(states)

    def _decode(
        self, plan: Plan, appended: StreamState | None, rewound: StreamState | None
    ) -> tuple[dict[Item, Float], Decoded | None]:
        """The forecasts asked for; and what appended rows say of the next step, if that came out on the way."""
        wants: dict[Want, list[tuple[Step, int]]] = {}
        reads = [step for step in plan.reads if step.want]
        for position, step in enumerate((*plan.appends, *plan.rewinds, *reads)):
            if want := step.want:
                wants.setdefault(want, []).append((step, position))
        if not wants:
            return {}, None
        slab = self._residents.slab
        alone = rewound is None and not reads
        ahead = None
        if appended is not None and not (alone and self._suffices(appended, wants)):
            appended = slab.whole(plan.rows, appended)
        read = slab.gather([step.resident.row for step in reads]) if reads else None
        parts = [part for part in (appended, rewound, read) if part is not None]
        states = parts[0] if len(parts) == 1 else StreamState.concat(parts)
        forecasts: dict[Item, Float] = {}
        for want, asked in wants.items():
            rows = states if len(asked) == len(states) else states.select([position for _, position in asked])
            future = self._future([(step.item, step.record.last_step) for step, _ in asked], want.horizon)
            quantiles, said = self._model.forecaster.forecast_and_ahead(rows, *want, future)
            if rows is appended:
                ahead = said
            by_level = np.ascontiguousarray(quantiles.transpose(0, 2, 1))  # [B, Q, H]
            forecasts.update((step.item, row) for (step, _), row in zip(asked, by_level, strict=True))
            for place, (step, _) in enumerate(asked):
                item = step.item
                if not isinstance(item, Look):
                    continue
                if item.copy:
                    self._copies[item] = rows.select([place])
                if not np.isfinite(by_level[place]).all():
                    detail = f"stream {item.unique_id!r} has no finite forecast: no value was observed yet"
                    self._results[item] = Problem(409, "no-forecast", detail)
        return forecasts, ahead

    def _suffices(self, appended: StreamState, wants: dict[Want, list[tuple[Step, int]]]) -> bool:
        """Whether forecasts can be made of what was folded as it is, though it may be a mere change."""
        (want, asked), *others = wants.items()
        directly = want.horizon <= self._model.forecaster.config.horizon
        return directly and not others and [position for _, position in asked] == list(range(len(appended)))

    def _future(self, asked: list[tuple[Item, int]], horizon: int) -> torch.Tensor | None:
        """What is known of the steps after each item's cutoff, shape [B, horizon, K]."""
        known = len(self._model.forecaster.config.covariates.known)
        if not known:
            return None
        futures = [(getattr(item, "future", None) or Coming(None), cutoff) for item, cutoff in asked]
        return torch.from_numpy(np.stack([future.ahead(cutoff, horizon, known) for future, cutoff in futures]))

    def _conclude(self, plan: Plan, forecasts: dict[Item, Float]) -> None:
        """Outcomes of observations and looks, for the case that the commit succeeds."""
        _surprise([step for step in (*plan.appends, *plan.rewinds) if step.places is not None])
        for step in (*plan.appends, *plan.rewinds, *plan.reads):
            item = step.item
            if item in self._results:
                continue
            outcome = Outcome(
                step.record,
                self._model,
                step.judgement,
                forecasts.get(item),
                places=step.places,
                surprises=step.surprises,
                refusal=step.refusal,
            )
            want = step.want
            if step.refusal is not None:
                outcome.quantiles, want = np.empty((0, 0)), _NOTHING
            if outcome.quantiles is not None and isinstance(item, Observe | Look) and want and item.render:
                outcome.reply = item.render(outcome, want)
            if isinstance(item, Look) and item.copy:
                outcome.state = self._copies.get(item) or self._residents.slab.gather([step.resident.row])
            self._results[item] = outcome

    # -- commit, then follow in memory -----------------------------------------------------------------------------

    def _changes(self, plan: Plan) -> Changes:
        changes = Changes(era=self._residents.era)
        for step in (*plan.appends, *plan.rewinds):
            judgement, record = step.judgement, step.record
            assert judgement is not None
            changes.streams.append((record, step.resident.record.version))
            inserted = judgement.inserted
            changes.inserted.extend(zip(repeat(record.id), inserted, inserted.values(), strict=False))
        for step in plan.reads:
            if isinstance(step.item, Observe) and step.item.key is not None:
                changes.held.append((step.record.id, step.record.version))
        for step in plan.rewinds:
            judgement, record = step.judgement, step.record
            assert judgement is not None
            updated = judgement.updated
            changes.updated.extend(zip(repeat(record.id), updated, updated.values(), strict=False))
            changes.rewound.append((record.id, min(chain(judgement.inserted, updated))))
        for item, before in plan.creates:
            record = _new_record(item, before)
            changes.created.append(NewStream(record, before, list(zip(item.steps, item.values, strict=True))))
        changes.deleted.extend(record for _, record in plan.deletes)
        return changes

    def _moved(self, records: list[StreamRecord]) -> dict[Item, Outcome]:
        """Outcomes of deleted and created streams; `records` are those of the created ones."""
        moved: dict[Item, Outcome] = {item: Outcome(record, self._model) for item, record in self._plan.deletes}
        for (item, before), record in zip(self._plan.creates, records, strict=True):
            moved[item] = Outcome(record, self._model, created=before is None)
        return moved

    def _remember(self, plan: Plan, folded: _Folded) -> None:
        appended, ahead, rewound, _ = folded
        self._residents.count_begun(self._begun)
        slab = self._residents.slab
        if appended is not None and appended.quality.shape[-1]:  # of a mere change, only if a truth was scored
            before, _ = slab.scores(plan.rows)
            self.scores = appended.quality[:, 0].sum((0, 2), dtype=torch.float64).numpy() - before.sum(1)
        if appended is not None:
            slab.scatter(plan.rows, appended, ahead)
        if rewound is not None:
            slab.scatter([step.resident.row for step in plan.rewinds], rewound)
        for step in chain(plan.appends, plan.rewinds):
            resident, record = step.resident, step.record
            # A rewound stream has lost later snapshots, so the revised stretch counts again.
            resident.unsaved += max(record.last_step - resident.record.last_step, 1)
            if step.folded > LONGEST:
                resident.unsaved += step.folded  # none is left that others need not wait for
            resident.record = record
            self.due.append(resident)

    def _take_in(self, plan: Plan, records: list[StreamRecord], states: StreamState | None) -> None:
        if states is not None:
            unsaved = [record.last_step - record.first_step + 1 for record in records]
            self.due.extend(self._residents.add(records, states, unsaved))
        self._residents.drop(record.unique_id for _, record in plan.deletes)


def warm_up(model: ServedModel, creates: Sequence[Create], glance: Glance | None = None) -> StreamState:
    """States of new streams, from their whole histories; `glance` as of `fold_ragged`."""
    forecaster = model.forecaster
    return fold_ragged(
        forecaster,
        begin(forecaster, [_new_record(item, None) for item in creates]),
        [dense(forecaster, dict(zip(i.steps, i.values, strict=True)), i.steps[0] - 1, i.steps[-1]) for i in creates],
        glance=glance,
    )


def _new_record(item: Create, before: StreamRecord | None) -> StreamRecord:
    return StreamRecord(
        before.id if before else 0,
        item.unique_id,
        item.steps[0],
        item.steps[-1],
        before.version + 1 if before else 1,
        len(item.steps),
        count_missing(item.values),
        item.static,
    )


def _placed(step: Step, after: int, places: Float) -> Float:
    """Places of an item's observations, out of those of all steps after one."""
    item, judgement = step.item, step.judgement
    assert isinstance(item, Observe)
    assert judgement is not None
    # The usual cases, as in `judge`.
    if len(item.steps) == len(places) == 1 or item.steps == list(range(after + 1, after + 1 + len(places))):
        return places
    found = np.full(len(item.steps), np.nan)
    for i, verdict in enumerate(judgement.verdicts):
        if not verdict.refused and verdict is not Verdict.DUPLICATE:
            found[i] = places[item.steps[i] - after - 1]
    return found


def _surprise(steps: list[Step]) -> None:
    """Fill in how surprising the observations of steps were, all at once."""
    places = [step.places for step in steps if step.places is not None]
    if places:
        found, start = surprise(np.concatenate(places)), 0
        for step, part in zip(steps, places, strict=True):
            step.surprises = found[start : (start := start + len(part))]
