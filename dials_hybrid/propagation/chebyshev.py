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
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .base import DepthGrid, Moves, Probe, start_waves
from .series import plain
from .strips import Cut, in_chunks, intensities

_GROUP = 32  # terms that are summed, and their gradients formed, together


@dataclass(frozen=True)
class Chebyshev:
    """Chebyshev series to the rounding of the waves' precision: there is no step to choose."""

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""
        return in_chunks(
            lambda probe, v, s: _Sweep.apply(grid, probe, v, s), potential, excitation, probe
        )


@dataclass(frozen=True)
class _Recurrence:
    """T_(k+1) = 2 X T_k - T_(k-1) for waves that are rows, and the sums at all depths."""

    matrix: Tensor  # 2 V^T / r (F, N, N), real where V is
    twice: Tensor  # 2 (S - c) / r (F, T, N)
    table: Tensor  # (D, K) real coefficients; those of odd k are over i
    radius: float  # r, A^-1

    @classmethod
    def of(cls, potential: Tensor, excitation: Tensor, grid: DepthGrid) -> _Recurrence:
        """Find r and c of potential (F, N, N) and excitation (F, N, T), all in A^-1."""
        v, rows = plain(potential), excitation.mT
        low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        half_range = 0.5 * float((high - low).max())
        least = 1 / (2 * math.pi * grid.step * grid.count)
        radius = _rounded_up(max(half_range + norm_bound(v), least))
        growth = norm_bound((v - v.mH) / 2) / radius if v.is_complex() else 0.0
        precision = max(torch.finfo(v.dtype).eps / 4, _ROUNDING)
        table = coefficients(radius, grid, precision, _rounded_up(growth))
        return cls(
            matrix=(v.mT * (2 / radius)).contiguous(),
            twice=((rows - 0.5 * (low + high)) * (2 / radius)).contiguous(),
            table=torch.from_numpy(table).to(rows.device, rows.dtype),
            radius=radius,
        )

    def parts(self, cut: Cut) -> list[_Recurrence]:
        """Return those of the strips of a cut."""
        # samples are rows here
        twice = self.twice.split(cut.sizes, 0 if cut.dim == 0 else 1)
        pairs = zip(cut.split(self.matrix, 0), twice, strict=True)
        return [_Recurrence(*pair, self.table, self.radius) for pair in pairs]


_ROUNDING = 1e-15  # of the coefficients
_FINENESS = 64  # radii in a factor of two; the same one often comes again


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


@lru_cache(maxsize=64)
def coefficients(radius: float, grid: DepthGrid, precision: float, growth: float) -> np.ndarray:
    """Return (2 - delta_k0) i^k J_k(2 pi r z), over i for odd k, at the depths z: (D, K).

    They are the Fourier coefficients of exp(i 2 pi r z cos(angle)). K is the number of those
    above `precision` at the largest depth; `growth` is the largest imaginary part of an
    eigenvalue of X, by which T_k may grow as exp(k asinh(growth)).
    """
    a = 2 * math.pi * radius * grid.step * np.arange(1, grid.count + 1)
    # J_k falls faster than exponentially beyond k = a, over some multiples of a^(1/3)
    most = (1 + growth) * a[-1] + 20 * a[-1] ** (1 / 3) + 80
    points = 2 ** math.ceil(math.log2(2 * most))
    angle = 2 * math.pi * np.arange(points) / points
    found = np.fft.fft(np.exp(1j * a[:, None] * np.cos(angle)))[:, : points // 2] / points
    k = np.arange(points // 2)
    table = np.where(k > 0, 2, 1) * np.where(k % 2 == 0, found.real, found.imag)
    large = np.abs(table[-1]) * np.exp(np.minimum(k * math.asinh(growth), 500)) > precision
    large &= np.abs(table[-1]) > _ROUNDING
    return table[:, : max(2, int(np.flatnonzero(large).max()) + 1)]


def _first(matrix: Tensor, twice: Tensor, start: Tensor) -> Tensor:
    """Return X psi(0) of rows (F, ..., N)."""
    flat = start.flatten(1, -2)
    product = torch.bmm(flat, matrix).view_as(start)
    return product.addcmul_(twice, start).mul_(0.5)


class _Sum:
    """The waves in the beams of the slots at all depths, from one T_k after another."""

    def __init__(self, table: Tensor, index: Tensor, dtype: torch.dtype):
        f, *rest = index.shape
        self.table, self.index, self.rest = table, index, rest
        self.room = torch.empty(2, f, _GROUP // 2, *rest, dtype=dtype, device=index.device)
        parts = math.prod(rest) * (2 if dtype.is_complex else 1)
        self.sums = table.new_zeros(2, f, len(table), parts)
        # the first depth at which a term of a group or a later one matters
        later = table.abs().flip(1).cummax(1).values.flip(1) > _ROUNDING
        self.first = [int((~later[:, k]).sum()) for k in range(0, table.shape[1], _GROUP)]

    def add(self, k: int, waves: Tensor) -> None:
        """Add the term of T_k psi(0), whose beams are along the last dimension."""
        torch.gather(waves, -1, self.index, out=self.room[k % 2][:, k % _GROUP // 2])
        if (k + 1) % _GROUP == 0 or k + 1 == self.table.shape[1]:
            self._add_group(k - k % _GROUP, k + 1)

    def _add_group(self, begin: int, end: int) -> None:
        first = self.first[begin // _GROUP]
        for parity in range(min(2, end - begin)):
            share = self.table[first:, begin + parity : end : 2]
            terms = _real_view(self.room[parity][:, : share.shape[1]]).flatten(2)
            self.sums[parity][:, first:].baddbmm_(share.expand(len(terms), -1, -1), terms)

    def waves(self) -> Tensor:
        """Return the complex waves (F, D, ..., B)."""
        f, depths = self.sums.shape[1:3]
        if not self.room.is_complex():
            return torch.complex(*self.sums).view(f, depths, *self.rest)
        even, odd = torch.view_as_complex(self.sums.view(2, f, depths, *self.rest, 2))
        return even.add_(odd, alpha=1j)


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
        """Return the last two T_k psi(0) and the waves of the slots at the depths (F, D, T, B)."""
        matrix, twice, table = (getattr(self.recurrence, x) for x in ("matrix", "twice", "table"))
        total = _Sum(table, self.index, matrix.dtype)
        before, now = self.start.clone(), _first(matrix, twice, self.start)
        total.add(0, before)
        total.add(1, now)
        for k in range(2, table.shape[1]):
            before.baddbmm_(now, matrix, beta=-1).addcmul_(twice, now)
            before, now = now, before
            total.add(k, now)
        return before, now, total.waves()


class _Sweep(torch.autograd.Function):
    """Profiles by a grid, probe, potential and excitation."""

    @staticmethod
    def forward(ctx, grid: DepthGrid, probe: Probe, potential: Tensor, excitation: Tensor):
        """Return the profiles (F, B, D)."""
        cut = Cut.of(excitation)
        given = _Recurrence.of(potential, excitation, grid).parts(cut)
        strips = [
            _Strip.of(*part) for part in zip(given, *cut.parts(probe, excitation), strict=True)
        ]
        waves = cut.each(_Strip.carry, [(strip,) for strip in strips])
        pairs = zip(strips, waves, strict=True)
        return cut.joined([intensities(seen, x.weight) for x, (*_, seen) in pairs], 0)
