"""Every parser of the service against what nobody sent yet: a clear refusal or a sound answer, never a failure."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.bodies.bulk import _read_clean_lines, _read_each_line
from service.settings import Settings
from tests.service.kit import LocalClient, ds, history

ARROW = "application/vnd.apache.arrow.stream"
JSON_LINES = "application/x-ndjson"
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 1e30, -1e30, 1.0000001e30, 1e308, 2**63, -0.0])
)
NAMES = st.one_of(st.sampled_from(["a", "b/1", "", "x" * 255, "x" * 256, "a\0", "é", "\u202e"]), st.text(max_size=5))
TIMES = st.one_of(
    st.sampled_from(
        [
            ds(20), ds(21), "2024-01-01", "2024-01-01T20:30", "2024-01-01T20:00Z", "2024-01-01T20:00+01:00",
            "20240101T21", "2024-W01-1", "2024-001", "9999-12-31T23:00", "0001-01-01T00:00", "1677-01-01",
            "2262-12-31", "2024-02-30",
            "2024-01-01T24:00", "2024-01-01T23:00:60", "2024-01-01 22:00:00", "٢٠٢٤-01-01", "now", "", "NaT", "nan",
        ]
    ),
    st.datetimes(datetime(1, 1, 1)).map(lambda t: t.isoformat()),
    st.integers(15, 40).map(ds),
    st.text(max_size=12),
    NUMBERS,
)  # fmt: skip
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TIMES, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def client(artifact, tmp_path_factory):
    store = f"sqlite:///{tmp_path_factory.mktemp('parsers') / 'log.db'}"
    chosen = Settings(model=str(artifact), store=store, max_gap_steps=10, max_history_steps=2000, max_body_bytes=65536)
    with LocalClient(create_app(chosen)) as running:
        running.put("/v1/streams/a", json=history([1.0] * 20))
        running.put("/v1/streams/b/1", json=history([1.0] * 20))
        yield running


def text(value):
    """JSON as sloppy writers write it: NaN, infinities, lone surrogates."""
    return json.dumps(value).encode()


def checked(reply):
    """Nothing but answers and clear refusals."""
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        problem = reply.json()
        assert reply.headers["content-type"] == "application/problem+json"
        assert problem["status"] == reply.status_code
        assert "\n" not in problem["detail"]
    return reply


# -- JSON bodies -------------------------------------------------------------------------------------------------------

OBSERVATION = st.fixed_dictionaries({"ds": TIMES, "y": st.one_of(NUMBERS, st.none(), JUNK)})
BODIES = {
    ("POST", "/v1/streams/a/observations"): st.fixed_dictionaries(
        {"observations": st.lists(OBSERVATION, min_size=1, max_size=4)},
        optional={"horizon": JUNK, "quantile_levels": JUNK, "on_conflict": JUNK, "future": JUNK},
    ),
    ("PUT", "/v1/streams/new"): st.fixed_dictionaries(
        {"ds": st.lists(TIMES, max_size=4), "y": st.lists(st.one_of(NUMBERS, st.none()), max_size=4)},
        optional={"covariates": JUNK, "static": JUNK},
    ),
    ("POST", "/v1/streams/a/forecast"): st.fixed_dictionaries(
        {}, optional={"horizon": JUNK, "quantile_levels": JUNK, "num_samples": JUNK, "seed": JUNK, "future": JUNK}
    ),
    ("POST", "/v1/forecasts"): st.fixed_dictionaries(
        {},
        optional={
            "series": st.lists(
                st.fixed_dictionaries(
                    {"unique_id": NAMES, "ds": st.lists(TIMES, max_size=3), "y": st.lists(NUMBERS, max_size=3)}
                ),
                max_size=2,
            ),
            "streams": st.lists(NAMES, max_size=3),
            "horizon": st.one_of(st.integers(-1, 30), JUNK),
            "quantile_levels": st.one_of(st.lists(st.floats(0, 1), max_size=3), JUNK),
            "num_samples": JUNK,
            "future": JUNK,
        },
    ),
}


@pytest.mark.parametrize(("method", "path"), BODIES)
def test_json_bodies(client, method, path):
    @FEW
    @given(st.one_of(BODIES[method, path], JUNK))
    def ask(body):
        before = client.get("/v1/streams").json()
        reply = checked(client.request(method, path, content=text(body)))
        if not reply.is_success:
            assert client.get("/v1/streams").json() == before

    ask()


@FEW
@given(st.binary(max_size=40), st.integers(0, 5))
def test_bodies_that_are_hardly_json(client, noise, place):
    sound = orjson.dumps({"observations": [{"ds": ds(20), "y": 1.0}]})
    at = place * len(sound) // 5

    checked(client.post("/v1/streams/a/observations", content=sound[:at] + noise + sound[at:]))


# -- JSON lines --------------------------------------------------------------------------------------------------------

ROW = st.fixed_dictionaries({"unique_id": NAMES, "ds": TIMES, "y": st.one_of(NUMBERS, st.none())})
LINE = st.one_of(
    ROW.map(text),
    ROW.map(text),
    st.fixed_dictionaries({"unique_id": NAMES, "ds": TIMES, "y": JUNK}, optional={"more": JUNK}).map(text),
    JUNK.map(text),
    st.binary(max_size=20).map(lambda noise: noise.replace(b"\n", b" ")),
)


@FEW
@given(st.lists(LINE, max_size=5))
@example([b'{"unique_id":"a","ds":"2024-01-01T20:00:00","y":1}', b"", b"   "])
@example([b'{"unique_id":"a","ds":"2024-01-01T20:00:00","y":1},{"unique_id":"a","ds":"2024-01-01T21:00:00","y":1}'])
@example([b'{"unique_id":"a","ds":"2024-01-01T20:00:00","y":1}]', b'[{"unique_id":"a"'])
@example([b'{"unique_id":"a","unique_id":"b/1","ds":"2024-01-01T20:00:00","y":1}'])
@example([b'{"unique_id":"a","ds":"2024-01-01T20:00:00","y":123456789012345678901234567890}'])
def test_json_lines(client, lines):
    reply = checked(client.post("/v1/observations", content=b"\n".join(lines), headers={"content-type": JSON_LINES}))
    if reply.is_success:
        meant = [line for line in b"\n".join(lines).split(b"\n") if line and not line.isspace()]
        assert reply.json()["rows"] == len(reply.json()["verdicts"]) == len(meant)


@pytest.mark.parametrize("end", [b'{"y":[1', b'{"y":[{}'])
def test_a_line_is_a_row_by_itself(client, end):
    """Two halves together would be one row, and two rows on a line make up for the number."""
    halves = [end, b'{}],"unique_id":"a","ds":"2024-01-01T20:00:00","y":1}']
    row = b'{"unique_id":"b/1","ds":"2024-01-01T00:00:00","y":1}'

    body = b"\n".join([*halves, row + b"," + row, row])
    reply = client.post("/v1/observations", content=body, headers={"content-type": JSON_LINES})

    assert reply.json()["verdicts"] == ["invalid", "invalid", "invalid", "duplicate"]


@FEW
@given(st.lists(ROW, min_size=1, max_size=5))
def test_the_quick_reader_of_json_lines_reads_what_the_slow_one_reads_or_nothing(client, rows):
    model = client.service.engine.model
    lines = [text(row) for row in rows]
    quick, slow = _read_clean_lines(lines, model.dates), _read_each_line(lines, model)

    if quick is not None:
        assert slow.reasons == {}
        assert (quick.unique_ids, quick.steps, quick.values) == (slow.unique_ids, slow.steps, slow.values)


# -- Arrow -------------------------------------------------------------------------------------------------------------


def arrow(table, compression=None):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


SIZE = 3
STAMPS = [datetime(2024, 1, 1) + timedelta(hours=20 + i) for i in range(SIZE)]
COLUMNS = {
    "unique_id": [
        pa.array(["a", "b/1", "a"]), pa.array(["a", None, "nobody"]), pa.array(["a"] * SIZE).dictionary_encode(),
        pa.array(["a", None, ""], pa.large_string()), pa.array([b"a"] * SIZE), pa.array([1, 2, 3]), pa.nulls(SIZE),
        pa.array(["a", "b/1", "x" * 300], pa.string_view()), pa.array([["a"]] * SIZE),
        pa.array(["a", None, "a"]).dictionary_encode(),
    ],
    "ds": [
        pa.array([ds(20), ds(21), ds(22)]), pa.array(STAMPS), pa.array(STAMPS, pa.timestamp("ns", "UTC")),
        pa.nulls(SIZE), pa.array([STAMPS[0].date()] * SIZE), pa.array([1, 2, 3]), pa.array([ds(20), None, "soon"]),
        pa.array([1.5] * SIZE),
        pa.array([ds(20), ds(21), ds(20)]).dictionary_encode(), pa.array([timedelta(1)] * SIZE),
        pa.array([None, *STAMPS[1:]]), pa.array([2**62] * SIZE, pa.int64()).cast(pa.timestamp("s"), safe=False),
        pa.array([True, False, None]), pa.array([STAMPS[0].date(), None, STAMPS[0].date()], pa.date64()),
    ],
    "y": [
        pa.array([1.0, 2.0, 3.0]), pa.array([1, None, 3]), pa.array([np.nan, np.inf, -np.inf]), pa.nulls(SIZE),
        pa.array([1, 2, 3], pa.uint64()), pa.array([2**64 - 1] * SIZE, pa.uint64()), pa.array(["1", "2", "3"]),
        pa.array([1, 2, 3], pa.float16()), pa.array([True, False, None]), pa.array([1e300, 1e30, 0]),
        pa.array([1, 2, 3]).cast(pa.decimal128(30, 2)), pa.array([1.0, 2.0, 1.0]).dictionary_encode(),
    ],
    "more": [pa.array([1, 2, 3])],
}  # fmt: skip


@settings(FEW, max_examples=150)
@given(
    st.lists(st.sampled_from(list(COLUMNS)), min_size=3, max_size=4, unique=True),
    st.data(),
    st.sampled_from([None, "lz4", "zstd"]),
)
def test_arrow_tables_of_any_types(client, names, data, compression):
    table = pa.table({name: data.draw(st.sampled_from(COLUMNS[name]), label=name) for name in names})
    reply = checked(client.post("/v1/observations", content=arrow(table, compression), headers={"content-type": ARROW}))
    if reply.is_success:
        assert len(reply.json()["verdicts"]) == SIZE


@settings(FEW, max_examples=150)
@given(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 10_000), st.sampled_from([None, "lz4", "zstd"]))
def test_damaged_arrow(client, place, byte, cut, compression):
    table = pa.table({name: COLUMNS[name][0] for name in ("unique_id", "ds", "y")})
    body = bytearray(arrow(table, compression))
    body[place % len(body)] = byte
    body = body[: len(body) - (cut % len(body) if cut % 3 == 0 else 0)]

    checked(client.post("/v1/observations", content=bytes(body), headers={"content-type": ARROW}))


# -- dates, names, queries, headers ------------------------------------------------------------------------------------


@FEW
@given(TIMES)
def test_dates_are_read_back_as_they_are_written_or_refused(client, value):
    body = {"ds": [value], "y": [1.0]}
    reply = checked(client.put("/v1/streams/dated", content=text(body)))
    if reply.is_success:
        written = reply.json()["cutoff"]
        again = checked(client.put("/v1/streams/dated", json={"ds": [written], "y": [1.0]}))
        assert again.json()["cutoff"] == written
        assert datetime.fromisoformat(written) == datetime.fromisoformat(str(value))


QUERIES = st.dictionaries(
    st.sampled_from(
        ["horizon", "quantile_levels", "future", "num_samples", "seed", "limit", "cursor", "prefix", "cutoff_from",
         "cutoff_before", "order", "on_conflict", "min_surprise", "x"]
    ),
    st.one_of(st.text(max_size=8), st.integers(-5, 2**70).map(str), st.floats().map(str), TIMES.map(str)),
    max_size=3,
)  # fmt: skip


@settings(FEW, max_examples=200)
@given(
    st.sampled_from(["/v1/streams", "/v1/streams/a", "/v1/streams/a/forecast", "/v1/quality", "/v1/streams/a/quality"]),
    QUERIES,
)
def test_queries(client, path, query):
    checked(client.get(path, params=query))


HEADERS = st.dictionaries(
    st.sampled_from(["if-match", "if-none-match", "idempotency-key", "accept", "accept-encoding", "content-encoding"]),
    st.one_of(
        st.binary(max_size=8).map(lambda b: bytes(c for c in b if c >= 32 and c != 127)),
        st.sampled_from([b"*", b'"1"', b'W/"1"', b'"1","2"', b'"' + b"9" * 30 + b'"', b"gzip", b"zstd;q=0"]),
    ),
    max_size=3,
)


@settings(FEW, max_examples=100)
@given(HEADERS)
def test_headers(client, headers):
    body = orjson.dumps({"observations": [{"ds": ds(19), "y": 1.0}]})
    checked(client.post("/v1/streams/a/observations", content=body, headers=headers))
    checked(client.get("/v1/streams/a/forecast", headers=headers))
