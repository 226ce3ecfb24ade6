"""Re-deriving: the states of every stream under a new model, from the log, while the old model serves.

It reads the log and writes snapshots under the new model's key, and touches nothing the engine holds. After it, the
switch needs no work: a stream's first touch finds its snapshot and folds the few observations that came since.
"""

from __future__ import annotations

from collections.abc import Callable

from service.engine.folding import restore
from service.models.served import ServedModel
from service.store import Store, StreamRecord

__all__ = ["rederive"]

_STREAMS = 256
_STEPS = 1_000_000


def rederive(model: ServedModel, store: Store, told: Callable[[int, int], bool] = lambda _done, _steps: True) -> bool:
    """Write snapshots of all streams under `model`.

    Parameters
    ----------
    model, store
        The weights, and the log to fold.
    told
        Called now and then with the number of streams done so far and of steps folded since the last call; False ends
        it early.

    Returns
    -------
    Whether all streams were done.
    """
    done = after = 0
    while records := store.page_by_id(after, _STREAMS):
        after = records[-1].id
        for part in _parts(records):
            found = [
                recovery
                for recovery in store.recover([record.unique_id for record in part], model.key).values()
                if recovery.tail or recovery.snapshot is None
            ]
            done += len(part)
            folded = 0
            if found:
                states, steps, *_ = restore(model, store, found)
                folded = sum(steps)
                store.save_snapshots(
                    model.key,
                    {recovery.record: state for recovery, state in zip(found, states.to_bytes(), strict=True)},
                )
            if not told(done, folded):
                return False
    return True


def _parts(records: list[StreamRecord]) -> list[list[StreamRecord]]:
    """Consecutive streams of bounded total length."""
    parts: list[list[StreamRecord]] = [[]]
    steps = 0
    for record in records:
        length = record.last_step - record.log_step + 1
        if parts[-1] and steps + length > _STEPS:
            parts.append([])
            steps = 0
        parts[-1].append(record)
        steps += length
    return parts
