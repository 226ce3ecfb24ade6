"""Backtests for training, for the gate and for the command line, over the library's `backtest`.

Decides how much of a panel is held out of training so that the backtest is honest: the windows that judge a model lie
after everything its weights have seen. What a served model misses in its weights it has in its state, because warm-up
folds the whole history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from forecaster import Backtest, Config, Forecaster, ForecasterError, InputError, Panel, backtest
from pipelines.connection import RegistryError
from pipelines.loading import load_as_judged
from pipelines.registry import rival_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "SHORTEST_SERIES",
    "HoldOut",
    "Rival",
    "can_be_learnt_from",
    "hold_out",
    "measure_champion",
    "run_backtest",
]

MOST_WINDOWS = 4
LARGEST_SHARE = 0.1
"""Share of the median series that is held out when the number of windows is left open."""

SHORTEST_REST = 2
"""Horizons that have to remain for training of a series that can afford a window."""

SHORTEST_SERIES = 3
"""Steps of a series that can be learnt from."""

LARGEST_PART = 0.5
"""Share of all steps from which on the series that can afford a window decide alone, however many others there are."""


@dataclass(frozen=True, slots=True)
class HoldOut:
    """A panel split into what training may see and the windows that judge it.

    Parameters
    ----------
    training
        Every series without its last `held_out` steps; the whole panel if `n_windows` is 0.
    panel
        The whole panel.
    horizon, n_windows, step_size
        The backtest, in steps.
    """

    training: Panel
    panel: Panel
    horizon: int
    n_windows: int
    step_size: int

    @property
    def held_out(self) -> int:
        """Steps at the end of each series that only the windows see: ``horizon + (n_windows - 1) * step_size``."""
        return self.horizon + (self.n_windows - 1) * self.step_size if self.n_windows else 0


def hold_out(panel: Panel, horizon: int, *, n_windows: int | None = None, step_size: int | None = None) -> HoldOut:
    """Hold the last windows of every series out of training.

    Parameters
    ----------
    panel
        All series.
    horizon
        Steps per window.
    n_windows
        How many; None takes as many as fit into a tenth of the median series, from one to four. Where that one is too
        short for even one: of the median of those that are not, if they hold half of all steps, or else none.
    step_size
        Steps between cutoffs; by default `horizon`.

    Raises
    ------
    InputError
        The numbers are not positive, or no series is long enough for the asked windows.
    """
    step_size = horizon if step_size is None else step_size
    if step_size < 1:
        raise InputError(f"the step size of a backtest must be at least 1, not {step_size}")
    if n_windows is not None and n_windows < 0:
        raise InputError(f"the number of windows of a backtest must be at least 0, not {n_windows}")
    wanted = _windows_afforded(panel.lengths, horizon, step_size) if n_windows is None else n_windows
    held = horizon + (wanted - 1) * step_size
    training = panel.drop_last(held) if wanted else panel
    if wanted == 0 or (n_windows is None and not can_be_learnt_from(training)):
        return HoldOut(panel, panel, horizon, 0, step_size)
    if len(training) == 0:
        longest = int(panel.lengths.max())
        raise InputError(
            f"{wanted} backtest windows need {held} steps held out, but the longest series has {longest} steps"
        )
    return HoldOut(training, panel, horizon, wanted, step_size)


def can_be_learnt_from(panel: Panel) -> bool:
    """Whether a series has as many steps as it takes, and an observed one among them."""
    return any(len(y) >= SHORTEST_SERIES and np.isfinite(y).any() for y in panel.values)


def _windows_afforded(lengths: npt.NDArray[np.int64], horizon: int, step_size: int) -> int:
    """How many windows series of these lengths can afford; see `hold_out`."""
    enough = horizon + max(SHORTEST_REST * horizon, SHORTEST_SERIES)
    median = float(np.median(lengths))
    if median < enough:
        able = lengths[lengths >= enough]
        if len(able) == 0 or able.sum() < LARGEST_PART * lengths.sum():
            return 0
        median = float(np.median(able))
    room = int((median * LARGEST_SHARE - horizon) // step_size) + 1
    return min(max(room, 1), MOST_WINDOWS)


def run_backtest(model: Forecaster, panel: Panel, *, horizon: int, n_windows: int, step_size: int) -> Backtest:
    """Backtest a model over rolling cutoffs at the end of every series.

    Parameters
    ----------
    model
        The model.
    panel
        Series with their truth.
    horizon, n_windows, step_size
        Steps per window, how many windows, steps between cutoffs.

    Raises
    ------
    InputError
        The panel does not fit the model, or the numbers do not fit the model or the panel.
    """
    model.check_panel(panel)
    for name, value in (("horizon", horizon), ("number of windows", n_windows), ("step size", step_size)):
        if value < 1:
            raise InputError(f"the {name} of a backtest must be at least 1, not {value}")
    return backtest(model, panel, horizon=horizon, n_windows=n_windows, step_size=step_size)


@dataclass(frozen=True, slots=True)
class Rival:
    """The champion as measured on the challenger's windows; no `metrics` without any, or if it cannot be, and why."""

    version: str
    metrics: dict[str, float]
    problem: str | None = None
    config: Config | None = None


def measure_champion(
    client: MlflowClient, name: str, windows: HoldOut, challenger: str, *, tracking_uri: str | None = None
) -> Rival | None:
    """Backtest the champion that a version has to beat, on its windows of the same panel; None if there is none.

    Without windows it has no metrics, which is no problem of its own.

    Raises
    ------
    RegistryError
        MLflow cannot be reached, which says nothing about the champion: whoever repeats the step may measure it.
    """
    version = rival_of(client, name, challenger)
    if version is None:
        return None
    if windows.n_windows == 0:
        return Rival(version, {})
    try:
        model = load_as_judged(client, name, version, tracking_uri)
        result = run_backtest(
            model, windows.panel, horizon=windows.horizon, n_windows=windows.n_windows, step_size=windows.step_size
        )
    except RegistryError:
        raise
    except ForecasterError as error:
        # Another frequency, a shorter horizon, a damaged artifact: the gate has to say so, training goes on.
        return Rival(version, {}, str(error))
    return Rival(version, dict(result.metrics), config=model.config)
