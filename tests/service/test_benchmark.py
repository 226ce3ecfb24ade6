"""The benchmark of very many streams, with few: it runs on real processes, and its figures fit together."""

from __future__ import annotations

import pytest

from service.benchmark.streams import measure_streams

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
    assert 0 < cold["p50_ms"] <= cold["p95_ms"] <= cold["p99_ms"] <= cold["max_ms"]
    assert 0 < cold["warm_p50_ms"] <= cold["warm_p99_ms"]


def test_many_more_streams_than_the_cap_are_touched_and_no_more_than_the_cap_stay(found):
    memory = found["streams_memory"]
    assert memory["touched"] == 3 * memory["cap"]
    assert 0 < memory["resident"] <= memory["cap"]
