"""The benchmarks of the service, with few streams and for moments: on real processes, their figures fit."""

from __future__ import annotations

import http.server
import threading
from itertools import count

import pytest

from service.benchmark.arrivals import FIRST_HOUR, value_of
from service.benchmark.bulk import measure_bulk
from service.benchmark.overload import TIMES, audited, measure_overload
from service.benchmark.streams import measure_streams
from service.benchmark.web import measure_histories, measure_singles, run_load

STREAMS = 200


@pytest.fixture(scope="module")
def found(artifact, tmp_path_factory):
    """Its results by name."""
    results = measure_streams(artifact, tmp_path_factory.mktemp("streams"), STREAMS)
    return {result["benchmark"]: result for result in results}


def test_it_measures_disk_starts_memory_cold_streams_a_crash_and_a_backup(found):
    assert list(found) == [
        "streams_bytes",
        "streams_start",
        "streams_cold_alone",
        "streams_cold_crowd",
        "streams_memory",
        "streams_killed",
        "streams_backup",
    ]
    assert all(result["value"] > 0 and result["reference"] > 0 for result in found.values())
    assert all(result["streams"] == STREAMS for result in found.values())


def test_a_stream_takes_at_least_what_its_numbers_and_state_take(found):
    disk = found["streams_bytes"]
    assert disk["bytes"] > disk["snapshot_bytes"] > disk["bare_bytes"] - 24 * 16
    assert abs(disk["log_bytes"] + disk["snapshot_bytes"] - disk["bytes"]) <= 1


@pytest.mark.parametrize("label", ["alone", "crowd"])
def test_latencies_are_in_order(found, label):
    cold = found[f"streams_cold_{label}"]
    most = max(cold["max_of_first_ms"], cold["max_of_others_ms"])
    assert 0 < cold["p50_ms"] <= cold["p95_ms"] <= cold["p99_ms"] <= most
    assert 0 < cold["warm_p50_ms"] <= cold["warm_p99_ms"]


def test_many_more_streams_than_the_cap_are_touched_and_no_more_than_the_cap_stay(found):
    memory = found["streams_memory"]
    assert memory["touched"] == 3 * memory["cap"]
    assert 0 < memory["resident"] <= memory["cap"]


def test_single_observations_and_carried_states_are_measured_against_their_counterparts(artifact, tmp_path):
    options = {"seconds": 0.5, "rounds": 1, "clients": 2}
    (single,) = measure_singles(artifact, tmp_path, 24, **options)
    (carried,) = measure_histories(artifact, tmp_path, **options, history=48)

    for found, slack in ((single, 0.01), (carried, 0.1)):
        assert found["failures"] == 0
        assert found["ratio"] == pytest.approx(found["value"] / found["reference"], abs=slack)
        assert 0 < found["p50_ms"] <= found["p99_ms"]
        assert 0 < found["reference_p50_ms"] <= found["reference_p99_ms"]


def test_a_refused_request_counts_as_a_failure_and_not_as_one_that_was_answered():
    numbers = count()

    class Refusing(http.server.BaseHTTPRequestHandler):
        """Answers every second request."""

        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            # In one piece, and in small letters: as much HTTP as the clients know.
            status = b"503 Service Unavailable" if next(numbers) % 2 else b"200 OK"
            self.wfile.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\n{}")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = run_load(server.server_address[1], clients=1, seconds=0.5, first_hour=0)
        server.shutdown()

    assert found["requests"] == next(numbers)
    assert found["failures"] == found["requests"] // 2 > 0
    # Whoever is refused rests for a twentieth of a second before the next one is answered.
    assert found["per_second"] <= 20 * (found["failures"] + 1) / found["failures"]


def test_bulk_bodies_are_measured_against_targets_and_histories_sent_anew(artifact, tmp_path):
    found = list(measure_bulk(artifact, tmp_path, rounds=1, streams=20, steps=3))

    assert [result["benchmark"] for result in found] == ["bulk_json_lines", "bulk_arrow", "bulk_carried_states"]
    assert {(result["rows_per_body"], result["streams"], result["senders"]) for result in found} == {(30, 20, 2)}
    assert found[2]["value"] == found[1]["value"]
    assert all(result["ratio"] == pytest.approx(result["value"] / result["reference"], abs=0.06) for result in found)
    assert found[2]["ratio"] > 1


@pytest.mark.parametrize("places", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_overload_is_measured_against_the_peak_and_the_log_against_what_clients_were_told(artifact, tmp_path, places):
    options = {"seconds": 0.5, "rounds": 1, "minutes": 0.02, "clients": 40, "streams": 80, "places": places}
    (found,) = measure_overload(artifact, tmp_path, **options)

    assert found["ratio"] == pytest.approx(found["value"] / found["reference"], abs=0.02)
    assert found["arrived_per_second"] == pytest.approx(TIMES * found["reference"], abs=3)
    assert found["arrived_per_second"] >= found["sent_per_second"]
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["acknowledged"] > 0
    assert set(found["statuses"]) <= {"200", "503"}
    assert places is not None or found["refused_per_second"] == 0
    assert (found["lost"], found["doubled"], found["states_that_differ"], found["unanswered"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "counted", "expected"),
    [
        ({}, 203, (0, 0)),
        ({203: value_of(203)}, 204, (0, 0)),
        ({201: None}, 203, (1, 0)),
        ({202: 9.0}, 203, (1, 0)),
        ({203: value_of(203), 204: value_of(204)}, 205, (0, 1)),
        ({}, 205, (0, 1)),
    ],
    ids=["as told", "one not answered", "one missing", "one another", "one that nobody sent", "one counted twice"],
)
def test_the_audit_of_overload_finds_what_is_wrong(change, counted, expected):
    """Three were acknowledged, a fourth was sent."""
    log = {hour: value_of(hour) for hour in range(FIRST_HOUR + 3)} | change

    assert audited(log, counted, taken=3, doubtful=1) == expected
