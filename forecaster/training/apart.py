"""Chunks made by a process of their own, left in memory that both processes see.

A GPU has learnt from a chunk before one interpreter has both made the next and asked for the update. Nothing passes
between the processes but a word that the next place is filled, and one that it may be filled again: tensors that are
sent, as PyTorch's loaders do, are fresh memory for every chunk, which costs more than making it.

The process is a fork: it needs what this one has made so far. Should it end, or hang, as forks of a process with
threads may, the same chunks are made here, from the first.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import Any

import torch

from forecaster.training.preparing import Prepared

__all__ = ["MadeApart", "may_fork"]

PLACES = 6
ASKED = 3
"""Places filled ahead; one more is learnt from, one may be on its way to a device, and one is to spare."""

PATIENCE = 10.0
"""Seconds after which a process that has filled no place is given up."""

ALIGNED = 64


def may_fork() -> bool:
    """Whether a process can be begun that knows what this one does."""
    return "fork" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon


class MadeApart:
    """Epochs of chunks: each goes on where the one before ended. A chunk holds until the next but one is asked for.

    Parameters
    ----------
    chunks
        Without end; nothing has been asked of them yet.
    length
        Chunks of an epoch.
    like
        A chunk of the shapes that all of them have.
    """

    def __init__(self, chunks: Iterator[Prepared], length: int, like: Prepared) -> None:
        self.length = length
        self.memory, self.places = _places(like)
        self.pinned = torch.cuda.is_available()
        if self.pinned:  # a GPU reads it by itself, while the processor goes on
            _check(_cudart().cudaHostRegister(self.memory.data_ptr(), self.memory.nbytes, 0))
        self.chunks = self._chunks(chunks)

    def __iter__(self) -> Iterator[Prepared]:
        return islice(self.chunks, self.length)

    def __len__(self) -> int:
        return self.length

    def close(self) -> None:
        """End the process, and give the memory back."""
        self.chunks.close()
        if self.pinned:
            self.pinned = False
            torch.cuda.synchronize()
            _check(_cudart().cudaHostUnregister(self.memory.data_ptr()))

    def _chunks(self, chunks: Iterator[Prepared]) -> Generator[Prepared]:
        gc.collect()  # so that the process does not find what only this one may free
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=_fill, args=(chunks, self.places, ours, theirs), daemon=True
        )
        process.start()
        theirs.close()
        done = 0
        try:
            with suppress(OSError, EOFError):
                for _ in range(ASKED):
                    ours.send_bytes(b"?")
                for place in cycle(self.places):
                    if not ours.poll(PATIENCE):
                        break
                    ours.recv_bytes()
                    ours.send_bytes(b"?")
                    done += 1
                    yield place
        finally:
            ours.close()
            process.kill()
            process.join()
        yield from islice(chunks, done, None)


def _fill(chunks: Iterator[Prepared], places: Sequence[Prepared], theirs: Connection, ours: Connection) -> None:
    """Fill place after place, each when it is asked for; the work of the process."""
    gc.freeze()  # what was made before is not this process's to free
    theirs.close()  # so that the end of the other process is the end of this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(Exception):  # who makes the same chunk again will say what is wrong with it
        for chunk, place in zip(chunks, cycle(places), strict=False):
            ours.recv_bytes()
            for mine, own in zip(place.parts(), chunk.parts(), strict=True):
                mine.copy_(own)
            ours.send_bytes(b"!")


def _places(like: Prepared) -> tuple[torch.Tensor, list[Prepared]]:
    """Memory that forks share, and chunks that lie in it."""
    shapes = [torch.empty_like(part, device="meta") for part in like.parts()]
    sizes = [-(-shape.nbytes // ALIGNED) * ALIGNED for shape in shapes]
    memory = torch.frombuffer(mmap.mmap(-1, PLACES * sum(sizes)), dtype=torch.uint8)
    places = []
    for place in torch.split(memory, sum(sizes)):
        parts = [
            room[: shape.nbytes].view(shape.dtype).as_strided(shape.shape, shape.stride())
            for room, shape in zip(torch.split(place, sizes), shapes, strict=True)
        ]
        places.append(like.of_parts(parts))
    return memory, places


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _check(status: int) -> None:
    torch.cuda.check_error(status)
