"""What a job remembers of how it came about."""

import dataclasses
import logging

import pytest
import torch

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import iotbx.cif
import synthetic
import tiny

from dials_hybrid import api, io_cctbx
from dials_hybrid.freedom import Constraints
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.job import Job, Options, in_setting, remembering_warnings

logger = logging.getLogger("dials.hybrid.io_structures")


@remembering_warnings
def warned(job: Job, *said: str) -> Job:
    """Warn as a file's reader does."""
    for text in said:
        logger.warning(text)
    return job


def test_a_warning_is_remembered_once_and_in_its_place():
    job = warned(Job(None, None, None, Options()), "first", "second", "first")
    assert job.messages == ("first", "second")
    assert warned(job, "third", "second").messages == ("first", "second", "third")


def test_a_coordinate_that_is_fixed_is_so_in_another_setting():
    """y of O1 is x once the axes a and b are exchanged."""
    structure = synthetic.quartz_structure()
    held = Constraints(fixed_along=((1, (0.0, 1.0, 0.0)),))
    job = Job(tiny.problem(), structure, None, Options(), constraints=held)
    for operator, fixed in (("h,k,l", 1), ("k,h,-l", 0)):
        moved = to_structure(structure.change_basis(operator))
        rows = in_setting(job, moved, operator, "given").structure.freedom.site
        free = rows[:, 1].abs().amax(0)
        assert len(rows) == 1 + 2
        assert [float(x) > 1e-9 for x in free] == [axis != fixed for axis in range(3)]


def test_a_continued_job_has_its_structure_to_all_digits(sweep, tmp_path):
    """Bonds, maps and files of it follow the cell, which files of three digits do not hold."""
    first = api.load([sweep.expt, sweep.refl], sweep.cif)
    cell = (4.916012345678901, 4.916012345678901, 5.405412345678901, 90, 90, 120)
    structure = io_cctbx.with_cell(first.xray_structure, cell)
    structure.scatterers()[1].site = (0.4134567890123, 0.2669123456789, 0.7857123456789)
    problem = first.problem.replace(structure=io_cctbx.to_structure(structure))
    first = dataclasses.replace(first, xray_structure=structure, problem=problem)
    api.write_problem(first, tmp_path / "start.h5")
    again = api.resume(tmp_path / "start.h5")
    mine, theirs = (x.xray_structure.unit_cell().parameters() for x in (first, again))
    assert theirs == pytest.approx(mine, abs=1e-12)
    atoms = zip(structure.scatterers(), again.xray_structure.scatterers(), strict=True)
    for before, after in atoms:
        assert after.site == pytest.approx(before.site, abs=1e-14)
        assert after.u_star == pytest.approx(before.u_star, abs=1e-16)
        assert after.u_iso == pytest.approx(before.u_iso, abs=1e-14)
    record = io_cctbx.to_structure(again.xray_structure)
    assert torch.equal(record.site_projector, first.problem.structure.site_projector)


def test_the_text_of_a_structure_has_the_digits_of_its_cell(sweep):
    structure = api.load([sweep.expt, sweep.refl], sweep.cif).xray_structure
    structure = io_cctbx.with_cell(structure, (4.9161234, 4.9161234, 5.4054321, 90, 90, 120))
    text = api.cif_text(structure)
    found = iotbx.cif.reader(input_string=text).build_crystal_structures()["start"]
    assert found.unit_cell().parameters() == pytest.approx(
        structure.unit_cell().parameters(), abs=1e-8
    )
