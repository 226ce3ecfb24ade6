"""Calibration that follows the stream: against a plain loop, under drift, at its bounds, and switched off.

The laws of `test_laws` hold with it on; here stands what it is for.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from forecaster import Config, CovariatesConfig, Forecaster, StreamState
from forecaster.calibration import OUTER, OWN, SHARED, SIDED
from forecaster.kernels import BLUR, FADING, LARGEST_CORRECTION
from forecaster.metrics import coverage
from forecaster.network import ForecastNetwork
from forecaster.scaling import FLOOR, SHIFT
from tests.forecaster.kit import COVERED, TINY, TINY_LINEAR, Float, config_of, forecaster_of

HORIZON = TINY.horizon
NONE = CovariatesConfig()
PRICED = replace(TINY_LINEAR, covariates=CovariatesConfig(known=("price",)))
"""Flights of a model that knows a column of the coming steps are scored when they have ended."""

PERIOD = 8
"""Steps from flight to flight at a horizon of 6: the shortest there is."""


def stream(steps: int, scale: Float | float = 1.0, streams: int = 1, seed: int = 0) -> Float:
    """A season of 4 steps around 100 and normal noise of the given scale, shape [streams, steps]."""
    noise = np.random.default_rng(seed).normal(size=(streams, steps))
    return 100 + 10 * np.sin(np.arange(steps) * np.pi / 2) + scale * noise


def fold(forecaster: Forecaster, y: Float) -> StreamState:
    """States of streams that began at step 0."""
    return forecaster.fold(forecaster.initial_state([0] * len(y)), torch.from_numpy(y))


def log_above_floor(y: Float, center: float, shift: float) -> Float:
    """Logarithm relative to the centre, going on as its tangent below a floor."""
    ratio = (y + shift) / (center + shift)
    return np.where(ratio > FLOOR, np.log(np.maximum(ratio, FLOOR)), np.log(FLOOR) + ratio / FLOOR - 1)


@pytest.mark.parametrize(
    "config", [TINY, TINY_LINEAR, COVERED[0], COVERED[1]], ids=["log", "linear", "known, log", "known, linear"]
)
@pytest.mark.parametrize("first", [0, 1])
def test_the_correction_is_that_of_a_plain_loop_over_observations(config: Config, first: int) -> None:
    """At once, or, where covariates are known, all of a flight where the next one begins.

    A flight begins once a whole period has been seen: of a stream from step 1, with the last step of that.
    """
    forecaster = forecaster_of(config)
    y = stream(90, 8.0)[0]
    y[[20, 41, 42]] = np.nan
    groups = [0, 0, 1, 2, 2, 3]  # of the six horizon steps
    deferred = bool(config.covariates.known)

    state, logs = forecaster.initial_state([first]), np.zeros((2, 4))
    bounds, center, shift = np.empty((0, 3)), 0.0, 0.0
    due: list[tuple[int, float]] = []
    for step, value in enumerate(y, first):
        ahead = (step - 1) % PERIOD
        if ahead < len(bounds) and not np.isnan(value):
            due.append((ahead, value))
        begins = step % PERIOD == 0 and step - first + 1 >= PERIOD
        for ahead, value_then in due if begins or not deferred else ():
            places = np.array([*bounds[ahead], value_then])
            low, middle, high, place = log_above_floor(places, center, shift) if config.transform == "log" else places
            for side, ratio in enumerate(((middle - place) / (middle - low), (place - middle) / (high - middle))):
                missed = float(np.clip((ratio - 1) / BLUR + 0.5, 0, 1)) - OUTER
                logs += SHARED * missed / (2 * HORIZON)
                logs[side] += SIDED * missed / HORIZON
                logs[side, groups[ahead]] += OWN * missed / groups.count(groups[ahead])
        if begins or not deferred:
            due = []
        state = forecaster.observe(state, torch.tensor([value]))
        if begins:
            logs = logs.clip(-LARGEST_CORRECTION, LARGEST_CORRECTION) * (1 - FADING)
            bounds = forecaster.forecast(state, HORIZON, [0.1, 0.5, 0.9])[0]
            center, shift = float(state.ring.nanmean()), SHIFT * float(state.ring.abs().nanmean())

    assert np.abs(logs).max() > 0.05
    np.testing.assert_allclose(state.correction[0].numpy(), logs, atol=2e-5)


def test_what_is_missing_corrects_nothing(tiny_forecaster: Forecaster) -> None:
    state = fold(tiny_forecaster, stream(65))  # step 64 began a flight

    gone = tiny_forecaster.fold(state, torch.full((1, HORIZON), torch.nan))
    come = tiny_forecaster.fold(state, torch.from_numpy(stream(71))[:, 65:])

    assert torch.equal(gone.correction, state.correction)
    assert not torch.equal(come.correction, state.correction)


@pytest.mark.parametrize("config", [TINY, PRICED], ids=["at once", "deferred"])
def test_no_flight_begins_where_the_weights_have_learnt(config: Config) -> None:
    network = copy.deepcopy(forecaster_of(config)._network)
    network.calibration.learnt.fill_(96)  # a multiple of the period: a flight begins with this very step
    y = stream(200)

    before = fold(Forecaster(network), y[:, :96])
    first = Forecaster(network).fold(before, torch.from_numpy(y[:, 96:97]))
    after = Forecaster(network).fold(first, torch.from_numpy(y[:, 97:]))

    assert not before.correction.any()
    assert before.ruler.isnan().all()
    assert not first.ruler.isnan().any()
    assert after.correction.any()
    assert fold(forecaster_of(config), y[:, :96]).correction.any()


def test_a_rolled_forecast_corrects_nothing(tiny_forecaster: Forecaster) -> None:
    state = fold(tiny_forecaster, stream(65))
    still = fold(Forecaster.create(replace(TINY, calibration="off")), stream(65))

    near, far = (tiny_forecaster.forecast(state, horizon) for horizon in (HORIZON, 4 * HORIZON))

    assert len(still.correction[0, 0]) == 0
    np.testing.assert_allclose(far[:, :HORIZON], near, rtol=1e-12)


def covered(forecaster: Forecaster, y: Float, start: int, every: int = 5) -> Float:
    """Coverage of the 80 % interval by horizon step, from origins in the second half of what follows `start`."""
    begin = start + (y.shape[1] - start) // 2
    state = fold(forecaster, y[:, :begin])
    inside = []
    for origin in range(begin, y.shape[1] - HORIZON, every):
        low, high = np.moveaxis(forecaster.forecast(state, HORIZON, [0.1, 0.9]), -1, 0)
        truth = y[:, origin : origin + HORIZON]
        inside.append([coverage(truth[:, h], low[:, h], high[:, h]) for h in range(HORIZON)])
        state = forecaster.fold(state, torch.from_numpy(y[:, origin : origin + every]))
    return np.mean(inside, 0)


LAST, SEASON = 0, 3
"""Anchors of a season of 4: the latest value, and the mean over all seasons in the ring."""


def repeating(
    anchor: int,
    calibration: str = "adaptive",
    spread: float = 0.05,
    covariates: CovariatesConfig = NONE,
) -> Forecaster:
    """Forecasts one anchor, within a band that is the same share of the unit at every step of the horizon."""
    network = ForecastNetwork(replace(config_of("linear", (4,), calibration=calibration), covariates=covariates))
    with torch.no_grad():
        decoder = network.head.decoders[0]
        decoder.bias[anchor] = 30.0
        decoder.bias[-decoder.rows[2] :] = np.log(np.expm1(spread))
    return Forecaster(network)


def test_noise_that_doubles_is_covered_again_within_two_points() -> None:
    scale = np.where(np.arange(1600) < 600, 1.0, 2.0)
    y = stream(1600, scale, streams=24)
    forecaster, off = repeating(SEASON), repeating(SEASON, "off")

    before, after = covered(forecaster, y[:, :600], 100).mean(), covered(forecaster, y, 600).mean()

    assert abs(before - 0.8) < 0.02
    assert abs(after - 0.8) < 0.02
    assert covered(off, y, 600).mean() < 0.6


def test_every_part_of_the_horizon_is_covered_though_errors_grow_with_it() -> None:
    y = 1000 + np.random.default_rng(0).normal(size=(24, 1600)).cumsum(1)

    by_step = covered(repeating(LAST, spread=0.15), y, 200)

    for group in (slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)):
        assert abs(by_step[group].mean() - 0.8) < 0.07
    assert abs(by_step.mean() - 0.8) < 0.02
    assert np.ptp(covered(repeating(LAST, "off", spread=0.15), y, 200)) > 0.3


def test_a_side_that_is_missed_more_moves_more() -> None:
    skewed = np.random.default_rng(0).exponential(size=(8, 1200))
    state = fold(repeating(SEASON), stream(1200, 0.0, streams=8) + 2 * skewed)

    below, above = state.correction.mean((0, 2))

    assert above > below + 0.15


@pytest.mark.parametrize("covariates", [NONE, PRICED.covariates], ids=["at once", "deferred"])
def test_factors_are_bounded_and_come_back_from_the_bound(covariates: CovariatesConfig) -> None:
    forecaster = repeating(SEASON, covariates=covariates)
    state = fold(forecaster, np.full((1, 4000), 5.0))
    future = torch.full((1, HORIZON, 1), torch.nan) if covariates.known else None

    low, high = np.moveaxis(forecaster.forecast(state, HORIZON, [0.1, 0.9], future), -1, 0)

    assert -LARGEST_CORRECTION - 0.1 <= float(state.correction.min()) < -1.5
    assert (low < high).all()
    again = forecaster.fold(state, torch.from_numpy(stream(400)))
    assert float(again.correction.min()) > -1.0


def test_only_adaptive_states_carry_a_correction() -> None:
    sizes = {
        mode: len(fold(forecaster_of(config_of("log", (4,), calibration=mode)), stream(30)).to_bytes()[0])
        for mode in ("adaptive", "static", "off")
    }

    assert sizes["static"] == sizes["off"]
    assert sizes["adaptive"] - sizes["off"] == 4 * 2 * 4 + 4 * 3 * HORIZON
