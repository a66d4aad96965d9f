"""Chebyshev propagator: one real recurrence for all depths where the crystal is centrosymmetric.

With X = (diag(S - c) + V) / r, whose eigenvalues lie within [-1, 1],

    psi(z) = exp(2 pi i z c) sum_k (2 - delta_k0) i^k J_k(2 pi r z) T_k(X) psi(0)

(H. Tal-Ezer & R. Kosloff 1984, doi:10.1063/1.448136). The waves T_k(X) psi(0) are the same for
all depths, and real where V is. Each costs one matrix product for all samples together and one
elementwise product; exponentials of V are not needed. The phase by c, the middle of a sample's
S, is not seen in |psi|^2, so that every sample may have its own.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .base import DepthGrid, Moves, Probe, Size, Work, start_waves
from .series import plain
from .strips import Cut, in_chunks, intensities

_GROUP = 32  # terms that are summed, and their gradients formed, together
_MORE_BEAMS = 50  # that would take the time of what is done beside the products
_MORE_SAMPLES = 12  # that would take the time in which a product fetches its matrix


@dataclass(frozen=True)
class Chebyshev:
    """Chebyshev series to the rounding of the waves' precision: there is no step to choose."""

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""

        def profiles(probe: Probe, v: Tensor, s: Tensor) -> Tensor:
            shared = _Potential.of(v.detach())
            return sum(
                _Sweep.apply(grid, shared, _of_samples(probe, some), v, s[:, :, some])
                for some in _alike(s.detach())
            )

        return in_chunks(profiles, potential, excitation, probe)

    def gradient_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class: the terms of a group, as the recurrence runs backwards as well."""
        at_once = -(-size.samples // _groups(size.samples))
        terms = 2 * (_GROUP + 4) * size.beams + (6 * grid.count + 2 * _GROUP) * size.slots
        kept = (8 * size.beams + 2 * grid.count * size.slots) * size.samples
        return 20 * size.beams**2 + terms * at_once + kept

    def tangent_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class: changes of the potential, and the sums at all depths."""
        at_once = -(-size.samples // _groups(size.samples))
        slots = (3 * grid.count + 2 * _GROUP) * size.slots
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
        shared = _Potential.of(potential)
        profiles, slopes = 0.0, 0.0
        for some in _alike(excitation):
            found = _forward_mode(
                _Recurrence.of(shared, excitation[:, :, some], grid),
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
class _Potential:
    """The potential less i times its mean absorption, and bounds of it, all in A^-1."""

    transposed: Tensor  # V^T (F, N, N), real where V is
    mean: float  # of the imaginary part of V's diagonal
    norm: float  # of V
    absorbed: float  # norm of the anti-Hermitian part

    @classmethod
    def of(cls, potential: Tensor) -> _Potential:
        """Find the bounds of V (F, N, N)."""
        v, mean, absorbed = plain(potential), 0.0, 0.0
        if v.is_complex():
            mean = float(v.diagonal(dim1=1, dim2=2).imag.mean())
            v = v - 1j * mean * torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
            absorbed = norm_bound((v - v.mH) / 2)
        return cls(v.mT.contiguous(), mean, norm_bound(v), absorbed)


@dataclass(frozen=True)
class _Recurrence:
    """T_(k+1) = 2 X T_k - T_(k-1) for waves that are rows, and the sums at all depths."""

    matrix: Tensor  # 2 V^T / r (F, N, N), real where V is
    twice: Tensor  # 2 (S - c) / r (F, T, N)
    table: Tensor  # (D, K) real coefficients; those of odd k are over i
    reach: tuple  # how many of them differ from zero at each depth
    radius: float  # r, A^-1

    @classmethod
    def of(cls, potential: _Potential, excitation: Tensor, grid: DepthGrid) -> _Recurrence:
        """Find r and c of a potential and the excitation errors (F, N, T) in A^-1."""
        rows, longest = excitation.mT, 2 * math.pi * grid.step * grid.count
        low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        extent = 0.5 * float((high - low).max()) + potential.norm
        absorbed = potential.absorbed if potential.absorbed * longest > _LITTLE else 0.0
        radius = _rounded_up(max(extent * (_WIDER if absorbed else 1.0), 1 / longest))
        growth = _rounded_up(cmath.acosh(complex(extent, absorbed) / radius).real)
        precision = max(torch.finfo(rows.dtype).eps / 4, _ROUNDING)
        table, reach = coefficients(radius, grid, precision, growth)
        depths = grid.depths(dtype=torch.float64)[:, None]
        table = torch.from_numpy(table) * torch.exp(-2 * math.pi * potential.mean * depths)
        return cls(
            matrix=potential.transposed * (2 / radius),
            twice=((rows - 0.5 * (low + high)) * (2 / radius)).contiguous(),
            table=table.to(rows.device, rows.dtype),
            reach=reach,
            radius=radius,
        )

    @property
    def terms(self) -> int:
        """K."""
        return self.table.shape[1]

    def parts(self, cut: Cut) -> list[_Recurrence]:
        """Return those of the strips of a cut."""
        # samples are rows here
        twice = self.twice.split(cut.sizes, 0 if cut.dim == 0 else 1)
        pairs = zip(cut.split(self.matrix, 0), twice, strict=True)
        return [_Recurrence(*pair, self.table, self.reach, self.radius) for pair in pairs]


_ROUNDING = 1e-14  # of the coefficients
_FINENESS = 64  # radii in a factor of two; the same one often comes again
_LITTLE = 0.01  # growth of the terms, as an exponent, that may be left out of account
_WIDER = 1.05  # where V absorbs; terms grow fastest by eigenvalues near -1 and 1


def _rounded_up(x: float) -> float:
    """Return the next of a series of numbers that is not smaller; zero stays."""
    return 2.0 ** (math.ceil(_FINENESS * math.log2(x)) / _FINENESS) if x else 0.0


def norm_bound(v: Tensor) -> float:
    """Return a bound of the largest singular value of matrices (F, N, N), and little more.

    That is (sum of its 8th powers)^(1/8), the root of the Frobenius norm of (V^H V)^2.
    """
    scale = float(v.abs().max())
    if scale == 0:
        return 0.0
    v = v / scale
    square = v.mH @ v
    return scale * float(torch.linalg.matrix_norm(square @ square).max()) ** (1 / 4)


def terms_needed(a: Tensor, eps: float) -> Tensor:
    """Return about how many terms exp(i a x) needs for |x| <= 1: where J_k(a) falls below eps.

    J_k(a) falls about as exp(-(2 sqrt 2 / 3) (k - a)^(3/2) / a^(1/2)) beyond k = a (Debye's
    expansion, Abramowitz & Stegun 1964, 9.3.7).
    """
    fall = (1.5 / math.sqrt(2) * math.log(4 / eps)) ** (2 / 3)
    return a + fall * a ** (1 / 3)


@lru_cache(maxsize=16)
def coefficients(
    radius: float, grid: DepthGrid, precision: float, growth: float
) -> tuple[np.ndarray, tuple]:
    """Return (2 - delta_k0) i^k J_k(2 pi r z), over i for odd k, at the depths z: (D, K).

    They are the Fourier coefficients of exp(i 2 pi r z cos(angle)). K is the number of those
    above `precision` at the largest depth, where T_k may grow as exp(k growth). Returned beside
    them is how many of them differ from zero at each depth.
    """
    largest = 2 * math.pi * radius * grid.step * grid.count
    # J_k falls faster than exponentially beyond k = a, over some multiples of a^(1/3)
    most = math.exp(growth) * largest + 20 * largest ** (1 / 3) + 80
    points = 2 ** math.ceil(math.log2(2 * most))
    cosine = np.cos(2 * math.pi * np.arange(points) / points)
    k = np.arange(points // 2)

    def row(a: float) -> np.ndarray:
        found = np.fft.fft(np.exp(1j * a * cosine))[: points // 2] / points
        return np.where(k > 0, 2, 1) * np.where(k % 2 == 0, found.real, found.imag)

    last = np.abs(row(largest))
    last *= (last > _ROUNDING) * np.exp(np.minimum(growth * k, 500))
    # beyond k = a they fall, until they are the rounding of the transform
    beyond = int(largest)
    small = np.flatnonzero(np.append(last[beyond:], 0.0) <= precision)
    terms = max(2, beyond + int(small[0]))
    table = np.stack([row(largest * d / grid.count)[:terms] for d in range(1, grid.count + 1)])
    reach = tuple(int(np.flatnonzero(np.abs(x) > _ROUNDING)[-1]) + 1 for x in table)
    return table, reach


def _step(before: Tensor, now: Tensor, matrix: Tensor, twice: Tensor, out=None) -> Tensor:
    """Return 2 X T_k - T_(k-1) of rows (F, ..., N) in place of T_(k-1), or as `out`."""
    out = before if out is None else out
    rows = (x.flatten(1, -2) for x in (before, now))
    torch.baddbmm(*rows, matrix, beta=-1, out=out.flatten(1, -2))
    return out.addcmul_(twice, now)


class _Sum:
    """The waves in the beams of the slots at all depths, from one T_k after another."""

    def __init__(self, recurrence: _Recurrence, index: Tensor, dtype: torch.dtype):
        table, f, *rest = recurrence.table, *index.shape
        self.recurrence, self.table, self.index, self.rest = recurrence, table, index, rest
        self.room = torch.empty(2, f, _GROUP // 2, *rest, dtype=dtype, device=index.device)
        parts = math.prod(rest) * (2 if dtype.is_complex else 1)
        self.sums = table.new_zeros(2, f, len(table), parts)

    def carry(self, start: Tensor, step: Callable) -> tuple[Tensor, Tensor]:
        """Add all terms; return T_(K-1) and T_K. `start` is T_0 (F, ..., N).

        step(T_(k-1), T_k) puts T_(k+1), or for zeros and T_0 twice T_1, in place of T_(k-1).
        """
        before, now = start.clone(), step(torch.zeros_like(start), start).mul_(0.5)
        self.add(0, before)
        for k in range(1, self.table.shape[1]):
            self.add(k, now)
            before, now = now, step(before, now)
        return before, now

    def add(self, k: int, waves: Tensor) -> None:
        """Add the term of T_k psi(0), whose beams are along the last dimension."""
        torch.gather(waves, -1, self.index, out=self.room[k % 2][:, k % _GROUP // 2])
        if (k + 1) % _GROUP == 0 or k + 1 == self.table.shape[1]:
            self._add_group(k - k % _GROUP, k + 1)

    def _add_group(self, begin: int, end: int) -> None:
        first = sum(reach <= begin for reach in self.recurrence.reach)
        for parity in range(min(2, end - begin)):
            share = self.table[first:, begin + parity : end : 2]
            terms = _real_view(self.room[parity][:, : share.shape[1]]).flatten(2)
            self.sums[parity][:, first:].baddbmm_(share.expand(len(terms), -1, -1), terms)

    def parts(self) -> Tensor:
        """Return the waves' real and imaginary parts (2, F, D, ..., B)."""
        shape = 2, *self.sums.shape[1:3], *self.rest
        if not self.room.is_complex():
            return self.sums.view(shape)
        even, odd = torch.view_as_complex(self.sums.view(*shape, 2))
        return torch.view_as_real(even.add_(odd, alpha=1j)).movedim(-1, 0)


def _real_view(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


@dataclass(frozen=True)
class _Strip:
    """Some blocks or some samples of a sweep, which do not know of the others."""

    recurrence: _Recurrence
    start: Tensor  # psi(0) (F, T, N)
    index: Tensor  # (F, T, B) picks the slots' beams
    weight: Tensor  # (F, T, B)

    @classmethod
    def of(cls, recurrence: _Recurrence, probe: Probe, excitation: Tensor) -> _Strip:
        matrix = recurrence.matrix
        start = start_waves(excitation, probe.incident, matrix.dtype).mT.contiguous()
        index = probe.beam[:, None].expand(-1, start.shape[1], -1)
        return cls(recurrence, start, index, probe.weight.mT.to(recurrence.twice.dtype))

    def carry(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return T_(K-1) psi(0), T_K psi(0), and the slots' waves at all depths (F, D, T, B)."""
        x = self.recurrence
        total = _Sum(x, self.index, x.matrix.dtype)
        last, beyond = total.carry(self.start, lambda *pair: _step(*pair, x.matrix, x.twice))
        return last, beyond, torch.complex(*total.parts())

    def adjoint(
        self, last: Tensor, beyond: Tensor, seen: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients by V (F, N, N) and S (F, N, T) from that by the profiles."""
        x = self.recurrence
        source = seen.conj() * (2 * grad.mT[:, :, None] * self.weight[:, None])
        sources = _Sources(x.table, source, 1 if x.matrix.is_complex() else 2)
        pairs = _Pairs(x, self.index, (beyond, last), sources.planes)
        for k in reversed(range(x.terms - 1)):
            pairs.add(sources.of(k + 1), 1.0 if k else 0.5)
        return pairs.gradients()


class _Sources:
    """What the sums at all depths send back to one T_k psi(0) after another, in the slots.

    `planes` is two where the terms are real: real and imaginary parts are then apart.
    """

    def __init__(self, table: Tensor, source: Tensor, planes: int):
        """Take `source` (F, D, T, B), by which dL = Re sum(source dpsi) in the slots."""
        self.table, self.planes = table, planes
        turned = torch.view_as_real(torch.stack([source, 1j * source]))  # of even and odd k
        if planes == 2:
            turned = turned.movedim(-1, -2)
        self.shape = source.shape[2], planes, source.shape[3]
        self.parts = turned.reshape(2, *source.shape[:2], -1)

    def of(self, k: int) -> Tensor:
        """Return what falls to T_k (F, T, planes, B); from the last k to the first one."""
        if (k + 1) % _GROUP == 0 or k + 1 == self.table.shape[1]:
            begin = k - k % _GROUP
            shares = (self.table[:, begin + parity : k + 1 : 2].mT for parity in (0, 1))
            pairs = zip(shares, self.parts, strict=True)
            self.group = [x.expand(len(part), -1, -1) @ part for x, part in pairs]
        found = self.group[k % 2][:, k % _GROUP // 2]
        if self.planes == 2:
            return found.unflatten(1, self.shape)
        return torch.view_as_complex(found.unflatten(1, (*self.shape, 2)))


class _Pairs:
    """Gradients from the terms and from their adjoints l_k, both from the last k to the first.

    With l_k = s_k + 2 X^T l_(k+1) - l_(k+2), where s_k is what the sums send back to T_k,
    dL = Re sum_k (2 - delta_k0) l_(k+1) dX T_k. The T_k are not kept, as the recurrence runs
    backwards as well and is as stable.
    """

    def __init__(self, recurrence: _Recurrence, index: Tensor, terms: tuple, planes: int):
        """Take T_K and T_(K-1) as `terms`; places 0 and 1 hold what came before a group."""
        f, t, n = recurrence.twice.shape
        self.recurrence, self.place = recurrence, 2
        self.transposed = recurrence.matrix.mT.contiguous()
        self.index = index[:, :, None].expand(-1, -1, planes, -1)
        self.left = recurrence.matrix.new_zeros(f, _GROUP + 2, t, planes, n)
        self.right = recurrence.matrix.new_empty(f, _GROUP + 2, t, n)
        self.right[:, 0], self.right[:, 1] = terms
        self.slopes = recurrence.matrix.new_zeros(f, planes * n, n)
        self.flow = torch.zeros_like(recurrence.twice)

    def add(self, source: Tensor, share: float) -> None:
        """Add the pair of the next adjoint, given what is sent to it, and of the term before."""
        x, place = self.recurrence, self.place
        before, ahead, adjoint = (self.left[:, place - i] for i in (2, 1, 0))
        _step(before, ahead, self.transposed, x.twice[:, :, None], adjoint)
        adjoint.scatter_add_(-1, self.index, source)
        before, ahead, term = (self.right[:, place - i] for i in (2, 1, 0))
        _step(before, ahead, x.matrix, x.twice, term).mul_(share)
        self.place += 1
        if self.place == _GROUP + 2:
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
        if self.slopes.is_complex():
            by_v = self.slopes.conj()
        else:
            real, imaginary = self.slopes.chunk(2, 1)
            by_v = torch.complex(real, -imaginary)
        return scale * by_v, scale * self.flow.mT


class _Sweep(torch.autograd.Function):
    """Profiles of a grid, probe, potential and excitation, with the adjoint of the recurrence.

    Each core works on a strip of its own.
    """

    @staticmethod
    def forward(ctx, grid: DepthGrid, shared: _Potential, probe: Probe, potential, excitation):
        """Return the profiles (F, B, D); `shared` is made of the potential (F, N, N)."""
        cut = Cut.of(excitation)
        given = _Recurrence.of(shared, excitation, grid).parts(cut)
        strips = [
            _Strip.of(*part) for part in zip(given, *cut.parts(probe, excitation), strict=True)
        ]
        waves = cut.each(_Strip.carry, [(strip,) for strip in strips])
        if any(ctx.needs_input_grad):
            ctx.kept = cut, strips, waves
        pairs = zip(strips, waves, strict=True)
        return cut.joined([intensities(seen, x.weight) for x, (*_, seen) in pairs], 0)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradients by the potential (F, N, N) and excitation errors (F, N, T)."""
        cut, strips, waves = ctx.kept
        work = zip(strips, waves, cut.split(grad, 0), strict=True)
        found = cut.each(lambda strip, waves, grad: strip.adjoint(*waves, grad), work)
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
    def of(cls, x: _Recurrence, moves: Moves) -> _Variation:
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
        _step(before, now, self.matrix, self.twice)
        by_potential = before.view(f, t, -1)[:, :, n : (1 + p) * n]
        by_potential.baddbmm_(now[:, :, 0], self.changes)
        before[:, :, 1 + p :].addcmul_(self.turns, now[:, :, :1])
        return before


def _forward_mode(x: _Recurrence, moves: Moves, probe: Probe) -> tuple[Tensor, Tensor]:
    """Return the profiles (F, B, D) and their derivatives (P + Q, F, B, D)."""
    variation = _Variation.of(x, moves)
    start = variation.start(probe.incident)
    index = probe.beam[:, None, None].expand(-1, *start.shape[1:3], -1)
    total = _Sum(x, index, start.dtype)
    total.carry(start, variation.step)
    weight = probe.weight.mT.to(x.table.dtype)[:, :, None]
    found = []
    for parts in total.parts().unbind(2):  # (2, F, T, 1 + P + Q, B) of one depth
        products = (parts * parts[..., :1, :]).sum(0).mul_(weight)
        found.append(products.sum(1))
    found = torch.stack(found, -1)  # (F, 1 + P + Q, B, D)
    return found[:, 0], 2 * found[:, 1:].transpose(0, 1)
