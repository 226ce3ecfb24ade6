"""Event time end to end: order of arrival, calendars and corrections change nothing that the batch would not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster import Panel
from service.app import create_app
from service.settings import Settings
from tests.forecaster.kit import config_of, forecaster_of
from tests.service.kit import LocalClient, ds, history, observations, until
from tests.service.test_replay import MAX_GAP, VALUES, Machine


@settings(max_examples=20)
@given(
    values=st.lists(VALUES, min_size=5, max_size=25),
    shifts=st.lists(st.integers(0, MAX_GAP), min_size=25, max_size=25),
    cuts=st.lists(st.integers(1, 4), min_size=25, max_size=25),
)
def test_arrival_out_of_order_within_the_window_equals_arrival_in_order(values, shifts, cuts, tiny_forecaster):
    """R7: every row is taken, accepted or late, and the state is that of the ordered stream."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(tiny_forecaster, Path(folder))
        machine.create("a", [0], [5.0])
        order = sorted(range(len(values)), key=lambda i: i + shifts[i])
        taken = 0
        for size in cuts:
            part = [(i + 1, values[i]) for i in order[taken : taken + size]]
            if part:
                machine.observe({"a": part}, revise=False, whole=True)
            taken += size
        assert machine.logs["a"] == {0: 5.0} | {i + 1: y for i, y in enumerate(values)}
        machine.check()
        machine.close()


@pytest.mark.parametrize("late", [True, False])
def test_beyond_the_window_there_is_a_verdict_a_count_and_no_change(client, late):
    """R7: before the log, or further ahead than may be filled."""
    client.put("/v1/streams/a", json=history([1.0, 2.0, 3.0], first=10))
    before = client.get("/v1/streams/a/forecast").json()
    hour, verdict, status = (9, "too_old", "too-old") if late else (12 + 12, "gap_too_long", "gap-too-long")
    row = f'{{"unique_id":"a","ds":"{ds(hour)}","y":1}}'

    alone = client.post("/v1/streams/a/observations", json=observations((hour, 1.0)))
    bulk = client.post("/v1/observations", content=row, headers={"content-type": "application/x-ndjson"}).json()

    assert (alone.status_code, alone.json()["type"].rpartition(":")[2]) == (422, status)
    assert bulk["verdicts"] == [verdict]
    line = f'forecaster_observations_total{{verdict="{verdict}"}} 1.0'
    until(lambda: line in client.get("/metrics").text)  # counted once the answer is out
    assert client.get("/v1/streams/a/forecast").json() == before


@pytest.mark.parametrize(
    ("freq", "time_zone", "first", "gaps"),
    [
        ("h", "Europe/Berlin", "2024-03-30T20:00:00+01:00", (3, 8)),  # the clock goes forward on the 31st
        ("h", "Europe/Berlin", "2024-10-26T20:00:00+02:00", (2, 7)),  # and back on the 27th
        ("D", "Europe/Berlin", "2024-03-29T00:00:00+01:00", (1, 3)),
        ("ME", None, "2023-12-31", (2, 5)),
        ("MS", None, "2024-01-01", (1, 2)),
        ("B", None, "2024-02-27", (2, 4)),
        ("15min", None, "2024-02-28T23:15:00", (1, 6)),
    ],
)
def test_gaps_of_any_calendar_are_filled_as_the_batch_fills_them(tmp_path, freq, time_zone, first, gaps):
    """R8: the reply says how many steps were filled; a longer gap than allowed is refused."""
    forecaster = forecaster_of(config_of().with_overrides({"freq": freq, "time_zone": time_zone}))
    forecaster.save(tmp_path / "model")
    begins = pd.Timestamp(first) if time_zone is None else pd.Timestamp(first).tz_convert(time_zone)
    stamps = pd.date_range(begins, periods=40, freq=freq)
    kept = [i for i in range(24) if not 6 <= i < 6 + gaps[0] and not 15 <= i < 15 + gaps[1]]
    values = {i: float(5 + i * 7 % 11) for i in kept}
    text = [stamp.isoformat() for stamp in stamps]
    model = Settings(model=str(tmp_path / "model"), store=f"sqlite:///{tmp_path / 'log.db'}", max_gap_steps=10)
    with LocalClient(create_app(model)) as client:
        begun = client.put("/v1/streams/a", json={"ds": text[:1], "y": [values[0]]})
        assert begun.status_code == 201, begun.text
        filled = []
        for i in kept[1:]:
            body = {"observations": [{"ds": text[i], "y": values[i]}]}
            reply = client.post("/v1/streams/a/observations", json=body).json()
            filled.append(reply["filled"])
        too_far = client.post("/v1/streams/a/observations", json={"observations": [{"ds": text[35], "y": 1.0}]})

    frame = pd.DataFrame({"unique_id": "a", "ds": stamps[kept], "y": [values[i] for i in kept]})
    expected = forecaster.forecast_frame(Panel.from_frame(frame, freq))
    assert [count for count in filled if count] == list(gaps)
    assert (too_far.status_code, too_far.json()["type"].rpartition(":")[2]) == (422, "gap-too-long")
    assert [pd.Timestamp(stamp) for stamp in reply["ds"]] == [pd.Timestamp(stamp) for stamp in expected["ds"]]
    for level in reply["quantiles"]:
        np.testing.assert_allclose(reply["quantiles"][level], expected[level], rtol=1e-4)


@pytest.mark.parametrize("hour", [0, 7, 19])
def test_a_correction_is_a_conflict_until_it_is_asked_for(client, hour):
    """R9: and then it equals the recomputed stream."""
    values = [float(5 + i * 7 % 11) for i in range(20)]
    client.put("/v1/streams/a", json=history(values))
    before = client.get("/v1/streams/a/forecast").json()

    refused = client.post("/v1/streams/a/observations", json=observations((hour, 99.0)))
    assert refused.status_code == 409
    assert client.get("/v1/streams/a/forecast").json() == before
    revised = client.post("/v1/streams/a/observations", json=observations((hour, 99.0), on_conflict="revise")).json()
    assert revised["revised"] == 1
    values[hour] = 99.0
    client.put("/v1/streams/b", json=history(values))
    for level, quantiles in client.get("/v1/streams/b/forecast").json()["quantiles"].items():
        np.testing.assert_allclose(revised["quantiles"][level], quantiles, rtol=1e-5)
