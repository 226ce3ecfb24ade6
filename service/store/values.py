"""What the log holds at one step: y alone, or y with covariates.

Covariates are kept as they came, as JSON text with sorted names, so that any model can read them anew. Invariant: a
value without covariates is a plain float or None, so streams that have none cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import orjson

__all__ = [
    "UNKNOWN",
    "Covered",
    "Value",
    "count_missing",
    "covariates_of",
    "merged",
    "value_of",
    "written",
    "y_of",
    "ys_of",
]

UNKNOWN = "{}"
"""Covariates that are told to be unknown, all of them: no covariates, but those that were known are so no longer."""


class Covered(NamedTuple):
    """A value with covariates, if only told to be unknown; y None = missing."""

    y: float | None
    covariates: str


Value = float | None | Covered


def written(covariates: Mapping[str, Any] | None) -> str | None:
    """Covariates as the log keeps them: without missing ones; None if nothing is told of any."""
    if not covariates:
        return None
    known = {name: value for name, value in covariates.items() if value is not None}
    return orjson.dumps(known, option=orjson.OPT_SORT_KEYS).decode()


def value_of(y: float | None, covariates: str | None) -> Value:
    """Put together what the log holds in two columns."""
    return y if covariates is None else Covered(y, covariates)


def y_of(value: Value) -> float | None:
    """The y of a value."""
    return value.y if isinstance(value, Covered) else value


def ys_of(values: list[Value]) -> list[float | None]:
    """The y of each value."""
    # Of many values, nearly all are plain: one look at all their types is worth it.
    if Covered in map(type, values):
        return [y_of(value) for value in values]
    return cast(list[float | None], values)


def count_missing(values: list[Value]) -> int:
    """How many have no y."""
    return ys_of(values).count(None)


def covariates_of(value: Value) -> dict[str, Any] | None:
    """The covariates of a value by name."""
    if not isinstance(value, Covered):
        return None
    found: dict[str, Any] = orjson.loads(value.covariates)
    return found


def merged(present: Value, new: Value) -> Value:
    """What a new value for a known step comes to: one without covariates says nothing about those that are known.

    Covariates that mean the same are the same, however they are written.

    Examples
    --------
    >>> merged(Covered(1.0, '{"t":2}'), 3.0)
    Covered(y=3.0, covariates='{"t":2}')
    >>> merged(Covered(1.0, '{"t":2}'), Covered(3.0, '{"t":2.0}'))
    Covered(y=3.0, covariates='{"t":2}')
    >>> merged(1.0, Covered(1.0, UNKNOWN))
    1.0
    """
    if not isinstance(new, Covered):
        return Covered(new, present.covariates) if isinstance(present, Covered) else new
    if not isinstance(present, Covered):
        return new.y if new.covariates == UNKNOWN else new
    return Covered(new.y, present.covariates) if _mean_the_same(present.covariates, new.covariates) else new


def _mean_the_same(one: str, other: str) -> bool:
    """Whether two texts name the same values; true is not 1."""
    if one == other:
        return True
    mine, yours = (
        {name: (isinstance(value, bool), value) for name, value in orjson.loads(text).items()} for text in (one, other)
    )
    return mine == yours
