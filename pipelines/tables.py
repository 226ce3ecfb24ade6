"""Results as small tables for people: title, columns, rows. Pure functions; the console draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipelines.registry import CHALLENGER, CHAMPION, REASON, STATUS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["metrics_table", "models_table", "step_table", "version_row", "window_table"]

MOST_STEPS = 12

Table = tuple[str, list[str], list[list[object]]]
BASELINE = "seasonal_naive_"


def metrics_table(
    metrics: Mapping[str, float], rival: Mapping[str, float] | None = None, rival_version: str | None = None
) -> Table:
    """Lay out metrics, one per row, beside those of the seasonal naive and of the champion where there are any."""
    names = [name for name in metrics if not name.startswith(BASELINE)]
    has_baseline = any(name.startswith(BASELINE) for name in metrics)
    columns = [
        "metric",
        "model",
        *(["seasonal naive"] if has_baseline else []),
        *([f"champion {rival_version}"] if rival else []),
    ]
    rows: list[list[object]] = []
    for name in names:
        row: list[object] = [name, float(metrics[name])]
        if has_baseline:
            row.append(metrics.get(BASELINE + name))
        if rival:
            row.append(rival.get(name))
        rows.append(row)
    return "Metrics", columns, rows


def window_table(by_window: pd.DataFrame) -> Table:
    """Lay out one row per backtest window."""
    names = [
        name
        for name in ("window", "smape", "mase", "wql", "coverage_80", BASELINE + "mase", BASELINE + "wql")
        if name in by_window
    ]
    rows = [list(row) for row in by_window[names].itertuples(index=False)]
    return "Backtest windows, earliest first", [name.replace("_", " ") for name in names], rows


def step_table(by_step: pd.DataFrame) -> Table:
    """Lay out a dozen horizon steps at most, the first and the last among them."""
    shown = by_step.iloc[np.unique(np.linspace(0, len(by_step) - 1, MOST_STEPS).round().astype(int))]
    rows = [list(row) for row in shown[["step", "mae", BASELINE + "mae", "coverage_80"]].itertuples(index=False)]
    return "Backtest by horizon step", ["step", "mae", "seasonal naive mae", "coverage 80"], rows


def version_row(version: ModelVersion) -> dict[str, Any]:
    """Describe a registered version in plain values."""
    tags = dict(version.tags)
    metrics = {
        key.removeprefix("backtest."): _number(value) for key, value in tags.items() if key.startswith("backtest.")
    }
    return {
        "name": version.name,
        "version": str(version.version),
        "aliases": sorted(version.aliases, key=lambda alias: (alias != CHAMPION, alias != CHALLENGER, alias)),
        "status": tags.get(STATUS),
        "reason": tags.get(REASON),
        "metrics": metrics,
        "run_id": version.run_id,
        "created": pd.Timestamp(version.creation_timestamp, unit="ms").isoformat(),
        "tags": tags,
    }


def models_table(rows: list[dict[str, Any]]) -> Table:
    """Lay out registered versions, newest first within a model."""
    columns = ["model", "version", "aliases", "wql", "mase", "naive wql", "status", "created", "reason"]
    cells: list[list[object]] = [
        [
            row["name"],
            row["version"],
            ", ".join(row["aliases"]) or "-",
            row["metrics"].get("wql"),
            row["metrics"].get("mase"),
            row["metrics"].get("seasonal_naive_wql"),
            row["status"] or "-",
            row["created"][:16].replace("T", " "),
            row["reason"] or "-",
        ]
        for row in rows
    ]
    return "Registered models", columns, cells


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
