"""The heads with a density against SciPy, and what they promise of their output."""

from __future__ import annotations

import dataclasses
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from scipy import stats

from forecaster import Config, InputError
from forecaster.heads import HEADS, DistributionHead, HeadSizes, StudentTHead, ZeroInflatedHead
from forecaster.scaling import Frame, Transform, log_slope, restore, transform
from tests.forecaster.kit import config_of, forecaster_of, network_of

P, F, A, H = 5, 7, 3, 4
LEVELS = (0.001, 0.1, 0.5, 0.61, 0.9, 0.999)
DISTRIBUTIONS = ("student_t", "negative_binomial", "zero_inflated")
COUNTS = DISTRIBUTIONS[1:]


def head_of(name: str, kind: Transform = "log", noise: float = 0.5) -> DistributionHead:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        head = HEADS[name](HeadSizes(P, F, A, H, 0.0), transform=kind, levels=(0.1, 0.5, 0.9), nonnegative=False)
        for parameter in head.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    assert isinstance(head, DistributionHead)
    return head.eval()


def parameters_of(head: DistributionHead, rows: int = 3, size: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    inputs = [size * torch.randn(rows, *shape, generator=generator) for shape in ((P,), (F,), (A, H))]
    found: torch.Tensor = head(*inputs)
    return found


def frame_of(rows: int = 3, location: float = 5.0) -> Frame:
    steps = 1 + torch.arange(rows, dtype=torch.float64)
    return Frame(location * steps, 1.2 * location * steps, 0.1 + 0.2 * steps)


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def test_the_configuration_knows_every_head() -> None:
    assert tuple(HEADS) == get_args(get_type_hints(Config)["head"])


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_student_t_is_scipys_in_scaled_coordinates(kind: Transform) -> None:
    head, frame = head_of("student_t", kind), frame_of()
    parameters = parameters_of(head)
    location, scale, df = numbers(parameters).swapaxes(0, 1)
    law = stats.t(df, location, scale)
    y = torch.tensor([[1.0, 4.0, 9.0, 30.0]] * 3, dtype=torch.float64)
    scaled = numbers(transform(y, frame, kind))

    loss = head.loss(parameters, y, frame, torch.ones(3))
    quantiles = head.quantiles(parameters, frame, LEVELS)

    assert (df > 3).all()
    assert float(loss.detach()) == pytest.approx(-law.logpdf(scaled).mean(), rel=1e-5)
    np.testing.assert_allclose(numbers(head.cdf(parameters, y, frame)), law.cdf(scaled), rtol=1e-6)
    for place, level in enumerate(LEVELS):
        expected = restore(torch.tensor(law.ppf(level)).float(), frame, kind)
        np.testing.assert_allclose(numbers(quantiles[:, place]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_the_density_of_student_t_in_units_of_y_is_the_slope_of_its_distribution_function(kind: Transform) -> None:
    head, frame = head_of("student_t", kind), frame_of()
    parameters = parameters_of(head).double()
    y = torch.tensor([[-3.0, 4.0, 9.0, 40.0]] * 3, dtype=torch.float64)  # also where the logarithm goes on as a line

    step = 1e-2  # y is known to float32 in scaled coordinates
    slope = (head.cdf(parameters, y + step, frame) - head.cdf(parameters, y - step, frame)) / (2 * step)

    np.testing.assert_allclose(numbers(head.log_prob(parameters, y, frame).exp()), numbers(slope), rtol=5e-3)


def test_the_slope_of_the_transform() -> None:
    frame = frame_of()
    y = torch.tensor([[-2.0, 0.0, 5.0, 100.0]] * 3, dtype=torch.float64)
    for kind in ("log", "linear"):
        step = 1e-2
        rise = numbers(transform(y + step, frame, kind) - transform(y - step, frame, kind)) / (2 * step)
        np.testing.assert_allclose(numbers(log_slope(y, frame, kind).exp()), rise, rtol=2e-3)


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_negative_binomial_is_scipys(kind: Transform) -> None:
    head, frame = head_of("negative_binomial", kind), frame_of()
    parameters = parameters_of(head)
    mean, number = numbers(head.mean(parameters, frame)), 1 / numbers(parameters[:, 2])
    law = stats.nbinom(number, number / (number + mean))
    y = torch.tensor([[0.0, 1.0, 9.0, torch.nan]] * 3, dtype=torch.float64)

    loss = head.loss(parameters, y, frame, torch.ones(3))

    np.testing.assert_allclose(law.var(), mean + mean**2 / number, rtol=1e-6)
    assert float(loss.detach()) == pytest.approx(-law.logpmf(y)[:, :3].mean(), rel=1e-6)
    np.testing.assert_allclose(
        numbers(head.cdf(parameters, y[:, :3].repeat(1, 2)[:, :4], frame)),
        law.cdf(y[:, :3].repeat(1, 2)[:, :4]),
        rtol=1e-6,
    )
    for place, level in enumerate(LEVELS):
        np.testing.assert_array_equal(numbers(head.quantiles(parameters, frame, LEVELS)[:, place]), law.ppf(level))


def test_zero_inflated_is_the_mixture_of_a_zero_and_scipys_negative_binomial() -> None:
    head, frame = head_of("zero_inflated"), frame_of()
    assert isinstance(head, ZeroInflatedHead)
    parameters = parameters_of(head)
    share = 1 / (1 + np.exp(-numbers(parameters[:, 3])))
    mean, number = numbers(head.mean(parameters, frame)), 1 / numbers(parameters[:, 2])
    rest = stats.nbinom(number, number / (number + mean / (1 - share)))
    y = torch.tensor([[0.0, 1.0, 9.0, 25.0]] * 3, dtype=torch.float64)
    probability = np.where(y == 0, share, 0) + (1 - share) * rest.pmf(y)

    np.testing.assert_allclose(numbers(head.log_prob(parameters, y, frame)), np.log(probability), rtol=1e-6)
    np.testing.assert_allclose(numbers(head.cdf(parameters, y, frame)), share + (1 - share) * rest.cdf(y), rtol=1e-6)
    quantiles = head.quantiles(parameters, frame, LEVELS)
    for place, level in enumerate(LEVELS):
        reached = share + (1 - share) * rest.cdf(numbers(quantiles[:, place]))
        before = np.where(quantiles[:, place] > 0, share + (1 - share) * rest.cdf(numbers(quantiles[:, place]) - 1), 0)
        assert (reached >= level - 1e-12).all()
        assert (before < level + 1e-12).all()
    sampled = head.quantiles(parameters, frame, ((torch.arange(2000) + 0.5) / 2000).double().unsqueeze(-1))
    np.testing.assert_allclose(numbers(sampled.mean(-2)), mean, rtol=0.02)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    head, frame = head_of(name), frame_of()
    y = torch.tensor([[0.0, 1.0, torch.nan, 12.0]] * 3, dtype=torch.float64)
    parameters = parameters_of(head).detach().requires_grad_()

    head.loss(parameters, y, frame, torch.ones(3)).backward()

    assert parameters.grad is not None
    assert torch.isfinite(parameters.grad).all()
    assert (parameters.grad[..., 2] == 0).all()  # of the unknown target
    for k in range(parameters.shape[1]):
        for step in (0, 1, 3):
            change = torch.zeros_like(parameters)
            change[0, k, step] = 1e-2
            with torch.no_grad():
                up, down = (head.loss(parameters + sign * change, y, frame, torch.ones(3)) for sign in (1, -1))
            rise = float(up - down) / 2e-2
            assert float(parameters.grad[0, k, step]) == pytest.approx(rise, rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_weight_learns(name: str) -> None:
    head = head_of(name)
    y = torch.tensor([[0.0, 1.0, 5.0, 12.0]] * 3, dtype=torch.float64)

    head.loss(parameters_of(head), y, frame_of(), torch.ones(3)).backward()

    for weight in head.parameters():
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", ["log", "linear"])
@pytest.mark.parametrize("noise", [0.5, 30.0, 1e4])
@pytest.mark.parametrize("location", [0.0, 1e-9, 5.0, 1e12])
def test_loss_and_quantiles_are_finite_whatever_the_weights(
    name: str, kind: Transform, noise: float, location: float
) -> None:
    head, frame = head_of(name, kind, noise), frame_of(location=location)
    y = torch.tensor([[0.0, 1.0, 5.0, 1e9]] * 3, dtype=torch.float64)
    parameters = parameters_of(head, size=10.0)

    quantiles = head.quantiles(parameters, frame, LEVELS)
    loss = head.loss(parameters, y, frame, torch.ones(3))
    loss.backward()

    assert torch.isfinite(quantiles).all()
    assert (torch.diff(quantiles, dim=-2) >= 0).all()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(weight.grad).all() for weight in head.parameters() if weight.grad is not None)
    if head.discrete:
        assert torch.equal(quantiles, torch.round(quantiles).clamp(min=0))


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("transform_", ["log", "linear"])
def test_counts_are_forecast_as_counts_at_every_horizon(name: str, transform_: str) -> None:
    forecaster = forecaster_of(config_of(transform_, head=name))
    histories = [np.zeros(30), np.full(30, 7.0), np.array([0, 0, 3, 0, 1, 0.0] * 6), np.array([2.0])]
    state = forecaster.warm_up(histories, [0] * 4)

    found = forecaster.forecast(state, 24, (0.0001, 0.05, 0.5, 0.95, 0.9999))

    np.testing.assert_array_equal(found, np.round(found))
    assert (found >= 0).all()


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, float("nan")])
def test_distributions_answer_any_level_between_0_and_1_and_no_other(level: float) -> None:
    forecaster = forecaster_of(config_of(head="student_t"))
    state = forecaster.warm_up([np.arange(9.0)], [0])

    assert np.isfinite(forecaster.forecast(state, 3, [1e-6, 1 - 1e-6])).all()
    with pytest.raises(InputError, match="is outside 0 to 1"):
        forecaster.forecast(state, 3, [level])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_probabilities_of_what_came_are_the_heads(name: str) -> None:
    forecaster, network = forecaster_of(config_of(head=name)), network_of(config_of(head=name))
    state = forecaster.warm_up([np.arange(9.0), np.full(4, np.nan)], [0, 0])
    y = torch.tensor([[3.0, torch.nan, 5.0]] * 2, dtype=torch.float64)

    found = forecaster.log_prob(state, y)

    encoded = network.encoded(state)
    assert isinstance(network.head, DistributionHead)
    with torch.no_grad():
        expected = network.head.log_prob(network.decode(encoded)[..., :3], y, encoded.frame)
    np.testing.assert_array_equal(found[0, [0, 2]], expected[0, [0, 2]])
    assert torch.isnan(found[0, 1])
    assert torch.isnan(found[1]).all()
    with pytest.raises(InputError, match="at most 6"):
        forecaster.log_prob(state, torch.zeros(2, 7))
    assert forecaster.log_prob(state, torch.zeros(2, 0)).shape == (2, 0)


def test_a_count_head_gives_no_probability_to_fractions_and_negatives() -> None:
    head = head_of("negative_binomial")
    y = torch.tensor([[0.5, -1.0, 2.0, 1e6]] * 3, dtype=torch.float64)

    found = head.log_prob(parameters_of(head), y, frame_of())

    assert torch.isinf(found[:, :2]).all()
    assert torch.isfinite(found[:, 2:]).all()


def test_quantiles_have_no_density() -> None:
    forecaster = forecaster_of(config_of())

    with pytest.raises(InputError, match="no density"):
        forecaster.log_prob(forecaster.warm_up([np.arange(9.0)], [0]), torch.zeros(1, 1))


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(InputError, match=r"'head' is 'poisson', expected one of quantile, student_t"):
        dataclasses.replace(Config("h", 6), head="poisson")  # type: ignore[arg-type]


def test_student_t_before_training_is_centred_on_the_anchors() -> None:
    head = head_of("student_t", noise=0.0)
    assert isinstance(head, StudentTHead)
    anchors = torch.randn(2, A, H, generator=torch.Generator().manual_seed(0))

    location = head(torch.zeros(2, P), torch.zeros(2, F), anchors)[:, 0]

    torch.testing.assert_close(location, anchors.mean(-2))
