"""Forecasts of windows that were not learnt from, folded side by side as in serving: what weights are judged by.

Axes: N window, H horizon step, A anchor, K parameter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forecaster.holdout import Block
from forecaster.network import Encoded, ForecastNetwork
from forecaster.panel import Panel
from forecaster.scaling import Frame

__all__ = ["Windows", "latest_blocks", "windows_of"]

LARGEST_WORK = 2**20
"""Steps folded, about, at most; series beyond that are left out."""

ROWS, SPAN = 128, 256

Float = npt.NDArray[np.float64]


class Windows(NamedTuple):
    """What was known at N origins, leading axes [N]; the known columns after them [N, H, X]; and what came [N, H]."""

    encoded: Encoded
    future: Tensor
    target: Tensor

    @property
    def frame(self) -> Frame:
        """Coordinates, fields of shape [N]."""
        return self.encoded.frame

    def parameters(self, network: ForecastNetwork) -> Tensor:
        """What a network with these recurrent layers forecasts, shape [N, K, H]."""
        return network.decode(self.encoded, self.future)

    def anchors(self, network: ForecastNetwork) -> Tensor:
        """Shape [N, A, H]."""
        return network.choices(self.encoded.scaled, self.target.shape[1])


def latest_blocks(panel: Panel, unseen: int, horizon: int) -> tuple[list[Block], set[int]]:
    """The last steps of all series, a horizon at a time, none if no step is unseen; and the cutoffs before them."""
    blocks, cutoffs = [], set()
    for name, first, length in zip(panel.unique_ids, panel.first_steps.tolist(), panel.lengths.tolist(), strict=True):
        if length > unseen > 0:
            starts = range(length - unseen, length - horizon + 1, horizon)
            blocks += [Block(name, start, start + horizon) for start in starts]
            cutoffs |= {first + start - 1 for start in starts}
    return blocks, cutoffs


@torch.no_grad()
def windows_of(network: ForecastNetwork, panel: Panel, blocks: Sequence[Block], seed: int) -> Windows | None:
    """Those of the blocks of a sample of series, drawn by `seed`, in evaluation mode; None if there are none."""
    network.eval()
    origins: dict[str, list[int]] = defaultdict(list)
    for name, start, _ in blocks:
        origins[name].append(start - 1)
    names = list(origins)
    names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    work = np.cumsum([max(origins[name]) + 1 for name in names])
    names = names[: int(np.searchsorted(work, LARGEST_WORK)) + 1]
    names.sort(key=lambda name: max(origins[name]))  # rows of like length together
    place = {name: row for row, name in enumerate(panel.unique_ids)}
    parts = []
    for first in range(0, len(names), ROWS):
        rows = names[first : first + ROWS]
        chosen = panel.select(np.array([place[name] for name in rows]))
        parts += _folded(network, chosen, [origins[name] for name in rows])
    if not parts:
        return None
    encoded, future, target = zip(*parts, strict=True)
    return Windows(Encoded.concat(encoded), torch.cat(future), torch.cat(target))


def _folded(network: ForecastNetwork, panel: Panel, origins: list[list[int]]) -> list[Windows]:
    """Windows of all origins of some series."""
    horizon = network.config.horizon
    total = max(max(row) for row in origins) + 1
    y, covariates = _padded(panel.values, total + horizon), _padded(panel.tables, total + horizon)
    places = torch.tensor([(row, at) for row, ats in enumerate(origins) for at in ats])
    state = network.layout.initial(torch.from_numpy(panel.first_steps), torch.from_numpy(panel.static))
    known = len(network.config.covariates.known)
    parts = []
    for start in range(0, total, SPAN):
        end = min(start + SPAN, total)
        encoded, state = network.encode(state, y[:, start:end], None, covariates[:, start:end])
        row, at = places[(places[:, 1] >= start) & (places[:, 1] < end)].unbind(1)
        if len(row):
            ahead = row.unsqueeze(1), at.unsqueeze(1) + 1 + torch.arange(horizon)
            parts.append(Windows(encoded.at((row, at - start)), covariates[ahead][..., :known], y[ahead]))
    return parts


def _padded(series: Sequence[Float], length: int) -> Tensor:
    """The first steps of each series, filled up with missing ones; further axes are kept."""
    table = np.full((len(series), length, *series[0].shape[1:]), np.nan)
    for line, values in zip(table, series, strict=True):
        line[: min(len(values), length)] = values[:length]
    return torch.from_numpy(table)
