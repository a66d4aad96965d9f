"""What beams far from the Ewald sphere do to the others, to second order (Bethe potentials).

A beam w of large excitation error follows those near the sphere, psi_w = -sum_h V_wh psi_h / S_w,
and scatters back into them: V_gh becomes V_gh - sum_w V_gw V_wh / S_w (H. A. Bethe 1928,
doi:10.1002/andp.19283921704; J. M. Zuo & A. L. Weickenmeier 1995,
doi:10.1016/0304-3991(94)00190-X). V = U / 2K and S in A^-1. 1/S_w is its mean over the orientations
of a block, as the experiment has them. The current in those beams is left out of account.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .beams import BeamSet, excitation_errors, lattice_points, obliquity
from .data import Record, Scan, Structure

NEAREST = 0.005  # A^-1, |S| of a beam that is left out though it is near: it is no perturbation


@dataclass(frozen=True)
class WeakBeams(Record):
    """The beams of F blocks that act to second order, padded to M."""

    hkl: Tensor  # (F, M, 3) int64, zero where padded
    valid: Tensor  # (F, M) bool
    obliquity: Tensor  # (F, M) m_w
    inverse: Tensor  # (F, M) A, mean of 1 / (S_w m_w^2); zero where padded

    @classmethod
    def of(
        cls,
        structure: Structure,
        scan: Scan,
        strong: BeamSet,
        g_max: float,
        reach: float,
        wavenumber: Tensor,
    ) -> WeakBeams:
        """Choose the beams of |g| <= g_max with |S| <= reach (A^-1) that are not in `strong`.

        `wavenumber` (F,) in A^-1 is that inside the crystal.
        """
        hkl, found = lattice_points(structure, g_max), []
        for block in range(len(scan.setting)):
            vectors = torch.einsum("tij,mj->tmi", scan.setting[block], hkl.double())
            s = excitation_errors(vectors[None], scan.s0[block, None], wavenumber[block, None])[0]
            least = s.abs().amin(0)
            crossed = (s.amax(0) > 0) & (s.amin(0) < 0)
            chosen = (least >= NEAREST) & (least <= reach) & ~crossed
            chosen &= ~_among(hkl, strong.hkl[block, strong.valid[block]])
            found.append((hkl[chosen], (1 / s[:, chosen]).mean(0)))
        most = max(len(h) for h, _ in found)
        padded = torch.zeros(len(found), most, 3, dtype=torch.int64)
        inverse = torch.zeros(len(found), most, dtype=torch.float64)
        valid = torch.zeros(len(found), most, dtype=torch.bool)
        for block, (h, x) in enumerate(found):
            padded[block, : len(h)], inverse[block, : len(h)] = h, x
            valid[block, : len(h)] = True
        m = obliquity(scan, torch.arange(len(found)), padded, wavenumber)
        return cls(padded, valid, m, inverse / m.square())


def _among(hkl: Tensor, others: Tensor) -> Tensor:
    """Return (M,) bool, the hkl (M, 3) that are among others (n, 3)."""
    reach = torch.cat([hkl, others]).abs().amax(0)
    sizes = 2 * reach + 1
    step = torch.stack([sizes[1] * sizes[2], sizes[2], torch.ones_like(sizes[2])])
    return torch.isin((hkl * step).sum(-1), (others * step).sum(-1))


def second_order(into: Tensor, back: Tensor, inverse: Tensor) -> Tensor:
    """Return -sum_w V_gw V_wh / S_w (f, N, N) in A^-1.

    `into` (f, M, N) is V_wh, `back` (f, N, M) is V_gw, `inverse` (f, M) is 1 / S_w in A.
    """
    return -(back * inverse[:, None]) @ into
