"""Standard uncertainties from the normal matrix of all parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .crystal import SITE_UNIT, U_UNIT, metric
from .linear import LeastSquares


@dataclass(frozen=True)
class Uncertainties:
    """Errors of the structure, with what the normal matrix tells besides."""

    site: Tensor  # (A, 3) A, along the cell axes
    u: Tensor  # (A,) A^2, of U_iso or U_eq
    effective_parameters: float  # trace of data information over all information
    structure_parameters: int
    goodness_of_fit: float


@torch.no_grad()
def standard_uncertainties(problem: LeastSquares) -> Uncertainties:
    """Return the s.u. at the point of linearisation.

    The covariance is the inverse of the full normal matrix (data and priors), so that nuisance
    parameters count, times the squared goodness of fit.
    """
    cheap = problem.cheap
    x = cheap.start()
    intensity, _, j, j_prior = cheap.evaluate(x)
    j = j * problem.weight[:, None]
    data = j.T @ j
    matrix = data + j_prior.T @ j_prior
    # directions that neither data nor priors see (spare network weights) get no information
    covariance = torch.linalg.pinv(matrix, rtol=1e-12, hermitian=True)
    effective = float((covariance @ data).trace())
    residual = (intensity - problem.observed) * problem.weight
    freedom = max(1.0, float((problem.weight > 0).sum()) - effective)
    fit_sq = float(residual.square().sum()) / freedom
    part = covariance[cheap.parts.crystal, cheap.parts.crystal] * fit_sq
    return Uncertainties(
        site=_site_su(cheap.model.crystal, part),
        u=_u_su(cheap.model.crystal, part),
        effective_parameters=effective,
        structure_parameters=len(part),
        goodness_of_fit=fit_sq**0.5,
    )


def _site_su(crystal, covariance: Tensor) -> Tensor:
    n = len(crystal.site_shift)
    variance = torch.einsum(
        "pai,pq,qai->ai", crystal.site_basis, covariance[:n, :n], crystal.site_basis
    )
    lengths = crystal.structure.cell[:3]
    return SITE_UNIT * variance.clamp(min=0).sqrt() * lengths


def _u_su(crystal, covariance: Tensor) -> Tensor:
    n, m = len(crystal.site_shift), len(crystal.u_iso_basis)
    iso = covariance[n : n + m, n : n + m]
    variance = torch.einsum("pa,pq,qa->a", crystal.u_iso_basis, iso, crystal.u_iso_basis)
    # U_eq = trace(G u_star) / 3 with the metric tensor G
    g = metric(crystal.structure.cell)
    weights = torch.stack([g[0, 0], g[1, 1], g[2, 2], 2 * g[0, 1], 2 * g[0, 2], 2 * g[1, 2]]).to(
        covariance
    )
    slopes = crystal.u_star_basis @ weights / 3
    aniso = covariance[n + m :, n + m :]
    variance = variance + torch.einsum("pa,pq,qa->a", slopes, aniso, slopes)
    return U_UNIT * variance.clamp(min=0).sqrt()
