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
from .series import plain, product

LEFT_OUT = 5e-3  # derivatives are then right to a hundredth or better, see docs/integrators.md
# for estimates of work, against other methods' products
_KEPT = 0.6  # Bloch waves kept of all, over coupling by half the range of S: of quartz to CsPbBr3
_DIAGONALISED = 8, 32  # operations of a diagonalisation over N^3, real and complex
_SMALL = 300  # operations in whose time a number of dpsi is made
_CALLS = 4e7  # and what is done for a sample besides
_MORE_WITH_FAR = 2.5  # work of what changes do to waves by way of far beams as well
_CACHED = 1_000_000  # numbers of a factor of all waves at all depths that are formed at once
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
        n, weights = len(potential), probe.weight.T.to(profiles)
        together = max(1, _CACHED // (n * n * len(depths)))
        samples = self._solved(potential, excitation, int(probe.incident), together)
        pairs = zip(samples, weights.split(together), strict=True)
        for group in _groups(pairs, max(1, _NUMBERS // (act.directions * n))):
            parts = act(torch.cat([x.columns.transpose(0, 1).flatten(1) for x, _ in group], 1))
            parts = parts.split([x.kept.numel() for x, _ in group], 2)
            for (x, weight), changed in zip(group, parts, strict=True):
                seen = _Seen.of(x, probe.beam, depths)
                weight = weight[:, :, None]
                profiles += (weight * (seen.psi.real.square() + seen.psi.imag.square())).sum(0)
                weighted = 2 * weight * seen.psi
                changed = changed.unflatten(2, x.kept.shape).permute(2, 0, 1, 3)
                for out, some in zip(
                    slopes.split(DIRECTIONS), changed.split(DIRECTIONS, 2), strict=True
                ):
                    moved = seen.moved(some)
                    out += torch.einsum("tbd,tbpd->pbd", weighted.real, moved.real)
                    out += torch.einsum("tbd,tbpd->pbd", weighted.imag, moved.imag)
        return profiles, slopes

    def _solved(
        self, potential: Tensor, excitation: Tensor, incident: int, together: int
    ) -> Iterator[_Samples]:
        """Solve some orientation samples after others."""
        steady, lost = plain((potential + potential.mH) / 2), None
        if not is_hermitian(potential):
            lost = (potential - potential.mH) / 2j
        for s in excitation.T.split(together):
            values, vectors = torch.linalg.eigh(torch.diag_embed(s).to(steady.dtype) + steady)
            start = vectors[:, incident].conj()
            current, order = start.abs().square().sort(descending=True)
            count = int((current.cumsum(1) < 1 - self.left_out).sum(1).max()) + 1
            fading = torch.zeros_like(values)
            if lost is not None:
                fading = (vectors.conj() * (lost @ vectors.to(lost.dtype))).sum(1).real
            yield _Samples(values.double(), fading.double(), vectors, start, order[:, :count])


@dataclass(frozen=True)
class _Samples:
    """The Bloch waves of some orientation samples."""

    values: Tensor  # (t, N) x, in A^-1
    fading: Tensor  # (t, N) the imaginary part of x
    vectors: Tensor  # (t, N, N) C
    start: Tensor  # (t, N) C^H psi(0)
    kept: Tensor  # (t, k) the waves that carry the current

    @property
    def columns(self) -> Tensor:
        """C of the waves that carry the current, (t, N, k)."""
        return self.vectors.gather(2, self.kept[:, None].expand(-1, self.vectors.shape[1], -1))


@dataclass(frozen=True)
class _Seen:
    """Bloch waves of some samples as some beams have them at all depths."""

    vectors: Tensor  # (t, N, N) C
    rows: Tensor  # (t, B, N) those of the beams
    half: Tensor  # (t, N, 1, D) exp(i pi z x)
    differences: Tensor  # (t, N, k, D) D C^H psi(0) over `half`
    psi: Tensor  # (t, B, D)

    @classmethod
    def of(cls, x: _Samples, beam: Tensor, depths: Tensor) -> _Seen:
        """Take beams (B,) and depths (D,) in A."""
        half = torch.exp(math.pi * depths * torch.complex(-x.fading, x.values)[:, :, None])
        rows = x.vectors[:, beam]
        # D_jk = 2 pi i z exp(i pi z (x_j + x_k)) sinc(z (x_j - x_k)), also where x_j = x_k
        begun = half * x.start[:, :, None]
        source = begun.gather(1, x.kept[:, :, None].expand(-1, -1, len(depths)))
        source = 2j * math.pi * depths * source
        real = x.vectors.real.dtype
        gap = (x.values[:, :, None] - x.values.gather(1, x.kept)[:, None]).to(real)
        dtype, depths = torch.promote_types(real, torch.complex64), depths.to(real)
        differences = torch.sinc(gap[:, :, :, None] * depths) * source[:, None].to(dtype)
        psi = rows.to(dtype) @ (half * begun).to(dtype)
        return cls(x.vectors, rows, half[:, :, None].to(dtype), differences, psi)

    def moved(self, changed: Tensor) -> Tensor:
        """Return dpsi (t, B, p, D) of changes dV C of the columns, (t, N, p, k)."""
        back = self.vectors.mH.to(changed.dtype)
        inner = (back @ changed.flatten(2)).view(changed.shape)
        out = product(inner, self.differences) * self.half
        return product(self.rows, out.flatten(2)).unflatten(2, out.shape[2:])


def _groups(samples: Iterable[tuple[_Samples, Tensor]], most: int) -> Iterator[list]:
    """Yield samples and what comes with them, up to `most` columns or one batch at a time."""
    group, columns = [], 0
    for x, other in samples:
        if group and columns + x.kept.numel() > most:
            yield group
            group, columns = [], 0
        group.append((x, other))
        columns += x.kept.numel()
    yield group


def _of_one(probe: Probe, block: int) -> Probe:
    return Probe(probe.incident[block], probe.beam[block], probe.weight[block])
