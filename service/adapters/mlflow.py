"""MLflow's scoring protocol: `POST /invocations`, answered as the logged model itself would, and its health routes.

Rows are those of the logged model: `unique_id`, `ds`, `y`, covariates; where covariates are known in the future, rows
without `y` after a series' last value tell its future.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response

from forecaster import CovariatesConfig, InputError
from service.adapters.answering import Asked, add_forecast, as_json, missing_as_none, read_json, validated
from service.bodies.replies import level_names
from service.bodies.schemas import MOST_BRACKETS
from service.engine.folding import Glance
from service.problems import Problem
from service.routes.common import needs, service_of
from service.routes.describing import answer, described
from service.stateless import forecast_histories

__all__ = ["add_to"]

_FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_CODES = {
    400: "BAD_REQUEST",
    409: "RESOURCE_CONFLICT",
    415: "BAD_REQUEST",
    422: "INVALID_PARAMETER_VALUE",
    503: "TEMPORARILY_UNAVAILABLE",
}
_COLUMNS = ["unique_id", "ds", "y"]
_MOST_BRACKETS = 2 * MOST_BRACKETS  # one per row: those of the largest body
_ADVICE = "send them in rows without y after the last value of the series"
_EXAMPLE_ROWS = [["plant-1", "2025-01-01T00:00:00", 98.1], ["plant-1", "2025-01-01T01:00:00", 104.7]]
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "description": f"exactly one of {', '.join(_FORMATS)}, and params",
                "properties": {
                    "dataframe_split": {"type": "object", "required": ["columns", "data"]},
                    "dataframe_records": {"type": "array", "items": {"type": "object"}},
                    "instances": {"type": "array", "items": {"type": "object"}},
                    "inputs": {"description": "a list of rows, or a list per column"},
                    "params": {
                        "type": "object",
                        "properties": {
                            "horizon": {"type": "integer", "minimum": 1},
                            "quantile_levels": {"type": "array", "items": {"type": "number"}},
                        },
                    },
                },
            },
            "example": {
                "dataframe_split": {"columns": _COLUMNS, "data": _EXAMPLE_ROWS},
                "params": {"horizon": 2, "quantile_levels": [0.1, 0.5, 0.9]},
            },
        },
        "text/csv": {"schema": {"type": "string"}, "example": "unique_id,ds,y\nplant-1,2025-01-01T00:00:00,98.1\n"},
    },
}
_REPLY = {"predictions": [{"unique_id": "plant-1", "ds": "2025-01-01T02:00:00", "0.1": 97.0, "0.9": 111.0}]}
_ERROR = {"error_code": "INVALID_PARAMETER_VALUE", "message": "columns y are missing"}


def add_to(app: FastAPI) -> None:
    """Add MLflow's routes."""
    add_forecast(
        app,
        "/invocations",
        "mlflow_invocations",
        _answer,
        _refusal,
        summary="Forecast, in the words of MLflow's scoring server",
        description="Rows in, one row per series and coming step out, as the model that was logged to MLflow answers. "
        "Rows without y after a series' last value tell what is known of the coming steps.",
        body=_BODY,
        reply=_REPLY,
        error=_ERROR,
    )
    there = {200: answer("there is"), 404: answer("there is not")}
    for path in ("/ping", "/health"):
        app.add_api_route(
            path,
            _ping,
            methods=["GET"],
            tags=["adapters"],
            name=f"mlflow_{path[1:]}",
            summary="Is there a model?",
            response_class=Response,
            openapi_extra=described(there, keyed=False) | needs(None),
        )
    text = answer("as text", content={"text/plain": {"schema": {"type": "string"}, "example": "3.10.0"}})
    app.add_api_route(
        "/version",
        _version,
        name="mlflow_version",
        methods=["GET"],
        tags=["adapters"],
        summary="MLflow's version",
        response_class=Response,
        openapi_extra=described({200: text}),
    )


async def _ping(request: Request) -> Response:
    return Response("\n", 404 if service_of(request).engine is None else 200, media_type="application/json")


async def _version(_request: Request) -> Response:
    return Response(version("mlflow"), media_type="text/plain")


def _refusal(problem: Problem) -> Response:
    status = 400 if problem.status == 422 else problem.status
    content = {"error_code": _CODES.get(problem.status, "INTERNAL_ERROR"), "message": problem.detail}
    return Response(as_json(content), status, headers=problem.headers, media_type="application/json")


def _answer(asked: Asked, glance: Glance) -> bytes:
    kind, _, parameters = (part.strip() for part in asked.kind.partition(";"))
    if parameters.replace(" ", "") not in ("", "charset=utf-8"):
        raise Problem(415, "unsupported-type", f"the body has type {asked.kind}; only charset=utf-8 may be added")
    params: Mapping[str, Any] = {}
    if kind == "application/json":
        columns, params = _from_json(read_json(asked.body, _MOST_BRACKETS))
    elif kind == "text/csv":
        columns = _from_csv(asked.body)
    else:
        expected = "application/json or text/csv"
        raise Problem(415, "unsupported-type", f"the body has type {kind or 'none'}; expected {expected}")
    series = _series(columns, asked.model.forecaster.config.covariates)
    request = validated(series, **_wanted(params))
    forecasts = forecast_histories(asked.model, request, asked.max_history_steps, glance, _ADVICE)
    predictions: list[dict[str, Any]] = []
    for found in forecasts:
        by_level = dict(zip(level_names(found.want.quantile_levels), found.quantiles.tolist(), strict=True))
        for step, ds in enumerate(asked.model.dates.texts(found.last_step + 1, found.want.horizon)):
            values = {level: quantiles[step] for level, quantiles in by_level.items()}
            predictions.append({"unique_id": found.unique_id, "ds": ds} | values)
    return as_json({"predictions": predictions})


def _wanted(params: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(params) - {"horizon", "quantile_levels"})
    if unknown:
        raise InputError(f"params: {', '.join(unknown)} unknown; expected horizon and quantile_levels")
    return dict(params)


def _from_json(body: Any) -> tuple[dict[str, list[Any]], Mapping[str, Any]]:
    if not isinstance(body, dict):
        raise Problem(400, "malformed", "the body is not a JSON object")
    given = [name for name in _FORMATS if name in body]
    if len(given) != 1 or set(body) - {*_FORMATS, "params"}:
        raise Problem(
            400,
            "malformed",
            f"the body has {', '.join(sorted(body)) or 'nothing'}; expected one of {', '.join(_FORMATS)}",
        )
    params = body.get("params") or {}
    if not isinstance(params, dict):
        raise InputError("params is not an object")
    data = body[given[0]]
    if given[0] == "dataframe_split":
        return _from_split(data), params
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        names = dict.fromkeys(name for row in data for name in row)
        return {name: [row.get(name) for row in data] for name in names}, params
    if given[0] in ("instances", "inputs") and isinstance(data, dict):
        if all(isinstance(values, list) for values in data.values()):
            return data, params
    raise InputError(f"{given[0]} holds no rows with named columns")


def _from_split(data: Any) -> dict[str, list[Any]]:
    names, rows = (data.get("columns"), data.get("data")) if isinstance(data, dict) else (None, None)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("dataframe_split needs columns, a list of names")
    if len(set(names)) < len(names):
        raise InputError(f"column {Counter(names).most_common(1)[0][0]!r} appears twice")
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        raise InputError(f"dataframe_split needs data, a list of rows of {len(names)} values")
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _from_csv(body: bytes) -> dict[str, list[Any]]:
    try:
        rows = list(csv.reader(io.StringIO(body.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Problem(400, "malformed-csv", f"the body is not CSV: {error}") from error
    names, data = (rows[0], [row for row in rows[1:] if row]) if rows else ([], [])
    return _from_split(
        {"columns": names, "data": [[_cell(n, text) for n, text in zip(names, row, strict=False)] for row in data]}
    )


def _cell(name: str, text: str) -> Any:
    if name == "unique_id":
        return text
    if text.strip() in ("", "NaN", "nan"):
        return None
    for kind in (int, float) if "_" not in text else ():  # which is Python's own
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _series(columns: Mapping[str, Sequence[Any]], covariates: CovariatesConfig) -> list[dict[str, Any]]:
    """One history per unique_id, in order of first appearance."""
    static = [name for name in covariates.static if name != "unique_id"]
    needed = list(dict.fromkeys([*_COLUMNS, *covariates.dynamic, *static]))
    missing = [name for name in needed if name not in columns]
    if missing or not columns["unique_id"]:
        raise InputError(f"columns {', '.join(missing)} are missing" if missing else "there are no rows")
    table = {name: missing_as_none(columns[name]) for name in needed}
    lengths = {name: len(values) for name, values in table.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"the columns have different lengths: {lengths}")
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(table["unique_id"]):
        if type(name) not in (str, int):
            raise InputError(f"unique_id is {name!r} in row {row}, expected text")
        groups.setdefault(str(name), []).append(row)
    return [_one_series(name, rows, table, covariates, static) for name, rows in groups.items()]


def _one_series(
    name: str, rows: list[int], table: dict[str, list[Any]], covariates: CovariatesConfig, static: list[str]
) -> dict[str, Any]:
    length = len(rows)
    if covariates.known:
        # What follows the last value tells the future.
        while length > 1 and table["y"][rows[length - 1]] is None:
            length -= 1
    past, coming = rows[:length], rows[length:]
    found: dict[str, Any] = {
        "unique_id": name,
        "ds": [table["ds"][row] for row in past],
        "y": [table["y"][row] for row in past],
    }
    if covariates.dynamic:
        found["covariates"] = {column: [table[column][row] for row in past] for column in covariates.dynamic}
    if coming:
        found["future"] = {column: [table[column][row] for row in coming] for column in ("ds", *covariates.known)}
    if static:
        found["static"] = {column: _constant(name, column, [table[column][row] for row in rows]) for column in static}
    return found


def _constant(name: str, column: str, values: list[Any]) -> Any:
    found = [value for value in values if value is not None]
    if any(value != found[0] for value in found):
        raise InputError(f"series {name!r}: static column {column!r} changes from row to row")
    return found[0] if found else None
