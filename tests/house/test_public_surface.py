"""What users import is pinned here; everything else may change without notice."""

from __future__ import annotations

import typer

import forecaster
import forecaster.training
from pipelines.cli import app


def test_the_librarys_surface():
    assert sorted(forecaster.__all__) == [
        "ArtifactError",
        "Backtest",
        "Calendar",
        "Config",
        "ConfigError",
        "CovariatesConfig",
        "Forecaster",
        "ForecasterError",
        "InputError",
        "NetworkConfig",
        "Panel",
        "PanelError",
        "StreamState",
        "TrainingConfig",
        "backtest",
    ]


def test_the_training_surface():
    assert sorted(forecaster.training.__all__) == ["Fitted", "fit"]


def test_every_public_thing_is_documented():
    undocumented = [name for name in forecaster.__all__ if not (getattr(forecaster, name).__doc__ or "").strip()]

    assert undocumented == []


def test_the_commands():
    assert sorted(typer.main.get_command(app).commands) == [
        "backtest",
        "bench",
        "demo",
        "keys",
        "models",
        "predict",
        "promote",
        "schedule",
        "score",
        "serve",
        "simulate",
        "streams",
        "train",
    ]
