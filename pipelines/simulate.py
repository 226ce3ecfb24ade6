"""Sample paths in batch: joint draws of what comes after the last row of every series of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines.data import Notice, check_output, read_future, read_panel, write_frame
from pipelines.loading import LoadedModel, load_model

__all__ = ["Simulation", "simulate"]


@dataclass(frozen=True, slots=True)
class Simulation:
    """Sample paths (`unique_id`, `sample`, `ds`, `y`) and the model that drew them."""

    frame: pd.DataFrame
    model: LoadedModel
    n_series: int


def simulate(
    data: str | Path,
    model: str,
    *,
    future: str | Path | None = None,
    out: str | Path | None = None,
    horizon: int | None = None,
    num_samples: int = 100,
    seed: int = 0,
    tracking_uri: str | None = None,
    notice: Notice | None = None,
) -> Simulation:
    """Draw sample paths of all series of a file, and write them if asked to.

    Parameters
    ----------
    data
        CSV or Parquet file, or a folder of them.
    model
        Artifact folder, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
    future
        File of the known covariates at the coming steps; None: `data` has them, in rows without y after a series' last.
    out
        CSV or Parquet file to write.
    horizon
        Steps; by default the trained horizon.
    num_samples
        Paths per series.
    seed
        The same seed, the same paths.
    tracking_uri
        Where the registry is.
    notice
        Told about ignored columns.

    Raises
    ------
    InputError
        Data, model, numbers or output are wrong; nothing was written.
    """
    if out is not None:
        check_output(out)
    loaded = load_model(model, tracking_uri)
    config = loaded.forecaster.config
    zone = config.time_zone
    panel = read_panel(data, config.freq, config.covariates, time_zone=zone, notice=notice)
    ahead = None if future is None else read_future(future, config.freq, config.covariates, time_zone=zone)
    frame = loaded.forecaster.simulate_frame(panel, horizon, num_samples, seed, ahead)
    if out is not None:
        write_frame(frame, out)
    return Simulation(frame, loaded, len(panel))
