"""Linearisations from passes at the fidelities of a stage, and when they are formed anew."""

from __future__ import annotations

import torch
from torch import Tensor

from . import secant
from .fidelity import Fidelity
from .linear import CheapModel, Linearisation
from .model import HybridModel
from .plan import Stage


class Passing:
    """Makes cheap models about the present parameters of a model.

    Derivatives by the structure are kept for some steps, those by the orientation are new in each,
    and second ones by the orientation, `second` (F, 2, 2), are learnt from step to step. `passes`
    makes the passes of the model, alone or with other processes.
    """

    def __init__(self, model: HybridModel, passes, second: list | None):
        self.model, self.passes = model, passes
        none = torch.zeros(len(model.orientation.matrix), 2, 2).to(model.depth)
        self.second = none.new_tensor(second) if second else none
        self.age = 0  # steps since the derivatives by the structure were formed
        self._linearised: Tensor | None = None  # the structure factors there

    def around(self, lin: Linearisation) -> CheapModel:
        """Return the cheap model of a linearisation, with all that is known by now."""
        return CheapModel(self.model, lin, self.second)

    def linearise(self, stage: Stage) -> CheapModel:
        """Propagate with all derivatives."""
        self.age, self._linearised = 0, self._structure_factors()
        return self.around(self._passed(stage, slopes=stage.slopes))

    def followed(self, stage: Stage, cheap: CheapModel) -> Linearisation:
        """Propagate, but keep the structure's derivatives of `cheap`."""
        return self._passed(stage, cheap.lin.crystal)

    def learn(self, cheap: CheapModel, x: Tensor, there: CheapModel, pull: Tensor) -> None:
        """Learn second derivatives from where the step x led from `cheap`.

        `pull` (R,) are the derivatives of the cost by the intensities there.
        """
        change = there.local_gradient(pull, there.lin.orientation - cheap.lin.orientation)
        self.second = secant.updated(self.second, cheap.local_rotation(x), change)

    def forget(self) -> None:
        """Take second derivatives for zero again."""
        self.second = torch.zeros_like(self.second)

    @torch.no_grad()
    def _structure_factors(self) -> Tensor:
        return self.model.crystal(self.model.problem.observations.hkl)

    def is_stale(self, steps: int, changed: float) -> bool:
        """Whether derivatives by the structure are those of another structure.

        That is after enough steps, if they have changed a larger part of the structure factors.
        """
        if self.age < steps:
            return False
        change = self._structure_factors() - self._linearised
        return float(change.norm()) > changed * float(self._linearised.norm())

    def _passed(
        self, stage: Stage, crystal: Tensor | None = None, slopes: Fidelity | None = None
    ) -> Linearisation:
        """Return profiles and slopes as the stage asks, those by the structure unless given."""
        passes, given = self.passes, crystal is not None
        apart = given or stage.turns != slopes
        if not given:
            profiles, crystal, turns = passes.tangents(turns=not apart, fidelity=slopes)
        if apart:
            profiles, _, turns = passes.tangents(structure=False, fidelity=stage.turns)
        if stage.values != stage.turns:
            profiles = passes.value_profiles(fidelity=stage.values)
        return Linearisation(profiles, crystal, turns)

    def held(self, profiles: Tensor) -> CheapModel:
        """Return the model in which atoms and orientations stay: their derivatives are zero."""
        return CheapModel(self.model, Linearisation.held(profiles, self.model.crystal.count))
