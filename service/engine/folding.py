"""From logs to states: dense values of a stretch of log, ragged batches of them, restoring and rewinding.

It knows the library's `fold` and the store's rows, and keeps nothing. Invariant: whatever the path (append, restore,
rewind), the state is the fold of exactly the log's steps from the first to the last, filled steps being missing ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from forecaster import ArtifactError, Forecaster, StreamState
from service.models.served import ServedModel
from service.store import Recovery, Store, StreamRecord

__all__ = ["dense", "fold_ragged", "restore", "rewind"]

_CELLS = 1 << 20  # values of one padded batch, to bound memory


def dense(rows: Iterable[tuple[int, float | None]], after: int, last_step: int) -> list[float]:
    """Values of the steps after `after` up to `last_step`; NaN where there is no row or no value."""
    values = [math.nan] * (last_step - after)
    for step, y in rows:
        if y is not None:
            values[step - after - 1] = y
    return values


def fold_ragged(forecaster: Forecaster, state: StreamState, values: Sequence[Sequence[float]]) -> StreamState:
    """Fold a list of values of its own length into each row.

    Parameters
    ----------
    forecaster
        The model.
    state
        B rows.
    values
        B lists; NaN = missing.
    """
    lengths = [len(v) for v in values]
    longest = max(lengths, default=0)
    if longest == 0:
        return state
    if min(lengths) == longest and longest * len(values) <= _CELLS:
        return forecaster.fold(state, torch.tensor(values, dtype=torch.float64))
    # Rows of similar length together, so that one long history does not pad a thousand short ones.
    folded = state.select(slice(None))
    parts: list[tuple[list[int], StreamState]] = []
    order = sorted(range(len(values)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        stop = start + 1
        shortest = max(lengths[order[start]], 1)
        while (
            stop < len(order)
            and (longest := lengths[order[stop]]) <= 2 * shortest
            and longest * (stop - start) < _CELLS
        ):
            stop += 1
        rows = order[start:stop]
        parts.append((rows, _fold_padded(forecaster, state.select(torch.tensor(rows)), [values[r] for r in rows])))
        start = stop
    folded = StreamState.concat([part for _, part in parts])
    back = torch.empty(len(values), dtype=torch.int64)
    back[torch.tensor([row for rows, _ in parts for row in rows])] = torch.arange(len(values))
    return folded.select(back)


def _fold_padded(forecaster: Forecaster, state: StreamState, values: Sequence[Sequence[float]]) -> StreamState:
    lengths = np.array([len(v) for v in values], dtype=np.int64)
    longest = int(lengths.max())
    if longest == 0:
        return state
    padded = np.full((len(values), longest), np.nan)
    for row, series in zip(padded, values, strict=True):
        row[: len(series)] = series
    return forecaster.fold(state, torch.from_numpy(padded), torch.from_numpy(lengths))


def restore(model: ServedModel, store: Store, recoveries: Sequence[Recovery]) -> tuple[StreamState, list[int], int]:
    """States of streams from their latest snapshot and the log after it.

    Returns
    -------
    states
        One row per recovery.
    unsaved
        Steps folded since the snapshot, per row.
    damaged
        How many snapshots could not be read; those streams were folded from the start of their log.
    """
    forecaster = model.forecaster
    bases, damaged = _read_snapshots(forecaster, [r.snapshot for r in recoveries])
    with_base = [i for i, base in enumerate(bases) if base is not None]
    without = [i for i, base in enumerate(bases) if base is None]
    tails: list[list[float]] = []
    for recovery, base in zip(recoveries, bases, strict=True):
        record = recovery.record
        if base is None:
            rows = recovery.tail if recovery.snapshot is None else store.log(record.id)
            tails.append(dense(_until(rows, record), record.first_step - 1, record.last_step))
        else:
            step = int(base.last_step)
            tails.append(dense(_until(recovery.tail, record), step, record.last_step))
    parts = []
    if with_base:
        parts.append(StreamState.concat([base for base in bases if base is not None]))
    if without:
        parts.append(forecaster.initial_state(torch.tensor([recoveries[i].record.first_step for i in without])))
    order = with_base + without
    states = fold_ragged(forecaster, StreamState.concat(parts), [tails[i] for i in order])
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(order))
    return states.select(back), [len(tail) for tail in tails], damaged


def _until(rows: Iterable[tuple[int, float | None]], record: StreamRecord) -> Iterable[tuple[int, float | None]]:
    # The log may have been read a moment after the record.
    return (row for row in rows if row[0] <= record.last_step)


def _read_snapshots(forecaster: Forecaster, records: Sequence[bytes | None]) -> tuple[list[StreamState | None], int]:
    present = [(i, record) for i, record in enumerate(records) if record is not None]
    out: list[StreamState | None] = [None] * len(records)
    if not present:
        return out, 0
    try:
        together = forecaster.state_from_bytes([record for _, record in present])
    except ArtifactError:
        pass
    else:
        for k, (i, _) in enumerate(present):
            out[i] = together.select(slice(k, k + 1))
        return out, 0
    damaged = 0
    for i, record in present:
        try:
            out[i] = forecaster.state_from_bytes([record])
        except ArtifactError:
            damaged += 1
    return out, damaged


def rewind(
    model: ServedModel, store: Store, record: StreamRecord, changed: dict[int, float | None], last_step: int
) -> StreamState:
    """State of one stream whose log changes at or before its last step.

    Parameters
    ----------
    model
        The weights to fold with.
    store
        Holds the log before the change.
    record
        The stream before the change.
    changed
        step → y of new and revised rows.
    last_step
        The stream's last step after the change.
    """
    forecaster = model.forecaster
    snapshot = store.snapshot_before(record.id, model.key, min(changed))
    (base,), _ = _read_snapshots(forecaster, [snapshot])
    if base is None:
        base = forecaster.initial_state(torch.tensor([record.first_step]))
    after = int(base.last_step)
    rows = dict(store.log(record.id, after)) | changed
    return fold_ragged(forecaster, base, [dense(rows.items(), after, last_step)])
