"""Refinements that have ended, and fits around one linearisation of the diffraction."""

from __future__ import annotations

from dials_hybrid import api
from dials_hybrid.error_model import ErrorModel
from dials_hybrid.linear import CheapModel, LeastSquares, solve
from dials_hybrid.refine import Refinement


def resumed(path: str) -> tuple[api.Job, Refinement]:
    """Return what a file of dials.hybrid_refine holds, and the refinement where it stands."""
    job = api.resume(path)
    options = job.options
    return job, Refinement(job.problem, options.model, options.refine, state=job.state)


def at_end(path: str) -> tuple[api.Job, Refinement, CheapModel]:
    """Return the same, and the linearisation there by the passes of the last stage."""
    job, refinement = resumed(path)
    refinement.state.stage = len(refinement.plan) - 1
    return job, refinement, refinement.linearise()


def weighted(cheap: CheapModel, error_model: ErrorModel, proximity: float = 0.0) -> LeastSquares:
    """Return the least squares at the present parameters, outliers let go."""
    o = cheap.model.problem.observations
    sigma = error_model.robust_sigma(o.intensity, cheap.intensities(), o.noise)
    return LeastSquares(cheap, sigma, proximity)


def step(
    cheap: CheapModel, error_model: ErrorModel, proximity: float = 0.0, iterations: int = 15
) -> CheapModel:
    """Return the model after a step to the minimum, moved to first order."""
    x = solve(weighted(cheap, error_model, proximity), cheap.start(), iterations)
    lin = cheap.moved(x)
    cheap.apply(x)
    return CheapModel(cheap.model, lin)
