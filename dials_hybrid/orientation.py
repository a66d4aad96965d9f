"""Where the crystal is turned to, beside what the experiment says: smooth small rotations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .curves import CurveBasis, wider
from .data import Scan

SIGMA = math.radians(0.05)
NARROWEST, WIDEST = 0.02, 20.0  # widths of the prior that data may choose, in units of sigma


class OrientationCurve(nn.Module):
    """Small rotations of the crystal in the laboratory frame, smooth over each sweep.

    A rotation about the beam changes no excitation error, so two components remain, along the
    rotation axis (as far as it is across the beam) and across both. Their curves have knots every
    `spacing` rad, a prior of s.d. `sigma` rad, and one on the curvature of strength `stiffness`.
    """

    def __init__(self, scan: Scan, spacing: float, sigma: float, stiffness: float):
        super().__init__()
        self.basis = CurveBasis.over(scan.block_angle, scan.sweep, spacing)
        self.sigma, self.stiffness = sigma, stiffness
        self.register_buffer("matrix", self.basis.matrix(scan.block_angle, scan.sweep))
        self.register_buffer("roughness", self.basis.roughness())
        self.register_buffer("directions", across_beam(scan.axis, scan.s0))
        # in units of sigma, which stays as it is; the prior's own s.d. is `width` times that
        self.offset = nn.Parameter(torch.zeros(self.basis.size, 2, dtype=torch.float64))
        self.width = 1.0

    def forward(self) -> Tensor:
        """Return the rotation vector of every block, (F, 3) rad."""
        return self.sigma * torch.einsum("fk,fkx->fx", self.matrix @ self.offset, self.directions)

    def prior_operator(self) -> Tensor:
        """Return the matrix that takes the flat offsets to prior residuals: size, curvature."""
        identity = torch.eye(self.basis.size, dtype=torch.float64, device=self.offset.device)
        per_component = torch.cat([identity, self.stiffness**0.5 * self.roughness])
        return torch.kron(per_component, torch.eye(2).to(per_component)) / self.width

    def likely_width(self, offset: Tensor, covariance: Tensor) -> float:
        """Return the width of the prior that the data make most likely, to first order.

        `offset` (n,) are the best offsets, `covariance` (n, n) is theirs; see `curves.wider`.
        """
        factor = wider(self.prior_operator(), offset, covariance) ** 0.5
        return min(max(factor * self.width, NARROWEST), WIDEST)


def across_beam(axis: Tensor, s0: Tensor) -> Tensor:
    """Return two unit vectors across the beams s0 (F, 3), the first nearest to the axis (F, 3).

    They are (F, 2, 3), without unit.
    """
    beam = s0 / s0.norm(dim=-1, keepdim=True)
    first = axis - (axis * beam).sum(-1, keepdim=True) * beam
    first = first / first.norm(dim=-1, keepdim=True)
    return torch.stack([first, torch.linalg.cross(beam, first)], 1)
