"""R26: far more streams than fit into memory; the cap holds, and a stream that left answers as if it had stayed."""

from __future__ import annotations

import json
import random
import time

import numpy as np

from service.app import create_app
from tests.service.kit import LocalClient, ds, history, recompute

BASE = 473352
CAP = 6


def test_ten_times_more_streams_than_fit_answer_as_if_all_had_stayed(settings, tiny_forecaster):
    """Bulk and single observations, late ones among them, in an order that brings everyone back again and again."""
    names = [f"s{i}" for i in range(10 * CAP)]
    logs = {name: {0: 5.0} for name in names}
    chance = random.Random(1)
    tight = settings.model_copy(update={"max_resident": CAP, "snapshot_every": 4})
    with LocalClient(create_app(tight)) as client:
        engine = client.service.engine
        for name in names:
            client.put(f"/v1/streams/{name}", json=history([5.0]))
        for _ in range(12):
            lines = []
            for name in chance.sample(names, 15):
                hour = max(logs[name]) + chance.randint(1, 3)
                for step in {hour, max(hour - chance.randint(0, 2), 0)} - set(logs[name]):
                    logs[name][step] = round(chance.uniform(1, 9), 2)
                    lines.append({"unique_id": name, "ds": ds(step), "y": logs[name][step]})
            body = "\n".join(map(json.dumps, lines))
            reply = client.post("/v1/observations", content=body, headers={"content-type": "application/x-ndjson"})
            assert set(reply.json()["counts"]) <= {"accepted", "late"}, reply.text
            assert len(engine._residents) <= CAP + 15
        found = {name: client.get(f"/v1/streams/{name}/forecast").json() for name in names}
        end = time.monotonic() + 30
        while len(engine._residents) > CAP:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert client.service.metrics.restored._value.get() > 10 * CAP

    expected = tiny_forecaster.forecast(
        recompute(tiny_forecaster, [{BASE + h: y for h, y in logs[name].items()} for name in names])
    )
    for name, quantiles in zip(names, expected, strict=True):
        np.testing.assert_allclose(np.array(list(found[name]["quantiles"].values())).T, quantiles, rtol=1e-5)


def test_the_longest_idle_leave_first(settings):
    tight = settings.model_copy(update={"max_resident": 3})
    with LocalClient(create_app(tight)) as client:
        for name in "abc":
            client.put(f"/v1/streams/{name}", json=history([5.0]))
        client.get("/v1/streams/a")
        client.put("/v1/streams/d", json=history([5.0]))
        client.get("/v1/streams/c")  # waits for the eviction before it

        assert set(client.service.engine._residents._by_name) == {"a", "c", "d"}
