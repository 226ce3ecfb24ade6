"""The calendar: a bijection between timestamps `ds` and whole step numbers on the grid of one frequency.

Everything below the data frame counts steps; only this module knows dates and time zones. It never rounds: a timestamp
that is not on the grid is refused by name. Where a grid begins is part of the frequency: "2D@1970-01-02" is every other
day, "h@1970-01-01T00:30" half past every hour, "QS@1970-02-01" February, May, August and November.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster.errors import ConfigError, InputError
from forecaster.grids import Grid, Instants, IntegerGrid, Steps, grid_of

__all__ = ["INTEGER_FREQ", "Calendar"]

INTEGER_FREQ = "1"
"""The frequency of series whose `ds` is a bare integer step."""

_FIRST_YEAR, _LAST_YEAR = 1678, 2261  # the whole years that 64-bit nanoseconds can tell apart
_MOST_SHOWN = 80  # characters
_LAST_INTEGER = 2**53 - 1  # that JSON readers tell apart from its neighbours
# Every instant between lies within 64-bit nanoseconds, and so does each within a day of the years, in whatever zone.
_FIRST_INSTANT, _END_INSTANT = datetime(_FIRST_YEAR, 1, 1) - timedelta(2), datetime(_LAST_YEAR + 1, 1, 1) + timedelta(2)
# What `fromisoformat` takes, less any separator, any number of digits, and what lies behind a NUL.
_ISO_8601 = re.compile(
    r"(?:\d{4}-\d\d-\d\d|\d{8}|\d{4}-?W\d\d(?:-?\d)?)"
    r"(?:[Tt ]\d\d(?::?\d\d(?::?\d\d(?:[.,]\d{1,6}0{0,9})?)?)?(?:Z|[+-][\d:.]{2,15})?)?",
    re.ASCII,
)
_TOO_FINE = re.compile(r"[.,]\d{6}0*[1-9]", re.ASCII)


@dataclass(frozen=True)
class Calendar:
    """Steps of one frequency, in one time zone.

    Parameters
    ----------
    freq
        pandas offset alias with a regular grid (``h``, ``15min``, ``D``, ``B``, ``W``, ``MS``, ``QE``, ``YS`` …), or
        ``1`` for integer steps. ``@`` and a timestamp after it: the grid through that one; without, 1970-01-01 is on
        it, as far as the alias does not say otherwise.
    time_zone
        IANA name. Sub-daily grids run in absolute time (a day has 23 or 25 hours when clocks change); daily and
        longer ones in local dates. None for naive timestamps.

    Raises
    ------
    ConfigError
        The alias is unknown or has no regular grid, or the time zone is unknown.

    Examples
    --------
    >>> hourly = Calendar("h")
    >>> hourly.parse(["2024-01-01T00:00", "2024-01-01T05:00"])
    array([473352, 473357])
    >>> hourly.format([473353])
    ['2024-01-01T01:00:00']
    >>> Calendar("MS").format(Calendar("MS").parse(["2024-11-01"]) + 2)
    ['2025-01-01T00:00:00']
    >>> Calendar("D").parse(["2024-01-01T06:00"])
    Traceback (most recent call last):
    ...
    forecaster.errors.InputError: ds 2024-01-01T06:00:00 is not on the grid of freq 'D'; the step before it is
    2024-01-01T00:00:00
    """

    freq: str
    time_zone: str | None = None

    def __post_init__(self) -> None:
        """Refuse an unusable frequency or zone at once."""
        if not isinstance(self.freq, str):
            raise ConfigError(f"freq is {self.freq!r}, expected text: a pandas offset alias such as 'h' or 'D', or '1'")
        _ = self._grid
        if self.time_zone is not None:
            if self.is_integer:
                raise ConfigError(
                    f"freq '1' counts bare steps and takes no time zone, but time_zone is {self.time_zone!r}"
                )
            try:
                ZoneInfo(self.time_zone)
            except (KeyError, ValueError, OSError) as error:
                raise ConfigError(f"time_zone {self.time_zone!r} is not a known IANA time zone") from error

    @property
    def is_integer(self) -> bool:
        """Whether `ds` is a bare integer step."""
        return self.freq == INTEGER_FREQ

    @property
    def is_absolute(self) -> bool:
        """Whether steps are counted in absolute time, shorter than a day as they are, not in local dates."""
        return self._grid.absolute

    @cached_property
    def _grid(self) -> Grid:
        if self.is_integer:
            return IntegerGrid()
        alias, _, origin = self.freq.partition("@")
        grid = grid_of(alias)
        if not origin:
            return grid
        try:
            return grid.through(np.datetime64(datetime.fromisoformat(origin), "ns"))
        except ValueError:
            raise ConfigError(
                f"freq {self.freq!r}: no grid of {alias!r} goes through {origin!r}, expected one of its timestamps"
            ) from None

    @property
    def alias(self) -> str:
        """`freq` without what it says of where the grid begins: what pandas knows."""
        return self.freq.partition("@")[0]

    def fitted(self, ds: pd.Series[Any]) -> Calendar:
        """The calendar that these timestamps lie on: of the same frequency, but maybe of another beginning.

        The same one where `freq` names a beginning already, where no other fits all timestamps, or where there are
        fewer than two of them.

        Examples
        --------
        >>> Calendar("2D").fitted(pd.Series(pd.to_datetime(["2024-01-03", "2024-01-07"])))
        Calendar(freq='2D@1970-01-02', time_zone=None)
        """
        if self.is_integer or len(ds) < 2 or set("@-") & set(self.freq):
            return self
        try:
            first = self._instants(ds.iloc[:1])
            if not self._off_grid(first, self._grid.steps(first)).any():
                return self
            (origin,) = self._grid.through(first[0]).instants(np.zeros(1, np.int64))
            other = Calendar(f"{self.freq}@{np.datetime_as_string(origin, unit='auto')}", self.time_zone)
            other.to_steps(ds)
        except (InputError, ValueError):
            return self
        return other

    @property
    def default_seasonality(self) -> tuple[int, ...]:
        """Seasonalities, in steps, that this frequency usually has; ``(1,)`` where none is usual.

        Examples
        --------
        >>> Calendar("h").default_seasonality, Calendar("15min").default_seasonality, Calendar("1").default_seasonality
        ((24, 168), (96, 672), (1,))
        """
        return self._grid.seasonality

    # -- text and integers: the hot path, no pandas ----------------------------------------------------------------

    def parse(self, values: Sequence[str | int]) -> Steps:
        """Step numbers of JSON values: ISO 8601 text, or integers when `freq` is ``1``.

        Raises
        ------
        InputError
            A value has the wrong type, cannot be read, lacks or has a time zone it should not, or is off the grid.
        """
        if self.is_integer:
            for value in values:
                if type(value) is not int:
                    raise InputError(f"ds {_shown(value)} is not an integer step, but freq is '1'")
                if not -_LAST_INTEGER <= value <= _LAST_INTEGER:
                    raise InputError(f"ds {_shown(value)} is no integer step below 2**53")
            return np.array(values, dtype=np.int64)
        return self._to_steps(np.array([self._instant(value) for value in values], dtype="datetime64[ns]"))

    def format(self, steps: Steps | Sequence[int]) -> list[str | int]:
        """Inverse of `parse`: ISO 8601 text with the offset of the calendar's time zone, or integers."""
        steps = self._checked(steps)
        if self.is_integer:
            return list(steps.tolist())
        if self.time_zone is None:
            unit: Any = "s" if self._grid.whole_seconds else "ns"
            return list(np.datetime_as_string(self._grid.instants(steps), unit=unit).tolist())
        return [stamp.isoformat() for stamp in self.to_index(steps)]

    def _instant(self, value: str | int) -> np.datetime64:
        """Naive local time (zone None), or UTC for sub-daily and local date for longer steps."""
        stamp = None
        if isinstance(value, str) and _ISO_8601.fullmatch(value):
            try:
                stamp = datetime.fromisoformat(value)
            except ValueError:
                pass  # no such day, say
        if stamp is None:
            too_fine = isinstance(value, str) and _TOO_FINE.search(value)
            found = "finer than a microsecond" if too_fine else "not an ISO 8601 timestamp"
            raise InputError(f"ds {_shown(value)} is {found}")
        inside = _FIRST_YEAR < stamp.year < _LAST_YEAR or _FIRST_INSTANT <= stamp.replace(tzinfo=None) < _END_INSTANT
        if not inside:
            raise InputError(f"ds {value!r} lies outside the years {_FIRST_YEAR} to {_LAST_YEAR}")
        if (stamp.tzinfo is None) != (self.time_zone is None):
            expected = "none" if self.time_zone is None else f"one (the series are in {self.time_zone})"
            found = "no UTC offset" if stamp.tzinfo is None else "a UTC offset"
            raise InputError(f"ds {value!r} has {found}, expected {expected}")
        if self.time_zone is not None:
            zone = UTC if self._grid.absolute else ZoneInfo(self.time_zone)
            stamp = stamp.astimezone(zone).replace(tzinfo=None)
            if self._grid.absolute:
                return np.datetime64(stamp, "ns") + self._standard_offset
        return np.datetime64(stamp, "ns")

    # -- pandas: reading and writing frames ------------------------------------------------------------------------

    def to_steps(self, ds: pd.Series[Any]) -> Steps:
        """Step numbers of a data frame's `ds` column.

        Raises
        ------
        InputError
            The column's type or time zone does not fit, a value is missing, or one is off the grid.
        """
        if self.is_integer:
            if not pd.api.types.is_integer_dtype(ds.dtype):
                raise InputError(f"ds has type {ds.dtype}, but freq '1' needs integer steps")
            if ds.isna().any():
                raise InputError(f"ds is missing in {int(ds.isna().sum())} rows")
            beyond = ~ds.between(-_LAST_INTEGER, _LAST_INTEGER).to_numpy(bool)
            if beyond.any():
                raise InputError(f"ds {ds.iloc[int(beyond.argmax())]} is no integer step below 2**53")
            return ds.to_numpy(dtype=np.int64)
        return self._to_steps(self._instants(ds))

    def of_years(self, years: pd.Series[Any]) -> pd.Series[Any] | None:
        """Timestamps in years that are told as whole numbers; None where a step is shorter than a year.

        Raises
        ------
        InputError
            A year is missing or cannot be told.

        Examples
        --------
        >>> Calendar("YS-APR").of_years(pd.Series([1990, 1991])).dt.date.tolist()
        [datetime.date(1990, 4, 1), datetime.date(1991, 4, 1)]
        """
        if self._grid.in_years(np.empty(0, np.int64)) is None:
            return None
        if years.isna().any():
            raise InputError(f"ds is missing in {int(years.isna().sum())} rows")
        beyond = ~years.between(_FIRST_YEAR, _LAST_YEAR).to_numpy(bool)
        if beyond.any():
            found = years.iloc[int(beyond.argmax())]
            raise InputError(f"ds {found} lies outside the years {_FIRST_YEAR} to {_LAST_YEAR}")
        return pd.Series(self._grid.in_years(years.to_numpy(dtype=np.int64)), years.index)

    def fits(self, ds: pd.Series[Any]) -> npt.NDArray[np.bool_]:
        """Which timestamps of a column `to_steps` would take by themselves; none if it wants others.

        Examples
        --------
        >>> Calendar("h").fits(pd.Series(pd.to_datetime(["2024-01-01T01:00", None, "2024-01-01T01:30"]))).tolist()
        [True, False, False]
        """
        try:
            self.to_steps(ds[:0])
        except InputError:
            return np.zeros(len(ds), bool)
        fits: npt.NDArray[np.bool_] = ds.notna().to_numpy(bool) & ~_beyond(ds)
        instants = self._instants(ds[fits])
        steps = self._grid.steps(instants)
        within = ~self._beyond(steps)
        within[within] = ~self._off_grid(instants[within], steps[within])
        fits[fits] = within
        return fits

    def _instants(self, ds: pd.Series[Any]) -> Instants:
        """Of a column: naive local time, or that of the zone's standard time for sub-daily steps."""
        if not pd.api.types.is_datetime64_any_dtype(ds.dtype):
            cure = "Series.dt.to_timestamp" if isinstance(ds.dtype, pd.PeriodDtype) else "pandas.to_datetime"
            raise InputError(f"ds has type {ds.dtype}, but freq {self.freq!r} needs timestamps (see {cure})")
        if ds.isna().any():
            raise InputError(f"ds is missing in {int(ds.isna().sum())} rows")
        zone = None if ds.dt.tz is None else str(ds.dt.tz)
        if zone != self.time_zone:
            raise InputError(f"ds is in time zone {zone}, expected {self.time_zone}")
        # Columns of coarser units hold years that nanoseconds cannot, and would come out as others.
        beyond = _beyond(ds)
        if beyond.any():
            found = str(_naive(ds).to_numpy()[beyond.argmax()].astype("datetime64[s]")).replace("T", " ")
            raise InputError(f"ds {found} lies outside the years {_FIRST_YEAR} to {_LAST_YEAR}")
        absolute = zone is not None and self._grid.absolute
        if zone is not None:
            ds = (ds.dt.tz_convert("UTC") if absolute else ds).dt.tz_localize(None)
        instants: Instants = ds.to_numpy(dtype="datetime64[ns]")
        return instants + self._standard_offset if absolute else instants

    def to_index(self, steps: Steps | Sequence[int]) -> pd.Index[Any]:
        """Timestamps (or integers) of step numbers, as a pandas index in the calendar's time zone."""
        steps = self._checked(steps)
        if self.is_integer:
            return pd.Index(steps)
        instants = self._grid.instants(steps)
        if self.time_zone is None:
            return pd.DatetimeIndex(instants)
        if self._grid.absolute:
            return pd.DatetimeIndex(instants - self._standard_offset).tz_localize("UTC").tz_convert(self.time_zone)
        # A local midnight that clocks skip is written as the first instant after it.
        return pd.DatetimeIndex(instants).tz_localize(
            self.time_zone, nonexistent="shift_forward", ambiguous=np.ones(len(steps), bool)
        )

    def wall_clock(self, steps: Steps) -> Instants:
        """Local time at the beginning of each step, without zone; the last that can be told for steps beyond it."""
        steps = np.clip(np.asarray(steps, dtype=np.int64), *self._limits)
        if self.time_zone is None or not self._grid.absolute:
            return self._grid.instants(steps)
        index: Any = self.to_index(steps)
        return typing.cast(Instants, index.tz_localize(None).to_numpy(dtype="datetime64[ns]"))

    def _checked(self, steps: Steps | Sequence[int]) -> Steps:
        """Refuse steps beyond the years that 64-bit nanoseconds can tell apart."""
        steps = np.asarray(steps, dtype=np.int64)
        if not self.is_integer and self._beyond(steps).any():
            raise InputError(f"a step of freq {self.freq!r} lies outside the years {_FIRST_YEAR} to {_LAST_YEAR}")
        return steps

    @property
    def last_step(self) -> int | None:
        """The last step that has a timestamp; None: there is no last one."""
        return None if self.is_integer else self._limits[1]

    @cached_property
    def _limits(self) -> tuple[int, int]:
        edges = np.array([f"{_FIRST_YEAR}-01-01", f"{_LAST_YEAR + 1}-01-01"], dtype="datetime64[ns]")
        before, last = self._grid.steps((edges.astype(np.int64) - 1).astype("datetime64[ns]")).tolist()
        return before + 1, last

    @cached_property
    def _standard_offset(self) -> np.timedelta64:
        """Keeps hourly grids on local hours in zones that are half an hour off UTC."""
        moment = datetime(2024, 1, 1, tzinfo=ZoneInfo(self.time_zone or "UTC"))
        offset = (moment.utcoffset() or moment - moment) - (moment.dst() or moment - moment)
        return np.timedelta64(int(offset.total_seconds()), "s")

    def _to_steps(self, instants: Instants) -> Steps:
        steps = self._grid.steps(instants)
        beyond = self._beyond(steps)
        if beyond.any():
            found = self._stamp(instants[int(np.argmax(beyond))])
            raise InputError(f"ds {found.isoformat()} lies outside the years {_FIRST_YEAR} to {_LAST_YEAR}")
        off_grid = self._off_grid(instants, steps)
        if off_grid.any():
            first = int(np.argmax(off_grid))
            before, after = self._grid.instants(steps[first] + np.arange(2))
            found, floor = self._stamp(instants[first]), self._stamp(before)
            said = f"ds {found.isoformat()} is not on the grid of freq {self.freq!r}"
            said += f"; the step before it is {floor.isoformat()}"
            found, floor = found.as_unit("us"), floor.as_unit("us")  # months later, nanoseconds may end
            step = (after - before).astype("timedelta64[us]").item()
            for month in range(12):
                shift = _offset(found + timedelta(30 * month)) - _offset(found)
                if shift and (shift - (found - floor)) % step == timedelta():
                    said += f" (the clocks of {self.time_zone} change by {abs(shift)}, which is no whole step)"
                    break
            raise InputError(said)
        return steps

    def _beyond(self, steps: Steps) -> npt.NDArray[np.bool_]:
        """Which steps have no timestamp."""
        first, last = self._limits
        return (steps < first) | (steps > last)

    def _stamp(self, instant: np.datetime64) -> pd.Timestamp:
        """As people write it: in local time, with its offset where it has one."""
        if self.time_zone is None or not self._grid.absolute:
            return pd.Timestamp(instant)
        return pd.Timestamp(instant - self._standard_offset, tz="UTC").tz_convert(self.time_zone)

    def _off_grid(self, instants: Instants, steps: Steps) -> npt.NDArray[np.bool_]:
        """Which instants are not those of their steps."""
        off_grid: npt.NDArray[np.bool_] = self._grid.instants(steps) != instants
        if off_grid.any() and self.time_zone is not None and not self._grid.absolute:
            # Where clocks skip midnight, the local date begins at the first instant after it.
            begins = self.to_index(steps).tz_localize(None).to_numpy(dtype="datetime64[ns]")  # type: ignore[attr-defined]
            off_grid &= begins != instants
        return off_grid


def _shown(value: object) -> str:
    """A value that cannot be read, as far as a line of text has room for it."""
    text = repr(value[: _MOST_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _naive(ds: pd.Series[Any]) -> pd.Series[Any]:
    """As they are, or in UTC."""
    return ds if ds.dt.tz is None else ds.dt.tz_convert("UTC").dt.tz_localize(None)


def _beyond(ds: pd.Series[Any]) -> npt.NDArray[np.bool_]:
    """Which timestamps nanoseconds cannot tell; not by their years, which need not fit an integer."""
    stamps = _naive(ds).to_numpy()
    first, end = np.array([_FIRST_INSTANT, _END_INSTANT], stamps.dtype)
    beyond: npt.NDArray[np.bool_] = (stamps < first) | (stamps >= end)
    return beyond


def _offset(stamp: pd.Timestamp) -> timedelta:
    return stamp.utcoffset() or timedelta()
