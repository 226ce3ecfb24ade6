"""Calibration after training: the head's intervals against blocks that the weights have not learnt from.

A short panel has next to none. It has the errors of its anchors, which nothing was fitted to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forecaster.heads.widening import UNSEEN, observed
from forecaster.holdout import Block
from forecaster.network import ForecastNetwork
from forecaster.panel import Panel
from forecaster.scaling import Frame, transform

__all__ = ["calibrate", "drift_of"]

LARGEST_WORK = 2**20
"""Steps folded, about, at most; series beyond that are left out."""

ROWS, SPAN = 128, 256

FEW = 8
"""Observations in blocks below which anchors are asked, too."""

OVERLAP = 8
"""Windows per horizon that they are tried on."""

Float = npt.NDArray[np.float64]


class _Windows(NamedTuple):
    """Forecasts [N, K, H] from N origins, what came [N, H], frames [N], and the anchors [N, A, H]."""

    parameters: Tensor
    target: Tensor
    frame: Frame
    anchors: Tensor


@torch.no_grad()
def calibrate(network: ForecastNetwork, panel: Panel, blocks: Sequence[Block], seed: int) -> None:
    """Let a network's head calibrate itself, in evaluation mode.

    Parameters
    ----------
    network
        Trained.
    panel
        The series that the blocks lie in.
    blocks
        One horizon each; none: the head widens by what is expected.
    seed
        Of the sample that a large panel is reduced to.
    """
    network.eval()
    network.head.reset_calibration()
    if network.config.calibration == "off":
        return
    expected, found = _expected(network, panel, blocks, seed), _windows(network, panel, blocks, seed)
    if found is None:
        network.head.widen(expected)
    else:
        network.head.calibrate(found.parameters, found.target, found.frame, expected)


def _expected(network: ForecastNetwork, panel: Panel, blocks: Sequence[Block], seed: int) -> Tensor:
    """How many times as wide intervals should be, as far as blocks do not tell, shape [H].

    Weights that have little to learn from may know it by heart, and nobody knows how well they do beside the best of
    their anchors. So: the geometric mean of what is usual and of what the errors of that anchor call for.
    """
    horizon, season = network.config.horizon, network.config.seasonality[0]
    usual = torch.full((horizon,), UNSEEN)
    if observed(len(blocks), horizon) >= FEW:
        return usual
    everywhere = [
        Block(name, start, start + horizon)
        for name, length in zip(panel.unique_ids, panel.lengths.tolist(), strict=True)
        for start in range(horizon + season, length - horizon + 1, -(-horizon // OVERLAP))
    ]
    tried = _windows(network, panel, everywhere, seed)
    if tried is None:
        return usual
    truth = transform(tried.target, tried.frame, network.transform).unsqueeze(1)
    best = int((truth - tried.anchors).abs().nanmean((0, 2)).argmin())
    moved = network.head.around(tried.parameters, tried.anchors[:, best])
    return usual.sqrt() * network.head.drift(moved, tried.target, tried.frame, len(tried.target))


@torch.no_grad()
def drift_of(network: ForecastNetwork, panel: Panel, unseen: int, seed: int) -> Tensor:
    """How much wider than calibrated intervals must be on the latest steps, which the weights have not seen, shape [H].

    Blocks have steps on both sides that were learnt from; what comes next has them on one. Where series change, that is
    harder. Latest windows share what happened to all series at a time, so those of one cutoff count as one observation,
    and they may only widen.

    Parameters
    ----------
    network
        Calibrated on blocks.
    panel
        Ends with the unseen steps.
    unseen
        How many.
    seed
        Of the sample that a large panel is reduced to.
    """
    horizon = network.config.horizon
    windows, moments = [], set()
    for name, first, length in zip(panel.unique_ids, panel.first_steps.tolist(), panel.lengths.tolist(), strict=True):
        if length > unseen:
            starts = range(length - unseen, length - horizon + 1, horizon)
            windows += [Block(name, start, start + horizon) for start in starts]
            moments |= {first + start for start in starts}
    found = None if network.config.calibration == "off" else _windows(network, panel, windows, seed)
    if found is None:
        return torch.ones(horizon)
    return network.head.drift(found.parameters, found.target, found.frame, len(moments))


def _windows(network: ForecastNetwork, panel: Panel, blocks: Sequence[Block], seed: int) -> _Windows | None:
    """Those of the blocks of a sample of series; None if there are none."""
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
        parts += _forecasts(network, chosen, [origins[name] for name in rows])
    if not parts:
        return None
    parameters, targets, anchors, *frame = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Windows(parameters, targets, Frame(*frame), anchors)


def _forecasts(network: ForecastNetwork, panel: Panel, origins: list[list[int]]) -> list[tuple[Tensor, ...]]:
    """Parameters, targets, anchors and frames at all origins of some series, folded side by side as in serving."""
    horizon = network.config.horizon
    total = max(max(row) for row in origins) + 1
    y, covariates = _padded(panel.values, total + horizon), _padded(panel.tables, total + horizon)
    places = torch.tensor([(row, at) for row, ats in enumerate(origins) for at in ats])
    state = network.layout.initial(torch.from_numpy(panel.first_steps), torch.from_numpy(panel.static))
    known = len(network.config.covariates.known)
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, total, SPAN):
        end = min(start + SPAN, total)
        encoded, state = network.encode(state, y[:, start:end], None, covariates[:, start:end])
        row, at = places[(places[:, 1] >= start) & (places[:, 1] < end)].unbind(1)
        if len(row):
            chosen = encoded.at((row, at - start))
            ahead = row.unsqueeze(1), at.unsqueeze(1) + 1 + torch.arange(horizon)
            parameters = network.decode(chosen, covariates[ahead][..., :known])
            parts.append((parameters, y[ahead], network.choices(chosen.scaled, horizon), *chosen.frame))
    return parts


def _padded(series: Sequence[Float], length: int) -> Tensor:
    """The first steps of each series, filled up with missing ones; further axes are kept."""
    table = np.full((len(series), length, *series[0].shape[1:]), np.nan)
    for line, values in zip(table, series, strict=True):
        line[: min(len(values), length)] = values[:length]
    return torch.from_numpy(table)
