"""Shapes of what the verbs are given, refused before compiled loops trust them.

A loop that is told of more rows or steps than an array has would read, and keep, whatever lies behind it in memory.
Knows arrays and sizes; nothing of series or networks.

Axes: B row of a state, T step, D dynamic column.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from forecaster.errors import InputError

__all__ = ["check_chunk", "check_histories", "check_rows", "check_shape"]

Float = npt.NDArray[np.float64]


def check_shape(name: str, found: Tensor | Float, expected: tuple[int, ...], axes: str) -> None:
    """Raise InputError unless an array has the shape that is expected of it, whose axes a message names."""
    if found.shape != expected:
        raise InputError(f"{name} has shape {list(found.shape)}, expected {list(expected)}: {axes}")


def check_rows(y: Tensor, rows: int) -> None:
    """Raise InputError unless y has a row of steps for each of so many series."""
    if y.dim() != 2 or y.shape[0] != rows:
        raise InputError(f"y has shape {list(y.shape)}, expected [{rows}, steps]: a row for each series of the state")


def check_chunk(rows: int, y: Tensor, lengths: Tensor | None, covariates: Tensor | None, columns: int) -> None:
    """Raise InputError unless a chunk fits a state of so many rows and a model of so many dynamic columns.

    Parameters
    ----------
    rows
        B.
    y, lengths, covariates
        As for `Forecaster.fold`.
    columns
        D.
    """
    check_rows(y, rows)
    if covariates is not None:
        check_shape("covariates", covariates, (*y.shape, columns), "series, steps, dynamic columns of the model")
    if lengths is not None:
        check_shape("lengths", lengths, (rows,), "one for each series of the state")
        if rows and not (0 <= int(lengths.min()) and int(lengths.max()) <= y.shape[1]):
            raise InputError(f"lengths are {lengths.tolist()[:8]}, expected 0 to {y.shape[1]}, the steps that y has")


def check_histories(
    lengths: Sequence[int],
    first_steps: Sequence[int],
    tables: Sequence[Float] | None,
    static: Float | None,
    columns: int,
) -> None:
    """Raise InputError unless there is as much of everything as there are histories, of so many steps each.

    Parameters
    ----------
    lengths
        Steps of each history.
    first_steps, tables, static
        As for `Forecaster.warm_up`.
    columns
        D.
    """
    for name, given in (("first_steps", first_steps), ("tables", tables or None), ("static", static)):
        if given is not None and len(given) != len(lengths):
            raise InputError(f"{name} has {len(given)} entries for {len(lengths)} histories, expected one each")
    for row, (length, table) in enumerate(zip(lengths, tables or (), strict=False)):
        if len(table) < length or table.shape[1:] != (columns,):
            raise InputError(
                f"tables[{row}] has shape {list(table.shape)}, expected at least {length} steps, "
                f"and the {columns} dynamic columns of the model"
            )
