"""From logs to states: a stretch of log made dense, ragged batches of them, restoring and rewinding.

It knows the library's `fold` and the store's rows, and keeps nothing. Invariant: whatever the path (append, restore,
rewind), the state is the fold of exactly the log's steps from the first to the last, filled steps being missing ones.
Of a trimmed log, what was before lives on in the snapshots; a model that has none of them begins where the log does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import torch

from forecaster import ArtifactError, Forecaster, InputError, StreamState
from service.errors import StaleStreams
from service.models.served import ServedModel
from service.store import Recovery, Store, StreamRecord, Value
from service.store.values import covariates_of, ys_of

__all__ = [
    "LONGEST",
    "MOST_STEPS",
    "TOGETHER",
    "Glance",
    "Restored",
    "Rewound",
    "Stretch",
    "begin",
    "dense",
    "fold_ragged",
    "numbers",
    "restore",
    "rewind",
    "stacked",
    "static_values",
    "stretch_of",
]

Float = npt.NDArray[np.float64]

_CELLS = 1 << 20  # values of one padded batch, to bound memory
_UNSEEN = 8192  # steps between two glances: a fifth of a second of one row, three seconds of as many as there may be
Glance = Callable[[], None]
"""Called now and then in long work; raises GivenUp if nobody waits for it any longer."""
AT_ONCE = 100_000
"""Steps of one log that are folded at once."""
LONGEST = 1 << 15
"""Steps of single logs that the engine folds while all others wait, a second or two: the default network takes 25 µs or
more for each, one stream at a time."""
TOGETHER = 1 << 16
"""Steps of several streams, side by side, that the engine folds while all others wait, a second or so."""
MOST_STEPS = 1_000_000
"""Of logs that are in memory together; one that alone is longer is read a stretch at a time."""


class Stretch(NamedTuple):
    """Consecutive steps of one stream: y, None where missing, and the model's dynamic covariates if it has any."""

    values: list[float | None]
    table: npt.NDArray[np.float64] | None = None


def dense(forecaster: Forecaster, rows: Mapping[int, Value], after: int, last_step: int) -> Stretch:
    """The steps after `after` up to `last_step`; missing where there is no row or no value."""
    return stretch_of(forecaster, list(map(rows.get, range(after + 1, last_step + 1))))


def stretch_of(forecaster: Forecaster, values: list[Value]) -> Stretch:
    """Values of the log as the model reads them."""
    table = None
    if forecaster.config.covariates.dynamic:
        table = forecaster.table([_readable(forecaster, covariates_of(value)) for value in values])
    return Stretch(ys_of(values), table)


def _readable(forecaster: Forecaster, covariates: dict[str, Any] | None) -> dict[str, Any] | None:
    """Without what this model cannot read: the log may have been written under another one."""
    try:
        forecaster.table([covariates])
    except InputError:
        return {k: v for k, v in (covariates or {}).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return covariates


def begin(forecaster: Forecaster, records: Sequence[StreamRecord]) -> StreamState:
    """Initial states of streams, before the first step of their retained log."""
    static: list[dict[str, Any] | None] = [None if r.static is None else orjson.loads(r.static) for r in records]
    steps = torch.tensor([record.log_step for record in records], dtype=torch.int64)
    return forecaster.initial_state(steps, static_values(forecaster, [r.unique_id for r in records], static))


def static_values(
    forecaster: Forecaster, names: Sequence[str], static: Sequence[dict[str, Any] | None]
) -> torch.Tensor | None:
    """Static numbers of streams, None for models without static covariates; what a model cannot read is missing."""
    covariates = forecaster.config.covariates
    if not covariates.static and not covariates.country:
        return None
    try:
        return forecaster.static(names, static)
    except InputError:
        return forecaster.static(names, [None] * len(names))


def fold_ragged(
    forecaster: Forecaster,
    state: StreamState,
    stretches: Sequence[Stretch],
    places: dict[int, Float] | None = None,
    glance: Glance | None = None,
) -> StreamState:
    """Fold a stretch of its own length into each row.

    Parameters
    ----------
    forecaster
        The model.
    state
        B rows.
    stretches
        B of them.
    places
        Filled, if given: row → where each value of its stretch lay in what was forecast for it one step before.
    glance
        Ends a long fold early, one without `places`.
    """
    lengths = [len(stretch.values) for stretch in stretches]
    longest = max(lengths, default=0)
    if longest == 0:
        return state
    # Rows of similar length together, so that one long history does not pad a thousand short ones.
    parts: list[tuple[list[int], StreamState]] = []
    order = sorted(range(len(stretches)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        stop = start + 1
        shortest = max(lengths[order[start]], 1)
        while (
            stop < len(order)
            and (longest := lengths[order[stop]]) <= 2 * shortest
            and longest * (stop + 1 - start) <= _CELLS
        ):
            stop += 1
        rows = order[start:stop]
        part = state if len(rows) == len(stretches) and rows == list(range(len(rows))) else state.select(rows)
        chosen = [stretches[row] for row in rows]
        after, found = _fold_padded(forecaster, part, chosen, placed=places is not None, glance=glance)
        if places is not None and found is not None:
            places.update((row, line[: lengths[row]]) for row, line in zip(rows, found, strict=True))
        parts.append((rows, after))
        start = stop
    if len(parts) == 1 and order == list(range(len(order))):
        return parts[0][1]
    folded = StreamState.concat([part for _, part in parts])
    back = torch.empty(len(stretches), dtype=torch.int64)
    back[torch.tensor([row for rows, _ in parts for row in rows])] = torch.arange(len(stretches))
    return folded.select(back)


def numbers(values: Sequence[float | None] | Sequence[Sequence[float | None]]) -> torch.Tensor:
    """Values, or rows of equal length, as float64, NaN for None."""
    return torch.from_numpy(np.array(values, dtype=np.float64))


def stacked(stretches: Sequence[Stretch]) -> torch.Tensor | None:
    """Tables of all rows, filled up to the longest with missing values; None for models without dynamic covariates."""
    tables = [stretch.table for stretch in stretches if stretch.table is not None]
    if not tables:
        return None
    stacked = np.full((len(tables), max(map(len, tables)), tables[0].shape[1]), np.nan)
    for row, table in zip(stacked, tables, strict=True):
        row[: len(table)] = table
    return torch.from_numpy(stacked)


def _fold_padded(
    forecaster: Forecaster, state: StreamState, stretches: Sequence[Stretch], *, placed: bool, glance: Glance | None
) -> tuple[StreamState, Float | None]:
    lengths = np.array([len(stretch.values) for stretch in stretches], dtype=np.int64)
    longest = int(lengths.max())
    if longest == 0:
        return state, None
    if int(lengths.min()) == longest:
        y, ends = numbers([stretch.values for stretch in stretches]), None
    else:
        padded = np.full((len(stretches), longest), np.nan)
        for row, stretch in zip(padded, stretches, strict=True):
            row[: len(stretch.values)] = np.array(stretch.values, dtype=np.float64)
        y, ends = torch.from_numpy(padded), torch.from_numpy(lengths)
    if placed:
        return forecaster.fold_and_place(state, y, ends, stacked(stretches))
    table = stacked(stretches)
    if glance is None:
        return forecaster.fold(state, y, ends, table), None
    for start in range(0, longest, _UNSEEN):
        glance()
        part = slice(start, start + _UNSEEN)
        left = None if ends is None else (ends - start).clamp(0, _UNSEEN)
        state = forecaster.fold(state, y[:, part], left, None if table is None else table[:, part])
    return state, None


class Restored(NamedTuple):
    """States of streams, one row each.

    Attributes
    ----------
    unsaved
        Steps folded since the snapshot, per row.
    damaged
        How many snapshots could not be read and were passed over.
    begun
        How many states begin where a trimmed log does.
    long, later
        Streams without a row, as their newest snapshot cannot be read, and one before it leaves too much to be folded:
        of the one stream, and of all together.
    """

    states: StreamState
    unsaved: list[int]
    damaged: int
    begun: int
    long: list[str]
    later: list[str]


def restore(
    model: ServedModel,
    store: Store,
    recoveries: Sequence[Recovery],
    longest: float = math.inf,
    most: float = math.inf,
) -> Restored:
    """States of streams from their latest snapshot and the log after it.

    A snapshot that cannot be read is passed over for the one before it, the last of them for the retained log. Of those
    streams no one is folded by more than `longest` steps, and no more once all of them have been by `most`.

    Raises
    ------
    StaleStreams
        A log that is read a stretch at a time has meanwhile done more than grow.
    """
    forecaster = model.forecaster
    read, _ = _read_snapshots(forecaster, [r.snapshot for r in recoveries])
    found: list[tuple[Recovery, int]] = []  # and the step up to which it is wanted
    bases: list[StreamState | None] = []
    long: list[str] = []
    later: list[str] = []
    damaged = 0
    for recovery, base in zip(recoveries, read, strict=True):
        record = recovery.record
        if base is not None or recovery.snapshot is None:
            found.append((recovery, record.last_step))
            bases.append(base)
            continue
        if most <= 0:
            later.append(record.unique_id)
            continue
        held = int(min(longest, MOST_STEPS))
        nearest, base, more = _nearest(model, store, record, record.last_step + 1, skip=1, most=held)
        steps = record.last_step - (nearest.record.log_step - 1 if base is None else int(base.last_step))
        if steps > longest:
            long.append(record.unique_id)
            continue
        most -= steps
        damaged += 1 + more
        found.append((nearest, record.last_step))
        bases.append(base)
    tails: list[Stretch] = []
    unsaved: list[int] = []
    begun = 0
    for i, (recovery, last_step) in enumerate(found):
        record, base = recovery.record, bases[i]
        begun += base is None and record.retained_step is not None
        after = record.log_step - 1 if base is None else int(base.last_step)
        unsaved.append(last_step - after)
        if recovery.too_long:
            start = begin(forecaster, [record]) if base is None else base
            bases[i], after = _fold_log(forecaster, store, record, start, {}, last_step), last_step
        # The log may have been read a moment after the record, and then has later steps, too.
        tails.append(dense(forecaster, dict(recovery.tail), after, last_step))
    with_base = [i for i, base in enumerate(bases) if base is not None]
    without = [i for i, base in enumerate(bases) if base is None]
    parts = []
    if with_base:
        parts.append(StreamState.concat([base for base in bases if base is not None]))
    if without or not found:
        parts.append(begin(forecaster, [found[i][0].record for i in without]))
    order = with_base + without
    states = fold_ragged(forecaster, StreamState.concat(parts), [tails[i] for i in order])
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
    return Restored(states.select(back), unsaved, damaged, begun, long, later)


def _fold_log(
    forecaster: Forecaster,
    store: Store,
    record: StreamRecord,
    state: StreamState,
    changed: Mapping[int, Value],
    last_step: int,
    places: list[Float] | None = None,
) -> StreamState:
    """Fold the log of one stream and what changes it, `AT_ONCE` at a time; places as in `rewind`, if asked for."""
    after = int(state.last_step)
    while after < last_step:
        until = min(after + AT_ONCE, last_step)
        rows = dict(store.log(record.id, after, until)) | {s: v for s, v in changed.items() if after < s <= until}
        found: dict[int, Float] | None = None if places is None else {}
        state = fold_ragged(forecaster, state, [dense(forecaster, rows, after, until)], found)
        if places is not None and found is not None:
            places.append(found[0])
        after = until
        if not store.has_only_grown(record):
            raise StaleStreams([record.unique_id])
    return state


def _nearest(
    model: ServedModel, store: Store, record: StreamRecord, step: int, skip: int = 0, most: int | None = None
) -> tuple[Recovery, StreamState | None, int]:
    """The newest readable state from before a step, with the log after it, and how many could not be read."""
    most = MOST_STEPS if most is None else most
    damaged = 0
    while True:
        recovery = store.recover_before(record, model.key, step, skip + damaged, most)
        (base,), unreadable = _read_snapshots(model.forecaster, [recovery.snapshot])
        if not unreadable:
            return recovery, base, damaged
        damaged += 1


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


class Rewound(NamedTuple):
    """State of one stream whose log changes at or before its last step.

    Attributes
    ----------
    after
        The step before the first that was folded again.
    places
        Of the values folded again, in what was forecast for them.
    begun
        Whether the state begins where a trimmed log does.
    """

    state: StreamState
    after: int
    places: Float
    begun: bool


def rewind(
    model: ServedModel,
    store: Store,
    record: StreamRecord,
    changed: dict[int, Value],
    last_step: int,
    longest: int | None = None,
) -> Rewound | None:
    """Fold a stream anew from before a change of its log.

    Parameters
    ----------
    model
        The weights to fold with.
    store
        Holds the log before the change.
    record
        The stream before the change.
    changed
        step → value of new and revised rows.
    last_step
        The stream's last step after the change.
    longest
        Most steps to fold.

    Returns
    -------
    None if there are more.

    Raises
    ------
    StaleStreams
        The log has been trimmed meanwhile beyond the change.
    """
    forecaster = model.forecaster
    recovery, base, _ = _nearest(model, store, record, min(changed), most=LONGEST)
    if min(changed) < recovery.record.log_step:
        raise StaleStreams([record.unique_id])
    anew = base is None and recovery.record.retained_step is not None
    if base is None:
        base = begin(forecaster, [recovery.record])
    after = int(base.last_step)
    if recovery.record.version != record.version:
        # Another process went on; the commit would fail.
        raise StaleStreams([record.unique_id])
    if longest is not None and last_step - after > longest:
        return None
    if recovery.too_long:
        parts: list[Float] = []
        state = _fold_log(forecaster, store, recovery.record, base, changed, last_step, parts)
        return Rewound(state, after, np.concatenate(parts), anew)
    places: dict[int, Float] = {}
    rows = dict(recovery.tail) | changed
    state = fold_ragged(forecaster, base, [dense(forecaster, rows, after, last_step)], places)
    return Rewound(state, after, places[0], anew)
