"""Re-deriving: the states of every stream under a new model, from the log, while the old model serves.

It reads the log and writes snapshots under the new model's key, and touches nothing the engine holds. After it, the
switch needs no work: a stream's first touch finds its snapshot and folds the few observations that came since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from service.engine.folding import MOST_STEPS, restore
from service.models.served import ServedModel
from service.store import Store

__all__ = ["rederive"]

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
        Steps folded at once. A state counts for nothing if its stream has changed before it was stored, so the fewer,
        the busier a stream may be.

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
            found = list(store.recover(part, model.key).values())
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
