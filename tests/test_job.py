"""What a job remembers of how it came about."""

import logging

import pytest

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

from dials_hybrid.job import Job, Options, remembering_warnings

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
