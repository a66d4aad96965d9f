"""Chebyshev propagator: one real recurrence for all depths where the crystal is centrosymmetric.

With X = (diag(S - c) + V) / r, whose eigenvalues lie within [-1, 1],

    psi(z) = exp(2 pi i z c) sum_k (2 - delta_k0) i^k J_k(2 pi r z) T_k(X) psi(0)

(H. Tal-Ezer & R. Kosloff 1984, doi:10.1063/1.448136). The waves T_k(X) psi(0) are the same for
all depths, and real where V is. Each costs one matrix product for all samples together and one
elementwise product; exponentials of V are not needed. The phase by c, the middle of a sample's
S, is not seen in |psi|^2, so that every sample may have its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import DepthGrid, Moves, Probe, Propagator, Size, Work, start_waves
from .recurrence import GROUP, Potential, Recurrence, Sum, advance, terms_needed
from .series import plain
from .strips import Cut, in_chunks, intensities

_MORE_BEAMS = 50  # that would take the time of what is done beside the products
_MORE_SAMPLES = 12  # that would take the time in which a product fetches its matrix


@dataclass(frozen=True)
class Chebyshev(Propagator):
    """Chebyshev series to the rounding of the waves' precision: there is no step to choose."""

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""

        def profiles(probe: Probe, v: Tensor, s: Tensor) -> Tensor:
            shared = Potential.of(v.detach())
            return sum(
                _Sweep.apply(grid, shared, _of_samples(probe, some), v, s[:, :, some])
                for some in _alike(s.detach())
            )

        return in_chunks(profiles, potential, excitation, probe)

    def gradient_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class: the terms of a group, as the recurrence runs backwards as well."""
        at_once = -(-size.samples // _groups(size.samples))
        terms = 2 * (GROUP + 4) * size.beams + (6 * grid.count + 2 * GROUP) * size.slots
        kept = (8 * size.beams + 2 * grid.count * size.slots) * size.samples
        return 20 * size.beams**2 + terms * at_once + kept

    def tangent_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class: changes of the potential, and the sums at all depths."""
        at_once = -(-size.samples // _groups(size.samples))
        slots = (3 * grid.count + 2 * GROUP) * size.slots
        return 10 * size.beams**2 + (4 * size.beams + slots) * at_once

    def operations(self, work: Work, grid: DepthGrid) -> float:
        """See the base class: of all terms' waves, which are real where the potential is."""
        a = 2 * math.pi * grid.step * grid.count * (work.half_range + work.coupling)
        terms = terms_needed(a, work.eps)
        # half the samples are about the middle of the rotation
        terms = (terms + terms[:, terms.shape[1] // 2, None]).mean(1) / 2
        beams = work.beams.double()
        samples = work.samples + _MORE_SAMPLES * _groups(work.samples)
        waves = samples * work.products * terms
        return float((2 if work.real else 8) * (beams * (beams + _MORE_BEAMS) * waves).sum())

    @torch.no_grad()
    def tangents(
        self, potential: Tensor, excitation: Tensor, moves: Moves, probe: Probe, grid: DepthGrid
    ) -> tuple[Tensor, Tensor]:
        """Return the profiles (F, B, D) and their derivatives (P + Q, F, B, D) along `moves`.

        Those of the terms, dT_(k+1) = 2 (X dT_k + dX T_k) - dT_(k-1), are real where V and its
        changes are. r and c are constants: a change of the exact series does not depend on them.
        """
        shared = Potential.of(potential)
        profiles, slopes = 0.0, 0.0
        for some in _alike(excitation):
            found = _forward_mode(
                Recurrence.of(shared, excitation[:, :, some], grid),
                Moves(moves.potential, moves.excitation[..., some]),
                _of_samples(probe, some),
            )
            profiles, slopes = profiles + found[0], slopes + found[1]
        return profiles, slopes


_ALIKE = 4  # groups of samples at most
_ROWS = 32  # samples of a group, with fewer of which products wait for their matrices


def _alike(excitation: Tensor) -> list[Tensor]:
    """Return groups of samples (indices) whose ranges of S are alike.

    The number of terms follows from the range, which for a rotation is widest at its ends.
    """
    width = (excitation.amax(1) - excitation.amin(1)).amax(0)
    return list(torch.argsort(width, descending=True).tensor_split(_groups(len(width))))


def _groups(samples: int) -> int:
    return max(1, min(_ALIKE, samples // _ROWS))


def _of_samples(probe: Probe, some: Tensor) -> Probe:
    """Return the probe of some samples."""
    return Probe(probe.incident, probe.beam, probe.weight[:, :, some])


@dataclass(frozen=True)
class _Strip:
    """Some blocks or some samples of a sweep, which do not know of the others."""

    recurrence: Recurrence
    start: Tensor  # psi(0) (F, T, N)
    index: Tensor  # (F, T, B) picks the slots' beams
    weight: Tensor  # (F, T, B)

    @classmethod
    def of(cls, recurrence: Recurrence, probe: Probe, excitation: Tensor) -> _Strip:
        matrix = recurrence.matrix
        start = start_waves(excitation, probe.incident, matrix.dtype).mT.contiguous()
        index = probe.beam[:, None].expand(-1, start.shape[1], -1)
        return cls(recurrence, start, index, probe.weight.mT.to(recurrence.twice.dtype))

    def carry(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return T_(K-1) psi(0), T_K psi(0), and the slots' waves at all depths (F, D, T, B)."""
        x = self.recurrence
        total = Sum(x, self.index, x.matrix.dtype)
        last, beyond = total.carry(self.start, lambda *pair: advance(*pair, x.matrix, x.twice))
        return last, beyond, torch.complex(*total.parts())

    def adjoint(
        self, last: Tensor, beyond: Tensor, seen: Tensor, grad: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients by V (F, N, N), of `dtype`, and S (F, N, T) from the profiles'."""
        x = self.recurrence
        source = seen.conj() * (2 * grad.mT[:, :, None] * self.weight[:, None])
        sources = _Sources.of(x, source, dtype)
        pairs = _Pairs(x, self.index, (beyond, last), sources.shape[1])
        for k in reversed(range(x.terms - 1)):
            pairs.add(sources.sent(k + 1), 1.0 if k else 0.5)
        return pairs.gradients()


class _Sources:
    """What the sums at all depths send back to one T_k psi(0) after another, in the slots."""

    def __init__(self, table: Tensor, turned: Tensor):
        """Take what is sent to even and odd k, (2, F, D, T, planes, B)."""
        self.table, self.shape, self.complex = table, turned.shape[3:], turned.is_complex()
        if self.complex:
            turned = torch.view_as_real(turned)
        self.parts = turned.reshape(*turned.shape[:3], -1)

    @classmethod
    def of(cls, x: Recurrence, source: Tensor, dtype: torch.dtype) -> _Sources:
        """Take `source` (F, D, T, B), by which dL = Re sum(source dpsi) in the slots.

        Where the terms are real, real and imaginary parts are planes of their own; for a gradient
        of a real `dtype` there is the real one alone.
        """
        turned = torch.stack([source, 1j * source])
        if x.matrix.is_complex():
            return cls(x.table, turned.unsqueeze(-2))
        planes = (turned.real, turned.imag) if dtype.is_complex else (turned.real,)
        return cls(x.table, torch.stack(planes, -2))

    def sent(self, k: int) -> Tensor:
        """Return what falls to T_k (F, T, planes, B); from the last k to the first one."""
        if (k + 1) % GROUP == 0 or k + 1 == self.table.shape[1]:
            begin = k - k % GROUP
            shares = (self.table[:, begin + parity : k + 1 : 2].mT for parity in (0, 1))
            pairs = zip(shares, self.parts, strict=True)
            self.group = [x.expand(len(part), -1, -1) @ part for x, part in pairs]
        found = self.group[k % 2][:, k % GROUP // 2]
        if self.complex:
            return torch.view_as_complex(found.unflatten(1, (*self.shape, 2)))
        return found.unflatten(1, self.shape)


class _Pairs:
    """Gradients from the terms and from their adjoints l_k, both from the last k to the first.

    With l_k = s_k + 2 X^T l_(k+1) - l_(k+2), where s_k is what the sums send back to T_k,
    dL = Re sum_k (2 - delta_k0) l_(k+1) dX T_k. The T_k are not kept, as the recurrence runs
    backwards as well and is as stable.
    """

    def __init__(self, recurrence: Recurrence, index: Tensor, terms: tuple, planes: int):
        """Take T_K and T_(K-1) as `terms`; places 0 and 1 hold what came before a group."""
        f, t, n = recurrence.twice.shape
        self.recurrence, self.place = recurrence, 2
        self.transposed = recurrence.matrix.mT.contiguous()
        self.index = index[:, :, None].expand(-1, -1, planes, -1)
        self.left = recurrence.matrix.new_zeros(f, GROUP + 2, t, planes, n)
        self.right = recurrence.matrix.new_empty(f, GROUP + 2, t, n)
        self.right[:, 0], self.right[:, 1] = terms
        self.slopes = recurrence.matrix.new_zeros(f, planes * n, n)
        self.flow = torch.zeros_like(recurrence.twice)

    def add(self, source: Tensor, share: float) -> None:
        """Add the pair of the next adjoint, given what is sent to it, and of the term before."""
        x, place = self.recurrence, self.place
        before, ahead, adjoint = (self.left[:, place - i] for i in (2, 1, 0))
        advance(before, ahead, self.transposed, x.twice[:, :, None], adjoint)
        adjoint.scatter_add_(-1, self.index, source)
        before, ahead, term = (self.right[:, place - i] for i in (2, 1, 0))
        advance(before, ahead, x.matrix, x.twice, term).mul_(share)
        self.place += 1
        if self.place == GROUP + 2:
            self._add_group()

    def _add_group(self) -> None:
        """Add what a group of pairs gives."""
        left, right = self.left[:, 2 : self.place], self.right[:, 2 : self.place]
        self.slopes.baddbmm_(left.flatten(3).flatten(1, 2).mT, right.flatten(1, 2))
        self.flow += (left[:, :, :, 0] * right).real.sum(1)
        for kept in (self.left, self.right):
            kept[:, :2] = kept[:, self.place - 2 : self.place].clone()
        self.place = 2

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return the gradients by V (F, N, N) and S (F, N, T)."""
        if self.place > 2:
            self._add_group()
        scale = 2 / self.recurrence.radius
        by_v = self.slopes.conj()
        if by_v.shape[1] > by_v.shape[2]:
            real, imaginary = by_v.chunk(2, 1)
            by_v = torch.complex(real, -imaginary)
        return scale * by_v, scale * self.flow.mT


class _Sweep(torch.autograd.Function):
    """Profiles of a grid, probe, potential and excitation, with the adjoint of the recurrence.

    Each core works on a strip of its own.
    """

    @staticmethod
    def forward(ctx, grid: DepthGrid, shared: Potential, probe: Probe, potential, excitation):
        """Return the profiles (F, B, D); `shared` is made of the potential (F, N, N)."""
        cut = Cut.of(excitation)
        given = Recurrence.of(shared, excitation, grid).parts(cut)
        strips = [
            _Strip.of(*part) for part in zip(given, *cut.parts(probe, excitation), strict=True)
        ]
        waves = cut.each(_Strip.carry, [(strip,) for strip in strips])
        if any(ctx.needs_input_grad):
            ctx.kept = cut, strips, waves
            ctx.dtype = potential.dtype
        pairs = zip(strips, waves, strict=True)
        return cut.joined([intensities(seen, x.weight) for x, (*_, seen) in pairs], 0)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradients by the potential (F, N, N) and excitation errors (F, N, T)."""
        cut, strips, waves = ctx.kept
        work = zip(strips, waves, cut.split(grad, 0), strict=True)
        found = cut.each(lambda strip, waves, g: strip.adjoint(*waves, g, ctx.dtype), work)
        slopes, flow = zip(*found, strict=True)
        return None, None, None, cut.joined(slopes, 0), torch.cat(flow, cut.dim)


@dataclass(frozen=True)
class _Variation:
    """A recurrence of waves and their derivatives (F, T, 1 + P + Q, N) along P + Q directions."""

    matrix: Tensor  # 2 V^T / r (F, N, N)
    twice: Tensor  # 2 (S - c) / r (F, T, 1, N)
    changes: Tensor  # 2 dV^T / r, side by side: (F, N, P N)
    turns: Tensor  # 2 dS / r (F, T, Q, N)

    @classmethod
    def of(cls, x: Recurrence, moves: Moves) -> _Variation:
        changes = plain(moves.potential * (2 / x.radius)).permute(1, 3, 0, 2).flatten(2)
        dtype = torch.promote_types(x.matrix.dtype, changes.dtype)
        turns = moves.excitation.permute(1, 3, 0, 2) * (2 / x.radius)
        return cls(x.matrix.to(dtype), x.twice[:, :, None], changes.to(dtype), turns.contiguous())

    @property
    def directions(self) -> tuple[int, int]:
        """P and Q."""
        return self.changes.shape[2] // self.changes.shape[1], self.turns.shape[2]

    def start(self, incident: Tensor) -> Tensor:
        """Return psi(0) and its derivatives, which are zero."""
        f, t, _, n = self.twice.shape
        waves = self.matrix.new_zeros(f, t, 1 + sum(self.directions), n)
        waves[torch.arange(f, device=waves.device), :, 0, incident] = 1
        return waves

    def step(self, before: Tensor, now: Tensor) -> Tensor:
        """Put the next term and its derivatives in place of those before."""
        f, t, _, n = before.shape
        p = self.directions[0]
        advance(before, now, self.matrix, self.twice)
        by_potential = before.view(f, t, -1)[:, :, n : (1 + p) * n]
        by_potential.baddbmm_(now[:, :, 0], self.changes)
        before[:, :, 1 + p :].addcmul_(self.turns, now[:, :, :1])
        return before


def _forward_mode(x: Recurrence, moves: Moves, probe: Probe) -> tuple[Tensor, Tensor]:
    """Return the profiles (F, B, D) and their derivatives (P + Q, F, B, D)."""
    variation = _Variation.of(x, moves)
    start = variation.start(probe.incident)
    index = probe.beam[:, None, None].expand(-1, *start.shape[1:3], -1)
    total = Sum(x, index, start.dtype)
    total.carry(start, variation.step)
    weight = probe.weight.mT.to(x.table.dtype)[:, :, None]
    found = []
    for parts in total.parts().unbind(2):  # (2, F, T, 1 + P + Q, B) of one depth
        products = (parts * parts[..., :1, :]).sum(0).mul_(weight)
        found.append(products.sum(1))
    found = torch.stack(found, -1)  # (F, 1 + P + Q, B, D)
    return found[:, 0], 2 * found[:, 1:].transpose(0, 1)
