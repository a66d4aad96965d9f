"""The composed model: derivatives of every parameter, batches, windows and settings."""

import dataclasses
import math
import threading

import pytest
import tiny
import torch

from dials_hybrid import model as model_room
from dials_hybrid import structure_matrix
from dials_hybrid.kinematic import kinematic_intensities
from dials_hybrid.linear import CheapModel, LeastSquares, Linearisation, solve
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.orientation import across_beam
from dials_hybrid.propagation import DepthGrid, Splitting
from dials_hybrid.records import InputError
from dials_hybrid.refine import build_model
from dials_hybrid.thickness import HEADS, MODELS


def disturbed(problem, size=0.2, **choices) -> HybridModel:
    """Return a model with every parameter moved away from its start."""
    model = build_model(problem, tiny.settings(**choices), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=generator).double()
    return model


@pytest.fixture(scope="module")
def problem():
    return tiny.problem()


@pytest.fixture
def model(problem):
    return disturbed(problem)


def weights(values):
    """Fixed weights of either sign for a scalar function of all values."""
    generator = torch.Generator().manual_seed(6)
    return torch.randn(values.shape, generator=generator, dtype=torch.float64)


def with_step(parameter, step, function):
    """Return the function's value with a parameter moved by a step."""
    with torch.no_grad():
        parameter += step
        value = function()
        parameter -= step
    return value


def central(parameter, direction, function, h):
    """Return the central difference of a function along a direction of one parameter."""
    above = with_step(parameter, h * direction, function)
    return (above - with_step(parameter, -h * direction, function)) / (2 * h)


# --- derivatives ----------------------------------------------------------------------------


def test_gradient_by_every_parameter_agrees_with_finite_differences(model):
    def loss():
        intensities = model.intensities(model.profiles())
        return (intensities * weights(intensities)).sum() + model.prior_residuals().sum()

    loss().backward()
    names = dict(model.named_parameters())
    assert {"crystal.site_shift", "crystal.u_shift", "orientation.offset"} <= set(names)
    assert {"scale.log_scale"} < set(names) and any(n.startswith("thickness.") for n in names)
    generator = torch.Generator().manual_seed(3)
    for name, p in names.items():
        for _ in range(2):
            direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            expected = float((p.grad * direction).sum())
            found = float(central(p, direction, loss, 1e-4))
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-9), name


def test_tangents_agree_with_autograd(model):
    profiles, crystal, orientation = model.tangents()
    reference = model.profiles()
    assert torch.allclose(profiles, reference.detach(), rtol=1e-11, atol=0)
    cotangent = weights(reference)
    parameters = (*model.crystal.parameters(), model.orientation.offset)
    *atoms, offset = torch.autograd.grad((reference * cotangent).sum(), parameters)
    found, expected = torch.einsum("ld,lpd->p", cotangent, crystal), torch.cat(atoms)
    assert len(found) == 4 + 7 + 1 + 4  # sites, displacements, charges, dipoles
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()
    # a local rotation of a block is its row of the spline matrix times the knots
    block = model.problem.observations.link_block
    local = torch.einsum("ld,lkd->lk", cotangent, orientation)
    knots = model.orientation.matrix[block].T @ local
    # beyond the first order two rotations do not commute: the offsets here are 0.01 degree
    assert (knots - offset).abs().max() < 1e-3 * offset.abs().max()


def test_tangents_by_orientation_are_exact_where_nothing_is_turned(problem):
    model = build_model(problem, tiny.settings(), seed=0)
    _, _, orientation = model.tangents()
    direction = torch.tensor([[0.7, -1.2]], dtype=torch.float64).expand_as(model.orientation.offset)
    found = torch.einsum("lkd,k->ld", orientation, direction[0])
    expected = central(model.orientation.offset, direction, model.value_profiles, 1e-3)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_tangents_without_the_structure_are_the_same_but_for_it(model):
    profiles, _, orientation = model.tangents()
    found = model.tangents(structure=False)
    assert torch.allclose(found[0], profiles, rtol=1e-12)
    assert found[1].shape[1] == 0
    assert torch.allclose(found[2], orientation, rtol=1e-9, atol=1e-12)


def test_tangents_without_the_orientation_are_the_same_but_for_it(model, monkeypatch):
    monkeypatch.setattr(structure_matrix, "DIRECTIONS", 3)
    profiles, crystal, _ = model.tangents()
    found = model.tangents(turns=False)
    assert torch.allclose(found[0], profiles, rtol=1e-12)
    assert torch.allclose(found[1], crystal, rtol=1e-9, atol=1e-12)
    assert found[2].shape[1] == 0


def test_many_directions_go_in_groups(model, monkeypatch):
    whole = model.tangents()
    monkeypatch.setattr(structure_matrix, "DIRECTIONS", 3)
    for a, b in zip(whole, model.tangents(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("anisotropic", [False, True])
def test_sites_without_freedom_leave_the_displacements(problem, anisotropic):
    """As in CsCl: no site parameter at all, and perhaps no anisotropic atom."""
    s = problem.structure
    fixed = s.replace(
        site_projector=torch.zeros_like(s.site_projector),
        anisotropic=torch.full_like(s.anisotropic, anisotropic),
    )
    model = disturbed(problem.replace(structure=fixed))
    assert len(model.crystal.site_shift) == 0
    assert len(model.crystal.u_shift) == (12 if anisotropic else 2)
    profiles, crystal, orientation = model.tangents()
    moved = len(model.crystal.u_shift) + len(model.crystal.charge_shift)
    assert crystal.shape == (len(profiles), moved, 12)
    assert crystal.abs().amax((0, 2)).min() > 0 and orientation.isfinite().all()
    model.profiles().sum().backward()
    assert model.crystal.u_shift.grad.abs().min() > 0


# --- the cheap model ------------------------------------------------------------------------


@pytest.fixture
def cheap(model):
    return CheapModel(model, Linearisation(*model.tangents()))


def test_cheap_model_agrees_with_the_model_where_it_was_linearised(model, cheap):
    intensities, prior = cheap.evaluate(cheap.start())
    assert torch.allclose(intensities, model.intensities(model.profiles()).detach(), rtol=1e-10)
    assert torch.allclose(prior, model.prior_residuals().detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("thickness", [*MODELS, *(f"neural {head}" for head in HEADS)])
def test_cheap_jacobian_agrees_with_finite_differences(problem, thickness):
    name, _, head = thickness.partition(" ")
    model = disturbed(problem, thickness=name, thickness_head=head or "free")
    cheap = CheapModel(model, Linearisation(*model.tangents()))
    generator = torch.Generator().manual_seed(2)
    x = cheap.start() + 0.1 * torch.randn(cheap.parts.size, generator=generator).double()
    jacobian, d_prior = cheap.slopes(x)[1], cheap.prior_jacobian(x)
    for part in dataclasses.fields(cheap.parts):
        if part.name == "size":
            continue
        columns = range(cheap.parts.size)[getattr(cheap.parts, part.name)]
        assert len(columns) > 0 or part.name == "nuisance"
        for column in [*columns][:: max(1, len(columns) // 12)]:
            h = torch.zeros_like(x)
            h[column] = 1e-4
            above, below = cheap.evaluate(x + h), cheap.evaluate(x - h)
            for i, slope in ((0, jacobian), (1, d_prior)):
                expected = (above[i] - below[i]) / 2e-4
                error = (slope[:, column] - expected).abs().max()
                assert error < 1e-6 * (1 + expected.abs().max()), (part.name, column, i)


def test_cheap_model_follows_small_steps_of_the_model(model, cheap):
    x = cheap.start()
    x[cheap.parts.crystal] += 1e-3
    x[cheap.parts.orientation] += 1e-3
    x[cheap.parts.thickness] += 0.05
    x[cheap.parts.scale] += 0.3
    start = cheap.evaluate(cheap.start())[0]
    found = cheap.evaluate(x)[0]
    cheap.apply(x)
    exact = model.intensities(model.profiles()).detach()
    # what the linearisation leaves out is small against what it moves
    assert (found - exact).abs().max() < 1e-4 * (found - start).abs().max()


def test_apply_writes_every_parameter(model, cheap):
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    cheap.apply(cheap.start())
    for k, v in model.named_parameters():
        assert torch.equal(v.detach(), before[k])
    cheap.apply(cheap.start() + 1)
    for k, v in model.named_parameters():
        assert torch.allclose(v.detach(), before[k] + 1), k


def test_free_reflections_have_no_weight(model, cheap):
    o = model.problem.observations
    free = torch.zeros_like(o.free)
    free[::3] = True
    model.problem = model.problem.replace(observations=o.replace(free=free))
    squares = LeastSquares(cheap, torch.ones_like(o.sigma), 0)
    assert (squares.weight[free] == 0).all() and (squares.weight[~free] == 1).all()


def test_normal_equations_hold_the_gradient_of_the_cost(cheap):
    o = cheap.model.problem.observations
    squares = LeastSquares(cheap, 0.1 + torch.rand(len(o.sigma)).double(), 3.0)
    generator = torch.Generator().manual_seed(2)
    x = cheap.start() + 0.1 * torch.randn(cheap.parts.size, generator=generator).double()
    gradient, matrix = squares.normal_equations(x)
    assert torch.allclose(matrix, matrix.T) and torch.linalg.eigvalsh(matrix)[0] > -1e-8
    for part in ("crystal", "orientation", "thickness", "scale"):
        d = torch.zeros_like(x)
        where = getattr(cheap.parts, part)
        d[where] = torch.randn(d[where].shape, generator=generator).double()
        found = (squares.total(x + 1e-5 * d) - squares.total(x - 1e-5 * d)) / 2e-5
        assert found == pytest.approx(float(gradient @ d), rel=1e-5), part


def test_sums_over_the_priors_are_those_of_their_jacobian(cheap):
    generator = torch.Generator().manual_seed(4)
    x = cheap.start() + 0.1 * torch.randn(cheap.parts.size, generator=generator).double()
    jacobian, prior = cheap.prior_jacobian(x), cheap.prior(x)
    matrix, gradient = jacobian.T @ jacobian, jacobian.T @ prior
    assert torch.allclose(cheap.prior_matrix(x), matrix, atol=1e-12 * float(matrix.abs().max()))
    assert torch.allclose(
        cheap.prior_gradient(x), gradient, atol=1e-12 * float(gradient.abs().max())
    )


def test_solve_finds_the_intensities_that_made_the_data(problem):
    model = disturbed(problem, thickness="distribution")
    cheap = CheapModel(model, Linearisation(*model.tangents()))
    generator = torch.Generator().manual_seed(2)
    truth = cheap.start()
    sites = model.crystal.slices()["u_shift"].stop
    truth[:sites] += 0.5 * torch.randn(sites, generator=generator).double()
    truth[cheap.parts.scale] += 1
    made = cheap.evaluate(truth)[0]
    o = problem.observations
    model.problem = problem.replace(observations=o.replace(intensity=made))
    squares = LeastSquares(cheap, 0.01 * made.mean().expand_as(made), 1e-6)
    x = solve(squares, cheap.start(), 60)
    assert (cheap.evaluate(x)[0] - made).abs().max() < 0.01 * made.mean()
    assert squares.total(x) <= squares.total(truth)


# --- what does not change the result --------------------------------------------------------


@pytest.mark.parametrize(("memory", "cache"), [(1.0, 150_000), (2e9, 1), (2e9, 2000)])
def test_batches_change_nothing(problem, monkeypatch, memory, cache):
    whole = disturbed(problem)
    monkeypatch.setattr(model_room, "_CACHE_ELEMENTS", cache)
    parted = disturbed(problem, memory=memory)
    assert len(parted.batches) > len(whole.batches)
    pairs = zip(whole.tangents(), parted.tangents(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-16) for a, b in pairs)
    assert torch.allclose(whole.profiles(), parted.profiles(), rtol=1e-10)


def test_single_precision_agrees_with_double(problem):
    double, single = disturbed(problem), disturbed(problem, precision="single")
    for a, b in zip(double.tangents(), single.tangents(), strict=True):
        assert b.dtype == torch.float64
        assert (a - b).abs().max() < 1e-4 * a.abs().max()


def test_the_model_works_in_double_whatever_the_problem_came_in(problem):
    model = HybridModel(problem.to(dtype=torch.float32), tiny.settings())
    assert model.problem.scan.setting.dtype == torch.float64


def test_values_and_derivatives_come_from_one_calculation(model):
    assert torch.allclose(model.value_profiles(), model.profiles(), rtol=1e-12)


def test_settings_come_back_from_plain_numbers():
    chosen = tiny.settings(propagator=Splitting("strang", 3), depth=DepthGrid(7.0, 9))
    assert ModelSettings.from_dict(chosen.to_dict()) == chosen


def test_beams_beyond_the_form_factors_are_refused(problem):
    with pytest.raises(InputError, match=r"beams\.g_max"):
        HybridModel(problem, tiny.settings(g_max=2.1))


# --- windows and physics --------------------------------------------------------------------


def test_profiles_integrate_over_their_window_alone(problem):
    model = HybridModel(problem, tiny.settings())
    o, width = problem.observations, problem.scan.sample_width
    for batch in model.batches:
        flat = batch.probe.weight.flatten(0, 1)[batch.slot]
        for link, weight in zip(batch.portion.tolist(), flat, strict=True):
            block, first, last = o.link_block[link], o.link_first[link], o.link_last[link]
            expected = torch.zeros(width.shape[1]).double()
            expected[first : last + 1] = width[block, first : last + 1]
            assert torch.equal(weight, expected)


def test_every_link_is_in_one_batch(problem, monkeypatch):
    monkeypatch.setattr(model_room, "_CACHE_ELEMENTS", 1)
    model = HybridModel(problem, tiny.settings())
    assert torch.equal(model.portions.observation, problem.observations.link_observation)
    links = torch.cat([batch.portion for batch in model.batches])
    assert torch.equal(links.sort().values, torch.arange(len(problem.observations.link_block)))
    for batch in model.batches:
        beam = batch.probe.beam.flatten()[batch.slot]
        row = batch.slot // batch.probe.beam.shape[1]
        found = batch.hkl[row, beam]
        o = problem.observations
        assert torch.equal(found, o.hkl[o.link_observation[batch.portion]])


def test_parts_of_a_window_add_up(problem):
    """A reflection integrated over one window equals the sum over its two halves."""
    o = problem.observations
    link = int((o.link_last - o.link_first).argmax())
    middle = int(o.link_first[link] + o.link_last[link]) // 2
    last = o.link_last.clone()
    last[link] = middle
    halves = o.replace(
        link_observation=torch.cat([o.link_observation, o.link_observation[link, None]]),
        link_block=torch.cat([o.link_block, o.link_block[link, None]]),
        link_first=torch.cat([o.link_first, torch.tensor([middle + 1])]),
        link_last=torch.cat([last, o.link_last[link, None]]),
    )
    whole, parted = (
        HybridModel(problem.replace(observations=x), tiny.settings()) for x in (o, halves)
    )
    assert int(parted.portions.of_link[-1]) == link  # both halves are in one frame
    whole, parted = ((*m.tangents(), m.value_profiles()) for m in (whole, parted))
    for one, sum_of_two in zip(whole, parted, strict=True):
        assert torch.allclose(one, sum_of_two, rtol=1e-10, atol=1e-12 * float(one.abs().max()))


def test_a_thin_crystal_scatters_kinematically():
    """I = integral (2 pi V t)^2 sinc^2(pi S t) over the window, for a very small thickness."""
    problem = tiny.problem(samples=40, g_limit=0.8)
    model = HybridModel(problem, tiny.settings(depth=DepthGrid(1.0, 2), g_max=0.8))
    profiles = model.value_profiles()[:, 0]
    o = problem.observations
    v = (model.crystal(o.hkl) * model.matrix.factor).abs().detach()[o.link_observation]
    width = problem.scan.sample_width[0, 0] * (o.link_last - o.link_first + 1)
    expected = (2 * math.pi * v).square() * width  # S t is far below one here
    strong = v > 0.3 * v.max()
    assert torch.allclose(profiles[strong], expected[strong], rtol=0.02)


def test_a_rotation_of_everything_changes_nothing(problem):
    """Beam, axis and crystal turned together."""
    turn = model_room.beams.rotation_matrices(tiny.f64([0.4, -1.1, 0.3]))
    scan = problem.scan
    turned = scan.replace(
        setting=turn @ scan.setting,
        s0=scan.s0 @ turn.T,
        normal=scan.normal @ turn.T,
        axis=scan.axis @ turn.T,
    )
    first, second = (disturbed(problem.replace(scan=s)).value_profiles() for s in (scan, turned))
    assert torch.allclose(first, second, rtol=1e-7, atol=1e-14)


def test_directions_are_across_the_beam(problem):
    scan = problem.scan
    tilted = scan.axis + 0.3 * scan.s0 / scan.s0.norm(dim=1, keepdim=True)
    for axis in (scan.axis, tilted):
        pair = across_beam(axis, scan.s0)
        assert torch.allclose(pair @ pair.mT, torch.eye(2).double().expand(len(pair), 2, 2))
        assert (pair @ scan.s0[:, :, None]).abs().max() < 1e-12
        assert torch.allclose(pair[:, 0], scan.axis)


def test_sweeps_have_their_own_curves():
    model = disturbed(tiny.problem(sweeps=2))
    before = model.intensities(model.value_profiles()).detach()
    sweep = model.problem.observations.sweep
    with torch.no_grad():
        model.scale.log_scale[model.scale.basis.count[0] :] += math.log(2)
    ratio = model.intensities(model.value_profiles()).detach() / before
    assert torch.allclose(ratio, torch.where(sweep == 0, 1.0, 2.0).double())
    assert (sweep == 0).any() and (sweep == 1).any()


def test_kinematic_intensities_fit_kinematic_data(problem):
    """Data made kinematically, with a scale and an overall B, are met almost exactly."""
    model = HybridModel(problem, tiny.settings())
    o = problem.observations
    s_sq = model_room.crystal.reciprocal_length_sq(problem.structure.cell, o.hkl) / 4
    made = 70 * model.crystal(o.hkl).abs().square().detach() * torch.exp(-2 * 0.7 * s_sq)
    model.problem = problem.replace(
        observations=o.replace(intensity=made, sigma=0.01 * made + 1e-6)
    )
    found = kinematic_intensities(model, made)
    assert torch.allclose(found, made, rtol=1e-3, atol=1e-3)


def test_threads_change_nothing(problem, monkeypatch):
    """A batch is worked on by one core, whatever their number."""
    monkeypatch.setattr(model_room, "_CACHE_ELEMENTS", 1)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            model = disturbed(problem)
            assert model.workers == threads and len(model.batches) > 1
            found.append((*model.tangents(), model.value_profiles()))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    for one, many in zip(*found, strict=True):
        assert torch.allclose(one, many, rtol=1e-12, atol=1e-15)


def test_threads_leave_the_number_of_cores_alone(problem, monkeypatch):
    """It is set before a thread does anything, not while others multiply."""
    monkeypatch.setattr(model_room, "_CACHE_ELEMENTS", 1)
    before, called, really = torch.get_num_threads(), [], torch.set_num_threads

    def watched(cores):
        called.append((threading.current_thread() is threading.main_thread(), cores))
        really(cores)

    torch.set_num_threads(2)
    try:
        model = disturbed(problem)
        model.value_profiles()  # the threads last
        monkeypatch.setattr(torch, "set_num_threads", watched)
        model.tangents()
        model.value_profiles()
    finally:
        really(before)
    assert called == [(True, 1), (True, 2)] * 2
