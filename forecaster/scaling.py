"""Causal scaling: what a series' recent past says about its location, scale and unit, carried in its state.

At every step the ring of recent values gives a *frame*: a location and a unit in which values become numbers of order
one, and back. Multiplying a series by a positive constant multiplies its scale and leaves the scaled numbers alone.
Differences are taken in float64, so a large location costs no precision; nothing here has parameters, so no gradient
runs through it. The loops over rows and steps are `forecaster.kernels`.

Axes: B row, T step of the chunk, W ring slot (oldest to newest once ordered), K statistic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forecaster import kernels
from forecaster.kernels import EVERY_STEP, FINE, FLOOR, LARGEST_LOG, NUM_STATISTICS, SCALARS, SHIFT, SMALLEST_SIZE
from forecaster.state import StreamState

__all__ = [
    "Frame",
    "History",
    "Transform",
    "advance",
    "blank",
    "blank_change",
    "describe",
    "inverse_breadth",
    "log_slope",
    "measure",
    "memory",
    "num_blocks",
    "restore",
    "settle",
    "told",
    "transform",
]

Int64 = npt.NDArray[np.int64]

Transform = Literal["log", "linear"]

LOG_FLOOR = math.log(FLOOR)

Parts = tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.float32]]


class Frame(NamedTuple):
    """Coordinates of one moment: see `transform`. Fields have shape [...], float64, one entry per moment.

    Attributes
    ----------
    location
        Mean of the recent values, in units of y.
    scale
        Mean magnitude of the recent values, in units of y.
    unit
        Root mean square of the recent values around the location, after the transform; without dimension.
    """

    location: Tensor
    scale: Tensor
    unit: Tensor

    def at(self, index: object) -> Frame:
        """Frames at an index of every field."""
        return Frame(*(field[index] for field in self))  # type: ignore[index]


@dataclass(frozen=True)
class History:
    """What is known at each step of a chunk.

    Attributes
    ----------
    frame
        Coordinates at each step, fields of shape [B, T].
    table
        One line per step, float32, shape [B, T, W + SCALARS + blocks], time-major in memory: the last W values up to
        and including the step in its coordinates, oldest first, 0 where nothing was ever observed; scalars; block
        means of a long ring.
    difference
        Mean absolute seasonal difference in units of scale, float32, shape [B, T]; 0 until one was seen.
    """

    frame: Frame
    table: Tensor
    difference: Tensor
    ring_length: int

    @property
    def scaled(self) -> Tensor:
        """The ring in each step's coordinates, shape [B, T, W]."""
        return self.table[..., : self.ring_length]


@cache
def num_blocks(ring_length: int) -> int:
    """Block means that stand for the older part of a ring: 0 unless it is longer than twice `FINE`."""
    if ring_length <= 2 * FINE:
        return 0
    return (ring_length - FINE) // math.ceil((ring_length - FINE) / FINE)


def transform(y: Tensor, frame: Frame, kind: Transform) -> Tensor:
    """Map y to the frame's coordinates, float32; float64 differences first, so a large location costs no precision.

    ``linear``: (y - location) / (scale * unit). ``log``: log((y + c) / (location + c)) / unit with c = SHIFT * scale,
    continued below FLOOR as its tangent. Both map the location to 0.

    Parameters
    ----------
    y
        Shape [..., n] where the frame's fields have shape [...].
    """
    return _relative(y, frame.location, frame.scale, kind) / frame.unit.float().unsqueeze(-1)


def restore(scaled: Tensor, frame: Frame, kind: Transform) -> Tensor:
    """Inverse of `transform`: y, float64, same shape as `scaled` [..., n]."""
    relative = scaled * frame.unit.to(scaled.dtype).unsqueeze(-1)
    if kind == "log":
        log = relative.clamp(max=LARGEST_LOG)
        relative = torch.expm1(log)
        if not log.is_cpu or (log.numel() and not float(log.detach().amin()) > LOG_FLOOR):  # also where NaN
            relative = torch.where(log > LOG_FLOOR, relative, FLOOR * (1 + log - LOG_FLOOR) - 1)
    return torch.addcmul(
        frame.location.unsqueeze(-1), relative.double(), _breadth(frame.location, frame.scale, kind).unsqueeze(-1)
    )


def log_slope(y: Tensor, frame: Frame, kind: Transform) -> Tensor:
    """Logarithm of the derivative of `transform` at y [..., n], float64: carries log densities over to units of y."""
    breadth = _breadth(frame.location, frame.scale, kind).unsqueeze(-1)
    inverse = _inverse(breadth)
    slope = (inverse / frame.unit.unsqueeze(-1)).expand(y.shape)
    if kind == "log":
        slope = slope / (1 + (y - frame.location.unsqueeze(-1)) * inverse).clamp(min=FLOOR)
    return slope.log()


def inverse_breadth(frame: Frame, kind: Transform) -> Tensor:
    """Relative change per unit of y in a frame, float64, shape [...]; NaN where everything seen was 0."""
    breadth = _breadth(frame.location, frame.scale, kind)
    return torch.where(breadth > SMALLEST_SIZE, 1 / breadth, torch.nan)


def measure(y: Tensor, ruler: Tensor, kind: Transform) -> Tensor:
    """The transform without a unit, float32, shape [..., n]; `ruler` is location and `inverse_breadth`, [..., 2]."""
    relative = (y - ruler[..., :1]) * ruler[..., 1:]
    if kind == "log":
        relative = torch.log1p(relative.clamp(min=FLOOR - 1)) + (relative + (1 - FLOOR)).clamp(max=0) / FLOOR
    return relative.float()


def _breadth(location: Tensor, scale: Tensor, kind: Transform) -> Tensor:
    """What one unit of relative change means in y, shape [...]; 0 only where everything seen was 0."""
    if kind == "linear":
        return scale
    shift = SHIFT * scale
    return torch.maximum(location + shift, shift)


def _inverse(size: Tensor) -> Tensor:
    """1 / size; 1 where the size is 0, or so small that its inverse overflows."""
    return torch.where(size > SMALLEST_SIZE, 1 / size, 1.0)


def _relative(y: Tensor, location: Tensor, scale: Tensor, kind: Transform) -> Tensor:
    """Transform before the division by the unit."""
    inverse = _inverse(_breadth(location, scale, kind)).unsqueeze(-1)
    relative = (y - location.unsqueeze(-1)).mul_(inverse).float()
    if kind == "linear":
        return relative
    # Elsewhere, a look at the numbers would wait for whatever computes them.
    if relative.is_cpu and (not relative.numel() or float(relative.amin()) >= FLOOR - 1):
        return relative.log1p_()
    return torch.log1p(relative.clamp(min=FLOOR - 1)) + (relative + (1 - FLOOR)).clamp(max=0) / FLOOR


def advance(
    state: StreamState, y: Tensor, lengths: Tensor | None = None, *, seasonality: tuple[int, ...], kind: Transform
) -> tuple[History, StreamState]:
    """Fold a chunk of values into everything but the recurrent state, and describe every step on the way.

    Parameters
    ----------
    state
        Before the chunk.
    y
        Float64, shape [B, T]; NaN is missing.
    lengths
        Values to fold per row, each 0 to T, shape [B]; None for T.
    seasonality
        Of the model; the longest season is at most W.
    kind
        Transform of the model.

    Returns
    -------
    history, state
        The description of every step (meaningless beyond a row's length), and the state after each row's last step,
        with recurrent state and calibration as they were.
    """
    parts = blank(len(y), y.shape[1], state.ring.shape[1])
    after = _fold(state, y, lengths, seasonality, kind, parts)
    return told(parts, state.ring.shape[1]), after


def settle(
    state: StreamState, y: Tensor, lengths: Tensor | None = None, *, seasonality: tuple[int, ...], kind: Transform
) -> StreamState:
    """The state that `advance` leads to, without a description of the steps on the way."""
    return _fold(state, y, lengths, seasonality, kind, blank(0, 0, 0))


def describe(state: StreamState, *, kind: Transform) -> History:
    """What is known at a state's latest step, T = 1: the last entry of the history that led to it."""
    rows, width = state.ring.shape
    parts = blank(rows, 1, width)
    nothing = np.empty((rows, 0))
    # The loop that leads to a state describes it: another one might round otherwise.
    kernels.advance(
        np.arange(rows), *_folded(state), nothing, EVERY_STEP, 1, 1, kind == "log", *blank_change(rows), *parts
    )
    return told(parts, width)


def _fold(
    state: StreamState, y: Tensor, lengths: Tensor | None, seasonality: tuple[int, ...], kind: Transform, parts: Parts
) -> StreamState:
    before = _folded(state)
    ring, statistics, clocks = np.empty_like(before[0]), np.empty_like(before[1]), np.empty_like(before[2])
    ends = EVERY_STEP if lengths is None else memory(lengths)
    kernels.advance(
        np.arange(len(y)), *before, memory(y), ends, seasonality[0], seasonality[-1], kind == "log",
        ring, statistics, clocks, *parts,
    )  # fmt: skip
    return state.amended(
        ring=torch.from_numpy(ring), statistics=torch.from_numpy(statistics), clocks=torch.from_numpy(clocks)
    )


def _folded(state: StreamState) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Memory of what is folded here."""
    arrays = state.arrays
    return arrays["ring"], arrays["statistics"], arrays["clocks"]


def blank(rows: int, steps: int, ring_length: int) -> Parts:
    """Memory for a kernel to describe steps in: table, frames and differences, see `kernels.advance`."""
    return (
        np.empty((steps, rows, ring_length + SCALARS + num_blocks(ring_length)), np.float32),
        np.empty((3, rows, steps)),
        np.empty((rows, steps), np.float32),
    )


def blank_change(rows: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Memory for a kernel to write the latest values, statistics and clocks in, see `kernels.advance`."""
    return np.empty((rows, 1)), np.empty((rows, NUM_STATISTICS)), np.empty((rows, 3), np.int64)


def told(parts: Parts, ring_length: int) -> History:
    """What a kernel has written there."""
    table, frames, differences = map(torch.from_numpy, parts)
    return History(Frame(*frames.unbind()), table.transpose(0, 1), differences, ring_length)


def memory(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor's numbers in order: its own memory where they lie so."""
    return np.ascontiguousarray(tensor.numpy())
