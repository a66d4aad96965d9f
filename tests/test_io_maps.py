"""Difference maps: an atom left out comes back, from kinematic and from dynamical data."""

import dataclasses
import itertools
import types
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import iotbx.ccp4_map
import synthetic
from cctbx import crystal, miller, sgtbx, xray
from cctbx.array_family import flex

from dials_hybrid import api, fourier, io_maps
from dials_hybrid.data import Fourier, Problem
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_elements import ELECTRON_TABLE
from dials_hybrid.model import HybridModel
from dials_hybrid.refine import Refinement, RefineSettings


def amplitudes(structure, d_min=0.65):
    """Structure factors of all reflections of one cell, both mates: hkl, F."""
    structure.scattering_type_registry(table=ELECTRON_TABLE)
    unique = miller.build_set(structure.crystal_symmetry(), False, d_min=d_min)
    f = unique.structure_factors_from_scatterers(structure, algorithm="direct").f_calc()
    f = f.expand_to_p1()
    hkl = np.array(f.indices().as_vec3_double()).round().astype(int).reshape(-1, 3)
    data = f.data().as_numpy_array()
    return np.concatenate([hkl, -hkl]), np.concatenate([data, data.conj()])


def kinematic(full, partial, weight=1.0, seed=0):
    """Terms of data that tell F directly, each component with the given weight."""
    hkl, wanted = amplitudes(full)
    _, present = amplitudes(partial)
    rng = np.random.default_rng(seed)
    half = len(hkl) // 2  # the mates have the same probes, so that each counts half
    probes = (weight / 2) ** 0.5 * (rng.normal(size=(32, half)) + 1j * rng.normal(size=(32, half)))
    probes = np.concatenate([probes, probes.conj()], 1)
    gradient = np.concatenate([weight * (wanted - present)[None], probes])
    hkl, present, gradient = map(torch.tensor, (hkl, present, gradient))
    change = fourier.linear_change(to_structure(partial), hkl, gradient)
    return Fourier(hkl, present, gradient, change)


def without(structure, label):
    kept = structure.select(flex.bool([sc.label != label for sc in structure.scatterers()]))
    return kept, next(sc for sc in structure.scatterers() if sc.label == label)


def distance(structure, first, second):
    settings = crystal.special_position_settings(structure.crystal_symmetry())
    equivalents = settings.sym_equiv_sites(first)
    return sgtbx.min_sym_equiv_distance_info(equivalents, second).dist()


@pytest.mark.parametrize("label", ["O1", "Si1"])
def test_an_atom_left_out_is_the_highest_peak(label):
    """In symmetry, also on a special position: site, neighbour and height of the potential."""
    full = synthetic.quartz_structure()
    partial, missing = without(full, label)
    found = io_maps.map_summary(partial, types.SimpleNamespace(fourier=kinematic(full, partial)))
    top = found["peaks"][0]
    assert distance(full, top["xyz"], missing.site) < 0.05
    assert top["height"] == pytest.approx(found["max"], rel=0.1)
    assert top["sigma"] == pytest.approx(top["height"] / found["rms"]) and top["sigma"] > 10
    assert top["height"] > 8 * found["peaks"][1]["height"]
    assert top["distance"] == pytest.approx(1.605, abs=0.03)
    assert all(p["height"] < 0 for p in found["holes"])


def oblique():
    """Two atoms in a cell of low symmetry, far from orthogonal."""
    symmetry = crystal.symmetry(unit_cell=(6, 8, 7, 70, 115, 65), space_group_symbol="P -1")
    atoms = [xray.scatterer("C1", site=(0.1, 0.2, 0.3)), xray.scatterer("O1", site=(0.9, 0.4, 0.7))]
    return xray.structure(crystal_symmetry=symmetry, scatterers=flex.xray_scatterer(atoms))


@pytest.mark.parametrize(
    "structure", [synthetic.quartz_structure(), oblique()], ids=["P3221", "P-1"]
)
def test_peaks_stand_beside_the_atom_that_they_are_named_by(structure):
    """Against all copies in a large box."""
    cell, rng = structure.unit_cell(), np.random.default_rng(0)
    turn = np.array(cell.orthogonalization_matrix()).reshape(3, 3)
    shifts = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    atoms = {sc.label: np.array(sc.site) for sc in structure.scatterers()}
    for xyz in rng.uniform(-1, 2, (30, 3)):
        copies = np.array([op(xyz.tolist()) for op in structure.space_group()])
        copies = (copies[:, None] + shifts).reshape(-1, 3)
        nearest = min(
            np.linalg.norm((copies - site) @ turn.T, axis=1).min() for site in atoms.values()
        )
        moved, label, distance = io_maps.beside_an_atom(structure, xyz.tolist())
        assert distance == pytest.approx(nearest)
        assert cell.distance(moved, atoms[label].tolist()) == pytest.approx(distance)
        assert np.abs(copies - moved).max(1).min() < 1e-9


def test_the_sum_is_the_potential_of_the_whole_structure():
    full = synthetic.quartz_structure()
    partial, _ = without(full, "O1")
    terms = kinematic(full, partial, weight=100.0)
    maps = io_maps.map_coefficients(partial.crystal_symmetry(), terms)
    wanted = {tuple(h): f for h, f in zip(*amplitudes(full), strict=True)}
    found, expected = maps["sum"].data(), [wanted[h] for h in maps["sum"].indices()]
    size = np.abs(expected).mean()
    # the curvature is known from few probes, and half the change is damped away at its median
    assert np.abs(np.array(found) - expected).mean() < 0.3 * size
    assert maps["sum"].is_unique_set_under_symmetry()


def test_heights_are_volts():
    """A Gaussian of scattering length a and width b has the Peng potential at its centre."""
    symmetry = crystal.symmetry((6, 6, 6, 90, 90, 90), "P 1")
    half = miller.build_set(symmetry, False, d_min=0.35)
    d_star_sq = half.d_star_sq().data().as_numpy_array()
    a, b = 2.0, 6.0
    f = miller.array(half, data=flex.complex_double(a * np.exp(-b * d_star_sq / 4) + 0j))
    values = io_maps.potential_map(f).real_map_unpadded().as_numpy_array() * io_maps.VOLT
    # V(0) = 47.88 a (4 pi / b)^(3/2), less the mean that F(0) would give
    peak = io_maps.VOLT * a * ((4 * np.pi / b) ** 1.5 - 1 / 216)
    assert values.max() == pytest.approx(peak, rel=1e-3)


def test_a_perfect_model_leaves_an_empty_map():
    full = synthetic.quartz_structure()
    found = io_maps.map_summary(full, types.SimpleNamespace(fourier=kinematic(full, full)))
    assert found["max"] == found["rms"] == 0 and found["peaks"] == []


def test_nothing_is_made_of_a_result_without_gradients():
    assert io_maps.map_summary(None, types.SimpleNamespace(fourier=None)) is None


SITES = [[0.1, 0.2, 0.15], [0.6, 0.25, 0.5], [0.3, 0.7, 0.8], [0.75, 0.7, 0.35]]
CELL = (6.0, 6.0, 5.0, 90.0, 90.0, 90.0)


def test_dynamical_data_bring_back_an_atom():
    """120 degrees to d = 0.83 A, R 0.36 without the atom, which scatters as the others."""
    whole = tiny.triclinic(SITES, [3.0] * 4, [8.0] * 4, CELL)
    part = tiny.triclinic(SITES[:3], [3.0] * 3, [8.0] * 3, CELL)
    scan = tiny.scan(blocks=40, width=3.0, cell=CELL)
    o = tiny.observations(whole, scan, 1.2, window=0.8)
    settings = tiny.settings(thickness="single", thickness_start=150.0, g_max=1.2)
    with torch.no_grad():
        truth = HybridModel(Problem(whole, scan, o), settings)
        observed = truth.intensities(truth.profiles())
        sigma = 0.05 * observed + 0.01 * observed.mean()
        refinement = Refinement(
            Problem(part, scan, o.replace(intensity=observed)), settings, RefineSettings()
        )
        model = refinement.model
        calculated = model.intensities(model.profiles())
        scale = model.scale(model.scale_matrix)
    result = types.SimpleNamespace(calculated=calculated, sigma_weight=sigma, scale=scale)
    result.replace = lambda **changes: types.SimpleNamespace(**changes)
    result = refinement.with_fourier(result)
    structure = xray.structure(crystal_symmetry=crystal.symmetry(CELL, "P 1"))
    for i, site in enumerate(SITES[:3]):
        structure.add_scatterer(xray.scatterer(f"C{i}", site=site, u=0.01))
    found = io_maps.map_summary(structure, result)
    top, second = found["peaks"][:2]
    assert distance(structure, top["xyz"], SITES[3]) < 0.1
    assert top["height"] > 1.5 * second["height"]
    # the data agree with the changed structure factors far better
    moved = fourier.table_change(model, result.fourier.change)
    with torch.no_grad():
        changed = model.intensities(model.profiles(moved))
    misfit = [(((observed - x) / sigma) ** 2).sum() for x in (calculated, changed)]
    assert misfit[1] < 0.2 * misfit[0]


@pytest.mark.parametrize("curvature", [0.5, 8.0])
def test_the_change_is_as_long_as_the_misfit_wants(curvature):
    """A linear step that would go three times too far, or half as far as it should."""
    calls = []

    def misfit(length):
        calls.append(length)
        return 10 - 2 * length + curvature * length**2 + 0.1 * length**3

    best = fourier.best_length(misfit, -2.0)
    assert best == pytest.approx(np.roots([0.3, 2 * curvature, -2]).max(), rel=0.1)
    assert len(calls) == 1 + fourier.TRIALS
    assert fourier.best_length(lambda length: length, -2.0) == 0


def test_the_change_has_the_symmetry_of_the_crystal():
    """From a gradient without any: F(h) = F(h R) exp(2 pi i h.t), F(-h) conjugate, absences."""
    structure = to_structure(synthetic.quartz_structure())
    half = torch.tensor(
        [[h, k, m] for h in range(-3, 4) for k in range(-3, 4) for m in range(-4, 5)]
    )
    hkl = half[half.abs().sum(1) > 0]
    hkl = hkl[[all(abs(x) <= 3 for x in (h, k, h + k)) for h, k, _ in hkl.tolist()]]
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(5, len(hkl), dtype=torch.complex128, generator=generator)
    change = fourier.linear_change(structure, hkl, gradient)
    place = {tuple(h): i for i, h in enumerate(hkl.tolist())}
    for rotation, shift in zip(structure.sym_rot, structure.sym_trans, strict=True):
        moved = [place[tuple(h)] for h in (hkl @ rotation.long()).tolist()]
        turn = torch.exp(2j * np.pi * (hkl.double() @ shift))
        assert torch.allclose(change, turn * change[moved])
    assert torch.allclose(change, change[[place[tuple(h)] for h in (-hkl).tolist()]].conj())
    absent = (hkl[:, 0] == 0) & (hkl[:, 1] == 0) & (hkl[:, 2] % 3 != 0)
    assert bool(absent.any()) and not change[absent].any() and bool(change[~absent].all())


def test_real_quartz_shows_the_oxygen_left_out(quartz_dials):
    """Nothing but thickness and scale refined; R1 is then 0.4, and phases are those of Si."""
    options = api.Options(
        model=api.ModelSettings(g_max=1.4, s_max=0.008),
        refine=api.RefineSettings(iterations=0),
        sampling=api.Sampling(1.0, 0.1),
        depth_max=1000,
        thickness_start=600,
        test_settings=False,
    )
    files = [quartz_dials / "integrated.expt", quartz_dials / "integrated.refl"]
    model = Path(__file__).resolve().parents[1] / "examples" / "quartz.cif"
    job = api.load(files, model, options)
    partial, missing = without(job.xray_structure, "O1")
    problem = job.problem.replace(structure=to_structure(partial))
    job = api.choose_setting(dataclasses.replace(job, xray_structure=partial, problem=problem))
    top, second = api.refine(job).contract["map_peaks"]["peaks"][:2]
    assert distance(partial, top["xyz"], missing.site) < 0.1
    assert top["height"] > second["height"] and top["sigma"] > 8


def test_map_file(tmp_path):
    full = synthetic.quartz_structure()
    partial, _ = without(full, "O1")
    result = types.SimpleNamespace(fourier=kinematic(full, partial))
    io_maps.write_map(tmp_path / "a.map", partial, result)
    found = iotbx.ccp4_map.map_reader(file_name=str(tmp_path / "a.map"))
    assert found.unit_cell().is_similar_to(partial.unit_cell(), 1e-4, 1e-4)
    summary = io_maps.map_summary(partial, result)
    assert flex.max(found.map_data().as_double()) == pytest.approx(summary["max"], rel=1e-4)
