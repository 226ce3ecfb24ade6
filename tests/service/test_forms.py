"""Bodies in other forms: forecasts as Arrow, packed requests and replies; the limit holds for what is inside."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.app import create_app
from service.bodies.arrow_size import unpacked_size
from service.front import _Call, _Room
from service.negotiation import preferred
from service.problems import Problem
from tests.service.kit import VALUES, LocalClient, ds, history, observations, run

ARROW = "application/vnd.apache.arrow.stream"
JSON_LINES = "application/x-ndjson"
LIMIT = 65_536


@pytest.fixture
def streams(client):
    """Two streams that end at different hours."""
    assert client.put("/v1/streams/a", json=history(VALUES)).status_code == 201
    assert client.put("/v1/streams/b/1", json=history(VALUES[:30])).status_code == 201
    return client


def table_of(reply):
    """The table of an Arrow reply."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == ARROW
    return pa.ipc.open_stream(reply.content).read_all()


def assert_same_forecasts(table, forecasts):
    """An Arrow table says what JSON forecasts say."""
    frame = table.to_pandas()
    assert list(dict.fromkeys(frame["unique_id"])) == [one["unique_id"] for one in forecasts]
    for one in forecasts:
        rows = frame[frame["unique_id"] == one["unique_id"]]
        assert [stamp.isoformat() for stamp in rows["ds"]] == one["ds"]
        assert {stamp.isoformat() for stamp in rows["cutoff"]} == {one["cutoff"]}
        assert set(zip(rows["model"], rows["model_version"], strict=True)) == {tuple(one["model"].values())}
        assert set(rows["version"]) == {one["version"]} if "version" in one else "version" not in rows
        assert {level: rows[level].tolist() for level in one["quantiles"]} == one["quantiles"]
        if "samples" in one:
            np.testing.assert_array_equal(np.stack(rows["samples"].to_list()).T, one["samples"])


# -- forecasts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?horizon=9&quantile_levels=0.25,0.5", "?num_samples=20&seed=3"])
def test_a_streams_forecast_as_arrow_says_what_json_says(streams, query):
    path = f"/v1/streams/a/forecast{query}"
    reply = streams.get(path, headers={"accept": f"{ARROW}, application/json;q=0.9"})

    assert_same_forecasts(table_of(reply), [streams.get(path).json()])
    assert reply.headers["etag"] == '"1"'


def test_stateless_forecasts_as_arrow_say_what_json_says(client):
    series = [{"unique_id": name, **history(VALUES[:size])} for name, size in (("y", 40), ("x", 3))]
    body = {"series": series, "horizon": 4, "num_samples": 20}
    reply = client.post("/v1/forecasts", json=body, headers={"accept": ARROW})

    assert_same_forecasts(table_of(reply), client.post("/v1/forecasts", json=body).json()["forecasts"])


def test_many_streams_are_forecast_in_one_request(streams):
    body = {"streams": ["b/1", "nobody", "a"], "horizon": 3, "quantile_levels": [0.5]}
    reply = streams.post("/v1/forecasts", json=body)

    found = reply.json()
    alone = [streams.get(f"/v1/streams/{name}/forecast?horizon=3&quantile_levels=0.5").json() for name in ("b/1", "a")]
    assert [{**one, "quantiles": None} for one in found["forecasts"]] == [{**one, "quantiles": None} for one in alone]
    for one, other in zip(found["forecasts"], alone, strict=True):
        np.testing.assert_allclose(one["quantiles"]["0.5"], other["quantiles"]["0.5"], rtol=1e-5)
    assert [(one["unique_id"], one["status"]) for one in found["refused"]] == [("nobody", 404)]

    table = table_of(streams.post("/v1/forecasts", json=body, headers={"accept": ARROW}))
    assert_same_forecasts(table, found["forecasts"])
    assert json.loads(table.schema.metadata[b"refused"]) == found["refused"]
    nobody = streams.post("/v1/forecasts", json={**body, "streams": ["nobody"]}, headers={"accept": ARROW})
    assert table_of(nobody).num_rows == 0
    assert table_of(nobody).schema == table.schema


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "either"),
        ({"streams": ["a"], "series": [{"unique_id": "a", **history([1.0])}]}, "either"),
        ({"streams": ["a", "a"]}, "twice"),
        ({"streams": ["a"], "num_samples": 3}, "one stream"),
        ({"streams": ["a"], "future": "missing"}, "no covariates"),
        ({"streams": [""]}, "1 to 255"),
        ({"streams": [str(i) for i in range(9000)], "horizon": 24, "quantile_levels": [0.5] * 99}, "20,000,000"),
    ],
)
def test_a_bad_request_for_many_streams_is_refused(streams, body, word):
    reply = streams.post("/v1/forecasts", json=body)

    assert reply.status_code == 422
    assert word in reply.json()["detail"]


@pytest.mark.parametrize("accept", ["text/csv", "application/json;q=0, text/*"])
def test_a_form_that_there_is_not_is_refused(streams, accept):
    for reply in (
        streams.get("/v1/streams/a/forecast", headers={"accept": accept}),
        streams.post("/v1/forecasts", json={"streams": ["a"]}, headers={"accept": accept}),
    ):
        assert (reply.status_code, reply.headers["content-type"]) == (406, "application/problem+json")


# -- packed requests ---------------------------------------------------------------------------------------------------


def packed(body, coding):
    return gzip.compress(body) if coding.endswith("gzip") else pa.compress(body, codec=coding, asbytes=True)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "zstd", "GZIP"])
def test_a_packed_body_means_what_the_plain_one_means(streams, coding):
    body = packed(json.dumps(observations((40, 1.5))).encode(), coding.lower())
    reply = streams.post("/v1/streams/a/observations", content=body, headers={"content-encoding": coding})

    assert reply.status_code == 200, reply.text
    assert streams.post("/v1/streams/a/observations", json=observations((40, 1.5))).json()["duplicate"] == 1


def test_a_packed_bulk_body_with_several_gzip_members(streams):
    lines = [json.dumps({"unique_id": "a", "ds": ds(40 + i), "y": 1.0}).encode() + b"\n" for i in range(2)]
    reply = streams.post(
        "/v1/observations",
        content=b"".join(gzip.compress(line) for line in lines),
        headers={"content-type": JSON_LINES, "content-encoding": "gzip"},
    )

    assert reply.json()["counts"] == {"accepted": 2}


@pytest.mark.parametrize(
    ("coding", "body", "status", "word"),
    [
        ("br", b"x", 415, "gzip or zstd"),
        ("gzip, gzip", b"x", 415, "gzip or zstd"),
        ("gzip", b"not packed", 400, "not gzip"),
        ("zstd", b"not packed", 400, "not zstd"),
        ("gzip", gzip.compress(b"x" * 1000, mtime=0)[:-4], 400, "not gzip"),
        ("gzip", b"", 400, "not JSON"),
        ("gzip", gzip.compress(b"x" * LIMIT, mtime=0), 400, "not JSON"),
        ("gzip", gzip.compress(b"x" * (LIMIT + 1), mtime=0), 413, f"{LIMIT} bytes"),
        ("gzip", b"x" * (LIMIT + 1), 413, f"{LIMIT} bytes"),
    ],
)
def test_a_bad_packed_body_is_refused_and_changes_nothing(streams, coding, body, status, word):
    before = streams.get("/v1/streams/a").json()
    reply = streams.post("/v1/streams/a/observations", content=body, headers={"content-encoding": coding})

    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json"), reply.text
    assert word in reply.json()["detail"]
    assert streams.get("/v1/streams/a").json() == before


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_small_body_that_unpacks_to_a_huge_one_costs_no_memory(streams, coding):
    bomb = packed(b"\0" * 200_000_000, coding)
    tracemalloc.start()
    allocated = pa.total_allocated_bytes()
    reply = streams.post("/v1/streams/a/observations", content=bomb[:LIMIT], headers={"content-encoding": coding})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (reply.status_code, reply.json()["type"]) == (413, "urn:forecaster:problem:too-large")
    assert most < 20 * LIMIT
    assert pa.total_allocated_bytes() - allocated < 64 * LIMIT  # of which a stream's own buffers are a megabyte


def test_what_bodies_unpack_to_counts_against_the_room_for_bodies_until_they_are_answered(settings, monkeypatch):
    body = packed(json.dumps({"streams": ["a"]}).encode() + b" " * (LIMIT // 2), "gzip")
    plain = {"streams": ["a"]}
    for bodies, status in ((1, 200), (0.1, 503)):
        monkeypatch.setattr("service.front._BODIES", bodies)
        with LocalClient(create_app(settings)) as client:
            client.put("/v1/streams/a", json=history([1.0] * 10))
            for _ in range(5):
                reply = client.post("/v1/forecasts", content=body, headers={"content-encoding": "gzip"})
                assert reply.status_code == status, reply.text
                assert client.post("/v1/forecasts", json=plain).status_code == 200
    assert reply.json()["type"] == "urn:forecaster:problem:overloaded"


@pytest.mark.parametrize("over", [False, True])
def test_no_body_unpacks_to_more_than_there_is_room_for(over):
    """Nor does one that is still unpacked when its request is over keep any of it."""
    room = _Room(2 * LIMIT)
    body = packed(b"x" * LIMIT, "gzip")

    async def receive():
        return {"type": "http.request", "body": body}

    calls = [_Call({"type": "http", "headers": []}, receive, LIMIT, room, "gzip") for _ in range(3)]
    assert len(run(calls[0].body())) == len(run(calls[1].body())) == LIMIT
    if over:
        calls[2].let_go()
    with pytest.raises(Problem, match="too many requests"):
        run(calls[2].body())

    for call in calls:
        call.let_go()
    assert room.left == 2 * LIMIT


# -- Arrow's own compression -------------------------------------------------------------------------------------------


def arrow_body(table, compression=None):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def rows(count):
    return pa.table(
        {
            "unique_id": pa.array(["a"] * count).dictionary_encode(),
            "ds": np.full(count, np.datetime64(ds(40), "s")),
            "y": np.zeros(count),
        }
    )


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_arrow_is_read_within_the_limit(streams, compression):
    headers = {"content-type": ARROW}
    small, bomb = arrow_body(rows(3), compression), arrow_body(rows(100_000), compression)
    assert len(bomb) < LIMIT / 3

    assert streams.post("/v1/observations", content=small, headers=headers).json()["counts"] == {
        "accepted": 1, "duplicate": 2,
    }  # fmt: skip
    reply = streams.post("/v1/observations", content=bomb, headers=headers)
    assert (reply.status_code, reply.json()["type"]) == (413, "urn:forecaster:problem:too-large")


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_the_size_of_compressed_arrow_is_that_of_its_buffers(compression):
    table = rows(5000)
    found = unpacked_size(arrow_body(table, compression))

    assert found == 0 if compression is None else abs(found - table.nbytes) < 200


@given(place=st.integers(0, 2000), byte=st.integers(0, 255), cut=st.integers(0, 2000))
def test_damaged_arrow_never_does_more_than_raise_arrows_errors(place, byte, cut):
    body = bytearray(arrow_body(rows(50), "lz4"))
    body[place % len(body)] = byte
    try:
        assert unpacked_size(bytes(body[: len(body) - cut % len(body)])) >= 0
    except (pa.ArrowException, OSError):
        pass


# -- packed replies ----------------------------------------------------------------------------------------------------


def test_large_replies_are_packed_for_those_who_accept_it(streams):
    path = "/v1/streams/a/forecast?num_samples=500"
    plain = streams.get(path, headers={"accept-encoding": "identity"})
    reply = streams.get(path, headers={"accept-encoding": "br, gzip"})

    assert (reply.headers["content-encoding"], reply.headers["vary"]) == ("gzip", "Accept, Accept-Encoding")
    assert int(reply.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    assert reply.json() == plain.json()
    assert ("content-encoding" in plain.headers, plain.headers["vary"]) == (False, "Accept, Accept-Encoding")
    assert reply.headers["etag"] == plain.headers["etag"]


@pytest.mark.parametrize("accepted", ["gzip;q=0", "br", "*;q=0", ""])
def test_replies_are_not_packed_for_others(streams, accepted):
    reply = streams.get("/v1/streams/a/forecast?num_samples=500", headers={"accept-encoding": accepted})

    assert "content-encoding" not in reply.headers


def test_small_replies_are_not_packed(streams):
    assert "content-encoding" not in streams.get("/v1/streams/a/forecast", headers={"accept-encoding": "gzip"}).headers


# -- negotiation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        (f"{ARROW}", ARROW),
        (f"*/*;q=0.1, {ARROW.upper()}", ARROW),
        (f"application/json;q=0.2, {ARROW};q=0.3", ARROW),
        ("application/json;q=0, */*", ARROW),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
        ("text/html", None),
        ("application/json;q=2", None),
        ("application/json;q=x", None),
    ],
)
def test_the_form_that_a_client_likes_best(header, expected):
    assert preferred(header, ("application/json", ARROW)) == expected


@given(st.text(max_size=60))
def test_any_header_has_an_answer(header):
    assert preferred(header, ("application/json", ARROW)) in ("application/json", ARROW, None)
