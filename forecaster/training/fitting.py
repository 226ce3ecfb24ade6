"""Fitting: a panel and a configuration in, a forecaster and the history of its training out.

Sets the Trainer up so that it is quiet, leaves no files behind and can be repeated bit for bit on a CPU; the research
lives below it.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging

from forecaster.config import Config
from forecaster.errors import PanelError
from forecaster.forecaster import Forecaster
from forecaster.network import ForecastNetwork
from forecaster.panel import Panel
from forecaster.training.data import ChunkDataModule
from forecaster.training.module import TrainingModule

__all__ = ["Fitted", "fit", "resolve"]


class Fitted(NamedTuple):
    """What came out of a training run.

    Attributes
    ----------
    forecaster
        With the best weights on the validation part, or the last ones if there was none.
    history
        One row per epoch: `epoch`, `train_loss`, `val_loss` (absent without validation), `learning_rate`,
        `gradient_norm` (mean over updates, before clipping), `clipped_share` (of updates), `updates_per_second`,
        `seconds` since the start, `progress` (share of the run that is done).
    """

    forecaster: Forecaster
    history: list[dict[str, float]]


def fit(
    panel: Panel,
    config: Config,
    *,
    max_minutes: float | None = None,
    held_out: int | None = None,
    progress: bool = False,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Fitted:
    """Train a forecaster.

    Parameters
    ----------
    panel
        On the configuration's calendar.
    config
        ``transform="auto"`` is resolved by the panel.
    max_minutes
        Time box; the learning-rate schedule is fitted into it. Runs that do not reach it are deterministic.
    held_out
        Steps at the end of every series that training validates on and does not learn from, where that split is given;
        None: as `validation_horizons` says.
    progress
        Whether to show a progress bar.
    on_epoch
        Called with each row of the history as it is made.

    Raises
    ------
    PanelError
        The panel's calendar is not the configuration's, no series is long enough to learn from, or nothing remains
        beside `held_out`.
    """
    if panel.calendar != config.calendar:
        raise PanelError(f"the panel is on {panel.calendar}, but the configuration is for {config.calendar}")
    if panel.lengths.max(initial=0) < 3 or not any(np.isfinite(y).any() for y in panel.values):
        raise PanelError("no series has 3 steps or more with an observed value; there is nothing to learn from")
    if held_out is not None and not 0 <= held_out <= panel.lengths.max() - 3:
        raise PanelError(f"held_out is {held_out}, expected 0 to {panel.lengths.max() - 3}: 3 steps have to remain")
    config = resolve(config, panel)
    settings = config.training
    max_seconds = None if max_minutes is None else max_minutes * 60
    with _quiet(), torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(settings.seed)
        data = ChunkDataModule(panel, config, held_out)
        updates = data.epochs * data.epoch_updates
        module = TrainingModule(ForecastNetwork(config), updates=updates, max_seconds=max_seconds)
        rows = _Rows(module, on_epoch)
        callbacks: list[Callback] = [rows]
        if settings.averaging:
            callbacks.append(_Averaging(settings.averaging))
        best: ModelCheckpoint | None = None
        if data.validation:
            callbacks.append(EarlyStopping("val_loss", patience=settings.patience, check_finite=True))
            # Whole checkpoints: only those pass through the averaging, so that the weights kept are those judged.
            best = ModelCheckpoint(folder, monitor="val_loss")
            callbacks.append(best)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=updates,
            max_epochs=-1,
            max_time=None if max_seconds is None else {"seconds": max(1, int(max_seconds))},
            precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
            gradient_clip_val=settings.gradient_clip_val,
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            enable_checkpointing=best is not None,
            logger=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data)
        if best is not None and best.best_model_path and not _last_is_best(trainer, module, data, best):
            module.load_state_dict(_weights(Path(best.best_model_path)))
        return Fitted(Forecaster(module.network), rows.history)


def resolve(config: Config, panel: Panel) -> Config:
    """Choose what the configuration leaves to the panel: the transform."""
    if config.transform != "auto":
        return config
    lowest = min(float(np.nanmin(y)) for y in panel.values if np.isfinite(y).any())
    return replace(config, transform="log" if lowest >= 0 else "linear")


def _last_is_best(trainer: pl.Trainer, module: TrainingModule, data: ChunkDataModule, best: ModelCheckpoint) -> bool:
    """Whether a run that a time box cut within an epoch ended with better weights than any it had judged."""
    if trainer.global_step % data.epoch_updates == 0 or best.best_model_score is None:
        return False
    (scores,) = trainer.validate(module, datamodule=data, verbose=False)
    return scores["val_loss"] < float(best.best_model_score)


class _Averaging(WeightAveraging):
    """Exponential moving average of the weights after every update; short at first, so that it forgets the start."""

    def __init__(self, decay: float) -> None:
        def average(averaged: Any, current: Any, num_averaged: Any) -> None:
            count = int(num_averaged)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (count + 1) / (count + 10)))

        super().__init__(multi_avg_fn=average)


class _Rows(Callback):
    """Collects one row of metrics per epoch."""

    def __init__(self, module: TrainingModule, on_epoch: Callable[[dict[str, float]], None] | None) -> None:
        self.module = module
        self.history: list[dict[str, float]] = []
        self.on_epoch = on_epoch
        self.started = self.epoch_started = 0.0
        self.updates = 0

    def on_fit_start(self, trainer: pl.Trainer, *_: object) -> None:
        self.started = time.monotonic()
        self.updates = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        self.epoch_started, self.updates = time.monotonic(), trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: object) -> None:
        now = time.monotonic()
        row = {"epoch": float(trainer.current_epoch)}
        row |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        row["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["updates_per_second"] = (trainer.global_step - self.updates) / max(now - self.epoch_started, 1e-9)
        row["seconds"] = now - self.started
        row["progress"] = self.module.progress(trainer.global_step)
        self.history.append(row)
        if self.on_epoch is not None:
            self.on_epoch(row)


def _weights(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return dict(checkpoint["state_dict"])


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
