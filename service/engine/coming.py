"""What a request knows of the coming steps: values of the known covariates, one row per step.

It knows a model's columns, and no stream: where the cutoff lies is found out when the forecast is made. Invariant: what
passes has a value or an admitted gap for every known column of every step that the forecast needs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forecaster import InputError
from service.models.dates import Dates

__all__ = ["Coming"]


class Coming(NamedTuple):
    """Known covariates of coming steps.

    Attributes
    ----------
    table
        Shape [steps, K]; NaN is missing. None: all missing, because the request says so.
    first_step
        Step number of the first row; None: the one after the cutoff.
    """

    table: npt.NDArray[np.float64] | None
    first_step: int | None = None

    def check(self, cutoff: int, horizon: int, dates: Dates) -> None:
        """Refuse a future that does not reach from the cutoff to the horizon.

        Raises
        ------
        InputError
            Naming the first step that is not known.
        """
        if self.table is None:
            return
        first = cutoff + 1 if self.first_step is None else self.first_step
        unknown = cutoff + 1 if first > cutoff + 1 else max(first + len(self.table), cutoff + 1)
        if unknown <= cutoff + horizon:
            raise InputError(
                f"future ends before ds {dates.text(unknown)}, step {unknown - cutoff} of the {horizon} to forecast"
                if first <= cutoff + 1
                else f"future begins at {dates.text(first)}, after ds {dates.text(unknown)}, the first to forecast"
            )

    def ahead(self, cutoff: int, horizon: int, columns: int) -> npt.NDArray[np.float64]:
        """Values of the steps after the cutoff, shape [horizon, columns]."""
        if self.table is None:
            return np.full((horizon, columns), np.nan)
        skip = 0 if self.first_step is None else cutoff + 1 - self.first_step
        return self.table[skip : skip + horizon]
