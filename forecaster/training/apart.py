"""Chunks made by processes of their own, left in memory that all of them see.

A GPU has learnt from a chunk before one interpreter has both made the next and asked for the update, and from a large
one before a single core has made it. So each of several processes makes its share of the lanes. Nothing passes between
them and this one but a word that the next place is filled, and one that it may be filled again: tensors that are sent,
as PyTorch's loaders do, are fresh memory for every chunk, which costs more than making it.

The processes are forks: they need what this one has made so far. Should one end, or hang, as forks of a process with
threads may, the same chunks are made here, from the first.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from itertools import cycle, islice, pairwise
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from forecaster.training.preparing import Prepared

__all__ = ["MadeApart", "may_fork"]

PLACES = 6
ASKED = 3
"""Places filled ahead; one more is learnt from, one may be on its way to a device, and one is to spare."""

PATIENCE = 10.0
"""Seconds after which a process that has filled no place is given up."""

ALIGNED = 64

Make = Callable[[range], Iterator[Prepared]]


class _Worker(NamedTuple):
    """A process that makes the chunks of some lanes, and the line to it."""

    process: multiprocessing.process.BaseProcess
    line: Connection


def may_fork() -> bool:
    """Whether a process can be begun that knows what this one does."""
    return "fork" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon


class MadeApart:
    """Epochs of chunks: each goes on where the one before ended. A chunk holds until the next but one is asked for.

    Parameters
    ----------
    make
        Chunks of consecutive lanes, from the first and without end, each lane with as many origins.
    length
        Chunks of an epoch.
    like
        A chunk of the shapes that all of them have, of all lanes.
    processes
        How many share the lanes.
    """

    def __init__(self, make: Make, length: int, like: Prepared, processes: int = 1) -> None:
        self.make, self.length, self.lanes = make, length, len(like.features)
        self.memory, self.places = _places(like)
        self.pinned = torch.cuda.is_available()
        if self.pinned:  # a GPU reads it by itself, while the processor goes on
            _check(_cudart().cudaHostRegister(self.memory.data_ptr(), self.memory.nbytes, 0))
        self.chunks = self._chunks(processes)

    def __iter__(self) -> Iterator[Prepared]:
        return islice(self.chunks, self.length)

    def __len__(self) -> int:
        return self.length

    def close(self) -> None:
        """End the processes, and give the memory back."""
        self.chunks.close()
        if self.pinned:
            self.pinned = False
            torch.cuda.synchronize()
            _check(_cudart().cudaHostUnregister(self.memory.data_ptr()))

    def _chunks(self, processes: int) -> Generator[Prepared]:
        gc.collect()  # so that no process finds what only this one may free
        bounds = [self.lanes * k // processes for k in range(processes + 1)]
        workers: list[_Worker] = []
        done = 0
        try:
            workers += (self._worker(range(*ends)) for ends in pairwise(bounds))
            with suppress(OSError, EOFError):
                for _ in range(ASKED):
                    _ask(workers)
                for place in cycle(self.places):
                    if not all(_answers(worker) for worker in workers):
                        break
                    _ask(workers)
                    done += 1
                    yield place
        finally:
            for worker in workers:
                worker.line.close()
                worker.process.kill()
            for worker in workers:
                worker.process.join()
        yield from islice(self.make(range(self.lanes)), done, None)

    def _worker(self, lanes: range) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=self._fill, args=(lanes, ours, theirs), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _fill(self, lanes: range, theirs: Connection, ours: Connection) -> None:
        """Fill these lanes of place after place, each when it is asked for; the work of a process."""
        gc.freeze()  # what was made before is not this process's to free
        theirs.close()  # so that the end of the other process is the end of this one
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
        rooms = [self._room(place, lanes) for place in self.places]
        with suppress(Exception):  # who makes the same chunk again will say what is wrong with it
            for chunk, room in zip(self.make(lanes), cycle(rooms), strict=False):
                ours.recv_bytes()
                for mine, own in zip(room.parts(), chunk.parts(), strict=True):
                    mine.copy_(own)
                step, lane = room.kept // len(lanes), room.kept % len(lanes)
                room.kept.copy_(step * self.lanes + lanes.start + lane)
                ours.send_bytes(b"!")

    def _room(self, place: Prepared, lanes: range) -> Prepared:
        """Where a chunk of these lanes lies in one of all: every tensor is of lanes, or of their origins in order."""
        return place.of_parts(
            part[lanes.start * len(part) // self.lanes : lanes.stop * len(part) // self.lanes] for part in place.parts()
        )


def _ask(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.line.send_bytes(b"?")


def _answers(worker: _Worker) -> bool:
    """Whether the next place is filled, before patience ends."""
    return worker.line.poll(PATIENCE) and bool(worker.line.recv_bytes())


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
