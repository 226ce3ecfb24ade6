"""The forecaster: a trained network with its calendar, and the verbs of carried state.

``warm_up`` folds a history into a `StreamState`, ``observe`` folds one more value, ``forecast`` decodes. All of them
are pure: states go in and come out, nothing is kept, so one forecaster may serve many threads. Lightning, files'
origins and clocks are unknown here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from forecaster import artifact
from forecaster.calendar import Calendar
from forecaster.calibration import NOTHING_LEARNT
from forecaster.config import Config
from forecaster.covariates import static_numbers, table_of
from forecaster.errors import InputError
from forecaster.heads import DistributionHead
from forecaster.marginals import Decoded, level_name, locate
from forecaster.network import ForecastNetwork
from forecaster.panel import Panel
from forecaster.quality import Quality
from forecaster.rolling import Rolling, unless_blank
from forecaster.shapes import check_chunk, check_histories, check_rows, check_shape
from forecaster.simulation import FEWEST_PATHS, checked_samples, generators, seed_of
from forecaster.state import StreamState
from forecaster.stepping import Stepper

__all__ = ["DEFAULT_LEVELS", "Forecaster"]

DEFAULT_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Quantile levels of a forecast when none are asked for."""

PATHS_AT_ONCE = 2**13
"""Sample paths drawn side by side, at least those of one row: bounds memory."""

Float = npt.NDArray[np.float64]


P = ParamSpec("P")
R = TypeVar("R")


def _without_gradient(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.inference_mode`, where it does not hold already: to enter it takes as long as several operations."""
    held = torch.inference_mode()(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (function if torch.is_inference_mode_enabled() else held)(*args, **kwargs)

    return call


class Forecaster:
    """A network that is ready to serve.

    Parameters
    ----------
    network
        Trained or fresh; it is copied to the processor and to evaluation mode, and frozen.

    Examples
    --------
    >>> forecaster = Forecaster.create(Config("h", horizon=2, seasonality=(3,)))
    >>> state = forecaster.warm_up([np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])], [0])
    >>> state = forecaster.observe(state, torch.tensor([1.0]))
    >>> forecaster.forecast(state).shape
    (1, 2, 9)
    """

    def __init__(self, network: ForecastNetwork) -> None:
        self._network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        self._network.pack()
        self._rolling = Rolling(self._network)
        self._stepper = Stepper(self._network) if Stepper.steps(self._network) else None
        self.config: Config = network.config
        self.calendar: Calendar = network.config.calendar

    @classmethod
    def create(cls, config: Config, seed: int = 0) -> Forecaster:
        """Fresh weights from `seed`; the caller's random state is left alone."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            return cls(ForecastNetwork(config))

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    # -- the verbs -------------------------------------------------------------------------------------------------

    def initial_state(self, first_steps: Sequence[int] | Tensor, static: Tensor | None = None) -> StreamState:
        """State of series that have seen nothing and will first fold step `first_steps[b]`; shape [B].

        `static` [B, S] holds what the method `static` or a panel made of their static covariates; None: all missing.

        Raises
        ------
        InputError
            `static` has another shape.
        """
        steps, columns = torch.as_tensor(first_steps, dtype=torch.int64), self._network.layout.static
        if static is not None:
            check_shape("static", static, (len(steps), columns), "series, static numbers of the model")
        return self._network.layout.initial(steps, static)

    @_without_gradient
    def fold(
        self, state: StreamState, y: Tensor, lengths: Tensor | None = None, covariates: Tensor | None = None
    ) -> StreamState:
        """Fold consecutive values.

        Parameters
        ----------
        state
            B rows.
        y
            Shape [B, T]; NaN is a missing value.
        lengths
            Values to fold per row, int64, shape [B], 0 to T; None for T.
        covariates
            Values of the dynamic columns, as a panel's table has them, shape [B, T, D]; NaN is missing, None: all are.

        Returns
        -------
        StreamState
            The next state; `state` is unchanged.

        Raises
        ------
        InputError
            A shape does not fit the state, or a length is more than T.
        """
        check_chunk(len(state), y, lengths, covariates, len(self.config.covariates.dynamic))
        return self._rolling.fold(state, y, lengths, covariates, self._network.observe)

    def observe(self, state: StreamState, y: Tensor, covariates: Tensor | None = None) -> StreamState:
        """Fold one value per row; `y` has shape [B], `covariates` [B, D], NaN is a missing value.

        Raises
        ------
        InputError
            A shape does not fit the state.
        """
        check_shape("y", y, (len(state),), "one value for each series of the state")
        return self.fold(state, y.unsqueeze(1), covariates=None if covariates is None else covariates.unsqueeze(1))

    @_without_gradient
    def change(self, state: StreamState, rows: Tensor, y: Tensor, covariates: Tensor | None = None) -> StreamState:
        """What observing one value each would change in some rows of a large state: `observe` without copying rings.

        Parameters
        ----------
        state
            Unchanged, until the result is written over the rows with `StreamState.assign`.
        rows
            Distinct rows, int64, shape [B].
        y
            One value per row, shape [B]; NaN is a missing value.
        covariates
            As in `observe`, shape [B, D].

        Returns
        -------
        StreamState
            B rows, for `StreamState.assign`. It can be forecast from up to the trained horizon.

        Raises
        ------
        InputError
            A shape does not fit the rows.
        """
        check_shape("y", y, tuple(rows.shape), "one value for each of the rows")
        if covariates is not None:
            columns = len(self.config.covariates.dynamic)
            check_shape("covariates", covariates, (*rows.shape, columns), "rows, dynamic columns of the model")
        if self._stepper is not None:
            return self._stepper.step(state, rows, y if y.dtype == torch.float64 else y.double(), covariates)
        return self.observe(state.select(rows), y, covariates)

    @_without_gradient
    def ahead(self, state: StreamState, future: Tensor | None = None) -> Decoded:
        """Distribution of the next step after each row, for `place`; changes nothing.

        Parameters
        ----------
        state
            B rows, or what `change` returned.
        future
            Values of the known columns at that step, float64, shape [B, K]; None: all are missing.
        """
        return self._rolling.ahead(state, future)

    @_without_gradient
    def place(self, ahead: Decoded, y: Tensor) -> Float:
        """Where values lie in the distributions forecast for them: their probability integral transform.

        Parameters
        ----------
        ahead
            Distribution of the step that the values are of, B rows; see `ahead`.
        y
            Shape [B]; NaN is missing.

        Returns
        -------
        ndarray
            Above 0 and below 1, shape [B]; NaN where y is missing, or was the first of its series to be observed. On an
            atom of the distribution, such as the zeros of counts, the middle of what the atom takes.

        Raises
        ------
        InputError
            `y` has another shape.
        """
        check_shape("y", y, tuple(ahead.frame.location.shape), "one value for each series of the state")
        found: Float = locate(self._network.head, ahead, y).numpy()
        return found

    @_without_gradient
    def fold_and_place(
        self, state: StreamState, y: Tensor, lengths: Tensor | None = None, covariates: Tensor | None = None
    ) -> tuple[StreamState, Float]:
        """Fold consecutive values as `fold` does, and `place` each of them in what was forecast one step before it.

        Returns
        -------
        state, places
            The next state, and where each value lay, shape [B, T]; NaN beyond a row's length.

        Raises
        ------
        InputError
            As `fold`.
        """
        check_chunk(len(state), y, lengths, covariates, len(self.config.covariates.dynamic))
        state, places = self._rolling.fold_and_place(state, y, lengths, covariates)
        result: Float = places.numpy()
        return state, result

    def warm_up(
        self,
        histories: Sequence[Float],
        first_steps: Sequence[int],
        tables: Sequence[Float] | None = None,
        static: Float | None = None,
    ) -> StreamState:
        """Fold whole histories of any lengths; the same as `initial_state` and one `observe` per value.

        Parameters
        ----------
        histories
            One array of values per series; NaN is a missing value.
        first_steps
            Step number of each history's first value.
        tables
            Values of the dynamic columns at each step of each history (further ones are ignored), shape [steps, D].
        static
            Static numbers, shape [series, S].

        Raises
        ------
        InputError
            There is not one of each per history, or a shape does not fit.
        """
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        check_histories(lengths.tolist(), first_steps, tables, static, len(self.config.covariates.dynamic))
        order = np.argsort(lengths, kind="stable")  # rows of like length are padded least
        states: list[StreamState] = []
        for rows in np.array_split(order, max(1, -(-len(order) // 256))):
            longest = int(lengths[rows].max(initial=0))
            y = np.full((len(rows), longest), np.nan)
            covariates = None if not tables else np.full((len(rows), longest, tables[0].shape[1]), np.nan)
            for place, row in enumerate(rows):
                y[place, : lengths[row]] = histories[row]
                if covariates is not None and tables is not None:
                    covariates[place, : lengths[row]] = tables[row][: lengths[row]]
            state = self.initial_state(
                [int(first_steps[row]) for row in rows], None if static is None else torch.from_numpy(static[rows])
            )
            given = None if covariates is None else torch.from_numpy(covariates)
            states.append(self.fold(state, torch.from_numpy(y), torch.from_numpy(lengths[rows]), given))
        return StreamState.concat(states).select(torch.from_numpy(np.argsort(order, kind="stable")))

    def warm_up_panel(self, panel: Panel) -> StreamState:
        """Fold every series of a panel to its end.

        Raises
        ------
        InputError
            The panel's calendar is not the forecaster's, or it was read with other covariates.
        """
        self.check_panel(panel)
        panel = panel.with_covariates(self.config.covariates)
        return self.warm_up(panel.values, panel.first_steps.tolist(), panel.tables, panel.static)

    @_without_gradient
    def forecast(
        self,
        state: StreamState,
        horizon: int | None = None,
        quantile_levels: Sequence[float] | None = None,
        future: Tensor | None = None,
    ) -> Float:
        """Quantiles of the coming steps; changes nothing.

        Parameters
        ----------
        state
            B rows.
        horizon
            Number of steps, 1 to `config.max_horizon`; the trained horizon if None.
        quantile_levels
            Of the quantile head, any levels between the lowest and the highest trained one; between trained levels,
            quantiles are interpolated linearly. Of a distribution, any between 0 and 1. If None, those of
            ``0.1 … 0.9`` that are answered.
        future
            Values of the known columns at the coming steps, float64, shape [B, horizon, K]; NaN is missing. None only
            where the model has no known columns.

        Returns
        -------
        ndarray
            Shape [B, horizon, number of levels], in units of y; NaN for rows that never observed a value.

        Raises
        ------
        InputError
            `horizon` or `quantile_levels` cannot be answered, or `future` lacks.
        """
        return self.forecast_and_ahead(state, horizon, quantile_levels, future)[0]

    @_without_gradient
    def forecast_and_ahead(
        self,
        state: StreamState,
        horizon: int | None = None,
        quantile_levels: Sequence[float] | None = None,
        future: Tensor | None = None,
    ) -> tuple[Float, Decoded]:
        """As `forecast`, and what `ahead` would say, decoded only once."""
        horizon = self.check_horizon(horizon)
        levels = self.check_levels(quantile_levels)
        future = self._checked_future(future, len(state), horizon)
        marginals = self._rolling.marginals(state, horizon, future)
        quantiles = marginals.quantiles(levels)
        ahead, blank = marginals.blocks[0].steps(slice(0, 1)), state.blank
        if bool(blank.any()):
            quantiles = torch.where(blank.view(-1, 1, 1), torch.nan, quantiles)
            ahead = unless_blank(ahead, blank)
        result: Float = quantiles.transpose(1, 2).numpy()
        return result, ahead

    @_without_gradient
    def simulate(
        self,
        state: StreamState,
        horizon: int | None = None,
        num_samples: int = 100,
        seed: int | Sequence[int] = 0,
        future: Tensor | None = None,
    ) -> Float:
        """Joint sample paths of the coming steps; changes nothing, and the global random state is left alone.

        The history is not folded again: paths are copies of the state. At every step they follow the forecast's
        distribution, with Pareto tails beyond the outermost levels of a quantile head; how one step leans on the
        one before is what the network makes of its own draws.

        Parameters
        ----------
        state
            B rows.
        horizon
            Number of steps, 1 to `config.max_horizon`; the trained horizon if None.
        num_samples
            Paths per row, 1 to 10,000.
        seed
            Of all rows: a row's paths then follow from it and from the row alone, so that different series draw
            independently (rows that observed the very same draw the same). Or one per row. Rounding differs from batch
            to batch: two draws that all but agree may then change places, and with them the rest of their paths.
        future
            Values of the known columns, as in `forecast`.

        Returns
        -------
        ndarray
            Shape [B, num_samples, horizon], in units of y; NaN for rows that never observed a value.

        Raises
        ------
        InputError
            `horizon`, `num_samples` or `seed` cannot be answered, or `future` lacks.
        """
        horizon = self.check_horizon(horizon)
        num_samples, seed = checked_samples(num_samples, seed, len(state))
        future = self._checked_future(future, len(state), horizon)
        paths = max(num_samples, FEWEST_PATHS)
        drawn = np.full((len(state), num_samples, horizon), np.nan)
        observed = torch.nonzero(~state.blank).squeeze(1)
        for rows in torch.split(observed, max(1, PATHS_AT_ONCE // paths)) if len(observed) else ():
            part = state.select(rows)
            known = None if future is None else future[rows]
            draws = generators(part, seed if isinstance(seed, int) else [seed[row] for row in rows.tolist()])
            found = self._rolling.draw(part, horizon, known, draws, paths)
            drawn[rows.numpy()] = found[:, :num_samples].numpy()
        return drawn

    def simulate_frame(
        self,
        panel: Panel,
        horizon: int | None = None,
        num_samples: int = 100,
        seed: int = 0,
        future: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """Sample paths after the end of every series of a panel; a series' paths follow from `seed` and its name.

        `panel` and `future` are as in `forecast_frame`.

        Returns
        -------
        DataFrame
            Columns `unique_id`, `sample` (from 0), `ds` and `y`; series in the panel's order, path after path.

        Raises
        ------
        InputError
            The panel does not fit the forecaster (`check_panel`), or as in `simulate`.
        """
        horizon = self.check_horizon(horizon)
        num_samples, _ = checked_samples(num_samples, [seed], 1)  # one for all: each series' own follow from it
        state, known = self._ready(panel, horizon, future)
        paths = self.simulate(
            state, horizon, num_samples, [seed_of(name, int(seed)) for name in panel.unique_ids], known
        )
        steps = panel.last_steps[:, None] + np.arange(1, horizon + 1)
        return pd.DataFrame(
            {
                "unique_id": np.repeat(np.array(panel.unique_ids, dtype=object), num_samples * horizon),
                "sample": np.tile(np.repeat(np.arange(num_samples), horizon), len(panel)),
                "ds": self.calendar.to_index(np.repeat(steps, num_samples, axis=0).ravel()),
                "y": paths.ravel(),
            }
        )

    @_without_gradient
    def log_prob(self, state: StreamState, y: Tensor, future: Tensor | None = None) -> Tensor:
        """Log density (of counts: log probability) that each coming step had before it came; changes nothing.

        Parameters
        ----------
        state
            B rows.
        y
            Values of the steps that follow, shape [B, N], N at most the trained horizon; NaN gives NaN.
        future
            Values of the known columns at these steps, as in `forecast`.

        Returns
        -------
        Tensor
            Float64, shape [B, N]: of each step by itself, per unit of y.

        Raises
        ------
        InputError
            The head has no density, N is too large, there is not a row of y per row of the state, or `future` lacks.
        """
        head = self._network.head
        if not isinstance(head, DistributionHead):
            raise InputError(f"a model with head {self.config.head!r} has quantiles, but no density")
        check_rows(y, len(state))
        if y.shape[1] > self.config.horizon:
            raise InputError(f"y has {y.shape[1]} steps, expected at most {self.config.horizon}, the trained horizon")
        if not y.shape[1]:
            return y.double()
        (known,) = self._rolling.blocks(self._checked_future(future, len(state), y.shape[1]), y.shape[1])
        block = self._rolling.decoded(self._network.encoded(state), state, known).steps(slice(0, y.shape[1]))
        found = head.log_prob(block.parameters, y.double(), block.frame)
        return torch.where(torch.isnan(y) | state.blank.unsqueeze(1), torch.nan, found)

    def forecast_frame(
        self,
        panel: Panel,
        horizon: int | None = None,
        quantile_levels: Sequence[float] | None = None,
        future: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """Forecast after the end of every series of a panel.

        Parameters
        ----------
        panel
            Read with the covariates of `config`.
        horizon, quantile_levels
            As in `forecast`.
        future
            `unique_id`, `ds` and the known columns at the coming steps of every series; None: the panel has them.

        Returns
        -------
        DataFrame
            Columns `unique_id`, `ds` and one per level, named by the level; series in the panel's order.

        Raises
        ------
        InputError
            The panel does not fit the forecaster (`check_panel`), was read with other covariates, a coming step is not
            known, or as in `forecast`.
        """
        horizon = self.check_horizon(horizon)
        levels = self.check_levels(quantile_levels)
        state, known = self._ready(panel, horizon, future)
        quantiles = self.forecast(state, horizon, levels, known)
        steps = panel.last_steps[:, None] + np.arange(1, horizon + 1)
        frame = pd.DataFrame(
            {
                "unique_id": np.repeat(np.array(panel.unique_ids, dtype=object), horizon),
                "ds": self.calendar.to_index(steps.ravel()),
            }
        )
        for place, level in enumerate(levels):
            frame[level_name(level)] = quantiles[:, :, place].ravel()
        return frame

    def quality(self, state: StreamState) -> Quality:
        """What past forecasts of each row were worth.

        A forecast is scored as it was issued, at every step of `Quality.steps`, when its truth is folded. One is in
        flight at a time: they begin after the steps whose number is a multiple of ``max(horizon + 1, 8)``, once that
        many steps were seen. With known covariates it is scored where the next one begins, as if those had been known
        that came.
        """
        scored = tuple((self._network.calibration.scored + 1).tolist())
        total, recent = state.quality.double().unbind(1)
        return Quality(scored, total.numpy(), recent.numpy())

    @property
    def scored_from(self) -> int | None:
        """Step of the earliest cutoff whose forecast is scored, the last one that the weights have learnt from.

        They have seen the truth of earlier ones. None if they have learnt from nothing.
        """
        learnt = int(self._network.calibration.learnt)
        return None if learnt == NOTHING_LEARNT else learnt

    # -- covariates as plain values --------------------------------------------------------------------------------

    def table(self, rows: Sequence[Mapping[str, Any] | None]) -> Float:
        """Values of the dynamic columns by name, one mapping per step, as `fold` wants them: shape [T, D].

        Raises
        ------
        InputError
            A value of a real column is not a finite number. NaN, values unknown to a vocabulary, and columns that a
            row lacks are missing.
        """
        return table_of(rows, self.config.covariates.dynamic, self.config.covariates)

    def static(self, unique_ids: Sequence[str], rows: Sequence[Mapping[str, Any] | None]) -> Tensor:
        """Static columns of series by name as `initial_state` wants them, shape [B, S].

        Raises
        ------
        InputError
            As `table`.
        """
        return torch.from_numpy(static_numbers(unique_ids, rows, self.config.covariates))

    # -- stored forms ----------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the artifact: configuration, weights and manifest. An existing artifact there is replaced.

        Raises
        ------
        ArtifactError
            The folder holds other things, or this process works in it.
        ForecasterError
            The disk is full, or something else keeps it from being written; what was there is as it was.
        """
        artifact.write(Path(folder), self.config, self._network.state_dict())

    @classmethod
    def load(cls, folder: str | Path) -> Forecaster:
        """Read an artifact.

        Raises
        ------
        ArtifactError
            It is missing, damaged, or of another format.
        """
        config, weights = artifact.read(Path(folder))
        network = ForecastNetwork(config)
        artifact.fill(network, weights, Path(folder))
        return cls(network)

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights: equal fingerprints, equal forecasts."""
        return artifact.fingerprint(self.config, self._network.state_dict())

    def state_from_bytes(self, records: Sequence[bytes]) -> StreamState:
        """Read rows written by `StreamState.to_bytes` under a forecaster of the same layout.

        Raises
        ------
        ArtifactError
            A record is damaged, or of another format or layout.
        """
        return self._network.layout.from_bytes(records)

    # -- checks of what callers ask for ----------------------------------------------------------------------------

    def check_horizon(self, horizon: int | None) -> int:
        """Return the horizon to answer, or raise InputError."""
        if horizon is None:
            return self.config.horizon
        if not isinstance(horizon, int | np.integer) or not 1 <= horizon <= self.config.max_horizon:
            raise InputError(
                f"horizon is {horizon!r}, expected 1 to {self.config.max_horizon} "
                f"(four times the {self.config.horizon} steps this model was trained for)"
            )
        return int(horizon)

    def answers(self, level: float) -> bool:
        """Whether a forecast answers this quantile level."""
        return _answers(level, *self._network.head.answered)

    def check_levels(self, quantile_levels: Sequence[float] | None) -> tuple[float, ...]:
        """Return the levels to answer, or raise InputError."""
        if quantile_levels is None:
            return tuple(level for level in DEFAULT_LEVELS if self.answers(level))
        try:
            levels = tuple(map(float, quantile_levels))
        except (TypeError, ValueError):
            raise InputError(f"quantile_levels is {quantile_levels!r}, expected a list of numbers") from None
        return _checked_levels(levels, *self._network.head.answered)

    def check_panel(self, panel: Panel) -> None:
        """Raise InputError unless a panel is on this forecaster's calendar and holds what its head can forecast."""
        if panel.calendar != self.calendar:
            found, expected = (f"freq {c.freq!r} in time zone {c.time_zone}" for c in (panel.calendar, self.calendar))
            raise InputError(f"the series have {found}, but the model was trained for {expected}")
        if self.config.counts:
            panel.require_counts(f"this model's head {self.config.head!r}")

    # -- inner workings --------------------------------------------------------------------------------------------

    def _ready(self, panel: Panel, horizon: int, future: pd.DataFrame | None) -> tuple[StreamState, Tensor]:
        """State at the end of every series, and what is known of the steps after it."""
        self.check_panel(panel)
        panel = panel.with_covariates(self.config.covariates)
        if future is not None:
            panel = panel.with_future(future)
        known = torch.from_numpy(panel.future(horizon))  # before the work of folding
        return self.warm_up_panel(panel), known

    def _checked_future(self, future: Tensor | None, rows: int, horizon: int) -> Tensor | None:
        """Return `future`, or raise InputError where it does not fit; None for models without known columns."""
        known = self.config.covariates.known
        expected = rows, horizon, len(known)
        if future is None and not known:
            return None
        if future is None or future.shape != expected:
            wanted = f"needs values of {', '.join(known)}" if known else "has no columns to be known"
            found = "none" if future is None else f"shape {list(future.shape)}"
            raise InputError(
                f"this model {wanted} at the {horizon} coming steps, shape {list(expected)}; found {found}"
            )
        return future if known else None


def _answers(level: float, lowest: float, highest: float) -> bool:
    return lowest <= level <= highest and 0 < level < 1


@lru_cache(maxsize=1024)
def _checked_levels(levels: tuple[float, ...], lowest: float, highest: float) -> tuple[float, ...]:
    """The same, or InputError: kept, as a service is asked for the same ones by every micro-batch."""
    if not levels:
        raise InputError("quantile_levels is empty, expected at least one level")
    for level in levels:
        if not _answers(level, lowest, highest):
            raise InputError(
                f"quantile level {level:g} is outside {lowest:g} to {highest:g}, the levels this model was trained for"
            )
    if len(set(map(level_name, levels))) < len(set(levels)):
        raise InputError(f"quantile levels are {', '.join(map(str, levels))}: six digits name them, and must differ")
    return levels
