"""Sweeps over the stages of a splitting, by calls of torch: for every device.

`compiled_stages` has the same functions for processors. Waves are rows (F, T, N): a stage
multiplies them by a phase, and then from the right by the transposed exponential of the potential,
of which the identity is apart. What goes into a matrix is kept (F, K, T, N) with that of the same
matrix side by side, so that gradients by a matrix are products over many stages at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from .base import Probe, start_waves
from .series import Factors, scaled
from .strips import intensities


@dataclass(frozen=True)
class Plan:
    """Stage table of one step; the last phase of a step merges with the first of the next."""

    phases: tuple  # distinct phase times, A
    matrices: tuple  # distinct matrix times, A
    stages: tuple  # of each stage: phase index, matrix index, how often that matrix came before
    steps: int  # steps in all
    steps_per_depth: int

    @property
    def depths(self) -> int:
        """D."""
        return self.steps // self.steps_per_depth

    @cached_property
    def table(self) -> np.ndarray:
        """The stages as rows of integers.

        These are the indices of phase and matrix, how many stages have matrices before that one,
        how many have that one, and the how many-th of these it is.
        """
        order = [m for _, m, _ in self.stages]
        rows = [
            (p, m, sum(other < m for other in order), order.count(m), use)
            for p, m, use in self.stages
        ]
        return np.array(rows)


@dataclass(frozen=True)
class Strip:
    """Some blocks or some samples of a sweep, which do not know of the others."""

    plan: Plan
    excitation: Tensor  # S (F, T, N) in A^-1
    incident: Tensor  # (F,) the beams that come in
    beams: Tensor  # (F, B) those of the slots
    weight: Tensor  # (F, T, B)

    @classmethod
    def of(cls, plan: Plan, probe: Probe, excitation: Tensor) -> Strip:
        """Take the strip's own part of the probe and of S (F, N, T) in A^-1."""
        weight = probe.weight.mT.to(excitation.dtype)
        return cls(plan, excitation.mT.contiguous(), probe.incident, probe.beam, weight)

    @property
    def waves(self) -> Tensor:
        """psi(0) (F, T, N)."""
        dtype = torch.complex64 if self.excitation.dtype == torch.float32 else torch.complex128
        return start_waves(self.excitation.mT, self.incident, dtype).mT.contiguous()

    @property
    def times(self) -> Tensor:
        """2 pi t of the phases, in A."""
        return 2 * math.pi * self.excitation.new_tensor(self.plan.phases)

    @property
    def angles(self) -> Tensor:
        """2 pi t S of the phases, (P, F, T, N)."""
        return self.times.view(-1, 1, 1, 1) * self.excitation


def factors_of(potential: Tensor, times: tuple, cores: int) -> Factors:
    """Return the exponentials for potential V (F, N, N) in A^-1 and `times` in A."""
    return Factors.of(scaled(potential, times), times, cores)


def carry(strip: Strip, factors: Tensor, keep: bool) -> Callable:
    """Return a call, for a thread of its own, that carries the waves of a strip.

    The factors are of transposed exponentials. The call returns the profiles (F, B, D) and, for
    `adjoint`, the phases, the waves that go into matrices, those of all steps if it is to `keep`
    them, and those that are seen.
    """
    return partial(_carry, strip, factors, keep)


def _carry(strip: Strip, factors: Tensor, keep: bool) -> tuple[Tensor, tuple]:
    phases = _phases(strip)
    plan, waves, table = strip.plan, strip.waves, strip.plan.table
    f, t, n = waves.shape
    kept = plan.steps if keep else 1
    before = waves.new_empty(f, len(table) * kept, t, n)
    seen = waves.new_empty(f, plan.depths, t, strip.beams.shape[1])
    rows, places = _rows(before.unbind(1), table, kept), seen.unbind(1)
    pairs = [(phases[phase], factors[matrix]) for phase, matrix, *_ in table]
    index = strip.beams[:, None].expand(-1, t, -1)
    for step in range(plan.steps):
        for turned, (phase, matrix) in zip(rows[step % kept], pairs, strict=True):
            torch.mul(waves, phase, out=turned)
            torch.baddbmm(turned, turned, matrix, out=waves)
        if (step + 1) % plan.steps_per_depth == 0:
            torch.gather(waves, 2, index, out=places[step // plan.steps_per_depth])
    return intensities(seen, strip.weight), (phases, before, seen)


def adjoint(strip: Strip, factors: Tensor, kept: tuple, grad: Tensor) -> Callable:
    """Return a call that sweeps the same stages backwards.

    The factors are of exponentials that are not transposed.

    dL = Re sum(mu dpsi), mu = conj(dL/dpsi), so that transposes replace adjoints. `kept` is what
    `carry` kept, `grad` (F, B, D) the gradient by the profiles. The call returns what falls to the
    exponentials (M, F, N, N) and to S (F, T, N).
    """
    return partial(_adjoint, strip, factors, kept, grad)


def _adjoint(strip: Strip, factors: Tensor, kept: tuple, grad: Tensor) -> tuple[Tensor, Tensor]:
    plan, table = strip.plan, strip.plan.table
    phases, before, seen = kept
    f, _, t, n = before.shape
    steps, group = plan.steps, steps_at_once(t, plan.steps)
    source = seen.conj() * (2 * grad.mT[:, :, None] * strip.weight[:, None])
    mu, slopes = before.new_zeros(f, t, n), torch.zeros_like(factors)
    flow, times = torch.zeros_like(mu), strip.times.to(mu.dtype)
    after = before.new_empty(f, group * len(table), t, n)
    # products of several blocks into what does not lie in one piece are made one by one
    ahead = before.new_empty(group * len(table), f, t, n)
    behind, onward = (_rows(x, table, group) for x in (after.unbind(1), ahead.unbind()))
    turns, matrices = phases[table[:, 0]].unbind(), factors[table[:, 1]].unbind()
    pairs = list(zip((*turns[1:], turns[0]), matrices, strict=True))
    index = strip.beams[:, None].expand(-1, t, -1)
    for end in range(steps, 0, -group):
        begin = max(0, end - group)
        for step in reversed(range(begin, end)):
            row = list(zip(pairs, behind[step - begin], onward[step - begin], strict=True))
            for place, ((turn, matrix), back, on) in reversed(list(enumerate(row))):
                torch.mul(mu, turn, out=back)
                if place == len(row) - 1 and (step + 1) % plan.steps_per_depth == 0:
                    back.scatter_add_(2, index, source[:, step // plan.steps_per_depth])
                mu = torch.baddbmm(back, back, matrix, out=on)
        mu = mu.clone()  # its room is for products now
        for matrix, (first, uses) in enumerate(_places(table)):
            count = (end - begin) * uses
            waves = before[:, first * steps + begin * uses :][:, :count]
            right = after[:, first * group :][:, :count]
            slopes[matrix].baddbmm_(waves.flatten(1, 2).mT, right.flatten(1, 2))
            # Im(mu psi) is the same on both sides of the phase
            products = ahead[first * group :][:count].mul_(waves.transpose(0, 1)).flatten(1)
            own = times[table[table[:, 1] == matrix, 0]].repeat(end - begin)
            flow.sub_((own @ products).view_as(flow))
    return slopes, flow.imag


def forward(strip: Strip, factors: Tensor, moved: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Carry the waves and their derivatives through all stages.

    The factors are of transposed exponentials; `moved` (M, P, F, N, N) and `turned` (Q, F, N, T)
    are derivatives of the exponentials and of S in A^-1. Return the profiles (F, B, D) and their
    derivatives (P + Q, F, B, D).
    """
    plan, turns = strip.plan, turned.permute(1, 3, 0, 2)
    f, t, q, n = turns.shape
    p = moved.shape[1]
    changes = moved.permute(0, 2, 4, 1, 3).flatten(3)  # transposed, side by side
    waves = changes.new_zeros(f, t, 1 + p + q, n)
    waves[:, :, 0] = strip.waves
    moved = torch.empty_like(waves)
    index = strip.beams[:, None, None].expand(-1, t, 1 + p + q, -1)
    spins = 1j * strip.times.view(-1, *[1] * 4) * turns
    phases = _phases(strip)[:, :, :, None]
    found = []
    for step in range(plan.steps):
        for phase, matrix, _ in plan.stages:
            waves[:, :, 1 + p :].addcmul_(spins[phase], waves[:, :, :1])
            waves *= phases[phase]
            rows = waves.flatten(1, 2)
            torch.baddbmm(rows, rows, factors[matrix], out=moved.view(f, -1, n))
            by_potential = moved.view(f, t, -1)[:, :, n : (1 + p) * n]
            by_potential.baddbmm_(waves[:, :, 0], changes[matrix])
            waves, moved = moved, waves
        if (step + 1) % plan.steps_per_depth == 0:
            picked = torch.gather(waves, 3, index)
            first = picked[:, :, :1]
            products = (picked.real * first.real).addcmul_(picked.imag, first.imag)
            found.append(products.mul_(strip.weight[:, :, None]).sum(1))
    found = torch.stack(found, -1)  # (F, 1 + P + Q, B, D)
    return found[:, 0], 2 * found[:, 1:].transpose(0, 1)


_INNER = 256  # rows from which on the gradient by a matrix runs at the full speed of products


def steps_at_once(samples: int, steps: int) -> int:
    """Return of how many steps the waves of some samples are kept on the way back."""
    return max(1, min(steps, _INNER // samples))


def _phases(strip: Strip) -> Tensor:
    """Return exp(2 pi i t S) of the distinct times, (P, F, T, N)."""
    return torch.complex(strip.angles.cos(), strip.angles.sin())


def _places(table: np.ndarray) -> list[list[int]]:
    """Return, for each matrix, how many stages have others before it, and how many have it."""
    return np.unique(table[:, 1:4], axis=0)[:, 1:].tolist()


def _rows(views: tuple, table: np.ndarray, steps: int) -> list[list[Tensor]]:
    """Return, for each step that there is room for, the waves of its stages (F, T, N) in order."""
    first, uses, use = table[:, 2:].T
    places = [(first * steps + step * uses + use).tolist() for step in range(steps)]
    return [[views[k] for k in row] for row in places]
