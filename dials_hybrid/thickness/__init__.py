"""Distributions of the crystal's thickness: orientation -> p(t) on the depth grid.

Every model is a `ThicknessModel` built as `Model(depth, views, start, prior)`, with

- `outputs() -> (F, K)`, K numbers of every block, from the parameters;
- `distribution(outputs, depth) -> (F, n)`, p(t) of every block at evenly spaced depths, from the
  numbers of that block alone, rows that sum to one;
- `penalties(outputs) -> (m,)`, half of whose squared sum is the negative log prior.

The refinement needs nothing else of it: derivatives are torch's unless the model has quicker ways
of its own (`output_slopes`, `distribution_slopes`, `penalty_slopes`, `penalty_matrix`). Depths are
in A, angles in rad.
"""

from __future__ import annotations

from torch import Tensor

from .base import FINER, ThicknessModel, ThicknessPrior, slopes_of_blocks
from .heads import HEADS
from .neural import CommonDistribution, NeuralThickness
from .shapes import Cylinder, Ellipsoid, Lens, Plate, Wedge
from .simple import FrameThickness, SingleThickness
from .views import FEATURES, Views, angle_features, direction_features

MODELS = {
    "single": SingleThickness,
    "frames": FrameThickness,
    "plate": Plate,
    "wedge": Wedge,
    "lens": Lens,
    "ellipsoid": Ellipsoid,
    "cylinder": Cylinder,
    "distribution": CommonDistribution,
    "neural": NeuralThickness,
}


def build(
    name: str,
    depth: Tensor,
    views: Views,
    start: float,
    prior: ThicknessPrior,
    head: str = "free",
) -> ThicknessModel:
    """Return a model by its name, `depth` (D,) and the mean thickness `start` in A.

    `head`, one of HEADS, is that of the neural model; others have none.
    """
    if name == "neural":
        return NeuralThickness(depth, views, start, prior, HEADS[head])
    return MODELS[name](depth, views, start, prior)


def is_narrow(name: str, head: str = "free") -> bool:
    """Return whether p(t) of a block is a single thickness, as wide as the grid's step."""
    return (HEADS[head] if name == "neural" else MODELS[name]).narrow


__all__ = [
    "FEATURES",
    "FINER",
    "HEADS",
    "MODELS",
    "CommonDistribution",
    "Cylinder",
    "Ellipsoid",
    "FrameThickness",
    "Lens",
    "NeuralThickness",
    "Plate",
    "SingleThickness",
    "ThicknessModel",
    "ThicknessPrior",
    "Views",
    "Wedge",
    "angle_features",
    "build",
    "direction_features",
    "is_narrow",
    "slopes_of_blocks",
]
