"""Riding hydrogen atoms put back to their geometry where a refinement has ended; it then goes on.

The refinement moves them along with their parents, and turns groups on tangents. When the parents
and their neighbours have moved, angles are not those of the geometry any more, and a group that
has turned is too large. SHELXL mends that in each cycle; here a few iterations from the end do it.
"""

from __future__ import annotations

import dataclasses
import logging

from .data import Structure
from .freedom import lengths
from .history import Progress
from .io_constraints import with_freedom
from .io_riding import put_back
from .job import INTERRUPTED, Job, Refined, context
from .refine import Refinement

logger = logging.getLogger("dials.hybrid.ideal_hydrogens")

NEAR = 0.01  # A; an atom that is this near to its place stays
ROUNDS = 3
ITERATIONS = 5  # at least, of each round
KEY = "hydrogens_put_back"  # of a result's summary: how far off they were, before each round


def settled(first: Refined, progress: Progress) -> Refined:
    """Return a refinement with its riding hydrogen atoms at their places, refined on from there.

    Where they are there the given one returns, its result's summary saying so. After some rounds
    the rest is left and named in a warning.
    """
    if not _has_places(first.job):
        return first
    end, moves = first, []
    while INTERRUPTED not in end.result.stop_reason:
        structure, moved = _put_back(end.job, end.result.structure)
        moves.append(float(moved.max()))
        if moves[-1] < NEAR:
            break
        name = structure.labels[int(moved.argmax())]
        if len(moves) > ROUNDS:
            logger.warning(
                "Riding hydrogen atoms are up to %.3f A (%s) from their places by the geometry, "
                "after %d rounds",
                moves[-1],
                name,
                ROUNDS,
            )
            break
        logger.info(
            "Riding hydrogen atoms are put back to their places, up to %.3f A (%s) away; a few "
            "iterations more:",
            moves[-1],
            name,
        )
        end = _again(end, structure, progress)
    summary = {**end.result.summary, KEY: moves}
    return dataclasses.replace(end, result=end.result.replace(summary=summary))


def are_off(job: Job) -> bool:
    """Whether the final result of a continued job has hydrogen atoms to be put back.

    A machine without cctbx cannot do that. Files of earlier versions do not tell the geometries.
    """
    result = job.result
    if not _has_places(job) or KEY in result.summary or INTERRUPTED in result.stop_reason:
        return False
    return float(_put_back(job, result.structure)[1].max()) >= NEAR


def _has_places(job: Job) -> bool:
    return bool(job.constraints.ideal or job.constraints.turning)


def _put_back(job: Job, refined: Structure) -> tuple[Structure, object]:
    """Return the refined structure, hydrogen atoms at their places, and how far they move (A,)."""
    start = job.problem.structure
    structure = put_back(job.xray_structure, start, refined, job.constraints, job.parts)
    return structure, lengths(structure.cell, structure.site - refined.site)


def _again(end: Refined, structure: Structure, progress: Progress) -> Refined:
    """Refine on from a structure that differs from the end by its hydrogen atoms."""
    structure = with_freedom(structure, end.job.constraints)
    job = dataclasses.replace(end.job, problem=end.job.problem.replace(structure=structure))
    old, settings = end.refinement.state, end.refinement.settings
    # the structure holds these shifts
    held = {
        "crystal.site_shift": [0.0] * len(structure.freedom.site),
        "crystal.u_shift": [0.0] * len(structure.freedom.u_iso),
        "crystal.occ_shift": [0.0] * len(structure.freedom.occ),
    }
    parameters = {**old.parameters, **{name: zero for name, zero in held.items() if zero}}
    refinement = Refinement(
        job.problem,
        job.options.model,
        dataclasses.replace(
            settings, iterations=max(settings.iterations, old.iteration + ITERATIONS)
        ),
        progress,
        dataclasses.replace(old, parameters=parameters, history=list(old.history)),
    )
    refinement.context = context(job)
    result = refinement.run()
    start = end.result.start_structure
    return dataclasses.replace(
        end, job=job, refinement=refinement, result=result.replace(start_structure=start)
    )
