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
    ("lstm", "log"): [[18.19087, 29.0521, 47.46835], [15.72964, 26.12153, 41.67991], [13.06465, 27.52321, 50.02105]],
    ("lstm", "linear"): [
        [17.90615, 29.03365, 40.84607],
        [14.58375, 26.57467, 37.80191],
        [11.57456, 27.81918, 43.77191],
    ],
    ("gru", "log"): [[18.03867, 28.84783, 47.38406], [15.90413, 26.33247, 41.87535], [12.99961, 27.50602, 49.99711]],
    ("gru", "linear"): [[17.70308, 28.86029, 40.8035], [14.84926, 26.7717, 37.91638], [11.56433, 27.79654, 43.70024]],
    ("rnn", "log"): [[17.57472, 28.55433, 46.41441], [16.41503, 26.68969, 42.90392], [14.62891, 29.38903, 52.26234]],
    ("rnn", "linear"): [[17.10685, 28.63194, 40.31977], [15.61493, 27.122, 38.53236], [13.61585, 29.40654, 45.05634]],
}
"""Levels 0.1, 0.5 and 0.9 at steps 1, 6 and 9, by cell and transform."""


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("transform", ["log", "linear"])
def test_given_weights_and_a_given_series_have_the_forecast_they_always_had(name: str, transform: str) -> None:
    forecaster = forecaster_by_formula(config_of(transform, (4,), cell=name))
    state = forecaster.warm_up([history()], [0])

    found = forecaster.forecast(state, 9, [0.1, 0.5, 0.9])[0, [0, 5, 8]]

    np.testing.assert_allclose(found, GOLDEN[name, transform], rtol=1e-4)


def test_a_state_record_of_format_1_is_read_as_it_was_defined() -> None:
    values = {
        "hidden": [0.5, -0.25, 1.0, 2.0],
        "cell": [3.0, -4.0],
        "ring": [1.5, float("nan"), 2.5],
        "statistics": [1.0, 2.0, 3.0, 4.0],
        "age": 7,
        "silence": 2,
        "last_step": -3,
    }
    body = struct.pack(
        "<4f2f3d4d3q", *(v for part in values.values() for v in (part if isinstance(part, list) else [part]))
    )
    head = struct.pack("<4sHH", b"FCST", 1, 0)
    record = head + struct.pack("<I", zlib.crc32(head + body)) + body

    state = StateLayout(layers=2, hidden=2, cell=1, ring=3, statistics=4).from_bytes([record])

    assert state.hidden.tolist() == [[[0.5, -0.25], [1.0, 2.0]]]
    assert state.cell.tolist() == [[[3.0], [-4.0]]]
    np.testing.assert_array_equal(state.ring.numpy(), [[1.5, np.nan, 2.5]])
    assert state.statistics.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert (state.age.tolist(), state.silence.tolist(), state.last_step.tolist()) == ([7], [2], [-3])
    assert state.to_bytes() == [record]
