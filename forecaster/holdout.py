"""Blocks of a panel that no training target may touch, so that the intervals can be calibrated on them.

Weights are fitted to every target they see, so residuals on those are too small to tell how wide an interval must be.
One window at the end of each series is a single draw of whatever all series share; blocks scattered over the panel,
each one horizon long, are many. Their values are still folded as inputs; only as targets they do not exist.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forecaster.panel import Panel

__all__ = ["Block", "scatter_blocks", "without_blocks"]

Float = npt.NDArray[np.float64]

SHARE = 1 / 16
"""Of the steps that may be learnt from, about."""

LARGEST_NUMBER = 4096

MANY = 16
"""Series that teach each other: of so many, one may lose the later half of its targets to a block."""


class Block(NamedTuple):
    """Places `start` to `end` in one series."""

    unique_id: str
    start: int
    end: int


def scatter_blocks(panel: Panel, *, length: int, earliest: int, generator: np.random.Generator) -> list[Block]:
    """Draw blocks at random places, at most one in each stretch of a series.

    A stretch is as long as two blocks at least, so that some of each series is learnt from; among many series, one
    block also goes where there is no room for more.

    Parameters
    ----------
    panel
        What may be learnt from.
    length
        Steps per block.
    earliest
        Steps before a block may start, so that there is something to forecast from.
    generator
        The only source of randomness.
    """
    blocks = []
    for name, _, y in panel:
        room = max(len(y) - earliest, 0)
        one = len(panel) >= MANY and len(y) >= 2 * length and room >= length
        count = min(int(SHARE * room / length + generator.random()), max(room // (2 * length), int(one)))
        for number in range(count):
            stretch = room // count
            start = earliest + number * stretch + int(generator.integers(stretch - length + 1))
            blocks.append(Block(name, start, start + length))
    if len(blocks) > LARGEST_NUMBER:
        blocks = [blocks[i] for i in np.sort(generator.permutation(len(blocks))[:LARGEST_NUMBER])]
    return blocks


def without_blocks(panel: Panel, blocks: Sequence[Block]) -> list[Float]:
    """Values of every series with NaN in the blocks; series without one are not copied."""
    inside = defaultdict(list)
    for block in blocks:
        inside[block.unique_id].append(block)
    targets = []
    for name, _, y in panel:
        if name in inside:
            y = y.copy()
            for block in inside[name]:
                y[block.start : block.end] = np.nan
        targets.append(y)
    return targets
