"""Columns of covariates as numbers: real ones as they are, categories as places in a vocabulary.

Place 0 of a vocabulary stands for a missing value or one that it does not hold. Knows tables and plain values; nothing
of series, steps or networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecaster.errors import InputError

__all__ = [
    "LARGEST_VALUE",
    "decode",
    "encode",
    "encode_value",
    "holds_numbers",
    "is_category",
    "numbers_of",
    "shown",
    "text_of",
    "vocabulary",
]

LARGEST_VALUE = 1e30
"""Values of y and of real covariates beyond this in magnitude are refused: float32 arithmetic could overflow."""

NUMERIC = ("integer", "floating", "mixed-integer-float", "decimal", "empty")

Float = npt.NDArray[np.float64]


def text_of(value: Any) -> str | None:
    """Name of a categorical value, the same whether it was read as a number, a truth value or text; None if missing.

    Examples
    --------
    >>> text_of(True), text_of(2.0), text_of("rain"), text_of(float("nan"))
    ('true', '2', 'rain', None)
    """
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    text = str(value)
    return text.lower() if text in ("True", "TRUE", "False", "FALSE") else text or None


def shown(value: Any) -> str:
    """A value of a column as a message has it.

    Examples
    --------
    >>> shown(np.float64("inf")), shown(np.True_), shown("north")
    ('inf', 'True', "'north'")
    """
    return repr(value.item() if isinstance(value, np.generic) else value)


def is_category(column: pd.Series[Any]) -> bool:
    """Whether a column holds categories: anything but numbers."""
    return not holds_numbers(column)


def holds_numbers(column: pd.Series[Any]) -> bool:
    """Whether a column holds numbers alone, whatever its type says."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return False
    return pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.infer_dtype(column, skipna=True) in NUMERIC


def vocabulary(values: Iterable[Any]) -> tuple[str, ...]:
    """Distinct names among values, sorted."""
    return tuple(sorted({text for value in values if (text := text_of(value)) is not None}))


def numbers_of(column: pd.Series[Any]) -> Float:
    """A column as float64, NaN where it holds no real number."""
    kinds = pd.api.types
    if kinds.is_complex_dtype(column.dtype):
        return np.full(len(column), np.nan)
    if not kinds.is_numeric_dtype(column.dtype):  # pandas 3 loses rows of decimals of Arrow with missing ones
        column = pd.to_numeric(column, errors="coerce")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def encode(column: pd.Series[Any], values: tuple[str, ...] | None) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Numbers of a column, float64, and where it holds something else; both of shape [rows].

    Parameters
    ----------
    column
        Of any type.
    values
        Its vocabulary; None for a real column.
    """
    if values is None:
        numbers = numbers_of(column)
        missing = np.array(column.isna())
        return numbers, (np.isnan(numbers) & ~missing) | (np.abs(numbers) > LARGEST_VALUE)
    places = {text: float(place) for place, text in enumerate(values, start=1)}
    codes, distinct = pd.factorize(column.astype(object))
    table = np.array([*(places.get(text_of(value) or "", 0.0) for value in distinct), 0.0])
    return table[codes], np.zeros(len(codes), bool)


def encode_value(value: Any, values: tuple[str, ...] | None) -> float:
    """Number of one plain value, of JSON or of NumPy; None is missing, and so is NaN, as in a frame.

    Examples
    --------
    >>> encode_value(2, None), encode_value(float("nan"), None), encode_value("rain", ("dry", "rain"))
    (2.0, nan, 2.0)

    Raises
    ------
    InputError
        The column is real and the value is no number, or not one of sane size.
    """
    if values is not None:
        text = text_of(value)
        return float(values.index(text) + 1) if text in values else 0.0
    if value is None or value is pd.NA:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"{shown(value)} is not a number")
    if value > LARGEST_VALUE or value < -LARGEST_VALUE:
        raise InputError(f"{shown(value)} is not a finite number of at most {LARGEST_VALUE:g}")
    return float(value)


def decode(numbers: Float, values: tuple[str, ...] | None) -> Any:
    """Inverse of `encode`: numbers, or an array of texts with None for missing."""
    if values is None:
        return numbers
    names = np.array([None, *values], dtype=object)
    return names[np.nan_to_num(numbers).astype(np.int64)]
