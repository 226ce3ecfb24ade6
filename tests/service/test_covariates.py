"""Covariates over HTTP: state and forecast are those of the library, after a restart, a rewind and a swap too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from forecaster import Forecaster
from forecaster.quality import figures
from service.app import create_app
from service.models.served import ServedModel, load_model
from service.settings import Settings
from service.store import Store
from service.store.values import covariates_of
from tests.forecaster.kit import COVERED, network_of
from tests.service.kit import LocalClient, ds

CONFIG = COVERED[0]
HOURS, HORIZON = 40, 6
STATIC = {"size": 3.5, "country": "FR"}


def plain(seed: int = 0) -> Forecaster:
    """The model, given only what a test gives it."""
    return Forecaster(network_of(CONFIG, seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("covered") / "model"
    plain().save(path)
    return path


@pytest.fixture
def settings(folder: Path, store_url: str) -> Settings:
    return Settings(model=str(folder), store=store_url, max_gap_steps=10)


@pytest.fixture
def client(settings: Settings) -> Iterator[LocalClient]:
    with LocalClient(create_app(settings)) as running:
        yield running


def cells(hour: int) -> dict[str, Any]:
    """Covariates of an hour; some are missing, one value is unknown to the model."""
    found = {"price": hour % 7 / 2, "weather": ("sun", "rain", "fog")[hour % 3], "visitors": float(hour % 5)}
    return {name: None if (hour + len(name)) % 9 == 0 else value for name, value in found.items()}


def columns(hours: range, *names: str) -> dict[str, list[Any]]:
    return {name: [cells(hour)[name] for hour in hours] for name in names}


def y_at(hour: int) -> float | None:
    return None if hour == 7 else 20.0 + hour % 4 + hour / 50


BODY = {
    "ds": [ds(hour) for hour in range(HOURS)],
    "y": [y_at(hour) for hour in range(HOURS)],
    "covariates": columns(range(HOURS), "price", "weather", "visitors"),
    "static": STATIC,
}


def future(first: int, steps: int = HORIZON) -> dict[str, list[Any]]:
    return columns(range(first, first + steps), "price", "weather")


def expected(hours: int, steps: int = HORIZON, seed: int = 0, known: bool = True, changed: Any = ()) -> np.ndarray:
    """The library's forecast from the first hours, [levels, steps]."""
    forecaster = plain(seed)
    rows = {hour: (y_at(hour), cells(hour)) for hour in range(hours)} | dict(changed)
    y = np.array([np.nan if rows[hour][0] is None else rows[hour][0] for hour in range(hours)], dtype=np.float64)
    table = forecaster.table([rows[hour][1] for hour in range(hours)])
    first = int(forecaster.calendar.parse([ds(0)])[0])
    state = forecaster.warm_up([y], [first], [table], forecaster.static(["a"], [STATIC]).numpy())
    ahead = forecaster.table([cells(hour) for hour in range(hours, hours + steps)])[None, :, :2]
    given = torch.from_numpy(ahead if known else np.full_like(ahead, np.nan))
    return forecaster.forecast(state, steps, future=given)[0].T


def quantiles(reply: Any) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.array(list(reply.json()["quantiles"].values()))


def observe(client: LocalClient, *hours: int, **more: Any) -> Any:
    rows = [{"ds": ds(hour), "y": y_at(hour), "covariates": cells(hour)} for hour in hours]
    return client.post("/v1/streams/a/observations", json={"observations": rows, **more})


@pytest.fixture
def stream(client: LocalClient) -> LocalClient:
    assert client.put("/v1/streams/a", json=BODY).status_code == 201
    return client


def test_live_quality_is_that_of_one_fold_of_the_log(client: LocalClient) -> None:
    """Streamed one by one and in pairs, though each forecast is scored with covariates that came after it."""
    start = {name: BODY[name][:18] for name in ("ds", "y")}
    body = {**start, "covariates": columns(range(18), "price", "weather", "visitors"), "static": STATIC}
    assert client.put("/v1/streams/a", json=body).status_code == 201
    for first, last in ((18, 20), (20, 22), (22, 24), *((hour, hour + 1) for hour in range(24, HOURS))):
        assert observe(client, *range(first, last), future="missing").status_code == 200
    forecaster = plain()
    table = forecaster.table([cells(hour) for hour in range(HOURS)])
    y = np.array([y_at(hour) for hour in range(HOURS)], dtype=np.float64)
    static = forecaster.static(["a"], [STATIC]).numpy()
    state = forecaster.warm_up([y], forecaster.calendar.parse([ds(0)]).tolist(), [table], static)
    expected_figures = figures(forecaster.quality(state).total[0].sum(1))

    found = client.get("/v1/streams/a/quality").json()["total"]
    assert found["count"] == expected_figures.count > 10
    for name in ("mae", "relative_mae", "wql", "coverage_80"):
        assert found[name] == pytest.approx(getattr(expected_figures, name), rel=1e-3)


def test_an_observation_and_its_forecast_are_the_librarys(stream: LocalClient) -> None:
    found = quantiles(observe(stream, HOURS, HOURS + 1, future=future(HOURS + 2)))

    np.testing.assert_allclose(found, expected(HOURS + 2), rtol=1e-5)
    assert not np.allclose(found, expected(HOURS + 2, known=False), rtol=1e-3)


def test_a_forecast_takes_the_future_in_its_body_or_is_told_to_do_without(stream: LocalClient) -> None:
    path = "/v1/streams/a/forecast"
    dated = {"ds": [ds(hour) for hour in range(HOURS - 3, HOURS + 9)], **future(HOURS - 3, 12)}

    np.testing.assert_allclose(quantiles(stream.post(path, json={"future": future(HOURS)})), expected(HOURS), rtol=1e-5)
    np.testing.assert_allclose(
        quantiles(stream.post(path, json={"future": dated, "horizon": 9})), expected(HOURS, 9), rtol=1e-5
    )
    np.testing.assert_allclose(quantiles(stream.get(f"{path}?future=missing")), expected(HOURS, known=False), rtol=1e-5)
    np.testing.assert_allclose(
        quantiles(stream.post(path, json={"future": "missing"})), expected(HOURS, known=False), rtol=1e-5
    )


def test_a_stateless_forecast_is_the_same(client: LocalClient) -> None:
    series = {"unique_id": "a", **BODY, "future": future(HOURS)}

    reply = client.post("/v1/forecasts", json={"series": [series]})

    assert reply.status_code == 200, reply.text
    found = np.array(list(reply.json()["forecasts"][0]["quantiles"].values()))
    np.testing.assert_allclose(found, expected(HOURS), rtol=1e-5)


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/vnd.apache.arrow.stream"])
def test_bulk_bodies_carry_covariates_as_further_columns(stream: LocalClient, kind: str) -> None:
    rows = [{"unique_id": "a", "ds": ds(hour), "y": y_at(hour), **cells(hour)} for hour in range(HOURS, HOURS + 5)]
    if kind.endswith("ndjson"):
        body = "\n".join(json.dumps(row) for row in rows).encode()
    else:
        table = pa.Table.from_pylist(rows)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        body = sink.getvalue().to_pybytes()

    reply = stream.post("/v1/observations", content=body, headers={"content-type": kind})

    assert reply.json()["counts"] == {"accepted": 5}, reply.text
    found = quantiles(stream.post("/v1/streams/a/forecast", json={"future": future(HOURS + 5)}))
    np.testing.assert_allclose(found, expected(HOURS + 5), rtol=1e-5)


def test_a_bulk_row_that_cannot_be_read_costs_only_itself(stream: LocalClient) -> None:
    rows = [
        {"unique_id": "a", "ds": ds(HOURS), "y": 1.0, "price": "dear"},
        {"unique_id": "a", "ds": ds(HOURS), "y": 1.0, "prize": 2.0},
        {"unique_id": "a", "ds": ds(HOURS), "y": 1.0, "price": 2.0},
    ]

    reply = stream.post(
        "/v1/observations",
        content="\n".join(map(json.dumps, rows)).encode(),
        headers={"content-type": "application/x-ndjson"},
    ).json()

    assert reply["verdicts"] == ["invalid", "invalid", "accepted"]
    assert "covariate 'price': 'dear' is not a number" in reply["refused"][0]["detail"]
    assert "prize unknown; this model has price, weather, visitors" in reply["refused"][1]["detail"]


def test_a_client_learns_what_to_send_from_the_description_of_the_model(client: LocalClient) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    told: dict[str, dict[str, list[str] | None]] = {"known": {}, "past": {}, "static": {}}
    for column in model["covariates"]:
        told[column["role"]][column["name"]] = column["values"]

    assert told == {
        "known": {"price": None, "weather": ["rain", "sun"]},
        "past": {"visitors": None},
        "static": {"size": None, "country": ["DE", "FR"]},
    }
    assert model["further_covariates"] == []
    categories = {name: values or [1.0] for name, values in told["known"].items()}
    body = {
        "ds": [ds(hour) for hour in range(HOURS)],
        "y": [1.0] * HOURS,
        "covariates": {name: [cells[-1]] * HOURS for name, cells in categories.items()},
        "static": {name: (values or [1.0])[0] for name, values in told["static"].items()},
    }
    assert client.put("/v1/streams/a", json=body).status_code == 201
    ahead = {name: [cells[0]] * model["horizon"] for name, cells in categories.items()}
    assert quantiles(client.post("/v1/streams/a/forecast", json={"future": ahead})).shape[1] == model["horizon"]


def test_covariates_can_be_taken_back(stream: LocalClient) -> None:
    """All null is a statement, where it is made: that they are unknown. A table's empty cells are none."""
    hour, ahead = HOURS - 1, {"future": future(HOURS)}
    known = {"price": 2.0, "weather": "sun", "visitors": 3}

    def tell(covariates: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        row = {"ds": ds(hour), "y": y_at(hour)} | ({} if covariates is None else {"covariates": covariates})
        reply = stream.post("/v1/streams/a/observations", json={"observations": [row], **ahead, **more})
        return dict(reply.json()) if reply.status_code == 200 else {"status": reply.status_code}

    def holds(covariates: dict[str, Any]) -> None:
        found = quantiles(stream.post("/v1/streams/a/forecast", json=ahead))
        np.testing.assert_allclose(found, expected(HOURS, changed=[(hour, (y_at(hour), covariates))]), rtol=1e-5)

    assert tell(known, on_conflict="revise")["revised"] == 1
    holds(known)
    assert tell({"price": None, "weather": None, "visitors": None})["status"] == 409
    line = {"unique_id": "a", "ds": ds(hour), "y": y_at(hour), "price": None, "weather": None, "visitors": None}
    bulk = stream.post(
        "/v1/observations?on_conflict=revise",
        content=json.dumps(line),
        headers={"content-type": "application/x-ndjson"},
    )
    assert bulk.json()["counts"] == {"duplicate": 1}
    holds(known)
    assert tell({"price": None}, on_conflict="revise")["revised"] == 1
    holds({})
    for again in ({"price": None, "visitors": None}, None):
        assert tell(again)["duplicate"] == 1
    assert tell(known)["status"] == 409


@pytest.mark.parametrize(
    ("first", "again", "same"),
    [
        ({"price": 2.0, "visitors": 3}, {"visitors": 3.0, "price": 2}, True),
        ({"weather": "sun"}, {"weather": "sun", "price": None}, True),
        ({"weather": True}, {"weather": 1}, False),
        ({"price": 2.0}, {"price": 2.5}, False),
    ],
)
def test_covariates_that_mean_the_same_are_a_duplicate(
    stream: LocalClient, first: dict[str, Any], again: dict[str, Any], same: bool
) -> None:
    replies = [
        stream.post(
            "/v1/streams/a/observations",
            json={"observations": [{"ds": ds(HOURS), "y": 1.0, "covariates": given}], "future": future(HOURS + 1)},
        )
        for given in (first, again)
    ]

    assert [reply.status_code for reply in replies] == [200, 200 if same else 409]


def test_a_late_and_a_revised_value_fold_with_the_covariates_of_the_log(stream: LocalClient) -> None:
    """A revision of y alone leaves the covariates that are known."""
    observe(stream, HOURS + 2, future="missing")
    late = observe(stream, HOURS, HOURS + 1, future="missing")
    assert (late.json()["late"], late.json()["filled"]) == (2, 0)

    revised = stream.post(
        "/v1/streams/a/observations",
        json={
            "observations": [{"ds": ds(20), "y": 50.0}, {"ds": ds(21), "y": y_at(21), "covariates": {"price": 9.0}}],
            "on_conflict": "revise",
            "future": future(HOURS + 3),
        },
    )

    assert revised.json()["revised"] == 2
    changed = {20: (50.0, cells(20)), 21: (y_at(21), {"price": 9.0})}.items()
    np.testing.assert_allclose(quantiles(revised), expected(HOURS + 3, changed=changed), rtol=1e-5)


def test_a_repeat_is_acknowledged_and_other_covariates_are_a_conflict(stream: LocalClient) -> None:
    again = observe(stream, 3, future="missing")
    bare = stream.post(
        "/v1/streams/a/observations", json={"observations": [{"ds": ds(3), "y": y_at(3)}], "future": "missing"}
    )
    other = stream.post(
        "/v1/streams/a/observations",
        json={"observations": [{"ds": ds(3), "y": y_at(3), "covariates": {"price": 99.0}}], "future": "missing"},
    )

    assert (again.json()["duplicate"], bare.json()["duplicate"], other.status_code) == (1, 1, 409)
    assert stream.get("/v1/streams/a").json()["version"] == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_restart_and_another_model_derive_the_same_state_from_the_log(
    settings: Settings, tmp_path: Path, seed: int
) -> None:
    with LocalClient(create_app(settings)) as before:
        before.put("/v1/streams/a", json=BODY)
        observe(before, HOURS, HOURS + 1, future="missing")
    if seed:
        plain(seed).save(tmp_path / "other")
        settings = settings.model_copy(update={"model": str(tmp_path / "other")})
    else:
        store = Store.open(settings.store)
        store.drop_snapshots([], 0, 9)
        store.close()

    with LocalClient(create_app(settings)) as after:
        found = quantiles(after.post("/v1/streams/a/forecast", json={"future": future(HOURS + 2)}))

    np.testing.assert_allclose(found, expected(HOURS + 2, seed=seed), rtol=1e-5)


def test_a_model_without_covariates_reads_the_same_log(settings: Settings, artifact: Path) -> None:
    with LocalClient(create_app(settings)) as before:
        before.put("/v1/streams/a", json=BODY)

    with LocalClient(create_app(settings.model_copy(update={"model": str(artifact)}))) as after:
        bare = after.get("/v1/streams/a/forecast")
        needless = after.post("/v1/streams/a/forecast", json={"future": {"prize": [1.0]}})

    y = np.array([np.nan if v is None else v for v in BODY["y"]], dtype=np.float64)
    tiny = Forecaster.load(artifact)
    np.testing.assert_allclose(
        quantiles(bare), tiny.forecast(tiny.warm_up([y], [int(tiny.calendar.parse([ds(0)])[0])]))[0].T, rtol=1e-5
    )
    assert needless.status_code == 422
    assert "knows no covariates in the future" in needless.json()["detail"]


ONE = {"ds": ds(HOURS), "y": 1.0}
EARLIER = {"ds": [ds(h) for h in range(6)], **future(0)}
LATER = {"ds": [ds(h) for h in range(HOURS + 3, HOURS + 9)], **future(HOURS + 3)}
UNMET = {
    "no future": ({"observations": [ONE]}, "needs price, weather of the 6 steps"),
    "a column lacks": ({"observations": [ONE], "future": {"price": [1.0] * 6}}, "future lacks weather"),
    "unknown column": ({"observations": [ONE], "future": {**future(0), "rain": [1] * 6}}, "rain unknown"),
    "past is not known": ({"observations": [ONE], "future": {**future(0), "visitors": [1] * 6}}, "visitors unknown"),
    "too short": ({"observations": [ONE], "future": future(0, 5)}, "5 steps, but 6"),
    "uneven": ({"observations": [ONE], "future": {"price": [1.0] * 6, "weather": ["sun"] * 7}}, "different lengths"),
    "begins later": ({"observations": [ONE], "future": LATER}, f"after ds {ds(HOURS + 1)}"),
    "ends before": ({"observations": [ONE], "future": EARLIER}, "step 1 of the 6"),
    "gap in ds": ({"observations": [ONE], "future": {"ds": [ds(2 * h) for h in range(6)], **future(0)}}, "consecutive"),
}  # fmt: skip
REFUSED = {
    "another word": ({"observations": [ONE], "future": "none"}, "future"),
    "text for a number": ({"observations": [{**ONE, "covariates": {"price": "1"}}], "future": "missing"}, "'price'"),
    "truth for a number": ({"observations": [{**ONE, "covariates": {"price": True}}], "future": "missing"}, "'price'"),
    "infinite": ({"observations": [{**ONE, "covariates": {"price": 1e31}}], "future": "missing"}, "finite"),
    "a list": (
        {"observations": [{**ONE, "covariates": {"price": [1]}}], "future": "missing"},
        "observations/0/covariates/price: expected a finite number, true, false, null, or text",
    ),
    "an object in the future": (
        {"observations": [ONE], "future": {**future(0), "price": [{}] * 6}},
        "future/price/0: expected a finite number, true, false, null, or text of at most 255 characters, found {}",
    ),
    "unknown name": ({"observations": [{**ONE, "covariates": {"prize": 1}}], "future": "missing"}, "prize unknown"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNMET)
def test_what_the_forecast_lacks_costs_the_forecast_alone(stream: LocalClient, name: str) -> None:
    body, word = UNMET[name]

    reply = stream.post("/v1/streams/a/observations", json=body)

    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert (found["accepted"], found["version"], found["ds"], found["quantiles"]) == (1, 2, [], {})
    assert word in found["no_forecast"]["detail"]
    # It was observed, with its covariates unknown.
    later = quantiles(stream.post("/v1/streams/a/forecast", json={"future": future(HOURS + 1)}))
    np.testing.assert_allclose(later, expected(HOURS + 1, changed=[(HOURS, (1.0, {}))]), rtol=1e-5)


def test_writers_that_know_nothing_of_a_new_model_lose_no_observation(settings: Settings, artifact: Path) -> None:
    """The alias is moved by hand to a model with known covariates, and back."""
    other = ServedModel("other", "2", Forecaster(network_of(CONFIG)))
    body = {"ds": [ds(hour) for hour in range(30)], "y": [float(hour % 4) for hour in range(30)]}
    with LocalClient(create_app(settings.model_copy(update={"model": str(artifact)}))) as client:
        client.put("/v1/streams/a", json=body)
        replies = []
        for hour in range(30, 36):
            if hour in (32, 34):
                client.service.switch.take(other if hour == 32 else load_model(artifact))
            row = {"ds": ds(hour), "y": float(hour % 4)}
            replies.append(client.post("/v1/streams/a/observations", json={"observations": [row]}))
        found = quantiles(client.get("/v1/streams/a/forecast"))
        client.put("/v1/streams/b", json={"ds": [ds(h) for h in range(36)], "y": [float(h % 4) for h in range(36)]})
        undisturbed = quantiles(client.get("/v1/streams/b/forecast"))

    assert [(reply.status_code, reply.json()["accepted"]) for reply in replies] == [(200, 1)] * 6
    assert ["no_forecast" in reply.json() for reply in replies] == [False, False, True, True, False, False]
    assert [reply.json()["version"] for reply in replies] == [2, 3, 4, 5, 6, 7]
    assert "needs price, weather of the 6 steps" in replies[2].json()["no_forecast"]["detail"]
    np.testing.assert_allclose(found, undisturbed, rtol=1e-5)


def rows_of(hour: int) -> dict[str, Any]:
    """An observation, with all that the model of `CONFIG` wants to know."""
    row = {"ds": ds(hour), "y": y_at(hour), "covariates": cells(hour)}
    return {"observations": [row], "future": future(hour + 1)}


def bulk_of(hour: int) -> tuple[bytes, bytes]:
    """The same as a line, and the hour after it as Arrow."""
    line = json.dumps({"unique_id": "a", "ds": ds(hour), "y": y_at(hour), **cells(hour)}).encode()
    found = {name: [value] for name, value in cells(hour + 1).items()}
    table = pa.table({"unique_id": ["a"], "ds": [ds(hour + 1)], "y": [y_at(hour + 1)], **found})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return line, sink.getvalue().to_pybytes()


def test_what_a_model_before_knew_is_taken_and_kept_after_the_way_back(settings: Settings, artifact: Path) -> None:
    """Writers go on as they were, also after a restart, and the model before finds all of it if it serves again."""
    plain_settings = settings.model_copy(update={"model": str(artifact)})
    covered, typo = ServedModel("covered", "2", plain()), {"observations": [{**ONE, "covariates": {"prize": 1.0}}]}
    with LocalClient(create_app(plain_settings)) as client:
        client.put("/v1/streams/a", json={"ds": BODY["ds"], "y": BODY["y"]})
        early = client.post("/v1/streams/a/observations", json=rows_of(HOURS))
        client.service.switch.take(covered)
        client.put("/v1/streams/a", json=BODY)
        replies = [client.post("/v1/streams/a/observations", json=rows_of(HOURS))]
        client.service.switch.take(load_model(artifact))
        replies.append(client.post("/v1/streams/a/observations", json=rows_of(HOURS + 1)))
        refused = client.post("/v1/streams/a/observations", json=typo)
    with LocalClient(create_app(plain_settings)) as client:
        replies.append(client.post("/v1/streams/a/observations", json=rows_of(HOURS + 2)))
        line, table = bulk_of(HOURS + 3)
        for content, kind in ((line, "application/x-ndjson"), (table, "application/vnd.apache.arrow.stream")):
            reply = client.post("/v1/observations", content=content, headers={"content-type": kind})
            assert reply.json()["verdicts"] == ["accepted"], reply.text
        looks = [
            client.post("/v1/streams/a/forecast", json={"future": asked})
            for asked in (future(HOURS + 5), "missing", {"ds": [ds(HOURS + 5)], "price": [1.0]})
        ]
        made = client.put("/v1/streams/b", json=BODY)
        stateless = client.post("/v1/forecasts", json={"series": [{"unique_id": "b", **BODY, "future": future(HOURS)}]})
        client.service.switch.take(covered)
        again = client.post("/v1/streams/a/forecast", json={"future": future(HOURS + 5)})

    assert "price, visitors, weather unknown; this model has none" in early.json()["detail"]
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert not any("no_forecast" in reply.json() for reply in replies)
    assert (refused.status_code, refused.json()["detail"]) == (422, "covariates: prize unknown; this model has none")
    assert [look.status_code for look in looks] == [200] * 3
    assert quantiles(looks[0]).tolist() == quantiles(looks[1]).tolist()
    assert (made.status_code, stateless.status_code) == (201, 200)
    np.testing.assert_allclose(quantiles(again), expected(HOURS + 5), rtol=1e-5)


def test_what_a_challenger_knows_is_taken_before_it_serves(settings: Settings, folder: Path, artifact: Path) -> None:
    asked = settings.model_copy(update={"model": str(artifact), "challenger": str(folder), "challenger_streams": 1})
    with LocalClient(create_app(asked)) as client:
        client.put("/v1/streams/a", json={"ds": BODY["ds"], "y": BODY["y"]})

        reply = client.post("/v1/streams/a/observations", json=rows_of(HOURS))

        assert (reply.status_code, reply.json()["model"]["name"]) == (200, artifact.name)
        (served,) = client.get("/v1/models").json()["models"]
        assert served["further_covariates"] == ["country", "price", "size", "visitors", "weather"]
        assert "no_forecast" not in reply.json()
        [(_, kept)] = client.service.store.log(1, after=client.service.engine.model.dates.steps([ds(HOURS - 1)])[0])
        assert covariates_of(kept) == {name: value for name, value in cells(HOURS).items() if value is not None}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_one_clear_problem_and_changes_nothing(stream: LocalClient, name: str) -> None:
    body, word = REFUSED[name]

    reply = stream.post("/v1/streams/a/observations", json=body)

    assert reply.status_code == 422, reply.text
    assert word in reply.json()["detail"]
    assert stream.get("/v1/streams/a").json()["version"] == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"static": {"colour": "red"}}, "colour unknown; this model has size, country"),
        ({"static": {"size": "large"}}, "'size'"),
        ({"covariates": {"price": [1.0]}}, "has 1 values, expected 40"),
        ({"covariates": {"prize": [1.0] * HOURS}}, "prize unknown"),
    ],
)
def test_a_bad_history_is_refused(client: LocalClient, change: dict[str, Any], word: str) -> None:
    put = client.put("/v1/streams/a", json=BODY | change)
    stateless = client.post(
        "/v1/forecasts", json={"series": [{"unique_id": "a", **BODY, "future": "missing"} | change]}
    )

    for reply in (put, stateless):
        assert reply.status_code == 422, reply.text
        assert word in reply.json()["detail"]
    assert client.get("/v1/streams/a").status_code == 404


# -- one rule for the values of covariates, whatever they come as ------------------------------------------------------

WRONG_CELLS = {
    "long text": ("weather", "x" * 256, "text of at most 255 characters"),
    "an integer beyond 64 bits": ("price", 2**63, "an integer of at most 64 bits"),
    "one below them": ("visitors", -(2**70), "an integer of at most 64 bits"),
}
RIGHT_CELLS = {"long text": ("weather", "x" * 255), "large": ("price", 2**63 - 1), "small": ("visitors", -(2**63))}


def arrow_of(row: dict[str, Any]) -> bytes:
    """One row as an Arrow stream."""
    table = pa.table({name: pa.array([v], pa.uint64() if v == 2**63 else None) for name, v in row.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def told_in_bulk(client: LocalClient, kind: str, row: dict[str, Any]) -> dict[str, Any]:
    content = arrow_of(row) if kind.endswith("arrow.stream") else json.dumps(row).encode()
    reply = client.post("/v1/observations", content=content, headers={"content-type": kind})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/vnd.apache.arrow.stream"])
@pytest.mark.parametrize("name", RIGHT_CELLS)
def test_a_bulk_row_with_a_value_within_bounds_is_taken(stream: LocalClient, kind: str, name: str) -> None:
    column, value = RIGHT_CELLS[name]
    row = {"unique_id": "a", "ds": ds(HOURS), "y": 1.0, column: value}

    assert told_in_bulk(stream, kind, row)["verdicts"] == ["accepted"]


# No integer of Arrow is below 64 bits.
WRONG_IN_BULK = [("application/x-ndjson", name) for name in WRONG_CELLS] + [
    ("application/vnd.apache.arrow.stream", name) for name in WRONG_CELLS if name != "one below them"
]


@pytest.mark.parametrize(("kind", "name"), WRONG_IN_BULK)
def test_a_value_out_of_bounds_costs_its_bulk_row_alone(stream: LocalClient, kind: str, name: str) -> None:
    column, value, words = WRONG_CELLS[name]
    reply = told_in_bulk(stream, kind, {"unique_id": "a", "ds": ds(HOURS), "y": 1.0, column: value})

    assert reply["verdicts"] == ["invalid"]
    assert reply["refused"][0]["detail"].startswith(f"{column}: expected ")
    assert words in reply["refused"][0]["detail"]


@pytest.mark.parametrize("name", WRONG_CELLS)
def test_a_value_out_of_bounds_is_refused_wherever_it_stands_in_json(stream: LocalClient, name: str) -> None:
    column, value, words = WRONG_CELLS[name]
    one = {"ds": ds(HOURS), "y": 1.0}
    past = {"ds": [ds(0)], "y": [1.0]}
    asked = [
        ("POST", "/v1/streams/a/observations", {"observations": [{**one, "covariates": {column: value}}]}),
        ("POST", "/v1/streams/a/observations", {"observations": [one], "future": {**future(0), column: [value] * 6}}),
        ("POST", "/v1/streams/a/forecast", {"future": {**future(0), column: [value] * 6}}),
        ("PUT", "/v1/streams/b", {**past, "covariates": {column: [value]}}),
        ("PUT", "/v1/streams/b", {**past, "static": {"size": value}}),
        ("POST", "/v1/forecasts", {"series": [{"unique_id": "b", **past, "static": {"country": value}}]}),
        ("POST", "/v1/forecasts", {"streams": ["a"], "future": {"a": {column: [value] * 6}}}),
    ]

    for method, path, body in asked:
        reply = stream.request(method, path, json=body)
        assert reply.status_code == 422, (path, reply.text)
        assert words in reply.json()["detail"]
    assert stream.get("/v1/streams/a").json()["version"] == 1
