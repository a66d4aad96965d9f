"""Constraints as directions: what may move, what moves with it, and what F(g) says of it."""

import dataclasses
import math

import pytest
import tiny
import torch

from dials_hybrid import absorption
from dials_hybrid.crystal import OCC_UNIT, SITE_UNIT, U_UNIT, CrystalModel
from dials_hybrid.data import Problem, Structure
from dials_hybrid.freedom import (
    Constraints,
    basis,
    metric,
    neighbours,
    tied,
    u_equivalent,
    with_usual_riding_u,
)
from dials_hybrid.refine import Refinement, RefineSettings, build_model
from dials_hybrid.valence import INDEPENDENT_ATOMS


def alloy(**changes) -> Structure:
    """Return quartz with a third, isotropic atom where O is: two atoms on one site."""
    q = tiny.quartz()
    values = {
        "site": torch.cat([q.site, q.site[1:]]),
        "u_iso": tiny.f64([0.007, 0, 0.011]),
        "u_star": torch.cat([q.u_star, torch.zeros(1, 6).double()]),
        "anisotropic": torch.tensor([False, True, False]),
        "occ": tiny.f64([1, 0.7, 0.3]),
        "weight": tiny.f64([0.5, 1, 1]),
        "site_projector": torch.cat([q.site_projector, q.site_projector[1:]]),
        "adp_projector": torch.cat([q.adp_projector, q.adp_projector[1:]]),
        "type": torch.tensor([1, 0, 0]),
        "labels": ("Si1", "O1", "X1"),
    }
    return q.replace(**values | changes)


def moved(structure: Structure, seed=3) -> CrystalModel:
    model = CrystalModel(structure)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.rand(p.shape, generator=generator).double() - 0.3
    return model


def constrained(structure: Structure, **constraints) -> Structure:
    return structure.replace(freedom=basis(structure, Constraints(**constraints)))


def test_without_constraints_every_atom_moves_by_itself():
    free = basis(alloy())
    assert (len(free.site), len(free.u_iso), len(free.occ)) == (1 + 3 + 3, 1 + 6 + 1, 0)
    assert ((free.site.abs().amax(2) > 0).sum(1) == 1).all() and (free.parent == -1).all()


def test_a_shared_site_moves_as_one():
    model = moved(constrained(alloy(), same_site=((1, 2),)))
    assert len(model.site_shift) == 1 + 3
    site = model.site().detach()
    assert torch.equal(site[1], site[2]) and not torch.equal(site[1], alloy().site[1])


def test_a_shared_site_has_the_freedom_that_all_its_atoms_have():
    special = alloy().site_projector.clone()
    special[2] = special[0]
    structure = alloy(site_projector=special)
    model = moved(constrained(structure, same_site=((1, 2),)))
    assert len(model.site_shift) == 2
    shift = (model.site() - structure.site).detach()[1]
    assert torch.allclose(special[0] @ shift, shift, atol=1e-14) and shift.abs().max() > 1e-4


def test_fixed_sites_and_u_stay():
    model = moved(constrained(alloy(), fixed_site=frozenset({0, 1}), fixed_u=frozenset({1})))
    assert (len(model.site_shift), len(model.u_shift)) == (3, 2)
    assert torch.equal(model.site()[:2], alloy().site[:2])
    assert torch.equal(model.u_star()[1], alloy().u_star[1])
    assert float(model.u_iso()[2].detach()) != 0.011


Y = (0.0, 1.0, 0.0)


def test_a_fixed_coordinate_stays_and_the_others_move():
    """The directions that are left have the usual length, in a cell that is not orthogonal."""
    model = moved(constrained(alloy(), fixed_along=((1, Y),)))
    assert len(model.site_shift) == 1 + 2 + 3
    shift = (model.site() - alloy().site).detach()
    assert float(shift[1, 1].abs()) < 1e-16
    assert shift[1, [0, 2]].abs().min() > 1e-5 and shift[2].abs().min() > 1e-5
    rows = basis(alloy(), Constraints(fixed_along=((1, Y),))).site[1:3, 1]
    assert torch.allclose(rows @ metric(alloy().cell) @ rows.T, torch.eye(2).double(), atol=1e-12)


def test_a_coordinate_fixed_on_a_special_position():
    """Si on x, 0, 2/3 may go along x alone, and not even there if that is fixed."""
    assert len(constrained(alloy(), fixed_along=((0, Y),)).freedom.site) == 7
    fixed = constrained(alloy(), fixed_along=((0, (1.0, 0.0, 0.0)),))
    assert len(fixed.freedom.site) == 6 and not fixed.freedom.site[:, 0].any()
    axes = [(1, tuple(row)) for row in torch.eye(3).double().tolist()]
    assert len(constrained(alloy(), fixed_along=tuple(axes)).freedom.site) == 4


def test_a_fixed_coordinate_holds_whom_it_is_shared_with():
    model = moved(constrained(alloy(), same_site=((1, 2),), fixed_along=((2, Y),)))
    assert len(model.site_shift) == 1 + 2
    site = (model.site() - alloy().site).detach()
    assert torch.equal(site[1], site[2]) and float(site[1, 1].abs()) < 1e-16


def test_a_fixed_coordinate_of_a_rider_holds_that_of_the_image_it_rides_on():
    """The image is at y, x, 1/3 - z: its y is the parent's x."""
    operator = 3
    image = alloy().sym_rot[operator] @ alloy().site[1] + alloy().sym_trans[operator]
    near = alloy(site=torch.stack([*alloy().site[:2], image + tiny.f64([0.1, 0.05, -0.1])]))
    model = moved(constrained(near, riding=((2, 1),), fixed_along=((2, Y),)))
    shift = (model.site() - near.site).detach()
    assert float(shift[2, 1].abs()) < 1e-16 and float(shift[1, 0].abs()) < 1e-16
    assert shift[1, 1:].abs().min() > 1e-5


def test_one_fixed_atom_holds_those_that_share_its_site():
    fixed = constrained(alloy(), same_site=((1, 2),), fixed_site=frozenset({2}))
    assert len(CrystalModel(fixed).site_shift) == 1


def test_shared_u_moves_as_one_and_by_its_shares():
    both = alloy(anisotropic=torch.tensor([False, True, True]))
    model = moved(constrained(both, linked_u=(((1, 1.0), (2, 1.0)),)))
    change = (model.u_star() - both.u_star).detach()
    assert len(model.u_shift) == 1 + 6 and change[1].abs().max() > 0
    assert torch.allclose(change[1], change[2], atol=1e-16)
    model = moved(constrained(alloy(), linked_u=(((0, 1.0), (2, -0.5)),)))
    change = (model.u_iso() - alloy().u_iso).detach()
    assert float(change[2]) == pytest.approx(-0.5 * float(change[0]))


def test_a_riding_atom_moves_and_vibrates_with_its_parent():
    near = alloy(site=torch.cat([alloy().site[:2], alloy().site[1:2] + 0.1]))
    model = moved(constrained(near, riding=((2, 1),), riding_u=((2, 1, 1.5),)))
    assert (len(model.site_shift), len(model.u_shift)) == (1 + 3, 1 + 6)
    shift = (model.site() - near.site).detach()
    assert torch.allclose(shift[2], shift[1], atol=1e-15) and shift[1].abs().max() > 1e-4
    refined = model.refined()
    change = u_equivalent(refined) - u_equivalent(near)
    assert float(change[2]) == pytest.approx(1.5 * float(change[1])) and change[1].abs() > 1e-4
    assert refined.freedom.parent.tolist() == [-1, -1, 1]
    assert refined.freedom.u_parent.tolist() == [-1, -1, 1]


def test_an_atom_rides_on_the_image_of_its_parent_that_is_near():
    operator = 3  # y, x, 1/3 - z
    image = alloy().sym_rot[operator] @ alloy().site[1] + alloy().sym_trans[operator]
    near = alloy(site=torch.stack([*alloy().site[:2], image + tiny.f64([0.1, 2.05, -1.1])]))
    length, found = neighbours(near, 2)
    offset = tiny.f64([0.1, 0.05, -0.1])
    assert found[1] == operator
    assert float(length[1]) == pytest.approx(float(offset @ metric(near.cell) @ offset) ** 0.5)
    model = moved(constrained(near, riding=((2, 1),)))
    shift = (model.site() - near.site).detach()
    assert torch.allclose(shift[2], near.sym_rot[operator] @ shift[1], atol=1e-15)


def test_an_atom_whose_symmetry_its_parent_would_break_does_not_ride():
    special = alloy().site_projector.clone()
    special[2] = 0
    structure = constrained(alloy(site_projector=special), riding=((2, 1),))
    assert structure.freedom.parent.tolist() == [-1, -1, -1]
    model = moved(structure)
    assert len(model.site_shift) == 1 + 3
    assert torch.equal(model.site()[2], structure.site[2])


def test_linked_occupancies_keep_their_sum():
    model = moved(constrained(alloy(), occ=(((1, 1.0), (2, -1.0)),)))
    occ = model.refined().occ
    assert len(model.occ_shift) == 1 and abs(float(occ[1]) - 0.7) > 1e-3
    assert float(occ.sum()) == pytest.approx(2.0) and float(occ[0]) == 1
    with torch.no_grad():
        model.occ_shift[:] = 2
    assert float(model.occ()[1].detach()) == pytest.approx(0.7 + 2 * OCC_UNIT)


def test_start_values_of_shared_parameters_are_the_first_ones():
    apart = alloy(site=tiny.f64([[0.4697, 0, 2 / 3], [0.41, 0.27, 0.79], [0.42, 0.26, 0.78]]))
    constraints = Constraints(same_site=((1, 2),), linked_u=(((0, 1.0), (2, 2.0)),))
    together = tied(apart, constraints)
    assert torch.equal(together.site[2], apart.site[1])
    assert float(together.u_iso[2]) == pytest.approx(0.014)
    riding = with_usual_riding_u(apart, Constraints(riding_u=((2, 1, 1.2),)))
    assert float(riding.u_iso[2]) == pytest.approx(1.2 * float(u_equivalent(apart)[1]))


def test_the_structure_with_its_freedom_travels_as_hdf5(tmp_path):
    structure = constrained(alloy(), same_site=((1, 2),), occ=(((1, 1.0), (2, -1.0)),))
    problem = tiny.problem().replace(structure=structure)
    problem.save(tmp_path / "problem.h5")
    again = Problem.load(tmp_path / "problem.h5").structure
    for field in dataclasses.fields(structure.freedom):
        mine, stored = (getattr(s.freedom, field.name) for s in (structure, again))
        assert torch.equal(mine, stored)


def test_files_of_earlier_versions_have_no_freedom(tmp_path):
    import h5py

    tiny.problem().save(tmp_path / "problem.h5")
    with h5py.File(tmp_path / "problem.h5", "a") as handle:
        del handle["problem/structure/freedom"]
    assert Problem.load(tmp_path / "problem.h5").structure.freedom is None


def test_freedom_of_another_structure_is_refused():
    with pytest.raises(ValueError, match="another number of atoms"):
        alloy().replace(freedom=basis(tiny.quartz()))


# --- structure factors ----------------------------------------------------------------------

ALL = {
    "same_site": ((1, 2),),
    "riding_u": ((2, 1, 1.2),),
    "occ": (((1, 1.0), (2, -1.0)), ((0, 1.0),)),
}
HKL = torch.tensor([[1, 0, 1], [-2, 1, 3], [0, 0, 3], [3, -1, -2]])


@pytest.mark.parametrize("thermal", [False, True])
def test_derivatives_by_every_free_parameter_agree_with_finite_differences(thermal):
    model = moved(constrained(alloy(), **ALL))
    kind = absorption.Thermal() if thermal else absorption.ELASTIC
    optical = absorption.Optical(model, kind, 0.0251)
    names = [name for name, _ in optical.named_parameters()]
    assert {"crystal.site_shift", "crystal.u_shift", "crystal.occ_shift"} <= set(names)
    assert len(model.occ_shift) == 2

    def factors(*values):
        given = dict(zip(names, values, strict=True))
        return torch.view_as_real(torch.func.functional_call(optical, given, (HKL,)))

    values = [p.detach().clone().requires_grad_() for p in optical.parameters()]
    assert torch.autograd.gradcheck(factors, values, eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [absorption.ELASTIC, absorption.Thermal()])
def test_the_refined_structure_scatters_as_the_moved_model(kind):
    model = moved(constrained(alloy(), **ALL))
    refined = CrystalModel(model.refined().replace(freedom=None))
    mine, theirs = (absorption.Optical(m, kind, 0.0251)(HKL) for m in (model, refined))
    assert torch.allclose(mine, theirs, atol=1e-12)


def test_a_mixed_site_scatters_as_its_atoms_together():
    structure = constrained(alloy(), **ALL)
    f = CrystalModel(structure)(HKL)
    full = CrystalModel(structure.replace(occ=tiny.f64([1, 0, 0])))(HKL)
    first = CrystalModel(structure.replace(occ=tiny.f64([0, 0.7, 0])))(HKL)
    second = CrystalModel(structure.replace(occ=tiny.f64([0, 0, 0.3])))(HKL)
    assert torch.allclose(f, full + first + second, atol=1e-12)


def test_units_are_those_of_free_atoms():
    model = CrystalModel(constrained(alloy(), **ALL))
    with torch.no_grad():
        model.site_shift[1:] = tiny.f64([1, 0, 0])
        model.u_shift[0] = 1
    shift = (model.site() - alloy().site).detach()[2]
    length = math.sqrt(float(shift @ metric(tiny.f64(tiny.CELL)) @ shift))
    assert length == pytest.approx(SITE_UNIT)
    assert float(model.u_iso()[0].detach()) == pytest.approx(0.007 + U_UNIT)


# --- refinement -----------------------------------------------------------------------------


def test_a_mixed_site_is_refined_to_its_true_occupancies():
    """Si and O on one site in another ratio than at the start, noise of one per cent."""
    settings = tiny.settings(thickness="single", valence=INDEPENDENT_ATOMS)
    mixed = constrained(alloy(type=torch.tensor([1, 0, 1])), **ALL | {"occ": ALL["occ"][:1]})
    problem = tiny.problem(blocks=16, width=3.0, samples=8, g_limit=0.9).replace(structure=mixed)
    model = build_model(problem, settings, seed=0)
    with torch.no_grad():
        model.crystal.occ_shift += 0.2 / OCC_UNIT
        model.crystal.site_shift[1] += 2
        model.scale.log_scale += 12
        made = model.intensities(model.value_profiles())
    truth = model.crystal.refined()
    assert truth.occ.tolist() == pytest.approx([1, 0.9, 0.1])
    sigma = 0.01 * made + 1e-4 * made.max()
    generator = torch.Generator().manual_seed(5)
    noise = sigma * torch.randn(len(made), generator=generator, dtype=torch.float64)
    o = problem.observations.replace(intensity=made + noise, sigma=sigma)
    result = Refinement(problem.replace(observations=o), settings, RefineSettings(10)).run()
    found = result.structure
    assert float(found.occ[1]) == pytest.approx(0.9, abs=0.02)
    assert float(found.occ[1] + found.occ[2]) == pytest.approx(1)
    assert torch.equal(found.site[1], found.site[2])
    error = (found.occ - truth.occ).abs()
    assert (error <= 4 * result.occ_su).all() and 0 < float(result.occ_su.max()) < 0.02
    assert float(result.occ_su[1]) == pytest.approx(float(result.occ_su[2]))
    assert torch.allclose(result.site_su[1], result.site_su[2])
    assert float(result.u_su[2]) == pytest.approx(1.2 * float(result.u_su[1]))
