"""KServe's time-series protocol: `POST /v1/timeseries/forecast`.

Its `mean_forecast` is the median here: the model forecasts quantiles. A frequency is checked against the model's,
never converted. What is known of the coming steps has no place in the protocol: it is a further field of an input, as
this service's own requests have it.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Response
from pydantic import BaseModel, ConfigDict, Field

from forecaster import InputError
from forecaster.marginals import level_name
from service.adapters.answering import (
    Asked,
    add_forecast,
    as_json,
    made_up_start,
    missing_as_none,
    read_json,
    validated,
    without_utc,
)
from service.bodies.replies import Forecast
from service.bodies.schemas import FutureColumns
from service.engine.folding import Glance
from service.models.served import ServedModel
from service.problems import Problem
from service.stateless import forecast_histories

__all__ = ["MODELS", "add_to"]

_MEDIAN = 0.5
_FREQUENCIES = {
    "SECOND": "s", "S": "s", "MINUTE": "min", "T": "min", "HOUR": "h", "H": "h", "DAY": "D", "D": "D", "WEEK": "W",
    "W": "W", "MONTH": "M", "M": "M", "QUARTER": "Q", "Q": "Q", "YEAR": "Y", "Y": "Y",
}  # fmt: skip
_ANCHORED = ("W", "M", "Q", "Y")


class _Extensible(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class SeriesInput(_Extensible):
    """One series."""

    type: Literal["univariate_time_series", "multivariate_time_series"]
    name: str
    series: Annotated[list[Any], Field(min_length=1, description="values; null = missing")]
    frequency: str
    start_timestamp: Annotated[str | None, Field(description="of the first value")] = None
    future: FutureColumns = None


class Options(_Extensible):
    """What to forecast."""

    horizon: Annotated[int, Field(ge=1)]
    quantiles: Annotated[list[float] | None, Field(min_length=1, max_length=98, fail_fast=True)] = None


class KServeRequest(_Extensible):
    """A forecast in KServe's words."""

    model: str
    inputs: Annotated[list[SeriesInput], Field(min_length=1, max_length=10_000, fail_fast=True)]
    options: Options
    metadata: Any = None


MODELS = (KServeRequest,)
"""Whatever the description refers to."""

_EXAMPLE = {
    "model": "load",
    "inputs": [
        {
            "type": "univariate_time_series",
            "name": "plant-1",
            "series": [98.1, None, 104.7, 110.2],
            "frequency": "H",
            "start_timestamp": "2025-01-01T00:00:00",
        }
    ],
    "options": {"horizon": 3, "quantiles": [0.1, 0.9]},
}


_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/KServeRequest"}, "example": _EXAMPLE}},
}
_REPLY = {
    "id": "resp_0a",
    "created_at": 1735700000,
    "status": "completed",
    "error": None,
    "model": "load",
    "outputs": [
        {
            "type": "time_series_forecast",
            "id": "ts_0a",
            "status": "completed",
            "content": [
                {
                    "type": "univariate_time_series",
                    "name": "plant-1",
                    "mean_forecast": [109.0, 108.1, 107.7],
                    "frequency": "H",
                    "start_timestamp": "2025-01-01T04:00:00",
                    "quantiles": {"0.1": [101.2, 99.8, 98.0], "0.9": [117.4, 118.9, 120.1]},
                }
            ],
            "error": None,
        }
    ],
    "usage": None,
}
_ERROR = {
    "error": {
        "code": "invalid",
        "message": "series 'plant-1' has frequency 'D', but the model has freq 'h'",
        "param": None,
        "type": "invalid_request_error",
    }
}


def add_to(app: FastAPI) -> None:
    """Add KServe's route."""
    add_forecast(
        app,
        "/v1/timeseries/forecast",
        "kserve_forecast",
        _answer,
        _refusal,
        summary="Forecast, in the words of KServe's time-series API",
        description="mean_forecast is the median. Series without start_timestamp get forecasts without one. Beyond "
        "KServe's own fields, an input may have future, as series of POST /v1/forecasts have it; models with known "
        "covariates need it.",
        body=_BODY,
        reply=_REPLY,
        error=_ERROR,
    )


def _refusal(problem: Problem) -> Response:
    errors = problem.extensions.get("errors") or [{}]
    content = {
        "error": {
            "code": problem.kind,
            "message": problem.detail,
            "param": errors[0].get("at"),
            "type": "invalid_request_error" if problem.status < 500 else "server_error",
        }
    }
    return Response(as_json(content), problem.status, headers=problem.headers, media_type="application/json")


def _answer(asked: Asked, glance: Glance) -> bytes:
    body = KServeRequest.model_validate(read_json(asked.body))
    model = asked.model
    if body.model not in (model.name, asked.named):
        raise Problem(404, "model-not-found", f"model {body.model!r} does not serve here; {model.name!r} does")
    asked_levels = body.options.quantiles or []
    levels = list(dict.fromkeys([*asked_levels, _MEDIAN]))
    series = [_history(one, model) for one in body.inputs]
    request = validated(series, horizon=body.options.horizon, quantile_levels=levels)
    forecasts = forecast_histories(model, request, asked.max_history_steps, glance)
    outputs = [_output(one, found, asked_levels, model) for one, found in zip(body.inputs, forecasts, strict=True)]
    return as_json(
        {
            "id": f"resp_{uuid.uuid4().hex}",
            "created_at": int(time.time()),
            "status": "completed",
            "error": None,
            "model": model.name,
            "outputs": outputs,
            "usage": None,
        }
    )


def _history(one: SeriesInput, model: ServedModel) -> dict[str, Any]:
    if one.type != "univariate_time_series":
        raise InputError(f"series {one.name!r} is multivariate; this model forecasts univariate series")
    freq = model.forecaster.calendar.alias
    if not _fits(one.frequency, freq):
        raise InputError(f"series {one.name!r} has frequency {one.frequency!r}, but the model has freq {freq!r}")
    start: str | int
    if one.start_timestamp is None:
        start = made_up_start(model, one.name)
    elif model.dates.calendar.is_integer and (digits := one.start_timestamp.removeprefix("-")).isdecimal():
        if len(digits) > 18:
            raise InputError(f"series {one.name!r} starts at step {digits[:18]}…, expected one of 18 digits at most")
        start = int(one.start_timestamp)
    else:
        start = without_utc(one.start_timestamp, model)
    first = model.dates.steps([start])[0]
    ds = model.dates.texts(first, len(one.series))
    return {"unique_id": one.name, "ds": ds, "y": missing_as_none(one.series), "future": one.future}


def _utc(one: SeriesInput, model: ServedModel) -> str:
    """How times are marked as UTC for a model without time zone: they are taken, and given, as they stand."""
    start = one.start_timestamp or ""
    return start[len(without_utc(start, model)) :]


def _fits(frequency: str, freq: str) -> bool:
    if frequency == freq or freq == "1":
        return True
    unit = _FREQUENCIES.get(frequency.upper())
    # Where a week or month is anchored, KServe does not say.
    return unit is not None and (freq.startswith(unit) if unit in _ANCHORED else freq == unit)


def _output(one: SeriesInput, found: Forecast, levels: list[float], model: ServedModel) -> dict[str, Any]:
    start = None
    if one.start_timestamp is not None:
        first = model.dates.text(found.last_step + 1)
        start = f"{first}{_utc(one, model)}"
    return {
        "type": "time_series_forecast",
        "id": f"ts_{uuid.uuid4().hex}",
        "status": "completed",
        "content": [
            {
                "type": one.type,
                "name": one.name,
                "mean_forecast": found.at(_MEDIAN),
                "frequency": one.frequency,
                "start_timestamp": start,
                "quantiles": {level_name(level): found.at(level) for level in levels},
            }
        ],
        "error": None,
    }
