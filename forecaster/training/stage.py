"""One stage of a training: Lightning's Trainer over chunks, from the weights as they are to better ones, in place.

What is Lightning's stays here: callbacks, checkpoints, loggers that have nothing to say about carried lanes.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor

from forecaster.config import TrainingConfig
from forecaster.errors import ForecasterError, InputError
from forecaster.network import ForecastNetwork
from forecaster.training.clock import Clock
from forecaster.training.data import ChunkDataModule
from forecaster.training.memory import give_back
from forecaster.training.module import TrainingModule

__all__ = ["Weights", "quiet", "train_stage", "uses_gpu"]


class Weights(NamedTuple):
    """Which weights a stage has ended with.

    Attributes
    ----------
    updates
        Updates behind them.
    loss
        Theirs on the validation part; infinite if there is none.
    last
        That of the weights which the stage came to after all its updates.
    """

    updates: int
    loss: float
    last: float


def train_stage(
    network: ForecastNetwork,
    data: ChunkDataModule,
    updates: int,
    clock: Clock,
    *,
    peak: float = 1.0,
) -> Weights:
    """Train in place, up to the best weights on the validation part if there is one."""
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
        judged = math.inf if best is None or best.best_model_score is None else float(best.best_model_score)
        last = _last_loss(trainer, module, data) if judged < math.inf else math.inf
        if best is None or not best.best_model_path or last < judged:
            return Weights(int(trainer.global_step), last, last)
        weights, behind = _checkpoint(Path(best.best_model_path))
        module.load_state_dict(weights)
        return Weights(behind, judged, last)


def _check_finite(network: ForecastNetwork, trainer: pl.Trainer) -> None:
    """Refuse weights that forecast nothing, and those that could not be judged."""
    updates, judged = int(trainer.global_step), trainer.callback_metrics.get("val_loss")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        wrong = "weights are"
    elif judged is None or bool(torch.isfinite(judged)):
        return
    elif uses_gpu(network.config.training):
        raise ForecasterError(
            f"after {updates} updates on a GPU, the validation loss is not finite; training.accelerator=cpu trains"
            " without one"
        )
    else:
        wrong = "the validation loss is"
    rate = network.config.training.learning_rate
    raise ForecasterError(
        f"training diverged: after {updates} updates, {wrong} not finite; training.learning_rate is {rate:g},"
        " a lower one may help"
    )


def _last_loss(trainer: pl.Trainer, module: TrainingModule, data: ChunkDataModule) -> float:
    """Validation loss of the last weights, which those of a run that a time box cut within an epoch do not have yet."""
    if trainer.global_step % data.epoch_updates:
        trainer.validate(module, datamodule=data, verbose=False)
    return float(trainer.callback_metrics["val_loss"])


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
def quiet() -> Iterator[None]:
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


class _Rows(Callback):
    """Collects one row of metrics per epoch."""

    def __init__(self, module: TrainingModule, clock: Clock, averaging: _Averaging | None) -> None:
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
