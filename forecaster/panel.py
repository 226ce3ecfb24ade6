"""The panel: many series on one calendar, validated once, then trusted everywhere.

Built from a long data frame (`unique_id`, `ds`, `y`). Series may start and end anywhere and have any length; a skipped
step becomes a missing value (NaN). Disorder, repeats and infinities are refused by series and timestamp, never mended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster.calendar import INTEGER_FREQ, Calendar
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

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, freq: str) -> Panel:
        """Validate a long frame.

        Parameters
        ----------
        frame
            Columns `unique_id`, `ds` (timestamps, or integers when `freq` is ``1``) and `y` (NaN for missing). Rows of
            one series are contiguous or interleaved, but in time order.
        freq
            pandas offset alias, or ``1``.

        Raises
        ------
        PanelError
            Missing or unknown columns, wrong types, infinite or huge values, repeated or disordered timestamps,
            timestamps off the grid of `freq`, no rows.
        """
        _check_columns(frame)
        if frame.empty:
            raise PanelError("the frame has no rows; expected at least one observation")
        if frame["unique_id"].isna().any():
            raise PanelError(f"unique_id is missing in {int(frame['unique_id'].isna().sum())} rows")
        frame = frame.assign(unique_id=frame["unique_id"].astype(str))
        zone = (
            getattr(frame["ds"].dt.tz, "key", None) or _zone_name(frame["ds"]) if hasattr(frame["ds"], "dt") else None
        )
        calendar = Calendar(freq, None if freq == INTEGER_FREQ else zone)
        codes, unique_ids = pd.factorize(frame["unique_id"], sort=False)
        order = np.argsort(codes, kind="stable")
        codes = codes[order]
        bounds = np.searchsorted(codes, np.arange(len(unique_ids) + 1))
        ds = frame["ds"].iloc[order].reset_index(drop=True)
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
        values = []
        for i, (start, end) in enumerate(pairwise(bounds)):
            series = np.full(int(lengths[i]), np.nan)
            series[steps[start:end] - first_steps[i]] = y[start:end]
            values.append(series)
        return cls(calendar, names, first_steps, values)

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
        """Each series without its last `steps` steps; series that would be empty are left out."""
        return self._map(lambda first, y: (first, y[: max(len(y) - steps, 0)]))

    def tail(self, steps: int) -> Panel:
        """Each series' last `steps` steps (all of a shorter one)."""
        return self._map(lambda first, y: (first + max(len(y) - steps, 0), y[max(len(y) - steps, 0) :]))

    def _map(self, cut: Callable[[int, Float], tuple[int, Float]]) -> Panel:
        kept = [(name, *cut(first, y)) for name, first, y in self]
        kept = [(name, first, y) for name, first, y in kept if len(y)]
        return Panel(
            self.calendar,
            [name for name, _, _ in kept],
            np.array([first for _, first, _ in kept], dtype=np.int64),
            [y for _, _, y in kept],
        )

    def to_frame(self) -> pd.DataFrame:
        """Long frame, missing steps written as NaN rows."""
        lengths = self.lengths
        steps = np.concatenate(
            [np.arange(f, f + n) for f, n in zip(self.first_steps, lengths, strict=True)] or [np.empty(0, int)]
        )
        return pd.DataFrame(
            {
                "unique_id": np.repeat(np.array(self.unique_ids, dtype=object), lengths),
                "ds": self.calendar.to_index(steps),
                "y": np.concatenate(self.values) if self.values else np.empty(0),
            }
        )

    def fingerprint(self) -> str:
        """SHA-256 over calendar, names, positions and values: equal panels have equal fingerprints."""
        digest = hashlib.sha256(repr((self.calendar.freq, self.calendar.time_zone)).encode())
        for name, first, y in self:
            digest.update(repr((name, first, len(y))).encode())
            digest.update(np.where(np.isnan(y), np.nan, y).astype("<f8").tobytes())
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


def _check_columns(frame: pd.DataFrame) -> None:
    found = [str(c) for c in frame.columns]
    missing = [c for c in COLUMNS if c not in found]
    if missing:
        raise PanelError(f"columns {missing} are missing; found {_short(found)}, expected {list(COLUMNS)}")
    unknown = [c for c in found if c not in COLUMNS]
    if unknown:
        raise PanelError(f"columns {_short(unknown)} are unknown; expected only {list(COLUMNS)}")


def _zone_name(ds: pd.Series[Any]) -> str | None:
    zone = getattr(ds.dt, "tz", None)
    return None if zone is None else str(zone)


def _numbers(y: pd.Series[Any]) -> Float:
    if pd.api.types.is_bool_dtype(y.dtype) or not pd.api.types.is_numeric_dtype(y.dtype):
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
