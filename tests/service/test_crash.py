"""Power cuts: a real server process, really killed, loses nothing it acknowledged and doubles nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from forecaster import Panel
from service.store import Store
from tests.service.kit import START, history, observations
from tests.service.processes import HTTP, Server


def test_two_thousand_observations_with_two_kills_forecast_like_one_batch(
    template, artifact, tmp_path, tiny_forecaster
):
    """Acceptance: one by one over HTTP, killed twice between, equals the library on the same history to 1e-4."""
    generator = np.random.default_rng(7)
    values = (20 + 5 * np.sin(np.arange(2001) * np.pi / 2) + generator.normal(size=2001)).round(3).tolist()
    server = Server(
        template, artifact, f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "log", snapshot_every="100"
    ).start()
    with server, httpx.Client(base_url=server.url, timeout=60) as client:
        client.put("/v1/streams/a", json=history(values[:1])).raise_for_status()
        reply: dict = {}
        for hour in range(1, 2001):
            if hour in (700, 1413):
                server.kill()
                server.start()
                # As a client that never saw the last answer would.
                again = client.post(
                    "/v1/streams/a/observations", json=observations((hour - 1, values[hour - 1]))
                ).json()
                assert again["duplicate"] == 1
                assert again["version"] == hour
            answer = client.post("/v1/streams/a/observations", json=observations((hour, values[hour])))
            assert answer.status_code == 200, answer.text
            reply = answer.json()

    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range(START, periods=2001, freq="h"), "y": values})
    expected = tiny_forecaster.forecast_frame(Panel.from_frame(frame, "h"))
    assert reply["ds"] == [stamp.isoformat() for stamp in expected["ds"]]
    for level in reply["quantiles"]:
        np.testing.assert_allclose(reply["quantiles"][level], expected[level], rtol=1e-4)


def peak_kib(pid):
    """The most memory a process ever held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.parametrize("chunked", [False, True])
def test_a_hundred_megabytes_are_refused_and_the_server_lives(template, artifact, tmp_path, chunked):
    part = b"x" * 1_000_000
    with Server(template, artifact, f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "log").start() as server:
        before = peak_kib(server.process.pid) if sys.platform == "linux" else 0
        content = (part for _ in range(100)) if chunked else part * 100
        reply = HTTP.post(f"{server.url}/v1/forecasts", content=content, timeout=60)

        assert reply.status_code == 413
        assert reply.headers["content-type"] == "application/problem+json"
        assert HTTP.get(f"{server.url}/readyz").status_code == 200
        # Neither body was ever held whole.
        if sys.platform == "linux":
            assert peak_kib(server.process.pid) < before + 60_000


def test_a_stopped_server_finishes_what_it_took_in_and_leaves_snapshots(template, artifact, tmp_path):
    server = Server(template, artifact, f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "log").start()
    HTTP.put(f"{server.url}/v1/streams/a", json=history([1.0, 2.0])).raise_for_status()

    assert server.stop() == 0

    store = Store.open(f"sqlite:///{tmp_path / 'log.db'}")
    key = server_key(artifact)
    assert store.recover(["a"], key)["a"].tail == []
    store.close()


def server_key(artifact):
    from service.models.served import load_model

    return load_model(artifact).key


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--model", "no/such/folder"], "no artifact folder"),
        (["--model", "models:/"], "not understood"),
        (["--store", "sqlite://"], "must be a file"),
        (["--port", "99999"], "port"),
    ],
)
def test_bad_settings_are_one_line_and_exit_status_2(artifact, tmp_path, capsys, arguments, word):
    from service.__main__ import main

    defaults = ["--model", str(artifact), "--store", f"sqlite:///{tmp_path / 'log.db'}"]

    assert main([*defaults, *arguments]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1


def test_a_damaged_artifact_is_refused_at_start(challenger, tmp_path, capsys):
    from service.__main__ import main

    folder = tmp_path / "model"
    challenger.save(folder)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7] + b"garbage")

    assert main(["--model", str(folder), "--store", f"sqlite:///{tmp_path / 'log.db'}"]) == 2
    assert "damaged" in capsys.readouterr().err
