"""Where training starts: what least squares and counting find in the data before the network learns anything.

Before that, a network forecasts a mean of its anchors with a fixed spread. Here one of them, the blend, gets weights:
what each cycle in the ring tells of each coming one, a linear forecast of seasons by seasons (in the manner of
SparseTSF, Lin et al., 2024). All anchors get the shares of the least squared error, and the quantiles lie around that
mean as the data do. What is read are the chunks that the network will learn from, so nothing else is known.

Axes: N origin, W ring value, K cycle in the ring, J coming cycle, A anchor, H horizon step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from forecaster.chunks import Lanes
from forecaster.heads.decoder import Decoder
from forecaster.network import ForecastNetwork
from forecaster.training.preparing import Preparation

__all__ = ["start"]

MOST_CHUNKS = 200
"""Chunks that are read at most."""

MOST_NUMBERS = 2**24
"""Numbers that are kept of them at most."""

AT_ONCE = 1024
"""Origins whose anchors are in memory together."""

RIDGE, FEW_VALUES = 0.01, 10.0
"""Pull of the blend towards the mean of the cycles, as a share of their mean square; the second is divided by the
number of values."""

ALIKE = 0.5
"""Weight of the errors of all horizon steps together in the shares of each."""

OWN_SHARE, HALF_OF_IT = 2 / 3, 50
"""Of the weight, for the panel's own origins where series are imagined beside them; half of that for so many values."""

LEAST_SHARE = 0.02
"""Of every anchor: what has none could not learn to have some."""

SHARE_STEPS, SHARE_RATE = 1000, 0.2


class _Sample(NamedTuple):
    """Origins: scaled rings [N, W] and targets [N, H], NaN is unknown; weights in the loss [N]."""

    rings: Tensor
    targets: Tensor
    weights: Tensor

    def parts(self) -> Iterator[_Sample]:
        """A few origins at a time."""
        for part in zip(*(torch.split(field, AT_ONCE) for field in self), strict=True):
            yield _Sample(*part)


@torch.no_grad()
def start(network: ForecastNetwork, sources: Sequence[Lanes]) -> None:
    """Set the weights of the blend, the shares of the anchors and the spread, all of which training goes on from.

    Parameters
    ----------
    network
        With new weights.
    sources
        What it will learn from: the panel's own series, then imagined ones, if any are.
    """
    observed = sources[0].panel.observed
    share = OWN_SHARE * observed / (observed + HALF_OF_IT)
    sample = _joined([found for lanes in sources if len((found := _sample(network, lanes)).weights)], share)
    if sample is None:
        return
    network.blend.copy_(_blend(network, sample, observed))
    shares = _shares(network, sample)
    for decoder in network.head.decoders:
        cast(Decoder, decoder).prefer(shares)
    errors = [
        part.targets - (network.choices(part.rings, network.config.horizon) * shares).sum(1) for part in sample.parts()
    ]
    network.head.start_from(torch.cat(errors), sample.weights)


def _sample(network: ForecastNetwork, lanes: Lanes) -> _Sample:
    """Origins of one pass or of its first chunks."""
    config = network.config
    preparation = Preparation(network)
    room = MOST_NUMBERS // (config.ring_length + config.horizon)
    chunks = min(lanes.chunks_per_pass, MOST_CHUNKS)
    parts, stride = [], 1
    for draft in islice(preparation.drafts(lanes), chunks):
        found = preparation.origins(draft)
        stride = max(stride, -(-len(found.row) * chunks // room))
        thin = slice(None, None, stride)
        rings = found.history.scaled[found.row[thin], found.step[thin]]
        targets = network.head.scaled(found.target[thin], found.frame.at(thin))
        parts.append(_Sample(rings, targets, found.weight[thin]))
    return _Sample(*map(torch.cat, zip(*parts, strict=True)))


def _joined(samples: Sequence[_Sample], share: float) -> _Sample | None:
    """Of several sources, the first of which has that share of all weight; None of none."""
    if len(samples) < 2:
        return samples[0] if samples else None
    own, beside = samples
    factor = (1 - share) / share * own.weights.sum() / beside.weights.sum().clamp(min=1e-12)
    beside = beside._replace(weights=beside.weights * factor)
    return _Sample(*map(torch.cat, zip(own, beside, strict=True)))


def _moderate(sample: _Sample) -> Tensor:
    """Weights of squared errors, float64, shape [N]: large targets count less, a square makes too much of them."""
    size = sample.targets.abs().nanmean(1).nan_to_num(0.0)
    return (sample.weights / size.clamp(min=1)).double()


def _blend(network: ForecastNetwork, sample: _Sample, observed: int) -> Tensor:
    """Weights of the cycles, float32, shape [J, K]: ridge regression towards their mean."""
    before, period = network.blend, network.config.seasonality[0]
    coming, cycles = before.shape
    if not cycles:
        return before
    squares = torch.zeros(coming, cycles, cycles, dtype=torch.float64)
    products = torch.zeros(coming, cycles, dtype=torch.float64)
    for part in sample.parts():
        seen = part.rings[:, -cycles * period :].reshape(-1, cycles, period).transpose(1, 2).flatten(0, 1).double()
        targets = pad(part.targets, (0, coming * period - part.targets.shape[1]), value=torch.nan)
        weights = _moderate(part).unsqueeze(1)
        for j, target in enumerate(torch.split(targets, period, 1)):
            weighted = seen * (weights * ~torch.isnan(target)).reshape(-1, 1)
            squares[j] += weighted.t() @ seen
            products[j] += weighted.t() @ target.nan_to_num(0.0).flatten().double()
    ridge = (RIDGE + FEW_VALUES / max(observed, 1)) * squares.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-6
    squares += torch.diag_embed(ridge.expand(-1, cycles))
    found: Tensor = torch.linalg.solve(squares, products + ridge * before)
    return found.float()


def _shares(network: ForecastNetwork, sample: _Sample) -> Tensor:
    """Shares of the anchors, shape [A, H]: of all that add up to 1, those of the least squared error at each step.

    By the exponentiated gradient (Kivinen and Warmuth, 1997).
    """
    horizon, count = network.config.horizon, network.head.sizes.num_anchors
    squares = torch.zeros(horizon, count, count, dtype=torch.float64)
    for part in sample.parts():
        errors = (network.choices(part.rings, horizon) - part.targets.unsqueeze(1)).nan_to_num(0.0).double()
        squares += torch.einsum("nah,nbh,n->hab", errors, errors, _moderate(part))
    size = squares.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)[:, None, None]
    squares = squares / size + ALIKE * squares.mean(0) / size.mean()
    shares = torch.full((horizon, count), 1 / count, dtype=torch.float64)
    for _ in range(SHARE_STEPS):
        shares *= torch.exp(-SHARE_RATE * torch.einsum("hab,hb->ha", squares, shares))
        shares /= shares.sum(1, keepdim=True)
    least = min(LEAST_SHARE, 0.5 / count)
    return (shares * (1 - least * count) + least).t().float()
