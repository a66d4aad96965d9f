"""PETS2 files: what is read, the geometry of the frames, the selection, bad input."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import commands
import iotbx.cif
import pets
import synthetic
import tiny

from dials_hybrid import (
    beams,
    io_cif_measurement,
    io_pets,
    io_pets_frames,
    job,
    validation,
)
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_geometry import Sampling
from dials_hybrid.io_reflections import Selection, format_table
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import DepthGrid
from dials_hybrid.records import InputError

WHOLE = 1000.0  # degree, wider than any frame
ALL = Selection(rsg_max=None, dsg_min=None, rocking_curve="frame")
REAL = {
    "albite": "albite_jana/pets2_albite.cif_pets",
    "CsPbBr3": "cspbbr3_pets/CsPbBr_P67-crot-050_dyn.cif_pets",
    "paracetamol": "paracetamol_pets/APAP_dyn_reference.cif_pets",
    "quartz": "quartz_pets/quartz.cif_pets",
    "written by DIALS": "quartz_dials/dials_dyn.cif_pets",
}


@pytest.fixture(scope="module")
def quartz_file():
    return pets.PetsFile().with_rows_in_frames(tiny.quartz(), 1.0)


def read(path, selection=ALL, step=0.1):
    """Return scan and observations of a file."""
    loaded = io_pets.load([path])
    rows, _ = loaded.select(selection)
    return loaded.observed(rows, Sampling(WHOLE, step), selection)


def real_file(data_folder, name):
    path = data_folder / REAL[name]
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


# --- what is read ---------------------------------------------------------------------------


def test_rows_and_frames_come_back(quartz_file, tmp_path):
    scan, o = read(quartz_file.write(tmp_path / "q.cif_pets"))
    assert o.hkl.tolist() == [list(r[:3]) for r in quartz_file.rows]
    assert (o.link_block + 1).tolist() == [r[5] for r in quartz_file.rows]
    assert set(o.intensity.tolist()) == {100.0} and set(o.sigma.tolist()) == {5.0}
    assert (o.link_first == 0).all() and (o.link_last == scan.angle.shape[1] - 1).all()
    assert o.angle.tolist() == pytest.approx(
        np.radians([quartz_file.alpha[r[5] - 1] for r in quartz_file.rows])
    )
    assert scan.block_angle.tolist() == pytest.approx(np.radians(quartz_file.alpha))
    assert scan.wavelength == pytest.approx(0.0251)


def test_a_refined_cif_says_how_the_crystal_was_turned(quartz_file, tmp_path):
    """Where the file states it; the mosaicity where it has one."""
    path = dataclasses.replace(quartz_file, mosaicity=0.2).write(tmp_path / "q.cif_pets")
    cif = tmp_path / "quartz.cif"
    cif.write_text(synthetic.QUARTZ_CIF)
    choices = job.Options(selection=ALL, test_settings=False)

    def items(data):
        found = job.load([data], cif, choices)
        return io_cif_measurement.measurement_items(found.xray_structure, found.problem)

    found = items(path)
    assert found["_diffrn_measurement.rotation_mode"] == "rotation"
    assert found["_diffrn_measurement.method_precession"] == "no"
    assert found["_diffrn_measurement_method"].startswith("continuous-rotation")
    expected = "Virtual frames of a rotation, 5 of 2.00 degree from -5.00 to 3.00."
    assert found["_diffrn_measurement_details"] == expected
    assert found["_exptl_crystal.mosaicity"] == "0.200"
    assert found["_computing_data_reduction"] is None and "_diffrn_detector" not in found
    silent = tmp_path / "silent.cif_pets"
    text = quartz_file.write(tmp_path / "s.cif_pets").read_bytes()
    silent.write_bytes(text.replace(b"data collection geometry: continuous rotation\n", b""))
    found = items(silent)
    assert not {name for name in found if name.startswith("_diffrn_measurement")}
    assert "_exptl_crystal.mosaicity" not in found


def test_simulated_intensities_come_back_through_a_file(quartz_file, tmp_path):
    """A problem is simulated, written, read: the model meets the intensities."""

    def model(name, file):
        scan, observations = read(file.write(tmp_path / name))
        problem = tiny.problem().replace(scan=scan, observations=observations)
        return HybridModel(problem, tiny.settings(thickness="single"))

    with torch.no_grad():
        first = model("a.cif_pets", quartz_file)
        raw = 1e7 * first.intensities(first.profiles())
        file = quartz_file.with_intensities(raw.tolist(), (0.01 * raw + 1).tolist())
        again = model("b.cif_pets", file)
        calculated = 1e7 * again.intensities(again.profiles())
    measured = again.problem.observations
    assert torch.allclose(calculated, measured.intensity, rtol=1e-6, atol=1e-3)
    assert measured.sigma.tolist() == pytest.approx((0.01 * raw + 1).tolist(), abs=1e-3)


def test_numbers_may_have_uncertainties_and_lines_end_as_on_windows(quartz_file, tmp_path):
    text = quartz_file.text().replace("_cell_length_a 4.91600", "_cell_length_a 4.91600(3)")
    path = tmp_path / "windows.cif_pets"
    path.write_bytes(text.replace("\n", "\r\n").encode("latin-1"))
    part = io_pets.load([path]).parts[0]
    assert part.cell == pets.CELL and len(part.hkl) == len(quartz_file.rows)


def test_frames_without_rows_are_no_blocks(quartz_file, tmp_path):
    kept = tuple(row for row in quartz_file.rows if row[5] != 2)
    scan, o = read(dataclasses.replace(quartz_file, rows=kept).write(tmp_path / "q.cif_pets"))
    alpha = [quartz_file.alpha[i] for i in (0, 2, 3, 4)]
    assert scan.block_angle.tolist() == pytest.approx(np.radians(alpha))
    assert set(o.link_block.tolist()) == {0, 1, 2, 3}


def test_two_files_are_two_sweeps_with_the_same_number_of_samples(quartz_file, tmp_path):
    wide = dataclasses.replace(quartz_file, half_width=1.5, cell=(4.92, 4.92, 5.41, 90, 90, 120))
    names = [f.write(tmp_path / n) for f, n in ((quartz_file, "a.cif_pets"), (wide, "b.cif_pets"))]
    loaded = io_pets.load(names)
    rows, table = loaded.select(ALL)
    scan, o = loaded.observed(rows, Sampling(WHOLE, 0.1), ALL)
    n, frames = len(quartz_file.rows), len(quartz_file.alpha)
    assert scan.sweep.tolist() == [0] * frames + [1] * frames
    assert o.sweep.tolist() == [0] * n + [1] * n and o.row.tolist() == list(range(2 * n))
    assert scan.sample_width.sum(1).tolist() == pytest.approx(
        [math.radians(2)] * frames + [math.radians(3)] * frames
    )
    moved = loaded.reconcile(synthetic.quartz_structure(), "a.cif")
    assert moved.unit_cell().parameters()[:3] == pytest.approx((4.918, 4.918, 5.4077))
    assert table[0] == ("read", 0, 2 * n)


# --- geometry -------------------------------------------------------------------------------


def test_the_middle_of_a_frame_is_rz_rx_ry_ub(quartz_file, tmp_path):
    scan, _ = read(quartz_file.write(tmp_path / "q.cif_pets"), step=2.0)  # one sample, the middle
    for zone in range(len(quartz_file.alpha)):
        expected = quartz_file.zone_setting(zone)
        assert torch.allclose(scan.setting[zone, 0], expected, rtol=0, atol=1e-8)


def test_samples_turn_about_the_rocking_axis_over_the_width_of_the_frame(quartz_file, tmp_path):
    scan, _ = read(quartz_file.write(tmp_path / "q.cif_pets"), step=0.25)
    assert scan.angle.shape == (5, 8)
    position = math.radians(quartz_file.position)
    axis = torch.tensor([math.cos(position), math.sin(position), 0], dtype=torch.float64)
    assert torch.allclose(scan.axis, axis.expand(5, 3))
    offset = torch.linspace(-0.875, 0.875, 8, dtype=torch.float64) * math.pi / 180
    for zone in range(5):
        rock = beams.rotation_matrices(offset[:, None] * axis)
        expected = rock @ quartz_file.zone_setting(zone)
        assert torch.allclose(scan.setting[zone], expected, rtol=0, atol=1e-8)
    assert scan.sample_width.sum(1).tolist() == pytest.approx([math.radians(2)] * 5)
    assert torch.allclose(scan.s0[0], torch.tensor([0, 0, -1 / 0.0251], dtype=torch.float64))
    assert torch.equal(scan.normal[0], torch.tensor([0, 0, -1], dtype=torch.float64))


def test_overlapping_frames_meet_in_the_same_orientations(tmp_path):
    """A crystal that only turns about the axis: frames of 2 degrees, 1.5 degrees apart."""
    file = pets.PetsFile(beta=0.0).with_rows_in_frames(tiny.quartz(), 0.8)
    scan, _ = read(file.write(tmp_path / "q.cif_pets"), step=0.25)
    # 1.5 degrees are six samples: two are shared
    assert torch.allclose(scan.setting[1, :2], scan.setting[0, 6:], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", REAL)
def test_zone_axes_of_real_files_point_along_z(data_folder, name):
    path = real_file(data_folder, name)
    loaded = io_pets.load([path])
    head = path.read_text().split("loop_\n_refln")[0]
    block = iotbx.cif.reader(input_string=head).model()["pets"]
    zone = np.array([[float(x) for x in block[f"_diffrn_zone_axis_{c}"]] for c in "uvw"]).T
    axes = np.linalg.inv(loaded.parts[0].setting).transpose(0, 2, 1)
    along = np.einsum("fij,fj->fi", axes, zone)
    cosine = along[:, 2] / np.linalg.norm(along, axis=1)
    # the UB of the quartz file has another metric than its cell, by 1 %
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < (0.15 if name == "quartz" else 0.02)


def test_the_window_is_blurred_by_mosaic_blocks(quartz_file, tmp_path):
    """Against the mean over many blocks, each seen through the sharp window."""
    file = dataclasses.replace(quartz_file, mosaicity=0.2)
    scan, _ = read(file.write(tmp_path / "q.cif_pets"), step=0.02)
    turned = scan.setting[0] @ torch.linalg.inv(scan.setting[0, 0])
    cosine = ((turned.diagonal(0, -2, -1).sum(-1) - 1) / 2).clamp(-1, 1)
    offset = torch.rad2deg(torch.arccos(cosine))
    offset = offset - offset.max() / 2
    assert float(offset.max()) == pytest.approx(1.6, abs=0.02)
    quantile = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    block = 0.2 * torch.special.ndtri(quantile)
    share = ((offset[:, None] + block).abs() < 1).double().mean(1)
    step = math.radians(float(offset[-1] - offset[-2]))
    assert torch.allclose(scan.sample_width[0] / step, share, rtol=0, atol=2e-3)
    assert float(scan.sample_width[0].sum()) == pytest.approx(math.radians(2), rel=1e-3)


def test_a_stretched_ub_takes_the_metric_of_the_cell(quartz_file, tmp_path, warnings_logged):
    file = dataclasses.replace(quartz_file, ub_scale=1.012)
    scan, _ = read(file.write(tmp_path / "q.cif_pets"), step=2.0)
    assert torch.allclose(scan.setting[2, 0], quartz_file.zone_setting(2), rtol=0, atol=1e-8)
    assert any("stretched by 1.2 %" in w for w in warnings_logged())


@pytest.mark.parametrize("stated", ["rotation axis position:   222.000\n", ""])
def test_omega_tells_the_axis_where_the_text_does_not(
    quartz_file, tmp_path, warnings_logged, stated
):
    text = quartz_file.text().replace("rotation axis position:   22.000\n", stated)
    path = tmp_path / "q.cif_pets"
    path.write_text(text, encoding="latin-1")
    axis = io_pets.load([path]).parts[0].axis
    assert math.degrees(math.atan2(axis[1], axis[0])) == pytest.approx(22)
    assert bool(warnings_logged()) == bool(stated)


# --- selection ------------------------------------------------------------------------------

# cell axes along the laboratory's, the rocking axis along x: S = l / 8 - lambda g^2 / 2 and
# dS = |k| / 5 * 1 degree
BOX = (4.0, 5.0, 8.0, 90.0, 90.0, 90.0)
ROWS = {  # S and dS in 1/A
    (2, 4, 0): (-0.01117, 0.01396),  # R_Sg 0.80, D_Sg 0.0028
    (1, 4, 0): (-0.00882, 0.01396),  # 0.63
    (4, 4, 0): (-0.02058, 0.01396),  # beyond the frame
    (2, 0, 0): (-0.00314, 0.0),  # on the rocking axis
    (0, 1, 0): (-0.00050, 0.00349),  # 0.14, 0.0030
    (1, 1, 0): (-0.00129, 0.00349),  # 0.37, 0.0022
    (-2, 2, 0): (-0.00515, 0.00698),  # 0.74, 0.0018
    (0, 8, 0): (-0.03213, 0.02793),  # beyond the frame
}


def boxed(tmp_path, **changes):
    rows = tuple((*hkl, 100, 5, 1) for hkl in ROWS)
    choices = {"rows": rows, "alpha": (0.0,), "beta": 0.0, "omega": 0.0, "position": 0.0}
    plain = {"cell": BOX, "u": torch.eye(3, dtype=torch.float64)}
    file = pets.PetsFile(**{**choices, **plain, **changes})
    return io_pets.load([file.write(tmp_path / "box.cif_pets")])


def kept(loaded, **limits):
    rows, table = loaded.select(Selection(**limits))
    return {tuple(h) for h in loaded.parts[0].hkl[rows].tolist()}, table


def test_excitation_errors_by_hand(tmp_path):
    s, reach = io_pets_frames.excitation(boxed(tmp_path).parts[0])
    assert s.tolist() == pytest.approx([by_hand[0] for by_hand in ROWS.values()], abs=1e-5)
    assert reach.tolist() == pytest.approx([by_hand[1] for by_hand in ROWS.values()], abs=1e-5)


def test_tilting_brings_one_side_nearer_to_the_sphere(tmp_path):
    """S = g_z - lambda g^2 / 2, the beam along -z: alpha lifts what lies along y."""
    rows = ((0, 4, 0, 100, 5, 1), (0, -4, 0, 100, 5, 1))
    s, reach = io_pets_frames.excitation(boxed(tmp_path, rows=rows, alpha=(1.0,)).parts[0])
    assert s.tolist() == pytest.approx([0.01396 - 0.00803, -0.01396 - 0.00803], abs=1e-5)
    assert reach.tolist() == pytest.approx([0.01396] * 2, abs=1e-5)


def test_rows_are_selected_by_their_excitation_error(tmp_path):
    loaded = boxed(tmp_path)
    inside = {(2, 4, 0), (1, 4, 0), (0, 1, 0), (1, 1, 0), (-2, 2, 0)}
    assert kept(loaded)[0] == inside
    assert kept(loaded, rsg_max=0.66)[0] == {(1, 4, 0), (0, 1, 0), (1, 1, 0)}
    assert kept(loaded, dsg_min=0.002)[0] == inside - {(-2, 2, 0)}
    assert kept(loaded, rsg_max=None, dsg_min=None)[0] == set(ROWS)
    assert kept(loaded, d_min=1.15)[0] == inside - {(2, 4, 0)}
    found, table = kept(loaded, d_min=1.15)
    assert table[0] == ("read", 0, 8) and table[-1][2] == len(found)
    assert "R_Sg < 0.9" in format_table(table) and "D_Sg > 0.0015 1/A" in format_table(table)


def test_rows_without_a_number_or_sigma_are_left_out(tmp_path, warnings_logged):
    values = [("nan", 5), (100, 0), (100, -3), ("inf", 5), (100, "nan"), (100, 5), (-7, 5), (1, 5)]
    rows = tuple((*hkl, *v, 1) for hkl, v in zip(ROWS, values, strict=True))
    loaded = boxed(tmp_path, rows=rows)
    assert loaded.select(ALL)[0].tolist() == [5, 6, 7]
    assert any(w.startswith("5 reflections") for w in warnings_logged())


def test_nothing_left_is_explained(tmp_path, quartz_file):
    with pytest.raises(InputError, match="no reflection is left after the selection .*R_Sg < 0.01"):
        boxed(tmp_path).select(Selection(rsg_max=0.01))
    first = quartz_file.write(tmp_path / "a.cif_pets")
    near = [row for row in quartz_file.rows if row[:3] == quartz_file.rows[0][:3]]
    weak = dataclasses.replace(quartz_file, rows=tuple((*r[:3], 1, 5, r[5]) for r in near))
    second = weak.write(tmp_path / "b.cif_pets")
    with pytest.raises(InputError, match=r"b\.cif_pets: no row is left"):
        io_pets.load([first, second]).select(Selection(i_over_sigma=3))


def test_the_rows_that_jana_refined_are_selected(data_folder):
    """Jana's tilts were refined, so that some rows near the limits differ."""
    path = real_file(data_folder, "albite")
    block = iotbx.cif.reader(file_path=str(path.with_name("jana2006_albite.cif"))).model()[
        "albite_dynamical"
    ]
    columns = [block[f"_refln_index_{x}"] for x in "hkl"]
    zones = [code.split("%") for code in block["_refln_scale_group_code"]]
    theirs = {
        (*map(int, hkl), int(zone))
        for *hkl, (zone, crystal) in zip(*columns, zones, strict=True)
        if crystal == "5"
    }
    part = (loaded := io_pets.load([path])).parts[0]
    rows, _ = loaded.select(Selection(rocking_curve="frame"))
    ours = {(*h, f + 1) for h, f in zip(part.hkl[rows].tolist(), part.frame[rows], strict=True)}
    assert len(theirs) == 2916
    assert len(theirs & ours) > 0.96 * len(theirs)


# --- intensities of whole rocking curves ------------------------------------------------------


@pytest.fixture(scope="module")
def passing_file():
    """Frames half a width apart: all but the last reflections pass two or three of them."""
    alpha = tuple(0.5 * i for i in range(8))
    made = pets.PetsFile(alpha=alpha, omega=0.0, position=0.0)
    made = made.with_rows_in_frames(tiny.quartz(), 1.0)
    number = {hkl: 10 + i for i, hkl in enumerate(sorted({r[:3] for r in made.rows}))}
    return made.with_intensities([number[r[:3]] for r in made.rows], [1.0] * len(made.rows))


@pytest.mark.parametrize("name", REAL)
def test_real_files_tell_what_their_intensities_hold(data_folder, name):
    part = io_pets.load([real_file(data_folder, name)]).parts[0]
    assert io_pets_frames.has_whole_curves(part) == (name != "paracetamol")


def test_equal_numbers_in_neighbouring_frames_are_one_observation(passing_file, tmp_path):
    loaded = io_pets.load([passing_file.write(tmp_path / "q.cif_pets")])
    (part,) = loaded.parts
    selection = Selection(rsg_max=None, dsg_min=None)
    rows, table = loaded.select(selection)
    assert len({tuple(h) for h in part.hkl[rows].tolist()}) == len(rows) < len(part.hkl) / 2
    assert table[-1][0] == "nearest to the middle of a frame"
    s, reach = io_pets_frames.excitation(part)
    off = np.abs(s) / reach
    for row in rows:
        same = (part.hkl == part.hkl[row]).all(1)
        assert off[row] == off[same].min()


def test_a_whole_curve_is_seen_beyond_the_ends_of_its_frame(passing_file, tmp_path):
    path = dataclasses.replace(passing_file, mosaicity=0.2).write(tmp_path / "q.cif_pets")
    scan, o = read(path, Selection(rsg_max=None, dsg_min=None))
    width = np.degrees(scan.sample_width.sum(1))
    assert width.tolist() == pytest.approx([2 * (1 + io_pets_frames.TAILS)] * len(width))
    assert scan.sample_width.std() == pytest.approx(0, abs=1e-12)  # mosaic blocks blur nothing
    assert (o.link_first == 0).all() and (o.link_last == scan.angle.shape[1] - 1).all()


@pytest.mark.parametrize("change", ["numbers", "sigmas", "few"])
def test_other_rows_belong_to_their_frame(passing_file, tmp_path, change):
    rows = passing_file.rows
    if change == "few":
        made = dataclasses.replace(passing_file, rows=rows[:12])
    else:
        values = [float(r[3]) + (change == "numbers") * i / 50 for i, r in enumerate(rows)]
        sigmas = [1 + (change == "sigmas") * i / 1000 for i in range(len(rows))]
        made = passing_file.with_intensities(values, sigmas)
    part = io_pets.load([made.write(tmp_path / "q.cif_pets")]).parts[0]
    assert not io_pets_frames.has_whole_curves(part)
    assert io_pets_frames.has_whole_curves(part, "whole")


def test_the_user_knows_better(passing_file, tmp_path):
    loaded = io_pets.load([passing_file.write(tmp_path / "q.cif_pets")])
    assert len(loaded.select(ALL)[0]) == len(passing_file.rows)


# --- the physics of real frames -------------------------------------------------------------


def test_real_quartz_is_dynamical_and_of_its_hand(data_folder):
    """One thickness, nothing refined, on some of the frames."""
    path = real_file(data_folder, "quartz")
    loaded = job.load([path], path.with_name("enantiomer_1.cif"))
    part = validation.part_of(loaded.problem, 40)
    settings = ModelSettings(g_max=1.6, s_max=0.01, depth=DepthGrid(40.0, 26))
    right, thickness = validation.quick_r1(part, settings)
    mirror = loaded.xray_structure.change_hand()
    wrong, _ = validation.quick_r1(part.replace(structure=to_structure(mirror)), settings)
    assert right < 0.11 and 400 < thickness < 1040
    assert wrong > right + 0.004


# --- bad input ------------------------------------------------------------------------------


refused = functools.partial(commands.refused, io_pets.load)


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("_diffrn_zone_axis_", "_diffrn_axis_", "no loop of zone axes"),
        ("_refln_", "_other_", "no loop of reflections"),
        ("_diffrn_zone_axis_alpha", "_diffrn_zone_axis_tilt", "no _diffrn_zone_axis_alpha"),
        ("_diffrn_orient_matrix_UB_23", "_diffrn_UB_23", "no _diffrn_orient_matrix_UB_23"),
        ("_cell_length_b", "_cell_b", "no _cell_length_b"),
        ("wavelength 0.0251", "wavelength 0.71", "wavelength 0.71 A"),
        ("wavelength 0.0251", "wavelength nan", "NaN or infinite"),
        ("wavelength 0.0251", "wavelength short", "not a number"),
        ("_cell_length_a 4.916", "_cell_length_a 6.916", "does not belong to the cell"),
        ("_cell_angle_gamma 120", "_cell_angle_gamma 200", "cell"),
        ("continuous rotation", "static", "static, which cannot be refined"),
        (" 1.0 0.5 ", " 0.0 0.5 ", "frames without width"),
        (" 1.0 0.5 ", " 1.0 nan ", "alpha holds NaN"),
        ("\n5 ", "\n4 ", "same id"),
        (" 5.0 5\n", " 5.0 17\n", "zone axis 17, which is not in the file"),
        (" 100.0 5.0 1\n", " many 5.0 1\n", "intensity_meas holds what is not a number"),
        ("data_pets", "", "cannot be read as CIF"),
    ],
)
def test_files_that_cannot_be_used(quartz_file, tmp_path, before, after, found):
    text = quartz_file.text()
    assert before in text
    path = tmp_path / "bad.cif_pets"
    path.write_text(text.replace(before, after), encoding="latin-1")
    message = refused([path])
    assert message.startswith(f"{path}: ") and found in message
    assert "; " in message, "says what to do"


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x1f binary", b"data_pets\n", b"loop_\n_a\n"])
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / "bad.cif_pets"
    path.write_bytes(content)
    assert refused([path]).startswith(f"{path}: ")


def test_half_a_file(quartz_file, tmp_path):
    path = tmp_path / "half.cif_pets"
    path.write_bytes(quartz_file.text().encode("latin-1")[: len(quartz_file.text()) - 8])
    assert refused([path]).startswith(f"{path}: cannot be read as CIF")


def test_missing_and_repeated_files(quartz_file, tmp_path):
    path = quartz_file.write(tmp_path / "q.cif_pets")
    assert f"{tmp_path / 'absent.cif_pets'}: no such file" in refused(
        [tmp_path / "absent.cif_pets"]
    )
    assert "given twice" in refused([path, path])


@pytest.mark.parametrize(
    ("change", "found"),
    [({"wavelength": 0.0335}, "wavelength"), ({"cell": (5.5, 5.5, 5.4, 90, 90, 120)}, "cell")],
)
def test_files_of_different_crystals(quartz_file, tmp_path, change, found):
    first = quartz_file.write(tmp_path / "a.cif_pets")
    second = dataclasses.replace(quartz_file, **change).write(tmp_path / "b.cif_pets")
    message = refused([first, second])
    assert message.startswith(f"{second}: {found}") and str(first) in message


def test_a_model_of_another_cell(quartz_file, tmp_path):
    other = dataclasses.replace(quartz_file, cell=(4.916, 5.4054, 4.916, 90, 120, 90))
    loaded = io_pets.load([other.write(tmp_path / "q.cif_pets")])
    with pytest.raises(InputError, match="differ too much; give the model in the axes"):
        loaded.reconcile(synthetic.quartz_structure(), "model.cif")


def test_files_of_pets_and_dials_do_not_mix(quartz_file, tmp_path):
    path = quartz_file.write(tmp_path / "q.cif_pets")
    with pytest.raises(InputError, match=r"q\.cif_pets is of PETS2 and .*a\.expt is not; give"):
        job.read([path, tmp_path / "a.expt"])
