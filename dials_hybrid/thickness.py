"""Distributions of the crystal's thickness: orientation features -> p(t) on the depth grid.

Every model is an `nn.Module` built as `Model(depth, angle, sweep, start, prior)`, with

- `forward() -> (F, D)`, p(t) of every block, rows that sum to one;
- `prior_residuals() -> (m,)`, half of whose squared sum is the negative log prior.

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


@dataclass(frozen=True)
class ThicknessPrior:
    """Strengths of the priors on p(t).

    `smoothness` acts on third derivatives of log p over depth, which vanish for a Gaussian: a
    bell is free, a spike costs. `entropy` acts on log D - H, the information in p(t) relative
    to a flat one. `angle` acts on the change of the cumulative distribution over the rotation.
    `ends` acts on the share within about DEPTH_UNIT of either end of the grid (a sixth of the
    thickness at the start, if that is less): crystal so thin scatters too weakly to be seen, and
    both ends collect the errors of the model. `dip` acts on convex stretches of log p, valleys
    between peaks.
    """

    smoothness: float = 0.03
    entropy: float = 0.1
    angle: float = 100.0
    ends: float = 1000.0
    dip: float = 0.3


class SingleThickness(nn.Module):
    """One thickness for all orientations: a Gaussian one grid step wide around it."""

    def __init__(self, depth, angle, sweep, start, prior=None):
        super().__init__()
        self.register_buffer("depth", depth)
        self.blocks = len(angle)
        self.log_thickness = nn.Parameter(torch.tensor(math.log(start), dtype=torch.float64))

    def forward(self) -> Tensor:
        """Return p(t), (F, D)."""
        step = self.depth[1] - self.depth[0]
        log_p = -0.5 * ((self.depth - self.log_thickness.exp()) / step) ** 2
        return torch.softmax(log_p, 0).expand(self.blocks, -1)

    def prior_residuals(self) -> Tensor:
        """No prior."""
        return self.depth.new_zeros(0)


class _SmoothDensity(nn.Module):
    """log p = Gaussian start + cubic splines over depth, whose coefficients a subclass gives."""

    def __init__(self, depth, angle, sweep, start, prior: ThicknessPrior):
        super().__init__()
        zero = torch.zeros(len(depth), dtype=torch.int64, device=depth.device)
        spacing = max(2 * float(depth[1] - depth[0]), float(depth[-1]) / 20)
        basis = CurveBasis.over(depth, zero, spacing)
        self.register_buffer("depth", depth)
        self.register_buffer("angle", angle)
        self.register_buffer("sweep", sweep)
        self.register_buffer("basis", basis.matrix(depth, zero))
        stride = max(1, len(angle) // PRIOR_BLOCKS)
        self.register_buffer("looked_at", torch.arange(0, len(angle), stride))
        self.register_buffer("start", -0.5 * ((depth - start) / (0.35 * start)) ** 2)
        self.prior = prior
        # how far from its ends the grid is distrusted; thin crystals must stay possible
        self.reach = min(DEPTH_UNIT, start / 6)

    def coefficients(self) -> Tensor:
        """Return the spline coefficients of every block, (F, J)."""
        raise NotImplementedError("subclasses give the coefficients")

    def log_density(self) -> Tensor:
        """Return log p of every block, (F, D)."""
        return torch.log_softmax(self.start + self.coefficients() @ self.basis.T, dim=1)

    def forward(self) -> Tensor:
        """Return p(t), (F, D)."""
        return self.log_density().exp()

    def prior_residuals(self) -> Tensor:
        """Return the residuals of the priors."""
        log_p = self.log_density()[self.looked_at]
        blocks, step = len(log_p), float(self.depth[1] - self.depth[0]) / DEPTH_UNIT
        rough = torch.diff(log_p, n=3, dim=1) / step**3
        rough = rough * math.sqrt(self.prior.smoothness * step / blocks)
        information = math.log(len(self.depth)) + (log_p.exp() * log_p).sum(1)
        information = (2 * self.prior.entropy * information.clamp(min=1e-9) / blocks).sqrt()
        near = torch.exp(-self.depth / self.reach)
        near = near + torch.exp((self.depth - self.depth[-1]) / self.reach)
        ends = (log_p.exp() * near).sum(1) * math.sqrt(2 * self.prior.ends / blocks)
        dip = torch.relu(torch.diff(log_p, n=2, dim=1)) / step**2
        dip = dip * math.sqrt(self.prior.dip * step / blocks)
        changes = self._changes(log_p.exp(), step)
        return torch.cat([rough.flatten(), information, ends, dip.flatten(), changes])

    def _changes(self, p: Tensor, step: float) -> Tensor:
        """Residuals of the change of p(t) between neighbouring blocks of a sweep."""
        sweep, angle = self.sweep[self.looked_at], self.angle[self.looked_at]
        same = (sweep[1:] == sweep[:-1])[:, None]
        rotation = (torch.diff(angle).abs()[:, None] / ANGLE_UNIT).clamp(min=1e-3)
        change = torch.diff(torch.cumsum(p, 1), dim=0) * same / rotation.sqrt()
        return (change * math.sqrt(self.prior.angle * step)).flatten()


class CommonDistribution(_SmoothDensity):
    """One free distribution for all orientations."""

    def __init__(self, depth, angle, sweep, start, prior=ThicknessPrior()):
        super().__init__(depth, angle, sweep, start, prior)
        self.shape = nn.Parameter(torch.zeros(self.basis.shape[1], dtype=torch.float64))

    def coefficients(self) -> Tensor:
        """See the base class."""
        return self.shape.expand(len(self.angle), -1)


class NeuralThickness(_SmoothDensity):
    """A small network from the rotation angle to the coefficients, one network per sweep.

    The last layer starts at zero, so that the start is the Gaussian of the base class.
    """

    def __init__(self, depth, angle, sweep, start, prior=ThicknessPrior(), hidden: int = 8):
        super().__init__(depth, angle, sweep, start, prior)
        self.register_buffer("features", angle_features(angle, sweep))
        self.networks = nn.ModuleList(
            _network(hidden, self.basis.shape[1]) for _ in range(int(sweep.max()) + 1)
        )

    def coefficients(self) -> Tensor:
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
