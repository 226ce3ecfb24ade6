"""A challenger in shadow: the figures it would have had, and a champion that does not notice its end (R19)."""

from __future__ import annotations

import os
import signal

import httpx
import numpy as np
import orjson
import pytest
import torch
from sqlalchemy.exc import OperationalError

from forecaster.quality import figures
from service.app import create_app
from service.challenger import Challenger
from service.models.served import ServedModel, load_model
from service.shadow import Follower
from service.store import Store
from tests.service.kit import LocalClient, history, observations, until

BASE = 473352
NAMES = ("a", "b")


def values(name: str, length: int = 70) -> list[float]:
    noise = np.random.default_rng(NAMES.index(name)).normal(size=length)
    return (20 + 8 * np.sin(np.arange(length) * np.pi / 2) + 2 * noise).round(2).tolist()


def sums(forecaster, logs: dict[str, list[float]]) -> np.ndarray:
    """Sums of scores of whole logs, [Q, N]."""
    state = forecaster.warm_up([np.array(y) for y in logs.values()], [BASE] * len(logs))
    return forecaster.quality(state).total.sum(2).T


def sums_from(forecaster, first: int, y: list[float]) -> np.ndarray:
    """Sums of scores of a log that begins at a step."""
    return forecaster.quality(forecaster.warm_up([np.array(y)], [first])).total.sum(2)[0]


def said(follower: Follower) -> dict[str, np.ndarray]:
    """Sums by stream."""
    with torch.inference_mode():
        follower.look()
        found = orjson.loads(follower.line())
    return dict(zip(found["unique_ids"], np.array(found["total"]).reshape(6, -1).T, strict=True))


@pytest.mark.parametrize("steps", [1, 32, 1_000_000])
def test_a_follower_knows_what_a_fold_of_the_log_knows(client, challenger, steps, monkeypatch):
    """Appended, late, revised, replaced and deleted, one after the other or at once; and no more than it was told."""
    store, read = client.service.store, []
    log = store.log
    monkeypatch.setattr(store, "log", lambda *asked: read.append(log(*asked)) or read[-1])
    with torch.inference_mode():
        follower = Follower(ServedModel("other", "2", challenger), store, limit=2, steps=steps)
    assert said(follower) == {}
    for name in NAMES:
        client.put(f"/v1/streams/{name}", json=history(values(name)[:50]))
    client.put("/v1/streams/c", json=history([1.0]))

    def check(**logs):
        found = said(follower)
        assert sorted(found) == sorted(logs)
        for name, y in logs.items():
            np.testing.assert_allclose(found[name], sums(challenger, {name: y})[:, 0], rtol=1e-3, err_msg=name)

    check(a=values("a")[:50], b=values("b")[:50])
    pairs = [(hour, values("a")[hour]) for hour in range(50, 70)]
    client.post("/v1/streams/a/observations", json=observations(*pairs[:9], pairs[11]))
    gap = [*values("a")[:59], np.nan, np.nan, values("a")[61]]
    check(a=gap, b=values("b")[:50])
    client.post("/v1/streams/a/observations", json=observations(*pairs[9:11], *pairs[12:]))
    check(a=values("a"), b=values("b")[:50])
    client.post("/v1/streams/a/observations", json=observations((3, 99.0), on_conflict="revise"))
    check(a=[*values("a")[:3], 99.0, *values("a")[4:]], b=values("b")[:50])
    client.put("/v1/streams/b", json=history(values("b")[10:70]))
    client.delete("/v1/streams/a")
    check(b=values("b")[10:70], c=[1.0])
    client.post("/v1/streams/b/observations", json=observations((60, 6.0), (61, 7.0), (62, 8.0)))
    client.post("/v1/streams/b/observations", json=observations((2, 99.0), on_conflict="revise"))
    check(b=[*values("b")[10:12], 99.0, *values("b")[13:70], 6.0, 7.0, 8.0], c=[1.0])  # fewer changes than values
    assert max(map(len, read)) <= steps


@pytest.mark.parametrize("steps", [16, 1_000_000])
def test_a_log_that_is_trimmed_while_it_is_read_has_no_values_that_are_missing_for_it(
    settings, any_store_url, challenger, steps, monkeypatch
):
    with LocalClient(create_app(settings.model_copy(update={"store": any_store_url, "snapshot_every": 8}))) as client:
        store, key = client.service.store, client.service.engine.model.key
        y = values("a")
        client.put("/v1/streams/a", json=history(y[:40]))
        follower = Follower(ServedModel("other", "2", challenger), store, limit=2, steps=steps)
        until(lambda: store.recover(["a"], key)["a"].snapshot_step == BASE + 39)
        log, (stream,) = store.log, store.page("", 1)

        def trimmed(*asked):
            with monkeypatch.context() as patch:
                patch.setattr(store, "log", log)
                if not begun:
                    begun.append(log(*asked))
                    client.post("/v1/streams/a/observations", json=observations((40, y[40]))).raise_for_status()
                    assert store.raise_floors(key, 1, [stream.id])
                    assert store.sweep([stream.id], 99)
            return log(*asked)

        begun: list = []
        monkeypatch.setattr(store, "log", trimmed)
        said(follower)
        for hour in range(41, 70):
            client.post("/v1/streams/a/observations", json=observations((hour, y[hour]))).raise_for_status()
        found = said(follower)["a"]

        (first,) = [record.log_step for record in store.page("", 1)]
        assert first == BASE + 40
        np.testing.assert_allclose(found, sums_from(challenger, first, y[40:]), rtol=1e-3)


def test_its_figures_stand_beside_the_champions_until_it_dies_and_is_started_again_and_the_champion_goes_on(
    settings, challenger_artifact, challenger, tiny_forecaster, monkeypatch
):
    settings = settings.model_copy(update={"challenger": str(challenger_artifact), "poll_seconds": 0.2})
    with LocalClient(create_app(settings)) as client:
        for name in NAMES:
            client.put(f"/v1/streams/{name}", json=history(values(name)))

        def described():
            return client.get("/v1/models").json()["challenger"]

        until(lambda: described()["streams"] == len(NAMES), 120)
        found = described()
        assert (found["name"], found["trouble"]) == ("challenger", None)
        logs = {name: values(name) for name in NAMES}
        for who, forecaster in (("challenger", challenger), ("champion", tiny_forecaster)):
            expected = figures(sums(forecaster, logs).sum(1))
            for figure in ("count", "mae", "relative_mae", "wql", "coverage_80"):
                np.testing.assert_allclose(found[who]["total"][figure], getattr(expected, figure), rtol=1e-3)
        assert 'forecaster_shadow{figure="relative_mae",model="challenger"}' in client.get("/metrics").text

        died = client.service.challenger.process
        assert settings.store not in " ".join(died.args)  # it may hold a password
        client.service.challenger._pause = 0.1
        begin, failures = client.service.challenger._begin, [OSError("Cannot allocate memory")]

        def begun_at_last(command):
            if failures:
                raise failures.pop()
            begin(command)

        monkeypatch.setattr(client.service.challenger, "_begin", begun_at_last)
        with client.service.challenger._starting:  # not before all this has been seen
            os.kill(died.pid, signal.SIGKILL)
            until(lambda: described()["trouble"] == "the challenger ended with status -9")
            reply = client.post("/v1/streams/a/observations", json=observations((70, 5.0)))
            assert (reply.status_code, reply.json()["model"]["name"]) == (200, "tiny")
            assert "forecaster_challenger_failures_total 1.0" in client.get("/metrics").text
            assert client.get("/readyz").status_code == httpx.codes.OK

        until(lambda: described()["trouble"] is None, 120)
        assert (client.service.challenger.process is not died, failures) == (True, [])
        until(lambda: described()["champion"]["total"]["count"] > found["champion"]["total"]["count"], 120)


def test_one_that_comes_while_the_store_is_away_harms_nobody(settings, challenger_artifact, monkeypatch):
    add, asked = Store.add_covariates, []

    def away_for_the_second(self, names):
        asked.append(names)
        if len(asked) > 1:
            raise OperationalError("SELECT", None, Exception("the server closed the connection\nunexpectedly"))
        return add(self, names)

    monkeypatch.setattr(Store, "add_covariates", away_for_the_second)
    with LocalClient(create_app(settings.model_copy(update={"challenger": str(challenger_artifact)}))) as client:
        found = client.get("/v1/models").json()["challenger"]

        assert client.put("/v1/streams/a", json=history([1.0])).status_code == 201
    assert "the server closed the connection" in found["trouble"]
    assert "\n" not in found["trouble"]


def test_one_that_hangs_is_ended(client, store_url, challenger_artifact):
    service = client.service
    shadow = Challenger(
        store_url, lambda: service.engine, service.metrics, admit=service._note_covariates, streams=9, seconds=0.1
    )
    shadow._silence = 120
    shadow.take(load_model(challenger_artifact))
    try:
        until(lambda: shadow._pair is not None, 120)
        process = shadow.process
        shadow._silence = 3.0
        for _ in range(2):  # until it is that silence which is waited for
            heard = shadow._pair
            until(lambda heard=heard: shadow._pair is not heard or shadow.trouble is not None, 120)
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: shadow.trouble is not None, 120)

        assert "was silent" in shadow.trouble
        assert process.wait(60) == -signal.SIGKILL
        assert client.put("/v1/streams/a", json=history([1.0])).status_code == 201
    finally:
        shadow.close()


def test_a_challenger_that_cannot_be_used_is_refused_and_the_champion_serves(settings, tmp_path):
    settings = settings.model_copy(update={"challenger": str(tmp_path)})
    with LocalClient(create_app(settings)) as client:
        assert client.put("/v1/streams/a", json=history([1.0])).status_code == 201
        assert "manifest" in client.get("/v1/models").json()["challenger"]["trouble"]


def test_one_that_the_registry_does_not_have_is_told(settings, tmp_path):
    settings = settings.model_copy(
        update={"challenger": "models:/none@challenger", "tracking_uri": f"sqlite:///{tmp_path / 'none.db'}"}
    )
    with LocalClient(create_app(settings)) as client:
        until(lambda: "there is no MLflow store" in client.get("/v1/models").json()["challenger"]["trouble"])
