"""Forecasts as JSON or as an Arrow IPC stream, whichever the client would rather have.

The Arrow stream is a long frame as ``forecaster predict`` writes it: `unique_id`, `ds`, one column per quantile level
named by the level; between them `cutoff`, `model`, `model_version` and, for streams, `version`; after them `samples` if
they were asked for, one list per step. Invariant: both forms say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
from starlette.types import Scope

from service.bodies.bulk import ARROW
from service.bodies.replies import Forecast, Json, forecast_json, level_names
from service.engine.items import Outcome
from service.models.served import ServedModel, Want
from service.negotiation import header_of, preferred
from service.problems import Problem

__all__ = ["JSON", "forecasts_body", "form_of", "one_forecast_body", "stream_frame", "streams_body"]

JSON = "application/json"


def form_of(scope: Scope) -> str:
    """The media type in which a client wants forecasts.

    Raises
    ------
    Problem
        406 if it takes none of those there are.
    """
    accept = header_of(scope, b"accept")
    if accept is None:
        return JSON
    form = preferred(accept, (JSON, ARROW))
    if form is None:
        raise Problem(406, "not-acceptable", f"forecasts come as {JSON} or {ARROW}, but Accept is {accept!r}")
    return form


def forecasts_body(found: Sequence[Forecast], form: str) -> bytes:
    """Many forecasts of the same levels, one at least."""
    if form == ARROW:
        return _arrow(found, found[0].model, found[0].want)
    return _json({"forecasts": [forecast_json(one) for one in found]})


def streams_body(
    found: Sequence[Forecast], refused: Sequence[Json], form: str, model: ServedModel, want: Want
) -> bytes:
    """Forecasts of those streams that have one, and why others have none; `model` would have made them."""
    if form == ARROW:
        return _arrow(found, model, want, refused)
    return _json({"forecasts": [forecast_json(one) for one in found], "refused": refused})


def one_forecast_body(found: Forecast, form: str) -> bytes:
    """One forecast."""
    return _arrow([found], found.model, found.want) if form == ARROW else _json(forecast_json(found))


def stream_frame(outcome: Outcome, want: Want) -> bytes:
    """The forecast of a stream as an Arrow IPC stream."""
    return _arrow([Forecast.of_stream(outcome, want)], outcome.model, want)


def _json(reply: Json) -> bytes:
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _arrow(found: Sequence[Forecast], model: ServedModel, want: Want, refused: Sequence[Json] | None = None) -> bytes:
    """The same columns however many are found; those refused are streams, which have versions."""
    sizes = np.array([one.want.horizon for one in found], np.int64)
    last = np.array([one.last_step for one in found], np.int64)
    nth = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of its forecast
    cutoffs = np.repeat(last, sizes)
    calendar = model.forecaster.calendar
    columns: dict[str, Any] = {
        "unique_id": _repeated([one.unique_id for one in found], sizes),
        "ds": pa.array(calendar.to_index(cutoffs + 1 + nth)),
        "cutoff": pa.array(calendar.to_index(cutoffs)),
        "model": _repeated([one.model.name for one in found], sizes),
        "model_version": _repeated([one.model.version for one in found], sizes),
    }
    if refused is not None or found[0].version is not None:
        columns["version"] = np.repeat(np.array([one.version for one in found], np.int64), sizes)
    none = np.empty((len(want.quantile_levels), 0))
    together = np.concatenate([none, *(one.quantiles for one in found)], axis=1)  # [Q, all steps]
    columns.update(zip(level_names(want.quantile_levels), together, strict=True))
    if found and found[0].samples is not None:
        paths = np.concatenate([one.samples for one in found if one.samples is not None], axis=1)  # [S, all steps]
        columns["samples"] = pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(paths.T).ravel(), len(paths))
    table = pa.table(columns)
    if refused is not None:
        table = table.replace_schema_metadata({"refused": orjson.dumps(refused)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _repeated(texts: Sequence[str], sizes: npt.NDArray[np.int64]) -> Any:
    """One text per forecast, for each of its steps."""
    places = np.repeat(np.arange(len(texts)), sizes)
    return pa.array(texts, pa.string()).dictionary_encode().take(pa.array(places))
