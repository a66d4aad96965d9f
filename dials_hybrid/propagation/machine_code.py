"""Machine code for processors, by numba where it is installed, and matrix products in it.

Where blocks are small, a stage takes a few microseconds; so does a call of torch, which holds the
interpreter's lock, too, so that threads wait for each other. With numba, an optional package
(S. K. Lam, A. Pitrou & S. Seibert 2015, doi:10.1145/2833157.2833162), a whole sweep is one call
that needs no lock. What it compiles is kept on disk. The products are those of the BLAS that torch
brings, whose arrays have columns where these have rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

try:
    import llvmlite.binding
    import numba
# beside a numpy or a "coverage" that it does not know, numba is there and cannot be imported
except (ImportError, AttributeError):
    numba = None

_GEMM = {torch.float32: "sgemm_", torch.float64: "dgemm_"}
_PLAIN, _TRANSPOSED = ord("N"), ord("T")


def can_compile(x: Tensor) -> bool:
    """Tell whether there is machine code for tensors like this one."""
    if numba is None or x.device.type != "cpu":
        return False
    return _GEMM.get(x.dtype.to_real()) in _addresses()


@lru_cache
def _addresses() -> dict[str, int]:
    """Return the addresses of matrix products in the library of torch, or of what it loads."""
    folder = Path(torch.__file__).parent / "lib"
    found = {}
    for file in (*folder.glob("libtorch_cpu.so"), *folder.glob("libtorch_cpu.dylib")):
        library = ctypes.CDLL(str(file))
        for name in _GEMM.values():
            if hasattr(library, name):
                found[name] = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    return found


def compiled(function: Callable) -> Callable:
    """Return the function in machine code, which does not lose a NaN."""
    options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(**options, cache=True)(function)
    except RuntimeError:  # no folder that can be written to
        return numba.njit(**options)(function)


def array(x: Tensor) -> np.ndarray:
    """Return the array of a tensor of real numbers; in one piece, a copy if need be."""
    return x.contiguous().numpy()


def planes(x: Tensor, dim: int) -> Tensor:
    """Return the real and imaginary parts apart, along a new dimension."""
    return torch.stack([x.real, x.imag], dim)


def room(like: Tensor, *shape: int) -> Tensor:
    """Return an empty tensor: numpy asks for large pages, which the system clears faster."""
    return torch.from_numpy(np.empty(shape, array(like[:0]).dtype))


@lru_cache
def products(dtype: torch.dtype) -> SimpleNamespace:
    """Return compiled matrix products of real numbers: `combine` and `add_outer`."""
    name = _GEMM[dtype]
    symbol = f"dials_hybrid_{name}"
    llvmlite.binding.add_symbol(symbol, _addresses()[name])
    pointer = numba.types.voidptr
    gemm = numba.types.ExternalFunction(symbol, numba.types.void(*[pointer] * 13))

    @compiled
    def combine(out, rows, matrix, kept):
        """Set `out` (K rows of M) to `kept` times itself and rows (K of N) @ matrix (N, M)."""
        n, m = matrix.shape
        sizes = np.array([rows.size // n, n, m], np.int32)
        flags, numbers = np.array([_PLAIN], np.uint8), np.array([1, kept], out.dtype)
        gemm(
            flags.ctypes, flags.ctypes, sizes[2:].ctypes, sizes.ctypes, sizes[1:].ctypes,
            numbers.ctypes, matrix.ctypes, sizes[2:].ctypes, rows.ctypes, sizes[1:].ctypes,
            numbers[1:].ctypes, out.ctypes, sizes[2:].ctypes,
        )  # fmt: skip

    @compiled
    def add_outer(out, left, right):
        """Add left^T @ right to `out` (N, N): of as many rows of N numbers as `left` has."""
        n = len(out)
        sizes = np.array([left.size // n, n], np.int32)
        flags, one = np.array([_PLAIN, _TRANSPOSED], np.uint8), np.array([1], out.dtype)
        gemm(
            flags.ctypes, flags[1:].ctypes, sizes[1:].ctypes, sizes[1:].ctypes, sizes.ctypes,
            one.ctypes, right.ctypes, sizes[1:].ctypes, left.ctypes, sizes[1:].ctypes,
            one.ctypes, out.ctypes, sizes[1:].ctypes,
        )  # fmt: skip

    return SimpleNamespace(combine=combine, add_outer=add_outer)
