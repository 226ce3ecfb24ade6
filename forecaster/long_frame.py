"""The long frame: checked row by row, and taken apart into the series of a panel.

It knows data frames and the rules of a panel: order, repeats, gaps, the grid, columns by role. Disorder, repeats and
infinities are refused by series and timestamp, never mended; a skipped step becomes a missing value.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster import columns
from forecaster.almanac import country_number
from forecaster.calendar import INTEGER_FREQ, Calendar
from forecaster.config import LARGEST_VOCABULARY, CovariatesConfig
from forecaster.errors import InputError, PanelError

__all__ = ["Parts", "country_numbers", "named_by_text", "parts_of", "side_by_side"]

COLUMNS = ("unique_id", "ds", "y")
LARGEST_GROWTH = 50
"""A series may have at most this many missing steps per row, so that a mistaken `freq` cannot fill the memory."""

Float = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]


class Parts(NamedTuple):
    """What a frame holds: the attributes of a `Panel`, in their order."""

    calendar: Calendar
    unique_ids: list[str]
    first_steps: Steps
    values: list[Float]
    covariates: CovariatesConfig
    tables: list[Float]
    static: Float


def parts_of(frame: pd.DataFrame, freq: str, covariates: CovariatesConfig) -> Parts:
    """Validate a long frame; parameters and errors are those of `Panel.from_frame`."""
    frame = named_by_text(frame)
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
    _check_gaps(lengths, np.diff(bounds), freq, names)
    frame = frame.iloc[order]
    covariates = _with_vocabularies(frame, covariates)
    numbers = _covariate_numbers(frame, covariates, names, codes)
    values, tables = [], []
    for i, (start, end) in enumerate(pairwise(bounds)):
        series = np.full(int(lengths[i]), np.nan)
        table = np.full((len(series), numbers.shape[1]), np.nan)
        places = steps[start:end] - first_steps[i]
        series[places], table[places] = y[start:end], numbers[start:end]
        values.append(series)
        tables.append(table)
    static = _static_numbers(frame, covariates, names, bounds)
    return Parts(calendar, names, first_steps, values, covariates, tables, static)


def named_by_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame with names of columns that are text, as those of configurations are."""
    if not isinstance(frame, pd.DataFrame):
        raise PanelError(f"a panel is made from a pandas DataFrame, not from {type(frame).__name__}")
    return frame.set_axis([str(name) for name in frame.columns], axis=1)


def _check_columns(frame: pd.DataFrame, covariates: list[str]) -> None:
    found, expected = list(frame.columns), [*COLUMNS, *covariates]
    missing = [c for c in expected if c not in found]
    if missing:
        raise PanelError(f"columns {missing} are missing; found {_short(found)}, expected {_short(expected)}")
    unknown = [c for c in found if c not in expected]
    if unknown:
        raise PanelError(f"columns {_short(unknown)} are unknown; expected only {_short(expected)}")
    if len(found) > len(expected):
        twice = sorted({name for name in found if found.count(name) > 1})
        raise PanelError(f"columns {_short(twice)} are there more than once; expected one of each")
    for name in covariates:
        if pd.api.types.infer_dtype(frame[name], skipna=True) not in ("mixed", "unknown-array"):
            continue
        nested = next((value for value in frame[name] if not isinstance(value, Hashable)), None)
        if nested is not None:
            raise PanelError(
                f"covariate {name!r} holds {columns.shown(nested)}, expected numbers, text or truth values"
            )


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
        static.append(country_numbers(_constants(frame[source], source, names, bounds) if is_column else source, names))
    return side_by_side(static, len(names))


def country_numbers(source: Any, names: list[str]) -> Float:
    """Number of each series' country: of the values of a static column, of the names, or one for all."""
    if isinstance(source, str):
        source = names if source == "unique_id" else [source] * len(names)
    return np.array([float(country_number(columns.text_of(value) or "")) for value in source])


def side_by_side(numbers: list[Float], rows: int) -> Float:
    """Numbers of columns as a table, shape [rows, columns]."""
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
    """Dates of Arrow, which pandas knows little of, as timestamps."""
    return ds.astype("datetime64[s]") if str(ds.dtype).startswith(("date32", "date64")) else ds


def _zone_name(ds: pd.Series[Any]) -> str | None:
    zone = ds.dt.tz if pd.api.types.is_datetime64_any_dtype(ds.dtype) else None
    if zone is None:
        return None
    try:
        return ZoneInfo(str(zone)).key
    except (KeyError, ValueError, OSError):
        raise PanelError(
            f"ds is in time zone {zone}, which has no IANA name such as 'Europe/Berlin'; "
            "ds.dt.tz_convert(name) gives it one, and 'UTC' always fits"
        ) from None


def _numbers(y: pd.Series[Any]) -> Float:
    if not columns.holds_numbers(y) or pd.api.types.is_complex_dtype(y.dtype):
        text = y[pd.to_numeric(y, errors="coerce").isna() & y.notna()]
        example = f", for example {text.iloc[0]!r} in row {text.index[0]}" if len(text) else ""
        raise PanelError(f"y has type {y.dtype}{example}; expected numbers, and NaN for missing values")
    return columns.numbers_of(y)


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
    bad = np.abs(y) > columns.LARGEST_VALUE
    if bad.any():
        i = int(np.argmax(bad))
        raise PanelError(
            f"series {names[codes[i]]!r}: y is {y[i]} at {ds.iloc[i]}, "
            f"expected a finite number of at most {columns.LARGEST_VALUE:g}"
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


def _check_gaps(lengths: Steps, rows: Steps, freq: str, names: list[str]) -> None:
    sparse = lengths > np.maximum(LARGEST_GROWTH * rows, 1000)
    if sparse.any():
        i = int(np.argmax(sparse))
        raise PanelError(
            f"series {names[i]!r} has {rows[i]} rows over {lengths[i]} steps of freq {freq!r}; "
            f"at most {LARGEST_GROWTH} steps per row may be missing: is the freq right?"
        )


def _short(names: list[str], limit: int = 8) -> str:
    return str(names if len(names) <= limit else [*names[:limit], f"... {len(names) - limit} more"])
