"""The product of matrices that PyTorch brings along, for compiled loops: BLAS's `sgemm`, found by name in its library.

A loop that multiplies by itself is one call; through PyTorch, each product is one of its own, with the interpreter
between them. Nothing is found where PyTorch was built without BLAS: then whoever asks takes PyTorch's operations.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import llvmlite.binding as llvm
import torch
from numba.core import types
from torch import Tensor

__all__ = ["SGEMM", "available", "link", "multiplies"]

_NAME = "forecaster_sgemm"
_LETTER, _SIZE, _NUMBER = (types.CPointer(kind) for kind in (types.uint8, types.int64, types.float32))

SGEMM: Any = types.ExternalFunction(
    _NAME,
    types.void(
        *(_LETTER, _LETTER, _SIZE, _SIZE, _SIZE, _NUMBER, _NUMBER, _SIZE, _NUMBER, _SIZE, _NUMBER, _NUMBER, _SIZE)
    ),
)
"""Fortran's `sgemm` (Dongarra et al., 1990), for compiled loops: C = alpha A B + beta C by columns, all by address."""


def multiplies(tensor: Tensor) -> bool:
    """Whether loops may multiply what belongs to a tensor here and now: on the processor, without gradient, by BLAS."""
    return tensor.is_cpu and not torch.is_grad_enabled() and available()


def available() -> bool:
    """Whether PyTorch brings one along."""
    return _address() is not None


def link() -> None:
    """Make it known by name, before anything that calls it is compiled or read from a cache."""
    if (address := _address()) is not None:
        llvm.add_symbol(_NAME, address)


@functools.cache
def _address() -> int | None:
    if sys.byteorder != "little":
        return None  # sizes are handed over by the lower half of 64 bits
    # A library's symbols are looked up in what it needs, too: whichever BLAS it is, wherever it lies.
    library = ctypes.CDLL(torch._C.__file__)
    try:
        return ctypes.cast(library.sgemm_, ctypes.c_void_p).value
    except AttributeError:
        return None
