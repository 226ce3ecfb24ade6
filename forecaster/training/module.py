"""The training shell: carry, detach, loss, log, optimiser.

One chunk is one batch and one update, under automatic optimisation, so that clipping, precision, accumulation and
callbacks are the Trainer's. The carried state is cut from the gradient graph between chunks; validation has a carry of
its own.

Axes: B lane, K step of a chunk, H horizon step, Q quantile level.
"""

from __future__ import annotations

import math
import time
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from forecaster.config import Config
from forecaster.network import ForecastNetwork
from forecaster.recurrent import RecurrentStack, RecurrentState
from forecaster.training.graph import ChunkGraph
from forecaster.training.preparing import Prepared
from forecaster.training.threads import ChunkThreads

__all__ = ["TrainingModule", "mixed_precision"]


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
        self.updates, self.max_seconds, self.peak = updates, max_seconds, peak
        self.carry: RecurrentState | None = None
        self.validation_carry: RecurrentState | None = None
        self.started: float | None = None
        self.graph: ChunkGraph | None = None
        self.threads: ChunkThreads | None = None
        self.tally, self.count, self.latest = torch.zeros(3), 0, torch.zeros(())

    # -- one chunk -------------------------------------------------------------------------------------------------

    def begin(self, carry: RecurrentState | None, batch: Prepared) -> RecurrentState:
        """Carry into this chunk: zeros in lanes that start afresh."""
        layout, lanes = self.network.layout, len(batch.features)
        if carry is None or carry.hidden.shape[1] != lanes:
            shapes = (layout.layers, lanes, layout.hidden), (layout.layers, lanes, layout.cell)
            return RecurrentState(*(batch.features.new_zeros(shape) for shape in shapes))
        return RecurrentState(*(part.masked_fill(batch.fresh.unsqueeze(1), 0.0) for part in carry))

    def score(self, carry: RecurrentState | None, batch: Prepared) -> tuple[Tensor, RecurrentState]:
        """Loss of a chunk over its origins and their known targets, and the detached state after it."""
        network, given = self.network, batch.features
        if network.covariates is not None and batch.moments is not None:
            told = network.covariates.encode(batch.moments, batch.static, batch.table)
            given = torch.cat([given, told], -1)
        output, after = network.recurrent(given.transpose(0, 1), self.begin(carry, batch), batch.lengths)
        # Detached here: this is where the gradient is cut between chunks.
        return self._loss(output, batch), RecurrentState(*(part.detach() for part in after))

    def _loss(self, output: Tensor, batch: Prepared) -> Tensor:
        network = self.network
        if not len(batch.kept):
            return (output * 0).sum()
        hidden = output.flatten(0, 1).index_select(0, batch.kept)
        own = batch.features.transpose(0, 1).flatten(0, 1).index_select(0, batch.kept)
        known = None
        if network.covariates is not None and batch.coming is not None:
            known = network.covariates.decode(batch.coming, batch.future)
        parameters = network.head(hidden, own, batch.anchors, known)
        members = parameters.unbind() if parameters.dim() > 3 else [parameters]  # an ensemble learns one by one
        losses = [network.head.loss(each, batch.target, batch.frame, batch.weight) for each in members]
        return torch.stack(losses).mean()

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Start the clock of a boxed run; whatever depends on the device is known now."""
        self.started = time.monotonic()
        self.tally = self.tally.to(self.device)
        mixed = mixed_precision(self.network.config, self.on_gpu)
        for stack in self.network.recurrent.stacks:
            cast(RecurrentStack, stack).mixed = mixed
        if not self.on_gpu and torch.get_num_threads() > 1:
            self.threads = ChunkThreads(self.network, self.score, torch.get_num_threads())

    def close(self) -> None:
        """End the threads, however the training ended: one that Ctrl-C met at its start is nobody else's to end."""
        if self.threads is not None:
            self.threads.close()
            self.threads = None

    def means(self) -> dict[str, float]:
        """Mean loss, gradient norm and share of clipped gradients of the updates since the last time.

        Kept here instead of being logged at every update, which would take a tenth of an update on a GPU.
        """
        names = "train_loss", "gradient_norm", "clipped_share"
        found = dict(zip(names, (self.tally / max(self.count, 1)).tolist(), strict=True)) if self.count else {}
        self.tally.zero_()
        self.count = 0
        return found

    def transfer_batch_to_device(self, batch: Prepared, device: torch.device, dataloader_idx: int) -> Prepared:
        """Training chunks for a graph are copied to where it reads them, and nowhere before."""
        if self.on_gpu and self.training:
            return batch
        moved: Prepared = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved

    def training_step(self, batch: Prepared, batch_idx: int) -> Tensor:
        """One chunk, one update."""
        del batch_idx
        if self.on_gpu:
            if self.graph is None:
                moved = super().transfer_batch_to_device(batch, self.device, 0)
                self.graph = ChunkGraph(self.network, self.score, moved)
            loss = self.graph.run(batch)
        elif self.threads is not None:
            loss, self.carry = self.threads.run(self.carry, batch)
        else:
            loss, self.carry = self.score(self.carry, batch)
        self.latest = loss.detach()
        return loss

    @property
    def has_gone_back(self) -> bool:
        """Whether a training step leaves the gradients in place, anew every time, by a graph or by threads."""
        return self.graph is not None or self.threads is not None

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Not after the gradients are in place."""
        if not self.has_gone_back:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_validation_model_zero_grad(self) -> None:
        """Likewise."""
        if not self.has_gone_back:
            super().on_validation_model_zero_grad()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Not where a training step has gone all the way back already."""
        if not self.has_gone_back:
            super().backward(loss, *args, **kwargs)

    def on_validation_epoch_start(self) -> None:
        """Start from nothing, every time."""
        self.validation_carry = None

    def validation_step(self, batch: Prepared, batch_idx: int) -> None:
        """Warm a group of lanes up, or score it."""
        del batch_idx
        if self.threads is not None:
            loss, self.validation_carry = self.threads.run(self.validation_carry, batch, learn=False)
        else:
            loss, self.validation_carry = self.score(self.validation_carry, batch)
        if len(batch.kept):
            self.log("val_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.features))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the Trainer says, and note the norm before and whether it was clipped."""
        del gradient_clip_algorithm
        parameters = [own for group in optimizer.param_groups for own in group["params"] if own.grad is not None]
        norm = torch.nn.utils.get_total_norm([cast(Tensor, own.grad) for own in parameters], foreach=True)
        largest = math.inf if gradient_clip_val is None else float(gradient_clip_val)
        self.tally += torch.stack([self.latest, norm, norm > largest])
        self.count += 1
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm, foreach=True)

    def configure_optimizers(self) -> Any:
        """AdamW; linear rise, then cosine decay to 2 % over the run."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.settings.learning_rate * self.peak,
            weight_decay=self.settings.weight_decay,
            fused=True,
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


def mixed_precision(config: Config, on_gpu: bool = False) -> bool:
    """Whether the recurrent layers train in bfloat16: as the configuration says, or where it pays.

    It pays where PyTorch hands a whole layer to oneDNN and the processor has instructions for it: 1.7 times faster. On
    a GPU it does not: there the kernels for single precision are the fastest at these sizes.
    """
    if config.training.precision != "auto":
        return config.training.precision == "bf16"
    if on_gpu:
        return False
    able = torch.cpu.get_capabilities()
    fused = config.network.cell == "lstm" and not config.network.proj_size
    return fused and bool(able.get("avx512_bf16") or able.get("amx_bf16"))
