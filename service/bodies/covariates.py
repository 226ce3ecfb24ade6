"""Covariates of a request, checked: names that a model of the store knows, values that the one that serves can read.

It knows models' columns, no stream and no store's rows. Invariant: what passes is kept as it came, as JSON text, so
that the next model can read it anew; what no model of this store has known is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forecaster import InputError
from service.engine.coming import Coming
from service.models.dates import Dates
from service.models.served import ServedModel
from service.store.values import UNKNOWN, Value, value_of, written

__all__ = ["ADVICE", "read_columns", "read_future", "read_static", "read_values"]

Cells = Mapping[str, Any]
ADVICE = 'send them as future, or "missing" as future to forecast without'
"""What to do about known covariates that a request lacks."""


def read_values(
    model: ServedModel,
    values: Sequence[float | None],
    covariates: Sequence[Cells | None],
    *,
    takes_back: bool = False,
) -> list[Value]:
    """Values as the log keeps them, from y and covariates by name of each observation.

    Parameters
    ----------
    model
        Knows the names.
    values, covariates
        Of each observation.
    takes_back
        Whether covariates of which none is known tell that they are unknown, and not nothing, as the empty cells of a
        table do.

    Raises
    ------
    InputError
        A name is not one of the model's known or past covariates, nor of another model's, or a value is not a number
        where it has to be.
    """
    if not any(covariates):
        return list(values)
    found = {name for row in covariates if row for name in row}
    _check_names("covariates", found, model.forecaster.config.covariates.dynamic, model)
    model.forecaster.table(covariates)
    texts = map(written, covariates)
    return [value_of(y, text if takes_back or text != UNKNOWN else None) for y, text in zip(values, texts, strict=True)]


def read_columns(
    model: ServedModel, values: Sequence[float | None], columns: Mapping[str, Sequence[Any]] | None
) -> list[Value]:
    """The same from columns, one list per name.

    Raises
    ------
    InputError
        As `read_values`, or a list has another length.
    """
    if not columns:
        return list(values)
    for name, cells in columns.items():
        if len(cells) != len(values):
            raise InputError(f"covariate {name!r} has {len(cells)} values, expected {len(values)}, one per ds")
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return read_values(model, values, rows)


def read_static(model: ServedModel, unique_id: str, static: Cells | None) -> str | None:
    """Static covariates as the log keeps them.

    Raises
    ------
    InputError
        A name is not one of the model's static covariates, nor of another model's, or a value is not a number where it
        has to be.
    """
    if not static:
        return None
    declared = model.forecaster.config.covariates.static
    _check_names("static", set(static), tuple(name for name in declared if name != "unique_id"), model)
    model.forecaster.static([unique_id], [static])
    text = written(static)
    return None if text == UNKNOWN else text


def read_future(
    model: ServedModel,
    future: Mapping[str, Sequence[Any]] | str | None,
    horizon: int,
    dates: Dates,
    advice: str = ADVICE,
) -> Coming | None:
    """What a request knows of the coming steps; None for models without known covariates.

    Parameters
    ----------
    model, future, horizon, dates
        What is asked of whom, and the calendar of `future`.
    advice
        How its sender can tell what is lacking.

    Raises
    ------
    InputError
        The model needs it and it is not there, a name is lacking or known to no model, or the lists do not fit one
        another.
    """
    declared = model.forecaster.config.covariates
    if not declared.known:
        if future is not None and not _is_of_others(future, model):
            raise InputError("the request has a future, but this model knows no covariates in the future")
        return None
    names = ", ".join(declared.known)
    if future is None:
        raise InputError(f"this model needs {names} of the {horizon} steps to forecast: {advice}")
    if isinstance(future, str):
        return Coming(None)
    columns = {name: cells for name, cells in future.items() if name != "ds"}
    _check_names("future", set(columns), declared.known, model)
    lacking = [name for name in declared.known if name not in columns]
    if lacking:
        raise InputError(f"future lacks {', '.join(lacking)}; this model needs {names}")
    lengths = {name: len(cells) for name, cells in future.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"the lists of future have different lengths: {lengths}")
    (length,) = set(lengths.values())
    if "ds" not in future and length < horizon:
        raise InputError(f"future has {length} steps, but {horizon} are to be forecast")
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    table = model.forecaster.table(rows)[:, : len(declared.known)]
    if "ds" not in future:
        return Coming(table)
    steps = dates.steps(future["ds"])
    for i in range(1, length):
        if steps[i] != steps[i - 1] + 1:
            before, found = future["ds"][i - 1 : i + 1]
            raise InputError(f"future has ds {found} after {before} (row {i}), expected consecutive steps")
    return Coming(table, steps[0])


def _is_of_others(future: Mapping[str, Sequence[Any]] | str, model: ServedModel) -> bool:
    """Whether it is what another model of the store would want to know."""
    return bool(model.further) and (isinstance(future, str) or set(future) - {"ds"} <= model.further)


def _check_names(where: str, found: set[str], expected: Sequence[str], model: ServedModel) -> None:
    unknown = sorted(found - set(expected) - model.further)
    if unknown:
        raise InputError(f"{where}: {', '.join(unknown[:5])} unknown; this model has {', '.join(expected) or 'none'}")
