"""From a micro-batch to results, whatever goes wrong: tried again, in halves, one by one, or answered with the reason.

It knows micro-batches and residents, not threads or queues. Invariants: every item gets a result; what was committed is
never judged a second time; what is in memory is what is stored, or is dropped.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping

from sqlalchemy.exc import SQLAlchemyError

from service.engine.items import Item, Look, Observe, Outcome, Render, Result
from service.engine.microbatch import MicroBatch
from service.engine.residents import Residents
from service.errors import StaleStreams, UnknownOutcome, first_line, let_go
from service.metrics import Metrics
from service.problems import Problem, busy, failed, outcome_unknown, unanswered, unavailable

__all__ = ["Attempts"]

_STALE_RETRIES = 3
_STALE_RETRIES_ALONE = 20  # each loss is another's success, so this many in a row are rare


class Attempts:
    """All tries at the items of one micro-batch.

    Parameters
    ----------
    residents
        Whose streams they are.
    micro_batch
        Makes another one over them.
    metrics
        Told about failed commits, and about scores.
    snapshot_every
        Steps after which a stream is due for a snapshot.

    Attributes
    ----------
    parts
        Name, begin and end of what took its time in the last try.
    """

    def __init__(
        self, residents: Residents, micro_batch: Callable[[], MicroBatch], metrics: Metrics, snapshot_every: int
    ) -> None:
        self._residents = residents
        self._micro_batch = micro_batch
        self._metrics = metrics
        self._snapshot_every = snapshot_every
        self.parts: list[tuple[str, float, float]] = []

    def finish(self, items: list[Item], begun: MicroBatch | None = None) -> tuple[dict[Item, Result], list[str]]:
        """Results of items, and streams that are due for a snapshot; the first try may have begun already."""
        for _ in range(_STALE_RETRIES if len(items) > 1 else _STALE_RETRIES_ALONE):
            batch = begun or self._micro_batch()
            self.parts = batch.parts
            try:
                results = batch.run(items) if begun is None else batch.end()
                if batch.scores is not None:
                    self._metrics.scored(batch.scores)
                return results, [r.record.unique_id for r in batch.due if r.unsaved >= self._snapshot_every]
            except StaleStreams as stale:
                self._residents.doubt(stale.unique_ids)
                begun = None
            except (SQLAlchemyError, sqlite3.Error, UnknownOutcome) as error:
                found = self._without_store(items, error)
                let_go(error)
                return found, []
            except Exception:
                if batch.has_told:
                    # What memory failed to follow, the store has.
                    logging.getLogger("service").exception("%d streams are dropped from memory", len(items))
                    self._residents.drop([item.unique_id for item in items])
                    return batch.results, []
                return self._apart(items, batch.taken()), []
        if len(items) > 1:
            # Others change some of these streams all the time; the fewer at once, the likelier that none of them is.
            half = len(items) // 2
            (first, due), (second, more) = self.finish(items[:half]), self.finish(items[half:])
            return first | second, due + more
        return {
            item: busy(f"stream {item.unique_id!r} is being changed by others; nothing was changed, try again")
            for item in items
        }, []

    def _without_store(self, items: list[Item], error: Exception) -> dict[Item, Result]:
        self._metrics.failed_commits.inc()
        logging.getLogger("service").error("the store failed: %s", first_line(error))
        unknown = isinstance(error, UnknownOutcome)
        if unknown:
            # What is in memory may be behind what is stored.
            self._residents.drop([item.unique_id for item in items])
        refused: dict[Item, Result] = {
            item: outcome_unknown()
            if unknown
            else unavailable("the store does not accept data at present; nothing was changed")
            for item in items
            if item.writes
        }
        reads = [item for item in items if not item.writes]
        if reads and refused:
            refused.update(self.finish(reads)[0])
        else:
            refused.update((item, unavailable("the store cannot be read at present")) for item in reads)
        return refused

    def _apart(self, items: list[Item], taken: Mapping[Item, Outcome]) -> dict[Item, Result]:
        """After an unexpected failure: drop what is in memory, and find the guilty item by running each alone."""
        logging.getLogger("service").exception("a micro-batch of %d items failed", len(items))
        self._residents.drop([item.unique_id for item in items])
        results: dict[Item, Result] = dict(taken)
        for item in items:
            found = taken.get(item)
            if found is None:
                results[item] = self.finish([item])[0][item] if len(items) > 1 else failed()
            elif isinstance(item, Observe) and item.render is not None:
                results[item] = self._answered(item, found) if len(items) > 1 else unanswered(found.record.version)
        return results

    def _answered(self, item: Observe, found: Outcome) -> Result:
        """What has been taken, with the forecast that is still missing."""

        def completed(looked: Outcome) -> Outcome:
            looked.judgement, looked.places, looked.surprises = found.judgement, found.places, found.surprises
            return looked

        render = item.render
        written: Render | None = None if render is None else lambda looked, want: render(completed(looked), want)
        look = Look(item.ticket, item.unique_id, item.want, written, item.future)
        looked = self.finish([look])[0][look]
        if isinstance(looked, Problem) or looked.reply is None:
            return unanswered(found.record.version)
        return completed(looked)
