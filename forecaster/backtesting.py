"""Backtest: forecasts from rolling cutoffs by the very code that serves, scored against what came after.

Each cutoff's state is the one that streaming would have reached: the panel is folded up to the first cutoff and then
on to each next one. Nothing is refitted, and nothing after a cutoff can reach its forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from forecaster.baselines import naive2, seasonal_naive
from forecaster.errors import PanelError
from forecaster.forecaster import DEFAULT_LEVELS, Forecaster
from forecaster.marginals import level_name
from forecaster.metrics import coverage, mase, msis, naive_error, owa, smape, wql
from forecaster.panel import Panel

__all__ = ["Backtest", "Window", "backtest", "score"]

OUTER_LEVELS = (0.025, 0.975)
"""The 95 % interval of MSIS, asked for where the model was trained for it."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """Truth, forecasts and references of all series at one cutoff; H steps, Q levels, N series.

    Attributes
    ----------
    unique_ids
        The N series.
    y, seasonal_naive, naive2
        Shape [N, H].
    quantiles
        Shape [N, H, Q], at `levels`.
    levels
        Rising, with 0.5 among them.
    error
        Mean absolute seasonal difference of each history, shape [N].
    """

    unique_ids: list[str]
    y: Float
    quantiles: Float
    levels: tuple[float, ...]
    seasonal_naive: Float
    naive2: Float
    error: Float

    def at(self, level: float) -> Float:
        """Quantiles of one level, shape [N, H]."""
        return self.quantiles[..., self.levels.index(level)]


@dataclass(frozen=True)
class Backtest:
    """Outcome of a backtest.

    Attributes
    ----------
    forecasts
        Long frame: `unique_id`, `cutoff`, `ds`, `step`, `y`, `seasonal_naive`, and those of ``0.1`` … ``0.9`` that the
        model answers.
    metrics
        `smape`, `mase`, `owa`, `wql` (over these levels), `coverage_80`, `msis` (if the model has the 80 % and the 95 %
        interval), and `seasonal_naive_smape`, `seasonal_naive_mase`, `seasonal_naive_owa`, `seasonal_naive_wql`.
    by_window
        The metrics per window, one row each, with `window` counted from the earliest.
    by_step
        `step`, `mae`, `seasonal_naive_mae`, `coverage_80` (NaN without that interval), over all series and windows.
    by_series
        `unique_id`, `smape`, `mase`, `seasonal_naive_mase`, over all windows.
    """

    forecasts: pd.DataFrame
    metrics: dict[str, float]
    by_window: pd.DataFrame
    by_step: pd.DataFrame
    by_series: pd.DataFrame


def backtest(forecaster: Forecaster, panel: Panel, *, horizon: int, n_windows: int, step_size: int) -> Backtest:
    """Forecast from `n_windows` cutoffs, the last of them `horizon` steps before each series' end.

    Parameters
    ----------
    forecaster
        Used as it is.
    panel
        Whole series. Those too short for every window (fewer than ``horizon + (n_windows - 1) * step_size + 1`` steps)
        are left out of all.
    horizon
        Steps per forecast.
    n_windows, step_size
        Number of cutoffs and steps between two of them.

    Raises
    ------
    InputError
        The horizon cannot be answered or the calendar differs.
    PanelError
        A count is below 1, or every series is too short.
    """
    forecaster.check_panel(panel)
    horizon = forecaster.check_horizon(horizon)
    if n_windows < 1 or step_size < 1:
        raise PanelError(f"n_windows is {n_windows} and step_size {step_size}, expected at least 1 each")
    tail = horizon + (n_windows - 1) * step_size
    panel = panel.with_covariates(forecaster.config.covariates)
    long_enough = [row for row, y in enumerate(panel.values) if len(y) > tail and np.isfinite(y[:-tail]).any()]
    panel = panel.select(np.array(long_enough, dtype=np.int64))
    kept = list(panel)
    if not kept:
        raise PanelError(f"no series has more than {tail} steps, as {n_windows} windows of {horizon} steps need")
    levels = tuple(level for level in sorted({*DEFAULT_LEVELS, *OUTER_LEVELS}) if forecaster.answers(level))
    state = forecaster.warm_up_panel(panel.drop_last(tail))
    windows, frames = [], []
    for number in range(n_windows):
        left = tail - number * step_size
        if number:
            new = panel.drop_last(left).tail(step_size)
            given = torch.from_numpy(np.stack([table[:step_size] for table in new.tables]))
            state = forecaster.fold(state, torch.from_numpy(np.stack(new.values)), covariates=given)
        known = torch.from_numpy(panel.drop_last(left).future(horizon))
        quantiles = forecaster.forecast(state, horizon, levels, known)
        window = _window(forecaster, kept, quantiles, levels, left, horizon)
        windows.append(window)
        frames.append(_frame(forecaster, window, state.last_step.numpy()))
    by_window = pd.DataFrame([{"window": i, **score([window])} for i, window in enumerate(windows)])
    return Backtest(
        pd.concat(frames, ignore_index=True), score(windows), by_window, _by_step(windows), _by_series(windows)
    )


def score(windows: list[Window], wql_levels: Sequence[float] = DEFAULT_LEVELS) -> dict[str, float]:
    """All metrics over windows: per-series errors averaged over windows and series, sums pooled.

    Parameters
    ----------
    windows
        With the same levels.
    wql_levels
        Those of the windows' levels among these count in the weighted quantile loss.

    Returns
    -------
    dict
        As `Backtest.metrics`; `coverage_80` and `msis` only if the windows have the levels of that interval.
    """
    y, error = _join(windows, "y"), np.concatenate([window.error for window in windows])
    naive, reference = _join(windows, "seasonal_naive"), _join(windows, "naive2")
    levels = windows[0].levels
    quantiles = np.concatenate([window.quantiles for window in windows])
    at = {level: quantiles[..., place] for place, level in enumerate(levels)}
    inner = [level for level in levels if level in wql_levels]
    scores = {}
    reference_scores = _average(smape(y, reference)), _average(mase(y, reference, error))
    for prefix, point, spread in (
        ("", at[0.5], quantiles[..., [levels.index(level) for level in inner]]),
        ("seasonal_naive_", naive, np.repeat(naive[..., None], len(inner), -1)),
    ):
        scores[f"{prefix}smape"] = _average(smape(y, point))
        scores[f"{prefix}mase"] = _average(mase(y, point, error))
        scores[f"{prefix}owa"] = owa(scores[f"{prefix}smape"], scores[f"{prefix}mase"], *reference_scores)
        scores[f"{prefix}wql"] = wql(y, spread, inner)
    if {0.1, 0.9} <= set(levels):
        scores["coverage_80"] = coverage(y, at[0.1], at[0.9])
    if set(OUTER_LEVELS) <= set(levels):
        scores["msis"] = _average(msis(y, at[OUTER_LEVELS[0]], at[OUTER_LEVELS[1]], error))
    return scores


def _window(
    forecaster: Forecaster,
    kept: list[tuple[str, int, Float]],
    quantiles: Float,
    levels: tuple[float, ...],
    left: int,
    horizon: int,
) -> Window:
    season = forecaster.config.seasonality[0]
    histories = [y[: len(y) - left] for _, _, y in kept]
    return Window(
        unique_ids=[name for name, _, _ in kept],
        y=np.stack([y[len(y) - left : len(y) - left + horizon] for _, _, y in kept]),
        quantiles=quantiles,
        levels=levels,
        seasonal_naive=np.stack([seasonal_naive(history, horizon, season) for history in histories]),
        naive2=np.stack([naive2(history, horizon, season) for history in histories]),
        error=np.array([naive_error(history, season) for history in histories]),
    )


def _frame(forecaster: Forecaster, window: Window, cutoffs: npt.NDArray[np.int64]) -> pd.DataFrame:
    count, horizon = window.y.shape
    steps = np.arange(1, horizon + 1)
    columns = {
        "unique_id": np.repeat(np.array(window.unique_ids, dtype=object), horizon),
        "cutoff": forecaster.calendar.to_index(np.repeat(cutoffs, horizon)),
        "ds": forecaster.calendar.to_index((cutoffs[:, None] + steps).ravel()),
        "step": np.tile(steps, count),
        "y": window.y.ravel(),
        "seasonal_naive": window.seasonal_naive.ravel(),
    }
    for level in (level for level in window.levels if level in DEFAULT_LEVELS):
        columns[level_name(level)] = window.at(level).ravel()
    return pd.DataFrame(columns)


def _by_step(windows: list[Window]) -> pd.DataFrame:
    y, naive = _join(windows, "y"), _join(windows, "seasonal_naive")
    quantiles = {level: np.concatenate([window.at(level) for window in windows]) for level in windows[0].levels}
    unknown = np.full(y.shape[1], np.nan)
    return pd.DataFrame(
        {
            "step": np.arange(1, y.shape[1] + 1),
            "mae": [_average(error) for error in np.abs(y - quantiles[0.5]).T],
            "seasonal_naive_mae": [_average(error) for error in np.abs(y - naive).T],
            "coverage_80": list(map(coverage, y.T, quantiles[0.1].T, quantiles[0.9].T))
            if {0.1, 0.9} <= set(quantiles)
            else unknown,
        }
    )


def _by_series(windows: list[Window]) -> pd.DataFrame:
    rows = [
        pd.DataFrame(
            {
                "unique_id": window.unique_ids,
                "smape": smape(window.y, window.at(0.5)),
                "mase": mase(window.y, window.at(0.5), window.error),
                "seasonal_naive_mase": mase(window.y, window.seasonal_naive, window.error),
            }
        )
        for window in windows
    ]
    return pd.concat(rows).groupby("unique_id", sort=False).mean().reset_index()


def _join(windows: list[Window], field: str) -> Float:
    return np.concatenate([getattr(window, field) for window in windows])


def _average(values: Float) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
