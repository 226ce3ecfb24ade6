"""Dropout that several threads may draw for at once, each from a generator of its own.

PyTorch's draws from the one generator of the process, in whatever order threads come to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Dropout", "drawing"]

_own = threading.local()


class Dropout(nn.Dropout):
    """As `torch.nn.Dropout`, from the generator of `drawing` within it.

    Examples
    --------
    >>> with drawing(torch.Generator().manual_seed(0)):
    ...     first = Dropout(0.5)(torch.ones(1000))
    >>> with drawing(torch.Generator().manual_seed(0)):
    ...     second = Dropout(0.5)(torch.ones(1000))
    >>> torch.equal(first, second), sorted(set(first.tolist()))
    (True, [0.0, 2.0])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zeros with probability p, all else divided by 1 - p; in training only."""
        generator: torch.Generator | None = getattr(_own, "generator", None)
        if generator is None or not self.training or self.p in (0, 1):
            return super().forward(input)
        kept = torch.empty_like(input).bernoulli_(1 - self.p, generator=generator)
        return input * kept.div_(1 - self.p)


@contextmanager
def drawing(generator: torch.Generator) -> Iterator[None]:
    """Let `Dropout` draw from a generator, in the thread that this is called in and in no other."""
    before = getattr(_own, "generator", None)
    _own.generator = generator
    try:
        yield
    finally:
        _own.generator = before
