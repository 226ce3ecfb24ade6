"""Live quality over HTTP: the same figures whatever happened to the service in between, and the worst streams first."""

from __future__ import annotations

import numpy as np
import pytest

from forecaster import Forecaster
from forecaster.quality import figures
from service.app import create_app
from service.models.served import load_model
from tests.forecaster.kit import config_of, forecaster_of
from tests.service.kit import LocalClient, ds, history, observations

BASE = 473352
NAMES = ("a", "b", "c/d")


def values(name: str) -> list[float]:
    """A season and noise of a size of its own."""
    place = NAMES.index(name)
    noise = np.random.default_rng(place).normal(size=90)
    return (20 + 8 * np.sin(np.arange(90) * np.pi / 2) + (1 + 2 * place) * noise).round(2).tolist()


def feed(client, start: int, end: int) -> None:
    """Observations one by one, of the last stream in one request."""
    for name in NAMES:
        pairs = [(hour, values(name)[hour]) for hour in range(start, end)]
        for part in [pairs] if name == "c/d" else [[pair] for pair in pairs]:
            assert client.post(f"/v1/streams/{name}/observations", json=observations(*part)).status_code == 200


def quality(client, name: str):
    reply = client.get(f"/v1/streams/{name}/quality")
    assert reply.status_code == 200, reply.text
    return reply.json()


def same(found, expected) -> None:
    """Equal figures, nested as they are."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            same(found[key], value)
        elif isinstance(value, str):
            assert found[key] == value
        else:
            np.testing.assert_allclose(np.array(found[key], float), np.array(value, float), rtol=1e-3, err_msg=key)


@pytest.fixture
def expected(tiny_forecaster):
    """Figures of one fold of the whole log, by name."""
    out = {}
    for name in NAMES:
        found = tiny_forecaster.quality(tiny_forecaster.warm_up([np.array(values(name))], [BASE]))
        out[name] = figures(found.total[0].sum(1)), figures(found.total[0])
    return out


def check(client, expected) -> None:
    for name, (pooled, by_step) in expected.items():
        found = quality(client, name)
        assert found["cutoff"] == ds(89)
        assert found["by_step"]["step"] == [1, 2, 3, 4, 5, 6]
        for key in ("count", "mae", "relative_mae", "wql", "coverage_80"):
            np.testing.assert_allclose(found["total"][key], getattr(pooled, key), rtol=1e-3)
            np.testing.assert_allclose(found["by_step"]["total"][key], getattr(by_step, key), rtol=1e-3)


def test_figures_are_those_of_an_undisturbed_fold_after_restarts_evictions_and_rewinds(settings, expected):
    settings = settings.model_copy(update={"max_resident": 2, "snapshot_every": 7})
    with LocalClient(create_app(settings)) as client:
        for name in NAMES:
            client.put(f"/v1/streams/{name}", json=history(values(name)[:30]))
        feed(client, 30, 50)
    with LocalClient(create_app(settings)) as client:
        wrong = observations((50, 99.0))
        client.post("/v1/streams/a/observations", json=wrong)
        client.post("/v1/streams/a/observations", json=observations((50, values("a")[50]), on_conflict="revise"))
        feed(client, 50, 90)
        check(client, expected)


def test_a_swap_and_the_way_back_change_no_figure(client, artifact, challenger_artifact, expected):
    for name in NAMES:
        client.put(f"/v1/streams/{name}", json=history(values(name)[:60]))
    feed(client, 60, 70)
    before = quality(client, "a")
    client.service.switch.take(load_model(challenger_artifact))
    other = quality(client, "a")
    client.service.switch.take(load_model(artifact))
    same(quality(client, "a"), before)
    feed(client, 70, 90)

    check(client, expected)
    assert other["total"]["count"] == before["total"]["count"]
    assert other["total"]["mae"] != pytest.approx(before["total"]["mae"], rel=1e-3)


def test_nothing_is_scored_where_the_model_has_learnt_and_it_says_so(settings, tmp_path):
    forecaster_of(config_of()).save(tmp_path / "untaught")
    forecaster = Forecaster.load(tmp_path / "untaught")  # one of its own: the other one is everybody's
    forecaster._network.calibration.learnt.fill_(BASE + 69)
    forecaster.save(tmp_path / "taught")
    with LocalClient(create_app(settings.model_copy(update={"model": str(tmp_path / "taught")}))) as client:
        client.put("/v1/streams/a", json=history(values("a")[:70])).raise_for_status()
        found = quality(client, "a")
        assert (found["scored_from"], found["total"]["count"]) == (ds(69), 0)
        assert client.get("/v1/quality").json()["scored_from"] == ds(69)
        feed_one = [(hour, values("a")[hour]) for hour in range(70, 90)]
        client.post("/v1/streams/a/observations", json=observations(*feed_one)).raise_for_status()
        assert quality(client, "a")["total"]["count"] > 0


def test_the_worst_streams_come_first_a_page_at_a_time(client):
    assert client.get("/v1/quality").json()["worst"] == []
    for name in NAMES:
        client.put(f"/v1/streams/{name}", json=history(values(name)[:60]))
    feed(client, 60, 90)
    recent = {name: quality(client, name)["recent"] for name in NAMES}
    for order, badness in (
        ("relative_mae", lambda f: f["relative_mae"]),
        ("wql", lambda f: f["wql"]),
        ("coverage_80", lambda f: abs(f["coverage_80"] - 0.8)),
    ):
        ranked, query = [], f"order={order}&limit=1"
        while True:
            page = client.get(f"/v1/quality?{query}").json()
            ranked += page["worst"]
            if page["next_cursor"] is None:
                break
            query = f"order={order}&limit=1&cursor={page['next_cursor']}"
        assert [row["unique_id"] for row in ranked] == sorted(NAMES, key=lambda n: (-badness(recent[n]), n))
        for row in ranked:
            same({key: row[key] for key in recent["a"]}, recent[row["unique_id"]])
    assert page["streams"] == 3
    count = sum(figures["count"] for figures in (quality(client, name)["total"] for name in NAMES))
    assert page["total"]["count"] == count


def test_the_metrics_add_up_what_came_after_the_history(client):
    client.put("/v1/streams/a", json=history(values("a")[:60]))
    before = quality(client, "a")["total"]
    feed_one = [(hour, values("a")[hour]) for hour in range(60, 90)]
    for pair in feed_one[:20]:
        client.post("/v1/streams/a/observations", json=observations(pair))
    client.post("/v1/streams/a/observations", json=observations(*feed_one[20:]))
    after = quality(client, "a")["total"]

    lines = client.get("/metrics").text.splitlines()
    sums = {
        line.split('"')[1]: float(line.split()[-1]) for line in lines if line.startswith("forecaster_quality_total")
    }
    assert sums["count"] == after["count"] - before["count"] > 0
    error = after["mae"] * after["count"] - before["mae"] * before["count"]
    assert sums["error"] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("query", ["order=mae", "limit=0", "limit=x", "cursor=x", "cursor=WzEsMl0", "what=1"])
def test_a_question_that_cannot_be_answered_is_refused(client, query):
    assert client.get(f"/v1/quality?{query}").status_code == 422


def test_an_unknown_stream_has_no_quality(client):
    assert client.get("/v1/streams/none/quality").status_code == 404
