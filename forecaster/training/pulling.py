"""How much of what the decoders have learnt is kept, by windows that were not learnt from.

Where few independent stretches of data fix many weights, a network is worse than where it started, and halfway between
the two better than both (for fine-tuning: Wortsman et al., 2022). Where data abound, all is kept.

Axes: N window, H horizon step.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch

from forecaster.network import ForecastNetwork
from forecaster.training.preparing import weight_of
from forecaster.training.windows import Windows

__all__ = ["kept_share"]

SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0)

USUAL, FEW = 0.75, 4
"""What is kept before any window tells, and how many windows that counts as."""


@torch.no_grad()
def kept_share(network: ForecastNetwork, tried: Sequence[Windows]) -> float:
    """The share with the least loss, nearer to `USUAL` where few windows tell, and all where none does.

    Parameters
    ----------
    network
        Trained.
    tried
        Windows that it has not learnt from, several kinds of them: each kind counts the same.
    """
    losses = torch.zeros(len(SHARES))
    for found in tried:
        weight = weight_of(found.frame, found.encoded.difference)
        own = []
        for share in SHARES:
            pulled = deepcopy(network).eval()
            pulled.head.pull(share)
            own.append(pulled.head.loss(found.parameters(pulled), found.target, found.frame, weight))
        losses += (torch.stack(own) - own[0]) / own[0].abs().clamp(min=1e-12)
    count = sum(len(found.target) for found in tried)
    return (count * SHARES[int(losses.argmin())] + FEW * USUAL) / (count + FEW) if count else 1.0
