"""Sample paths: joint draws of the coming steps, from copies of the state.

Each path is a copy of its row's state that observes its own draws, so that one step leans on the one before as the
network has learnt it. At every step the paths of a row are put in order by what each draws from its own next-step
distribution, and take the quantiles of the forecast in that order: paths and forecast tell the same story. Reordering
a forecast's quantiles by the ranks of dependent draws is the Schaake shuffle (Clark et al., J. Hydrometeorology 5,
2004) or ensemble copula coupling (Schefzik, Thorarinsdottir and Gneiting, Statistical Science 28(4), 2013); here the
ranks of a step are drawn after the values of the step before it.

Axes: B row, M path, N step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from forecaster.errors import InputError
from forecaster.kernels import EDGE
from forecaster.marginals import Decoded, Marginals
from forecaster.state import StreamState

__all__ = ["FEWEST_PATHS", "LARGEST_SAMPLES", "LARGEST_SEED", "checked_samples", "generators", "seed_of", "simulate"]

LARGEST_SAMPLES = 10_000
LARGEST_SEED = 2**63 - 1

FEWEST_PATHS = 128
"""Paths drawn at least, however few are asked for: ranks among a handful say little of dependence."""


def generators(state: StreamState, seed: int | Sequence[int]) -> list[np.random.Generator]:
    """A stream of random numbers per row, which depends on nothing but that row.

    With one seed for all rows, a row's stream follows from the seed and what the row has observed lately, so different
    series draw independently, whoever else is in the batch. With a seed per row it follows from that alone.
    """
    if isinstance(seed, int):
        clocks = torch.stack([state.last_step, state.age], 1).numpy()
        rings = state.ring.contiguous().numpy()
        origins = [
            seed.to_bytes(8, "little") + clock.tobytes() + ring.tobytes()
            for clock, ring in zip(clocks, rings, strict=True)
        ]
    else:
        origins = [int(one).to_bytes(8, "little") for one in seed]
    keys = [int.from_bytes(hashlib.blake2b(origin, digest_size=16).digest(), "little") for origin in origins]
    return [np.random.Generator(np.random.Philox(key=key)) for key in keys]


def seed_of(unique_id: str, seed: int) -> int:
    """Seed of one series' paths, from its name and a seed for all."""
    digest = hashlib.blake2b(unique_id.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") & LARGEST_SEED


def checked_samples(num_samples: int, seed: int | Sequence[int], rows: int) -> tuple[int, int | list[int]]:
    """The same as plain integers, or InputError: so many paths cannot be drawn from such a seed for so many rows."""
    if not isinstance(num_samples, int | np.integer) or not 1 <= num_samples <= LARGEST_SAMPLES:
        raise InputError(f"num_samples is {num_samples!r}, expected 1 to {LARGEST_SAMPLES}")
    several = isinstance(seed, Sequence | np.ndarray)
    seeds: list[Any] = list(cast(Sequence[int], seed)) if several else [seed]
    if several and len(seeds) != rows:
        raise InputError(f"there are {len(seeds)} seeds for {rows} series, expected one each, or one for all")
    for one in seeds:
        if not isinstance(one, int | np.integer) or not 0 <= one <= LARGEST_SEED:
            raise InputError(f"seed is {one!r}, expected 0 to {LARGEST_SEED}")
    whole = [int(one) for one in seeds]
    return int(num_samples), whole if several else whole[0]


def simulate(
    marginals: Marginals,
    state: StreamState,
    draws: Sequence[np.random.Generator],
    *,
    paths: int,
    next_step: Callable[[StreamState], Decoded],
    observe: Callable[[StreamState, Tensor], StreamState],
) -> Tensor:
    """Draw paths.

    Parameters
    ----------
    marginals
        The forecast: distributions of the N coming steps of B rows.
    state
        Of the B rows, at the cutoff.
    draws
        One stream of random numbers per row.
    paths
        M.
    next_step
        The distribution of the step after a state.
    observe
        Folds one value per row.

    Returns
    -------
    Tensor
        In units of y, float64, shape [B, M, N].
    """
    rows = len(state)
    copies = state.select(torch.arange(rows).repeat_interleave(paths))
    steps = []
    for step in range(marginals.horizon):
        uniform = torch.from_numpy(np.stack([draw.random((2, paths)) for draw in draws]))  # [B, 2, M]
        level, within = uniform[:, 0].clamp(EDGE, 1 - EDGE), uniform[:, 1]
        block = next_step(copies)
        drawn = marginals.head.quantiles(*block, level.reshape(-1, 1, 1)).reshape(rows, paths)
        shuffled = ((_ranks(drawn, level) + within) / paths).clamp(EDGE, 1 - EDGE)
        steps.append(marginals.at_step(step, shuffled))
        if step + 1 < marginals.horizon:
            copies = observe(copies, steps[-1].reshape(-1))
    return torch.stack(steps, -1)


def _ranks(drawn: Tensor, level: Tensor) -> Tensor:
    """Rank of each path among its row's, from 0; equal draws, such as zeros, are put in order by their level."""
    by_level = level.argsort(dim=1)
    order = by_level.gather(1, drawn.gather(1, by_level).argsort(dim=1, stable=True))
    return order.argsort(dim=1)
