"""Forward and backward of a chunk as one CUDA graph.

At these sizes a GPU is done with an operation before the processor has asked for the next. A graph is asked for once:
everything between a chunk and its gradients, replayed for every chunk of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from forecaster.recurrent import RecurrentState
from forecaster.training.preparing import Prepared

__all__ = ["ChunkGraph"]

WARM_UPS = 3
"""Runs before the capture: libraries choose their kernels in the first ones."""


class ChunkGraph:
    """Scores chunk after chunk; the carried state and the gradients stay where the graph writes them.

    Parameters
    ----------
    network
        Whose gradients are wanted.
    score
        Loss of a chunk and the carry after it, from the carry before.
    batch
        The first chunk, on the device: the graph reads what comes later from the same place.
    """

    def __init__(
        self,
        network: nn.Module,
        score: Callable[[RecurrentState | None, Prepared], tuple[Tensor, RecurrentState]],
        batch: Prepared,
    ) -> None:
        self.batch = batch
        # Kept, because the graph writes there; zeros, because the first chunk must not know what the warm-ups lead to.
        self.carry = RecurrentState(*(torch.zeros_like(part) for part in score(None, batch)[1]))
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                network.zero_grad(set_to_none=True)
                score(self.carry, batch)[0].backward()  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().wait_stream(beside)
        network.zero_grad(set_to_none=True)  # so that the graph makes its own, and writes instead of adding
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # others pin memory meanwhile
            loss, after = score(self.carry, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            for mine, theirs in zip(self.carry, after, strict=True):
                mine.copy_(theirs)
        self.loss = loss.detach()
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def run(self, batch: Prepared) -> Tensor:
        """Loss of the next chunk, best from pinned memory; its gradients are in place, the carry is the one after it.

        The chunk must stay as it is until the next one has been asked for: until then, it may be on its way.
        """
        self.copied.synchronize()
        for mine, theirs in zip(self.batch.parts(), batch.parts(), strict=True):
            mine.copy_(theirs, non_blocking=True)
        self.copied.record()
        self.graph.replay()
        return self.loss
