"""The HTTP contract: what each endpoint answers, and that what is wrong is one clear problem that changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin

import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch

from forecaster import Forecaster
from service import stateless
from service.app import create_app
from service.bodies import bulk
from service.bodies.bulk import read_arrow
from service.bodies.replies import observed
from service.engine import engine as engine_module
from service.engine import folding as folding_module
from service.engine import items, microbatch
from service.engine.items import Create, Delete, Observe, Precondition, Single
from service.engine.microbatch import MicroBatch
from service.errors import UnknownOutcome
from service.models.served import ServedModel
from service.problems import Problem
from service.routes import forecasts, streams
from service.store import Transaction
from tests.forecaster.kit import TINY, assert_same_state, forecaster_of
from tests.service.kit import (
    LocalClient,
    ds,
    history,
    observations,
    recompute,
    replace_commit,
    until,
)

VALUES = [float(10 + i % 4) for i in range(40)]
ARROW = "application/vnd.apache.arrow.stream"
JSON_LINES = "application/x-ndjson"
ROWS = [{"unique_id": "a", "ds": f"2024-01-02T{hour}:00:00", "y": 1.0} for hour in (16, 17, 18)]


@pytest.fixture
def stream(client):
    """A stream of forty hours."""
    assert client.put("/v1/streams/a", json=history(VALUES)).status_code == 201
    return "/v1/streams/a"


def assert_problem(reply, status, *words):
    """RFC 9457, one line, no traceback."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:forecaster:problem:")
    assert "\n" not in body["detail"]
    assert "Traceback" not in reply.text
    for word in words:
        assert word in body["detail"]


def state_of(client, path="/v1/streams/a"):
    """Everything a client can see of a stream."""
    return client.get(path).json(), client.get(f"{path}/forecast").json()


def arrow(**columns):
    """An Arrow IPC stream."""
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


# -- what is right -----------------------------------------------------------------------------------------------------


def test_a_stream_is_created_described_replaced_listed_and_deleted(client):
    created = client.put("/v1/streams/a", json=history([1.0, None, 3.0]))
    assert (created.status_code, created.headers["etag"]) == (201, '"1"')
    assert created.json()["counts"] == {"observations": 3, "missing": 1, "filled": 0}

    replaced = client.put("/v1/streams/a", json={"ds": [ds(5), ds(8)], "y": [1, 2]})
    assert (replaced.status_code, replaced.headers["etag"]) == (200, '"2"')

    found = client.get("/v1/streams/a")
    assert found.json() == replaced.json()
    assert found.json()["cutoff"] == ds(8)
    assert found.json()["counts"] == {"observations": 2, "missing": 0, "filled": 2}

    assert client.delete("/v1/streams/a").status_code == 204
    assert_problem(client.get("/v1/streams/a"), 404, "not known", "PUT")


def test_an_observation_is_answered_with_the_forecast_of_the_whole_history(client, stream, tiny_forecaster):
    reply = client.post(f"{stream}/observations", json=observations((40, 12.5), (43, 11.0)))

    body = reply.json()
    assert reply.headers["etag"] == '"2"'
    assert body["cutoff"] == ds(43)
    assert body["ds"] == [ds(h) for h in range(44, 50)]
    assert list(body["quantiles"]) == [f"0.{i}" for i in range(1, 10)]
    assert {k: body[k] for k in ("version", "accepted", "filled", "late", "duplicate", "revised")} == {
        "version": 2, "accepted": 2, "filled": 2, "late": 0, "duplicate": 0, "revised": 0,
    }  # fmt: skip
    values = np.array([*VALUES, 12.5, np.nan, np.nan, 11.0])
    expected = tiny_forecaster.forecast(tiny_forecaster.warm_up([values], [473352]))[0]
    np.testing.assert_allclose(np.array(list(body["quantiles"].values())).T, expected, rtol=1e-5)
    forecast = client.get(f"{stream}/forecast").json()
    assert {k: body[k] for k in forecast} == forecast


def test_a_stateless_forecast_equals_that_of_a_stream_with_the_same_history(client, stream):
    series = [{"unique_id": "x", **history([3.0, None])}, {"unique_id": "y", **history(VALUES)}]
    reply = client.post("/v1/forecasts", json={"series": series, "horizon": 9, "quantile_levels": [0.25, 0.5]})

    assert [f["unique_id"] for f in reply.json()["forecasts"]] == ["x", "y"]
    found = reply.json()["forecasts"][1]
    expected = client.get(f"{stream}/forecast?horizon=9&quantile_levels=0.25,0.5").json()
    assert found["ds"] == expected["ds"]
    assert found["model"] == expected["model"]
    for level in ("0.25", "0.5"):
        np.testing.assert_allclose(found["quantiles"][level], expected["quantiles"][level], rtol=1e-5)


def test_a_repeat_is_acknowledged_and_changes_nothing(client, stream):
    first = client.post(f"{stream}/observations", json=observations((40, 1.5))).json()
    again = client.post(f"{stream}/observations", json=observations((40, 1.5)))

    assert (again.status_code, again.json()["duplicate"], again.json()["accepted"]) == (200, 1, 0)
    assert again.json()["quantiles"] == first["quantiles"]
    assert again.json()["version"] == first["version"]


def test_late_and_revised_values_rewrite_the_state(client, stream):
    client.post(f"{stream}/observations", json=observations((42, 3.0)))
    late = client.post(f"{stream}/observations", json=observations((40, 1.0), (41, 2.0))).json()
    revised = client.post(f"{stream}/observations", json=observations((0, 99.0), on_conflict="revise")).json()
    straight = history([99.0, *VALUES[1:], 1.0, 2.0, 3.0])
    client.put("/v1/streams/b", json=straight)

    expected = client.get("/v1/streams/b/forecast").json()

    assert (late["late"], revised["revised"]) == (2, 1)
    for level, quantiles in expected["quantiles"].items():
        np.testing.assert_allclose(revised["quantiles"][level], quantiles, rtol=1e-5)


def test_bulk_gives_each_row_its_verdict(client, stream):
    rows = [
        ("a", ds(40), 1.0), ("a", ds(40), 1.0), ("a", ds(40), 2.0), ("nobody", ds(0), 1.0), ("a", ds(42), None),
        ("a", ds(41), 5.0), ("a", "yesterday", 5.0), ("a", ds(41), "5"), ("a", ds(99), 5.0), ("a", "2023-01-01", 5.0),
    ]  # fmt: skip
    lines = [json.dumps({"unique_id": u, "ds": d, "y": y}) for u, d, y in rows] + ["{broken", "", '{"unique_id":"a"}']
    reply = client.post("/v1/observations", content="\n".join(lines), headers={"content-type": JSON_LINES})

    body = reply.json()
    assert body["verdicts"] == [
        "accepted", "duplicate", "conflict", "unknown_stream", "accepted",
        "accepted", "invalid", "invalid", "gap_too_long", "too_old", "invalid", "invalid",
    ]  # fmt: skip
    assert body["rows"] == 12
    assert sum(body["counts"].values()) == 12
    assert [problem["row"] for problem in body["refused"]] == [2, 3, 6, 7, 8, 9, 10, 11]
    assert "the line is not JSON" in body["refused"][-2]["detail"]
    assert client.get(stream).json()["cutoff"] == ds(42)


@pytest.mark.parametrize("kind", ["timestamps", "text", "dictionary"])
def test_an_arrow_stream_means_what_json_lines_mean(client, stream, kind):
    stamps = np.array([ds(h) for h in (40, 41, 43)], dtype="datetime64[us]")
    column = {
        "timestamps": pa.array(stamps),
        "text": pa.array([ds(h) for h in (40, 41, 43)]),
        "dictionary": pa.array([ds(h) for h in (40, 41, 43)]).dictionary_encode(),
    }[kind]
    body = arrow(unique_id=pa.array(["a"] * 3).dictionary_encode(), ds=column, y=pa.array([1, None, 3]))
    reply = client.post("/v1/observations", content=body, headers={"content-type": ARROW}).json()

    assert (reply["verdicts"], reply["filled"]) == (["accepted"] * 3, 1)
    assert client.get(stream).json()["counts"] == {"observations": 43, "missing": 1, "filled": 1}


@pytest.mark.parametrize(
    ("columns", "status", "said"),
    [
        ({"ds": pa.array([0], pa.time32("s"))}, 422, "column ds has type time32"),
        ({"ds": pa.array([[None] * 1000], pa.list_(pa.null(), 1000))}, 422, "column ds has type fixed_size_list"),
        ({"ds": pa.array([{"d": 1}])}, 422, "column ds has type struct"),
        ({"ds": pa.array(["x" * 20_000] * 1000).dictionary_encode()}, 200, "not an ISO 8601 timestamp"),
        ({"y": pa.array([b"1"])}, 422, "column y has type binary"),
    ],
    ids=["times of day", "lists", "structs", "one long text", "bytes"],
)
def test_an_arrow_stream_takes_no_more_room_than_its_rows_do(client, stream, columns, status, said):
    """However much a few bytes can stand for in that format."""
    (length,) = map(len, columns.values())
    usual = {"unique_id": pa.array(["a"] * length), "ds": pa.array([ds(40)] * length), "y": pa.array([1.0] * length)}
    reply = client.post("/v1/observations", content=arrow(**usual | columns), headers={"content-type": ARROW})

    assert reply.status_code == status
    assert said in reply.text
    assert len(reply.content) < 50_000
    assert client.get(stream).json()["counts"]["observations"] == 40


@pytest.mark.parametrize("name", ["unique_id", "ds"])
def test_any_number_of_views_of_one_text_take_no_more_room_than_any_text(client, name):
    views = np.tile(np.array([10**6, 0, 0, 0], np.int32), 1000)
    buffers = [None, pa.py_buffer(views), pa.py_buffer(b"x" * 10**6)]
    usual = {"unique_id": pa.array(["a"] * 1000), "ds": pa.array([ds(40)] * 1000), "y": pa.array([1.0] * 1000)}
    body = arrow(**usual | {name: pa.Array.from_buffers(pa.string_view(), 1000, buffers)})

    with pytest.raises(Problem, match=f"column {name} has 1,000,000,000 bytes of text, more than 268,435,456"):
        read_arrow(body, client.service.engine.model)


@pytest.mark.parametrize("place", [b"Foo/Bar", b"y_other"])
def test_text_of_an_arrow_stream_that_is_no_text_is_malformed(client, place):
    body = arrow(unique_id=pa.array(["a"]), ds=pa.array([0], pa.timestamp("s", "Foo/Bar")), y_other=pa.array([1.0]))
    assert place in body
    reply = client.post("/v1/observations", content=body.replace(place, b"Foo\xffBar"), headers={"content-type": ARROW})

    assert_problem(reply, 400, "not an Arrow IPC stream")


@pytest.mark.parametrize("comma", [",", " , ", "\t,"])
def test_halves_of_lines_that_would_be_rows_together_are_none(client, stream, comma):
    row = json.dumps({"unique_id": "a", "ds": ds(40), "y": 1})
    body = f'{row}{comma}{{"unique_id":"a"\n{row[row.index(chr(34) + "ds") :]}\n'
    reply = client.post("/v1/observations", content=body, headers={"content-type": JSON_LINES}).json()

    assert reply["verdicts"] == ["invalid", "invalid"]
    assert client.get(stream).json()["cutoff"] == ds(39)


def test_bad_rows_of_an_arrow_stream_cost_only_themselves(client, stream):
    body = arrow(
        unique_id=pa.array(["a", "a", "a", None, "a"]),
        ds=pa.array([ds(40), "x", ds(41), ds(41), ds(42)]),
        y=pa.array([1.0, 1.0, np.nan, 1.0, np.inf]),
    )
    reply = client.post("/v1/observations", content=body, headers={"content-type": ARROW}).json()

    assert reply["verdicts"] == ["accepted", "invalid", "invalid", "invalid", "invalid"]


@pytest.mark.parametrize(
    ("column", "reasons"),
    [
        (pa.array(np.array([ds(40), ds(41), "2024-01-02T17:30"], "datetime64[s]")), [None, None, "not on the grid"]),
        (pa.array([0, 2**62, -(2**62)], pa.timestamp("s")), ["", "outside the years", "outside the years"]),
        (pa.array([None, 2**31 - 1, 0], pa.date32()), ["missing", "outside the years", ""]),
        (pa.array([0, 1, 2], pa.timestamp("s", "UTC")), ["time zone UTC, expected none"] * 3),
        (pa.array([0, 1, 2], pa.timestamp("ns", "No/Where")), ["time zone No/Where, expected none"] * 3),
    ],
    ids=["off the grid", "beyond", "dates", "zone", "no zone"],
)
def test_times_of_an_arrow_stream_that_do_not_fit_cost_only_themselves(client, stream, column, reasons):
    """Whatever the column's type can hold."""
    body = arrow(unique_id=pa.array(["a"] * 3), ds=column, y=pa.array([1.0] * 3))
    reply = client.post("/v1/observations", content=body, headers={"content-type": ARROW}).json()

    said = {row["row"]: row["detail"] for row in reply["refused"] if row["verdict"] == "invalid"}
    for row, reason in enumerate(reasons):
        assert (reply["verdicts"][row] == "invalid") == (row in said) == bool(reason), reply
        assert not reason or reason in said[row], reply


def test_an_instant_of_an_arrow_stream_is_the_same_in_any_zone():
    """As with the offsets of JSON."""
    forecaster = forecaster_of(TINY.with_overrides({"time_zone": "Europe/Berlin"}))
    model = ServedModel("tiny", "1", forecaster)
    expected = forecaster.calendar.parse(["2024-01-01T00:00+01:00", "2024-07-01T00:00+02:00"]).tolist()
    instants = np.array(["2023-12-31T23:00", "2024-06-30T22:00"], "datetime64[s]")
    for zone in ("UTC", "Europe/Berlin", "America/New_York", "+05:30", "No/Where"):
        column = pa.array(instants, pa.timestamp("s", zone))
        rows = read_arrow(arrow(unique_id=pa.array(["a"] * 2), ds=column, y=pa.array([1.0] * 2)), model)
        assert (rows.steps, rows.reasons) == (expected, {}), zone


@pytest.mark.parametrize("overrides", [{"time_zone": "Europe/Berlin"}, {"freq": "1"}], ids=["without a zone", "steps"])
def test_times_of_another_kind_than_the_models_are_refused_row_by_row(overrides):
    model = ServedModel("tiny", "1", forecaster_of(TINY.with_overrides(overrides)))
    for column in (pa.array([0, 3600], pa.timestamp("s")), pa.array([0, 1], pa.date32())):
        rows = read_arrow(arrow(unique_id=pa.array(["a"] * 2), ds=column, y=pa.array([1.0] * 2)), model)
        assert (rows.steps, len(rows.reasons)) == ([None, None], 2)


def test_of_two_values_in_one_request_the_refusal_says_so(client, stream):
    """It is not the stream that has another value."""
    refused = client.post(f"{stream}/observations", json=observations((40, 1.0), (40, 2.0)))
    assert_problem(refused, 409, f"the request has two values for ds {ds(40)}")
    revised = client.post(f"{stream}/observations", json=observations((40, 1.0), (40, 2.0), on_conflict="revise"))
    assert revised.json()["revised"] == 1
    assert client.post(f"{stream}/observations", json=observations((40, 2.0))).json()["duplicate"] == 1


def test_operations_tell_the_truth(client, stream):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json()["status"] == "ready"
    assert client.get("/v1/models").json()["models"][0]["horizon"] == 6
    metrics = client.get("/metrics").text
    assert 'forecaster_requests_total{method="PUT",route="/v1/streams/{unique_id}",status="201"} 1.0' in metrics
    assert client.get("/openapi.json").json()["components"]["schemas"]["ObservationsRequest"]


def test_the_page_about_the_api_asks_no_other_host(client):
    """Many networks have no way to any."""
    page = client.get("/docs")
    asked = [urljoin("/docs", found) for found in re.findall(r"""(?:src|href|url)[:=]\s*["']([^"']+)""", page.text)]

    assert page.headers["content-type"].startswith("text/html")
    assert {"/openapi.json", "/docs/assets/swagger-ui.css", "/docs/assets/swagger-ui-bundle.js"} <= set(asked)
    assert "//" not in page.text.partition("<script>")[0]
    for path in asked:
        assert path == "data:," or client.get(path).status_code == 200, path


def test_operations_are_grouped_by_tags_that_are_described(client):
    document = client.get("/openapi.json").json()
    used = {tag for path in document["paths"].values() for operation in path.values() for tag in operation["tags"]}

    assert used == {tag["name"] for tag in document["tags"]}


# -- what is wrong -----------------------------------------------------------------------------------------------------

BAD_OBSERVATIONS = {
    "text in y": ('{"observations":[{"ds":"2024-01-02T16:00","y":"7"}]}', 422, "valid number"),
    "boolean y": ('{"observations":[{"ds":"2024-01-02T16:00","y":true}]}', 422, "valid number"),
    "NaN": ('{"observations":[{"ds":"2024-01-02T16:00","y":NaN}]}', 422, "finite"),
    "infinite": ('{"observations":[{"ds":"2024-01-02T16:00","y":-Infinity}]}', 422, "finite"),
    "overflowing": ('{"observations":[{"ds":"2024-01-02T16:00","y":1e999}]}', 422, "finite"),
    "huge": ('{"observations":[{"ds":"2024-01-02T16:00","y":2e30}]}', 422, "less than or equal"),
    "unknown field": ('{"observations":[{"ds":"2024-01-02T16:00","y":1,"z":1}]}', 422, "z"),
    "unknown top field": ('{"observations":[{"ds":"2024-01-02T16:00","y":1}],"why":1}', 422, "why"),
    "no y": ('{"observations":[{"ds":"2024-01-02T16:00"}]}', 422, "required"),
    "empty": ('{"observations":[]}', 422, "at least 1"),
    "not JSON": ("{observations}", 400, "not JSON"),
    "no body": ("", 400, "not JSON"),
    "a list": ("[]", 422, "object"),
    "deep JSON": ("[" * 9000, 400, "not JSON"),
    "off the grid": ('{"observations":[{"ds":"2024-01-02T16:30","y":1}]}', 422, "not on the grid of freq 'h'"),
    "no timestamp": ('{"observations":[{"ds":"soon","y":1}]}', 422, "not an ISO 8601"),
    "integer ds": ('{"observations":[{"ds":5,"y":1}]}', 422, "not an ISO 8601"),
    "zone": ('{"observations":[{"ds":"2024-01-02T16:00Z","y":1}]}', 422, "UTC offset"),
    "year 9999": ('{"observations":[{"ds":"9999-01-02T16:00","y":1}]}', 422, "years"),
    "gap": ('{"observations":[{"ds":"2024-02-02T16:00","y":1}]}', 422, "gap of more than 10"),
    "too old": ('{"observations":[{"ds":"2023-02-02T16:00","y":1}]}', 422, "before the log"),
    "conflict": ('{"observations":[{"ds":"2024-01-01T00:00","y":1}]}', 409, "revise"),
    "one of two": (
        '{"observations":[{"ds":"2024-01-02T16:00","y":1},{"ds":"2024-01-01T00:00","y":1}]}', 409, "revise",
    ),
    "against itself": (
        '{"observations":[{"ds":"2024-01-02T16:00","y":1},{"ds":"2024-01-02T16:00","y":2}]}', 409, "revise",
    ),
    "horizon 0": ('{"observations":[{"ds":"2024-01-02T16:00","y":1}],"horizon":0}', 422, "horizon"),
    "horizon too long": ('{"observations":[{"ds":"2024-01-02T16:00","y":1}],"horizon":25}', 422, "1 to 24"),
    "untrained level": ('{"observations":[{"ds":"2024-01-02T16:00","y":1}],"quantile_levels":[0.001]}', 422, "0.025"),
    "level 1": ('{"observations":[{"ds":"2024-01-02T16:00","y":1}],"quantile_levels":[1.0]}', 422, "less than 1"),
    "on_conflict": ('{"observations":[{"ds":"2024-01-02T16:00","y":1}],"on_conflict":"maybe"}', 422, "revise"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OBSERVATIONS)
def test_a_bad_observation_is_one_clear_problem_and_changes_nothing(client, stream, name):
    body, status, word = BAD_OBSERVATIONS[name]
    before = state_of(client)

    assert_problem(client.post(f"{stream}/observations", content=body), status, word)

    assert state_of(client) == before


def test_what_cannot_be_forecast_costs_the_forecast_and_nothing_that_was_observed(client, stream):
    """Another model may have served when the writer was written."""
    wish, word = {"future": "missing"}, "no cov"
    counted = "forecaster_refused_forecasts_total 1.0"
    assert counted not in client.get("/metrics").text

    reply = client.post(f"{stream}/observations", json=observations((40, 12.5), (41, 11.0), **wish))

    assert (reply.status_code, reply.headers["etag"]) == (200, '"2"')
    body = reply.json()
    assert (body["accepted"], body["cutoff"], body["ds"], body["quantiles"]) == (2, ds(41), [], {})
    assert (body["no_forecast"]["status"], body["no_forecast"]["type"]) == (422, "urn:forecaster:problem:invalid")
    assert word in body["no_forecast"]["detail"]
    until(lambda: counted in client.get("/metrics").text)
    found = state_of(client)
    client.put("/v1/streams/b", json=history([*VALUES, 12.5, 11.0]))
    for level, values in state_of(client, "/v1/streams/b")[1]["quantiles"].items():
        np.testing.assert_allclose(found[1]["quantiles"][level], values, rtol=1e-5)
    again = client.post(f"{stream}/observations", json=observations((41, 11.0), **wish)).json()
    assert (again["duplicate"], again["version"], again["no_forecast"]) == (1, 2, body["no_forecast"])


def test_a_forecast_that_cannot_be_made_takes_none_from_streams_of_the_same_micro_batch(client):
    """Requests that wait together, some of them refused their forecast: each gets what it would have got alone."""
    names = [f"s{i}" for i in range(9)]
    for place, name in enumerate(names):
        client.put(f"/v1/streams/{name}", json=history([value + place for value in VALUES]))

    async def observe(place):
        body = observations((40, 12.0 + place), **({"future": "missing"} if place % 3 == 1 else {}))
        return await client._client.post(f"/v1/streams/{names[place]}/observations", json=body)

    async def observe_all():
        return await asyncio.gather(*map(observe, range(len(names))))

    replies = client.call(observe_all())

    for place, reply in enumerate(replies):
        assert reply.status_code == 200, reply.text
        assert ("no_forecast" in reply.json()) == (place % 3 == 1)
        later = client.get(f"/v1/streams/{names[place]}/forecast").json()
        assert later["cutoff"] == ds(40)
        if place % 3 != 1:
            for level, values in reply.json()["quantiles"].items():
                np.testing.assert_allclose(values, later["quantiles"][level], rtol=1e-5)


BAD_HISTORIES = {
    "duplicate ds": ({"ds": [ds(0), ds(0)], "y": [1, 2]}, "repeats"),
    "disorder": ({"ds": [ds(1), ds(0)], "y": [1, 2]}, "must ascend"),
    "empty": ({"ds": [], "y": []}, "at least 1"),
    "lengths": ({"ds": [ds(0)], "y": [1, 2]}, "same length"),
    "all missing": ({"ds": [ds(0), ds(1)], "y": [None, None]}, "at least one value"),
    "wrong freq": ({"ds": ["2024-01-01T00:00", "2024-01-01T00:15"], "y": [1, 2]}, "not on the grid"),
    "too long": ({"ds": ["2000-01-01", "2024-01-01"], "y": [1, 2]}, "more than 2000"),
    "text": ({"ds": [ds(0)], "y": ["1"]}, "valid number"),
    "unknown column": ({"ds": [ds(0)], "y": [1], "price": [1]}, "price"),
}


@pytest.mark.parametrize("name", BAD_HISTORIES)
def test_a_bad_history_neither_replaces_a_stream_nor_gets_a_forecast(client, stream, name):
    body, word = BAD_HISTORIES[name]
    before = state_of(client)

    assert_problem(client.put(stream, json=body), 422, word)
    assert_problem(client.post("/v1/forecasts", json={"series": [{"unique_id": "a", **body}]}), 422, word)

    assert state_of(client) == before


def test_a_name_twice_in_one_stateless_request_is_refused(client):
    series = [{"unique_id": "a", **history([1.0])}] * 2

    assert_problem(client.post("/v1/forecasts", json={"series": series}), 422, "appears twice")


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/nothing", 404, "nothing at"),
        ("GET", "/v1/streams/unknown", 404, "PUT"),
        ("GET", "/v1/streams/unknown/forecast", 404, "PUT"),
        ("DELETE", "/v1/streams/unknown", 404, "not known"),
        ("PATCH", "/v1/streams/a", 405, "PATCH"),
        ("GET", "/v1/forecasts", 405, "GET"),
        ("PUT", "/v1/streams/a/forecast", 422, "no stream can be called 'a/forecast'"),
        ("PUT", "/v1/streams/a/quality", 422, "no stream can be called 'a/quality'"),
        ("PUT", "/v1/streams/a/events", 422, "no stream can be called 'a/events'"),
        ("GET", "/v1/streams/a/forecast?horizon=0", 422, "horizon"),
        ("GET", "/v1/streams/a/forecast?horizon=many", 422, "horizon"),
        ("GET", "/v1/streams/a/forecast?quantile_levels=0.5,x", 422, "quantile_levels"),
        ("GET", "/v1/streams/a/forecast?level=80", 422, "level"),
        ("GET", "/v1/streams/a/forecast?horizon=2&seed=1&horizon=3", 422, "'horizon' appears 2 times"),
        ("GET", "/v1/streams?limit=1&limit=1", 422, "'limit' appears 2 times"),
        ("POST", "/v1/observations?on_conflict=revise&on_conflict=refuse", 422, "'on_conflict' appears 2 times"),
        ("GET", f"/v1/streams/{'x' * 300}", 422, "255"),
        ("GET", "/v1/streams/a%00b", 422, "printable"),
        ("GET", "/v1/streams/%ff", 422, "not UTF-8"),
    ],
)
def test_bad_paths_methods_and_queries_are_problems(client, stream, method, path, status, word):
    assert_problem(client.request(method, path), status, word)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/streams/a", "DELETE, GET, HEAD, PUT"),
        ("HEAD", "/v1/forecasts", "POST"),
        ("PUT", "/v1/forecasts", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_allowed_is_told_all_that_are(client, stream, method, path, allowed):
    reply = client.request(method, path)

    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("path", ["", "/forecast", "/quality", "/none/forecast"])
def test_head_gets_what_get_does_without_the_body(client, stream, path):
    found, whole = (client.request(method, stream + path) for method in ("HEAD", "GET"))

    assert (found.status_code, found.content) == (whole.status_code, b"")
    assert whole.content
    passing = {"x-request-id"}
    assert {k: v for k, v in found.headers.items() if k not in passing} == {
        k: v for k, v in whole.headers.items() if k not in passing
    }


def test_head_of_endless_events_has_an_end(client, stream):
    reply = client.request("HEAD", f"{stream}/events")

    assert (reply.status_code, reply.headers["content-type"], reply.content) == (200, "text/event-stream", b"")


def test_forecasts_beyond_the_last_timestamp_are_refused_by_name_and_what_is_observed_is_taken(client, stream):
    last = "2261-12-31T21:00:00"
    assert_problem(
        client.post("/v1/forecasts", json={"series": [{"unique_id": "far", "ds": [last], "y": [1.0]}]}),
        422, "series 'far'", "cannot be forecast",
    )  # fmt: skip
    assert client.put(f"{stream}-far", json={"ds": [last], "y": [1.0]}).status_code == 201
    for version, hour in ((2, 22), (3, 23)):
        taken = client.post(
            f"{stream}-far/observations", json={"observations": [{"ds": f"2261-12-31T{hour}:00:00", "y": 2.0}]}
        ).json()
        assert (taken["version"], taken["accepted"], taken["ds"]) == (version, 1, [])
        word = f"6 steps after ds 2261-12-31T{hour}:00:00 cannot be forecast"
        assert word in taken["no_forecast"]["detail"]
    assert_problem(client.get(f"{stream}-far/forecast"), 422, "2261-12-31T23:00:00")
    client.put(f"{stream}-far", json={"ds": [last], "y": [1.0]})
    assert client.get(f"{stream}-far/forecast?horizon=2").json()["ds"][-1] == "2261-12-31T23:00:00"


def test_streams_at_the_ends_of_the_calendar_are_like_any_other(client, stream):
    for name, day in (("first", "1678-01-01T00:00:00"), ("last", "2261-12-31T23:00:00")):
        created = client.put(f"/v1/streams/{name}", json={"ds": [day], "y": [1.0]})
        assert (created.status_code, created.json()["cutoff"]) == (201, day)
    assert client.get("/v1/streams/first/forecast?horizon=1").json()["ds"] == ["1678-01-01T01:00:00"]
    assert_problem(client.get("/v1/streams/last/forecast?horizon=1"), 422, "is the last that timestamps reach")

    listed = client.get("/v1/streams").json()["streams"]
    assert [found["unique_id"] for found in listed] == ["a", "first", "last"]


def test_a_future_of_a_stream_that_is_not_asked_for_is_refused(client, stream):
    reply = client.post("/v1/forecasts", json={"streams": ["a"], "future": {"b": "missing"}})

    assert_problem(reply, 422, "future names 'b'")
    assert "Value error" not in reply.text


def test_the_first_refused_rows_are_explained_and_no_more_are_kept_in_memory(client, monkeypatch):
    kept, read = [], bulk._read_each_line
    monkeypatch.setattr(bulk, "_read_each_line", lambda *asked: kept.append(read(*asked)) or kept[-1])
    lines = ["{}", json.dumps(ROWS[0])] * 200  # the others are refused by the engine, as nobody knows the stream
    reply = client.post("/v1/observations", content="\n".join(lines), headers={"content-type": JSON_LINES}).json()

    assert reply["counts"] == {"unknown_stream": 200, "invalid": 200}
    assert [one["row"] for one in reply["refused"]] == [0, 1, *range(2, 198, 2)]
    assert len(kept[0].reasons) == 100


def test_observing_an_unknown_stream_says_how_to_create_it(client):
    assert_problem(client.post("/v1/streams/new/observations", json=observations((0, 1.0))), 404, "PUT /v1/streams")


@pytest.mark.parametrize(
    ("kind", "body", "status", "word"),
    [
        ("text/csv", b"a", 415, JSON_LINES),
        (JSON_LINES, b"\n\n", 422, "no rows"),
        *(
            (JSON_LINES, body, 400, "one whole object per line")
            for body in (
                json.dumps(ROWS),
                json.dumps(ROWS[:1]),
                json.dumps(ROWS, indent=1),
                json.dumps(ROWS[0], indent=1),
                json.dumps(ROWS).replace("}, ", "},\n"),
                "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]",
                "\n".join(json.dumps(row, indent=1) for row in ROWS),
                "[]",
                "[1]",
            )
        ),
        (ARROW, b"not arrow", 400, "Arrow"),
        (ARROW, arrow(unique_id=["a"], ds=[ds(0)], y=["1"]), 422, "numbers"),
        (ARROW, arrow(unique_id=["a"], ds=[ds(0)], value=[1.0]), 422, "expected unique_id, ds and y"),
        (ARROW, arrow(unique_id=[1], ds=[ds(0)], y=[1.0]), 422, "text"),
    ],
)
def test_a_bad_bulk_body_is_refused_as_a_whole(client, stream, kind, body, status, word):
    assert_problem(client.post("/v1/observations", content=body, headers={"content-type": kind}), status, word)
    assert client.get(stream).json()["version"] == 1


@pytest.mark.parametrize("kind", [JSON_LINES, ARROW])
def test_a_body_of_very_many_rows_is_refused_however_small_they_are(client, stream, monkeypatch, kind):
    """As rows it would take a hundred times its size."""
    rows = [row | {"y": None} for row in ROWS]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    body = "\n".join(map(json.dumps, rows)) + "\n" if kind == JSON_LINES else arrow(**columns)
    headers = {"content-type": kind}
    monkeypatch.setattr(bulk, "_MOST_ROWS", 2)
    assert_problem(client.post("/v1/observations", content=body, headers=headers), 413, "more than 2 rows")
    assert client.get(stream).json()["version"] == 1
    monkeypatch.setattr(bulk, "_MOST_ROWS", 3)
    assert client.post("/v1/observations", content=body, headers=headers).json()["counts"] == {"accepted": 3}


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_by_its_declared_and_by_its_real_size(client, stream, declared):
    body = b"x" * 70_000
    content = body if declared else (body[i : i + 1000] for i in range(0, len(body), 1000))
    if not declared:
        content = chunks(content)

    assert_problem(client.post(f"{stream}/observations", content=content), 413, "65536 bytes")


def test_a_client_that_leaves_while_it_sends_gets_nothing_and_changes_nothing(client, stream, caplog):
    parts = iter(
        [
            {"type": "http.request", "body": json.dumps(observations((40, 1.0))).encode()[:-1], "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    before, sent = client.get(stream).json(), []

    async def receive():
        return next(parts)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": f"{stream}/observations", "query_string": b"", "headers": []}
    client.call(client.app(scope, receive, send))

    assert sent == []
    assert client.get(stream).json() == before
    assert not caplog.records
    assert 'status="499"' in client.get("/metrics").text


class Leaving:
    """A stateless forecast whose client leaves when it is told to."""

    def __init__(self, client, name, hours=(0,)):
        self._client, self._sent = client, []
        series = {"unique_id": name, "ds": [ds(hour) for hour in hours], "y": [1.0] * len(hours)}
        body = json.dumps({"series": [series]}).encode()
        self._parts = [{"type": "http.request", "body": body}]
        self._task = client.call(self._begin())

    async def _begin(self):
        self._gone = asyncio.Event()
        scope = {"type": "http", "method": "POST", "path": "/v1/forecasts", "query_string": b"", "headers": []}
        return asyncio.create_task(self._client.app(scope, self._receive, self._send))

    async def _receive(self):
        if self._parts:
            return self._parts.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self._sent.append(message)

    def leave(self):
        """Go, and see how the service takes it; what it has sent."""

        async def end():
            self._gone.set()
            await asyncio.wait_for(self._task, 50)

        self._client.call(end())
        return self._sent


@pytest.fixture
def folding(monkeypatch):
    """Stateless forecasts: names of series that were begun and ended, and what tells of a begin and allows an end."""
    begun, go_on, forecast = threading.Semaphore(0), threading.Semaphore(0), forecasts.forecast_histories
    names, ended = [], []

    def slowly(model, body, *asked):
        names.append(body.series[0].unique_id)
        begun.release()
        try:
            assert go_on.acquire(timeout=60)
            return forecast(model, body, *asked)
        finally:
            ended.append(names[-1])

    monkeypatch.setattr(forecasts, "forecast_histories", slowly)
    return names, ended, begun, go_on


def test_histories_of_clients_that_have_gone_are_not_folded(client, folding):
    """But for the one at work; the rest leave their places to others."""
    names, _, begun, go_on = folding
    first = Leaving(client, "first")
    assert begun.acquire(timeout=30)
    waiting = [Leaving(client, f"w{i}") for i in range(5)]
    until(lambda: client.service._stateless_waiting == 6)
    assert [one.leave() for one in (first, *waiting)] == [[]] * 6
    assert client.service._stateless_waiting == 0
    with ThreadPoolExecutor(1) as threads:
        body = {"series": [{"unique_id": "last", "ds": [ds(0)], "y": [1.0]}], "horizon": 1}
        last = threads.submit(client.post, "/v1/forecasts", json=body)
        until(lambda: client.service._stateless_waiting == 1)
        for _ in range(2):
            go_on.release()
        assert last.result(30).status_code == 200
    assert names == ["first", "last"]
    assert 'status="499"} 6.0' in client.get("/metrics").text


def test_a_history_whose_client_goes_while_it_is_folded_is_not_folded_to_its_end(client, monkeypatch):
    """Or the next in line would wait for what nobody wants, of very many steps in few bytes."""
    begun, go_on, fold, widths = threading.Event(), threading.Event(), Forecaster.fold, []

    def slowly(self, state, y, *further):
        widths.append(y.shape[1])
        begun.set()
        assert go_on.wait(60)
        return fold(self, state, y, *further)

    monkeypatch.setattr(folding_module, "_UNSEEN", 100)
    monkeypatch.setattr(Forecaster, "fold", slowly)
    left = Leaving(client, "left", (0, 1_900))
    assert begun.wait(30)
    assert left.leave() == []
    go_on.set()
    body = {"series": [{"unique_id": "next", "ds": [ds(0), ds(149)], "y": [1.0, 2.0]}], "horizon": 1}
    assert client.post("/v1/forecasts", json=body).status_code == 200
    assert widths == [100, 100, 50]


def test_very_many_series_are_decoded_some_at_a_time_to_the_same_forecasts(client, monkeypatch):
    """Between two parts it is looked whether the client has gone."""
    series = [{"unique_id": f"s{i}", **history(VALUES[: 10 + i])} for i in range(5)]
    together = client.post("/v1/forecasts", json={"series": series}).json()["forecasts"]
    forecast, sizes = Forecaster.forecast, []

    def noted(self, state, *further):
        sizes.append(len(state))
        return forecast(self, state, *further)

    monkeypatch.setattr(stateless, "_DECODED", 2)
    monkeypatch.setattr(Forecaster, "forecast", noted)
    apart = client.post("/v1/forecasts", json={"series": series}).json()["forecasts"]
    assert sizes == [2, 2, 1]
    for one, other in zip(apart, together, strict=True):
        assert (one["unique_id"], one["ds"]) == (other["unique_id"], other["ds"])
        for level, quantiles in one["quantiles"].items():
            np.testing.assert_allclose(quantiles, other["quantiles"][level], rtol=1e-5)


def test_a_drain_does_not_wait_for_a_history_whose_client_has_gone(settings, folding):
    _, ended, begun, go_on = folding
    with LocalClient(create_app(settings)) as client:
        left = Leaving(client, "left")
        assert begun.acquire(timeout=30)
        assert left.leave() == []
    assert ended == []
    go_on.release()
    until(lambda: ended == ["left"])


def test_bodies_that_come_slowly_are_held_up_to_a_bound_all_together(client, stream):
    scope = {"type": "http", "method": "POST", "path": f"{stream}/observations", "query_string": b"", "headers": []}

    async def story():
        release, statuses = asyncio.Event(), []

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def upload():
            first = iter([{"type": "http.request", "body": b" " * 40_000, "more_body": True}])

            async def receive():
                for message in first:
                    return message
                await release.wait()
                return {"type": "http.request", "body": b"", "more_body": False}

            await client.app(dict(scope), receive, send)

        for _ in range(2):  # what was held is free again
            release.clear()
            statuses.clear()
            tasks = [asyncio.ensure_future(upload()) for _ in range(30)]
            while len(statuses) < 4:  # 26 bodies of 40,000 bytes are less than 16 of the largest size, 65,536
                await asyncio.sleep(0.001)
            release.set()
            await asyncio.gather(*tasks)
            assert statuses == [503] * 4 + [400] * 26

    client.call(story())
    assert client.post(f"{stream}/observations", json=observations((40, 1.0))).status_code == 200


async def chunks(parts):
    """An async body of unknown length."""
    for part in parts:
        yield part


def test_an_unexpected_failure_is_a_500_without_its_cause(client, stream, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(client.service.engine._residents.model.forecaster, "change", fail)
        reply = client.post(f"{stream}/observations", json=observations((40, 1.0)))

    assert_problem(reply, 500, "log")
    assert "secret" not in reply.text
    assert client.get(stream).json()["version"] == 1
    assert client.post(f"{stream}/observations", json=observations((40, 1.0))).json()["accepted"] == 1


def test_what_was_committed_before_an_unexpected_failure_is_answered_as_done(client):
    """One item of a micro-batch breaks while its forecast is written; the others are not judged a second time."""
    for name in ("gone", "kept", "guilty"):
        client.put(f"/v1/streams/{name}", json=history([1.0]))
    engine, step = client.service.engine, client.service.engine.model.dates.steps([ds(1)])[0]

    def broken(_outcome, _want):
        raise RuntimeError("cannot be written")

    async def ask():
        def observe(name, **more):
            return Observe(Single(), name, [step], [2.0], want=engine.model.want(None, None), **more)

        items = [
            Delete(Single(), "gone", Precondition((1,))),
            Create(Single(), "new", [step], [3.0], Precondition(absent=True)),
            observe("kept", render=observed, precondition=Precondition((1,))),
            observe("guilty", render=broken, precondition=Precondition((1,))),
        ]
        engine.submit(items)
        return await asyncio.gather(*(item.ticket.future for item in items), return_exceptions=True)

    gone, new, kept, guilty = client.call(ask())

    assert gone.record.unique_id == "gone"
    assert (new.created, new.record.version) == (True, 1)
    assert (kept.record.version, orjson.loads(kept.reply)["version"]) == (2, 2)
    assert (guilty.status, guilty.extensions) == (500, {"version": 2})
    assert "durable" in guilty.detail
    assert client.get("/v1/streams/gone").status_code == 404
    assert [client.get(f"/v1/streams/{name}").json()["version"] for name in ("new", "kept", "guilty")] == [1, 2, 2]


def test_whose_neighbour_fails_is_told_what_became_of_its_observations(client, stream):
    """They have been taken by then, and are not to be judged as if they came again."""
    client.put("/v1/streams/b", json=history([1.0] * 40))
    engine, want = client.service.engine, client.service.engine.model.want(3, (0.5,))

    def fail(outcome, asked):
        if outcome.record.unique_id == "b" and outcome.judgement:
            raise RuntimeError("cannot be written")
        return observed(outcome, asked)

    async def ask():
        tickets, steps = [Single(), Single()], engine.model.dates.steps([ds(40)])
        engine.submit([Observe(t, n, steps, [5.0], want=want, render=fail) for t, n in zip(tickets, "ab", strict=True)])
        return await asyncio.gather(*(ticket.future for ticket in tickets), return_exceptions=True)

    well, failed = client.call(ask())

    reply = orjson.loads(well.reply)
    assert (reply["accepted"], reply["duplicate"], reply["version"], len(reply["quantiles"]["0.5"])) == (1, 0, 2, 3)
    assert reply["places"] != [None]
    assert (failed.status, failed.extensions) == (500, {"version": 2})


@pytest.mark.parametrize("told_early", [False, True])
def test_memory_that_fails_to_follow_the_store_is_made_anew_from_it(client, stream, monkeypatch, told_early):
    """Half of a state is written, then something breaks: what was committed stays, whether it has been told or not."""
    engine, log = client.service.engine, {step: y for step, y in enumerate(VALUES)}
    slab = type(engine._residents.slab)
    scatter, failed = slab.scatter, []

    def breaks(self, rows, states, ahead=None):
        scatter(self, rows, self.gather(rows).amended(ring=torch.full_like(self.gather(rows).ring, 1e6)))
        failed.append(rows)
        raise RuntimeError("no memory")

    if told_early:  # as when the next micro-batch begins beside the one that waits for the disk
        begin = MicroBatch.begin

        def begins(self, items):
            begin(self, items)
            if self._transaction is not None:
                self.tell(engine._deliver)

        monkeypatch.setattr(MicroBatch, "begin", begins)
    with monkeypatch.context() as patch:
        patch.setattr(slab, "scatter", breaks)
        reply = client.post(f"{stream}/observations", json=observations((40, 7.0)))
        until(lambda: bool(failed))  # what is told early is told before memory follows
    log[40] = 7.0

    assert (reply.status_code, reply.json()["version"]) == (200 if told_early else 500, 2)
    found = client.get(f"{stream}/forecast").json()
    anew = {"unique_id": "a", "ds": [ds(hour) for hour in log], "y": list(log.values())}
    expected = client.post("/v1/forecasts", json={"series": [anew]}).json()["forecasts"][0]
    assert (found["version"], found["cutoff"]) == (2, ds(40))
    for level, quantiles in expected["quantiles"].items():
        assert found["quantiles"][level] == pytest.approx(quantiles, rel=1e-5)


@pytest.mark.parametrize(("headers", "kept"), [({}, True), ({"idempotency-key": "k"}, False)])
def test_who_gets_no_forecast_is_told_what_became_of_the_observations(client, stream, monkeypatch, headers, kept):
    """Without a key they are durable before the reply is written; with one, neither is there without the other."""

    def fail(*_args, **_options):
        raise RuntimeError("cannot be decoded")

    forecaster = client.service.engine.model.forecaster
    before = client.get(stream).json()["version"]
    with monkeypatch.context() as patch:
        patch.setattr(forecaster, "forecast_and_ahead", fail)
        body = observations((40, 1.0))
        reply = client.post(f"{stream}/observations", json=body, headers={"if-match": f'"{before}"', **headers})

    assert_problem(reply, 500, "durable" if kept else "the service failed")
    problem = reply.json()
    assert problem["type"].endswith("taken-without-forecast" if kept else "internal")
    assert problem.get("version") == (before + 1 if kept else None)
    assert client.get(stream).json()["version"] == before + kept
    again = client.post(f"{stream}/observations", json=body, headers=headers).json()
    assert (again["duplicate"], again["accepted"]) == (kept, not kept)


@pytest.mark.parametrize("part", ["statements", "all of it, by the writer"])
def test_a_store_that_fails_is_a_503_and_nothing_changes(client, stream, monkeypatch, part):
    from sqlalchemy.exc import OperationalError

    def fail(*_args):
        raise OperationalError("insert", {}, Exception("disk full"))

    before, store = state_of(client), client.service.store
    with monkeypatch.context() as patch:
        if part == "statements":
            patch.setattr(store, "begin", fail)
        else:
            replace_commit(patch, store, fail)
        reply = client.post(f"{stream}/observations", json=observations((40, 1.0)))

    assert_problem(reply, 503, "nothing was changed")
    assert reply.headers["retry-after"] == "1"
    assert state_of(client) == before


def test_a_micro_batch_that_fails_is_counted_with_parts_of_its_own(client, stream, monkeypatch):
    """And not with those of the one before, which has been counted."""
    from sqlalchemy.exc import OperationalError

    def fail():
        raise OperationalError("select", {}, Exception("the disk has gone"))

    def counted(name):
        found = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
        return {series: float(value) for series, _, value in found}

    def ask(hour):
        """The reply comes before it is counted."""
        (done,) = counted("forecaster_batch_seconds_count").values()
        reply = client.post(f"{stream}/observations", json=observations((hour, 1.0)))
        until(lambda: counted("forecaster_batch_seconds_count") == {"forecaster_batch_seconds_count": done + 1})
        return reply.status_code

    assert ask(40) == 200
    before = counted("forecaster_batch_part_seconds_count")
    monkeypatch.setattr(client.service.store, "moment", fail)
    assert ask(41) == 503
    assert counted("forecaster_batch_part_seconds_count") == before
    assert counted("forecaster_failed_commits_total") == {"forecaster_failed_commits_total": 1.0}


def test_a_store_that_fails_at_the_end_of_a_transaction_leaves_the_outcome_open_and_memory_right(
    client, stream, monkeypatch
):
    """Whether it was kept, the next look at the store tells."""

    def fail(transaction, *asked):
        end(transaction, *asked)
        raise UnknownOutcome("the disk has gone")

    end, before = Transaction.end, client.get(stream).json()["version"]
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "end", fail)
        reply = client.post(f"{stream}/observations", json=observations((40, 1.0)))

    assert_problem(reply, 503, "not known")
    again = client.post(f"{stream}/observations", json=observations((40, 1.0))).json()
    assert (again["duplicate"], again["version"]) == (1, before + 1)


def test_too_much_waiting_is_shed_with_a_time_to_retry(client, stream, monkeypatch):
    engine = client.service.engine
    monkeypatch.setattr(engine._intake, "pending", 10**9)

    reply = client.post(f"{stream}/observations", json=observations((40, 1.0)))

    assert_problem(reply, 503, "waiting")
    assert reply.headers["retry-after"] == "1"
    monkeypatch.setattr(engine._intake, "pending", 0)


def test_what_was_answered_waits_no_more_whatever_it_carried(client, stream):
    lines = "\n".join(json.dumps({"unique_id": name, "ds": ds(40), "y": 1.0}) for name in ("a", "b", "unknown"))
    assert client.post("/v1/observations", content=lines, headers={"content-type": JSON_LINES}).status_code == 200
    assert client.post(f"{stream}/observations", json=observations((41, 1.0))).status_code == 200
    assert client.get("/v1/streams/unknown").status_code == 404

    intake = client.service.engine._intake
    assert (intake.pending, intake.waiting) == (0, 0)


def test_readiness_turns_when_the_store_cannot_be_written(client, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def fail():
        raise OperationalError("update", {}, Exception("read-only"))

    monkeypatch.setattr(client.service.store, "probe", fail)

    assert_problem(client.get("/readyz"), 503, "store: not writable")
    assert client.get("/healthz").status_code == 200


def test_a_parameter_that_means_nothing_is_refused_where_something_is_stored(client):
    client.put("/v1/streams/a", json=history([1.0]))

    assert_problem(client.post("/v1/streams/a/observations?horizon=2", json=observations((1, 2.0))), 422, "'horizon'")
    assert_problem(client.get("/v1/models?name=a"), 422, "'name'")
    assert client.get("/v1/streams/a").json()["version"] == 1


def test_the_longest_history_leaves_room_for_others(settings, monkeypatch):
    """However many steps it has, it counts for a micro-batch; here also with few places for what waits."""
    monkeypatch.setattr(items, "HEAVIEST", 4)
    with LocalClient(create_app(settings.model_copy(update={"max_pending": 10}))) as client:
        client.put("/v1/streams/a", json=history([1.0]))
        commit, begun, go_on = client.service.store.commit, threading.Event(), threading.Event()

        def slowly(*asked):
            begun.set()
            assert go_on.wait(30)
            return commit(*asked)

        replace_commit(monkeypatch, client.service.store, slowly)
        with ThreadPoolExecutor(2) as threads:
            long = threads.submit(client.put, "/v1/streams/long", json=history(VALUES))
            assert begun.wait(30)
            other = threads.submit(client.post, "/v1/streams/a/observations", json=observations((1, 1.0)))
            until(lambda: client.service.engine._intake.pending == 5 or other.done())
            go_on.set()
            assert (long.result(30).status_code, other.result(30).status_code) == (201, 200)


def test_a_long_history_is_folded_beside_the_engine_and_nobody_waits_for_it(
    client, stream, challenger, tiny_forecaster, monkeypatch
):
    """Its state is that of any other; under a model that came meanwhile it is folded once more, beside it again."""
    begun, go_on, fold, by_engine = threading.Event(), threading.Event(), streams.warm_up, []

    def slowly(*asked):
        begun.set()
        assert go_on.wait(30)
        return fold(*asked)

    monkeypatch.setattr(streams, "warm_up", slowly)
    monkeypatch.setattr(streams, "_LONG", 50)
    monkeypatch.setattr(microbatch, "warm_up", lambda model, creates: by_engine.extend(creates) or fold(model, creates))
    values = [float(5 + i % 7) for i in range(60)]
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(client.put, f"/v1/streams/{name}", json=history(values)) for name in ("x", "y")]
        assert begun.wait(30)
        assert client.put("/v1/streams/short", json=history([1.0])).status_code == 201
        assert client.post(f"{stream}/observations", json=observations((40, 1.0))).json()["accepted"] == 1
        go_on.set()
        assert [put.result(30).status_code for put in waiting] == [201, 201]

        def check(forecaster):
            residents = client.service.engine._residents
            found = residents.slab.gather([residents.get(name).row for name in ("x", "y", "short")])
            logs = [dict(enumerate(y, 473352)) for y in (values, values, [1.0])]
            assert_same_state(found, recompute(forecaster, logs))

        check(tiny_forecaster)
        begun.clear()
        go_on.clear()
        waiting = [threads.submit(client.put, f"/v1/streams/{name}", json=history(values)) for name in ("x", "y")]
        assert begun.wait(30)
        client.service.switch.take(ServedModel("other", "2", challenger))
        client.get("/v1/streams/short")
        go_on.set()
        assert [put.result(30).status_code for put in waiting] == [200, 200]
        check(challenger)
    assert {item.unique_id for item in by_engine} == {"short"}


def test_histories_with_gaps_share_a_micro_batch_as_those_without(client, monkeypatch):
    """Gaps are folded like values, so what a micro-batch may take counts them."""
    monkeypatch.setattr(items, "HEAVIEST", 6)
    monkeypatch.setattr(engine_module, "HEAVIEST", 6)
    seen, begin = [], MicroBatch.begin

    def watched(self, items):
        seen.append(sum(item.steps[-1] - item.steps[0] + 1 for item in items if isinstance(item, Create)))
        begin(self, items)

    monkeypatch.setattr(MicroBatch, "begin", watched)
    sparse = {"ds": [ds(0), ds(4)], "y": [1.0, 2.0]}
    client.put("/v1/streams/a", json=history([1.0]))
    commit, begun, go_on = client.service.store.commit, threading.Event(), threading.Event()

    def slowly(*asked):
        begun.set()
        assert go_on.wait(30)
        return commit(*asked)

    replace_commit(monkeypatch, client.service.store, slowly)
    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(client.post, "/v1/streams/a/observations", json=observations((1, 1.0)))
        assert begun.wait(30)
        puts = [threads.submit(client.put, f"/v1/streams/s{i}", json=sparse) for i in range(4)]
        until(lambda: client.service.engine._intake.waiting == 5)
        go_on.set()
        assert [put.result(30).status_code for put in (first, *puts)] == [200, 201, 201, 201, 201]
    assert max(seen) == 10, "one that comes before it is full, and one that fills it"
