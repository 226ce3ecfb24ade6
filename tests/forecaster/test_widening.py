"""Static calibration: factors against distributions whose quantiles are known, and what few windows may not do."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch

from forecaster.heads.widening import LARGEST, widening

LEVELS = (0.6, 0.7, 0.8, 0.9, 0.975)
TAILS = [2 * (1 - level) for level in LEVELS]
ENDS = torch.tensor([NormalDist().inv_cdf(level) for level in LEVELS])


def steps_of(windows: int, horizon: int, factor: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Steps between the quantiles of a standard normal, times a factor."""
    steps = ENDS.diff(prepend=torch.zeros(1)) * factor
    return steps.view(1, -1, 1).expand(windows, -1, horizon)


def test_intervals_that_are_right_stay_and_others_are_put_right() -> None:
    truth = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)).abs()

    right = widening(truth, steps_of(4000, 8), TAILS)
    narrow = widening(truth, steps_of(4000, 8, 0.5), TAILS)
    bent = widening(truth, steps_of(4000, 8, torch.tensor([1.0, 1.0, 2.0, 2.0, 0.5])), TAILS)

    torch.testing.assert_close(right, torch.ones(5, 8), rtol=0.08, atol=0)
    torch.testing.assert_close(narrow, torch.full((5, 8), 2.0), rtol=0.08, atol=0)
    torch.testing.assert_close(bent[:, 0], torch.tensor([1.0, 1.0, 0.5, 0.5, 2.0]), rtol=0.12, atol=0)


def test_steps_of_the_horizon_that_need_more_get_more() -> None:
    truth = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)).abs()
    truth[:, 6:] *= 2

    factors = widening(truth, steps_of(4000, 8), TAILS)

    torch.testing.assert_close(factors[3, :6], torch.ones(6), rtol=0.1, atol=0)
    torch.testing.assert_close(factors[3, 6:], torch.full((2,), 2.0), rtol=0.1, atol=0)


@pytest.mark.parametrize("windows", [1, 2, 4])
def test_few_windows_move_little(windows: int) -> None:
    truth = torch.full((windows, 8), 100.0)

    factors = widening(truth, steps_of(windows, 8), TAILS)

    assert (factors >= 1).all()
    assert (factors <= LARGEST ** (windows / (windows + 8) + windows / (windows + 64))).all()


def test_a_long_window_says_more_than_a_short_one_and_as_much_as_it_is_told_to() -> None:
    short, long = torch.full((2, 24), 100.0), torch.full((2, 240), 100.0)

    few, more, told = (
        widening(truth, steps_of(*truth.shape), TAILS, observations=count)
        for truth, count in ((short, None), (long, None), (long, 2))
    )

    assert more.min() > 1.5 * few.max()
    torch.testing.assert_close(told[:, :1], few[:, :1])


def test_unknown_truths_count_nothing_and_none_at_all_changes_nothing() -> None:
    truth = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)).abs()
    gaps = torch.cat([truth, torch.full((300, 8), torch.nan)])

    torch.testing.assert_close(
        widening(gaps, steps_of(800, 8), TAILS), widening(truth, steps_of(500, 8), TAILS), rtol=0, atol=0
    )
    assert torch.equal(widening(gaps[500:], steps_of(300, 8), TAILS), torch.ones(5, 8))


def test_what_is_expected_beforehand_gives_way_to_windows() -> None:
    truth = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)).abs()

    none, few, many = (widening(truth[:n], steps_of(n, 8), TAILS, expected=1.5)[3] for n in (0, 8, 4000))

    torch.testing.assert_close(none, torch.full((8,), 1.5))
    torch.testing.assert_close(many, torch.ones(8), rtol=0.1, atol=0)
    assert (few < none).all()
    assert (few > 1).all()
