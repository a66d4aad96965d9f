"""Distributions without a form: a common one, and one that a network makes of the orientation."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from .base import ThicknessModel, ThicknessPrior
from .heads import FreeHead, Head
from .views import Views

HIDDEN = 8  # units of each of two layers


class Headed(ThicknessModel):
    """A model whose outputs are those that a head takes."""

    def __init__(self, depth: Tensor, head: Head):
        super().__init__(depth)
        self.head = head

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        return self.head.distribution(outputs, depth)

    def distribution_slopes(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        return self.head.distribution_slopes(outputs, depth)

    def penalties(self, outputs: Tensor) -> Tensor:
        """See the base class."""
        return self.head.penalties(outputs)

    def penalty_slopes(self, outputs: Tensor, moves: Tensor) -> Tensor:
        """See the base class."""
        return self.head.penalty_slopes(outputs, moves)

    def penalty_matrix(self, outputs: Tensor, moves: Tensor) -> Tensor:
        """See the base class."""
        return self.head.penalty_matrix(outputs, moves)


class CommonDistribution(Headed):
    """One free distribution for all orientations."""

    def __init__(self, depth: Tensor, views: Views, start: float, prior: ThicknessPrior):
        super().__init__(depth, FreeHead(depth, views, start, prior))
        self.blocks = len(views.angle)
        self.shape = nn.Parameter(torch.zeros(self.head.size - 1, dtype=torch.float64))

    def outputs(self) -> Tensor:
        """See the base class; no stretch."""
        return torch.cat([self.shape, self.shape.new_zeros(1)]).repeat(self.blocks, 1)


class NeuralThickness(Headed):
    """A small network from features of the orientation to the numbers of a head.

    The views say what the features are, and which network sees a block. The last layer starts
    at zero, so that the start is that of the head.
    """

    def __init__(
        self,
        depth: Tensor,
        views: Views,
        start: float,
        prior: ThicknessPrior,
        head: type[Head],
    ):
        super().__init__(depth, head(depth, views, start, prior))
        self.register_buffer("features", views.features)
        self.register_buffer("network", views.network)
        inputs = views.features.shape[1]
        self.networks = nn.ModuleList(
            _network(inputs, self.head.size) for _ in range(int(views.network.max()) + 1)
        )

    def outputs(self) -> Tensor:
        """See the base class."""
        out = torch.stack([network(self.features) for network in self.networks])
        return out[self.network, torch.arange(len(self.network), device=self.network.device)]

    def output_slopes(self) -> Tensor:
        """See the base class; backwards, a block at a time, as outputs are fewer than weights."""
        parts = []
        for index, network in enumerate(self.networks):
            given = dict(network.named_parameters())
            found = vmap(jacrev(partial(functional_call, network)), (None, 0))(given, self.features)
            slopes = torch.cat([found[name].flatten(2) for name in given], 2)
            parts.append(slopes * (self.network == index)[:, None, None])
        return torch.cat(parts, 2)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, outputs),
    ).to(torch.float64)
    nn.init.normal_(layers[0].weight, std=2.0 / math.sqrt(inputs))
    nn.init.uniform_(layers[0].bias, -2.0, 2.0)
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return layers
