"""One step of some rows of a large state: what serving does with every micro-batch of observations.

The numbers are those of `ForecastNetwork.observe`, to rounding. Of a step of few rows most of the time is the
interpreter's, so there is as little as can be between the compiled loops and the products. Knows no series, dates or
files; only models of LSTM layers are stepped so.

Axes: R row of the state, B row that steps, D covariate.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from forecaster import blas, kernels
from forecaster.features import feature_size
from forecaster.kernels import EVERY_STEP
from forecaster.network import Encoded, ForecastNetwork
from forecaster.scaling import Frame, blank, blank_change, memory
from forecaster.state import StreamState

__all__ = ["Stepper"]


class Stepper:
    """Steps rows of states of one network.

    Parameters
    ----------
    network
        Of LSTM layers, on the processor, in evaluation mode, with packed weights.
    """

    def __init__(self, network: ForecastNetwork) -> None:
        config = network.config
        self._network, self._layers, self._covariates = network, network.recurrent.packed(), network.covariates
        self._calibration = network.calibration
        self._log = network.transform == "log"
        self._lag, self._season, self._width = config.seasonality[0], config.seasonality[-1], config.ring_length
        self._features = feature_size(config.ring_length)

    @staticmethod
    def steps(network: ForecastNetwork) -> bool:
        """Whether a network can be stepped so here."""
        return network.config.network.cell == "lstm" and blas.available()

    def step(self, state: StreamState, rows: Tensor, y: Tensor, covariates: Tensor | None) -> StreamState:
        """The change that one value each makes in some rows, with the history that a forecast is decoded from.

        Parameters
        ----------
        state
            R rows; unchanged.
        rows
            Distinct, int64, shape [B].
        y
            Float64, shape [B]; NaN is missing.
        covariates
            Values of the dynamic columns, float64, shape [B, D]; NaN is missing, None: all are.
        """
        arrays, total = state.arrays, rows.shape[0]
        self._network.check(state)
        lines, frames, differences = parts = blank(total, 1, self._width)
        ring, statistics, clocks = blank_change(total)
        index, values = memory(rows), memory(y)[:, None]
        kernels.advance(
            index, arrays["ring"], arrays["statistics"], arrays["clocks"], values, EVERY_STEP,
            self._lag, self._season, self._log, ring, statistics, clocks, *parts,
        )  # fmt: skip
        table = lines[0]
        features, static, dynamic, last_steps = table[:, -self._features :], None, None, None
        given = features
        if self._covariates is not None:
            static, last_steps = state.static.index_select(0, rows), torch.from_numpy(clocks)[:, 2]
            dynamic = None if covariates is None else covariates.unsqueeze(1)
            moments = self._covariates.moments(last_steps.unsqueeze(1), static)
            known = self._covariates.encode(moments, static, dynamic)
            given = np.concatenate([features, known[:, 0].numpy()], -1)
        output, hidden, cell = self._layers.step(np.ascontiguousarray(given), index, arrays["hidden"], arrays["cell"])

        def moment() -> Encoded:
            location, scale, unit = torch.from_numpy(frames[:, :, 0])
            return Encoded(
                torch.from_numpy(output),
                torch.from_numpy(features),
                torch.from_numpy(table[:, : self._width]),
                Frame(location, scale, unit),
                torch.from_numpy(differences[:, 0]),
                last_steps,
                static,
            )

        change = StreamState.change(
            moment,
            hidden=hidden,
            cell=cell,
            ring=ring,
            statistics=statistics,
            clocks=clocks,
            correction=state.correction.index_select(0, rows),
            static=state.static.new_empty(total, 0) if static is None else static,
        )
        if not self._calibration.eventful(clocks[:, 2]):
            return change
        encoded = moment()

        def at(row: Tensor, _: Tensor) -> Encoded:
            return encoded.at(row)

        return self._network.calibrate(at, state, rows, change, y.unsqueeze(1), None, dynamic).remember(moment)
