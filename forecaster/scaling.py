"""Causal scaling: what a series' recent past says about its location, scale and unit, carried in its state.

At every step the ring of recent values gives a *frame*: a location and a unit in which values become numbers of order
one, and back. Multiplying a series by a positive constant multiplies its scale and leaves the scaled numbers alone.
All steps of a chunk are computed at once, without a loop over time, and in float64 until the scaled numbers; nothing
here has parameters, so no gradient runs through it.

Axes: B row, T step of the chunk, W ring slot (oldest to newest once ordered), K statistic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from forecaster.state import StreamState

__all__ = [
    "NUM_STATISTICS",
    "Frame",
    "History",
    "Transform",
    "advance",
    "describe",
    "linear_scan",
    "log_slope",
    "restore",
    "transform",
]

Transform = Literal["log", "linear"]

NUM_STATISTICS = 4
"""A decayed count and a decayed sum of absolute differences at lag 1 and at the shortest season: K."""

HALF_LIFE = 8
"""Half-life of the statistics, in ring lengths."""

SHIFT = 1 / 30
"""The log transform adds this share of the mean magnitude to y, so that zeros and small negatives stay finite."""

FLOOR = 0.05
"""Below this multiple of the location the log transform continues as its tangent, so that it is defined everywhere."""

PRIOR_UNIT = 0.3
PRIOR_COUNT = 8
"""A unit seen in fewer than `PRIOR_COUNT` values is mixed with the prior, in proportion."""

LOG_FLOOR = math.log(FLOOR)
LARGEST_LOG = 12.0
"""No forecast exceeds the location by more than this on the log scale; keeps an untrained network finite."""

LARGEST_UNIT = 3.0
LARGEST_SCALED = 16.0
"""One stray value far below zero must not blow up the unit of the log transform, nor reach the network unbounded."""

SMALLEST_SIZE = 1e-290
SMALLEST_UNIT = 1e-5
"""Floor of the unit relative to the scale: a constant series has a tiny unit, not none."""


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
    scaled
        The last W values up to and including each step in that step's coordinates, oldest first, float32, shape
        [B, T, W]; 0 where nothing was ever observed.
    filled
        Share of the W values that were ever observed, float32, shape [B, T].
    differences
        Mean absolute difference at lag 1 and at the shortest season, in units of scale, float32, shape [B, T, 2]; 0
        until one was seen.
    age, silence
        As in `StreamState`, at each step, int64, shape [B, T].
    """

    frame: Frame
    scaled: Tensor
    filled: Tensor
    differences: Tensor
    age: Tensor
    silence: Tensor

    def last(self) -> History:
        """The last step only, T = 1."""
        tail = slice(-1, None)
        return History(
            Frame(*(part[:, tail] for part in self.frame)),
            *(part[:, tail] for part in (self.scaled, self.filled, self.differences, self.age, self.silence)),
        )


def linear_scan(decay: Tensor, increment: Tensor, initial: Tensor) -> Tensor:
    """All values of ``s[t] = decay[t] * s[t-1] + increment[t]``, by doubling: log2(T) passes instead of T steps.

    Parameters
    ----------
    decay, increment
        Shape [..., T]; decays between 0 and 1, so that no pass can overflow.
    initial
        ``s[-1]``, shape [...].

    Returns
    -------
    Tensor
        Shape [..., T].

    References
    ----------
    Hillis and Steele, "Data parallel algorithms", CACM 29(12), 1986, on the composition of affine maps.

    Examples
    --------
    >>> linear_scan(torch.tensor([0.5, 0.5, 1.0]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor(2.0))
    tensor([2., 2., 3.])
    """
    length = decay.shape[-1]
    shift = 1
    while shift < length:
        increment = torch.cat(
            [increment[..., :shift], increment[..., shift:] + decay[..., shift:] * increment[..., :-shift]], -1
        )
        decay = torch.cat([decay[..., :shift], decay[..., shift:] * decay[..., :-shift]], -1)
        shift *= 2
    return increment + decay * initial.unsqueeze(-1)


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
    relative = scaled * frame.unit.float().unsqueeze(-1)
    if kind == "log":
        log = relative.clamp(max=LARGEST_LOG)
        relative = torch.expm1(log)
        if log.numel() and not float(log.detach().amin()) > LOG_FLOOR:  # also where NaN
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
    if not relative.numel() or float(relative.amin()) >= FLOOR - 1:
        return relative.log1p_()
    return torch.log1p(relative.clamp(min=FLOOR - 1)) + (relative + (1 - FLOOR)).clamp(max=0) / FLOOR


def advance(
    state: StreamState, y: Tensor, lengths: Tensor | None = None, *, lag: int, kind: Transform
) -> tuple[History, StreamState]:
    """Fold a chunk of values into everything but the recurrent state, and describe every step on the way.

    Parameters
    ----------
    state
        Before the chunk, B rows.
    y
        Float64, shape [B, T]; NaN is missing.
    lengths
        Values to fold per row, each 1 to T, shape [B]; None for T.
    lag
        The shortest season, at most W.
    kind
        Transform of the model.

    Returns
    -------
    history, state
        The description of every step (meaningless beyond a row's length), and the state after each row's last step,
        with hidden and cell state as they were.
    """
    length, width = y.shape[1], state.ring.shape[1]
    seen = ~torch.isnan(y)
    values = _extend(state.ring, y, seen)  # [B, W + T], oldest first
    statistics = _statistics(state.statistics, values, y, lag)
    missing = (~seen).to(torch.int64)
    silence = linear_scan(missing, missing, state.silence)
    age = state.age.unsqueeze(1) + torch.arange(1, length + 1)
    history = _describe(values[:, 1:], statistics, age, silence, kind)
    if lengths is None:
        ring, last = values[:, length:], (slice(None), -1)
    else:
        rows = torch.arange(len(lengths))
        ring = values.gather(1, lengths.unsqueeze(1) + torch.arange(width))
        last = (rows, lengths - 1)  # type: ignore[assignment]
    return history, replace(
        state,
        ring=ring,
        statistics=statistics[last],
        age=age[last],
        silence=silence[last],
        last_step=state.last_step + (length if lengths is None else lengths),
    )


def describe(state: StreamState, *, kind: Transform) -> History:
    """What is known at a state's latest step, T = 1: the last entry of the history that led to it."""
    return _describe(
        state.ring,
        state.statistics.unsqueeze(1),
        state.age.unsqueeze(1),
        state.silence.unsqueeze(1),
        kind,
    )


def _describe(values: Tensor, statistics: Tensor, age: Tensor, silence: Tensor, kind: Transform) -> History:
    """History of T steps from the W + T - 1 values that their windows cover, [B, W + T - 1], oldest first."""
    length = age.shape[1]
    width = values.shape[1] - length + 1
    partial = bool(torch.isnan(values.sum()))  # rare while serving: some phase was never observed
    if partial:
        unseen = torch.isnan(values).unfold(1, width, 1)
        windows = values.nan_to_num(0.0).unfold(1, width, 1)
        count = (width - unseen.sum(-1)).double()
    else:
        windows = values.unfold(1, width, 1)  # [B, T, W], a view
        count = torch.full((), width, dtype=torch.float64)
    divisor = count.clamp(min=1)
    location, scale = windows.sum(-1) / divisor, windows.abs().sum(-1) / divisor
    raw = _relative(windows, location, scale, kind)
    if partial:
        raw = raw.masked_fill_(unseen, 0.0)
    unit = _unit(raw, count)
    scaled = raw * (1 / unit).float().unsqueeze(-1)
    differences = statistics[..., 2:] / statistics[..., :2].clamp(min=1e-9)
    return History(
        frame=Frame(location, scale, unit),
        scaled=scaled.clamp_(-LARGEST_SCALED, LARGEST_SCALED),
        filled=(count / width).float().expand(unit.shape),
        differences=(differences * _inverse(scale).unsqueeze(-1)).float(),
        age=age,
        silence=silence,
    )


def _extend(ring: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """Ring followed by y, a missing value standing as the one W steps before, the latest of its phase."""
    values = torch.cat([ring, y], 1)
    if bool(seen.all()):
        return values
    width, length = ring.shape[1], y.shape[1]
    for start in range(width, width + length, width):  # one pass per ring length, not per step
        end = min(start + width, width + length)
        part = values[:, start:end]
        values[:, start:end] = torch.where(torch.isnan(part), values[:, start - width : end - width], part)
    return values


def _unit(raw: Tensor, count: Tensor) -> Tensor:
    """Root mean square of the transformed window [..., W], drawn to a prior where few values are known."""
    norm: Tensor = torch.linalg.vector_norm(raw, dim=-1).double()
    square = norm.square() / count.clamp(min=1)
    trust = (count / PRIOR_COUNT).clamp(max=1)
    return (trust * square + (1 - trust) * PRIOR_UNIT**2 + SMALLEST_UNIT**2).sqrt().clamp(max=LARGEST_UNIT)


def _statistics(initial: Tensor, values: Tensor, y: Tensor, lag: int) -> Tensor:
    """Decayed counts and sums of absolute differences at lags 1 and `lag`, at every step, shape [B, T, 4]."""
    length = y.shape[1]
    width = values.shape[1] - length
    before = torch.stack([values[:, width - k : width - k + length] for k in (1, lag)], 1)  # [B, 2, T]
    changes = (y.unsqueeze(1) - before).abs_()
    counted = (changes == changes).double()  # neither side is missing
    decay = 1 - counted * (1 - 0.5 ** (1 / (HALF_LIFE * width)))
    increment = torch.cat([counted, changes.nan_to_num_(0.0)], 1)
    return linear_scan(torch.cat([decay, decay], 1), increment, initial).transpose(1, 2)
