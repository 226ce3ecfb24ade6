"""The training shell: carry, detach, loss, log, optimiser.

One chunk is one batch and one update, under automatic optimisation, so that clipping, precision, accumulation and
callbacks are the Trainer's. The carried state is cut from the gradient graph between chunks; validation has a carry of
its own.

Axes: B lane, K step of a chunk, H horizon step, Q quantile level.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from forecaster.chunks import Chunk
from forecaster.config import Config
from forecaster.kernels import SMALLEST_SIZE
from forecaster.network import Encoded, ForecastNetwork
from forecaster.recurrent import RecurrentStack
from forecaster.scaling import settle
from forecaster.state import StreamState

__all__ = ["TrainingModule", "mixed_precision"]

LARGEST_DECODE = 2**19
"""Upper bound on origins x horizon x levels decoded in one update; beyond it, origins are thinned evenly."""

SMALLEST_DIFFERENCE = 1e-3
LARGEST_WEIGHT = 5.0


class TrainingModule(LightningModule):
    """Trains a `ForecastNetwork` on chunks.

    Parameters
    ----------
    network
        Trained in place.
    updates
        Length of the learning-rate schedule.
    max_seconds
        If the run is boxed in time, the schedule ends with the box.
    peak
        Of the learning-rate schedule, as a share of the configured one.
    """

    def __init__(self, network: ForecastNetwork, *, updates: int, max_seconds: float | None, peak: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.settings = network.config.training
        mixed = mixed_precision(network.config)
        for stack in network.recurrent.stacks:
            cast(RecurrentStack, stack).mixed = mixed
        self.updates, self.max_seconds, self.peak = updates, max_seconds, peak
        self.carry: StreamState | None = None
        self.validation_carry: StreamState | None = None
        self.started: float | None = None

    # -- one chunk -------------------------------------------------------------------------------------------------

    def begin(self, carry: StreamState | None, chunk: Chunk) -> StreamState:
        """Carry into this chunk: reset lanes start afresh, with a scaling state filled from their prefix."""
        layout = self.network.layout
        if carry is None or len(carry) != len(chunk.y):
            carry = layout.initial(torch.zeros(len(chunk.y), dtype=torch.int64))
        if not len(chunk.reset):
            return carry
        fresh = layout.initial(chunk.step - chunk.prefix.shape[1], chunk.static)
        if chunk.prefix.shape[1]:
            fresh = settle(fresh, chunk.prefix, lag=self.network.config.seasonality[0], kind=self.network.transform)
        known = chunk.prefix.shape[1] - torch.isnan(chunk.prefix).long().cumprod(1).sum(1)
        fresh = replace(fresh, age=chunk.start, silence=torch.minimum(fresh.silence, known))
        return carry.replace_rows(chunk.reset, fresh)

    def score(self, carry: StreamState | None, chunk: Chunk) -> tuple[Tensor, StreamState]:
        """Loss of a chunk, and the detached state after it."""
        now = chunk.covariates[:, : chunk.y.shape[1]]
        encoded, after = self.network.encode(self.begin(carry, chunk), chunk.y, chunk.lengths, now)
        # Detached here: this is where the gradient is cut between chunks.
        return self.loss(encoded, chunk), after.detach()

    def loss(self, encoded: Encoded, chunk: Chunk) -> Tensor:
        """Loss of the head over all scored origins of a chunk and their known targets.

        Errors in scaled coordinates are weighted by unit / sqrt(mean absolute seasonal difference relative to scale):
        half way between errors relative to the level of a series and errors relative to its seasonal naive error.
        """
        rows, steps = chunk.y.shape
        origins = self._origins(rows, steps)
        targets = chunk.future.unfold(1, self.network.config.horizon, 1)[:, origins]  # [B, origins, H]
        at = (slice(None), origins)
        chosen = encoded.at(at)
        scored = chunk.scored[:, origins]
        keep = scored & ~torch.isnan(targets).all(-1)
        if not bool(keep.any()):
            return (encoded.hidden * 0).sum()
        chosen, targets = chosen.at(keep), targets[keep]  # leading axis: kept origins
        ahead = chunk.covariates[:, 1:, : len(self.network.config.covariates.known)]
        ahead = ahead.unfold(1, self.network.config.horizon, 1)[:, origins][keep].transpose(-1, -2)  # [kept, H, K]
        parameters = self.network.decode(chosen, ahead)
        members = parameters.unbind() if parameters.dim() > 3 else [parameters]  # an ensemble learns one by one
        weight = _weight(chosen)
        return torch.stack([self.network.head.loss(own, targets, chosen.frame, weight) for own in members]).mean()

    def _origins(self, rows: int, steps: int) -> slice:
        config = self.network.config
        if self.training and self.settings.origins == "last":
            return slice(steps - 1, None)
        size = rows * steps * config.horizon * len(config.quantile_levels)
        stride = min(math.ceil(size / LARGEST_DECODE), steps)
        first = int(torch.randint(stride, ())) if self.training and stride > 1 else stride - 1
        return slice(first, None, stride)

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Start the clock of a boxed run."""
        self.started = time.monotonic()

    def training_step(self, batch: Chunk, batch_idx: int) -> Tensor:
        """One chunk, one update."""
        del batch_idx
        loss, self.carry = self.score(self.carry, batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start from nothing, every time."""
        self.validation_carry = None

    def validation_step(self, batch: Chunk, batch_idx: int) -> None:
        """Warm a group of lanes up, or score it."""
        del batch_idx
        loss, self.validation_carry = self.score(self.validation_carry, batch)
        if bool(batch.scored.any()):
            self.log("val_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.y))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the Trainer says, and log the norm before and whether it was clipped."""
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        self.log("gradient_norm", norm, on_step=False, on_epoch=True, batch_size=1)
        clipped = float(gradient_clip_val is not None and norm > gradient_clip_val)
        self.log("clipped_share", clipped, on_step=False, on_epoch=True, batch_size=1)
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """AdamW; linear rise, then cosine decay to 2 % over the run."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.settings.learning_rate * self.peak,
            weight_decay=self.settings.weight_decay,
            foreach=True,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self._factor), "interval": "step"},
        }

    def progress(self, update: int) -> float:
        """Share of the run that is done: of its updates or of its time box, whichever is more."""
        done = update / self.updates
        if self.max_seconds is not None and self.started is not None:
            done = max(done, (time.monotonic() - self.started) / max(self.max_seconds, 1e-9))  # a box may be spent
        return min(done, 1.0)

    def _factor(self, update: int) -> float:
        progress = self.progress(update)
        rise = self.settings.lr_warmup_share
        if progress < rise:
            return (progress + 1 / self.updates) / (rise + 1 / self.updates)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))


def mixed_precision(config: Config) -> bool:
    """Whether the recurrent layers train in bfloat16: as the configuration says, or where it pays.

    It pays where PyTorch hands a whole layer to oneDNN and the processor has instructions for it: 1.7 times faster.
    """
    if config.training.precision != "auto":
        return config.training.precision == "bf16"
    able = torch.cpu.get_capabilities()
    fused = config.network.cell == "lstm" and not config.network.proj_size
    return fused and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _weight(encoded: Encoded) -> Tensor:
    """Weight of each origin in the loss, float32, shape [...]."""
    unit = encoded.frame.unit.float()
    difference = encoded.difference
    difference = torch.where(difference > 0, difference, unit).clamp(min=SMALLEST_DIFFERENCE)
    weight = (unit / difference.sqrt()).clamp(max=LARGEST_WEIGHT)
    return torch.where(encoded.frame.scale > SMALLEST_SIZE, weight, 0.0)  # in units of nothing, nothing can be forecast
