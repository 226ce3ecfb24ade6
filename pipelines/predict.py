"""Batch forecasts: every series of a file, from its last row onwards, with a stored model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from forecaster import Panel
from pipelines.data import Notice, check_output, read_future, read_panel, write_frame
from pipelines.loading import LoadedModel, load_model

__all__ = ["Prediction", "forecast_panel", "predict"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Forecasts (`unique_id`, `ds`, one column per quantile level) and the model that made them."""

    frame: pd.DataFrame
    model: LoadedModel
    n_series: int


def predict(
    data: str | Path,
    model: str,
    *,
    future: str | Path | None = None,
    out: str | Path | None = None,
    horizon: int | None = None,
    quantile_levels: Sequence[float] | None = None,
    tracking_uri: str | None = None,
    notice: Notice | None = None,
) -> Prediction:
    """Forecast all series of a file, and write the forecasts if asked to.

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
    quantile_levels
        By default 0.1 to 0.9.
    tracking_uri
        Where the registry is.
    notice
        Told about ignored columns.

    Raises
    ------
    InputError
        Data, model, horizon or output are wrong; nothing was written.
    """
    if out is not None:
        check_output(out)
    loaded = load_model(model, tracking_uri)
    config = loaded.forecaster.config
    zone = config.time_zone
    panel = read_panel(data, config.freq, config.covariates, time_zone=zone, notice=notice)
    ahead = None if future is None else read_future(future, config.freq, config.covariates, time_zone=zone)
    frame = forecast_panel(loaded, panel, horizon=horizon, quantile_levels=quantile_levels, future=ahead)
    if out is not None:
        write_frame(frame, out)
    return Prediction(frame, loaded, len(panel))


def forecast_panel(
    model: LoadedModel,
    panel: Panel,
    *,
    horizon: int | None = None,
    quantile_levels: Sequence[float] | None = None,
    future: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Forecast a panel that is already read.

    Raises
    ------
    InputError
        The panel is not on the model's grid, the horizon or a level is out of range, or a coming step is not known.
    """
    return model.forecaster.forecast_frame(panel, horizon, quantile_levels, future)
