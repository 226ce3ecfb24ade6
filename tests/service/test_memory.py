"""What a request held goes with its reply, also where it was refused: the garbage collector looks seldom here."""

from __future__ import annotations

import gc
import json
import sqlite3

import pytest
import torch
from sqlalchemy.exc import OperationalError

from service.engine.items import Item
from service.engine.slab import Slab
from tests.service.kit import ds, history, observations

LINES = "\n".join(json.dumps({"unique_id": "a", "ds": ds(hour), "y": 1.0}) for hour in range(10, 20))
JSON_LINES = {"content-type": "application/x-ndjson"}
REFUSED = {
    "another version": ("put", "/v1/streams/a", {"json": history([1.0] * 500), "headers": {"if-none-match": "*"}}, 412),
    "no such stream": ("post", "/v1/streams/b/observations", {"json": observations((10, 1.0))}, 404),
    "a conflict": ("post", "/v1/streams/a/observations", {"json": observations((9, 7.0))}, 409),
}


def waiting() -> int:
    """Items of requests that somebody still holds."""
    return sum(issubclass(type(thing), Item) for thing in gc.get_objects())


@pytest.fixture
def uncollected(client):
    """A service with a stream, while the garbage collector rests."""
    client.put("/v1/streams/a", json=history([1.0] * 10))
    gc.collect()
    gc.disable()
    try:
        yield client
    finally:
        gc.enable()


@pytest.mark.parametrize("why", REFUSED)
def test_a_refused_request_is_let_go(uncollected, why):
    method, path, options, status = REFUSED[why]
    before = waiting()
    for _ in range(5):
        assert getattr(uncollected, method)(path, **options).status_code == status

    assert waiting() <= before + 1  # the engine's thread may hold the latest


@pytest.mark.parametrize(
    "failure",
    [OperationalError("SELECT", {}, ConnectionError("away")), sqlite3.DatabaseError("no database")],
)
def test_a_request_that_the_store_fails_is_refused_as_that_and_let_go(uncollected, monkeypatch, failure):
    def fail():
        raise failure

    before = waiting()
    with monkeypatch.context() as patch:
        patch.setattr(uncollected.service.store, "moment", fail)
        for _ in range(5):
            reply = uncollected.post("/v1/observations", content=LINES, headers=JSON_LINES)
            assert reply.status_code == 503, reply.text

    assert waiting() <= before + 1
    assert uncollected.get("/v1/streams/a").status_code == 200


def test_memory_that_ends_while_the_slab_grows_leaves_it_as_it_was(tiny_forecaster, monkeypatch):
    slab = Slab(tiny_forecaster)
    capacity = slab.capacity
    rows = slab.take(capacity)

    def fail(*_args, **_options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", fail)
        with pytest.raises(MemoryError):
            slab.take(1)
    assert slab.capacity == capacity
    slab.give_back(rows[:3])

    assert sorted(slab.take(3)) == sorted(rows[:3])
    assert slab.take(1) == [capacity]
