"""The pinball loss against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster.losses import pinball_loss

LEVELS = torch.tensor([0.1, 0.5, 0.8])


@given(seed=st.integers(0, 2**16), missing=st.sampled_from([0.0, 0.4, 1.0]))
def test_the_loss_equals_a_loop_over_known_targets(seed: int, missing: float) -> None:
    generator = np.random.default_rng(seed)
    quantiles, target = generator.normal(size=(3, 3, 4)), generator.normal(size=(3, 4))
    weight = generator.random((3, 1))
    target[generator.random((3, 4)) < missing] = np.nan

    found = pinball_loss(
        *(torch.from_numpy(part).float() for part in (quantiles, target)), LEVELS, torch.from_numpy(weight).float()
    )

    terms = []
    for row in range(3):
        for step in range(4):
            if not np.isnan(target[row, step]):
                errors = [target[row, step] - q for q in quantiles[row, :, step]]
                losses = [t * e if e >= 0 else (t - 1) * e for e, t in zip(errors, (0.1, 0.5, 0.8), strict=True)]
                terms.append(weight[row, 0] * 2 * sum(losses) / 3)
    assert float(found) == pytest.approx(sum(terms) / len(terms) if terms else 0.0, rel=1e-5, abs=1e-7)


def test_at_the_median_alone_it_is_the_mean_absolute_error() -> None:
    loss = pinball_loss(torch.tensor([[1.0, 5.0]]), torch.tensor([3.0, 4.0]), torch.tensor([0.5]), torch.tensor(1.0))

    assert float(loss) == pytest.approx(1.5)


def test_it_is_smallest_at_the_quantile() -> None:
    sample = torch.sort(torch.randn(2001, generator=torch.Generator().manual_seed(0))).values

    def at(value: float, level: float) -> float:
        quantiles = torch.full((1, len(sample)), value)
        return float(pinball_loss(quantiles, sample, torch.tensor([level]), torch.tensor(1.0)))

    for level in (0.1, 0.5, 0.9):
        best = float(sample[int(level * 2000)])
        assert at(best, level) < min(at(best - 0.2, level), at(best + 0.2, level))


def test_an_unknown_target_sends_no_gradient_and_no_nan() -> None:
    quantiles = torch.zeros(3, 2, requires_grad=True)

    pinball_loss(quantiles, torch.tensor([torch.nan, 1.0]), LEVELS, torch.tensor(1.0)).backward()

    assert quantiles.grad is not None
    assert not quantiles.grad[:, 0].any()
    assert quantiles.grad[:, 1].all()


@given(seed=st.integers(0, 2**16), missing=st.sampled_from([0.0, 0.4, 1.0]))
def test_the_gradient_is_the_slope_of_the_loss(seed: int, missing: float) -> None:
    generator = np.random.default_rng(seed)
    quantiles = torch.from_numpy(generator.normal(size=(2, 3, 4))).requires_grad_()
    target = generator.normal(size=(2, 4))
    target[generator.random((2, 4)) < missing] = np.nan
    truth, weight = torch.from_numpy(target), torch.from_numpy(generator.random((2, 1)))

    (3 * pinball_loss(quantiles, truth, LEVELS.double(), weight)).backward()

    expected = torch.zeros(2, 3, 4, dtype=torch.float64)
    for row, q, step in np.ndindex(2, 3, 4):
        if not np.isnan(target[row, step]):
            above = float(target[row, step]) > float(quantiles.detach()[row, q, step])
            slope = -float(LEVELS[q]) if above else 1 - float(LEVELS[q])
            expected[row, q, step] = 3 * 2 / 3 * slope * weight[row, 0] / max(1, int((~np.isnan(target)).sum()))
    assert quantiles.grad is not None
    torch.testing.assert_close(quantiles.grad, expected, rtol=1e-6, atol=1e-9)
