"""Deferred flights: forecasts that lean on known covariates are held against the truth when both have come.

While a log is folded, nobody has told what will be known of the coming steps; once they have come, the log has it. So a
flight carries what its forecast is decoded from, and gathers truth and known covariates of its scored steps. Where the
next flight begins, it is decoded with the covariates that came, by the correction it set out with, scored, and the
correction follows at once for all of its steps. Everything else is as in `forecaster.calibration`.

Axes: B row, T step, K parameter, H horizon step, S scored step of a flight, N flight, K' known covariate, X number
that a flight is decoded from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster import kernels
from forecaster.calibration import Calibration, Issue
from forecaster.heads import Head
from forecaster.kernels import FADING
from forecaster.quality import KEPT
from forecaster.scaling import Frame, inverse_breadth
from forecaster.state import StreamState

__all__ = ["Aboard", "DeferredCalibration"]


class Aboard(NamedTuple):
    """What forecasts at N moments are decoded from, once their covariates have come: numbers [N, X], and frames."""

    numbers: Tensor
    frame: Frame


class DeferredCalibration(Calibration):
    """Calibration of a model with known covariates; parameters as of `Calibration`."""

    def follow_deferred(
        self,
        before: StreamState,
        rows: Tensor | None,
        after: StreamState,
        y: Tensor,
        lengths: Tensor | None,
        known: Tensor | None,
        head: Head,
        board: Callable[[Tensor, Tensor], Aboard],
        decode: Callable[[Aboard, Tensor, Tensor, Tensor], Issue],
        trail: Tensor | None = None,
    ) -> StreamState:
        """As `Calibration.follow`, of flights that are scored where the next one begins.

        Parameters
        ----------
        before, rows, after, y, lengths, head, trail
            As there.
        known
            Known covariates at the steps of the chunk, float64, shape [B, T, K']; None: all missing.
        board
            What the forecasts at N rows and steps of the chunk will be decoded from.
        decode
            Forecasts from that, given the step numbers [N] of their moments, static numbers [N, V], and the known
            covariates of their steps, float64, shape [N, H, K'].
        """
        total = y.shape[1]
        ends = torch.full_like(after.age, total) if lengths is None else lengths
        start = after.last_step - ends  # step number before the chunk
        phase = start % self.period
        if total == 1 and trail is None and not self.eventful(after.last_step.numpy()):
            return after
        begin = -1 - phase  # place in the chunk of the step after which the flight began
        arrived = before.arrived.clone() if rows is None else before.arrived.index_select(0, rows)
        if known is None:
            known = y.new_full((*y.shape, self.known), torch.nan)
        came = torch.cat([y.unsqueeze(-1), known], -1)
        self._gather(arrived, came, begin, ends)
        correction = after.correction.clone()
        if trail is not None and self.adaptive:
            trail[:] = correction[..., 0].unsqueeze(1)
        due = torch.nonzero(begin + self.period < ends).squeeze(1)
        if not len(due):
            return after.amended(arrived=arrived)
        ruler, quality, aboard = (
            part.clone() if rows is None else part.index_select(0, rows)
            for part in (before.ruler, before.quality, before.aboard)
        )
        while len(due):
            landed = due[~torch.isnan(ruler[due, 0])]
            if len(landed):
                flight = Aboard(aboard[landed], Frame(*ruler[landed].unbind(-1)))
                moments = start[landed] + 1 + begin[landed]
                future = y.new_full((len(landed), self.horizon, self.known), torch.nan)
                future[:, self.scored] = arrived[landed, :, 1:]
                issue = decode(flight, moments, after.static[landed], future)
                self._score(head, issue, arrived[landed, :, 0], landed, correction, quality)
            begin[due] += self.period
            ruler[due], arrived[due] = torch.nan, torch.nan
            at = start[due] + 1 + begin[due]
            # As in `Calibration.follow`: not before a period was seen, nor where the weights have learnt what comes.
            begun = due[(after.age[due] - ends[due] + begin[due] + 1 >= self.period) & (at >= self.learnt)]
            if len(begun):
                aboard[begun], frame = board(begun, begin[begun])
                ruler[begun] = torch.stack(frame, -1)
                correction[begun] = self._bounded(correction[begun]) * (1 - FADING)
            if trail is not None and self.adaptive:
                since = (torch.arange(total) >= begin[due].unsqueeze(1)).unsqueeze(-1)
                trail[due] = torch.where(since, correction[due, :, 0].unsqueeze(1), trail[due])
            self._gather(arrived, came, begin, ends)
            due = torch.nonzero(begin + self.period < ends).squeeze(1)
        state = {"ruler": ruler, "quality": quality, "aboard": aboard, "arrived": arrived}
        return after.amended(correction=correction, **state)

    def _gather(self, arrived: Tensor, came: Tensor, begin: Tensor, ends: Tensor) -> None:
        """Note what the chunk holds of the scored steps of the flights that began at `begin`, in place."""
        places = begin.unsqueeze(1) + 1 + self.scored  # [B, S]
        row, slot = torch.nonzero((places >= 0) & (places < ends.unsqueeze(1)), as_tuple=True)
        arrived[row, slot] = came[row, places[row, slot]]

    def _score(
        self, head: Head, issue: Issue, truth: Tensor, rows: Tensor, correction: Tensor, quality: Tensor
    ) -> None:
        """Hold landed flights of distinct rows against their truth [N, S]: corrections and sums change in place."""
        count, slot = len(rows), self.slot.numpy()
        y = truth.new_full((count, self.period), torch.nan)
        y[:, self.scored] = truth
        steps = np.full(count, self.period)
        parameters = issue.parameters[..., self.scored]
        if self.adaptive:
            ruler = torch.stack([issue.frame.location, inverse_breadth(issue.frame, head.transform)], -1)
            logs = correction[rows]
            factors = self._bounded(logs).exp()[..., self.scored_group]
            flight = self._bounds(head, parameters, issue.frame, ruler)
            flight[:, 1:] /= factors
            parameters = head.stretch(parameters, factors)
            kernels.land(
                y.numpy(), steps, steps, flight.contiguous().numpy(), ruler.contiguous().numpy(), slot,
                self.gain.numpy(), self.wanted.numpy(), head.transform == "log", logs.flatten(1).numpy(),
                logs.new_empty(0, 0, 0).numpy(),
            )  # fmt: skip
            correction[rows] = logs
        issued = self._issued(head, parameters, issue)
        sums = quality[rows]
        kernels.tally(
            np.arange(count), np.full(count, -1), y.numpy(), steps, issued.numpy(),
            issue.frame.location.contiguous().numpy(), slot, np.array(self.levels), KEPT, sums.numpy(),
        )  # fmt: skip
        quality[rows] = sums
