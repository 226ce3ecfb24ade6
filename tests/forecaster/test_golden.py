"""Numbers that must not move by accident: formats already written to disk, and forecasts of given weights.

Weights here are a formula, not random numbers, so that only a change of the model's arithmetic can move them. Such a
change is allowed, but never unnoticed: it makes every stored artifact forecast differently.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch

from forecaster import Config, Forecaster
from forecaster.network import ForecastNetwork
from forecaster.state import StateLayout
from tests.forecaster.kit import config_of

pytestmark = pytest.mark.golden


def forecaster_by_formula(config: Config) -> Forecaster:
    network = ForecastNetwork(config)
    with torch.no_grad():
        for place, (_, parameter) in enumerate(sorted(network.named_parameters())):
            wave = np.sin(0.7 * np.arange(parameter.numel()) + place)
            parameter.copy_(torch.from_numpy(0.2 * wave).reshape(parameter.shape))
    return Forecaster(network)


def history() -> np.ndarray:
    steps = np.arange(60)
    y = 20 + 6 * np.sin(2 * np.pi * steps / 4) + 0.1 * steps + np.cos(1.7 * steps)
    y[[5, 6, 41]] = np.nan
    return y


GOLDEN = {
    ("lstm", "log"): [[15.35445, 25.88597, 41.02745], [18.88665, 30.30068, 50.4849], [14.07494, 29.72078, 55.83848]],
    ("lstm", "linear"): [[13.82346, 26.19478, 37.2508], [18.91346, 30.14732, 42.46664], [13.96997, 29.56947, 45.99399]],
    ("gru", "log"): [[15.06316, 25.17663, 39.31666], [18.2674, 30.17212, 51.90808], [15.89808, 32.19551, 60.40017]],
    ("gru", "linear"): [[13.50497, 25.60436, 36.30351], [17.96652, 29.89791, 42.93921], [15.70718, 31.43696, 48.4043]],
    ("rnn", "log"): [[17.16723, 27.90499, 44.97239], [16.94816, 27.64558, 44.60281], [13.44102, 28.19911, 51.71143]],
    ("rnn", "linear"): [[16.4771, 27.99394, 39.45828], [16.23209, 27.84473, 39.36253], [12.48185, 28.33865, 44.38443]],
}
"""Levels 0.1, 0.5 and 0.9 at steps 1, 6 and 9, by cell and transform."""


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("transform", ["log", "linear"])
def test_given_weights_and_a_given_series_have_the_forecast_they_always_had(name: str, transform: str) -> None:
    forecaster = forecaster_by_formula(config_of(transform, (4,), calibration="off", cell=name))
    state = forecaster.warm_up([history()], [0])

    found = forecaster.forecast(state, 9, [0.1, 0.5, 0.9])[0, [0, 5, 8]]

    np.testing.assert_allclose(found, GOLDEN[name, transform], rtol=1e-4)


def test_a_state_record_of_format_3_is_read_as_it_was_defined() -> None:
    values = {
        "hidden": [0.5, -0.25, 1.0, 2.0],
        "cell": [3.0, -4.0],
        "ring": [1.5, float("nan"), 2.5],
        "statistics": [1.0, 2.0, 3.0, 4.0],
        "age": 7,
        "silence": 2,
        "last_step": -3,
        "correction": [0.5, -1.0],
        "flight": [2.0, 4.0, 8.0],
        "ruler": [3.0, 0.25],
        "issued": [-2.0, -1.0, 1.0, 3.0],
        "quality": [float(i) for i in range(12)],
    }
    body = struct.pack(
        "<4f2f3d4d3q2f3f2d4f12f", *(v for part in values.values() for v in (part if isinstance(part, list) else [part]))
    )
    head = struct.pack("<4sHH", b"FCST", 3, 0)
    record = head + struct.pack("<I", zlib.crc32(head + body)) + body

    state = StateLayout(layers=2, hidden=2, cell=1, ring=3, statistics=4, groups=1, scored=1).from_bytes([record])

    assert state.hidden.tolist() == [[[0.5, -0.25], [1.0, 2.0]]]
    assert state.cell.tolist() == [[[3.0], [-4.0]]]
    np.testing.assert_array_equal(state.ring.numpy(), [[1.5, np.nan, 2.5]])
    assert state.statistics.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert (state.age.tolist(), state.silence.tolist(), state.last_step.tolist()) == ([7], [2], [-3])
    assert (state.correction.tolist(), state.flight.tolist()) == ([[[0.5], [-1.0]]], [[[2.0], [4.0], [8.0]]])
    assert state.ruler.tolist() == [[3.0, 0.25]]
    assert state.issued.tolist() == [[[-2.0], [-1.0], [1.0], [3.0]]]
    assert state.quality.flatten(2).tolist() == [[[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]]]
    assert state.to_bytes() == [record]
