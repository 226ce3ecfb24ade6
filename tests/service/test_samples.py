"""Sample paths over HTTP, and models of every head behind the same routes."""

from __future__ import annotations

import numpy as np
import pytest

from forecaster.simulation import seed_of
from service.app import create_app
from service.settings import Settings
from tests.forecaster.kit import config_of, forecaster_of
from tests.service.kit import VALUES, LocalClient, history, observations

FORECAST = "/v1/streams/a/forecast"


@pytest.fixture
def stream(client):
    """A stream of forty hours."""
    assert client.put("/v1/streams/a", json=history(VALUES)).status_code == 201
    return client


def test_a_stream_draws_the_librarys_paths_and_stays_as_it_is(stream, tiny_forecaster):
    before = stream.get(FORECAST, params={"horizon": 3}).json()

    reply = stream.get(FORECAST, params={"horizon": 3, "num_samples": 5, "seed": 7})

    assert reply.status_code == 200, reply.text
    assert reply.headers["etag"] == '"1"'
    body = reply.json()
    samples = body.pop("samples")
    assert body == before
    expected = tiny_forecaster.simulate(tiny_forecaster.warm_up([np.array(VALUES)], [0]), 3, 5, [seed_of("a", 7)])[0]
    np.testing.assert_allclose(samples, expected, rtol=1e-4)
    assert stream.get(FORECAST, params={"horizon": 3, "num_samples": 5, "seed": 7}).json()["samples"] == samples
    assert stream.get(FORECAST, params={"horizon": 3, "num_samples": 5, "seed": 8}).json()["samples"] != samples
    assert stream.get(FORECAST, params={"horizon": 3}).json() == before


def test_the_same_history_without_a_stream_draws_the_same_paths(stream):
    asked = {"horizon": 8, "num_samples": 4, "seed": 1}
    body = {"series": [{"unique_id": name, **history(VALUES)} for name in ("a", "b")], **asked}

    first, second = stream.post("/v1/forecasts", json=body).json()["forecasts"]

    assert np.shape(first["samples"]) == (4, 8)
    np.testing.assert_allclose(stream.get(FORECAST, params=asked).json()["samples"], first["samples"], rtol=1e-4)
    np.testing.assert_allclose(stream.post(FORECAST, json=asked).json()["samples"], first["samples"], rtol=1e-4)
    assert first["samples"] != second["samples"]
    assert "samples" not in stream.post("/v1/forecasts", json={"series": body["series"]}).json()["forecasts"][0]


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 1001}, "num_samples"),
        ({"num_samples": 3, "seed": -1}, "seed"),
        ({"num_samples": 3, "seed": 2**63}, "seed"),
        ({"seed": 3}, "no num_samples"),
    ],
)
def test_paths_that_cannot_be_drawn_are_refused(stream, asked, word):
    body = {"series": [{"unique_id": "a", **history(VALUES)}], **asked}

    for reply in (stream.get(FORECAST, params=asked), stream.post("/v1/forecasts", json=body)):
        assert reply.status_code == 422, reply.text
        assert word in reply.json()["detail"]


def test_one_request_draws_only_so_much(stream):
    series = [{"unique_id": f"s{i}", **history(VALUES[:3])} for i in range(30)]

    reply = stream.post("/v1/forecasts", json={"series": series, "horizon": 24, "num_samples": 1000})

    assert reply.status_code == 422
    assert "at most 500,000 values" in reply.json()["detail"]


def test_a_stream_that_observed_nothing_has_no_paths(client):
    client.put("/v1/streams/a", json=history([1.0]))
    client.post("/v1/streams/a/observations", json=observations((0, None), on_conflict="revise"))

    assert client.get(FORECAST, params={"num_samples": 3}).status_code == 409
    assert client.get("/v1/streams/b/forecast", params={"num_samples": 3}).status_code == 404


@pytest.mark.parametrize("head", ["student_t", "negative_binomial", "zero_inflated"])
def test_every_head_serves(head, tmp_path):
    forecaster = forecaster_of(config_of("log", head=head))
    forecaster.save(tmp_path / "model")
    settings = Settings(model=str(tmp_path / "model"), store=f"sqlite:///{tmp_path / 'log.db'}")
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history(VALUES[:-1]))
        asked = {"horizon": 9, "quantile_levels": [0.001, 0.5, 0.995]}
        observed = client.post("/v1/streams/a/observations", json=observations((39, VALUES[39]), **asked)).json()
        drawn = client.get(FORECAST, params={"num_samples": 2}).json()["samples"]

    state = forecaster.warm_up([np.array(VALUES)], [0])
    expected = forecaster.forecast(state, 9, asked["quantile_levels"])[0]
    found = np.array([observed["quantiles"][level] for level in ("0.001", "0.5", "0.995")]).T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1 if forecaster.config.counts else 0)
    assert np.shape(drawn) == (2, 6)
