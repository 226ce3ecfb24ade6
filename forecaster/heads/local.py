"""The local network: corrections of one horizon step from what is known of that step beforehand.

Knows inputs and a context; nothing of time, series or quantiles.

Axes: H horizon step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LocalNetwork"]


class LocalNetwork(nn.Module):
    """Corrections of one horizon step from what is known of it (the local network of MQ-RNN, Wen et al., 2017).

    Starts, before training, from no correction.

    Parameters
    ----------
    num_inputs, num_context, num_outputs, width
        Sizes of the inputs, the context, the corrections, and the layer between.
    horizon
        Steps H, each with a bias of its own.
    """

    def __init__(self, *, num_inputs: int, num_context: int, num_outputs: int, width: int, horizon: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(num_inputs, width, bias=False)
        self.context = nn.Linear(num_context, 2 * width, bias=False)
        self.step = nn.Parameter(torch.zeros(horizon, width))
        self.output = nn.Linear(width, num_outputs)
        with torch.no_grad():
            self.output.weight.zero_()
            self.output.bias.zero_()

    def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
        """Corrections [..., H, num_outputs] of inputs [..., H, num_inputs], or of the first steps, in a context."""
        shift, gate = self.context(context).unsqueeze(-2).chunk(2, -1)
        layer = functional.gelu(self.inputs(inputs) + self.step[: inputs.shape[-2]] + shift)
        corrections: Tensor = self.output(layer * (1 + gate))
        return corrections
