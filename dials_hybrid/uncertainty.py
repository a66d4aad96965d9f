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
    site_covariance: Tensor  # (A, 3, A, 3) of the fractional coordinates
    u: Tensor  # (A,) A^2, of U_iso or U_eq
    charge: Tensor  # (K,) e
    dipole: Tensor  # (A, 3) e A, along the cell axes
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
        site_covariance=_site_covariance(cheap.model.crystal, part),
        u=_u_su(cheap.model.crystal, part),
        charge=_charge_su(cheap.model.crystal, part),
        dipole=_dipole_su(cheap.model.crystal, part),
        effective_parameters=effective,
        structure_parameters=len(part),
        goodness_of_fit=fit_sq**0.5,
    )


def _site_su(crystal, covariance: Tensor) -> Tensor:
    return SITE_UNIT * _vector_su(crystal, covariance, "site_shift")


def _site_covariance(crystal, covariance: Tensor) -> Tensor:
    """(A, 3, A, 3): sites that the symmetry ties or holds have correlations of one, or none."""
    part, basis = crystal.slices()["site_shift"], SITE_UNIT * crystal.site_basis
    return torch.einsum("pai,pq,qbj->aibj", basis, covariance[part, part], basis)


def _dipole_su(crystal, covariance: Tensor) -> Tensor:
    sigma = crystal.valence_settings.dipole_sigma
    return sigma * _vector_su(crystal, covariance, "dipole_shift")


def _vector_su(crystal, covariance: Tensor, name: str) -> Tensor:
    """(A, 3) s.u. along the cell axes of a quantity that the basis of the sites spans."""
    part = crystal.slices()[name]
    basis = crystal.site_basis[: part.stop - part.start]
    variance = torch.einsum("pai,pq,qai->ai", basis, covariance[part, part], basis)
    return variance.clamp(min=0).sqrt() * crystal.structure.cell[:3]


def _charge_su(crystal, covariance: Tensor) -> Tensor:
    part, basis = crystal.slices()["charge_shift"], crystal.charge_basis
    variance = torch.einsum("pk,pq,qk->k", basis, covariance[part, part], basis)
    return crystal.valence_settings.charge_sigma * variance.clamp(min=0).sqrt()


def _u_su(crystal, covariance: Tensor) -> Tensor:
    m = len(crystal.u_iso_basis)
    part = crystal.slices()["u_shift"]
    covariance = covariance[part, part]
    iso = covariance[:m, :m]
    variance = torch.einsum("pa,pq,qa->a", crystal.u_iso_basis, iso, crystal.u_iso_basis)
    # U_eq = trace(G u_star) / 3 with the metric tensor G
    g = metric(crystal.structure.cell)
    weights = torch.stack([g[0, 0], g[1, 1], g[2, 2], 2 * g[0, 1], 2 * g[0, 2], 2 * g[1, 2]]).to(
        covariance
    )
    slopes = crystal.u_star_basis @ weights / 3
    aniso = covariance[m:, m:]
    variance = variance + torch.einsum("pa,pq,qa->a", slopes, aniso, slopes)
    return U_UNIT * variance.clamp(min=0).sqrt()
