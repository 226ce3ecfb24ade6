"""Batch forecasts and sample paths: what comes after the last row of every series of a file, by a stored model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from forecaster import Forecaster, Panel
from pipelines.data import Notice, check_output, read_future, read_panel, write_frame
from pipelines.loading import LoadedModel, load_model

__all__ = ["Answer", "Ask", "answer", "forecasts", "paths"]

Ask = Callable[[Forecaster, Panel, pd.DataFrame | None], pd.DataFrame]
"""From a model, all series and the known covariates of the coming steps, to a long frame of what comes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A long frame about the coming steps of all series, and the model that it is from."""

    frame: pd.DataFrame
    model: LoadedModel
    n_series: int


def forecasts(horizon: int | None = None, quantile_levels: Sequence[float] | None = None) -> Ask:
    """Quantiles of every step: the trained horizon and 0.1 to 0.9 by default."""
    return lambda forecaster, panel, ahead: forecaster.forecast_frame(panel, horizon, quantile_levels, ahead)


def paths(horizon: int | None = None, num_samples: int = 100, seed: int = 0) -> Ask:
    """Sample paths of every series; the same seed, the same paths."""
    return lambda forecaster, panel, ahead: forecaster.simulate_frame(panel, horizon, num_samples, seed, ahead)


def answer(
    data: str | Path,
    model: str,
    ask: Ask,
    *,
    future: str | Path | None = None,
    out: str | Path | None = None,
    tracking_uri: str | None = None,
    notice: Notice | None = None,
) -> Answer:
    """Ask a stored model about all series of a file, and write the answer if asked to.

    Parameters
    ----------
    data
        CSV or Parquet file, or a folder of them.
    model
        Artifact folder, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
    ask
        What is asked: see `forecasts` and `paths`.
    future
        File of the known covariates at the coming steps; None: `data` has them, in rows without y after a series' last.
    out
        CSV or Parquet file to write.
    tracking_uri
        Where the registry is.
    notice
        Told about ignored columns, and about rows without y that forecasts begin after.

    Raises
    ------
    InputError
        Data, model, options or output are wrong; nothing was written.
    """
    if out is not None:
        check_output(out, [data] if future is None else [data, future])
    loaded = load_model(model, tracking_uri)
    config = loaded.forecaster.config
    zone = config.time_zone
    panel = read_panel(data, config.freq, config.covariates, time_zone=zone, notice=notice)
    without = panel.lengths - panel.until_observed().lengths
    if without.any() and notice is not None:
        notice(
            f"{np.count_nonzero(without)} series of {data} end in up to {without.max()} steps without y; "
            "what is forecast begins after them"
        )
    ahead = None if future is None else read_future(future, config.freq, config.covariates, time_zone=zone)
    frame = ask(loaded.forecaster, panel, ahead)
    if out is not None:
        write_frame(frame, out)
    return Answer(frame, loaded, len(panel))
