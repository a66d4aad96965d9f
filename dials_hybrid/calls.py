"""Functions of a module as functions of its parameters, which torch.func differentiates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.func import functional_call


def call(function: Callable, module: nn.Module, values: Mapping[str, Tensor]):
    """Return function(module) with other values of the named parameters."""
    named = {f"module.{name}": value for name, value in values.items()}
    return functional_call(_Call(module, function), named, ())


class _Call(nn.Module):
    """Torch replaces parameters in calls of a module alone."""

    def __init__(self, module: nn.Module, function: Callable):
        super().__init__()
        self.module, self.function = module, function

    def forward(self):
        return self.function(self.module)
