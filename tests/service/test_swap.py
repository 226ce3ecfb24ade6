"""Model swaps under load, from a real MLflow registry, and what happens when registry or artifact is bad."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from sqlalchemy.exc import OperationalError

from service import switching
from service.app import create_app
from service.engine import folding
from service.engine import rederive as rederiving
from service.engine.folding import restore, rewind
from service.engine.rederive import rederive
from service.errors import ModelError, StaleStreams
from service.metrics import Metrics
from service.models.registry import MlflowRegistry, Reference, parse_reference
from service.models.served import ServedModel, load_model
from service.models.watcher import Watcher
from tests.forecaster.kit import TINY, assert_same_state, config_of, forecaster_of
from tests.service.kit import LocalClient, ds, history, observations, recompute, run, until
from tests.service.processes import HTTP, Server

BASE = 473352


@pytest.fixture(scope="module")
def mlflow_client(tmp_path_factory):
    """A registry in a SQLite file of its own."""
    mlflow = pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("registry")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}", f"sqlite:///{folder / 'mlflow.db'}")
    client.create_registered_model("demo")
    client.folder = folder
    client.uri = f"sqlite:///{folder / 'mlflow.db'}"
    return client


def register(client, artifact: Path) -> str:
    """A version whose artifact lies where pipelines put it."""
    source = client.folder / f"source-{len(list(client.folder.iterdir()))}"
    shutil.copytree(artifact, source / "artifacts" / "forecaster")
    return str(client.create_model_version("demo", str(source)).version)


@pytest.mark.filterwarnings("ignore")  # MLflow's own, from its database layer
def test_a_champion_is_swapped_and_rolled_back_under_load(
    template, mlflow_client, artifact, challenger_artifact, tiny_forecaster, challenger, tmp_path
):
    """No request fails, each reply names one version, and states are those of a run that never knew the other model."""
    first, second = register(mlflow_client, artifact), register(mlflow_client, challenger_artifact)
    database, aside = mlflow_client.folder / "mlflow.db", mlflow_client.folder / "aside"
    database.rename(aside)
    server = Server(
        template, "models:/demo@champion", f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "log",
        MLFLOW_TRACKING_URI=mlflow_client.uri, poll_seconds="0.2",
    ).start(ready=False)  # fmt: skip
    names = [f"s{i}" for i in range(12)]
    logs = {name: {0: 10.0} for name in names}
    seen: dict[str, list[str]] = {name: [] for name in names}

    async def write(name: str) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            while not done.is_set():
                hour = len(logs[name])
                reply = await client.post(
                    f"/v1/streams/{name}/observations", json=observations((hour, 10.0 + hour % 5), horizon=1)
                )
                assert reply.status_code == 200, reply.text
                logs[name][hour] = 10.0 + hour % 5
                seen[name].append(reply.json()["model"]["version"])
                await asyncio.sleep(0.01)

    async def write_all() -> None:
        await asyncio.gather(*(write(name) for name in names))

    def served() -> str:
        return HTTP.get(f"{server.url}/v1/models").json()["models"][0]["version"]

    def check(forecaster, version) -> None:
        states = recompute(forecaster, [{BASE + h: y for h, y in logs[name].items()} for name in names])
        for name, quantiles in zip(names, forecaster.forecast(states), strict=True):
            reply = HTTP.get(f"{server.url}/v1/streams/{name}/forecast").json()
            assert reply["model"] == {"name": "demo", "version": version}
            np.testing.assert_allclose(np.array(list(reply["quantiles"].values())).T, quantiles, rtol=1e-5)

    done = threading.Event()
    with server:
        # A registry that is not there is waited for, and not made.
        until(lambda: f"there is no MLflow store at {mlflow_client.uri}" in HTTP.get(f"{server.url}/readyz").text)
        assert "forecaster_registry_up 0.0" in HTTP.get(f"{server.url}/metrics").text
        assert not database.exists()
        until(lambda: server.log_text().count("there is no MLflow store") == 1)  # lines are written by a thread
        aside.rename(database)

        # Before there is a champion the process lives, says that it is not ready, and refuses politely.
        missing = "model 'demo' has no version with alias 'champion' in this registry"
        until(lambda: missing in HTTP.get(f"{server.url}/readyz").text)
        assert HTTP.get(f"{server.url}/readyz").status_code == 503
        assert "cannot be asked" not in HTTP.get(f"{server.url}/readyz").text
        assert "forecaster_registry_up 1.0" in HTTP.get(f"{server.url}/metrics").text
        early = HTTP.put(f"{server.url}/v1/streams/a", json=history([1.0]))
        assert (early.status_code, early.json()["status"]) == (503, 503)

        mlflow_client.set_registered_model_alias("demo", "champion", first)
        until(lambda: HTTP.get(f"{server.url}/readyz").status_code == 200)
        for name in names:
            HTTP.put(f"{server.url}/v1/streams/{name}", json=history([10.0])).raise_for_status()
        writing = threading.Thread(target=run, args=(write_all(),))
        writing.start()
        try:
            until(lambda: all(seen.values()))
            mlflow_client.set_registered_model_alias("demo", "champion", second)
            until(lambda: served() == second)
            until(lambda: all(versions[-1] == second for versions in seen.values()))
        finally:
            done.set()
            writing.join()
        check(challenger, second)

        mlflow_client.set_registered_model_alias("demo", "champion", first)
        until(lambda: served() == first)
        check(tiny_forecaster, first)

        broken = register(mlflow_client, artifact)
        weights = (
            Path(mlflow_client.get_model_version("demo", broken).source) / "artifacts/forecaster/weights.safetensors"
        )
        weights.write_bytes(b"garbage")
        mlflow_client.set_registered_model_alias("demo", "champion", broken)
        until(lambda: "was not taken" in str(HTTP.get(f"{server.url}/readyz").json()))
        assert HTTP.get(f"{server.url}/readyz").status_code == 200
        assert "forecaster_refused_models_total 1.0" in HTTP.get(f"{server.url}/metrics").text
        check(tiny_forecaster, first)

        database.write_bytes(b"no database any more " * 1000)
        until(lambda: "cannot be asked" in str(HTTP.get(f"{server.url}/readyz").json()))
        check(tiny_forecaster, first)

    for versions in seen.values():
        assert versions == sorted(versions), "a reply fell back to the model before"
    assert {version for versions in seen.values() for version in versions} == {first, second}


class FakeRegistry:
    """Versions by hand: a folder or an error each, or an error instead of any."""

    def __init__(self, **versions):
        self.versions = versions
        self.current: str | Exception = "1"

    def version_of(self, _reference):
        if isinstance(self.current, Exception):
            raise self.current
        return self.current

    def fetch(self, _name, version, _target):
        found = self.versions[f"v{version}"]
        if isinstance(found, Exception):
            raise found
        return found


class Taker:
    """Keeps what it is given, and nothing to go back to but what a test says."""

    def __init__(self, taken, *before):
        self.take, self.before = taken.append, before

    def recall(self, _name, version):
        return next((model for model in self.before if model.version == version), None)


def watcher(registry, taken, tmp_path, *before):
    return Watcher(
        Reference("demo", "champion", None), registry, Taker(taken, *before),
        cache=tmp_path / "cache", poll_seconds=1, metrics=Metrics(),
    )  # fmt: skip


def test_a_start_without_registry_serves_the_last_good_version(artifact, tmp_path):
    registry, taken = FakeRegistry(v1=artifact), []
    watcher(registry, taken, tmp_path).look()
    registry.current = ConnectionError("registry is down")
    later = watcher(registry, taken, tmp_path)
    later.look()

    assert [model.version for model in taken] == ["1", "1"]
    assert "registry is down" in later.trouble
    assert "from the cache" in later.trouble


@pytest.mark.parametrize("bad", [ConnectionError("the artifacts are away"), ModelError("it holds no artifact")])
def test_a_start_whose_newest_version_cannot_be_had_serves_the_last_good_one(bad, artifact, tmp_path, caplog):
    """As the process before would have gone on to; it was not ready until the registry had another version."""
    registry, taken = FakeRegistry(v1=artifact, v2=bad), []
    watcher(registry, taken, tmp_path).look()
    registry.current = "2"
    later = watcher(registry, taken, tmp_path)
    for _ in range(3):
        later.look()
        assert later.trouble.startswith("version 2 ")
        assert str(bad) in later.trouble

    assert [model.version for model in taken] == ["1", "1"]
    assert len(caplog.messages) == 1, "told once, not at every look"


def test_a_version_named_by_its_number_is_not_replaced_by_another_that_is_kept(artifact, tmp_path):
    registry, taken = FakeRegistry(v1=artifact, v2=ConnectionError("the artifacts are away")), []
    watcher(registry, taken, tmp_path).look()
    for registry.current in ("2", "1"):
        later = watcher(registry, taken, tmp_path)
        later._reference = Reference("demo", None, registry.current)
        registry.versions["v1"] = registry.versions["v2"]
        later.look()
        assert later.trouble.startswith(f"version {registry.current} cannot be fetched: the artifacts are away; ")

    assert [model.version for model in taken] == ["1", "1"], "2 waits for the registry, 1 is kept"


def test_the_last_good_version_and_the_one_before_are_kept_and_nothing_of_others_goes(
    artifact, challenger_artifact, tmp_path
):
    """`FORECASTER_MODEL_CACHE=.` in a folder that has one called like the model, say."""
    theirs = tmp_path / "cache" / "demo" / "plans" / "2024.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    registry, kept = FakeRegistry(v1=artifact, v2=challenger_artifact, v3=artifact, v4=challenger_artifact), []
    for starts in (["1", "2", "3"], ["4"]):
        watching = watcher(registry, [], tmp_path)
        for registry.current in starts:
            watching.look()
            kept.append({one.name for one in theirs.parents[1].iterdir() if one.is_dir()} - {"plans"})

    assert kept == [{"1"}, {"1", "2"}, {"2", "3"}, {"4"}]
    assert theirs.read_text() == "mine"


def test_a_registrys_password_is_told_to_nobody(artifact, tmp_path, caplog):
    """MLflow's errors quote the address that it was given, and `/readyz` and `/v1/models` quote them."""
    registry = FakeRegistry(v1=OSError("404 for url: https://me:secret@registry/api/artifacts"))
    for registry.current in (ConnectionError("API request to http://me:secret@registry/api failed"), "1"):
        watching = watcher(registry, [], tmp_path)
        watching.look()
        assert "//registry/api" in watching.trouble
        assert "secret" not in watching.trouble + caplog.text


def test_a_kept_model_that_is_damaged_is_kept_anew(artifact, tmp_path):
    registry, taken = FakeRegistry(v1=artifact), []
    watcher(registry, taken, tmp_path).look()
    (weights,) = tmp_path.rglob("weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    watcher(registry, taken, tmp_path).look()
    registry.current = ConnectionError("registry is down")
    watcher(registry, taken, tmp_path).look()

    assert [model.version for model in taken] == ["1", "1", "1"]


def test_a_kept_model_of_a_registry_that_was_set_up_anew_is_kept_anew(artifact, challenger_artifact, tmp_path):
    """Its versions begin at 1 again, with other weights."""
    taken = []
    for folder in (artifact, challenger_artifact):
        registry = FakeRegistry(v1=folder)
        watcher(registry, taken, tmp_path).look()
    registry.current = ConnectionError("registry is down")
    watcher(registry, taken, tmp_path).look()

    first, second, third = (model.key for model in taken)
    assert first != second == third


def test_a_store_that_fails_while_a_kept_model_is_taken_does_not_end_the_watching(artifact, tmp_path):
    """The database is away as well as the registry, say, and comes back first."""
    registry, taken = FakeRegistry(v1=artifact), []
    watcher(registry, taken, tmp_path).look()
    registry.current = ConnectionError("registry is down")
    later = watcher(registry, taken, tmp_path)
    take = later._taker.take

    def fail(_model):
        raise OperationalError("SELECT", {}, ConnectionError("the database is away"))

    later._taker.take = fail
    later.look()
    assert "the database is away" in later.trouble
    later._taker.take = take
    later.look()

    assert [model.version for model in taken] == ["1", "1"]


def test_a_registry_that_has_no_such_model_any_more_is_not_away(artifact, tmp_path):
    """What was taken last serves, also after a start."""
    registry, taken = FakeRegistry(v1=artifact), []
    watching = watcher(registry, taken, tmp_path)
    watching.look()
    registry.current = ModelError("there is no such model")
    later = watcher(registry, taken, tmp_path)
    for each in (watching, later):
        each.look()
        assert each.trouble.startswith("there is no such model")
        assert each._metrics.registry_up._value.get() == 1
        assert each._metrics.registry_errors._value.get() == 0

    assert [model.version for model in taken] == ["1", "1"]


def test_a_version_that_the_store_keeps_from_serving_is_not_the_registrys_fault(artifact, tmp_path):
    watching = watcher(FakeRegistry(v1=artifact), taken := [], tmp_path)

    def busy(_model):
        raise OperationalError("SELECT 1", None, Exception("database is locked"))

    watching._taker.take = busy
    watching.look()
    assert watching.trouble.startswith("version 1 cannot be served yet: ")
    assert "database is locked" in watching.trouble
    assert watching._metrics.registry_errors._value.get() == 0

    watching._taker.take = taken.append
    watching.look()
    assert (watching.trouble, [model.version for model in taken]) == (None, ["1"])


def test_a_version_is_waited_for_whose_registry_is_not_there(tmp_path):
    registry, taken = MlflowRegistry(f"sqlite:///{tmp_path / 'none.db'}"), []
    watching = Watcher(
        Reference("demo", None, "3"), registry, Taker(taken), cache=None, poll_seconds=1, metrics=Metrics()
    )
    for _ in range(2):
        watching.look()
        assert watching.trouble.startswith("version 3 cannot be fetched: there is no MLflow store at")

    assert (list(tmp_path.iterdir()), taken) == ([], [])


def test_a_registry_whose_database_server_is_not_there_is_asked_once_at_a_time(monkeypatch):
    """MLflow's own ten attempts take 100 s, in which nothing is served from the cache either."""
    monkeypatch.setattr("mlflow.store.db.utils.time", None)  # for sleeping between two of them
    with pytest.raises(OperationalError, match="refused"):
        MlflowRegistry("postgresql+psycopg://127.0.0.1:9/mlflow").version_of(Reference("demo", "champion", None))


def test_a_registry_that_comes_back_is_followed_again(artifact, challenger_artifact, tmp_path):
    registry, taken = FakeRegistry(v1=artifact, v2=challenger_artifact), []
    watching = watcher(registry, taken, tmp_path)
    watching.look()
    registry.current = TimeoutError("slow")
    watching.look()
    registry.current = "2"
    watching.look()

    assert [model.version for model in taken] == ["1", "2"]
    assert watching.trouble is None


def test_a_bad_version_is_refused_once_and_stays_visible(artifact, tmp_path):
    registry, taken = FakeRegistry(v1=artifact, v2=tmp_path), []
    watching = watcher(registry, taken, tmp_path)
    watching.look()
    registry.current = "2"
    watching.look()
    watching.look()

    assert [model.version for model in taken] == ["1"]
    assert "version 2 was not taken" in watching.trouble


def test_a_refused_version_is_tried_again_when_the_alias_comes_back_to_it(artifact, challenger_artifact, tmp_path):
    """What was wrong may have been the download."""
    registry, taken = FakeRegistry(v1=artifact, v2=tmp_path), []
    watching = watcher(registry, taken, tmp_path)
    for version in "12":
        registry.current = version
        watching.look()
    registry.versions["v2"] = challenger_artifact
    for version in "12":
        registry.current = version
        watching.look()

    assert [model.version for model in taken] == ["1", "2"]
    assert watching.trouble is None


def test_a_model_of_another_frequency_is_refused_and_the_old_one_serves(client):
    other = forecaster_of(config_of().with_overrides({"freq": "D"}))

    with pytest.raises(ModelError, match="holds streams of freq 'h'"):
        client.service.switch.take(ServedModel("other", "2", other))

    assert client.put("/v1/streams/a", json=history([1.0])).json()["model"]["name"] == "tiny"


def test_a_swap_of_folders_keeps_every_stream(client, challenger_artifact, challenger):
    values = [float(5 + i % 7) for i in range(30)]
    for name in ("a", "b"):
        client.put(f"/v1/streams/{name}", json=history(values))
    client.service.switch.take(load_model(challenger_artifact))
    reply = client.post("/v1/streams/a/observations", json=observations((30, 1.0))).json()

    expected = challenger.forecast(challenger.warm_up([np.array([*values, 1.0])], [BASE]))[0]
    assert reply["model"]["name"] == "challenger"
    assert reply["cutoff"] == ds(30)
    np.testing.assert_allclose(np.array(list(reply["quantiles"].values())).T, expected, rtol=1e-5)


@pytest.mark.parametrize("text", ["models:/", "models:/a", "models:/a@", "models:/a/b", "models:a@b"])
def test_a_reference_that_is_none_is_refused(text):
    with pytest.raises(ModelError, match="expected models:/NAME@ALIAS"):
        parse_reference(text)


def states(client, forecaster, names):
    """States in memory, or restored."""
    residents = client.service.engine._residents
    with torch.inference_mode():
        residents.touch(names, check_versions=False)
        return residents.slab.gather([residents.get(name).row for name in names])


def snapshots_of(client) -> dict[str, int]:
    """How many there are under each model."""
    with client.service.store._engine.connect() as connection:
        query = "SELECT model_key, count(*) FROM snapshots GROUP BY model_key"
        return {key: count for key, count in connection.exec_driver_sql(query)}


def test_the_way_back_folds_only_what_came_since_and_ends_where_a_run_without_a_swap_does(
    settings, artifact, challenger_artifact, tiny_forecaster, tmp_path
):
    """R17, with late and revised values in between; the control never swapped."""
    names, values = [f"s{i}" for i in range(5)], [float(5 + i % 7) for i in range(300)]
    control = settings.model_copy(update={"store": f"sqlite:///{tmp_path / 'control.db'}"})
    with LocalClient(create_app(settings)) as client, LocalClient(create_app(control)) as undisturbed:

        def send(name, *pairs, **more):
            for one in (client, undisturbed):
                reply = one.post(f"/v1/streams/{name}/observations", json=observations(*pairs, **more))
                assert reply.status_code == 200, reply.text

        for name in names:
            for one in (client, undisturbed):
                one.put(f"/v1/streams/{name}", json=history(values))
        first, second = load_model(artifact), load_model(challenger_artifact)
        client.service.switch.take(second)
        send("s0", (300, 1.0), (302, 2.0))
        send("s1", (299, 8.0), on_conflict="revise")
        send("s0", (301, 3.0))
        replayed = client.service.metrics.replayed_steps._value.get()
        assert client.get("/v1/models").json()["before"]["version"] == first.version
        assert client.service.switch.recall(first.name, first.version).key == first.key
        client.service.switch.take(client.service.switch.recall(first.name, first.version))
        again = client.service.metrics.replayed_steps._value.get() - replayed
        send("s2", (300, 4.0))

        assert client.service.engine.model.key == first.key
        assert replayed == 5 * 300
        # Three steps of one stream; and the whole of the other, whose only snapshot lay behind the revised value.
        assert again <= 3 + 300
        assert_same_state(states(client, first, names), states(undisturbed, first, names))
        assert "forecaster_model_rollbacks_total 1.0" in client.get("/metrics").text
        assert "forecaster_replay_progress 1.0" in client.get("/metrics").text


def test_states_of_the_model_before_are_forgotten_after_the_stated_time(settings, challenger_artifact):
    settings = settings.model_copy(update={"rollback_hours": 0.0})
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history([float(5 + i % 7) for i in range(30)]))
        client.service.switch.take(load_model(challenger_artifact))
        until(lambda: client.service.switch.kept is None)

        until(lambda: snapshots_of(client) == {client.service.engine.model.key: 1})
        assert client.get("/v1/models").json()["before"] is None


def between(store, monkeypatch, act):
    """`act` while several streams are folded at once: after their logs have been read, before states are stored."""
    recover = store.recover_some

    def slowly(unique_ids, key, most):
        found, left = recover(unique_ids, key, most)
        if len(found) > 1:
            act()
        return found, left

    monkeypatch.setattr(store, "recover_some", slowly)


def test_streams_that_never_rest_have_states_nonetheless(client, challenger_artifact, monkeypatch):
    """Each gets an observation while its log is folded: what was folded is still the beginning of its log."""
    names, hours = [f"s{i}" for i in range(3)], iter(range(5, 99))
    for name in names:
        client.put(f"/v1/streams/{name}", json=history([5.0, 6.0, 7.0, 8.0, 9.0]))

    def go_on():
        hour = next(hours)
        for name in names:
            assert client.post(f"/v1/streams/{name}/observations", json=observations((hour, 1.0))).is_success

    coming, store = load_model(challenger_artifact), client.service.store
    with monkeypatch.context() as patch:
        between(store, patch, go_on)
        assert rederive(coming, store)

    assert snapshots_of(client)[coming.key] == 3
    assert next(hours) == 6
    found = store.recover(names, coming.key)
    assert [len(found[name].tail) for name in names] == [1, 1, 1]
    restored = restore(coming, store, list(found.values()))
    whole = [5.0, 6.0, 7.0, 8.0, 9.0, 1.0]
    expected = coming.forecaster.warm_up([whole] * 3, first_steps=[found[name].record.first_step for name in names])
    assert_same_state(restored.states, expected)


def test_streams_with_late_values_are_derived_a_few_at_a_time_so_that_their_states_do_not_come_too_late(
    client, challenger_artifact, monkeypatch
):
    """A value of each is revised while several are folded at once, which takes long."""
    names, values = [f"s{i}" for i in range(3)], iter(range(50, 99))
    for name in names:
        client.put(f"/v1/streams/{name}", json=history([5.0, 6.0, 7.0, 8.0, 9.0]))

    def revise():
        value = float(next(values))
        for name in names:
            body = observations((2, value), on_conflict="revise")
            assert client.post(f"/v1/streams/{name}/observations", json=body).is_success

    coming = load_model(challenger_artifact)
    monkeypatch.setattr(switching, "_FEW", 4)
    with monkeypatch.context() as patch:
        between(client.service.store, patch, revise)
        client.service.switch.take(coming)

    assert snapshots_of(client)[coming.key] == 3
    assert next(values) == 51


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_log_too_long_to_be_held_is_folded_a_stretch_at_a_time(client, challenger_artifact, monkeypatch, trimmed):
    """Restored, derived under another model, and rewound: the state is that of the whole."""
    values = [float(5 + i % 7) for i in range(60)]
    client.put("/v1/streams/a", json=history(values))
    store, coming = client.service.store, load_model(challenger_artifact)
    read, log = [], store.log
    monkeypatch.setattr(folding, "MOST_STEPS", 25)
    monkeypatch.setattr(folding, "AT_ONCE", 25)
    monkeypatch.setattr(rederiving, "MOST_STEPS", 25)

    def spied(*args):
        if trimmed and not read:
            with store._engine.begin() as connection:
                connection.exec_driver_sql("UPDATE streams SET retained_step = first_step + 3")
        read.append(log(*args))
        return read[-1]

    monkeypatch.setattr(store, "log", spied)
    assert rederive(coming, store)

    assert [len(rows) for rows in read] == ([25] if trimmed else [25, 25, 10])
    found = store.recover(["a"], coming.key)["a"]
    assert (found.snapshot is None) == trimmed, "what was folded is no longer what is retained"
    if not trimmed:
        (state,) = [restore(coming, store, [found]).states]
        first = found.record.first_step
        assert_same_state(state, coming.forecaster.warm_up([values], first_steps=[first]))
        monkeypatch.setattr(folding, "LONGEST", 25)
        assert rewind(coming, store, found.record, {first + 3: 8.5}, found.record.last_step, longest=25) is None
        rewound = rewind(coming, store, found.record, {first + 3: 8.5}, found.record.last_step)
        changed = [*values[:3], 8.5, *values[4:]]
        assert [len(rows) for rows in read[3:]] == [25, 25, 10]
        assert len(rewound.places) == 60
        assert_same_state(rewound.state, coming.forecaster.warm_up([changed], first_steps=[first]))


@pytest.mark.parametrize("meanwhile", ["revised", "deleted"])
def test_a_log_too_long_to_be_held_that_does_more_than_grow_while_it_is_folded_gives_no_state(
    client, challenger_artifact, monkeypatch, meanwhile
):
    """One part of it would be from before, another from after. What is left of it keeps no other log waiting."""
    client.put("/v1/streams/a", json=history([float(5 + i % 7) for i in range(60)]))
    store, coming, read = client.service.store, load_model(challenger_artifact), []
    log = store.log
    monkeypatch.setattr(folding, "MOST_STEPS", 25)
    monkeypatch.setattr(folding, "AT_ONCE", 25)

    def slowly(*args):
        read.append(log(*args))
        if len(read) == 1:
            if meanwhile == "deleted":
                client.delete("/v1/streams/a")
            else:
                client.post("/v1/streams/a/observations", json=observations((2, 99.0), on_conflict="revise"))
        return read[-1]

    found, _ = store.recover_some(["a"], coming.key, 25)
    monkeypatch.setattr(store, "log", slowly)
    with pytest.raises(StaleStreams):
        restore(coming, store, list(found.values()))
    assert len(read) == 1


def test_states_of_a_coming_model_are_not_forgotten_with_those_of_a_former_one(
    settings, challenger_artifact, tmp_path, monkeypatch
):
    """The time of one swap ends while another is prepared, as with a new version every day; little goes at a time."""
    forecaster_of(TINY, 3).save(tmp_path / "third")
    monkeypatch.setattr(switching, "_STREAMS", 2)
    with LocalClient(create_app(settings)) as client:
        for i in range(5):
            client.put(f"/v1/streams/s{i}", json=history([5.0, 6.0]))
        switch, third = client.service.switch, load_model(tmp_path / "third")
        switch.take(load_model(challenger_artifact))
        begun, derive = [], switching.rederive

        def meanwhile(*asked):
            finished = derive(*asked)
            switch.kept = replace(switch.kept, until=0.0) if switch.kept else None
            switch._forget()
            begun.append(snapshots_of(client))
            return finished

        monkeypatch.setattr(switching, "rederive", meanwhile)
        switch.take(third)

        assert begun[0] == {switch.kept.model.key: 5, third.key: 5}


def test_states_of_a_model_that_leaves_are_not_forgotten_with_those_of_a_former_one(
    settings, challenger_artifact, tmp_path, monkeypatch
):
    """The time of one swap ends just when the next one has happened, and before that one's model is kept."""
    forecaster_of(TINY, 3).save(tmp_path / "third")
    with LocalClient(create_app(settings)) as client:
        for i in range(5):
            client.put(f"/v1/streams/s{i}", json=history([5.0, 6.0]))
        switch, second = client.service.switch, load_model(challenger_artifact)
        switch.take(second)
        keep = switch._keep

        def meanwhile(before):
            switch.kept = replace(switch.kept, until=0.0)
            switch._forget()
            keep(before)

        monkeypatch.setattr(switch, "_keep", meanwhile)
        switch.take(load_model(tmp_path / "third"))

        assert switch.kept.model.key == second.key
        assert snapshots_of(client)[second.key] == 5


def test_states_of_a_model_from_before_this_process_began_are_forgotten_after_the_stated_time(
    settings, challenger_artifact
):
    """Nobody is there who swapped it out: the setting names another folder now."""
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history([5.0, 6.0]))
    other = settings.model_copy(update={"model": str(challenger_artifact)})
    with LocalClient(create_app(other)) as client:
        client.get("/v1/streams/a/forecast")
    with LocalClient(create_app(other)) as client:
        assert len(snapshots_of(client)) == 2, "the time has not come yet"
    with LocalClient(create_app(other.model_copy(update={"rollback_hours": 0.0}))) as client:
        until(lambda: list(snapshots_of(client)) == [client.service.engine.model.key])


def test_snapshots_that_cannot_be_forgotten_do_not_undo_a_swap(settings, artifact, challenger_artifact, tmp_path):
    """As when the disk is full at that moment: the new model serves, and the way back is there."""
    forecaster_of(TINY, 3).save(tmp_path / "third")
    with LocalClient(create_app(settings.model_copy(update={"snapshot_every": 1}))) as client:
        client.put("/v1/streams/a", json=history([5.0, 6.0]))
        client.get("/v1/streams/a")  # answered when its snapshot is stored
        switch = client.service.switch
        switch.take(load_model(challenger_artifact))
        with closing(sqlite3.connect(settings.store.removeprefix("sqlite:///"))) as disk:
            disk.execute("CREATE TRIGGER full BEFORE DELETE ON snapshots BEGIN SELECT RAISE(ABORT, 'full'); END")
        switch.take(load_model(tmp_path / "third"))

        assert client.get("/v1/streams/a/forecast").json()["model"]["name"] == "third"
        assert switch.kept.model.name == "challenger"
        with closing(sqlite3.connect(settings.store.removeprefix("sqlite:///"))) as disk:
            disk.execute("DROP TRIGGER full")
            count = "SELECT count(DISTINCT model_key) FROM snapshots"
            assert disk.execute(count).fetchone() == (3,)
            switch.take(load_model(artifact))
            assert disk.execute(count).fetchone() == (2,)


def test_a_version_that_is_at_hand_is_not_fetched_again(artifact, challenger_artifact, tmp_path):
    registry, taken = FakeRegistry(v2=challenger_artifact), []
    before = load_model(artifact, "demo", "1")
    registry.current = "2"
    watching = watcher(registry, taken, tmp_path, before)
    watching.look()
    registry.current = "1"  # which this registry no longer has
    watching.look()

    assert taken[-1] is before
    assert watching.trouble is None


def test_a_start_without_registry_serves_what_was_rolled_back_to(artifact, challenger_artifact, tmp_path):
    registry, taken = FakeRegistry(v1=artifact, v2=challenger_artifact), []
    watching = watcher(registry, taken, tmp_path)
    for version in ("1", "2", "1"):
        registry.current = version
        watching.look()
        watching._taker.before = taken[:1]
    registry.current = ConnectionError("registry is down")
    watcher(registry, taken, tmp_path).look()

    assert [model.version for model in taken] == ["1", "2", "1", "1"]


def test_a_replay_tells_how_far_it_is(client, challenger_artifact, monkeypatch):
    for i in range(3):
        client.put(f"/v1/streams/s{i}", json=history([1.0, 2.0, 3.0]))
    seen = []
    save = client.service.store.save_snapshots

    def look(*args, **kwargs):
        seen.append(client.get("/v1/models").json()["coming"])
        return save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(client.service.store, "save_snapshots", look)
        client.service.switch.take(load_model(challenger_artifact))

    assert (seen[0]["name"], seen[0]["streams"], seen[0]["derived"]) == ("challenger", 3, 0)
    assert client.get("/v1/models").json()["coming"] is None
