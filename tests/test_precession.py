"""Frames of PETS2 in which the beam precesses: their samples, and files that call it rotation."""

import dataclasses
import logging

import numpy as np
import pets
import pytest
import synthetic
import tiny
import torch

from dials_hybrid import beams, io_cif_measurement, io_pets, io_pets_write, job
from dials_hybrid.data import Problem
from dials_hybrid.fidelity import thinned
from dials_hybrid.io_geometry import Sampling
from dials_hybrid.io_pets_frames import PRECESSION, excitation
from dials_hybrid.io_reflections import Selection

OPENING = 1.4  # degree
WHOLE = 1000.0  # degree, wider than any frame
ALL = Selection(rsg_max=None, dsg_min=None)
FRAMES = pets.PetsFile(
    half_width=OPENING, geometry=PRECESSION, merged=1, alpha=(-4.0, -2.5, -1.0, 0.5)
)


def with_rows(file, tmp_path, reach=2.0):
    """Return the file with all reflections of |S| up to a multiple of the cone's reach.

    Those that the beam on the cone excites have 100, all others 1.
    """
    hkl = beams.lattice_points(tiny.quartz(), 1.7).tolist()
    rows = tuple((*h, 1.0, 5.0, z + 1) for z in range(len(file.alpha)) for h in hkl)
    whole = dataclasses.replace(file, geometry=PRECESSION, rows=rows)
    part = io_pets.load([whole.write(tmp_path / "all.cif_pets")]).parts[0]
    s, rim = excitation(part)
    kept = [
        (*row[:3], 100.0 if abs(e) < r else 1.0, *row[4:])
        for row, e, r in zip(rows, s, rim, strict=True)
        if abs(e) < reach * r and r > 0
    ]
    return dataclasses.replace(file, rows=tuple(kept))


def observed(loaded, selection=ALL, step=0.05):
    rows, _ = loaded.select(selection)
    return loaded.observed(rows, Sampling(WHOLE, step), selection)


@pytest.fixture
def precessed(tmp_path):
    return io_pets.load([with_rows(FRAMES, tmp_path).write(tmp_path / "p.cif_pets")])


def test_the_beam_goes_once_round_the_cone(precessed):
    """Of the crystal as it stands and a beam on the cone, the excitation errors are the same."""
    scan, o = observed(precessed)
    samples = scan.angle.shape[1]
    assert samples == pytest.approx(2 * np.pi * OPENING / 0.05, abs=3)
    k = 1 / scan.wavelength
    opening, azimuth = np.radians(OPENING), 2 * np.pi * (np.arange(samples) + 0.5) / samples
    tilted = np.stack(
        [np.cos(azimuth) * np.sin(opening), np.sin(azimuth) * np.sin(opening)]
        + [np.full(samples, -np.cos(opening))],
        1,
    )
    part = precessed.parts[0]
    frame = part.setting[1]
    here = o.link_block == 1
    for hkl in o.hkl[here][::40].numpy():
        by_beam = (k**2 - ((k * tilted + frame @ hkl) ** 2).sum(1)) / (2 * k)
        turned = (scan.setting[1].numpy() @ hkl) + scan.s0[1].numpy()
        by_crystal = (k**2 - (turned**2).sum(1)) / (2 * k)
        # the first sample of either is anywhere on the circle
        assert by_crystal.max() == pytest.approx(by_beam.max(), abs=2e-5)
        assert by_crystal.min() == pytest.approx(by_beam.min(), abs=2e-5)
        assert by_crystal.mean() == pytest.approx(by_beam.mean(), abs=1e-9)
        assert by_crystal.std() == pytest.approx(by_beam.std(), abs=1e-9)


def test_the_reach_is_how_far_the_samples_go_in_every_direction(precessed):
    scan, o = observed(precessed)
    s, rim = excitation(precessed.parts[0])
    g = torch.einsum("ltij,lj->lti", scan.setting[o.link_block], o.hkl.double())
    along_beam = scan.s0[o.link_block][:, None]
    k = 1 / scan.wavelength
    errors = ((k**2 - (g + along_beam).square().sum(-1)) / (2 * k)).numpy()
    np.testing.assert_allclose(np.abs(errors - s[:, None]).max(1), rim, rtol=0.03, atol=3e-5)
    np.testing.assert_allclose(
        scan.sample_width.sum(1), 2 * np.pi * np.radians(OPENING), rtol=1e-12
    )
    assert scan.block_angle.tolist() == pytest.approx(np.radians(FRAMES.alpha))


def test_the_weights_give_the_lorentz_factor_of_precession(precessed):
    """Narrow rocking curves count 1 / sqrt(1 - (S / dS)^2), more towards the rim of the cone."""
    scan, o = observed(precessed, step=0.002)
    s, rim = excitation(precessed.parts[0])
    g = torch.einsum("ltij,lj->lti", scan.setting[o.link_block], o.hkl.double())
    k = 1 / scan.wavelength
    errors = (k**2 - (g + scan.s0[o.link_block][:, None]).square().sum(-1)) / (2 * k)
    thickness = 8000.0  # A
    curve = torch.sinc(errors * thickness).square()
    exposure = (curve * scan.sample_width[o.link_block]).sum(1).numpy()
    ratio = np.abs(s) / rim
    # the path crosses twice, and the area of the curve over S is 1 / thickness
    expected = 2 / thickness * np.radians(OPENING) / (rim * np.sqrt(np.clip(1 - ratio**2, 1e-9, 1)))
    inside = (ratio < 0.8) & (rim > 0.01)
    assert inside.sum() > 100
    np.testing.assert_allclose(exposure[inside], expected[inside], rtol=0.1)


def test_mosaic_blocks_widen_the_rim(precessed, tmp_path):
    """Cones have the mean and the spread of those of all blocks, and equal shares of the time."""
    file = with_rows(dataclasses.replace(FRAMES, mosaicity=0.2), tmp_path)
    loaded = io_pets.load([file.write(tmp_path / "m.cif_pets")])
    scan, _ = observed(loaded)
    sharp, _ = observed(precessed)
    beam = torch.tensor([0.0, 0.0, 1.0]).double()
    middle = torch.from_numpy(loaded.parts[0].setting)
    turn = scan.setting @ torch.linalg.inv(middle)[:, None]
    opening = torch.rad2deg(torch.acos((turn @ beam)[..., 2]))
    assert opening.mean(1).tolist() == pytest.approx([OPENING] * 4, abs=1e-3)
    assert opening.std(1, unbiased=False).tolist() == pytest.approx([0.2] * 4, rel=0.02)
    torch.testing.assert_close(scan.sample_width, sharp.sample_width)


@pytest.mark.parametrize("mosaicity", [0.0, 0.2])
def test_samples_count_for_their_part_of_the_excitation_errors(tmp_path, mosaicity):
    """Rocking curves of a coarse cone are those of a fine one, nearer than with equal weights."""
    file = with_rows(dataclasses.replace(FRAMES, mosaicity=mosaicity), tmp_path, reach=1.2)
    loaded = io_pets.load([file.write(tmp_path / "m.cif_pets")])

    def exposures(step):
        scan, o = observed(loaded, step=step)
        g = torch.einsum("ltij,lj->lti", scan.setting[o.link_block], o.hkl.double())
        k = 1 / scan.wavelength
        errors = (k**2 - (g + scan.s0[o.link_block][:, None]).square().sum(-1)) / (2 * k)
        curve = 1 / (1 + (errors * 400.0).square())
        whole = 2 * np.pi * np.radians(OPENING)
        np.testing.assert_allclose(o.link_weight.sum(1), whole, rtol=1e-9)
        weights = o.link_weight, scan.sample_width[o.link_block]
        return [(curve * w).sum(1).numpy() for w in weights]

    _, truth = exposures(0.001)
    weighted, equal = (np.abs(x - truth).sum() / truth.sum() for x in exposures(0.06))
    assert weighted < 0.006
    assert weighted < 0.3 * equal or equal < 1e-3


@pytest.mark.parametrize(
    ("changes", "reach", "precession"),
    [
        ({"geometry": PRECESSION}, 2.0, True),
        ({}, 2.0, True),
        ({}, 0.6, True),  # no row beyond the cone: what is said of the frames alone tells
        ({"merged": 3}, 2.0, False),  # merged frames may overlap
        ({"merged": None}, 2.0, False),
        ({"half_width": 0.75}, 2.0, False),  # single frames that do not overlap
    ],
)
def test_rotation_that_cannot_be_one_is_precession(tmp_path, caplog, changes, reach, precession):
    stated = {"geometry": "continuous rotation", **changes}
    file = with_rows(dataclasses.replace(FRAMES, **stated), tmp_path, reach)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        part = io_pets.load([file.write(tmp_path / "p.cif_pets")]).parts[0]
    assert part.precession is precession
    assert (PRECESSION in part.details) is precession
    warned = "selection.geometry=rotation" in caplog.text
    assert warned is (precession and file.geometry != PRECESSION)


def test_reflections_beyond_the_cone_are_those_of_rotation(tmp_path):
    """Overlapping single frames that hold as much beyond the reach of precession as within."""
    file = with_rows(dataclasses.replace(FRAMES, geometry="continuous rotation"), tmp_path)
    everywhere = file.with_intensities([100.0] * len(file.rows), [5.0] * len(file.rows))
    assert not io_pets.load([everywhere.write(tmp_path / "p.cif_pets")]).parts[0].precession


def test_the_user_has_the_last_word(precessed, tmp_path):
    said = io_pets.load(precessed.files, "rotation")
    scan, _ = observed(said)
    assert scan.angle.shape[1] == pytest.approx(2 * OPENING / 0.05, abs=1)
    assert not said.parts[0].precession
    again = io_pets_write.text(said.parts[0])
    path = tmp_path / "rotation.cif_pets"
    path.write_text(again)
    assert io_pets.load([path], PRECESSION).parts[0].precession


def test_files_are_read_again_as_they_were_read(precessed, tmp_path):
    turned = io_pets.load(precessed.files, "rotation")
    both = io_pets.Loaded((*turned.parts, *precessed.parts))
    for loaded, geometry in ((turned, "rotation"), (precessed, PRECESSION), (both, "auto")):
        measurement = loaded.provenance(precessed.files[0])["measurement"]
        assert io_pets.geometry_taken(measurement) == geometry
    assert io_pets.geometry_taken({}) == "auto"


def test_refined_orientations_of_precession_are_written_as_such(precessed, tmp_path):
    cif = tmp_path / "quartz.cif"
    cif.write_text(synthetic.QUARTZ_CIF)
    choices = job.Options(selection=ALL, test_settings=False)
    found = job.load([precessed.files[0]], cif, choices)
    items = io_cif_measurement.measurement_items(found.xray_structure, found.problem)
    assert items["_diffrn_measurement.method_precession"] == "yes"
    assert items["_diffrn.precession_semi_angle"] == "1.400"
    assert "tilts from -4.00 to 0.50" in items["_diffrn_measurement_details"]
    assert "_diffrn_measurement.rotation_mode" not in items
    result = synthetic.make_result(found.problem)
    (again,) = io_pets_write.refined_frames(precessed, found.problem, result)
    assert again.precession and PRECESSION in again.details


def test_real_files_are_of_what_they_are(data_folder):
    """Paracetamol was measured with precession, whatever its file says; the others turned."""
    files = {
        "paracetamol_pets/APAP_dyn_reference.cif_pets": True,
        "quartz_pets/quartz.cif_pets": False,
        "albite_jana/pets2_albite.cif_pets": False,
        "cspbbr3_pets/CsPbBr_P67-crot-050_dyn.cif_pets": False,
        "quartz_dials/dials_dyn.cif_pets": False,
    }
    missing = [name for name in files if not (data_folder / name).is_file()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {data_folder}")
    found = {name: io_pets.load([data_folder / name]).parts[0].precession for name in files}
    assert found == files


def test_a_saved_problem_keeps_what_samples_count_for(precessed, tmp_path):
    scan, o = observed(precessed)
    Problem(tiny.quartz(), scan, o).save(tmp_path / "p.h5")
    again = Problem.load(tmp_path / "p.h5").observations
    assert torch.equal(again.link_weight, o.link_weight)
    without = Problem(tiny.quartz(), scan, o.replace(link_weight=None))
    without.save(tmp_path / "p.h5")
    assert Problem.load(tmp_path / "p.h5").observations.link_weight is None


def test_coarser_samples_count_for_all_that_they_stand_for(precessed):
    scan, o = observed(precessed)
    coarse = thinned(Problem(tiny.quartz(), scan, o), 2).observations
    torch.testing.assert_close(coarse.link_weight.sum(1), o.link_weight.sum(1))
