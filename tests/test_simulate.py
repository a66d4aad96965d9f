"""dials.hybrid_simulate: the physics against other paths to it, the files, and bad input."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("dials")

from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentListFactory

from dials_hybrid import crystal, io_dials, phil_files, simulate, true_thickness
from dials_hybrid.absorption import NoAbsorption, Thermal
from dials_hybrid.command_line import common, hybrid_simulate
from dials_hybrid.data import Problem
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_dials import (
    Sampling,
    Selection,
    observations_from_reflections,
    scan_from_experiments,
    select_reflections,
    settings_at,
)
from dials_hybrid.kinematic import recorded_fraction
from dials_hybrid.losses import r1
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import DepthGrid
from dials_hybrid.records import InputError

QUARTZ = """\
data_quartz
_cell_length_a 4.916
_cell_length_b 4.916
_cell_length_c 5.4054
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_space_group_name_H-M_alt 'P 32 2 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_U_iso_or_equiv
Si Si 0.4697 0 0.666667 0.007
O O 0.4135 0.2669 0.785767 0.012
"""
QUICK = ("scan.images=4", "d_min=0.8", "accuracy.s_max=0.01", "accuracy.step=0.05")
SAME_BEAMS = "accuracy.s_max=0.03"  # as in the settings of the model


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the model in it."""
    (tmp_path / "quartz.cif").write_text(QUARTZ)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder, *args):
    """Run in `folder`; return (experiments, reflections, truth)."""
    hybrid_simulate.run(["quartz.cif", *args])
    return load(folder)


def load(folder):
    experiments = ExperimentListFactory.from_json_file(
        str(folder / "simulated.expt"), check_format=False
    )
    table = flex.reflection_table.from_file(str(folder / "simulated.refl"))
    return experiments, table, json.loads((folder / "simulated.json").read_text())


def values(table, column="intensity.sum.value"):
    return table[column].as_numpy_array()


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Eight degrees of quartz without noise, two thicknesses: (experiments, table, truth)."""
    folder = tmp_path_factory.mktemp("clean")
    (folder / "quartz.cif").write_text(QUARTZ)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mixture = ("thickness.mean=400,700", "thickness.width=60,80", "thickness.weight=1,2")
        return run(folder, "scan.images=8", "noise.none=True", SAME_BEAMS, *mixture)


def predicted(simulated, sampling: Sampling, settings: ModelSettings):
    """Return observations and what `HybridModel` predicts for the thicknesses of the truth."""
    experiments, table, truth = simulated
    rows, _ = select_reflections(table, Selection())
    scan = scan_from_experiments(experiments, sampling)
    observations = observations_from_reflections(table, rows, experiments, scan, Selection())
    model = HybridModel(Problem(quartz_record(), scan, observations), settings)
    depth = settings.depth.depths(dtype=torch.float64).numpy()
    p = np.interp(depth, truth["thickness"]["grid"], truth["thickness"]["distribution"][0])
    with torch.no_grad():
        per_link = model.profiles() @ torch.from_numpy(p / p.sum())
    total = torch.zeros(len(observations.intensity), dtype=torch.float64)
    total.index_add_(0, observations.link_observation, per_link)
    return observations.intensity, total * truth["scale"]


def quartz_record():
    from cctbx import crystal as cctbx_crystal
    from cctbx import xray

    symmetry = cctbx_crystal.symmetry((4.916, 4.916, 5.4054, 90, 90, 120), "P3221")
    structure = xray.structure(crystal_symmetry=symmetry)
    structure.add_scatterer(xray.scatterer("Si", (0.4697, 0, 0.666667), u=0.007))
    structure.add_scatterer(xray.scatterer("O", (0.4135, 0.2669, 0.785767), u=0.012))
    return to_structure(structure)


def test_agrees_with_the_model_of_the_refinement(clean):
    """Another propagator, thickness average and window arithmetic; the beams are the same."""
    settings = ModelSettings(
        s_max=0.03,
        left_out=None,
        perturbation=None,
        depth=DepthGrid(20.0, 60),
        precision="double",
    )
    observed, calculated = predicted(clean, Sampling(0.5, 0.02), settings)
    assert len(observed) > 40
    assert r1(observed, calculated) < 0.002
    assert float(observed.sum() / calculated.sum()) == pytest.approx(1, abs=0.002)


def test_agrees_with_the_model_of_the_refinement_where_electrons_are_lost(folder):
    loss = ("thickness.mean=400", "absorption.model=thermal", "noise.none=True", SAME_BEAMS)
    simulated = run(folder, "scan.images=4", "d_min=0.8", *loss)
    assert simulated[2]["absorption"] == {"model": "thermal"}
    depth = DepthGrid(20.0, 50)
    settings = ModelSettings(
        s_max=0.03,
        left_out=None,
        perturbation=None,
        depth=depth,
        precision="double",
        absorption=Thermal(),
    )
    observed, calculated = predicted(simulated, Sampling(0.5, 0.02), settings)
    assert r1(observed, calculated) < 0.002
    assert float(observed.sum() / calculated.sum()) == pytest.approx(1, abs=0.002)
    elastic = dataclasses.replace(settings, absorption=NoAbsorption())
    _, unweakened = predicted(simulated, Sampling(0.5, 0.02), elastic)
    assert observed.sum() < 0.97 * unweakened.sum()


def test_the_smaller_beam_set_of_a_refinement_is_nearly_enough(clean):
    settings = ModelSettings(depth=DepthGrid(20.0, 60))
    observed, calculated = predicted(clean, Sampling(1.0, 0.05), settings)
    assert r1(observed, calculated) < 0.02


@pytest.mark.parametrize("mean, width", [(600.0, 40.0), (300.0, 200.0), (500.0, 500.0)])
def test_thickness_average_in_closed_form(mean, width):
    mixture = true_thickness.ThicknessMixture((mean,), (width,), (1.0,), true_thickness.constant())
    depth = np.arange(0.25, 12 * mean, 0.5)
    k, s = (mean / width) ** 2, width**2 / mean
    p = np.exp((k - 1) * np.log(depth / mean) - (depth - mean) / s)
    p /= p.sum()
    x = np.array([-0.03, -0.001, 0.0, 0.0004, 0.01])
    expected = (p * np.exp(2j * math.pi * x[:, None] * depth)).sum(1)
    assert np.allclose(mixture.characteristic(x, 0.0), expected, atol=1e-3)
    assert p @ depth == pytest.approx(mean, rel=1e-3)


def test_one_thickness_and_its_place_on_a_grid():
    mixture = true_thickness.ThicknessMixture((503.0,), (0.0,), (1.0,), true_thickness.constant())
    phase = mixture.characteristic(np.array([0.01]), 0.0)
    assert phase[0] == pytest.approx(np.exp(2j * math.pi * 5.03))
    grid = true_thickness.truth_grid(mixture, np.zeros(1))
    assert mixture.on_grid(grid, np.zeros(1)) @ grid == pytest.approx(503.0)


def test_thin_crystals_are_kinematic(folder):
    """Ten A thick, |psi_g|^2 = (2 pi t U_g / 2K)^2 all through the window."""
    args = ("thickness.mean=10", "thickness.width=0", "noise.none=True", "noise.background=0")
    _, table, _ = run(folder, "scan.images=6", *QUICK[1:], *args)
    table = table.select(table["partiality"] > 0.99)
    structure = quartz_record()
    hkl = torch.tensor([list(h) for h in table["miller_index"]])
    f = crystal.structure_factors(structure, hkl, structure.site, structure.u_iso, structure.u_star)
    width = 1 / np.abs(values(table, "zeta"))
    expected = f.abs().square().numpy() * width
    ratio = values(table) / expected
    strong = expected > 0.02 * expected.max()
    assert strong.sum() > 10
    assert np.abs(ratio[strong] / np.median(ratio[strong]) - 1).max() < 0.05


@pytest.mark.parametrize("drift", [0, 0.5])
def test_reflections_diffract_where_dials_predicts_them(folder, drift):
    """The predictor of DIALS and the settings used here agree on S_g = 0."""
    experiments, table, _ = run(folder, *QUICK, f"crystal.drift={drift}")
    assert (experiments[0].crystal.num_scan_points > 0) == (drift > 0)
    table = table.select(table["partiality"] > 0.99)
    angle = table["xyzcal.mm"].parts()[2].as_numpy_array()
    hkl = np.array(list(table["miller_index"]), dtype=float)
    g = np.einsum("nij,nj->ni", settings_at(experiments[0], angle), hkl)
    s0 = np.array(experiments[0].beam.get_s0())
    s1 = g + s0
    excitation = np.linalg.norm(s0) - np.linalg.norm(s1, axis=1)
    assert np.abs(excitation).max() < 2e-5
    # across the beam; along it they differ by S_g
    assert np.allclose(s1[:, :2], np.array(list(table["s1"]))[:, :2], atol=1e-4)


def test_reads_and_behaves_as_integrated_data(clean, capsys, folder):
    experiments, table, _ = clean
    expected = """background.mean background.sum.value background.sum.variance bbox d entering
        flags id imageset_id intensity.prf.value intensity.prf.variance intensity.sum.value
        intensity.sum.variance lp miller_index num_pixels.background num_pixels.background_used
        num_pixels.foreground num_pixels.valid panel partial_id partiality profile.correlation s1
        xyzcal.mm xyzcal.px xyzobs.mm.value xyzobs.mm.variance xyzobs.px.value
        xyzobs.px.variance zeta"""
    assert set(expected.split()) <= set(table.keys())
    assert table.get_flags(table.flags.integrated, all=True).count(False) == 0
    assert table.experiment_identifiers()[0] == experiments[0].identifier
    table.assert_experiment_identifiers_are_consistent(experiments)
    beam = experiments[0].beam
    assert beam.get_wavelength() == pytest.approx(0.0250793, abs=1e-7)
    if hasattr(beam, "get_probe"):
        assert "electron" in str(beam.get_probe()).lower()
    bbox = np.array(table["bbox"].parts())
    assert bbox.min() >= 0 and bbox[5].max() <= 8
    assert (bbox[1::2] > bbox[::2]).all()

    from dials.command_line import show

    experiments.as_file(str(folder / "a.expt"))
    table.as_file(str(folder / "a.refl"))
    show.run(["a.expt", "a.refl"])
    shown = capsys.readouterr().out
    assert "P 32 2 1" in shown and "gaussian_rs" in shown
    loaded = io_dials.load([folder / "a.expt", folder / "a.refl"])
    assert len(loaded.reflections) == len(table)


def test_only_whole_windows_are_whole(clean):
    experiments, table, _ = clean
    delta = experiments[0].profile.delta_m(deg=False)
    angle = table["xyzcal.mm"].parts()[2].as_numpy_array()
    half = delta / np.abs(values(table, "zeta"))
    low, high = experiments[0].scan.get_oscillation_range(deg=False)
    inside = (angle - half >= low) & (angle + half <= high)
    partiality = values(table, "partiality")
    assert (partiality[inside] == 1).all()
    assert (partiality[~inside] < 0.99).all() and (~inside).sum() > 5
    assert values(table)[inside].mean() == pytest.approx(3000)
    assert values(table, "d").min() >= 0.625


def test_recorded_fraction():
    centre, half = torch.tensor([[0.0, 1.0, 1.5, -3.0], [0.5, 0.5, 0.5, 0.5]]).double()
    fraction = recorded_fraction(centre, half, 3.0, (-1.0, 1.0))
    assert fraction.numpy() == pytest.approx([1, 0.5, 0, 0], abs=1e-12)


def test_the_same_seeds_give_the_same_data(folder):
    _, first, truth = run(folder, *QUICK, "crystal.orientation_error=0.05")
    _, again, truth_again = run(folder, *QUICK, "crystal.orientation_error=0.05")
    assert truth == truth_again
    for column in first.keys():
        assert list(first[column]) == list(again[column]), column
    _, other, _ = run(folder, *QUICK, "crystal.orientation_error=0.05", "noise.seed=1")
    difference = values(first) - values(other)
    sigma = np.sqrt(values(first, "intensity.sum.variance") * 2)
    assert 0.5 < np.std(difference / sigma) < 1.5
    turned, _, _ = run(folder, *QUICK, "crystal.seed=1")
    assert turned[0].identifier != truth.get("identifier")


def test_counting_statistics():
    rng = np.random.default_rng(5)
    expected = np.full(20000, 200.0)
    counts = simulate.count_electrons(expected, 500.0, 0.25, rng)
    assert counts.value.mean() == pytest.approx(200, abs=1)
    assert counts.value.var() == pytest.approx(counts.variance.mean(), rel=0.05)
    assert counts.background.mean() == pytest.approx(500, abs=1)
    quiet = simulate.count_electrons(expected, 500.0, 0.25)
    assert (quiet.value == 200).all()
    assert quiet.variance == pytest.approx(counts.variance.mean(), rel=0.02)
    assert simulate.count_electrons(np.zeros(1), 0, 0.25, rng).variance[0] > 0


def test_truth_and_thickness_with_tilt(folder):
    args = ("scan.start=40", "thickness.mean=300", "thickness.width=30", "thickness.shape=slab")
    _, _, truth = run(folder, *QUICK, *args)
    thickness = truth["thickness"]
    assert thickness["angle"] == pytest.approx([40.5, 41.5, 42.5, 43.5])
    expected = 300 / np.cos(np.radians(thickness["angle"]))
    assert thickness["mean"] == pytest.approx(expected)
    on_grid = np.array(thickness["distribution"]) @ np.array(thickness["grid"])
    assert on_grid == pytest.approx(expected, rel=1e-3)
    silicon, oxygen = truth["sites"]
    assert silicon["label"] == "Si" and silicon["u_iso"] == pytest.approx(0.007)
    assert oxygen["xyz"] == pytest.approx([0.4135, 0.2669, 0.785767])
    assert truth["seed"] == {"crystal": 0, "noise": 0}

    wedge = ("thickness.shape=wedge", "thickness.tilt_slope=10", "thickness.tilt_zero=40")
    _, _, truth = run(folder, *QUICK, *args[:3], *wedge)
    assert truth["thickness"]["mean"] == pytest.approx([305, 315, 325, 335])


def test_thickness_matters(folder):
    _, thin, _ = run(folder, *QUICK, "noise.none=True", "thickness.mean=200")
    _, thick, _ = run(folder, *QUICK, "noise.none=True", "thickness.mean=800")
    a, b = np.sqrt(values(thin)), np.sqrt(values(thick))
    assert np.abs(a - b).sum() / a.sum() > 0.05


def test_orientation_error_is_kept_from_the_experiments(folder):
    experiments, right, truth = run(folder, *QUICK, "noise.none=True")
    assert np.abs(truth["orientation_error"]["rotation_vector"]).max() == 0
    wobbling, wrong, truth = run(folder, *QUICK, "noise.none=True", "crystal.orientation_error=0.2")
    assert wobbling[0].crystal == experiments[0].crystal
    assert list(wrong["xyzcal.mm"]) == list(right["xyzcal.mm"])
    vectors = np.array(truth["orientation_error"]["rotation_vector"])
    assert vectors.shape == (4, 3) and 0.01 < np.abs(vectors).max() < 1
    # seen where the reflections come, as a shift of about vector . axis / zeta
    whole = values(right, "partiality") == 1
    shift = (
        wrong["xyzobs.mm.value"].parts()[2] - right["xyzobs.mm.value"].parts()[2]
    ).as_numpy_array()
    assert np.degrees(np.abs(shift[whole]).max()) > 0.01


def test_smooth_curves_are_smooth_and_as_large_as_asked():
    angle = np.radians(np.linspace(0, 4000, 4001))
    curves = simulate.smooth_curves(angle, 0.1, math.radians(15), np.random.default_rng(1))
    assert curves.std(0) == pytest.approx([0.1] * 3, rel=0.1)
    assert np.abs(np.diff(curves, axis=0)).max() < 0.1 / 15 * 5


def test_orientation_can_be_given(folder):
    experiments, _, _ = run(folder, *QUICK, "crystal.orientation=0,0,30")
    u = np.array(experiments[0].crystal.get_U()).reshape(3, 3)
    cos, sin = math.sqrt(0.75), 0.5
    assert np.allclose(u, [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def test_window_pieces_add_up():
    """An integral over two windows side by side is the integral over both."""
    structure = quartz_record()
    a = np.linalg.inv(np.array([[4.916, -2.458, 0], [0, 4.2574, 0], [0, 0, 5.4054]])).T

    def setting(angle):
        cos, sin, one = np.cos(angle), np.sin(angle), np.ones_like(angle)
        rows = [[one, 0 * one, 0 * one], [0 * one, cos, -sin], [0 * one, sin, cos]]
        return np.moveaxis(np.array(rows), -1, 0) @ a

    rotation = simulate.Rotation(setting, np.array([0, 0, -39.87]), 0.1, 0.13)
    hkl = np.array([[1, 1, 0]] * 3)
    start, end = np.array([0.1, 0.1, 0.1123]), np.array([0.13, 0.1123, 0.13])
    mixture = true_thickness.ThicknessMixture((500.0,), (50.0,), (1.0,), true_thickness.constant())
    accuracy = simulate.Accuracy(1.2, 0.01, math.radians(0.5), math.radians(0.05))
    result = simulate.simulate(
        structure, rotation, simulate.Windows(hkl, start, end), mixture, accuracy
    )
    assert result.intensity[0] == pytest.approx(result.intensity[1:].sum(), rel=1e-12)
    assert start[0] < result.centroid[1] < end[1] < result.centroid[2] < end[2]


BAD = {
    ("missing.cif",): "missing.cif: no such file",
    ("quartz.cif", "quartz.cif"): "exactly one structure",
    ("quartz.cif", "noise.coutns=5"): "did you mean noise.counts?",
    ("quartz.cif", "backgroud=5"): "did you mean noise.background?",
    ("quartz.cif", "seed=5"): "seed may be any of crystal.seed, noise.seed",
    ("quartz.cif", "noise.counts=many"): "noise.counts",
    ("quartz.cif", "noise.counts=nan"): "noise.counts must be finite",
    ("quartz.cif", "noise.counts=-1"): "noise.counts",
    ("quartz.cif", "noise.counts=None"): "noise.counts=None has no meaning; leave it out for 3000",
    ("quartz.cif", "scan.images="): "cannot be read as a parameter",
    ("quartz.cif", "=5"): "no such parameter",
    ("quartz.cif", "thickness.shape=cone"): "constant slab wedge",
    ("quartz.cif", "--counts"): "there is no option --counts",
    ("quartz.cif", "--phil"): "--phil",
    ("quartz.cif", "wrong.phil"): "did you mean noise.counts?",
    ("quartz.cif", "broken.phil"): "broken.phil: not a PHIL file",
    ("quartz.cif", "absent.phil"): "absent.phil: no such file",
    ("quartz.cif", "d_min=0.3"): "d_min",
    ("quartz.cif", "scan.images=1"): "no whole reflection",
    ("quartz.cif", "scan.images=400"): "360 are the most",
    ("quartz.cif", "thickness.mean=1,2", "thickness.width=1,2,3"): "one value for each part",
    ("quartz.cif", "thickness.weight=0"): "at least one weight",
    ("quartz.cif", "thickness.tilt_slope=3"): "thickness.shape=wedge",
    ("quartz.cif", "thickness.shape=slab", "scan.start=60"): "tilted by 120 degrees",
    ("quartz.cif", "thickness.shape=wedge", "tilt_slope=-50"): "increase thickness.mean",
    ("quartz.cif", "output.truth=no/such.json"): "there is no folder no",
    ("quartz.cif", "output.truth=quartz.cif"): "this is also the input quartz.cif",
    ("quartz.cif", "output.truth=."): "this is a folder",
    ("quartz.cif", "output.experiments=a.txt"): "must end in .expt or .json",
    ("empty.cif",): "empty.cif",
}


@pytest.mark.parametrize("args, message", BAD.items(), ids=[" ".join(a) for a in BAD])
def test_bad_input_gives_one_line(folder, args, message):
    (folder / "wrong.phil").write_text("noise { coutns = 5 }\n")
    (folder / "broken.phil").write_text("noise {\n")
    (folder / "empty.cif").write_text("data_x\n_cell_length_a 5\n")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SystemExit) as caught:
        hybrid_simulate.run(list(args))
    assert isinstance(caught.value.code, str)  # printed on stderr, status 1
    assert message in caught.value.code and "\n" not in caught.value.code
    after = {p: p.read_bytes() for p in folder.iterdir() if p.suffix != ".log"}
    assert after == before


def test_no_arguments_give_help(capsys):
    with pytest.raises(SystemExit) as caught:
        hybrid_simulate.run([])
    assert isinstance(caught.value.code, str)
    assert "dials.hybrid_simulate model.cif" in capsys.readouterr().out


def test_a_failed_write_leaves_old_files(folder, monkeypatch):
    (folder / "simulated.refl").write_text("precious")

    def fail(self, name):
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(flex.reflection_table, "as_file", fail)
    with pytest.raises(SystemExit) as caught:
        hybrid_simulate.run(["quartz.cif", *QUICK])
    assert "No space left on device" in caught.value.code
    assert (folder / "simulated.refl").read_text() == "precious"
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_outputs_can_be_left_out_and_logging_ends(folder):
    import logging

    handlers = list(logging.getLogger("dials").handlers)
    hybrid_simulate.run(["quartz.cif", *QUICK, "output.truth=None", "output.log=None"])
    assert {p.name for p in folder.iterdir()} == {"quartz.cif", "simulated.expt", "simulated.refl"}
    assert logging.getLogger("dials").handlers == handlers


def test_log_tells_parameters_and_citations(folder):
    run(folder, *QUICK)
    log = (folder / "dials.hybrid_simulate.log").read_text()
    assert "images = 4" in log and "Humphreys" in log and "4 degrees" in log


def test_too_coarse_steps_are_remarked(folder, capsys):
    run(folder, *QUICK[:3], "accuracy.step=0.2")
    assert "misses fringes" in capsys.readouterr().out


def test_low_d_min_needs_no_beam_beyond_the_form_factors():
    structure = quartz_record()
    rotation = simulate.Rotation(
        lambda angle: np.tile(np.eye(3) / 4.9, (len(angle), 1, 1)),
        np.array([0, 0, -39.87]),
        0,
        0.01,
    )
    windows = simulate.Windows(np.array([[12, 0, 0]]), np.array([0.0]), np.array([0.01]))
    mixture = true_thickness.ThicknessMixture((500.0,), (50.0,), (1.0,), true_thickness.constant())
    with pytest.raises(InputError, match="set d_min to 0.5"):
        simulate.simulate(structure, rotation, windows, mixture, simulate.Accuracy())


def test_phil_files_are_found():
    assert "thickness" in phil_files.phil_text("hybrid_simulate.phil")
    with pytest.raises(FileNotFoundError, match="nothing.phil is neither in"):
        phil_files.phil_text("nothing.phil")


def test_every_parameter_has_help():
    definitions = hybrid_simulate.phil_scope.all_definitions()
    assert all(d.object.help for d in definitions)
    assert all(d.object.type for d in definitions)


def test_outputs_need_their_own_names(tmp_path):
    same = str(tmp_path / "a.expt")
    with pytest.raises(InputError, match="this is also output.experiments"):
        common.check_outputs({"output.experiments": same, "output.reflections": same})
