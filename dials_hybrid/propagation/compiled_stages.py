"""Sweeps over the stages of a splitting in machine code: as `stages`, for processors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import kernels
from .compiled_series import Factors, factors_of, parts
from .spare import as_array, room
from .stages import Strip

__all__ = ["Factors", "adjoint", "carry", "factors_of", "forward"]


def carry(strip: Strip, factors: Tensor, keep: bool) -> Callable:
    """See `stages`; waves that are kept are (F, 2, K, T, N), real and imaginary parts apart."""
    plan, table, weight = strip.plan, strip.plan.table, strip.weight
    f, t, n = strip.excitation.shape
    before = room(weight, f, 2, len(table) * (plan.steps if keep else 1), t, n)
    seen = room(weight, f, plan.depths if keep else 1, *weight.shape[1:], 2)
    profiles = weight.new_zeros(f, weight.shape[2], plan.depths)
    phases = _phases(strip)
    given = strip.incident, phases, factors, strip.beams, weight
    arrays = [as_array(x) for x in (*given, before, seen, profiles)]

    def sweep() -> tuple[Tensor, tuple]:
        kernels.carry(*arrays, table, plan.steps)
        return profiles, (phases, before, seen)

    return sweep


def adjoint(strip: Strip, factors: Tensor, kept: tuple, grad: Tensor) -> Callable:
    """See `stages`; what falls to the exponentials is the first two of (M, F, 3, N, N)."""
    slopes, flow = room(factors, *factors.shape), room(grad, *strip.excitation.shape)
    given = factors, strip.times, strip.beams, strip.weight, grad
    arrays = [as_array(x) for x in (*kept, *given, slopes, flow)]
    steps, table = strip.plan.steps, strip.plan.table
    group = max(1, min(steps, _INNER // strip.excitation.shape[1]))

    def sweep() -> tuple[Tensor, Tensor]:
        kernels.adjoint(*arrays, table, steps, group)
        return slopes, flow

    return sweep


def forward(strip: Strip, factors: Tensor, moved: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """See `stages`."""
    changes, turns = parts(moved.mT.transpose(1, 2)), turned.permute(1, 0, 3, 2)
    f, q, *_ = turns.shape
    directions = moved.shape[1] + q
    found = turns.new_zeros(f, 1 + directions, strip.beams.shape[1], strip.plan.depths)
    given = strip.incident, _phases(strip), strip.times, factors, changes, turns
    arrays = map(as_array, (*given, strip.beams, strip.weight, found))
    kernels.forward(*arrays, strip.plan.table, strip.plan.steps)
    return found[:, 0], 2 * found[:, 1:].transpose(0, 1)


_INNER = 128  # samples times steps whose waves are kept at once on the way back


def _phases(strip: Strip) -> Tensor:
    """Return cosines and sines of the phases' angles, (P, F, 2, T, N)."""
    angles = strip.angles
    p, f, t, n = angles.shape
    out = room(angles, p, f, 2, t, n)
    torch.cos(angles, out=out[:, :, 0])
    torch.sin(angles, out=out[:, :, 1])
    return out
