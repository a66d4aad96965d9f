"""What every model of the thickness promises, and the priors that several of them share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jacfwd, jvp, vmap

from ..calls import call
from .views import Views

ANGLE_UNIT = math.radians(10)  # the angle over which a change of p(t) is counted
FINER = 4  # p(t) is given to the user so many times finer than the grid it is integrated on


@dataclass(frozen=True)
class ThicknessPrior:
    """Strengths of the priors on p(t).

    `smoothness` acts on third derivatives of log p over depth, which vanish for a Gaussian: a
    bell is free, a spike costs. `entropy` acts on log D - H, the information in p(t) relative
    to a flat one. `angle` acts on the change of the shape's cumulative distribution over the
    rotation, `stretch` on the change of log s, or of the logarithm of a single thickness.
    `ends` acts on the share within about DEPTH_UNIT of either end of the grid (a sixth of the
    thickness at the start, if that is less): crystal so thin scatters too weakly to be seen, and
    both ends collect the errors of the model. `dip` acts on convex stretches of log p, valleys
    between peaks.
    """

    smoothness: float = 0.03
    entropy: float = 0.1
    angle: float = 300.0
    stretch: float = 100.0
    ends: float = 1000.0
    dip: float = 0.3


class Differentiated(nn.Module):
    """Derivatives of `distribution` and `penalties`, which models and heads have."""

    def distribution_slopes(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """Return the derivatives (F, n, K) of `distribution` by the outputs of the same block."""
        return slopes_of_blocks(lambda values: self.distribution(values, depth), outputs)

    def penalty_matrix(self, outputs: Tensor, moves: Tensor) -> Tensor:
        """Return J^T J (n, n) of J = `penalty_slopes`."""
        slopes = self.penalty_slopes(outputs, moves)
        return slopes.T @ slopes


class ThicknessModel(Differentiated):
    """p(t) of F blocks. `depth` (D,) in A is the even grid on which the waves are known."""

    narrow = False  # whether p(t) of a block is a single thickness, as wide as the grid's step

    def __init__(self, depth: Tensor):
        super().__init__()
        self.register_buffer("depth", depth)

    def outputs(self) -> Tensor:
        """Return the K numbers that describe p(t) of every block, (F, K)."""
        raise NotImplementedError("subclasses give the outputs")

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """Return p(t) at evenly spaced depths (n,) in A within the grid: (F, n)."""
        raise NotImplementedError("subclasses give the distribution")

    def output_slopes(self) -> Tensor:
        """Return the derivatives (F, K, n) of the outputs by the n numbers of all parameters."""
        given = dict(self.named_parameters())
        found = jacfwd(lambda values: call(lambda module: module.outputs(), self, values))(given)
        return torch.cat([x.reshape(*x.shape[:2], -1) for x in found.values()], 2)

    def penalties(self, outputs: Tensor) -> Tensor:
        """Return the residuals (m,) of the priors; none here."""
        return outputs[:0, 0]  # a part of the outputs, so that it has derivatives

    def penalty_slopes(self, outputs: Tensor, moves: Tensor) -> Tensor:
        """Return the changes (m, n) of the penalties with n changes of the outputs (F, K, n)."""
        return vmap(lambda move: jvp(self.penalties, (outputs,), (move,))[1], -1, -1)(moves)

    def forward(self) -> Tensor:
        """Return p(t) on the grid, (F, D)."""
        return self.distribution(self.outputs(), self.depth)

    def prior_residuals(self) -> Tensor:
        """Return the residuals (m,) of the priors at the present parameters."""
        return self.penalties(self.outputs())

    def fine_depth(self) -> Tensor:
        """Return depths (n,) in A, FINER times as dense as the grid."""
        count = FINER * (len(self.depth) - 1) + 1
        ends = float(self.depth[0]), float(self.depth[-1])
        return torch.linspace(*ends, count, dtype=torch.float64).to(self.depth.device)

    def fine(self) -> tuple[Tensor, Tensor]:
        """Return the depths of `fine_depth` (n,) and p(t) there, (F, n)."""
        depth = self.fine_depth()
        return depth, self.distribution(self.outputs(), depth)


def slopes_of_blocks(function, outputs: Tensor) -> Tensor:
    """Return the derivatives (F, m, K) of function(outputs) (F, m) by the outputs (F, K).

    Each row of the function must follow from the same row of the outputs alone.
    """
    unit = torch.eye(outputs.shape[1]).to(outputs)[:, None].expand(-1, len(outputs), -1)
    slopes = vmap(lambda move: jvp(function, (outputs,), (move,))[1])(unit)  # (K, F, m)
    return slopes.permute(1, 2, 0)


def single(mean: Tensor, grid: Tensor, depth: Tensor) -> Tensor:
    """Return p(t) (F, n) of one thickness: a Gaussian about mean (F, 1), one grid step wide.

    `grid` (D,) gives the step, p(t) is at `depth` (n,); all in A.
    """
    return torch.softmax(-0.5 * ((depth - mean) / (grid[1] - grid[0])) ** 2, 1)


class Neighbours(nn.Module):
    """Changes between blocks that follow each other, every `stride`th of them."""

    def __init__(self, views: Views, stride: int = 1):
        super().__init__()
        blocks = torch.arange(0, len(views.angle), stride, device=views.angle.device)
        angle, sweep = views.angle[blocks], views.sweep[blocks]
        rotation = (torch.diff(angle).abs() / ANGLE_UNIT).clamp(min=1e-3)
        self.register_buffer("blocks", blocks)
        # one block does not follow another of another sweep
        self.register_buffer(
            "weight", (sweep[1:] == sweep[:-1])[:, None] / rotation[:, None].sqrt()
        )

    def changes(self, values: Tensor, strength: float) -> Tensor:
        """Return residuals (m, ...) of the changes of values (blocks, n, ...) over the rotation.

        `strength` is the inverse variance of a change within ANGLE_UNIT; changes add up as
        those of a random walk.
        """
        weight = self.weight.view(-1, *(1 for _ in values.shape[1:]))
        return (torch.diff(values, dim=0) * (weight * math.sqrt(strength))).flatten(0, 1)
