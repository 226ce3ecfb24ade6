"""The training loss: pinball (quantile) loss over the steps whose truth is known."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pinball_loss"]


def pinball_loss(quantiles: Tensor, target: Tensor, levels: Tensor, weight: Tensor) -> Tensor:
    """Twice the mean pinball loss over known targets and all levels; at level 0.5 alone, the mean absolute error.

    Koenker and Bassett, "Regression Quantiles", Econometrica 46(1), 1978.

    Parameters
    ----------
    quantiles
        Shape [..., Q, H].
    target
        Shape [..., H]; NaN is unknown and counts nothing.
    levels
        Shape [Q].
    weight
        Of each target, shape broadcastable to [..., H].

    Returns
    -------
    Tensor
        A scalar; 0 if no target is known.

    Examples
    --------
    >>> target = torch.tensor([3.0, torch.nan])
    >>> pinball_loss(torch.tensor([[1.0, 9.0]]), target, torch.tensor([0.5]), torch.tensor(1.0))
    tensor(2.)
    """
    known = ~torch.isnan(target)
    level = levels.unsqueeze(-1)
    error = torch.where(known, target, 0.0).unsqueeze(-2) - quantiles
    loss = torch.maximum(level * error, (level - 1) * error).mean(-2) * 2
    return (loss * known * weight).sum() / known.sum().clamp(min=1)
