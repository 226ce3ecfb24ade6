"""The model that serves: a forecaster with the name and version that replies carry.

It knows no registry; where the artifact came from is settled before. Invariant: `key` identifies the weights, so a
state stored under it is never folded on with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from forecaster import ArtifactError, Forecaster, InputError, StreamState
from service.errors import ModelError
from service.models.dates import Dates

__all__ = ["ServedModel", "Want", "load_model"]

_KEEP = 1024  # wants that are known to be answered


class Want(NamedTuple):
    """A forecast somebody asks for."""

    horizon: int
    quantile_levels: tuple[float, ...]


class ServedModel:
    """One version of one model, ready to serve.

    Parameters
    ----------
    name, version
        As replies show them.
    forecaster
        The loaded artifact.

    Attributes
    ----------
    further
        Names of covariates that other models of its store know or knew: taken with requests and kept in the log, as
        one of them may serve next or again, but not used.
    """

    def __init__(self, name: str, version: str, forecaster: Forecaster) -> None:
        self.further: frozenset[str] = frozenset()
        self.name = name
        self.version = version
        self.forecaster = forecaster
        self.key = forecaster.fingerprint()
        self.dates = Dates(forecaster.calendar)
        self._answered: set[Want] = set()

    def want(self, horizon: int | None, quantile_levels: Sequence[float] | None) -> Want:
        """What a request for a forecast comes to, defaults filled in.

        Raises
        ------
        InputError
            This model cannot answer it.
        """
        if horizon is None and quantile_levels is None:
            return self._usual
        forecaster = self.forecaster
        return Want(forecaster.check_horizon(horizon), forecaster.check_levels(quantile_levels))

    def check(self, want: Want) -> None:
        """Refuse what this model cannot answer, though the one before it could.

        Raises
        ------
        InputError
            It cannot.
        """
        if want not in self._answered:
            self.want(*want)
            if len(self._answered) >= _KEEP:
                self._answered.clear()
            self._answered.add(want)

    @cached_property
    def _usual(self) -> Want:
        return Want(self.forecaster.check_horizon(None), self.forecaster.check_levels(None))

    @cached_property
    def covariates(self) -> frozenset[str]:
        """Names of all covariates that this model knows from requests."""
        declared = self.forecaster.config.covariates
        return frozenset({*declared.dynamic, *declared.static} - {"unique_id"})

    @cached_property
    def label(self) -> dict[str, str]:
        """Name and version, as in every reply."""
        return {"name": self.name, "version": self.version}

    def smoke(self) -> None:
        """Fold a short history and forecast from it.

        Raises
        ------
        ModelError
            The forecast is not finite or the model fails.
        """
        try:
            state = self.forecaster.warm_up([np.sin(np.arange(32.0)) + 10.0, np.array([1.0, np.nan, 2.0])], [0, 5])
            known = len(self.forecaster.config.covariates.known)
            future = torch.zeros(2, self.forecaster.config.horizon, known, dtype=torch.float64)
            quantiles = self.forecaster.forecast(state, future=future)
            self._step(state)
        except Exception as error:
            raise ModelError(f"model {self.name} {self.version} fails on a trial forecast: {error}") from error
        if not np.isfinite(quantiles).all():
            raise ModelError(f"model {self.name} {self.version} gives a trial forecast that is not finite")

    def _step(self, state: StreamState) -> None:
        """One observation as the engine folds it, and several at once: whatever is compiled for them is from now on."""
        forecaster, rows = self.forecaster, torch.arange(len(state))
        y, covariates = torch.full((len(state),), 9.0, dtype=torch.float64), None
        if dynamic := len(forecaster.config.covariates.dynamic):
            covariates = torch.full((len(state), dynamic), torch.nan, dtype=torch.float64)
        forecaster.place(forecaster.ahead(state), y)
        slab = state.select(rows)
        slab.assign(rows, forecaster.change(slab, rows, y, covariates))
        several = None if covariates is None else covariates.unsqueeze(1).expand(-1, 40, -1)
        forecaster.fold_and_place(slab, y.unsqueeze(1).repeat(1, 40), None, several)


def load_model(folder: Path, name: str | None = None, version: str | None = None) -> ServedModel:
    """Load an artifact folder and try it.

    Parameters
    ----------
    folder
        The artifact.
    name, version
        As registered; default: the folder's name and a short hash of the artifact.

    Raises
    ------
    ModelError
        There is no artifact, or it is damaged, too new or does not work.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no artifact folder {str(folder)!r}")
    try:
        forecaster = Forecaster.load(folder)
    except (ArtifactError, InputError) as error:
        raise ModelError(str(error)) from error
    model = ServedModel(name or folder.resolve().name, version or forecaster.fingerprint()[:12], forecaster)
    model.smoke()
    return model
