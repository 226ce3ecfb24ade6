"""The panel: many series on one calendar, validated once, then trusted everywhere.

Built from a long data frame (`unique_id`, `ds`, `y`, and covariates). Series may start and end anywhere and have any
length; a skipped step becomes a missing value (NaN). Disorder, repeats and infinities are refused by series and
timestamp, never mended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster import columns
from forecaster.calendar import Calendar
from forecaster.columns import LARGEST_VALUE
from forecaster.config import CovariatesConfig
from forecaster.errors import PanelError
from forecaster.long_frame import country_numbers, named_by_text, parts_of, side_by_side

__all__ = ["Panel"]

Float = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Panel:
    """Series of one calendar, ragged: series i covers `lengths[i]` steps from `first_steps[i]`.

    Attributes
    ----------
    calendar
        Maps step numbers to timestamps.
    unique_ids
        Name of each series, in order of first appearance; N of them.
    first_steps
        Step number of each series' first value, shape [N].
    values
        One float64 array per series; NaN is a missing value.
    covariates
        Roles of the columns, and the vocabularies of those that are categories.
    tables
        One float64 array per series, shape [steps, D]: the known, then the past columns, at each step of the series
        and, of the known ones, as far beyond its end as they are there; NaN is missing. See `forecaster.columns`.
    static
        The static columns, then the country whose holidays count, shape [N, S].

    Examples
    --------
    >>> frame = pd.DataFrame({"unique_id": ["a"] * 3, "ds": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-04"]),
    ...                       "y": [1.0, 2.0, 4.0]})
    >>> panel = Panel.from_frame(frame, "D")
    >>> panel
    Panel(1 series, 4 steps, freq 'D')
    >>> panel.series(0)
    array([ 1.,  2., nan,  4.])
    """

    calendar: Calendar
    unique_ids: list[str]
    first_steps: Steps
    values: list[Float]
    covariates: CovariatesConfig = field(default_factory=CovariatesConfig)
    tables: list[Float] = field(default_factory=list)
    static: Float = field(default_factory=lambda: np.empty((0, 0)))

    def __post_init__(self) -> None:
        """A panel without covariates has tables without columns."""
        if not self.covariates.dynamic:
            object.__setattr__(self, "tables", [np.empty((len(y), 0)) for y in self.values])
        if len(self.static) != len(self.values):
            object.__setattr__(self, "static", np.empty((len(self.values), 0)))

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, freq: str, covariates: CovariatesConfig | None = None) -> Panel:
        """Validate a long frame.

        Parameters
        ----------
        frame
            Columns `unique_id`, `ds` (timestamps, or integers when `freq` is ``1``) and `y` (NaN for missing). Rows of
            one series are contiguous or interleaved, but in time order. And the columns that `covariates` names: where
            some are known in the future, rows without `y` after a series' last observed one tell its future.
        freq
            pandas offset alias, or ``1``. Where the grid begins, `ds` says if `freq` does not.
        covariates
            Roles of the other columns. A column it has no vocabulary for is real if it holds numbers, and else gets a
            vocabulary of all its values.

        Raises
        ------
        PanelError
            Missing or unknown columns, wrong types, infinite or huge values, repeated or disordered timestamps,
            timestamps off the grid of `freq`, no rows, a static column that changes, a vocabulary that is too large.
        """
        panel = cls(*parts_of(frame, freq, CovariatesConfig() if covariates is None else covariates))
        return panel.until_observed() if panel.covariates.known else panel

    @classmethod
    def from_series(cls, calendar: Calendar, series: Sequence[tuple[str, int, Float]]) -> Panel:
        """Build from (unique_id, first step, values) triples that are already on the grid."""
        return cls(
            calendar,
            [name for name, _, _ in series],
            np.array([first for _, first, _ in series], dtype=np.int64),
            [_checked(name, np.asarray(y, dtype=np.float64)) for name, _, y in series],
        )

    def __len__(self) -> int:
        """Number of series."""
        return len(self.unique_ids)

    def __repr__(self) -> str:
        """Size and frequency."""
        return f"Panel({len(self)} series, {int(self.lengths.sum())} steps, freq {self.calendar.freq!r})"

    def __iter__(self) -> Iterator[tuple[str, int, Float]]:
        """(unique_id, first step, values) of each series."""
        return zip(self.unique_ids, self.first_steps.tolist(), self.values, strict=True)

    @property
    def lengths(self) -> Steps:
        """Steps per series, missing ones included, shape [N]."""
        return np.array([len(series) for series in self.values], dtype=np.int64)

    @property
    def observed(self) -> int:
        """Values that are not missing, of all series."""
        return sum(int(np.isfinite(y).sum()) for y in self.values)

    @property
    def last_steps(self) -> Steps:
        """Step number of each series' last value, shape [N]."""
        return self.first_steps + self.lengths - 1

    def series(self, index: int) -> Float:
        """Values of one series, shape [length]."""
        return self.values[index]

    def index_of(self, unique_id: str) -> int:
        """Position of a series.

        Raises
        ------
        PanelError
            There is no such series.
        """
        try:
            return self.unique_ids.index(unique_id)
        except ValueError:
            raise PanelError(f"series {unique_id!r} is not in the panel of {len(self)} series") from None

    def require_counts(self, reason: str) -> None:
        """Refuse values that are no counts.

        Raises
        ------
        PanelError
            A value is negative or not whole; `reason` says why that matters.
        """
        for unique_id, first, values in self:
            wrong = ~np.isnan(values) & ((values < 0) | (values != np.round(values)))
            if wrong.any():
                place = int(np.argmax(wrong))
                ds = self.calendar.to_index([first + place])[0]
                raise PanelError(
                    f"series {unique_id!r} has y = {values[place]:g} at ds {ds}, but {reason} "
                    "expects counts: whole numbers of 0 or more"
                )

    def drop_last(self, steps: int) -> Panel:
        """Each series without its last `steps` steps; series that would be empty are left out.

        What was known beforehand of the steps dropped stays known.
        """
        lengths = np.maximum(self.lengths - steps, 0)
        return self._until(lengths).select(np.flatnonzero(lengths))

    def until_observed(self) -> Panel:
        """Each series up to its last observed value; one without any stays as it is.

        What was known beforehand of the steps after it stays known.
        """
        observed = [np.flatnonzero(np.isfinite(y)) for y in self.values]
        ends = [places[-1] + 1 if len(places) else len(y) for places, y in zip(observed, self.values, strict=True)]
        return self._until(np.array(ends, dtype=np.int64))

    def _until(self, lengths: Steps) -> Panel:
        """Each series' first steps, and of the others what is known beforehand."""
        tables = self.tables
        if not self.covariates.known:
            tables = [table[:length] for table, length in zip(tables, lengths, strict=True)]
        elif self.covariates.past:
            tables = [table.copy() for table in tables]
            for table, length in zip(tables, lengths, strict=True):
                table[length:, len(self.covariates.known) :] = np.nan
        return replace(self, values=[y[:length] for y, length in zip(self.values, lengths, strict=True)], tables=tables)

    def tail(self, steps: int) -> Panel:
        """Each series' last `steps` steps (all of a shorter one)."""
        skipped = np.maximum(self.lengths - steps, 0)
        return replace(
            self,
            first_steps=self.first_steps + skipped,
            values=[y[skip:] for y, skip in zip(self.values, skipped, strict=True)],
            tables=[table[skip:] for table, skip in zip(self.tables, skipped, strict=True)],
        ).select(np.flatnonzero(self.lengths))

    def select(self, rows: Steps) -> Panel:
        """Some of the series, by position."""
        return Panel(
            self.calendar,
            [self.unique_ids[row] for row in rows],
            self.first_steps[rows],
            [self.values[row] for row in rows],
            self.covariates,
            [self.tables[row] for row in rows],
            self.static[rows],
        )

    def beside(self, other: Panel) -> Panel:
        """These series, then those of another panel with the same calendar and covariates."""
        return Panel(
            self.calendar,
            self.unique_ids + other.unique_ids,
            np.concatenate([self.first_steps, other.first_steps]),
            self.values + other.values,
            self.covariates,
            self.tables + other.tables,
            np.concatenate([self.static, other.static]),
        )

    def future(self, horizon: int) -> Float:
        """Known columns at the `horizon` steps after each series' end, shape [N, horizon, K].

        Raises
        ------
        PanelError
            A step is not there, or none of its columns is.
        """
        known = len(self.covariates.known)
        found = np.full((len(self), horizon, known), np.nan)
        for row, (y, table) in enumerate(zip(self.values, self.tables, strict=True)):
            ahead = table[len(y) : len(y) + horizon, :known]
            found[row, : len(ahead)] = ahead
        if known:
            absent = np.isnan(found).all(-1)
            if absent.any():
                row, step = (int(place) for place in np.argwhere(absent)[0])
                ds = self.calendar.format([int(self.last_steps[row]) + step + 1])[0]
                raise PanelError(
                    f"series {self.unique_ids[row]!r}: {', '.join(self.covariates.known)} are not known at {ds}, "
                    f"step {step + 1} of the {horizon} to forecast"
                )
        return found

    def with_future(self, frame: pd.DataFrame) -> Panel:
        """The same panel with the known columns after each series' end taken from a long frame.

        Parameters
        ----------
        frame
            `unique_id`, `ds` and the known columns; others, and rows of other series or before the end of a series, are
            ignored.
        """
        declared = self.covariates
        if not declared.known:
            raise PanelError("future values were given, but no covariates are known in the future")
        only = replace(
            declared,
            past=(),
            static=(),
            holidays="",
            categories=tuple(c for c in declared.categories if c[0] in declared.known),
        )
        frame = named_by_text(frame)
        missing = [name for name in ("unique_id", "ds", *declared.known) if name not in frame.columns]
        if missing:
            raise PanelError(f"columns {missing} are missing in the future values")
        frame = frame[["unique_id", "ds", *declared.known]].assign(y=0.0)
        try:
            ahead = Panel.from_frame(frame, self.calendar.freq, only).with_covariates(only)
        except PanelError as error:
            raise PanelError(f"the future values: {error}") from error
        if ahead.calendar != self.calendar:
            found, expected = (f"freq {c.freq!r} in time zone {c.time_zone}" for c in (ahead.calendar, self.calendar))
            raise PanelError(f"the future values have {found}, expected {expected}")
        rows = {name: row for row, name in enumerate(ahead.unique_ids)}
        tables = []
        for name, first, y, table in zip(self.unique_ids, self.first_steps, self.values, self.tables, strict=True):
            table = table[: len(y)]
            row = rows.get(name)
            if row is not None:
                begin = int(ahead.first_steps[row] - first) - len(y)  # steps from this series' next one
                length = max(begin + len(ahead.tables[row]), 0)
                known = np.full((length, table.shape[1]), np.nan)
                known[max(begin, 0) :, : len(declared.known)] = ahead.tables[row][max(-begin, 0) :]
                table = np.concatenate([table, known])
            tables.append(table)
        return replace(self, tables=tables)

    def categories(self) -> tuple[tuple[str, ...], ...]:
        """Vocabularies of the categorical columns, without values that no step of any series has."""
        found = []
        for names, arrays in (
            (self.covariates.dynamic, [table[: len(y)] for table, y in zip(self.tables, self.values, strict=True)]),
            (self.covariates.static, [self.static]),
        ):
            for place, name in enumerate(names):
                values = self.covariates.values_of(name)
                if values is not None:
                    used = set().union(*(np.unique(np.nan_to_num(array[:, place])).tolist() for array in arrays))
                    found.append((name, *(value for number, value in enumerate(values, start=1) if number in used)))
        return tuple(found)

    def with_covariates(self, covariates: CovariatesConfig) -> Panel:
        """The same series with the columns of `covariates` only, categories numbered by its vocabularies.

        Raises
        ------
        PanelError
            A column is not here in that role, or it is real here and a category there.
        """
        mine = self.covariates
        if mine == covariates:
            return self
        for role, have in (("known", mine.known), ("past", mine.dynamic), ("static", mine.static)):
            absent = [name for name in getattr(covariates, role) if name not in have]
            if absent:
                raise PanelError(
                    f"the panel was read without the {role} covariates {', '.join(absent)}, which the model needs: "
                    "read it with the covariates of its configuration"
                )
        names = {name: place for place, name in enumerate(mine.dynamic)}
        tables = [
            side_by_side(
                [self._renumbered(table[:, names[name]], name, covariates) for name in covariates.dynamic], len(table)
            )
            for table in self.tables
        ]
        static = [
            self._renumbered(self.static[:, mine.static.index(name)], name, covariates) for name in covariates.static
        ]
        if covariates.country:
            source: Any = covariates.country
            if source in mine.static and source != "unique_id":
                source = columns.decode(self.static[:, mine.static.index(source)], mine.values_of(source))
            static.append(country_numbers(source, self.unique_ids))
        found = replace(self, covariates=covariates, tables=tables, static=side_by_side(static, len(self)))
        return found._until(self.lengths)

    def _renumbered(self, numbers: Float, name: str, covariates: CovariatesConfig) -> Float:
        """Numbers of one column by the vocabulary it has in `covariates`."""
        mine, wanted = self.covariates.values_of(name), covariates.values_of(name)
        if mine is None and wanted is None:
            return numbers
        if mine is None or wanted is None:
            found, expected = ("numbers", "categories") if mine is None else ("categories", "numbers")
            raise PanelError(f"covariate {name!r} holds {found}, expected {expected}")
        places = np.array([0.0, *(columns.encode_value(value, wanted) for value in mine)])
        return places[np.nan_to_num(numbers).astype(np.int64)]

    def to_frame(self) -> pd.DataFrame:
        """Long frame, missing steps written as NaN rows; what is known of the future follows a series' last row."""
        lengths = np.array([len(table) for table in self.tables], dtype=np.int64)
        steps = np.concatenate(
            [np.arange(f, f + n) for f, n in zip(self.first_steps, lengths, strict=True)] or [np.empty(0, int)]
        )
        y = [np.append(y, np.full(n - len(y), np.nan)) for y, n in zip(self.values, lengths, strict=True)]
        frame = pd.DataFrame(
            {
                "unique_id": np.repeat(np.array(self.unique_ids, dtype=object), lengths),
                "ds": self.calendar.to_index(steps),
                "y": np.concatenate(y) if y else np.empty(0),
            }
        )
        declared = self.covariates
        table = np.concatenate(self.tables) if self.tables else np.empty((0, len(declared.dynamic)))
        static = np.repeat(self.static, lengths, axis=0)
        for names, numbers in ((declared.dynamic, table), (declared.static, static)):
            for place, name in enumerate(names):
                if name != "unique_id":
                    frame[name] = columns.decode(numbers[:, place], declared.values_of(name))
        return frame

    def fingerprint(self) -> str:
        """SHA-256 over calendar, names, positions and values: equal panels have equal fingerprints."""
        digest = hashlib.sha256(repr((self.calendar.freq, self.calendar.time_zone)).encode())
        for name, first, y in self:
            digest.update(repr((name, first, len(y))).encode())
            digest.update(np.where(np.isnan(y), np.nan, y).astype("<f8").tobytes())
        if self.covariates.columns or self.covariates.country:
            digest.update(repr(self.covariates).encode())
            for array in (*self.tables, self.static):
                digest.update(np.where(np.isnan(array), np.nan, array).astype("<f8").tobytes())
        return digest.hexdigest()


def _checked(unique_id: str, y: Float) -> Float:
    """Return `y` if every value is finite and of sane size, or missing (NaN).

    Raises
    ------
    PanelError
        A value is infinite or beyond `LARGEST_VALUE`.
    """
    bad = np.abs(y) > LARGEST_VALUE  # False for NaN
    if bad.any():
        i = int(np.argmax(bad))
        raise PanelError(
            f"series {unique_id!r}: y is {y[i]} at position {i}, expected a finite number of at most {LARGEST_VALUE:g}"
        )
    return y
