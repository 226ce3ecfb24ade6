"""A recurrent stack written from the gate equations of the PyTorch documentation, one step and one row at a time.

Slow and plain on purpose: it shares nothing with the library but the names of the weights. Gates are in PyTorch's
order: input, forget, cell, output for the LSTM; reset, update, new for the GRU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from forecaster import NetworkConfig

Weights = Mapping[str, Tensor]


def lstm_step(x: Tensor, h: Tensor, c: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """One step of one row; `w` may hold a projection ``weight_hr_l0``."""
    a = w["weight_ih_l0"] @ x + w["weight_hh_l0"] @ h
    if "bias_ih_l0" in w:
        a = a + w["bias_ih_l0"] + w["bias_hh_l0"]
    i, f, g, o = a.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    if "weight_hr_l0" in w:
        h = w["weight_hr_l0"] @ h
    return h, c


def gru_step(x: Tensor, h: Tensor, c: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """One step of one row; the reset gate acts on the recurrent part of the new gate after its bias was added."""
    from_input, from_hidden = w["weight_ih_l0"] @ x, w["weight_hh_l0"] @ h
    if "bias_ih_l0" in w:
        from_input, from_hidden = from_input + w["bias_ih_l0"], from_hidden + w["bias_hh_l0"]
    (r_x, z_x, n_x), (r_h, z_h, n_h) = from_input.chunk(3), from_hidden.chunk(3)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h, c


def rnn_step(x: Tensor, h: Tensor, c: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """One step of one row, tanh."""
    a = w["weight_ih_l0"] @ x + w["weight_hh_l0"] @ h
    if "bias_ih_l0" in w:
        a = a + w["bias_ih_l0"] + w["bias_hh_l0"]
    return torch.tanh(a), c


STEPS = {"lstm": lstm_step, "gru": gru_step, "rnn": rnn_step}


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Standardise over the features, with PyTorch's epsilon of 1e-5."""
    centered = x - x.mean()
    return centered / torch.sqrt((centered**2).mean() + 1e-5) * weight + bias


def run(
    config: NetworkConfig,
    weights: Weights,
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    lengths: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs [T, B, P], h_n [L, B, P] and c_n [L, B, C] of a whole stack without dropout.

    Parameters
    ----------
    weights
        The stack's `state_dict`.
    inputs, hidden, cell
        Shapes [T, B, F], [L, B, P] and [L, B, C].
    lengths
        Steps of each row; outputs beyond are 0.
    """
    steps, rows, _ = inputs.shape
    outputs = torch.zeros(steps, rows, config.output_size)
    h_n, c_n = hidden.clone(), cell.clone()
    step = STEPS[config.cell]
    for row in range(rows):
        for t in range(lengths[row]):
            below = inputs[t, row]
            for layer in range(config.num_layers):
                prefix = f"layers.{layer}."
                own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
                x = below
                if layer > 0 and config.layer_norm:
                    x = layer_norm(x, weights[f"norms.{layer - 1}.weight"], weights[f"norms.{layer - 1}.bias"])
                h, c = step(x, h_n[layer, row], c_n[layer, row], own)
                h_n[layer, row], c_n[layer, row] = h, c
                below = h + below if config.residual and layer > 0 else h
            outputs[t, row] = below
    return outputs, h_n, c_n
