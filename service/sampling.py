"""Sample paths for requests: bounded, seeded by stream, drawn beside the engine from copies of states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from forecaster import InputError, StreamState
from forecaster.simulation import FEWEST_PATHS, seed_of
from service.bodies.replies import Forecast
from service.engine.coming import Coming
from service.engine.items import Outcome
from service.models.served import ServedModel, Want

__all__ = ["LARGEST_DRAW", "Draw", "draw_of", "draw_paths", "with_samples"]

LARGEST_DRAW = 500_000
"""Paths x steps of one request, all series together: some seconds of one core."""


class Draw(NamedTuple):
    """Sample paths somebody asks for."""

    num_samples: int
    seed: int


def draw_of(num_samples: int | None, seed: int | None, steps: int) -> Draw | None:
    """What a request for paths comes to, for `steps` of all series together; None if there is none.

    Raises
    ------
    InputError
        There is a seed but nothing to draw, or too much to draw.
    """
    if num_samples is None:
        if seed is not None:
            raise InputError("the request has a seed, but no num_samples to draw")
        return None
    size = max(num_samples, FEWEST_PATHS) * steps
    if size > LARGEST_DRAW:
        raise InputError(
            f"{num_samples} samples of {steps} steps, all series together, are too many for one request: "
            f"at most {LARGEST_DRAW:,} values, with samples counted as {FEWEST_PATHS} at least"
        )
    return Draw(num_samples, seed or 0)


def draw_paths(
    model: ServedModel,
    names: Sequence[str],
    states: StreamState,
    horizon: int,
    draw: Draw,
    future: torch.Tensor | None,
) -> npt.NDArray[np.float64]:
    """Paths [B, num_samples, horizon]; those of a stream follow from its name, its state and the seed."""
    seeds = [seed_of(name, draw.seed) for name in names]
    return model.forecaster.simulate(states, horizon, draw.num_samples, seeds, future)


def with_samples(outcome: Outcome, want: Want, draw: Draw, known: Coming | None) -> Forecast:
    """The forecast of a stream with paths from the copy of its state."""
    record, model = outcome.record, outcome.model
    assert outcome.state is not None
    columns = len(model.forecaster.config.covariates.known)
    future = None
    if columns:
        future = torch.from_numpy((known or Coming(None)).ahead(record.last_step, want.horizon, columns)[None])
    (paths,) = draw_paths(model, [record.unique_id], outcome.state, want.horizon, draw, future)
    return Forecast.of_stream(outcome, want, paths)
