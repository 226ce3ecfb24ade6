"""The streams whose state is in memory: who they are, where in the slab they lie, and what is not yet in a snapshot.

It knows slab and store, not requests. Invariants: a resident's state is the fold of its record's log under the model
given; dropping a resident loses nothing, since it is restored from the store on the next touch; there are never more
than the capacity, so who comes in makes room first, and one touch may name no more streams than that; a stream whose
log takes long to fold comes in by a later touch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from forecaster import StreamState
from service.engine.beside import Beside
from service.engine.folding import LONGEST, MOST_STEPS, Restored, Rewound, restore
from service.engine.slab import Slab
from service.engine.survey import Survey
from service.errors import first_line
from service.metrics import Metrics
from service.models.served import ServedModel
from service.store import Recovery, Store, StreamRecord, Value

__all__ = ["Resident", "Residents"]

_RESTORE = 1024  # streams restored in one go
_LEAVING = 512  # streams evicted beyond those that must, so that this is rare and nobody waits long for their snapshots


@dataclass(slots=True, eq=False)
class Resident:
    """One stream in memory.

    Attributes
    ----------
    record
        As committed.
    row
        Its row of the slab.
    unsaved
        Steps folded since the latest snapshot.
    seen
        The store's moment when the record was known to be the newest; None: it is doubtful.
    era
        The store's, when the state was folded from it.
    """

    record: StreamRecord
    row: int
    unsaved: int
    seen: int | None
    era: int


class Residents:
    """Streams in memory under one model."""

    def __init__(self, model: ServedModel, store: Store, metrics: Metrics, capacity: int, bases: int = 0) -> None:
        self.model = model
        self.slab = Slab(model.forecaster)
        self._store = store
        self._metrics = metrics
        self._capacity = capacity
        self._bases = bases
        self._by_name: dict[str, Resident] = {}  # the longest idle first
        self._beside = Beside(model, store)
        self._touched: Sequence[str] = ()  # these stay until the next touch
        self._records: dict[str, StreamRecord] = {}  # of those of them that are asked for without their states
        self.staying: Collection[str] = ()  # and these, whose micro-batch has begun and not ended
        self.moment = 0  # of the store, when it was last asked
        self.era = store.era  # likewise

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_name)

    def get(self, unique_id: str) -> Resident | None:
        """A resident stream, or None: after `touch` of that name this means that no such stream exists."""
        return self._by_name.get(unique_id)

    def record(self, unique_id: str) -> StreamRecord | None:
        """A stream that was touched, with its state or without; None: no such stream exists."""
        resident = self._by_name.get(unique_id)
        return self._records.get(unique_id) if resident is None else resident.record

    def are_current(self, unique_ids: Collection[str], *, check_versions: bool) -> bool:
        """Whether all are resident and `touch` would ask the store nothing; found out without waiting for it."""
        if check_versions and not self._store.is_still_at(self.moment):
            return False
        found = [resident for u in unique_ids if (resident := self._by_name.get(u)) is not None]
        era = self._store.era
        return len(found) == len(unique_ids) and all(r.seen == self.moment and r.era == era for r in found)

    def touch(
        self,
        unique_ids: Sequence[str],
        *,
        check_versions: bool,
        most: float = math.inf,
        stateless: Collection[str] = (),
    ) -> tuple[set[str], set[str]]:
        """Make streams resident, those that exist, and mark them as used; of those in `stateless` a record will do.

        With `check_versions`, residents that another process has changed are restored anew.

        Returns
        -------
        long
            Streams that cannot be resident yet: their logs take long to fold.
        later
            Those that are to be touched again, as `most` steps or more have been folded for others.
        """
        if check_versions:
            # Asked before anything is read, so what is read is at least as new.
            self.moment = self._store.moment()
        self._drop_outdated(unique_ids)
        self._touched = unique_ids
        absent, long, later = [], set[str](), set[str]()
        for unique_id in unique_ids:
            resident = self._by_name.pop(unique_id, None)
            if resident is None:
                absent.append(unique_id)
            else:
                self._by_name[unique_id] = resident
        self._records = {}
        if stateless:
            records = self._store.records([name for name in absent if name in stateless])
            self._records = {record.unique_id: record for record in records}
            absent = [name for name in absent if name not in stateless]
        for start in range(0, len(absent), _RESTORE):
            left = absent[start : start + _RESTORE]
            while left:
                if most <= 0:
                    later.update(left)
                    break
                # Under a model that was not there when they were observed, whole logs are to be read.
                at_once = min(max(most, LONGEST), MOST_STEPS)
                found, left = self._store.recover_some(left, self.model.key, at_once, LONGEST)
                too_long = [name for name, recovery in found.items() if recovery.too_long]
                if len(too_long) < len(found):
                    short = [recovery for recovery in found.values() if not recovery.too_long]
                    restored = self._restore(short, LONGEST, most)
                    most -= sum(restored.unsaved)
                    too_long += restored.long
                    left += restored.later
                for name in too_long:
                    if (recovery := self._beside.restored(found[name])) is None:
                        long.add(name)
                    else:
                        self._restore([recovery])
                        self._by_name[name].unsaved += LONGEST  # the log before is in no snapshot
        return long, later

    def rewound(self, record: StreamRecord, changed: dict[int, Value], last_step: int) -> Rewound | None:
        """A stream folded anew from before a change of its log, as by `rewind`; None while that is done beside."""
        return self._beside.rewound(record, changed, last_step)

    def _restore(self, found: Sequence[Recovery], longest: float = math.inf, most: float = math.inf) -> Restored:
        """Fold them, as `restore` does, and take them in."""
        restored = restore(self.model, self._store, found, longest, most)
        absent = {*restored.long, *restored.later}
        records = [recovery.record for recovery in found if recovery.record.unique_id not in absent]
        self.add(records, restored.states, restored.unsaved)
        self._metrics.restored.inc(len(records))
        self._metrics.damaged_snapshots.inc(restored.damaged)
        self.count_begun(restored.begun)
        return restored

    def trimmed(self, begins: Mapping[str, tuple[int, int]]) -> None:
        """Learn where logs begin now: unique_id → (stream id, step). A log known longer than it is does no harm."""
        for unique_id, (stream_id, step) in begins.items():
            resident = self._by_name.get(unique_id)
            if resident is not None and resident.record.id == stream_id and step > resident.record.log_step:
                resident.record = resident.record._replace(retained_step=step)
                resident.seen = None  # it may have been replaced since

    def count_begun(self, streams: int) -> None:
        """Record states that had to begin where a trimmed log does, because their model had no snapshot before it."""
        if streams:
            self._metrics.begun_states.inc(streams)

    def _drop_outdated(self, unique_ids: Sequence[str]) -> None:
        found = [resident for u in unique_ids if (resident := self._by_name.get(u)) is not None]
        doubtful = [resident for resident in found if resident.seen != self.moment]
        versions = self._store.versions([resident.record.id for resident in doubtful]) if doubtful else {}
        self.era = self._store.era
        for resident in doubtful:
            record = resident.record
            if versions.get(record.id) == (record.version, record.retained_step):
                resident.seen = self.moment
            else:
                self.drop([record.unique_id])
        self.drop([resident.record.unique_id for resident in found if resident.era != self.era])

    def doubt(self, unique_ids: Iterable[str]) -> None:
        """Look streams up at their next touch, whatever the store says of others."""
        for unique_id in unique_ids:
            if (resident := self._by_name.get(unique_id)) is not None:
                resident.seen = None

    def add(self, records: Sequence[StreamRecord], states: StreamState, unsaved: Sequence[int]) -> list[Resident]:
        """Take streams in, replacing those of the same name."""
        self.drop(record.unique_id for record in records)
        self._make_room(len(records))
        rows = self.slab.take(len(records))
        self.slab.scatter(rows, states)
        added = [Resident(r, row, n, self.moment, self.era) for r, row, n in zip(records, rows, unsaved, strict=True)]
        self._by_name.update((resident.record.unique_id, resident) for resident in added)
        return added

    def drop(self, unique_ids: Iterable[str]) -> None:
        """Forget states; the store still has what they are made of."""
        gone = [resident for u in unique_ids if (resident := self._by_name.pop(u, None)) is not None]
        self.slab.give_back([resident.row for resident in gone])

    def _make_room(self, wanted: int) -> None:
        """Evict the longest idle streams if so many more would be too many."""
        excess = len(self._by_name) + wanted - self._capacity
        if excess <= 0:
            return
        needed = {*self._touched, *self.staying}
        idle = (resident for name, resident in self._by_name.items() if name not in needed)
        leaving = list(islice(idle, excess + min(self._capacity // 10, _LEAVING)))
        try:
            self.save([resident for resident in leaving if resident.unsaved])
        except Exception as error:
            # Snapshots only make the way back shorter, and a store that takes none must not make memory grow.
            logging.getLogger("service").warning("evicted without snapshots: %s", first_line(error))
        self.drop([resident.record.unique_id for resident in leaving])

    def survey(self, unique_ids: Sequence[str] | None = None) -> Survey:
        """What past forecasts of all of them were worth, or of those named."""
        residents = list(self._by_name.values())
        if unique_ids is not None:
            residents = [resident for name in unique_ids if (resident := self._by_name.get(name)) is not None]
        total, recent = self.slab.scores([resident.row for resident in residents])
        names = [resident.record.unique_id for resident in residents]
        return Survey(self.model, names, [resident.record.last_step for resident in residents], total, recent)

    def unsaved(self) -> list[Resident]:
        """Streams whose latest steps are in no snapshot."""
        return [resident for resident in self._by_name.values() if resident.unsaved]

    def save(self, residents: Sequence[Resident], until: float = math.inf) -> int:
        """Write snapshots of some residents, until a time (`time.monotonic`); how many were left then."""
        era = self._store.era
        residents = [resident for resident in residents if resident.era == era]
        for start in range(0, len(residents), _RESTORE):
            if time.monotonic() >= until:
                return len(residents) - start
            part = residents[start : start + _RESTORE]
            states = self.slab.gather([resident.row for resident in part]).to_bytes()
            records = {r.record: state for r, state in zip(part, states, strict=True)}
            self._metrics.snapshots.inc(self._store.save_snapshots(self.model.key, records, bases=self._bases, era=era))
            for resident in part:
                resident.unsaved = 0
        return 0
