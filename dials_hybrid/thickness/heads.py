"""Heads: from a few numbers of every block to p(t), with the priors on it.

A head is built as `Head(depth, views, start, prior)` and takes outputs (F, size), all zero at the
start of the refinement.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from ..curves import CurveBasis
from .base import Differentiated, Neighbours, ThicknessPrior, single, slopes_of_blocks
from .views import Views

DEPTH_UNIT = 100.0  # A, the length in which the roughness of log p is counted
PRIOR_BLOCKS = 40  # p(t) is smooth over the rotation: its priors look at about so many blocks
START_WIDTH = 0.35  # relative s.d. of p(t) at the start
COMPONENTS = 3  # of a mixture
COMPONENT_WIDTH = 0.2  # relative s.d. of each at the start, about means that far apart:
COMPONENT_STEP = math.sqrt(1.5 * (START_WIDTH**2 - COMPONENT_WIDTH**2))
WIDTH_SIGMA, MEAN_SIGMA, WEIGHT_SIGMA = 0.7, 0.5, 1.0  # widths of priors on logarithms


class Head(Differentiated):
    """`size` numbers of every block -> p(t)."""

    size: int
    narrow = False  # see ThicknessModel

    def __init__(self, depth: Tensor, views: Views, start: float, prior: ThicknessPrior):
        super().__init__()
        self.register_buffer("depth", depth)
        self.neighbours = Neighbours(views, max(1, len(views.angle) // PRIOR_BLOCKS))
        self.centre, self.prior = start, prior

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """Return p(t) (F, n) at evenly spaced depths (n,) in A from the outputs (F, size)."""
        raise NotImplementedError("subclasses give the distribution")

    def quantities(self, outputs: Tensor) -> Tensor:
        """Return what the priors look at (B, q): of each block alone, from its outputs."""
        raise NotImplementedError("subclasses give the quantities")

    def quantity_slopes(self, outputs: Tensor) -> Tensor:
        """Return the derivatives (B, q, size) of the quantities by the outputs of the block."""
        return slopes_of_blocks(self.quantities, outputs)

    def residuals(self, quantities: Tensor) -> Tensor:
        """Return the residuals (m, ...) of the priors, linear in the quantities (B, q, ...)."""
        raise NotImplementedError("subclasses give the priors")

    def penalties(self, outputs: Tensor) -> Tensor:
        """Return the residuals (m,) of the priors from the outputs (F, size)."""
        return self.residuals(self.quantities(outputs[self.neighbours.blocks]))

    def penalty_slopes(self, outputs: Tensor, moves: Tensor) -> Tensor:
        """See `ThicknessModel`; a block has far fewer outputs than the model has parameters."""
        given, moves = outputs[self.neighbours.blocks], moves[self.neighbours.blocks]
        return self.residuals(self.quantity_slopes(given) @ moves)


class MeanHead(Head):
    """The mean alone, p(t) a Gaussian one grid step wide: its logarithm changes smoothly."""

    size = 1
    narrow = True

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        return single(self.centre * outputs.exp(), self.depth, depth)

    def quantities(self, outputs: Tensor) -> Tensor:
        """See the base class."""
        return outputs

    def residuals(self, quantities: Tensor) -> Tensor:
        """See the base class."""
        return self.neighbours.changes(quantities, self.prior.stretch)


class StretchedHead(Head):
    """p(t) = q(t / s) / s: the outputs are those of a shape q, then log s.

    Tilting a plate stretches its p(t) and leaves its shape alone: the stretch may change over
    the rotation more freely than the shape.
    """

    def __init__(self, depth: Tensor, views: Views, start: float, prior: ThicknessPrior):
        super().__init__(depth, views, start, prior)
        # how far from its ends the grid is distrusted; thin crystals must stay possible
        self.reach = min(DEPTH_UNIT, start / 6)

    def log_density(self, shape: Tensor, depth: Tensor) -> Tensor:
        """Return log q (F, n) but for a constant of each row.

        `shape` (F, size - 1) are the outputs but the last, the depths (F, n) are in A.
        """
        raise NotImplementedError("subclasses give the shape")

    def shape_penalties(self, shape: Tensor, log_q: Tensor) -> list[Tensor]:
        """Return residuals (B, m) of the shape's own priors."""
        raise NotImplementedError("subclasses give the shape's priors")

    def log_shape(self, outputs: Tensor) -> Tensor:
        """Return log q on the grid, normalised there, (F, D)."""
        depth = self.depth.expand(len(outputs), -1)
        return torch.log_softmax(self.log_density(outputs[:, :-1], depth), dim=1)

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        inside = depth * torch.exp(-outputs[:, -1:])
        return torch.softmax(self.log_density(outputs[:, :-1], inside), dim=1)

    def quantities(self, outputs: Tensor) -> Tensor:
        """See the base class: residuals of each block alone, its cumulative q, and log s."""
        shape, p = outputs[:, :-1], self.distribution(outputs, self.depth)
        ends = (p * self._near_ends(len(p))).sum(1, keepdim=True)
        return torch.cat([ends, self.of_shape(shape, self.log_shape(outputs)), outputs[:, -1:]], 1)

    def of_shape(self, shape: Tensor, log_q: Tensor) -> Tensor:
        """Return the quantities of the shape, first residuals, then the cumulative q."""
        blocks, q = len(log_q), log_q.exp()
        information = math.log(len(self.depth)) + (q * log_q).sum(1, keepdim=True)
        information = (2 * self.prior.entropy * information.clamp(min=1e-9) / blocks).sqrt()
        return torch.cat([*self.shape_penalties(shape, log_q), information, q.cumsum(1)], 1)

    def _near_ends(self, blocks: int) -> Tensor:
        """What p(t) (D,) near the ends of the grid costs, as the root of twice that."""
        near = torch.exp(-self.depth / self.reach)
        near = near + torch.exp((self.depth - self.depth[-1]) / self.reach)
        return near * math.sqrt(2 * self.prior.ends / blocks)

    def residuals(self, quantities: Tensor) -> Tensor:
        """See the base class."""
        alone, changing = self._split(quantities)
        return torch.cat([alone.flatten(0, 1), self._of_rotation(changing)])

    def penalty_matrix(self, outputs: Tensor, moves: Tensor) -> Tensor:
        """See the base class; what a block has alone meets its few outputs first."""
        given, moves = outputs[self.neighbours.blocks], moves[self.neighbours.blocks]
        alone, changing = self._split(self.quantity_slopes(given))
        own, rotation = alone.mT @ alone @ moves, self._of_rotation(changing @ moves)
        return moves.flatten(0, 1).T @ own.flatten(0, 1) + rotation.T @ rotation

    def _split(self, quantities: Tensor) -> tuple[Tensor, ...]:
        """Part quantities (B, q, ...): what is of each block alone, and what changes between."""
        changing = len(self.depth) + 1
        return quantities.split([quantities.shape[1] - changing, changing], 1)

    def _of_rotation(self, quantities: Tensor) -> Tensor:
        """The residuals (m, ...) of the cumulative q and of log s (B, D + 1, ...)."""
        cumulative, stretch = quantities[:, :-1], quantities[:, -1:]
        step = float(self.depth[1] - self.depth[0]) / DEPTH_UNIT
        return torch.cat(
            [
                self.neighbours.changes(cumulative, self.prior.angle * step),
                self.neighbours.changes(stretch, self.prior.stretch),
                # the shape has a mean of its own, and stretching it all the same changes nothing
                stretch.mean(0) * math.sqrt(self.prior.stretch),
            ]
        )


class GaussianHead(StretchedHead):
    """A Gaussian: the outputs are the logarithm of its relative width, over that at the start,
    and that of its mean."""

    size = 2

    def log_density(self, shape: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        width = START_WIDTH * self.centre * shape.exp()
        return -0.5 * ((depth - self.centre) / width) ** 2

    def shape_penalties(self, shape: Tensor, log_q: Tensor) -> list[Tensor]:
        """See the base class."""
        return [shape / (WIDTH_SIGMA * math.sqrt(len(shape)))]


class MixtureHead(StretchedHead):
    """COMPONENTS Gaussians: the outputs are the logarithms of their means and widths, over those
    at the start, those of their weights, and the stretch."""

    size = 3 * COMPONENTS + 1

    def log_density(self, shape: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        log_mean, log_width, log_weight = shape[:, :, None].split(COMPONENTS, 1)
        place = torch.arange(COMPONENTS, device=shape.device)[:, None] - (COMPONENTS - 1) / 2
        mean = self.centre * (1 + COMPONENT_STEP * place) * log_mean.exp()
        width = COMPONENT_WIDTH * self.centre * log_width.exp()
        height = log_weight - log_width
        return torch.logsumexp(height - 0.5 * ((depth[:, None] - mean) / width) ** 2, 1)

    def shape_penalties(self, shape: Tensor, log_q: Tensor) -> list[Tensor]:
        """See the base class."""
        sigmas = (MEAN_SIGMA, WIDTH_SIGMA, WEIGHT_SIGMA)
        parts = zip(shape.split(COMPONENTS, 1), sigmas, strict=True)
        return [part / (sigma * math.sqrt(len(shape))) for part, sigma in parts]


class FreeHead(StretchedHead):
    """log q = Gaussian at the start + cubic splines over depth, whose coefficients are outputs."""

    def __init__(self, depth: Tensor, views: Views, start: float, prior: ThicknessPrior):
        super().__init__(depth, views, start, prior)
        zero = torch.zeros(len(depth), dtype=torch.int64, device=depth.device)
        spacing = max(2 * float(depth[1] - depth[0]), float(depth[-1]) / 20)
        self.splines = CurveBasis.over(depth, zero, spacing)
        self.register_buffer("basis", self.splines.matrix(depth, zero))
        self.size = self.basis.shape[1] + 1

    def start(self, depth: Tensor) -> Tensor:
        """Return log q at depths in A, but for a constant, before anything is refined."""
        return -0.5 * ((depth - self.centre) / (START_WIDTH * self.centre)) ** 2

    def log_density(self, shape: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        return self.start(depth) + self.splines.along_rows(shape, depth)

    def distribution_slopes(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class; log q is linear in its splines."""
        shape, inside = outputs[:, :-1], depth * torch.exp(-outputs[:, -1:])
        p = torch.softmax(self.log_density(shape, inside), dim=1)[:, :, None]
        basis = self.splines.matrix(inside.flatten(), inside.new_zeros(inside.numel()))
        by_depth = grad(lambda x: self.log_density(shape, x).sum())(inside)
        by_stretch = (-inside * by_depth)[:, :, None]
        slopes = torch.cat([basis.unflatten(0, inside.shape), by_stretch], 2)
        return p * (slopes - (p * slopes).sum(1, keepdim=True))

    def quantity_slopes(self, outputs: Tensor) -> Tensor:
        """See the base class."""
        shape, log_q = outputs[:, :-1], self.log_shape(outputs)
        moves = self.basis - (log_q.exp() @ self.basis)[:, None]  # of log q (B, D, size - 1)
        of_shape = vmap(lambda x: jvp(lambda y: self.of_shape(shape, y), (log_q,), (x,))[1])
        by_shape = of_shape(moves.permute(2, 0, 1)).permute(1, 2, 0)
        p = self.distribution_slopes(outputs, self.depth)
        ends = torch.einsum("d,bdk->bk", self._near_ends(len(p)), p)[:, None]
        stretch = torch.zeros_like(ends)
        stretch[:, :, -1] = 1
        return torch.cat([ends, nn.functional.pad(by_shape, (0, 1)), stretch], 1)

    def log_shape(self, outputs: Tensor) -> Tensor:
        """See the base class; on the grid the splines are one matrix product."""
        return torch.log_softmax(self.start(self.depth) + outputs[:, :-1] @ self.basis.T, dim=1)

    def shape_penalties(self, shape: Tensor, log_q: Tensor) -> list[Tensor]:
        """See the base class: third derivatives, and valleys."""
        blocks, step = len(log_q), float(self.depth[1] - self.depth[0]) / DEPTH_UNIT
        rough = torch.diff(log_q, n=3, dim=1) / step**3
        rough = rough * math.sqrt(self.prior.smoothness * step / blocks)
        dip = torch.relu(torch.diff(log_q, n=2, dim=1)) / step**2
        dip = dip * math.sqrt(self.prior.dip * step / blocks)
        return [rough, dip]


HEADS = {"mean": MeanHead, "gaussian": GaussianHead, "mixture": MixtureHead, "free": FreeHead}
