"""Re-deriving: the states of every stream under a new model, from the log, while the old model serves.

It reads the log and writes snapshots under the new model's key, and touches nothing the engine holds. After it, the
switch needs no work: a stream's first touch finds its snapshot and folds the few observations that came since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from service.engine.folding import MOST_STEPS, restore
from service.errors import StaleStreams
from service.models.served import ServedModel
from service.store import Recovery, Store

__all__ = ["derive", "rederive"]

_STREAMS = 256


def rederive(
    model: ServedModel,
    store: Store,
    told: Callable[[int, int], bool] = lambda _done, _steps: True,
    most: int = MOST_STEPS,
) -> bool:
    """Write snapshots of all streams under `model`.

    Parameters
    ----------
    model, store
        The weights, and the log to fold.
    told
        Called now and then with the number of streams done so far and of steps folded since the last call; False ends
        it early.
    most
        Steps folded at once. A state counts for nothing if its stream's log has changed before its end until it was
        stored, so the fewer, the likelier it is of use.

    Returns
    -------
    Whether all streams were done.
    """
    done = after = 0
    while records := store.page_by_id(after, _STREAMS):
        after = records[-1].id
        unfolded = store.unfolded([record.unique_id for record in records], model.key)
        behind = {name: steps for name, steps in unfolded.items() if steps}
        done += len(records) - len(behind)
        for part in _parts(behind, most) or [[]]:
            folded, left = 0, part
            while left:
                found, left = store.recover_some(left, model.key, MOST_STEPS)
                folded += derive(model, store, list(found.values()))
            done += len(part)
            if not told(done, folded):
                return False
    return True


def derive(model: ServedModel, store: Store, found: Sequence[Recovery]) -> int:
    """Fold and store states of streams; returns how many steps."""
    if not found:
        return 0
    era = store.era
    try:
        states, steps, *_ = restore(model, store, found)
    except StaleStreams:  # the log of one is no longer what it was; that one is folded when it is touched
        return sum(derive(model, store, [one]) for one in found) if len(found) > 1 else 0
    records = [recovery.record for recovery in found]
    store.save_snapshots(model.key, dict(zip(records, states.to_bytes(), strict=True)), era=era)
    return sum(steps)


def _parts(lengths: Mapping[str, int], most: int) -> list[list[str]]:
    """Streams, by the length of what is to be folded of each, in parts of `most` steps, unless one alone has more."""
    parts: list[list[str]] = []
    steps = 0
    for name, length in lengths.items():
        if not parts or steps + length > most:
            parts.append([])
            steps = 0
        parts[-1].append(name)
        steps += length
    return parts
