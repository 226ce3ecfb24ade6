"""The HTTP contract: what each endpoint answers, and that what is wrong is one clear problem that changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
from urllib.parse import urljoin

import numpy as np
import pyarrow as pa
import pytest

from service.bodies import bulk
from service.bodies.bulk import read_arrow
from service.models.served import ServedModel
from service.problems import Problem
from tests.forecaster.kit import TINY, forecaster_of
from tests.service.kit import (
    VALUES,
    assert_problem,
    chunks,
    ds,
    history,
    observations,
    state_of,
    until,
)

ARROW = "application/vnd.apache.arrow.stream"
JSON_LINES = "application/x-ndjson"
ROWS = [{"unique_id": "a", "ds": f"2024-01-02T{hour}:00:00", "y": 1.0} for hour in (16, 17, 18)]


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
