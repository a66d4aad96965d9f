"""Sweeps over the stages of a splitting in machine code: as `stages`, for processors."""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np
import torch
from torch import Tensor

from . import kernels
from .stages import Strip


def prepared(values: Tensor) -> Tensor:
    """Return the parts of matrices (..., N, N), and the parts' sum: (..., 3, N, N) real.

    In one piece: a product with the transpose of a small matrix takes half as long again.
    """
    return torch.stack([values.real, values.imag, values.real + values.imag], -3).contiguous()


def carry(strip: Strip, factors: Tensor, keep: bool) -> tuple[Tensor, tuple]:
    """See `stages`; waves that are kept are (F, 2, K, T, N), real and imaginary parts apart."""
    plan, table, weight = strip.plan, strip.plan.table, strip.weight
    f, t, n = strip.waves.shape
    before = room(weight, f, 2, len(table) * (plan.steps if keep else 1), t, n)
    seen = room(weight, f, plan.depths if keep else 1, *weight.shape[1:], 2)
    profiles = weight.new_zeros(f, weight.shape[2], plan.depths)
    phases = _phases(strip)
    given = _parts(strip.waves), phases, factors, strip.beams, weight
    arrays = map(_array, (*given, before, seen, profiles))
    kernels.carry(*arrays, table, plan.steps)
    return profiles, (phases, before, seen)


def adjoint(strip: Strip, factors: Tensor, kept: tuple, grad: Tensor) -> tuple[Tensor, Tensor]:
    """See `stages`."""
    f, t, n = strip.waves.shape
    slopes, flow = torch.zeros_like(factors), grad.new_zeros(f, t, n)
    given = factors, strip.times, strip.beams, strip.weight, grad
    arrays = map(_array, (*kept, *given, slopes, flow))
    steps, table = strip.plan.steps, strip.plan.table
    kernels.adjoint(*arrays, table, steps, max(1, min(steps, _INNER // t)))
    real, imaginary, both = slopes.unbind(2)
    return torch.complex(real - imaginary, both - real - imaginary), flow


def forward(strip: Strip, factors: Tensor, moved: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """See `stages`."""
    changes, turns = prepared(moved.mT.transpose(1, 2)), turned.permute(1, 0, 3, 2)
    f, q, *_ = turns.shape
    directions = moved.shape[1] + q
    found = turns.new_zeros(f, 1 + directions, strip.beams.shape[1], strip.plan.depths)
    given = _parts(strip.waves), _phases(strip), strip.times, factors, changes, turns
    arrays = map(_array, (*given, strip.beams, strip.weight, found))
    kernels.forward(*arrays, strip.plan.table, strip.plan.steps)
    return found[:, 0], 2 * found[:, 1:].transpose(0, 1)


_INNER = 128  # samples times steps whose waves are kept at once on the way back


def _array(x: Tensor) -> np.ndarray:
    """Return the array of a tensor of real numbers; in one piece, a copy if need be."""
    return x.contiguous().resolve_neg().numpy()


def _parts(x: Tensor) -> Tensor:
    """Return the real and imaginary parts (F, 2, ...)."""
    return torch.stack([x.real, x.imag], 1)


def _phases(strip: Strip) -> Tensor:
    """Return cosines and sines of the phases' angles, (P, F, 2, T, N)."""
    angles = strip.angles
    return torch.stack([angles.cos(), angles.sin()], 2)


_SPARE = 128 * 2**20  # bytes at most that are held for the next sweep
_spare: list[np.ndarray] = []
_lock = threading.RLock()  # memory may be given back wherever Python collects garbage


def room(like: Tensor, *shape: int) -> Tensor:
    """Return an empty tensor, in memory of an earlier one that is no longer needed if there is.

    The system clears new memory, which for small blocks takes as long as what is written there.
    """
    count, dtype = math.prod(shape), _array(like[:0]).dtype
    with _lock:
        fits = (x.dtype == dtype and count <= x.size <= 2 * count for x in _spare)
        place = next((k for k, fit in enumerate(fits) if fit), None)
        memory = kernels.space(_array(like[:0]), count) if place is None else _spare.pop(place)
    view = memory[:count].reshape(shape)
    weakref.finalize(view, _give_back, memory).atexit = False
    return torch.from_numpy(view)


def _give_back(memory: np.ndarray) -> None:
    with _lock:
        if memory.nbytes + sum(x.nbytes for x in _spare) <= _SPARE:
            _spare.append(memory)
