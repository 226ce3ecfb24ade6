"""The forecasting network: causal scaling, features, recurrent stack and head, joined.

The one network that training, backtest and service all run: `encode` folds a chunk of values into a `StreamState`,
`decode` turns what is known at any step into the parameters of what comes after it; the head says what they mean. Knows
no series, dates, files or Lightning; keeps no state of its own.

Axes: B row, T step, K parameter, H horizon step, P hidden size of all members, F feature, W ring length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from forecaster.calibration import Calibration, Issue
from forecaster.config import Config
from forecaster.covariates import CovariateInputs, static_size
from forecaster.deferred import Aboard, DeferredCalibration
from forecaster.errors import InputError
from forecaster.features import anchors, feature_size, features, naive, num_anchors, num_cycles
from forecaster.heads import HEADS, Head, HeadSizes
from forecaster.kernels import NUM_STATISTICS
from forecaster.recurrent import RecurrentEnsemble, RecurrentState
from forecaster.scaling import Frame, Transform, advance, describe, restore
from forecaster.state import StateLayout, StreamState

__all__ = ["Encoded", "ForecastNetwork"]


class Encoded(NamedTuple):
    """What the head needs of a step: the leading axes [...] are [B] or [B, T].

    Attributes
    ----------
    hidden
        Output of the recurrent stack, shape [..., P].
    features
        Shape [..., F].
    scaled
        The ring in the step's coordinates, shape [..., W].
    frame
        Coordinates, fields of shape [...].
    difference
        Mean absolute seasonal difference in units of scale, 0 until one was seen, shape [...].
    step, static
        Step number, int64, shape [...], and static numbers, shape [..., S]; None in models without covariates.
    """

    hidden: Tensor
    features: Tensor
    scaled: Tensor
    frame: Frame
    difference: Tensor
    step: Tensor | None = None
    static: Tensor | None = None

    def at(self, index: object) -> Encoded:
        """Steps at an index of the leading axes."""
        hidden, features, scaled, frame, difference, step, static = self
        part = Encoded(hidden[index], features[index], scaled[index], frame.at(index), difference[index])  # type: ignore[index]
        return part if step is None or static is None else part._replace(step=step[index], static=static[index])  # type: ignore[index]

    def latest(self) -> Encoded:
        """The last step of every row."""
        fields = self.hidden, self.features, self.scaled, self.difference, *self.frame
        hidden, inputs, scaled, difference, *frame = (field.select(1, -1) for field in fields)
        part = Encoded(hidden, inputs, scaled, Frame(*frame), difference)
        if self.step is None or self.static is None:
            return part
        return part._replace(step=self.step.select(1, -1), static=self.static.select(1, -1))

    @staticmethod
    def concat(parts: Sequence[Encoded]) -> Encoded:
        """Of several, one after the other along the first axis."""

        def join(fields: Sequence[Tensor | Frame | None]) -> Tensor | Frame | None:
            if isinstance(fields[0], Frame):
                return Frame(*(torch.cat(column) for column in zip(*cast(Sequence[Frame], fields), strict=True)))
            return None if fields[0] is None else torch.cat(cast(list[Tensor], list(fields)))

        return Encoded(*(join(fields) for fields in zip(*parts, strict=True)))  # type: ignore[arg-type]


class ForecastNetwork(nn.Module):
    """Encoder, state and head of one configuration.

    Parameters
    ----------
    config
        With a chosen transform (not ``auto``).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.transform: Transform = "log" if config.transform == "log" else "linear"
        size = feature_size(config.ring_length)
        covariates = CovariateInputs(config)
        self.covariates = covariates if covariates.encoder_size else None
        self.recurrent = RecurrentEnsemble(size + covariates.encoder_size, config.network)
        if self.covariates is not None:  # no effect before training, nor ever where a flag or a place never moves
            with torch.no_grad():
                for stack in self.recurrent.stacks:
                    stack.get_parameter("layers.0.weight_ih_l0")[:, size:] = 0
        sizes = HeadSizes(
            hidden_size=config.network.output_size,
            num_features=size,
            num_anchors=num_anchors(config.seasonality, config.ring_length),
            horizon=config.horizon,
            dropout=config.network.dropout,
            num_known=covariates.decoder_size,
            members=config.network.num_members,
        )
        cycles = num_cycles(config.seasonality, config.ring_length)
        coming = -(-config.horizon // config.seasonality[0])
        self.blend: Tensor
        self.register_buffer("blend", torch.full((coming, cycles), 1 / max(cycles, 1)))
        self.head: Head = HEADS[config.head](
            sizes,
            transform=self.transform,
            levels=config.quantile_levels,
            nonnegative=config.support == "nonnegative",
        )
        self.head.reach = config.ring_length
        known = len(config.covariates.known)
        kind = DeferredCalibration if known else Calibration
        self.calibration = kind(self.head, adaptive=config.calibration == "adaptive", known=known)
        groups, scored = self.calibration.sizes
        self._aboard = [
            config.network.output_size * config.network.num_members,
            size,
            sizes.num_anchors * scored,
            scored,
        ]
        self.layout = StateLayout(
            layers=config.network.num_layers,
            hidden=config.network.output_size * config.network.num_members,
            cell=self.recurrent.cell_size * config.network.num_members,
            ring=config.ring_length,
            statistics=NUM_STATISTICS,
            groups=groups,
            scored=scored,
            aboard=sum(self._aboard) if known else 0,
            arrived=1 + known if known else 0,
            static=static_size(config.covariates),
        )

    def pack(self) -> None:
        """Keep what every step and every forecast needs of the weights, which change no more."""
        self.recurrent.pack()
        self.head.pack()

    def encode(
        self,
        state: StreamState,
        y: Tensor,
        lengths: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> tuple[Encoded, StreamState]:
        """Fold a chunk.

        Parameters
        ----------
        state
            Before the chunk.
        y
            Float64, shape [B, T]; NaN is missing.
        lengths
            Steps of each row, shape [B], each 1 to T; None: all rows have T.
        covariates
            Values of the dynamic columns at each step, float64, shape [B, T, D]; NaN is missing, None: all are.

        Returns
        -------
        encoded, state
            One entry per step, leading axes [B, T], meaningless beyond a row's length; the state after each row's last
            step.
        """
        self.check(state)
        history, after = advance(state, y, lengths, seasonality=self.config.seasonality, kind=self.transform)
        given = inputs = features(history)
        steps = static = None
        if self.covariates is not None:
            steps = state.last_step.unsqueeze(1) + torch.arange(1, y.shape[1] + 1)
            static = after.static.unsqueeze(1).expand(-1, y.shape[1], -1)
            moments = self.covariates.moments(steps, after.static)
            given = torch.cat([inputs, self.covariates.encode(moments, after.static, covariates)], -1)
        before = _exchanged(RecurrentState(state.hidden, state.cell))
        output, recurrent = self.recurrent(given.transpose(0, 1), before, lengths)
        hidden, cell = _exchanged(recurrent)
        after = after.amended(hidden=hidden, cell=cell)
        output = output.transpose(0, 1)
        return Encoded(output, inputs, history.scaled, history.frame, history.difference, steps, static), after

    def _output(self, hidden: Tensor) -> Tensor:
        """What the recurrent stack puts out, shape [B, P], where its state is `hidden` [B, L, P]."""
        return hidden.sum(1) if self.config.network.residual else hidden[:, -1]

    def observe(
        self,
        state: StreamState,
        y: Tensor,
        lengths: Tensor | None = None,
        covariates: Tensor | None = None,
        trail: Tensor | None = None,
    ) -> tuple[Encoded, StreamState]:
        """As `encode`, and the calibration follows: what serving folds with.

        The correction of the first horizon step after every step of the chunk is written to `trail`, float32, shape
        [B, T, 2], if that is given and the model is adaptive.
        """
        encoded, after = self.encode(state, y, lengths, covariates)

        def at(row: Tensor, step: Tensor) -> Encoded:
            return encoded.at((row, step))

        return encoded, self.calibrate(at, state, None, after, y, lengths, covariates, trail)

    def calibrate(
        self,
        at: Callable[[Tensor, Tensor], Encoded],
        before: StreamState,
        rows: Tensor | None,
        after: StreamState,
        y: Tensor,
        lengths: Tensor | None = None,
        covariates: Tensor | None = None,
        trail: Tensor | None = None,
    ) -> StreamState:
        """Let the calibration follow a chunk that was encoded: see `Calibration.follow`.

        `at` gives what was encoded at N rows and steps of it, leading axis [N].
        """
        if isinstance(self.calibration, DeferredCalibration):
            known = None if covariates is None else covariates[..., : self.calibration.known]
            return self.calibration.follow_deferred(
                before, rows, after, y, lengths, known, self.head, partial(self._board, at), self._decode_aboard, trail
            )
        return self.calibration.follow(before, rows, after, y, lengths, self.head, partial(self._issue, at), trail)

    def _issue(self, at: Callable[[Tensor, Tensor], Encoded], row: Tensor, step: Tensor) -> Issue:
        """The forecasts of flights that begin."""
        chosen = at(row, step)
        repeated = naive(chosen.scaled, self.config.seasonality, self.config.horizon)
        return Issue(self.decode(chosen), chosen.frame, restore(repeated, chosen.frame, self.transform))

    def _board(self, at: Callable[[Tensor, Tensor], Encoded], row: Tensor, step: Tensor) -> Aboard:
        """What a forecast with known covariates is decoded from once they have come, at its scored steps."""
        chosen = at(row, step)
        scored, horizon = self.calibration.scored, self.config.horizon
        choices = self.choices(chosen.scaled, horizon)[..., scored]
        dull = naive(chosen.scaled, self.config.seasonality, horizon)[..., scored]
        return Aboard(torch.cat([chosen.hidden, chosen.features, choices.flatten(1), dull], 1), chosen.frame)

    def _decode_aboard(self, aboard: Aboard, moments: Tensor, static: Tensor, future: Tensor) -> Issue:
        """Forecasts from what `_board` kept; steps that are not scored mean nothing."""
        hidden, inputs, flat, dull = torch.split(aboard.numbers, self._aboard, 1)
        scored, horizon = self.calibration.scored, self.config.horizon
        choices = flat.new_zeros(len(flat), flat.shape[1] // len(scored), horizon)
        choices[..., scored] = flat.reshape(len(flat), -1, len(scored))
        repeated = aboard.frame.location.new_zeros(len(flat), horizon)
        repeated[:, scored] = restore(dull, aboard.frame, self.transform)
        known = None
        if self.covariates is not None:
            known = self.covariates.decode(self.covariates.coming(moments, static, horizon), future)
        return Issue(self.head(hidden, inputs, choices, known), aboard.frame, repeated)

    def encoded(self, state: StreamState) -> Encoded:
        """What the head needs of a state's latest step, leading axes [B]: the last entry of the `encode` behind it.

        Of a change, too, which remembers how to tell it.
        """
        if callable(state.moment):
            told: Encoded = state.moment()
            return told
        self.check(state)
        history = describe(state, kind=self.transform)
        hidden = self._output(state.hidden).unsqueeze(1)
        encoded = Encoded(hidden, features(history), history.scaled, history.frame, history.difference)
        encoded = encoded.latest()
        return encoded if self.covariates is None else encoded._replace(step=state.last_step, static=state.static)

    def check(self, state: StreamState) -> None:
        """Raise ValueError where a change was given in place of a state, or a state of a model of another layout."""
        expected = self.layout.ring, self.layout.layers, self.layout.hidden, self.layout.cell
        found = state.ring.shape[1], *state.hidden.shape[1:], state.cell.shape[2]
        if found == expected:
            return
        if found[0] == 1:
            raise ValueError("a change is not a state: assign it to the rows it belongs to first")
        raise InputError(
            "the state is of another model: ring, layers, hidden and cell sizes are "
            f"{', '.join(map(str, found))}, expected {', '.join(map(str, expected))}"
        )

    def _check_encoded(self, encoded: Encoded) -> None:
        """Raise InputError where it is another model's: states remember it, and compiled loops would trust it."""
        expected = *self._aboard[:2], self.config.ring_length
        found = encoded.hidden.shape[-1], encoded.features.shape[-1], encoded.scaled.shape[-1]
        if found != expected:
            raise InputError(
                "the state is of another model: sizes of its output, features and ring are "
                f"{', '.join(map(str, found))}, expected {', '.join(map(str, expected))}"
            )

    def decode(self, encoded: Encoded, future: Tensor | None = None, steps: int | None = None) -> Tensor:
        """Parameters of the head for the horizon after each step, or its first `steps`, shape [..., K, H].

        In training, of every member: shape [M, ..., K, H], if there are several.

        `future` holds the values of the known columns at these steps, float64, shape [..., H, columns]; NaN is missing,
        None: all are.
        """
        self._check_encoded(encoded)
        steps = steps or self.config.horizon
        known = None
        if self.covariates is not None and encoded.step is not None and encoded.static is not None:
            known = self.covariates.decode(self.covariates.coming(encoded.step, encoded.static, steps), future)
        choices = self.choices(encoded.scaled, steps)
        parameters: Tensor = self.head(encoded.hidden, encoded.features, choices, known)
        return parameters

    def choices(self, scaled: Tensor, steps: int, blend: Tensor | None = None) -> Tensor:
        """Anchors that the head chooses among, shape [..., A, H], of scaled rings [..., W]; zeros if it has none.

        `blend` stands for that of the network where this one lies on another device.
        """
        found = anchors(scaled, self.config.seasonality, steps, self.blend if blend is None else blend)
        return found if self.config.network.anchored else torch.zeros_like(found)

    def calibrated(
        self, encoded: Encoded, correction: Tensor, future: Tensor | None = None, steps: int | None = None
    ) -> Tensor:
        """As `decode`, for states with these corrections; leading axis [B]."""
        return self.calibration.stretch(self.head, self.decode(encoded, future, steps), correction)


def _exchanged(state: RecurrentState) -> RecurrentState:
    """Layers first where rows were, and the other way round."""
    return RecurrentState(*(part.transpose(0, 1).contiguous() for part in state))
