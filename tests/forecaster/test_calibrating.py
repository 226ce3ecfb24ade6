"""The widths that training leaves its head with."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from forecaster import Forecaster, Panel
from forecaster.heads.widening import LARGEST, UNSEEN
from forecaster.network import ForecastNetwork
from forecaster.training.calibrating import calibrate, drift_of
from forecaster.training.windows import latest_blocks, windows_of
from tests.forecaster.training_kit import CONFIG, fitted, histories, panel_of


def drift(network: ForecastNetwork, panel: Panel, unseen: int) -> torch.Tensor:
    """By the latest steps of a panel."""
    cutoffs, moments = latest_blocks(panel, unseen, network.config.horizon)
    return drift_of(network, windows_of(network, panel, cutoffs, seed=0), len(moments))


def test_intervals_widen_where_the_latest_steps_were_harder_and_never_narrow() -> None:
    rng = np.random.default_rng(0)
    calm = [100 + np.cumsum(rng.normal(size=160)) for _ in range(12)]
    wild = [np.concatenate([y[:-8], y[-9] + np.cumsum(rng.normal(scale=8, size=8))]) for y in calm]
    network = fitted(dataclasses.replace(CONFIG, calibration="static"), calm).judged._network
    width = network.config.horizon

    none, more = (drift(network, panel_of(values), 2 * width) for values in (calm, wild))

    assert (none >= 1).all()
    assert (more > 1.2 * none).all()
    assert torch.equal(drift(network, panel_of(calm), 0), torch.ones(width))
    # What came to all series at once is one observation, and says little.
    together = dataclasses.replace(panel_of(wild), first_steps=np.zeros(12, dtype=np.int64))
    for few in (panel_of(calm[:1]), panel_of(wild[:1]), together):
        one = drift(network, few, width)
        assert ((one >= 1) & (one < 1.4)).all()


def test_the_latest_blocks_are_whole_horizons_of_what_is_unseen_and_nothing_before_it() -> None:
    panel = panel_of([np.arange(20.0), np.arange(31.0), np.arange(8.0)])  # from steps 0, 50 and 100

    blocks, cutoffs = latest_blocks(panel, unseen=9, horizon=4)

    assert blocks == [("s0", 11, 15), ("s0", 15, 19), ("s1", 22, 26), ("s1", 26, 30)]
    assert cutoffs == {10, 14, 71, 75}


@pytest.mark.parametrize(("shape", "asked"), [(-6.0, LARGEST), (6.0, 1.0)])
def test_where_blocks_tell_little_the_best_anchor_is_asked_too(shape: float, asked: float) -> None:
    """Intervals too narrow or wide for its errors are widened by the mean of what these ask for and what is usual."""
    panel = panel_of(histories())
    network = ForecastNetwork(dataclasses.replace(CONFIG, calibration="static")).eval().requires_grad_(False)
    for decoder in network.head.decoders:
        torch.nn.init.constant_(decoder.get_parameter("bias")[-len(network.head.decoders[0].first_shape) :], shape)

    calibrate(network, panel, [], None, seed=0)
    widened = network.head.state_dict()["widening"].clone()
    calibrate(network, panel.tail(CONFIG.horizon), [], None, seed=0)

    torch.testing.assert_close(widened, torch.full_like(widened, math.sqrt(UNSEEN * asked)), rtol=0.05, atol=0)
    assert (network.head.state_dict()["widening"] == UNSEEN).all()


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_only_what_is_kept_of_what_was_learnt_can_be_known_by_heart(kept: float) -> None:
    panel = panel_of(histories()).tail(CONFIG.horizon)  # too short to ask an anchor
    network = Forecaster.create(dataclasses.replace(CONFIG, calibration="static"))._network

    calibrate(network, panel, [], None, seed=0, kept=kept)

    widening = network.head.state_dict()["widening"]
    torch.testing.assert_close(widening, torch.full_like(widening, UNSEEN**kept))


def test_training_calibrates_on_blocks_it_has_not_learnt_from_unless_told_not_to() -> None:
    values = [100 + y for y in histories()]
    calibrated, plain = (
        fitted(dataclasses.replace(CONFIG, calibration=mode), values).forecaster._network.head.state_dict()["widening"]
        for mode in ("static", "off")
    )

    assert torch.equal(plain, torch.ones_like(plain))
    assert not torch.allclose(calibrated, torch.ones_like(calibrated), atol=0.02)
