"""A small data set that trains in seconds, and the settings for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.orchestration.settings import ScheduleSettings

OVERRIDES = {
    "network.hidden_size": "8",
    "network.members": "1",
    "network.num_layers": "1",
    "training.updates": "20",
    "training.epoch_updates": "10",
}


def settings_in(folder: Path, **changes: object) -> ScheduleSettings:
    """Write the data and say how it is trained on."""
    data = folder / "data.csv"
    write_waves(data)
    values = {
        "data": str(data),
        "freq": "h",
        "horizon": 6,
        "season": (24,),
        "name": "waves",
        "overrides": OVERRIDES,
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
    }
    return ScheduleSettings(**(values | changes))


def write_waves(path: Path, steps: int = 24 * 14) -> None:
    """Two noisy daily waves."""
    rng = np.random.default_rng(0)
    ds = pd.date_range("2024-01-01", periods=steps, freq="h")
    wave = 10 + 3 * np.sin(2 * np.pi * np.arange(steps) / 24)
    frames = [pd.DataFrame({"unique_id": name, "ds": ds, "y": wave + rng.normal(0, 0.3, steps)}) for name in ("a", "b")]
    pd.concat(frames).to_csv(path, index=False)
