"""The same store on PostgreSQL, two processes' worth of engines on it; skipped where there is no server binary."""

from __future__ import annotations

import numpy as np
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.kit import LocalClient, history, observations, recompute
from tests.service.servers import new_database, postgres

BASE = 473352


@pytest.fixture
def url(postgres: str) -> str:
    """An empty database."""
    return new_database(postgres)


def test_two_replicas_on_one_database_agree(url, artifact, tiny_forecaster):
    """Each takes every other observation, also late and revised ones; both forecast from the whole log."""
    settings = Settings(model=str(artifact), store=url)
    log = {0: 5.0}
    with LocalClient(create_app(settings)) as one, LocalClient(create_app(settings)) as two:
        assert one.put("/v1/streams/a", json=history([5.0])).status_code == 201
        for i, (hour, y) in enumerate([(1, 6.0), (2, 7.0), (5, 8.0), (3, None), (6, 9.0), (2, 1.0), (7, 2.0)]):
            reply = (one, two)[i % 2].post(
                "/v1/streams/a/observations", json=observations((hour, y), on_conflict="revise")
            )
            assert reply.status_code == 200, reply.text
            log[hour] = y
        found = [replica.get("/v1/streams/a/forecast").json() for replica in (one, two)]
        described = [replica.get("/v1/streams/a").json() for replica in (one, two)]

    expected = tiny_forecaster.forecast(recompute(tiny_forecaster, [{BASE + h: y for h, y in log.items()}]))[0]
    assert described[0] == described[1]
    assert described[0]["version"] == 8
    for reply in found:
        np.testing.assert_allclose(np.array(list(reply["quantiles"].values())).T, expected, rtol=1e-5)


@pytest.mark.parametrize("asked", [True, False])
def test_a_server_that_comes_back_without_its_latest_takes_what_rests_on_that_along(asked, artifact, tiny_forecaster):
    """A replica that lagged takes over, say: versions are given again, and tell a lost log from the new one no more."""

    def insist(ask):
        for _ in range(100):
            if (reply := ask()).status_code != 503:  # a connection from before, once
                break
        return reply

    with postgres() as server:
        settings = Settings(model=str(artifact), store=server.url)
        with LocalClient(create_app(settings)) as two, LocalClient(create_app(settings)) as one:
            for client in (one, two):
                assert client.put("/v1/streams/a", json=history([5.0, 6.0, 7.0])).status_code in (200, 201)
                assert client.get("/v1/streams/a/forecast").status_code == 200
            server.stop()
            server.copy("data", "lagging")
            server.start()
            lost = insist(lambda: one.post("/v1/streams/a/observations", json=observations((3, 50.0)))).json()
            server.stop()
            server.copy("lagging", "data")
            server.start()
            kept = insist(lambda: two.post("/v1/streams/a/observations", json=observations((3, 4.0)))).json()
            assert (lost["accepted"], kept["accepted"], lost["version"]) == (1, 1, kept["version"])
            log = dict(zip(range(BASE, BASE + 4), [5.0, 6.0, 7.0, 4.0], strict=True))
            if asked:
                found = insist(lambda: one.get("/v1/streams/a/forecast")).json()
                assert_forecast(found, tiny_forecaster, log)
                for hour in range(4, 7):
                    insist(lambda h=hour: one.post("/v1/streams/a/observations", json=observations((h, 5.0))))
                    log[BASE + hour] = 5.0
        with LocalClient(create_app(settings)) as anew:  # from the snapshots that both left
            assert_forecast(anew.get("/v1/streams/a/forecast").json(), tiny_forecaster, log)


def assert_forecast(found, forecaster, log):
    expected = forecaster.forecast(recompute(forecaster, [log]))[0]
    np.testing.assert_allclose(np.array(list(found["quantiles"].values())).T, expected, rtol=1e-5)


def test_bulk_restart_listing_and_deletion_work_the_same(url, artifact):
    settings = Settings(model=str(artifact), store=url, snapshot_every=2)
    lines = "\n".join(f'{{"unique_id":"s{i % 3}","ds":"2024-01-01T{1 + i // 3:02d}:00","y":{i}}}' for i in range(30))
    headers = {"content-type": "application/x-ndjson"}
    with LocalClient(create_app(settings)) as client:
        for i in range(3):
            client.put(f"/v1/streams/s{i}", json=history([1.0]))
        first = client.post("/v1/observations", content=lines, headers=headers).json()
        before = client.get("/v1/streams/s1/forecast").json()
    with LocalClient(create_app(settings)) as client:
        again = client.post("/v1/observations", content=lines, headers=headers).json()
        after = client.get("/v1/streams/s1/forecast").json()
        client.delete("/v1/streams/s0")
        listed = client.get("/v1/streams").json()["streams"]

    assert (first["counts"], again["counts"]) == ({"accepted": 30}, {"duplicate": 30})
    assert [found["unique_id"] for found in listed] == ["s1", "s2"]
    assert after["version"] == before["version"]
    for level in before["quantiles"]:
        np.testing.assert_allclose(after["quantiles"][level], before["quantiles"][level], rtol=1e-5)
