"""The special functions against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from forecaster.heads.special import (
    betainc,
    negative_binomial_cdf,
    negative_binomial_log_prob,
    negative_binomial_quantile,
    student_t_cdf,
    student_t_quantile,
)

LEVELS = np.array([1e-9, 1e-4, 0.01, 0.025, 0.1, 0.25, 0.5, 0.51, 0.8, 0.975, 0.999, 1 - 1e-9])


def tensor(values: object) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@given(a=st.floats(-4, 4).map(lambda e: 10**e), b=st.floats(-4, 6).map(lambda e: 10**e), x=st.floats(0, 1, width=32))
def test_incomplete_beta(a: float, b: float, x: float) -> None:
    found = betainc(tensor([a]), tensor([b]), tensor([x])).numpy()

    np.testing.assert_allclose(found, special.betainc(a, b, [x]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("df", [3.0, 3.3, 4.0, 4.99, 5.0, 7.5, 30.0, 1e3, 1e6])
def test_students_t(df: float) -> None:
    expected = stats.t.ppf(LEVELS, df)

    found = student_t_quantile(tensor(LEVELS), tensor(df)).numpy()

    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-12)
    np.testing.assert_allclose(student_t_cdf(tensor(expected), tensor(df)).numpy(), LEVELS, rtol=1e-8)


def test_students_quantiles_rise_with_the_level() -> None:
    levels = torch.linspace(0.001, 0.999, 4001, dtype=torch.float64).unsqueeze(-1)
    df = torch.linspace(3, 12, 40, dtype=torch.float64)

    assert (torch.diff(student_t_quantile(levels, df), dim=0) > 0).all()


MEANS = np.array([1e-6, 0.01, 0.3, 1.0, 7.3, 120.0, 1500.0, 9e3])[:, None, None]
DISPERSIONS = np.array([1e-4, 0.01, 0.5, 3.0, 200.0])[:, None]


def reference() -> stats.distributions.rv_frozen:
    number = 1 / DISPERSIONS
    return stats.nbinom(number, number / (number + MEANS))


def test_negative_binomial_probabilities() -> None:
    y = np.floor(MEANS * np.array([0.0, 0.5, 1.0, 2.0]) + np.array([0, 1, 2, 5]))
    mean, dispersion = tensor(MEANS), tensor(DISPERSIONS)

    np.testing.assert_allclose(
        negative_binomial_log_prob(tensor(y), mean, dispersion), reference().logpmf(y), rtol=1e-8, atol=1e-7
    )
    np.testing.assert_allclose(
        negative_binomial_cdf(tensor(y), mean, dispersion), reference().cdf(y), rtol=1e-7, atol=1e-10
    )
    assert (negative_binomial_cdf(tensor(-1.0), mean, dispersion) == 0).all()


def test_negative_binomial_quantiles_are_exact() -> None:
    found = negative_binomial_quantile(tensor(LEVELS), tensor(MEANS), tensor(DISPERSIONS)).numpy()

    expected = reference().ppf(LEVELS)
    small = expected < 1e6
    np.testing.assert_array_equal(found[small], expected[small])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@given(
    mean=st.floats(-5, 4).map(lambda e: 10**e),
    dispersion=st.floats(-4, 4).map(lambda e: 10**e),
    level=st.floats(1e-6, 1 - 1e-6),
)
def test_a_negative_binomial_quantile_is_the_smallest_that_reaches_its_level(
    mean: float, dispersion: float, level: float
) -> None:
    m, d = tensor([mean]), tensor([dispersion])

    found = negative_binomial_quantile(tensor([level]), m, d)

    assert found == torch.round(found)
    assert negative_binomial_cdf(found, m, d) >= level
    assert negative_binomial_cdf(found - 1, m, d) < level


@pytest.mark.parametrize("mean", [2e4, 3e7])
@pytest.mark.parametrize("dispersion", [5e-4, 0.4, 7.0])
def test_large_means_are_stretched(mean: float, dispersion: float) -> None:
    levels = [0.1, 0.5, 0.975]

    found = negative_binomial_quantile(tensor(levels), tensor(mean), tensor(dispersion)).numpy()

    law = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
    np.testing.assert_allclose(found, law.ppf(levels), rtol=1e-3, atol=2e-4 * mean)
