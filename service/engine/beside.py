"""What takes long is folded by a thread beside the engine: a log without a snapshot, or one that is changed far back.

It knows folding and the store, not residents. Who asks gets what has been folded, or nothing and asks again later; one
thing is folded at a time. Invariant: what is handed out is the fold of the log as it is now, since one that has done
more than grow in between is folded anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from service.engine.folding import LONGEST, MOST_STEPS, Rewound, dense, fold_ragged, restore, rewind
from service.errors import StaleStreams, first_line
from service.models.served import ServedModel
from service.store import Recovery, Store, StreamRecord, Value

__all__ = ["Beside"]

_KEPT = 4  # rewound states that wait for whoever asked


class _Changed(NamedTuple):
    """A log with changes, folded up to where it ended then, in an era of the store."""

    record: StreamRecord
    changed: Mapping[int, Value]
    rewound: Rewound
    era: int


class Beside:
    """Folds under one model."""

    def __init__(self, model: ServedModel, store: Store) -> None:
        self._model = model
        self._store = store
        self._thread: threading.Thread | None = None
        self._states: dict[str, tuple[StreamRecord, bytes, int]] = {}  # that could not be stored, and their era
        self._changed: dict[str, _Changed] = {}

    @property
    def at_work(self) -> bool:
        """Whether something is being folded."""
        return self._thread is not None and self._thread.is_alive()

    def _begin(self, unique_id: str, fold: Callable[[], None]) -> None:
        """Fold, unless something is being folded: then the next one who asks comes here again."""
        if self.at_work:
            return

        def work() -> None:
            try:
                with torch.inference_mode():
                    fold()
            except StaleStreams:
                pass  # the log is another by now
            except Exception:
                logging.getLogger("service").exception("a long log has no state: %r", unique_id)

        self._thread = threading.Thread(target=work, name="long-log", daemon=True)
        self._thread.start()

    # -- a log without a snapshot ----------------------------------------------------------------------------------

    def restored(self, recovery: Recovery) -> Recovery | None:
        """The same from a state that has been folded; None: not yet, ask again, also for a snapshot."""
        record = recovery.record
        before, state, era = self._states.pop(record.unique_id, (None, b"", 0))
        if (
            before is not None
            and era == self._store.era
            and record.id == before.id
            and record.last_step - before.last_step <= LONGEST
        ):
            tail = self._store.log(record.id, before.last_step)
            if self._store.has_only_grown(before):
                return Recovery(record, state, before.last_step, tail)
        self._begin(record.unique_id, partial(self._restore, record.unique_id))
        return None

    def _restore(self, unique_id: str) -> None:
        # Asked again, because one that was at it may have ended since.
        found, _ = self._store.recover_some([unique_id], self._model.key, MOST_STEPS, LONGEST)
        for recovery in found.values():
            record, era = recovery.record, self._store.era
            restored = restore(self._model, self._store, [recovery])
            if sum(restored.unsaved) <= LONGEST:
                continue
            (state,) = restored.states.to_bytes()
            stored = 0
            try:
                stored = self._store.save_snapshots(self._model.key, {record: state}, era=era)
            except Exception as error:
                # On a disk that takes nothing it can be read all the same.
                logging.getLogger("service").warning("a long log has no snapshot: %s", first_line(error))
            if not stored and self._store.has_only_grown(record):  # as where one of the same step cannot be read
                self._states[unique_id] = record, state, era

    # -- a log that is changed far back ----------------------------------------------------------------------------

    def rewound(self, record: StreamRecord, changed: dict[int, Value], last_step: int) -> Rewound | None:
        """As `folding.rewind`; None: not yet.

        Raises
        ------
        StaleStreams
            The log has been trimmed meanwhile beyond the change.
        """
        found = self._changed.get(record.unique_id)
        if found is not None and (rewound := self._continued(found, record, changed, last_step)) is not None:
            return rewound
        at_once = rewind(self._model, self._store, record, changed, last_step, longest=LONGEST)
        if at_once is None:
            self._begin(record.unique_id, partial(self._rewind, record, changed))
        return at_once

    def _rewind(self, asked: StreamRecord, changed: dict[int, Value]) -> None:
        era = self._store.era
        # It may have grown since.
        record = self._store.recover_before(asked, self._model.key, min(changed), most=0).record
        past = {step: value for step, value in changed.items() if step <= record.last_step}
        rewound = rewind(self._model, self._store, record, past, record.last_step)
        assert rewound is not None
        kept = dict(list(self._changed.items())[1 - _KEPT :])
        self._changed = kept | {record.unique_id: _Changed(record, past, rewound, era)}

    def _continued(
        self, found: _Changed, record: StreamRecord, changed: dict[int, Value], last_step: int
    ) -> Rewound | None:
        """What has been folded and what came since, if with these changes and the log has at most grown."""
        end = found.record.last_step
        past = {step: value for step, value in changed.items() if step <= end}
        if found.era != self._store.era or record.id != found.record.id or past != found.changed:
            return None
        if record.last_step - end > LONGEST:
            return None
        rows = dict(self._store.log(record.id, end)) | {s: value for s, value in changed.items() if s > end}
        if not self._store.has_only_grown(found.record):
            return None
        forecaster, (state, after, places, begun) = self._model.forecaster, found.rewound
        further: dict[int, np.ndarray] = {}
        state = fold_ragged(forecaster, state, [dense(forecaster, rows, end, last_step)], further)
        return Rewound(state, after, np.concatenate([places, *further.values()]), begun)
