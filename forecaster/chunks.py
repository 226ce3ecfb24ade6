"""Chunks in lanes: how a panel is cut for truncated back-propagation through time.

Every series is cut into *segments*, every segment into chunks of K steps. A *lane* plays one segment chunk by chunk and
takes the next at a chunk boundary, so that a reset never falls inside a chunk; all lanes together form one batch. Knows
values and positions only: no network, no clock, no randomness but the generator it is given.

Axes: B lane, K step of a chunk, H horizon step, R lane that resets, D dynamic column, S static number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forecaster.panel import Panel

__all__ = ["Chunk", "Lanes", "Segment", "cut_segments", "validation_chunks"]

Float = npt.NDArray[np.float64]

SHORTEST_SEGMENT = 8
"""Chunks in a segment that is cut from a longer series: its first chunk only warms up, so shorter ones waste."""

COMPANY = 48
"""Series of those beside the panel's own that are played in each pass."""

OWN_SHARE = 1 / 5
"""Plays of the panel's own segments per play of company, at least: with many more they are learnt by heart."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps `start` to `end` of one series; `start` > 0 means that it was cut off, not that the series began."""

    series: int
    start: int
    end: int


class Chunk(NamedTuple):
    """K consecutive steps of every lane.

    Attributes
    ----------
    y
        Values to fold, float64, shape [B, K]; NaN is missing, and where a segment ended.
    future
        The values from one step after the first of `y`, shape [B, K - 1 + H]: step k's targets are
        ``future[k : k + H]``. NaN where unknown or beyond what may be learnt from.
    scored
        Whether the origin at this step counts in the loss, bool, shape [B, K].
    reset
        Lanes that begin a segment here, int64, shape [R].
    prefix
        Values just before each reset lane's segment, float64, shape [R, P], NaN before the series began: they fill the
        scaling state, not the recurrent one.
    start
        Position of each reset lane's segment in its series, int64, shape [R].
    step
        Step number of that position, int64, shape [R].
    static
        Static numbers of each reset lane's series, float64, shape [R, S].
    covariates
        Values of the dynamic columns from the first step of `y` on, float64, shape [B, K + H, D]; step k's future is
        ``covariates[k + 1 : k + 1 + H]``.
    lengths
        Steps to fold per lane, int64, shape [B]; None for all K.
    """

    y: Tensor
    future: Tensor
    scored: Tensor
    reset: Tensor
    prefix: Tensor
    start: Tensor
    step: Tensor
    static: Tensor
    covariates: Tensor
    lengths: Tensor | None = None


def cut_segments(lengths: Sequence[int], *, lanes: int, chunk_length: int) -> list[Segment]:
    """Cut series into segments: whole series where there are enough of them, pieces of equal length where not.

    Parameters
    ----------
    lengths
        Steps per series.
    lanes
        Lanes that should find work.
    chunk_length
        Steps per chunk.
    """
    total = sum(math.ceil(length / chunk_length) for length in lengths)
    chunks = max(SHORTEST_SEGMENT, math.ceil(total / lanes))
    segments = []
    for series, length in enumerate(lengths):
        pieces = max(1, round(length / (chunks * chunk_length)))
        bounds = np.linspace(0, length, pieces + 1).astype(int)
        segments += [Segment(series, int(a), int(b)) for a, b in pairwise(bounds) if b > a]
    return segments


class Lanes:
    """An endless stream of training chunks.

    Every pass plays every segment once, in random order, each from a random offset below one chunk, so that the places
    where gradients are cut move from pass to pass.

    Parameters
    ----------
    panel
        What may be learnt from.
    lanes
        Lanes B at most; fewer if there are fewer segments.
    chunk_length, horizon
        The sizes K and H.
    prefix_length
        Values P handed over before a segment.
    generator
        The only source of randomness.
    carry
        Whether lanes reset only where a segment begins; if not, they reset at every chunk, and every step counts.
    targets
        What may be learnt from, where that is not all of the panel's values: one array per series.
    beside
        How many series at the end of the panel only keep the others company: each pass plays `COMPANY` of them.
    gaps
        Share of the chunks of a lane in which some steps in a row are hidden from what is folded, one to half a chunk,
        evenly by the logarithm. Targets stay.
    """

    def __init__(
        self,
        panel: Panel,
        *,
        lanes: int,
        chunk_length: int,
        horizon: int,
        prefix_length: int,
        generator: np.random.Generator,
        carry: bool = True,
        targets: Sequence[Float] | None = None,
        beside: int = 0,
        gaps: float = 0.0,
    ) -> None:
        self.panel, self.chunk_length, self.horizon = panel, chunk_length, horizon
        self.targets = panel.values if targets is None else targets
        self.prefix_length, self.generator, self.carry, self.gaps = prefix_length, generator, carry, gaps
        lengths = panel.lengths.tolist()
        own = len(lengths) - beside
        self.segments = cut_segments(lengths[:own], lanes=lanes, chunk_length=chunk_length)
        self.beside = [Segment(series, 0, lengths[series]) for series in range(own, len(lengths))]
        company = self.beside[:COMPANY]
        self.segments *= max(1, round(OWN_SHARE * len(company) / len(self.segments)))
        played = self.segments + company
        self.lanes = min(lanes, len(played))
        chunks = sum(math.ceil((segment.end - segment.start) / chunk_length) for segment in played)
        self.chunks_per_pass = math.ceil(chunks / self.lanes)

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks of all lanes, without end."""
        return self.chunks(range(self.lanes))

    def chunks(self, lanes: range) -> Iterator[Chunk]:
        """Chunks of consecutive lanes alone, without end: what all lanes draw is drawn, what these need is cut."""
        queue: list[Segment] = []
        playing: list[Segment] = [Segment(0, 0, 0)] * self.lanes
        at, ends = np.zeros((2, self.lanes), dtype=np.int64)
        while True:
            resets = np.flatnonzero(at >= ends).tolist()
            for lane in resets:
                if not queue:
                    queue = self._pass()
                playing[lane] = segment = queue.pop()
                room = min(self.chunk_length, (segment.end - segment.start) // 4 + 1)
                at[lane], ends[lane] = segment.start + self.generator.integers(room), segment.end
            if not self.carry:
                resets = list(range(self.lanes))
            places = list(zip(playing[lanes.start : lanes.stop], at[lanes.start : lanes.stop].tolist(), strict=True))
            chunk = self._chunk(places, [lane - lanes.start for lane in resets if lane in lanes])
            if self.gaps:
                chunk.y[torch.from_numpy(self._hidden()[lanes.start : lanes.stop])] = torch.nan
            yield chunk
            at += self.chunk_length

    def _hidden(self) -> npt.NDArray[np.bool_]:
        """Which values of a chunk are hidden, shape [B, K]."""
        begin = self.generator.integers(self.chunk_length, size=(self.lanes, 1))
        length = (self.chunk_length / 2) ** self.generator.random((self.lanes, 1))
        chosen = self.generator.random((self.lanes, 1)) < self.gaps
        step = np.arange(self.chunk_length)
        return chosen & (step >= begin) & (step < begin + length)

    def _pass(self) -> list[Segment]:
        """Segments of one pass, in random order."""
        company = [self.beside[i] for i in self.generator.permutation(len(self.beside))[:COMPANY]]
        played = self.segments + company
        return [played[i] for i in self.generator.permutation(len(played))]

    def _chunk(self, places: list[tuple[Segment, int]], resets: list[int]) -> Chunk:
        ends = np.array([segment.end - at for segment, at in places])
        scored = np.arange(self.chunk_length) < ends[:, None]
        for lane in resets:
            if self.carry and places[lane][0].start > 0:
                scored[lane] = False  # this chunk only warms the recurrent state up
        length, ahead = self.chunk_length, self.chunk_length - 1 + self.horizon
        values, tables = self.panel.values, self.panel.tables
        # A segment's values end where it does, but its targets reach as far as the series may be learnt from.
        return Chunk(
            y=_windows([(values[s.series][: s.end], at + length) for s, at in places], length),
            future=_windows([(self.targets[s.series], at + length + self.horizon) for s, at in places], ahead),
            scored=torch.from_numpy(scored),
            covariates=_windows([(tables[s.series], at + ahead + 1) for s, at in places], ahead + 1),
            **_beginnings(self.panel, [(places[i][0].series, places[i][1]) for i in resets], self.prefix_length),
            reset=torch.tensor(resets, dtype=torch.int64),
        )


def validation_chunks(
    panel: Panel, *, held_out: int, warm_up: int, horizon: int, prefix_length: int, lanes: int
) -> Iterator[Chunk]:
    """Pairs of chunks: one that warms every lane up, one that scores all origins of the held-out end.

    Parameters
    ----------
    panel
        With the held-out part.
    held_out
        Steps at the end of each series whose values are the targets; series of `held_out` + 1 steps or less are left
        out.
    warm_up
        Most steps folded before the first origin.
    horizon, prefix_length, lanes
        As for `Lanes`.
    """
    eligible = [row for row, y in enumerate(panel.values) if len(y) > held_out + 1]
    for first in range(0, len(eligible), lanes):
        group = eligible[first : first + lanes]
        series, tables = [panel.values[row] for row in group], [panel.tables[row] for row in group]
        cutoffs = [len(y) - held_out - 1 for y in series]  # the first scored origin, folded by the second chunk
        lengths = [min(cutoff, warm_up) for cutoff in cutoffs]
        begins = [cutoff - length for cutoff, length in zip(cutoffs, lengths, strict=True)]
        longest = max(lengths)
        before = np.full((len(group), longest), np.nan)
        for row, (y, begin, length) in enumerate(zip(series, begins, lengths, strict=True)):
            before[row, :length] = y[begin : begin + length]
        yield Chunk(
            y=torch.from_numpy(before),
            future=torch.full((len(group), longest - 1 + horizon), torch.nan, dtype=torch.float64),
            scored=torch.zeros(len(group), longest, dtype=torch.bool),
            covariates=_windows(
                [(table, begin + longest + horizon) for table, begin in zip(tables, begins, strict=True)],
                longest + horizon,
            ),
            **_beginnings(panel, list(zip(group, begins, strict=True)), prefix_length),
            reset=torch.arange(len(group)),
            lengths=torch.tensor(lengths, dtype=torch.int64),
        )
        yield Chunk(
            y=_windows([(y, len(y) - 1) for y in series], held_out),
            future=_windows([(y, len(y) - 1 + horizon) for y in series], held_out - 1 + horizon),
            scored=torch.ones(len(group), held_out, dtype=torch.bool),
            covariates=_windows(
                [(table, cutoff + held_out + horizon) for table, cutoff in zip(tables, cutoffs, strict=True)],
                held_out + horizon,
            ),
            **_beginnings(panel, [], prefix_length),
            reset=torch.empty(0, dtype=torch.int64),
        )


def _beginnings(panel: Panel, places: list[tuple[int, int]], prefix_length: int) -> dict[str, Tensor]:
    """What a chunk tells of segments that begin: at these positions of these series."""
    series, starts = [row for row, _ in places], np.array([at for _, at in places], dtype=np.int64)
    return {
        "prefix": _windows([(panel.values[row], at) for row, at in places], prefix_length)
        if places
        else torch.empty(0, prefix_length, dtype=torch.float64),
        "start": torch.from_numpy(starts),
        "step": torch.from_numpy(panel.first_steps[series] + starts),
        "static": torch.from_numpy(panel.static[series]),
    }


def _windows(ends: Sequence[tuple[Float, int]], length: int) -> Tensor:
    """Stack ``y[end - length : end]`` of arrays and ends, NaN wherever that lies outside; further axes are kept."""
    found = np.full((len(ends), length, *ends[0][0].shape[1:]), np.nan)
    if found.size:
        for window, (y, end) in zip(found, ends, strict=True):
            low, high = max(end - length, 0), min(end, len(y))
            if high > low:
                window[low - (end - length) : high - (end - length)] = y[low:high]
    return torch.from_numpy(found)
