"""How frames of PETS2 are cut into blocks, rotation and precession alike."""

import numpy as np
import pets
import pytest
import synthetic
import tiny
import torch

from dials_hybrid import batches, beams, io_pets, io_pets_write, validation
from dials_hybrid.data import block_of
from dials_hybrid.io_geometry import Sampling, rotation_matrices
from dials_hybrid.io_pets_frames import CONTINUOUS, PRECESSION, Window, path_of, pieces_of
from dials_hybrid.io_reflections import Selection
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import DepthGrid

STEP = 0.05  # degree
ALL = Selection(rsg_max=None, dsg_min=None, rocking_curve="frame")
# frames of 2.3 degrees with the reach of their mosaic blocks, and a way of 6.3 degrees
KINDS = {
    CONTINUOUS: (2, {"mosaicity": 0.05}),
    PRECESSION: (6, {"mosaicity": 0.2}),
}


@pytest.fixture(params=KINDS)
def made(request, tmp_path):
    """The frames of a file, all its rows, and into how many blocks a frame is cut."""
    pieces, more = KINDS[request.param]
    file = pets.PetsFile(geometry=request.param, **more).with_rows_in_frames(tiny.quartz(), 0.9)
    loaded = io_pets.load([file.write(tmp_path / "data.cif_pets")])
    return loaded, loaded.select(ALL)[0], pieces


def problem_of(loaded, rows, width, step=STEP):
    scan, observations = loaded.observed(rows, Sampling(width, step), ALL)
    provenance = loaded.provenance(loaded.files[0])
    return tiny.problem().replace(scan=scan, observations=observations, provenance=provenance)


def test_blocks_are_consecutive_parts_of_their_frames(made):
    loaded, rows, pieces = made
    whole, cut = (problem_of(loaded, rows, width).scan for width in (100.0, 1.0))
    frames = len(loaded.parts[0].alpha)
    assert len(whole.angle) == frames and len(cut.angle) == frames * pieces
    path = cut.sample_width.view(frames, -1)
    torch.testing.assert_close(path.sum(1), whole.sample_width.sum(1), rtol=1e-3, atol=0)
    turns = cut.setting.view(frames, -1, 3, 3) @ torch.linalg.inv(cut.setting[::pieces, :1])
    steps = torch.arccos(((turns[:, 1:] @ turns[:, :-1].mT).diagonal(0, -2, -1).sum(-1) - 1) / 2)
    if not loaded.parts[0].precession:  # where cones alternate
        assert torch.rad2deg(steps).max() < 1.2 * STEP


def test_blocks_have_the_angle_of_their_frame(made):
    loaded, rows, pieces = made
    problem = problem_of(loaded, rows, 1.0)
    part, angle = loaded.parts[0], torch.rad2deg(problem.scan.angle).view(5, -1)
    assert float((angle - torch.from_numpy(part.alpha)[:, None]).abs().max()) < 1e-9
    block = block_of(problem.observations, problem.scan)
    assert torch.equal(problem.scan.frame[block], torch.from_numpy(part.frame[rows]))


def excitation(problem):
    """|S| of each link (L, T) in A^-1."""
    o, scan = problem.observations, problem.scan
    g = torch.einsum("ltij,lj->lti", scan.setting[o.link_block], o.hkl[o.link_observation].double())
    k = scan.s0.norm(dim=1)
    return beams.excitation_errors(g, scan.s0[o.link_block], k[o.link_block]).abs()


def test_rows_are_linked_where_they_come_near_to_the_sphere(made, monkeypatch):
    loaded, rows, pieces = made
    monkeypatch.setattr(io_pets, "TAIL", 0.004)
    near = problem_of(loaded, rows, 1.0)
    monkeypatch.setattr(io_pets, "TAIL", 10.0)
    every = problem_of(loaded, rows, 1.0)
    assert len(every.observations.link_block) == pieces * len(rows)
    o = every.observations
    least = excitation(every).amin(1)
    nearest = torch.full((len(rows),), 10.0).double()
    nearest = nearest.scatter_reduce(0, o.link_observation, least, "amin")
    wanted = (least < 0.0038) | (least <= nearest[o.link_observation])
    ends = o.link_observation[wanted].tolist(), o.link_block[wanted].tolist()
    places = set(zip(*ends, strict=True))
    found = near.observations
    linked = set(zip(found.link_observation.tolist(), found.link_block.tolist(), strict=True))
    assert places <= linked and len(linked) < len(o.link_block)
    assert float(excitation(near).amin(1).max()) < 0.0041


def test_cut_or_not_the_intensities_are_the_same(made, monkeypatch):
    """With the same beams in all blocks, and without the factors that each has in its middle."""
    loaded, rows, _ = made
    monkeypatch.setattr(io_pets, "TAIL", 10.0)
    monkeypatch.setattr(
        batches, "obliquity", lambda scan, blocks, hkl, k: torch.ones(hkl.shape[:2]).double()
    )
    settings = ModelSettings(
        g_max=0.9,
        s_max=1.0,
        left_out=None,
        depth=DepthGrid(40.0, 10),
        thickness="single",
        thickness_start=300.0,
        precision="double",
    )
    (part,) = loaded.parts
    rows = rows[part.frame[rows] == 1]
    window, found = Window.of(part, "auto"), []
    step = path_of(part, window) / (30 * pieces_of(part, window, 1.0))  # the same samples
    for width in (100.0, 1.0):
        model = HybridModel(problem_of(loaded, rows, width, step=step), settings)
        with torch.no_grad():
            found.append(model.intensities(model.value_profiles()))
    whole, cut = found
    assert float((cut - whole).abs().sum() / whole.sum()) < 3e-3


def test_files_of_both_kinds_go_together(tmp_path):
    parts = []
    for number, (kind, (_, more)) in enumerate(KINDS.items()):
        file = pets.PetsFile(geometry=kind, **more).with_rows_in_frames(tiny.quartz(), 0.8)
        parts.append(file.write(tmp_path / f"{number}.cif_pets"))
    loaded = io_pets.load(parts)
    rows, _ = loaded.select(ALL)
    # frames without rows are left out, wherever they stand
    rows = rows[~np.isin(np.concatenate([p.frame for p in loaded.parts])[rows], (0, 2))]
    problem = problem_of(loaded, rows, 1.0)
    scan, o = problem.scan, problem.observations
    assert torch.bincount(scan.sweep).tolist() == [3 * 2, 3 * 6]
    assert torch.equal(scan.sweep[o.link_block], o.sweep[o.link_observation])
    off = (scan.block_angle[o.link_block] - o.angle[o.link_observation]).abs()
    assert float(torch.rad2deg(off).max()) < 1e-9


def test_the_scan_knows_its_frames(made):
    loaded, rows, pieces = made
    problem = problem_of(loaded, rows, 1.0)
    scan = problem.scan
    assert scan.frame.tolist() == np.repeat(np.arange(5), pieces).tolist()
    assert scan.frame_start.tolist() == (pieces * np.arange(5)).tolist()
    several = tiny.problem(blocks=3).scan
    assert several.frame.tolist() == several.frame_start.tolist() == [0, 1, 2]
    part = validation.part_of(problem, 2)
    assert len(part.scan.angle) == 2 * pieces and len(part.observations.row) > 0


def test_a_frame_is_written_with_the_orientation_of_its_blocks(made):
    loaded, rows, pieces = made
    problem = problem_of(loaded, rows, 1.0)
    turned = 1e-3 * torch.arange(3 * 5, dtype=torch.float64).reshape(5, 3)[problem.scan.frame]
    (frames,) = io_pets_write.refined_frames(
        loaded, problem, synthetic.make_result(problem, orientation=turned)
    )
    turns = torch.from_numpy(frames.setting @ np.linalg.inv(loaded.parts[0].setting))
    expected = torch.from_numpy(rotation_matrices(turned[::pieces].numpy()))
    torch.testing.assert_close(turns, expected, rtol=0, atol=1e-9)
