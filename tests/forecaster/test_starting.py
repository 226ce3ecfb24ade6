"""Where training starts, and how much of what is learnt beyond that is kept."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from forecaster import Config, CovariatesConfig, Panel
from forecaster.holdout import Block
from forecaster.losses import pinball_loss
from forecaster.network import ForecastNetwork
from forecaster.scaling import transform
from forecaster.training import fit
from forecaster.training.data import ChunkDataModule
from forecaster.training.preparing import Preparation
from forecaster.training.pulling import FEW, USUAL, kept_share
from forecaster.training.starting import _joined, _moderate, _Sample, _shares, start
from forecaster.training.windows import Windows, latest_blocks, windows_of
from tests.forecaster.kit import Float, config_of, network_of

CONFIG = replace(
    config_of("linear", (4,)),
    training=replace(config_of().training, imagined="off", lanes=8, chunk_length=16, validation_horizons=0),
    calibration="off",
    context_length=12,
)
"""A ring of three cycles of four steps, and forecasts of one and a half."""


def panel_of(series: list[Float], config: Config = CONFIG) -> Panel:
    """Hourly series."""
    frame = pd.concat(
        pd.DataFrame({"unique_id": f"s{i:02}", "ds": pd.date_range("2024-01-01", periods=len(y), freq="h"), "y": y})
        for i, y in enumerate(series)
    )
    return Panel.from_frame(frame, config.freq)


def seasonal_walks(weights: list[float], noise: float, steps: int = 400, count: int = 12) -> list[Float]:
    """Series whose next cycle is a weighted sum of the last three, oldest first, and noise."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        cycles = list(generator.normal(0, 1, (3, 4)))
        while len(cycles) < steps // 4:
            cycles.append(np.tensordot(weights, cycles[-3:], 1) + noise * generator.normal(0, 1, 4))
        found.append(np.concatenate(cycles))
    return found


def started(series: list[Float], config: Config = CONFIG) -> ForecastNetwork:
    """A network before its first update."""
    torch.manual_seed(0)
    network = ForecastNetwork(config)
    start(network, ChunkDataModule(panel_of(series, config), config).sources)
    return network.eval()


def unseen(network: ForecastNetwork, series: list[Float], steps: int = 60) -> Windows:
    """Windows at the end of series."""
    panel = panel_of(series, network.config)
    found = windows_of(network, panel, latest_blocks(panel, steps, network.config.horizon)[0], seed=0)
    assert found is not None
    return found


def error(network: ForecastNetwork, windows: Windows) -> float:
    """Mean pinball loss in scaled coordinates."""
    truth = transform(windows.target, windows.frame, network.transform)
    levels = torch.tensor(network.head.levels)
    with torch.no_grad():
        return float(pinball_loss(windows.parameters(network), truth, levels, torch.ones(len(truth), 1)))


def test_the_blend_finds_what_each_cycle_tells_of_the_next() -> None:
    weights = [-0.3, 0.2, 0.6]

    network = started(seasonal_walks(weights, 1.0, steps=2000))

    assert network.blend.shape == (2, 3)
    np.testing.assert_allclose(network.blend[0], weights, atol=0.06)
    # One cycle further: the same law twice.
    twice = weights[2] * np.array(weights) + np.array([0.0, *weights[:2]])
    np.testing.assert_allclose(network.blend[1], twice, atol=0.09)


def test_where_there_is_nothing_to_learn_from_the_blend_is_the_mean_cycle() -> None:
    network = started([np.zeros(40)])

    np.testing.assert_allclose(network.blend, 1 / 3, atol=1e-5)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_anchors_have_shares_that_add_up_to_one_and_the_best_the_largest() -> None:
    walks = [np.random.default_rng(i).normal(size=400).cumsum() for i in range(8)]

    network = started(walks)

    shares = network.head.decoders[0].bias[: network.head.sizes.num_anchors].softmax(0)
    torch.testing.assert_close(shares.sum(0), torch.ones(CONFIG.horizon))
    assert (shares >= 0.02 - 1e-6).all()
    assert shares[0, 0] > 0.5  # the last value, one step ahead
    assert shares[0].argmax() == 0


@pytest.mark.parametrize("kind", ["linear", "log"])
def test_training_starts_from_a_better_forecast_than_the_mean_of_the_anchors(kind: str) -> None:
    config = replace(CONFIG, transform=kind)
    series = [np.exp(0.3 * y) for y in seasonal_walks([0.0, 0.3, 0.7], 0.3)]
    learnt = [y[:-60] for y in series]

    network = started(learnt, config)

    torch.manual_seed(0)
    blank = ForecastNetwork(config).eval()
    windows = unseen(network, series)
    assert error(network, windows) < 0.9 * error(blank, windows)


def test_first_quantiles_cover_what_they_say() -> None:
    series = seasonal_walks([0.1, 0.2, 0.5], 0.5, count=40)

    network = started([y[:-60] for y in series])

    windows = unseen(network, series)
    quantiles = network.head.quantiles(windows.parameters(network), windows.frame, (0.1, 0.5, 0.9))
    below = (windows.target.unsqueeze(1) < quantiles).double().mean((0, 2))
    np.testing.assert_allclose(below, [0.1, 0.5, 0.9], atol=0.03)


def test_the_same_data_start_from_the_same_weights_and_chunks_stay_as_they_were() -> None:
    series = seasonal_walks([0.2, 0.3, 0.5], 0.5)
    data = ChunkDataModule(panel_of(series), CONFIG)
    untouched = ChunkDataModule(panel_of(series), CONFIG)

    start(ForecastNetwork(CONFIG), data.sources)

    torch.testing.assert_close(next(iter(data.lanes)).y, next(iter(untouched.lanes)).y, equal_nan=True)
    torch.testing.assert_close(started(series).state_dict(), started(series).state_dict())


def test_blocks_that_may_not_be_learnt_from_do_not_move_the_start() -> None:
    series = seasonal_walks([0.2, 0.3, 0.5], 0.5)
    config = replace(CONFIG, calibration="static")
    blocks = ChunkDataModule(panel_of(series), config).blocks
    assert blocks

    def of(series: list[Float]) -> torch.Tensor:
        network = ForecastNetwork(config)
        start(network, ChunkDataModule(panel_of(series), config, blocks=[Block("s00", 380, 400)]).sources)
        return network.blend

    changed = [y.copy() for y in series]
    changed[0][380:] += 100 * np.arange(1, 21)  # targets of origins before it, inputs of none

    torch.testing.assert_close(of(changed), of(series))


def test_pulling_keeps_a_share_of_what_was_learnt() -> None:
    network = started(seasonal_walks([0.2, 0.3, 0.5], 0.5))
    first, learnt = deepcopy(network), deepcopy(network)
    with torch.no_grad():
        for own, other in zip(learnt.head.parameters(), network_of(CONFIG).head.parameters(), strict=True):
            own.add_(other)
    windows = unseen(network, seasonal_walks([0.2, 0.3, 0.5], 0.5))

    whole, half, none = (deepcopy(learnt) for _ in range(3))
    for pulled, share in ((whole, 1.0), (half, 0.5), (none, 0.0)):
        pulled.head.pull(share)

    torch.testing.assert_close(windows.parameters(whole), windows.parameters(learnt))
    spread_free = deepcopy(first)
    for decoder in spread_free.head.decoders:
        decoder.mixture.weight.data.zero_()  # the only weights that are not 0 before training
    torch.testing.assert_close(windows.parameters(none), windows.parameters(spread_free))
    middle = CONFIG.quantile_levels.index(0.5)
    between = [windows.parameters(one)[:, middle] for one in (none, half, whole)]
    assert (between[1] - (between[0] + between[2]) / 2).abs().mean() < 0.2 * (between[2] - between[0]).abs().mean()


def test_noise_is_not_kept_and_what_holds_outside_is() -> None:
    series = seasonal_walks([0.2, 0.3, 0.5], 0.5)
    right = started([y[:-60] for y in series])
    noisy, late = deepcopy(right), deepcopy(right)
    with torch.no_grad():
        for decoder in noisy.head.decoders:
            decoder.mixture.weight.normal_(std=0.5)
            decoder.bias.add_(torch.randn_like(decoder.bias))
        for decoder in late.head.decoders:  # as if what start found had been learnt since
            decoder.started[: decoder.rows[0]] = 0.0

    found = unseen(right, series)
    assert kept_share(noisy, [found]) < 0.3
    assert kept_share(late, [found]) > 0.7
    assert kept_share(noisy, []) == 1  # nothing to be judged by


def test_every_kind_of_window_counts_whichever_comes_first() -> None:
    """One for which what was learnt is right, one for which it is noise."""
    series = seasonal_walks([0.2, 0.3, 0.5], 0.5)
    noisy = started([y[:-60] for y in series])
    with torch.no_grad():
        for decoder in noisy.head.decoders:
            decoder.bias.add_(2 * torch.randn(decoder.bias.shape, generator=torch.Generator().manual_seed(0)))
    true = unseen(noisy, series)
    learnt = noisy.head.quantiles(true.parameters(noisy), true.frame, (0.5,))[:, 0]
    own = true._replace(target=learnt)

    against, for_it = kept_share(noisy, [true]), kept_share(noisy, [own])
    assert against < 0.4
    assert for_it > 0.6
    assert kept_share(noisy, [true, own]) == kept_share(noisy, [own, true])


def test_a_few_windows_decide_less_than_many() -> None:
    series = seasonal_walks([0.2, 0.3, 0.5], 0.5)
    noisy = started([y[:-60] for y in series])
    with torch.no_grad():
        for decoder in noisy.head.decoders:
            decoder.mixture.weight.normal_(std=0.5)
    found = unseen(noisy, series)
    one = Windows(found.encoded.at((torch.tensor([0]),)), found.future[:1], found.target[:1])

    few = kept_share(noisy, [one])
    assert 0.6 <= few <= 0.8  # about three quarters, and more where that window speaks for it
    assert kept_share(noisy, [found]) < few
    assert FEW * USUAL / (1 + FEW) <= few <= (FEW * USUAL + 1) / (1 + FEW)


def two_minds(network: ForecastNetwork, weights: tuple[float, float], size: float = 1.0) -> _Sample:
    """Origins of which the first half is met by one anchor and the second by another, with a weight each."""
    rings = torch.randn(400, CONFIG.ring_length, generator=torch.Generator().manual_seed(0))
    choices = network.choices(rings, CONFIG.horizon)
    targets = torch.cat([choices[:200, 0], size * choices[200:, 1]])
    return _Sample(rings, targets, torch.tensor(weights).repeat_interleave(200))


def test_origins_count_by_their_weight_and_large_ones_less() -> None:
    network = started(seasonal_walks([0.2, 0.3, 0.5], 0.5))

    first, second = (_shares(network, two_minds(network, weights))[:2].mean(1) for weights in ((9.0, 1.0), (1.0, 9.0)))
    assert first[0] > 2 * first[1]
    assert second[1] > 2 * second[0]
    far = _moderate(two_minds(network, (1.0, 1.0), size=1000.0))
    assert far[200:].median() < far[:200].median() / 100


def test_a_step_of_which_little_is_known_takes_its_shares_from_the_others() -> None:
    network = started(seasonal_walks([0.2, 0.3, 0.5], 0.5))
    sample = two_minds(network, (9.0, 1.0))
    sample.targets[:, -1] = torch.nan

    shares = _shares(network, sample)

    assert shares[0, -1] > 2 * shares[1, -1]


def test_no_more_is_folded_to_judge_by_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    series = seasonal_walks([0.2, 0.3, 0.5], 0.5)
    network, whole = started(series), len(unseen(started(series), series).target)
    monkeypatch.setattr("forecaster.training.windows.LARGEST_WORK", 400)

    assert len(unseen(network, series).target) == whole / len(series) * 2


def test_chunks_are_made_beside_a_network_on_another_device() -> None:
    data = ChunkDataModule(panel_of(seasonal_walks([0.2, 0.3, 0.5], 0.5)), CONFIG)
    network = started(seasonal_walks([0.2, 0.3, 0.5], 0.5))
    draft = next(iter(Preparation(network).drafts(data.lanes)))
    expected = Preparation(network).finish(draft).anchors

    preparation = Preparation(network)
    network.to("meta")

    assert torch.equal(preparation.finish(draft).anchors, expected)


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        ((), "start regression: cycles of the recent past tell of those to come"),
        (("price",), "start mean: a regression would lay to the cycles what price may explain"),
    ],
)
def test_the_regression_leaves_to_known_columns_what_they_may_explain(known: tuple[str, ...], chosen: str) -> None:
    frame = pd.concat(
        pd.DataFrame(
            {"unique_id": f"s{i}", "ds": pd.date_range("2024-01-01", periods=len(y), freq="h"), "y": y, "price": y % 3}
        )
        for i, y in enumerate(seasonal_walks([0.0, 0.3, 0.7], 0.3, steps=80))
    )
    covariates = CovariatesConfig(known=known)
    config = replace(CONFIG, covariates=covariates, training=replace(CONFIG.training, updates=1))

    columns = ["unique_id", "ds", "y", *known]
    found = fit(Panel.from_frame(frame[columns], "h", covariates), config)

    assert chosen in found.reasons
    assert bool((found.judged._network.blend - 1 / 3).abs().max() > 0.05) == (not known)


def test_a_source_has_the_share_of_the_weight_that_it_is_given() -> None:
    own, beside = (_Sample(torch.zeros(n, 3), torch.zeros(n, 2), torch.full((n,), w)) for n, w in ((4, 0.5), (60, 2.0)))

    joined = _joined([own, beside], 0.25)

    assert joined is not None
    assert float(joined.weights[:4].sum() / joined.weights.sum()) == pytest.approx(0.25)
    assert _joined([own], 0.25) is own
    assert _joined([], 0.25) is None


def test_steps_that_no_target_tells_of_keep_their_first_spread() -> None:
    """Series shorter than the horizon."""
    series = [np.random.default_rng(i).normal(size=5) for i in range(30)]
    config = replace(CONFIG, horizon=12, context_length=0)

    network = started(series, config)

    widths = network.head.decoders[0].bias[-len(network.head.decoders[0].first_shape) :].detach()
    first = torch.tensor(network.head.decoders[0].first_shape).unsqueeze(-1)
    assert (widths[:, 0:1] != first).all()
    torch.testing.assert_close(widths[:, 6:], first.expand(-1, 6))
