"""Scores a forecast file against the truth, with nothing but the library's metrics and baselines.

A repeatable accuracy figure for any forecast file in our layout, whoever made it: Naive2, the scale of MASE and the
seasonal naive come from the history file. Refuses to score half a forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster import Calendar, InputError, Panel, backtesting
from forecaster.backtesting import Window
from forecaster.baselines import naive2, seasonal_naive
from forecaster.calendar import INTEGER_FREQ
from forecaster.metrics import naive_error
from pipelines.data import Notice, parse_ds, read_frame, read_panel

__all__ = ["score"]

Float = npt.NDArray[np.float64]
MEDIAN = "0.5"


def score(
    forecasts: str | Path,
    truth: str | Path,
    *,
    history: str | Path,
    season: int,
    freq: str | None = None,
    time_zone: str | None = None,
    notice: Notice | None = None,
) -> dict[str, float]:
    """Compute accuracy.

    Parameters
    ----------
    forecasts
        File as written by ``forecaster predict``: `unique_id`, `ds`, quantile levels with ``0.5`` among them.
    truth
        File with `unique_id`, `ds`, `y`. Rows that no forecast covers are ignored.
    history
        What the forecasts were made from; its last known y, or its last row, has to be where they start.
    season
        Seasonality in steps, of MASE, Naive2 and the seasonal naive.
    freq
        Frequency; None means integer steps.
    time_zone
        Where timestamps with UTC offsets are counted: local days need the name of their zone. None: as `history` says,
        UTC where it has bare offsets.
    notice
        Told about ignored columns.

    Returns
    -------
    dict
        `smape`, `mase`, `owa`, `wql` (over the file's quantile levels), the same of the seasonal naive, `coverage_80`
        and `msis` if the file has the levels of those intervals, and `series`.

    Raises
    ------
    InputError
        A file is unusable, a forecast has no truth, or history and forecasts do not meet.
    """
    if season < 1:
        raise InputError(f"--season must be at least 1, not {season}")
    freq = INTEGER_FREQ if freq is None else freq
    if time_zone is not None:
        Calendar(freq, time_zone)  # refuses what is none
    predicted = read_frame(forecasts, ("unique_id", "ds", MEDIAN))
    levels = quantile_columns(predicted)
    known = read_panel(history, freq, time_zone=time_zone, notice=notice)
    zone, freq = known.calendar.time_zone, known.calendar.freq
    came = read_panel(truth, freq, time_zone=zone, notice=notice)
    # The library's calendar reads both files alike, so forecasts go through a panel too, one level at a time.
    predicted_by_level = [_panel(predicted, column, freq, str(forecasts), zone) for column in levels]
    for source, panel in ((truth, came), (forecasts, predicted_by_level[0])):
        if panel.calendar != known.calendar:
            both = panel.calendar, known.calendar
            found, expected = (each.time_zone or "no time zone" for each in both)
            if found == expected:
                found, expected = (f"steps of freq {each.freq}" for each in both)
            raise InputError(f"{source} is in {found}, but {history} in {expected}")
    for column, panel in zip(levels, predicted_by_level, strict=True):
        for name, _, forecast in panel:
            if np.isnan(forecast).any():
                raise InputError(f"{forecasts}: series {name!r} has steps without a forecast at level {column}")
    aligned = _align(predicted_by_level, came, known)
    return _metrics(list(predicted_by_level[0].unique_ids), *aligned, levels, season)


def quantile_columns(frame: pd.DataFrame) -> list[str]:
    """Columns named by a quantile level, rising.

    Raises
    ------
    InputError
        There is no median.
    """
    columns = [str(column) for column in frame.columns if _is_level(str(column))]
    if MEDIAN not in columns:
        raise InputError(f"the forecasts have no column {MEDIAN!r}, the median")
    return sorted(columns, key=float)


def _is_level(column: str) -> bool:
    try:
        return 0.0 < float(column) < 1.0
    except ValueError:
        return False


def _panel(frame: pd.DataFrame, column: str, freq: str, source: str, time_zone: str | None) -> Panel:
    part = frame[["unique_id", "ds", column]].rename(columns={column: "y"})
    part["ds"] = parse_ds(part["ds"], freq, source, time_zone)
    try:
        return Panel.from_frame(part, freq)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _align(predicted: Sequence[Panel], came: Panel, known: Panel) -> tuple[list[Float], list[Float], list[Float]]:
    """Truth [H], quantiles [H, Q] and history of each forecast series."""
    rows = {name: number for number, name in enumerate(came.unique_ids)}
    before = {name: number for number, name in enumerate(known.unique_ids)}
    ys, quantiles, histories = [], [], []
    for number, name in enumerate(predicted[0].unique_ids):
        first, horizon = int(predicted[0].first_steps[number]), int(predicted[0].lengths[number])
        if name not in before or name not in rows:
            raise InputError(
                f"series {name!r} is forecast, but is not in the {'history' if name not in before else 'truth'}"
            )
        history = known.series(before[name])
        place = first - int(known.first_steps[before[name]])
        if not np.flatnonzero(np.isfinite(history))[-1] < place <= len(history):  # rows without y may tell its future
            raise InputError(
                f"series {name!r}: the forecast starts {place - len(history) + 1} steps after the history ends, "
                "expected 1"
            )
        histories.append(history[:place])
        start = first - int(came.first_steps[rows[name]])
        y = came.series(rows[name])
        if start < 0 or start + horizon > len(y):
            raise InputError(f"series {name!r}: the truth does not cover all {horizon} forecast steps")
        ys.append(y[start : start + horizon])
        quantiles.append(np.stack([panel.series(number) for panel in predicted], axis=-1))
    return ys, quantiles, histories


def _metrics(
    names: list[str], ys: list[Float], quantiles: list[Float], histories: list[Float], levels: list[str], season: int
) -> dict[str, float]:
    horizons = {len(y) for y in ys}
    if len(horizons) > 1:
        raise InputError(
            f"the forecasts have different lengths, {min(horizons)} to {max(horizons)} steps; expected one"
        )
    horizon, numbers = horizons.pop(), tuple(map(float, levels))
    window = Window(
        unique_ids=names,
        y=np.stack(ys),
        quantiles=np.stack(quantiles),
        levels=numbers,
        seasonal_naive=np.stack([seasonal_naive(history, horizon, season) for history in histories]),
        naive2=np.stack([naive2(history, horizon, season) for history in histories]),
        error=np.array([naive_error(history, season) for history in histories]),
    )
    return {**backtesting.score([window], numbers), "series": len(ys)}
