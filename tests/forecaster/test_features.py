"""Features and anchors against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecaster.features import anchors, feature_size, features, naive, num_anchors, num_cycles, pooled_size
from forecaster.scaling import advance
from forecaster.state import StateLayout


def mean_blend(seasonality: tuple[int, ...], width: int, horizon: int) -> torch.Tensor:
    """The weights before training: the mean of the cycles, for every coming one."""
    cycles = num_cycles(seasonality, width)
    return torch.full((math.ceil(horizon / seasonality[0]), cycles), 1 / max(cycles, 1))


@given(
    seasonality=st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True).map(lambda s: tuple(sorted(s))),
    cycles=st.integers(1, 4),
    horizon=st.integers(1, 30),
)
def test_anchors_are_the_last_cycle_the_mean_one_and_the_last_value_in_season_along_the_trend_and_a_blend(
    seasonality: tuple[int, ...], cycles: int, horizon: int
) -> None:
    width = seasonality[-1] * cycles
    ring = np.random.default_rng(width).normal(size=width)

    blend = torch.from_numpy(np.random.default_rng(horizon).normal(size=mean_blend(seasonality, width, horizon).shape))
    found = anchors(torch.from_numpy(ring).float().unsqueeze(0), seasonality, horizon, blend.float())[0].numpy()

    periods = sorted({1, *seasonality})
    repeated = [[[width - p + h % p] for h in range(horizon)] for p in periods]
    for p in periods:
        if width // p >= 2:
            repeated.append([[i for i in range(width % p, width) if (width - i + h) % p == 0] for h in range(horizon)])
    means = np.array([[ring[places].mean() for places in row] for row in repeated])
    ahead = np.array([[width + h - np.mean(places) for h, places in enumerate(row)] for row in repeated])
    slope = 0.0
    if cycles > 1:
        lag = seasonality[-1] * max(1, cycles // 4)
        changes = ring[lag:] - ring[:-lag]
        slope = changes.mean() / lag * changes.mean() ** 2 / (changes**2).mean()
    expected = means + slope * ahead
    decomposed = max((p for p in periods if width // p >= 2), default=1)
    if decomposed > 1:
        season = moved_along_the_season(ring, decomposed, horizon)
        expected = np.vstack([expected, season + slope * np.arange(1, horizon + 1)])
    if blend.shape[1]:
        period = seasonality[0]
        table = ring[-blend.shape[1] * period :].reshape(-1, period)
        expected = np.vstack([expected, (blend.numpy() @ table).ravel()[:horizon]])
    assert found.shape == (num_anchors(seasonality, width), horizon)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def moved_along_the_season(ring: np.ndarray, period: int, horizon: int) -> np.ndarray:
    """The last value without its season, and each coming step's season on it, by pandas: the oracle."""
    frame = pd.DataFrame({"y": ring, "phase": np.arange(len(ring)) % period})
    around = frame["y"].rolling(period).mean().shift(-(period - 1 - period // 2))
    season = (frame["y"] - around).groupby(frame["phase"]).mean().to_numpy()
    coming = np.arange(len(ring), len(ring) + horizon) % period
    return ring[-1] - season[(len(ring) - 1) % period] + season[coming]


def test_a_steady_trend_is_followed_and_what_stays_the_same_is_repeated() -> None:
    steps = torch.arange(32.0)
    season = torch.tensor([3.0, 0.0, -1.0, -2.0]).repeat(10)

    rising, staying, flat = anchors(
        torch.stack([0.5 * steps + season[:32], season[:32], 0 * steps]), (4,), 8, mean_blend((4,), 32, 8)
    )

    truth = 0.5 * torch.arange(32.0, 40.0) + season[:8]
    for seasonal in (1, 3, 4):  # the latest cycle, the mean one, and the last value moved along it
        torch.testing.assert_close(rising[seasonal], truth)
        torch.testing.assert_close(staying[seasonal], season[:8])
    torch.testing.assert_close(flat, torch.zeros(6, 8))


@given(seed=st.integers(0, 99), factor=st.floats(0.01, 100), seasonality=st.sampled_from([(1,), (4,), (3, 6)]))
def test_anchors_of_a_multiple_are_that_multiple(seed: int, factor: float, seasonality: tuple[int, ...]) -> None:
    ring = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 24))).float()

    blend = mean_blend(seasonality, 24, 9)
    several, single = (anchors(scaled, seasonality, 9, blend) for scaled in (factor * ring, ring))

    torch.testing.assert_close(several, factor * single, rtol=1e-4, atol=1e-5 * factor)


def test_a_level_that_fell_lately_is_kept_where_cycles_repeat_the_one_before() -> None:
    season = torch.tensor([3.0, 0.0, -1.0, -2.0]).repeat(8)
    fallen, truth = season - 5 * (torch.arange(32) >= 29), season[:8] - 5

    found = anchors(fallen.unsqueeze(0), (4,), 8, mean_blend((4,), 32, 8))[0]
    *_, mean_cycle, level, _ = (found - truth).abs().mean(-1).tolist()

    assert level < 2 < 3 < mean_cycle


def test_a_ring_of_one_season_tells_no_trend() -> None:
    ring = torch.arange(6.0).unsqueeze(0)

    assert anchors(ring, (6,), 3, mean_blend((6,), 6, 3))[0, 1].tolist() == [0, 1, 2]


def test_the_seasonal_naive_forecast_repeats_the_first_season() -> None:
    assert naive(torch.arange(8.0), (2, 4), 5).tolist() == [6, 7, 6, 7, 6]


@pytest.mark.parametrize("width", [1, 24, 192, 193, 336, 672, 1024, 2016])
def test_there_are_as_many_features_as_announced(width: int) -> None:
    state = StateLayout(layers=1, hidden=1, cell=1, ring=width, statistics=4).initial(torch.tensor([0, 5]))
    history, _ = advance(state, torch.arange(6.0, dtype=torch.float64).reshape(2, 3), seasonality=(1,), kind="linear")

    found = features(history)

    assert found.shape == (2, 3, feature_size(width))
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert pooled_size(width) <= 192


def test_a_long_ring_is_seen_finely_near_its_end_and_in_block_means_before() -> None:
    width = 300
    state = StateLayout(layers=1, hidden=1, cell=1, ring=width, statistics=4).initial(torch.tensor([0]))
    y = torch.from_numpy(np.random.default_rng(0).normal(50, 5, (1, width)))
    history, _ = advance(state, y, seasonality=(1,), kind="linear")

    found = features(history)[0, -1].numpy()

    scaled = history.scaled[0, -1].numpy()
    block = math.ceil((width - 96) / 96)
    coarse = [scaled[end - block : end].mean() for end in range(width - 96, block - 1, -block)][::-1]
    np.testing.assert_array_equal(found[:96], scaled[-96:])
    assert len(found) == 96 + 7 + len(coarse)
    np.testing.assert_allclose(found[103:], coarse, rtol=1e-4, atol=1e-6)
