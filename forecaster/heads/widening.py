"""How much wider or narrower the steps between neighbouring quantiles must be to cover what they say.

Conformalised quantile regression (Romano, Patterson and Candès, 2019) with factors in place of offsets. From the median
outward, each step is scaled such that as many truths lie beyond its end as its level says; factors are positive, so
quantiles still cannot cross. Both sides get the same factors: what tells them apart in a few windows is mostly chance.
The estimate over a group of horizon steps is drawn to that over all, and that to what is expected beforehand; a window
counts as one observation, a long one as several, because errors within it go together.

Axes: N window, E end of a step between neighbouring levels, from the median outward, H horizon step, G group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["UNSEEN", "observed", "step_groups", "widening"]

GROUPS = 4
"""Groups of horizon steps with factors of their own: G, at most."""

CAUTION = (8, 64)
"""Observations at which an estimate over all steps, and over a group of them, is believed by half."""

TOGETHER = 24
"""Steps whose errors count as one observation; a shorter window is one, too."""

UNSEEN = 1.3
"""Expected beforehand on windows that weights have not learnt from: what fits the learnt ones is too narrow there."""

LARGEST = 4.0
"""Factors are within this and its inverse."""


def widening(
    distance: Tensor,
    steps: Tensor,
    tails: Sequence[float],
    expected: float | Tensor = 1.0,
    observations: float | None = None,
) -> Tensor:
    """Factors for the steps between neighbouring levels, from the median outward, shape [E, H].

    Parameters
    ----------
    distance
        Between truth and median, shape [N, H]; NaN is unknown.
    steps
        Sizes of the steps on the truth's side, shape [N, E, H].
    tails
        Share of truths wanted beyond each end, both sides together.
    expected
        Factor without any window; a number, or shape [H].
    observations
        How many the windows count as; None: as if they had nothing to do with each other.

    Examples
    --------
    >>> widening(torch.linspace(0, 4, 999).unsqueeze(1), torch.ones(999, 1, 1), [0.5])
    tensor([[1.9993]])
    """
    horizon = distance.shape[1]
    if observations is None:
        observations = observed(int((~torch.isnan(distance)).any(1).sum()), horizon)
    general, grouped = (observations / (observations + caution) for caution in CAUTION)
    groups = step_groups(horizon)
    beforehand = torch.as_tensor(expected).log().expand(len(tails), horizon)
    logs = torch.lerp(beforehand, _outward(distance, steps, tails).unsqueeze(1), general)
    for group in range(int(groups[-1]) + 1):
        here = groups == group
        alone = _outward(distance[:, here], steps[..., here], tails).unsqueeze(1)
        logs[:, here] = torch.lerp(logs[:, here], alone, grouped)
    return logs.exp()


def step_groups(horizon: int) -> Tensor:
    """The group of each horizon step, of neighbours that share their factors, int64, shape [H].

    Examples
    --------
    >>> step_groups(6), step_groups(2)
    (tensor([0, 0, 1, 2, 2, 3]), tensor([0, 1]))
    """
    return torch.arange(horizon) * min(GROUPS, horizon) // horizon


def observed(windows: int, horizon: int) -> float:
    """As how many observations windows count that have nothing to do with each other."""
    return windows * max(horizon / TOGETHER, 1)


def _outward(distance: Tensor, steps: Tensor, tails: Sequence[float]) -> Tensor:
    """Logarithms of factors [E]: the end of each step, once scaled, leaves its tail of distances beyond."""
    known = ~torch.isnan(distance)
    logs = torch.zeros(len(tails))
    if not bool(known.any()):
        return logs
    left = distance[known]
    for place, tail in enumerate(tails):
        step = steps[:, place][known]
        ratio = torch.sort(left / step.clamp(min=1e-12)).values
        factor = ratio[min(int((1 - tail) * len(ratio)), len(ratio) - 1)].clamp(1 / LARGEST, LARGEST)
        logs[place] = factor.log()
        left = left - factor * step
    return logs
