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
        network.blend.add_(torch.from_numpy(0.2 * np.cos(np.arange(network.blend.numel()))).view_as(network.blend))
    return Forecaster(network)


def history() -> np.ndarray:
    steps = np.arange(60)
    y = 20 + 6 * np.sin(2 * np.pi * steps / 4) + 0.1 * steps + np.cos(1.7 * steps)
    y[[5, 6, 41]] = np.nan
    return y


GOLDEN = {
    ("lstm", "log"): [[18.26601, 29.3982, 47.93733], [16.90225, 28.98031, 47.53764], [15.35125, 32.16117, 59.33786]],
    ("lstm", "linear"): [[17.7736, 29.16285, 40.99705], [16.09533, 28.97073, 40.9849], [14.54112, 31.4084, 48.20125]],
    ("gru", "log"): [[19.51867, 30.98726, 52.19558], [15.39516, 27.23098, 43.8238], [14.66874, 31.64978, 59.5476]],
    ("gru", "linear"): [[19.36177, 30.45083, 43.1037], [13.92183, 27.45188, 38.95824], [13.01053, 30.90646, 48.30854]],
    ("rnn", "log"): [[17.96959, 29.62594, 49.16602], [17.56866, 28.8859, 46.89267], [13.07122, 28.79717, 53.29281]],
    ("rnn", "linear"): [[17.40796, 29.36874, 41.6766], [16.95166, 28.82726, 40.55274], [12.1258, 28.65206, 44.80058]],
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
