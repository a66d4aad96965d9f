"""Smooth scale and R factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .curves import CurveBasis, wider

SOFTEST, STIFFEST = 1.0, 1e4  # that the data may choose, from the first one on


class SmoothScale(nn.Module):
    """exp of a smooth curve over the rotation angle of each sweep.

    `stiffness` is the strength of the prior on the curvature of the curve, by default the one at
    the start of a refinement in which the data choose.
    """

    def __init__(self, basis: CurveBasis, stiffness: float = SOFTEST):
        super().__init__()
        self.basis = basis
        self.stiffness = stiffness
        self.log_scale = nn.Parameter(torch.zeros(basis.size, dtype=torch.float64))
        self.register_buffer("roughness", basis.roughness())

    def forward(self, matrix: Tensor) -> Tensor:
        """Return the scale (n,) for rows of the basis matrix (n, size)."""
        return (matrix @ self.log_scale).exp()

    def prior_operator(self) -> Tensor:
        """Return the matrix (m, size) that takes the coefficients to prior residuals."""
        return self.stiffness**0.5 * self.roughness

    def likely_stiffness(self, covariance: Tensor) -> float:
        """Return the stiffness that the data make most likely; see `curves.wider`.

        `covariance` (n, n) is that of the coefficients.
        """
        factor = wider(self.prior_operator(), self.log_scale.detach(), covariance)
        return min(max(self.stiffness / factor, SOFTEST), STIFFEST)


def amplitudes(intensity: Tensor) -> Tensor:
    """Return sqrt(max(I, 0))."""
    return intensity.clamp(min=0).sqrt()


def r1(observed: Tensor, calculated: Tensor, mask: Tensor | None = None) -> float:
    """Return sum ||Fo| - |Fc|| / sum |Fo| over the reflections in `mask`; NaN if there are none."""
    if mask is not None:
        observed, calculated = observed[mask], calculated[mask]
    fo, fc = amplitudes(observed), amplitudes(calculated)
    return float((fo - fc).abs().sum() / fo.sum()) if len(fo) else float("nan")


def wr2(observed: Tensor, calculated: Tensor, sigma_w: Tensor) -> float:
    """Return sqrt(sum w (Io - Ic)^2 / sum w Io^2)."""
    w = sigma_w**-2
    return float(((w * (observed - calculated) ** 2).sum() / (w * observed**2).sum()).sqrt())
