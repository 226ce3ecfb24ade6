"""Each observation's place in what was forecast for it just before, however it came and whatever happened."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from forecaster.marginals import surprise
from service.app import create_app
from service.engine.slab import Slab
from tests.service.kit import LocalClient, ds, history, observations

BASE = 473352
VALUES = [float(5 + i % 7) for i in range(30)]
NEW = [6.0, None, 40.0, 2.0, 3.0, 8.0, 5.5, 6.0, 7.0]


@pytest.fixture
def expected(tiny_forecaster) -> list[float]:
    """Places of the new values, one observation at a time."""
    state = tiny_forecaster.warm_up([np.array(VALUES)], [BASE])
    found = []
    for y in NEW:
        value = torch.tensor([np.nan if y is None else y], dtype=torch.float64)
        found.append(tiny_forecaster.place(tiny_forecaster.ahead(state), value).item())
        state = tiny_forecaster.observe(state, value)
    return found


def observe(client, *pairs, **more):
    reply = client.post("/v1/streams/a/observations", json=observations(*pairs, **more))
    assert reply.status_code == 200, reply.text
    return reply.json()


def numbers(values):
    return np.array([np.nan if value is None else value for value in values], dtype=float)


@pytest.mark.parametrize("cuts", [[], [1], [2, 5], list(range(1, 9))])
def test_places_do_not_depend_on_how_observations_are_cut_into_requests(client, expected, cuts):
    client.put("/v1/streams/a", json=history(VALUES))
    pairs = [(30 + i, y) for i, y in enumerate(NEW)]
    places, surprises = [], []
    for start, end in itertools.pairwise([0, *cuts, len(pairs)]):
        reply = observe(client, *pairs[start:end])
        places += reply["places"]
        surprises += reply["surprises"]

    np.testing.assert_allclose(numbers(places), expected, rtol=1e-3)
    np.testing.assert_allclose(numbers(surprises), surprise(numbers(places)))
    assert surprises.index(None) == 1
    assert np.nanargmax(numbers(surprises)) == 2


def test_a_restart_or_an_eviction_changes_no_place(settings, expected):
    settings = settings.model_copy(update={"max_resident": 1})
    found = []
    with LocalClient(create_app(settings)) as client:
        client.put("/v1/streams/a", json=history(VALUES))
    for i, y in enumerate(NEW):
        with LocalClient(create_app(settings)) as client:
            client.put("/v1/streams/b", json=history(VALUES))
            client.put("/v1/streams/c", json=history(VALUES))
            found += observe(client, (30 + i, y))["places"]

    np.testing.assert_allclose(numbers(found), expected, rtol=1e-3)


def test_late_revised_and_shuffled_values_are_placed_where_they_belong_and_others_not_at_all(client, expected):
    client.put("/v1/streams/a", json=history(VALUES))
    reply = observe(client, (32, NEW[2]), (30, NEW[0]), (32, NEW[2]))
    np.testing.assert_allclose(numbers(reply["places"]), [expected[2], expected[0], np.nan], rtol=1e-3)

    observe(client, (33, 9.0), (35, NEW[5]))
    late = observe(client, (34, NEW[4]), (33, NEW[3]), on_conflict="revise")["places"]
    np.testing.assert_allclose(numbers(late), [expected[4], expected[3]], rtol=1e-3)
    assert observe(client, (34, NEW[4]))["places"] == [None]


def test_bulk_rows_are_placed_where_a_threshold_asks_for_it(client, expected):
    for name in ("a", "b"):
        client.put(f"/v1/streams/{name}", json=history(VALUES))

    def send(rows, query="?min_surprise=0"):
        lines = [f'{{"unique_id":"{n}","ds":"{ds(30 + i)}","y":{"null" if y is None else y}}}' for i, y, n in rows]
        reply = client.post(
            f"/v1/observations{query}", content="\n".join(lines), headers={"content-type": "application/x-ndjson"}
        )
        assert reply.status_code == 200, reply.text
        return reply.json()

    rows = [(i, y, n) for i, y in enumerate(NEW) for n in ("b", "none", "a")]
    unasked = send(rows[:3], query="")  # the next of these has to be told anew
    found = send(rows[3:])
    again = send(rows[3:])

    assert "surprising" not in unasked
    placed = {(row["unique_id"], row["row"] // 3 + 1): row["surprise"] for row in found["surprising"]}
    wanted = {(n, i): surprise(np.array([u]))[0] for n in "ab" for i, u in enumerate(expected) if i and not np.isnan(u)}
    assert placed == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert again["surprising"] == []
    metrics = client.get("/metrics").text
    for least in (1, 2):
        count = sum(value >= least for value in wanted.values())
        assert f'forecaster_surprising_observations_total{{surprise="{least}"}} {count}.0' in metrics
    assert client.post("/v1/observations?min_surprise=x", content=b"").status_code == 422


def test_the_most_surprising_rows_come_first(client):
    client.put("/v1/streams/a", json=history(VALUES))
    rows = "\n".join(f'{{"unique_id":"a","ds":"{ds(30 + i)}","y":{y}}}' for i, y in enumerate([6.0, 90.0, 6.0, 60.0]))
    reply = client.post(
        "/v1/observations?min_surprise=1", content=rows, headers={"content-type": "application/x-ndjson"}
    ).json()

    found = reply["surprising"]
    assert {row["row"] for row in found} >= {1}
    assert [row["surprise"] for row in found] == sorted((row["surprise"] for row in found), reverse=True)
    assert all(row["surprise"] >= 1 and row["unique_id"] == "a" and row["place"] > 0.5 for row in found[:1])


def test_what_a_row_of_the_slab_foretells_is_of_the_state_that_is_there_now(tiny_forecaster):
    slab = Slab(tiny_forecaster, 4)
    rows = torch.tensor(slab.take(1))
    first, second = (tiny_forecaster.warm_up([np.arange(12.0) * size + 5], [0]) for size in (1, 30))
    slab.scatter(rows, first, tiny_forecaster.ahead(first))

    slab.scatter(rows, second, None)

    y = torch.tensor([60.0], dtype=torch.float64)
    found = tiny_forecaster.place(slab.ahead(rows, None), y)
    np.testing.assert_allclose(found, tiny_forecaster.place(tiny_forecaster.ahead(second), y), rtol=1e-6)
    assert abs(found - tiny_forecaster.place(tiny_forecaster.ahead(first), y)) > 0.01
