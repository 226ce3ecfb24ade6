"""Bulk bodies: JSON lines or an Arrow IPC stream, read into rows by stream; and the verdicts put back in row order.

It knows the two formats and the calendar, not the engine. Clean bodies take a vectorised path; if anything is wrong,
each row is judged by itself, so that one bad row costs only itself. Invariant: every row of the body gets one verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import ValidationError

from forecaster import InputError
from forecaster.columns import LARGEST_VALUE
from forecaster.marginals import surprise
from service.bodies.cells import check_cells
from service.bodies.covariates import read_values
from service.bodies.schemas import Row, check_unique_id
from service.engine.items import Outcome
from service.engine.verdicts import Verdict
from service.models.dates import Dates
from service.models.served import ServedModel
from service.problems import Problem, common_failure, from_validation, invalid, shortened
from service.store import Value

__all__ = ["ARROW", "JSON_LINES", "Rows", "read_arrow", "read_json_lines", "verdicts_reply"]

JSON_LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
_SHOWN = 100  # refused rows explained in a reply
_MOST_ROWS = 2_000_000  # of a body; as rows, one of a few bytes each would take a hundred times its size
_MOST_TEXT = 2**28  # bytes of a column, unpacked
_COLUMNS = ("unique_id", "ds", "y")


@dataclass(slots=True)
class Rows:
    """A bulk body, row by row; step None for rows that are invalid, with reasons for the first of them at least."""

    unique_ids: list[str]
    steps: list[int | None]
    values: list[Value]
    reasons: dict[int, str] = field(default_factory=dict)

    def groups(self, most: int) -> list[tuple[str, list[int]]]:
        """Row numbers of each stream, in order, without invalid ones; more than `most` by step, so many at a time."""
        grouped: dict[str, list[int]] = {}
        for i, unique_id in enumerate(self.unique_ids):
            if self.steps[i] is not None:
                group = grouped.get(unique_id)
                if group is None:
                    grouped[unique_id] = [i]
                else:
                    group.append(i)
        found: list[tuple[str, list[int]]] = []
        for unique_id, group in grouped.items():
            if len(group) > most:  # out of order, each part would change what the one before has appended
                group.sort(key=self.steps.__getitem__)  # type: ignore[arg-type]
            found += [(unique_id, group[start : start + most]) for start in range(0, len(group), most)]
        return found


def read_json_lines(body: bytes, model: ServedModel) -> Rows:
    """Rows of a body with one JSON object per line; empty lines are passed over.

    Raises
    ------
    Problem
        400 if it is a JSON document of another layout, 413 if it has too many lines.
    """
    _check_rows(body.count(b"\n"))
    lines = [line for line in body.split(b"\n") if line and not line.isspace()]
    rows = _read_clean_lines(lines, model.dates)
    if rows is None:
        _refuse_document(body, lines)
        rows = _read_each_line(lines, model)
    return rows


def _check_rows(count: int) -> None:
    if count > _MOST_ROWS:
        raise Problem(413, "too-large", f"the body has more than {_MOST_ROWS:,} rows; send it in parts")


def _refuse_document(body: bytes, lines: list[bytes]) -> None:
    """Refuse an array, and objects over several lines: line by line, some of it could pass for rows and some not."""
    found = lines[0].strip() in (b"[", b"{")
    if not found:
        try:
            found = isinstance(orjson.loads(body), list) or len(lines) > 1
        except orjson.JSONDecodeError:
            return
    if found:
        detail = "the body is a JSON array or has objects over several lines; JSON lines have one whole object per line"
        raise Problem(400, "malformed-json", detail)


def _read_clean_lines(lines: list[bytes], dates: Dates) -> Rows | None:
    """All rows at once if all are right, else None."""
    try:
        # Each by itself: joined for one call of the parser, halves of two lines could be one row.
        objects = list(map(orjson.loads, lines))
        if set(map(type, objects)) - {dict} or set(map(len, objects)) - {3}:
            return None
        names = [o["unique_id"] for o in objects]
        values = [o["y"] for o in objects]
        steps: list[int | None] = list(dates.steps([o["ds"] for o in objects]))
        if set(map(type, names)) - {str} or set(map(type, values)) - {float, int, type(None)}:
            return None
        for name in set(names):
            check_unique_id(name)
    except (orjson.JSONDecodeError, TypeError, KeyError, IndexError, ValueError):
        return None
    known = [v for v in values if v is not None]
    if known and not (-LARGEST_VALUE <= min(known) and max(known) <= LARGEST_VALUE):
        return None
    return Rows(names, steps, [None if v is None else float(v) for v in values])


def _read_each_line(lines: list[bytes], model: ServedModel) -> Rows:
    rows = Rows([], [], [])
    for i, line in enumerate(lines):
        name, step, value = "", None, None
        try:
            row = Row.model_validate_json(line)
            name = row.unique_id
            (value,) = read_values(model, [row.y], [row.model_extra])
            step = model.dates.steps([row.ds])[0]
        except (ValidationError, InputError) as error:
            if len(rows.reasons) < _SHOWN:
                rows.reasons[i] = _reason(error).replace("the body", "the line", 1)
        rows.unique_ids.append(name)
        rows.steps.append(step)
        rows.values.append(value)
    return rows


def read_arrow(body: bytes, model: ServedModel) -> Rows:
    """Rows of an Arrow IPC stream with columns unique_id, ds (text, timestamps or integers), y, and covariates.

    Raises
    ------
    Problem
        400 if it is no Arrow stream, 413 if it has too many rows, 422 if its columns are not these.
    """
    try:
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            table = reader.read_all()
        table.validate()
        _check_views(table)
        table.validate(full=True)
        _ = table.column_names, [getattr(kind, "tz", None) for kind in table.schema.types]  # bytes of no text raise
    except (pa.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or ["empty"])[0]
        raise Problem(400, "malformed-arrow", f"the body is not an Arrow IPC stream: {first}") from error
    _check_rows(table.num_rows)
    further = [name for name in table.column_names if name not in _COLUMNS]
    missing = set(_COLUMNS) - set(table.column_names)
    unknown = set(further) - set(model.forecaster.config.covariates.dynamic) - model.further
    if missing or unknown or len(set(table.column_names)) < table.num_columns:
        expected = ", ".join(model.forecaster.config.covariates.dynamic)
        raise invalid(
            f"the columns are {', '.join(table.column_names) or 'none'}; expected unique_id, ds and y"
            + (f", and covariates among {expected}" if expected else "")
        )
    dates = model.dates
    names, numbers = _text_column(table["unique_id"])
    bad = {name for name in names if not _is_name(name)}
    y, sound = _value_column(table["y"])
    rows = Rows([names[k] for k in numbers], [None] * table.num_rows, list(y))
    steps = _steps(table["ds"], dates, rows)
    if sound and not bad and not further:
        rows.steps = steps
        return rows
    for i, (name, value) in enumerate(zip(rows.unique_ids, y, strict=True)):
        if name in bad:
            rows.reasons[i] = "unique_id: expected 1 to 255 printable characters"
        elif value is not None and not abs(value) <= LARGEST_VALUE:
            rows.reasons[i] = f"y: {value} is not a finite number of at most {LARGEST_VALUE:g}; a missing value is null"
        else:
            rows.steps[i] = steps[i]
    if further:
        _add_covariates(rows, y, {name: _cells(name, table[name]) for name in further}, model)
    return rows


def _add_covariates(rows: Rows, y: list[float | None], covariates: dict[str, list[Any]], model: ServedModel) -> None:
    """Join covariates to the values; a row whose covariates cannot be read is invalid."""
    told = 0
    for i, found in enumerate(zip(*covariates.values(), strict=True)):
        cells = dict(zip(covariates, found, strict=True))
        try:
            (rows.values[i],) = read_values(model, [y[i]], [check_cells(cells)])
        except (ValidationError, InputError) as error:
            rows.steps[i] = None
            if told < _SHOWN:
                told += 1
                rows.reasons[i] = _reason(error)


def _reason(error: ValidationError | InputError) -> str:
    return str(error) if isinstance(error, InputError) else from_validation(error).detail


def _is_name(name: str) -> bool:
    try:
        check_unique_id(name)
    except ValueError:
        return False
    return True


def _kind(column: Any) -> Any:
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _text_column(column: Any) -> tuple[list[str], list[int]]:
    """Different texts, "" for null, and for each row the number of its text."""
    if not _is_text(_kind(column)):
        raise invalid(f"column unique_id has type {column.type}, expected text")
    values, numbers = _distinct(column)
    return ["" if value is None else value for value in values], numbers


def _cells(name: str, column: Any) -> list[Any]:
    """Values of a covariate, row by row."""
    kind = _kind(column)
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (numeric or _is_text(kind) or pa.types.is_null(kind)):
        raise invalid(f"column {name} has type {column.type}, expected numbers or text")
    values, numbers = _distinct(column)
    return [values[number] for number in numbers]


def _distinct(column: Any) -> tuple[list[Any], list[int]]:
    """Values of a column, texts and those of a dictionary once each, and for each row the number of its value.

    One Python text per stream in place of one per row; and a few bytes can name a long text a million times.
    """
    if not pa.types.is_dictionary(column.type):
        if not _is_text(column.type):
            return column.to_pylist(), list(range(len(column)))
        column = column.dictionary_encode()
    values: list[Any] = []
    numbers: list[int] = []
    for chunk in column.chunks:
        first, size = len(values), len(chunk.dictionary)
        values.extend(chunk.dictionary.to_pylist())
        indices = chunk.indices.cast(pa.int64())
        if indices.null_count:
            indices = indices.fill_null(size)
            values.append(None)
        numbers.extend((indices.to_numpy() + first).tolist())
    return values, numbers


def _check_views(table: Any) -> None:
    """Refuse text that would take too much room written out: any number of views may be of the same bytes."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_string_view(_kind(column)):
            continue
        size = 0
        for chunk in column.chunks:
            part = chunk.dictionary if pa.types.is_dictionary(column.type) else chunk
            if len(part):
                # A view is 16 bytes, the first four of them its length (Arrow columnar format, binary view).
                lengths = np.frombuffer(part.buffers()[1], np.int32)[::4][part.offset : part.offset + len(part)]
                size += int(lengths.sum(dtype=np.int64))
        if size > _MOST_TEXT:
            raise Problem(413, "too-large", f"column {name} has {size:,} bytes of text, more than {_MOST_TEXT:,}")


def _value_column(column: Any) -> tuple[list[float | None], bool]:
    """Values, None for null, and whether all are finite and of bounded size."""
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise invalid(f"column y has type {kind}, expected numbers")
    column = column.cast(pa.float64(), safe=False)
    array = column.to_numpy()  # NaN for null
    with np.errstate(invalid="ignore"):
        good = np.count_nonzero(np.abs(array) <= LARGEST_VALUE)
    values: list[float | None] = column.to_pylist() if column.null_count else array.tolist()
    return values, good + column.null_count == len(array)


def _steps(ds: Any, dates: Dates, rows: Rows) -> list[int | None]:
    """Step numbers of a column; None, with a reason, where there is none."""
    kind = _kind(ds)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _steps_of_times(ds, kind, dates, rows)
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise invalid(f"column ds has type {ds.type}, expected timestamps, dates, text or integers")
    values, numbers = _distinct(ds)
    try:
        found: list[int | None] = list(dates.steps(values))
        return [found[number] for number in numbers]
    except InputError:
        found = [_one_step(partial(dates.steps, [value])) for value in values]
    bad = (i for i, number in enumerate(numbers) if found[number] is None)
    for i in islice(bad, _SHOWN):
        _one_step(partial(dates.steps, [values[numbers[i]]]), i, rows)
    return [found[number] for number in numbers]


def _steps_of_times(ds: Any, kind: Any, dates: Dates, rows: Rows) -> list[int | None]:
    zone = dates.calendar.time_zone
    if pa.types.is_date(kind):
        kind = pa.timestamp("s")
    elif kind.tz is not None and zone is not None:
        kind = pa.timestamp(kind.unit, zone)  # an instant is the same in any zone, and some name none
    elif kind.tz is not None:
        reason = f"ds is in time zone {kind.tz[:40]}, expected none"
        rows.reasons.update(dict.fromkeys(range(min(len(ds), _SHOWN)), reason))
        return [None] * len(ds)
    series = ds.cast(kind).to_pandas()
    try:
        return list(dates.calendar.to_steps(series).tolist())
    except InputError:
        fits = dates.calendar.fits(series)
    steps = np.full(len(fits), None)
    if fits.any():
        steps[fits] = dates.calendar.to_steps(series[fits]).tolist()
    for i in np.flatnonzero(~fits)[:_SHOWN].tolist():
        _one_step(partial(dates.calendar.to_steps, series[i : i + 1]), i, rows)
    return list(steps.tolist())


def _one_step(read: Callable[[], Any], i: int | None = None, rows: Rows | None = None) -> int | None:
    """What is read; None if it cannot be, and why, if it is a row's to say."""
    try:
        return int(read()[0])
    except InputError as error:
        if i is not None and rows is not None and len(rows.reasons) < _SHOWN:
            rows.reasons[i] = str(error)
        return None


def verdicts_reply(
    rows: Rows,
    groups: Sequence[Sequence[int]],
    results: Sequence[Outcome | Problem],
    min_surprise: float | None = None,
) -> dict[str, Any]:
    """Counts, a verdict per row in row order, and a reason for the first refused rows, of groups and what they got.

    With `min_surprise` also the rows that reach it, most surprising first.

    Raises
    ------
    Problem
        A stream's rows met a failure that is nobody's verdict: the store is down or the service failed; or all streams
        are busy. Rows of other streams may have been stored; sending the body again is safe.
    """
    verdicts = [Verdict.INVALID] * len(rows.unique_ids)
    reasons = dict(rows.reasons)
    places = np.full(len(verdicts), np.nan)
    filled = 0
    if failure := common_failure(results):
        raise failure
    for numbers, result in zip(groups, results, strict=True):
        if isinstance(result, Problem):
            for i in numbers:
                verdicts[i] = Verdict.BUSY if result.status == 503 else Verdict.UNKNOWN_STREAM
            reasons[numbers[0]] = result.detail
            continue
        assert result.judgement is not None
        filled += result.judgement.filled
        if result.places is not None:
            places[numbers] = result.places
        for i, verdict in zip(numbers, result.judgement.verdicts, strict=True):
            verdicts[i] = verdict
            if verdict.refused:
                reasons[i] = _REASONS[verdict]
    counts = {verdict.value: verdicts.count(verdict) for verdict in Verdict if verdict in verdicts}
    shown = [{"row": i, "verdict": verdicts[i], "detail": shortened(reasons[i])} for i in sorted(reasons)[:_SHOWN]]
    reply = {"rows": len(verdicts), "counts": counts, "filled": filled, "verdicts": verdicts, "refused": shown}
    if min_surprise is None:
        return reply
    surprises = surprise(places)
    order = np.argsort(-surprises, kind="stable")
    found = order[: np.count_nonzero(surprises >= min_surprise)].tolist()  # NaN comes last
    return reply | {
        "surprising": [
            {"row": i, "unique_id": rows.unique_ids[i], "place": places[i], "surprise": surprises[i]} for i in found
        ]
    }


_REASONS: Mapping[Verdict, str] = {
    Verdict.CONFLICT: "another value is known for this ds, or stands above in this body; on_conflict=revise takes it",
    Verdict.TOO_OLD: "before the first step of the stream's log",
    Verdict.GAP_TOO_LONG: "further after the stream's last step than gaps are filled",
    Verdict.BUSY: "more steps after the stream's last one, gaps included, than are taken at once; send it again",
}
