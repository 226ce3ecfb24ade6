"""Ragged stretches of log, folded side by side: each as if it were alone, in batches that fit in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster import Forecaster
from service.engine import folding
from service.engine.folding import Stretch, fold_ragged
from tests.forecaster.kit import assert_same_state

ROOM = 40


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12), placed=st.booleans())
def test_each_stretch_is_folded_as_if_alone_and_batches_are_of_bounded_size(
    lengths: list[int], placed: bool, tiny_forecaster: Forecaster
) -> None:
    """A longer stretch than there is room for is alone; no row is padded to more than twice its length."""
    generator = np.random.default_rng(sum(lengths))
    stretches = [Stretch(list(map(float, generator.gamma(3, 5, length)))) for length in lengths]
    start = tiny_forecaster.initial_state([7 * row for row in range(len(lengths))])
    places: dict[int, np.ndarray] = {}
    shapes: list[tuple[int, int]] = []
    fold_padded = folding._fold_padded

    def noted(forecaster, state, parts, **further):
        longest = max(len(part.values) for part in parts)
        shapes.append((len(parts), longest))
        assert all(longest <= 2 * max(len(part.values), 1) for part in parts)
        return fold_padded(forecaster, state, parts, **further)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(folding, "_CELLS", ROOM)
        patch.setattr(folding, "_fold_padded", noted)
        found = fold_ragged(tiny_forecaster, start, stretches, places if placed else None)

    assert all(rows == 1 or rows * longest <= ROOM for rows, longest in shapes)
    assert sum(rows for rows, _ in shapes) in (0, len(lengths))
    for row, stretch in enumerate(stretches):
        y = torch.tensor([stretch.values], dtype=torch.float64)
        alone, expected = tiny_forecaster.fold_and_place(start.select([row]), y)
        assert_same_state(found.select([row]), alone)
        if placed and stretch.values:
            np.testing.assert_allclose(places[row], expected[0], rtol=1e-3, atol=1e-5)


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_fold_that_is_looked_at_now_and_then_is_the_same_one(lengths: list[int], tiny_forecaster: Forecaster) -> None:
    generator = np.random.default_rng(sum(lengths))
    stretches = [Stretch(list(map(float, generator.gamma(3, 5, length)))) for length in lengths]
    start = tiny_forecaster.initial_state([7 * row for row in range(len(lengths))])
    glances: list[None] = []
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(folding, "_UNSEEN", 7)
        found = fold_ragged(tiny_forecaster, start, stretches, glance=lambda: glances.append(None))
    assert_same_state(found, fold_ragged(tiny_forecaster, start, stretches))
    assert len(glances) >= max(lengths) / 7


def test_a_long_history_alone_is_folded_to_the_very_same_bytes_between_two_looks(tiny_forecaster: Forecaster) -> None:
    stretch = Stretch(list(map(float, np.random.default_rng(0).gamma(3, 5, 2 * folding._UNSEEN + 100))))
    start = tiny_forecaster.initial_state([3])
    looked, unseen = [fold_ragged(tiny_forecaster, start, [stretch], glance=glance) for glance in (lambda: None, None)]
    assert looked.to_bytes() == unseen.to_bytes()
