"""Virtual frames for Jana: written from DIALS and PETS2 data, and read back."""

import dataclasses
import math

import numpy as np
import pytest
import torch

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import iotbx.cif
import pets
import synthetic
import tiny
from dxtbx.model import ExperimentList

from dials_hybrid import api, io_dials, io_pets, io_pets_frames, io_pets_write, job, validation
from dials_hybrid.io_geometry import Sampling, rotation_matrices
from dials_hybrid.io_pets_write import Cutting
from dials_hybrid.io_reflections import Selection
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import DepthGrid
from dials_hybrid.records import InputError

WHOLE = 1000.0  # degree, wider than any frame
ALL = Selection(rsg_max=None, dsg_min=None, rocking_curve="frame")
UNIT = (1, 0, 0, 0, 1, 0, 0, 0, 1)
QUICK = ModelSettings(
    g_max=1.0,
    s_max=0.01,
    depth=DepthGrid(40.0, 12),
    thickness="single",
    thickness_start=300.0,
    precision="double",
)


def experiment(**options):
    """Return a made-up sweep whose axis is across the beam."""
    made = synthetic.make_experiment(images=12, start=-6.0, **options)
    made.goniometer.set_setting_rotation(UNIT)
    return made


def make_data(scan_points):
    """Return a sweep of 12 degrees and its problem, in blocks of 2 degrees."""
    experiments = ExperimentList([experiment(scan_points=scan_points)])
    reflections = synthetic.make_reflections(experiments, d_min=0.9)
    loaded = io_dials.Loaded(experiments, reflections, ("a.expt",), ("a.refl",))
    return loaded, synthetic.make_problem(loaded, block_width=2.0)


@pytest.fixture(scope="module")
def dials_data():
    """The sweep of a crystal that moves slowly by 0.02 degrees per image."""
    return make_data(scan_points=True)


def curved(problem):
    """Return a result with smoothly changing orientations, tenths of a degree large."""
    angle = problem.scan.block_angle
    turns = torch.stack([(9 * angle).sin(), (5 * angle).cos(), 0 * angle], 1)
    return synthetic.make_result(problem, orientation=math.radians(0.2) * turns)


def written(path, problem, result, experiments, cutting):
    """Write the first sweep, read it again, and return what was read."""
    every = io_pets_write.virtual_frames(problem, result, experiments, cutting)
    io_pets_write.write(path, every[0])
    return io_pets.load([path])


def read_problem(loaded, problem, step):
    rows, _ = loaded.select(ALL)
    scan, observations = loaded.observed(rows, Sampling(WHOLE, step), ALL)
    return problem.replace(scan=scan, observations=observations)


def intensities(problem, settings=QUICK, rotation=None):
    """Return calculated intensities, crystals turned by rotation vectors (F, 3) rad if given."""
    if rotation is not None:
        turn = torch.from_numpy(rotation_matrices(rotation.numpy()))
        scan = problem.scan.replace(setting=turn[:, None] @ problem.scan.setting)
        problem = problem.replace(scan=scan)
    model = HybridModel(problem, settings)
    with torch.no_grad():
        return model.intensities(model.value_profiles())


def partners(problem, again):
    """Return the row of `problem` for each row of `again`, found by index and intensity."""
    first, second = (
        [(*h, round(i, 2)) for h, i in zip(o.hkl.tolist(), o.intensity.tolist(), strict=True)]
        for o in (problem.observations, again.observations)
    )
    place = {key: i for i, key in enumerate(first)}
    assert len(place) == len(first)
    return torch.tensor([place[key] for key in second])


# --- the same intensities -------------------------------------------------------------------


def over_whole_blocks(problem):
    """Return the problem with windows that reach over the block of each centroid."""
    scan, o = problem.scan, problem.observations
    middle = o.angle[:, None] - scan.block_angle
    block = middle.abs().argmin(1)
    n = len(block)
    links = {
        "link_observation": torch.arange(n),
        "link_block": block,
        "link_first": torch.zeros(n, dtype=torch.int64),
        "link_last": torch.full((n,), scan.angle.shape[1] - 1),
    }
    return problem.replace(observations=o.replace(**links))


@pytest.mark.parametrize(("moves", "tolerance"), [(False, 1e-4), (True, 0.02)])
def test_frames_that_are_the_blocks_give_the_same_intensities(tmp_path, moves, tolerance):
    """The format knows nothing of how a crystal moves within a frame."""
    loaded, problem = make_data(scan_points=moves)
    problem = over_whole_blocks(problem)
    result = curved(problem)
    found = written(tmp_path / "a.cif_pets", problem, result, loaded.experiments, Cutting(2.0, 2.0))
    again = read_problem(found, problem, step=0.2)
    assert again.scan.angle.shape == problem.scan.angle.shape
    place = partners(problem, again)
    assert len(place) == len(problem.observations.intensity)
    before = intensities(problem, rotation=result.orientation)[place]
    after = intensities(again)
    assert float((after - before).abs().sum() / before.sum()) < tolerance
    unrefined = intensities(problem)[place]
    assert float((unrefined - before).abs().sum() / before.sum()) > 0.05


@pytest.mark.parametrize(
    ("cutting", "share", "tolerance"),
    [(Cutting(0.5, 3.0), 0.7, 0.02), (Cutting(), 0.9, 0.025)],
    ids=["narrow", "automatic"],
)
def test_real_quartz_gives_the_same_intensities(quartz_dials, tmp_path, cutting, share, tolerance):
    """Frames reach beyond the windows of integration, where the rocking curves have tails.

    Blurred by the spread of the profile model, the automatic frames would differ by 0.028.
    """
    files = [quartz_dials / "integrated.expt", quartz_dials / "integrated.refl"]
    options = job.Options(sampling=Sampling(1.0, 0.04))
    made = job.load(files, quartz_dials / "quartz_xray.cif", options)
    chosen = torch.zeros(len(made.problem.scan.sweep), dtype=torch.bool)
    chosen[40:48] = True
    problem = validation.keep_blocks(made.problem, chosen)
    result = synthetic.make_result(problem, orientation=torch.zeros(8, 3, dtype=torch.float64))
    found = written(tmp_path / "a.cif_pets", problem, result, made.loaded.experiments, cutting)
    part = found.parts[0]
    assert part.mosaicity == 0  # the profile model has 0.332 degrees
    assert "dstarmax:  1.5" in part.details and "rotation axis position:  0.531" in part.details
    again = read_problem(found, problem, step=0.04)
    place = partners(problem, again)
    assert len(place) > share * len(problem.observations.intensity)
    settings = dataclasses.replace(QUICK, g_max=1.3, precision="single")
    before, after = intensities(problem, settings)[place], intensities(again, settings)
    f_before, f_after = before.sqrt(), after.sqrt()
    assert float((f_after - f_before).abs().sum() / f_before.sum()) < tolerance
    assert 1.0 < float((after / before).median()) < 1.03


# --- geometry -------------------------------------------------------------------------------


def test_the_zone_axis_goes_to_z_by_what_the_file_says(dials_data, tmp_path):
    loaded, problem = dials_data
    path = tmp_path / "a.cif_pets"
    written(path, problem, curved(problem), loaded.experiments, Cutting(1.0, 3.0))
    block = iotbx.cif.reader(file_path=str(path)).model()["pets"]
    ub = torch.tensor(
        [[float(block[f"_diffrn_orient_matrix_UB_{i}{j}"]) for j in (1, 2, 3)] for i in (1, 2, 3)],
        dtype=torch.float64,
    )
    names = ("u", "v", "w", "alpha", "beta", "omega")
    rows = zip(*(block[f"_diffrn_zone_axis_{name}"] for name in names), strict=True)
    for *uvw, alpha, beta, omega in (map(float, row) for row in rows):
        turn = pets.turn(z=omega) @ pets.turn(x=alpha) @ pets.turn(y=beta)
        direct = torch.linalg.inv(turn @ ub).T
        along = direct @ torch.tensor(uvw, dtype=torch.float64)
        assert torch.allclose(along[:2] / along[2], torch.zeros(2).double(), rtol=0, atol=2e-6)
        assert float(along[2]) > 0
        assert abs(beta) < 0.5 and abs(omega - math.degrees(math.atan2(0.0141, 0.9999))) < 0.5


def test_settings_come_back(dials_data, tmp_path):
    loaded, problem = dials_data
    made = io_pets_write.virtual_frames(
        problem, curved(problem), loaded.experiments, Cutting(1.0, 3.0)
    )[0]
    io_pets_write.write(tmp_path / "a.cif_pets", made)
    part = io_pets.load([tmp_path / "a.cif_pets"]).parts[0]
    assert np.allclose(part.setting, made.setting, rtol=0, atol=3e-7)
    assert np.allclose(part.alpha, made.alpha, rtol=0, atol=0.3)
    for name in ("half_width", "frame", "hkl", "axis"):
        assert np.allclose(getattr(part, name), getattr(made, name), rtol=0, atol=1e-5), name
    assert np.allclose(part.intensity, made.intensity, rtol=0, atol=0.006)
    assert part.details.strip() == made.details


def test_tilts_of_any_rotation_come_back():
    rng = np.random.default_rng(0)
    alpha, beta, omega = rng.uniform(-179, 179, (3, 200))
    turn = io_pets_frames.rotations(np.array([0.0, 0, 1]), omega)
    turn = turn @ io_pets_frames.rotations(np.array([1.0, 0, 0]), alpha)
    turn = turn @ io_pets_frames.rotations(np.array([0.0, 1, 0]), beta)
    found = io_pets_write.tilts(turn, alpha)
    for angle, value in zip((alpha, beta, omega), found, strict=True):
        assert np.allclose((value - angle + 180) % 360, 180, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vector", [(0.0, math.pi, 0.0), (0.3, -0.4, 1.1), (math.pi, 0.0, 0.0)])
def test_the_laboratory_may_stand_in_any_way(dials_data, vector):
    """Everything turned together: excitation errors stay as they were."""
    loaded, problem = dials_data
    turn = rotation_matrices(np.array([vector]))[0]
    scan = problem.scan
    rotated = torch.from_numpy(turn)
    turned = problem.replace(
        scan=scan.replace(
            setting=rotated @ scan.setting, s0=scan.s0 @ rotated.T, axis=scan.axis @ rotated.T
        )
    )
    other = experiment(scan_points=True)
    other.goniometer.set_setting_rotation(turn.ravel().tolist())
    result = synthetic.make_result(problem, orientation=0 * curved(problem).orientation)
    cutting = Cutting(1.0, 3.0)
    first = io_pets_write.virtual_frames(problem, result, loaded.experiments, cutting)[0]
    second = io_pets_write.virtual_frames(turned, result, [other], cutting)[0]
    for before, after in zip(
        io_pets_frames.excitation(first), io_pets_frames.excitation(second), strict=True
    ):
        assert np.allclose(before, after, rtol=0, atol=1e-9)


def test_alpha_stays_away_from_a_right_angle():
    far = np.array([10.0, 70.0, 120.0])
    assert io_pets_write._zero(far) == 65.0
    assert io_pets_write._zero(far - 50) == 0.0


def test_an_axis_that_is_not_across_the_beam_is_told(dials_data, warnings_logged):
    loaded, problem = dials_data
    tilted = experiment(scan_points=True)
    tilted.goniometer.set_setting_rotation(synthetic._turn((0, 1, 0), 4))
    result = curved(problem)
    io_pets_write.virtual_frames(problem, result, loaded.experiments, Cutting(1.0, 3.0))
    assert not warnings_logged()
    io_pets_write.virtual_frames(problem, result, [tilted], Cutting(1.0, 3.0))
    assert any("4.0 degrees off the plane across the beam" in w for w in warnings_logged())


# --- which frame holds which reflection -----------------------------------------------------


def test_a_reflection_is_written_once_and_whole(dials_data):
    loaded, problem = dials_data
    (sweep,) = io_pets_write.cut(problem, Cutting(1.0, 3.0))
    assert len(np.unique(sweep.kept)) == len(sweep.kept)
    assert len(sweep.kept) + sweep.left_out == len(problem.observations.intensity)
    assert sweep.left_out > 0
    # from the table itself: centroid and delta_m / |zeta|
    rows = problem.observations.row.numpy()[sweep.kept]
    phi = np.degrees(loaded.reflections["xyzcal.mm"].parts()[2].as_numpy_array()[rows])
    zeta = np.abs(loaded.reflections["zeta"].as_numpy_array()[rows])
    half = loaded.experiments[0].profile.delta_m(deg=True) / zeta
    outer = np.abs(phi - sweep.middle[sweep.frame]) + half
    inside = (np.abs(phi) + half) < 6  # the others are cut by the ends of the scan
    assert (outer[inside] < 1.5 + 0.21).all()  # the windows of the problem end on samples


def test_frames_cover_the_sweep_at_most_a_step_apart(dials_data):
    _, problem = dials_data
    (sweep,) = io_pets_write.cut(problem, Cutting(2.0, 3.0))
    assert sweep.middle[0] == pytest.approx(-4.5) and sweep.middle[-1] == pytest.approx(4.5)
    assert np.diff(sweep.middle) == pytest.approx([1.8] * 5)
    (single,) = io_pets_write.cut(problem, Cutting(2.0, 40.0))
    assert single.middle.tolist() == pytest.approx([0.0]) and single.width == pytest.approx(12)
    assert single.left_out == 0


def test_the_automatic_width_holds_most_windows(dials_data):
    _, problem = dials_data
    (sweep,) = io_pets_write.cut(problem, Cutting(1.0))
    assert sweep.width % 0.5 == pytest.approx(0)
    assert 0 < sweep.left_out < 0.1 * len(problem.observations.intensity)


def test_frames_that_hold_nothing_are_refused(dials_data):
    _, problem = dials_data
    with pytest.raises(InputError, match="pets.frame_width=0.2: .*set it to Auto"):
        io_pets_write.cut(problem, Cutting(1.0, 0.2))


def test_sweeps_of_which_nothing_is_used_are_refused(dials_data):
    _, problem = dials_data
    scan = problem.scan
    more = {f.name: torch.cat([getattr(scan, f.name)] * 2) for f in dataclasses.fields(scan)}
    more["sweep"] = torch.cat([scan.sweep, scan.sweep + 1])
    with pytest.raises(InputError, match="no reflection of sweep 2 is used; leave"):
        io_pets_write.cut(problem.replace(scan=type(scan)(**more)), Cutting())


# --- PETS2 ----------------------------------------------------------------------------------


@pytest.fixture
def pets_job(tmp_path):
    """Read five frames; two rows only of the third, none of the last is used."""
    file = pets.PetsFile(mosaicity=0.03).with_rows_in_frames(tiny.quartz(), 0.9)
    path = file.write(tmp_path / "given.cif_pets")
    loaded = io_pets.load([path])
    rows, _ = loaded.select(ALL)
    third = [r for r in rows if file.rows[r][5] == 3][2:]
    used = np.array([r for r in rows if file.rows[r][5] != 5 and r not in third])
    scan, observations = loaded.observed(used, Sampling(WHOLE, 0.2), ALL)
    problem = tiny.problem().replace(scan=scan, observations=observations)
    return loaded, problem


def test_frames_of_pets_keep_all_but_their_orientation(pets_job, tmp_path):
    loaded, problem = pets_job
    result = synthetic.make_result(problem)
    (frames,) = io_pets_write.refined_frames(loaded, problem, result)
    io_pets_write.write(tmp_path / "refined.cif_pets", frames)
    after = io_pets.load([tmp_path / "refined.cif_pets"]).parts[0]
    before = loaded.parts[0]
    turns = rotation_matrices(result.orientation.numpy())
    expected = np.concatenate([turns @ before.setting[:4], before.setting[4:]])
    assert np.allclose(after.setting, expected, rtol=0, atol=3e-7)
    assert np.abs(after.setting - before.setting).max() > 1e-5
    for name in ("half_width", "frame", "hkl", "intensity", "sigma", "axis", "mosaicity"):
        assert np.allclose(getattr(after, name), getattr(before, name)), name
    assert after.details.split() == before.details.split() and after.cell == before.cell


def test_frames_that_are_not_refined_come_back_as_they_were(pets_job, tmp_path):
    """The tilts are told from one crystal orientation, as PETS2 does."""
    loaded, problem = pets_job
    still = synthetic.make_result(problem, orientation=torch.zeros(4, 3, dtype=torch.float64))
    (frames,) = io_pets_write.refined_frames(loaded, problem, still)
    io_pets_write.write(tmp_path / "same.cif_pets", frames)
    again = io_pets.load([tmp_path / "same.cif_pets"]).parts[0]
    assert np.allclose(again.alpha, loaded.parts[0].alpha, rtol=0, atol=1e-4)
    assert np.allclose(again.setting, loaded.parts[0].setting, rtol=0, atol=3e-7)


@pytest.mark.parametrize("name", ["albite_jana/pets2_albite", "quartz_pets/quartz"])
def test_real_frames_are_written_as_pets_wrote_them(data_folder, tmp_path, name):
    path = data_folder / f"{name}.cif_pets"
    if not path.is_file():
        pytest.skip(f"no {path}")
    part = io_pets.load([path]).parts[0]
    io_pets_write.write(tmp_path / "again.cif_pets", part)
    again = io_pets.load([tmp_path / "again.cif_pets"]).parts[0]
    assert np.allclose(again.setting, part.setting, rtol=0, atol=1e-6)
    assert np.allclose(again.alpha, part.alpha, rtol=0, atol=0.01)
    zones = iotbx.cif.reader(file_path=str(tmp_path / "again.cif_pets")).model()["pets"]
    u = np.array([float(x) for x in zones["_diffrn_zone_axis_u"]])
    text = path.read_text().split("_diffrn_zone_axis_scale")[1].split("loop_")[0]
    theirs = np.array(
        [float(line.split()[1]) for line in text.strip().splitlines() if line[:1] != "#"]
    )
    # the UB of the quartz file has another metric than its cell
    assert np.abs(u - theirs).max() < (0.01 if "quartz" in name else 3e-4)


# --- the files ------------------------------------------------------------------------------


def outcome(loaded, problem):
    """Return an outcome that was not refined."""
    made = job.Job(problem, synthetic.quartz_structure(), loaded, job.Options())
    result = synthetic.make_result(problem)
    return api.Outcome(made, result, made.xray_structure, {}, None)


def test_every_sweep_has_a_file(tmp_path):
    experiments = ExperimentList([experiment(), experiment(width=1.5)])
    reflections = synthetic.make_reflections(experiments, d_min=1.2)
    loaded = io_dials.Loaded(experiments, reflections, ("a.expt",), ("a.refl",))
    problem = synthetic.make_problem(loaded, block_width=2.0)
    name = tmp_path / "out.cif_pets"
    api.write(outcome(loaded, problem), api.Outputs(pets=str(name)), Cutting(1.0, 3.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out_1.cif_pets", "out_2.cif_pets"]
    again = io_pets.load(sorted(tmp_path.iterdir()))
    assert [len(p.hkl) for p in again.parts] == [
        len(s.kept) for s in io_pets_write.cut(problem, Cutting(1.0, 3.0))
    ]


def test_inputs_are_not_overwritten(pets_job):
    loaded, problem = pets_job
    made = outcome(loaded, problem).job
    with pytest.raises(InputError, match=r"given\.cif_pets is an input; give another name"):
        api.pets_files(made, loaded.files[0])
    gone = dataclasses.replace(made, loaded=None)
    assert api.pets_files(gone, "out.cif_pets") == []
