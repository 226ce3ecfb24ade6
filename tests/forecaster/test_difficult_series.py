"""Series that break naive scaling: near zero, negative, constant, intermittent, explosive; trained for a moment."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Config, Forecaster, NetworkConfig, Panel, TrainingConfig
from forecaster.heads import HEADS
from forecaster.training import fit
from forecaster.training.module import TrainingModule
from tests.forecaster.kit import Float, config_of, forecaster_of, network_of
from tests.forecaster.training_kit import chunk_of, ready

STEPS, HORIZON = 120, 6
CONFIG = Config(
    "D",
    HORIZON,
    (7,),
    network=NetworkConfig(hidden_size=8, num_layers=1, dropout=0.0, members=1),
    training=TrainingConfig(updates=20, epoch_updates=10, lanes=16, chunk_length=28, learning_rate=5e-3),
)
TIME = np.arange(STEPS)
WEEK = 1 + 0.3 * np.sin(2 * np.pi * TIME / 7)


def kind_of(name: str, generator: np.random.Generator) -> Float:
    noise = generator.normal(size=STEPS)
    kinds = {
        "usual": 50 * WEEK + 2 * noise,
        "near zero": 1e-9 * (WEEK + 0.05 * np.abs(noise)),
        "negative": -50 * WEEK + 2 * noise,
        "around zero": 10 * (WEEK - 1) + noise,
        "constant": np.full(STEPS, 42.0),
        "constant zero": np.zeros(STEPS),
        "intermittent": generator.poisson(0.2, STEPS).astype(float),
        "explosive": np.exp(0.2 * TIME) * WEEK,
        "collapsing": np.exp(-0.2 * TIME) * WEEK,
        "huge": 1e29 * WEEK,
        "one jump": np.where(TIME < 100, 5.0, 5e5),
        "zero, then active": np.where(TIME < 112, 0.0, 100.0 + noise),
    }
    return kinds[name]


KINDS = [
    "usual",
    "near zero",
    "negative",
    "around zero",
    "constant",
    "constant zero",
    "intermittent",
    "explosive",
    "collapsing",
    "huge",
    "one jump",
    "zero, then active",
]
SIGNED = ("negative", "around zero")


def panel_of(names: list[str]) -> Panel:
    generator = np.random.default_rng(0)
    values = [kind_of(name, generator) for name in names for _ in range(4)]
    return Panel(
        CONFIG.calendar,
        [f"{name} {copy}" for name in names for copy in range(4)],
        np.zeros(len(values), dtype=np.int64),
        values,
    )


@cache
def fitted(names: tuple[str, ...], transform: str = "auto") -> tuple[Forecaster, Panel]:
    panel = panel_of(list(names))
    return fit(panel, replace(CONFIG, transform=transform)).forecaster, panel  # type: ignore[arg-type]


def forecast_of(names: tuple[str, ...], transform: str = "auto", horizon: int = 4 * HORIZON) -> Float:
    forecaster, panel = fitted(names, transform)
    state = forecaster.warm_up(panel.values, panel.first_steps.tolist())
    return forecaster.forecast(state, horizon, CONFIG.quantile_levels)


@pytest.mark.parametrize("name", KINDS)
def test_a_panel_of_one_kind_trains_and_has_finite_ordered_forecasts(name: str) -> None:
    found = forecast_of((name,))

    assert np.isfinite(found).all()
    assert (np.diff(found, axis=-1) >= 0).all()
    if name not in SIGNED:
        assert (found >= 0).all()
    assert np.isfinite(fitted((name,))[0].simulate(state_of((name,)), 8, 20)).all()


def state_of(names: tuple[str, ...]):  # type: ignore[no-untyped-def]
    forecaster, panel = fitted(names)
    return forecaster.warm_up(panel.values, panel.first_steps.tolist())


@pytest.mark.parametrize("transform", ["log", "linear"])
def test_kinds_side_by_side_do_not_disturb_each_other(transform: str) -> None:
    names = tuple(name for name in KINDS if name not in SIGNED)
    found = forecast_of(names, transform, HORIZON)
    median = found[:, :, found.shape[-1] // 2]
    place = {name: slice(4 * row, 4 * row + 4) for row, name in enumerate(names)}

    assert np.isfinite(found).all()
    assert (found >= 0).all()
    np.testing.assert_allclose(median[place["usual"]].mean(1), 50, rtol=0.3)
    np.testing.assert_allclose(median[place["near zero"]].mean(1), 1e-9, rtol=0.3)
    np.testing.assert_allclose(median[place["huge"]].mean(1), 1e29, rtol=0.3)
    np.testing.assert_allclose(found[place["constant"]], 42, rtol=1e-3)
    np.testing.assert_array_equal(found[place["constant zero"]], 0)
    last = np.exp(0.2 * (STEPS - 1))
    assert (median[place["explosive"]] > 0.05 * last).all()
    assert (median[place["explosive"]] < 20 * last).all()


@given(
    head=st.sampled_from(sorted(HEADS)),
    transform=st.sampled_from(["log", "linear"]),
    powers=st.lists(st.integers(-300, 30), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_whatever_a_panel_may_hold_the_loss_of_it_is_finite(
    head: str, transform: str, powers: list[int], seed: int
) -> None:
    config = config_of(transform, (4,), head=head)
    values = np.repeat(10.0 ** np.array(powers), 12) * np.random.default_rng(seed).uniform(-1, 1, 12 * len(powers))
    if config.counts:
        values = np.abs(np.round(values))
    module = TrainingModule(network_of(config), updates=1, max_seconds=None)
    y, future = values[None, : -config.horizon], values[None, 1:]

    (batch,) = ready(module, chunk_of(y, future, reset=(0,), start=(0,)))

    assert bool(torch.isfinite(module.score(None, batch)[0]))


def test_signed_series_keep_their_sign() -> None:
    found = forecast_of(("negative", "around zero"), horizon=HORIZON)

    assert fitted(("negative", "around zero"))[0].config.transform == "linear"
    assert fitted(("negative", "around zero"))[0].config.support == "real"
    median = found[:, :, found.shape[-1] // 2]
    np.testing.assert_allclose(median[:4].mean(1), -50, rtol=0.3)
    assert (found[4:, :, 0] < 0).any()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("transform", ["log", "linear"])
def test_a_series_without_negative_values_has_no_negative_forecast_until_it_has_one(head: str, transform: str) -> None:
    forecaster = forecaster_of(replace(config_of(transform, (4,), head=head), support="nonnegative"))
    histories = [np.array([0, 0, 5, 0, 0, 1, 0, 0.0] * 4), np.array([0, 0, 5, 0, 0, 1, 0, -30.0] * 4)]
    state = forecaster.warm_up(histories, [0, 0])

    found = forecaster.forecast(state, 24, (0.025, 0.1, 0.5, 0.9))
    paths = forecaster.simulate(state, 24, 50)

    assert (found[0] >= 0).all()
    assert (paths[0] >= 0).all()
    if not forecaster.config.counts:
        free = forecaster_of(replace(config_of(transform, (4,), head=head), support="real"))
        assert (free.forecast(free.warm_up(histories, [0, 0]), 24, (0.025,))[0] < 0).any()
        np.testing.assert_array_equal(
            found[1], free.forecast(free.warm_up(histories, [0, 0]), 24, (0.025, 0.1, 0.5, 0.9))[1]
        )


@pytest.mark.parametrize("head", ["quantile", "student_t"])
def test_values_slightly_below_zero_do_not_open_the_way_there(head: str) -> None:
    forecaster = forecaster_of(replace(config_of("linear", (4,), head=head), support="nonnegative"))
    state = forecaster.warm_up([np.array([0, 0, 5, 0, 0, 1, 0, -0.01] * 4)], [0])

    assert (forecaster.forecast(state, 24, (0.025, 0.1, 0.5)) >= 0).all()
    assert forecaster.place(forecaster.ahead(state), torch.tensor([-0.01])).item() < 1e-6


@pytest.mark.parametrize("transform", ["log", "linear"])
@pytest.mark.parametrize("head", ["quantile", "student_t"])
def test_no_forecast_exceeds_the_sum_of_the_recent_values(head: str, transform: str) -> None:
    """Bursts among zeros: one unit of scaled coordinates is a power of ten, and weights may ask for many."""
    forecaster = forecaster_of(config_of(transform, (4,), head=head), 5)
    bursts = np.where(np.arange(60) % 19 == 7, 1e6, 0.0)
    state = forecaster.warm_up([bursts, 1e9 * bursts, -bursts, bursts + 3], [0] * 4)
    most = forecaster.config.ring_length * state.ring.abs().mean(1).numpy()

    for levels in ((0.025, 0.5, 0.975), (0.03, 0.96)):
        found = np.abs(forecaster.forecast(state, None, levels))
        assert (found <= 1.0001 * most[:, None, None]).all()
    if transform == "log":
        assert (found.max((1, 2)) > 0.99 * most).any()  # these weights ask for more, and are held there


def test_exploding_past_the_history_stays_finite() -> None:
    forecaster, _ = fitted(("explosive",))
    state = forecaster.warm_up([np.exp(0.5 * np.arange(130))], [0])  # up to 1e28

    for value in np.exp(0.5 * np.arange(130, 138)):
        state = forecaster.observe(state, torch.tensor([value]))
        assert np.isfinite(forecaster.forecast(state, 24)).all()
