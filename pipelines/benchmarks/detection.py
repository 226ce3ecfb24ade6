"""Detection: what scores of single rows are worth as alarms, by the rules of the Numenta Anomaly Benchmark.

Lavin and Ahmad, "Evaluating real-time anomaly detection algorithms", ICMLA 2015, standard profile: in every window in
which something is known to have gone wrong the earliest alarm counts, the more the earlier it comes; a window without
one costs 1, an alarm elsewhere up to 0.11. One threshold for all recordings, the best one there is. Knows scores; no
models, no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["Detection", "Recording", "detect", "loudest"]

Float = npt.NDArray[np.float64]

FALSE_ALARM = 0.11
"""What an alarm far from any window costs."""

PROBATION_SHARE, LONGEST_PROBATION = 0.15, 750
"""Rows of a recording that are not judged, from its first on: this share of them, and no more than so many."""


@dataclass(frozen=True)
class Recording:
    """One series of the benchmark.

    Parameters
    ----------
    unique_id
        Its name.
    begin
        When its first row was taken, on the grid of its frequency.
    y
        Values in the order in which they came.
    windows
        First and last row of what is known to have gone wrong, in order of time, none overlapping.
    """

    unique_id: str
    begin: pd.Timestamp
    y: Float
    windows: tuple[tuple[int, int], ...]

    @property
    def probation(self) -> int:
        """Number of first rows that may be learnt from and are not judged."""
        return min(int(PROBATION_SHARE * len(self.y)), LONGEST_PROBATION)

    @cached_property
    def within(self) -> npt.NDArray[np.int64]:
        """Number of the window that each row lies in; -1 for none."""
        found = np.full(len(self.y), -1, dtype=np.int64)
        for number, (first, last) in enumerate(self.windows):
            found[first : last + 1] = number
        return found

    @property
    def normal(self) -> npt.NDArray[np.bool_]:
        """Rows that are judged and lie in no window."""
        return (self.within < 0) & (np.arange(len(self.y)) >= self.probation)

    @cached_property
    def credit(self) -> Float:
        """What an alarm at each row is worth: 1 at a window's first row, less later, as little as -0.11 elsewhere."""
        worth = np.full(len(self.y), -FALSE_ALARM)
        for number, (first, last) in enumerate(self.windows):
            rows = np.arange(first, last + 1)
            worth[rows] = [_sigmoid(-(last - row + 1) / len(rows)) / _sigmoid(-1.0) for row in rows]
            end = self.windows[number + 1][0] if number + 1 < len(self.windows) else len(self.y)
            worth[last + 1 : end] = [
                FALSE_ALARM * _sigmoid((row - last) / max(len(rows) - 1, 1)) for row in range(last + 1, end)
            ]
        return worth


@dataclass(frozen=True, slots=True)
class Detection:
    """The best that one threshold makes of scores.

    Attributes
    ----------
    score
        100 for an alarm at the first row of each window and no other, 0 for no alarm at all.
    threshold
        An alarm is a score of at least this; infinite where no alarm is best.
    found
        Windows with an alarm.
    windows
        All windows.
    false_alarms
        Alarms in judged rows outside of any window.
    """

    score: float
    threshold: float
    found: int
    windows: int
    false_alarms: int


def detect(recordings: Sequence[Recording], scores: Sequence[Float]) -> Detection:
    """Judge scores by the threshold that suits them best.

    Parameters
    ----------
    recordings
        With one window at least among them.
    scores
        Of each row of each recording; NaN is no alarm.
    """
    parts, windows = [], 0
    for recording, given in zip(recordings, scores, strict=True):
        judged = ~np.isnan(given)
        judged[: recording.probation] = False
        numbers = np.where(recording.within < 0, -1, recording.within + windows)
        parts.append((given[judged], recording.credit[judged], numbers[judged]))
        windows += len(recording.windows)
    score, credit, within = map(np.concatenate, zip(*parts, strict=True))
    earned = np.full(windows, -1.0)
    total, false_alarms, best = -float(windows), 0, Detection(0.0, math.inf, 0, windows, 0)
    order = np.argsort(-score, kind="stable")
    for rank, row in enumerate(order):
        window = within[row]
        if window < 0:
            total += credit[row]
            false_alarms += 1
        elif credit[row] > earned[window]:
            total += credit[row] - earned[window]
            earned[window] = credit[row]
        last_of_its_size = rank + 1 == len(order) or score[order[rank + 1]] < score[row]
        normalised = 100 * (total + windows) / (2 * windows)
        if last_of_its_size and normalised > best.score:
            best = Detection(normalised, float(score[row]), int((earned > -1).sum()), windows, false_alarms)
    return best


def loudest(scores: Float, rows: int) -> Float:
    """Scores with all of them silenced that are no higher than one of the `rows` before: NaN in their place.

    Examples
    --------
    >>> loudest(np.array([1.0, 3.0, 2.0, 3.5, 1.0]), 2)
    array([1. , 3. , nan, 3.5, nan])
    """
    padded = np.concatenate([np.full(rows, -np.inf), np.where(np.isnan(scores), -np.inf, scores)])
    before = np.lib.stride_tricks.sliding_window_view(padded[:-1], rows).max(1)
    silenced: Float = np.where(scores > before, scores, np.nan)
    return silenced


def _sigmoid(position: float) -> float:
    """From 1 well before the end of a window, through 0 at its end, to -1 beyond."""
    return 2 / (1 + math.exp(min(5 * position, 700.0))) - 1 if position <= 3 else -1.0
