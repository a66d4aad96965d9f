"""What a job remembers of how it came about."""

import logging

import pytest

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import synthetic
import tiny

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
