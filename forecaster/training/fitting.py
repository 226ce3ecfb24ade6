"""Fitting: a panel and a configuration in, a forecaster and the history of its training out.

Sets the Trainer up so that it is quiet, leaves no files behind and can be repeated bit for bit on a CPU; the research
lives below it.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor

from forecaster.config import Config, TrainingConfig
from forecaster.errors import ForecasterError, InputError, PanelError
from forecaster.forecaster import Forecaster
from forecaster.network import ForecastNetwork
from forecaster.panel import Panel
from forecaster.training.calibrating import calibrate, drift_of
from forecaster.training.choosing import choose, choose_covariates, race_length
from forecaster.training.data import ChunkDataModule, held_out_steps
from forecaster.training.memory import give_back, keep_freed
from forecaster.training.module import TrainingModule
from forecaster.training.pulling import kept_share
from forecaster.training.starting import start
from forecaster.training.windows import latest_blocks, windows_of

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
        `updates_per_second`, `seconds` since the start, `progress` (share of the run that is done).
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
    clock = _Clock(None if max_minutes is None else max_minutes * 60, on_epoch, on_weights)
    with _quiet(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
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
        network = trials.trained.get(config) or _fresh(config, data)  # who has won a race goes on
        done = _train(network, data, data.updates, clock.until(1 - share))
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
        pulled.head.pull(kept)
        calibrate(pulled, learnt, data.blocks, inside, settings.seed, kept)
        drift = drift_of(pulled, latest, len(moments))
        pulled.head.widen(drift)
        judged = Forecaster(pulled)
        if not share:
            return Fitted(judged, judged, clock.history, reasons)
        clock.keep_free(clock.elapsed - trained)  # the finished weights are calibrated, too
        whole = replace(config, training=replace(settings, validation_horizons=0, seed=(settings.seed + 1) % 2**32))
        new = 1 - learnt.drop_last(data.held_out).observed / panel.observed
        _train(
            network,
            ChunkDataModule(panel, whole, blocks=data.blocks),
            math.ceil(done * share / (1 - share)),
            clock.until(1),
            peak=min(max(FINISHING_RATE * new, LEAST_RATE), LARGEST_RATE),
        )
        network.head.pull(kept)
        inside = windows_of(network, panel, data.blocks, settings.seed)
        calibrate(network, panel, data.blocks, inside, settings.seed, kept)
        network.head.widen(drift)
        return Fitted(Forecaster(network), judged, clock.history, reasons)


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

    def __init__(self, panel: Panel, clock: _Clock) -> None:
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
        network = _fresh(config, data)
        seconds = None if self.clock.seconds is None else RACE_BOX * self.clock.seconds
        before, told = self.clock.elapsed, self.clock.on_weights
        clock = _Clock(seconds, None, (lambda after, weights: told(before + after, weights)) if told and seen else None)
        done = _train(network, data, min(updates, data.updates), clock.until(1))
        self.pace = clock.elapsed / (max(done, 1) * config.network.num_members)
        return network

    def _data(self, config: Config) -> ChunkDataModule:
        return ChunkDataModule(self.panel, replace(config, training=replace(config.training, validation_horizons=0)))


def _single(config: Config) -> Config:
    return replace(config, network=replace(config.network, members=1))


def _fresh(config: Config, data: ChunkDataModule) -> ForecastNetwork:
    """New weights, with the scales of covariates as the part to learn from has them."""
    network = ForecastNetwork(config)
    if network.covariates is not None:
        network.covariates.standardise(data.lanes.panel)
    if config.training.start == "regression":
        start(network, data.sources)
    return network


def _train(
    network: ForecastNetwork,
    data: ChunkDataModule,
    updates: int,
    clock: _Clock,
    *,
    peak: float = 1.0,
) -> int:
    """Train in place, up to the best weights on the validation part if there is one; the updates behind them."""
    settings = network.config.training
    network.train()  # whoever looked at it left it in evaluation mode, and the Trainer leaves every mode as it is
    network.calibration.learnt.fill_(int(data.lanes.panel.last_steps.max()))
    with tempfile.TemporaryDirectory() as folder:
        on_gpu = uses_gpu(settings)
        data = data.prepared_for(network, on_gpu)
        module = TrainingModule(network, updates=updates, max_seconds=clock.seconds_left, peak=peak)
        averaging = _Averaging(settings.averaging, "cuda" if on_gpu else "cpu") if settings.averaging else None
        callbacks: list[Callback] = [_Rows(module, clock, averaging), *([averaging] if averaging else [])]
        best: ModelCheckpoint | None = None
        if data.validation:
            callbacks.append(EarlyStopping("val_loss", patience=data.patience, check_finite=True))
            # Whole checkpoints: only those pass through the averaging, so that the weights kept are those judged.
            best = ModelCheckpoint(folder, monitor="val_loss")
            callbacks.append(best)
        trainer = pl.Trainer(
            accelerator="gpu" if on_gpu else "cpu",
            devices=1,
            max_steps=updates,
            max_epochs=-1,
            max_time=None if module.max_seconds is None else {"seconds": max(1, int(module.max_seconds))},
            # The loss is the mean over members, so the norm of all their gradients is that of one by sqrt(members).
            gradient_clip_val=settings.gradient_clip_val / math.sqrt(network.config.network.num_members),
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=best is not None,
            logger=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        try:
            trainer.fit(module, datamodule=data)
        finally:
            module.close()
            data.close()
            give_back()
        _check_finite(network, trainer)
        if best is None or not best.best_model_path or _last_is_best(trainer, module, data, best):
            return int(trainer.global_step)
        weights, behind = _checkpoint(Path(best.best_model_path))
        module.load_state_dict(weights)
        return behind


def _check_finite(network: ForecastNetwork, trainer: pl.Trainer) -> None:
    """Refuse weights that forecast nothing; on a GPU, where that was seen, also those that could not be judged."""
    updates, judged = int(trainer.global_step), trainer.callback_metrics.get("val_loss")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        rate = network.config.training.learning_rate
        raise ForecasterError(
            f"training diverged: after {updates} updates, weights are not finite; training.learning_rate is {rate:g},"
            " a lower one may help"
        )
    if uses_gpu(network.config.training) and judged is not None and not bool(torch.isfinite(judged)):
        raise ForecasterError(
            f"after {updates} updates on a GPU, the validation loss is not finite; training.accelerator=cpu trains"
            " without one"
        )


def _last_is_best(trainer: pl.Trainer, module: TrainingModule, data: ChunkDataModule, best: ModelCheckpoint) -> bool:
    """Whether a run that a time box cut within an epoch ended with better weights than any it had judged."""
    if trainer.global_step % data.epoch_updates == 0 or best.best_model_score is None:
        return False
    (scores,) = trainer.validate(module, datamodule=data, verbose=False)
    return scores["val_loss"] < float(best.best_model_score)


class _Averaging(WeightAveraging):
    """Exponential moving average of the weights after every update; short at first, so that it forgets the start.

    Lightning keeps, swaps and stores it. It is updated here, because PyTorch's averaged model looks all weights up and
    copies all buffers at every update, and none of these change.
    """

    def __init__(self, decay: float, device: str) -> None:
        super().__init__(device, use_buffers=False)
        self.decay = decay
        self.weights: tuple[list[Tensor], list[Tensor]] = [], []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        model: Any = self._average_model
        model.n_averaged = model.n_averaged.cpu()  # read at every update, which must not wait for a GPU
        averaged, current = ([own.detach() for own in each.parameters()] for each in (model.module, pl_module))
        self.weights = averaged, current

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        model: Any = self._average_model
        count = int(model.n_averaged)
        torch._foreach_lerp_(*self.weights, 1 - min(self.decay, (count + 1) / (count + 10)) if count else 1.0)
        model.n_averaged += 1
        self._latest_update_step = trainer.global_step

    @property
    def network(self) -> ForecastNetwork:
        """With the averaged weights, while training."""
        module: Any = self._average_model
        network: ForecastNetwork = module.module.network
        return network


class _Clock:
    """Time and history of a run of several stages."""

    def __init__(
        self,
        seconds: float | None,
        on_epoch: Callable[[dict[str, float]], None] | None,
        on_weights: Callable[[float, Forecaster], None] | None = None,
    ) -> None:
        self.started = time.monotonic()
        self.seconds, self.on_epoch, self.on_weights = seconds, on_epoch, on_weights
        self.history: list[dict[str, float]] = []
        self.share_before, self.share = 0.0, 0.0

    def until(self, share: float) -> _Clock:
        """Enter the stage that ends at this share of the run."""
        self.share_before, self.share = self.share, share
        return self

    def keep_free(self, seconds: float) -> None:
        """Let the last stage end so much earlier."""
        if self.seconds is not None:
            self.seconds -= seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Seconds of this stage, a second at least, whatever those before it took; None without a time box."""
        return None if self.seconds is None else max(self.seconds * self.share - self.elapsed, 1.0)

    def add(self, row: dict[str, float], network: ForecastNetwork) -> None:
        """Keep a row, with its place in the whole run, and tell; also of the weights."""
        row["epoch"], row["seconds"] = float(len(self.history)), self.elapsed
        row["progress"] = self.share_before + (self.share - self.share_before) * row["progress"]
        self.history.append(row)
        if self.on_epoch is not None:
            self.on_epoch(row)
        self.show(network, row["seconds"])

    def show(self, network: ForecastNetwork, seconds: float) -> None:
        """Tell of the weights as they are at this time, if they are asked for."""
        if self.on_weights is not None:
            self.on_weights(seconds, Forecaster(network))


class _Rows(Callback):
    """Collects one row of metrics per epoch."""

    def __init__(self, module: TrainingModule, clock: _Clock, averaging: _Averaging | None) -> None:
        self.module, self.clock, self.averaging = module, clock, averaging
        self.epoch_started = 0.0
        self.updates = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        self.epoch_started, self.updates = time.monotonic(), trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        row = self.module.means() | {name: float(value) for name, value in trainer.callback_metrics.items()}
        row["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        seconds = max(time.monotonic() - self.epoch_started, 1e-9)
        row["updates_per_second"] = (trainer.global_step - self.updates) / seconds
        row["progress"] = self.module.progress(trainer.global_step)
        self.clock.add(row, self.module.network if self.averaging is None else self.averaging.network)


def _checkpoint(path: Path) -> tuple[dict[str, Any], int]:
    """Weights of a checkpoint, and the updates behind them."""
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return dict(checkpoint["state_dict"]), int(checkpoint["global_step"])


def uses_gpu(settings: TrainingConfig) -> bool:
    """Whether to train on a GPU.

    Raises
    ------
    InputError
        The configuration asks for one, and there is none.
    """
    found = settings.accelerator != "cpu" and torch.cuda.is_available()
    if settings.accelerator == "gpu" and not found:
        raise InputError("training.accelerator is gpu, but PyTorch finds no CUDA device here; auto trains without one")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """No banners, no advice: what Lightning says about workers and intervals does not apply to carried lanes."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
