"""Attempts: where much is learnt by heart, fewer lanes are tried, and validation decides."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.training import Fitted, fit
from forecaster.training.attempts import best_attempt, fresh
from forecaster.training.clock import Clock
from forecaster.training.data import ChunkDataModule
from forecaster.training.stage import Weights
from tests.forecaster.kit import Float
from tests.forecaster.training_kit import panel_of, with_training

UPDATES, EPOCH = 80, 8


def noise(count: int = 3, length: int = 500) -> list[Float]:
    """There is nothing to learn but by heart."""
    generator = np.random.default_rng(1)
    return [generator.normal(0, 1, length) for _ in range(count)]


def season(count: int = 3, length: int = 500) -> list[Float]:
    generator = np.random.default_rng(1)
    return [10 + 3 * np.sin(np.arange(length) * np.pi / 2) + generator.normal(0, 0.3, length) for _ in range(count)]


def fitted_to(values: list[Float], validation: int = 32, max_minutes: float | None = None, **training: Any) -> Fitted:
    """By a network that learns by heart what it can: large for these series, with a high learning rate, no dropout."""
    settings = {"lanes": 0, "updates": UPDATES, "epoch_updates": EPOCH, "learning_rate": 0.05, "gaps": 0.0} | training
    config = with_training(**settings)
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, hidden_size=24, dropout=0.0))
    return fit(panel_of(values), config, validation=validation, max_minutes=max_minutes)


def losses_of(fitted: Fitted) -> Float:
    """Validation losses by attempt and epoch."""
    return np.array([row["val_loss"] for row in fitted.history]).reshape(-1, UPDATES // EPOCH)


def lanes_said(fitted: Fitted) -> list[str]:
    return [reason for reason in fitted.reasons if reason.startswith("lanes ")]


@pytest.fixture(scope="module")
def by_heart() -> Fitted:
    return fitted_to(noise())


def test_where_the_loss_rises_at_last_a_quarter_of_the_lanes_follows(by_heart: Fitted) -> None:
    first, second = losses_of(by_heart)
    assert first[-1] > 1.05 * first.min()
    assert second.min() < first.min(), "the data of this test tell nothing otherwise"
    assert by_heart.forecaster.config.training.lanes == 3
    early, late = (EPOCH * (losses.argmin() + 1) for losses in (first, second))
    assert lanes_said(by_heart) == [
        f"lanes 3: least validation losses of {UPDATES} updates were {first.min():.4g} with 15, after {early} updates;"
        f" {second.min():.4g} with 3, after {late}"
    ]


def test_an_attempt_is_the_run_that_as_many_lanes_would_have_been(by_heart: Fitted) -> None:
    given = fitted_to(noise(), lanes=3)
    np.testing.assert_array_equal(losses_of(given)[0], losses_of(by_heart)[1])


def test_the_same_seed_gives_the_same_attempts(by_heart: Fitted) -> None:
    again = fitted_to(noise())
    np.testing.assert_array_equal(losses_of(again), losses_of(by_heart))
    assert again.forecaster.fingerprint() == by_heart.forecaster.fingerprint()


def test_the_first_attempt_is_kept_where_the_next_is_not_clearly_better_and_the_next_leaves_no_trace() -> None:
    options = {"seed": 1, "learning_rate": 0.03, "finish": 0.25}
    fitted, alone = fitted_to(noise(), **options), fitted_to(noise(), **options, lanes=15)
    first, second = np.array([row["val_loss"] for row in fitted.history if "val_loss" in row]).reshape(2, -1).min(1)
    assert second > 0.99 * first, "the data of this test tell nothing otherwise"
    assert lanes_said(fitted)[0].startswith("lanes 15: ")
    for found, expected in ((fitted.judged, alone.judged), (fitted.forecaster, alone.forecaster)):
        weights = expected._network.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in found._network.state_dict().items())


@pytest.mark.parametrize(("loss", "kept"), [(0.995, "first"), (0.985, "second")])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_next_attempt_is_taken_where_it_is_better_by_a_hundredth(
    monkeypatch: pytest.MonkeyPatch, loss: float, kept: str, sign: int
) -> None:
    """Of the loss, which may be negative; less is chance."""
    least = loss if sign > 0 else loss - 2
    found = iter([Weights(8, sign, sign + 1), Weights(8, least, least)])
    monkeypatch.setattr("forecaster.training.attempts.train_stage", lambda *_: next(found))
    panel, config = panel_of(noise()), with_training(lanes=0)
    data = ChunkDataModule(panel, config, 32)

    best, _ = best_attempt(fresh(config, data), data, panel, Clock(None, None), again=True)

    assert next(found, None) is None
    assert best.weights.loss == (sign if kept == "first" else least)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        pytest.param(season(), {"learning_rate": 0.005}, id="the loss does not rise"),
        pytest.param(noise(), {"lanes": 15}, id="lanes are given"),
        pytest.param(noise(), {"validation": 20}, id="too few values judge"),
    ],
)
def test_otherwise_there_is_one_attempt(values: list[Float], options: dict[str, Any]) -> None:
    fitted = fitted_to(values, **options)
    assert len(losses_of(fitted)) == 1
    assert not lanes_said(fitted)


@pytest.mark.parametrize(("needed", "attempts"), [(1e-9, 2), (1e9, 1)])
def test_there_is_one_attempt_where_there_is_no_time_for_another(
    monkeypatch: pytest.MonkeyPatch, needed: float, attempts: int
) -> None:
    monkeypatch.setattr("forecaster.training.attempts.NEEDED", needed)
    assert len(losses_of(fitted_to(noise(), max_minutes=10))) == attempts


def test_progress_never_goes_back(by_heart: Fitted) -> None:
    progress = [row["progress"] for row in by_heart.history]
    assert progress == sorted(progress)
