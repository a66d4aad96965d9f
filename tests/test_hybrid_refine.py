"""dials.hybrid_refine as a user runs it, on a small simulated sweep."""

import dataclasses
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import bare
import cif_dictionary
import iotbx.cif
import iotbx.mtz
import pytest
import tiny
import torch
from commands import OUTPUTS, failure
from dials.array_family import flex
from dxtbx.model import ExperimentList

from dials_hybrid import accuracy, api, validation
from dials_hybrid.absorption import NoAbsorption, Proportional, Thermal
from dials_hybrid.command_line import common, hybrid_refine, hybrid_simulate
from dials_hybrid.io_structures import read_structure
from dials_hybrid.notation import with_uncertainty
from dials_hybrid.records import InputError, load_records
from dials_hybrid.refine import Checkpoint, Refinement

ROOT = Path(__file__).resolve().parents[1]
# few beams and depths: these tests look at the command, not at the physics
QUICK = (
    *("beams.g_max=1.4", "beams.s_max=0.005", "sampling.step=0.1", "depth.max=1000"),
    "hand_and_indexing.refine=none",
)
KEYS = (
    "program version dials_version device wall_time_s n_all n_obs n_parameters converged "
    "stop_reason kinematic start final free thickness sites space_group absolute_structure "
    "indexing warnings propagation correlations condition"
)


def simulated(folder, d_min):
    """A simulated sweep of 20 degrees to a resolution in A, and its structure."""
    model = folder / "quartz.cif"
    shutil.copy(ROOT / "examples" / "quartz.cif", model)
    names = {n: folder / f"simulated.{n}" for n in ("expt", "refl")}
    hybrid_simulate.run(
        [
            str(model),
            "scan.images=20",
            f"d_min={d_min}",
            "thickness.mean=600",
            "thickness.width=60",
            "accuracy.g_max=1.4",
            "accuracy.s_max=0.01",
            f"output.experiments={names['expt']}",
            f"output.reflections={names['refl']}",
            "output.truth=None",
            f"output.log={folder / 'simulate.log'}",
        ]
    )
    return SimpleNamespace(model=model, **names)


@pytest.fixture(scope="module")
def crystal(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("crystal"), 0.8)


@pytest.fixture(scope="module")
def finer_crystal(tmp_path_factory):
    """One with reflections enough to tell its hand even from a mirror image that has converged."""
    return simulated(tmp_path_factory.mktemp("finer_crystal"), 0.65)


def refine(crystal, *extra, model=None):
    files = [str(crystal.expt), str(crystal.refl), str(model or crystal.model)]
    hybrid_refine.run([*files, *QUICK, *extra])
    return json.loads(Path("dials.hybrid_refine.json").read_text())


def test_all_outputs_are_written_and_can_be_read(crystal, here):
    found = refine(crystal, "refinement.iterations=3")
    assert sorted(p.name for p in here.iterdir()) == sorted(OUTPUTS)
    assert set(KEYS.split()) <= set(found)
    assert found["final"]["r1_obs"] < found["start"]["r1_obs"] < found["kinematic"]["r1_obs"]
    table = flex.reflection_table.from_file("hybrid_refined.refl")
    used = table["hybrid.used"].as_numpy_array().astype(bool)
    assert used.sum() == found["n_all"] + found["free"]["n"]
    assert (table["intensity.hybrid.scale"].as_numpy_array()[used] > 0).all()
    # no lower than a background that was too high makes the faintest
    level = found["nuisance"][1]["level"]["value"][0]
    noise = table["intensity.sum.variance"].as_numpy_array()[used] ** 0.5
    calculated = table["intensity.hybrid.calc"].as_numpy_array()[used]
    assert (calculated > min(level, 0) * noise).all()
    assert len(ExperimentList.from_file("hybrid_refined.expt", check_format=False)) == 1
    assert read_structure("hybrid_refined.cif").scatterers().size() == 2
    block = iotbx.cif.reader(file_path="hybrid_refined.cif").model()["hybrid_refined"]
    assert cif_dictionary.problems(block) == []
    assert "(" in block["_refine_ls.sample_thickness"] and "_refine_ls_shift/su_mean" in block
    assert "FOBS_corr" in iotbx.mtz.object("hybrid_refined.mtz").column_labels()
    log = Path("dials.hybrid_refine.log").read_text()
    assert "partiality" in log and "Please cite" in log and "Estimated time" in log
    assert "Propagation: aba_104, step" in log
    propagation = found["propagation"]
    assert 0 < propagation["error_measured"] <= propagation["error_target"] == 1e-4
    assert propagation["step"] * propagation["substeps"] == pytest.approx(40)


def test_outputs_can_be_refined_again(crystal, here):
    more = ("output.map=difference.map", "output.shelx=start")
    first = refine(crystal, "refinement.iterations=2", *more)
    peaks = first["map_peaks"]
    assert peaks["unit"] == "V" and peaks["peaks"][0]["height"] > 0 > peaks["holes"][0]["height"]
    assert {"2FOFCWT", "PH2FOFCWT", "FOFCWT", "PHFOFCWT"} <= set(
        iotbx.mtz.object("hybrid_refined.mtz").column_labels()
    )
    assert Path("difference.map").is_file() and Path("start.hkl").is_file()
    assert read_structure("start.res").scatterers().size() == 2
    assert "Difference map, r.m.s." in Path("dials.hybrid_refine.log").read_text()
    again = SimpleNamespace(expt="hybrid_refined.expt", refl="hybrid_refined.refl")
    second = refine(
        again,
        "refinement.iterations=1",
        "output.experiments=second.expt",
        "output.reflections=second.refl",
        "output.structure=second.cif",
        model="hybrid_refined.cif",
    )
    assert second["start"]["r1_obs"] < first["start"]["r1_obs"]


def test_parameters_are_fixed_and_freed_as_asked(crystal, here):
    found = refine(
        crystal,
        "refinement.iterations=1",
        'parameters.fix="site Si1"',
        "parameters.fix=u O*",
        "parameters.free=occ O1",
    )
    start = read_structure(crystal.model).scatterers()
    silicon, oxygen = found["sites"]
    assert silicon["xyz"] == pytest.approx(start[0].site, abs=1e-7) and not any(silicon["xyz_su"])
    assert oxygen["xyz"] != pytest.approx(start[1].site, abs=1e-6) and all(oxygen["xyz_su"])
    assert not oxygen["u_iso_su"] and silicon["u_iso_su"]
    assert oxygen["occupancy_su"] > 0 and oxygen["occupancy"] != 1
    assert silicon["occupancy"] == 1 and not silicon["occupancy_su"]
    block = iotbx.cif.reader(file_path="hybrid_refined.cif").model()["hybrid_refined"]
    assert block["_atom_site_occupancy"][0] == "1.000000"
    assert "(" in block["_atom_site_occupancy"][1]
    assert list(block["_atom_site_refinement_flags_occupancy"]) == [".", "P"]
    occupancy = with_uncertainty(oxygen["occupancy"], oxygen["occupancy_su"])
    page = Path("dials.hybrid_refine.html").read_text()
    assert f"<td>{occupancy}</td>" in page and "<td>1</td>" in page
    log = Path("dials.hybrid_refine.log").read_text()
    assert re.search(r"atom +x +y +z +U +occupancy\n", log)
    assert re.search(r"\n  O1 .*" + re.escape(occupancy) + r"\n", log)
    # resumed: one more iteration of the same parameters
    hybrid_refine.run(["hybrid_refined.h5", "refinement.iterations=2"])
    again = json.loads(Path("dials.hybrid_refine.json").read_text())["sites"]
    assert again[0]["xyz"] == silicon["xyz"] and again[1]["occupancy"] != oxygen["occupancy"]


def test_a_choice_that_names_no_atom_is_refused(crystal, here):
    files = [crystal.expt, crystal.refl, crystal.model]
    assert "no atom is called Fe; there are Si1, O1" in failure(*files, "parameters.fix=site Fe")
    assert "for example site Si1" in failure(*files, "parameters.free=Si1")


def test_restraints_are_refined_against_and_told_of(crystal, here):
    found = refine(crystal, "refinement.iterations=2", "restraints.distance=Si1 O1 1.66 0.0005")
    restrained = found["restraints"]["distance"]
    assert (restrained["number"], restrained["worst"]["atoms"]) == (2, ["Si1", "O1"])
    lengths = [bond["length"] for bond in found["bonds"]]
    assert lengths == pytest.approx([1.66] * 4, abs=0.01)
    assert all(0 < bond["su"] < 0.01 for bond in found["bonds"])
    assert len(found["angles"]) == 7
    cif = Path("hybrid_refined.cif").read_text()
    assert re.search(r"_refine_ls_number_restraints +2\n", cif)
    assert "_geom_bond_distance" in cif and "_restr_distance_target" in cif
    log = Path("dials.hybrid_refine.log").read_text()
    assert "Restraints: 2 distance" in log and "worst/sigma" in log


def test_the_same_seed_gives_the_same_result(crystal, here):
    runs = [refine(crystal, "refinement.iterations=2") for _ in range(2)]
    assert runs[0]["sites"] == runs[1]["sites"]
    assert runs[0]["thickness"] == runs[1]["thickness"]


def test_beams_and_sampling_can_be_chosen_by_their_error(crystal, here, monkeypatch):
    monkeypatch.setattr(accuracy, "S_MAX", (0.01, 0.005))
    monkeypatch.setattr(accuracy, "G_MAX", (1.6, 1.4))
    monkeypatch.setattr(accuracy, "SAMPLING_STEPS", (0.05, 0.1))
    automatic = ("beams.g_max=Auto", "beams.s_max=Auto", "sampling.step=Auto")
    for r_change, chosen in (("0.1", (1.4, 0.005, 0.1)), ("1e-6", (1.6, 0.01, 0.05))):
        found = refine(
            crystal,
            *automatic,
            f"beams.r_change={r_change}",
            "refinement.iterations=1",
            "hand_and_indexing.test=False",
        )
        beams, sampling = found["beams"], found["sampling"]
        assert (beams["g_max"], beams["s_max"], sampling["step"]) == chosen
        assert beams["tried"][0]["change"] == 0 and len(sampling["tried"]) == 2
    assert "step 0.1 degrees" in Path("dials.hybrid_refine.log").read_text()


def test_the_step_follows_the_error_target_unless_it_is_given(crystal, here):
    quick = ("refinement.iterations=1", "hand_and_indexing.test=False", "depth.step=100")
    loose = refine(crystal, *quick, "propagation.error=0.05")["propagation"]
    fixed = refine(crystal, *quick, "propagation.substeps=5")["propagation"]
    assert loose["substeps"] == 1 and 1e-3 < loose["error_measured"] < 0.05
    assert fixed["substeps"] == 5 and fixed["step"] == 20
    series = refine(crystal, *quick, "propagation.method=chebyshev")
    assert series["propagation"]["scheme"] == "chebyshev"
    assert series["propagation"]["error_measured"] < 1e-5
    hybrid_refine.run(["hybrid_refined.h5", "refinement.iterations=2"])
    again = json.loads(Path("dials.hybrid_refine.json").read_text())
    assert again["propagation"] == series["propagation"]


THICKNESSES = (("frames",), ("plate",), ("neural", "gaussian", "direction"))


@pytest.mark.parametrize("chosen", [("single",), ("distribution",), ("neural",), *THICKNESSES])
def test_every_thickness_model_finds_the_thickness(crystal, here, chosen):
    scope = [f"thickness.{key}" for key in ("model", "head", "features")]
    given = [f"{key}={value}" for key, value in zip(scope, chosen, strict=False)]
    found = refine(crystal, "refinement.iterations=2", *given)
    su = found["thickness"]["mean_su"]
    assert len(su) == len(found["thickness"]["mean"]) and all(0 < s < 100 for s in su)
    mean = sum(found["thickness"]["mean"]) / len(found["thickness"]["mean"])
    assert mean == pytest.approx(600, rel=0.15)


def test_the_right_hand_is_found_from_the_wrong_one(crystal, here):
    mirror = api.read_structure(crystal.model).change_hand()
    Path("mirror.cif").write_text(api.cif_text(mirror))
    found = refine(crystal, "refinement.iterations=1", model="mirror.cif")
    assert found["space_group"] == "P 32 2 1"
    assert found["indexing"]["inverted"]
    assert any("hand_and_indexing.test" in w for w in found["warnings"])


def test_the_given_hand_can_be_kept_with_a_warning(crystal, here):
    mirror = api.read_structure(crystal.model).change_hand()
    Path("mirror.cif").write_text(api.cif_text(mirror))
    found = refine(
        crystal,
        *("refinement.iterations=2", "hand_and_indexing.refine=hand"),
        "hand_and_indexing.test=False",
        model="mirror.cif",
    )
    assert found["space_group"] == "P 31 2 1"
    assert found["absolute_structure"]["verdict"].startswith("undetermined")
    assert found["absolute_structure"]["z_score"] < -3
    assert any("keeps the given one" in w for w in found["warnings"])


def test_both_hands_are_refined_and_the_absolute_structure_is_known(finer_crystal, here):
    found = refine(finer_crystal, "refinement.iterations=40", "hand_and_indexing.refine=hand")
    assert found["converged"]
    hands = found["absolute_structure"]
    assert hands["tested"] and hands["r1_obs"] < hands["r1_obs_other_hand"]  # nothing refined
    assert hands["verdict"].startswith("determined, P 32 2 1") and hands["z_score"] > 3
    assert abs(hands["twin_fraction"]) < 4 * hands["twin_fraction_su"] < 0.4
    refined = hands["refined"]
    assert refined["space_group_other_hand"] == "P 31 2 1" and refined["r1_difference"] > 0.01
    assert refined["r1_obs"] == found["final"]["r1_obs"]
    assert refined["other_hand_converged"] and hands["z_score_left_out"] > 3
    rows = found["settings_refined"]
    assert [row["space_group"] for row in rows] == 2 * ["P 32 2 1", "P 31 2 1"]
    assert [row["refined"] for row in rows] == [True, True, False, False]
    assert all(row["z_score"] < -3 and row["r1_obs"] > 0.3 for row in rows[2:])
    assert all(abs(row["twin_fraction"]) < 4 * row["twin_fraction_su"] for row in rows[1:])
    assert found["indexing_verdict"].startswith("determined, as indexed and not as -h,-k,l")
    assert "Absolute structure: determined" in Path("dials.hybrid_refine.log").read_text()
    assert "_refine_ls_abs_structure_details" in Path("hybrid_refined.cif").read_text()
    page = Path("dials.hybrid_refine.html").read_text()
    assert hands["verdict"] in page and "as it stands" in page
    # the result of a continued problem that is complete says the same
    hybrid_refine.run(["hybrid_refined.h5", "refinement.iterations=40"])
    again = json.loads(Path("dials.hybrid_refine.json").read_text())
    assert again["absolute_structure"] == hands
    # one that lacks the comparison, as after python -m dials_hybrid, makes it
    stored_without("settings_refined", "absolute_structure")
    hybrid_refine.run(["hybrid_refined.h5", "refinement.iterations=40"])
    made = json.loads(Path("dials.hybrid_refine.json").read_text())["absolute_structure"]
    same = ("z_score", "z_score_left_out", "reflections", "r1_obs", "r1_obs_other_hand")
    assert [made[name] for name in same] == [hands[name] for name in same]
    assert made["refined"]["r1_obs_other_hand"] == refined["r1_obs_other_hand"]
    assert made["twin_fraction_su"] == pytest.approx(hands["twin_fraction_su"], rel=0.02)
    assert "settings_refined" in Checkpoint.load("hybrid_refined.h5").result.summary


def test_a_wrong_hand_that_looked_right_before_is_left(crystal, here, monkeypatch):
    monkeypatch.setattr(validation, "quick_r1", lambda *_: (0.5, 600.0))
    mirror = api.read_structure(crystal.model).change_hand()
    Path("mirror.cif").write_text(api.cif_text(mirror))
    found = refine(
        crystal,
        *("refinement.iterations=3", "hand_and_indexing.refine=hand"),
        model="mirror.cif",
    )
    assert found["space_group"] == "P 32 2 1" and found["indexing"]["inverted"]
    assert any("agrees better" in w for w in found["warnings"])
    assert found["absolute_structure"]["z_score"] > 2
    rows = found["settings_refined"]
    assert rows[0]["r1_obs"] == found["final"]["r1_obs"] < rows[1]["r1_obs"] - 0.01
    assert rows[1]["z_score"] == -found["absolute_structure"]["z_score"]
    assert str(read_structure("hybrid_refined.cif").space_group_info()) == "P 32 2 1"


def test_a_stopped_refinement_continues_where_it_was(crystal, here):
    whole = refine(crystal, "refinement.iterations=4")
    stopped = refine(crystal, "refinement.iterations=2")
    hybrid_refine.run(["hybrid_refined.h5", "refinement.iterations=4"])
    continued = json.loads(Path("dials.hybrid_refine.json").read_text())
    assert continued["iterations"] == 4
    assert continued["propagation"] == stopped["propagation"]
    assert continued["final"]["r1_obs"] < stopped["final"]["r1_obs"]
    assert continued["final"]["r1_obs"] == pytest.approx(whole["final"]["r1_obs"], abs=2e-3)


def test_parameters_that_mean_nothing_to_a_continued_problem_are_named(caplog):
    given = (
        *("parameters.fix=site Si1", "parameters.fix=u Si1", "thickness.prior.dip=1"),
        *("compute.memory=1", "refinement.iterations=3", "free.fraction=0.04", "pets.frame_step=1"),
        *("compute.precision=double", "hand_and_indexing.refine=none", "output.map=x.map"),
    )
    interpreter = hybrid_refine.phil_scope.command_line_argument_interpreter()
    sources = [interpreter.process(argument) for argument in given]
    changed = hybrid_refine.phil_scope.fetch_diff(sources=sources)
    hybrid_refine.warn_of_ignored(changed)
    (said,) = caplog.messages
    names = said.split(": ")[1].split(";")[0].split(", ")
    assert sorted(names) == ["compute.precision", "parameters.fix", "thickness.prior.dip"]
    caplog.clear()
    hybrid_refine.warn_of_ignored(hybrid_refine.phil_scope.fetch_diff(sources=sources[-2:]))
    assert not caplog.messages


def stored_without(*names, **changes):
    """Rewrite hybrid_refined.h5 with a result that lacks parts of its summary."""
    stored = Checkpoint.load("hybrid_refined.h5")
    summary = {k: v for k, v in stored.result.summary.items() if k not in names}
    result = stored.result.replace(summary=summary, **changes)
    dataclasses.replace(stored, result=result).save("hybrid_refined.h5")


def test_a_result_of_an_earlier_version_is_written(crystal, here):
    refine(crystal, "refinement.iterations=1", "hand_and_indexing.test=False")
    stored_without("condition", "correlations", "valence", "restraints", fourier=None, occ_su=None)
    more = ("refinement.iterations=1", "output.map=x.map", "free.fraction=0.1")
    hybrid_refine.run(["hybrid_refined.h5", *more])
    log = Path("dials.hybrid_refine.log").read_text()
    assert "No effect on a continued problem, whose file holds these choices: free.fraction;" in log
    written = re.search(r"^Written: (.*)$", log, re.MULTILINE).group(1).split(", ")
    assert sorted(written) == sorted(set(OUTPUTS) - {"dials.hybrid_refine.log"})
    assert "x.map: not written" in log and not Path("x.map").exists()
    assert "Condition of the normal matrix" not in log
    assert "other hand and settings are not tried" in log


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["absorption.model=none"], NoAbsorption()),
        (["absorption.model=proportional", "absorption.ratio=0.1"], Proportional(0.1)),
        (["absorption.model=thermal"], Thermal()),
    ],
)
def test_absorption_is_chosen(arguments, expected):
    interpreter = hybrid_refine.phil_scope.command_line_argument_interpreter()
    sources = [interpreter.process(a) for a in arguments]
    chosen = hybrid_refine.refine_options(hybrid_refine.phil_scope.fetch(sources=sources).extract())
    assert chosen.model.absorption == expected


NUMBERS = [
    item.path
    for item in hybrid_refine.phil_scope.all_definitions()
    if type(item.object.extract()) in (int, float)
]


@pytest.mark.parametrize("name", NUMBERS)
def test_none_for_a_number_means_what_its_help_says_or_is_refused(name):
    interpreter = hybrid_refine.phil_scope.command_line_argument_interpreter()
    try:
        common.check_parameters(hybrid_refine.phil_scope, [f"{name}=None"])
    except InputError as error:
        assert f"{name}=None has no meaning" in str(error)
        return
    sources = [interpreter.process(f"{name}=None")]
    hybrid_refine.refine_options(hybrid_refine.phil_scope.fetch(sources=sources).extract())


def test_absorption_is_kept(crystal, here):
    refine(
        crystal,
        *("refinement.iterations=1", "hand_and_indexing.test=False", "absorption.model=thermal"),
    )
    assert api.resume("hybrid_refined.h5").options.model.absorption == Thermal()


def test_a_problem_travels_to_a_machine_without_dials_and_back(crystal, here, monkeypatch, capsys):
    files = [str(crystal.expt), str(crystal.refl), str(crystal.model)]
    hybrid_refine.run([*files, *QUICK, "refinement.iterations=2", "output.problem_only=True"])
    assert "python -m dials_hybrid hybrid_refined.h5" in capsys.readouterr().out
    assert {p.name for p in here.iterdir()} == {"hybrid_refined.h5", "dials.hybrid_refine.log"}

    there = ["-m", "dials_hybrid", "hybrid_refined.h5", "--output", "result.h5"]
    process = bare.start(there, here)
    _, errors = bare.finish(process, 300)
    assert process.returncode == 0, errors

    monkeypatch.delattr(Refinement, "__init__")  # nothing is refined again
    no_more = ("refinement.iterations=2", "hand_and_indexing.refine=none")
    hybrid_refine.run(["result.h5", *no_more])
    assert all((here / name).is_file() for name in OUTPUTS)
    found = json.loads(Path("dials.hybrid_refine.json").read_text())
    result = load_records("result.h5")["result"]
    assert found["iterations"] == 2 and found["indexing"]["candidates"]
    assert found["final"]["r1_obs"] == pytest.approx(result.summary["final"]["r1_obs"], rel=1e-6)
    table = flex.reflection_table.from_file("hybrid_refined.refl")
    assert max(table["intensity.hybrid.calc"]) == pytest.approx(float(result.calculated.max()))


def test_the_user_chooses_which_atoms_are_anisotropic(crystal, here):
    (here / "isotropic.cif").write_text(crystal.model.read_text().replace("Uani", "Uiso"))
    files = [str(crystal.expt), str(crystal.refl), "isotropic.cif"]
    only = ("hand_and_indexing.test=False", "output.problem_only=True")

    def found() -> list[bool]:
        return Checkpoint.load("hybrid_refined.h5").problem.structure.anisotropic.tolist()

    hybrid_refine.run([*files, *only, "parameters.anisotropic=O1"])
    assert found() == [False, True]
    hybrid_refine.run([*files, *only, "parameters.displacements=as_given"])
    assert found() == [False, False]
    hybrid_refine.run([*files, *only])
    observed = Checkpoint.load("hybrid_refined.h5").problem.observations
    indices = flex.miller_index([tuple(h) for h in observed.hkl[observed.observed].tolist()])
    structure = read_structure("isotropic.cif")
    unique = structure.miller_set(indices, anomalous_flag=False).unique_under_symmetry().size()
    log = Path("dials.hybrid_refine.log").read_text()
    assert f"would take 14 parameters of the structure, for {unique} unique observed" in log
    assert found() == [unique >= 140] * 2
    assert "no atom is called X" in failure(*files, "parameters.isotropic=X")


@pytest.mark.parametrize(
    ("extra", "words"),
    [(["output.problem=None"], "output.problem"), (["output.problem=no/x.h5"], "no folder no")],
)
def test_a_problem_needs_a_file(crystal, here, extra, words):
    files = [crystal.expt, crystal.refl, crystal.model]
    assert words in failure(*files, "output.problem_only=True", *extra)


def test_problems_that_cannot_be_continued_are_explained(here):
    Checkpoint(tiny.problem(), tiny.settings()).save("bare.h5")
    assert "no structure for DIALS" in failure("bare.h5")
    assert "already" in failure("bare.h5", "output.problem_only=True")


def test_an_interrupt_writes_what_there_is(crystal, here, monkeypatch):
    from dials_hybrid.command_line.progress import Reporter

    def interrupt(self, row):
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "row", interrupt)
    found = refine(crystal)
    assert "interrupted" in found["stop_reason"]
    assert not found["converged"]
    assert all((here / name).is_file() for name in OUTPUTS)


def test_the_example_of_the_readme_runs(crystal, here, monkeypatch, capsys):
    script = ROOT / "examples" / "refine_quartz.py"
    quick = api.Options(
        refine=api.RefineSettings(iterations=1),
        model=api.ModelSettings(g_max=1.4, s_max=0.005),
        depth_max=1000,
    )
    load = api.load
    monkeypatch.setattr(api, "load", lambda files, model: load(files, model, quick))
    arguments = [str(script), str(crystal.expt), str(crystal.refl), str(crystal.model)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(script), run_name="__main__")
    assert "R1(obs)" in capsys.readouterr().out
    assert Path("refined.cif").is_file() and Path("refined.mtz").is_file()
    code = script.read_text().split('"""', 2)[2].strip()
    assert code in (ROOT / "README.md").read_text(), "README and example must not part"


@pytest.mark.parametrize(
    "extra, words",
    [
        (["beams.gmax=1.5"], ["gmax", "g_max"]),
        (["thickness.model=cubic"], ["thickness.model"]),
        (["beams.g_max=3"], ["beams.g_max"]),
        (["output.html=missing_folder/x.html"], ["missing_folder"]),
        (["output.shelx=missing_folder/x"], ["output.shelx (.res)", "missing_folder"]),
        (["selection.d_min=20"], ["no reflection is left", "selection"]),
    ],
)
def test_bad_parameters_are_explained(crystal, here, extra, words):
    message = failure(crystal.expt, crystal.refl, crystal.model, *extra)
    assert all(word in message for word in words), message


def test_missing_cuda_is_explained(crystal, here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = failure(crystal.expt, crystal.refl, crystal.model, "compute.device=cuda")
    assert "compute.device" in message


def test_no_or_two_structures_are_explained(crystal, here):
    assert "structure" in failure(crystal.expt, crystal.refl)
    assert "structure" in failure(crystal.expt, crystal.refl, crystal.model, crystal.model)
    assert "data" in failure(crystal.model)


def test_a_problem_file_of_another_kind_is_explained(here):
    Path("other.h5").write_bytes(b"not HDF5")
    assert "other.h5" in failure("other.h5")
    assert "no such file" in failure("missing.h5")


def test_memory_that_runs_out_names_the_knob(crystal, here, monkeypatch):
    from dials_hybrid.refine import Refinement

    def exhausted(self):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Refinement, "run", exhausted)
    message = failure(crystal.expt, crystal.refl, crystal.model, *QUICK)
    assert "compute.memory" in message


def test_a_failed_run_leaves_old_outputs_alone(crystal, here, monkeypatch):
    for name in OUTPUTS[:-1]:
        Path(name).write_text("precious")
    failure(crystal.expt, crystal.refl, crystal.model, "selection.d_min=20")
    assert all(Path(name).read_text() == "precious" for name in OUTPUTS[:-1])
    assert not list(here.glob(".*"))


def test_real_quartz_improves_and_keeps_its_hand(quartz_dials, here):
    files = [quartz_dials / "integrated.expt", quartz_dials / "integrated.refl"]
    model = ROOT / "examples" / "quartz.cif"
    few = ("refinement.iterations=3", "hand_and_indexing.refine=none")
    hybrid_refine.run([*map(str, files), str(model), *few])
    found = json.loads(Path("dials.hybrid_refine.json").read_text())
    assert found["space_group"] == "P 32 2 1"
    assert found["n_obs"] >= 780
    assert found["kinematic"]["r1_obs"] == pytest.approx(0.21, abs=0.02)
    assert found["final"]["r1_obs"] < 0.082


def test_defaults_are_the_same_for_the_command_and_for_scripts():
    chosen = hybrid_refine.refine_options(hybrid_refine.phil_scope.extract())
    same_grid = chosen.model.depth.step == api.Options().model.depth.step
    model = dataclasses.replace(chosen.model, depth=api.Options().model.depth)
    refine_ = dataclasses.replace(chosen.refine, device=api.Options().refine.device)
    assert same_grid
    assert dataclasses.replace(chosen, model=model, refine=refine_) == api.Options()


def test_two_sweeps_share_structure_and_keep_their_own_curves(crystal, here):
    hybrid_simulate.run(
        [
            str(crystal.model),
            "scan.images=12",
            "d_min=0.8",
            "crystal.seed=5",
            "thickness.mean=400",
            "thickness.width=40",
            "noise.counts=2000",
            "accuracy.g_max=1.4",
            "accuracy.s_max=0.01",
            "output.experiments=second.expt",
            "output.reflections=second.refl",
            "output.truth=None",
        ]
    )
    files = [crystal.expt, crystal.refl, "second.expt", "second.refl", crystal.model]
    hybrid_refine.run([*map(str, files), *QUICK, "refinement.iterations=3"])
    found = json.loads(Path("dials.hybrid_refine.json").read_text())
    thickness = {0: [], 1: []}
    for sweep, mean in zip(found["thickness"]["sweep"], found["thickness"]["mean"], strict=True):
        thickness[sweep].append(mean)
    means = [sum(t) / len(t) for t in thickness.values()]
    assert means == pytest.approx([600, 400], rel=0.2)
    assert len(ExperimentList.from_file("hybrid_refined.expt", check_format=False)) == 2
