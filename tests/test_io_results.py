"""Refined results in DIALS files, CIF and MTZ: read back, they say what was refined."""

import importlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import iotbx.ccp4_map
import iotbx.cif
import iotbx.mtz
import synthetic
from cctbx import adptbx, miller
from dials.array_family import flex
from dxtbx.model import ExperimentList
from iotbx.reflection_file_utils import get_r_free_flags_scores

from dials_hybrid import crystal as physics
from dials_hybrid import (
    io_cctbx,
    io_cif_mtz,
    io_dials,
    io_disorder,
    io_geometry,
    io_maps,
    io_results,
)
from dials_hybrid.data import Fourier
from dials_hybrid.freedom import Constraints, basis
from dials_hybrid.records import InputError


@pytest.fixture
def problem(loaded):
    return synthetic.make_problem(loaded)


@pytest.fixture
def result(problem):
    return synthetic.make_result(problem)


@pytest.fixture
def structure(loaded):
    return io_cctbx.reconcile(synthetic.quartz_structure(), loaded.experiments, "a.cif", "a.expt")


def rotations(vectors):
    """Rotation matrices of rotation vectors (n, 3) in rad, by the eigenvalues of the generator."""
    out = []
    for x, y, z in np.atleast_2d(vectors):
        values, basis = np.linalg.eig(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
        out.append((basis @ np.diag(np.exp(values)) @ np.linalg.inv(basis)).real)
    return np.array(out)


# --- experiments ----------------------------------------------------------------------------


def scan_points(experiment):
    start, width = np.radians(experiment.scan.get_oscillation())
    return start + width * np.arange(experiment.scan.get_num_images() + 1)


def test_rotation_matrices():
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    assert np.allclose(io_geometry.rotation_matrices(vectors), rotations(vectors), atol=1e-12)
    quarter = io_geometry.rotation_matrices(np.array([[0, 0, math.pi / 2]]))[0]
    assert np.allclose(quarter @ (1, 0, 0), (0, 1, 0))


@pytest.mark.parametrize("varying", [False, True])
def test_written_settings_are_the_refined_ones(tmp_path, varying):
    """Two sweeps: R(omega) times the original setting, at every scan point."""
    starts = (-10.0, 40.0)
    experiments = ExperimentList(
        [synthetic.make_experiment(12, start, scan_points=varying) for start in starts]
    )
    paths = synthetic.write_pair(
        tmp_path, "two", experiments, synthetic.make_reflections(experiments)
    )
    loaded = io_dials.load(paths)
    problem = synthetic.make_problem(loaded, block_width=2.0)
    result = synthetic.make_result(problem)
    path = tmp_path / "refined.expt"
    io_results.write_experiments(path, loaded.experiments, problem, result)
    refined = io_dials.load([path, paths[1]]).experiments
    for sweep, (before, after) in enumerate(zip(loaded.experiments, refined, strict=True)):
        angle = scan_points(before)
        mine = (problem.scan.sweep == sweep).numpy()
        centre = problem.scan.block_angle.numpy()[mine]
        omega = [np.interp(angle, centre, x) for x in result.orientation.numpy()[mine].T]
        turn = rotations(np.transpose(omega))
        expected = turn @ io_dials.settings_at(before, angle)
        assert np.allclose(io_dials.settings_at(after, angle), expected, rtol=0, atol=1e-9)
        assert after.crystal.num_scan_points == len(angle)
        # the static model, with the goniometer at the middle of the scan
        middle = np.array([angle[len(angle) // 2]])
        static = [np.array(e.crystal.get_A()).reshape(3, 3) for e in (before, after)]
        goniometer = io_results.goniometer_rotations_at(before, middle)[0]
        wanted = turn[len(angle) // 2] @ goniometer @ static[0]
        assert np.allclose(goniometer @ static[1], wanted, rtol=0, atol=1e-9)


def test_settings_between_scan_points(tmp_path, sweep, loaded, problem, result):
    """A constant rotation is kept between the scan points too, but for their interpolation."""
    omega = torch.tensor([1e-3, -2e-3, 1.5e-3], dtype=torch.float64)
    result = result.replace(orientation=omega.expand_as(result.orientation))
    path = tmp_path / "refined.expt"
    io_results.write_experiments(path, loaded.experiments, problem, result)
    refined = io_dials.load([path, sweep.refl]).experiments[0]
    angle = np.radians(np.linspace(-10, 10, 57))
    expected = rotations(omega.numpy()) @ io_dials.settings_at(loaded.experiments[0], angle)
    assert np.allclose(io_dials.settings_at(refined, angle), expected, rtol=0, atol=1e-7)


def test_written_twice_does_not_count_twice(tmp_path, sweep, loaded, problem, result):
    first, second = tmp_path / "first.expt", tmp_path / "second.expt"
    angle = scan_points(loaded.experiments[0])
    before = io_dials.settings_at(loaded.experiments[0], angle)
    for _ in range(2):  # the experiments given are not changed by writing
        io_results.write_experiments(first, loaded.experiments, problem, result)
    assert np.array_equal(io_dials.settings_at(loaded.experiments[0], angle), before)
    again = io_dials.load([first, sweep.refl])
    still = result.replace(orientation=torch.zeros_like(result.orientation))
    io_results.write_experiments(second, again.experiments, problem, still)
    once, twice = (io_dials.load([p, sweep.refl]).experiments[0] for p in (first, second))
    assert np.abs(io_dials.settings_at(once, angle) - before).max() > 1e-5
    assert np.allclose(
        io_dials.settings_at(once, angle), io_dials.settings_at(twice, angle), rtol=0, atol=1e-12
    )


def test_other_models_are_kept(tmp_path, sweep, loaded, problem, result):
    crystal = loaded.experiments[0].crystal
    crystal.set_B_covariance(tuple(1e-10 * float(i % 10 == 0) for i in range(81)))
    sd = crystal.get_cell_parameter_sd()
    path = tmp_path / "refined.expt"
    io_results.write_experiments(path, loaded.experiments, problem, result)
    before, after = loaded.experiments[0], ExperimentList.from_file(str(path), False)[0]
    assert str(before.crystal.get_space_group().info()) == "P 31 2 1"
    assert str(after.crystal.get_space_group().info()) == "P 32 2 1"
    assert after.crystal.get_unit_cell().is_similar_to(before.crystal.get_unit_cell(), 1e-9, 1e-9)
    assert after.crystal.get_cell_parameter_sd() == pytest.approx(sd) and max(sd) > 0
    assert after.identifier == before.identifier
    assert after.profile.delta_m() == pytest.approx(before.profile.delta_m())
    for model in ("beam", "detector", "goniometer", "scan"):
        assert getattr(after, model) == getattr(before, model)
    assert after.imageset.get_template().endswith("sweep_-10_####.tif")


def test_uncertainty_of_the_cell_at_scan_points_is_kept(tmp_path, problem, result):
    experiment = synthetic.make_experiment(scan_points=True)
    covariance = flex.double([1e-10 * float(i % 10 == 0) for i in range(81)] * 21)
    covariance.reshape(flex.grid(21, 9, 9))
    experiment.crystal.set_B_covariance_at_scan_points(covariance)
    path = tmp_path / "refined.expt"
    io_results.write_experiments(path, [experiment], problem, result)
    crystal = ExperimentList.from_file(str(path), False)[0].crystal
    assert np.allclose(crystal.get_B_covariance_at_scan_points(), covariance)


# --- reflections ----------------------------------------------------------------------------


def test_written_reflections(tmp_path, sweep, loaded, problem, result):
    columns = set(loaded.reflections.keys())
    path = tmp_path / "refined.refl"
    io_results.write_reflections(path, loaded.reflections, problem, result)
    assert set(loaded.reflections.keys()) == columns
    table = io_dials.load([sweep.expt, path]).reflections
    assert dict(table.experiment_identifiers()) == {0: loaded.experiments[0].identifier}
    for name in ("intensity.sum.value", "xyzcal.mm", "miller_index", "flags"):
        assert list(table[name]) == list(loaded.reflections[name])
    used = table["hybrid.used"].as_numpy_array()
    rows = problem.observations.row.numpy()
    assert (np.flatnonzero(used) == rows).all() and 0 < used.sum() < len(used)
    for name, values in (("calc", result.calculated), ("scale", result.scale)):
        column = table[f"intensity.hybrid.{name}"].as_numpy_array()
        assert (column[rows] == values.numpy()).all() and (column[~used] == 0).all()


def test_settings_of_dials_do_not_change_the_format(tmp_path, monkeypatch, loaded, problem, result):
    monkeypatch.setenv("DIALS_USE_PICKLE", "1")
    monkeypatch.setenv("DIALS_USE_GZIP_REFL", "1")
    path = tmp_path / "refined.refl"
    io_results.write_reflections(path, loaded.reflections, problem, result)
    assert [p.name for p in tmp_path.iterdir()] == ["refined.refl"]
    table = flex.reflection_table.from_msgpack(path.read_bytes())
    assert len(table) == len(loaded.reflections)


@pytest.mark.parametrize("command", ["show", "report"])
def test_dials_reads_what_is_written(tmp_path, loaded, problem, result, command):
    try:
        importlib.import_module(f"dials.command_line.{command}")
    except ImportError as error:  # some packages of DIALS leave out what its report needs
        pytest.skip(f"dials.{command} does not start here: {error}")
    io_results.write_experiments(tmp_path / "r.expt", loaded.experiments, problem, result)
    io_results.write_reflections(tmp_path / "r.refl", loaded.reflections, problem, result)
    code = f"from dials.command_line.{command} import run; run(['r.expt', 'r.refl'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if command == "show":
        assert "P 32 2 1" in done.stdout and "intensity.hybrid.calc" in done.stdout
    else:
        assert (tmp_path / "dials.report.html").is_file()


# --- CIF ------------------------------------------------------------------------------------

CONTRACT = {
    "final": {"r1_obs": 0.07123, "r1_all": 0.0912, "wr2_all": 0.1501, "gof": 2.345},
    "n_all": 1009,
    "n_obs": 823,
    "n_parameters": 37,
}


def read_cif(path):
    reader = iotbx.cif.reader(file_path=str(path))
    (block,) = reader.model().values()
    (structure,) = reader.build_crystal_structures().values()
    return block, structure


def test_cif_of_the_refined_structure(tmp_path, structure, problem, result):
    path = tmp_path / "hybrid refined.cif"
    io_cif_mtz.write_cif(path, structure, problem, result, CONTRACT)
    block, found = read_cif(path)
    refined = io_cctbx.update_xray_structure(structure, result.structure)
    assert str(found.space_group_info()) == "P 32 2 1"
    assert found.unit_cell().is_similar_to(refined.unit_cell(), 1e-5, 1e-4)
    cell = refined.unit_cell()
    for mine, theirs in zip(refined.scatterers(), found.scatterers(), strict=True):
        assert (mine.label, mine.scattering_type) == (theirs.label, theirs.scattering_type)
        assert theirs.site == pytest.approx(mine.site, abs=0.6e-4)
        assert theirs.occupancy == mine.occupancy
        assert mine.flags.use_u_aniso() == theirs.flags.use_u_aniso()
        u = [adptbx.u_star_as_u_cif(cell, a.u_star) for a in (mine, theirs)]
        assert u[0] == pytest.approx(u[1], abs=1e-6)
    # 0.002 A of s.u. are 0.0004 of the cell; no s.u. on what symmetry fixes
    assert [block[f"_atom_site_fract_{x}"][0][-3:] for x in "xyz"] == ["(4)", "000", "667"]
    assert list(block["_atom_site_fract_y"])[1].endswith("(4)")
    assert list(block["_atom_site_U_iso_or_equiv"])[0] == "0.0070(12)"


def test_cif_has_uncertainties_of_refined_occupancies(tmp_path, structure, problem, result):
    """None where the occupancy is fixed."""
    part = structure.deep_copy_scatterers()
    part.scatterers()[1].occupancy = 0.7
    refined = result.structure.replace(occ=torch.tensor([1.0, 0.7034]).double())
    su = torch.tensor([0.0, 0.0021]).double()
    moved = result.replace(structure=refined, occ_su=su)
    io_cif_mtz.write_cif(tmp_path / "a.cif", part, problem, moved, CONTRACT)
    block, found = read_cif(tmp_path / "a.cif")
    assert list(block["_atom_site_occupancy"]) == ["1.000000", "0.703(2)"]
    assert found.scatterers()[1].occupancy == pytest.approx(0.703)


def test_what_rides_has_no_uncertainty_in_the_cif(tmp_path, structure, problem, result):
    """SHELXL has none either. The site of O rides on that of Si, the U of Si on that of O."""

    def written(constraints):
        freedom = basis(problem.structure, constraints)
        moved = result.replace(structure=result.structure.replace(freedom=freedom))
        io_cif_mtz.write_cif(tmp_path / "a.cif", structure, problem, moved, CONTRACT)
        block, _ = read_cif(tmp_path / "a.cif")
        names = ("fract_x", "fract_y", "fract_z", "U_iso_or_equiv")
        su = [["(" in x for x in block[f"_atom_site_{name}"]] for name in names]
        return su, list(block["_atom_site_refinement_flags_posn"])

    free, flags = written(Constraints())
    assert free == [[True, True], [False, True], [False, True], [True, True]]
    assert flags == ["S", "."]
    riding = Constraints(riding=((1, 0),), riding_u=((0, 1, 1.2),))
    assert written(riding) == (
        [[True, False], [False, False], [False, False], [False, True]],
        ["S", "R"],
    )


def test_cif_tells_the_parts_of_a_disorder(tmp_path, structure, problem, result):
    path, group = tmp_path / "a.cif", "_atom_site_disorder_group"
    io_cif_mtz.write_cif(path, structure, problem, result, CONTRACT)
    assert group not in read_cif(path)[0]
    parted = problem.replace(provenance={io_disorder.KEY: [0, 2]})
    io_cif_mtz.write_cif(path, structure, parted, result, CONTRACT)
    assert list(read_cif(path)[0][group]) == [".", "2"]
    assert io_disorder.parts_of(path, 2) == (0, 2)


def test_cif_has_uncertainties_of_anisotropic_atoms(tmp_path, structure, problem, result):
    su = torch.zeros(2, 6, dtype=torch.float64)
    su[1] = torch.tensor([0.0012, 0.0011, 0.0004, 0.0009, 0, math.nan]).double()
    moved = result.replace(u_aniso_su=su)
    io_cif_mtz.write_cif(tmp_path / "a.cif", structure, problem, moved, CONTRACT)
    block, found = read_cif(tmp_path / "a.cif")
    names = ("11", "22", "33", "12", "13", "23")
    values = [block[f"_atom_site_aniso_U_{name}"][0] for name in names]
    assert values == [
        "0.0156(12)",
        "0.0115(11)",
        "0.0119(4)",
        "0.0092(9)",
        "-0.002900",
        "-0.004600",
    ]
    u = adptbx.u_star_as_u_cif(found.unit_cell(), found.scatterers()[1].u_star)
    assert u == pytest.approx((0.0156, 0.0115, 0.0119, 0.0092, -0.0029, -0.0046), abs=1e-6)


def test_cif_tells_the_absolute_structure(tmp_path, structure, problem, result):
    def details(found):
        contract = {**CONTRACT, "absolute_structure": found}
        io_cif_mtz.write_cif(tmp_path / "a.cif", structure, problem, result, contract)
        block = read_cif(tmp_path / "a.cif")[0]
        names = "_refine_ls_abs_structure_details", "_refine_ls.abs_structure_z-score"
        return tuple(block[name] for name in names)

    assert details(None) == ("?", "?")
    none = details({"verdict": "not applicable: centrosymmetric"})
    assert none == ("Not applicable: centrosymmetric.", ".")
    tested, z = details({"verdict": "determined, P 32 2 1: z = 9.0", "z_score": 9.0})
    assert tested.startswith("Determined, P 32 2 1: z = 9.0. ") and "Klar" in tested and z == "9.00"


def test_cif_of_the_experiment(tmp_path, structure, problem, result):
    path = tmp_path / "a.cif"
    io_cif_mtz.write_cif(path, structure, problem, result, CONTRACT)
    block, _ = read_cif(path)
    expected = {
        "_diffrn_radiation_probe": "electron",
        "_diffrn_radiation_wavelength": "0.025100",
        "_diffrn_source_voltage": "199.7",
        "_computing_data_reduction": "DIALS",  # that of 3.test runs now, which says nothing
        "_refine_ls_R_factor_gt": "0.0712",
        "_refine_ls_R_factor_all": "0.0912",
        "_refine_ls_wR_factor_ref": "0.1501",
        "_refine_ls_goodness_of_fit_ref": "2.3450",
        "_refine_ls_number_reflns": str(len(problem.observations.intensity)),
        "_refine_ls_number_parameters": "37",
        "_reflns_number_total": str(len(problem.observations.intensity)),
        "_reflns_number_gt": str(int(problem.observations.observed.sum())),
    }
    assert {key: block[key] for key in expected} == expected
    assert block["_audit_creation_method"].startswith("dials_hybrid ")
    d = structure.unit_cell().d(flex.miller_index(problem.observations.hkl.tolist()))
    assert float(block["_reflns_d_resolution_high"]) == pytest.approx(min(d), abs=1e-3)
    assert all("Peng" in source for source in block["_atom_type_scat_source"])


@pytest.mark.parametrize("contract", [{}, {"final": None}, {"final": {"r1_obs": None}}])
def test_cif_without_numbers(tmp_path, structure, problem, result, contract):
    io_cif_mtz.write_cif(tmp_path / "a.cif", structure, problem, result, contract)
    block, _ = read_cif(tmp_path / "a.cif")
    assert block["_refine_ls_R_factor_gt"] == "?" and block["_refine_ls_number_parameters"] == "?"


def test_cif_with_ions_and_odd_labels(tmp_path, structure, problem, result):
    silicon, oxygen = structure.scatterers()
    silicon.scattering_type, oxygen.scattering_type = "Si4+", "O2-"
    silicon.label, oxygen.label = "Si 1", "O1'\""
    io_cif_mtz.write_cif(tmp_path / "a.cif", structure, problem, result, CONTRACT)
    block, found = read_cif(tmp_path / "a.cif")
    assert list(block["_atom_site_type_symbol"]) == ["Si4+", "O2-"]
    assert [a.label for a in found.scatterers()] == ["Si 1", "O1'\""]


@pytest.mark.parametrize(
    ("value", "su", "expected"),
    [
        (0.47053, 0.0003, "0.4705(3)"),
        (0.47053, 0.00012, "0.47053(12)"),
        (-0.47053, 0.02, "-0.47(2)"),
        (-0.000004, 0.0002, "0.0000(2)"),
        (0.47053, math.nan, "0.470530"),
        (2 / 3, 0.0, "0.666667"),
        (-1e-9, math.nan, "0.000000"),
        (-0.5, math.inf, "-0.500000"),
        (6e-17, 3e-17, "0.000000"),
    ],
)
def test_standard_notation(value, su, expected):
    assert io_cctbx.with_uncertainty(value, su) == expected


# --- miller arrays and MTZ ------------------------------------------------------------------


def structure_factors(problem, result, indices):
    """F of the refined structure by this package's own formula."""
    s = result.structure
    hkl = torch.tensor([list(h) for h in indices])
    return physics.structure_factors(s, hkl, s.site, s.u_iso, s.u_star).numpy()


def test_unmerged_arrays(structure, problem, result):
    arrays = io_cif_mtz.miller_arrays(structure, problem, result)
    observations = problem.observations
    for name, values in (("observed", observations.intensity), ("calculated", result.calculated)):
        assert [list(h) for h in arrays[name].indices()] == observations.hkl.tolist()
        assert np.array_equal(arrays[name].data(), values.numpy())
        assert arrays[name].is_xray_intensity_array()
    assert np.array_equal(arrays["observed"].sigmas(), observations.sigma.numpy())


def test_kinematic_structure_factors(structure, problem, result):
    f_calc = io_cif_mtz.miller_arrays(structure, problem, result)["f_calc"]
    expected = structure_factors(problem, result, f_calc.indices())
    assert np.allclose(f_calc.data().as_numpy_array(), expected, rtol=0, atol=1e-8)


def test_merged_arrays(structure, problem, result):
    """Means over symmetry equivalents and Friedel mates, weighted by the error model."""
    arrays = io_cif_mtz.miller_arrays(structure, problem, result)
    asu = miller.set(
        structure.crystal_symmetry(), arrays["observed"].indices(), anomalous_flag=False
    )
    asu = list(asu.map_to_asu().indices())
    weight = 1 / result.sigma_weight.numpy() ** 2
    observed, calculated = problem.observations.intensity.numpy(), result.calculated.numpy()
    kinematic = dict(zip(arrays["f_calc"].indices(), np.abs(arrays["f_calc"].data()), strict=True))
    merged = {
        name: dict(zip(arrays[name].indices(), arrays[name].data(), strict=True))
        for name in ("observed_merged", "calculated_merged", "corrected")
    }
    assert set(merged["observed_merged"]) == set(asu) and len(set(asu)) < len(asu)
    assert arrays["corrected"].is_unique_set_under_symmetry()
    for h in set(asu):
        same = np.array([other == h for other in asu])
        w, io, ic = weight[same], observed[same], calculated[same]
        assert merged["observed_merged"][h] == pytest.approx((w * io).sum() / w.sum())
        assert merged["calculated_merged"][h] == pytest.approx((w * ic).sum() / w.sum())
        ratio = max((w * io * ic).sum() / (w * ic * ic).sum(), 0)
        assert merged["corrected"][h] == pytest.approx(kinematic[h] * math.sqrt(ratio))


def test_corrected_amplitudes_of_a_perfect_model(structure, problem, result):
    """Where the dynamical model is met, the kinematical amplitudes are those of the model."""
    observations = problem.observations.replace(intensity=result.calculated)
    arrays = io_cif_mtz.miller_arrays(structure, problem.replace(observations=observations), result)
    corrected, f_calc = arrays["corrected"], arrays["f_calc"]
    assert np.allclose(corrected.data(), np.abs(f_calc.data()))
    assert (np.array(corrected.sigmas()) > 0).all()


def test_single_reflection_is_corrected_by_the_ratio(structure, problem, result):
    """sqrt(Io) |Fc| / sqrt(Ic), with the relative s.u. of sqrt(Io)."""
    arrays = io_cif_mtz.miller_arrays(structure, problem, result)
    asu = miller.set(
        structure.crystal_symmetry(), arrays["observed"].indices(), anomalous_flag=False
    )
    asu = list(asu.map_to_asu().indices())
    alone = [i for i, h in enumerate(asu) if asu.count(h) == 1]
    assert len(alone) > 3
    place = {h: i for i, h in enumerate(arrays["corrected"].indices())}
    for i in alone:
        io, ic = float(problem.observations.intensity[i]), float(result.calculated[i])
        fc = abs(arrays["f_calc"].data()[place[asu[i]]])
        found = arrays["corrected"].data()[place[asu[i]]]
        assert found == pytest.approx(math.sqrt(max(io, 0)) * fc / math.sqrt(ic), rel=1e-6)
        if io > 10 * float(result.sigma_weight[i]):
            su = arrays["corrected"].sigmas()[place[asu[i]]]
            assert su / found == pytest.approx(float(result.sigma_weight[i]) / (2 * io), rel=0.05)


def fourier_terms(problem, result, curvature):
    """Terms with gradients of zero, of the observed reflections and their mates."""
    hkl = torch.unique(torch.cat([problem.observations.hkl, -problem.observations.hkl]), dim=0)
    shuffled = hkl[torch.randperm(len(hkl), generator=torch.Generator().manual_seed(1))]
    f_calc = torch.tensor(1.1 * structure_factors(problem, result, shuffled.tolist()))
    probes = curvature**0.5 * f_calc / f_calc.abs().clamp(min=1e-9)
    gradient = torch.stack([1e-6 * f_calc, probes, -probes])
    return Fourier(shuffled, f_calc, gradient, change=0 * f_calc)


def test_the_model_has_the_last_word_on_structure_factors(structure, problem, result):
    """F of the refinement (here 1.1 F of neutral atoms), and the s.u. that its curvature allows."""
    observations = problem.observations.replace(intensity=result.calculated)
    met = problem.replace(observations=observations)
    plain = io_cif_mtz.miller_arrays(structure, met, result)
    terms = fourier_terms(problem, result, curvature=1e-4)
    arrays = io_cif_mtz.miller_arrays(structure, met, result.replace(fourier=terms))
    f_calc = arrays["f_calc"]
    assert np.allclose(f_calc.data(), 1.1 * plain["f_calc"].data().as_numpy_array())
    assert np.allclose(arrays["corrected"].data(), np.abs(f_calc.data()))
    # equivalents and mates add up: as many as there are in the terms
    count = {}
    every = miller.set(structure.crystal_symmetry(), flex.miller_index(terms.hkl.tolist()), False)
    for h in every.map_to_asu().indices():
        count[h] = count.get(h, 0) + 1
    least = [(1e-4**0.5 * count[h]) ** -1 for h in f_calc.indices()]
    assert np.allclose(arrays["corrected"].sigmas(), np.maximum(least, 0))
    assert (np.array(plain["corrected"].sigmas()) < least).all()


def test_absent_reflections_are_not_corrected(structure, problem, result):
    """A forbidden reflection has a dynamical intensity and no structure factor."""
    hkl = problem.observations.hkl.clone()
    hkl[0] = torch.tensor([0, 0, 4])
    observations = problem.observations.replace(hkl=hkl)
    arrays = io_cif_mtz.miller_arrays(structure, problem.replace(observations=observations), result)
    assert (0, 0, 4) in list(arrays["observed_merged"].indices())
    assert (0, 0, 4) not in list(arrays["corrected"].indices())
    assert (0, 0, 4) not in list(arrays["f_calc"].indices())


def test_mtz(tmp_path, structure, problem, result):
    path = tmp_path / "a.mtz"
    io_cif_mtz.write_mtz(path, structure, problem, result)
    mtz = iotbx.mtz.object(str(path))
    labels = ["I-obs", "SIGI", "I-calc", "FOBS_corr", "SIGFOBS_corr", "FC", "PHIC"]
    assert mtz.column_labels() == ["H", "K", "L", *labels]
    assert "".join(mtz.column_types()) == "HHHJQJFQFP"
    assert str(mtz.space_group_info()) == "P 32 2 1"
    assert mtz.crystals()[-1].datasets()[0].wavelength() == pytest.approx(0.0251)
    read = {array.info().labels[0]: array for array in mtz.as_miller_arrays()}
    arrays = io_cif_mtz.miller_arrays(structure, problem, result)
    for label, name in (
        ("I-obs", "observed_merged"),
        ("I-calc", "calculated_merged"),
        ("FOBS_corr", "corrected"),
        ("FC", "f_calc"),
    ):
        mine, theirs = arrays[name].common_sets(read[label])
        assert mine.size() == arrays[name].size() == theirs.size()
        scale = np.abs(mine.data().as_numpy_array()).max()
        assert np.allclose(mine.data(), theirs.data(), rtol=0, atol=1e-6 * scale)


def columns_of(path, amplitude, phase):
    """Return indices and complex values of two columns of an MTZ file, of what is there."""
    mtz = iotbx.mtz.object(str(path))
    chosen = mtz.get_column(amplitude).selection_valid()
    hkl = mtz.extract_miller_indices().select(chosen)
    f, phi = (
        np.array(mtz.get_column(name).extract_values().select(chosen))
        for name in (amplitude, phase)
    )
    return hkl, f * np.exp(1j * np.radians(phi))


def test_phases_of_an_mtz_are_those_of_the_refined_structure(tmp_path, structure, problem, result):
    io_cif_mtz.write_mtz(tmp_path / "a.mtz", structure, problem, result)
    hkl, found = columns_of(tmp_path / "a.mtz", "FC", "PHIC")
    expected = structure_factors(problem, result, hkl)
    assert len(hkl) > 40 and np.abs(expected.imag).max() > 0.1
    assert np.allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def potential_at(structure, hkl, values, site):
    """The Fourier sum over all equivalents and mates at a site, in volt."""
    unique = miller.set(structure.crystal_symmetry(), hkl, anomalous_flag=False)
    half = miller.array(unique, data=flex.complex_double(values)).expand_to_p1()
    indices = np.array(half.indices().as_vec3_double())
    waves = np.exp(-2j * math.pi * indices @ np.array(site))
    total = 2 * (half.data().as_numpy_array() * waves).real.sum()
    return 47.87801 * total / structure.unit_cell().volume()


def test_map_columns_of_an_mtz_are_the_maps(tmp_path, structure, problem, result):
    """Coot makes of FOFCWT what the CCP4 file holds, and of 2FOFCWT that and the model's."""
    terms = fourier_terms(problem, result, curvature=1e-4)
    # a change that follows the symmetry: another oxygen than the model's
    moved = result.structure.site.clone()
    moved[1] += torch.tensor([0.004, -0.003, 0.002]).double()
    other = result.replace(structure=result.structure.replace(site=moved))
    change = torch.tensor(structure_factors(problem, other, terms.hkl.tolist()))
    change = change - terms.f_calc / 1.1
    result = result.replace(fourier=terms.replace(change=change))
    io_cif_mtz.write_mtz(tmp_path / "a.mtz", structure, problem, result)
    io_maps.write_map(tmp_path / "a.map", structure, result)
    grid = iotbx.ccp4_map.map_reader(file_name=str(tmp_path / "a.map")).map_data()
    columns = {
        name: columns_of(tmp_path / "a.mtz", name, f"PH{name}") for name in ("FOFCWT", "2FOFCWT")
    }
    largest = max(abs(x) for x in grid)
    for place in ((0, 0, 0), (1, 2, 3), (5, 3, 8), (7, 0, 2)):
        site = [p / n for p, n in zip(place, grid.all(), strict=True)]
        found = potential_at(structure, *columns["FOFCWT"], site)
        assert found == pytest.approx(grid[place], abs=1e-4 * largest)
    hkl, both = columns["2FOFCWT"]
    difference = dict(zip(*columns["FOFCWT"], strict=True))
    model = 1.1 * structure_factors(problem, result, hkl)
    expected = model + np.array([difference[h] for h in hkl])
    assert np.allclose(both, expected, rtol=0, atol=1e-5 * np.abs(both).max())


def test_free_reflections_of_an_mtz(tmp_path, structure, problem, result):
    """0 where nothing of a reflection and its equivalents was refined against, as in CCP4."""
    o = problem.observations
    symmetry = structure.crystal_symmetry()
    asu = miller.set(symmetry, flex.miller_index(o.hkl.tolist()), False).map_to_asu().indices()
    asu = list(asu)
    alone = next(h for h in asu if asu.count(h) == 1)
    several = next(h for h in asu if asu.count(h) > 2)
    partly = next(h for h in asu if asu.count(h) > 1 and h != several)
    free = torch.tensor([h in (alone, several) for h in asu])
    free[asu.index(partly)] = True  # of whole frames: its equivalent was refined against
    flagged = problem.replace(observations=o.replace(free=free))
    io_cif_mtz.write_mtz(tmp_path / "a.mtz", structure, flagged, result)
    (flags,) = [
        a
        for a in iotbx.mtz.object(str(tmp_path / "a.mtz")).as_miller_arrays()
        if a.info().labels == ["FreeR_flag"]
    ]
    found = dict(zip(flags.indices(), flags.data(), strict=True))
    assert {h for h, flag in found.items() if flag == 0} == {alone, several}
    assert set(found) == set(asu) and set(found.values()) == {0, 1}
    (guess,) = get_r_free_flags_scores([flags], None).test_flag_values
    assert guess == 0
    io_cif_mtz.write_mtz(tmp_path / "b.mtz", structure, problem, result)
    assert "FreeR_flag" not in iotbx.mtz.object(str(tmp_path / "b.mtz")).column_labels()


# --- outputs that cannot be written ---------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("folder", "is a folder; name a file"),
        ("absent/a.cif", "no folder .*absent; make it"),
        ("file/a.cif", "no folder .*file; make it"),
    ],
)
def test_outputs_are_checked_beforehand(tmp_path, path, expected):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=expected) as caught:
        io_results.check_writable([None, tmp_path / "good.cif", tmp_path / path])
    assert str(caught.value).startswith(str(tmp_path / path))


def test_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(io_results.os, "access", lambda folder, mode: False)
    with pytest.raises(InputError, match="no permission to write in"):
        io_results.check_writable([tmp_path / "a.cif"])


def test_good_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.cif").write_text("old")
    io_results.check_writable(["a.cif", None, tmp_path / "old.cif"])
    assert (tmp_path / "old.cif").read_text() == "old"


WRITERS = {
    "a.expt": lambda path, s, loaded, p, r: io_results.write_experiments(
        path, loaded.experiments, p, r
    ),
    "a.refl": lambda path, s, loaded, p, r: io_results.write_reflections(
        path, loaded.reflections, p, r
    ),
    "a.cif": lambda path, s, loaded, p, r: io_cif_mtz.write_cif(path, s, p, r, CONTRACT),
    "a.mtz": lambda path, s, loaded, p, r: io_cif_mtz.write_mtz(path, s, p, r),
}


@pytest.mark.parametrize("name", WRITERS)
def test_unwritable_output(tmp_path, structure, loaded, problem, result, name):
    path = tmp_path / "absent" / name
    with pytest.raises(InputError, match="cannot be written") as caught:
        WRITERS[name](path, structure, loaded, problem, result)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", WRITERS)
def test_old_file_survives_a_failure(
    tmp_path, monkeypatch, structure, loaded, problem, result, name
):
    path = tmp_path / name
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dials_hybrid.records.os.replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        WRITERS[name](path, structure, loaded, problem, result)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == [name]
