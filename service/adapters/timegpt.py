"""TimeGPT's protocol: `POST /v2/forecast`, and `GET /model_params`, which its client asks before.

Its `mean` is the median here, and the interval of level L lies between the quantiles (1 - L/100) / 2 from either end.
The columns of `X` have no names, so their order is the model's: known covariates, then past ones; `X_future` has the
known ones.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pandas.tseries.frequencies import to_offset
from pydantic import BaseModel, ConfigDict, Field

from forecaster import InputError
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
from service.engine.folding import Glance
from service.models.served import ServedModel
from service.problems import Problem
from service.routes.common import refuse_query, service_of
from service.routes.describing import answer, described, query
from service.stateless import forecast_histories

__all__ = ["MODELS", "add_to"]

_MEDIAN = 0.5
_ADVICE = "send them as X_future, h values per series"
_RETRIED = {"H": "h", "T": "min", "S": "s", "L": "ms"}  # what pandas once called them


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TimeGptSeries(_Lenient):
    """All series, one after the other."""

    y: Annotated[list[Any], Field(min_length=1, description="values of all series; null = missing")]
    sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=10_000, fail_fast=True)]
    X: Annotated[
        list[list[Any]] | None, Field(fail_fast=True, description="known, then past covariates, as long as y")
    ] = None
    X_future: Annotated[
        list[list[Any]] | None, Field(fail_fast=True, description="known covariates, h values per series")
    ] = None
    start_datetime: Annotated[
        list[str | int] | None, Field(fail_fast=True, description="of the first value of each series")
    ] = None


class TimeGptRequest(_Lenient):
    """A forecast in TimeGPT's words."""

    series: TimeGptSeries
    freq: str
    h: Annotated[int, Field(ge=1)]
    level: Annotated[list[Annotated[float, Field(ge=0, lt=100)]] | None, Field(max_length=40, fail_fast=True)] = None
    finetune_steps: int = 0
    finetuned_model_id: str | None = None
    feature_contributions: bool = False
    multivariate: bool = False


MODELS = (TimeGptRequest,)
"""Whatever the description refers to."""

_EXAMPLE = {
    "series": {
        "y": [98.1, None, 104.7, 110.2, 7.0, 8.5],
        "sizes": [4, 2],
        "start_datetime": ["2025-01-01T00:00:00", "2025-01-01T02:00:00"],
    },
    "freq": "h",
    "h": 3,
    "level": [80],
}


_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TimeGptRequest"}, "example": _EXAMPLE}},
}
_REPLY = {
    "mean": [109.0, 108.1, 107.7, 8.0, 8.1, 8.2],
    "intervals": {"lo-80": [101.2, 99.8, 98.0, 6.9, 6.8, 6.7], "hi-80": [117.4, 118.9, 120.1, 9.2, 9.3, 9.4]},
    "weights_x": None,
    "feature_contributions": None,
    "input_tokens": 6,
    "output_tokens": 6,
    "finetune_tokens": 0,
}


def add_to(app: FastAPI) -> None:
    """Add TimeGPT's routes."""
    add_forecast(
        app,
        "/v2/forecast",
        "timegpt_forecast",
        _answer,
        _refusal,
        summary="Forecast, in the words of TimeGPT's API",
        description="mean is the median. Columns of X: the model's known covariates in its order, then its past ones; "
        "X_future has the known ones, and models that have any need it.",
        body=_BODY,
        reply=_REPLY,
        error={"detail": [{"loc": ["body", "h"], "msg": "Field required", "type": "invalid"}]},
    )
    told = {"detail": {"input_size": 1_000_000, "horizon": 48}}
    app.add_api_route(
        "/model_params",
        _model_params,
        name="timegpt_model_params",
        methods=["GET"],
        tags=["adapters"],
        summary="How much history the model takes, and its horizon, in the words of TimeGPT's API",
        response_class=Response,
        openapi_extra=described(
            {200: answer("both", content={"application/json": {"schema": {"type": "object"}, "example": told}})},
            parameters=[query(name, {"type": "string"}, "of no effect") for name in ("model", "freq")],
        ),
    )


async def _model_params(request: Request) -> Response:
    refuse_query(request, frozenset(("model", "freq")))
    service = service_of(request)
    horizon = service.require_engine().model.forecaster.config.horizon
    detail = {"input_size": service.settings.max_history_steps, "horizon": horizon}
    return Response(as_json({"detail": detail}), media_type="application/json")


def _refusal(problem: Problem) -> Response:
    errors = problem.extensions.get("errors") or [{"at": "", "message": problem.detail}]
    detail = [
        {"loc": ["body", *filter(None, error["at"].split("/"))], "msg": error["message"], "type": problem.kind}
        for error in errors
    ]
    return Response(as_json({"detail": detail}), problem.status, headers=problem.headers, media_type="application/json")


def _answer(asked: Asked, glance: Glance) -> bytes:
    body = TimeGptRequest.model_validate(read_json(asked.body))
    model = asked.model
    for name in ("finetune_steps", "finetuned_model_id", "feature_contributions", "multivariate"):
        if getattr(body, name):
            raise InputError(f"{name} is {getattr(body, name)!r}; this service does not offer it")
    _check_freq(body.freq, model)
    bounds = {f"{level:g}": (round(0.5 - level / 200, 10), round(0.5 + level / 200, 10)) for level in body.level or ()}
    levels = list(dict.fromkeys([_MEDIAN, *(level for pair in bounds.values() for level in pair)]))
    request = validated(_histories(body, model), horizon=body.h, quantile_levels=levels)
    forecasts = forecast_histories(model, request, asked.max_history_steps, glance, _ADVICE)

    def flat(level: float) -> list[float]:
        return [value for found in forecasts for value in found.at(level)]

    intervals = {f"lo-{name}": flat(low) for name, (low, _) in bounds.items()}
    intervals |= {f"hi-{name}": flat(high) for name, (_, high) in bounds.items()}
    return as_json(
        {
            "mean": flat(_MEDIAN),
            "intervals": intervals or None,
            "weights_x": None,
            "feature_contributions": None,
            "input_tokens": len(body.series.y),
            "output_tokens": body.h * len(forecasts),
            "finetune_tokens": 0,
        }
    )


def _check_freq(freq: str, model: ServedModel) -> None:
    expected = model.forecaster.calendar.alias
    if expected in ("1", freq):
        return
    try:
        found = to_offset(_RETRIED.get(freq, freq))
    except (ValueError, OverflowError, Warning):  # a warning of pandas about a spelling, where warnings are errors
        found = None
    if found != to_offset(expected):
        raise InputError(f"freq is {freq!r}, but the model has freq {expected!r}")


def _histories(body: TimeGptRequest, model: ServedModel) -> list[dict[str, Any]]:
    series, covariates = body.series, model.forecaster.config.covariates
    if sum(series.sizes) != len(series.y):
        raise InputError(f"sizes add up to {sum(series.sizes)}, but y has {len(series.y)} values")
    starts = series.start_datetime
    if starts is not None and len(starts) != len(series.sizes):
        raise InputError(f"start_datetime has {len(starts)} values, but there are {len(series.sizes)} series")
    past = _columns("X", series.X, covariates.dynamic, len(series.y))
    coming = _columns("X_future", series.X_future, covariates.known, body.h * len(series.sizes))
    y = missing_as_none(series.y)
    found: list[dict[str, Any]] = []
    end = 0
    for number, size in enumerate(series.sizes):
        begin, end = end, end + size
        name = str(number)
        start = made_up_start(model, name) if starts is None else starts[number]
        if isinstance(start, str):
            start = without_utc(start, model)
        first = model.dates.steps([start])[0]
        history: dict[str, Any] = {"unique_id": name, "ds": model.dates.texts(first, size), "y": y[begin:end]}
        if past:
            history["covariates"] = {column: values[begin:end] for column, values in past.items()}
        if coming:
            ahead = slice(number * body.h, (number + 1) * body.h)
            history["future"] = {column: values[ahead] for column, values in coming.items()}
        found.append(history)
    return found


def _columns(
    what: str, columns: list[list[Any]] | None, names: tuple[str, ...], length: int
) -> dict[str, list[Any]] | None:
    if not columns:
        return None
    if len(columns) != len(names):
        expected = ", ".join(names) or "none"
        raise InputError(f"{what} has {len(columns)} columns, but this model has {expected}, in that order")
    for name, values in zip(names, columns, strict=True):
        if len(values) != length:
            raise InputError(f"{what}: column {name!r} has {len(values)} values, expected {length}")
    return {name: missing_as_none(values) for name, values in zip(names, columns, strict=True)}
