"""Small data, small models and a way to run the command line, for all tests of the pipelines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forecaster import Config, Forecaster

HORIZON, SEASON = 6, 4
QUICK = {
    "network.hidden_size": "8",
    "network.num_layers": "1",
    "network.members": "1",
    "training.updates": "4",
    "training.epoch_updates": "2",
}


def long_frame(steps: int = 120, series: int = 3, seed: int = 0) -> pd.DataFrame:
    """Hourly series with a season of 4, some noise, one gap and one missing value."""
    generator = np.random.default_rng(seed)
    parts = []
    for number in range(series):
        ds = pd.date_range("2024-01-01", periods=steps, freq="h")
        y = 20.0 + 5 * number + 3 * np.sin(2 * np.pi * np.arange(steps) / SEASON) + generator.normal(0, 0.5, steps)
        parts.append(pd.DataFrame({"unique_id": f"s{number}", "ds": ds, "y": y}))
    frame = pd.concat(parts, ignore_index=True)
    frame.loc[10, "y"] = np.nan
    return frame.drop(index=20).reset_index(drop=True)


def covered_frame(steps: int = 120, future: int = HORIZON) -> pd.DataFrame:
    """The same with a plan, a truth value and a place, and rows at the end that know no y."""
    frame = long_frame(steps + future)
    ends = frame.groupby("unique_id")["ds"].transform("max") - pd.Timedelta(hours=future)
    frame.loc[frame["ds"] > ends, "y"] = np.nan
    number = np.arange(len(frame))
    frame["price"] = np.where(number % 11 == 0, np.nan, np.cos(number))
    frame["open"] = number % 5 > 0
    frame["place"] = np.where(frame["unique_id"] == "s1", "harbour", "hill")
    return frame


def tiny_config(**changes: Any) -> Config:
    """A model that trains in a second."""
    values = {"freq": "h", "horizon": HORIZON, "seasonality": [SEASON], **changes}
    return Config.from_dict(values).with_overrides(QUICK)


def random_forecaster(seed: int = 0, **changes: Any) -> Forecaster:
    """A model with random weights."""
    return Forecaster.create(tiny_config(**changes), seed=seed)


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on the last line of standard output."""
        return dict(json.loads(self.out.strip().splitlines()[-1]))

    @property
    def complaints(self) -> list[str]:
        """Lines on standard error."""
        return [line for line in self.err.splitlines() if line.strip()]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Environment of a child process: this one's, without settings that would leak in."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "FORECASTER_"))}
    root = str(Path(__file__).parents[2])
    return {**kept, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **extra}


def run_cli(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 120) -> Ran:
    """Run `forecaster` as a process of its own, as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments],
        cwd=cwd,
        env=environment(env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@contextmanager
def store_in(folder: Path, empty: Path) -> Iterator[str]:
    """A MLflow store in a folder, made from an empty one; its URI. What is used meanwhile is forgotten at the end."""
    import mlflow

    shutil.copy(empty, folder / "mlflow.db")
    yield f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file with its content, to prove that nothing changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
