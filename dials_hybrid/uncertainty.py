"""Standard uncertainties from the normal matrix of all parameters."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .crystal import OCC_UNIT, SITE_UNIT, U_UNIT
from .error_model import ErrorModel, fit_error_model
from .freedom import equivalent_weights, star_lengths
from .linear import CheapModel, LeastSquares

_UNSEEN = 1e-12  # of the largest eigenvalue: such directions get no information


@dataclass(frozen=True)
class Uncertainties:
    """Errors of the structure, with what the normal matrix tells besides."""

    site: Tensor  # (A, 3) A, along the cell axes
    site_covariance: Tensor  # (A, 3, A, 3) of the fractional coordinates
    u: Tensor  # (A,) A^2, of U_iso or U_eq
    occ: Tensor  # (A,)
    u_aniso: Tensor  # (A, 6) A^2, of U11 U22 U33 U12 U13 U23 of the CIF; zero where isotropic
    charge: Tensor  # (K,) e
    dipole: Tensor  # (A, 3) e A, along the cell axes
    effective_parameters: float  # trace of data information over all information
    structure_parameters: int
    goodness_of_fit: float
    curvature: Curvature


@dataclass(frozen=True)
class Curvature:
    """The end of a refinement to first order, n parameters, R reflections.

    Residuals and Jacobian are those of working reflections in units of sigma_w, the error
    model's before outliers are let go; they are zero for free ones.
    """

    residual: Tensor  # (R,) (I_obs - I_calc) / sigma_w
    jacobian: Tensor  # (R, n) dI_calc / dx / sigma_w
    prior_pull: Tensor  # (n,) derivatives of half the squared sum of the priors' residuals
    prior_matrix: Tensor  # (n, n) J^T J of the priors
    error_model: ErrorModel

    @functools.cached_property
    def slope(self) -> float:
        """Mean curvature of the negative log likelihood by a residual; 1 for a Gaussian."""
        return float(self._mean(self.error_model.influence(self.residual)[1]))

    @functools.cached_property
    def information(self) -> Tensor:
        """(n, n) second derivative of the minimised cost, data and priors."""
        return self.slope * self._data() + self.prior_matrix

    @functools.cached_property
    def effective_parameters(self) -> float:
        """Parameters that the data determine: trace of data information over all."""
        return self.slope * float((self.posterior @ self._data()).trace())

    @functools.cached_property
    def covariance(self) -> Tensor:
        """(n, n) covariance of all parameters.

        The parameters minimise not squares but a robust cost, whose curvature does not equal
        the variance of its gradient: H^-1 B H^-1 with H the information and B the variance
        of the gradient, psi^2 of the data (over the degrees of freedom) and the priors' (P. J.
        Huber 1973, doi:10.1214/aos/1176342503). The inverse of the reweighted normal matrix alone
        would give s.u. that are too small by a fifth.
        """
        pull, _ = self.error_model.influence(self.residual)
        count = float(self._used.sum())
        spread = float(pull.square().sum()) / max(1.0, count - self.effective_parameters)
        gradient = spread * self._data() + self.prior_matrix
        return self.posterior @ gradient @ self.posterior

    @functools.cached_property
    def leverage(self) -> Tensor:
        """(R,) share of each reflection in its own calculated intensity, the hat matrix's diagonal.

        The residual of a reflection has the variance sigma_w^2 (1 - leverage).
        """
        guard = _UNSEEN * self.information.diagonal().sum()  # where nothing sees
        guarded = self.information + guard * torch.eye(len(self.information)).to(self.information)
        half = torch.linalg.solve_triangular(
            torch.linalg.cholesky(guarded), self.jacobian.T, upper=False
        )
        return self.slope * half.square().sum(0)

    def with_parameter(self, derivative: Tensor) -> Curvature:
        """Return the same with one more parameter at the end; derivative (R,) is dI_calc."""
        return dataclasses.replace(
            self,
            jacobian=torch.cat([self.jacobian, derivative[:, None]], 1),
            prior_pull=torch.nn.functional.pad(self.prior_pull, (0, 1)),
            prior_matrix=torch.nn.functional.pad(self.prior_matrix, (0, 1, 0, 1)),
        )

    def minimum(self, iterations: int = 30) -> Tensor:
        """Return the step (n,) to the minimum of the cost, were the model linear."""
        x = self.jacobian.new_zeros(self.jacobian.shape[1])
        for _ in range(iterations):
            pull, _ = self.error_model.influence(self.residual - self.jacobian @ x)
            downhill = self.jacobian.T @ pull
            downhill -= self.prior_pull + self.prior_matrix @ x
            x = x + self.posterior @ downhill
        return x

    @functools.cached_property
    def _used(self) -> Tensor:
        return (self.jacobian != 0).any(1)

    def eliminated(self, part: slice) -> Tensor:
        """Return the information on some parameters, all others refined beside them.

        That is the Schur complement A - B C^-1 B^T of their block A; its inverse is their block
        of the inverse of everything.
        """
        kept = torch.zeros(len(self.information), dtype=torch.bool, device=self.information.device)
        kept[part] = True
        mutual = self.information[kept][:, ~kept]
        rest = torch.linalg.pinv(self.information[~kept][:, ~kept], rtol=_UNSEEN, hermitian=True)
        return self.information[kept][:, kept] - mutual @ rest @ mutual.T

    @functools.cached_property
    def unseen(self) -> Tensor:
        """(n, k) orthonormal directions that neither data nor priors see, all of variance zero."""
        values, vectors = self._spectrum
        return vectors[:, ~self._seen(values)]

    @functools.cached_property
    def posterior(self) -> Tensor:
        """(n, n) inverse of the information: what data and priors leave open."""
        # directions that nothing sees (spare network weights, a floating origin) stay as they are
        values, vectors = self._spectrum
        seen = self._seen(values)
        return (vectors[:, seen] / values[seen]) @ vectors[:, seen].T

    @functools.cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(self.information)

    @staticmethod
    def _seen(values: Tensor) -> Tensor:
        return values > _UNSEEN * values.abs().max()

    def _mean(self, values: Tensor) -> Tensor:
        return values[self._used].mean()

    def _data(self) -> Tensor:
        return self.jacobian.T @ self.jacobian


@torch.no_grad()
def standard_uncertainties(problem: LeastSquares, error_model: ErrorModel) -> Uncertainties:
    """Return the s.u. at the point of linearisation, nuisance parameters counted.

    `problem` has the weights of the error model, outliers let go.
    """
    cheap = problem.cheap
    curvature = curvature_of(cheap, error_model)
    residual = (cheap.intensities() - problem.observed) * problem.weight
    freedom = max(1.0, float((problem.weight > 0).sum()) - curvature.effective_parameters)
    part = curvature.covariance[cheap.parts.crystal, cheap.parts.crystal]
    return Uncertainties(
        site=_site_su(cheap.model.crystal, part),
        site_covariance=_site_covariance(cheap.model.crystal, part),
        u=_u_su(cheap.model.crystal, part),
        occ=_occ_su(cheap.model.crystal, part),
        u_aniso=_u_aniso_su(cheap.model.crystal, part),
        charge=_charge_su(cheap.model.crystal, part),
        dipole=_dipole_su(cheap.model.crystal, part),
        effective_parameters=curvature.effective_parameters,
        structure_parameters=len(part),
        goodness_of_fit=(float(residual.square().sum()) / freedom) ** 0.5,
        curvature=curvature,
    )


@torch.no_grad()
def curvature_of(cheap: CheapModel, error_model: ErrorModel) -> Curvature:
    """Return residuals and derivatives of everything at the point of linearisation."""
    x = cheap.start()
    intensity, j = cheap.slopes(x)
    o = cheap.model.problem.observations
    sigma = error_model.sigma(o.noise, intensity)
    weight = torch.where(o.free, torch.zeros_like(sigma), 1 / sigma)
    return Curvature(
        (o.intensity - intensity) * weight,
        j * weight[:, None],
        cheap.prior_gradient(x),
        cheap.prior_matrix(x),
        error_model,
    )


@torch.no_grad()
def error_model_of(
    cheap: CheapModel,
    present: ErrorModel,
    calculated: Tensor | None = None,
    leverage: Tensor | None = None,
) -> ErrorModel:
    """Return the error model of the residuals, as large as they were without their own pull.

    They are those of working reflections. Parameters, which `present` has led to, follow the
    strong ones most; left as they are, their residuals would tell of too small an error in
    proportion to the intensity, which makes them pull more. `calculated` (R,) may be of a point
    to which a step leads, `leverage` (R,) of an error model that is like the present one; by
    default they are of where the linearisation was made.
    """
    o = cheap.model.problem.observations
    calculated = cheap.intensities() if calculated is None else calculated
    leverage = curvature_of(cheap, present).leverage if leverage is None else leverage
    return fit_error_model(o.intensity, calculated, o.noise, leverage, ~o.free)


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


def _u_aniso_su(crystal, covariance: Tensor) -> Tensor:
    """(A, 6) s.u. of U_ij as the CIF defines them, from u_star = U_ij a*_i a*_j."""
    part = crystal.slices()["u_shift"]
    slopes = crystal.u_star_basis / star_lengths(crystal.structure.cell).to(covariance)
    variance = torch.einsum("pai,pq,qai->ai", slopes, covariance[part, part], slopes)
    return U_UNIT * variance.clamp(min=0).sqrt()
