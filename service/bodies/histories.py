"""From the lists of a request to one history: steps that ascend, at least one value, bounded length.

It knows the calendar through `Dates`, and no stream. Invariant: what passes can be folded as it is, gaps being
missing steps.
"""

from __future__ import annotations

from typing import NamedTuple

from forecaster import InputError
from service.bodies.covariates import read_columns
from service.bodies.schemas import StreamHistory
from service.models.served import ServedModel
from service.store import Value

__all__ = ["History", "read_history"]


class History(NamedTuple):
    """Observations of one series, in order of time."""

    steps: list[int]
    values: list[Value]

    @property
    def length(self) -> int:
        """Steps from the first to the last, gaps included."""
        return self.steps[-1] - self.steps[0] + 1


def read_history(model: ServedModel, unique_id: str, body: StreamHistory, max_steps: int) -> History:
    """Check and convert one history.

    Raises
    ------
    InputError
        A `ds` is unreadable or off the grid, repeats or goes back, the history is too long, has no value at all, or
        covariates that the model does not know or cannot read.
    """
    ds, y = body.ds, body.y
    try:
        steps = model.dates.steps(ds)
        values = read_columns(model, y, body.covariates)
    except InputError as error:
        raise InputError(f"series {unique_id!r}: {error}") from error
    for i in range(1, len(steps)):
        if steps[i] <= steps[i - 1]:
            what = "repeats" if steps[i] == steps[i - 1] else f"comes after {ds[i - 1]}"
            raise InputError(f"series {unique_id!r}: ds {ds[i]} {what} (row {i}); ds must ascend")
    history = History(steps, values)
    if history.length > max_steps:
        raise InputError(
            f"series {unique_id!r}: from {ds[0]} to {ds[-1]} are {history.length} steps, more than {max_steps}"
        )
    if all(value is None for value in y):
        raise InputError(f"series {unique_id!r}: every y is null, expected at least one value")
    return history
