"""How much of the current passes through each beam of a block, and which beams may be left out.

An estimate to second order. Scattered once, a beam h gets about 2 V^2 / (S^2 + 4 V^2) of the
current, the depth average of two beams (P. B. Hirsch et al. 1977, Electron Microscopy of Thin
Crystals, chapter 8), less where the crystal is thinner than the extinction length. From there, and
from the incident beam, it goes on to a beam g: with X^2 = sum over h of share_h |V_gh|^2 its part
is X^2 / (X^2 + S_g^2). V = U / 2K and S in A^-1. The mean over a block's orientations counts: a
beam that crosses the Ewald sphere for a moment matters for a moment.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .beams import lattice_points
from .data import Structure

_AT_ONCE = 64  # beams whose couplings are looked up together, so that caches hold them


class Relevance:
    """Tells which beams of a block may be left out.

    `strength` takes hkl (M, 3) to |U_g / 2K| in A^-1, `g_max` (A^-1) is how far couplings are
    looked at, `thickness` in A is that of the crystal, `left_out` the share of the current that may
    pass through all the beams that are left out.
    """

    def __init__(
        self,
        structure: Structure,
        strength: Callable[[Tensor], Tensor],
        g_max: float,
        thickness: float,
        left_out: float,
    ):
        hkl = lattice_points(structure, g_max)
        self.reach = hkl.abs().amax(0) if len(hkl) else torch.zeros(3, dtype=torch.int64)
        # differences of beams go twice as far; all places of one are those of two, subtracted
        a, b, c = (4 * self.reach + 1).tolist()
        self.step = torch.tensor([b * c, c, 1])
        self.origin = int((2 * self.reach * self.step).sum())
        self.box = torch.zeros(a * b * c, dtype=torch.float64)
        self.box[self.origin + hkl @ self.step] = strength(hkl)
        self.thin = 1 / (2 * thickness)
        self.left_out = left_out

    def __call__(self, hkl: Tensor, excitation: Tensor) -> Tensor:
        """Return (M,) bool, the beams hkl (M, 3) to keep; `excitation` (T, M) is S in A^-1."""
        share, order = self.shares(hkl, excitation).sort()
        kept = torch.ones(len(hkl), dtype=torch.bool)
        kept[order[share.cumsum(0) <= self.left_out]] = False
        return kept

    def shares(self, hkl: Tensor, excitation: Tensor) -> Tensor:
        """Return the estimated share of the current (M,) in each beam, averaged over samples."""
        error, once = excitation.square(), self._once(hkl, excitation)
        spread = [once @ self._coupling(hkl, some).square() for some in hkl.split(_AT_ONCE)]
        twice = self._strength(hkl).square() + torch.cat(spread, 1)
        return (twice / (twice + error).clamp(min=1e-300)).mean(0)

    def coupling(self, hkl: Tensor, near: Tensor, excitation: Tensor) -> Tensor:
        """Return how strongly others excite the beams hkl (M, 3), (M,) in A^-2.

        It is sum over h of share_h |V_gh|^2 of the incident beam and those in `near` (N, 3), whose
        S in A^-1 is `excitation` (T, N).
        """
        known = (near.abs() <= self.reach).all(1)  # measured ones may be further out
        near, excitation = near[known], excitation[:, known]
        share = self._once(near, excitation).mean(0)
        found = [self._coupling(some, near).square() @ share for some in hkl.split(_AT_ONCE)]
        return self._strength(hkl).square() + torch.cat([*found, share[:0]])

    def _once(self, hkl: Tensor, excitation: Tensor) -> Tensor:
        """The share (T, M) of the current in beams that the incident one excites."""
        direct = self._strength(hkl).square()
        return 2 * direct / (excitation.square() + 4 * direct + self.thin**2)

    def _strength(self, hkl: Tensor) -> Tensor:
        """|U / 2K| (M,) of hkl (M, 3), zero of g = 0."""
        return self.box[self.origin + hkl @ self.step]

    def _coupling(self, hkl: Tensor, others: Tensor) -> Tensor:
        """|U / 2K| (M, N) of the differences of beams, zero beyond the reach and of g = 0."""
        return self.box[self.origin + (hkl @ self.step)[:, None] - (others @ self.step)[None]]
