"""The shadow: a challenger folds the log behind the champion, in a process of its own (``python -m service.shadow``).

It reads the store and writes one line of JSON now and then: what the challenger's forecasts were worth, stream by
stream. It takes the processor last, changes nothing in the store, and ends when nobody reads its lines. Figures come
from the same flights as the champion's, since these follow from step numbers (`forecaster.quality`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import orjson
import torch

from forecaster import StreamState
from service.engine.folding import Stretch, begin, dense, fold_ragged
from service.engine.slab import Slab
from service.models.served import ServedModel, load_model
from service.store import Store, StreamRecord

__all__ = ["Follower", "main"]

_PAGE = 256
_NICE = 19  # the least of priorities


class _Known(NamedTuple):
    """A stream as it was folded: its record and its row."""

    record: StreamRecord
    row: int


class Follower:
    """States of the first streams of a store under one model, in memory only.

    Parameters
    ----------
    model, store
        The weights, and the log to fold.
    limit
        How many streams, the oldest first.
    steps
        So many at most are held and folded at once.
    """

    def __init__(self, model: ServedModel, store: Store, limit: int, steps: int = 1_000_000) -> None:
        self._model = model
        self._store = store
        self._limit = limit
        self._steps = steps
        self._slab = Slab(model.forecaster)
        self._known: dict[int, _Known] = {}

    def look(self) -> None:
        """Fold what is new; a stream whose log has done more than grow is folded anew."""
        after, seen = 0, set[int]()
        while len(seen) < self._limit:
            page = self._store.page_by_id(after, min(_PAGE, self._limit - len(seen)))
            if not page:
                break
            after = page[-1].id
            seen.update(record.id for record in page)
            self._follow([r for r in page if r.id not in self._known or self._known[r.id].record.version != r.version])
        for gone in self._known.keys() - seen:
            self._slab.give_back([self._known.pop(gone).row])

    def _follow(self, records: list[StreamRecord]) -> None:
        bases, rows, stretches = list[StreamState](), list[int](), list[Stretch]()
        forecaster = self._model.forecaster

        def fold() -> None:
            if rows:
                self._slab.scatter(rows, fold_ragged(forecaster, StreamState.concat(bases), stretches))
            for found in (bases, rows, stretches):
                found.clear()

        held = 0
        for record in records:
            known = self._known.get(record.id)
            row = self._slab.take(1)[0] if known is None else known.row
            if known is not None and _goes_on(known.record, record):
                after, base = known.record.last_step, self._slab.gather([row])
            else:
                after, base = record.log_step - 1, begin(forecaster, [record])
            start = after
            while True:
                until = min(after + self._steps - held, record.last_step)
                found = self._store.log(record.id, after, until)
                if not self._store.has_only_grown(record):
                    # What was read may lack what has been trimmed since; the next look asks again.
                    if known is None or after > start:
                        self._known.pop(record.id, None)
                        self._slab.give_back([row])
                    break
                bases.append(base)
                rows.append(row)
                stretches.append(dense(forecaster, dict(found), after, until))
                held += until - after
                if held >= self._steps:
                    fold()
                    held = 0
                if until == record.last_step:
                    self._known[record.id] = _Known(record, row)
                    break
                after, base = until, self._slab.gather([row])
        fold()

    def line(self) -> bytes:
        """What is known, as JSON."""
        records = [known.record for known in self._known.values()]
        total, recent = self._slab.scores([known.row for known in self._known.values()])
        said = {
            "unique_ids": [record.unique_id for record in records],
            "last_steps": [record.last_step for record in records],
            "total": total.tolist(),
            "recent": recent.tolist(),
        }
        return orjson.dumps(said) + b"\n"


def _goes_on(before: StreamRecord, now: StreamRecord) -> bool:
    """Whether a log has only grown, and what was added is still there."""
    return (now.rewound_version or 0) <= before.version and now.log_step <= before.last_step + 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow until nobody listens."""
    parser = argparse.ArgumentParser(prog="python -m service.shadow", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="artifact folder")
    parser.add_argument("--streams", type=int, required=True, help="how many are followed")
    parser.add_argument("--seconds", type=float, required=True, help="pause between two looks")
    given = parser.parse_args(arguments)
    os.nice(_NICE)
    torch.set_num_threads(1)
    with torch.inference_mode():
        follower = Follower(load_model(given.model), Store.open(os.environ["FORECASTER_STORE"]), given.streams)
        while True:
            follower.look()
            try:
                sys.stdout.buffer.write(follower.line())
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                return 0
            time.sleep(given.seconds)


if __name__ == "__main__":
    sys.exit(main())
