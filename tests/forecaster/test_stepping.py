"""A change of some rows, written over them, is what observing copies of these rows gives."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Config, StreamState
from tests.forecaster.kit import (
    COVERED,
    VARIANTS,
    Float,
    assert_identical_state,
    assert_same_forecast,
    assert_same_state,
    batches,
    forecaster_of,
    table_of,
)

CONFIGS = st.sampled_from((*VARIANTS, *COVERED))
FIRST = 1000


@given(config=CONFIGS, histories=batches(min_rows=2), later=batches(max_rows=1, max_size=12), data=st.data())
def test_changes_written_over_their_rows_are_what_folding_copies_gives(
    config: Config, histories: list[Float], later: list[Float], data: st.DataObject
) -> None:
    forecaster = forecaster_of(config)
    slab = forecaster.warm_up(histories, [FIRST + 3 * row for row in range(len(histories))])
    chosen = data.draw(st.lists(st.integers(0, len(histories) - 1), unique=True, min_size=1))
    others = [row for row in range(len(histories)) if row not in chosen]
    rows, before = torch.tensor(chosen), slab.select(torch.arange(len(histories)))
    expected = slab.select(rows)

    for value in later[0]:
        y = torch.arange(1.0, len(chosen) + 1, dtype=torch.float64) * value
        kept = slab.to_bytes()
        change = forecaster.change(slab, rows, y)
        forecast = forecaster.forecast(change)
        assert slab.to_bytes() == kept
        slab.assign(rows, change)
        expected = forecaster.observe(expected, y)

        assert_same_forecast(forecast, forecaster.forecast(expected), counts=config.counts)

    assert_same_state(slab.select(rows), expected)
    if others:
        assert_identical_state(slab.select(others), before.select(others))


@given(config=st.sampled_from(COVERED), histories=batches(min_rows=2))
def test_covariates_belong_to_the_rows_that_step(config: Config, histories: list[Float]) -> None:
    forecaster = forecaster_of(config)
    slab = forecaster.warm_up(histories, [FIRST] * len(histories))
    rows = torch.arange(len(histories)).flip(0)
    given_table = table_of(config, 5 + 11 * rows)
    y = torch.linspace(1, 2, len(histories), dtype=torch.float64)

    change = forecaster.change(slab, rows, y, given_table)
    expected = forecaster.observe(slab.select(rows), y, given_table)

    slab.assign(rows, change)
    assert_same_state(slab.select(rows), expected)


def test_rows_of_a_change_do_not_depend_on_how_many_step() -> None:
    forecaster = forecaster_of(VARIANTS[0])
    y = np.random.default_rng(0).normal(size=(600, 8)) + 10
    slab = forecaster.warm_up(list(y[:, :-1]), [0] * len(y))
    latest = torch.from_numpy(y[:, -1])

    def observed(parts: tuple[torch.Tensor, ...]) -> StreamState:
        copy = slab.select(torch.arange(len(y)))
        for part in parts:
            copy.assign(part, forecaster.change(slab, part, latest[part]))
        return copy

    everyone = torch.arange(len(y))
    assert_same_state(observed((everyone,)), observed(everyone.split(100)))
