"""Values of covariates in JSON and Arrow: what one may be, in one sentence, and where the first stands that is none.

They know neither model nor column. A mapping or a list of them is checked as a whole, up to the first mistake, in the
form in which pydantic would tell of it.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

__all__ = ["MOST_COMING", "check_cells", "check_columns", "check_future", "check_futures"]

MOST_COMING = 100_000
"""Values of a column at the coming steps."""

_MOST_CHARACTERS = 255


def check_cells(cells: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is no value of a covariate, the first one by name.

    Raises
    ------
    ValidationError
        With its place, what is expected and what was found.
    """
    for name, value in cells.items():
        if not _is_cell(value):
            raise _wrong_cell(value, name)
    return cells


def check_columns(columns: dict[str, Any], *at: str | int) -> dict[str, Any]:
    """Refuse what is no list of such values; `at` is where the columns stand. Errors as of `check_cells`."""
    for name, cells in columns.items():
        if not isinstance(cells, list):
            raise _mistake("expected a list", cells, *at, name)
        for place, value in enumerate(cells):
            if not _is_cell(value):
                raise _wrong_cell(value, *at, name, place)
    return columns


def check_future(columns: dict[str, Any], *at: str | int) -> dict[str, Any]:
    """As `check_columns`, of the coming steps: refuse also none and too many."""
    check_columns(columns, *at)
    for name, cells in columns.items():
        if not 1 <= len(cells) <= MOST_COMING:
            raise _mistake(f"expected 1 to {MOST_COMING:,} values, found {len(cells):,}", cells, *at, name)
    return columns


def check_futures(futures: dict[str, Any]) -> dict[str, Any]:
    """As `check_future`, of several streams by name."""
    for name, future in futures.items():
        if isinstance(future, dict):
            check_future(future, name)
        elif future not in (None, "missing"):
            raise _mistake('expected an object of lists, "missing" or null', future, name)
    return futures


def _is_cell(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return isfinite(value)
    if kind is str:
        return len(value) <= _MOST_CHARACTERS
    return value is None or kind is bool or (kind is int and -(2**63) <= value < 2**63)


def _wrong_cell(found: Any, *at: str | int) -> ValidationError:
    expected = f"a finite number, true, false, null, or text of at most {_MOST_CHARACTERS} characters"
    if isinstance(found, int):
        expected = "an integer of at most 64 bits"
    return _mistake(f"expected {expected}", found, *at)


def _mistake(message: str, found: Any, *at: str | int) -> ValidationError:
    """One mistake at its place, as pydantic would tell of it."""
    return ValidationError.from_exception_data(
        "a body",
        [{"type": PydanticCustomError("value_error", "{message}", {"message": message}), "loc": at, "input": found}],
    )
