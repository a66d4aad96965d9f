"""Second derivatives that Gauss and Newton leave out, learnt from steps."""

import pytest
import tiny
import torch
from test_model import disturbed
from test_refine import make_truth

from dials_hybrid import secant
from dials_hybrid.linear import CheapModel, LeastSquares, Linearisation
from dials_hybrid.refine import Refinement, RefineSettings


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def symmetric(blocks, seed=0):
    a = normal(blocks, 2, 2, seed=seed)
    return a + a.mT


def times(second, step):
    return torch.einsum("fij,fj->fi", second, step)


# --- the update -----------------------------------------------------------------------------


def test_the_update_obeys_the_step_and_stays_symmetric():
    step, change = normal(5, 2, seed=1), normal(5, 2, seed=2)
    found = secant.updated(symmetric(5), step, change)
    assert torch.allclose(times(found, step), change)
    assert torch.allclose(found, found.mT)


def test_two_steps_tell_a_quadratic_cost():
    true = symmetric(4)
    along_x, along_y = (torch.eye(2).double()[k].expand(4, 2) for k in (0, 1))
    found = torch.zeros(4, 2, 2).double()
    for step in (along_x, along_y):
        found = secant.updated(found, step, times(true, step))
    assert torch.allclose(found, true)


def test_what_is_known_is_kept_where_nothing_moved():
    known = symmetric(3)
    step = normal(3, 2, seed=1)
    step[1] = 0.1 * secant.SMALLEST
    found = secant.updated(known, step, normal(3, 2, seed=2))
    assert torch.equal(found[1], known[1]) and not torch.equal(found[0], known[0])
    assert found.isfinite().all()


def test_what_has_become_small_is_forgotten():
    known, step = 8 * torch.eye(2).double()[None], torch.tensor([[1.0, 0.0]]).double()
    found = secant.updated(known, step, 2 * step)
    assert torch.allclose(found, 2 * torch.eye(2).double())


def test_the_positive_part_is_nearest_and_has_no_negative_values():
    second = symmetric(20)
    found = secant.positive(second)
    assert torch.linalg.eigvalsh(found).min() > -1e-12
    rest = second - found
    assert torch.allclose((rest @ found), torch.zeros(20, 2, 2).double(), atol=1e-12)
    good = found + torch.eye(2).double()
    assert torch.allclose(secant.positive(good), good)


# --- in the cheap model ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return disturbed(tiny.problem())


def test_gradient_and_matrix_are_those_of_the_cost(model):
    blocks = len(model.orientation.matrix)
    plain = CheapModel(model, Linearisation(*model.tangents()))
    cheap = CheapModel(model, plain.lin, symmetric(blocks))
    o = model.problem.observations
    known, none = (LeastSquares(c, o.sigma, 0.0) for c in (cheap, plain))
    x = cheap.start()
    assert known.cost(x) == none.cost(x)
    x[cheap.parts.orientation] += normal(len(x[cheap.parts.orientation]), seed=3)
    assert known.cost(x) > none.cost(x)
    gradient, matrix = (
        a - b for a, b in zip(known.normal_equations(x), none.normal_equations(x), strict=True)
    )
    expected = torch.autograd.functional.hessian(
        lambda y: 0.5 * _quadratic(cheap, y), x.detach().clone()
    )
    assert torch.allclose(matrix, expected, atol=1e-9 * float(expected.abs().max()))
    step = x - cheap.start()
    assert torch.allclose(gradient, expected @ step, atol=1e-9 * float(gradient.abs().max()))


def _quadratic(cheap, x):
    turned = cheap.local_rotation(x)
    return torch.einsum("fi,fij,fj->", turned, cheap.second, turned)


def test_local_gradients_are_those_of_the_intensities(model):
    cheap = CheapModel(model, Linearisation(*model.tangents()))
    pull = normal(cheap.rows, seed=4)
    by_block = cheap.local_gradient(pull, cheap.lin.orientation)
    slopes = cheap.slopes(cheap.start())[1][:, cheap.parts.orientation]
    expected = (model.orientation.matrix.T @ by_block).flatten()
    assert torch.allclose(pull @ slopes, expected, rtol=1e-8, atol=1e-10 * float(expected.norm()))


# --- in a refinement ------------------------------------------------------------------------


def test_second_derivatives_are_those_of_the_intensities():
    """Against differences of the slopes of the full model, where one block turns."""
    loop = Refinement(make_truth()[0], tiny.settings(), RefineSettings(1))
    loop.linearise()
    cheap = loop.linearise()
    x = cheap.start()
    x[cheap.parts.orientation] += 0.02 * normal(len(x[cheap.parts.orientation]), seed=5)
    cheap.apply(x)
    loop.follow(cheap, x)
    found, turned = loop.passing.second.clone(), cheap.local_rotation(x)
    o, now = loop.problem.observations, loop.linearise()
    calculated = loop.intensities(now)
    pull = (calculated - o.intensity) * (~o.free) / loop.sigma_w(calculated).square()
    h = 1e-3
    gradients = []
    for size in (h, -h):
        loop.model.orientation.offset.data += size * x[cheap.parts.orientation].view_as(
            loop.model.orientation.offset
        )
        there = loop.follow(now)
        gradients.append(there.local_gradient(pull, there.lin.orientation))
        loop.model.orientation.offset.data -= size * x[cheap.parts.orientation].view_as(
            loop.model.orientation.offset
        )
    expected = (gradients[0] - gradients[1]) / (2 * h)
    assert (times(found, turned) - expected).norm() < 0.1 * expected.norm()


def test_they_are_saved_with_the_state(tmp_path):
    loop = Refinement(make_truth()[0], tiny.settings(), RefineSettings(2))
    loop.run()
    assert loop.passing.second.abs().max() > 0
    again = Refinement(loop.problem, tiny.settings(), RefineSettings(2), state=loop.state)
    assert torch.equal(again.passing.second, loop.passing.second)


def test_refinements_end_in_the_same_place_without_them(monkeypatch):
    """How many steps they save is a matter of data: `python -m benchmarks.steps`."""
    ends = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr(secant, "updated", lambda second, step, change: second)
        loop = Refinement(make_truth()[0], tiny.settings(), RefineSettings(40))
        result = loop.run()
        assert result.converged and bool(loop.passing.second.any()) == known
        ends.append((result.summary["final"]["r1_obs"], loop.model.crystal.site().detach()))
    (r1, site), (other_r1, other_site) = ends
    assert r1 == pytest.approx(other_r1, rel=0.05)
    assert (site - other_site).abs().max() < 2e-4
