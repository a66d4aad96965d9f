"""The other hand and the other indexing settings, refined from where the first one ended.

Thickness, orientations and scale start as they were found, the structure as refined and moved,
so that a few iterations are enough.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from dataclasses import dataclass

import torch
from cctbx import sgtbx

from . import absolute_structure, io_settings
from .checkpoint import State
from .data import Problem, Result
from .io_cctbx import other_hand, to_structure, update_xray_structure
from .io_constraints import in_basis
from .job import Job, context, in_setting
from .refine import Progress, Refinement
from .uncertainty import curvature_of

logger = logging.getLogger("dials.hybrid.other_settings")

ITERATIONS = 5
INTERRUPTED = "interrupted"
NOT_COMPARED = "Interrupted: the other hand and settings are not compared"


@dataclass(frozen=True)
class Refined:
    """A job, its refinement, which has run, and the result."""

    job: Job
    refinement: Refinement
    result: Result


@dataclass(frozen=True)
class Alternative:
    """Another setting, how it ended, and the score of the first one against it."""

    operator: str
    hand: str
    end: Refined
    score: absolute_structure.ZScore
    twin: absolute_structure.TwinFraction | None  # of the pure mirror image

    @property
    def r1(self) -> float:
        """R1 of I > 3 sigma."""
        return self.end.result.summary["final"]["r1_obs"]

    def row(self) -> dict:
        """Return what the table of settings says of it."""
        return {
            "operator": self.operator,
            "hand": self.hand,
            "space_group": str(self.end.job.xray_structure.space_group_info()),
            "r1_obs": self.r1,
            "z_score": -self.score.z,
        }


def decide(first: Refined, progress: Progress) -> Refined:
    """Refine the other settings, and return the best, its result's summary saying how it did.

    One that is better by `minimum_gain` in R1 and by three standard deviations of the z-score is
    refined to its end and compared anew; with `test_settings` off the first one is kept with a
    warning. Without other settings, or after an interrupt, the first one returns.
    """
    interrupted = INTERRUPTED in first.result.stop_reason
    if interrupted or not _wanted(first.job):
        return first
    try:
        found = _compare(first, progress)
        better = _better(first, found)
        if better is None:
            return _reported(first, found)
        if not first.job.options.test_settings:
            _warn(better, "hand_and_indexing.test=False keeps the given one")
            return _reported(first, found)
        _warn(better, "it is refined instead")
        second = _to_the_end(first, better, progress)
        return _reported(second, _compare(second, progress))
    except KeyboardInterrupt:
        logger.warning(NOT_COMPARED)
        return first


def compared(job: Job, progress: Progress) -> Refined | None:
    """Make the comparison that the final result of a continued job lacks, as `decide` does.

    None where it was made already or is not wanted, and, with a warning, for results of earlier
    versions, whose state may be of other parameters.
    """
    if "settings_refined" in job.result.summary or not _wanted(job):
        return None
    if job.result.fourier is None:
        logger.warning("A result of an earlier version: the other hand and settings are not tried")
        return None
    logger.info(
        "The result lacks the comparison of hands and settings, which is made now; "
        "hand_and_indexing.refine=none leaves it out"
    )
    try:
        return decide(restored(job), progress)
    except KeyboardInterrupt:
        logger.warning(NOT_COMPARED)
        return None


def restored(job: Job) -> Refined:
    """Return a job whose file holds the final result as it was when its refinement ended.

    One linearisation there gives the curvature, which files do not hold.
    """
    refinement = Refinement(
        job.problem, job.options.model, job.options.refine, state=copy.copy(job.state)
    )
    refinement.state.stage = len(refinement.plan) - 1
    refinement.curvature = curvature_of(refinement.linearise(), refinement.state.error_model)
    refinement.state.stage = job.state.stage
    return Refined(job, refinement, job.result)


def _wanted(job: Job) -> bool:
    chosen = job.options.refine_settings
    return chosen == "all" or (
        chosen == "hand" and not job.xray_structure.space_group().is_centric()
    )


def _compare(first: Refined, progress: Progress) -> list[Alternative]:
    refined = update_xray_structure(first.job.xray_structure, first.result.structure)
    others = io_settings.candidates(refined)[1:]
    if first.job.options.refine_settings == "hand":
        others = [(op, hand, s) for op, hand, s in others if hand == "inverted"][:1]
    return [_alternative(first, other, progress) for other in others]


def _alternative(first: Refined, other: tuple, progress: Progress) -> Alternative:
    """Refine one other setting (operator, hand, structure) for a few iterations."""
    operator, hand, moved = other
    mirror = operator == "h,k,l" and hand == "inverted"
    logger.info(
        "\nFor comparison, the %s structure indexed as %s (%s), from the end of the refinement:",
        hand,
        operator,
        moved.space_group_info(),
    )
    if mirror:
        moved, structure = other_hand(first.job.xray_structure, first.result.structure)
    else:
        structure = to_structure(moved)
    problem = in_setting(first.job, structure, operator, hand)
    refinement = started(first, problem, mirror, Progress(progress.report))
    twin = _twin(first, refinement) if mirror else None
    result = refinement.run()
    job = dataclasses.replace(
        first.job,
        problem=problem,
        xray_structure=moved,
        constraints=in_basis(first.job.constraints, operator),
        indexing=moved_indexing(first.job.indexing, operator, hand),
    )
    return Alternative(
        operator, hand, Refined(job, refinement, result), _score(first, result), twin
    )


def moved_indexing(indexing: dict, operator: str, hand: str) -> dict:
    """Return the record of the choice of settings for a structure moved further.

    `operator` is a change of basis of the chosen structure, `hand` "given" or "inverted".
    """
    if not indexing:
        return indexing
    change = sgtbx.change_of_basis_op
    return {
        **indexing,
        "operator": (change(operator) * change(indexing["operator"])).as_hkl(),
        "inverted": indexing["inverted"] != (hand == "inverted"),
        "changed": True,
    }


def started(first: Refined, problem: Problem, mirror: bool, progress: Progress) -> Refinement:
    """Return a refinement of another structure that starts where the first one ended.

    `problem` has that structure; with `mirror` it is the refined one inverted, and dipoles change
    their sign.
    """
    parameters = dict(first.refinement.state.parameters)
    for name, value in parameters.items():
        part, _, what = name.partition(".")
        if part == "crystal" and what != "charge_shift":  # the structure holds all other shifts
            keep = -1.0 if mirror and what == "dipole_shift" else 0.0
            parameters[name] = (keep * torch.tensor(value, dtype=torch.float64)).tolist()
    old = first.refinement.state
    state = State(proximity=old.proximity, error_model=old.error_model, parameters=parameters)
    settings = dataclasses.replace(first.refinement.settings, iterations=ITERATIONS)
    return Refinement(problem, first.job.options.model, settings, progress, state)


def _score(first: Refined, result: Result) -> absolute_structure.ZScore:
    o = first.job.problem.observations
    chosen = o.observed & ~o.free
    return absolute_structure.z_score(
        o.intensity, first.result.calculated, result.calculated, chosen
    )


def _twin(first: Refined, inverted: Refinement) -> absolute_structure.TwinFraction:
    """The share of the mirror image; `inverted` has not run yet."""
    model, curvature = inverted.model, first.refinement.curvature
    with torch.no_grad():
        other = model.intensities(model.value_profiles())
    own = first.result.calculated.to(other.device)
    o = model.problem.observations
    observed = o.intensity.to(other)
    sigma = curvature.error_model.sigma_w(observed, own, o.sigma)
    difference = torch.where(o.free, torch.zeros_like(own), (other - own) / sigma)
    return absolute_structure.twin_fraction(curvature, difference)


def _better(first: Refined, found: list[Alternative]) -> Alternative | None:
    if not found:
        return None
    best = min(found, key=lambda a: a.r1)
    gain = first.result.summary["final"]["r1_obs"] - best.r1
    significant = best.score.z < -absolute_structure.SIGNIFICANT
    return best if significant and gain > first.job.options.minimum_gain else None


def _warn(better: Alternative, what: str) -> None:
    logger.warning(
        "After refinement the %s structure indexed as %s (%s) agrees better (R1 %.4f, z = %.1f); "
        "%s",
        better.hand,
        better.operator,
        better.row()["space_group"],
        better.r1,
        -better.score.z,
        what,
    )


def _to_the_end(first: Refined, better: Alternative, progress: Progress) -> Refined:
    """Refine an alternative until it has converged, as the first one was to be."""
    refinement = better.end.refinement
    refinement.settings = first.refinement.settings
    refinement.progress = progress
    refinement.context = context(better.end.job)
    return dataclasses.replace(better.end, result=refinement.run())


def _reported(chosen: Refined, found: list[Alternative]) -> Refined:
    """Return the chosen one with the comparison in its result's summary."""
    own = {
        "operator": "h,k,l",
        "hand": "given",
        "space_group": str(chosen.job.xray_structure.space_group_info()),
        "r1_obs": chosen.result.summary["final"]["r1_obs"],
        "z_score": None,
    }
    summary = {**chosen.result.summary, "settings_refined": [own, *(a.row() for a in found)]}
    mirror = next((a for a in found if a.twin is not None), None)
    if mirror is not None:
        summary["absolute_structure"] = _facts(chosen, mirror)
    return dataclasses.replace(chosen, result=chosen.result.replace(summary=summary))


def _facts(chosen: Refined, mirror: Alternative) -> dict:
    """The absolute structure by both refined hands, as the JSON file has it."""
    group = str(chosen.job.xray_structure.space_group_info())
    sentence = absolute_structure.verdict(mirror.score, mirror.twin, group)
    if INTERRUPTED in mirror.end.result.stop_reason:
        sentence = "undetermined: the refinement of the other hand was interrupted"
    r1 = chosen.result.summary["final"]["r1_obs"]
    return {
        "tested": True,
        "verdict": sentence,
        "space_group": group,
        "refined": {
            "r1_obs": r1,
            "r1_obs_other_hand": mirror.r1,
            "r1_difference": mirror.r1 - r1,
            "space_group_other_hand": mirror.row()["space_group"],
            "other_hand_converged": mirror.end.result.converged,
            "other_hand_iterations": mirror.end.result.summary["iterations"],
            "other_hand_time_s": mirror.end.result.summary["wall_time_s"],
        },
        "z_score": mirror.score.z,
        "probability": mirror.score.probability,
        "reflections": mirror.score.reflections,
        "better": mirror.score.better,
        "twin_fraction": mirror.twin.value,
        "twin_fraction_su": mirror.twin.su,
    }
