"""The training loss: pinball (quantile) loss over the steps whose truth is known."""

from __future__ import annotations

from typing import Any

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
    loss: Tensor = _Pinball.apply(quantiles, target, levels, weight)  # type: ignore[no-untyped-call]
    return loss


class _Pinball(torch.autograd.Function):
    """The gradient is known in closed form: computed with the loss, it saves autograd a dozen passes."""

    @staticmethod
    def forward(ctx: Any, quantiles: Tensor, target: Tensor, levels: Tensor, weight: Tensor) -> Tensor:
        known = ~torch.isnan(target)
        share = torch.where(known, weight, 0.0) * (2 / (known.sum().clamp(min=1) * len(levels)))
        error = torch.where(known, target, 0.0).unsqueeze(-2) - quantiles
        slope = levels.unsqueeze(-1) - (error < 0).to(error.dtype)  # d loss / d error
        slope *= share.unsqueeze(-2)
        ctx.save_for_backward(slope)
        return torch.dot(slope.flatten(), error.flatten())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * -gradients[0], None, None, None
