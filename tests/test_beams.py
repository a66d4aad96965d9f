"""Choice of beams, excitation errors and rotations."""

import dataclasses

import pytest
import tiny
import torch

from dials_hybrid import beams
from dials_hybrid.crystal import reciprocal_length_sq
from dials_hybrid.data import Observations
from dials_hybrid.model import HybridModel
from dials_hybrid.records import InputError


@pytest.fixture(scope="module")
def problem():
    return tiny.problem()


@pytest.fixture(scope="module")
def chosen(problem):
    return beams.choose_beams(problem.structure, problem.scan, problem.observations, 0.7, 0.005)


def test_excitation_error_is_the_difference_of_squares(problem):
    scan = problem.scan
    hkl = beams.lattice_points(problem.structure, 0.8).double()
    vectors = torch.einsum("ftij,mj->fmti", scan.setting, hkl)
    k = torch.linspace(38, 42, len(scan.s0)).double()
    inner = scan.s0 / scan.s0.norm(dim=1, keepdim=True) * k[:, None]
    k_plus_g = inner[:, None, None] + vectors
    k = k[:, None, None]
    expected = (k**2 - k_plus_g.square().sum(-1)) / (2 * k)
    found = beams.excitation_errors(vectors, scan.s0, k.flatten())
    assert torch.allclose(found, expected, atol=1e-12)


def test_excitation_error_is_positive_inside_the_ewald_sphere():
    s0 = tiny.f64([[0, 0, -40.0]])
    vectors = tiny.f64([[[0.0, 0, 0.1], [0, 0, -0.1], [0, 0, 0]]])
    s = beams.excitation_errors(vectors, s0, tiny.f64([40.0]))
    assert s[0, 0] > 0 > s[0, 1] and s[0, 2] == 0


def test_inner_wavenumber_adds_the_mean_potential():
    k = beams.inner_wavenumber(tiny.f64([[0, 0, -40.0]]), tiny.f64([0.05]))
    assert float(k**2) == pytest.approx(1600.05, rel=1e-14)


def test_rotation_matrices_turn_right_handed_about_the_vector():
    quarter = tiny.f64([[0, 0, torch.pi / 2], [0, 0, 0]])
    turn, identity = beams.rotation_matrices(quarter)
    assert torch.allclose(turn @ tiny.f64([1, 0, 0]), tiny.f64([0, 1, 0]), atol=1e-14)
    assert torch.allclose(identity, torch.eye(3).double(), atol=1e-15)


def test_excitation_moves_are_the_derivatives_by_the_local_rotation(problem):
    model = HybridModel(problem, tiny.settings())
    batch = model.batches[0]
    moves = model.excitation_moves(batch, model.orientation().detach())
    directions = model.orientation.directions * model.orientation.sigma
    step = 1e-3
    for k in range(2):
        shift = step * directions[:, k]
        difference = model.excitation(batch, shift) - model.excitation(batch, -shift)
        error = (difference / (2 * step) - moves[k]).abs().max()
        assert error < 1e-7 * moves[k].abs().max()


def test_the_incident_beam_comes_first(chosen):
    assert (chosen.hkl[:, 0] == 0).all() and chosen.valid[:, 0].all()


def test_every_link_points_to_its_reflection(problem, chosen):
    o = problem.observations
    found = chosen.hkl[o.link_block, chosen.link_beam]
    assert torch.equal(found, o.hkl[o.link_observation])
    assert chosen.valid[o.link_block, chosen.link_beam].all()


def test_a_linked_reflection_is_a_beam_however_far_from_the_sphere(problem):
    few = beams.choose_beams(problem.structure, problem.scan, problem.observations, 0.1, 1e-6)
    o = problem.observations
    assert torch.equal(few.hkl[o.link_block, few.link_beam], o.hkl[o.link_observation])


def test_beams_of_a_block_are_distinct(chosen):
    for hkl, count in zip(chosen.hkl, chosen.counts, strict=True):
        assert len(torch.unique(hkl[:count], dim=0)) == count
        assert (hkl[count:] == 0).all()


@pytest.mark.parametrize("s_max", [0.005, 1e-5])
def test_beams_are_those_near_the_sphere(problem, s_max):
    """Against a loop over every reflection; with the small s_max all cross between samples."""
    block, g_max = 1, 1.1
    scan = problem.scan
    # one observation alone, so that links do not bring the beams in
    first = problem.observations
    given = {f.name: getattr(first, f.name) for f in dataclasses.fields(first)}
    o = Observations(**{k: v[:1] for k, v in given.items() if v is not None})
    chosen = beams.choose_beams(problem.structure, scan, o, g_max, s_max)
    taken = {tuple(h) for h in chosen.hkl[block, : chosen.counts[block]].tolist()}
    linked = {tuple(h) for h in o.hkl[o.link_observation[o.link_block == block]].tolist()}
    near = set()
    for h in torch.cartesian_prod(*[torch.arange(-6, 7)] * 3):
        if float(reciprocal_length_sq(problem.structure.cell, h)) > g_max**2:
            continue
        g = scan.setting[block] @ h.double()
        s = beams.excitation_errors(g[None], scan.s0[:1], scan.s0[:1].norm(dim=1))[0]
        if s.abs().min() <= s_max or (s.min() < 0 < s.max()):
            near.add(tuple(h.tolist()))
    assert len(near) > 1 and taken == near | linked | {(0, 0, 0)}


def test_lattice_points_fill_the_sphere():
    structure = tiny.quartz()
    hkl = beams.lattice_points(structure, 0.8)
    assert len(torch.unique(hkl, dim=0)) == len(hkl)
    every = torch.cartesian_prod(*[torch.arange(-8, 9)] * 3)
    inside = (reciprocal_length_sq(structure.cell, every) <= 0.64).sum()
    assert len(hkl) == int(inside) - 1  # without the origin


@pytest.mark.parametrize(
    ("shifts", "allowed"),
    [
        ([[0.5, 0.5, 0]], lambda h: (h[:, 0] + h[:, 1]) % 2 == 0),
        ([[0.5, 0.5, 0.5]], lambda h: h.sum(1) % 2 == 0),
        ([[2 / 3, 1 / 3, 1 / 3], [1 / 3, 2 / 3, 2 / 3]], lambda h: (h @ _OBVERSE) % 3 == 0),
    ],
    ids=["C", "I", "R"],
)
def test_centring_removes_beams(shifts, allowed):
    structure = tiny.triclinic([[0.1, 0.2, 0.3]], [1.0], [5.0])
    trans = tiny.f64([[0, 0, 0], *shifts])
    identity = torch.eye(3).double().repeat(len(trans), 1, 1)
    hkl = beams.lattice_points(structure.replace(sym_rot=identity, sym_trans=trans), 1.0)
    every = beams.lattice_points(structure, 1.0)
    assert {tuple(h) for h in hkl.tolist()} == {tuple(h) for h in every[allowed(every)].tolist()}


_OBVERSE = torch.tensor([-1, 1, 1])


def test_screw_axes_do_not_remove_beams():
    # forbidden reflections are excited by multiple scattering
    hkl = beams.lattice_points(tiny.quartz(), 0.8).tolist()
    assert [0, 0, 1] in hkl and [0, 0, 2] in hkl


@pytest.mark.parametrize("g_max", [0, -1, 2.01])
def test_a_beam_limit_beyond_the_form_factors_is_refused(g_max):
    with pytest.raises(InputError, match=r"beams\.g_max"):
        beams.lattice_points(tiny.quartz(), g_max)


def test_obliquity_is_that_of_the_normal_component():
    scan_ = tiny.scan(blocks=2)
    hkl = torch.tensor([[[0, 0, 0], [1, 0, 0], [2, -1, 1]]] * 2)
    k = scan_.s0.norm(dim=-1)
    m = beams.obliquity(scan_, torch.arange(2), hkl, k)
    assert torch.allclose(m[:, 0], torch.ones(2).double())
    middle = scan_.setting[:, scan_.setting.shape[1] // 2]
    along = (torch.einsum("fij,fnj->fni", middle, hkl.double()) * scan_.normal[:, None]).sum(-1)
    assert torch.allclose(m, 1 / (1 + along / k[:, None]).sqrt(), rtol=1e-12)
