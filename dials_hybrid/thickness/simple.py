"""One thickness, for all orientations or for each block."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import Neighbours, ThicknessModel, ThicknessPrior, single
from .views import Views


class SingleThickness(ThicknessModel):
    """One thickness for all orientations: a Gaussian one grid step wide around it."""

    narrow = True

    def __init__(self, depth: Tensor, views: Views, start: float, prior: ThicknessPrior):
        super().__init__(depth)
        self.blocks = len(views.angle)
        self.log_thickness = nn.Parameter(torch.tensor(math.log(start), dtype=torch.float64))

    def outputs(self) -> Tensor:
        """Return log t of every block, (F, 1)."""
        return self.log_thickness.repeat(self.blocks, 1)

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        return single(outputs.exp(), self.depth, depth)


class FrameThickness(ThicknessModel):
    """One thickness for each block, held together by the prior `stretch` on its changes."""

    narrow = True

    def __init__(self, depth: Tensor, views: Views, start: float, prior: ThicknessPrior):
        super().__init__(depth)
        self.neighbours = Neighbours(views)
        self.prior = prior
        logs = torch.full((len(views.angle), 1), math.log(start), dtype=torch.float64)
        self.log_thickness = nn.Parameter(logs)

    def outputs(self) -> Tensor:
        """Return log t of every block, (F, 1)."""
        return self.log_thickness.clone()

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        return single(outputs.exp(), self.depth, depth)

    def penalties(self, outputs: Tensor) -> Tensor:
        """See the base class."""
        return self.neighbours.changes(outputs, self.prior.stretch)
