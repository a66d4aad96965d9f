"""Choices that are made by the data, before the refinement: setting, thickness, numerics."""

from __future__ import annotations

import dataclasses
import logging
import math

import torch

from . import accuracy, depth_step, io_settings, thickness, validation
from .data import Problem
from .io_cctbx import to_structure
from .io_constraints import in_basis
from .job import Job, Options, collected_warnings, in_setting, remembering_warnings
from .propagation import Chebyshev, DepthGrid

logger = logging.getLogger("dials.hybrid.choices")

SEARCH_DEPTH = 2000.0  # A, thickness to which the search before the refinement goes
SEARCH_BLOCKS = 40
LONGEST = 2.0  # depth grid over the thickness at the start, unless the user says
# A distribution starts broader and somewhat thicker than what agrees best as it is: from there the
# refinement finds parts of the crystal that are much thicker than the mean, from below it does not
THICKER = 1.2


@remembering_warnings
def choose_setting(job: Job) -> Job:
    """Find the hand, the indexing setting and the thickness that agree best with the data.

    Returns the job with the structure in that setting, the depth grid and, where asked for,
    the beams and the sampling of the rotation chosen.
    """
    options = job.options
    grid = DepthGrid(options.model.depth.step, math.ceil(SEARCH_DEPTH / options.model.depth.step))
    settings = dataclasses.replace(options.model, depth=grid)
    part = validation.part_of(job.problem, SEARCH_BLOCKS)
    found = [("h,k,l", "given", job.xray_structure)]
    if options.test_settings:
        found = io_settings.candidates(job.xray_structure)
    scores, thickness = [], []
    for operator, hand, candidate in found:
        r1, depth = validation.quick_r1(
            part.replace(structure=to_structure(candidate)), settings, options.refine.device
        )
        symbol = str(candidate.space_group_info())
        scores.append(validation.Candidate(operator, hand, symbol, r1))
        thickness.append(depth)
    best = min(range(len(found)), key=lambda i: scores[i].r1_obs)
    if scores[0].r1_obs - scores[best].r1_obs < options.minimum_gain:
        best = 0
    _log_candidates(scores, thickness, best)
    indexing = {
        "operator": scores[best].operator,
        "inverted": scores[best].hand == "inverted",
        "changed": best != 0,
        "candidates": [dataclasses.asdict(s) for s in scores],
    }
    chosen = found[best][2]
    job = dataclasses.replace(
        job,
        problem=in_setting(job, to_structure(chosen), scores[best].operator, scores[best].hand),
        xray_structure=chosen,
        constraints=in_basis(job.constraints, scores[best].operator),
        indexing=indexing,
        options=_with_depth(options, thickness[best]),
    )
    return _with_sampling(_with_cutoffs(job))


def _with_cutoffs(job: Job) -> Job:
    """Choose g_max and s_max, those that are to be chosen."""
    options, numerics = job.options, job.options.numerics
    free = tuple(name for name in ("s_max", "g_max") if name in numerics.auto)
    if not free:
        return job
    model, rungs = accuracy.choose_cutoffs(
        job.problem, options.model, numerics.r_change, free, options.refine.device
    )
    logger.info(
        "Beams, nothing refined; chosen: g_max %g, s_max %g\n%s\n",
        model.g_max,
        model.s_max,
        accuracy.format_rungs(rungs),
    )
    found = {"g_max": model.g_max, "s_max": model.s_max, "tried": _plain(rungs)}
    return dataclasses.replace(
        job,
        options=dataclasses.replace(options, model=model),
        numerics={**job.numerics, "beams": found},
    )


def _with_sampling(job: Job) -> Job:
    """Choose the step of the rotation, if it is to be chosen."""
    options, numerics = job.options, job.options.numerics
    if "sampling" not in numerics.auto:
        return job
    step, rungs = accuracy.choose_sampling(
        lambda step: _resampled(job, step), options.model, numerics.r_change, options.refine.device
    )
    logger.info(
        "Sampling of the rotation, nothing refined; chosen: %.3g degrees\n%s\n",
        step,
        accuracy.format_rungs(rungs),
    )
    sampling = dataclasses.replace(options.sampling, step=step)
    return dataclasses.replace(
        job,
        problem=_resampled(job, step),
        options=dataclasses.replace(options, sampling=sampling),
        numerics={**job.numerics, "sampling": {"step": step, "tried": _plain(rungs)}},
    )


def _plain(rungs: list[accuracy.Rung]) -> list[dict]:
    return [dataclasses.asdict(rung) for rung in rungs]


def _resampled(job: Job, step: float) -> Problem:
    """Return the job's problem with another step of the rotation, in degree."""
    sampling = dataclasses.replace(job.options.sampling, step=step)
    rows, _ = job.loaded.select(job.options.selection)
    with collected_warnings():
        scan, observations = job.loaded.observed(rows, sampling, job.options.selection)
    old = job.problem.observations
    free = torch.isin(observations.row, old.row[old.free])
    return job.problem.replace(scan=scan, observations=observations.replace(free=free))


def _with_depth(options: Options, found: float) -> Options:
    narrow = thickness.is_narrow(options.model.thickness, options.model.thickness_head)
    found = found if narrow else THICKER * found
    start = options.thickness_start or found
    step = options.model.depth.step
    longest = options.depth_max or max(LONGEST * start, 20 * step)
    if longest < start:
        logger.warning(
            "depth.max=%g A is less than the thickness that the refinement starts from, %.0f A",
            longest,
            start,
        )
    model = dataclasses.replace(
        options.model,
        depth=DepthGrid(step, max(8, math.ceil(longest / step))),
        thickness_start=start,
    )
    return dataclasses.replace(options, model=model)


def _log_candidates(scores, thickness, best: int) -> None:
    lines = [
        f"  {s.operator:<16} {s.hand:<9} {s.space_group:<14} {s.r1_obs:8.4f} {t:8.0f}"
        for s, t in zip(scores, thickness, strict=True)
    ]
    head = f"  {'indexing':<16} {'hand':<9} {'space group':<14} {'R1(obs)':>8} {'t / A':>8}"
    logger.info("Hand, indexing and thickness, nothing refined:\n%s\n", "\n".join([head, *lines]))
    if best != 0:
        logger.warning(
            "The %s structure indexed as %s (%s) agrees better (R1 %.4f) than the given one (%.4f) "
            "and is refined instead; hand_and_indexing.test=False keeps the given one",
            scores[best].hand,
            scores[best].operator,
            scores[best].space_group,
            scores[best].r1_obs,
            scores[0].r1_obs,
        )


def with_step(job: Job) -> Job:
    """Choose the method and the step of the propagation, unless the job has begun."""
    if job.state is not None:
        return job
    options, numerics = job.options, job.options.numerics
    allowed = depth_step.SUBSTEPS if numerics.substeps is None else (numerics.substeps,)
    others = (Chebyshev(),) if numerics.any_method and numerics.substeps is None else ()
    model, check = depth_step.choose_step(
        job.problem, options.model, numerics.error, options.refine.device, allowed, others
    )
    return dataclasses.replace(
        job,
        options=dataclasses.replace(options, model=model),
        numerics={**job.numerics, "propagation": dataclasses.asdict(check)},
    )


def hands(job: Job) -> dict:
    """What the test before the refinement says of the two hands of the chosen indexing.

    The verdict is that of no refinement of both; `other_settings` has a better one.
    """
    if job.xray_structure.space_group().is_centric():
        return {"tested": False, "verdict": "not applicable: centrosymmetric"}
    unknown = "undetermined: the other hand was not refined"
    chosen = job.indexing.get("operator")
    scores = {c["hand"]: c for c in job.indexing.get("candidates", []) if c["operator"] == chosen}
    if len(scores) < 2:
        return {"tested": False, "verdict": unknown}
    refined = "inverted" if job.indexing["inverted"] else "given"
    other = "given" if refined == "inverted" else "inverted"
    return {
        "tested": True,
        "space_group": scores[refined]["space_group"],
        "r1_obs": scores[refined]["r1_obs"],
        "r1_obs_other_hand": scores[other]["r1_obs"],
        "verdict": unknown,
    }
