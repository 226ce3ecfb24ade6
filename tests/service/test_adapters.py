"""Adapters: callers of MLflow, KServe and TimeGPT get our own forecasts in their shapes, and their own errors."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest

from forecaster import Forecaster, Panel
from service.app import create_app
from tests.forecaster.kit import COVERED, config_of, forecaster_of, network_of
from tests.service.kit import LocalClient, ds, history

HORIZON = 6
INVALID = "INVALID_PARAMETER_VALUE"
JSON = {"content-type": "application/json"}
SERIES = {"b": (0, [float(10 + i % 4) for i in range(30)]), "a": (5, [3.0, None, 4.0, 5.5])}


@pytest.fixture(scope="module")
def covered():
    """A model with covariates of every role and cycles of the calendar."""
    return Forecaster(network_of(COVERED[0], 0))


@pytest.fixture
def covered_client(covered, tmp_path, settings):
    covered.save(tmp_path / "covered")
    with LocalClient(create_app(settings.model_copy(update={"model": str(tmp_path / "covered")}))) as running:
        yield running


def ours(client, horizon=HORIZON, levels=None):
    """The same forecasts by our own route."""
    series = [{"unique_id": name, **history(values, first)} for name, (first, values) in SERIES.items()]
    body = {"series": series, "horizon": horizon} | ({"quantile_levels": levels} if levels else {})
    reply = client.post("/v1/forecasts", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["forecasts"]


# -- MLflow ------------------------------------------------------------------------------------------------------------


def rows_of(series=SERIES):
    """A long frame of text and numbers, the series' rows one after the other."""
    return pd.DataFrame(
        [
            {"unique_id": name, "ds": ds(first + i), "y": y}
            for name, (first, values) in series.items()
            for i, y in enumerate(values)
        ]
    ).astype({"y": float})


def covered_rows(known_steps=HORIZON):
    """Rows of two series with covariates; the last ones tell the future."""
    rows = [
        {
            "unique_id": name,
            "ds": ds(hour),
            "y": None if hour >= 30 else 20.0 + hour % 4,
            "price": hour % 7 / 2,
            "weather": ("sun", "rain", None)[hour % 3],
            "visitors": None if hour >= 30 else float(hour % 5),
            "size": size,
            "country": "FR",
        }
        for name, size in (("x", 3.5), ("y", None))
        for hour in range(30 + known_steps)
    ]
    return pd.DataFrame(rows).astype({"y": float, "visitors": float, "size": float})


def scored_by_mlflow(forecaster, frame, horizon=None, levels=None):
    """What MLflow's scoring server makes of the logged model's answer."""
    from mlflow.pyfunc.scoring_server import predictions_to_json

    frame = frame.assign(ds=pd.to_datetime(frame["ds"]))
    panel = Panel.from_frame(frame, "h", forecaster.config.covariates)
    out = io.StringIO()
    predictions_to_json(forecaster.forecast_frame(panel, horizon, levels), out)
    return json.loads(out.getvalue())["predictions"]


def assert_same_predictions(found, expected):
    assert [[*row] for row in found] == [[*row] for row in expected]
    assert [(row["unique_id"], row["ds"]) for row in found] == [(row["unique_id"], row["ds"]) for row in expected]
    numbers = [[list(row.values())[2:] for row in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*numbers, rtol=1e-5)


def mlflow_bodies(frame):
    """The same rows in every form that MLflow's protocol has, as its clients write them."""
    none = frame.astype(object).where(frame.notna(), None)
    records = none.to_dict(orient="records")
    return {
        "dataframe_split": json.dumps({"dataframe_split": frame.to_dict(orient="split")}),  # with NaN and an index
        "dataframe_records": json.dumps({"dataframe_records": records}),
        "instances": json.dumps({"instances": records}),
        "inputs": json.dumps({"inputs": none.to_dict(orient="list")}),
        "inputs of rows": json.dumps({"inputs": records}),
        "csv": frame.to_csv(index=False),
        "csv of a spreadsheet": "\ufeff" + frame.to_csv(index=False),
    }


@pytest.mark.parametrize(
    "form",
    ["dataframe_split", "dataframe_records", "instances", "inputs", "inputs of rows", "csv", "csv of a spreadsheet"],
)
def test_invocations_answer_as_the_logged_model_behind_mlflows_server(client, tiny_forecaster, form):
    kind = {"content-type": "text/csv" if form.startswith("csv") else "application/json; charset=utf-8"}
    reply = client.post("/invocations", content=mlflow_bodies(rows_of())[form], headers=kind)

    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json"), reply.text
    assert_same_predictions(reply.json()["predictions"], scored_by_mlflow(tiny_forecaster, rows_of()))


def test_invocations_take_covariates_and_their_future_from_rows(covered_client, covered):
    body = {
        **json.loads(mlflow_bodies(covered_rows())["inputs"]),
        "params": {"horizon": 4, "quantile_levels": [0.25, 0.9]},
    }
    reply = covered_client.post("/invocations", json=body)

    assert reply.status_code == 200, reply.text
    expected = scored_by_mlflow(covered, covered_rows(), 4, [0.25, 0.9])
    assert_same_predictions(reply.json()["predictions"], expected)
    assert len(expected) == 8


@pytest.mark.parametrize(
    ("kind", "body", "status", "code", "word"),
    [
        ("application/x-parquet", "a", 415, "BAD_REQUEST", "text/csv"),
        ("application/json; charset=latin-1", "{}", 415, "BAD_REQUEST", "utf-8"),
        ("application/json", "{", 400, "BAD_REQUEST", "not JSON"),
        ("application/json", "[" * 100_00, 400, "BAD_REQUEST", "not JSON"),
        ("application/json", "[]", 400, "BAD_REQUEST", "object"),
        ("application/json", '{"inputs": {}, "instances": []}', 400, "BAD_REQUEST", "expected one of"),
        ("application/json", '{"inputs": {"unique_id": ["a"]}}', 400, INVALID, "ds, y"),
        ("application/json", '{"inputs": {"unique_id": ["a"], "ds": [], "y": []}}', 400, INVALID, "len"),
        ("application/json", '{"inputs": 3}', 400, INVALID, "rows"),
        ("application/json", '{"dataframe_split": {"columns": ["y"], "data": [[1, 2]]}}', 400, INVALID, "1"),
        ("text/csv", "unique_id,ds,y,y\na,2024-01-01T00:00:00,1,2", 400, INVALID, "'y' appears twice"),
        ("text/csv", "unique_id,ds,y\na,yesterday,1\n", 400, INVALID, "ISO 8601"),
        ("text/csv", "unique_id,ds,y\na,2024-01-01T00:00:00,1_000\n", 400, INVALID, "number"),
        ("text/csv", b"\xff", 400, "BAD_REQUEST", "CSV"),
        ("text/csv", "", 400, INVALID, "missing"),
    ],
)  # fmt: skip
def test_bad_invocations_get_mlflows_errors(client, kind, body, status, code, word):
    reply = client.post("/invocations", content=body, headers={"content-type": kind})

    assert (reply.status_code, reply.json()["error_code"]) == (status, code), reply.text
    assert word in reply.json()["message"]
    assert set(reply.json()) == {"error_code", "message"}


def test_mlflows_health_routes(client):
    from mlflow.version import VERSION

    assert [client.get(path).status_code for path in ("/ping", "/health")] == [200, 200]
    assert client.get("/version").text == VERSION


# -- KServe ------------------------------------------------------------------------------------------------------------


def kserve_body(**more):
    inputs = [
        {
            "type": "univariate_time_series",
            "name": name,
            "series": values,
            "frequency": "H",
            "start_timestamp": ds(first),
            **more,
        }
        for name, (first, values) in SERIES.items()
    ]
    return {"model": "tiny", "inputs": inputs, "options": {"horizon": 4, "quantiles": [0.1, 0.9]}, "metadata": {"a": 1}}


def test_kserve_gets_our_forecasts_in_its_shape(client):
    reply = client.post("/v1/timeseries/forecast", json=kserve_body())

    body = reply.json()
    assert (reply.status_code, body["status"], body["model"], body["error"]) == (200, "completed", "tiny", None)
    assert len({body["id"], *(output["id"] for output in body["outputs"])}) == 3
    for output, found in zip(body["outputs"], ours(client, 4, [0.1, 0.5, 0.9]), strict=True):
        assert (output["type"], output["status"]) == ("time_series_forecast", "completed")
        (content,) = output["content"]
        assert (content["type"], content["frequency"]) == ("univariate_time_series", "H")
        assert (content["name"], content["start_timestamp"]) == (found["unique_id"], found["ds"][0])
        assert content["mean_forecast"] == found["quantiles"]["0.5"]
        assert content["quantiles"] == {level: found["quantiles"][level] for level in ("0.1", "0.9")}


def test_kserve_without_start_or_with_utc_gets_as_it_gave(client):
    utc = kserve_body()
    for one in utc["inputs"]:
        one["start_timestamp"] += "Z"
    without = kserve_body(start_timestamp=None)
    del without["options"]["quantiles"]
    replies = [client.post("/v1/timeseries/forecast", json=body).json() for body in (utc, without)]
    starts = [[output["content"][0]["start_timestamp"] for output in reply["outputs"]] for reply in replies]

    assert starts == [[ds(30) + "Z", ds(9) + "Z"], [None, None]]


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"frequency": "D"}, 422, "freq 'h'"),
        ({"type": "multivariate_time_series"}, 422, "univariate"),
        ({"series": ["7"]}, 422, "number"),
        ({"series": []}, 422, "at least 1"),
        ({"start_timestamp": "2024-01-01T00:30:00"}, 422, "grid"),
        ({"name": "same"}, 422, "twice"),
    ],
)
def test_bad_kserve_requests_get_its_errors(client, change, status, word):
    reply = client.post("/v1/timeseries/forecast", json=kserve_body(**change))

    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert set(reply.json()["error"]) == {"code", "message", "param", "type"}
    assert word in reply.json()["error"]["message"]


def test_kserve_series_on_bare_steps_start_where_they_say_or_not_at_all(settings, tmp_path):
    forecaster_of(config_of().with_overrides({"freq": "1"}), 2).save(tmp_path / "tiny")
    with LocalClient(create_app(settings.model_copy(update={"model": str(tmp_path / "tiny")}))) as client:
        body = kserve_body(start_timestamp="7", frequency="1")
        outputs = client.post("/v1/timeseries/forecast", json=body).json()["outputs"]
        starts = [str(7 + len(one["series"])) for one in body["inputs"]]
        assert [output["content"][0]["start_timestamp"] for output in outputs] == starts

        refused = client.post("/v1/timeseries/forecast", json=kserve_body(start_timestamp="7" * 19, frequency="1"))
        assert refused.status_code == 422
        assert "expected one of 18 digits" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/invocations", "/v1/timeseries/forecast", "/v2/forecast"])
def test_half_a_character_is_no_text(client, path):
    """As an escape, in a body that Python's own writer could have written."""
    body = b'{"frequency": "\\ud800", "y": NaN}'
    reply = client.post(path, content=body, headers={"content-type": "application/json"})

    assert reply.status_code == 400
    assert "not JSON" in reply.text


def test_kserve_is_told_which_model_serves(client):
    reply = client.post("/v1/timeseries/forecast", json={**kserve_body(), "model": "timesfm"})

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model-not-found")


# -- TimeGPT -----------------------------------------------------------------------------------------------------------


def timegpt_body(**more):
    series = {
        "y": [y for _, values in SERIES.values() for y in values],
        "sizes": [len(values) for _, values in SERIES.values()],
        "X": None,
        "X_future": None,
        "start_datetime": [ds(first) for first, _ in SERIES.values()],
        **more,
    }
    return {
        "series": series, "model": "timegpt-1", "h": 4, "freq": "H", "clean_ex_first": True, "level": [80, 95.0],
        "finetune_steps": 0, "finetune_depth": 1, "finetune_loss": "default", "finetuned_model_id": None,
        "feature_contributions": False, "multivariate": False,
    }  # fmt: skip


def test_timegpt_gets_our_forecasts_flat_with_intervals(client):
    reply = client.post("/v2/forecast", json=timegpt_body())

    assert reply.status_code == 200, reply.text
    body = reply.json()
    levels = {"lo-80": "0.1", "hi-80": "0.9", "lo-95": "0.025", "hi-95": "0.975"}
    found = ours(client, 4, [0.5, *map(float, levels.values())])
    assert body["mean"] == [value for one in found for value in one["quantiles"]["0.5"]]
    assert set(body["intervals"]) == set(levels)
    for name, level in levels.items():
        assert body["intervals"][name] == [value for one in found for value in one["quantiles"][level]]
    assert (body["weights_x"], body["input_tokens"], body["output_tokens"]) == (None, 34, 8)


def test_timegpt_without_dates_or_levels(client):
    body = timegpt_body()
    del body["series"]["start_datetime"], body["level"]
    reply = client.post("/v2/forecast", json=body).json()

    assert reply["intervals"] is None
    # The model takes no notice of dates, but for their distance.
    np.testing.assert_allclose(
        reply["mean"], client.post("/v2/forecast", json=timegpt_body()).json()["mean"], rtol=1e-4
    )


def test_timegpts_client_finds_its_model_parameters(client):
    assert client.get("/model_params?model=timegpt-1&freq=h").json() == {"detail": {"input_size": 2000, "horizon": 6}}


def test_timegpt_covariates_come_in_the_models_order(covered_client, covered):
    frame = covered_rows(4)
    frame["size"], frame["country"] = None, None  # it has no static ones
    past, coming = frame[frame["y"].notna()], frame[frame["y"].isna()]
    none = {name: column.astype(object).where(column.notna(), None) for name, column in frame.items()}
    series = {
        "y": past["y"].tolist(),
        "sizes": [30, 30],
        "X": [none[name][past.index].tolist() for name in ("price", "weather", "visitors")],
        "X_future": [none[name][coming.index].tolist() for name in ("price", "weather")],
        "start_datetime": [ds(0)] * 2,
    }
    reply = covered_client.post("/v2/forecast", json={"series": series, "freq": "h", "h": 4})

    assert reply.status_code == 200, reply.text
    rows = [{"unique_id": name, **history([20.0 + hour % 4 for hour in range(30)])} for name in ("0", "1")]
    for number, row in enumerate(rows):
        mine = {name: none[name][past.index].tolist()[30 * number :][:30] for name in ("price", "weather", "visitors")}
        ahead = {name: none[name][coming.index].tolist()[4 * number :][:4] for name in ("price", "weather")}
        row.update(covariates=mine, future=ahead)
    expected = covered_client.post("/v1/forecasts", json={"series": rows, "horizon": 4}).json()["forecasts"]
    assert reply.json()["mean"] == [value for one in expected for value in one["quantiles"]["0.5"]]


def test_kserve_inputs_may_have_a_future_which_the_protocol_knows_nothing_of(covered_client):
    ahead = {"price": [1.0, 2.0, 3.0, 4.0], "weather": ["sun", None, "rain", "sun"]}
    for future in (ahead, "missing"):
        body = kserve_body(future=future) | {"model": "covered"}
        outputs = covered_client.post("/v1/timeseries/forecast", json=body).json()["outputs"]
        series = [
            {"unique_id": name, **history(values, first), "future": future} for name, (first, values) in SERIES.items()
        ]
        expected = covered_client.post("/v1/forecasts", json={"series": series, "horizon": 4}).json()["forecasts"]
        for output, one in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(output["content"][0]["mean_forecast"], one["quantiles"]["0.5"], rtol=1e-5)


ADVISED = {
    "/v1/forecasts": "send them as future, or",
    "/v1/timeseries/forecast": "send them as future, or",
    "/v2/forecast": "send them as X_future, h values per series",
    "/invocations": "send them in rows without y after the last value of the series",
}


@pytest.mark.parametrize("path", ADVISED)
def test_whoever_lacks_a_future_is_told_how_to_send_one_there(covered_client, path):
    """In words of the protocol that it has come by."""
    values = history([1.0, 2.0])
    rows = {"unique_id": ["a", "a"], **values, "price": [1, 1], "weather": ["sun"] * 2, "visitors": [1, 1]}
    body = {
        "/v1/forecasts": {"series": [{"unique_id": "a", **values}]},
        "/v1/timeseries/forecast": kserve_body() | {"model": "covered"},
        "/v2/forecast": timegpt_body(),
        "/invocations": {"inputs": {**rows, "size": [1, 1], "country": ["FR"] * 2}},
    }[path]
    reply = covered_client.post(path, json=body)

    assert reply.status_code in (400, 422)
    assert "this model needs price, weather of the" in reply.text
    assert ADVISED[path] in reply.text
    description = covered_client.get("/openapi.json").json()["paths"][path]["post"].get("description", "future")
    assert any(word in description for word in ("future", "coming steps"))


def test_a_model_that_uses_the_calendar_needs_a_start(covered_client):
    series = {"y": [1.0, 2.0], "sizes": [2]}
    reply = covered_client.post("/v2/forecast", json={"series": series, "freq": "h", "h": 4})

    assert reply.status_code == 422
    assert "no start" in reply.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("body", "loc", "word"),
    [
        (timegpt_body(sizes=[1]), ["body"], "34 values"),
        (timegpt_body(X=[[1.0] * 34]), ["body"], "this model has none"),
        (timegpt_body(y=[]), ["body", "series", "y"], "at least 1"),
        (timegpt_body(start_datetime=[ds(0)]), ["body"], "2 series"),
        ({**timegpt_body(), "freq": "D"}, ["body"], "freq 'h'"),
        ({**timegpt_body(), "freq": "??"}, ["body"], "freq 'h'"),
        ({**timegpt_body(), "freq": "9999999999999999999h"}, ["body"], "freq 'h'"),
        ({**timegpt_body(), "finetune_steps": 5}, ["body"], "finetune_steps"),
        ({**timegpt_body(), "level": [100]}, ["body", "level", "0"], "less than 100"),
        ({**timegpt_body(), "level": [99.9]}, ["body"], "0.0005"),
        ({**timegpt_body(), "h": 25}, ["body"], "1 to 24"),
        ({"freq": "h"}, ["body", "series"], "required"),
    ],
)
def test_bad_timegpt_requests_get_its_errors(client, body, loc, word):
    reply = client.post("/v2/forecast", json=body)

    assert reply.status_code == 422
    (first, *_) = reply.json()["detail"]
    assert set(first) == {"loc", "msg", "type"}
    assert first["loc"] == loc
    assert word in first["msg"]


# -- all ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/invocations", "/v1/timeseries/forecast", "/v2/forecast"])
def test_adapters_keep_to_the_limits_and_keep_nothing(client, path):
    before = client.get("/v1/streams").json()

    assert client.post(path, content=b"x" * 70_000, headers=JSON).status_code == 413
    assert client.post(f"{path}?a=1", content=b"{}", headers=JSON).status_code in (400, 422)
    assert client.get("/v1/streams").json() == before


def test_timegpts_interval_of_no_width_is_the_median(client):
    """Its client asks for it where it is asked for the quantile 0.5."""
    reply = client.post("/v2/forecast", json=timegpt_body() | {"level": [0, 80]}).json()

    assert reply["intervals"]["lo-0"] == reply["intervals"]["hi-0"] == reply["mean"]


@pytest.mark.parametrize("mark", ["Z", "+00:00"])
def test_times_marked_as_utc_are_taken_and_given_as_they_stand(client, mark):
    marked = timegpt_body(start_datetime=[ds(first) + mark for first, _ in SERIES.values()])
    assert (
        client.post("/v2/forecast", json=marked).json()["mean"]
        == client.post("/v2/forecast", json=timegpt_body()).json()["mean"]
    )
    name, (first, values) = next(iter(SERIES.items()))
    body = {
        "model": client.service.require_engine().model.name,
        "inputs": [
            {
                "type": "univariate_time_series", "name": name, "series": values, "frequency": "H",
                "start_timestamp": ds(first) + mark,
            }
        ],
        "options": {"horizon": 2},
    }  # fmt: skip
    reply = client.post("/v1/timeseries/forecast", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["outputs"][0]["content"][0]["start_timestamp"] == ds(first + len(values)) + mark
