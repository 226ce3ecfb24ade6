"""Forecasts as JSON or as an Arrow IPC stream, whichever the client would rather have.

The Arrow stream is a long frame as ``forecaster predict`` writes it: `unique_id`, `ds`, one column per quantile level
named by the level; between them `cutoff`, `model`, `model_version` and, for streams, `version`; after them `samples` if
they were asked for, one list per step. Invariant: both forms say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from starlette.types import Scope

from service.bodies.bulk import ARROW
from service.bodies.replies import Forecast, Json, forecast_json, level_names
from service.engine.items import Outcome
from service.models.served import Want
from service.negotiation import header_of, preferred
from service.problems import Problem

__all__ = ["JSON", "forecasts_body", "form_of", "one_forecast_body", "stream_frame"]

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


def forecasts_body(found: Sequence[Forecast], form: str, refused: Sequence[Json] | None = None) -> bytes:
    """Many forecasts of the same levels; `refused` tells of streams that have none."""
    if form == ARROW:
        return _arrow(found, refused)
    reply: Json = {"forecasts": [forecast_json(one) for one in found]}
    if refused is not None:
        reply["refused"] = refused
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def one_forecast_body(found: Forecast, form: str) -> bytes:
    """One forecast."""
    return (
        _arrow([found], None)
        if form == ARROW
        else orjson.dumps(forecast_json(found), option=orjson.OPT_SERIALIZE_NUMPY)
    )


def stream_frame(outcome: Outcome, want: Want) -> bytes:
    """The forecast of a stream as an Arrow IPC stream."""
    return _arrow([Forecast.of_stream(outcome, want)], None)


def _arrow(found: Sequence[Forecast], refused: Sequence[Json] | None) -> bytes:
    columns: dict[str, Any] = {"unique_id": _repeated([one.unique_id for one in found], found)}
    if found:
        calendar = found[0].model.forecaster.calendar
        steps = np.concatenate([np.arange(one.last_step + 1, one.last_step + 1 + one.want.horizon) for one in found])
        cutoffs = np.repeat([one.last_step for one in found], [one.want.horizon for one in found])
        columns["ds"] = pa.array(calendar.to_index(steps))
        columns["cutoff"] = pa.array(calendar.to_index(cutoffs))
        columns["model"] = _repeated([one.model.name for one in found], found)
        columns["model_version"] = _repeated([one.model.version for one in found], found)
        if found[0].version is not None:
            columns["version"] = np.repeat([one.version for one in found], [one.want.horizon for one in found])
        together = np.concatenate([one.quantiles for one in found], axis=1)  # [Q, all steps]
        columns.update(zip(level_names(found[0].want.quantile_levels), together, strict=True))
        if found[0].samples is not None:
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


def _repeated(texts: Sequence[str], found: Sequence[Forecast]) -> Any:
    """One text per forecast, for each of its steps."""
    places = np.repeat(np.arange(len(texts)), [one.want.horizon for one in found])
    return pa.array(texts, pa.string()).dictionary_encode().take(pa.array(places))
