"""Chunks made ready for a network: everything of an update that no weight takes part in.

Scaling, features, anchors, targets and what the almanac tells depend on the data alone, so a thread of its own makes
them while the network learns from the chunk before, on whatever device that is.

Axes: B lane, K step of a chunk, N origin that counts, F feature, A anchor, H horizon step, C number of the almanac, D
dynamic column, S static number.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from forecaster.chunks import Chunk
from forecaster.features import features
from forecaster.kernels import SMALLEST_SIZE
from forecaster.network import ForecastNetwork
from forecaster.scaling import Frame, History, advance, settle
from forecaster.state import StreamState

__all__ = ["Preparation", "Prepared", "ahead", "weight_of"]

LARGEST_DECODE = 2**18
"""Upper bound on origins x horizon x levels decoded in one update; beyond it, origins are thinned evenly."""

SMALLEST_DIFFERENCE = 1e-3
LARGEST_WEIGHT = 5.0

D = TypeVar("D")
T = TypeVar("T")


class Prepared(NamedTuple):
    """A chunk as a network learns from it.

    Attributes
    ----------
    features
        Shape [B, K, F], time-major in memory.
    fresh
        Whether the recurrent state of a lane starts afresh, bool, shape [B].
    lengths
        Steps to fold per lane, int64, shape [B]; None for all K.
    moments, table, static
        What the recurrent layers are told besides, in models with covariates: of the almanac, float32, shape [B, K, C];
        values of the dynamic columns, float64, shape [B, K, D]; static numbers, float64, shape [B, S].
    kept
        The origins that count, as places in the steps of all lanes, step by step: int64, shape [N].
    anchors
        Shape [N, A, H].
    target
        In units of y, float64, shape [N, H]; NaN is unknown.
    frame
        Coordinates of the origins, fields of shape [N].
    weight
        What an error in scaled coordinates is worth, float32, shape [N].
    coming, future
        What the almanac tells of the coming steps, float32, shape [N, H, C], and values of the known columns there,
        float64, shape [N, H, columns], in models with covariates.
    """

    features: Tensor
    fresh: Tensor
    lengths: Tensor | None
    moments: Tensor | None
    table: Tensor
    static: Tensor
    kept: Tensor
    anchors: Tensor
    target: Tensor
    frame: Frame
    weight: Tensor
    coming: Tensor | None
    future: Tensor

    def of_lanes(self, lanes: slice) -> Prepared:
        """The same of consecutive lanes alone."""
        rows, (first, stop, _) = len(self.features), lanes.indices(len(self.features))
        lane = self.kept % rows
        mine = ((lane >= first) & (lane < stop)).nonzero().squeeze(1)
        step, lane = self.kept[mine] // rows, lane[mine]
        return Prepared(
            features=self.features[lanes],
            fresh=self.fresh[lanes],
            lengths=None if self.lengths is None else self.lengths[lanes],
            moments=None if self.moments is None else self.moments[lanes],
            table=self.table[lanes],
            static=self.static[lanes],
            kept=step * (stop - first) + lane - first,
            anchors=self.anchors[mine],
            target=self.target[mine],
            frame=self.frame.at(mine),
            weight=self.weight[mine],
            coming=None if self.coming is None else self.coming[mine],
            future=self.future[mine],
        )

    def parts(self) -> list[Tensor]:
        """All its tensors, in the order of the fields."""
        return [
            part for field in self for part in (field if isinstance(field, Frame) else (field,)) if part is not None
        ]

    def of_parts(self, parts: Iterable[Tensor]) -> Prepared:
        """The same with other tensors."""
        given = iter(parts)
        return Prepared(
            *(
                Frame(*(next(given) for _ in field))
                if isinstance(field, Frame)
                else None
                if field is None
                else next(given)
                for field in self
            )  # type: ignore[arg-type]
        )


class Draft(NamedTuple):
    """A chunk before it is prepared: all that depends on those before it.

    Attributes
    ----------
    chunk, begun
        The chunk, and the scaling state of every lane before it.
    origins
        Steps whose forecasts are scored.
    """

    chunk: Chunk
    begun: StreamState
    origins: range


class Origins(NamedTuple):
    """The origins of a chunk that count.

    Attributes
    ----------
    history
        Of all steps of all lanes.
    row, step
        Where they are, int64, shape [N].
    frame, target, weight
        As in `Prepared`.
    """

    history: History
    row: Tensor
    step: Tensor
    frame: Frame
    target: Tensor
    weight: Tensor


class Preparation:
    """Makes chunks ready.

    Parameters
    ----------
    network
        Whose configuration decides; of its weights, only the blend is read, once.
    generator
        Of the places of thinned origins, in training; None: the last ones, all origins count.
    fixed
        Whether all chunks must have the same shapes, as a CUDA graph wants: origins that do not count stay, with
        unknown targets. Without a GPU they would be work for nothing.
    """

    def __init__(
        self, network: ForecastNetwork, generator: np.random.Generator | None = None, *, fixed: bool = False
    ) -> None:
        self.network, self.generator, self.fixed = network, generator, fixed
        self.blend = network.blend.detach().cpu().clone()  # the network may move to a GPU, and chunks are made here
        # Neither recurrent state nor calibration: nothing here reads them.
        self.layout = replace(network.layout, layers=0, groups=0, scored=0, aboard=0, arrived=0)

    def drafts(self, chunks: Iterable[Chunk], lanes: int | None = None) -> Iterator[Draft]:
        """Chunk by chunk, with the scaling state carried from one to the next.

        `lanes` says how many there are in all, where these chunks are of some of them.
        """
        carry: StreamState | None = None
        for chunk in chunks:
            begun = self.begin(carry, chunk)
            carry = self._settle(begun, chunk.y, chunk.lengths)
            yield Draft(chunk, begun, self._origins(lanes or len(chunk.y), chunk.y.shape[1]))

    @torch.no_grad()
    def origins(self, draft: Draft) -> Origins:
        """What is known at the origins of a chunk, and what came after."""
        network, config = self.network, self.network.config
        chunk, begun, origins = draft
        history, _ = advance(begun, chunk.y, chunk.lengths, seasonality=config.seasonality, kind=network.transform)
        counts = (chunk.scored & _known_ahead(chunk.future, config.horizon))[
            :, origins.start : origins.stop : origins.step
        ]
        places = (torch.ones_like(counts) if self.fixed else counts).nonzero()
        row, step = places[:, 0], origins.start + origins.step * places[:, 1]
        frame = history.frame.at((row, step))
        target = chunk.future.unfold(1, config.horizon, 1)[row, step]
        if self.fixed:
            target[~counts.flatten()] = torch.nan
        return Origins(history, row, step, frame, target, weight_of(frame, history.difference[row, step]))

    @torch.no_grad()
    def finish(self, draft: Draft) -> Prepared:
        """Whatever takes time; drafts may be finished side by side."""
        network, config = self.network, self.network.config
        chunk, begun, _ = draft
        rows, length = chunk.y.shape
        history, row, step, frame, target, weight = self.origins(draft)
        last, static = begun.last_step, begun.static
        moments = coming = None
        if network.covariates is not None:
            moments = network.covariates.moments(last.unsqueeze(1) + torch.arange(1, length + 1), static)
            coming = network.covariates.coming(last[row] + 1 + step, static[row], config.horizon)
        known = chunk.covariates[:, 1:, : len(config.covariates.known)].unfold(1, config.horizon, 1)
        return Prepared(
            features=features(history),
            fresh=torch.zeros(rows, dtype=torch.bool).index_fill(0, chunk.reset, True),
            lengths=chunk.lengths,
            moments=moments,
            table=chunk.covariates[:, :length],
            static=static,
            kept=step * rows + row,
            anchors=network.choices(history.scaled[row, step], config.horizon, self.blend),
            target=target,
            frame=frame,
            weight=weight,
            coming=coming,
            future=known[row, step].transpose(-1, -2),
        )

    def begin(self, carry: StreamState | None, chunk: Chunk) -> StreamState:
        """Carry into this chunk: reset lanes start afresh, with a scaling state filled from their prefix."""
        if carry is None or len(carry) != len(chunk.y):
            carry = self.layout.initial(torch.zeros(len(chunk.y), dtype=torch.int64))
        if not len(chunk.reset):
            return carry
        fresh = self.layout.initial(chunk.step - chunk.prefix.shape[1], chunk.static)
        if chunk.prefix.shape[1]:
            fresh = self._settle(fresh, chunk.prefix)
        # There was no silence before the series began, but missing values at its beginning are one.
        clocks = torch.stack([chunk.start, torch.minimum(fresh.silence, chunk.start), fresh.last_step], 1)
        fresh = replace(fresh, clocks=clocks)
        return carry.replace_rows(chunk.reset, fresh)

    def _settle(self, state: StreamState, y: Tensor, lengths: Tensor | None = None) -> StreamState:
        return settle(state, y, lengths, seasonality=self.network.config.seasonality, kind=self.network.transform)

    def _origins(self, rows: int, steps: int) -> range:
        config = self.network.config
        if self.generator is not None and config.training.origins == "last":
            return range(steps - 1, steps)
        size = rows * steps * config.horizon * len(config.quantile_levels)
        stride = min(math.ceil(size / LARGEST_DECODE), steps)
        first = stride - 1 if self.generator is None else int(self.generator.integers(stride))
        last = first + (steps // stride - 1) * stride if self.fixed else steps - 1
        return range(first, last + 1, stride)


def ahead(drafts: Iterable[D], finish: Callable[[D], T], workers: int = 1) -> Generator[T, None, None]:
    """Drafts, finished by threads while those before are in use, in their order.

    Parameters
    ----------
    drafts
        Made one after the other, by a thread of their own.
    finish
        Makes something of each.
    workers
        Threads that do.

    Examples
    --------
    >>> list(ahead(range(3), str))
    ['0', '1', '2']
    """
    source = iter(drafts)
    with ThreadPoolExecutor(1, "drafts") as drafter, ThreadPoolExecutor(workers, "finish") as finishers:

        def order() -> Future[tuple[T] | None]:
            draft = drafter.submit(lambda: next(((item,) for item in source), None))
            return finishers.submit(lambda: None if (one := draft.result()) is None else (finish(*one),))

        coming = deque(order() for _ in range(workers))
        while (finished := coming.popleft().result()) is not None:
            coming.append(order())
            yield finished[0]


def _known_ahead(future: Tensor, horizon: int) -> Tensor:
    """Whether any target of each origin is known, bool, shape [B, K], of values [B, K - 1 + H]."""
    missing = torch.nn.functional.pad(torch.isnan(future).long().cumsum(1), (1, 0))
    return missing[:, horizon:] - missing[:, :-horizon] < horizon


def weight_of(frame: Frame, difference: Tensor) -> Tensor:
    """Weight of each origin in the loss, float32, shape [N].

    Errors in scaled coordinates are weighted by unit / sqrt(mean absolute seasonal difference relative to scale): half
    way between errors relative to the level of a series and errors relative to its seasonal naive error.
    """
    unit = frame.unit.float()
    difference = torch.where(difference > 0, difference, unit).clamp(min=SMALLEST_DIFFERENCE)
    weight = (unit / difference.sqrt()).clamp(max=LARGEST_WEIGHT)
    return torch.where(frame.scale > SMALLEST_SIZE, weight, 0.0)  # in units of nothing, nothing can be forecast
