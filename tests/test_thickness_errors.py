"""Standard uncertainties of p(t): their propagation, and whether the bands hold the truth."""

import pytest
import tiny
import torch

from dials_hybrid.error_model import ErrorModel
from dials_hybrid.linear import CheapModel, LeastSquares, Linearisation, solve
from dials_hybrid.refine import build_model
from dials_hybrid.thickness_errors import thickness_errors
from dials_hybrid.uncertainty import curvature_of

GAUSSIAN = ErrorModel(k=1.0, p=0.0, freedom=1e9)


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def problem():
    return tiny.problem(blocks=12, width=3.0, samples=8)


@pytest.mark.parametrize("name", ["neural free", "neural gaussian", "wedge", "frames"])
def test_the_errors_are_those_of_a_numeric_propagation(problem, name):
    """Central differences of p(t) by every parameter, with a covariance made up."""
    kind, _, head = name.partition(" ")
    model = build_model(problem, tiny.settings(thickness=kind, thickness_head=head or "free"), 0)
    module, step = model.thickness, 1e-5
    rows = []
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p += 0.2 * normal(*p.shape, seed=i)
        for p in module.parameters():
            for j in range(p.numel()):
                kept = float(p.view(-1)[j])
                p.view(-1)[j] = kept + step
                above = module.fine()[1]
                p.view(-1)[j] = kept - step
                rows.append((above - module.fine()[1]) / (2 * step))
                p.view(-1)[j] = kept
    slopes = torch.stack(rows, -1)  # (F, n, P)
    cheap = CheapModel(model, Linearisation(*model.tangents()))
    root = 0.01 * normal(cheap.parts.size, cheap.parts.size, seed=5)
    found = thickness_errors(cheap, root @ root.T)
    root = root[cheap.parts.thickness]
    mean = torch.einsum("d,fdp->fp", module.fine_depth(), slopes)
    for errors, by_parameter in (
        (found.distribution, slopes),
        (found.mean, mean),
        (found.average, slopes.mean(0)),
    ):
        expected = (by_parameter @ root).square().sum(-1).sqrt()
        assert torch.allclose(errors, expected, rtol=1e-4, atol=1e-9)
        assert errors.max() > 0
    overall = (module.fine_depth() @ slopes.mean(0) @ root).square().sum().sqrt()
    assert found.overall == pytest.approx(float(overall), rel=1e-4)


def drawn(cheap, seed):
    """Return parameters drawn from their priors, which are linear; zero where there is none."""
    x = cheap.start()
    inverse = torch.linalg.pinv(cheap.prior_jacobian(x))
    inverse[cheap.parts.scale] = 0  # a curve whose curvature alone has a prior may go anywhere
    return x + inverse @ normal(inverse.shape[1], seed=seed)


def test_the_bands_hold_the_truth_as_often_as_they_say(problem):
    """Parameters drawn from the priors, intensities with noise, everything fitted at once.

    Of 30 data sets of 12 blocks, whose mean thicknesses are correlated, 68 % should be within
    one s.u., and 95 % within two.
    """
    model = build_model(problem, tiny.settings(thickness="frames"), 0)
    with torch.no_grad():
        model.scale.log_scale += 12
    module, ratios = model.thickness, []
    cheap = CheapModel(model, Linearisation(*model.tangents()))
    begin, part = cheap.start(), cheap.parts.thickness
    for seed in range(30):
        truth = drawn(cheap, seed)
        made = cheap.evaluate(truth)[0]
        sigma = 0.03 * made.abs() + 0.01 * made.mean()
        observed = made + sigma * normal(len(made), seed=100 + seed)
        o = problem.observations.replace(intensity=observed, sigma=sigma)
        model.problem = problem.replace(observations=o)
        x = solve(LeastSquares(cheap, sigma, 0), begin, 30)
        means = [cheap._thickness(v[part], False)[0] @ model.depth for v in (x, truth)]
        with torch.no_grad():
            module.log_thickness.copy_(x[part].view_as(module.log_thickness))
            model.scale.log_scale.copy_(x[cheap.parts.scale])
        there = CheapModel(model, cheap.moved(x))
        errors = thickness_errors(there, curvature_of(there, GAUSSIAN).covariance)
        ratios.append((means[0] - means[1]) / errors.mean)
    ratios = torch.stack(ratios).abs()
    assert 0.6 < float((ratios < 1).double().mean()) < 0.76
    assert 0.9 < float((ratios < 2).double().mean()) < 0.99
