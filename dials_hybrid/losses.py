"""Residuals, error model, scale and R factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .curves import CurveBasis

# the scale of the t distribution, four degrees of freedom, most likely for normal errors of one
NORMAL_SCALE = 0.83


class SmoothScale(nn.Module):
    """exp of a smooth curve over the rotation angle of each sweep."""

    def __init__(self, basis: CurveBasis, stiffness: float):
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


@dataclass(frozen=True)
class ErrorModel:
    """sigma_w^2 = (k sigma)^2 + (p I)^2 with residuals that follow Student's t distribution.

    Integration sigmas of electron data are too small, and intensities have errors in proportion
    to themselves; the long tails of the t distribution keep outliers from pulling.
    """

    k: float = 1.0
    p: float = 0.05
    freedom: float = 4.0

    def sigma(self, sigma: Tensor, intensity: Tensor) -> Tensor:
        """Return sigma_w (R,) for integration sigmas and intensities (R,)."""
        return ((self.k * sigma).square() + (self.p * intensity.clamp(min=0)).square()).sqrt()

    def sigma_w(self, observed: Tensor, calculated: Tensor, sigma: Tensor) -> Tensor:
        """Return sigma_w (R,) at the intensity that observation and model agree on."""
        return self.sigma(sigma, model_intensity(observed, calculated))

    def robust_sigma(self, observed: Tensor, calculated: Tensor, sigma: Tensor) -> Tensor:
        """Return (R,) the sigma that makes a least-squares residual pull as the t distribution.

        Iteratively reweighted least squares: weight (f + 1) / (f + r^2 / sigma_w^2), K. L. Lange,
        R. J. A. Little & J. M. G. Taylor 1989, doi:10.1080/01621459.1989.10478852.
        """
        sigma_w = self.sigma_w(observed, calculated, sigma)
        ratio_sq = ((observed - calculated) / sigma_w).square()
        return sigma_w * ((self.freedom + ratio_sq) / (self.freedom + 1)).sqrt()

    def influence(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pull psi of residuals in units of sigma_w, and its slope by them.

        psi(u) = (f + 1) u / (f + u^2) is the derivative of the t distribution's negative log.
        """
        below = self.freedom + residual.square()
        pull = (self.freedom + 1) * residual / below
        return pull, (self.freedom + 1) * (self.freedom - residual.square()) / below.square()


def fit_error_model(
    observed: Tensor, calculated: Tensor, sigma: Tensor, leverage: Tensor | None = None
) -> ErrorModel:
    """Choose k and p so that the residuals are most likely.

    `leverage` (R,) is the share of each observation in its calculated intensity, 0 if not given:
    the variance of a residual is smaller by 1 - leverage.

    Maximum likelihood of the t distribution over a grid of logarithmic steps. k is not allowed
    below that of normal errors as large as the integration sigmas say.
    """
    freedom = ErrorModel().freedom
    residual_sq = (observed - calculated).square()
    if leverage is not None:
        residual_sq = residual_sq / (1 - leverage).clamp(min=0.1)
    reference = model_intensity(observed, calculated).clamp(min=0)
    ks = NORMAL_SCALE * torch.logspace(0, 1.4, 43, dtype=observed.dtype, device=observed.device)
    ps = torch.logspace(-2.3, 0, 60, dtype=observed.dtype, device=observed.device)
    scores = []
    for k in ks:  # one at a time, since the whole grid takes 19 kB per reflection and array
        variance = (k * sigma).square() + (ps[:, None] * reference).square()
        tails = (freedom + 1) * torch.log1p(residual_sq / variance / freedom)
        scores.append((variance.log() + tails).sum(-1))
    best = int(torch.stack(scores).argmin())
    return ErrorModel(float(ks[best // len(ps)]), float(ps[best % len(ps)]))


def model_intensity(observed: Tensor, calculated: Tensor) -> Tensor:
    """Return (max(Io, 0) + 2 Ic) / 3, which weights without bias to either (Wilson 1976).

    doi:10.1107/S0567739476001964.
    """
    return (observed.clamp(min=0) + 2 * calculated) / 3


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
