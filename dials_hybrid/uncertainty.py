"""Standard uncertainties from the normal matrix of all parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .crystal import OCC_UNIT, SITE_UNIT, U_UNIT
from .freedom import equivalent_weights
from .linear import LeastSquares


@dataclass(frozen=True)
class Uncertainties:
    """Errors of the structure, with what the normal matrix tells besides."""

    site: Tensor  # (A, 3) A, along the cell axes
    site_covariance: Tensor  # (A, 3, A, 3) of the fractional coordinates
    u: Tensor  # (A,) A^2, of U_iso or U_eq
    occ: Tensor  # (A,)
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
        occ=_occ_su(cheap.model.crystal, part),
        charge=_charge_su(cheap.model.crystal, part),
        dipole=_dipole_su(cheap.model.crystal, part),
        effective_parameters=effective,
        structure_parameters=len(part),
        goodness_of_fit=fit_sq**0.5,
    )


def _site_su(crystal, covariance: Tensor) -> Tensor:
    part = crystal.slices()["site_shift"]
    return SITE_UNIT * _vector_su(crystal, covariance[part, part], crystal.site_basis)


def _site_covariance(crystal, covariance: Tensor) -> Tensor:
    """(A, 3, A, 3): sites that the symmetry ties or holds have correlations of one, or none."""
    part, basis = crystal.slices()["site_shift"], SITE_UNIT * crystal.site_basis
    return torch.einsum("pai,pq,qbj->aibj", basis, covariance[part, part], basis)


def _dipole_su(crystal, covariance: Tensor) -> Tensor:
    part = crystal.slices()["dipole_shift"]
    basis = crystal.dipole_basis[: part.stop - part.start]
    sigma = crystal.valence_settings.dipole_sigma
    return sigma * _vector_su(crystal, covariance[part, part], basis)


def _vector_su(crystal, covariance: Tensor, basis: Tensor) -> Tensor:
    """(A, 3) s.u. along the cell axes of a vector that the basis (P, A, 3) spans."""
    variance = torch.einsum("pai,pq,qai->ai", basis, covariance, basis)
    return variance.clamp(min=0).sqrt() * crystal.structure.cell[:3]


def _occ_su(crystal, covariance: Tensor) -> Tensor:
    part, basis = crystal.slices()["occ_shift"], crystal.occ_basis
    variance = torch.einsum("pa,pq,qa->a", basis, covariance[part, part], basis)
    return OCC_UNIT * variance.clamp(min=0).sqrt()


def _charge_su(crystal, covariance: Tensor) -> Tensor:
    part, basis = crystal.slices()["charge_shift"], crystal.charge_basis
    variance = torch.einsum("pk,pq,qk->k", basis, covariance[part, part], basis)
    return crystal.valence_settings.charge_sigma * variance.clamp(min=0).sqrt()


def _u_su(crystal, covariance: Tensor) -> Tensor:
    part = crystal.slices()["u_shift"]
    weights = equivalent_weights(crystal.structure.cell).to(covariance)
    # an atom has a U_iso or a u_star, the other one's part is zero
    slopes = crystal.u_iso_basis + crystal.u_star_basis @ weights
    variance = torch.einsum("pa,pq,qa->a", slopes, covariance[part, part], slopes)
    return U_UNIT * variance.clamp(min=0).sqrt()
