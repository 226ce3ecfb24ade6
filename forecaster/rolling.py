"""Rolling: states folded span by span, values placed on the way, and copies that go on beyond what was observed.

What the verbs of `forecaster.forecaster` do once they have checked what they were given. Nothing is kept, nothing that
is given is changed. Knows networks and states; no calendar, panel or file.

Axes: B row, T step, M path, K known column, D dynamic column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from forecaster.marginals import Decoded, Marginals, locate
from forecaster.network import Encoded, ForecastNetwork
from forecaster.simulation import simulate
from forecaster.state import StreamState

__all__ = ["Rolling", "unless_blank"]

FOLD_ROWS = 1024
"""Rows whose spans are folded together, so that what a layer hands to the next is still in the second-level cache."""

FOLD_ELEMENTS = 2**22
"""Upper bound on rows x steps x ring length folded at once: bounds memory, changes no result."""


class _Step(Protocol):
    """`encode` or `observe` of a network."""

    def __call__(
        self, state: StreamState, y: Tensor, lengths: Tensor | None = None, covariates: Tensor | None = None
    ) -> tuple[Encoded, StreamState]: ...


class Rolling:
    """Folds and decodes the states of one network, without gradient.

    Parameters
    ----------
    network
        On the processor, in evaluation mode.
    """

    def __init__(self, network: ForecastNetwork) -> None:
        self.network = network

    def fold(
        self, state: StreamState, y: Tensor, lengths: Tensor | None, covariates: Tensor | None, step: _Step
    ) -> StreamState:
        """The state after consecutive values, each folded by `step`; arguments as of `Forecaster.fold`."""
        rows, total = y.shape
        y = y.to(torch.float64)
        if rows > FOLD_ROWS and total > 1:
            blocks = _blocks(y, lengths, covariates)
            return StreamState.concat([self.fold(state.select(part), *given, step) for part, given in blocks])
        if lengths is None:
            for start, end in self._spans(rows, total):
                part = None if covariates is None else covariates[:, start:end]
                encoded, state = step(state, y[:, start:end], None, part)
            if total == 1:  # streaming: the forecast that usually follows needs just this
                state = state.remember(encoded.latest())
            return state
        for start, end in self._spans(rows, total):
            left = (lengths - start).clamp(max=end - start)
            active = torch.nonzero(left > 0).squeeze(1)
            part = None if covariates is None else covariates[:, start:end]
            if len(active) == rows and bool((left == end - start).all()):
                _, state = step(state, y[:, start:end], None, part)
            elif len(active):
                part = None if part is None else part[active]
                _, after = step(state.select(active), y[active, start:end], left[active], part)
                state = state.replace_rows(active, after)
        return state

    def _spans(self, rows: int, total: int) -> list[tuple[int, int]]:
        span = max(1, min(FOLD_ELEMENTS // max(rows * self.network.config.ring_length, 1), 512))
        return [(start, min(start + span, total)) for start in range(0, total, span)]

    def ahead(self, state: StreamState, future: Tensor | None) -> Decoded:
        """Distribution of the next step after each row; see `Forecaster.ahead`."""
        known = None if future is None else future.unsqueeze(1)
        return unless_blank(self.decoded(self._at_hand(state), state, known, 1), state.blank)

    def fold_and_place(
        self, state: StreamState, y: Tensor, lengths: Tensor | None, covariates: Tensor | None
    ) -> tuple[StreamState, Tensor]:
        """The state after consecutive values, and where each lay, shape [B, T]; see `Forecaster.fold_and_place`."""
        y = y.to(torch.float64)
        rows, total = y.shape
        if rows > FOLD_ROWS and total > 1:
            blocks = _blocks(y, lengths, covariates)
            parts = [self.fold_and_place(state.select(part), *given) for part, given in blocks]
            return StreamState.concat([after for after, _ in parts]), torch.cat([places for _, places in parts])
        ends = torch.full((rows,), total, dtype=torch.int64) if lengths is None else lengths
        places = torch.full((rows, total), torch.nan, dtype=torch.float64)
        for start, end in self._spans(rows, total):
            left = (ends - start).clamp(max=end - start)
            active = torch.nonzero(left > 0).squeeze(1)
            part = None if covariates is None else covariates[:, start:end]
            if len(active) == rows and bool((left == end - start).all()):
                state, places[:, start:end] = self._fold_span(state, y[:, start:end], None, part)
            elif len(active):
                part = None if part is None else part[active]
                after, found = self._fold_span(state.select(active), y[active, start:end], left[active], part)
                state = state.replace_rows(active, after)
                places[active, start:end] = found
        return state, places

    def _fold_span(
        self, state: StreamState, y: Tensor, lengths: Tensor | None, covariates: Tensor | None
    ) -> tuple[StreamState, Tensor]:
        """One stretch of `fold_and_place`, all lengths at least 1; None: all rows have all steps."""
        network, columns = self.network, len(self.network.config.covariates.known)
        known = covariates[..., :columns] if columns and covariates is not None else None
        places = torch.full_like(y, torch.nan)
        first = self.ahead(state, None if known is None else known[:, 0])
        places[:, 0] = locate(network.head, first, y[:, 0])
        trail = torch.zeros(*y.shape, 2)
        encoded, after = network.observe(state, y, lengths, covariates, trail=trail)
        seen = ~state.blank.unsqueeze(1) | (~torch.isnan(y)).cumsum(1).bool()
        asked = seen[:, :-1] & ~torch.isnan(y[:, 1:])
        if lengths is not None:
            asked &= torch.arange(1, y.shape[1]) < lengths.unsqueeze(1)
        row, step = torch.nonzero(asked, as_tuple=True)
        if len(row):
            chosen = encoded.at((row, step))
            coming = None if known is None else known[row, step + 1].unsqueeze(1)
            parameters = network.calibrated(chosen, trail[row, step].unsqueeze(-1), coming, 1)
            places[row, step + 1] = locate(network.head, Decoded(parameters, chosen.frame), y[row, step + 1])
        return after, places

    def marginals(self, state: StreamState, horizon: int, future: Tensor | None) -> Marginals:
        """Distributions of the coming steps: beyond the trained ones, a copy of the state observes its own medians."""
        head, known = self.network.head, self.blocks(future, horizon)
        blocks = [self.decoded(self._at_hand(state), state, known[0])]
        for before, coming in pairwise(known):
            # Not observed, so nothing to calibrate by.
            state = self.fold(state, head.point(*blocks[-1]), None, self._as_table(before), self.network.encode)
            blocks.append(self.decoded(self.network.encoded(state), state, coming))
        return Marginals(head, blocks, horizon)

    def draw(
        self,
        state: StreamState,
        horizon: int,
        known: Tensor | None,
        draws: Sequence[np.random.Generator],
        paths: int,
    ) -> Tensor:
        """Sample paths of rows that observed something, float64, shape [B, M, horizon]; see `Forecaster.simulate`."""
        coming = self._coming(known, state, paths)
        return simulate(
            self.marginals(state, horizon, known),
            state,
            draws,
            paths=paths,
            next_step=partial(self._next_step, coming),
            observe=partial(self._observe_path, coming),
        )

    def decoded(self, encoded: Encoded, state: StreamState, future: Tensor | None, steps: int | None = None) -> Decoded:
        """What a state forecasts, given what was encoded at its latest step."""
        return Decoded(self.network.calibrated(encoded, state.correction, future, steps), encoded.frame)

    def blocks(self, future: Tensor | None, horizon: int) -> list[Tensor | None]:
        """Known values of each block of the trained horizon, the last one filled up with missing ones."""
        trained = self.network.config.horizon
        count = -(-horizon // trained)
        if future is None:
            return [None] * count
        filler = future.new_full((len(future), count * trained - horizon, future.shape[2]), torch.nan)
        return list(torch.split(torch.cat([future, filler], 1), trained, 1))

    def _at_hand(self, state: StreamState) -> Encoded:
        """What the head needs of the latest step: remembered, or derived from the state."""
        if isinstance(state.moment, Encoded):
            return state.moment
        return self.network.encoded(state)

    @staticmethod
    def _coming(known: Tensor | None, state: StreamState, paths: int) -> Callable[[StreamState], Tensor | None]:
        """What is known of the step after each of so many copies of a state's rows, shape [B x paths, 1, K]."""

        def coming(copies: StreamState) -> Tensor | None:
            step = int(copies.last_step[0] - state.last_step[0])
            return None if known is None else known[:, step : step + 1].repeat_interleave(paths, 0)

        return coming

    def _next_step(self, coming: Callable[[StreamState], Tensor | None], copies: StreamState) -> Decoded:
        return self.decoded(self.network.encoded(copies), copies, coming(copies), 1)

    def _observe_path(
        self, coming: Callable[[StreamState], Tensor | None], copies: StreamState, y: Tensor
    ) -> StreamState:
        return self.network.encode(copies, y.unsqueeze(1), None, self._as_table(coming(copies)))[1]

    def _as_table(self, known: Tensor | None) -> Tensor | None:
        """Known values [B, T, K] as a table of all dynamic columns [B, T, D]."""
        if known is None:
            return None
        past = known.new_full((*known.shape[:2], len(self.network.config.covariates.past)), torch.nan)
        return torch.cat([known, past], -1)


def _blocks(
    y: Tensor, lengths: Tensor | None, covariates: Tensor | None
) -> Iterator[tuple[slice, tuple[Tensor, Tensor | None, Tensor | None]]]:
    """Rows that are folded together, one block after the other."""
    for first in range(0, len(y), FOLD_ROWS):
        part = slice(first, first + FOLD_ROWS)
        yield (
            part,
            (y[part], None if lengths is None else lengths[part], None if covariates is None else covariates[part]),
        )


def unless_blank(block: Decoded, blank: Tensor) -> Decoded:
    """A block that says nothing of the rows that never observed a value."""
    location = torch.where(blank, torch.nan, block.frame.location)
    return block._replace(frame=block.frame._replace(location=location))
