"""The stream state: everything a series carries from one observation to the next, as one value.

A batch holds one row per series in a struct of tensors, rows first, so that picking rows is one gather per field. The
value is immutable by convention: `assign` alone writes in place, for the one slab a serving engine keeps. Bytes are
written per row, little-endian, with a format version and a checksum; no pickle.

Axes: B row (series), L layer, P hidden size, C cell size (0 unless LSTM), W ring length, K statistics, G
group of horizon steps, S scored step of a flight, Q quantity of `forecaster.quality`, V static numbers, X number
that a deferred flight is decoded from, K' known covariate.
"""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forecaster import kernels
from forecaster.errors import ArtifactError
from forecaster.quality import QUANTITIES

__all__ = ["StateLayout", "StreamState"]

STATE_FORMAT = 3
_HEAD = struct.Struct("<4sHH")  # magic, format version, reserved
_CHECKSUM = struct.Struct("<I")  # CRC-32 of all but itself
_HEADER_SIZE = _HEAD.size + _CHECKSUM.size
_MAGIC = b"FCST"


@dataclass(frozen=True)
class StreamState:
    """State of B series.

    Attributes
    ----------
    hidden, cell
        Recurrent state, float32, shapes [B, L, P] and [B, L, C].
    ring
        The last W values, float64, shape [B, W], step s in slot s mod W, so that a new one overwrites the oldest and
        nothing moves. For a missing one stands what is expected of it, see `forecaster.kernels.advance`; NaN where
        nothing was ever observed. A *change*, one more step of some rows of a state, to be written over these rows by
        `assign`, holds the latest value only, shape [B, 1]; `UNCHANGED` stands for the fields that it leaves as they
        are.
    statistics
        Decayed sums behind the scaling, float64, shape [B, K]; see `forecaster.scaling`.
    clocks
        `age`, `silence` and `last_step`, int64, shape [B, 3].
    correction
        Logarithms of the factors by which this stream's intervals are stretched, below and above the median, float32,
        shape [B, 2, G]; see `forecaster.calibration`.
    flight
        What coming observations are held against: median, and inverse distances of the bounds below and above it,
        float32, shape [B, 3, S]; NaN before the first.
    ruler
        What the numbers in `flight` are measured with, location and inverse breadth, float64, shape [B, 2]; of a
        deferred flight its frame, location, scale and unit, shape [B, 3].
    issued
        The forecast that coming observations are held against to score it, as it was issued: three quantiles and the
        seasonal naive forecast, less the location of `ruler`, float32, shape [B, 4, S]; NaN before the first.
    quality
        Sums of its and earlier ones' scores, all and recent, float32, shape [B, 2, Q, S]; see `forecaster.quality`.
    aboard
        In place of `flight` and `issued` where covariates are known for the future: what the forecast in flight will be
        decoded from once they have come, float32, shape [B, X]; see `forecaster.deferred`. X is 0 in other models.
    arrived
        What has come of its scored steps, y and then the known covariates, float64, shape [B, S, 1 + K']; NaN where
        nothing has. The last axis is empty in other models.
    static
        What does not change: the static covariates and the country whose holidays count, as numbers, float64, shape
        [B, V]; NaN is missing.
    moment
        What a forecast would derive from the fields above, if whoever made this state had it at hand; else None. Only
        saves work: never stored, never copied to another state.
    """

    hidden: Tensor
    cell: Tensor
    ring: Tensor
    statistics: Tensor
    clocks: Tensor
    correction: Tensor
    flight: Tensor
    ruler: Tensor
    issued: Tensor
    quality: Tensor
    aboard: Tensor
    arrived: Tensor
    static: Tensor
    moment: object | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.clocks.shape[0])

    @property
    def age(self) -> Tensor:
        """Steps folded so far, missing ones included, int64, shape [B]."""
        return self.clocks[:, 0]

    @property
    def silence(self) -> Tensor:
        """Missing steps since the latest observed one, int64, shape [B]."""
        return self.clocks[:, 1]

    @property
    def last_step(self) -> Tensor:
        """Step number of the latest folded step, int64, shape [B]."""
        return self.clocks[:, 2]

    @property
    def blank(self) -> Tensor:
        """Rows that never observed a value, bool, shape [B]."""
        return self.age == self.silence

    def _tensors(self) -> list[Tensor]:
        fields = self.__dict__
        return [fields[name] for name in _NAMES]

    @cached_property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The fields' memory by name, in order, kept as asking PyTorch for it costs as much as writing a few rows."""
        return {name: getattr(self, name).detach().contiguous().numpy() for name in _NAMES}

    @cached_property
    def words(self) -> tuple[kernels.Words, ...]:
        """The fields as tables of 32-bit words, their own memory where that is in order; kept for the same reason."""
        return tuple(map(_words, self._tensors()))

    @cached_property
    def _tables(self) -> tuple[kernels.Words, ...]:
        """The same, to write to."""
        if not all(tensor.is_contiguous() for tensor in self._tensors()):
            raise ValueError("only a state whose fields lie in order can be written to")
        return self.words

    def amended(self, **changes: object) -> StreamState:
        """The same state with some fields replaced: what `dataclasses.replace` does, in a fraction of the time."""
        copy = object.__new__(StreamState)
        copy.__dict__.update(self.__dict__, moment=None)
        for kept in ("arrays", "words", "_tables"):
            copy.__dict__.pop(kept, None)
        copy.__dict__.update(changes)
        return copy

    def remember(self, moment: object) -> StreamState:
        """The same state with `moment` at hand."""
        copy = object.__new__(StreamState)
        copy.__dict__.update(self.__dict__, moment=moment)
        return copy

    def select(self, rows: Tensor | Sequence[int] | slice) -> StreamState:
        """Rows by index, boolean mask or slice; indices copy, a slice shares memory."""
        if isinstance(rows, slice):
            return StreamState(*(tensor[rows] for tensor in self._tensors()))
        index = _index(rows)
        return StreamState(*(tensor.index_select(0, index) for tensor in self._tensors()))

    def assign(self, rows: Tensor | Sequence[int], other: StreamState) -> None:
        """Write `other`, or a change of these rows, over `rows`, in place; the only method that changes a state."""
        object.__setattr__(self, "moment", None)
        index, tables, given = _index(rows).numpy(), self._tables, other.words
        if index.shape[0] != other.clocks.shape[0]:
            raise ValueError(f"{len(other)} rows do not fit {len(index)} places")
        placed, places = -1, index
        for i, (table, words) in enumerate(zip(tables, given, strict=True)):
            if words.shape[1] not in (0, table.shape[1]):
                if i != _RING or words.shape[1] > table.shape[1]:
                    raise ValueError(f"rows of {words.shape[1]} words do not fit {table.shape[1]}")
                placed, places = i, other.clocks.numpy()[:, 2] % (table.shape[1] // 2) * 2
        kernels.write(index, tables, given, placed, places)

    def replace_rows(self, rows: Tensor, other: StreamState) -> StreamState:
        """Copy of `self` with `rows` taken from `other`, row by row."""
        return StreamState(
            *(mine.index_copy(0, rows, theirs) for mine, theirs in zip(self._tensors(), other._tensors(), strict=True))
        )

    def detach(self) -> StreamState:
        """Cut from the gradient graph: where truncated back-propagation stops."""
        return self.amended(hidden=self.hidden.detach(), cell=self.cell.detach())

    @staticmethod
    def change(moment: object, **fields: npt.NDArray[Any] | Tensor) -> StreamState:
        """A change: `assign` will write the fields that come as arrays; those that come as tensors are as they were."""
        change, words = dict.fromkeys(_NAMES, UNCHANGED), dict.fromkeys(_NAMES, _NO_WORDS)
        for name, found in fields.items():
            if isinstance(found, Tensor):
                change[name] = found
            else:
                change[name] = torch.from_numpy(found)
                rows = found if found.ndim == 2 else found.reshape(found.shape[0], math.prod(found.shape[1:]))
                words[name] = rows.view(np.int32)
        copy = object.__new__(StreamState)
        copy.__dict__.update(change, moment=moment, words=tuple(words.values()))
        return copy

    @staticmethod
    def concat(states: Sequence[StreamState]) -> StreamState:
        """Rows of all `states`, in order."""
        return StreamState(*(torch.cat(parts) for parts in zip(*(state._tensors() for state in states), strict=True)))

    def to_bytes(self) -> list[bytes]:
        """One self-checking record per row; `StateLayout.from_bytes` reads it back bit for bit."""
        if sys.byteorder != "little":
            raise ArtifactError("states are stored little-endian; this machine is big-endian")
        columns = [
            tensor.reshape(len(self), tensor[:1].numel() if len(self) else 0).contiguous().numpy().view(np.uint8)
            for tensor in self._tensors()
        ]
        table = np.ascontiguousarray(np.concatenate(columns, axis=1))
        head = _HEAD.pack(_MAGIC, STATE_FORMAT, 0)
        return [head + _CHECKSUM.pack(zlib.crc32(row, zlib.crc32(head))) + row.tobytes() for row in table]


_NAMES = tuple(spec.name for spec in fields(StreamState) if spec.init)
_RING = _NAMES.index("ring")
_NO_WORDS = np.empty((0, 0), np.int32)

UNCHANGED = torch.empty(0)
"""Stands for a field that a change leaves as it is."""


def _words(tensor: Tensor) -> kernels.Words:
    if tensor is UNCHANGED:
        return _NO_WORDS
    memory = np.ascontiguousarray(tensor.detach().numpy())
    return memory.reshape(len(memory), -1).view(np.int32) if memory.size else _NO_WORDS


@dataclass(frozen=True)
class StateLayout:
    """Shapes of one model's states; makes empty ones and reads stored ones.

    Parameters
    ----------
    layers, hidden, cell, ring, statistics, groups, scored, aboard, arrived, static
        The sizes L, P, C, W, K, G, S, X, 1 + K' and V of `StreamState`; G is 0 where streams are not calibrated, X and
        1 + K' where flights are not deferred, S in training, which scores none.
    """

    layers: int
    hidden: int
    cell: int
    ring: int
    statistics: int
    groups: int = 0
    scored: int = 0
    aboard: int = 0
    arrived: int = 0
    static: int = 0

    def initial(self, first_steps: Tensor, static: Tensor | None = None) -> StreamState:
        """Rows that have observed nothing; the first step they will fold is `first_steps` [B], int64.

        Their static numbers are `static` [B, V]; None: all missing.
        """
        rows = len(first_steps)
        issued = 0 if self.aboard else self.scored
        last_steps = first_steps.to(torch.int64) - 1
        return StreamState(
            hidden=torch.zeros(rows, self.layers, self.hidden),
            cell=torch.zeros(rows, self.layers, self.cell),
            ring=torch.full((rows, self.ring), torch.nan, dtype=torch.float64),
            statistics=torch.zeros(rows, self.statistics, dtype=torch.float64),
            clocks=torch.stack([torch.zeros_like(last_steps), torch.zeros_like(last_steps), last_steps], 1),
            correction=torch.zeros(rows, 2, self.groups),
            flight=torch.full((rows, 3, issued if self.groups else 0), torch.nan),
            ruler=torch.full((rows, 3 if self.aboard else 2 if self.scored else 0), torch.nan, dtype=torch.float64),
            issued=torch.full((rows, 4, issued), torch.nan),
            quality=torch.zeros(rows, 2, len(QUANTITIES), self.scored),
            aboard=torch.zeros(rows, self.aboard),
            arrived=torch.full((rows, self.scored, self.arrived), torch.nan, dtype=torch.float64),
            static=torch.full((rows, self.static), torch.nan, dtype=torch.float64) if static is None else static,
        )

    def from_bytes(self, records: Sequence[bytes]) -> StreamState:
        """Read rows written by `StreamState.to_bytes`.

        Raises
        ------
        ArtifactError
            A record is damaged, of another format, or of a model with another layout.
        """
        template = self.initial(torch.zeros(1, dtype=torch.int64))._tensors()
        size = sum(tensor.element_size() * tensor.numel() for tensor in template)
        for i, record in enumerate(records):
            _check_record(record, size, i)
        body = np.frombuffer(b"".join(record[_HEADER_SIZE:] for record in records), np.uint8).reshape(
            len(records), size
        )
        tensors, start = [], 0
        for tensor in template:
            width = tensor.element_size() * tensor.numel()
            column = body[:, start : start + width].copy()
            flat = torch.from_numpy(column.view(tensor.numpy().dtype)) if width else torch.empty(0)
            tensors.append(flat.reshape(len(records), *tensor.shape[1:]).to(tensor.dtype))
            start += width
        return StreamState(*tensors)


def _index(rows: Tensor | Sequence[int]) -> Tensor:
    if isinstance(rows, Tensor) and rows.dtype == torch.int64:
        return rows
    index = torch.as_tensor(rows)
    return index.nonzero().squeeze(1) if index.dtype == torch.bool else index.to(torch.int64)


def _check_record(record: bytes, size: int, index: int) -> None:
    if len(record) < _HEADER_SIZE or record[:4] != _MAGIC:
        raise ArtifactError(f"stored state {index} is not a state record")
    _, version, _ = _HEAD.unpack_from(record)
    if version != STATE_FORMAT:
        age = "newer" if version > STATE_FORMAT else "older"
        raise ArtifactError(
            f"stored state {index} has format {version}, {age} than {STATE_FORMAT}, which this code reads"
        )
    if len(record) != _HEADER_SIZE + size:
        raise ArtifactError(
            f"stored state {index} has {len(record) - _HEADER_SIZE} bytes, expected {size} for this model"
        )
    (checksum,) = _CHECKSUM.unpack_from(record, _HEAD.size)
    if zlib.crc32(memoryview(record)[_HEADER_SIZE:], zlib.crc32(record[: _HEAD.size])) != checksum:
        raise ArtifactError(f"stored state {index} is damaged: its checksum does not match")
