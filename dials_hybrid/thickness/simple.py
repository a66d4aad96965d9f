"""One thickness, for all orientations or for each block."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import Neighbours, ThicknessModel, ThicknessPrior, single
from .views import Views


class Narrow(ThicknessModel):
    """Blocks of one thickness each: a Gaussian one grid step wide around it.

    `log_thickness`, one number or (F, 1), is the logarithm of the thickness in A.
    """

    narrow = True

    def __init__(self, depth: Tensor, views: Views, log_thickness: Tensor):
        super().__init__(depth)
        self.blocks = len(views.angle)
        self.log_thickness = nn.Parameter(log_thickness)

    def outputs(self) -> Tensor:
        """Return log t of every block, (F, 1)."""
        return self.log_thickness.expand(self.blocks, 1).clone()

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        return single(outputs.exp(), self.depth, depth)


class SingleThickness(Narrow):
    """One thickness for all orientations."""

    def __init__(self, depth: Tensor, views: Views, start: float, prior: ThicknessPrior):
        super().__init__(depth, views, torch.tensor(math.log(start), dtype=torch.float64))


class FrameThickness(Narrow):
    """One thickness for each block, held together by the prior `stretch` on its changes."""

    def __init__(self, depth: Tensor, views: Views, start: float, prior: ThicknessPrior):
        logs = torch.full((len(views.angle), 1), math.log(start), dtype=torch.float64)
        super().__init__(depth, views, logs)
        self.neighbours = Neighbours(views)
        self.prior = prior

    def penalties(self, outputs: Tensor) -> Tensor:
        """See the base class."""
        return self.neighbours.changes(outputs, self.prior.stretch)
