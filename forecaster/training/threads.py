"""A chunk on several cores, forward and backward: each follows some of the lanes all the way.

One operation at these sizes has too little work to be shared out: PyTorch's own threads make an update on two cores a
fifth faster at most; within a thread of ours, one of few lanes takes three to five times as long with them. Lanes know
nothing of each other, so a thread that has some of them to itself waits for nobody until the gradients are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from forecaster.dropout import drawing
from forecaster.recurrent import RecurrentState
from forecaster.training.preparing import Prepared

__all__ = ["ChunkThreads"]

FEWEST_LANES = 8
"""Lanes that are worth a thread: products with fewer rows take hardly less time."""

Score = Callable[[RecurrentState | None, Prepared], tuple[Tensor, RecurrentState]]


class ChunkThreads:
    """Scores chunk after chunk; the gradients are in place afterwards.

    With the same seed and as many threads, the same gradients; with another number they differ in the last digits, and
    by what dropout draws.

    Parameters
    ----------
    network
        Whose gradients are wanted.
    score
        Mean loss of a chunk over its known targets and the carry after it, from the carry before.
    threads
        How many, at most.
    """

    def __init__(self, network: nn.Module, score: Score, threads: int) -> None:
        self.parameters = [own for own in network.parameters() if own.requires_grad]
        self.score, self.threads = score, threads
        self.generators = [torch.Generator().manual_seed(seed) for seed in torch.randint(2**62, (threads,)).tolist()]
        self.pool = ThreadPoolExecutor(threads, "lanes")

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()
        torch.set_num_threads(self.threads)  # what threads that PyTorch has not met yet begin with

    def run(
        self, carry: RecurrentState | None, batch: Prepared, *, learn: bool = True
    ) -> tuple[Tensor, RecurrentState]:
        """Loss of the chunk, and the carry after it; leaves the gradients in place if it is to `learn`."""
        lanes = len(batch.features)
        count = max(1, min(self.threads, lanes // FEWEST_LANES))
        bounds = [lanes * k // count for k in range(count + 1)]

        def follow(k: int) -> tuple[Tensor, int, RecurrentState, Sequence[Tensor | None]]:
            torch.set_num_threads(1)  # of this thread, and of those to come
            lanes = slice(bounds[k], bounds[k + 1])
            mine = batch.of_lanes(lanes)
            before = None if carry is None else RecurrentState(*(part[:, lanes] for part in carry))
            known = int((~torch.isnan(mine.target)).sum())
            with drawing(self.generators[k]), torch.set_grad_enabled(learn):
                mean, after = self.score(before, mine)
                loss = mean * known
            gradient = torch.autograd.grad(loss, self.parameters, allow_unused=True) if learn else ()
            return loss.detach(), known, after, gradient

        losses, known, states, gradients = zip(*self.pool.map(follow, range(count)), strict=True)
        targets = max(sum(known), 1)
        if learn:
            for parameter, *parts in zip(self.parameters, *gradients, strict=True):
                found = [part for part in parts if part is not None]
                parameter.grad = sum(found[1:], found[0]) / targets if found else None
        after = RecurrentState(*(torch.cat(part, 1) for part in zip(*states, strict=True)))
        return torch.stack(losses).sum() / targets, after
