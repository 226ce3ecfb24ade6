"""The recurrent stack against gate equations, against `torch.nn.LSTM`, and as it starts."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from forecaster import NetworkConfig
from forecaster.recurrent import RecurrentEnsemble, RecurrentStack, RecurrentState
from tests.forecaster.reference_cells import run

T, B, F, H = 6, 3, 3, 6


def network(**options: object) -> NetworkConfig:
    return NetworkConfig(**({"hidden_size": H, "dropout": 0.0} | options))  # type: ignore[arg-type]


EVERY_OPTION = [
    network(cell=cell, num_layers=layers, bias=bias, residual=residual, layer_norm=norm, proj_size=proj)
    for cell, layers, bias, residual, norm, proj in itertools.product(
        ("lstm", "gru", "rnn"), (1, 2, 3), (True, False), (True, False), (True, False), (0, 4)
    )
    if not (proj and cell != "lstm") and not (layers == 1 and (residual or norm))
]


def name(config: NetworkConfig) -> str:
    flags = [flag for flag in ("bias", "residual", "layer_norm") if getattr(config, flag)]
    return "-".join([config.cell, str(config.num_layers), *flags, *(["proj"] if config.proj_size else [])])


def stack_of(config: NetworkConfig, noise: float = 0.3) -> RecurrentStack:
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        stack = RecurrentStack(F, config).eval()
        for parameter in stack.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return stack.requires_grad_(False)


def ensemble_of(config: NetworkConfig) -> RecurrentEnsemble:
    """That stack alone, as models have it."""
    ensemble = RecurrentEnsemble(F, dataclasses.replace(config, members=1)).eval()
    ensemble.stacks[0].load_state_dict(stack_of(config).state_dict())
    return ensemble.requires_grad_(False)


def given_state(config: NetworkConfig) -> RecurrentState:
    generator = torch.Generator().manual_seed(11)
    cell_size = config.hidden_size if config.cell == "lstm" else 0
    return RecurrentState(
        torch.randn(config.num_layers, B, config.output_size, generator=generator),
        torch.randn(config.num_layers, B, cell_size, generator=generator),
    )


def inputs() -> Tensor:
    return torch.randn(T, B, F, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("config", EVERY_OPTION, ids=name)
@pytest.mark.parametrize("lengths", [None, [6, 1, 4]], ids=["even", "ragged"])
@pytest.mark.parametrize("given", [False, True], ids=["from zero", "from a given state"])
def test_every_cell_depth_and_option_equals_the_gate_equations(
    config: NetworkConfig, lengths: list[int] | None, given: bool
) -> None:
    stack, x = stack_of(config), inputs()
    start = given_state(config) if given else stack.initial_state(B)

    output, state = stack(x, start if given else None, None if lengths is None else torch.tensor(lengths))

    expected = run(config, stack.state_dict(), x, start.hidden, start.cell, lengths or [T] * B)
    for found, wanted in zip((output, state.hidden, state.cell), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", EVERY_OPTION, ids=name)
@pytest.mark.parametrize("size", [1.0, 30.0], ids=["moderate", "saturated"])
def test_one_step_without_gradient_equals_the_gate_equations(config: NetworkConfig, size: float) -> None:
    stack, x, start = ensemble_of(config), size * inputs()[:1], given_state(config)

    with torch.inference_mode():
        output, state = stack(x, start)

    expected = run(config, stack.stacks[0].state_dict(), x, start.hidden, start.cell, [1] * B)
    for found, wanted in zip((output, state.hidden, state.cell), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("config", [c for c in EVERY_OPTION if c.cell == "lstm"], ids=name)
def test_a_step_of_many_rows_is_that_of_each_row(config: NetworkConfig) -> None:
    stack, rows = ensemble_of(config), 515
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, rows, F, generator=generator)
    start = RecurrentState(
        torch.randn(config.num_layers, rows, config.output_size, generator=generator),
        torch.randn(config.num_layers, rows, H, generator=generator),
    )

    with torch.no_grad():
        few = [
            stack(x[:, part], RecurrentState(*(s[:, part] for s in start))) for part in torch.arange(rows).split(100)
        ]
        stack.pack()
        output, state = stack(x, start)

    torch.testing.assert_close(output, torch.cat([part for part, _ in few], 1))
    for found, parts in zip(state, zip(*(after for _, after in few), strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(parts, 1))


@pytest.mark.parametrize("config", EVERY_OPTION, ids=name)
def test_shapes_are_those_of_the_pytorch_documentation(config: NetworkConfig) -> None:
    output, (h_n, c_n) = stack_of(config)(inputs())

    out = config.proj_size or H
    assert output.shape == (T, B, out)
    assert h_n.shape == (config.num_layers, B, out)
    assert c_n.shape == (config.num_layers, B, H if config.cell == "lstm" else 0)


@pytest.mark.parametrize(
    "options", [{"cell": "lstm"}, {"cell": "lstm", "proj_size": 4}, {"cell": "gru"}, {"cell": "rnn"}]
)
def test_the_last_output_of_one_layer_is_its_last_hidden_state(options: dict[str, object]) -> None:
    stack = stack_of(network(num_layers=1, **options))
    lengths = torch.tensor([6, 1, 4])

    even, even_state = stack(inputs())
    ragged, ragged_state = stack(inputs(), None, lengths)

    assert torch.equal(even[-1], even_state.hidden[0])
    assert torch.equal(ragged[lengths - 1, torch.arange(B)], ragged_state.hidden[0])


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("cell", "proj"), [("lstm", 0), ("lstm", 4), ("gru", 0), ("rnn", 0)], ids=["lstm", "lstm-proj", "gru", "rnn"]
)
def test_the_plain_stack_equals_the_stacked_module_of_pytorch(cell: str, proj: int, bias: bool, layers: int) -> None:
    config = network(cell=cell, num_layers=layers, bias=bias, proj_size=proj, residual=False)
    stack = stack_of(config)
    kinds: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
    theirs = kinds[cell](F, H, layers, bias=bias, **({"proj_size": proj} if proj else {}))
    renamed = {
        key.split(".")[2].replace("_l0", f"_l{key.split('.')[1]}"): weight for key, weight in stack.state_dict().items()
    }
    theirs.load_state_dict(renamed)
    start = given_state(config)

    output, state = stack(inputs(), start)
    with torch.no_grad():
        expected, after = theirs(inputs(), (start.hidden, start.cell) if cell == "lstm" else start.hidden)

    h_n, c_n = after if cell == "lstm" else (after, start.cell)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.hidden, h_n, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.cell, c_n, rtol=1e-5, atol=1e-6)


def test_no_state_is_kept_between_calls_and_the_given_one_is_not_written_to() -> None:
    config = network()
    stack, start = stack_of(config), given_state(config)
    hidden, cell = start.hidden.clone(), start.cell.clone()

    first, _ = stack(inputs(), start)
    stack(inputs() * 100)
    second, _ = stack(inputs(), start)

    assert torch.equal(first, second)
    assert torch.equal(start.hidden, hidden)
    assert torch.equal(start.cell, cell)


def test_dropout_acts_between_layers_in_training_only() -> None:
    deep, shallow = stack_of(network(dropout=0.5)).train(), stack_of(network(dropout=0.5, num_layers=1)).train()

    assert not torch.equal(deep(inputs())[0], deep(inputs())[0])
    assert torch.equal(shallow(inputs())[0], shallow(inputs())[0])
    assert torch.equal(deep.eval()(inputs())[0], deep(inputs())[0])


def test_dropout_takes_the_same_units_of_a_row_at_all_steps_of_a_chunk_and_others_of_other_rows() -> None:
    stack, given = stack_of(network(dropout=0.5)).train(), []
    stack.layers[1].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))

    stack(inputs())

    dropped = given[0] == 0  # [T, B, P]
    assert 0.2 < dropped.float().mean() < 0.8
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert not torch.equal(dropped, dropped[:, :1].expand_as(dropped))


def test_a_gradient_reaches_the_given_state() -> None:
    config = network(num_layers=2)
    start = RecurrentState(*(part.requires_grad_() for part in given_state(config)))

    output, _ = stack_of(config)(inputs(), start)
    output.sum().backward()

    for part in start:
        assert part.grad is not None
        assert (part.grad.abs() > 0).any()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_recurrent_weights_start_orthogonal_gate_by_gate(cell: str) -> None:
    stack = stack_of(network(cell=cell), noise=0)

    for layer in stack.layers:
        for gate in layer.weight_hh_l0.split(H):
            torch.testing.assert_close(gate @ gate.T, torch.eye(H), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_input_weights_start_within_xavier_bounds_and_fill_them(cell: str) -> None:
    stack = RecurrentStack(50, network(cell=cell, hidden_size=40, num_layers=1)).requires_grad_(False)

    for gate in stack.layers[0].weight_ih_l0.split(40):
        bound = math.sqrt(6 / (50 + 40))
        assert gate.abs().max() <= bound
        assert gate.abs().max() > 0.95 * bound
        assert gate.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_recurrent_weights_of_a_projected_lstm_start_with_orthonormal_columns() -> None:
    stack = stack_of(network(proj_size=4), noise=0)

    for layer in stack.layers:
        for gate in layer.weight_hh_l0.split(H):
            torch.testing.assert_close(gate.T @ gate, torch.eye(4), rtol=0, atol=1e-5)
        assert layer.weight_hr_l0.abs().max() <= math.sqrt(6 / (H + 4))


@pytest.mark.parametrize("forget_bias", [1.0, 2.5])
def test_the_forget_gate_starts_open_and_every_other_bias_at_zero(forget_bias: float) -> None:
    stack = stack_of(network(forget_bias=forget_bias), noise=0)

    for layer in stack.layers:
        total = layer.bias_ih_l0 + layer.bias_hh_l0
        forget = torch.zeros(4 * H)
        forget[H : 2 * H] = forget_bias
        assert torch.equal(total, forget)


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_biases_of_cells_without_a_forget_gate_start_at_zero(cell: str) -> None:
    for layer in stack_of(network(cell=cell), noise=0).layers:
        assert not layer.bias_ih_l0.any()
        assert not layer.bias_hh_l0.any()


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two = stack_of(network(), noise=0), stack_of(network(), noise=0)

    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_step_refuses_what_does_not_fit_its_weights() -> None:
    config, x = network(), inputs()[:1]
    ensemble, start = ensemble_of(config), given_state(config)

    with torch.inference_mode():
        for wrong in (start.hidden[:1], start.hidden[..., :3]):
            with pytest.raises(ValueError, match="do not fit"):
                ensemble(x, start._replace(hidden=wrong))
        with pytest.raises(ValueError, match="do not fit"):
            ensemble(x[..., :2], start)
        with pytest.raises(IndexError, match="no such row"):
            ensemble(x, RecurrentState(start.hidden[:, :2], start.cell[:, :2]))
