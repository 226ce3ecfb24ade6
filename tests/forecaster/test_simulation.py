"""Sample paths: the forecast's distributions at every step, with the dependence that rolling a state gives."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from forecaster import Calendar, Config, Forecaster, InputError, NetworkConfig, Panel, TrainingConfig
from forecaster.simulation import seed_of
from forecaster.training import fit
from tests.forecaster.kit import TINY, Float, batches, config_of, forecaster_of

HEADS = [
    config_of("log"),
    config_of("linear", (3,), head="student_t"),
    config_of("log", (4,), head="negative_binomial"),
    config_of("log", (4,), head="zero_inflated"),
]
HISTORY = np.round(20 + 5 * np.sin(np.arange(50) * np.pi / 2) + np.random.default_rng(0).normal(size=50))


@pytest.mark.parametrize("config", HEADS, ids=lambda config: config.head)
@pytest.mark.parametrize("horizon", [1, 6, 15])
def test_at_every_step_the_paths_have_the_quantiles_of_the_forecast(config: Config, horizon: int) -> None:
    forecaster = forecaster_of(config)
    state = forecaster.warm_up([HISTORY, HISTORY[:9]], [0, 3])
    count, levels = 500, np.array([0.1, 0.3, 0.5, 0.8, 0.9])

    paths = forecaster.simulate(state, horizon, count, seed=1)

    assert paths.shape == (2, count, horizon)
    low = forecaster.forecast(state, horizon, levels - 1 / count)
    high = forecaster.forecast(state, horizon, levels + 1 / count)
    found = np.quantile(paths, levels, axis=1, method="inverted_cdf").transpose(1, 2, 0)
    assert (found >= low - 1e-9 * np.abs(low)).all()
    assert (found <= high + 1e-9 * np.abs(high)).all()


def test_a_single_path_at_a_single_step_is_a_fair_draw_from_the_forecast() -> None:
    forecaster = forecaster_of(config_of("linear", (3,), head="student_t"))
    state = forecaster.warm_up([HISTORY], [0])

    drawn = np.array([forecaster.simulate(state, 2, 1, seed)[0, 0, 1] for seed in range(400)])

    levels = np.linspace(0.001, 0.999, 999)
    quantiles = forecaster.forecast(state, 2, levels)[0, 1]
    assert stats.kstest(drawn, lambda y: np.interp(y, quantiles, levels)).pvalue > 0.01


def test_a_seed_of_numpy_is_the_number_that_it_is() -> None:
    forecaster, panel = forecaster_of(TINY), Panel.from_series(Calendar("h"), [("a", 0, HISTORY)])
    state = forecaster.warm_up_panel(panel)

    np.testing.assert_array_equal(
        forecaster.simulate(state, 2, 3, seed=np.int64(7)),  # type: ignore[arg-type]
        forecaster.simulate(state, 2, 3, seed=7),
    )
    pd.testing.assert_frame_equal(
        forecaster.simulate_frame(panel, 2, 3, seed=np.int64(7)),  # type: ignore[arg-type]
        forecaster.simulate_frame(panel, 2, 3, seed=7),
    )


@example(config=HEADS[0], histories=[np.array([np.nan])], horizon=2, seed=0)
@given(
    config=st.sampled_from(HEADS), histories=batches(), horizon=st.sampled_from([2, 8]), seed=st.integers(0, 2**63 - 1)
)
def test_asked_twice_it_answers_the_same_and_touches_nothing(
    config: Config, histories: list[Float], horizon: int, seed: int
) -> None:
    forecaster = forecaster_of(config)
    state = forecaster.warm_up(histories, [0] * len(histories))
    before, numpys, torchs = state.to_bytes(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002

    first = forecaster.simulate(state, horizon, 5, seed)

    np.testing.assert_array_equal(forecaster.simulate(state, horizon, 5, seed), first)
    assert state.to_bytes() == before
    assert torch.equal(torch.get_rng_state(), torchs)
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002
    observed = ~torch.isnan(state.ring).all(1).numpy()
    assert np.isfinite(first[observed]).all()
    assert np.isnan(first[~observed]).all()
    if config.counts:
        assert np.array_equal(first[observed], np.round(first[observed]).clip(0))


@pytest.mark.parametrize("config", HEADS, ids=lambda config: config.head)
def test_a_rows_paths_do_not_depend_on_who_else_is_in_the_batch(config: Config) -> None:
    forecaster = forecaster_of(config)
    others = [np.full(9, np.nan), HISTORY[::-1], np.full(20, 1e30), np.zeros(30), HISTORY[:7]]
    alone = forecaster.warm_up([HISTORY], [0])
    together = forecaster.warm_up([*others, HISTORY], [0] * 6)

    found = forecaster.simulate(together, 8, 200, 5)[5]
    by_row = forecaster.simulate(together, 8, 200, [9, 8, 7, 6, 5, 4])[5]

    # Rounding may let two neighbouring paths trade places at a step.
    for mine, expected in (
        (found, forecaster.simulate(alone, 8, 200, 5)[0]),
        (by_row, forecaster.simulate(alone, 8, 200, [4])[0]),
    ):
        assert np.mean(np.abs(mine - expected) <= 1e-4 * np.abs(expected)) > 0.97
        np.testing.assert_allclose(np.sort(mine, 0), np.sort(expected, 0), rtol=1e-3, atol=1 if config.counts else 1e-3)


def test_rows_draw_independently_with_one_seed_for_all() -> None:
    forecaster = forecaster_of(TINY)
    state = forecaster.warm_up([HISTORY, HISTORY + 1], [0, 0])

    paths = forecaster.simulate(state, 1, 2000, 3)

    assert abs(stats.spearmanr(paths[0, :, 0], paths[1, :, 0]).statistic) < 0.08


def test_the_same_values_at_other_steps_are_another_series() -> None:
    """Or series that start alike, as those without a value do, would rise and fall together."""
    forecaster = forecaster_of(TINY)
    state = forecaster.warm_up([HISTORY, HISTORY], [0, 7 * TINY.ring_length])
    assert torch.equal(*state.ring)

    paths = forecaster.simulate(state, 1, 2000, 3)

    assert abs(stats.spearmanr(paths[0, :, 0], paths[1, :, 0]).statistic) < 0.08


def test_fewer_paths_are_the_first_of_more_and_a_shorter_horizon_the_beginning_of_a_longer_one() -> None:
    forecaster = forecaster_of(TINY)
    state = forecaster.warm_up([HISTORY], [0])

    many = forecaster.simulate(state, 9, 100, 3)

    np.testing.assert_array_equal(forecaster.simulate(state, 9, 2, 3), many[:, :2])
    np.testing.assert_array_equal(forecaster.simulate(state, 4, 100, 3), many[:, :, :4])
    assert not np.array_equal(forecaster.simulate(state, 4, 100, 4), many[:, :, :4])


def test_more_rows_than_fit_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster = forecaster_of(TINY)
    state = forecaster.warm_up([HISTORY + row for row in range(5)], [0] * 5)
    whole = forecaster.simulate(state, 3, 10, 3)

    monkeypatch.setattr("forecaster.forecaster.PATHS_AT_ONCE", 256)

    np.testing.assert_allclose(forecaster.simulate(state, 3, 10, 3), whole, rtol=1e-4)


def autoregressive(count: int, length: int, phi: float, seed: int) -> list[Float]:
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count, length))
    y = np.zeros((count, length))
    for t in range(1, length):
        y[:, t] = phi * y[:, t - 1] + noise[:, t]
    return list(y)


@cache
def of_autoregressive(head: str) -> Forecaster:
    config = Config(
        "1",
        6,
        (1,),
        transform="linear",
        head=head,  # type: ignore[arg-type]
        network=NetworkConfig(hidden_size=16, num_layers=1, dropout=0.0, members=1),
        training=TrainingConfig(updates=120, epoch_updates=40, lanes=32, chunk_length=32, learning_rate=1e-2),
    )
    values = autoregressive(64, 300, 0.9, 0)
    return fit(
        Panel(Calendar("1"), [str(i) for i in range(64)], np.zeros(64, dtype=np.int64), values), config
    ).forecaster


@pytest.mark.parametrize("head", ["quantile", "student_t"])
def test_paths_of_an_autoregressive_series_hang_together_as_the_series_does(head: str) -> None:
    """With y[h] = sum of phi^k noise, the correlation of steps 5 and 6 after one cutoff is phi * sd(5) / sd(6)."""
    forecaster = of_autoregressive(head)
    state = forecaster.warm_up(autoregressive(20, 200, 0.9, 1), [0] * 20)

    paths = forecaster.simulate(state, 6, 300, 0)

    variance = np.cumsum(0.9 ** (2 * np.arange(6)))
    expected = 0.9 * np.sqrt(variance[4] / variance[5])
    errors = paths - paths.mean(1, keepdims=True)
    found = np.mean([np.corrcoef(row[:, 4], row[:, 5])[0, 1] for row in errors])
    assert found == pytest.approx(expected, abs=0.06)
    shuffled = np.mean([np.corrcoef(row[:, 4], np.roll(row[:, 5], 1))[0, 1] for row in errors])
    assert abs(shuffled) < 0.05  # what independent draws would give
    total = (paths.sum(2).std(1) / np.sqrt(paths.var(1).sum(1))).mean()
    assert total > 1.5  # sums of dependent steps spread more


def test_zeros_of_counts_carry_no_order_from_step_to_step() -> None:
    """Equal draws are ranked at random: were it by place, the first paths would always be the lowest."""
    forecaster = forecaster_of(config_of("log", (4,), head="zero_inflated"))
    state = forecaster.warm_up([np.zeros(40)], [0])

    paths = forecaster.simulate(state, 6, 400, 0)[0]

    assert abs(stats.spearmanr(np.arange(400), paths.mean(1)).statistic) < 0.15


def test_a_frame_of_paths() -> None:
    forecaster = forecaster_of(TINY)
    panel = Panel(forecaster.calendar, ["a", "b"], np.array([5, 0]), [HISTORY, HISTORY[:20]])

    frame = forecaster.simulate_frame(panel, 3, 4, seed=7)

    assert list(frame.columns) == ["unique_id", "sample", "ds", "y"]
    assert len(frame) == 2 * 4 * 3
    assert frame["sample"].tolist() == [s for _ in range(2) for s in range(4) for _ in range(3)]
    state = forecaster.warm_up([HISTORY[:20]], [0])
    alone = forecaster.simulate(state, 3, 4, [seed_of("b", 7)])
    np.testing.assert_allclose(frame.loc[frame["unique_id"] == "b", "y"].to_numpy(), alone.ravel(), rtol=1e-4)
    expected = forecaster.forecast_frame(panel, 3)
    pd.testing.assert_series_equal(
        frame.loc[frame["sample"] == 0, "ds"].reset_index(drop=True), expected["ds"], check_names=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 0), "horizon is 0"),
        ((3, 0, 0), "num_samples is 0, expected 1 to 10000"),
        ((3, 10_001, 0), "num_samples is 10001"),
        ((3, 5, -1), "seed is -1, expected 0 to"),
        ((3, 5, [1, 2]), "2 seeds for 1 series"),
        ((3, 2.5, 0), "num_samples is 2.5, expected"),
        ((3, 5, 1.5), "seed is 1.5, expected"),
        ((3, 5, None), "seed is None, expected"),
        ((3, 5, ["1"]), "seed is '1', expected"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: tuple[int, int, int], message: str) -> None:
    forecaster = forecaster_of(TINY)

    with pytest.raises(InputError, match=message):
        forecaster.simulate(forecaster.warm_up([HISTORY], [0]), *arguments)


def test_a_frame_of_paths_follows_from_one_seed() -> None:
    forecaster = forecaster_of(TINY)
    panel = Panel(forecaster.calendar, ["a", "b"], np.array([5, 0]), [HISTORY, HISTORY[:20]])

    with pytest.raises(InputError, match=r"seed is \[1, 2\], expected 0 to"):
        forecaster.simulate_frame(panel, 3, 5, seed=[1, 2])  # type: ignore[arg-type]
