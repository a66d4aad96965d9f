"""Riding hydrogen atoms at the end of a refinement: put back to their places and refined on."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("cctbx.xray", reason="cctbx is not installed")
pytest.importorskip("smtbx.refinement.constraints", reason="smtbx is not installed")

from test_io_hydrogens import RIDING, angles, around, made

from dials_hybrid.checkpoint import Checkpoint, State
from dials_hybrid.data import Problem
from dials_hybrid.freedom import Constraints, lengths, to_cartesian
from dials_hybrid.history import Progress
from dials_hybrid.ideal_hydrogens import KEY, NEAR, are_off, settled
from dials_hybrid.io_bonds import bonds_and_angles
from dials_hybrid.io_cctbx import update_xray_structure
from dials_hybrid.io_constraints import Parameters, constrained
from dials_hybrid.io_hydrogen_sites import HydrogenGroup
from dials_hybrid.io_shelx import Instructions
from dials_hybrid.job import Job, Options, Refined, context
from dials_hybrid.other_settings import compared
from dials_hybrid.refine import Refinement, RefineSettings, build_model

CELL = (5.6, 4.9, 4.6, 90, 90, 90)
SETTINGS = tiny.settings(g_max=1.2, thickness="distribution", thickness_start=140.0)
FIXED = dataclasses.replace(RIDING, fix=("site O1",))


def ethanol(turn=0.0, shift=0.0):
    """Return CH3-CHF-O in P1, its methyl group turned by degrees and C2 moved by A.

    H1 to H3 are the methyl group, made without care: the geometry puts them right.
    """
    c1 = np.array([1.0, 1.0, 1.0])
    c2 = np.array([2.5, 1.1, 1.1]) + shift * np.array([0.4, -0.6, 0.7])
    atoms = [("O1", (3.1, 2.3, 1.5)), ("C2", c2), ("C1", c1), ("F1", (3.0, 0.9, 2.4))]
    atoms += [("H4", (2.8, 0.3, 0.45))]
    axis = (c1 - c2) / np.linalg.norm(c1 - c2)
    across = np.cross(axis, (0, 0, 1))
    across, other = across / np.linalg.norm(across), np.cross(axis, across)
    for i in range(3):
        angle = math.radians(turn + 120 * i)
        place = c1 + 0.36 * axis + 1.03 * (math.cos(angle) * across + math.sin(angle) * other)
        atoms.append((f"H{i + 1}", tuple(place)))
    return made("P 1", [(label, tuple(map(float, x))) for label, x in atoms], CELL)


def problem_of(start, true) -> Problem:
    """Return a problem with the intensities of a true structure."""
    scan = tiny.scan(blocks=12, samples=8, width=4.0, cell=CELL)
    o = tiny.observations(true, scan, g_limit=1.1)
    model = build_model(Problem(true, scan, o, {}), SETTINGS, seed=0)
    with torch.no_grad():
        model.scale.log_scale += 12
        made_up = model.intensities(model.value_profiles())
    o = o.replace(intensity=made_up, sigma=0.01 * made_up + 1e-4 * made_up.max())
    return Problem(start, scan, o, {})


def refined(parameters, instructions=None, iterations=25) -> Refined:
    """Return a refinement from C2 0.06 A off, and a methyl group 25 degrees."""
    _, true, _ = constrained(ethanol(), FIXED, None)
    ideal, _, _ = constrained(ethanol(turn=25, shift=0.06), FIXED, None)
    xray_structure, start, constraints = constrained(ideal, parameters, instructions)
    options = Options(model=SETTINGS, refine=RefineSettings(iterations), refine_settings="none")
    job = Job(problem_of(start, true), xray_structure, None, options, constraints=constraints)
    refinement = Refinement(job.problem, SETTINGS, options.refine)
    refinement.context = context(job)
    return Refined(job, refinement, refinement.run())


@pytest.fixture(scope="module")
def first():
    return refined(FIXED)


@pytest.fixture(scope="module")
def end(first):
    return settled(first, Progress())


def off(refined) -> torch.Tensor:
    """Return how far, in A, the atoms of something with a result are from the true ones."""
    _, true, _ = constrained(ethanol(), FIXED, None)
    return lengths(true.cell, refined.result.structure.site - true.site)


def test_atoms_are_put_back_and_all_is_refined_on(first, end):
    assert first.job.constraints.turning and len(first.job.constraints.ideal) == 2
    assert float(off(first)[4:].max()) > 0.03, "on tangents, and where the parent was"
    assert float(off(end).max()) < NEAR
    before, after = (x.result.summary["final"]["r1_obs"] for x in (first, end))
    assert after < 0.5 * before
    moved = update_xray_structure(end.job.xray_structure, end.result.structure)
    found = around(moved, "C1")
    assert np.linalg.norm(found, axis=1) == pytest.approx([1.089] * 3, abs=NEAR)
    assert angles(found) == pytest.approx([109.47] * 3, abs=0.5)


def test_a_round_is_a_few_iterations_and_leaves_the_start(first, end):
    """The history, the agreement at the start and the s.u. are those of one refinement."""
    moves = end.result.summary[KEY]
    assert moves[0] > 0.03 and moves[-1] < NEAR and 2 <= len(moves) <= 3
    rounds = len(moves) - 1
    iterations = [x.result.summary["iterations"] for x in (first, end)]
    assert rounds <= iterations[1] - iterations[0] <= 5 * rounds
    assert len(end.result.history) == len(first.result.history) + iterations[1] - iterations[0]
    assert end.result.summary["start"] == pytest.approx(first.result.summary["start"], rel=0.1)
    assert torch.equal(end.result.start_structure.site, first.job.problem.structure.site)
    assert float(end.result.site_su[5:].min()) > 0 and end.result.converged
    assert end.refinement.context["constraints"] == first.job.constraints.to_dict()
    assert KEY not in first.result.summary and len(first.result.history) == iterations[0] + 1


def test_what_a_geometry_fixes_has_no_uncertainty(end):
    """Distances and angles of riding atoms, also of those that turn; others have theirs."""
    refined = update_xray_structure(end.job.xray_structure, end.result.structure)
    found = bonds_and_angles(refined, end.result)
    for entry in (*found["bonds"], *found["angles"]):
        hydrogen = any(label.startswith("H") for label in entry["atoms"])
        assert (entry["su"] is None) == hydrogen, entry
    bonds = ["".join(sorted(entry["atoms"])) for entry in found["bonds"]]
    assert {"C1H1", "C2H4", "C1C2", "C2F1"} <= set(bonds)


def test_atoms_that_are_at_their_places_stay(end, caplog):
    caplog.set_level(logging.INFO, logger="dials.hybrid")
    same = settled(end, Progress())
    assert same.refinement is end.refinement and caplog.messages == []
    assert same.result.structure is end.result.structure
    assert same.result.summary[KEY] == [end.result.summary[KEY][-1]]


def test_without_geometries_nothing_is_done(first):
    plain = dataclasses.replace(first.job, constraints=Constraints(riding=((4, 1),)))
    given = dataclasses.replace(first, job=plain)
    assert settled(given, Progress()) is given
    assert not are_off(dataclasses.replace(plain, result=first.result))


def test_an_interrupted_refinement_is_left(first):
    result = first.result.replace(stop_reason="interrupted by the user")
    found = settled(dataclasses.replace(first, result=result), Progress())
    assert found.refinement is first.refinement


def test_a_result_of_another_machine_is_put_right_and_one_of_this_is_not(first, end, tmp_path):
    """Through a file, as `python -m dials_hybrid` writes it."""
    path = tmp_path / "refined.h5"
    first.refinement.save(path, first.refinement.with_fourier(first.result))
    stored = Checkpoint.load(path)
    constraints = Constraints.from_dict(stored.context["constraints"])
    job = dataclasses.replace(
        first.job,
        problem=stored.problem,
        state=stored.state,
        result=stored.result,
        constraints=constraints,
    )
    assert are_off(job)
    found = compared(job, Progress())
    assert float(off(found).max()) < NEAR
    assert found.result.summary[KEY] == pytest.approx(end.result.summary[KEY], rel=0.05, abs=1e-3)
    done = dataclasses.replace(found.job, result=found.result, state=found.refinement.state)
    assert not are_off(done) and compared(done, Progress()) is None


def test_the_outcome_of_a_refinement_is_put_right(first, tmp_path):
    """From a checkpoint of its last iterations; the file that it leaves is final."""
    api = pytest.importorskip("dials_hybrid.api", reason="DIALS is not installed")
    state = State.from_dict(first.refinement.state.to_dict())
    path = tmp_path / "checkpoint.h5"
    outcome = api.refine(dataclasses.replace(first.job, state=state), Progress(checkpoint=path))
    moves = outcome.contract["hydrogens_put_back"]
    assert moves[0] > 0.03 and moves[-1] < NEAR
    assert float(off(outcome).max()) < NEAR
    stored = Checkpoint.load(path)
    assert stored.finished and stored.result.summary[KEY] == pytest.approx(moves)


def test_a_group_of_a_file_only_turns(caplog):
    """AFIX 137 without hydrogens=riding: the group keeps the shape that the file gives it."""
    caplog.set_level(logging.INFO, logger="dials.hybrid")
    riding = ((4, 1), (5, 2), (6, 2), (7, 2))
    group = HydrogenGroup(2, (5, 6, 7), "terminal_tetrahedral_xh3_sites", None, True)
    file = Instructions(Constraints(riding=riding), (group,))
    given = refined(Parameters(fix=("site O1",)), file)
    assert given.job.constraints.turning == ((1, 2, (5, 6, 7)),)
    assert given.job.constraints.ideal == ()
    found = settled(given, Progress())
    start = given.job.problem.structure
    shapes = [methyl(x) for x in (start, given.result.structure, found.result.structure)]
    assert float((shapes[1] - shapes[0]).abs().max()) > 0.05
    assert float((shapes[2] - shapes[0]).abs().max()) < NEAR
    assert float(off(found)[5:].max()) < 0.05 < float(off(given)[5:].max())
    said = [m for m in caplog.messages if "put back" in m]
    assert len(said) == len(found.result.summary[KEY]) - 1


def methyl(structure) -> torch.Tensor:
    """Return the distances between the H atoms and to their parent."""
    x = structure.site[[2, 5, 6, 7]] @ to_cartesian(structure.cell).T
    first, second = torch.triu_indices(4, 4, 1)
    return (x[first] - x[second]).norm(dim=1)
