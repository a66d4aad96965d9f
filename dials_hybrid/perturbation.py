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

from .beams import BeamSet, lattice_points, near_sphere, obliquity, padded
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
            near, s = near_sphere(hkl, scan, block, wavenumber, reach)
            crossed = (s.amax(0) > 0) & (s.amin(0) < 0)
            chosen = (s.abs().amin(0) >= NEAREST) & ~crossed
            chosen &= ~_among(near, strong.hkl[block, strong.valid[block]])
            found.append((near[chosen], (1 / s[:, chosen]).mean(0)))
        weak, inverse = (padded(list(parts)) for parts in zip(*found, strict=True))
        m = obliquity(scan, torch.arange(len(found)), weak, wavenumber)
        return cls(weak, inverse != 0, m, inverse / m.square())


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
