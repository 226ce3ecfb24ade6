"""Compiled loops: frames and features of a chunk, LSTM steps and decoders of few rows, quantiles and places in them.

What PyTorch would do in dozens of passes over a batch, each loop here does in one pass over a row while the row is in
the first-level cache, without temporaries and without the interpreter lock. Plain numbers and NumPy arrays in, arrays
written in place; compiled by Numba at the first call and cached on disk. Everything compiled stands in this one file,
constants too, because a cached loop is made anew only when its own file changes.

Axes: R row of a state, B row of the batch, T step of the chunk, W ring slot, K statistic, L layer, H hidden unit; of
what is decoded: N moment, A anchor, Q quantile, S horizon step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from forecaster.blas import SGEMM, link

__all__ = [
    "BLUR",
    "EDGE",
    "EVERY_STEP",
    "FADING",
    "FINE",
    "FLOOR",
    "LARGEST_CORRECTION",
    "LARGEST_LOG",
    "LARGEST_SCALED",
    "LARGEST_UNIT",
    "NUM_STATISTICS",
    "SCALARS",
    "SHIFT",
    "SLIGHT",
    "SMALLEST_SIZE",
    "advance",
    "bend",
    "contexts",
    "cycles",
    "decode",
    "fly",
    "land",
    "lstm_step",
    "place",
    "restore",
    "spread",
    "stretch",
    "tally",
    "weigh",
    "write",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Words = npt.NDArray[np.int32]
AnyNumbers = npt.NDArray[Any]

P = ParamSpec("P")
R = TypeVar("R")

NUM_STATISTICS = 4
"""A decayed count at lag 1 and at the shortest season, and a decayed sum of absolute differences at both: K."""

HALF_LIFE = 8
"""Half-life of the statistics, in ring lengths."""

SHIFT = 1 / 30
"""The log transform adds this share of the mean magnitude to y, so that zeros and small negatives stay finite."""

FLOOR = 0.05
"""Below this multiple of the location the log transform continues as its tangent, so that it is defined everywhere."""

LARGEST_LOG = 12.0
"""No forecast exceeds the location by more than this on the log scale; keeps an untrained network finite."""

PRIOR_UNIT = 0.3
PRIOR_COUNT = 8
"""A unit seen in fewer than `PRIOR_COUNT` values is mixed with the prior, in proportion."""

LARGEST_UNIT = 3.0
LARGEST_SCALED = 16.0
"""One stray value far below zero must not blow up the unit of the log transform, nor reach the network unbounded."""

SLIGHT = 0.05
"""Values below 0 by no more than this share of the mean magnitude are noise around 0: what measures wind power or cars
in a park says such."""

SMALLEST_SIZE = 1e-290
SMALLEST_UNIT = 1e-10
"""Floor of the unit relative to the scale: a constant series has a tiny unit, not none. Above the rounding of float64,
below the changes of a meter's reading."""

SMALLEST_TOLD = 1e-5
"""What the network is told of smaller units: it has seen few of those."""

SMALLEST_SQUARES = np.float32(1e-30)
"""Floor of the squared changes that a trend is held against: of none at all, it explains none."""

EVERY_STEP = np.empty(0, np.int64)
"""In place of lengths: all rows have all steps."""

SCALARS = 7
"""Features of a step beside its ring."""

FINE = 96
"""Rings longer than twice this are seen finely for this many recent values, and in block means before that."""

EDGE = 2.0**-40
"""Least distance of a place, or of a drawn level, from 0 and 1: no observation is impossible, no quantile infinite, and
surprise ends at 11.7."""

TAIL = 0.2
"""Index of the tails beyond the outermost quantiles, those of a generalised Pareto distribution (Pickands, 1975); 0 is
exponential. So heavy, 0.5 to 1.0 values in a hundred and 0.4 to 0.9 in a thousand of five public sets lie as far out as
they say; with exponential ones 0.6 to 1.6, and 0.9 to 4.4."""

BLUR = 0.2
"""A miss counts from 0 to 1 over this share of the distance to the bound, so that rounding cannot turn a state over."""

FADING = 0.002
"""Share of a correction that is forgotten from flight to flight."""

SMALLEST_VARIANCE = 1e-5
"""Added to the variance by layer norm, as PyTorch does."""

STEPPED = 256
"""Rows that are stepped at once, so that what lies between the products stays in the second-level cache."""

DECODED = 128
"""Rows that are decoded at once, for the same reason."""

LARGEST_CORRECTION = 2.0
"""A correction multiplies or divides by exp of this at most."""

# No flag that lets the compiler assume away NaN: missing values are NaN.
_EXACT = {"contract", "nsz"}
_REORDERED = {"contract", "nsz", "reassoc"}  # sums in vector lanes


# A part that is called, not inlined, is rounded in one way by a process that compiles a loop, which calls the part that
# was compiled for itself, and in another by one that finds the loop in the cache, with a copy of the part.
_INLINED: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": True}


def _part(function: Callable[P, R]) -> Callable[P, R]:
    """Compile as part of the loops below."""
    return cast("Callable[P, R]", numba.njit(fastmath=_EXACT, **_INLINED)(function))


def _sum(function: Callable[P, R]) -> Callable[P, R]:
    """Compile as part of the loops below, free to add up in any order."""
    return cast("Callable[P, R]", numba.njit(fastmath=_REORDERED, **_INLINED)(function))


def _loop(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call, as looking for a place to cache touches the disk; without cache if there is none."""

    @functools.cache
    def compiled() -> Any:
        link()
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _EXACT}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        found: R = compiled()(*args, **kwargs)
        return found

    return call


# -- frames and features -----------------------------------------------------------------------------------------------


@_sum
def _sums(window: Float64) -> tuple[float, float]:
    """Sum and sum of magnitudes."""
    total = magnitude = 0.0
    for i in range(window.shape[0]):
        total += window[i]
        magnitude += abs(window[i])
    return total, magnitude


@_part
def _known_sums(window: Float64) -> tuple[float, float, int]:
    """The same over what is not NaN, and how much that is."""
    total = magnitude = 0.0
    known = 0
    for i in range(window.shape[0]):
        if not math.isnan(window[i]):
            total += window[i]
            magnitude += abs(window[i])
            known += 1
    return total, magnitude, known


@_sum
def _sum_of_squares(numbers: Float32) -> np.float32:
    total = np.float32(0)
    for i in range(numbers.shape[0]):
        total += numbers[i] * numbers[i]
    return total


@_part
def _logarithm(relative: np.float32) -> np.float32:
    """log(1 + relative), its tangent below FLOOR; to float32 rounding also near 0, where it matters most.

    1 + relative = m 2^e with m near 1, and log m = 2 artanh(f / (2 + f)) for f = m - 1, which is `relative` itself
    where e = 0. As with `_exponential`, a loop over it is done in vectors.
    """
    one, two, lowest = np.float32(1), np.float32(2), np.float32(FLOOR - 1)
    bits = np.float32(one + max(relative, lowest)).view(np.int32)
    e = (bits - np.int32(0x3F3504F3)) >> np.int32(23)  # the bits of sqrt(1/2): m lies around 1
    m = np.int32(bits - (e << np.int32(23))).view(np.float32)
    f = relative if e == 0 else m - one
    s = f / (two + f)
    square = s * s
    series = (np.float32(1 / 9) * square + np.float32(1 / 7)) * square + np.float32(1 / 5)
    series = (series * square + np.float32(1 / 3)) * square
    tangent = min(relative - lowest, np.float32(0)) * np.float32(1 / FLOOR)
    result: np.float32 = np.float32(e) * np.float32(math.log(2)) + two * (s + s * series) + tangent
    return result


@_part
def _describe_step(
    window: Float64, statistics: Float64, age: int, silence: int, log: bool, line: Float32
) -> tuple[float, float, float, float]:
    """Write one line of the table of `advance`; return location, scale, unit and seasonal difference."""
    width = window.shape[0]
    known, relative = width, line[: window.shape[0]]
    total, magnitude = _sums(window)
    if math.isnan(total):
        total, magnitude, known = _known_sums(window)
    divisor = max(known, 1)
    location, scale = total / divisor, magnitude / divisor
    breadth = scale
    if log:
        shift = SHIFT * scale
        breadth = max(location + shift, shift)
    inverse = 1 / breadth if breadth > SMALLEST_SIZE else 1.0
    for i in range(width):
        relative[i] = np.float32((window[i] - location) * inverse)
    if log:
        for i in range(width):
            relative[i] = _logarithm(relative[i])
    if known < width:
        for i in range(width):
            if math.isnan(window[i]):
                relative[i] = np.float32(0)
    square = float(_sum_of_squares(relative)) / divisor
    trust = min(known / PRIOR_COUNT, 1.0)
    unit = math.sqrt(trust * square + (1 - trust) * PRIOR_UNIT**2 + SMALLEST_UNIT**2)
    unit = min(unit, LARGEST_UNIT)
    factor, bound = np.float32(1 / unit), np.float32(LARGEST_SCALED)
    for i in range(width):
        relative[i] = min(max(relative[i] * factor, -bound), bound)
    # Then the scalars.
    # Where the window holds nothing but zeros, there is no unit to tell the sums of older changes in.
    inverse = 1 / scale if scale > SMALLEST_SIZE else 0.0
    near = statistics[2] / max(statistics[0], 1e-9) * inverse
    seasonal = statistics[3] / max(statistics[1], 1e-9) * inverse
    line[width] = math.log(max(unit, SMALLEST_TOLD)) * 0.5
    line[width + 1] = math.log(near + 1e-4) * 0.5
    line[width + 2] = math.log(seasonal + 1e-4) * 0.5
    line[width + 3] = location / scale if scale > 0 else 0.0
    line[width + 4] = math.log1p(float(age)) * 0.125
    line[width + 5] = math.log1p(float(silence)) * 0.5
    line[width + 6] = known / width
    # Then the block means, oldest first; the oldest values that fill no block are left out.
    blocks = line.shape[0] - width - SCALARS
    if blocks > 0:
        block = (width - FINE) // blocks
        place = width - FINE - blocks * block
        for k in range(blocks):
            mean = np.float32(0)
            for i in range(place, place + block):
                mean += line[i]
            line[width + SCALARS + k] = mean / np.float32(block)
            place += block
    return location, scale, unit, seasonal


@_part
def _copy(numbers: AnyNumbers, target: AnyNumbers) -> None:
    """Of one axis each, so that the compiler sees that both lie in order, and copies in vectors."""
    for i in range(numbers.shape[0]):
        target[i] = numbers[i]


@_part
def _unroll(ring: Float64, last_step: int, values: Float64) -> None:
    """Write the ring, oldest first, to the start of `values`."""
    width = ring.shape[0]
    oldest = (last_step + 1) % width
    _copy(ring[oldest:], values)
    _copy(ring[:oldest], values[width - oldest :])


@_part
def _filled(values: Float64, place: int, width: int, season: int, silence: int, statistics: Float64) -> float:
    """What takes the place of a missing value: that of the longest season before, moved by what has changed since.

    As much as the last value lies above that of a season before it, the missing one is expected to, times the
    autocorrelation of seasonal differences over the silence. With mean changes d over one step and D over the shortest
    season that is about 1 - silence d^2 / D^2, as for a random walk. Where no season was seen, it is the last value.
    """
    # A ring of nothing but copies would have forgotten how much the values vary.
    before: float = values[place - (season if 2 * silence <= width else width)]
    if math.isnan(before):
        before = values[place - 1]
        return before
    if 2 * silence > width or silence + season > width or not statistics[3] > 0:
        return before
    ratio = (statistics[2] * statistics[1]) / (statistics[0] * statistics[3])
    share = 1 - silence * ratio * ratio
    last, counterpart = values[place - silence], values[place - silence - season]
    if not share > 0 or math.isnan(counterpart):
        return before
    found: float = before + share * (last - counterpart)
    return max(found, 0.0) if min(before, last, counterpart) >= 0 else found


@_loop
def advance(
    rows: Int64,
    ring: Float64,
    statistics: Float64,
    clocks: Int64,
    y: Float64,
    lengths: Int64,
    lag: int,
    season: int,
    log: bool,
    new_ring: Float64,
    new_statistics: Float64,
    new_clocks: Int64,
    table: Float32,
    frames: Float64,
    differences: Float32,
) -> None:
    """Fold a chunk into everything but the recurrent state, and describe every step on the way.

    Parameters
    ----------
    rows
        Rows of the state to fold, shape [B]; the state is not written to.
    ring, statistics, clocks
        Of `StreamState`: shapes [R, W], [R, K] and [R, 3].
    y
        Shape [B, T]; NaN is missing, and `_filled` stands for it in the ring.
    lengths
        Steps of each row, shape [B], each 0 to T, or `EVERY_STEP`.
    lag, season
        The shortest season and the longest one.
    log
        Whether the transform is the logarithm.
    new_ring
        Written: the ring after each row's last step, shape [B, W], or only its latest values, shape [B, 1].
    new_statistics, new_clocks
        Written: likewise, shapes [B, K] and [B, 3].
    table
        Written: the scaled ring, scalars and block means of every step, shape [T, B, W + SCALARS + blocks]; 0 beyond a
        row's length. Without entries, nothing is described; with one step more, the state before the chunk is, too, as
        the first.
    frames
        Written: location, scale and unit, shape [3, B, T]; 1 beyond a row's length.
    differences
        Written: mean absolute seasonal difference in units of scale, shape [B, T]; 0 beyond a row's length.
    """
    width, keep, steps, told = ring.shape[1], new_ring.shape[1], y.shape[1], table.shape[0]
    for b in range(rows.shape[0]):
        if not 0 <= rows[b] < ring.shape[0]:
            raise IndexError("no such row")
    before = max(told - steps, 0)
    decay = 0.5 ** (1 / (HALF_LIFE * width))
    values = np.empty(width + steps)  # ring and chunk in one line, oldest first
    for b in range(rows.shape[0]):
        row = rows[b]
        age, silence, last = clocks[row, 0], clocks[row, 1], clocks[row, 2]
        _unroll(ring[row], last, values)
        _copy(statistics[row], new_statistics[b])
        if keep == width:
            _copy(ring[row], new_ring[b])
        now, length = new_statistics[b], lengths[b] if lengths.shape[0] > 0 else steps
        for line in range(before + length):
            t = line - before
            if t >= 0:
                value = y[b, t]
                age += 1
                last += 1
                if math.isnan(value):
                    silence += 1
                    values[width + t] = _filled(values, width + t, width, season, silence, now)
                else:
                    silence = 0
                    values[width + t] = value
                    for k in range(2):
                        change = abs(value - values[width + t - (lag if k else 1)])
                        if not math.isnan(change):
                            now[k] = decay * now[k] + 1
                            now[2 + k] = decay * now[2 + k] + change
                new_ring[b, last % keep] = values[width + t]
            if told > 0:
                window = values[t + 1 : t + 1 + width]
                frames[0, b, line], frames[1, b, line], frames[2, b, line], differences[b, line] = _describe_step(
                    window, now, age, silence, log, table[line, b]
                )
        new_clocks[b, 0], new_clocks[b, 1], new_clocks[b, 2] = age, silence, last
        for line in range(before + length, told):
            for i in range(table.shape[2]):
                table[line, b, i] = 0
            for i in range(3):
                frames[i, b, line] = 1
            differences[b, line] = 0


@_loop
def write(rows: Int64, mine: tuple[Words, ...], theirs: tuple[Words, ...], placed: int, places: Int64) -> None:
    """Copy rows of some tables over rows of others.

    Parameters
    ----------
    rows
        Rows to write over, shape [B].
    mine
        Changed: tables of R rows.
    theirs
        What to write, of B rows and at most as many columns each; without columns, nothing is written.
    placed, places
        One of the tables, and the first column to write in each of its rows, shape [B]; in all others it is the first.
    """
    for i in range(rows.shape[0]):
        if not 0 <= rows[i] < mine[0].shape[0]:
            raise IndexError("no such row")
    for k in range(len(mine)):
        target, given = mine[k], theirs[k]
        for i in range(rows.shape[0] if given.shape[1] > 0 else 0):
            _copy(given[i], target[rows[i], places[i] if k == placed else 0 :])


# -- products of matrices ---------------------------------------------------------------------------------------------


@_part
def _room() -> tuple[Int64, Float32, npt.NDArray[np.uint8]]:
    """Where `_product` puts what BLAS takes by its address."""
    # Integers of 64 bits, of which a BLAS of 32 bits reads the lower half.
    return np.empty(6, np.int64), np.array([1, 0], np.float32), np.full(1, 78, np.uint8)


@_part
def _product(left: Float32, right: Float32, found: Float32, room: Any, added: bool = False) -> None:
    """`found` [N, J] = `left` [N, K] x `right` [K, J], or added to what is there; rows may lie apart."""
    # To BLAS, which goes by columns, each is its transpose: found' = right' x left', none of them transposed ("N").
    sizes, factors, letter = room
    factors[1] = np.float32(1 if added else 0)
    sizes[0], sizes[1], sizes[2] = found.shape[1], found.shape[0], left.shape[1]
    sizes[3], sizes[4], sizes[5] = _stride(right), _stride(left), _stride(found)
    plain = letter.ctypes
    SGEMM(
        plain, plain, sizes.ctypes, sizes[1:].ctypes, sizes[2:].ctypes, factors.ctypes, right.ctypes, sizes[3:].ctypes,
        left.ctypes, sizes[4:].ctypes, factors[1:].ctypes, found.ctypes, sizes[5:].ctypes,
    )  # fmt: skip


@_part
def _stride(matrix: Float32) -> int:
    """Numbers from row to row."""
    return int(max(matrix.strides[0] // 4, matrix.shape[1]))


# -- the recurrent step ------------------------------------------------------------------------------------------------


@_part
def _exponential(x: np.float32) -> np.float32:
    """exp(x) to float32 rounding, of x within 43 of 0: exp(-43) is nothing beside 1, and two of them can be multiplied.

    exp(x) = 2^n exp(r) with |r| <= log(2) / 2, where six powers reach rounding. All steps are plain arithmetic, so that
    a loop over units is done in vectors, and what is between the steps stays in registers.
    """
    one, bound = np.float32(1), np.float32(43)
    x = min(max(x, -bound), bound)
    n = np.float32(np.rint(x * np.float32(1 / math.log(2))))
    # log(2) in two parts, so that n times the first is exact.
    r = (x - n * np.float32(0.693359375)) - n * np.float32(math.log(2) - 0.693359375)
    series = (np.float32(1 / 720) * r + np.float32(1 / 120)) * r + np.float32(1 / 24)
    series = ((series * r + np.float32(1 / 6)) * r + np.float32(0.5)) * r + one
    bits = np.float32(series * r + one).view(np.int32) + (np.int32(n) << np.int32(23))
    power: np.float32 = np.int32(bits).view(np.float32)
    return power


@_part
def _gated(gate: np.float32, x: np.float32) -> np.float32:
    """tanh(x) / (1 + exp(-gate)), as one division."""
    one, small = np.float32(1), _exponential(np.float32(-2) * x)
    return (one - small) / ((one + _exponential(-gate)) * (one + small))


@_part
def _lstm_gates(sums: Float32, bias: Float32, before: Float32, after: Float32, hidden: Float32) -> None:
    """From the weighted sums [4H] of a row to its cell and hidden states; gates are input, forget, cell, output."""
    size, one = bias.shape[0] // 4, np.float32(1)
    for i in range(size):
        entering = _gated(sums[i] + bias[i], sums[2 * size + i] + bias[2 * size + i])
        kept = before[i] / (one + _exponential(-sums[size + i] - bias[size + i])) + entering
        after[i] = kept
        hidden[i] = _gated(sums[3 * size + i] + bias[3 * size + i], kept)


@_sum
def _normalise(numbers: Float32, weight: Float32, bias: Float32, found: Float32) -> None:
    """Layer norm (Ba et al., 2016) of one row."""
    size = np.float32(numbers.shape[0])
    mean = square = np.float32(0)
    for i in range(numbers.shape[0]):
        mean += numbers[i]
    mean /= size
    for i in range(numbers.shape[0]):
        square += (numbers[i] - mean) * (numbers[i] - mean)
    inverse = np.float32(1) / np.sqrt(square / size + np.float32(SMALLEST_VARIANCE))
    for i in range(numbers.shape[0]):
        found[i] = (numbers[i] - mean) * inverse * weight[i] + bias[i]


@_loop
def lstm_step(
    rows: Int64,
    hidden: Float32,
    cell: Float32,
    inputs: Float32,
    entering: Float32,
    between: Float32,
    recurrent: Float32,
    bias: Float32,
    norms: Float32,
    projection: Float32,
    residual: bool,
    new_hidden: Float32,
    new_cell: Float32,
    output: Float32,
) -> None:
    """One step of all layers of all members of some rows of a state.

    Parameters
    ----------
    rows
        Of the state, shape [B].
    hidden, cell
        Before the step, members side by side, shapes [R, L, M x P] and [R, L, M x C].
    inputs
        Shape [B, F].
    entering, between, recurrent
        Weights of the inputs, of what a layer hands to the one above, and of hidden states, inputs first, shapes
        [M, F, 4C], [M, L - 1, P, 4C] and [M, L, P, 4C].
    bias
        Shape [M, L, 4C].
    norms
        Weight and bias of the layer norm below every layer but the first, shape [M, L - 1, 2, P]; none without members.
    projection
        From C to P units, shape [M, L, C, P]; none without members.
    residual
        Whether what goes into a layer is added to what comes out, of all but the first.
    new_hidden, new_cell
        Written: states after the step, shapes [B, L, M x P] and [B, L, M x C].
    output
        Written: what the last layer puts out, with its residual, shape [B, M x P].
    """
    members, layers, wide = bias.shape
    size, width = wide // 4, recurrent.shape[2]
    for b in range(rows.shape[0]):
        if not 0 <= rows[b] < hidden.shape[0]:
            raise IndexError("no such row")
    block = max(min(rows.shape[0], STEPPED), 1)
    room, sums = _room(), np.empty((block, wide), np.float32)
    old_hidden, old_cell = (
        np.empty((block, layers, hidden.shape[2]), np.float32),
        np.empty((block, layers, cell.shape[2]), np.float32),
    )
    below, given = np.empty((block, width), np.float32), np.empty((block, width), np.float32)
    unprojected = np.empty((block if projection.shape[0] > 0 else 0, size), np.float32)
    for first in range(0, rows.shape[0], block):
        many = min(block, rows.shape[0] - first)
        # All of them before any arithmetic: that fetches many scattered rows at once in place of waiting for each.
        for b in range(many):
            for k in range(layers):
                _copy(hidden[rows[first + b], k], old_hidden[b, k])
                _copy(cell[rows[first + b], k], old_cell[b, k])
        for m in range(members):
            mine, my_cell = m * width, m * size
            for k in range(layers):
                added = new_hidden[first : first + many, k, mine : mine + width]
                if k == 0:
                    _product(inputs[first : first + many], entering[m], sums[:many], room)
                elif norms.shape[0] > 0:
                    for b in range(many):
                        _normalise(below[b], norms[m, k - 1, 0], norms[m, k - 1, 1], given[b])
                    _product(given[:many], between[m, k - 1], sums[:many], room)
                else:
                    _product(below[:many], between[m, k - 1], sums[:many], room)
                _product(old_hidden[:many, k, mine : mine + width], recurrent[m, k], sums[:many], room, True)
                for b in range(many):
                    before, after = old_cell[b, k, my_cell:], new_cell[first + b, k, my_cell:]
                    if projection.shape[0] > 0:
                        _lstm_gates(sums[b], bias[m, k], before, after, unprojected[b])
                    else:
                        _lstm_gates(sums[b], bias[m, k], before, after, new_hidden[first + b, k, mine:])
                if projection.shape[0] > 0:
                    _product(unprojected[:many], projection[m, k], added, room)
                for b in range(many):
                    if residual and k > 0:
                        for i in range(width):
                            below[b, i] += new_hidden[first + b, k, mine + i]
                    else:
                        _copy(new_hidden[first + b, k, mine : mine + width], below[b])
            for b in range(many):
                _copy(below[b], output[first + b, mine:])


# -- what is decoded ---------------------------------------------------------------------------------------------------


@_part
def _error_function(x: np.float32) -> np.float32:
    """erf(x), to 1.5e-7 (Abramowitz and Stegun, 1964, 7.1.26)."""
    one, size = np.float32(1), abs(x)
    t = one / (one + np.float32(0.3275911) * size)
    series = (np.float32(1.061405429) * t - np.float32(1.453152027)) * t + np.float32(1.421413741)
    series = ((series * t - np.float32(0.284496736)) * t + np.float32(0.254829592)) * t
    found = one - series * _exponential(-size * size)
    return found if x >= 0 else -found


@_part
def _bend(sums: Float32, bias: Float32, straight: Float32) -> None:
    """GELU of sums and a bias, beside what goes straight on: of one axis each."""
    half, root = np.float32(0.5), np.float32(math.sqrt(0.5))
    for i in range(sums.shape[0]):
        x = sums[i] + bias[i]
        sums[i] = x * (half + half * _error_function(x * root)) + straight[i]


@_loop
def bend(sums: Float32, bias: Float32, straight: Float32) -> None:
    """GELU of sums and a bias, beside what goes straight on.

    Parameters
    ----------
    sums
        Replaced by gelu(sums + bias) + straight, shape [N, P].
    bias
        Shape [P].
    straight
        Shape [N, P].
    """
    for n in range(sums.shape[0]):
        _bend(sums[n], bias, straight[n])


@_loop
def contexts(hidden: Float32, weight: Float32, bias: Float32, found: Float32) -> None:
    """What the decoders of all members make of their hidden states first, by a product and `bend`.

    Parameters
    ----------
    hidden
        Member after member, shape [N, M x P].
    weight, bias
        Shapes [M, P, P], inputs first, and [M, P].
    found
        Written, shape [M, N, P].
    """
    members, total, size = found.shape
    room = _room()
    for m in range(members):
        first = m * size
        _product(hidden[:, first : first + size], weight[m], found[m], room)
        for n in range(total):
            _bend(found[m, n], bias[m], hidden[n, first:])


@_loop
def decode(
    context: Float32,
    features: Float32,
    anchors: Float32,
    mixture: Float32,
    autoregression: Float32,
    curves: Float32,
    bias: Float32,
    amendments: Float32,
    found: Float32,
) -> None:
    """What the decoders of all members say of every step: baseline, correction and raw shape.

    Parameters
    ----------
    context
        Shape [M, N, P].
    features, anchors
        Shapes [N, F] and [N, A, S].
    mixture, autoregression
        Weights, inputs first, shapes [M, P, rows x K] and [M, F, K]; the rows are A logits, a correction, raw shape.
    curves
        What the K columns of a row mix, shape [M, K, H]; without members, they are the H steps themselves.
    bias
        Of every row and step, shape [M, rows, H]; H is at least S.
    amendments
        Added likewise, shape [M, N, S, rows]; nothing without members.
    found
        Written, shape [M, N, rows - A + 1, S]: the mean of the anchors, weighted by softmax, then the rows after the
        logits, the first of them with the autoregression.
    """
    members, total, _, steps = found.shape
    count, rows, rank = anchors.shape[1], bias.shape[1], autoregression.shape[2]
    room, curved, amended = _room(), curves.shape[0] > 0, amendments.shape[0] > 0
    block = max(min(total, DECODED), 1)
    sums, own = np.empty((block, rows * rank), np.float32), np.empty((block, rank), np.float32)
    width = steps if curved else rank
    mixed = np.empty((block * rows if curved else 0, width), np.float32)
    mixed_own = np.empty((block if curved else 0, width), np.float32)
    largest, weights = np.empty(steps, np.float32), np.empty(steps, np.float32)
    for m in range(members):
        for first in range(0, total, block):
            until = min(first + block, total)
            many = until - first
            _product(context[m, first:until], mixture[m], sums[:many], room)
            _product(features[first:until], autoregression[m], own[:many], room)
            lines, along = sums[:many].reshape(many * rows, rank), own[:many]
            if curved:
                _product(lines, curves[m, :, :steps], mixed[: many * rows], room)
                _product(along, curves[m, :, :steps], mixed_own[:many], room)
                lines, along = mixed[: many * rows], mixed_own[:many]
            for n in range(many):
                for r in range(rows):
                    line = lines[n * rows + r]
                    for s in range(steps):
                        line[s] += bias[m, r, s]
                    if amended:
                        for s in range(steps):
                            line[s] += amendments[m, first + n, s, r]
                here = found[m, first + n]
                _weigh(lines[n * rows : n * rows + count], anchors[first + n], largest, weights, here[0])
                line, beside = lines[n * rows + count], along[n]
                for s in range(steps):
                    here[1, s] = line[s] + beside[s]
                for r in range(count + 1, rows):
                    _copy(lines[n * rows + r, :steps], here[r - count + 1])


@_sum
def _sum_of_every(numbers: Float32, period: int, count: int) -> np.float32:
    """The first number and those whole periods after it, so many in all."""
    total: np.float32 = numbers[0]
    for k in range(1, count):
        total += numbers[k * period]
    return total


@_sum
def _slope(numbers: Float32, lag: int) -> np.float32:
    """Change per step: the mean change over a lag, as far as the changes agree.

    That is times the share of their squares that their mean explains: all of a steady trend, next to nothing of noise.
    """
    count = numbers.shape[0] - lag
    total = squares = np.float32(0)
    for i in range(count):
        change = numbers[i + lag] - numbers[i]
        total += change
        squares += change * change
    mean = total / np.float32(count)
    slope: np.float32 = mean / np.float32(lag) * (mean * total / max(squares, SMALLEST_SQUARES))
    return slope


@_part
def _seasonal(numbers: Float32, period: int, rest: Float32, pattern: Float32) -> None:
    """What the coming steps differ by from the level, judged by the ring: classical decomposition.

    That is the mean, over the cycles, of what is left without the mean of one period around it (Hyndman and
    Athanasopoulos, Forecasting: Principles and Practice, 3.4); for an even period that mean is half a step beside, so
    all of a pattern is off by the same, which does not matter to differences within it.

    Parameters
    ----------
    numbers
        A ring, oldest first, two periods or longer.
    period
        Of the pattern.
    rest
        Room for as many numbers.
    pattern
        Written, shape [period].
    """
    width, before = numbers.shape[0], period // 2
    count = width - period + 1
    total = np.float64(0)
    for i in range(period):
        total += numbers[i]
    for i in range(count):
        if i:
            total += numbers[i + period - 1] - numbers[i - 1]
        rest[i] = numbers[i + before] - total / period
    for s in range(period):
        first = (width - before + s) % period
        many = (count - 1 - first) // period + 1
        pattern[s] = _sum_of_every(rest[first:], period, many) / many


@_loop
def cycles(
    scaled: Float32, periods: Int64, mean_periods: Int64, lag: int, period_of_blend: int, blend: Float32, found: Float32
) -> None:
    """Repeat recent cycles, mean ones, and the last value in season, all moved along the trend; then a blend of cycles.

    Parameters
    ----------
    scaled
        Rings, oldest first, shape [N, W].
    periods
        Of the latest cycles.
    mean_periods
        Of the cycles that are means over as many as fit into the ring.
    lag
        Of the changes that tell the trend; 0 for none.
    period_of_blend, blend
        The last anchor is a blend of the latest K cycles of that period, oldest first, with weights of its own for
        every coming cycle, shape [J, K]; without, where K is 0.
    found
        Written, shape [N, A, S]: one anchor per period, from the middle of what is repeated to the step; then, where
        there is one more, the last value, moved to each step's place in the pattern of the longest mean period.
    """
    width, steps = scaled.shape[1], found.shape[2]
    repeated, blended = periods.shape[0] + mean_periods.shape[0], blend.shape[1]
    longest = mean_periods[-1] if repeated + (blended > 0) < found.shape[1] else 0
    rest, pattern = np.empty(width, np.float32), np.empty(longest, np.float32)
    for n in range(scaled.shape[0]):
        slope = _slope(scaled[n], lag) if lag else np.float32(0)
        for a in range(repeated):
            late = a < periods.shape[0]
            period = periods[a] if late else mean_periods[a - periods.shape[0]]
            count = 1 if late else width // period
            anchor = found[n, a]
            for s in range(min(period, steps)):
                ahead = np.float32(period * (count + 1) / 2)
                anchor[s] = (
                    _sum_of_every(scaled[n, width - count * period + s :], period, count) / count + slope * ahead
                )
            for s in range(period, steps):
                anchor[s] = anchor[s - period] + slope * np.float32(period)
        if longest:
            _seasonal(scaled[n], longest, rest, pattern)
            level = scaled[n, width - 1] - pattern[longest - 1]
            for s in range(steps):
                found[n, repeated, s] = level + pattern[s % longest] + slope * np.float32(s + 1)
        if blended:
            anchor = found[n, found.shape[1] - 1]
            for s in range(steps):
                anchor[s] = 0
            for first in range(0, steps, period_of_blend):
                until = min(first + period_of_blend, steps)
                for k in range(blended):
                    weight = blend[first // period_of_blend, k]
                    start = width - (blended - k) * period_of_blend
                    for s in range(first, until):
                        anchor[s] += weight * scaled[n, start + s - first]


@_part
def _weigh(logits: Float32, anchors: Float32, largest: Float32, total: Float32, mean: Float32) -> None:
    """`weigh` of one row, with room for two numbers per step."""
    count, steps = anchors.shape
    for s in range(steps):
        largest[s] = logits[0, s]
        total[s] = mean[s] = np.float32(0)
    for a in range(1, count):
        for s in range(steps):
            largest[s] = max(largest[s], logits[a, s])
    for a in range(count):
        for s in range(steps):
            weight = _exponential(logits[a, s] - largest[s])
            total[s] += weight
            mean[s] += weight * anchors[a, s]
    for s in range(steps):
        mean[s] /= total[s]


@_loop
def weigh(decoded: Float32, anchors: Float32, baseline: Float32) -> None:
    """Mean of the anchors, weighted by softmax.

    Parameters
    ----------
    decoded
        The first rows are logits of the weights, shape [N, A or more, S].
    anchors
        Shape [N, A, S].
    baseline
        Written, shape [N, S].
    """
    steps = anchors.shape[2]
    largest, total = np.empty(steps, np.float32), np.empty(steps, np.float32)
    for n in range(decoded.shape[0]):
        _weigh(decoded[n], anchors[n], largest, total, baseline[n])


@_loop
def spread(decoded: Float32, widening: Float32, quantiles: Float32) -> None:
    """Quantiles around medians, by steps of softplus(shape) x widening outward; the mean over members.

    Parameters
    ----------
    decoded
        Baseline and correction, whose sum is the median, and the raw shape of the steps below it, nearest first, then
        of those above it, shape [M, N, 2 + Q - 1, S].
    widening
        Of each step, shape [Q - 1, S].
    quantiles
        Written, shape [N, Q, S].
    """
    members, total, _, steps = decoded.shape
    half, one, two = widening.shape[0] // 2, np.float32(1), np.float32(2)
    center, sums = np.empty(steps, np.float32), np.empty(steps, np.float32)
    share = one / np.float32(members)
    for n in range(total):
        for m in range(members):
            given, beginning = decoded[m, n], m == 0
            line = quantiles[n, half]
            for s in range(steps):
                center[s] = (given[0, s] + given[1, s]) * share
                line[s] = center[s] if beginning else line[s] + center[s]
            for side in range(2):
                sign = share if side else -share
                for s in range(steps):
                    sums[s] = np.float32(0)
                for k in range(half):
                    row, line = given[2 + side * half + k], quantiles[n, half + (k + 1 if side else -k - 1)]
                    wide = widening[side * half + k]
                    for s in range(steps):
                        small = _exponential(-abs(row[s]))
                        # log(1 + e) = 2 artanh(e / (2 + e)), for 0 < e <= 1 to float32 rounding.
                        ratio = small / (two + small)
                        square = ratio * ratio
                        series = (np.float32(1 / 13) * square + np.float32(1 / 11)) * square + np.float32(1 / 9)
                        series = ((series * square + np.float32(1 / 7)) * square + np.float32(1 / 5)) * square
                        log = two * (ratio + ratio * square * (series + np.float32(1 / 3)))
                        sums[s] += (max(row[s], np.float32(0)) + log) * wide[s]
                        mine = center[s] + sign * sums[s]
                        line[s] = mine if beginning else line[s] + mine


@_loop
def stretch(quantiles: Float32, factors: Float32, stretched: Float32) -> None:
    """Multiply distances to the median.

    Parameters
    ----------
    quantiles
        Shape [N, Q, S].
    factors
        Below and above the median, shape [N, 2, S].
    stretched
        Written, shape [N, Q, S].
    """
    middle = quantiles.shape[1] // 2
    for n in range(quantiles.shape[0]):
        median = quantiles[n, middle]
        for q in range(quantiles.shape[1]):
            row, factor, line = quantiles[n, q], factors[n, 0 if q < middle else 1], stretched[n, q]
            for s in range(row.shape[0]):
                line[s] = median[s] if q == middle else median[s] + (row[s] - median[s]) * factor[s]


@_part
def _exponential_less_one(x: np.float32) -> np.float32:
    """exp(x) - 1, within float32's range, to float32 rounding also near 0; as `_exponential`, done in vectors."""
    bound = np.float32(87)
    x = min(max(x, -bound), bound)
    n = np.float32(np.rint(x * np.float32(1 / math.log(2))))
    r = (x - n * np.float32(0.693359375)) - n * np.float32(math.log(2) - 0.693359375)
    series = (np.float32(1 / 5040) * r + np.float32(1 / 720)) * r + np.float32(1 / 120)
    series = ((series * r + np.float32(1 / 24)) * r + np.float32(1 / 6)) * r + np.float32(0.5)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    result: np.float32 = power * (series * r * r + r) + (power - np.float32(1))
    return result


@_loop
def restore(
    scaled: Float32,
    frame: tuple[Float64, Float64, Float64],
    log: bool,
    nonnegative: bool,
    reach: float,
    y: Float64,
) -> None:
    """Quantiles in units of y, each the nearest to it that may be forecast.

    Parameters
    ----------
    scaled
        In the coordinates of each row's frame, shape [N, Q, S].
    frame
        Location, scale and unit, shape [N] each.
    log
        Whether the transform is the logarithm.
    nonnegative
        Whether nothing below 0 is forecast, in frames that have seen no negative values but slight ones.
    reach
        In multiples of the scale, what nothing is further from 0 than.
    y
        Written, shape [N, Q, S].
    """
    largest, lowest, floor = np.float32(LARGEST_LOG), np.float32(math.log(FLOOR)), np.float32(FLOOR)
    one = np.float32(1)
    for n in range(scaled.shape[0]):
        location, scale, unit = frame[0][n], frame[1][n], np.float32(frame[2][n])
        most = reach * scale if reach < math.inf else math.inf
        least = -most
        if nonnegative:
            least = 0.0 if location >= scale * (1 - SLIGHT) else -math.inf
        least = max(least, -most)
        breadth = max(location + SHIFT * scale, SHIFT * scale) if log else scale
        for q in range(scaled.shape[1]):
            row, line = scaled[n, q], y[n, q]
            for s in range(row.shape[0]):
                relative = row[s] * unit
                if log:
                    relative = largest if relative > largest else relative  # and NaN stays
                    tangent = floor * (one + relative - lowest) - one
                    relative = tangent if relative <= lowest else _exponential_less_one(relative)
                value = location + np.float64(relative) * breadth
                value = least if value < least else value
                line[s] = most if value > most else value


# -- scores of intervals -----------------------------------------------------------------------------------------------


@_part
def _score(
    value: float,
    flight: Float32,
    step: int,
    ruler: Float64,
    log: bool,
    gain: Float32,
    wanted: Float32,
    correction: Float32,
) -> None:
    """Hold a value against the bounds of one scored step, and correct; a missing one corrects nothing."""
    place = (value - ruler[0]) * ruler[1]
    if log:
        tangent = min(place - (FLOOR - 1), 0.0) / FLOOR
        place = math.log1p(max(place, FLOOR - 1)) + tangent
    signed = np.float32(place) - flight[0, step]
    for side in range(2):
        ratio = (signed if side == 1 else -signed) * flight[1 + side, step]
        if not math.isnan(ratio):
            missed = min(
                max((ratio - np.float32(1)) * np.float32(1 / BLUR) + np.float32(0.5), np.float32(0)), np.float32(1)
            )
            for i in range(correction.shape[0]):
                correction[i] += (missed - wanted[side]) * gain[side, i]


@_part
def _note(correction: Float32, place: Float32) -> None:
    """Keep the corrections of the first horizon step, which is in the first group."""
    place[0], place[1] = correction[0], correction[correction.shape[0] // 2]


@_loop
def land(
    y: Float64,
    lengths: Int64,
    last_steps: Int64,
    flight: Float32,
    ruler: Float64,
    slot: Int64,
    gain: Float32,
    wanted: Float32,
    log: bool,
    correction: Float32,
    trail: Float32,
) -> None:
    """Score what a chunk holds of the flight that every row was on.

    Parameters
    ----------
    y, lengths
        As in `advance`.
    last_steps
        After the chunk, shape [B].
    flight, ruler
        Of `StreamState`, shapes [B, 3, S] and [B, 2].
    slot
        Which scored step each step of a period is, S for none, shape [period].
    gain
        What a miss below and above adds to each correction, shape [S + 1, 2, C].
    wanted
        Share of misses wanted below and above, shape [2].
    log
        Whether the transform is the logarithm.
    correction
        Changed: shape [B, C].
    trail
        Written: corrections of the first horizon step after each step, below and above, shape [B, T, 2]. Without
        entries, nothing is written.
    """
    period = slot.shape[0]
    for b in range(y.shape[0]):
        phase = (last_steps[b] - lengths[b]) % period
        for t in range(min(lengths[b], period - phase)):
            step = slot[phase + t]
            if step < flight.shape[2]:
                _score(y[b, t], flight[b], step, ruler[b], log, gain[step], wanted, correction[b])
            if trail.shape[0] > 0:
                _note(correction[b], trail[b, t])
        if trail.shape[0] > 0:
            for t in range(period - phase, lengths[b]):
                _note(correction[b], trail[b, t])


@_loop
def fly(
    rows: Int64,
    begins: Int64,
    y: Float64,
    lengths: Int64,
    flight: Float32,
    ruler: Float64,
    group: Int64,
    slot: Int64,
    gain: Float32,
    wanted: Float32,
    log: bool,
    correction: Float32,
    trail: Float32,
    begun: Float32,
) -> None:
    """Begin flights and score what the chunk holds of each; those of one row stand in the order of their time.

    Parameters
    ----------
    rows, begins
        Row, and place in the chunk, of the step after which each flight begins, shape [N].
    flight, ruler
        As in `land`, of each flight and without correction, shapes [N, 3, S] and [N, 2]; changed: `flight` gets it.
    group
        Of each scored step, shape [S].
    y, lengths, slot, gain, wanted, log, correction, trail
        As in `land`; two times as many corrections as groups.
    begun
        Written: the corrections that each flight begins with, shape [N, C].
    """
    bound, kept = np.float32(LARGEST_CORRECTION), np.float32(1 - FADING)
    groups = correction.shape[1] // 2
    for i in range(rows.shape[0]):
        b = rows[i]
        logs = correction[b]
        for k in range(2 * groups):
            logs[k] = begun[i, k] = min(max(logs[k], -bound), bound) * kept
        for step in range(group.shape[0]):
            for side in range(2):
                flight[i, 1 + side, step] *= np.float32(math.exp(-logs[side * groups + group[step]]))
        for t in range(begins[i], min(begins[i] + slot.shape[0] + 1, lengths[b])):
            step = slot[t - begins[i] - 1] if t > begins[i] else flight.shape[2]
            if step < flight.shape[2]:
                _score(y[b, t], flight[i], step, ruler[i], log, gain[step], wanted, logs)
            if trail.shape[0] > 0:
                _note(logs, trail[b, t])


# -- scores of past forecasts ------------------------------------------------------------------------------------------


@_part
def _tally(size: float, place: float, issued: Float32, step: int, levels: Float64, kept: float, sums: Float32) -> None:
    """Add the scores of one forecast to both kinds of sums; a missing truth or forecast has none."""
    lower, middle, upper, naive = issued[0, step], issued[1, step], issued[2, step], issued[3, step]
    if math.isnan(place - middle):
        return
    loss = 0.0
    for k in range(3):
        error = place - issued[k, step]
        loss += levels[k] * error if error >= 0 else (levels[k] - 1) * error
    # A whole number on a bound must not fall out of it by rounding.
    slack = 1e-6 * abs(place)
    covered = 1.0 if lower - slack <= place <= upper + slack else 0.0
    scores = (1.0, abs(place - middle), abs(place - naive), loss, size, covered)
    for k in range(len(scores)):
        sums[0, k, step] += scores[k]
        sums[1, k, step] = kept * sums[1, k, step] + scores[k]


@_loop
def tally(
    rows: Int64,
    begins: Int64,
    y: Float64,
    lengths: Int64,
    issued: Float32,
    location: Float64,
    slot: Int64,
    levels: Float64,
    kept: float,
    sums: Float32,
) -> None:
    """Score what a chunk holds of the truth of forecasts; those of one row stand in the order of their time.

    Parameters
    ----------
    rows, begins
        Row, and place relative to the chunk's first step of the step after which each was made, shape [N].
    y, lengths
        As in `advance`.
    issued
        Quantiles at three levels and the seasonal naive forecast, less the location, shape [N, 4, S].
    location
        Shape [N].
    slot
        As in `land`.
    levels
        The three levels.
    kept
        What a recent sum keeps from forecast to forecast.
    sums
        Changed: `StreamState.quality`, shape [B, 2, 6, S].
    """
    period = slot.shape[0]
    for i in range(rows.shape[0]):
        b, first = rows[i], begins[i] + 1
        for t in range(max(first, 0), min(first + period, lengths[b])):
            step = slot[t - first]
            if step < issued.shape[2]:
                _tally(abs(y[b, t]), y[b, t] - location[i], issued[i], step, levels, kept, sums[b])


# -- places in a distribution ------------------------------------------------------------------------------------------


@_part
def _restore(scaled: float, location: float, scale: float, unit: float, log: bool) -> float:
    """A value of a frame's coordinates in units of y: `scaling.restore` of one number."""
    relative = scaled * unit
    if not log:
        return location + relative * scale
    relative = min(relative, LARGEST_LOG)
    lowest = math.log(FLOOR)
    factor = math.expm1(relative) if relative > lowest else FLOOR * (1 + relative - lowest) - 1
    return location + factor * max(location + SHIFT * scale, SHIFT * scale)


@_part
def _beyond(inner: float, outer: float, widths: float) -> float:
    """Probability beyond a value that lies so many widths outside of the inner of two quantiles, the outer one at 1.

    Of what lies beyond the quantiles, `inner` and `outer` are the probabilities.
    """
    return float(inner * (1 + widths * ((inner / outer) ** TAIL - 1)) ** (-1 / TAIL))


@_part
def _level(row: Float64, levels: Float64, place: int, value: float) -> float:
    """Level of a value that lies above `place` of the quantiles: linear between them, a Pareto tail beyond all."""
    last = levels.shape[0] - 1
    if place == 0:
        width = row[1] - row[0]
        return _beyond(levels[1], levels[0], (row[1] - value) / width) if width > 0 else 0.0
    if place > last:
        width = row[last] - row[last - 1]
        beyond = 0.0
        if width > 0:
            beyond = _beyond(1 - levels[last - 1], 1 - levels[last], (value - row[last - 1]) / width)
        return float(1 - beyond)
    share = (value - row[place - 1]) / (row[place] - row[place - 1])
    return float(levels[place - 1] + share * (levels[place] - levels[place - 1]))


@_loop
def place(
    scaled: Float32,
    frame: tuple[Float64, Float64, Float64],
    levels: Float64,
    y: Float64,
    log: bool,
    nonnegative: bool,
    places: Float64,
) -> None:
    """Where values lie on quantile functions: linear between quantiles, with Pareto tails beyond the outermost.

    Parameters
    ----------
    scaled
        Quantiles in the coordinates of each row's frame, rising along the second axis, shape [N, Q, H].
    frame
        Location, scale and unit, shape [N] each.
    levels
        Of the quantiles, shape [Q].
    y
        Shape [N, H].
    log
        Whether the transform is the logarithm.
    nonnegative
        Whether all that would lie below 0 lies at 0, in frames that have seen no negative values but slight ones.
    places
        Written, shape [N, H]: above 0 and below 1, in the middle of what quantiles that are equal take; NaN where y or
        the location is.
    """
    row = np.empty(levels.shape[0])
    for n in range(y.shape[0]):
        location, scale, unit = frame[0][n], frame[1][n], frame[2][n]
        bounded = nonnegative and location >= scale * (1 - SLIGHT)
        for h in range(y.shape[1]):
            value = y[n, h]
            if math.isnan(value) or math.isnan(location):
                places[n, h] = math.nan
                continue
            less = not_more = 0
            for i in range(levels.shape[0]):
                row[i] = _restore(scaled[n, i, h], location, scale, unit, log)
                less += row[i] < value
                not_more += row[i] <= value
            below = 0.0 if bounded and value <= 0 else _level(row, levels, less, value)
            at_most = 0.0 if bounded and value < 0 else _level(row, levels, not_more, value)
            places[n, h] = min(max((below + at_most) / 2, EDGE), 1 - EDGE)
