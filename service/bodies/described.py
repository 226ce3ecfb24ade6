"""What clients get, as OpenAPI describes it: shapes of replies, and an example of each.

Replies are written by hand (`replies`, `forms`, `bulk`) and not checked against this when they are sent; tests do
that, with requests made from the description. Invariant: whatever is described here is always there; more may be.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.bodies.schemas import ForecastsRequest, ObservationsRequest, Row, StreamForecastRequest, StreamHistory

__all__ = [
    "EXAMPLES",
    "MODELS",
    "ForecastReply",
    "ForecastsReply",
    "HostedReply",
    "ModelsReply",
    "ObservedReply",
    "Problem",
    "QualityReply",
    "StatusReply",
    "StreamReply",
    "StreamsReply",
    "SurveyReply",
    "VerdictsReply",
]

Ds = str | int
ScoredFrom = Annotated[
    Ds | None,
    Field(description="the earliest cutoff whose forecast is scored: where the model learnt, it has seen the truth"),
]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow")


class Problem(_Reply):
    """RFC 9457 problem details; some problems have further members."""

    type: str = Field(description="urn:forecaster:problem:KIND, stable")
    title: str
    status: int
    detail: str = Field(description="one line: what was found, what was expected")


class ModelLabel(_Reply):
    """Which model made a reply."""

    name: str
    version: str


class _Forecast(_Reply):
    unique_id: str
    cutoff: Ds
    model: ModelLabel
    ds: list[Ds]


class ForecastReply(_Forecast):
    """A forecast; of a stream with its version, with sample paths if they were asked for."""

    quantiles: dict[str, list[float]] = Field(description="level -> one value per ds")


class ObservedReply(_Forecast):
    """The new forecast, or why there is none, and what became of the observations."""

    quantiles: dict[str, list[float | None]] = Field(
        description="level -> one value per ds; null as long as none of the stream's values are known"
    )
    version: int
    accepted: int
    late: int
    duplicate: int
    revised: int
    filled: int = Field(description="missing steps filled before new ones")
    places: list[float | None] = Field(description="where each value lay in what was forecast for it, if that is known")
    surprises: list[float | None] = Field(description="how far out each lay: 2 is one in a hundred")
    no_forecast: Problem | None = Field(
        None,
        description="why the model that serves cannot make the forecast asked for; ds and quantiles are empty then",
    )


class Refused(Problem):
    """Why a stream has no forecast."""

    unique_id: str


class ForecastsReply(_Reply):
    """Forecasts in the order of the request; of streams, also which of them have none."""

    forecasts: list[ForecastReply]
    refused: list[Refused] | None = Field(None, description="streams that have none, and why")


class Counts(_Reply):
    """What the log of a stream holds."""

    observations: int
    missing: int = Field(description="of those, how many have y null")
    filled: int = Field(description="steps that nobody reported")


class StreamReply(_Reply):
    """Where a stream stands."""

    unique_id: str
    version: int
    first_ds: Ds
    log_ds: Ds = Field(description="the first of its retained log")
    cutoff: Ds
    model: ModelLabel
    counts: Counts


class StreamsReply(_Reply):
    """A page of streams."""

    streams: list[StreamReply]
    next_cursor: str | None


class RefusedRow(_Reply):
    """Why a row was not taken."""

    row: int
    verdict: str
    detail: str


class VerdictsReply(_Reply):
    """What became of each row, in their order."""

    rows: int
    counts: dict[str, int]
    filled: int
    verdicts: list[str] = Field(
        description="accepted, late, duplicate, revised; not taken: conflict, too_old, gap_too_long, unknown_stream, "
        "invalid, busy (its stream cannot be written at present, or would grow by more steps, gaps included, than are "
        "taken at once: send the row again)"
    )
    refused: list[RefusedRow] = Field(description="the first hundred")
    surprising: list[dict[str, Any]] | None = Field(
        None, description="with min_surprise, the rows that reach it, the most surprising first"
    )


class QualityReply(_Reply):
    """What the past forecasts of a stream were worth."""

    unique_id: str
    cutoff: Ds
    model: ModelLabel
    scored_from: ScoredFrom
    total: dict[str, Any]
    recent: dict[str, Any]
    by_step: dict[str, Any]


class SurveyReply(_Reply):
    """What past forecasts of the streams in memory were worth, worst first."""

    model: ModelLabel
    scored_from: ScoredFrom
    streams: int
    total: dict[str, Any]
    recent: dict[str, Any]
    worst: list[dict[str, Any]]
    next_cursor: str | None


class StatusReply(_Reply):
    """How the process is."""

    status: str


class Covariate(_Reply):
    """A column that a model reads beside y."""

    name: str
    role: str = Field(description="known (also of the steps to forecast), past, or static")
    values: list[str] | None = Field(description="the categories that it tells apart; null: a number")


class ServedReply(ModelLabel):
    """A model that serves."""

    fingerprint: str
    freq: str
    time_zone: str | None
    horizon: int
    max_horizon: int
    seasonality: list[int]
    quantile_levels: list[float]
    max_gap_steps: int
    covariates: list[Covariate]
    further_covariates: list[str] = Field(
        description="that other models of the store know or knew: taken and kept in the log, not used by this one"
    )


class HostedModel(_Reply):
    """A model of this process."""

    name: str | None = Field(description="it is served under; null: at the root")
    prefix: str = Field(description="what comes before the paths of all its routes")
    reference: str
    state: str = Field(description="serving, starting, stopped, or unavailable")
    model: ModelLabel | None = Field(description="the version that serves")
    freq: str | None
    time_zone: str | None
    trouble: str | None


class HostedReply(_Reply):
    """All models of this process."""

    models: list[HostedModel]


class ModelsReply(_Reply):
    """The model that serves here."""

    models: list[ServedReply]
    reference: str
    trouble: str | None
    coming: dict[str, Any] | None = Field(None, description="the model whose states are being derived, and how far")
    before: dict[str, Any] | None = Field(None, description="the model before, and how long the way back is kept")
    challenger: dict[str, Any] | None = Field(
        None, description="the model in shadow, with its figures and the champion's over the same streams"
    )


MODELS: tuple[type[BaseModel], ...] = (
    ForecastReply,
    ForecastsReply,
    ForecastsRequest,
    HostedReply,
    ModelsReply,
    ObservationsRequest,
    ObservedReply,
    Problem,
    QualityReply,
    Refused,
    Row,
    StatusReply,
    StreamForecastRequest,
    StreamHistory,
    StreamReply,
    StreamsReply,
    SurveyReply,
    VerdictsReply,
)
"""Whatever the description refers to."""

_LABEL = {"name": "load", "version": "3"}
_FORECAST: dict[str, Any] = {
    "unique_id": "plant-1",
    "cutoff": "2025-01-01T03:00:00",
    "model": _LABEL,
    "ds": ["2025-01-01T04:00:00", "2025-01-01T05:00:00"],
    "quantiles": {"0.1": [101.2, 99.8], "0.5": [109.0, 108.1], "0.9": [117.4, 118.9]},
    "version": 2,
}
_STREAM: dict[str, Any] = {
    "unique_id": "plant-1",
    "version": 2,
    "first_ds": "2025-01-01T00:00:00",
    "log_ds": "2025-01-01T00:00:00",
    "cutoff": "2025-01-01T03:00:00",
    "model": _LABEL,
    "counts": {"observations": 4, "missing": 1, "filled": 0},
}
_HISTORY: dict[str, Any] = {
    "ds": ["2025-01-01T00:00:00", "2025-01-01T01:00:00", "2025-01-01T02:00:00"],
    "y": [98.1, None, 104.7],
}
_FIGURES = {"count": 24.0, "mae": 3.1, "relative_mae": 0.71, "wql": 0.04, "coverage_80": 0.79}
EXAMPLES: dict[type[BaseModel], Any] = {
    ForecastReply: _FORECAST,
    ForecastsReply: {"forecasts": [{name: value for name, value in _FORECAST.items() if name != "version"}]},
    ForecastsRequest: {
        "series": [{"unique_id": "plant-1", **_HISTORY}],
        "horizon": 2,
        "quantile_levels": [0.1, 0.5, 0.9],
    },
    HostedReply: {
        "models": [
            {
                "name": "load",
                "prefix": "/models/load",
                "reference": "models:/load@champion",
                "state": "serving",
                "model": _LABEL,
                "freq": "h",
                "time_zone": None,
                "trouble": None,
            }
        ]
    },
    ModelsReply: {
        "models": [
            {
                **_LABEL,
                "fingerprint": "0f3c",
                "freq": "h",
                "time_zone": None,
                "horizon": 48,
                "max_horizon": 192,
                "seasonality": [24, 168],
                "quantile_levels": [0.1, 0.5, 0.9],
                "max_gap_steps": 336,
                "covariates": [
                    {"name": "temperature", "role": "known", "values": None},
                    {"name": "site", "role": "static", "values": ["north", "south"]},
                ],
                "further_covariates": ["promotion"],
            }
        ],
        "reference": "models:/load@champion",
        "trouble": None,
    },
    ObservationsRequest: {
        "observations": [{"ds": "2025-01-01T03:00:00", "y": 110.2}],
        "horizon": 2,
        "quantile_levels": [0.1, 0.5, 0.9],
    },
    ObservedReply: {
        **_FORECAST,
        "accepted": 1,
        "late": 0,
        "duplicate": 0,
        "revised": 0,
        "filled": 0,
        "places": [0.62],
        "surprises": [0.12],
    },
    Problem: {
        "type": "urn:forecaster:problem:invalid",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "horizon is 999, expected 1 to 192",
    },
    QualityReply: {
        "unique_id": "plant-1",
        "cutoff": "2025-01-01T03:00:00",
        "model": _LABEL,
        "scored_from": "2024-12-31T23:00:00",
        "total": _FIGURES,
        "recent": _FIGURES,
        "by_step": {"step": [1], "total": {}, "recent": {}},
    },
    StatusReply: {"status": "alive"},
    StreamForecastRequest: {"horizon": 2, "quantile_levels": [0.1, 0.5, 0.9]},
    StreamHistory: _HISTORY,
    StreamReply: _STREAM,
    StreamsReply: {"streams": [_STREAM], "next_cursor": None},
    SurveyReply: {
        "model": _LABEL,
        "scored_from": "2024-12-31T23:00:00",
        "streams": 1,
        "total": _FIGURES,
        "recent": _FIGURES,
        "worst": [{"unique_id": "plant-1", "cutoff": "2025-01-01T03:00:00"}],
        "next_cursor": None,
    },
    VerdictsReply: {
        "rows": 2,
        "counts": {"accepted": 1, "unknown_stream": 1},
        "filled": 0,
        "verdicts": ["accepted", "unknown_stream"],
        "refused": [{"row": 1, "verdict": "unknown_stream", "detail": "stream 'plant-9' is not known"}],
    },
}
"""One of each that is sent or answered by itself."""
