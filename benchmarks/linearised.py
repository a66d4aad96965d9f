"""Fits around one linearisation of the diffraction."""

from __future__ import annotations

from dials_hybrid.error_model import ErrorModel
from dials_hybrid.linear import CheapModel, LeastSquares, solve


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
