"""Calibration: intervals stretched until they cover what they say, following each stream.

What lies on one side of the median is moved away from it by a factor, by side and by group of horizon steps. Its
logarithm, the *correction*, is carried in each series' state and follows the stream by quantile tracking (Angelopoulos,
Candès and Tibshirani, 2023; for several steps ahead Szabadváry, 2024): one forecast at a time is *in flight*; each
observation is held against the 80 % bounds issued for it, and a side that is missed too often, or too rarely, moves.

Knows heads, frames and states; no network, training or files. Factors are positive, so nothing crosses, and a multiple
of a series has the same corrections.

Axes: B row, T step, K parameter, H horizon step, G group of horizon steps, S scored step of a flight, N flight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from forecaster import kernels
from forecaster.heads import Head
from forecaster.kernels import LARGEST_CORRECTION
from forecaster.scaling import Frame, inverse_breadth, measure
from forecaster.state import StreamState

__all__ = ["Calibration"]

GROUPS = 4
"""Groups of horizon steps with factors of their own: G, at most."""

LARGEST_SCORED = 12
"""Steps of a flight that are scored: S, at most. Errors of neighbouring steps are alike; more would tell little."""

SHORTEST_FLIGHT = 8
"""Steps from one flight to the next, at least, so that a horizon of one step does not cost a decode per step."""

OUTER = 0.1
"""This level and its mirror image are held against observations; it is the share of misses wanted on each side."""

SHARED, SIDED, OWN = 0.4, 0.04, 0.04
"""What a flight that missed everywhere adds to the logarithms: to all of them, to those of a side, to each group's."""


class Calibration(nn.Module):
    """How the corrections of one model's streams are applied, and how they follow.

    Parameters
    ----------
    head
        Of the model.
    adaptive
        Whether states carry a correction.
    """

    def __init__(self, head: Head, *, adaptive: bool) -> None:
        super().__init__()
        horizon = head.sizes.horizon
        groups, stride = min(GROUPS, horizon), math.ceil(horizon / LARGEST_SCORED)
        self.adaptive = adaptive and head.stretchable
        self.period = max(horizon + 1, SHORTEST_FLIGHT)
        lowest, highest = head.answered
        self.levels = max(OUTER, lowest), 0.5, min(1 - OUTER, highest)
        group = torch.arange(horizon) * groups // horizon
        scored = torch.arange(stride - 1, horizon, stride)
        slot = torch.full((self.period,), len(scored))  # of each step of a flight; the last: not scored
        slot[scored] = torch.arange(len(scored))
        gain = _gain(group[scored])
        self.groups = groups
        self.group = self._constant("group", group)
        self.scored = self._constant("scored", scored)
        self.scored_group = self._constant("scored_group", group[scored])
        self.slot = self._constant("slot", slot)
        self.gain = self._constant("gain", gain)
        self.wanted = self._constant("wanted", torch.tensor([self.levels[0], 1 - self.levels[2]]))

    def _constant(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor that moves with the module and is not stored."""
        self.register_buffer(name, tensor, persistent=False)
        return tensor

    @property
    def sizes(self) -> tuple[int, int]:
        """What a state carries: groups G and scored steps S; zeros unless adaptive."""
        return (self.groups, len(self.scored)) if self.adaptive else (0, 0)

    def stretch(self, head: Head, parameters: Tensor, correction: Tensor) -> Tensor:
        """Parameters of the first steps, at most H, with the corrections [B, 2, G] applied."""
        if not self.adaptive:
            return parameters
        return head.stretch(parameters, _bounded(correction).exp()[..., self.group[: parameters.shape[-1]]])

    def follow(
        self,
        after: StreamState,
        y: Tensor,
        lengths: Tensor | None,
        head: Head,
        decode: Callable[[Tensor, Tensor], tuple[Tensor, Frame]],
        trail: Tensor | None = None,
    ) -> StreamState:
        """Put correction and flight after a chunk into `after`; what is not adaptive has none.

        A flight begins where the step number is a multiple of the period, for all streams of a calendar together: one
        large decode now and then costs less than a small one at every step. The period exceeds the horizon by a step,
        so that flights do not begin at the same time of each day.

        Parameters
        ----------
        after
            States of B rows after the chunk, with correction and flight as they were before it.
        y
            The chunk, float64, shape [B, T].
        lengths
            Steps of each row, shape [B]; None for T.
        head
            Gives parameters their meaning.
        decode
            Raw parameters [N, K, H] and their frames at N rows and steps of the chunk.
        trail
            Written, if given: the correction of the first horizon step after each step, float32, shape [B, T, 2].
        """
        if not self.adaptive:
            return after
        total = y.shape[1]
        ends = torch.full_like(after.age, total) if lengths is None else lengths
        correction = after.correction.clone()
        logs, log = correction.flatten(1), head.transform == "log"
        values, steps = y.contiguous().numpy(), ends.numpy()
        slot, gain, wanted = self.slot.numpy(), self.gain.numpy(), self.wanted.numpy()
        state = after.last_step.numpy(), after.flight.contiguous().numpy(), after.ruler.contiguous().numpy()
        noted = (logs.new_empty(0, 0, 0) if trail is None else trail).numpy()
        if not kernels.land(values, steps, *state, slot, gain, wanted, log, logs.numpy(), noted):
            return replace(after, correction=correction)
        first = self.period - 1 - (after.last_step - ends).remainder(self.period)
        begins = first + self.period * torch.arange(-(-total // self.period)).unsqueeze(1)  # [flight, row]
        # Not until a whole period was seen: the first forecasts of a series are unlike the later ones.
        due = (begins < ends) & (after.age - ends + begins + 1 >= self.period)
        number, row = torch.nonzero(due, as_tuple=True)
        if not len(row):
            return replace(after, correction=correction)
        begin = begins[number, row]
        flight, ruler = self._issue(head, *decode(row, begin))
        flight = flight.contiguous()
        group = self.scored_group.numpy()
        new = flight.numpy(), ruler.numpy()
        kernels.fly(
            row.numpy(), begin.numpy(), values, steps, *new, group, slot, gain, wanted, log, logs.numpy(), noted
        )
        last = begin + self.period >= ends[row]
        return replace(
            after,
            correction=correction,
            flight=after.flight.index_copy(0, row[last], flight[last]),
            ruler=after.ruler.index_copy(0, row[last], ruler[last]),
        )

    def _issue(self, head: Head, parameters: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """What the decoder says, uncorrected, at the scored steps: `StreamState.flight` and `ruler`."""
        bounds = head.quantiles(parameters[..., self.scored], frame, self.levels)
        ruler = torch.stack([frame.location, inverse_breadth(frame, head.transform)], -1)
        lower, middle, upper = measure(bounds, ruler.unsqueeze(1), head.transform).unbind(1)
        return torch.stack([middle, 1 / (middle - lower), 1 / (upper - middle)], 1), ruler


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
