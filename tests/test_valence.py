"""Valence terms of the structure factors: charges and dipoles."""

import dataclasses
import math

import pytest
import tiny
import torch

from dials_hybrid.crystal import CrystalModel, reciprocal_length_sq, structure_factors
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.refine import Refinement, RefineSettings, build_model
from dials_hybrid.slater import valence_radius
from dials_hybrid.valence import (
    MODELS,
    MOTT_BETHE,
    Shells,
    Valence,
    ValenceSettings,
    neutral_charges,
)

RADIUS = 0.5
SHELLS = Shells(tiny.f64([RADIUS, 1.2]), tiny.f64([0.7, RADIUS]))  # of the two atoms of `pair`
HKL = torch.cartesian_prod(*[torch.arange(-3, 4)] * 3)


def point_charges(structure, charges, sites, radii, hkl):
    """F(g) in A of point charges (e) at fractional sites of P1, each spread over its radius."""
    s_sq = reciprocal_length_sq(structure.cell, hkl)[:, None] / 4
    spread = torch.exp(-8 * math.pi**2 * tiny.f64(radii) ** 2 / 3 * s_sq)
    phase = 2 * math.pi * hkl.double() @ tiny.f64(sites).T
    waves = tiny.f64(charges) * spread * torch.polar(torch.ones_like(phase), phase)
    return (MOTT_BETHE / s_sq * waves).sum(1)


def valence_part(structure, valence, hkl):
    """What the valence adds to F(g)."""
    given = (structure, hkl, structure.site, structure.u_iso, structure.u_star)
    return structure_factors(*given, valence) - structure_factors(*given)


@pytest.fixture
def pair():
    """Two atoms in P1 without vibrations, in a cell with axes of 6, 6 and 5 A."""
    return tiny.triclinic([[0.1, 0.2, 0.3], [0.4, 0.1, 0.8]], [1.0, 2.0], [5.0, 7.0])


def test_the_constant_of_mott_and_bethe():
    """m e^2 / (8 pi eps_0 h^2) = 0.0239337 A^-1 (International Tables C, 4.3.1)."""
    assert pytest.approx(0.0239337, rel=1e-5) == MOTT_BETHE


def test_charges_scatter_as_point_charges_spread_over_shells_of_their_own(pair):
    hkl = HKL[(HKL != 0).any(1)]
    valence = Valence(tiny.f64([0.7, -0.7]), torch.zeros(2, 3).double(), SHELLS)
    expected = point_charges(pair, [0.7, -0.7], pair.site.tolist(), [RADIUS, 1.2], hkl)
    assert torch.allclose(valence_part(pair, valence, hkl), expected, rtol=1e-9, atol=1e-12)


def test_a_dipole_scatters_as_two_near_charges(pair):
    """Plus at one end, minus at the other: the moment points to the plus."""
    hkl = HKL[(HKL != 0).any(1)]
    step = [0.0005, -0.0003, 0.0002]
    ends = [[x + sign * d for x, d in zip((0.4, 0.1, 0.8), step, strict=True)] for sign in (1, -1)]
    expected = point_charges(pair, [50.0, -50.0], ends, [RADIUS, RADIUS], hkl)
    dipole = torch.stack([torch.zeros(3).double(), 100 * tiny.f64(step)])
    found = valence_part(pair, Valence(torch.zeros(2).double(), dipole, SHELLS), hkl)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_nothing_is_added_to_the_mean_potential(pair):
    valence = Valence(tiny.f64([0.7, -0.7]), torch.ones(2, 3).double(), SHELLS)
    assert valence_part(pair, valence, torch.zeros(1, 3, dtype=torch.int64)).abs().max() == 0


def test_symmetry_mates_turn_their_dipoles():
    """|F| of equivalent reflections stays equal."""
    structure = tiny.quartz()
    model = CrystalModel(structure, ValenceSettings())
    with torch.no_grad():
        model.charge_shift += 2
        model.dipole_shift += torch.tensor([1.0, -2.0, 0.5, 1.5])
    hkl = HKL[(HKL != 0).any(1)]
    f = model(hkl).abs().detach()
    for rotation in structure.sym_rot:
        mates = (hkl.double() @ rotation).round().long()
        assert torch.allclose(model(mates).abs().detach(), f, rtol=1e-9, atol=1e-12)


def test_the_cell_stays_neutral():
    count = tiny.f64([2.0, 1.0, 4.5])
    basis = neutral_charges(count)
    assert basis.shape == (2, 3)
    assert (basis @ count).abs().max() < 1e-12
    assert torch.allclose(basis @ basis.T, torch.eye(2).double())
    assert neutral_charges(tiny.f64([3.0])).shape == (0, 1)


@pytest.mark.parametrize(("name", "charges", "dipoles"), [("none", 0, 0), ("charge", 1, 0)])
def test_models_free_what_they_say(name, charges, dipoles):
    model = CrystalModel(tiny.quartz(), ValenceSettings(name))
    assert (len(model.charge_shift), len(model.dipole_shift)) == (charges, dipoles)


def test_dipoles_have_the_freedom_of_the_sites():
    model = CrystalModel(tiny.quartz(), ValenceSettings("dipole", dipole_sigma=0.2))
    assert len(model.dipole_shift) == len(model.site_shift) == 4
    with torch.no_grad():
        model.dipole_shift += 1
    dipole = model.valence().dipole * model.structure.cell[:3]
    assert (dipole[0, 1:] == 0).all()  # Si on a two-fold axis along a
    assert abs(float(dipole[0, 0].detach())) == pytest.approx(0.2)


def test_charges_leave_the_shells_of_their_elements():
    """Or all the same one, if its radius is given."""
    quartz = tiny.quartz()
    shells = CrystalModel(quartz, ValenceSettings(radius=0.5)).valence().shells
    assert shells.charge.tolist() == [valence_radius(quartz.elements[k]) for k in quartz.type]
    assert shells.dipole.tolist() == [0.5] * len(quartz.type)
    given = CrystalModel(quartz, ValenceSettings(charge_radius=0.8)).valence().shells
    assert given.charge.tolist() == [0.8] * len(quartz.type)


def test_files_of_earlier_versions_have_one_radius_for_all():
    plain = ModelSettings().to_dict()
    assert ModelSettings.from_dict(plain).valence.charge_radius is None
    del plain["valence"]["charge_radius"]
    assert ModelSettings.from_dict(plain).valence.charge_radius == plain["valence"]["radius"]


def test_unknown_model():
    with pytest.raises(ValueError, match="quadrupole"):
        ValenceSettings("quadrupole")


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    model = CrystalModel(tiny.quartz(), ValenceSettings(name))
    hkl = HKL[::7]
    names = [n for n, _ in model.named_parameters()]
    values = tuple(torch.full_like(p, 0.3).requires_grad_() for p in model.parameters())

    def table(*given):
        f = torch.func.functional_call(model, dict(zip(names, given, strict=True)), (hkl,))
        return torch.view_as_real(f)

    assert torch.autograd.gradcheck(table, values)


def made(valence, charge, dipole):
    """A problem whose intensities a structure with charges and dipoles made."""
    settings = tiny.settings(
        g_max=0.8, thickness="distribution", thickness_start=140.0, valence=valence
    )
    problem = tiny.problem(blocks=16, width=3.0, samples=8, g_limit=0.9)
    model = build_model(problem, settings, seed=0)
    with torch.no_grad():
        model.crystal.charge_shift += charge
        model.crystal.dipole_shift += tiny.f64(dipole)
        model.scale.log_scale += 12
        intensity = model.intensities(model.value_profiles())
    sigma = 0.01 * intensity + 1e-4 * intensity.max()
    o = problem.observations.replace(intensity=intensity, sigma=sigma)
    return problem.replace(observations=o), settings, model.crystal


def test_refinement_finds_charges_and_dipoles_and_leaves_the_sites():
    dipole = [0.5, -0.8, 0.6, 0.4]
    problem, settings, truth = made(ValenceSettings(), 1.0, dipole)
    results = {}
    for name in ("none", "dipole"):
        chosen = dataclasses.replace(settings, valence=ValenceSettings(name))
        loop = Refinement(problem, chosen, RefineSettings(15))
        results[name] = loop.run(), loop.model.crystal
    with_, crystal = results["dipole"]
    without, _ = results["none"]
    moved = [
        ((r.structure.site - problem.structure.site) * problem.structure.cell[:3]).abs().max()
        for r in (with_, without)
    ]
    assert moved[0] < 0.3 * moved[1]
    assert with_.summary["final"]["r1_obs"] < 0.5 * without.summary["final"]["r1_obs"]
    charge = with_.summary["valence"]["charge"]
    for i, element in enumerate(problem.structure.elements):
        expected = float(truth.valence().charge[i].detach())
        found = charge[element]
        assert found["su"] > 0
        assert abs(found["value"] - expected) < max(4 * found["su"], 0.2 * abs(expected))
    assert (crystal.dipole_shift - tiny.f64(dipole)).abs().max() < 0.5
    assert "charge" not in without.summary["valence"]
