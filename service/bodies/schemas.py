"""What clients send: strict models, unknown fields refused, and the rules for numbers, dates and names.

They know neither calendar nor model, so a `ds` is here only text or an integer. Invariant: every y that passes is
finite and at most 1e30 in magnitude, or None for a missing value.
"""

from __future__ import annotations

from collections import Counter
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from forecaster.columns import LARGEST_VALUE

__all__ = [
    "ForecastQuery",
    "ForecastsRequest",
    "Observation",
    "ObservationsRequest",
    "Row",
    "SeriesHistory",
    "StreamForecastRequest",
    "StreamHistory",
    "check_unique_id",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def check_unique_id(value: str) -> str:
    """Refuse names that are empty, too long or hold control characters.

    Raises
    ------
    ValueError
        With the reason.
    """
    if not 1 <= len(value) <= 255:
        raise ValueError(f"a unique_id has 1 to 255 characters, this one has {len(value)}")
    if not value.isprintable():
        raise ValueError("a unique_id holds printable characters only")
    return value


def check_cell(value: Any) -> Any:
    """Refuse what is no value of a covariate.

    Raises
    ------
    ValueError
        With what is expected.
    """
    known = value is None or isinstance(value, bool | int)
    if known or (isinstance(value, float) and isfinite(value)) or (isinstance(value, str) and len(value) <= 255):
        return value
    raise ValueError("expected a finite number, true, false, null, or text of at most 255 characters")


UniqueId = Annotated[str, AfterValidator(check_unique_id)]
Ds = Annotated[str | int, Field(description="ISO 8601 timestamp, or an integer step for models of freq 1")]
Y = Annotated[
    Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST_VALUE, le=LARGEST_VALUE)] | None,
    Field(description="value in the user's units; null = missing"),
]
Horizon = Annotated[int | None, Field(ge=1, description="steps to forecast; default: the trained horizon")]
Level = Annotated[float, Field(gt=0, lt=1)]
Levels = Annotated[list[Level] | None, Field(min_length=1, max_length=99, description="default: 0.1 … 0.9")]
Cell = Annotated[
    Any,  # one rule in one sentence, where a union would say of each of its members why it is not that
    AfterValidator(check_cell),
    WithJsonSchema({"anyOf": [{"type": kind} for kind in ("boolean", "integer", "number", "string", "null")]}),
]
Cells = Annotated[dict[str, Cell] | None, Field(description="covariate -> value; null = missing")]
Columns = Annotated[dict[str, list[Cell]] | None, Field(description="covariate -> one value per ds")]
FutureColumns = Annotated[
    dict[str, Annotated[list[Cell], Field(min_length=1, max_length=100_000)]] | Literal["missing"] | None,
    Field(
        description="known covariate -> values at the coming steps: from the one after the cutoff on, or at those of "
        '`ds`; "missing": forecast without. For models with known covariates only'
    ),
]
NumSamples = Annotated[int | None, Field(ge=1, le=1000, description="joint sample paths, as samples, beside quantiles")]
Seed = Annotated[int | None, Field(ge=0, le=2**63 - 1, description="of the sample paths; default: 0")]
OnConflict = Annotated[Literal["refuse", "revise"], Field(description="what another y for a known ds means")]


class Observation(_Strict):
    """One value at one time."""

    ds: Ds
    y: Y
    covariates: Cells = None


class Row(_Strict):
    """One row of a bulk body; further fields are covariates."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    __pydantic_extra__: dict[str, Cell] = Field(init=False)

    unique_id: UniqueId
    ds: Ds
    y: Y


class StreamHistory(_Strict):
    """The history a stream starts from: ascending `ds`, gaps allowed."""

    ds: Annotated[list[Ds], Field(min_length=1)]
    y: Annotated[list[Y], Field(min_length=1)]
    covariates: Columns = None
    static: Cells = None

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.ds) != len(self.y):
            raise ValueError(f"ds and y need the same length, found {len(self.ds)} and {len(self.y)}")
        return self


class SeriesHistory(StreamHistory):
    """A named history, for a stateless forecast."""

    unique_id: UniqueId
    future: FutureColumns = None


class ForecastsRequest(_Strict):
    """Either histories to forecast from, without keeping anything, or streams to forecast from where they stand."""

    series: Annotated[list[SeriesHistory] | None, Field(min_length=1, max_length=10_000)] = None
    streams: Annotated[list[UniqueId] | None, Field(min_length=1, max_length=10_000)] = None
    horizon: Horizon = None
    quantile_levels: Levels = None
    num_samples: NumSamples = None
    seed: Seed = None
    future: Annotated[
        dict[str, FutureColumns] | Literal["missing"] | None,
        Field(description='of streams: unique_id -> what is known of the coming steps, or "missing" for all of them'),
    ] = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.series is None) == (self.streams is None):
            raise ValueError("either series or streams are needed")
        if self.series is not None and self.future is not None:
            raise ValueError("series have their future with them, not beside them")
        if self.streams is not None:
            if self.num_samples is not None or self.seed is not None:
                raise ValueError("samples are drawn of one stream at a time: GET /v1/streams/{unique_id}/forecast")
            if len(set(self.streams)) < len(self.streams):
                (name, _), *_ = Counter(self.streams).most_common(1)
                raise ValueError(f"stream {name!r} appears twice; names must be unique within a request")
            if isinstance(self.future, dict) and (others := sorted(self.future.keys() - set(self.streams))):
                raise ValueError(f"future names {others[0]!r}, which is none of the streams")
        return self


class ObservationsRequest(_Strict):
    """New observations of one stream, taken all or not at all."""

    observations: Annotated[list[Observation], Field(min_length=1)]
    on_conflict: OnConflict = "refuse"
    horizon: Horizon = None
    quantile_levels: Levels = None
    future: FutureColumns = None


class StreamForecastRequest(_Strict):
    """A forecast of one stream, with what is known of the coming steps."""

    horizon: Horizon = None
    quantile_levels: Levels = None
    num_samples: NumSamples = None
    seed: Seed = None
    future: FutureColumns = None


class ForecastQuery(BaseModel):
    """Query string of a forecast; ``quantile_levels=0.1,0.5`` or repeated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizon: Horizon = None
    quantile_levels: Levels = None
    num_samples: NumSamples = None
    seed: Seed = None
    future: Annotated[Literal["missing"] | None, Field(description="forecast without known covariates")] = None

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        levels = value.get("quantile_levels") if isinstance(value, dict) else None
        if levels is None:
            return value
        texts = [text for part in levels for text in part.split(",")] if isinstance(levels, list) else levels.split(",")
        return {**value, "quantile_levels": texts}
