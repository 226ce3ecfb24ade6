"""Short trainings on intermittent counts, with every head."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from forecaster import Backtest, Config, Forecaster, NetworkConfig, Panel, PanelError, TrainingConfig, backtest
from forecaster.heads import HEADS
from forecaster.scaling import Frame
from forecaster.training import fit

SIZES = TrainingConfig(updates=60, epoch_updates=20, lanes=32, chunk_length=28, learning_rate=5e-3)
CONFIG = Config("D", 7, (7,), network=NetworkConfig(hidden_size=16, dropout=0.0, members=1), training=SIZES)


@cache
def counts() -> Panel:
    """60 daily series of 140 days: about 70 % zeros, a week with good and bad days, more spread than Poisson."""
    generator = np.random.default_rng(0)
    values = []
    for _ in range(60):
        rate = 10 ** generator.uniform(-1, 0.5) * np.exp(0.5 * generator.normal(size=7))[np.arange(140) % 7]
        values.append(generator.negative_binomial(1.5, 1.5 / (1.5 + rate)) * (generator.random(140) > 0.3) * 1.0)
    names = [f"part-{row}" for row in range(60)]
    return Panel(CONFIG.calendar, names, np.zeros(60, dtype=np.int64), values)


@cache
def fitted(head: str) -> tuple[Forecaster, Backtest]:
    forecaster = fit(counts().drop_last(14), replace(CONFIG, head=head)).forecaster  # type: ignore[arg-type]
    return forecaster, backtest(forecaster, counts(), horizon=7, n_windows=2, step_size=7)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_and_beats_the_seasonal_naive(head: str) -> None:
    metrics = fitted(head)[1].metrics

    assert metrics["wql"] < 0.75 * metrics["seasonal_naive_wql"]


@pytest.mark.parametrize("head", ["negative_binomial", "zero_inflated"])
def test_on_counts_a_law_of_counts_beats_quantiles(head: str) -> None:
    assert fitted(head)[1].metrics["wql"] < fitted("quantile")[1].metrics["wql"]


@pytest.mark.parametrize("head", ["negative_binomial", "zero_inflated"])
def test_no_mean_exceeds_the_sum_of_the_recent_counts(head: str) -> None:
    """Explosive growth cannot run away; where all is 0, one count is possible."""
    model = Forecaster.create(replace(CONFIG, head=head))  # type: ignore[arg-type]
    network = model._network
    parameters = torch.zeros(3, 4, 7)
    parameters[:, 1] = 9.0  # the correction, in units of the pace
    scale = torch.tensor([0.0, 1.0, 1e6], dtype=torch.float64)

    mean = network.head.mean(parameters, Frame(scale, scale, torch.ones_like(scale)))  # type: ignore[operator]

    assert torch.equal(mean, (network.head.reach * scale).clamp(min=1).unsqueeze(-1).expand(3, 7))


@pytest.mark.parametrize("head", HEADS)
def test_a_trained_head_goes_through_the_artifact_and_the_frame(
    head: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    forecaster, _ = fitted(head)
    folder = tmp_path_factory.mktemp("artifact")
    forecaster.save(folder)

    frame = Forecaster.load(folder).forecast_frame(counts(), 9)

    pd.testing.assert_frame_equal(frame, forecaster.forecast_frame(counts(), 9))
    assert np.isfinite(frame[["0.1", "0.9"]]).to_numpy().all()


@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_what_is_no_count_is_refused_by_name(value: float) -> None:
    values = [y.copy() for y in counts().values]
    values[3][5] = value
    panel = Panel(counts().calendar, counts().unique_ids, counts().first_steps, values)
    message = rf"series 'part-3' has y = {value:g} at ds 1970-01-06 .* expects counts: whole numbers of 0 or more"

    for attempt in (
        lambda: fit(panel, replace(CONFIG, head="negative_binomial")),
        lambda: fitted("zero_inflated")[0].forecast_frame(panel),
        lambda: backtest(fitted("zero_inflated")[0], panel, horizon=7, n_windows=1, step_size=1),
    ):
        with pytest.raises(PanelError, match=message):
            attempt()
