"""The stages of a refinement, where a pass with derivatives by everything is too much work.

Such a pass carries one wave for each free parameter of the structure, in hundreds of beams. The
intensities themselves are a hundredth of that work. Derivatives by the structure always come from
steps of fewer stages, if steps are made: that leaves them right to about two hundredths and moves
the minimum by some hundredths of the standard uncertainties. Where it is still too much,
derivatives come from fewer beams and samples, while the intensities are, to a few thousandths in
the first stage and exactly in the last one, those of the model that was asked for. Errors of the
derivatives lengthen the way to the minimum and move it by a part of the standard uncertainties,
because residuals are not in line with the errors of the derivatives; intensities of fewer beams
would bias the structure. Everything follows from the number of operations, not from measured
times, so that a refinement takes the same way on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from . import propagation
from .crystal import reciprocal_length_sq
from .fidelity import Fidelity
from .fourier import sweeps
from .model import HybridModel
from .propagation import Bloch, Chebyshev, Splitting
from .work import work_of

TERA = 1e12
LOOSE = 5.0  # the first stage need not converge as the last one does
STALE = 5  # steps after which derivatives by the structure are formed anew
STALE_IN_STAGES = 10  # the same where they are approximate at any age
# 1 / (|g| t) is the spacing (rad) of samples that integrates a rocking curve exactly: as
# |psi|^2 comes from a crystal of thickness t, its Fourier transform over S ends at t. With two
# times that, derivatives are wrong by a fifth
SPACING = 1.25
LEFT_OUT = (1e-3, 3e-3, 1e-2)  # shares of the current in beams that are left out
SELDOM = 2  # work of a pass by the structure over that by the orientation, of which there are more
USUAL_PASSES, USUAL_STEPS = 3, 11  # with derivatives by the structure, and by the orientation


@dataclass(frozen=True)
class Stage:
    """One stage: where its intensities and their derivatives come from; None is the full model.

    `slopes` are the derivatives by the structure, `rough` if of fewer beams or samples; `turns`
    are those by the orientation. `share` is the part of all iterations after which it ends at the
    latest, `stale` the number of steps after which derivatives by the structure are formed anew,
    `trusted` the same where a step failed, `loose` multiplies the tolerances of convergence.
    """

    name: str
    values: Fidelity | None
    slopes: Fidelity | None
    turns: Fidelity | None
    share: float
    stale: int = STALE
    trusted: int = 2
    loose: float = 1.0
    rough: bool = False


def make_plan(model: HybridModel, limit: float | None) -> tuple[Stage, ...]:
    """Return the stages for a pass with derivatives of at most `limit` 10^12 operations.

    None is no limit: then, as where the limit is kept with all beams and samples, there is one
    stage.
    """
    light = light_fidelity(model)
    whole = (Stage("joint", None, light, None, 1.0),)
    if limit is None or not isinstance(model.settings.propagator, (Splitting, Chebyshev)):
        return whole
    by_structure = SELDOM * limit * TERA
    if operations(model, 0) <= limit * TERA and operations(model.coarser(light)) <= by_structure:
        return whole
    rungs = ladder(model)
    slopes = _first_within(model, (_by_bloch_waves(model, rung) for rung in rungs), by_structure)
    turns = _first_within(model, [None, *rungs], limit * TERA, directions=0)
    first_turns = turns or rungs[0]
    return (
        Stage("coarse", rungs[0], slopes, first_turns, 0.6, STALE_IN_STAGES, STALE, LOOSE, True),
        Stage("joint", None, slopes, turns, 1.0, STALE_IN_STAGES, STALE, rough=True),
    )


def light_fidelity(model: HybridModel) -> Fidelity | None:
    """Return the fidelity of derivatives by the structure with all beams and samples.

    That is the one of least work; None stands for what intensities come from.
    """
    settings = model.settings
    if not isinstance(settings.propagator, (Splitting, Chebyshev)):
        return None
    own = settings.g_max, settings.s_max, settings.left_out
    light = propagation.light(settings.propagator)
    steps = None if light == settings.propagator else Fidelity(*own, propagator=light)
    return _less_work(model, steps, Fidelity(*own, propagator=Bloch(light)))


def _by_bloch_waves(model: HybridModel, rung: Fidelity) -> Fidelity:
    """Return a rung with derivatives by the structure from Bloch waves, if that is less work."""
    waves = Bloch(rung.propagator, far=False)
    return _less_work(model, rung, dataclasses.replace(rung, propagator=waves))


def _less_work(model: HybridModel, steps: Fidelity | None, waves: Fidelity) -> Fidelity | None:
    """Return the fidelity of less work; GPUs are slow at diagonalising one sample after another."""
    if model.depth.device.type != "cpu":
        return steps
    return min((steps, waves), key=lambda choice: operations(model.coarser(choice)))


def _first_within(
    model: HybridModel,
    rungs: Iterable[Fidelity | None],
    limit: float,
    directions: int | None = None,
) -> Fidelity | None:
    """Return the finest rung whose passes keep the limit, or the coarsest of all.

    Those are passes with derivatives by the orientation and by `directions` of the structure,
    by default all.
    """
    for rung in rungs:
        if operations(model.coarser(rung), directions) <= limit:
            break
    return rung


def ladder(model: HybridModel) -> list[Fidelity]:
    """Return fidelities from fine to coarse.

    First the stages and samples that hardly change intensities are left out, then beams through
    which more and more of the current passes.
    """
    settings, o = model.settings, model.problem.observations
    scan, cell = model.problem.scan, model.problem.structure.cell
    reach = float(reciprocal_length_sq(cell, o.hkl).max().sqrt())
    spacing = float(scan.sample_width.max()) if scan.angle.shape[1] > 1 else 1
    thinning = max(1, int(SPACING / (reach * settings.thickness_start * spacing)))
    shares = [settings.left_out, *(max(share, settings.left_out or 0) for share in LEFT_OUT)]
    limits = settings.g_max, settings.s_max
    light = propagation.light(settings.propagator)
    return [Fidelity(*limits, share, thinning, light) for share in shares]


def operations(model: HybridModel, directions: int | None = None) -> float:
    """Return the floating-point operations of a pass with derivatives, about.

    By the orientation, and by `directions` of the structure, by default all.
    """
    if directions is None:
        directions = model.crystal.count
    return _operations(model, directions)


def value_operations(model: HybridModel) -> float:
    """Return the floating-point operations of a pass without derivatives, about."""
    return _operations(model, None)


def _operations(model: HybridModel, directions: int | None) -> float:
    settings = model.settings
    return settings.propagator.operations(work_of(model, directions), settings.depth)


def expected_operations(model: HybridModel, plan: tuple[Stage, ...]) -> float:
    """Return the operations of all passes of a usual refinement."""
    slopes = model.coarser(plan[0].slopes)
    # an adjoint sweep takes twice the operations of a value
    maps = 2 * sweeps(model.portions) * value_operations(slopes)
    work = operations(slopes) + maps / USUAL_PASSES
    if len(plan) == 1:
        return USUAL_PASSES * work + USUAL_STEPS * operations(model, 0)
    first, last = (
        operations(model.coarser(s.turns), 0)
        + (s.values != s.turns) * value_operations(model.coarser(s.values))
        for s in plan
    )
    return 2 * work + 8 * first + 5 * last


def format_plan(plan: tuple[Stage, ...]) -> str:
    """Return the stages as lines for the log, and where standard uncertainties come from."""
    lines = [
        f"Stage {stage.name}: intensities from {_described(stage.values)}; derivatives by "
        f"orientation from {_described(stage.turns)}, by the structure from "
        f"{_described(stage.slopes)}"
        for stage in plan
    ]
    if plan[-1].rough:
        lines.append("Standard uncertainties come from these coarser derivatives")
    return "\n".join(lines)


def _described(fidelity: Fidelity | None) -> str:
    if fidelity is None:
        return "the full model"
    beams = (
        "all beams"
        if fidelity.left_out is None
        else f"all but {fidelity.left_out:g} of the current"
    )
    method = ""
    if isinstance(fidelity.propagator, Bloch):
        method = ", Bloch waves of most current"
    elif isinstance(fidelity.propagator, Splitting):
        method = ", light steps"
    return f"{beams}, one orientation sample of {fidelity.thinning}{method}"
