"""The slab: the states of all resident streams in one batched `StreamState`, one row each, and what comes next of each.

It knows rows, not streams. Invariants: a row is owned by at most one stream; the slab grows by doubling; who has the
engine's turn touches it, and nobody else; what is kept of the next step is what its row's state says of it, or is
marked as not told.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from forecaster import Forecaster, StreamState
from forecaster.marginals import Decoded
from forecaster.scaling import Frame

__all__ = ["Slab"]

Float = npt.NDArray[np.float64]

Rows = Sequence[int] | torch.Tensor
"""Numbers of rows, int64 where they come as a tensor: who asks several times makes one."""


class Slab:
    """Rows of state to gather from and scatter to.

    Parameters
    ----------
    forecaster
        Decides the shapes.
    capacity
        Rows at the start.
    """

    def __init__(self, forecaster: Forecaster, capacity: int = 256) -> None:
        self._forecaster = forecaster
        self._state = self._empty(capacity)
        # Of models with known covariates, the next step is not told before its covariates are.
        self._known = len(forecaster.config.covariates.known)
        template = forecaster.ahead(self._empty(1)).parameters[..., 0]
        self._parameters = template.new_empty(capacity, template.shape[1])
        self._frames = torch.empty(len(Frame._fields), capacity, dtype=torch.float64)
        self._told = np.zeros(capacity, dtype=np.bool_)  # whether what is kept of the next step is the state's
        self._free = list(range(capacity - 1, -1, -1))

    def _empty(self, rows: int) -> StreamState:
        return self._forecaster.initial_state(torch.zeros(rows, dtype=torch.int64))

    @property
    def capacity(self) -> int:
        """Rows in all."""
        return len(self._state)

    def take(self, count: int) -> list[int]:
        """`count` free rows."""
        while len(self._free) < count:
            capacity = self.capacity
            # First all of them, then none fails: there may be no memory left.
            state = StreamState.concat([self._state, self._empty(capacity)])
            parameters = torch.cat([self._parameters, torch.empty_like(self._parameters)])
            frames = torch.cat([self._frames, torch.empty_like(self._frames)], 1)
            told = np.concatenate([self._told, np.zeros(capacity, dtype=np.bool_)])
            self._state, self._parameters, self._frames, self._told = state, parameters, frames, told
            self._free.extend(range(2 * capacity - 1, capacity - 1, -1))
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def give_back(self, rows: Sequence[int]) -> None:
        """Free rows."""
        self._free.extend(rows)

    def gather(self, rows: Rows) -> StreamState:
        """A copy of some rows."""
        return self._state.select(_index(rows))

    def change(self, rows: Rows, y: torch.Tensor, covariates: torch.Tensor | None = None) -> StreamState:
        """What observing one value each, `y` [B], would change in some rows; `scatter` writes it."""
        return self._forecaster.change(self._state, _index(rows), y, covariates)

    def whole(self, rows: Rows, change: StreamState) -> StreamState:
        """A copy of some rows with a change of them."""
        states = self.gather(rows)
        states.assign(range(len(rows)), change)
        return states

    def scatter(self, rows: Rows, states: StreamState, ahead: Decoded | None = None) -> None:
        """Write some rows, or a change of them, with what they say of the next step if that is at hand."""
        index = _index(rows)
        self._state.assign(index, states)
        self._told[index.numpy()] = False
        if ahead is not None and not self._known:
            self._keep(index, ahead)

    def foretell(self, states: StreamState) -> Decoded | None:
        """What states, or a change, say of the next step, for `scatter` to keep; None if its covariates come first."""
        return None if self._known else self._forecaster.ahead(states)

    def _keep(self, index: torch.Tensor, ahead: Decoded) -> None:
        parameters, frame = ahead
        place = index.numpy()  # by way of NumPy, whose row copies take a third of the time
        self._parameters.numpy()[place] = parameters[..., 0].numpy()
        for row, field in zip(self._frames.numpy(), frame, strict=True):
            row[place] = field.numpy()
        self._told[place] = True

    def ahead(self, rows: Rows, covariates: torch.Tensor | None = None) -> Decoded:
        """What some rows say of the next step, whose covariates, if any, are `covariates` [B, D]."""
        if self._known:
            future = None if covariates is None else covariates[:, : self._known]
            return self._forecaster.ahead(self.gather(rows), future)
        index = _index(rows)
        told = self._told[index.numpy()]
        if not told.all():
            untold = index[torch.from_numpy(~told)]
            self._keep(untold, self._forecaster.ahead(self._state.select(untold)))
        frame = Frame(*self._frames.index_select(1, index).unbind())
        return Decoded(self._parameters.index_select(0, index).unsqueeze(-1), frame)

    def scores(self, rows: Rows) -> tuple[Float, Float]:
        """Sums of scores of some rows over all scored steps, of all forecasts and of recent ones, shape [Q, B] each."""
        sums = self._state.quality.index_select(0, _index(rows)).sum(3, dtype=torch.float64)
        total, recent = sums.permute(1, 2, 0).numpy()
        return total, recent


def _index(rows: Rows) -> torch.Tensor:
    # By way of NumPy: torch.tensor looks at each element of a list.
    return rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows, dtype=np.int64))
