"""The demo's data: a year of hourly temperatures of two cities; `vega_datasets` carries it, nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

__all__ = ["Cities", "load_cities"]

REPLAY_STEPS = 4 * 7 * 24


@dataclass(frozen=True, slots=True)
class Cities:
    """Long frames (`unique_id`, `ds`, `y` in °F): what is known, and what will be streamed."""

    history: pd.DataFrame
    replay: pd.DataFrame

    @property
    def names(self) -> list[str]:
        """The cities."""
        return list(dict.fromkeys(self.history["unique_id"]))


def load_cities() -> Cities:
    """Split at four weeks before the end of the year."""
    from vega_datasets import local_data

    parts = []
    for name, table in (("seattle", local_data.seattle_temps()), ("san_francisco", local_data.sf_temps())):
        # The columns come in another order in each file, and one hour is missing where clocks went forward.
        parts.append(
            pd.DataFrame({"unique_id": name, "ds": pd.to_datetime(table["date"]), "y": table["temp"].astype(float)})
        )
    frame = pd.concat(parts, ignore_index=True)
    start = frame["ds"].max() - pd.Timedelta(hours=REPLAY_STEPS - 1)
    replay = frame[frame["ds"] >= start].sort_values(["ds", "unique_id"], ignore_index=True)
    return Cities(frame[frame["ds"] < start].reset_index(drop=True), replay)
