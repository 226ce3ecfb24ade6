"""What the store holds and is told, as values: streams, what rebuilds their states, what one micro-batch changes.

It knows step numbers and bytes; no SQL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from service.store.values import Value

__all__ = ["Changes", "Filter", "NewStream", "Recovery", "StreamRecord"]

_FEW = 64  # rows whose statements run as fast as another thread begins to work, as do those of single observations


class StreamRecord(NamedTuple):
    """One row of the stream table.

    `retained_step` None: nothing has been trimmed. `rewound_version`: since that change of the log before its end, it
    has only grown; None: it never did anything else.
    """

    id: int
    unique_id: str
    first_step: int
    last_step: int
    version: int
    observations: int
    missing: int
    static: str | None = None
    retained_step: int | None = None
    rewound_version: int | None = None

    @property
    def log_step(self) -> int:
        """First step of the log that is retained."""
        return self.first_step if self.retained_step is None else self.retained_step


class Filter(NamedTuple):
    """Which streams to list: by the beginning of their name, and where they stand (`last_step` from, and before)."""

    prefix: str = ""
    first: int | None = None
    before: int | None = None


class Recovery(NamedTuple):
    """What is needed to rebuild one state: a snapshot, if there is one, and the log after it.

    A log that is too long to be held at once is not in `tail` but to be read a stretch at a time.
    """

    record: StreamRecord
    snapshot: bytes | None
    snapshot_step: int | None
    tail: list[tuple[int, Value]]
    too_long: bool = False


class NewStream(NamedTuple):
    """A stream to create (`replaces` None) or to replace, with its whole log."""

    record: StreamRecord
    replaces: StreamRecord | None
    rows: list[tuple[int, Value]]


@dataclass(slots=True)
class Changes:
    """Everything one micro-batch changes.

    Attributes
    ----------
    inserted, updated
        (stream id, step, value) of log rows.
    streams
        (record after the change, version before it).
    rewound
        (stream id, step): snapshots from this step on are void.
    created
        Streams with a new log.
    deleted
        Streams to forget.
    held
        (stream id, version) of streams that stay as they are, and must until this is durable: a reply tells of them.
    era
        Of the store, when what this rests on was read; None: it rests on nothing.
    """

    inserted: list[tuple[int, int, Value]] = field(default_factory=list)
    updated: list[tuple[int, int, Value]] = field(default_factory=list)
    streams: list[tuple[StreamRecord, int]] = field(default_factory=list)
    rewound: list[tuple[int, int]] = field(default_factory=list)
    created: list[NewStream] = field(default_factory=list)
    deleted: list[StreamRecord] = field(default_factory=list)
    held: list[tuple[int, int]] = field(default_factory=list)
    era: int | None = None

    @property
    def is_short(self) -> bool:
        """Whether a few new rows are all there is."""
        others = self.updated or self.rewound or self.created or self.deleted
        return 0 < len(self.inserted) <= _FEW and not others

    def __bool__(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.streams or self.created or self.deleted)
