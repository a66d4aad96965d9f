"""The CIF is complete, and every name in it stands in a dictionary."""

import itertools
import json
import math
import re

import iotbx.cif
import pytest
import torch

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import cif_dictionary
import synthetic
from cctbx import crystal, xray
from dials.algorithms.profile_model.gaussian_rs import Model as GaussianModel
from dials.array_family import flex
from dxtbx.model import ExperimentList

from dials_hybrid import (
    io_bonds,
    io_cctbx,
    io_cif_items,
    io_cif_measurement,
    io_cif_mtz,
    io_cif_reflections,
    io_dials,
    io_disorder,
    io_measurement,
    io_restraints,
    job,
    losses,
)

SITES = """\
loop_
 _atom_site_label
 _atom_site_fract_x
Si1 0.5
"""
CONTRACT = {
    "final": {"r1_obs": 0.07123, "r1_all": 0.0912, "wr2_all": 0.1501, "gof": 2.345},
    "n_all": 1009,
    "n_obs": 823,
    "n_parameters": 37,
    "error_model": {"k": 1.25, "p": 0.06, "freedom": 4.0},
    "map_peaks": {"max": 28.7993, "min": -14.399645, "rms": 1.4399645},
}


@pytest.fixture
def made(tmp_path, loaded):
    """(path of a CIF, problem, result) of the made-up sweep, whose crystal knows its s.u."""
    crystal = loaded.experiments[0].crystal
    crystal.set_B_covariance(tuple(1e-9 * float(i % 10 == 0) for i in range(81)))
    structure = io_cctbx.reconcile(
        synthetic.quartz_structure(), loaded.experiments, "a.cif", "a.expt"
    )
    problem = synthetic.make_problem(loaded)
    table = loaded.reflections
    table.set_flags(flex.bool(len(table), True), table.flags.used_in_refinement)
    measured = io_measurement.measurement(loaded.experiments, table)
    facts = {"measurement": measured, "temperature": "293(2)", "formula_units": "3"}
    problem = problem.replace(provenance={**problem.provenance, **facts})
    free = problem.observations.free.clone()
    free[::10] = True
    problem = problem.replace(observations=problem.observations.replace(free=free))
    history = ({"site_shift": 0.0004},)
    summary = {"thickness_su": 12.0, "shift_over_su": {"max": 0.07123, "mean": 0.0204}}
    result = synthetic.make_result(problem, history=history, summary=summary)
    path = tmp_path / "a.cif"
    io_cif_mtz.write_cif(path, structure, problem, result, CONTRACT)
    return path, problem, result


@pytest.fixture
def block(made):
    (found,) = iotbx.cif.reader(file_path=str(made[0])).model().values()
    return found


def test_the_file_is_what_its_dictionaries_say(block):
    assert cif_dictionary.problems(block) == []
    assert list(block["_audit_conform_dict_name"]) == ["cif_core.dic", "cif_ed.dic"]
    assert not [name for name in block.keys() if name.startswith("_symmetry_")]


def test_the_dictionaries_are_those_that_the_package_names():
    ours = {name: version for name, (version, _) in io_cif_items.DICTIONARIES.items()}
    theirs = cif_dictionary.RULES["dictionaries"].values()
    assert ours == {entry["name"]: entry["version"] for entry in theirs}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("_made_up", "1", "in no dictionary"),
        ("_refine_ls_matrix_type", "whole", "no such code"),
        ("_diffrn_reflns_number", "12.5", "not of type Integer"),
        ("_cell_volume", "about 113", "not of type Real"),
        ("_audit_creation_date", "27 November", "not of type Date"),
        ("_diffrn_reflns_theta_max", "91.2", "not within 0.0:90.0"),
        ("_diffrn_reflns_theta_max", "1.150(3)", "may have no s.u."),
        ("_exptl_crystal.mosaicity", "-0.02(1)", None),  # within three s.u.
        ("_exptl_crystal.mosaicity", "-0.04(1)", "not within 0.0:"),
        ("_cell_volume", "?", None),
    ],
)
def test_what_is_wrong_is_found(block, name, value, expected):
    """The check itself."""
    block[name] = value
    found = cif_dictionary.problems(block)
    assert [expected in text for text in found] == ([True] if expected else [])


def test_wrong_loops_are_found(block):
    loops = {name.lstrip("_"): loop for name, loop in block.loops.items()}
    loops["refln"]["_refln.id"][1] = loops["refln"]["_refln.id"][0]
    loops["refln"]["_refln_class_code"][3] = "9:99"
    del block["_audit_conform_dict_name"]
    block["_audit_conform_dict_name"] = "cif_core.dic"
    block["_audit_conform_dict_version"] = "2.4.5"
    found = " ".join(cif_dictionary.problems(block))
    assert "refln: a key stands twice" in found and "_refln_class_code: values" in found
    assert "not declared: {'cif_core.dic': '3.3.0', 'cif_ed.dic': '1.0.0'}" in found


def test_a_file_of_restraints_and_a_disorder_is_right_too(made, loaded, tmp_path):
    """Anisotropic s.u., a second sweep's loops, bonds and what is restrained."""
    _, problem, result = made
    structure = io_cctbx.reconcile(
        synthetic.quartz_structure(), loaded.experiments, "a.cif", "a.expt"
    )
    options = io_restraints.RestraintOptions(
        distance=("Si1 O1 1.61 0.02",), angle=("O1 Si1 O1 109.5 1",), isotropic_adp=0.01
    )
    found = io_restraints.restraints_of(structure, options, "a.cif")
    provenance = {**problem.provenance, io_disorder.KEY: [1, 2]}
    problem = problem.replace(restraints=found, provenance=provenance)
    su = torch.full((2, 6), 0.0011, dtype=torch.float64)
    result = result.replace(u_aniso_su=su, occ_su=torch.full((2,), 0.02).double())
    bonds = io_bonds.bonds_and_angles(structure, result, None)
    contract = {
        **CONTRACT,
        **bonds,
        "restraints": {"distance": {"rows": 2}, "angle": {"rows": 1}},
        "absolute_structure": {"verdict": "determined, P 32 2 1: z = 9.0", "z_score": 9.0},
    }
    io_cif_mtz.write_cif(tmp_path / "b.cif", structure, problem, result, contract)
    (block,) = iotbx.cif.reader(file_path=str(tmp_path / "b.cif")).model().values()
    assert cif_dictionary.problems(block) == []
    assert list(block["_audit_conform_dict_name"])[2] == "cif_rstr.dic"
    assert list(block["_atom_site_refinement_flags_posn"]) == ["DS", "D"]
    assert list(block["_atom_site_refinement_flags_adp"]) == [".", "U"]
    assert block["_chemical_absolute_configuration"] == "dyn"
    assert len(block["_restr_distance_target"]) == 2 and "_geom_angle" in block


def test_readers_know_the_space_group_without_the_superseded_names(made):
    """SHELXL has not written them since 2013 either."""
    reader = iotbx.cif.reader(file_path=str(made[0]))
    (structure,) = reader.build_crystal_structures().values()
    assert str(structure.space_group_info()) == "P 32 2 1"
    (arrays,) = reader.build_miller_arrays().values()
    assert str(arrays["_refln_intensity_meas"].space_group_info()) == "P 32 2 1"


def test_chemistry(block):
    assert block["_chemical_formula_sum"] == "O2 Si"
    assert float(block["_chemical_formula_weight"]) == pytest.approx(60.08, abs=0.01)
    assert block["_cell_formula_units_Z"] == "3"
    assert float(block["_exptl_crystal_density_diffrn"]) == pytest.approx(2.646, abs=2e-3)
    # three Si of 5.83 A and six O of 1.98 A (Peng et al. 1996)
    assert float(block["_exptl_crystal_F_000"]) == pytest.approx(29.4, abs=0.1)


def test_deuterium_is_not_hydrogen(made):
    """By name and by weight, while it scatters as H does."""
    _, problem, _ = made
    problem = problem.replace(provenance={})
    found = {}
    for kind in ("H", "D"):
        symmetry = crystal.symmetry((5, 5, 5, 90, 90, 90), "P 1")
        structure = xray.structure(crystal_symmetry=symmetry)
        structure.add_scatterer(xray.scatterer("C1", site=(0, 0, 0), u=0.02))
        for i in range(4):
            site = (0.1, 0.2 * i, 0.3)
            structure.add_scatterer(xray.scatterer(f"{kind}{i}", site=site, u=0.02))
        found[kind] = io_cif_items.chemistry_items(structure, problem)
    h, d = found["H"], found["D"]
    assert (h["_chemical_formula_sum"], d["_chemical_formula_sum"]) == ("C H4", "C D4")
    weights = [float(x["_chemical_formula_weight"]) for x in (h, d)]
    assert weights == pytest.approx([16.04, 20.07], abs=0.01)
    density = [float(x["_exptl_crystal_density_diffrn"]) for x in (h, d)]
    assert density[1] / density[0] == pytest.approx(weights[1] / weights[0], rel=0.01)
    assert h["_exptl_crystal_F_000"] == d["_exptl_crystal_F_000"]


def test_measurement(block):
    assert block["_diffrn_ambient_temperature"] == "293(2)"
    assert block["_cell_length_a"].endswith(")") and block["_cell_angle_gamma"].startswith("120")
    assert block["_diffrn_measurement_details"] == "Rotation -10 to 10 in 1 degree per frame."
    assert float(block["_diffrn_detector.distance_sample"]) == pytest.approx(780)
    assert float(block["_diffrn_detector_area_resol_mean"]) == pytest.approx(1 / 0.055, abs=1e-3)
    assert block["_diffrn_detector_details"] == "1024 x 1024 pixels of 0.055 x 0.055 mm"
    assert block["_diffrn_detector"] == "area detector"
    assert block["_exptl_crystal.mosaicity"] == "0.150"  # of the profile model, in degree
    assert int(block["_diffrn_reflns_limit_h_max"]) > 0 > int(block["_diffrn_reflns_limit_h_min"])


def test_the_volume_has_the_uncertainty_of_the_cell(made, block):
    """V = a^2 c sin(120); a and b are one parameter."""
    value, su = re.fullmatch(r"([\d.]+)\((\d+)\)", block["_cell_volume"]).groups()
    a, b, c, *_ = io_measurement.cell_su(made[1])
    cell = made[1].structure.cell
    volume = float(cell[0] ** 2 * cell[2]) * math.sin(math.radians(120))
    expected = volume * math.hypot(2 * a / float(cell[0]), c / float(cell[2]))
    assert a == pytest.approx(b)
    digits = len(value.split(".")[1])
    assert float(value) == pytest.approx(volume, abs=10**-digits)
    assert int(su) * 10**-digits == pytest.approx(expected, abs=0.6 * 10**-digits)


def test_the_reflections_that_the_cell_is_from(loaded):
    """Those flagged so by the refinement of the geometry."""
    table, wavelength = loaded.reflections, 0.0251
    assert io_measurement.measurement(loaded.experiments, table)["cell_reflections"] is None
    chosen = flex.bool(i % 3 == 0 for i in range(len(table)))
    table.set_flags(chosen, table.flags.used_in_refinement)
    found = io_measurement.measurement(loaded.experiments, table)
    items = io_cif_measurement._cell_items(found, wavelength)
    assert items["_cell_measurement_reflns_used"] == chosen.count(True) > 30
    d = table["d"].select(chosen)
    for name, spacing in (("min", max(d)), ("max", min(d))):
        angle = math.radians(float(items[f"_cell_measurement_theta_{name}"]))
        assert wavelength / (2 * math.sin(angle)) == pytest.approx(spacing, rel=2e-3)


def test_a_sweep_without_a_profile_model_has_no_mosaicity(loaded):
    experiment = loaded.experiments[0]
    experiment.profile = None
    assert io_measurement.measurement([experiment])["mosaicity"] is None
    varying = GaussianModel(None, 3, flex.double([0.01] * 2), flex.double([0.1, 0.3]), deg=True)
    experiment.profile = varying
    assert io_measurement.measurement([experiment])["mosaicity"] == pytest.approx(0.2)


def test_refinement(block):
    assert "1.250^2^v+(0.0600I~c~)^2^" in block["_refine_ls_weighting_details"]
    assert block["_refine_ls_shift/su_max"] == "0.071"
    assert block["_refine_ls_shift/su_mean"] == "0.020"
    # nm, and e/A, 14.4 V each
    assert block["_refine_ls.sample_thickness"] == "30.0(12)"
    found = [float(block[f"_refine_diff.potential_{x}"]) for x in ("max", "min", "RMS")]
    assert found == pytest.approx([2, -1, 0.1], abs=1e-4)


def test_the_weighted_factor_of_the_strong_reflections(made, block):
    _, problem, result = made
    o = problem.observations
    result = result.replace(calculated=1.1 * o.intensity.abs())
    chosen = o.observed & ~o.free
    found = float(io_cif_items._weighted_r(problem, result, chosen))
    expected = losses.wr2(
        o.intensity[chosen], result.calculated[chosen], result.sigma_weight[chosen]
    )
    assert found == pytest.approx(expected, abs=6e-5) and found > 0.05
    nothing = torch.zeros_like(chosen)
    assert io_cif_items._weighted_r(problem, result, nothing) is None
    assert block["_refine_ls_extinction_method"] == "none"


def test_shifts_of_results_of_earlier_versions(made):
    """A bound, 0.0004 A over 0.002 A; nothing where there was no iteration."""
    old = made[2].replace(summary={})
    (bound,) = io_cif_items._shifts(old).items()
    assert bound[0] == "_refine_ls_shift/su_max_lt"
    assert float(bound[1]) == pytest.approx(0.2, abs=2e-3)
    assert io_cif_items._shifts(old.replace(history=())) == {"_refine_ls_shift/su_max": None}


def test_a_thickness_without_uncertainty(made):
    assert io_cif_items._thickness(made[2].replace(summary={})) == "30.0"


def test_completeness(made, block, loaded):
    """Counted by hand, with the operators of the Laue group; up to 0.833 A for theta_full."""
    _, problem, _ = made
    structure = io_cctbx.reconcile(synthetic.quartz_structure(), loaded.experiments, "a", "b")
    cell = structure.unit_cell()
    laue = structure.space_group().build_derived_laue_group()

    def unique(indices, d_min):
        near = [h for h in indices if cell.d(h) >= d_min]
        return {max(tuple(int(x) for x in (op.r().transpose() * h)) for op in laue) for h in near}

    box = [h for h in itertools.product(range(-8, 9), repeat=3) if any(h)]
    absent = structure.space_group().is_sys_absent
    found = [tuple(h) for h in problem.observations.hkl.tolist()]
    wavelength = problem.scan.wavelength
    for name in ("full", "max"):
        angle = float(block[f"_diffrn_reflns_theta_{name}"])
        d_min = wavelength / (2 * math.sin(math.radians(angle + 6e-4)))
        every = {h for h in unique(box, d_min) if not absent(h)}
        expected = len(unique(found, d_min) & every) / len(every)
        assert float(block[f"_diffrn_measured_fraction_theta_{name}"]) == pytest.approx(
            expected, abs=1e-4
        )
    assert wavelength / 2 / math.sin(math.radians(float(block["_diffrn_reflns_theta_full"]))) == (
        pytest.approx(1 / 1.2, abs=2e-3)
    )
    ratio = float(problem.observations.sigma.sum() / problem.observations.intensity.abs().sum())
    assert float(block["_diffrn_reflns_av_unetI/netI"]) == pytest.approx(ratio, abs=1e-4)


@pytest.mark.parametrize(
    ("hall", "verdict", "expected"),
    [
        (' P 32 2"', "determined, P 32 2 1: z = 9.0", "dyn"),
        (' P 32 2"', "undetermined: z = 1.0", "unk"),
        (' P 32 2"', None, "unk"),
        ("-P 1", "not applicable: centrosymmetric", "."),
        (" P 2c -2n", "determined, P n a 21: z = 9.0", "."),  # holds both hands of a molecule
    ],
)
def test_absolute_configuration(made, hall, verdict, expected):
    result = made[2].replace(structure=made[2].structure.replace(hall_symbol=hall))
    contract = {"absolute_structure": {"verdict": verdict} if verdict else None}
    assert io_cif_items._absolute_configuration(result, contract) == expected


def test_the_order_of_the_site_symmetry(block):
    assert list(block["_atom_site_site_symmetry_order"]) == ["2", "1"]


def test_reflections(made, block):
    _, problem, result = made
    o = problem.observations
    hkl = [[int(h) for h in block[f"_refln_index_{x}"]] for x in "hkl"]
    assert [list(h) for h in zip(*hkl, strict=True)] == o.hkl.tolist()
    for name, expected in (("meas", o.intensity), ("calc", result.calculated), ("sigma", o.sigma)):
        found = [float(x) for x in block[f"_refln_intensity_{name}"]]
        assert found == pytest.approx(expected.tolist(), rel=1e-5)
    excluded = [x == "excl" for x in block["_refln_refinement_status"]]
    assert excluded == o.free.tolist() and 0 < sum(excluded) < len(excluded)
    # of the list, which holds the free ones too
    assert int(block["_reflns_number_total"]) == len(hkl[0])
    assert int(block["_reflns_number_gt"]) == list(block["_refln_include_status"]).count("o")
    assert int(block["_refine_ls_number_reflns"]) == excluded.count(False)
    assert [x == "o" for x in block["_refln_include_status"]] == o.observed.tolist()
    assert len(set(block["_refln.id"])) == len(hkl[0])


def test_readers_have_all_reflections_in_one_array(made):
    """Scale groups within the list would make iotbx split it into an array for each of them."""
    path, problem, result = made
    arrays = next(iter(iotbx.cif.reader(file_path=str(path)).build_miller_arrays().values()))
    numbers = [name for name, array in arrays.items() if array.is_real_array()]
    assert sorted(numbers) == ["_refln_intensity_calc", "_refln_intensity_meas"]
    assert [name for name, a in arrays.items() if a.sigmas()] == ["_refln_intensity_meas"]
    o, with_sigmas = problem.observations, arrays["_refln_intensity_meas"]
    assert list(with_sigmas.indices()) == [tuple(h) for h in o.hkl.tolist()]
    assert list(with_sigmas.data()) == pytest.approx(o.intensity.tolist(), rel=1e-5)
    assert list(with_sigmas.sigmas()) == pytest.approx(o.sigma.tolist(), rel=1e-5)
    calculated = arrays["_refln_intensity_calc"]
    assert list(calculated.data()) == pytest.approx(result.calculated.tolist(), rel=1e-5)
    assert {array.size() for array in arrays.values()} == {len(o.sigma)}


def test_classes_tell_where_a_reflection_was_measured(made, block):
    _, problem, result = made
    o, scan = problem.observations, problem.scan
    codes = list(block["_reflns_class_code"])
    assert set(block["_refln_class_code"]) == set(codes) and len(set(codes)) == len(codes)
    assert list(block["_reflns_scale_group_code"]) == codes
    place = {code: i for i, code in enumerate(codes)}
    row = int(o.angle.argmax())
    code = block["_refln_class_code"][row]
    assert code == f"1:{len(scan.sweep)}"
    found = block["_reflns_class_description"][place[code]]
    assert found == "sweep 1, rotation 9.00 to 10.00 degree, images 20 to 20"
    of_class = [c == code for c in block["_refln_class_code"]]
    assert int(block["_reflns_class_number_total"][place[code]]) == sum(of_class)
    chosen = torch.tensor(of_class) & o.observed
    assert int(block["_reflns_class_number_gt"][place[code]]) == int(chosen.sum())
    expected = losses.r1(o.intensity, result.calculated, chosen & ~o.free)
    assert float(block["_reflns_class_R_factor_gt"][place[code]]) == pytest.approx(
        expected, abs=6e-5
    )


def test_rows_of_several_sweeps_are_told_apart(tmp_path):
    """The same indices from two sweeps, and images that blocks do not divide evenly."""
    experiments = ExperimentList([synthetic.make_experiment(12, start) for start in (-10, 40)])
    table = synthetic.make_reflections(experiments)
    loaded = io_dials.load(synthetic.write_pair(tmp_path, "two", experiments, table))
    problem = synthetic.make_problem(loaded, block_width=1.5)
    measured = io_measurement.measurement(loaded.experiments)
    problem = problem.replace(provenance={"measurement": measured})
    loops = io_cif_reflections.reflection_loops(problem, synthetic.make_result(problem))
    classes, _, reflections = loops
    assert len(set(reflections["_refln.id"])) == len(problem.observations.sigma)
    sweeps = [code.split(":")[0] for code in reflections["_refln_class_code"]]
    assert sweeps == [str(1 + s) for s in problem.observations.sweep.tolist()]
    told = dict(
        zip(classes["_reflns_class_code"], classes["_reflns_class_description"], strict=True)
    )
    assert told["2:2"] == "sweep 2, rotation 41.50 to 43.00 degree, images 2 to 3"
    bare = io_cif_reflections.reflection_loops(
        problem.replace(provenance={}), synthetic.make_result(problem)
    )
    assert bare[0]["_reflns_class_description"][0] == "sweep 1, rotation -10.00 to -8.50 degree"


def test_gemmi_reads_it(made):
    gemmi = pytest.importorskip("gemmi")
    block = gemmi.cif.read(str(made[0])).sole_block()
    structure = gemmi.make_small_structure_from_block(block)
    assert [site.label for site in structure.sites] == ["Si1", "O1"]
    assert structure.spacegroup.xhm() == "P 32 2 1"
    o = made[1].observations
    assert len(list(block.find_loop("_refln_intensity_meas"))) == len(o.sigma)
    reflections = gemmi.hkl_cif_as_refln_block(block)
    assert reflections.make_miller_array().tolist() == o.hkl.tolist()


def test_nothing_is_made_up_about_pets_data(loaded):
    """No .expt, no instrument."""
    problem = synthetic.make_problem(loaded)
    structure = io_cctbx.reconcile(synthetic.quartz_structure(), loaded.experiments, "a", "b")
    found = io_cif_measurement.measurement_items(structure, problem)
    assert "_diffrn_measurement_method" not in found
    assert io_measurement.cell_su(problem) is None
    assert found["_diffrn_ambient_temperature"] is None


@pytest.mark.parametrize(
    ("content", "stated", "z", "expected"),
    [
        ({"Si": 3.0, "O": 6.0}, None, 3, "O2 Si"),
        ({"C": 32.0, "H": 36.0, "N": 4.0, "O": 8.0}, None, 4, "C8 H9 N O2"),
        ({"C": 24.0, "H": 24.0}, "4", 4, "C6 H6"),
        ({"Na": 1.5, "Cl": 4.0}, None, 1, "Cl4 Na1.5"),
    ],
)
def test_formula(content, stated, z, expected):
    assert io_cif_items.formula_units(content, stated) == z
    assert io_cif_items.formula({e: n / z for e, n in content.items()}) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.cif", "_cell_measurement_temperature '120(1)'\n", {"temperature": "120(1)"}),
        (
            "a.cif",
            "_diffrn_ambient_temperature ?\n_cell_formula_units_Z 4\n",
            {"formula_units": "4"},
        ),
        ("b.cif", "this is no CIF", {}),
        ("a.pdb", "_cell_formula_units_Z 4\n", {}),
        ("a.res", "TITL a\nTEMP -173.15\n", {"temperature": "100"}),
        ("a.ins", "TITL a\n", {}),
    ],
)
def test_what_the_structure_states(tmp_path, name, text, expected):
    head = f"data_a\n{SITES}" if name == "a.cif" else ""
    (tmp_path / name).write_text(head + text)
    assert io_measurement.stated(tmp_path / name) == expected


def test_what_is_stated_is_of_the_block_of_the_structure(tmp_path):
    path = tmp_path / "a.cif"
    path.write_text(
        "data_global\n_diffrn_ambient_temperature 100\n"
        f"data_cold\n_diffrn_ambient_temperature 110(2)\n_cell_formula_units_Z 3\n{SITES}"
        f"data_warm\n_diffrn_ambient_temperature 295\n{SITES}"
    )
    cold = {"temperature": "110(2)", "formula_units": "3"}
    assert io_measurement.stated(path) == io_measurement.stated(path, "COLD") == cold
    assert io_measurement.stated(path, "warm") == {"temperature": "295"}
    assert io_measurement.stated(path, "global") == {}


def test_the_file_s_facts_are_those_of_the_chosen_block(sweep, tmp_path):
    path = tmp_path / "two.cif"
    first = synthetic.QUARTZ_CIF.replace("data_", "data_other_", 1)
    path.write_text(f"{first}\n_cell_formula_units_Z 7\n{synthetic.QUARTZ_CIF}\n")
    name = synthetic.QUARTZ_CIF.split("data_")[1].split()[0]
    found = job.load([sweep.expt, sweep.refl], path, job.Options(block=name))
    assert "formula_units" not in found.problem.provenance
    assert job.load([sweep.expt, sweep.refl], path).problem.provenance["formula_units"] == "7"


def test_a_structure_that_is_gone_states_nothing(tmp_path):
    assert io_measurement.stated(tmp_path / "absent.cif") == {}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (None, "DIALS"),
        ([["2025-03-01T10:00:00Z|dials.import|v3.25.0"]], "DIALS"),
        (
            [
                [
                    "2025-03-01T10:00:00Z|dials.import|3.24.1",
                    "2025-03-01T10:00:09Z|dials.integrate|v3.25.0-14-g0a1b2c3|integrated",
                    "2025-03-02T10:00:09Z|dials.scale|3.26.0|scaled",
                ]
            ],
            "DIALS 3.25.0-14-g0a1b2c3",
        ),
        (["2025-03-01T10:00:00Z|dials.ssx_integrate|DIALS 3.23.0"], "DIALS 3.23.0"),
    ],
)
def test_the_version_that_integrated_is_in_the_history(sweep, tmp_path, history, expected):
    held = json.loads(sweep.expt.read_text())
    if history is not None:
        held["history"] = history
    path = tmp_path / "a.expt"
    path.write_text(json.dumps(held))
    provenance = io_dials.load([path, sweep.refl]).provenance(sweep.cif)
    assert provenance["integrated_by"] == expected
    assert io_cif_measurement._reduced_by(provenance) == expected


def test_sweeps_of_two_versions_name_both(sweep, tmp_path):
    held = json.loads(sweep.expt.read_text())
    paths = [tmp_path / f"{i}.expt" for i in range(3)]
    for path, version in zip(paths, ("3.23.0", "3.25.0", "3.23.0"), strict=True):
        held["history"] = [f"2025-03-01T10:00:00Z|dials.integrate|{version}|integrated"]
        path.write_text(json.dumps(held))
    assert io_measurement.integrated_by(paths) == "DIALS 3.23.0, 3.25.0"
