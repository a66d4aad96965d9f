"""Chebyshev terms T_k(X) psi(0): their recurrence, its coefficients, and their sums at all depths.

X = (diag(S - c) + V) / r has its eigenvalues within [-1, 1]; see `chebyshev`.
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

from .base import DepthGrid
from .series import largest_norm, plain
from .strips import Cut

GROUP = 32  # terms that are summed, and their gradients formed, together


@dataclass(frozen=True)
class Potential:
    """The potential less i times its mean absorption, and bounds of it, all in A^-1."""

    transposed: Tensor  # V^T (F, N, N), real where V is
    mean: float  # of the imaginary part of V's diagonal
    norm: float  # of V
    absorbed: float  # norm of the anti-Hermitian part

    @classmethod
    def of(cls, potential: Tensor) -> Potential:
        """Find the bounds of V (F, N, N)."""
        v, mean, absorbed = plain(potential), 0.0, 0.0
        if v.is_complex():
            mean = float(v.diagonal(dim1=1, dim2=2).imag.mean())
            v = v - 1j * mean * torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
            absorbed = norm_bound((v - v.mH) / 2)
        return cls(v.mT.contiguous(), mean, norm_bound(v), absorbed)


@dataclass(frozen=True)
class Recurrence:
    """T_(k+1) = 2 X T_k - T_(k-1) for waves that are rows, and the sums at all depths."""

    matrix: Tensor  # 2 V^T / r (F, N, N), real where V is
    twice: Tensor  # 2 (S - c) / r (F, T, N)
    table: Tensor  # (D, K) real coefficients; those of odd k are over i
    reach: tuple  # how many of them differ from zero at each depth
    radius: float  # r, A^-1

    @classmethod
    def of(cls, potential: Potential, excitation: Tensor, grid: DepthGrid) -> Recurrence:
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

    def parts(self, cut: Cut) -> list[Recurrence]:
        """Return those of the strips of a cut."""
        # samples are rows here
        twice = self.twice.split(cut.sizes, 0 if cut.dim == 0 else 1)
        pairs = zip(cut.split(self.matrix, 0), twice, strict=True)
        return [Recurrence(*pair, self.table, self.reach, self.radius) for pair in pairs]


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
    return scale * largest_norm(square @ square) ** (1 / 4)


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


def advance(before: Tensor, now: Tensor, matrix: Tensor, twice: Tensor, out=None) -> Tensor:
    """Return 2 X T_k - T_(k-1) of rows (F, ..., N) in place of T_(k-1), or as `out`."""
    out = before if out is None else out
    rows = (x.flatten(1, -2) for x in (before, now))
    torch.baddbmm(*rows, matrix, beta=-1, out=out.flatten(1, -2))
    return out.addcmul_(twice, now)


class Sum:
    """The waves in the beams of the slots at all depths, from one T_k after another."""

    def __init__(self, recurrence: Recurrence, index: Tensor, dtype: torch.dtype):
        table, f, *rest = recurrence.table, *index.shape
        self.recurrence, self.table, self.index, self.rest = recurrence, table, index, rest
        self.room = torch.empty(2, f, GROUP // 2, *rest, dtype=dtype, device=index.device)
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
        torch.gather(waves, -1, self.index, out=self.room[k % 2][:, k % GROUP // 2])
        if (k + 1) % GROUP == 0 or k + 1 == self.table.shape[1]:
            self._add_group(k - k % GROUP, k + 1)

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
