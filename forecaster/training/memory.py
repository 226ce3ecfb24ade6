"""Freed memory: kept between updates, given back between stages, where the C library can (glibc's mallopt).

An update frees what the next one asks for. Given back to the system in between, each of thousands of pages is zeroed
anew, which takes a seventh of the time.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

__all__ = ["give_back", "keep_freed"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h

LARGEST_BLOCK = 2**25
"""Bytes of the largest block that is kept. The library's own bounds rise to this one, and to twice as much at the end
of the heap, when such blocks are freed; whether that happens in a training is chance."""

USUAL_MAPPINGS = 2**16
"""Blocks beyond that size which may lie outside of the heap at a time: glibc's own number."""


def keep_freed(*, of_any_size: bool = False) -> None:
    """Keep freed blocks, those beyond `LARGEST_BLOCK` only if asked; the bounds are those of the whole process."""
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, LARGEST_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, 2 * LARGEST_BLOCK)
        library.mallopt(_MMAP_MAX, 0 if of_any_size else USUAL_MAPPINGS)


def give_back() -> None:
    """Hand free memory back to the system."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
