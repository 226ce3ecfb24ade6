"""The slab: the states of all resident streams in one batched `StreamState`, one row each.

It knows rows, not streams. Invariant: a row is owned by at most one stream; the slab grows by doubling and is touched
by the engine's thread only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from forecaster import Forecaster, StreamState

__all__ = ["Slab"]


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
            self._state = StreamState.concat([self._state, self._empty(capacity)])
            self._free.extend(range(2 * capacity - 1, capacity - 1, -1))
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def give_back(self, rows: Sequence[int]) -> None:
        """Free rows."""
        self._free.extend(rows)

    def gather(self, rows: Sequence[int]) -> StreamState:
        """A copy of some rows."""
        return self._state.select(_index(rows))

    def change(self, rows: Sequence[int], y: torch.Tensor, covariates: torch.Tensor | None = None) -> StreamState:
        """What observing one value each, `y` [B], would change in some rows; `scatter` writes it."""
        return self._forecaster.change(self._state, _index(rows), y, covariates)

    def whole(self, rows: Sequence[int], change: StreamState) -> StreamState:
        """A copy of some rows with a change of them."""
        states = self.gather(rows)
        states.assign(range(len(rows)), change)
        return states

    def scatter(self, rows: Sequence[int], states: StreamState) -> None:
        """Write some rows, or a change of them."""
        self._state.assign(_index(rows), states)


def _index(rows: Sequence[int]) -> torch.Tensor:
    # By way of NumPy: torch.tensor looks at each element of a list.
    return torch.from_numpy(np.array(rows, dtype=np.int64))
