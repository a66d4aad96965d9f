"""The other hand and the other indexing settings, from where the first refinement ended.

Thickness, orientations and scale start as they were found, the structure as refined and moved. The
mirror image is refined until it has converged, by a looser tolerance than the first one. Other
indexing settings are compared as they stand, or refined as well where that is asked for.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from dataclasses import dataclass

import torch
from cctbx import sgtbx
from torch import Tensor

from . import absolute_structure, io_settings, losses
from .checkpoint import State
from .data import Problem, Result
from .history import Progress
from .ideal_hydrogens import are_off, settled
from .io_cctbx import other_hand, to_structure, update_xray_structure
from .io_constraints import in_basis
from .job import INTERRUPTED, Job, Refined, context, in_setting
from .model import HybridModel
from .refine import Refinement
from .uncertainty import curvature_of

logger = logging.getLogger("dials.hybrid.other_settings")

# A wrong hand fits noise by ever smaller steps of orientations and thickness, long after its atoms
# stand still; its tolerance of the cost is that many times the first one's.
LOOSE = 2.5
NOT_COMPARED = "Interrupted: the other hand and settings are not compared"


@dataclass(frozen=True)
class Alternative:
    """Another setting, how well it agrees, and the score of the first one against it."""

    operator: str
    hand: str
    job: Job
    refinement: Refinement
    result: Result | None  # None where it was compared as it stood
    r1: float  # of I > 3 sigma
    score: absolute_structure.ZScore
    unseen: absolute_structure.ZScore | None  # by predictions of fits to the other reflections
    twin: absolute_structure.TwinFraction  # its share in the crystal

    @property
    def is_mirror(self) -> bool:
        """Whether it is the pure mirror image of the first."""
        return self.operator == "h,k,l" and self.hand == "inverted"

    def row(self) -> dict:
        """Return what the table of settings says of it."""
        return {
            "operator": self.operator,
            "hand": self.hand,
            "space_group": str(self.job.xray_structure.space_group_info()),
            "r1_obs": self.r1,
            "z_score": -self.score.z,
            "refined": self.result is not None,
            "twin_fraction": self.twin.value,
            "twin_fraction_su": self.twin.su,
        }


def decide(first: Refined, progress: Progress) -> Refined:
    """Compare the other settings, and return the best, its result's summary saying how it did.

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
        second = settled(_to_the_end(first, better, progress), progress)
        return _reported(second, _compare(second, progress))
    except KeyboardInterrupt:
        logger.warning(NOT_COMPARED)
        return first


def compared(job: Job, progress: Progress) -> Refined | None:
    """Make what the final result of a continued job lacks: the comparison that `decide` makes.

    Riding hydrogen atoms that are off their places are put back before. None where all is made
    already or not wanted, and, with a warning, for results of earlier versions, whose state may
    be of other parameters.
    """
    off = are_off(job)
    lacks = "settings_refined" not in job.result.summary and _wanted(job)
    if not (off or lacks):
        return None
    if job.result.fourier is None:
        logger.warning("A result of an earlier version: the other hand and settings are not tried")
        return None
    if lacks:
        logger.info(
            "The result lacks the comparison of hands and settings, which is made now; "
            "hand_and_indexing.refine=none leaves it out"
        )
    try:
        first = restored(job)
        return decide(settled(first, progress) if off else first, progress)
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
    if job.options.refine_settings == "none":
        return False
    return len(io_settings.candidates(job.xray_structure)) > 1


def _compare(first: Refined, progress: Progress) -> list[Alternative]:
    refined = update_xray_structure(first.job.xray_structure, first.result.structure)
    return [_alternative(first, other, progress) for other in io_settings.candidates(refined)[1:]]


def _alternative(first: Refined, other: tuple, progress: Progress) -> Alternative:
    """Compare with one other setting (operator, hand, structure), refined if it is to be."""
    operator, hand, moved = other
    mirror = operator == "h,k,l" and hand == "inverted"
    if mirror:
        moved, structure = other_hand(first.job.xray_structure, first.result.structure)
    else:
        structure = to_structure(moved)
    problem = in_setting(first.job, structure, operator, hand)
    refinement = started(first, problem, mirror, Progress(progress.report))
    as_it_stands, result = _calculated(refinement.model), None
    if mirror or first.job.options.refine_settings == "all":
        logger.info(
            "\nFor comparison, the %s structure indexed as %s (%s), from where the first ended:",
            hand,
            operator,
            moved.space_group_info(),
        )
        result = refinement.run()
    calculated = as_it_stands if result is None else result.calculated
    job = dataclasses.replace(
        first.job,
        problem=problem,
        xray_structure=moved,
        constraints=in_basis(first.job.constraints, operator),
        indexing=moved_indexing(first.job.indexing, operator, hand),
    )
    return Alternative(
        operator,
        hand,
        job,
        refinement,
        result,
        _r1(first, calculated),
        _score(first, first.result.calculated, calculated),
        _unseen_score(first, result),
        _twin(first, as_it_stands),
    )


@torch.no_grad()
def _calculated(model: HybridModel) -> Tensor:
    """Return the intensities (R,) at the present parameters."""
    return model.intensities(model.value_profiles())


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
    state = State(
        proximity=old.proximity,
        error_model=old.error_model,
        orientation_width=old.orientation_width,
        scale_stiffness=old.scale_stiffness,
        term_widths=list(old.term_widths),
        parameters=parameters,
    )
    given = first.refinement.settings
    settings = dataclasses.replace(given, cost_tolerance=LOOSE * given.cost_tolerance)
    return Refinement(problem, first.job.options.model, settings, progress, state)


def _r1(first: Refined, calculated: Tensor) -> float:
    o = first.job.problem.observations
    return losses.r1(o.intensity, calculated.to(o.intensity), o.observed & ~o.free)


def _score(first: Refined, own: Tensor, other: Tensor) -> absolute_structure.ZScore:
    o = first.job.problem.observations
    own, other = (x.to(o.intensity) for x in (own, other))
    return absolute_structure.z_score(o.intensity, own, other, o.observed & ~o.free)


def _unseen_score(first: Refined, other: Result | None) -> absolute_structure.ZScore | None:
    """The score of predictions by fits to the other reflections; None where there are none."""
    own = first.result.unseen  # results of earlier versions have none
    return None if own is None or other is None else _score(first, own, other.unseen)


def _twin(first: Refined, other: Tensor) -> absolute_structure.TwinFraction:
    """The share of a setting with intensities (R,), all but its structure as the first ended."""
    curvature, o = first.refinement.curvature, first.refinement.problem.observations
    own, other = (x.to(o.intensity) for x in (first.result.calculated, other))
    sigma = curvature.error_model.sigma(o.noise, own)
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
    refinement = better.refinement
    refinement.settings = first.refinement.settings
    refinement.progress = progress
    refinement.context = context(better.job)
    return Refined(better.job, refinement, refinement.run())


def _reported(chosen: Refined, found: list[Alternative]) -> Refined:
    """Return the chosen one with the comparison in its result's summary."""
    own = {
        "operator": "h,k,l",
        "hand": "given",
        "space_group": str(chosen.job.xray_structure.space_group_info()),
        "r1_obs": chosen.result.summary["final"]["r1_obs"],
        "z_score": None,
        "refined": True,
        "twin_fraction": None,
        "twin_fraction_su": None,
    }
    summary = {**chosen.result.summary, "settings_refined": [own, *(a.row() for a in found)]}
    for other in found:
        if other.is_mirror:
            summary["absolute_structure"] = _facts(chosen, other)
    summary["indexing_verdict"] = _indexing_verdict(chosen, found)
    return dataclasses.replace(chosen, result=chosen.result.replace(summary=summary))


def _hand_of(chosen: Refined, mirror: Alternative) -> str:
    """Return what names the hand: the space group where that tells, or else its origin."""
    group = str(chosen.job.xray_structure.space_group_info())
    if mirror.row()["space_group"] != group:
        return group
    inverted = chosen.job.indexing.get("inverted", False)
    return f"{group}, the structure {'inverted' if inverted else 'as it was given'}"


def _indexing_verdict(chosen: Refined, found: list[Alternative]) -> str | None:
    """Return one sentence on the indexing; None where the lattice leaves no choice.

    It is that against the setting that comes nearest.
    """
    others = [a for a in found if a.operator != "h,k,l"]
    if not others:
        return None
    nearest = min(others, key=lambda a: a.score.z)
    return absolute_structure.verdict(
        nearest.score,
        nearest.twin,
        f"as indexed and not as {nearest.operator}",
        nearest.r1 - chosen.result.summary["final"]["r1_obs"],
        f"the share of a twin indexed as {nearest.operator}",
    )


def _facts(chosen: Refined, mirror: Alternative) -> dict:
    """The absolute structure by both refined hands, as the JSON file has it."""
    group = str(chosen.job.xray_structure.space_group_info())
    r1 = chosen.result.summary["final"]["r1_obs"]
    difference = mirror.r1 - r1
    sentence = absolute_structure.verdict(
        mirror.score, mirror.twin, _hand_of(chosen, mirror), difference, unseen=mirror.unseen
    )
    if INTERRUPTED in mirror.result.stop_reason:
        sentence = "undetermined: the refinement of the other hand was interrupted"
    elif not mirror.result.converged:
        sentence += "; the other hand had not converged"
    return {
        "tested": True,
        "verdict": sentence,
        "space_group": group,
        "refined": {
            "r1_obs": r1,
            "r1_obs_other_hand": mirror.r1,
            "r1_difference": difference,
            "space_group_other_hand": mirror.row()["space_group"],
            "other_hand_converged": mirror.result.converged,
            "other_hand_iterations": mirror.result.summary["iterations"],
            "other_hand_time_s": mirror.result.summary["wall_time_s"],
        },
        "z_score": mirror.score.z,
        "z_score_left_out": None if mirror.unseen is None else mirror.unseen.z,
        "probability": mirror.score.probability,
        "reflections": mirror.score.reflections,
        "better": mirror.score.better,
        "twin_fraction": mirror.twin.value,
        "twin_fraction_su": mirror.twin.su,
    }
