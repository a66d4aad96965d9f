"""Memory of sweeps in machine code that is used again."""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np
import torch
from torch import Tensor

_SPARE = 256 * 2**20  # bytes at most that are held for the next sweep
_spare: list[np.ndarray] = []
_lock = threading.RLock()  # memory may be given back wherever Python collects garbage


def room(like: Tensor, *shape: int) -> Tensor:
    """Return an empty tensor, in memory of an earlier one that is no longer needed if there is.

    The system clears new memory, which for small blocks takes as long as what is written there.
    """
    count, dtype = math.prod(shape), as_array(like[:0]).dtype
    with _lock:
        fits = (x.dtype == dtype and count <= x.size <= 2 * count for x in _spare)
        place = next((k for k, fit in enumerate(fits) if fit), None)
        memory = _new(dtype, count) if place is None else _spare.pop(place)
    view = memory[:count].reshape(shape)
    weakref.finalize(view, _give_back, memory).atexit = False
    return torch.from_numpy(view)


def _new(dtype: np.dtype, count: int) -> np.ndarray:
    """Return an empty array on a boundary of 64 bytes, see `kernels.space`.

    Numpy asks the system for large pages, which compiled code does not.
    """
    memory = np.empty(count + 64 // dtype.itemsize, dtype)
    begin = -memory.ctypes.data % 64 // dtype.itemsize
    return memory[begin : begin + count]


def _give_back(memory: np.ndarray) -> None:
    with _lock:
        if memory.nbytes + sum(x.nbytes for x in _spare) <= _SPARE:
            _spare.append(memory)


def as_array(x: Tensor) -> np.ndarray:
    """Return the array of a tensor of real numbers; in one piece, a copy if need be."""
    return x.contiguous().resolve_neg().numpy()
