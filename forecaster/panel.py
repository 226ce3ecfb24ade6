"""The panel: many series on one calendar, validated once, then trusted everywhere.

Built from a long data frame (`unique_id`, `ds`, `y`, and covariates). Series may start and end anywhere and have any
length; a skipped step becomes a missing value (NaN). Disorder, repeats and infinities are refused by series and
timestamp, never mended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster import columns
from forecaster.almanac import country_number
from forecaster.calendar import INTEGER_FREQ, Calendar
from forecaster.config import LARGEST_VOCABULARY, CovariatesConfig
from forecaster.errors import InputError, PanelError

__all__ = ["LARGEST_Y", "Panel", "check_y"]

COLUMNS = ("unique_id", "ds", "y")
LARGEST_Y = 1e30
"""Values beyond this in magnitude are refused: their squares would leave the range of float64 scaling statistics."""

LARGEST_GROWTH = 50
"""A series may have at most this many missing steps per row, so that a mistaken `freq` cannot fill the memory."""

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
        covariates = CovariatesConfig() if covariates is None else covariates
        _check_columns(frame, [name for name in covariates.columns if name != "unique_id"])
        if frame.empty:
            raise PanelError("the frame has no rows; expected at least one observation")
        if frame["unique_id"].isna().any():
            raise PanelError(f"unique_id is missing in {int(frame['unique_id'].isna().sum())} rows")
        frame = frame.assign(unique_id=frame["unique_id"].astype(str))
        ds = _timestamps(frame["ds"])
        calendar = Calendar(freq, None if freq == INTEGER_FREQ else _zone_name(ds)).fitted(ds)
        codes, unique_ids = pd.factorize(frame["unique_id"], sort=False)
        order = np.argsort(codes, kind="stable")
        codes = codes[order]
        bounds = np.searchsorted(codes, np.arange(len(unique_ids) + 1))
        ds = ds.iloc[order].reset_index(drop=True)
        y = _numbers(frame["y"])[order]
        names = [str(name) for name in unique_ids]
        steps = _steps(calendar, ds, names, bounds)
        _check_values(y, ds, names, codes)
        _check_order(steps, ds, names, codes)
        first_steps = steps[bounds[:-1]]
        lengths = steps[bounds[1:] - 1] - first_steps + 1
        rows = np.diff(bounds)
        sparse = lengths > np.maximum(LARGEST_GROWTH * rows, 1000)
        if sparse.any():
            i = int(np.argmax(sparse))
            raise PanelError(
                f"series {names[i]!r} has {rows[i]} rows over {lengths[i]} steps of freq {freq!r}; "
                f"at most {LARGEST_GROWTH} steps per row may be missing: is the freq right?"
            )
        frame = frame.iloc[order]
        covariates = _with_vocabularies(frame, covariates)
        numbers = _covariate_numbers(frame, covariates, names, codes)
        values, tables = [], []
        for i, (start, end) in enumerate(pairwise(bounds)):
            series = np.full(int(lengths[i]), np.nan)
            table = np.full((len(series), numbers.shape[1]), np.nan)
            places = steps[start:end] - first_steps[i]
            series[places], table[places] = y[start:end], numbers[start:end]
            if covariates.known and np.isfinite(series).any():
                series = series[: int(np.flatnonzero(np.isfinite(series))[-1]) + 1]
                table[len(series) :, len(covariates.known) :] = np.nan
            values.append(series)
            tables.append(table)
        static = _static_numbers(frame, covariates, names, bounds)
        return cls(calendar, names, first_steps, values, covariates, tables, static)

    @classmethod
    def from_series(cls, calendar: Calendar, series: Sequence[tuple[str, int, Float]]) -> Panel:
        """Build from (unique_id, first step, values) triples that are already on the grid."""
        return cls(
            calendar,
            [name for name, _, _ in series],
            np.array([first for _, first, _ in series], dtype=np.int64),
            [check_y(name, np.asarray(y, dtype=np.float64)) for name, _, y in series],
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
        tables = [table.copy() for table in self.tables] if self.covariates.past else self.tables
        for table, length in zip(tables, lengths, strict=True):
            table[length:, len(self.covariates.known) :] = np.nan
        values = [y[:length] for y, length in zip(self.values, lengths, strict=True)]
        return replace(self, values=values, tables=tables).select(np.flatnonzero(lengths))

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
            _columns(
                [self._renumbered(table[:, names[name]], name, covariates) for name in covariates.dynamic], len(table)
            )
            for table in self.tables
        ]
        for y, table in zip(self.values, tables, strict=True):
            table[len(y) :, len(covariates.known) :] = np.nan
        static = [
            self._renumbered(self.static[:, mine.static.index(name)], name, covariates) for name in covariates.static
        ]
        if covariates.country:
            source: Any = covariates.country
            if source in mine.static and source != "unique_id":
                source = columns.decode(self.static[:, mine.static.index(source)], mine.values_of(source))
            static.append(_countries(source, self.unique_ids))
        return replace(self, covariates=covariates, tables=tables, static=_columns(static, len(self)))

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


def check_y(unique_id: str, y: Float) -> Float:
    """Return `y` if every value is finite and of sane size, or missing (NaN).

    Raises
    ------
    PanelError
        A value is infinite or beyond `LARGEST_Y`.
    """
    bad = np.abs(y) > LARGEST_Y  # False for NaN
    if bad.any():
        i = int(np.argmax(bad))
        raise PanelError(
            f"series {unique_id!r}: y is {y[i]} at position {i}, expected a finite number of at most {LARGEST_Y:g}"
        )
    return y


def _check_columns(frame: pd.DataFrame, covariates: list[str]) -> None:
    found, expected = [str(c) for c in frame.columns], [*COLUMNS, *covariates]
    missing = [c for c in expected if c not in found]
    if missing:
        raise PanelError(f"columns {missing} are missing; found {_short(found)}, expected {_short(expected)}")
    unknown = [c for c in found if c not in expected]
    if unknown:
        raise PanelError(f"columns {_short(unknown)} are unknown; expected only {_short(expected)}")


def _with_vocabularies(frame: pd.DataFrame, covariates: CovariatesConfig) -> CovariatesConfig:
    """Vocabularies for the categorical columns that have none."""
    if covariates.categories:
        return covariates
    categories = []
    for name in covariates.columns:
        if columns.is_category(frame[name]):
            values = columns.vocabulary(pd.unique(frame[name].astype(object)))
            if len(values) > LARGEST_VOCABULARY:
                raise PanelError(
                    f"covariate {name!r} has {len(values)} different values, such as {values[0]!r} and {values[-1]!r}; "
                    f"at most {LARGEST_VOCABULARY} can be told apart"
                )
            categories.append((name, *values))
    return replace(covariates, categories=tuple(categories))


def _covariate_numbers(frame: pd.DataFrame, covariates: CovariatesConfig, names: list[str], codes: Steps) -> Float:
    """Numbers of the dynamic columns, shape [rows, D]."""
    numbers = np.empty((len(frame), len(covariates.dynamic)))
    for place, name in enumerate(covariates.dynamic):
        numbers[:, place], bad = columns.encode(frame[name], covariates.values_of(name))
        if bad.any():
            i = int(np.argmax(bad))
            raise PanelError(
                f"series {names[codes[i]]!r}: covariate {name!r} is {columns.shown(frame[name].iloc[i])} at "
                f"{frame['ds'].iloc[i]}, expected a finite number"
            )
    return numbers


def _static_numbers(frame: pd.DataFrame, covariates: CovariatesConfig, names: list[str], bounds: Steps) -> Float:
    """Numbers of the static columns and the country, shape [N, S]."""
    series = pd.Series(names, dtype=object)
    static = []
    for name in covariates.static:
        column = series if name == "unique_id" else _constants(frame[name], name, names, bounds)
        numbers, bad = columns.encode(column, covariates.values_of(name))
        if bad.any():
            i = int(np.argmax(bad))
            raise PanelError(
                f"series {names[i]!r}: covariate {name!r} is {columns.shown(column.iloc[i])}, expected a finite number"
            )
        static.append(numbers)
    source: Any = covariates.country
    if source:
        is_column = source in covariates.static and source != "unique_id"
        static.append(_countries(_constants(frame[source], source, names, bounds) if is_column else source, names))
    return _columns(static, len(names))


def _countries(source: Any, names: list[str]) -> Float:
    """Number of each series' country: of the values of a static column, of the names, or one for all."""
    if isinstance(source, str):
        source = names if source == "unique_id" else [source] * len(names)
    return np.array([float(country_number(columns.text_of(value) or "")) for value in source])


def _columns(numbers: list[Float], rows: int) -> Float:
    return np.stack(numbers, -1) if numbers else np.empty((rows, 0))


def _constants(column: pd.Series[Any], name: str, names: list[str], bounds: Steps) -> pd.Series[Any]:
    """The one value of each series; None where it is missing in all rows."""
    values: list[Any] = []
    for series, (start, end) in zip(names, pairwise(bounds), strict=True):
        found = pd.unique(column.iloc[start:end].dropna())
        if len(found) > 1:
            before, after = (columns.shown(value) for value in found[:2])
            raise PanelError(f"series {series!r}: static covariate {name!r} changes from {before} to {after}")
        values.append(found[0] if len(found) else None)
    return pd.Series(values, dtype=object)


def _timestamps(ds: pd.Series[Any]) -> pd.Series[Any]:
    """Dates of Arrow, which pandas takes for objects, as timestamps."""
    return ds.astype("datetime64[s]") if str(ds.dtype).startswith("date32") else ds


def _zone_name(ds: pd.Series[Any]) -> str | None:
    zone = ds.dt.tz if pd.api.types.is_datetime64_any_dtype(ds.dtype) else None
    return None if zone is None else str(zone)


def _numbers(y: pd.Series[Any]) -> Float:
    unreal = pd.api.types.is_bool_dtype(y.dtype) or pd.api.types.is_complex_dtype(y.dtype)
    if unreal or not pd.api.types.is_numeric_dtype(y.dtype):
        text = y[pd.to_numeric(y, errors="coerce").isna() & y.notna()]
        example = f", for example {text.iloc[0]!r} in row {text.index[0]}" if len(text) else ""
        raise PanelError(f"y has type {y.dtype}{example}; expected numbers, and NaN for missing values")
    return y.to_numpy(dtype=np.float64, na_value=np.nan)


def _steps(calendar: Calendar, ds: pd.Series[Any], names: list[str], bounds: Steps) -> Steps:
    try:
        return calendar.to_steps(ds)
    except InputError as error:
        for name, start, end in zip(names, bounds[:-1], bounds[1:], strict=True):  # slow path: find the series to blame
            try:
                calendar.to_steps(ds.iloc[start:end])
            except InputError as blame:
                raise PanelError(f"series {name!r}: {blame}") from None
        raise PanelError(str(error)) from None


def _check_values(y: Float, ds: pd.Series[Any], names: list[str], codes: Steps) -> None:
    bad = np.abs(y) > LARGEST_Y
    if bad.any():
        i = int(np.argmax(bad))
        raise PanelError(
            f"series {names[codes[i]]!r}: y is {y[i]} at {ds.iloc[i]}, "
            f"expected a finite number of at most {LARGEST_Y:g}"
        )


def _check_order(steps: Steps, ds: pd.Series[Any], names: list[str], codes: Steps) -> None:
    same = codes[1:] == codes[:-1]
    ahead = steps[1:] - steps[:-1]
    for wrong, verb, rule in (
        (same & (ahead == 0), "repeats", "timestamps must be unique per unique_id"),
        (same & (ahead < 0), "goes back", "rows must be in time order"),
    ):
        if wrong.any():
            i = int(np.argmax(wrong)) + 1
            raise PanelError(f"series {names[codes[i]]!r}: ds {verb} at {ds.iloc[i]}; {rule}")


def _short(names: list[str], limit: int = 8) -> str:
    return str(names if len(names) <= limit else [*names[:limit], f"... {len(names) - limit} more"])
