"""Distributions of the crystal's thickness: orientation features -> p(t) on the depth grid.

Every model is a `ThicknessModel` built as `Model(depth, angle, sweep, start, prior)`, with

- `outputs() -> (F, K)`, K numbers of every block, from the parameters;
- `distribution(outputs, depth) -> (F, n)`, p(t) of every block at evenly spaced depths, from the
  numbers of that block alone, rows that sum to one;
- `penalties(outputs) -> (m,)`, half of whose squared sum is the negative log prior.

The refinement needs nothing else of it. Depths in A, angles in rad.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .curves import CurveBasis

DEPTH_UNIT = 100.0  # A, the length in which the roughness of log p is counted
ANGLE_UNIT = math.radians(10)  # the angle over which a change of p(t) is counted
PRIOR_BLOCKS = 40  # p(t) is smooth over the rotation: its priors look at about so many blocks
FINER = 4  # p(t) is given to the user so many times finer than the grid it is integrated on


@dataclass(frozen=True)
class ThicknessPrior:
    """Strengths of the priors on p(t).

    `smoothness` acts on third derivatives of log p over depth, which vanish for a Gaussian: a
    bell is free, a spike costs. `entropy` acts on log D - H, the information in p(t) relative
    to a flat one. `angle` acts on the change of the shape's cumulative distribution over the
    rotation, `stretch` on the change of log s.
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


class ThicknessModel(nn.Module):
    """p(t) of F blocks. `depth` (D,) in A is the even grid on which the waves are known."""

    def __init__(self, depth: Tensor):
        super().__init__()
        self.register_buffer("depth", depth)

    def outputs(self) -> Tensor:
        """Return the K numbers that describe p(t) of every block, (F, K)."""
        raise NotImplementedError("subclasses give the outputs")

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """Return p(t) at evenly spaced depths (n,) in A within the grid: (F, n)."""
        raise NotImplementedError("subclasses give the distribution")

    def penalties(self, outputs: Tensor) -> Tensor:
        """Return the residuals (m,) of the priors; none here."""
        return outputs[:0, 0]  # a part of the outputs, so that it has derivatives

    def forward(self) -> Tensor:
        """Return p(t) on the grid, (F, D)."""
        return self.distribution(self.outputs(), self.depth)

    def prior_residuals(self) -> Tensor:
        """Return the residuals (m,) of the priors at the present parameters."""
        return self.penalties(self.outputs())

    def fine(self) -> tuple[Tensor, Tensor]:
        """Return depths (n,) in A, FINER times as dense as the grid, and p(t) there, (F, n)."""
        count = FINER * (len(self.depth) - 1) + 1
        ends = float(self.depth[0]), float(self.depth[-1])
        depth = torch.linspace(*ends, count, dtype=torch.float64).to(self.depth.device)
        return depth, self.distribution(self.outputs(), depth)


class SingleThickness(ThicknessModel):
    """One thickness for all orientations: a Gaussian one grid step wide around it."""

    def __init__(self, depth, angle, sweep, start, prior=None):
        super().__init__(depth)
        self.blocks = len(angle)
        self.log_thickness = nn.Parameter(torch.tensor(math.log(start), dtype=torch.float64))

    def outputs(self) -> Tensor:
        """Return log t of every block, (F, 1)."""
        return self.log_thickness.repeat(self.blocks, 1)

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        step = self.depth[1] - self.depth[0]
        return torch.softmax(-0.5 * ((depth - outputs.exp()) / step) ** 2, 1)


class _SmoothDensity(ThicknessModel):
    """p(t) = q(t / s) / s: a shape q, whose logarithm is a spline, and a stretch s of each block.

    log q = Gaussian start + cubic splines over depth. Tilting a plate stretches its p(t) and
    leaves its shape alone: the stretch may change over the rotation more freely than the shape.
    The outputs are the coefficients of the splines and log s, all zero at the start.
    """

    def __init__(self, depth, angle, sweep, start, prior: ThicknessPrior):
        super().__init__(depth)
        zero = torch.zeros(len(depth), dtype=torch.int64, device=depth.device)
        spacing = max(2 * float(depth[1] - depth[0]), float(depth[-1]) / 20)
        self.splines = CurveBasis.over(depth, zero, spacing)
        self.register_buffer("angle", angle)
        self.register_buffer("sweep", sweep)
        self.register_buffer("basis", self.splines.matrix(depth, zero))
        stride = max(1, len(angle) // PRIOR_BLOCKS)
        self.register_buffer("looked_at", torch.arange(0, len(angle), stride))
        self.centre = start
        self.prior = prior
        # how far from its ends the grid is distrusted; thin crystals must stay possible
        self.reach = min(DEPTH_UNIT, start / 6)

    def start(self, depth: Tensor) -> Tensor:
        """Return log q at depths in A, but for a constant, before anything is refined."""
        return -0.5 * ((depth - self.centre) / (0.35 * self.centre)) ** 2

    def log_shape(self, outputs: Tensor) -> Tensor:
        """Return log q on the grid, normalised there, (F, D)."""
        return torch.log_softmax(self.start(self.depth) + outputs[:, :-1] @ self.basis.T, dim=1)

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        inside = depth * torch.exp(-outputs[:, -1:])
        values = self.start(inside) + self.splines.along_rows(outputs[:, :-1], inside)
        return torch.softmax(values, dim=1)

    def penalties(self, outputs: Tensor) -> Tensor:
        """See the base class."""
        outputs = outputs[self.looked_at]
        log_q, p = self.log_shape(outputs), self.distribution(outputs, self.depth)
        blocks, step = len(log_q), float(self.depth[1] - self.depth[0]) / DEPTH_UNIT
        rough = torch.diff(log_q, n=3, dim=1) / step**3
        rough = rough * math.sqrt(self.prior.smoothness * step / blocks)
        information = math.log(len(self.depth)) + (log_q.exp() * log_q).sum(1)
        information = (2 * self.prior.entropy * information.clamp(min=1e-9) / blocks).sqrt()
        near = torch.exp(-self.depth / self.reach)
        near = near + torch.exp((self.depth - self.depth[-1]) / self.reach)
        ends = (p * near).sum(1) * math.sqrt(2 * self.prior.ends / blocks)
        dip = torch.relu(torch.diff(log_q, n=2, dim=1)) / step**2
        dip = dip * math.sqrt(self.prior.dip * step / blocks)
        shape = self._changes(torch.cumsum(log_q.exp(), 1), self.prior.angle * step)
        stretch = self._changes(outputs[:, -1:], self.prior.stretch)
        # the shape has a mean of its own, and stretching it all the same changes nothing
        level = outputs[:, -1:].mean(0) * math.sqrt(self.prior.stretch)
        return torch.cat([rough.flatten(), information, ends, dip.flatten(), shape, stretch, level])

    def _changes(self, values: Tensor, strength: float) -> Tensor:
        """Residuals of the change of values (F, n) between neighbouring blocks of a sweep."""
        sweep, angle = self.sweep[self.looked_at], self.angle[self.looked_at]
        same = (sweep[1:] == sweep[:-1])[:, None]
        rotation = (torch.diff(angle).abs()[:, None] / ANGLE_UNIT).clamp(min=1e-3)
        change = torch.diff(values, dim=0) * same / rotation.sqrt()
        return (change * math.sqrt(strength)).flatten()


class CommonDistribution(_SmoothDensity):
    """One free distribution for all orientations."""

    def __init__(self, depth, angle, sweep, start, prior=ThicknessPrior()):
        super().__init__(depth, angle, sweep, start, prior)
        self.shape = nn.Parameter(torch.zeros(self.basis.shape[1], dtype=torch.float64))

    def outputs(self) -> Tensor:
        """See the base class; no stretch."""
        return torch.cat([self.shape, self.shape.new_zeros(1)]).repeat(len(self.angle), 1)


class NeuralThickness(_SmoothDensity):
    """A small network from the rotation angle to shape and stretch, one network per sweep.

    The last layer starts at zero, so that the start is the Gaussian of the base class.
    """

    def __init__(self, depth, angle, sweep, start, prior=ThicknessPrior(), hidden: int = 8):
        super().__init__(depth, angle, sweep, start, prior)
        self.register_buffer("features", angle_features(angle, sweep))
        self.networks = nn.ModuleList(
            _network(hidden, self.basis.shape[1] + 1) for _ in range(int(sweep.max()) + 1)
        )

    def outputs(self) -> Tensor:
        """See the base class."""
        out = torch.stack([network(self.features) for network in self.networks])
        return out[self.sweep, torch.arange(len(self.sweep), device=self.sweep.device)]


def angle_features(angle: Tensor, sweep: Tensor) -> Tensor:
    """Return (F, 1): the rotation angle scaled to [-1, 1] within each sweep."""
    out = torch.zeros(len(angle), 1, dtype=torch.float64, device=angle.device)
    for index in range(int(sweep.max()) + 1):
        mine = sweep == index
        low, high = angle[mine].min(), angle[mine].max()
        out[mine, 0] = (2 * angle[mine] - low - high) / (high - low).clamp(min=1e-6)
    return out


def _network(hidden: int, outputs: int) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Linear(1, hidden),
        nn.Tanh(),
        nn.Linear(hidden, hidden),
        nn.Tanh(),
        nn.Linear(hidden, outputs),
    ).to(torch.float64)
    nn.init.normal_(layers[0].weight, std=2.0)
    nn.init.uniform_(layers[0].bias, -2.0, 2.0)
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return layers


MODELS = {
    "single": SingleThickness,
    "distribution": CommonDistribution,
    "neural": NeuralThickness,
}
