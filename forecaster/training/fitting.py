"""Fitting: a panel and a configuration in, a forecaster and the history of its training out.

The order of the stages: choose, train, keep what holds, calibrate, finish on all of the data, calibrate again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.config import Config
from forecaster.errors import PanelError
from forecaster.forecaster import Forecaster
from forecaster.holdout import Block
from forecaster.network import ForecastNetwork
from forecaster.panel import Panel
from forecaster.training.attempts import best_attempt, fresh
from forecaster.training.calibrating import calibrate, drift_of
from forecaster.training.choosing import choose, choose_covariates, race_length
from forecaster.training.clock import Clock
from forecaster.training.data import ChunkDataModule, held_out_steps
from forecaster.training.memory import keep_freed
from forecaster.training.pulling import kept_share
from forecaster.training.stage import quiet, train_stage, uses_gpu
from forecaster.training.windows import Windows, latest_blocks, windows_of

__all__ = ["Fitted", "fit"]

FINISHING_RATE, LEAST_RATE, LARGEST_RATE = 3.0, 0.05, 0.5
"""Peak of the learning rate while finishing, as a share of the run's, by the share of the values that are new; within
these bounds. What little is new must not unsettle weights that validation has chosen, without any now."""

RACE_BOX = 0.1
"""Share of the time box that each candidate of a race may take at most."""

PACED_UPDATES = 10
"""Updates that tell how long one takes, where no race has told."""


class Fitted(NamedTuple):
    """What came out of a training run.

    Attributes
    ----------
    forecaster
        To serve: finished on the whole panel.
    judged
        The same before it was finished, to be backtested: its weights have not learnt from the held-out steps. They
        are the best on the validation part, or the last ones if there was none.
    history
        One row per epoch: `epoch`, `train_loss`, `val_loss` (absent without validation and while finishing),
        `learning_rate`, `gradient_norm` (mean over updates, before clipping), `clipped_share` (of updates),
        `updates_per_second`, `seconds` since the start, `progress` (share of the run that is done). Attempts follow
        one another: see `forecaster.training.attempts`.
    reasons
        Why what the configuration left open was chosen as it was, one sentence each.
    """

    forecaster: Forecaster
    judged: Forecaster
    history: list[dict[str, float]]
    reasons: tuple[str, ...]


def fit(
    panel: Panel,
    config: Config,
    *,
    held_out: int = 0,
    validation: int | None = None,
    max_minutes: float | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    on_weights: Callable[[float, Forecaster], None] | None = None,
) -> Fitted:
    """Train a forecaster: once to be judged, then on to the end of the data.

    The weights are found on all but the held-out end of every series, whose validation part says when to stop. Then
    training goes on for a while on the whole panel (`TrainingConfig.finish`), because the latest steps, which judge a
    model best, also teach it most. Both are calibrated on blocks that neither has learnt from.

    From then on the process keeps more of the memory that it frees (`forecaster.training.memory`).

    Parameters
    ----------
    panel
        On the configuration's calendar.
    config
        What it leaves open is chosen by the data: see `forecaster.training.choosing`.
    held_out
        Steps at the end of each series kept from the judged weights, for a backtest of them.
    validation
        Steps before those that the judged weights are chosen by, where that split is given; None: as
        `validation_horizons` says.
    max_minutes
        Time box; the learning-rate schedule is fitted into it. Runs that do not reach it are deterministic on
        as many threads, but for the size of an ensemble where that is left open: it is chosen by the time that an
        update takes.
    on_epoch
        Called with each row of the history as it is made.
    on_weights
        Called with the seconds since the start and a forecaster of the weights at that time, as they would be served:
        after each epoch, also of the candidates of a race.

    Raises
    ------
    ForecasterError
        Training diverged.
    PanelError
        The panel's calendar or covariates are not the configuration's, no series is long enough to learn from, the head
        is for counts and a value is none, or nothing remains beside `held_out` and `validation`.
    """
    learnt = _learnable(panel, config, held_out, validation)
    on_gpu = uses_gpu(config.training)
    keep_freed()
    clock = Clock(None if max_minutes is None else max_minutes * 60, on_epoch, on_weights)
    with quiet(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        unseen = held_out_steps(learnt, config) if validation is None else validation
        config, told = choose_covariates(config, learnt, unseen)
        panel, learnt = panel.with_covariates(config.covariates), learnt.with_covariates(config.covariates)
        trials = _Trials(learnt.drop_last(unseen), clock)
        config, reasons = choose(config, learnt, unseen, trials)
        reasons = told + reasons
        if on_gpu:
            reasons += (f"trained on {torch.cuda.get_device_name()}: PyTorch finds it",)
        settings = config.training  # as chosen: finishing needs the same company
        torch.manual_seed(settings.seed)
        data = ChunkDataModule(learnt, config, validation)
        share = settings.finish if held_out or data.validation else 0.0
        network = trials.trained.get(config) or fresh(config, data)  # who has won a race goes on
        best, told = best_attempt(network, data, learnt, clock.until(1 - share), again=not settings.lanes)
        network, data, weights = best
        config, settings, reasons = network.config, network.config.training, reasons + told
        trained = clock.elapsed
        inside = windows_of(network, learnt, data.blocks, settings.seed)
        cutoffs, moments = latest_blocks(learnt, data.held_out, config.horizon)
        latest = windows_of(network, learnt, cutoffs, settings.seed)
        kept = 1.0
        if settings.pull == "auto":
            tried = [found for found in (inside, latest) if found is not None]
            kept = kept_share(network, tried)
            because = "the least loss on windows not learnt from" if tried else "there is no window to judge it by"
            reasons += (f"kept {kept:.0%} of what the decoder learnt: {because}",)
        pulled = deepcopy(network)
        drift = _make_ready(
            pulled, learnt, data.blocks, inside, settings.seed, kept, lambda new: drift_of(new, latest, len(moments))
        )
        judged = Forecaster(pulled)
        if not share:
            return Fitted(judged, judged, clock.history, reasons)
        clock.keep_free(clock.elapsed - trained)  # the finished weights are calibrated, too
        whole = replace(config, training=replace(settings, validation_horizons=0, seed=(settings.seed + 1) % 2**32))
        new = 1 - learnt.drop_last(data.held_out).observed / panel.observed
        train_stage(
            network,
            ChunkDataModule(panel, whole, blocks=data.blocks),
            math.ceil(weights.updates * share / (1 - share)),
            clock.until(1),
            peak=min(max(FINISHING_RATE * new, LEAST_RATE), LARGEST_RATE),
        )
        inside = windows_of(network, panel, data.blocks, settings.seed)
        _make_ready(network, panel, data.blocks, inside, settings.seed, kept, lambda _: drift)
        return Fitted(Forecaster(network), judged, clock.history, reasons)


def _make_ready(
    network: ForecastNetwork,
    panel: Panel,
    blocks: Sequence[Block],
    inside: Windows | None,
    seed: int,
    kept: float,
    drift_in: Callable[[ForecastNetwork], Tensor],
) -> Tensor:
    """Pull what was trained on a panel, calibrate it, widen it by its drift; return that."""
    network.head.pull(kept)
    calibrate(network, panel, blocks, inside, seed, kept)
    drift = drift_in(network)
    network.head.widen(drift)
    return drift


def _learnable(panel: Panel, config: Config, held_out: int, validation: int | None) -> Panel:
    """All but the held-out steps, if there is anything to learn from in them; otherwise the errors of `fit`."""
    if panel.calendar != config.calendar:
        raise PanelError(f"the panel is on {panel.calendar}, but the configuration is for {config.calendar}")
    if panel.lengths.max(initial=0) < 3 or not any(np.isfinite(y).any() for y in panel.values):
        raise PanelError("no series has 3 steps or more with an observed value; there is nothing to learn from")
    if config.counts:
        panel.require_counts(f"head {config.head!r}")
    learnt = panel.drop_last(held_out) if held_out else panel
    if not learnt.lengths.max(initial=0) or not any(np.isfinite(y).any() for y in learnt.values):
        raise PanelError(f"no series has an observed value before the {held_out} steps held out; nothing to learn from")
    if validation is not None and not 0 <= validation <= learnt.lengths.max() - 3:
        raise PanelError(
            f"validation is {validation}, expected 0 to {learnt.lengths.max() - 3}: 3 steps have to remain"
        )
    return learnt


class _Trials:
    """Trains candidates of a race, each for an equal share of the time that races may take of a time box.

    Attributes
    ----------
    trained
        The candidates' networks, by their configurations; single ones where the size of an ensemble is left open.
    pace
        Seconds per update of one network, once one was trained.
    """

    def __init__(self, panel: Panel, clock: Clock) -> None:
        self.panel, self.clock = panel, clock
        self.trained: dict[Config, ForecastNetwork] = {}
        self.pace = 0.0

    def train(self, config: Config) -> Forecaster:
        """Train one candidate from scratch."""
        if not config.network.members:
            config = _single(config)
        network = self.trained[config] = self._train(config, race_length(config), seen=True)
        return Forecaster(network)

    def room(self, config: Config) -> float:
        """By the pace of one network: several take as many times as long, but not on a GPU, most of which is idle."""
        if self.clock.seconds is None or uses_gpu(config.training):
            return math.inf
        if not self.pace:
            for updates in (1, PACED_UPDATES):  # the first one ever compiles
                self._train(_single(config), updates)
        whole = self._data(_single(config)).updates / (1 - config.training.finish)
        return (self.clock.seconds - self.clock.elapsed) / (whole * self.pace * config.network.num_members)

    def _train(self, config: Config, updates: int, *, seen: bool = False) -> ForecastNetwork:
        data = self._data(config)
        torch.manual_seed(config.training.seed)
        network = fresh(config, data)
        seconds = None if self.clock.seconds is None else RACE_BOX * self.clock.seconds
        before, told = self.clock.elapsed, self.clock.on_weights
        clock = Clock(seconds, None, (lambda after, weights: told(before + after, weights)) if told and seen else None)
        done = train_stage(network, data, min(updates, data.updates), clock.until(1)).updates
        self.pace = clock.elapsed / (max(done, 1) * config.network.num_members)
        return network

    def _data(self, config: Config) -> ChunkDataModule:
        return ChunkDataModule(self.panel, replace(config, training=replace(config.training, validation_horizons=0)))


def _single(config: Config) -> Config:
    return replace(config, network=replace(config.network, members=1))
