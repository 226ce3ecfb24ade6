"""Calibration: intervals stretched until they cover what they say, following each stream.

What lies on one side of the median is moved away from it by a factor, by side and by group of horizon steps. Its
logarithm, the *correction*, is carried in each series' state and follows the stream by quantile tracking (Angelopoulos,
Candès and Tibshirani, 2023; for several steps ahead Szabadváry, 2024): one forecast at a time is *in flight*; each
observation is held against the 80 % bounds issued for it, and a side that is missed too often, or too rarely, moves.
The forecast in flight is also the one whose quality is told: see `forecaster.quality`.

Knows heads, frames and states; no network, training or files. Factors are positive, so nothing crosses, and a multiple
of a series has the same corrections.

Axes: B row, T step, K parameter, H horizon step, G group of horizon steps, S scored step of a flight, N flight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from forecaster import kernels
from forecaster.heads import Head
from forecaster.heads.widening import step_groups
from forecaster.kernels import LARGEST_CORRECTION, Float64, Int64
from forecaster.quality import KEPT
from forecaster.scaling import Frame, inverse_breadth, measure
from forecaster.state import StreamState

__all__ = ["Calibration", "Issue"]

LARGEST_SCORED = 12
"""Steps of a flight that are scored: S, at most. Errors of neighbouring steps are alike; more would tell little."""

SHORTEST_FLIGHT = 8
"""Steps from one flight to the next, at least, so that a horizon of one step does not cost a decode per step."""

OUTER = 0.1
"""This level and its mirror image are held against observations; it is the share of misses wanted on each side."""

NOTHING_LEARNT = -(2**62)

SHARED, SIDED, OWN = 0.4, 0.04, 0.04
"""What a flight that missed everywhere adds to the logarithms: to all of them, to those of a side, to each group's."""


class Issue(NamedTuple):
    """Forecasts at N moments: raw parameters [N, K, H], their frames, and the seasonal naive forecasts [N, H]."""

    parameters: Tensor
    frame: Frame
    naive: Tensor


class Calibration(nn.Module):
    """How the corrections of one model's streams are applied, and how they follow.

    Parameters
    ----------
    head
        Of the model.
    adaptive
        Whether states carry a correction.
    known
        Columns known for the future: K' of `forecaster.deferred`.

    Attributes
    ----------
    learnt
        Step number, int64 scalar, up to which the weights have learnt from values; stored with them.
    """

    def __init__(self, head: Head, *, adaptive: bool, known: int = 0) -> None:
        super().__init__()
        self.known, self.horizon = known, head.sizes.horizon
        horizon = self.horizon
        stride = math.ceil(horizon / LARGEST_SCORED)
        self.adaptive = adaptive and head.stretchable
        self.period = max(horizon + 1, SHORTEST_FLIGHT)
        lowest, highest = head.answered
        self.levels = max(OUTER, lowest), 0.5, min(1 - OUTER, highest)
        group = step_groups(horizon)
        scored = torch.arange(stride - 1, horizon, stride)
        slot = torch.full((self.period,), len(scored))  # of each step of a flight; the last: not scored
        slot[scored] = torch.arange(len(scored))
        gain = _gain(group[scored])
        self.groups = int(group[-1]) + 1
        self.group = self._constant("group", group)
        self.scored = self._constant("scored", scored)
        self.scored_group = self._constant("scored_group", group[scored])
        self.slot = self._constant("slot", slot)
        self.gain = self._constant("gain", gain)
        self.wanted = self._constant("wanted", torch.tensor([self.levels[0], 1 - self.levels[2]]))
        eventful = slot < len(scored)
        eventful[-1] = True  # where the next flight begins
        self._eventful: npt.NDArray[np.bool_] = eventful.numpy()
        self.learnt: Tensor
        self.register_buffer("learnt", torch.tensor(NOTHING_LEARNT))

    def _constant(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor that moves with the module and is not stored."""
        self.register_buffer(name, tensor, persistent=False)
        return tensor

    @property
    def sizes(self) -> tuple[int, int]:
        """What a state carries: groups G, 0 unless adaptive, and scored steps S."""
        return self.groups if self.adaptive else 0, len(self.scored)

    def stretch(self, head: Head, parameters: Tensor, correction: Tensor) -> Tensor:
        """Parameters of the first steps, at most H, with the corrections [B, 2, G] applied."""
        if not self.adaptive:
            return parameters
        return head.stretch(
            parameters, self._bounded(correction).exp().index_select(-1, self.group[: parameters.shape[-1]])
        )

    def eventful(self, steps: Int64) -> bool:
        """Whether an observation of one of these steps is scored, or a flight begins after it."""
        return bool(np.logical_or.reduce(self._eventful[(steps - 1) % self.period]))

    def follow(
        self,
        before: StreamState,
        rows: Tensor | None,
        after: StreamState,
        y: Tensor,
        lengths: Tensor | None,
        head: Head,
        decode: Callable[[Tensor, Tensor], Issue],
        trail: Tensor | None = None,
    ) -> StreamState:
        """Put correction, flight and scores after a chunk into `after`.

        A flight begins where the step number is a multiple of the period, for all streams of a calendar together: one
        large decode now and then costs less than a small one at every step. The period exceeds the horizon by a step,
        so that flights do not begin at the same time of each day. None begins where the weights have learnt what comes:
        they hit that better than anything new, and intervals would become too narrow.

        Parameters
        ----------
        before, rows
            A state before the chunk and its B rows that fold it; None for all.
        after
            States of these rows after the chunk, with correction and flight as they were before it.
        y
            The chunk, float64, shape [B, T].
        lengths
            Steps of each row, shape [B]; None for T.
        head
            Gives parameters their meaning.
        decode
            Forecasts at N rows and steps of the chunk.
        trail
            Written, if given: the correction of the first horizon step after each step, float32, shape [B, T, 2].
        """
        total = y.shape[1]
        if total == 1 and trail is None and not self.eventful(after.last_step.numpy()):
            return after
        phase = (after.last_step.numpy() - (total if lengths is None else lengths.numpy())) % self.period
        ends = torch.full_like(after.age, total) if lengths is None else lengths
        values, steps, slot = y.contiguous().numpy(), ends.numpy(), self.slot.numpy()
        if rows is not None:
            after = after.amended(flight=before.flight.index_select(0, rows), ruler=before.ruler.index_select(0, rows))
        after = self._tally_old(before, rows, after, values, steps, phase)
        correction = after.correction.clone()
        logs, log = correction.flatten(1), head.transform == "log"
        noted = (logs.new_empty(0, 0, 0) if trail is None else trail).numpy()
        gain, wanted = self.gain.numpy(), self.wanted.numpy()
        if self.adaptive:
            latest, held, rulers = (
                field.contiguous().numpy() for field in (after.last_step, after.flight, after.ruler)
            )
            kernels.land(values, steps, latest, held, rulers, slot, gain, wanted, log, logs.numpy(), noted)
            after = after.amended(correction=correction)
        first = self.period - 1 - phase
        if not (first < steps).any():
            return after
        row, begin = self._due(after, ends, torch.from_numpy(first), total)
        if not len(row):
            return after
        last = begin + self.period >= ends[row]
        issue = decode(row, begin)
        ruler = torch.stack([issue.frame.location, inverse_breadth(issue.frame, head.transform)], -1)
        parameters = issue.parameters[..., self.scored]
        if self.adaptive:
            flight = self._bounds(head, parameters, issue.frame, ruler).contiguous()
            group, begun = self.scored_group.numpy(), torch.empty(len(row), logs.shape[1])
            kernels.fly(
                row.numpy(), begin.numpy(), values, steps, flight.numpy(), ruler.numpy(), group, slot, gain, wanted,
                log, logs.numpy(), noted, begun.numpy(),
            )  # fmt: skip
            factors = begun.view(len(row), 2, self.groups).exp()[..., self.scored_group]
            parameters = head.stretch(parameters, factors)
            after = after.amended(flight=after.flight.index_copy(0, row[last], flight[last]))
        issued = self._issued(head, parameters, issue)
        if total > 1:
            kernels.tally(
                row.numpy(), begin.numpy(), values, steps, issued.numpy(), ruler[:, 0].contiguous().numpy(), slot,
                np.array(self.levels), KEPT, after.quality.numpy(),
            )  # fmt: skip
        kept = before.issued.index_select(0, rows) if rows is not None else after.issued
        return after.amended(
            ruler=after.ruler.index_copy(0, row[last], ruler[last]),
            issued=kept.index_copy(0, row[last], issued[last]),
        )

    def _due(self, after: StreamState, ends: Tensor, first: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Rows, and places in the chunk, of the steps after which flights begin; those of one row in order of time."""
        flights = torch.arange(-(-total // self.period)).unsqueeze(1)
        begins = first + self.period * flights  # [flight, row]
        # Not until a whole period was seen: the first forecasts of a series are unlike the later ones.
        due = (begins < ends) & (after.age - ends + begins + 1 >= self.period)
        due &= after.last_step - ends + begins + 1 >= self.learnt
        number, row = torch.nonzero(due, as_tuple=True)
        return row, begins[number, row]

    def _tally_old(
        self,
        before: StreamState,
        rows: Tensor | None,
        after: StreamState,
        values: Float64,
        steps: Int64,
        phase: Int64,
    ) -> StreamState:
        """Score what a chunk holds of the truth of the forecasts in flight before it."""
        slot = self.slot.numpy()
        if values.shape[1] == 1 and not (slot[phase] < len(self.scored)).any():
            return after
        if rows is None:
            quality, issued = before.quality.clone(), before.issued
        else:
            quality, issued = before.quality.index_select(0, rows), before.issued.index_select(0, rows)
        kernels.tally(
            np.arange(len(phase)), -1 - phase, values, steps, issued.contiguous().numpy(),
            after.ruler[:, 0].contiguous().numpy(), slot, np.array(self.levels), KEPT, quality.numpy(),
        )  # fmt: skip
        return after.amended(quality=quality)

    def _bounds(self, head: Head, parameters: Tensor, frame: Frame, ruler: Tensor) -> Tensor:
        """What the decoder says, uncorrected, at the scored steps: `StreamState.flight`."""
        bounds = head.quantiles(parameters, frame, self.levels)
        lower, middle, upper = measure(bounds, ruler.unsqueeze(1), head.transform).unbind(1)
        return torch.stack([middle, 1 / (middle - lower), 1 / (upper - middle)], 1)

    def _issued(self, head: Head, parameters: Tensor, issue: Issue) -> Tensor:
        """What is scored, from parameters at the scored steps: `StreamState.issued`."""
        quantiles = head.quantiles(parameters, issue.frame, self.levels)
        both = torch.cat([quantiles, issue.naive[:, None, self.scored]], 1)
        return (both - issue.frame.location[:, None, None]).float()

    @staticmethod
    def _bounded(correction: Tensor) -> Tensor:
        return correction.clamp(-LARGEST_CORRECTION, LARGEST_CORRECTION)


def _gain(group: Tensor) -> Tensor:
    """What a miss at a scored step adds to which logarithm, shape [S + 1, 2, 2G]; nothing at the last."""
    scored, groups = len(group), int(group.max()) + 1
    gain = torch.zeros(scored + 1, 2, 2, groups)
    gain[:-1] += SHARED / (2 * scored)
    for side in (0, 1):
        gain[:-1, side, side] += SIDED / scored
        for step, own in enumerate(group.tolist()):
            gain[step, side, side, own] += OWN / int((group == own).sum())
    return gain.flatten(2)
