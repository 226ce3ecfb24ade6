"""Where observations lie in what was forecast for them, one step before, and how surprising that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import CovariatesConfig, Forecaster, rolling
from forecaster.kernels import EDGE
from forecaster.marginals import surprise
from tests.forecaster.kit import COVERED, TINY, assert_same_state, config_of, forecaster_of, table_of

LEVELS = np.array([0.001, 0.03, 0.1, 0.37, 0.5, 0.8, 0.9, 0.96, 0.9995])


def wave(length: int, seed: int = 0, *, missing: float = 0.1) -> np.ndarray:
    """A noisy season with gaps; nothing before the third step."""
    generator = np.random.default_rng(seed)
    y = np.round(20 + 8 * np.sin(np.arange(length) / 2) + generator.gamma(2, 3, length))
    y[generator.random(length) < missing] = np.nan
    y[:2] = np.nan
    return y


def forecaster(head: str) -> Forecaster:
    return forecaster_of(config_of(head=head), 3)


@pytest.mark.parametrize("head", ["quantile", "student_t"])
def test_the_place_of_a_quantile_is_its_level(head):
    model = forecaster(head)
    state = model.warm_up([wave(40, 1), wave(25, 2)], [0, 7])
    block = model.ahead(state)

    for level in LEVELS:
        y = model._network.head.quantiles(*block, torch.full((2, 1, 1), level, dtype=torch.float64)).flatten()
        np.testing.assert_allclose(model.place(block, y), level, rtol=1e-5)


@pytest.mark.parametrize("head", ["negative_binomial", "zero_inflated"])
def test_a_count_lies_in_the_middle_of_its_own_probability(head):
    model = forecaster(head)
    state = model.warm_up([wave(40, 1)], [0])
    counts = torch.arange(0.0, 200.0, dtype=torch.float64)
    probabilities = np.exp([model.log_prob(state, torch.full((1, 1), float(k))).item() for k in counts])

    places = [model.place(model.ahead(state), counts[k : k + 1]).item() for k in range(200)]

    np.testing.assert_allclose(places, np.cumsum(probabilities) - probabilities / 2, rtol=1e-6, atol=1e-9)


@given(data=st.data(), config=st.sampled_from([TINY, COVERED[0]]), even=st.booleans())
def test_rows_that_are_folded_in_blocks_are_as_those_folded_together(data, config, even):
    model = forecaster_of(config)
    rows, steps = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    lengths = None if even else torch.tensor([data.draw(st.integers(0, steps)) for _ in range(rows)])
    state = model.warm_up([wave(20 + row, row) for row in range(rows)], list(range(rows)))
    y = torch.from_numpy(np.stack([wave(steps + 20, 50 + row)[20:] for row in range(rows)]))
    table = table_of(config, 30 + torch.arange(rows * steps).view(rows, steps)) if config.covariates.dynamic else None
    folded, (placed, together) = (verb(state, y, lengths, table) for verb in (model.fold, model.fold_and_place))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rolling, "FOLD_ROWS", data.draw(st.integers(1, rows)))
        apart, (placed_apart, places) = (verb(state, y, lengths, table) for verb in (model.fold, model.fold_and_place))

    assert_same_state(apart, folded)
    assert_same_state(placed_apart, placed)
    np.testing.assert_allclose(places, together, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"head": "quantile"}, {"head": "student_t"}, {"head": "zero_inflated"}])
@pytest.mark.parametrize("lengths", [[90, 90], [90, 31], [1, 2]])
def test_a_chunk_places_its_values_as_one_observation_at_a_time_does(options, lengths):
    """Over several flights of the calibration, gaps, and a start without any value."""
    model = forecaster(**options)
    histories = [wave(length, seed) for seed, length in enumerate(lengths)]
    state = model.initial_state([0, 5])
    padded = torch.full((2, max(lengths)), torch.nan, dtype=torch.float64)
    for row, values in enumerate(histories):
        padded[row, : len(values)] = torch.from_numpy(values)

    after, places = model.fold_and_place(state, padded, torch.tensor(lengths))

    for row, values in enumerate(histories):
        alone, expected = state.select([row]), []
        for value in values:
            y = torch.tensor([value], dtype=torch.float64)
            expected.append(model.place(model.ahead(alone), y).item())
            alone = model.observe(alone, y)
        np.testing.assert_allclose(places[row, : len(values)], expected, rtol=1e-3, atol=1e-5)
        assert np.isnan(expected).tolist() == (np.isnan(values) | (np.cumsum(~np.isnan(values)) < 2)).tolist()
        np.testing.assert_allclose(model.forecast(after.select([row])), model.forecast(alone), rtol=1e-5)
    assert np.isnan(places[1, lengths[1] :]).all()


def test_known_covariates_are_those_of_the_observation_itself():
    """Over several flights, which correct where the next one begins, and in chunks that are cut within one."""
    model = forecaster_of(replace(TINY, covariates=CovariatesConfig(known=("shift",), past=("wind",))), 3)
    with torch.no_grad():
        for weight in model._network.head.decoders[0].local.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    y = torch.from_numpy(wave(90, missing=0)).unsqueeze(0)
    table = torch.randn(1, 90, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    after, early = model.fold_and_place(model.initial_state([0]), y[:, :37], None, table[:, :37])
    _, late = model.fold_and_place(after, y[:, 37:], None, table[:, 37:])

    state, expected = model.initial_state([0]), []
    for step in range(90):
        block = model.ahead(state, table[:, step, :1])
        if step == 20:
            quantiles = model.forecast(state, 1, [0.5], table[:, step : step + 1, :1])
            assert model.place(block, torch.from_numpy(quantiles[:, 0, 0])).item() == pytest.approx(0.5)
        expected.append(model.place(block, y[:, step]).item())
        state = model.observe(state, y[:, step], table[:, step])

    np.testing.assert_allclose([*early[0], *late[0]], expected, rtol=1e-3, atol=1e-5)


def test_nothing_below_zero_where_nothing_is_expected_there():
    model = forecaster_of(replace(TINY, support="nonnegative"), 3)
    block = model.ahead(model.warm_up([np.array([3.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0])], [0]))
    ranks = [model.place(block, torch.tensor([y])).item() for y in (-1.0, 0.0, 1e-9)]

    assert ranks[0] == EDGE
    assert 0 < 2 * ranks[1] == pytest.approx(ranks[2], rel=1e-3)


def test_a_constant_is_no_surprise_where_nothing_else_was_seen():
    model = forecaster("quantile")
    block = model.ahead(model.warm_up([np.zeros(30)], [0]))

    assert model.place(block, torch.tensor([0.0])).item() == 0.5
    assert model.place(block, torch.tensor([1.0])).item() == 1 - EDGE


@given(place=st.floats(EDGE, 1 - EDGE))
def test_surprise_is_two_sided(place):
    found = surprise(np.array([place]))[0]

    assert 0 <= found < 12
    assert 10**-found == pytest.approx(2 * min(place, 1 - place))


def test_forecast_and_ahead_agree_with_both():
    model = forecaster("quantile")
    state = model.warm_up([wave(40, 1), np.full(3, np.nan)], [0, 7])
    quantiles, block = model.forecast_and_ahead(state, 3, [0.1, 0.5])
    y = torch.tensor([21.0, 21.0])

    np.testing.assert_array_equal(quantiles, model.forecast(state, 3, [0.1, 0.5]))
    np.testing.assert_allclose(model.place(block, y), model.place(model.ahead(state), y), rtol=1e-5)
    assert np.isnan(model.place(block, y)).tolist() == [False, True]
