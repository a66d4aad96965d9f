"""Reading DIALS files, the geometry of the scan, and the selection of reflections."""

import hashlib
import itertools
import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import synthetic
from dials.array_family import flex
from dxtbx.model import ExperimentList

from dials_hybrid import io_dials
from dials_hybrid.io_reflections import Selection
from dials_hybrid.kinematic import recorded
from dials_hybrid.records import InputError

SMALL = {"images": 6}


def column(table, name) -> np.ndarray:
    return table[name].as_numpy_array()


def miller_index(table) -> np.ndarray:
    return np.array(table["miller_index"].as_vec3_double().as_numpy_array()).reshape(-1, 3)


def angles(table) -> np.ndarray:
    return table["xyzcal.mm"].parts()[2].as_numpy_array()


def off_sphere(loaded) -> np.ndarray:
    """Distance (A^-1) of every reflection from the Ewald sphere at its predicted angle."""
    sweep, hkl = column(loaded.reflections, "id"), miller_index(loaded.reflections)
    phi, out = angles(loaded.reflections), np.full(len(sweep), np.inf)
    for index, experiment in enumerate(loaded.experiments):
        mine = sweep == index
        vectors = np.einsum("nij,nj->ni", io_dials.settings_at(experiment, phi[mine]), hkl[mine])
        s0 = np.array(experiment.beam.get_s0())
        out[mine] = np.linalg.norm(vectors + s0, axis=1) - np.linalg.norm(s0)
    return np.abs(out)


# --- loading --------------------------------------------------------------------------------


def test_one_sweep(sweep, loaded):
    assert len(loaded.experiments) == 1 and set(column(loaded.reflections, "id")) == {0}
    assert loaded.expt_files == (str(sweep.expt),) and loaded.refl_files == (str(sweep.refl),)
    assert dict(loaded.reflections.experiment_identifiers()) == {0: "sweep -10 20 x 1"}
    assert off_sphere(loaded).max() < 1e-9


@pytest.fixture(scope="module")
def two_pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    first = synthetic.make_sweep(folder, "first", start=-20.0, **SMALL)
    second = synthetic.make_sweep(folder, "second", start=30.0, width=0.5, images=8)
    return [*first, *second]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_several_pairs_in_any_order(two_pairs, order):
    loaded = io_dials.load([two_pairs[i] for i in order])
    names = [e.identifier for e in loaded.experiments]
    assert sorted(names) == ["sweep -20 6 x 1", "sweep 30 8 x 0.5"]
    assert dict(loaded.reflections.experiment_identifiers()) == dict(enumerate(names))
    assert loaded.reflections.are_experiment_identifiers_consistent(loaded.experiments)
    # a reflection given to the wrong sweep would not be on the Ewald sphere
    assert off_sphere(loaded).max() < 1e-9
    assert (column(loaded.reflections, "imageset_id") == column(loaded.reflections, "id")).all()


def test_two_sweeps_in_one_pair(tmp_path):
    starts = (-20.0, 30.0)
    experiments = ExperimentList([synthetic.make_experiment(start=x, **SMALL) for x in starts])
    reflections = synthetic.make_reflections(experiments)
    value = column(reflections, "intensity.sum.value")
    loaded = io_dials.load(synthetic.write_pair(tmp_path, "both", experiments, reflections))
    assert len(loaded.experiments) == 2 and off_sphere(loaded).max() < 1e-9
    assert (column(loaded.reflections, "intensity.sum.value") == value).all()


@pytest.mark.parametrize("count", [1, 2])
def test_files_without_identifiers(tmp_path, warnings_logged, count):
    """Experiments and reflections are then matched by order, which is worth a warning."""
    paths = []
    for start in range(count):
        experiments = ExperimentList([synthetic.make_experiment(start=40.0 * start, **SMALL)])
        reflections = synthetic.make_reflections(experiments)
        experiments[0].identifier = ""
        del reflections.experiment_identifiers()[0]
        paths += synthetic.write_pair(tmp_path, f"unnamed{start}", experiments, reflections)
    loaded = io_dials.load(paths)
    assert off_sphere(loaded).max() < 1e-9
    assert [("matched by order" in m) for m in warnings_logged()] == [True] * (count - 1)


@pytest.mark.parametrize("name", ["zeta", "d"])
def test_columns_that_can_be_computed(sweep, tmp_path, loaded, name):
    expected = column(loaded.reflections, name).copy()
    del loaded.reflections[name]
    refl = tmp_path / "less.refl"
    loaded.reflections.as_msgpack_file(str(refl))
    again = io_dials.load([sweep.expt, refl])
    assert np.allclose(column(again.reflections, name), expected, rtol=0, atol=1e-9)


def test_partiality_in_one_file_only(two_pairs, tmp_path):
    """Joining the tables must not turn a missing partiality into 0."""
    table = flex.reflection_table.from_file(str(two_pairs[3]))
    del table["partiality"]
    refl = tmp_path / "less.refl"
    table.as_msgpack_file(str(refl))
    loaded = io_dials.load([*two_pairs[:3], refl])
    second = column(loaded.reflections, "id") == 1
    assert (column(loaded.reflections, "partiality")[second] == 1).all()
    assert column(loaded.reflections, "partiality")[~second].min() < 0.9


def test_unindexed_rows_stay_but_are_not_used(sweep, tmp_path, loaded):
    ids = column(loaded.reflections, "id").copy()
    ids[::3] = -1
    loaded.reflections["id"] = flex.int(ids)
    refl = tmp_path / "unindexed.refl"
    loaded.reflections.as_msgpack_file(str(refl))
    again = io_dials.load([sweep.expt, refl])
    assert len(again.reflections) == len(ids)
    rows, table = io_dials.select_reflections(again.reflections, Selection(partiality=0, zeta=0))
    every, unfiltered = io_dials.select_reflections(
        again.reflections, Selection(partiality=None, zeta=None)
    )
    assert (every == rows).all() and len(unfiltered) == len(table) - 2
    assert (rows == np.flatnonzero(ids == 0)).all()


def test_provenance(sweep, loaded):
    found = json.loads(json.dumps(loaded.provenance(sweep.cif)))
    names = {"experiments": [sweep.expt], "reflections": [sweep.refl], "structure": sweep.cif}
    for key, paths in names.items():
        entries = found[key] if isinstance(paths, list) else [found[key]]
        for entry, path in zip(entries, np.atleast_1d(paths), strict=True):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert entry == {"file": str(path.resolve()), "sha256": digest}
    assert found["dials_version"].startswith("DIALS") and found["version"]


# --- geometry -------------------------------------------------------------------------------


@pytest.mark.parametrize("scan_points", [False, True])
@pytest.mark.parametrize(("start", "width"), [(-10.0, 1.0), (35.0, 0.5)])
def test_settings_put_reflections_on_the_sphere(tmp_path, scan_points, start, width):
    paths = synthetic.make_sweep(
        tmp_path, images=12, start=start, width=width, scan_points=scan_points
    )
    loaded = io_dials.load(paths)
    # DIALS predicts scan-varying crystals with the matrices of the two edges of an image
    assert off_sphere(loaded).max() < (1e-5 if scan_points else 1e-9)
    assert len(loaded.reflections) > 30


def test_scan_is_cut_into_blocks(loaded):
    scan = io_dials.scan_from_experiments(loaded.experiments, io_dials.Sampling(2.0, 0.25))
    assert scan.angle.shape == (10, 8)
    assert math.degrees(float(scan.sample_width.sum())) == pytest.approx(20)
    assert torch.allclose(torch.rad2deg(scan.block_angle), torch.arange(-9.0, 10.0, 2.0).double())
    assert scan.wavelength == pytest.approx(synthetic.WAVELENGTH)
    expected = io_dials.settings_at(loaded.experiments[0], scan.angle.numpy().ravel())
    assert np.array_equal(scan.setting.numpy().reshape(-1, 3, 3), expected)


def test_block_width_is_adapted_to_the_scan(loaded):
    scan = io_dials.scan_from_experiments(loaded.experiments, io_dials.Sampling(3.0, 0.5))
    assert scan.angle.shape == (7, 6)
    assert math.degrees(float(scan.sample_width.sum())) == pytest.approx(20)


def test_moving_beam_and_setting_are_interpolated():
    experiment = synthetic.make_experiment(images=4, start=0.0)
    s0 = np.array(experiment.beam.get_s0())
    drift = np.array([0.1, -0.05, 0.0])
    points = [tuple(s0 + drift * i) for i in range(5)]
    experiment.beam.set_s0_at_scan_points(flex.vec3_double(points))
    turn = np.array(synthetic._turn((0, 1, 0), 0.5)).reshape(3, 3)
    settings = [np.linalg.matrix_power(turn, i) for i in range(5)]
    experiment.goniometer.set_setting_rotation_at_scan_points(
        [tuple(x.ravel().tolist()) for x in settings]
    )
    scan = io_dials.scan_from_experiments([experiment], io_dials.Sampling(1.0, 0.5))
    expected = s0 + drift * (np.arange(4)[:, None] + 0.5)
    assert np.allclose(scan.s0.numpy(), expected, atol=1e-12)
    static = synthetic.make_experiment(images=4, start=0.0)
    static.goniometer.set_setting_rotation(tuple(settings[3].ravel().tolist()))
    angle = np.radians([3.0])
    found, wanted = (io_dials.settings_at(e, angle) for e in (experiment, static))
    assert np.allclose(found, wanted, atol=1e-12)


# --- selection ------------------------------------------------------------------------------


def test_default_selection(loaded):
    rows, table = io_dials.select_reflections(loaded.reflections, Selection())
    partiality = column(loaded.reflections, "partiality")
    wanted = partiality >= 0.3
    assert (partiality[rows] < 0.9).any()
    wanted &= np.abs(column(loaded.reflections, "zeta")) >= 0.25
    assert (rows == np.flatnonzero(wanted)).all() and 0 < len(rows) < len(loaded.reflections)
    assert table[0] == ("read", 0, len(loaded.reflections)) and table[-1][2] == len(rows)
    for (_, _, before), (_, removed, left) in itertools.pairwise(table):
        assert before - removed == left


def test_kinematic_peaks_are_recorded_to_the_part_that_dials_says(loaded):
    selection = Selection(zeta=0.1)
    rows, _ = loaded.select(selection)
    scan, observations = loaded.observed(rows, io_dials.Sampling(1.0, 0.02), selection)
    found = recorded(observations, scan).numpy()
    partiality = column(loaded.reflections, "partiality")[observations.row.numpy()]
    assert (partiality < 0.9).sum() > 2
    assert np.abs(found - partiality).max() < 0.02


@pytest.mark.parametrize(("intensity", "least"), [("sum", 0.7), ("profile", 0.99)])
def test_parts_of_profiles_are_no_intensities(loaded, intensity, least):
    """Fitted profiles tell the intensity of the whole, also where a part was recorded."""
    rows, table = io_dials.select_reflections(
        loaded.reflections, Selection(intensity=intensity, partiality=0.7, zeta=None)
    )
    wanted = column(loaded.reflections, "partiality") >= least
    assert (rows == np.flatnonzero(wanted)).all() and len(rows) < len(wanted)


def test_rows_of_one_reflection_are_not_taken_for_what_an_end_cuts(loaded):
    table = loaded.reflections
    partiality, parts = column(table, "partiality").copy(), np.arange(len(table))
    inside = np.flatnonzero(partiality >= 0.99)[:6]
    partiality[inside[:4]] = 0.5
    parts[inside[1]] = parts[inside[0]]  # two halves
    parts[inside[5]] = parts[inside[4]]  # whole, twice
    table["partiality"] = flex.double(partiality)
    table["partial_id"] = flex.size_t(parts.astype(np.uint64))
    rows, steps = io_dials.select_reflections(table, Selection(partiality=0, zeta=0))
    assert set(range(len(table))) - set(rows.tolist()) == set(inside[:2].tolist())
    assert ("not split into several rows", 2, len(table) - 2) in steps


EVERYTHING = {"partiality": None, "zeta": 0}


@pytest.mark.parametrize(
    ("selection", "passes"),
    [
        ({"d_min": 1.2}, lambda t: column(t, "d") >= 1.2),
        ({"d_max": 1.2}, lambda t: column(t, "d") <= 1.2),
        ({"d_min": 1.0, "d_max": 2.0}, lambda t: np.abs(column(t, "d") - 1.5) <= 0.5),
        ({"zeta": 0.6}, lambda t: np.abs(column(t, "zeta")) >= 0.6),
        ({"partiality": 0.8}, lambda t: column(t, "partiality") >= 0.8),
        (
            {"i_over_sigma": 5.0},
            lambda t: (
                column(t, "intensity.sum.value") >= 5 * np.sqrt(column(t, "intensity.sum.variance"))
            ),
        ),
    ],
)
def test_each_filter(loaded, selection, passes):
    rows, table = io_dials.select_reflections(
        loaded.reflections, Selection(**EVERYTHING | selection)
    )
    wanted = passes(loaded.reflections)
    assert (rows == np.flatnonzero(wanted)).all()
    assert 0 < len(rows) < len(wanted)
    assert sum(removed for _, removed, _ in table) == len(wanted) - len(rows)


@pytest.mark.parametrize(
    ("intensity", "flag"), [("sum", "integrated_sum"), ("profile", "integrated_prf")]
)
def test_rows_that_were_not_integrated(loaded, intensity, flag):
    table = loaded.reflections
    failed = flex.bool(np.arange(len(table)) % 4 == 1)
    table.unset_flags(failed, getattr(table.flags, flag))
    rows, _ = io_dials.select_reflections(table, Selection(intensity=intensity, **EVERYTHING))
    assert (rows == np.flatnonzero(~failed.as_numpy_array())).all()


@pytest.mark.parametrize("keep", [False, True])
def test_overloaded_reflections(loaded, keep):
    table = loaded.reflections
    overloaded = flex.bool(np.arange(len(table)) < 7)
    table.set_flags(overloaded, table.flags.overloaded)
    selection = Selection(keep_overloaded=keep, **EVERYTHING)
    rows, _ = io_dials.select_reflections(table, selection)
    assert len(table) - len(rows) == (0 if keep else 7)


@pytest.mark.parametrize("what", ["intensity.sum.value", "intensity.sum.variance"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_are_dropped_and_counted(loaded, warnings_logged, what, bad):
    values = column(loaded.reflections, what).copy()
    values[[2, 5, 9]] = bad
    loaded.reflections[what] = flex.double(values)
    rows, table = io_dials.select_reflections(loaded.reflections, Selection(**EVERYTHING))
    assert set(range(len(values))) - set(rows.tolist()) == {2, 5, 9}
    assert ("finite intensity, positive variance", 3, len(values) - 3) in table
    assert warnings_logged() == ["3 reflections have no usable variance and are left out"]


@pytest.mark.parametrize("name", ["partiality", "zeta"])
def test_missing_column_does_not_filter(loaded, name):
    count = len(loaded.reflections)
    del loaded.reflections[name]
    rows, table = io_dials.select_reflections(
        loaded.reflections, Selection(**EVERYTHING | {name: 0.9999})
    )
    assert len(rows) == count and not any(name in entry for entry, *_ in table)


def test_scaled_intensity_is_without_lorentz_factor(loaded):
    """dials.scale stores I lp, and the factor to divide by beside it."""
    table, rng = loaded.reflections, np.random.default_rng(0)
    lp, scale = rng.uniform(0.2, 2, (2, len(table)))
    table["lp"], table["inverse_scale_factor"] = flex.double(lp), flex.double(scale)
    for name, power in (("value", 1), ("variance", 2)):
        raw = column(table, f"intensity.sum.{name}")
        table[f"intensity.scale.{name}"] = flex.double(raw * (lp * scale) ** power)
    table.set_flags(flex.bool(len(table), True), table.flags.scaled)
    scan = io_dials.scan_from_experiments(loaded.experiments, io_dials.Sampling(1.0, 0.5))
    found = []
    for intensity in ("sum", "scale"):
        selection = Selection(intensity=intensity, partiality=0.99)
        rows, _ = io_dials.select_reflections(table, selection)
        found.append(
            io_dials.observations_from_reflections(table, rows, loaded.experiments, scan, selection)
        )
    assert torch.allclose(found[0].intensity, found[1].intensity)
    assert torch.allclose(found[0].sigma, found[1].sigma)


def test_format_table():
    text = io_dials.format_table([("read", 0, 1653), ("zeta >= 0.25", 16, 1637)])
    assert text.splitlines() == [
        "Selection     removed  left",
        "---------------------------",
        "read                0  1653",
        "zeta >= 0.25       16  1637",
    ]


# --- observations ---------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_links_cover_the_window(tmp_path, width):
    loaded = io_dials.load(synthetic.make_sweep(tmp_path, images=12, width=width))
    scan = io_dials.scan_from_experiments(loaded.experiments, io_dials.Sampling(1.0, 0.02))
    selection = Selection(partiality=0.99)
    rows, _ = io_dials.select_reflections(loaded.reflections, selection)
    observations = io_dials.observations_from_reflections(
        loaded.reflections, rows, loaded.experiments, scan, selection
    )
    assert (observations.row.numpy() == rows).all()
    assert (observations.hkl.numpy() == miller_index(loaded.reflections)[rows]).all()
    delta_m = loaded.experiments[0].profile.delta_m(deg=False)
    half = delta_m / np.abs(column(loaded.reflections, "zeta")[rows])
    covered = np.zeros(len(rows))
    links = zip(
        observations.link_observation.tolist(),
        observations.link_block.tolist(),
        observations.link_first.tolist(),
        observations.link_last.tolist(),
        strict=True,
    )
    for observation, block, first, last in links:
        phi = scan.angle[block, first : last + 1].numpy()
        assert (
            np.abs(phi - angles(loaded.reflections)[rows][observation]) <= half[observation]
        ).all()
        covered[observation] += float(scan.sample_width[block, first : last + 1].sum())
    # windows that the ends of the scan cut are shorter
    ends = np.degrees(scan.angle.numpy().ravel()[[0, -1]])
    phi = np.degrees(angles(loaded.reflections)[rows])
    inside = (phi - np.degrees(half) > ends.min()) & (phi + np.degrees(half) < ends.max())
    sample = float(scan.sample_width[0, 0])
    assert inside.sum() > 20 and (np.abs(covered - 2 * half)[inside] <= sample).all()


def test_window_of_each_image_with_scan_varying_profile(loaded):
    from dials.algorithms.profile_model.gaussian_rs import Model

    sigma_m = flex.double(np.linspace(0.1, 0.4, 20))
    loaded.experiments[0].profile = Model(None, 3, flex.double(20, 0.01), sigma_m, deg=True)
    problem = synthetic.make_problem(loaded, block_width=20.0)
    observations = problem.observations
    count = (observations.link_last - observations.link_first + 1).numpy()
    zeta = np.abs(column(loaded.reflections, "zeta")[observations.row.numpy()])
    image = np.floor(np.degrees(observations.angle.numpy()) + 10).astype(int)
    expected = 2 * 3 * np.array(sigma_m)[image] / zeta / 0.2
    middle = (image > 4) & (image < 15) & (zeta > 0.5)
    assert middle.sum() > 20 and (np.abs(count - expected)[middle] <= 1).all()


def test_window_from_bbox_without_profile_model(loaded):
    loaded.experiments[0].profile = None
    problem = synthetic.make_problem(loaded, block_width=20.0)
    observations = problem.observations
    first, last = (x.as_numpy_array() for x in loaded.reflections["bbox"].parts()[4:6])
    images = (last - first)[observations.row.numpy()]
    count = (observations.link_last - observations.link_first + 1).numpy()
    inside = (first > 1)[observations.row.numpy()] & (last < 19)[observations.row.numpy()]
    assert inside.sum() > 20 and (np.abs(count - images / 0.2)[inside] <= 1).all()


# --- real data ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "intensity", "used", "strong"),
    [
        ("integrated", "sum", 1038, 845),
        ("integrated", "profile", 1009, 809),
        ("scaled", "sum", 1038, 845),
    ],
)
def test_real_quartz(quartz_dials, name, intensity, used, strong):
    loaded = io_dials.load([quartz_dials / f"{name}.{kind}" for kind in ("expt", "refl")])
    assert off_sphere(loaded).max() < 5e-6
    scan = io_dials.scan_from_experiments(loaded.experiments, io_dials.Sampling(1.0, 0.1))
    assert len(scan.sweep) == 100
    selection = Selection(intensity=intensity, d_min=0.625)
    rows, _ = io_dials.select_reflections(loaded.reflections, selection)
    observations = io_dials.observations_from_reflections(
        loaded.reflections, rows, loaded.experiments, scan, selection
    )
    assert len(observations.intensity) == used and int(observations.observed.sum()) == strong


def test_real_quartz_that_is_not_integrated(quartz_dials):
    paths = [quartz_dials / "refined.expt", quartz_dials / "integrated.refl"]
    assert len(io_dials.load(paths).reflections) == 1653
    with pytest.raises(InputError, match="neither .expt nor .refl"):
        io_dials.load([*paths, quartz_dials / "dials_dyn.cif_pets"])
