"""What errors intensities have: those of the integration, larger than it says, and others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Noise

# the scale of the t distribution, four degrees of freedom, most likely for normal errors of one
NORMAL_SCALE = 0.83
LEAST_K, MOST_K = NORMAL_SCALE, 25 * NORMAL_SCALE
LEAST_P = 0.005
LEAST_LEFT = 0.01  # of a residual, where the model follows the observation


@dataclass(frozen=True)
class ErrorModel:
    """sigma_w^2 = k^2 v + (p I)^2 with residuals that follow Student's t distribution.

    v is the variance of the integration, `Noise`, at the intensity I that the model has: weights
    that looked at the observed one would pull the model to where its error seems small (A. J. C.
    Wilson 1976, doi:10.1107/S0567739476001964). Integration sigmas of electron data are too
    small, and intensities have errors in proportion to themselves; the long tails of the t
    distribution keep outliers from pulling.
    """

    k: float = 1.0
    p: float = 0.05
    freedom: float = 4.0

    def is_like(self, other: ErrorModel) -> bool:
        """Whether two make much the same weights."""
        return all(abs(change) < 0.001 for change in self.change(other))

    def change(self, later: ErrorModel) -> tuple[float, float]:
        """Return by how much the logarithms of k and p of a later one are larger."""
        return math.log(later.k / self.k), math.log(later.p / self.p)

    def midway(self, other: ErrorModel) -> ErrorModel:
        """Return the model with the geometric means of k and p."""
        return ErrorModel(math.sqrt(self.k * other.k), math.sqrt(self.p * other.p), self.freedom)

    def sigma(self, noise: Noise, intensity: Tensor) -> Tensor:
        """Return sigma_w (R,) at the intensities (R,)."""
        proportional = (self.p * intensity.clamp(min=0)).square()
        return (self.k**2 * noise.variance(intensity) + proportional).sqrt()

    def robust_sigma(self, observed: Tensor, calculated: Tensor, noise: Noise) -> Tensor:
        """Return (R,) the sigma that makes a least-squares residual pull as the t distribution.

        Iteratively reweighted least squares: weight (f + 1) / (f + r^2 / sigma_w^2), K. L. Lange,
        R. J. A. Little & J. M. G. Taylor 1989, doi:10.1080/01621459.1989.10478852.
        """
        sigma_w = self.sigma(noise, calculated)
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
    observed: Tensor, calculated: Tensor, noise: Noise, leverage: Tensor, used: Tensor
) -> ErrorModel:
    """Choose k and p so that the residuals of the reflections in `used` (R,) are most likely.

    `leverage` (R,) is the share of each observation in its calculated intensity: the variance of
    a residual is smaller by 1 - leverage, and so much of a residual is left to tell of errors, as
    in restricted maximum likelihood (H. D. Patterson & R. Thompson 1971,
    doi:10.1093/biomet/58.3.545).

    Likelihood of the t distribution over a grid of logarithmic steps, then a finer one around the
    best. k is not allowed below that of normal errors as large as the integration sigmas say.
    """
    freedom = ErrorModel().freedom
    left = (1 - leverage[used]).clamp(min=LEAST_LEFT)
    residual_sq = (observed - calculated)[used].square() / left
    integration = noise.variance(calculated)[used]
    reference_sq = calculated[used].clamp(min=0).square()

    def score(k: Tensor, ps: Tensor) -> Tensor:
        variance = k**2 * integration + ps[:, None] ** 2 * reference_sq
        tails = (freedom + 1) * torch.log1p(residual_sq / variance / freedom)
        return (left * (variance.log() + tails)).sum(-1)

    ks = torch.logspace(math.log10(LEAST_K), math.log10(MOST_K), 22).to(observed)
    ps = torch.logspace(math.log10(LEAST_P), 0, 30).to(observed)
    wide_k, wide_p, around = ks[1] / ks[0], ps[1] / ps[0], torch.linspace(-1, 1, 11).to(observed)
    for _ in range(4):
        # one k at a time, since the whole grid takes kilobytes per reflection and array
        scores = torch.stack([score(k, ps) for k in ks])
        best = int(scores.argmin())
        k, p = ks[best // len(ps)], ps[best % len(ps)]
        ks = (k * wide_k**around).clamp(min=LEAST_K)
        ps = (p * wide_p**around).clamp(min=LEAST_P)
        wide_k, wide_p = wide_k**0.2, wide_p**0.2  # as the places are apart
    return ErrorModel(float(k), float(p))
