"""Calibration after training: the head's intervals against blocks that the weights have not learnt from.

A short panel has next to none. It has the errors of its anchors, which nothing was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forecaster.heads.widening import UNSEEN, observed
from forecaster.holdout import Block
from forecaster.network import ForecastNetwork
from forecaster.panel import Panel
from forecaster.scaling import transform
from forecaster.training.windows import Windows, windows_of

__all__ = ["calibrate", "drift_of"]

FEW = 8
"""Observations in blocks below which anchors are asked, too."""

OVERLAP = 8
"""Windows per horizon that they are tried on."""


@torch.no_grad()
def calibrate(
    network: ForecastNetwork,
    panel: Panel,
    blocks: Sequence[Block],
    found: Windows | None,
    seed: int,
    kept: float = 1.0,
) -> None:
    """Let a network's head calibrate itself, in evaluation mode.

    Parameters
    ----------
    network
        Trained.
    panel
        The series that the blocks lie in.
    blocks
        One horizon each; none: the head widens by what is expected.
    found
        Windows of the blocks under this network.
    seed
        Of the sample that a large panel is reduced to.
    kept
        Share that is left of what the decoders have learnt: only that can be known by heart.
    """
    network.eval()
    network.head.reset_calibration()
    if network.config.calibration == "off":
        return
    expected = _expected(network, panel, blocks, seed, UNSEEN**kept)
    if found is None:
        network.head.widen(expected)
    else:
        network.head.calibrate(found.parameters(network), found.target, found.frame, expected)


def _expected(network: ForecastNetwork, panel: Panel, blocks: Sequence[Block], seed: int, unseen: float) -> Tensor:
    """How many times as wide intervals should be, as far as blocks do not tell, shape [H].

    Weights that have little to learn from may know it by heart, and nobody knows how well they do beside the best of
    their anchors. So: the geometric mean of what is usual and of what the errors of that anchor call for.
    """
    horizon, season = network.config.horizon, network.config.seasonality[0]
    usual = torch.full((horizon,), unseen)
    if observed(len(blocks), horizon) >= FEW:
        return usual
    everywhere = [
        Block(name, start, start + horizon)
        for name, length in zip(panel.unique_ids, panel.lengths.tolist(), strict=True)
        for start in range(horizon + season, length - horizon + 1, -(-horizon // OVERLAP))
    ]
    tried = windows_of(network, panel, everywhere, seed)
    if tried is None:
        return usual
    truth = transform(tried.target, tried.frame, network.transform).unsqueeze(1)
    anchors = tried.anchors(network)
    if network.blend.numel():  # the last one, which is fitted
        anchors = anchors[:, :-1]
    best = int((truth - anchors).abs().nanmean((0, 2)).argmin())
    moved = network.head.around(tried.parameters(network), anchors[:, best])
    return usual.sqrt() * network.head.drift(moved, tried.target, tried.frame, len(tried.target))


@torch.no_grad()
def drift_of(network: ForecastNetwork, latest: Windows | None, moments: int) -> Tensor:
    """How much wider than calibrated intervals must be on the latest steps, which the weights have not seen, shape [H].

    Blocks have steps on both sides that were learnt from; what comes next has them on one. Where series change, that is
    harder. Latest windows share what happened to all series at a time, so those of one cutoff count as one observation,
    and they may only widen.

    Parameters
    ----------
    network
        Calibrated on blocks.
    latest
        Windows of the latest steps under this network.
    moments
        Different cutoffs among them.
    """
    if network.config.calibration == "off" or latest is None:
        return torch.ones(network.config.horizon)
    return network.head.drift(latest.parameters(network), latest.target, latest.frame, moments)
