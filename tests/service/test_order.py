"""Items that wait together: of each stream they are done in the order they came, whatever micro-batches they make."""

from __future__ import annotations

import asyncio
from itertools import count

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.engine.items import Create, Delete, Look, Observe, Single
from service.problems import Problem
from service.settings import Settings
from tests.service.kit import LocalClient, recompute

ACTIONS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["look", "look", "observe", "create", "delete"])))


@pytest.fixture(scope="module")
def served(artifact, tmp_path_factory):
    """A service for all examples, and numbers that tell their streams apart."""
    store = f"sqlite:///{tmp_path_factory.mktemp('order') / 'log.db'}"
    with LocalClient(create_app(Settings(model=str(artifact), store=store))) as client:
        yield client, count()


@settings(max_examples=30)
@example([("a", "look"), ("a", "observe"), ("a", "look"), ("a", "delete"), ("a", "look"), ("a", "create")])
@given(ACTIONS)
def test_each_item_meets_what_those_before_it_have_made_of_its_stream(served, tiny_forecaster, actions):
    client, numbers = served
    engine, number = client.service.engine, next(numbers)
    want = engine.model.want(3, (0.5,))
    asked: list[tuple[str, str, int]] = []  # and how many values the stream has by then, 0: there is none
    held = dict.fromkeys("ab", 0)
    for name, what in [("a", "create"), *actions]:
        if what == "create" or (what == "observe" and held[name]):
            held[name] = held[name] + 1 if what == "observe" else 1
        asked.append((name, what, held[name]))
        if what == "delete":
            held[name] = 0

    def item(name, what, values):
        ticket, stream = Single(), f"{number}-{name}"
        if what == "look":
            return Look(ticket, stream, want)
        if what == "delete":
            return Delete(ticket, stream)
        new = Create if what == "create" else Observe
        return new(ticket, stream, [max(values, 1)], [float(max(values, 1))])

    async def ask():
        items = [item(*one) for one in asked]
        engine.submit(items)
        return await asyncio.gather(*(one.ticket.future for one in items), return_exceptions=True)

    for (name, what, values), found in zip(asked, client.call(ask()), strict=True):
        if not values:
            assert isinstance(found, Problem), (name, what)
            assert found.status == 404
            continue
        assert (found.record.observations, found.record.last_step) == (values, values), (name, what)
        if what == "look":
            log = {step: float(step) for step in range(1, values + 1)}
            expected = tiny_forecaster.forecast(recompute(tiny_forecaster, [log]), 3, [0.5])[0].T
            np.testing.assert_allclose(found.quantiles, expected, rtol=1e-4)
