"""Files in, files out: a CSV or Parquet file, or a folder of them, as a validated panel; forecasts back to a file.

This module minds the file side: which columns there are, and how text becomes timestamps and numbers. The rules of the
series themselves (order, repeats, gaps, the grid) belong to `Panel.from_frame`. Whatever is wrong is one sentence that
names the file, and nothing on disk has changed.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from datetime import timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forecaster import Calendar, CovariatesConfig, ForecasterError, InputError, Panel
from forecaster.calendar import INTEGER_FREQ
from forecaster.columns import shown
from pipelines.connection import ARTIFACTS

__all__ = ["check_folder", "check_output", "parse_ds", "read_frame", "read_future", "read_panel", "write_frame"]

COLUMNS = ("unique_id", "ds", "y")
CSV_SUFFIXES = (".csv", ".csv.gz")
PARQUET_SUFFIXES = (".parquet", ".pq")
MISSING_TEXT = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]

Notice = Callable[[str], None]


def read_panel(
    data: str | Path,
    freq: str,
    covariates: CovariatesConfig | None = None,
    *,
    time_zone: str | None = None,
    notice: Notice | None = None,
) -> Panel:
    """Read and validate a long frame.

    Parameters
    ----------
    data
        A CSV or Parquet file, or a folder of such files; columns `unique_id`, `ds`, `y`, and those of `covariates`.
        Other columns are ignored.
    freq
        pandas offset alias, or ``1`` for integer steps.
    covariates
        Roles of further columns.
    time_zone
        Where timestamps that name an instant are counted; None: as the file says, UTC where it has bare offsets.
    notice
        Told, in one line each, about columns that are ignored, and about a `freq` that looks too fine.

    Returns
    -------
    Panel
        The validated series.

    Raises
    ------
    InputError
        The file cannot be read or breaks a rule of the panel; the message names the file.
    """
    covariates = covariates or CovariatesConfig()
    wanted = list(dict.fromkeys((*COLUMNS, *covariates.columns)))
    frame = read_frame(data, wanted, _coded(covariates))
    extra = [str(column) for column in frame.columns if column not in wanted]
    if extra and notice is not None:
        notice(f"ignored columns of {data}: {_short(extra)} (a column is used if declared as known, past or static)")
    frame = frame[wanted].copy()
    frame["ds"] = parse_ds(frame["ds"], freq, str(data), time_zone)
    frame["y"] = _numbers(frame, str(data))
    try:
        panel = Panel.from_frame(frame, freq, covariates)
    except InputError as error:
        advice = _zone_advice(frame["ds"], freq) if time_zone is None and "not on the grid" in str(error) else ""
        raise InputError(f"{data}: {error}{advice}") from error
    empty = [unique_id for unique_id, _, y in panel if not (y == y).any()]  # NaN is unequal to itself
    if empty:
        raise InputError(f"{data}: series {empty[0]!r} has no observed y; expected at least one number per series")
    apart = steps_apart(panel)
    if apart > 1 and notice is not None:
        notice(f"no two y of {data} are closer than {apart} steps of freq {freq}: is the freq right?")
    return panel


def steps_apart(panel: Panel) -> int:
    """Fewest steps from one observed y to the next; 1 where no series has three of them."""
    gaps = [np.diff(np.flatnonzero(np.isfinite(y))) for y in panel.values]
    return int(np.concatenate(gaps).min()) if max(map(len, gaps)) > 1 else 1


def read_future(
    data: str | Path, freq: str, covariates: CovariatesConfig, *, time_zone: str | None = None
) -> pd.DataFrame:
    """Read what is known of coming steps: `unique_id`, `ds` and the known columns; others are ignored.

    Raises
    ------
    InputError
        The file cannot be read, or a `ds` in it.
    """
    wanted = ["unique_id", "ds", *covariates.known]
    frame = read_frame(data, wanted, _coded(covariates))[wanted].copy()
    frame["ds"] = parse_ds(frame["ds"], freq, str(data), time_zone)
    return frame


def read_frame(data: str | Path, columns: Sequence[str] = COLUMNS, texts: Sequence[str] = ()) -> pd.DataFrame:
    """Read a file, or all files of a folder and those in it in name order, as one frame with `unique_id` as text.

    Names that begin with a dot or an underscore are passed over, of files and of folders, and the artifacts of a store.

    Parameters
    ----------
    data
        Path of the file or folder.
    columns
        Columns that must be there, or levels of that name of a Parquet file's index.
    texts
        Columns that a CSV file has as text even where it reads like numbers, beside `unique_id`.

    Raises
    ------
    InputError
        Nothing there, an unknown kind of file, an unreadable file, missing columns, a missing or empty `unique_id`.
    """
    path = Path(data)
    files = _files(path)
    if not files:
        raise InputError(f"folder {data} holds no CSV or Parquet file" if path.is_dir() else f"{data} does not exist")
    frames = [_read_file(file, columns, texts) for file in files]
    frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    if frame.empty:
        raise InputError(f"{data} has no rows; expected at least one observation")
    return frame


def write_frame(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a frame as CSV or Parquet, by the path's suffix, all at once or not at all.

    Raises
    ------
    InputError
        See `check_output`.
    ForecasterError
        The disk is full, or something else keeps the file from being written.
    """
    path = check_output(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # another process may write to the same path
    try:
        if _has_suffix(path, PARQUET_SUFFIXES):
            frame.to_parquet(partial, index=False)
        else:
            frame.to_csv(partial, index=False, compression="gzip" if _has_suffix(path, (".gz",)) else None)
        partial.replace(path)
    except OSError as error:
        raise ForecasterError(f"cannot write {path}: {_first_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: str | Path, inputs: Sequence[str | Path] = ()) -> Path:
    """Return the path if a frame can be written there; called before the work starts.

    Raises
    ------
    InputError
        The suffix is neither CSV nor Parquet, or the folder does not exist or cannot be written to; or the path is one
        of the `inputs`, by whatever name, or lies where a folder among them is read.
    """
    path = Path(path)
    if not _is_data_name(path):
        raise InputError(f"cannot write {path}: the name must end in {', '.join((*CSV_SUFFIXES, *PARQUET_SUFFIXES))}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    check_folder(path.parent, f"cannot write {path}")
    for source in map(Path, inputs):
        if path.exists() and any(file.samefile(path) for file in _files(source)):
            raise InputError(f"cannot write {path}: it is read as input")
        place, folder = path.parent.resolve() / path.name, source.resolve()
        if source.is_dir() and place.is_relative_to(folder) and not _is_hidden(place.relative_to(folder)):
            raise InputError(f"cannot write {path}: it lies in {source}, whose files are all read as data")
    return path


def check_folder(folder: Path, doing: str) -> None:
    """Make a file without a name in a folder: permissions alone do not tell of /proc, or of a disk mounted read-only.

    Raises
    ------
    InputError
        It cannot be done; starts with `doing`.
    """
    if not folder.is_dir():
        raise InputError(f"{doing}: {folder} is no folder")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{doing}: folder {folder} cannot be written to ({error.strerror})") from error


def _read_file(path: Path, columns: Sequence[str], texts: Sequence[str]) -> pd.DataFrame:
    try:
        if _has_suffix(path, PARQUET_SUFFIXES):
            frame = pd.read_parquet(path)
            named = [name for name in columns if name in frame.index.names and name not in frame.columns]
            frame = frame.reset_index(named).reset_index(drop=True) if named else frame
        elif _has_suffix(path, CSV_SUFFIXES):
            # Only y knows words for "missing": a series may well be called NA (Namibia), and an empty ds is an error.
            # Read whole: by parts, a column of numbers is one of texts from the part where some are missing.
            frame = pd.read_csv(
                path,
                dtype=dict.fromkeys(("unique_id", *texts), str),
                keep_default_na=False,
                na_values={"y": MISSING_TEXT},
                low_memory=False,
            )
            for name in set(columns) & set(frame.columns) - set(COLUMNS):
                frame[name] = _mended(frame[name], name in texts)
        else:
            raise InputError(f"{path} is neither CSV nor Parquet; expected a name that ends in .csv or .parquet")
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty; expected columns {list(columns)}") from None
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error.reason}") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:  # what pandas, Arrow and gzip raise for bad content
        raise InputError(f"{path} cannot be read: {_first_line(error)}") from error
    except KeyError as error:  # of pytz, which pandas asks last
        raise InputError(f"{path} cannot be read: there is no time zone {error}") from error
    if _has_suffix(path, CSV_SUFFIXES) and not isinstance(frame.index, pd.RangeIndex):
        # pandas takes the first fields for row names then, and every value for that of another column.
        raise InputError(f"{path}: the rows have more fields than the header, which has {len(frame.columns)}")
    if twice := _named_twice(path, columns):
        raise InputError(f"{path} has {len(twice)} columns named {twice[0]!r}; expected one")
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        found = [repr(str(column)) for column in frame.columns]
        raise InputError(f"{path} lacks columns {missing}; found {_short(found)}, expected at least {list(columns)}")
    nameless = frame["unique_id"].isna() | (frame["unique_id"].astype(str) == "")
    if nameless.any():
        raise InputError(f"{path}: unique_id is missing in row {int(nameless.to_numpy().argmax()) + 1}")
    if frame["unique_id"].dtype == object:
        raw = [isinstance(name, bytes) for name in frame["unique_id"]]
        if any(raw):  # as text they would be other names
            row = raw.index(True)
            raise InputError(f"{path}: unique_id is {frame['unique_id'].iloc[row]!r} in row {row + 1}, expected text")
    frame["unique_id"] = frame["unique_id"].astype(str)
    return frame


def _mended(column: pd.Series[Any], is_text: bool) -> pd.Series[Any]:
    """Numbers that a CSV file has as text because some are missing; other text as it is, missing where empty."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column
    known = column.mask(column.isin(MISSING_TEXT))
    numbers = pd.to_numeric(known, errors="coerce")
    if not is_text and numbers.notna().any() and not (numbers.isna() & known.notna()).any():
        return numbers
    return column.astype(object).mask(column == "", None)


def _named_twice(path: Path, columns: Sequence[str]) -> list[str]:
    """The names of the first wanted column that a CSV file has several of; pandas would give the others new ones."""
    if not _has_suffix(path, CSV_SUFFIXES):
        return []
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
    return next((found for column in columns if len(found := [name for name in header if name == column]) > 1), [])


def parse_ds(ds: pd.Series[Any], freq: str, source: str, time_zone: str | None = None) -> pd.Series[Any]:
    """Turn a `ds` column into timestamps or integers, as `freq` asks for; those that name an instant, in `time_zone`.

    Whole numbers may be text; where a step is a year, they are years.

    Raises
    ------
    InputError
        A value is neither; the message names `source` and the row.
    """
    if freq == INTEGER_FREQ:
        if pd.api.types.is_integer_dtype(ds.dtype):
            return ds
        if pd.api.types.is_datetime64_any_dtype(ds.dtype):
            raise InputError(f"{source}: ds holds timestamps, but freq 1 means integer steps")
        text = ds.astype(str).str.strip()
        whole = text.str.fullmatch(r"[+-]?[0-9]{1,18}").to_numpy(bool)
        if whole.all():
            return text.astype(np.int64)
        bad = ds.tolist()[whole.argmin()]
        raise InputError(f"{source}: ds holds {bad!r} in a column of {ds.dtype}, but freq 1 means integer steps")
    if pd.api.types.is_datetime64_any_dtype(ds.dtype):
        return _in_zone(ds, time_zone)
    text = ds.astype(str).str.strip()
    numbered = pd.api.types.is_integer_dtype(ds.dtype)
    # The first one spares most columns a look at all others.
    if numbered or (len(text.iloc[0]) == 4 and text.str.fullmatch("[0-9]{4}").all()):
        try:
            years = Calendar(freq).of_years(ds if numbered else text.astype(np.int64))
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        if years is not None:
            return years
    if pd.api.types.is_numeric_dtype(ds.dtype):
        raise InputError(f"{source}: ds holds numbers, but freq {freq!r} needs timestamps (integer steps have freq 1)")
    # Offsets may differ within one column (summer time), and the calendar wants a named zone: such columns become UTC.
    offsets = text.str.contains(r"[T ]\d{2}.*(?:Z|[+-]\d{2}(?::?\d{2})?)$", regex=True).to_numpy(bool)
    if offsets.any() and not offsets.all():
        row, other = int(offsets.argmin()), int(offsets.argmax())
        raise InputError(
            f"{source}: ds {text.iloc[row]!r} in row {row + 1} has no UTC offset, but {text.iloc[other]!r} in row "
            f"{other + 1} has one; expected one in all rows or in none"
        )
    stamps = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=bool(offsets.any()))
    if stamps.isna().any():
        row = int(stamps.isna().to_numpy().argmax())
        raise InputError(
            f"{source}: ds {text.iloc[row]!r} in row {row + 1}, expected a timestamp such as 2024-01-31T18:00"
        )
    return _in_zone(stamps, time_zone)


def _zone_advice(ds: pd.Series[Any], freq: str) -> str:
    """What to do where instants, read in UTC as no zone was given, are no local dates."""
    zone = ds.dt.tz if pd.api.types.is_datetime64_any_dtype(ds.dtype) else None
    if zone is None or str(zone) != "UTC" or Calendar(freq).is_absolute:
        return ""
    return (
        " (UTC offsets were read in UTC, as no time zone was given; for days of another one, train with "
        "--set time_zone=Europe/Berlin, say, and score with --time-zone)"
    )


def _in_zone(stamps: pd.Series[Any], time_zone: str | None) -> pd.Series[Any]:
    if time_zone is None and isinstance(stamps.dt.tz, timezone):
        time_zone = "UTC"
    return stamps if time_zone is None or stamps.dt.tz is None else stamps.dt.tz_convert(time_zone)


def _numbers(frame: pd.DataFrame, source: str) -> pd.Series[Any]:
    y = frame["y"]
    if pd.api.types.is_numeric_dtype(y.dtype) and not pd.api.types.is_bool_dtype(y.dtype):
        return y
    numbers = pd.to_numeric(y.astype(str), errors="coerce")  # as text: truth values, dates and durations are no numbers
    bad = (numbers.isna() & y.notna()).to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{source}: series {frame['unique_id'].iloc[row]!r}: y is {shown(y.iloc[row])} "
            f"at ds {frame['ds'].iloc[row]}, expected a number"
        )
    return numbers


def _coded(covariates: CovariatesConfig) -> list[str]:
    """Columns that are known to hold categories: their names may read like numbers, 007 among them."""
    return [entry[0] for entry in covariates.categories if entry[0] != "unique_id"]


def _files(path: Path) -> list[Path]:
    """The file, or all of a folder and those in it in name order; none if there is none."""
    if not path.is_dir():
        return [path] if path.exists() else []
    return [file for file in sorted(path.rglob("*")) if _is_data(file) and not _is_hidden(file.relative_to(path))]


def _is_data(path: Path) -> bool:
    return path.is_file() and _is_data_name(path)


def _is_hidden(path: Path) -> bool:
    """Whether a file or a folder that it lies in is some tool's own: an editor's copies, a writer's log, a store."""
    return any(part[0] in "._" or part == ARTIFACTS for part in path.parts)


def _is_data_name(path: Path) -> bool:
    return _has_suffix(path, CSV_SUFFIXES) or _has_suffix(path, PARQUET_SUFFIXES)


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _short(names: list[str], limit: int = 8) -> str:
    return ", ".join(names if len(names) <= limit else [*names[:limit], f"... {len(names) - limit} more"])
