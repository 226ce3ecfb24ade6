"""Recurrent stacks: layers of LSTM, GRU or tanh cells over the fused kernels of PyTorch, alone or several side by side.

Knows features in, hidden states out, and an explicit state; nothing of time, scaling, quantiles or training. State in,
state out: the module itself never keeps any. Each layer is a one-layer module of its own, so that layers may be joined
by residual connections and layer norm.

Axes: T time, B batch row, F feature, L layer, P hidden size (projected), C cell size, M member.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from forecaster.config import NetworkConfig
from forecaster.dropout import Dropout
from forecaster.kernels import Float32, lstm_gates

__all__ = ["RecurrentEnsemble", "RecurrentStack", "RecurrentState"]

_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RecurrentState(NamedTuple):
    """Hidden and cell state, as `torch.nn.LSTM` shapes them.

    Attributes
    ----------
    hidden
        h_n, shape [L, B, P].
    cell
        c_n, shape [L, B, C]; C is 0 for cells without one.
    """

    hidden: Tensor
    cell: Tensor


class _Packed(NamedTuple):
    """What a step needs of a layer's weights: transposed, biases added up, and the projection if there is one."""

    inputs: Tensor
    hidden: Tensor
    bias: Float32
    projection: Tensor | None


class RecurrentStack(nn.Module):
    """Stacked recurrent layers with dropout, optional residual connections and layer norm between them.

    Parameters
    ----------
    input_size
        Number of features F.
    config
        Cell, sizes and options.

    Attributes
    ----------
    mixed
        Whether the layers, and they alone, compute in bfloat16 while training; states and outputs stay float32.

    Examples
    --------
    >>> stack = RecurrentStack(3, NetworkConfig(hidden_size=5, num_layers=2, proj_size=4))
    >>> output, state = stack(torch.zeros(7, 2, 3))
    >>> output.shape, state.hidden.shape, state.cell.shape
    (torch.Size([7, 2, 4]), torch.Size([2, 2, 4]), torch.Size([2, 2, 5]))
    """

    def __init__(self, input_size: int, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        options = {"proj_size": config.proj_size} if config.cell == "lstm" else {}
        sizes = [input_size] + [config.output_size] * config.num_layers
        self.layers = nn.ModuleList(
            _CELLS[config.cell](size, config.hidden_size, bias=config.bias, **options) for size in sizes[:-1]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes[1:-1]) if config.layer_norm else None
        self.dropout = Dropout(config.dropout)
        self.cell_size = config.hidden_size if config.cell == "lstm" else 0
        self.mixed = False
        self._packed: list[_Packed] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Xavier input weights, orthogonal recurrent weights gate by gate, zero biases but the forget gate's.

        Glorot and Bengio (2010); Saxe et al. (2014); Jozefowicz et al. (2015). PyTorch orders an LSTM's gates input,
        forget, cell, output and adds two biases, so the forget bias is put into one of them.
        """
        size = self.config.hidden_size
        for layer in self.layers:
            for name, parameter in layer.named_parameters():
                if name.startswith("bias"):
                    parameter.zero_()
                elif name.startswith("weight_hr"):
                    nn.init.xavier_uniform_(parameter)
                else:
                    for gate in torch.split(parameter, size):
                        (nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_)(gate)
            if self.config.cell == "lstm" and self.config.bias:
                layer.get_parameter("bias_ih_l0")[size : 2 * size] = self.config.forget_bias

    def initial_state(self, batch: int) -> RecurrentState:
        """Zeros, for `batch` rows."""
        config = self.config
        return RecurrentState(
            torch.zeros(config.num_layers, batch, config.output_size),
            torch.zeros(config.num_layers, batch, self.cell_size),
        )

    def forward(
        self, inputs: Tensor, state: RecurrentState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """Run over T steps.

        Parameters
        ----------
        inputs
            Shape [T, B, F].
        state
            Before the first step; zeros if None.
        lengths
            Steps of each row, int64, shape [B], each 1 to T; None when all have T. Later inputs of a row are ignored
            and its outputs there are 0.

        Returns
        -------
        output, state
            The last layer's hidden states (with its residual), shape [T, B, P], and the state after each row's last
            step.
        """
        if state is None:
            state = RecurrentState(*(part.to(inputs.device) for part in self.initial_state(inputs.shape[1])))
        single = len(inputs) == 1 and lengths is None and self.config.cell == "lstm"
        if single and inputs.is_cpu and not torch.is_grad_enabled():
            return self._step(inputs[0], state)
        packed = None if lengths is None else pack_padded_sequence(inputs, lengths.cpu(), enforce_sorted=False)
        output = inputs if packed is None else packed.data
        hidden, cell = [], []
        for index, layer in enumerate(self.layers):
            below = output
            if index > 0:
                output = self._drop(output if self.norms is None else self.norms[index - 1](output), packed is None)
            before = (state.hidden[index : index + 1].contiguous(), state.cell[index : index + 1].contiguous())
            given = output if packed is None else packed._replace(data=output)
            with torch.autocast(output.device.type, torch.bfloat16, enabled=self.mixed and self.training):
                output, after = layer(given, before if self.cell_size else before[0])
            output = (output.data if isinstance(output, PackedSequence) else output).float()
            hidden.append((after[0] if self.cell_size else after).float())
            cell.append(after[1].float() if self.cell_size else before[1])
            if self.config.residual and index > 0:
                output = output + below
        if packed is not None:
            output = _pad(packed._replace(data=output), inputs.shape[0])
        return output, RecurrentState(torch.cat(hidden), torch.cat(cell))

    def pack(self) -> None:
        """Keep what every step needs of the weights, which change no more."""
        if self.config.cell == "lstm":
            self._packed = self._packing()

    def _packing(self) -> list[_Packed]:
        layers: Iterable[Any] = self.layers
        return [
            _Packed(
                layer.weight_ih_l0.t().contiguous(),
                layer.weight_hh_l0.t().contiguous(),
                (layer.bias_ih_l0 + layer.bias_hh_l0).numpy()
                if self.config.bias
                else np.zeros(4 * self.config.hidden_size, np.float32),
                layer.weight_hr_l0.t() if self.config.proj_size else None,
            )
            for layer in layers
        ]

    def _step(self, inputs: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """`forward` over one step of LSTM layers without gradient."""
        before = RecurrentState(*(part.transpose(0, 1).contiguous() for part in state))
        after = RecurrentState(*(torch.empty_like(part) for part in before))
        self.step(inputs, before, after.hidden.numpy(), after.cell.numpy())
        outputs = after.hidden.unbind(1)
        output = reduce(torch.add, outputs) if self.config.residual else outputs[-1]
        return output.unsqueeze(0), RecurrentState(*(part.transpose(0, 1) for part in after))

    def step(self, inputs: Tensor, before: RecurrentState, hidden: Float32, cell: Float32, member: int = 0) -> None:
        """One step of LSTM layers without gradient: the same numbers as `forward`, to rounding, in a third of the time.

        What the fused kernels gain over many steps they lose on one: their weights are packed at every call.

        Parameters
        ----------
        inputs
            Shape [B, F].
        before
            States as a `StreamState` keeps them: rows first, shapes [B, L, members x P] and [B, L, members x C].
        hidden, cell
            Written: those after it, likewise.
        member
            Which of the members that lie side by side this one is.
        """
        config = self.config
        size, width = config.hidden_size, config.output_size
        output, given, made, old = inputs, before.hidden, torch.from_numpy(hidden), before.cell.numpy()
        if hidden.shape[2] > width:
            given, made = (part.narrow(2, member * width, width) for part in (given, made))
        sums = inputs.new_empty(inputs.shape[0], 4 * size)
        buffer = sums.numpy()
        for index, layer in enumerate(self._packed or self._packing()):
            below = output
            if index > 0 and self.norms is not None:
                output = self.norms[index - 1](output)
            torch.mm(output, layer.inputs, out=sums).addmm_(given.select(1, index), layer.hidden)
            output, first = made.select(1, index), member * size
            if layer.projection is None:
                lstm_gates(buffer, layer.bias, old, index, first, hidden, cell, (index, first))
            else:
                wide = sums.new_empty(buffer.shape[0], 1, size)
                lstm_gates(buffer, layer.bias, old, index, first, wide.numpy(), cell, (0, 0))
                output.copy_(wide[:, 0] @ layer.projection)
            if config.residual and 0 < index < config.num_layers - 1:
                output = output + below

    def _drop(self, output: Tensor, by_row: bool) -> Tensor:
        """Dropout in training: the same units of a row for all steps of a chunk (Gal and Ghahramani, 2016)."""
        if not self.training or self.dropout.p == 0:
            return output
        mask: Tensor = self.dropout(torch.ones_like(output[:1] if by_row else output))
        return output * mask


class RecurrentEnsemble(nn.Module):
    """Stacks that see the same inputs and know nothing of each other; their states lie side by side in one.

    Parameters
    ----------
    input_size
        Number of features F.
    config
        Of each stack; `num_members` of them.

    Examples
    --------
    >>> ensemble = RecurrentEnsemble(3, NetworkConfig(hidden_size=5, members=4))
    >>> output, state = ensemble(torch.zeros(7, 2, 3))
    >>> output.shape, state.cell.shape
    (torch.Size([7, 2, 20]), torch.Size([2, 2, 20]))
    """

    def __init__(self, input_size: int, config: NetworkConfig) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(RecurrentStack(input_size, config) for _ in range(config.num_members))
        self._stacks: tuple[RecurrentStack, ...] = tuple(cast(Iterable[RecurrentStack], self.stacks))
        self.hidden_size = config.output_size
        self.cell_size = config.hidden_size if config.cell == "lstm" else 0

    def pack(self) -> None:
        """Of every stack."""
        for stack in self._stacks:
            stack.pack()

    def step(self, inputs: Tensor, before: RecurrentState, hidden: Float32, cell: Float32) -> None:
        """As `RecurrentStack.step`, of all members."""
        for member, stack in enumerate(self._stacks):
            stack.step(inputs, before, hidden, cell, member)

    def forward(
        self, inputs: Tensor, state: RecurrentState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """As `RecurrentStack.forward`, with P and C of all members, member after member."""
        if len(self.stacks) == 1:
            found: tuple[Tensor, RecurrentState] = self.stacks[0](inputs, state, lengths)
            return found
        outputs, states = zip(
            *(
                stack(inputs, None if state is None else self._of(member, state), lengths)
                for member, stack in enumerate(self.stacks)
            ),
            strict=True,
        )
        return torch.cat(outputs, -1), RecurrentState(*(torch.cat(part, -1) for part in zip(*states, strict=True)))

    def _of(self, member: int, state: RecurrentState) -> RecurrentState:
        sizes = self.hidden_size, self.cell_size
        return RecurrentState(
            *(part[..., member * size : (member + 1) * size] for part, size in zip(state, sizes, strict=True))
        )


def _pad(packed: PackedSequence, length: int) -> Tensor:
    return nn.utils.rnn.pad_packed_sequence(packed, total_length=length)[0]
