"""Grids: the arithmetic of steps and instants of one frequency, without time zones.

A grid is either fixed (so many nanoseconds per step), monthly (so many months per step, at month start or end), by
business day, or bare integers. Knows pandas' aliases; no text and no data frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.tseries import offsets

from forecaster.errors import ConfigError

__all__ = ["Grid", "Instants", "IntegerGrid", "Steps", "grid_of"]

_NS = 1_000_000_000
_DAY_NS = 86_400 * _NS
_SEASONALITY = {"h": (24, 168), "D": (7,), "B": (5,), "W": (52,), "M": (12,), "Q": (4,), "Y": (1,)}
_RENAMED = {"H": "h", "T": "min", "S": "s", "M": "ME", "Q": "QE", "Y": "YE", "A": "YE"}  # by pandas 3

Steps = npt.NDArray[np.int64]
Instants = npt.NDArray[np.datetime64]


class Grid:
    """Arithmetic of one kind of grid: floor to a step, and back."""

    absolute = False
    whole_seconds = True
    seasonality: tuple[int, ...] = (1,)

    def steps(self, instants: Instants) -> Steps:
        """Latest step at or before each instant."""
        return instants.astype(np.int64)

    def instants(self, steps: Steps) -> Instants:
        """Instant of each step."""
        return steps.astype("datetime64[ns]")

    def in_years(self, years: Steps) -> Instants | None:  # noqa: ARG002 - for steps of years
        """Instant in each year; None where a step is shorter than that."""
        return None

    def through(self, instant: np.datetime64) -> Grid:
        """The same with this instant on it.

        Raises
        ------
        ValueError
            There is none.
        """
        raise ValueError(f"a grid of this kind does not begin at {instant}")


class IntegerGrid(Grid):
    """Bare integer steps; parse and format never ask it for instants."""


@dataclass(frozen=True)
class FixedGrid(Grid):
    """So many nanoseconds per step, counted from an origin."""

    step_ns: int
    origin_ns: int
    seasonality: tuple[int, ...]

    @property
    def absolute(self) -> bool:  # type: ignore[override]
        return self.step_ns < _DAY_NS

    @property
    def whole_seconds(self) -> bool:  # type: ignore[override]
        return self.step_ns % _NS == 0

    def steps(self, instants: Instants) -> Steps:
        return (instants.astype("datetime64[ns]").astype(np.int64) - self.origin_ns) // self.step_ns

    def instants(self, steps: Steps) -> Instants:
        return (steps * self.step_ns + self.origin_ns).astype("datetime64[ns]")

    def through(self, instant: np.datetime64) -> Grid:
        return replace(self, origin_ns=int(instant.astype(np.int64)) % self.step_ns)


@dataclass(frozen=True)
class MonthGrid(Grid):
    """So many months per step, at the first or the last day of the month."""

    months: int
    anchor: int
    at_end: bool
    seasonality: tuple[int, ...]

    def steps(self, instants: Instants) -> Steps:
        months = instants.astype("datetime64[M]").astype(np.int64)
        if self.at_end:  # before the last day of its month, the step before is the floor
            last_day = (months + 1).astype("datetime64[M]").astype("datetime64[D]") - np.timedelta64(1, "D")
            months = months - (instants.astype("datetime64[D]") < last_day)
        return (months - self.anchor) // self.months

    def instants(self, steps: Steps) -> Instants:
        return self._in_months(steps * self.months + self.anchor)

    def in_years(self, years: Steps) -> Instants | None:
        return None if self.months % 12 else self._in_months((years - 1970) * 12 + self.anchor % 12)

    def _in_months(self, months: Steps) -> Instants:
        if self.at_end:
            days = (months + 1).astype("datetime64[M]").astype("datetime64[D]") - np.timedelta64(1, "D")
        else:
            days = months.astype("datetime64[M]").astype("datetime64[D]")
        return days.astype("datetime64[ns]")

    def through(self, instant: np.datetime64) -> Grid:
        grid = replace(self, anchor=int(instant.astype("datetime64[M]").astype(np.int64)) % self.months)
        return grid if (grid.instants(grid.steps(np.array([instant]))) == instant).all() else super().through(instant)


@dataclass(frozen=True)
class BusinessDayGrid(Grid):
    """Monday to Friday, one step each; 1970-01-01, a Thursday, is step 0."""

    seasonality: tuple[int, ...] = _SEASONALITY["B"]

    def steps(self, instants: Instants) -> Steps:
        days = np.busday_offset(instants.astype("datetime64[D]"), 0, roll="backward")
        return np.asarray(np.busday_count("1970-01-01", days), dtype=np.int64)

    def instants(self, steps: Steps) -> Instants:
        return np.busday_offset(np.datetime64("1970-01-01"), steps).astype("datetime64[ns]")


def grid_of(freq: str) -> Grid:
    """The grid of a pandas offset alias, through 1970-01-01 as far as the alias does not say otherwise.

    Raises
    ------
    ConfigError
        It is no such alias, or its steps are irregular, too short or too long.

    Examples
    --------
    >>> grid_of("15min").seasonality, grid_of("W").instants(np.array([0]))
    ((96, 672), array(['1970-01-04T00:00:00.000000000'], dtype='datetime64[ns]'))
    """
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except (ValueError, TypeError, OverflowError):
        offset = None
    if offset is None or offset.n < 1:
        letter = freq.lstrip("0123456789").partition("-")[0]
        hint = f"; pandas now writes {_RENAMED[letter]!r} for {letter!r}" if letter in _RENAMED else ""
        raise ConfigError(
            f"freq {freq!r} is not a pandas offset alias such as 'h', 'D', 'W', 'MS' or '15min', nor '1'{hint}"
        )
    if isinstance(offset, offsets.Week):
        weekday = getattr(offset, "weekday", None)
        weekday = 6 if weekday is None else int(weekday)
        # 1970-01-01 was a Thursday (weekday 3).
        step = _bounded(freq, 7 * _DAY_NS * offset.n)
        return FixedGrid(step, (weekday - 3) * _DAY_NS, _SEASONALITY["W"] if offset.n == 1 else (1,))
    if isinstance(offset, offsets.Day | offsets.Tick):
        step = _bounded(freq, int(offset.nanos) if isinstance(offset, offsets.Tick) else _DAY_NS * offset.n)
        if step < 1000:
            raise ConfigError(f"freq {freq!r} is finer than a microsecond, the finest that timestamps in JSON can tell")
        return FixedGrid(step, 0, _cycles(step))
    if type(offset) is offsets.BusinessDay and offset.n == 1:
        return BusinessDayGrid()
    for kinds, months, name in (
        ((offsets.MonthBegin, offsets.MonthEnd), 1, "M"),
        ((offsets.QuarterBegin, offsets.QuarterEnd), 3, "Q"),
        ((offsets.YearBegin, offsets.YearEnd), 12, "Y"),
    ):
        if type(offset) in kinds:
            anchor = getattr(offset, "startingMonth", None) or getattr(offset, "month", None) or 1
            _bounded(freq, 28 * _DAY_NS * months * offset.n)
            seasonality = _SEASONALITY[name] if offset.n == 1 else (1,)
            return MonthGrid(months * offset.n, (anchor - 1) % months, type(offset) is kinds[1], seasonality)
    raise ConfigError(
        f"freq {freq!r} has no regular grid of steps; use a fixed, weekly, monthly, quarterly or yearly frequency"
    )


def _bounded(freq: str, step_ns: int) -> int:
    """The same, or ConfigError where a step is too long for a calendar to have a few of them."""
    if step_ns > 2**62:
        raise ConfigError(f"freq {freq!r} has steps of more than 146 years, a quarter of those that timestamps reach")
    return step_ns


def _cycles(step_ns: int) -> tuple[int, ...]:
    """Daily and weekly cycles, in steps, of a grid of at most one day."""
    if step_ns == _DAY_NS:
        return _SEASONALITY["D"]
    daily, rest = divmod(_DAY_NS, step_ns)
    if rest or daily < 2:
        return (1,)
    # Below a quarter of an hour a week has too many steps to keep in every series' state.
    return (daily, 7 * daily) if daily <= 96 else (daily,)
