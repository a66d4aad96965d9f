"""Observations that a fit has not seen: which are held out, and what is predicted for them."""

from types import SimpleNamespace

import tiny
import torch

from dials_hybrid import cross_validation, losses
from dials_hybrid.data import block_of
from dials_hybrid.linear import CheapModel, LeastSquares, Linearisation, solve
from dials_hybrid.refine import build_model


def test_groups_hold_equivalents_and_mates():
    structure = tiny.quartz()
    hkl = torch.cartesian_prod(*[torch.arange(-4, 5)] * 3)
    hkl = hkl[(hkl != 0).any(1)]
    group = cross_validation.unique_groups(structure, hkl)
    place = {tuple(h): int(g) for h, g in zip(hkl.tolist(), group, strict=True)}
    orbits: dict[int, set] = {}
    for index, number in place.items():
        orbits.setdefault(number, set()).add(index)
    compared = 0
    for orbit in orbits.values():
        first = torch.tensor(next(iter(orbit)))
        mates = {
            tuple((sign * first @ rotation).tolist())
            for rotation in structure.sym_rot.round().to(torch.int64)
            for sign in (1, -1)
        }
        assert orbit == mates & set(place)
        compared += 1
    assert compared > 50


def test_the_free_share_is_that_of_groups():
    structure, o = tiny.quartz(), tiny.problem(blocks=20).observations
    group = cross_validation.unique_groups(structure, o.hkl)
    free = cross_validation.choose_free(group, 0.25, seed=0)
    count = len(torch.unique(group))
    assert len(torch.unique(group[free])) == round(0.25 * count)
    assert not set(group[free].tolist()) & set(group[~free].tolist())
    assert not cross_validation.choose_free(group, 0.0, seed=0).any()
    assert torch.equal(free, cross_validation.choose_free(group, 0.25, seed=0))
    assert not torch.equal(free, cross_validation.choose_free(group, 0.25, seed=1))


def test_few_groups_have_one_that_is_free():
    frames = torch.arange(30) % 5
    free = cross_validation.choose_free(frames, 0.04, seed=0)
    assert len(torch.unique(frames[free])) == 1 and int(free.sum()) == 6
    assert not cross_validation.choose_free(frames, 0.0, seed=0).any()
    assert not cross_validation.choose_free(torch.zeros(7).long(), 0.04, seed=0).any()


def test_the_block_of_an_observation_is_the_nearest_of_its_sweep():
    problem = tiny.problem(blocks=4, sweeps=2)
    o, scan = problem.observations, problem.scan
    block = block_of(o, scan)
    assert torch.equal(scan.sweep[block], o.sweep)
    for i in range(len(block)):
        mine = torch.nonzero(scan.sweep == o.sweep[i]).flatten()
        nearest = mine[(scan.block_angle[mine] - o.angle[i]).abs().argmin()]
        assert block[i] == nearest


def fitted(problem, model, lin, x=None):
    """A least-squares problem at its minimum: the cheap model, and the steps applied."""
    cheap = CheapModel(model, lin)
    model.problem = problem
    least = LeastSquares(cheap, problem.observations.sigma, 0)
    x = cheap.start() if x is None else x
    for _ in range(10):  # the solver stops early by itself
        x = solve(least, x, 60)
    return least, x


def test_what_is_left_out_is_predicted_as_by_a_fit_without_it():
    """Thickness and scale are fitted; the formula is first order, the refit is not."""
    problem = tiny.problem(blocks=4)
    torch.manual_seed(0)
    model = build_model(problem, tiny.settings(thickness="single"), 0)
    profiles = model.value_profiles()
    structure = sum(p.numel() for p in model.crystal.parameters())
    links, depths = profiles.shape
    lin = Linearisation(
        profiles,
        profiles.new_zeros(links, structure, depths),
        profiles.new_zeros(links, 2, depths),
    )
    o = problem.observations
    calculated = model.intensities(profiles).detach()
    noise = 1 + 0.03 * torch.randn(len(calculated), dtype=torch.float64)
    o = o.replace(intensity=calculated * noise, sigma=0.03 * calculated + 1e-7)
    problem = problem.replace(observations=o)
    least, x = fitted(problem, model, lin)
    least.cheap.apply(x)
    groups = cross_validation.unique_groups(problem.structure, o.hkl)
    predicted = cross_validation.left_out(least, groups)
    seen = least.cheap.evaluate(least.cheap.start())[0]
    strongest = o.intensity.argmax()
    chosen = groups == groups[strongest]
    held = problem.replace(observations=o.replace(free=chosen))
    other, y = fitted(held, model, lin, x)
    refitted = other.cheap.evaluate(y)[0]
    moved, expected = (predicted - seen)[chosen], (refitted - seen)[chosen]
    assert bool((expected.abs() > 1e-3 * o.intensity[chosen]).any())
    assert torch.allclose(moved, expected, rtol=0.05, atol=1e-5 * float(o.intensity.max()))
    # those that are free already are predicted by the fit as it is
    assert torch.allclose(
        cross_validation.left_out(LeastSquares(other.cheap, 1 / other.weight, 0), groups)[chosen],
        other.cheap.evaluate(other.cheap.start())[0][chosen],
    )


def test_what_alone_determines_a_parameter_is_predicted_as_it_was_fitted():
    """One intensity is a parameter by itself; the other three have a common mean."""
    observed = tiny.f64([7.0, 1.0, 2.0, 6.0])
    j = tiny.f64([[1, 0], [0, 1], [0, 1], [0, 1]])
    calculated = tiny.f64([7.0, 3.0, 3.0, 3.0])
    cheap = SimpleNamespace(
        start=lambda: None,
        slopes=lambda x: (calculated, j),
        prior_matrix=lambda x: torch.zeros(2, 2),
    )
    least = SimpleNamespace(cheap=cheap, weight=torch.ones(4).double(), observed=observed)
    found = cross_validation.left_out(least, torch.arange(4))
    assert torch.allclose(found, tiny.f64([7.0, 4.0, 3.5, 1.5]))
    together = cross_validation.left_out(least, torch.tensor([0, 0, 1, 1]))
    assert torch.allclose(together, tiny.f64([7.0, 4.0, 1.0, 1.0]))


def test_merged_r1_by_hand():
    observed = torch.tensor([4.0, 2.0, 9.0, 0.1, 50.0], dtype=torch.float64)
    calculated = torch.tensor([2.0, 2.0, 8.0, 1.0, 1.0], dtype=torch.float64)
    sigma = torch.tensor([1.0, 0.5, 0.5, 1.0, 1.0], dtype=torch.float64)
    power = torch.tensor([3.0, 3.0, 5.0, 7.0, 2.0], dtype=torch.float64)
    free = torch.tensor([False, False, False, False, True])
    groups = torch.tensor([7, 7, 3, 1, 0])
    work = ~free
    ratio = (4 * 2 + 4 * 2 * 2) / (2 * 2 + 4 * 2 * 2)  # weights 1 and 4
    fo = [(3 * ratio) ** 0.5, (5 * 9 / 8) ** 0.5]  # the third group is weak, the last is free
    fc = [3**0.5, 5**0.5]
    expected = sum(abs(a - b) for a, b in zip(fo, fc, strict=True)) / sum(fo)
    found = cross_validation.merged_r1(
        *(values[work] for values in (observed, calculated, sigma, power, groups))
    )
    assert abs(found - expected) < 1e-12
    assert abs(losses.r1(torch.tensor(fo) ** 2, torch.tensor(fc) ** 2) - expected) < 1e-6
