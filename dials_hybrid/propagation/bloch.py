"""Derivatives by the structure from the few Bloch waves that carry the current.

With M = diag(S) + V = C diag(x) C^H, a change dV of the potential changes the waves by

    dpsi(z) = C [(C^H dV C) * D(z)] C^H psi(0),   D_jk = (e(x_j) - e(x_k)) / (x_j - x_k),

where * is elementwise and e(x) = exp(2 pi i z x) (Daleckii & Krein 1965; Higham 2008, Functions of
Matrices, theorem 3.11, doi:10.1137/1.9780898717778). A fast electron excites few Bloch waves k:
|C_0k|^2 is the share of the current in each. Of hundreds some tens carry all but a few
thousandths, and the columns k of the others are left out, while all waves j stay. A direction then
costs two products of (N, N) and (N, k) for a sample, instead of a wave carried through the crystal
and what dV adds to it on its way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import (
    DIRECTIONS,
    Action,
    Changes,
    DepthGrid,
    Moves,
    Probe,
    Propagator,
    Size,
    Work,
)
from .exact import is_hermitian
from .series import plain

LEFT_OUT = 5e-3  # derivatives are then right to a hundredth or better, see docs/integrators.md
# for estimates of work, against other methods' products
_KEPT = 0.6  # Bloch waves kept of all, over coupling by half the range of S: of quartz to CsPbBr3
_DIAGONALISED = 8, 32  # operations of a diagonalisation over N^3, real and complex
_SMALL = 300  # operations in whose time a number of dpsi is made
_CALLS = 4e7  # and what is done for a sample besides
_MORE_WITH_FAR = 2.5  # work of what changes do to waves by way of far beams as well
_NUMBERS = 20_000_000  # changes of waves that are held, at most, if not of a single sample


@dataclass(frozen=True)
class Bloch(Propagator):
    """Derivatives by the structure from Bloch waves; all else is of another method, `waves`.

    With absorption a Bloch wave fades by what its absorption is on average (first order in U', P.
    B. Hirsch et al. 1965, Electron Microscopy of Thin Crystals, chapter 9). `left_out` is the share
    of the current in waves whose columns are left out; unless `far`, actions are to leave as it is
    what beams far from the Ewald sphere do.
    """

    waves: Propagator
    left_out: float = LEFT_OUT
    far: bool = True

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""
        return self.waves(potential, excitation, probe, grid)

    def gradient_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class."""
        return self.waves.gradient_numbers(size, grid)

    def tangent_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class: matrices of samples, and changes of their waves."""
        matrices = size.beams**2 * size.samples
        waves = min(3 * _NUMBERS / DIRECTIONS, 3 * matrices)
        seen = (6 * size.beams + 4 * size.slots) * grid.count
        return max(self.waves.tangent_numbers(size, grid), matrices / DIRECTIONS + waves + seen)

    def tangents(
        self, potential: Tensor, excitation: Tensor, moves: Moves, probe: Probe, grid: DepthGrid
    ) -> tuple[Tensor, Tensor]:
        """Return those of the other method, by the structure and the orientation."""
        return self.waves.tangents(potential, excitation, moves, probe, grid)

    def derivatives(
        self,
        potential: Tensor,
        excitation: Tensor,
        changes: Changes,
        turns: Tensor,
        probe: Probe,
        grid: DepthGrid,
    ) -> tuple[Tensor, Tensor]:
        """Return those by the orientation of the other method; see the base class."""
        moves = Moves(potential.new_zeros(0, *potential.shape), turns)
        if not len(changes):
            return self.waves.tangents(potential, excitation, moves, probe, grid)
        actions = changes.actions(self.far)
        profiles, slopes = self.slopes(potential, excitation, actions, probe, grid)
        if len(turns):
            _, by_turn = self.waves.tangents(potential, excitation, moves, probe, grid)
            slopes = torch.cat([slopes, by_turn])
        return profiles, slopes

    def operations(self, work: Work, grid: DepthGrid) -> float:
        """See the base class; those of derivatives by the structure alone, where there are any."""
        if not work.directions:
            return self.waves.operations(work, grid)
        n, p = work.beams.double(), work.directions
        kept = (_KEPT * work.coupling / work.half_range.mean(1)).clamp(max=1) * n
        real = 1 if work.real else 4
        changed = real * 4 * n**2 * kept * (_MORE_WITH_FAR if self.far else 1)
        seen = (_SMALL + min(real, 2) * 4 * work.slots) * n * grid.count
        solved = _DIAGONALISED[not work.real] * n**3 + _CALLS
        return float(work.samples * (solved + p * (changed + seen)).sum())

    @torch.no_grad()
    def slopes(
        self,
        potential: Tensor,
        excitation: Tensor,
        actions: list[Action],
        probe: Probe,
        grid: DepthGrid,
    ) -> tuple[Tensor, Tensor]:
        """Return the profiles (F, B, D) and their derivatives (P, F, B, D) by changes of V.

        `actions` are the changes of each block as they act on waves.
        """
        depths = grid.depths(dtype=torch.float64, device=potential.device)
        found = [
            self._of_block(potential[f], excitation[f], act, _of_one(probe, f), depths)
            for f, act in enumerate(actions)
        ]
        profiles, slopes = zip(*found, strict=True)
        return torch.stack(profiles), torch.stack(slopes, 1)

    def _of_block(
        self, potential: Tensor, excitation: Tensor, act: Action, probe: Probe, depths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the profiles (B, D) and slopes (P, B, D) of one block."""
        profiles = excitation.new_zeros(len(probe.beam), len(depths))
        slopes = profiles.new_zeros(act.directions, *profiles.shape)
        most, weights = max(1, _NUMBERS // (act.directions * len(potential))), probe.weight.T
        samples = zip(
            self._solved(potential, excitation, int(probe.incident)), weights, strict=True
        )
        for group in _groups(samples, most):
            parts = act(torch.cat([x.columns for x, _ in group], 1))
            parts = parts.split([x.columns.shape[1] for x, _ in group], 2)
            for (x, weight), changed in zip(group, parts, strict=True):
                seen = _Seen.of(x, probe.beam, depths)
                weight = weight[:, None].to(profiles)
                profiles += weight * (seen.psi.real.square() + seen.psi.imag.square())
                weighted = 2 * weight * seen.psi
                for out, some in zip(
                    slopes.split(DIRECTIONS), changed.split(DIRECTIONS, 1), strict=True
                ):
                    moved = seen.moved(some)
                    out += weighted.real * moved.real + weighted.imag * moved.imag
        return profiles, slopes

    def _solved(self, potential: Tensor, excitation: Tensor, incident: int) -> Iterator[_Sample]:
        """Solve one orientation sample after another."""
        steady, lost = plain((potential + potential.mH) / 2), None
        if not is_hermitian(potential):
            lost = (potential - potential.mH) / 2j
        for s in excitation.unbind(1):
            values, vectors = torch.linalg.eigh(torch.diag(s).to(steady.dtype) + steady)
            start = vectors[incident].conj()
            current, order = start.abs().square().sort(descending=True)
            count = int((current.cumsum(0) < 1 - self.left_out).sum()) + 1
            fading = torch.zeros_like(values)
            if lost is not None:
                fading = (vectors.conj() * (lost @ vectors.to(lost.dtype))).sum(0).real
            yield _Sample(values.double(), fading.double(), vectors, start, order[:count])


@dataclass(frozen=True)
class _Sample:
    """The Bloch waves of one orientation sample."""

    values: Tensor  # (N,) x, in A^-1
    fading: Tensor  # (N,) the imaginary part of x
    vectors: Tensor  # (N, N) C
    start: Tensor  # (N,) C^H psi(0)
    kept: Tensor  # (k,) the waves that carry the current

    @property
    def columns(self) -> Tensor:
        """C of the waves that carry the current, (N, k)."""
        return self.vectors[:, self.kept]


@dataclass(frozen=True)
class _Seen:
    """A sample's Bloch waves as some beams have them at all depths."""

    vectors: Tensor  # (N, N) C
    rows: Tensor  # (B, N) those of the beams
    half: Tensor  # (N, 1, D) exp(i pi z x)
    differences: Tensor  # (N, k, D) D C^H psi(0) over `half`
    psi: Tensor  # (B, D)

    @classmethod
    def of(cls, x: _Sample, beam: Tensor, depths: Tensor) -> _Seen:
        """Take beams (B,) and depths (D,) in A."""
        half = torch.exp(math.pi * depths * torch.complex(-x.fading, x.values)[:, None])
        rows = x.vectors[beam]
        # D_jk = 2 pi i z exp(i pi z (x_j + x_k)) sinc(z (x_j - x_k)), also where x_j = x_k
        source = 2j * math.pi * depths * half[x.kept] * x.start[x.kept, None]
        real = x.vectors.real.dtype
        gap = (x.values[:, None] - x.values[x.kept]).to(real)
        half, source = (y.to(torch.promote_types(real, torch.complex64)) for y in (half, source))
        differences = torch.sinc(gap[:, :, None] * depths.to(real)) * source
        psi = rows.to(half.dtype) @ (half.square() * x.start[:, None])
        return cls(x.vectors, rows, half[:, None], differences, psi)

    def moved(self, changed: Tensor) -> Tensor:
        """Return dpsi (p, B, D) of changes dV C of the columns, (N, p, k)."""
        back = self.vectors.mH.to(changed.dtype)
        inner = (back @ changed.flatten(1)).view(changed.shape)
        out = _product(inner, self.differences) * self.half
        rows = _product(self.rows, out.flatten(1))
        return rows.view(len(rows), *out.shape[1:]).transpose(0, 1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b of a real or complex matrix (..., n, m) and a complex one (..., m, l)."""
    if a.is_complex():
        return a @ b
    return torch.view_as_complex((a @ torch.view_as_real(b).flatten(-2)).unflatten(-1, (-1, 2)))


def _groups(samples: Iterable[tuple[_Sample, Tensor]], most: int) -> Iterator[list]:
    """Yield samples and what comes with them, up to `most` columns or one sample at a time."""
    group, columns = [], 0
    for x, other in samples:
        if group and columns + len(x.kept) > most:
            yield group
            group, columns = [], 0
        group.append((x, other))
        columns += len(x.kept)
    yield group


def _of_one(probe: Probe, block: int) -> Probe:
    return Probe(probe.incident[block], probe.beam[block], probe.weight[block])
