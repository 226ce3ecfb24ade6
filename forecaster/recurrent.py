"""Recurrent stacks: layers of LSTM, GRU or tanh cells over the fused kernels of PyTorch, alone or several side by side.

Knows features in, hidden states out, and an explicit state; nothing of time, scaling, quantiles or training. State in,
state out: the module itself never keeps any. Each layer is a one-layer module of its own, so that layers may be joined
by residual connections and layer norm.

Axes: T time, B batch row, F feature, L layer, P hidden size (projected), C cell size, M member.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from forecaster import blas
from forecaster.config import NetworkConfig
from forecaster.dropout import Dropout
from forecaster.kernels import Float32, Int64, lstm_step
from forecaster.scaling import memory

__all__ = ["PackedStacks", "RecurrentEnsemble", "RecurrentStack", "RecurrentState"]

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


class PackedStacks:
    """The weights of LSTM stacks side by side, as one step of all their layers reads them: a copy.

    What the fused kernels gain over many steps they lose on one: their weights are packed at every call.

    Parameters
    ----------
    stacks
        Of the members of an ensemble, all of the same sizes; of LSTM cells.
    """

    def __init__(self, stacks: Sequence[RecurrentStack]) -> None:
        config = stacks[0].config
        members, layers, width = len(stacks), config.num_layers, config.output_size
        units, gates = config.hidden_size, 4 * config.hidden_size
        every: list[Any] = [layer for stack in stacks for layer in stack.layers]
        above = [layer for index, layer in enumerate(every) if index % layers]
        norms = [norm for stack in stacks for norm in cast(Iterable[Any], stack.norms or ())]
        self._entering = _side_by_side([layer.weight_ih_l0.t() for layer in every[::layers]], members, -1, gates)
        self._between = _side_by_side([layer.weight_ih_l0.t() for layer in above], members, layers - 1, width, gates)
        self._recurrent = _side_by_side([layer.weight_hh_l0.t() for layer in every], members, layers, width, gates)
        biases = [layer.bias_ih_l0 + layer.bias_hh_l0 if config.bias else torch.zeros(gates) for layer in every]
        self._bias = _side_by_side(biases, members, layers, gates)
        weights = [torch.stack([norm.weight, norm.bias]) for norm in norms]
        self._norms = _side_by_side(weights, members if norms else 0, layers - 1, 2, width)
        projections = [layer.weight_hr_l0.t() for layer in every if config.proj_size]
        self._projection = _side_by_side(projections, members if projections else 0, layers, units, width)
        self._residual = config.residual
        self._width = width * members
        self._shapes = (layers, width * members), (layers, units * members)

    def step(self, inputs: Float32, rows: Int64, hidden: Float32, cell: Float32) -> tuple[Float32, Float32, Float32]:
        """One step of some rows of a state, without gradient: the same numbers as `forward`, to rounding.

        Parameters
        ----------
        inputs
            Shape [B, F].
        rows
            Shape [B].
        hidden, cell
            States as a `StreamState` keeps them: rows first, shapes [R, L, M x P] and [R, L, M x C].

        Returns
        -------
        output, hidden, cell
            What the stacks put out, shape [B, M x P], and those rows' states after the step.

        Raises
        ------
        IndexError
            There is no such row.
        ValueError
            A shape does not fit.
        """
        total = rows.shape[0]
        fits = (hidden.shape[1:], cell.shape[1:]) == self._shapes and len(hidden) == len(cell)
        if not fits or inputs.shape != (total, self._entering.shape[1]):
            raise ValueError(f"inputs {inputs.shape} or states {hidden.shape}, {cell.shape} do not fit {total} rows")
        output = np.empty((total, self._width), np.float32)
        new_hidden, new_cell = (np.empty((total, *part.shape[1:]), np.float32) for part in (hidden, cell))
        lstm_step(
            rows, hidden, cell, inputs, self._entering, self._between, self._recurrent, self._bias, self._norms,
            self._projection, self._residual, new_hidden, new_cell, output,
        )  # fmt: skip
        return output, new_hidden, new_cell

    def alone(self, inputs: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """`forward` over one step, inputs [1, B, F]."""
        rows, (hidden, cell) = np.arange(inputs.shape[1]), (memory(part.transpose(0, 1)) for part in state)
        output, *after = self.step(memory(inputs[0]), rows, hidden, cell)
        return torch.from_numpy(output)[None], RecurrentState(*(torch.from_numpy(x).transpose(0, 1) for x in after))


def _side_by_side(matrices: Sequence[Tensor], *shape: int) -> Float32:
    """Tensors one after the other, as one array of a shape."""
    numbers = torch.stack([matrix.detach() for matrix in matrices]) if matrices else torch.empty(0)
    return memory(numbers.reshape(shape))


def _steps_alone(config: NetworkConfig, inputs: Tensor, lengths: Tensor | None) -> bool:
    """Whether inputs [T, B, F] are one step that `PackedStacks` can take."""
    single = len(inputs) == 1 and lengths is None and config.cell == "lstm"
    return single and blas.multiplies(inputs)


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
        self._packed: PackedStacks | None = None
        self.hidden_size = config.output_size
        self.cell_size = config.hidden_size if config.cell == "lstm" else 0

    def pack(self) -> None:
        """Keep what a step alone needs of the weights, which change no more."""
        if self._stacks[0].config.cell == "lstm":
            self._packed = PackedStacks(self._stacks)

    def packed(self) -> PackedStacks:
        """Their weights as a step alone reads them."""
        return self._packed or PackedStacks(self._stacks)

    def forward(
        self, inputs: Tensor, state: RecurrentState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """As `RecurrentStack.forward`, with P and C of all members, member after member."""
        if state is not None and not self.training and _steps_alone(self._stacks[0].config, inputs, lengths):
            return self.packed().alone(inputs, state)
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
