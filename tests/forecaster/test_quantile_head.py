"""The quantile head: against a plain loop, ordered whatever its weights, and modest before training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from forecaster import kernels
from forecaster.heads import HeadSizes, QuantileHead
from forecaster.heads.decoder import LARGEST_RANK
from forecaster.heads.quantile import DEAREST
from forecaster.heads.widening import UNSEEN, widening
from forecaster.scaling import Frame, restore

P, F, H, A, Q = 5, 7, 4, 3, 7
LEVELS = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)


def head_of(noise: float, dropout: float = 0.0, horizon: int = H, members: int = 1) -> QuantileHead:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        sizes = HeadSizes(P, F, A, horizon, dropout, members=members)
        head = QuantileHead(sizes, transform="log", levels=LEVELS, nonnegative=False)
        for parameter in head.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    return head.eval().requires_grad_(False)


def inputs(rows: int = 3, size: float = 1.0, horizon: int = H) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(size * torch.randn(rows, *shape, generator=generator) for shape in ((P,), (F,), (A, horizon)))  # type: ignore[return-value]


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("horizon", [H, LARGEST_RANK + 5])
def test_quantiles_equal_a_plain_loop(horizon: int, learning: bool) -> None:
    head = head_of(0.5, horizon=horizon)
    rank = min(horizon, LARGEST_RANK)
    hidden, features, anchors = inputs(horizon=horizon)
    w = {name: parameter.numpy().astype(np.float64) for name, parameter in head.decoders[0].named_parameters()}

    with torch.set_grad_enabled(learning):
        found = head(hidden, features, anchors).numpy()

    for row in range(3):
        h, f, a = (part[row].numpy().astype(np.float64) for part in (hidden, features, anchors))
        z = w["context.weight"] @ h + w["context.bias"]
        context = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z]) + h
        curves = w.get("curves", np.eye(horizon))
        decoded = (w["mixture.weight"] @ context).reshape(A + Q, rank) @ curves + w["bias"]
        logits, gaps = decoded[:A], np.log1p(np.exp(decoded[A + 1 :]))
        correction = decoded[A] + (w["autoregression.weight"] @ f) @ curves
        for step in range(horizon):
            weights = np.exp(logits[:, step]) / np.exp(logits[:, step]).sum()
            middle = weights @ a[:, step] + correction[step]
            half = (Q - 1) // 2
            down, up = gaps[:half, step], gaps[half:, step]
            below = [middle - down[: half - q].sum() for q in range(half)]
            above = [middle + up[: q + 1].sum() for q in range(half)]
            np.testing.assert_allclose(found[row, :, step], [*below, middle, *above], rtol=1e-5, atol=1e-5)


def test_an_ensemble_answers_the_mean_of_its_members_which_learn_each_by_itself() -> None:
    head = head_of(0.5, members=3)
    _, features, anchors = inputs()
    hidden = torch.randn(3, 3 * P, generator=torch.Generator().manual_seed(3))
    alone = []
    for member in range(3):
        single = head_of(0.0)
        single.decoders[0].load_state_dict(head.decoders[member].state_dict())
        alone.append(single(hidden[:, member * P : (member + 1) * P], features, anchors))

    together, apart = head(hidden, features, anchors), head.train()(hidden, features, anchors)

    torch.testing.assert_close(together, torch.stack(alone).mean(0))
    torch.testing.assert_close(apart, torch.stack(alone))
    assert not torch.allclose(alone[0], alone[1])


@given(noise=st.sampled_from([0.0, 1.0, 30.0, 1e4]), size=st.sampled_from([0.0, 1.0, 1e3, 1e6]), learning=st.booleans())
def test_quantiles_rise_whatever_the_weights_and_inputs(noise: float, size: float, learning: bool) -> None:
    with torch.set_grad_enabled(learning):
        quantiles = head_of(noise)(*inputs(4, size))

    assert torch.isfinite(quantiles).all()
    assert (torch.diff(quantiles, dim=-2) >= 0).all()


def test_before_training_the_median_is_the_mean_of_the_anchors_within_a_narrow_band() -> None:
    hidden, features, anchors = inputs()

    quantiles = head_of(0.0)(hidden, features, anchors)

    torch.testing.assert_close(quantiles[:, Q // 2], anchors.mean(-2))
    assert torch.diff(quantiles, dim=-2).mean() == pytest.approx(0.05, rel=0.2)


def test_a_long_horizon_starts_the_same_and_has_no_weights_of_its_own_for_every_step() -> None:
    horizon = 10 * LARGEST_RANK
    head = head_of(0.0, horizon=horizon)
    hidden, features, anchors = inputs(horizon=horizon)

    quantiles = head(hidden, features, anchors)

    torch.testing.assert_close(quantiles[:, Q // 2], anchors.mean(-2))
    assert head.decoders[0].mixture.weight.shape == ((A + Q) * LARGEST_RANK, P)


@pytest.mark.parametrize("horizon", [H, LARGEST_RANK + 5])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("learning", [True, False])
def test_the_first_steps_can_be_decoded_alone(horizon: int, steps: int, learning: bool) -> None:
    head = head_of(0.5, horizon=horizon)
    hidden, features, anchors = inputs(horizon=horizon)

    with torch.set_grad_enabled(learning):
        found = head(hidden, features, anchors[..., :steps])

    torch.testing.assert_close(found, head(hidden, features, anchors)[..., :steps])


def test_any_leading_axes_are_allowed() -> None:
    hidden, features, anchors = inputs(6)

    flat = head_of(0.5)(hidden, features, anchors)
    with torch.no_grad():
        deep = head_of(0.5)(hidden.view(2, 3, P), features.view(2, 3, F), anchors.view(2, 3, A, H))

    torch.testing.assert_close(deep.view(6, Q, H), flat)


def test_every_input_and_every_weight_moves_the_quantiles() -> None:
    head = head_of(0.5).requires_grad_(True)
    given_inputs = [part.requires_grad_() for part in inputs()]

    head(*given_inputs).square().sum().backward()

    for part in (*given_inputs, *head.parameters()):
        assert part.grad is not None
        assert part.grad.abs().max() > 0


def test_dropout_acts_in_training_only() -> None:
    head = head_of(0.5, dropout=0.5)

    assert torch.equal(head(*inputs()), head(*inputs()))
    assert not torch.equal(head.train()(*inputs()), head(*inputs()))


def test_widening_keeps_the_median_and_the_order_and_scales_all_distances() -> None:
    head, factors = head_of(0.5), torch.linspace(0.5, 3, H)
    before = head(*inputs())
    head.widen(factors)
    after = head(*inputs())

    middle = slice(Q // 2, Q // 2 + 1)
    assert torch.equal(after[:, middle], before[:, middle])
    assert (after.diff(dim=1) > 0).all()
    torch.testing.assert_close(after - after[:, middle], (before - before[:, middle]) * factors)


def test_calibration_stops_where_it_would_cost_more_than_it_may() -> None:
    """Where truths are missed below the median, the upper side widens with the lower, and is a power higher."""
    head = head_of(0.0)
    generator = torch.Generator().manual_seed(3)
    frame = Frame(*(torch.ones(200, dtype=torch.float64) * size for size in (1.0, 1.0, 3.0)))
    parameters = torch.linspace(-1.0, 1.0, Q).view(1, Q, 1).expand(200, Q, H)
    target = 1 + torch.rand(200, H, generator=generator, dtype=torch.float64)
    head.calibrate(parameters, target, frame, UNSEEN)
    narrow = head.widening.clone()
    head.reset_calibration()
    target = restore(3 * torch.randn(200, H, generator=generator).clamp(max=0.0), frame, "log")
    head.calibrate(parameters, target, frame, UNSEEN)

    assert (narrow < 0.5).all()  # the truth is well inside, and narrower is cheaper
    wanted = widening(*head._from_median(parameters, target, frame), [0.6, 0.2, 0.1], UNSEEN).repeat(2, 1)
    assert (wanted > 1.5).any()
    before, after, whole = (
        head._error(head._widened(parameters, factors), target, frame)
        for factors in (torch.ones_like(wanted), head.widening, wanted)
    )
    assert whole > DEAREST * before
    assert after <= DEAREST * before
    shares = [torch.equal(head.widening, wanted**share) for share in (0.75, 0.5, 0.25, 0.0)]
    assert sum(shares) == 1


NUMBERS = (
    st.floats(-60, 60, width=32)
    | st.floats(-(2.0**-17), 2.0**-17, width=32)
    | st.sampled_from([0.0, math.nan, 1e30, -1e30])
)


@pytest.mark.parametrize("transform", ["log", "linear"])
@given(
    scaled=st.lists(NUMBERS, min_size=1, max_size=40),
    location=st.floats(-1e9, 1e9),
    spread=st.floats(0, 10),
    unit=st.floats(1e-5, 3),
    nonnegative=st.booleans(),
    reach=st.sampled_from([math.inf, 3.0, 100.0]),
)
def test_one_loop_restores_and_admits_what_two_functions_do(
    transform: str, scaled: list[float], location: float, spread: float, unit: float, nonnegative: bool, reach: float
) -> None:
    head = QuantileHead(
        HeadSizes(P, F, A, len(scaled), 0.0), transform=transform, levels=LEVELS, nonnegative=nonnegative
    )
    head.reach = reach
    scale = abs(location) * (1 + spread)
    frame = Frame(*(torch.tensor([field], dtype=torch.float64) for field in (location, scale, unit)))
    quantiles = torch.tensor(scaled).expand(1, Q, len(scaled))

    found = head.quantiles(quantiles, frame, LEVELS)

    restored = restore(quantiles.double().flatten(-2), frame, transform).reshape(quantiles.shape)
    expected = head.admit(restored, frame)
    # What float32 rounds off, in units of the frame and of what comes out.
    size = expected.abs() + scale * unit
    close = (found - expected).abs() <= 2e-6 * torch.where(expected.abs() < math.inf, size, 0)
    assert bool((close | (found == expected) | (found.isnan() & expected.isnan())).all())


@given(
    steps=st.lists(st.floats(0.01, 5), min_size=Q - 1, max_size=Q - 1),
    beyond=st.floats(1e-9, 0.04),
    upper=st.booleans(),
)
def test_tails_are_those_of_the_pareto_distribution_through_the_outermost_quantiles(
    steps: list[float], beyond: float, upper: bool
) -> None:
    head = QuantileHead(HeadSizes(P, F, A, 1, 0.0), transform="linear", levels=LEVELS, nonnegative=False)
    frame = Frame(*(torch.tensor([field], dtype=torch.float64) for field in (0.0, 1.0, 1.0)))
    quantiles = torch.tensor([0.0, *steps]).cumsum(0) - 3
    level = torch.full((1, 1, 1), 1 - beyond if upper else beyond, dtype=torch.float64)

    found = head.quantiles(quantiles.reshape(1, Q, 1), frame, level)

    # Beyond the tenth, 0.05 of 0.1 lie beyond the outermost quantile, which says how wide it is.
    inner, outer = (quantiles[[-2, -1]] if upper else quantiles[[1, 0]]).double().numpy()
    width = abs(outer - inner) / stats.genpareto.isf(0.5, kernels.TAIL)
    distance = width * stats.genpareto.isf(beyond / 0.1, kernels.TAIL)
    assert found.item() == pytest.approx(inner + (distance if upper else -distance), rel=1e-5)
    assert head.place(quantiles.reshape(1, Q, 1), found[..., 0], frame).item() == pytest.approx(level.item(), rel=1e-6)
