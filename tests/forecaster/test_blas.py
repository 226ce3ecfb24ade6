"""Compiled loops that multiply by themselves, against PyTorch's operations and against NumPy."""

from __future__ import annotations

import copy
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Config, Forecaster, StreamState, blas
from forecaster.kernels import DECODED, STEPPED, Float32, _product, _room
from forecaster.network import ForecastNetwork
from tests.forecaster.kit import (
    COVERED,
    TINY,
    VARIANTS,
    Float,
    assert_same_forecast,
    assert_same_state,
    config_of,
    forecaster_of,
    table_of,
)

# Beyond 48 steps a decoder mixes learnt curves.
LONG = replace(config_of("log", members=3), horizon=60)


@pytest.fixture
def without_blas(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As where PyTorch brings none along; undone for the rest of a test by `undo`."""
    monkeypatch.setattr(blas, "_address", lambda: None)
    return monkeypatch


@pytest.mark.parametrize("config", [*VARIANTS, *COVERED, LONG], ids=lambda config: f"{config.head}-{config.horizon}")
@pytest.mark.parametrize("total", [1, 3])
def test_without_blas_states_and_forecasts_are_the_same(
    config: Config, total: int, without_blas: pytest.MonkeyPatch
) -> None:
    def lived() -> tuple[list[StreamState], list[Float]]:
        forecaster = type(forecaster_of(config))(forecaster_of(config)._network)
        y = 10 + np.random.default_rng(0).normal(size=(total, 40)).round(2)
        states: list[StreamState] = []
        forecasts: list[Float] = []
        state = forecaster.warm_up(list(y[:, :30]), [0] * total)
        for t in range(30, 40):
            rows, latest = torch.arange(total), torch.from_numpy(y[:, t].copy())
            given = table_of(config, torch.full((total,), t)) if config.covariates.dynamic else None
            state.assign(rows, forecaster.change(state, rows, latest, given))
            states.append(state.select(rows))
            forecasts.append(forecaster.forecast(state))
            forecasts.append(forecaster.forecast(state, config.horizon + 3))
        return states, forecasts

    assert not blas.available()
    plain = lived()
    without_blas.undo()
    assert blas.available()
    compiled = lived()

    for one, other in zip(plain[0], compiled[0], strict=True):
        assert_same_state(one, other)
    for one, other in zip(plain[1], compiled[1], strict=True):
        assert_same_forecast(one, other, counts=config.counts)


@pytest.mark.parametrize("config", [TINY, LONG], ids=["one", "three, long"])
@pytest.mark.parametrize("total", [DECODED - 1, DECODED, DECODED + 1, STEPPED + 1, 2 * STEPPED + 3])
def test_rows_beyond_a_block_are_as_those_within(config: Config, total: int) -> None:
    forecaster = forecaster_of(config)
    y = 10 + np.random.default_rng(total).normal(size=(total, 12))
    state = forecaster.warm_up(list(y[:, :-1]), [0] * total)
    rows, latest = torch.arange(total).flip(0), torch.from_numpy(y[:, -1].copy()).flip(0)

    change = forecaster.change(state, rows, latest)
    forecast = forecaster.forecast(change)
    state.assign(rows, change)

    for row in {0, total // 2, total - 1}:
        alone = forecaster.warm_up([y[row]], [0])
        assert_same_state(state.select([row]), alone)
        assert_same_forecast(forecast[total - 1 - row : total - row], forecaster.forecast(alone))


@pytest.mark.parametrize("config", [TINY, LONG, COVERED[0]], ids=["one", "three, long", "covariates"])
def test_moments_on_two_axes_are_decoded_as_on_one(config: Config) -> None:
    network: ForecastNetwork = forecaster_of(config)._network
    y = torch.rand(3, 9, dtype=torch.float64) + 5
    with torch.inference_mode():
        state = forecaster_of(config).warm_up([np.arange(1.0, 20.0)] * 3, [0] * 3)
        encoded, _ = network.encode(state, y)
        both = network.decode(encoded)
        one = torch.stack([network.decode(encoded.at((slice(None), t))) for t in range(9)], 1)

    assert both.shape == one.shape
    torch.testing.assert_close(both, one, rtol=1e-5, atol=1e-5)


def test_a_network_that_has_changed_since_is_packed_anew() -> None:
    changed = copy.deepcopy(forecaster_of(TINY)._network)  # of a forecaster: packed already
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    fresh = ForecastNetwork(TINY)
    fresh.load_state_dict(changed.state_dict())
    again, expected = Forecaster(changed), Forecaster(fresh)
    y, state = torch.tensor([7.0], dtype=torch.float64), expected.warm_up([np.arange(1.0, 30.0)], [0])

    one, other = (model.change(state, torch.tensor([0]), y) for model in (again, expected))

    assert torch.equal(one.hidden, other.hidden)
    np.testing.assert_array_equal(again.forecast(one), expected.forecast(other))


@numba.njit
def _multiply(left: Float32, right: Float32, found: Float32, added: bool) -> None:
    _product(left, right, found, _room(), added)


@given(sizes=st.tuples(*[st.integers(1, 20)] * 3), spare=st.tuples(*[st.integers(0, 3)] * 3), added=st.booleans())
def test_products_of_matrices_whose_rows_lie_apart(
    sizes: tuple[int, int, int], spare: tuple[int, int, int], added: bool
) -> None:
    rows, inner, columns = sizes
    random = np.random.default_rng(0)
    blas.link()

    def matrix(height: int, width: int, more: int) -> Float32:
        numbers: Float32 = random.normal(size=(height, width + more)).astype(np.float32)
        return numbers[:, :width]

    left, right = matrix(rows, inner, spare[0]), matrix(inner, columns, spare[1])
    found = matrix(rows, columns, spare[2])
    beyond = found.base[:, columns:].copy()
    expected = left.astype(np.float64) @ right + (found if added else 0)

    _multiply(left, right, found, added)

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.base[:, columns:], beyond)
