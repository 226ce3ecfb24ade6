"""Several models in one process. The law: a named model behaves like a service of its own."""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import ExitStack
from itertools import count, product

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from forecaster import Forecaster
from service.__main__ import main
from service.app import create_app
from service.errors import ServiceError
from service.hosting import Host
from service.keys import main as make_key
from service.models.served import load_model
from service.naming import prefix_of, store_of
from service.runtime import Service
from service.settings import Settings
from service.store import Store
from tests.forecaster.kit import config_of, forecaster_of
from tests.service.kit import LocalClient, assert_problem, ds, free_port, history, observations, recompute, until
from tests.service.processes import HTTP, Server
from tests.service.test_keys import bearer, line

BASE = 473352
NAMES = (None, "other", "steps")


@pytest.fixture(scope="module")
def counting() -> Forecaster:
    """The tiny configuration on bare steps."""
    return forecaster_of(config_of().with_overrides({"freq": "1"}), 2)


@pytest.fixture(scope="module")
def folders(artifact, challenger_artifact, counting, tmp_path_factory):
    """Of the model at the root, of one with the same calendar, and of one that counts steps."""
    steps = tmp_path_factory.mktemp("models") / "steps"
    counting.save(steps)
    return {None: str(artifact), "other": str(challenger_artifact), "steps": str(steps)}


def several(folders, store, **more) -> Settings:
    named = {name: folder for name, folder in folders.items() if name is not None}
    return Settings(model=folders[None], models=named, store=store, max_gap_steps=10, poll_seconds=0.1, **more)


@pytest.fixture
def client(folders, store_url):
    """All three in one application."""
    with LocalClient(create_app(several(folders, store_url))) as running:
        yield running


# -- the law -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(folders, tmp_path_factory):
    """All three in one application, and each in one of its own."""
    folder = tmp_path_factory.mktemp("law")
    with ExitStack() as stack:
        together = stack.enter_context(LocalClient(create_app(several(folders, f"sqlite:///{folder / 'log.db'}"))))
        alone = {}
        for name, model in folders.items():
            chosen = Settings(model=model, store=f"sqlite:///{folder / f'alone-{name}.db'}", max_gap_steps=10)
            alone[name] = stack.enter_context(LocalClient(create_app(chosen)))
        yield together, alone


STREAMS = st.sampled_from(["a", "b/c"])
HOURS = st.integers(0, 30)
VALUES = st.one_of(st.none(), st.floats(1, 1000, width=32))
REQUESTS = st.one_of(
    st.tuples(st.just("put"), STREAMS, st.lists(VALUES, min_size=1, max_size=40)),
    st.tuples(st.just("observe"), STREAMS, HOURS, VALUES, st.booleans(), st.sampled_from([None, "k1", "k2"])),
    st.tuples(st.just("bulk"), st.lists(st.tuples(STREAMS, HOURS, VALUES), min_size=1, max_size=8)),
    st.tuples(
        st.just("get"),
        STREAMS,
        st.sampled_from(["", "/forecast", "/forecast?horizon=3&num_samples=4&seed=1", "/quality", "/nothing"]),
    ),
    st.tuples(st.just("delete"), STREAMS),
    st.tuples(
        st.just("ask"), st.sampled_from(["/v1/streams?limit=1", "/v1/quality", "/ping", "/model_params", "/v1/none"])
    ),
    st.tuples(st.just("forecast"), st.lists(VALUES, min_size=1, max_size=20)),
)


def ask(client: LocalClient, prefix: str, of_hour, request) -> httpx.Response:
    kind, *rest = request
    if kind == "put":
        name, values = rest
        body = {"ds": [of_hour(hour) for hour in range(len(values))], "y": values}
        return client.put(f"{prefix}/v1/streams/{name}", json=body)
    if kind == "observe":
        name, hour, y, revise, key = rest
        body = {"observations": [{"ds": of_hour(hour), "y": y}], "on_conflict": "revise" if revise else "refuse"}
        headers = {} if key is None else {"idempotency-key": key}
        return client.post(f"{prefix}/v1/streams/{name}/observations", json=body, headers=headers)
    if kind == "bulk":
        rows = [json.dumps({"unique_id": name, "ds": of_hour(hour), "y": y}) for name, hour, y in rest[0]]
        headers = {"content-type": "application/x-ndjson"}
        return client.post(f"{prefix}/v1/observations", content="\n".join(rows), headers=headers)
    if kind == "get":
        return client.get(f"{prefix}/v1/streams/{rest[0]}{rest[1]}")
    if kind == "delete":
        return client.delete(f"{prefix}/v1/streams/{rest[0]}")
    if kind == "ask":
        return client.get(prefix + rest[0])
    series = {"unique_id": "a", "ds": [of_hour(hour) for hour in range(len(rest[0]))], "y": rest[0]}
    return client.post(f"{prefix}/v1/forecasts", json={"series": [series]})


def said(reply: httpx.Response, prefix: str) -> tuple:
    """All of a reply but what differs by nature."""
    body = reply.content
    if reply.headers.get("content-type") == "application/problem+json":
        found = reply.json()
        del found["request_id"]
        body = json.dumps(found).replace(prefix + "/", "/")
    link = reply.headers.get("link", "")
    assert not link or link.startswith(f"<{prefix}/v1/streams?")
    return reply.status_code, reply.headers.get("etag"), link.replace(prefix + "/", "/"), body


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(NAMES), REQUESTS), max_size=25))
def test_a_named_model_answers_bit_for_bit_like_a_service_of_its_own(both, requests):
    """Whatever the others are asked in between, about streams of the same names."""
    together, alone = both
    every = [(name, stream) for name in NAMES for stream in ("a", "b/c")]
    script = [
        *((name, ("put", stream, [float(1 + i), None, 3.0])) for i, (name, stream) in enumerate(every)),
        *requests,
        *((name, ("get", stream, part)) for name, stream in every for part in ("", "/forecast", "/quality")),
        *((name, ("ask", "/v1/streams?limit=1")) for name in NAMES),
        *((name, ("delete", stream)) for name, stream in every),
    ]
    for name, request in script:
        of_hour = int if name == "steps" else ds
        prefix = prefix_of(name)
        found, expected = ask(together, prefix, of_hour, request), ask(alone[name], "", of_hour, request)
        assert said(found, prefix) == said(expected, ""), (name, request)


def test_every_route_of_a_model_is_below_its_prefix_and_those_of_the_process_are_not(client):
    for path, operations in client.app.openapi()["paths"].items():
        for method, operation in operations.items():
            if path.endswith("/events"):
                continue
            replies = [
                client.request(method, where + path.replace("{unique_id}", "a")) for where in ("", "/models/steps")
            ]
            assert not_routed(replies[0]) is False, path
            assert not_routed(replies[1]) is ("servers" in operation), path
    for path in ("/docs", "/openapi.json", "/models", "/"):
        assert not_routed(client.get(f"/models/steps{path}")), path
    assert_problem(client.request("PATCH", "/models/steps/v1/streams/a"), 405, "PATCH is not allowed at /models/steps/")
    assert client.request("PATCH", "/models/steps/v1/streams/a").headers["allow"] == "DELETE, GET, HEAD, PUT"


def not_routed(reply: httpx.Response) -> bool:
    return reply.status_code == 404 and "unknown-route" in reply.text


def test_kserves_route_takes_the_name_that_stands_in_its_path_or_the_models_own(client):
    """The champion of a registered model is served under another name than that, or from a folder."""
    own = client.get("/models/other/v1/models").json()["models"][0]["name"]
    series = {"type": "univariate_time_series", "name": "a", "series": [1.0, 2.0] * 9, "frequency": "H"}
    found = {
        name: client.post(
            "/models/other/v1/timeseries/forecast",
            json={"model": name, "inputs": [series], "options": {"horizon": 2}},
        ).status_code
        for name in (own, "other", "steps")
    }

    assert own != "other"
    assert found == {own: 200, "other": 200, "steps": 404}


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "STEPS", "steps%2F", "", "a" * 5000])
def test_a_name_that_nobody_has_is_a_problem_that_tells_those_there_are(client, name):
    reply = client.get(f"/models/{name}/v1/streams")

    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert ("other, steps" in reply.text) is (name != "steps%2F")  # which is no path of a model's


def test_without_a_model_at_the_root_only_named_ones_are_served(folders, store_url):
    chosen = Settings(models={"steps": folders["steps"]}, store=store_url)
    with LocalClient(create_app(chosen)) as client:
        assert_problem(client.put("/v1/streams/a", json=history([1.0])), 404, "below /models/NAME: steps")
        assert_problem(client.get("/v1/models"), 404, "below /models/NAME")
        assert client.put("/models/steps/v1/streams/a", json={"ds": [0], "y": [1.0]}).status_code == 201
        assert client.get("/healthz").status_code == 200
        assert set(client.get("/readyz").json()["models"]) == {"steps"}
        assert [model["name"] for model in client.get("/models").json()["models"]] == ["steps"]
        series = {name for family in text_string_to_metric_families(client.get("/metrics").text)
                  for name in [family.name] if any("named_model" not in s.labels for s in family.samples)}  # fmt: skip
        assert {name.removesuffix("_created") for name in series} == {
            "forecaster_requests",
            "forecaster_request_seconds",
        }


def test_the_list_tells_names_versions_calendars_and_states(client):
    found = {model["name"]: model for model in client.get("/models").json()["models"]}

    assert [(name, found[name]["prefix"], found[name]["freq"]) for name in found] == [
        (None, "", "h"), ("other", "/models/other", "h"), ("steps", "/models/steps", "1"),
    ]  # fmt: skip
    assert {model["state"] for model in found.values()} == {"serving"}
    for name, model in found.items():
        assert model["model"] == {
            key: client.get(f"{prefix_of(name)}/v1/models").json()["models"][0][key] for key in ("name", "version")
        }


def test_settings_come_from_the_environment_and_a_mistake_in_them_is_one_line(monkeypatch, tmp_path, capsys):
    given = {"load": "models:/load@champion", "bikes": {"model": "b", "retention": "500", "challenger": "c"}}
    monkeypatch.setenv("FORECASTER_MODELS", json.dumps(given))
    chosen = Settings(challenger="of the root", retention="90D", store="sqlite:///log.db", model_cache=tmp_path)
    assert chosen.names == ["load", "bikes"]
    load, bikes = chosen.of("load"), chosen.of("bikes")
    assert (load.model, load.challenger, load.retention) == ("models:/load@champion", None, "90D")
    assert (bikes.model, bikes.challenger, bikes.retention) == ("b", "c", "500")
    assert load.model_cache != bikes.model_cache != chosen.model_cache
    for wrong, expected in (
        ("{", "models"),
        ('{"A b": "x"}', "expected a name of 1 to 40"),
        ('{"a": {"model": "x", "port": 1}}', "models.a.port"),
        ('{"a": {}}', "models.a.model"),
        ('["a"]', "models"),
    ):
        monkeypatch.setenv("FORECASTER_MODELS", wrong)
        assert main(["--store", f"sqlite:///{tmp_path / 'log.db'}"]) == 2
        told = capsys.readouterr().err
        assert expected in told
        assert told.count("\n") == 1


# -- one model does not touch the other --------------------------------------------------------------------------------


def test_streams_of_one_id_keep_apart_over_a_restart_on_either_store(folders, any_store_url, tiny_forecaster, counting):
    values = [float(5 + i % 7) for i in range(30)]
    with LocalClient(create_app(several(folders, any_store_url))) as client:
        client.put("/v1/streams/a", json=history(values)).raise_for_status()
        client.put("/models/steps/v1/streams/a", json={"ds": [3, 4, 6], "y": [1.0, None, 2.0]}).raise_for_status()
        before = [client.get(f"{prefix_of(name)}/v1/streams/a/forecast").content for name in (None, "steps")]
        assert_problem(client.get("/models/other/v1/streams/a"), 404, "not known")
    with LocalClient(create_app(several(folders, any_store_url))) as client:
        found = [client.get(f"{prefix_of(name)}/v1/streams/a/forecast") for name in (None, "steps")]

    assert [json.loads(reply)["ds"] for reply in before] == [reply.json()["ds"] for reply in found]
    assert found[1].json()["ds"][0] == 7
    for forecaster, log, reply in (
        (tiny_forecaster, {BASE + i: y for i, y in enumerate(values)}, found[0]),
        (counting, {3: 1.0, 4: None, 6: 2.0}, found[1]),
    ):
        expected = forecaster.forecast(recompute(forecaster, [log]))[0]
        np.testing.assert_allclose(np.array(list(reply.json()["quantiles"].values())).T, expected, rtol=1e-5)


def test_a_swap_of_one_model_under_load_does_not_touch_the_other(client, artifact, challenger, counting):
    ended, replies = threading.Event(), {"/models/other": [], "/models/steps": []}

    def write(prefix, of_hour):
        client.put(f"{prefix}/v1/streams/a", json={"ds": [of_hour(0)], "y": [1.0]})
        for hour in count(1):
            if ended.is_set():
                return
            body = {"observations": [{"ds": of_hour(hour), "y": float(hour % 9 + 1)}]}
            replies[prefix].append(client.post(f"{prefix}/v1/streams/a/observations", json=body))

    writers = [threading.Thread(target=write, args=("/models/other", ds)),
               threading.Thread(target=write, args=("/models/steps", int))]  # fmt: skip
    hosted = client.app.state.host.hosted
    engine = hosted["steps"].service.engine
    for writer in writers:
        writer.start()
    try:
        until(lambda: all(len(found) > 10 for found in replies.values()))
        hosted["other"].service.switch.take(load_model(artifact))
        until(lambda: replies["/models/other"][-1].json()["model"]["name"] == "tiny")
    finally:
        ended.set()
        for writer in writers:
            writer.join()

    assert {reply.status_code for found in replies.values() for reply in found} == {200}
    names = [Counter(reply.json()["model"]["name"] for reply in found) for found in replies.values()]
    assert set(names[0]) == {"challenger", "tiny"}
    assert set(names[1]) == {"steps"}
    assert hosted["steps"].service.engine is engine
    log = {hour: float(hour % 9 + 1) for hour in range(1, len(replies["/models/steps"]) + 1)} | {0: 1.0}
    expected = counting.forecast(recompute(counting, [log]))[0]
    found = replies["/models/steps"][-1].json()["quantiles"]
    np.testing.assert_allclose(np.array(list(found.values())).T, expected, rtol=1e-5)


def test_a_model_that_cannot_be_opened_is_named_and_serves_as_soon_as_it_can(folders, store_url, tmp_path, counting):
    late = tmp_path / "late"
    with LocalClient(create_app(several(folders | {"late": str(late)}, store_url))) as client:
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "partly ready")
        assert {name: model["ready"] for name, model in ready.json()["models"].items()} == {
            "other": True, "steps": True, "late": False,
        }  # fmt: skip
        assert "no artifact folder" in ready.json()["models"]["late"]["checks"]["model"]
        assert_problem(client.get("/models/late/readyz"), 503, "no artifact folder")
        assert client.get("/models/steps/readyz").json()["status"] == "ready"
        assert client.get("/healthz").status_code == 200
        assert_problem(client.get("/models/late/v1/streams"), 503, "no artifact folder")
        assert client.put("/v1/streams/a", json=history([1.0])).status_code == 201
        assert client.get("/models").json()["models"][-1]["state"] == "unavailable"
        metrics = client.get("/metrics").text
        assert 'forecaster_ready{named_model="late"} 0.0' in metrics
        assert (
            'forecaster_requests_total{method="GET",named_model="late",route="/v1/streams",status="503"} 1.0' in metrics
        )

        counting.save(late)
        until(lambda: client.get("/readyz").json()["status"] == "ready")
        assert client.put("/models/late/v1/streams/a", json={"ds": [0], "y": [1.0]}).status_code == 201


def test_whatever_breaks_one_model_the_others_start(folders, store_url, monkeypatch):
    opening = Host._opened

    def fail(host, hosted):
        if hosted.name == "steps":
            raise RuntimeError("nobody thought of this")
        return opening(host, hosted)

    monkeypatch.setattr(Host, "_opened", fail)
    with LocalClient(create_app(several(folders, store_url))) as client:
        assert "nobody thought of this" in client.get("/readyz").json()["models"]["steps"]["checks"]["model"]
        assert client.put("/models/other/v1/streams/a", json=history([1.0])).status_code == 201
        monkeypatch.undo()
        until(lambda: client.get("/readyz").json()["status"] == "ready")


def test_a_model_that_opens_and_cannot_start_is_tried_again_and_the_others_serve(folders, store_url, monkeypatch):
    starting, attempts, back = Service.start, [], threading.Event()

    async def fail(service):
        if service.settings.model == folders["steps"]:
            attempts.append(service)
            if not back.is_set():
                raise OSError("the database went away")
        await starting(service)

    monkeypatch.setattr(Service, "start", fail)
    with LocalClient(create_app(several(folders, store_url))) as client:
        assert "the database went away" in client.get("/readyz").json()["models"]["steps"]["checks"]["model"]
        assert client.put("/models/other/v1/streams/a", json=history([1.0])).status_code == 201
        until(lambda: len(attempts) > 2)
        back.set()
        until(lambda: client.get("/readyz").json()["status"] == "ready")
        assert client.put("/models/steps/v1/streams/a", json={"ds": [0], "y": [1.0]}).status_code == 201


def test_a_process_none_of_whose_models_can_be_opened_does_not_start(tmp_path, store_url):
    chosen = Settings(model=str(tmp_path / "x"), models={"load": str(tmp_path / "y")}, store=store_url)

    with pytest.raises(ServiceError, match=r"the model at the root: .*/x'; model 'load': .*/y'"):
        Host.open(chosen)


def test_the_process_is_not_ready_while_one_of_its_models_is_still_loading_nor_when_it_leaves(client):
    service = client.app.state.host.hosted["steps"].service
    engine, service.switch.engine = service.switch.engine, None

    class Watcher:
        looked, trouble = False, "not looked up yet"

        def stop(self):
            pass

    service._watcher = Watcher()
    assert_problem(client.get("/readyz"), 503, "model 'steps', model: none yet (not looked up yet)")
    assert client.get("/models").json()["models"][-1]["state"] == "starting"
    service._watcher.looked, service._watcher.trouble = True, "the registry cannot be asked"
    assert client.get("/readyz").json()["status"] == "partly ready"
    service.switch.engine = engine
    client.app.state.host.leave()
    assert_problem(client.get("/readyz"), 503, "service: leaving")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_died_is_named_by_liveness_and_leaves_the_others_ready(folders, store_url):
    def die(_items):
        raise SystemExit

    with LocalClient(create_app(several(folders, store_url, stall_seconds=1.0))) as client:
        client.app.state.host.hosted["steps"].service.engine._process = die
        assert_problem(client.put("/models/steps/v1/streams/a", json={"ds": [0], "y": [1.0]}), 503, "not known")

        assert_problem(client.get("/healthz"), 503, "model 'steps': the engine")
        assert client.get("/readyz").json()["status"] == "partly ready"
        # The first call loads compiled code, which may take longer than an engine is waited for here.
        until(lambda: client.put("/v1/streams/a", json=history([1.0])).is_success)


def test_each_is_found_again_after_a_kill_while_the_registry_of_a_third_is_away(
    template, folders, tmp_path, tiny_forecaster, counting
):
    store = f"sqlite:///{tmp_path / 'log.db'}"
    models = {"steps": folders["steps"], "away": "models:/away@champion"}
    server = Server(
        template, folders[None], store, tmp_path / "log", models=json.dumps(models), poll_seconds="0.2",
        MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}",
    )  # fmt: skip
    kinds = {"": (ds, None, BASE, tiny_forecaster), "/models/steps": (int, "steps", 0, counting)}
    books = {prefix: {0: 1.0} for prefix in kinds}

    def write(prefix, of_hour):
        with httpx.Client(base_url=server.url + prefix, timeout=30, trust_env=False) as http:
            try:
                for hour in range(len(books[prefix]), 10_000):
                    body = {"observations": [{"ds": of_hour(hour), "y": float(hour % 9 + 1)}]}
                    http.post("/v1/streams/a/observations", json=body).raise_for_status()
                    books[prefix][hour] = float(hour % 9 + 1)
            except httpx.TransportError:
                pass  # it was killed

    try:
        for again in (False, True):
            server.start()
            status = HTTP.get(f"{server.url}/readyz").json()
            assert status["status"] == "partly ready"
            assert "the registry cannot be asked" in status["models"]["away"]["checks"]["model"]
            for prefix, (of_hour, name, first, forecaster) in kinds.items():
                if not again:
                    body = {"ds": [of_hour(0)], "y": [1.0]}
                    HTTP.put(f"{server.url}{prefix}/v1/streams/a", json=body).raise_for_status()
                    continue
                reply = HTTP.get(f"{server.url}{prefix}/v1/streams/a/forecast").json()
                opened = Store.open(store_of(store, name))
                (record,) = opened.page("", 9)
                log = dict(opened.log(record.id))
                opened.close()
                assert {first + hour: y for hour, y in books[prefix].items()}.items() <= log.items()
                assert len(log) <= len(books[prefix]) + 1, "more than was sent"
                expected = forecaster.forecast(recompute(forecaster, [log]))[0]
                np.testing.assert_allclose(np.array(list(reply["quantiles"].values())).T, expected, rtol=1e-5)
            with httpx.stream("GET", f"{server.url}/models/steps/v1/streams/a/events", timeout=30) as events:
                assert any(line.startswith("id: ") for line in events.iter_lines())
            if again:
                break
            writers = [threading.Thread(target=write, args=(prefix, kinds[prefix][0])) for prefix in kinds]
            for writer in writers:
                writer.start()
            until(lambda: all(len(book) > 20 for book in books.values()))
            server.kill()
            for writer in writers:
                writer.join()
        assert server.stop() == 0
    finally:
        server.stop()


# -- what they share ---------------------------------------------------------------------------------------------------


def test_keys_and_their_rates_are_of_the_process(folders, store_url, tmp_path):
    file = tmp_path / "api-keys"
    file.write_text(line("reader", "read", "fck_reader") + line("busy", "read", "fck_busy", "0.001/s"))
    with LocalClient(create_app(several(folders, store_url, api_keys_file=file))) as client:
        for path in ("/models/steps/v1/streams", "/models/none/v1/streams", "/models", "/metrics"):
            assert_problem(client.get(path), 401, "Authorization")
        assert client.get("/models/steps/v1/streams", headers=bearer("fck_reader")).status_code == 200
        assert_problem(
            client.get("/models/none/v1/streams", headers=bearer("fck_reader")), 404, "no model named 'none'"
        )
        assert_problem(client.delete("/models/steps/v1/streams/a", headers=bearer("fck_reader")), 403, "write")
        assert client.get("/v1/streams", headers=bearer("fck_busy")).status_code == 200
        assert_problem(client.get("/models/steps/v1/streams", headers=bearer("fck_busy")), 429, "")
        assert client.get("/models/steps/readyz").status_code == 200, "asked without a key, as at the root"


def test_a_key_for_some_models_is_of_no_use_elsewhere(folders, store_url, tmp_path, capsys):
    """Neither at other models, whether they are there or not, nor for what tells of all of them."""
    lines, key = [], {}
    for who, models in (("tenant", "steps,later"), ("rooted", "/"), ("old", None)):
        assert make_key(["new", who, "--scopes", "read,write", *([] if models is None else ["--models", models])]) == 0
        made, said = capsys.readouterr()
        lines.append(made)
        key[who] = bearer(said.split()[-1])
    file = tmp_path / "api-keys"
    file.write_text("".join(lines))
    places = ("", "/models/other", "/models/steps", "/models/none")
    allowed = {"tenant": {"/models/steps"}, "rooted": {""}, "old": set(places)}
    bodies = {"/models/steps": {"ds": [0], "y": [1.0]}}
    with LocalClient(create_app(several(folders, store_url, api_keys_file=file))) as client:
        for who, prefix in product(key, places):
            replies = [
                client.put(f"{prefix}/v1/streams/{who}", json=bodies.get(prefix, history([1.0])), headers=key[who]),
                client.get(f"{prefix}/v1/streams", headers=key[who]),
                client.post(f"{prefix}/v1/forecasts", json={}, headers=key[who]),
            ]
            if prefix in allowed[who]:
                assert [r.status_code for r in replies] == ([404] * 3 if prefix == "/models/none" else [201, 200, 422])
                continue
            for reply in replies:
                name = f"model '{prefix.removeprefix('/models/') or '/'}'"
                assert_problem(reply, 403, f"'{who}' is valid for", name)
                assert 'error="insufficient_scope"' in reply.headers["www-authenticate"]
        for path in ("/metrics", "/models"):
            assert client.get(path, headers=key["old"]).status_code == 200
            for who in ("tenant", "rooted"):
                assert_problem(client.get(path, headers=key[who]), 403, "not for what is of all models")
        for prefix in places[:3]:
            found = client.get(f"{prefix}/v1/streams", headers=key["old"]).json()["streams"]
            assert {stream["unique_id"] for stream in found} == {who for who in allowed if prefix in allowed[who]}

        file.write_text("".join(lines).replace("models:steps,later", "models:other"))
        until(lambda: client.get("/models/other/v1/streams", headers=key["tenant"]).status_code == 200)
        assert_problem(client.get("/models/steps/v1/streams", headers=key["tenant"]), 403, "valid for other, not for")


def test_metrics_are_one_text_in_which_no_series_comes_twice(client):
    client.put("/v1/streams/a", json=history([1.0])).raise_for_status()
    client.post("/v1/streams/a/observations", json=observations((1, 2.0))).raise_for_status()
    client.put("/models/steps/v1/streams/a", json={"ds": [0], "y": [1.0]}).raise_for_status()
    client.get("/models/none/v1/streams")
    # Set last, after the reply and the housekeeping that follows it.
    until(lambda: 'forecaster_resident_streams{named_model="steps"} 1.0' in client.get("/metrics").text)
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    series = Counter((sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples)
    values = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}

    assert [one for one, times in series.items() if times > 1] == []
    assert len({family.name for family in families}) == len(families)
    assert values["forecaster_resident_streams",] == 1
    assert values["forecaster_resident_streams", ("named_model", "steps")] == 1
    assert values["forecaster_resident_streams", ("named_model", "other")] == 0
    put = ("method", "PUT"), ("route", "/v1/streams/{unique_id}"), ("status", "201")
    assert values["forecaster_requests_total", *put] == 1
    assert values["forecaster_requests_total", put[0], ("named_model", "steps"), *put[1:]] == 1
    lost = ("method", "GET"), ("route", "none"), ("status", "404")
    assert values["forecaster_requests_total", *lost] == 1


def test_log_lines_name_the_model_in_route_and_path(folders, store_url):
    entries = []
    with LocalClient(create_app(several(folders, store_url), log=entries.append)) as client:
        client.get("/models/steps/v1/streams/a")
        client.get("/models/none/v1/streams/a")

    assert [(entry.route, entry.path, entry.status) for entry in entries] == [
        ("/models/steps/v1/streams/{unique_id}", "/models/steps/v1/streams/a", 404),
        ("none", "/models/none/v1/streams/a", 404),
    ]


# -- the description ---------------------------------------------------------------------------------------------------


def test_openapi_has_a_server_for_each_model_and_tells_of_unknown_ones(folders):
    document = create_app(several(folders, "sqlite:///nothing.db")).openapi()
    only = create_app(Settings(models={"load": "m"}, store="sqlite:///nothing.db")).openapi()

    assert [server["url"] for server in document["servers"]] == ["/", "/models/other", "/models/steps"]
    assert [server["url"] for server in only["servers"]] == ["/models/load"]
    assert (
        document["paths"]["/metrics"]["get"]["servers"]
        == document["paths"]["/models"]["get"]["servers"]
        == [{"url": "/"}]
    )
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "servers" in operation or "404" in operation["responses"], path
    assert "servers" not in create_app(Settings(model="m", store="sqlite:///nothing.db")).openapi()
