"""The almanac: what a step number alone tells, its place in the cycles of the calendar and public holidays.

Looked up in a table by step number that grows where it is asked for more, so that serving never computes dates. All
places and dates are those of the clock on the wall in the series' time zone.

Axes: S steps of a table, C numbers per step.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forecaster.calendar import Calendar

__all__ = ["CYCLES", "Almanac", "country_number", "default_cycles", "is_country"]

CYCLES = ("hour", "day", "week", "month", "year")

HARMONICS = {"hour": 1, "day": 3, "week": 3, "month": 1, "year": 1}
"""Sine and cosine pairs per cycle; three of them tell all seven days of a week apart."""

_HOURS = {"hour": 1, "day": 24, "week": 7 * 24, "month": 28 * 24, "year": 365 * 24}

MARGIN = 4096
"""Steps a table is made longer than asked for, at both ends."""

LARGEST_TABLE = 2**20
"""Steps in a table at most; steps further apart than that are worked out one by one."""

Steps = npt.NDArray[np.int64]
Table = npt.NDArray[np.float32]
Dates = npt.NDArray[np.datetime64]


def default_cycles(calendar: Calendar, longest: int) -> tuple[str, ...]:
    """Cycles longer than a step that fit twice into `longest` steps; none for integer steps.

    Examples
    --------
    >>> default_cycles(Calendar("D"), 1000), default_cycles(Calendar("h"), 24 * 100), default_cycles(Calendar("1"), 9)
    (('week', 'month', 'year'), ('day', 'week', 'month'), ())
    """
    if calendar.is_integer:
        return ()
    begin, end = calendar.wall_clock(np.array([0, 1]))
    hours = (end - begin) / np.timedelta64(1, "h")
    return tuple(name for name in CYCLES if hours < _HOURS[name] and 2 * _HOURS[name] <= longest * hours)


@cache
def _countries() -> frozenset[str]:
    import holidays  # here, because few models need it and it takes a tenth of a second

    return frozenset(code for code in holidays.list_supported_countries() if len(code) == 2)


def is_country(code: str) -> bool:
    """Whether `code` is an ISO 3166-1 alpha-2 country code whose holidays are known."""
    return len(code) == 2 and code in _countries()


def country_number(code: str) -> int:
    """A number that stands for the country in a state; 0 for any text that is no such country.

    Examples
    --------
    >>> country_number("DE"), country_number("plant-1")
    (17477, 0)
    """
    return ord(code[0]) << 8 | ord(code[1]) if is_country(code) else 0


class Almanac:
    """Numbers by step.

    Parameters
    ----------
    calendar
        Of the steps.
    cycles
        Some of `CYCLES`; two numbers, sine and cosine, for each harmonic.

    Examples
    --------
    >>> almanac = Almanac(Calendar("D"), ("month",))
    >>> almanac.places(torch.tensor([0]))  # 1970-01-01
    tensor([[0., 1.]])
    >>> germany = torch.tensor([country_number("DE")])
    >>> new_year = torch.from_numpy(Calendar("D").parse(["2024-01-01", "2024-01-02"]))
    >>> almanac.holidays(new_year.unsqueeze(0), germany)
    tensor([[1., 0.]])
    """

    def __init__(self, calendar: Calendar, cycles: tuple[str, ...]) -> None:
        self.calendar, self.cycles = calendar, cycles
        self.size = 2 * sum(HARMONICS[name] for name in cycles)
        self._places = _Tables(self._compute_places)
        self._holidays: dict[int, _Tables] = {}

    def places(self, steps: Tensor) -> Tensor:
        """Places in the cycles, float32, shape [..., C]."""
        return torch.from_numpy(self._places.at(steps.numpy()))

    def holidays(self, steps: Tensor, countries: Tensor) -> Tensor:
        """Holidays that fall on each step, float32, shape of `steps`; 0 or 1 for steps of a day or less.

        Parameters
        ----------
        steps
            Any shape.
        countries
            `country_number` of each row, of the leading axes of `steps`.
        """
        numbers, wanted = countries.nan_to_num(0.0).numpy(), steps.numpy()
        found = np.zeros(wanted.shape, dtype=np.float32)
        for number in np.unique(numbers).tolist():
            if number:
                table = self._holidays.setdefault(int(number), _Tables(_HolidayCount(self, int(number))))
                rows = numbers == number
                found[rows] = table.at(wanted[rows])
        return torch.from_numpy(found)

    def _compute_places(self, steps: Steps) -> Table:
        clock = self.calendar.wall_clock(steps)
        dates = clock.astype("datetime64[D]")
        months, years = clock.astype("datetime64[M]"), clock.astype("datetime64[Y]")
        hours = (clock - dates) / np.timedelta64(1, "h")
        weekdays = (dates.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday; whole days, so weekends are sharp
        share: dict[str, Any] = {
            "hour": hours % 1,
            "day": hours / 24,
            "week": weekdays / 7,
            "month": (dates - months.astype("datetime64[D]")) / (_end(months, "M") - months.astype("datetime64[D]")),
            "year": (dates - years.astype("datetime64[D]")) / (_end(years, "Y") - years.astype("datetime64[D]")),
        }
        turns = [2 * np.pi * k * share[name] for name in self.cycles for k in range(1, HARMONICS[name] + 1)]
        columns = [f(turn) for turn in turns for f in (np.sin, np.cos)]
        return np.stack(columns, -1).astype(np.float32) if columns else np.empty((len(steps), 0), np.float32)

    @cached_property
    def _is_short(self) -> bool:
        """Whether a step is at most a day (or a business day) long, so that its date decides."""
        begin, end = self.calendar.wall_clock(np.array([0, 1]))
        return bool(end - begin <= np.timedelta64(1, "D"))


class _HolidayCount:
    """Holidays of one country by step."""

    def __init__(self, almanac: Almanac, country: int) -> None:
        self.almanac, self.code = almanac, chr(country >> 8) + chr(country & 255)

    def __call__(self, steps: Steps) -> Table:
        import holidays

        first = self.almanac.calendar.wall_clock(steps).astype("datetime64[D]")
        last = (
            first + np.timedelta64(1, "D")
            if self.almanac._is_short
            else self.almanac.calendar.wall_clock(steps + 1).astype(first.dtype)
        )
        years = range(int(str(first.min())[:4]), int(str(last.max())[:4]) + 1)
        days = np.array(sorted(holidays.country_holidays(self.code, years=years)), dtype="datetime64[D]")
        return (np.searchsorted(days, last) - np.searchsorted(days, first)).astype(np.float32)


class _Tables:
    """A table over one range of steps, replaced by a longer one when asked for more."""

    def __init__(self, compute: Any) -> None:
        self.compute = compute
        self.table: tuple[int, int, Table] = (0, 0, np.empty(0, np.float32))  # replaced whole: threads may share it

    def at(self, steps: Steps) -> Table:
        """Rows of the table, shape [*steps.shape, ...]."""
        if not steps.size:
            return np.empty((*steps.shape, *self.compute(np.zeros(1, np.int64)).shape[1:]), np.float32)
        low, high = int(steps.min()), int(steps.max()) + 1
        first, end, table = self.table
        if low < first or high > end:
            if end > first and max(end, high) - min(first, low) <= LARGEST_TABLE:
                low, high = min(first, low), max(end, high)
            if high - low > LARGEST_TABLE:
                distinct, back = np.unique(steps, return_inverse=True)
                rows: Table = self.compute(distinct)[back.reshape(steps.shape)]
                return rows
            first, end = low - MARGIN, high + MARGIN
            table = self.compute(np.arange(first, end))
            self.table = (first, end, table)
        return table[steps - first]


def _end(periods: Dates, unit: Literal["M", "Y"]) -> Dates:
    return (periods + np.timedelta64(1, unit)).astype("datetime64[D]")
