"""What clients send: strict models, unknown fields refused, and the rules for numbers, dates and names.

They know neither calendar nor model, so a `ds` is here only text or an integer. Invariants: every y that passes is
finite and at most 1e30 in magnitude, or None for a missing value; a list or a mapping is refused at its first mistake,
since pydantic collects those of all elements at a thousand bytes each.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from forecaster.columns import LARGEST_VALUE
from service.bodies.cells import MOST_COMING, check_cells, check_columns, check_future, check_futures
from service.engine.items import HEAVIEST
from service.problems import invalid, shortened

__all__ = [
    "MOST_BRACKETS",
    "ForecastQuery",
    "ForecastsRequest",
    "Observation",
    "ObservationsRequest",
    "RequestBody",
    "Row",
    "SeriesHistory",
    "StreamForecastRequest",
    "StreamHistory",
    "check_brackets",
    "check_unique_id",
    "read_body",
]

_MOST_UNKNOWN = 20  # fields told of one by one


MOST_BRACKETS = 2**20  # ten thousand series of fifty covariates need as many


class RequestBody(BaseModel):
    """What every model of a body has.

    Attributes
    ----------
    most_brackets
        See `check_brackets`.
    """

    most_brackets: ClassVar[int] = MOST_BRACKETS


def check_brackets(body: bytes, most: int = MOST_BRACKETS) -> None:
    """Refuse a JSON body that opens more objects and lists than that, with what looks so in strings.

    Parsers make something of each before anything is looked at, and give nobody else a turn meanwhile.

    Raises
    ------
    Problem
        422.
    """
    if len(body) > most and (found := body.count(b"{") + body.count(b"[")) > most:
        raise invalid(f"the body opens {found:,} brackets, expected {most:,} at most; send it in parts")


_M = TypeVar("_M", bound=RequestBody)


def read_body(model: type[_M], body: bytes) -> _M:
    """A JSON body as `model`, straight from bytes.

    Raises
    ------
    ValidationError
        With a few mistakes, however many there are.
    Problem
        422 for very many unknown fields, or brackets.
    """
    check_brackets(body, model.most_brackets)
    return model.model_validate_json(body, context=[])


def _refuse_field(name: str, info: ValidationInfo) -> str:
    """Refuse an unknown field; pydantic's own way, ``forbid``, knows no end."""
    if info.context is not None:
        info.context.append(name)
        if len(info.context) > _MOST_UNKNOWN:
            first = shortened(repr(info.context[0]), 80)
            raise invalid(f"more than {_MOST_UNKNOWN} fields are unknown, the first of them {first}")
    raise PydanticCustomError("extra_forbidden", "this field is unknown")


class _Strict(RequestBody):
    model_config = ConfigDict(
        extra="allow", strict=True, frozen=True, json_schema_extra={"additionalProperties": False}
    )
    __pydantic_extra__: dict[Annotated[str, AfterValidator(_refuse_field)], Any] = Field(init=False)


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


UniqueId = Annotated[str, AfterValidator(check_unique_id)]
Ds = Annotated[str | int, Field(description="ISO 8601 timestamp, or an integer step for models of freq 1")]
Y = Annotated[
    Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST_VALUE, le=LARGEST_VALUE)] | None,
    Field(description="value in the user's units; null = missing"),
]
Horizon = Annotated[int | None, Field(ge=1, description="steps to forecast; default: the trained horizon")]
Level = Annotated[float, Field(gt=0, lt=1)]
Levels = Annotated[
    list[Level] | None, Field(min_length=1, max_length=99, fail_fast=True, description="default: 0.1 … 0.9")
]
_CELL: dict[str, Any] = {"anyOf": [{"type": kind} for kind in ("boolean", "integer", "number", "string", "null")]}
_COLUMN = {"type": "array", "items": _CELL}
_COMING = {
    "type": "object",
    "additionalProperties": {**_COLUMN, "minItems": 1, "maxItems": MOST_COMING},
}
_FUTURE = {"anyOf": [_COMING, {"type": "string", "const": "missing"}, {"type": "null"}]}
Cells = Annotated[
    Annotated[
        dict[str, Any],
        AfterValidator(check_cells),
        WithJsonSchema({"type": "object", "additionalProperties": _CELL}),
    ]
    | None,
    Field(description="covariate -> value; null = missing"),
]
Columns = Annotated[
    Annotated[
        dict[str, Any],
        AfterValidator(check_columns),
        WithJsonSchema({"type": "object", "additionalProperties": _COLUMN}),
    ]
    | None,
    Field(description="covariate -> one value per ds"),
]
FutureColumns = Annotated[
    Annotated[dict[str, Any], AfterValidator(check_future), WithJsonSchema(_COMING)] | Literal["missing"] | None,
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


class Row(RequestBody):
    """One row of a bulk body; further fields are covariates."""

    model_config = ConfigDict(
        extra="allow", strict=True, frozen=True, json_schema_extra={"additionalProperties": _CELL}
    )

    unique_id: UniqueId
    ds: Ds
    y: Y

    @model_validator(mode="after")
    def _cells(self) -> Self:
        check_cells(self.model_extra or {})
        return self


class StreamHistory(_Strict):
    """The history a stream starts from: ascending `ds`, gaps allowed."""

    ds: Annotated[list[Ds], Field(min_length=1, fail_fast=True)]
    y: Annotated[list[Y], Field(min_length=1, fail_fast=True)]
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

    series: Annotated[list[SeriesHistory] | None, Field(min_length=1, max_length=10_000, fail_fast=True)] = None
    streams: Annotated[list[UniqueId] | None, Field(min_length=1, max_length=10_000, fail_fast=True)] = None
    horizon: Horizon = None
    quantile_levels: Levels = None
    num_samples: NumSamples = None
    seed: Seed = None
    future: Annotated[
        Annotated[
            dict[str, Any],
            AfterValidator(check_futures),
            WithJsonSchema({"type": "object", "additionalProperties": _FUTURE}),
        ]
        | Literal["missing"]
        | None,
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
    """New observations of one stream, taken all or not at all; more than so many go as lines of a bulk body."""

    most_brackets: ClassVar[int] = 4 * HEAVIEST  # two of each observation, if it has covariates
    observations: Annotated[list[Observation], Field(min_length=1, max_length=HEAVIEST, fail_fast=True)]
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
