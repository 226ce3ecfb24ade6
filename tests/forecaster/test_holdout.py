"""Blocks that are not learnt from: where they lie, how many, and that no target touches them."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster.calendar import Calendar
from forecaster.chunks import Lanes
from forecaster.holdout import MANY, SHARE, scatter_blocks, without_blocks
from forecaster.panel import Panel


def panel_of(lengths: list[int]) -> Panel:
    """Series whose values are their places, each series from another hundred thousand on."""
    series = [(f"s{i}", 0, 1e5 * i + np.arange(float(n))) for i, n in enumerate(lengths)]
    return Panel.from_series(Calendar("h"), series)


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    length=st.integers(1, 30),
    earliest=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_blocks_lie_within_their_series_after_some_history_and_never_overlap(
    lengths: list[int], length: int, earliest: int, seed: int
) -> None:
    panel = panel_of(lengths)

    blocks = scatter_blocks(panel, length=length, earliest=earliest, generator=np.random.default_rng(seed))

    for name, _, y in panel:
        own = sorted(block for block in blocks if block.unique_id == name)
        assert all(earliest <= b.start and b.end == b.start + length <= len(y) for b in own)
        assert all(a.end <= b.start for a, b in itertools.pairwise(own))
        assert 2 * length * len(own) <= len(y)


def test_blocks_cover_their_share_even_of_series_too_short_for_one_each() -> None:
    panel = panel_of([70] * 400 + [2000] * 10)

    blocks = scatter_blocks(panel, length=10, earliest=20, generator=np.random.default_rng(1))

    room = 400 * 50 + 10 * 1980
    assert abs(10 * len(blocks) / room - SHARE) < 0.015
    assert 0 < sum(block.unique_id == "s0" for block in blocks) + len({b.unique_id for b in blocks}) < 400


def test_many_short_series_spare_a_block_here_and_there_but_few_do_not() -> None:
    many, enough, few = panel_of([27] * 400), panel_of([27] * MANY), panel_of([27] * (MANY - 1))
    draw = partial(scatter_blocks, length=12, earliest=15)

    blocks = draw(many, generator=np.random.default_rng(0))

    assert abs(len(blocks) / 400 - SHARE) < 0.03
    assert {(b.start, b.end) for b in blocks} == {(15, 27)}
    assert any(draw(enough, generator=np.random.default_rng(seed)) for seed in range(50))
    assert not any(draw(few, generator=np.random.default_rng(seed)) for seed in range(50))


@pytest.mark.parametrize(("steps", "earliest", "spare"), [(24, 12, True), (23, 11, False), (24, 13, False)])
def test_a_block_leaves_as_much_to_learn_from_and_a_history(steps: int, earliest: int, spare: bool) -> None:
    blocks = scatter_blocks(panel_of([steps] * 400), length=12, earliest=earliest, generator=np.random.default_rng(0))

    assert bool(blocks) is spare


def test_no_training_target_lies_in_a_block_and_every_input_is_there() -> None:
    panel = panel_of([300, 40, 500])
    blocks = scatter_blocks(panel, length=12, earliest=30, generator=np.random.default_rng(3))
    assert len(blocks) >= 3
    forbidden = {1e5 * int(b.unique_id[1:]) + at for b in blocks for at in range(b.start, b.end)}
    lanes = Lanes(
        panel,
        lanes=3,
        chunk_length=16,
        horizon=12,
        prefix_length=8,
        generator=np.random.default_rng(0),
        targets=without_blocks(panel, blocks),
    )

    inputs: set[float] = set()
    targets: set[float] = set()
    for chunk, _ in zip(lanes, range(120), strict=False):
        inputs |= set(chunk.y[~chunk.y.isnan()].tolist())
        targets |= set(chunk.future[~chunk.future.isnan()].tolist())

    assert not targets & forbidden
    assert forbidden <= inputs
    everything = {value for y in panel.values for value in y.tolist()}
    assert everything - forbidden - targets <= {1e5 * i + at for i in range(3) for at in range(20)}


def test_of_very_many_blocks_some_of_all_places_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecaster.holdout.LARGEST_NUMBER", 50)
    panel = panel_of([2000] * 40)

    blocks = scatter_blocks(panel, length=10, earliest=20, generator=np.random.default_rng(0))

    places = [(int(block.unique_id[1:]), block.start) for block in blocks]
    assert len(blocks) == 50
    assert places == sorted(places)
    assert {number // 10 for number, _ in places} == {0, 1, 2, 3}


def test_the_panel_itself_is_left_alone() -> None:
    panel = panel_of([200])
    blocks = scatter_blocks(panel, length=5, earliest=20, generator=np.random.default_rng(0))

    targets = without_blocks(panel, blocks)

    assert not np.isnan(panel.values[0]).any()
    assert np.isnan(targets[0]).sum() == 5 * len(blocks) > 0
