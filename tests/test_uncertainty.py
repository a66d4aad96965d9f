"""Standard uncertainties: of the robust cost in general, and of a small crystal."""

import dataclasses

import pytest
import tiny
import torch

from dials_hybrid import uncertainty
from dials_hybrid.calls import call
from dials_hybrid.correlations import _physical
from dials_hybrid.error_model import NORMAL_SCALE, ErrorModel, fit_error_model
from dials_hybrid.freedom import star_lengths
from dials_hybrid.linear import LeastSquares
from dials_hybrid.noise import Noise
from dials_hybrid.refine import Refinement, RefineSettings, build_model
from dials_hybrid.uncertainty import Curvature
from dials_hybrid.valence import ValenceSettings

SETTINGS = tiny.settings(thickness="single", thickness_start=140.0)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def student(*shape, seed=0):
    """Student's t of four degrees of freedom."""
    return normal(*shape, seed=seed) / normal(4, *shape, seed=seed + 1).square().mean(0).sqrt()


def line(residual, jacobian, prior=0.0, freedom=4.0) -> Curvature:
    n = jacobian.shape[1]
    return Curvature(
        residual,
        jacobian,
        torch.zeros(n).double(),
        prior**2 * torch.eye(n).double(),
        ErrorModel(freedom=freedom),
    )


# --- the covariance of a robust fit ---------------------------------------------------------


@pytest.mark.parametrize("noise, scale", [(normal, NORMAL_SCALE), (student, 1.0)])
def test_the_covariance_is_the_scatter_of_robust_fits(noise, scale):
    """Six hundred straight lines through noise, fitted each."""
    jacobian = torch.stack([torch.ones(60), torch.linspace(-1, 1, 60)], 1).double() / scale
    errors, expected = [], []
    for data in noise(600, 60, seed=5) / scale:
        fit = line(data, jacobian)
        x = fit.minimum()
        errors.append(x)
        expected.append(line(data - jacobian @ x, jacobian).covariance.diagonal())
    scatter = torch.stack(errors).var(0)
    assert torch.allclose(torch.stack(expected).mean(0), scatter, rtol=0.15)


def test_eliminating_the_others_leaves_the_inverse_of_their_covariance():
    curvature = line(normal(200, seed=1), normal(200, 7), prior=0.3)
    part = slice(2, 5)
    of_all = torch.linalg.inv(curvature.information)[part, part]
    assert torch.allclose(torch.linalg.inv(curvature.eliminated(part)), of_all, rtol=1e-9)


def test_directions_that_nothing_sees_are_known_and_have_no_variance():
    jacobian = normal(200, 3) @ tiny.f64([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    curvature = line(normal(200, seed=1), jacobian)
    direction = tiny.f64([1, 1, -1, 0]) / 3**0.5
    assert torch.allclose(curvature.unseen.abs(), direction.abs()[:, None], atol=1e-9)
    assert float((direction @ curvature.covariance @ direction).abs()) < 1e-12
    assert torch.allclose(
        curvature.posterior, torch.linalg.pinv(curvature.information, rtol=1e-9, hermitian=True)
    )


def test_a_gaussian_gives_the_usual_covariance():
    jacobian, residual = normal(200, 3), normal(200, seed=1)
    fit = line(residual, jacobian, freedom=1e9)
    x = fit.minimum()
    rest = residual - jacobian @ x
    usual = torch.linalg.inv(jacobian.T @ jacobian) * rest.square().sum() / 197
    assert torch.allclose(line(rest, jacobian, freedom=1e9).covariance, usual, rtol=1e-6)
    assert torch.allclose(x, torch.linalg.lstsq(jacobian, residual).solution, rtol=1e-6)


def test_a_strong_prior_holds_and_is_no_parameter():
    fit = line(normal(200, seed=1), normal(200, 3), prior=1e4, freedom=1e9)
    assert fit.effective_parameters < 1e-4
    assert torch.allclose(fit.covariance.diagonal().sqrt(), torch.full((3,), 1e-4).double())


def test_leverages_add_up_to_the_parameters_and_free_reflections_have_none():
    jacobian = normal(50, 4)
    jacobian[::10] = 0
    fit = line(normal(50, seed=2) * (jacobian != 0).any(1), jacobian)
    assert float(fit.leverage.sum()) == pytest.approx(4) == pytest.approx(fit.effective_parameters)
    assert (fit.leverage[::10] == 0).all()


def test_the_error_model_sees_through_the_pull_of_strong_reflections():
    """Parameters that follow the strong reflections hide the error in proportion to them."""
    n, p = 400, 0.06
    calculated = torch.logspace(0, 4, n, dtype=torch.float64)
    zero, used = torch.zeros_like(calculated), torch.ones(n, dtype=torch.bool)
    noise = Noise(calculated, zero, zero)
    total = ErrorModel(1.0, p).sigma(noise, calculated)
    found = {"blind": [], "seeing": []}
    for seed in range(10):
        jacobian = normal(n, 80, seed=seed) / total[:, None] * calculated[:, None]
        residual = normal(n, seed=100 + seed)
        fit = line(residual, jacobian, freedom=1e9)
        rest = residual - jacobian @ fit.minimum(3)
        observed = calculated + rest * total
        for name, leverage in {"blind": zero, "seeing": fit.leverage}.items():
            model = fit_error_model(observed, calculated, noise, leverage, used)
            found[name].append(model.p)
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    # the t distribution of normal errors is narrower by NORMAL_SCALE
    assert mean["seeing"] == pytest.approx(NORMAL_SCALE * p, rel=0.2)
    assert mean["blind"] < 0.75 * mean["seeing"]


# --- a crystal ------------------------------------------------------------------------------


def simulated(seed: int, settings=SETTINGS):
    """Return a problem that the model itself made with noise, displaced, and the truth."""
    problem = tiny.problem(blocks=12, width=3.0, samples=8, g_limit=0.9)
    model = build_model(problem, settings, seed=0)
    with torch.no_grad():
        model.crystal.site_shift += 1.5 * normal(4, seed=seed)
        model.orientation.offset += normal(*model.orientation.offset.shape, seed=seed + 1)
        model.scale.log_scale += 12
        made = model.intensities(model.value_profiles())
    sigma = 0.03 * made + 0.01 * made.mean()
    intensity = made + sigma * normal(len(made), seed=seed + 2)
    o = problem.observations.replace(intensity=intensity, sigma=sigma)
    return problem.replace(observations=o), model.crystal.refined()


def test_errors_are_as_large_as_the_uncertainties_say():
    errors = []
    for seed in range(0, 40, 10):
        problem, true = simulated(seed)
        result = Refinement(problem, SETTINGS, RefineSettings()).run()
        site = (result.structure.site - true.site) * true.cell[:3] / result.site_su
        errors += [site[0, 0], *site[1]]
        errors.append((result.structure.u_iso[0] - true.u_iso[0]) / result.u_su[0])
        star = star_lengths(true.cell)
        u = (result.structure.u_star[1] - true.u_star[1]) / star / result.u_aniso_su[1]
        errors += u.tolist()
    errors = tiny.f64([float(e) for e in errors])
    assert len(errors) == 44 and float(errors.mean().abs()) < 0.5
    assert 0.75 < float(errors.square().mean().sqrt()) < 1.3


def test_uncertainties_are_those_of_the_coordinates_and_u_of_the_cif():
    """Against derivatives that torch takes of the coordinates themselves."""
    problem, _ = simulated(0)
    settings = dataclasses.replace(SETTINGS, valence=ValenceSettings("charge"))
    loop = Refinement(problem, settings, RefineSettings())
    cheap, model = loop.linearise(), loop.model
    errors = uncertainty.standard_uncertainties(
        LeastSquares(cheap, problem.observations.sigma, 0), ErrorModel()
    )
    names = list(model.crystal.slices())

    def coordinates(*values):
        return call(_physical, model.crystal, dict(zip(names, values, strict=True)))

    rows = torch.cat(
        torch.autograd.functional.jacobian(coordinates, tuple(model.crystal.parameters())), 1
    )
    part = errors.curvature.covariance[cheap.parts.crystal, cheap.parts.crystal]
    su = torch.einsum("qp,pr,qr->q", rows, part, rows).clamp(min=0).sqrt()
    cell = problem.structure.cell[:3]
    assert torch.allclose(errors.site, su[:6].view(2, 3) * cell)
    assert torch.allclose(errors.u[0], su[6]) and torch.allclose(
        errors.u_aniso, su[8:20].view(2, 6)
    )
    assert (errors.u_aniso[0] == 0).all() and (errors.u_aniso[1] > 0).all()
    assert torch.allclose(errors.occ, su[20:22]) and torch.allclose(errors.charge, su[22:24])
