"""The structure matrix V_gh = (U + iU')_(h-g) m_g m_h / 2K of each block, in A^-1.

U_g is that of a table, which holds every coupling of all blocks once. Beams far from the Ewald
sphere add what they do to the others; see the room perturbation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import Batch
from .beams import BeamSet, Couplings
from .data import Structure
from .equivalents import Equivalents, has_centre
from .perturbation import WeakBeams, second_order
from .propagation import DIRECTIONS
from .propagation.series import plain, product

_NOTHING = 1e-6  # an imaginary part of the changes that rounding alone made, in real ones
_ROWS = 32  # of changes of the matrix that are made at once, so that caches hold them


class StructureMatrix:
    """Makes V of a batch of blocks, and its changes.

    `factor` takes F in A to U / 2K in A^-1, `dtype` is that of V, `hermitian` tells whether
    U_-g is the conjugate of U_g, as without absorption.
    """

    def __init__(
        self,
        structure: Structure,
        beam_set: BeamSet,
        weak: WeakBeams | None,
        factor: float,
        dtype: torch.dtype,
        hermitian: bool,
    ):
        self.weak, self.factor, self.dtype, self.hermitian = weak, factor, dtype, hermitian
        far = None if weak is None else (weak.hkl, weak.valid)
        self.couplings = Couplings.of(beam_set, far)
        self.equivalents = Equivalents.of(structure, self.couplings.hkl)
        self.real = hermitian and has_centre(structure)  # and stays so, whatever is refined

    def to(self, device: str) -> None:
        """Take all tensors to the device."""
        self.couplings, self.equivalents = self.couplings.to(device), self.equivalents.to(device)
        self.weak = None if self.weak is None else self.weak.to(device)

    @property
    def far(self) -> int:
        """The largest number of beams of a block that act to second order."""
        return 0 if self.weak is None else self.weak.hkl.shape[1]

    def table(self, structure_factor: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (U + iU') / 2K (A^-1) of the couplings, with a zero at the end, (..., M + 1).

        `structure_factor` takes hkl (m, 3) to F + iF' in A (..., m), or to changes of it that have
        the symmetry of the crystal. That of g = 0 is kept, for U'_0; U_0 is in the wavenumber.
        """
        unique = self.equivalents
        f = unique.spread(structure_factor(unique.hkl) * self.factor)
        return torch.cat([f, f.new_zeros(*f.shape[:-1], 1)], -1)

    def __call__(self, batch: Batch, table: Tensor) -> Tensor:
        """Return V (f, N, N) of a batch from a table (M + 1,), real where that is."""
        near, table = _beams_of(batch), self._light(table)
        out = self._coupled(table, near, near)
        if self.weak is None:
            return out
        far, inverse = self._far(batch)
        into, back = self._coupled(table, far, near), self._coupled(table, near, far)
        return out + second_order(into, back, inverse)

    def moved(self, batch: Batch, table: Tensor, moved: Tensor) -> Tensor:
        """Return the changes (P, f, N, N) of V by changes of the table (P, M + 1)."""
        near, table, moved = _beams_of(batch), self._light(table), self._light(moved)
        out = self._coupled(moved, near, near).to(self.dtype)
        if self.weak is None:
            return out
        far, inverse = self._far(batch)
        into, back = self._coupled(table, far, near), self._coupled(table, near, far)
        for change, of_table in zip(out, moved, strict=True):  # one at a time: they are large
            added = second_order(self._coupled(of_table, far, near), back, inverse)
            change += added
            if self.hermitian:
                change += added.mH
            else:
                change += second_order(into, self._coupled(of_table, near, far), inverse)
        return out

    def changes(self, batch: Batch, table: Tensor, moved: Tensor) -> Changes:
        """Return the changes of V by changes of the table (P, M + 1), made as they are used."""
        return Changes(self, batch, table, moved)

    def actions(
        self, batch: Batch, table: Tensor, moved: Tensor, with_far: bool
    ) -> list[BlockChanges]:
        """Return what changes of the table (P, M + 1) do to V of each block, on waves.

        What far beams do stays as it is unless `with_far`.
        """
        real = self.dtype.to_real()
        small = bool(moved.imag.abs().max() <= _NOTHING * moved.real.abs().max())
        moved = (moved.real if small else moved).to(real if small else self.dtype)
        with_far = with_far and self.weak is not None
        beams, far = _beams_of(batch), None
        if with_far:
            far, inverse = self._far(batch)
            table = self._light(table)
            into, back = self._coupled(table, far, beams), self._coupled(table, beams, far)
        out = []
        for f in range(len(batch.blocks)):
            near = tuple(x[f, None] for x in beams)
            terms = [(self._entries(moved, near, near), None, None)]
            if with_far:
                distant = tuple(x[f, None] for x in far)
                there, here = -inverse[f, :, None] * into[f], -back[f] * inverse[f]
                terms.append((self._entries(moved, near, distant), there, None))
                terms.append((self._entries(moved, distant, near), None, here))
            out.append(BlockChanges(tuple(terms), len(moved)))
        return out

    def _entries(self, moved: Tensor, rows: tuple, columns: tuple) -> _Entries:
        """Return the changes of couplings of one block's beams in the rows to others."""
        places = self.couplings.places(rows[:2], columns[:2])[0]
        m, n = (x[2][0].to(moved.real.dtype) for x in (rows, columns))
        return _Entries(moved, places, m, n)

    def _far(self, batch: Batch) -> tuple[tuple, Tensor]:
        """The beams that act to second order on a batch, and their 1 / S (f, M) in A."""
        weak, blocks = self.weak, batch.blocks
        far = weak.hkl[blocks], weak.valid[blocks], weak.obliquity[blocks]
        return far, weak.inverse[blocks].to(self.dtype.to_real())

    def _light(self, table: Tensor) -> Tensor:
        """Return a table in the precision of V, real if it can be, unless it has a gradient.

        Gradients by an entry are sums over all its couplings, which are made in double precision.
        """
        return table if table.requires_grad else plain(table.to(self.dtype))

    def _coupled(self, table: Tensor, rows: tuple, columns: tuple) -> Tensor:
        """Return the couplings (..., f, N, M) in A^-1 of beams in the rows to others.

        Both are hkl, valid and m of beams.
        """
        places, (*_, m), (*_, n) = self.couplings.places(rows[:2], columns[:2]), rows, columns
        m, n = (x.to(table.real.dtype) for x in (m, n))
        out = table[..., places] * (m[:, :, None] * n[:, None, :])
        return out.to(self.dtype if out.is_complex() else self.dtype.to_real())


@dataclass(frozen=True)
class Changes:
    """Changes of V of a batch by those of the table, see `propagation.base.Changes`."""

    matrix: StructureMatrix
    batch: Batch
    table: Tensor  # (M + 1,) A^-1
    moved: Tensor  # (P, M + 1)

    def __len__(self) -> int:
        """Return P."""
        return len(self.moved)

    def matrices(self) -> Iterator[Tensor]:
        """Yield them (p, f, N, N), some at a time."""
        for some in self.moved.split(DIRECTIONS):
            yield self.matrix.moved(self.batch, self.table, some)

    def actions(self, far: bool) -> list[BlockChanges]:
        """Return those of each block, as they act on waves."""
        return self.matrix.actions(self.batch, self.table, self.moved, far)


@dataclass(frozen=True)
class _Entries:
    """P changes of the couplings of N beams to M others, made as they are used."""

    table: Tensor  # (P, couplings + 1) A^-1
    places: Tensor  # (N, M) into them
    rows: Tensor  # (N,) m of the beams in the rows
    columns: Tensor  # (M,)

    def __call__(self, waves: Tensor) -> Tensor:
        """Return what they make of waves (M, m), (N, P, m)."""
        dtype = torch.promote_types(self.table.dtype, waves.dtype)
        waves = (self.columns[:, None] * waves).to(dtype)
        out = waves.new_empty(len(self.rows), len(self.table), waves.shape[1])
        for some in torch.arange(len(self.rows), device=waves.device).split(_ROWS):
            picked = self.table[:, self.places[some].flatten()].view(-1, len(waves)).to(dtype)
            found = (picked @ waves).view(len(self.table), len(some), -1)
            torch.mul(
                found.transpose(0, 1), self.rows[some, None, None], out=out[some[0] : some[-1] + 1]
            )
        return out


@dataclass(frozen=True)
class BlockChanges:
    """P changes dV of a block's matrix as they act on waves.

    Each term is B dE A: changes dE of couplings, after A and before B, None where there is none.
    """

    terms: tuple[tuple[_Entries, Tensor | None, Tensor | None], ...]
    directions: int  # P

    def __call__(self, waves: Tensor) -> Tensor:
        """Return dV waves (N, P, m) of waves (N, m)."""
        out = None
        for entries, first, last in self.terms:
            found = entries(waves if first is None else product(first, waves))
            if last is not None:
                found = product(last, found.flatten(1)).view(len(last), *found.shape[1:])
            out = found if out is None else out + found
        return out


def _beams_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.hkl, batch.valid, batch.obliquity
