"""Attempts: where what is learnt early is best, fewer lanes are tried, and validation decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forecaster.training import Fitted, fit
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
    settings = {"lanes": 0, "updates": UPDATES, "epoch_updates": EPOCH, "learning_rate": 0.03} | training
    return fit(panel_of(values), with_training(**settings), validation=validation, max_minutes=max_minutes)


def losses_of(fitted: Fitted) -> Float:
    """Validation losses by attempt and epoch."""
    return np.array([row["val_loss"] for row in fitted.history]).reshape(-1, UPDATES // EPOCH)


def lanes_said(fitted: Fitted) -> list[str]:
    return [reason for reason in fitted.reasons if reason.startswith("lanes ")]


@pytest.fixture(scope="module")
def by_heart() -> Fitted:
    return fitted_to(noise())


def test_weights_that_are_best_early_are_followed_by_those_of_a_quarter_of_the_lanes(by_heart: Fitted) -> None:
    first, second = losses_of(by_heart)
    assert first.argmin() < len(first) / 2
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


@pytest.mark.parametrize(("seed", "lanes"), [(0, 3), (4, 15)])
def test_the_next_attempt_is_kept_where_its_loss_is_clearly_less(seed: int, lanes: int) -> None:
    fitted = fitted_to(noise(), seed=seed, learning_rate=0.01)
    first, second = losses_of(fitted).min(1)
    assert (second < first) == (lanes == 3), "the data of this test tell nothing otherwise"
    assert lanes_said(fitted)[0].startswith(f"lanes {lanes}: ")
    assert fitted.forecaster.config.training.lanes == (3 if second < first else 128)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        pytest.param(season(), {"learning_rate": 0.005}, id="it goes on learning"),
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
