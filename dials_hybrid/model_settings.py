"""The choices of a model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from . import absorption, propagation
from .absorption import Absorption, NoAbsorption
from .corrections import Term
from .fidelity import Fidelity
from .orientation import SIGMA
from .propagation import DepthGrid, Propagator, Splitting
from .thickness import ThicknessPrior
from .valence import ValenceSettings

DETECTOR = (Term("faint", 1.0), Term("level", 1.0))  # what frames and their background do


@dataclass(frozen=True)
class ModelSettings:
    """Choices of the model. Lengths in A, reciprocal lengths in A^-1, angles in rad.

    `left_out` is the share of the current that may pass through beams that are left out, None
    keeps all within g_max and s_max. Beams beyond s_max, up to `perturbation`, act to second order;
    None leaves them out. `precision` is "single" or "double"; `memory` bounds the
    working arrays of a batch, bytes.
    """

    g_max: float = 2.0
    s_max: float = 0.02
    left_out: float | None = 1e-4
    perturbation: float | None = 0.1
    depth: DepthGrid = DepthGrid(40.0, 30)
    propagator: Propagator = Splitting()
    absorption: Absorption = NoAbsorption()
    precision: str = "single"
    thickness: str = "neural"
    thickness_start: float = 400.0
    thickness_head: str = "free"
    thickness_features: str = "angle"
    prior: ThicknessPrior = ThicknessPrior()
    valence: ValenceSettings = ValenceSettings()
    scale_spacing: float = math.radians(10)
    scale_stiffness: float | None = None  # as the data say
    orientation_spacing: float = math.radians(1)
    orientation_sigma: float | None = SIGMA  # None: as the data say
    orientation_stiffness: float = 0.1
    nuisance: tuple[Term, ...] = DETECTOR
    memory: float = 2e9

    @property
    def dtype(self) -> torch.dtype:
        """Complex dtype of the waves."""
        return {"single": torch.complex64, "double": torch.complex128}[self.precision]

    def coarser(self, fidelity: Fidelity) -> ModelSettings:
        """Return the settings of passes at that fidelity."""
        return dataclasses.replace(
            self,
            g_max=fidelity.g_max,
            s_max=fidelity.s_max,
            left_out=fidelity.left_out,
            propagator=fidelity.propagator or self.propagator,
        )

    def to_dict(self) -> dict:
        """Return nested dicts of plain numbers, for files."""
        return {
            **dataclasses.asdict(self),
            "absorption": absorption.to_dict(self.absorption),
            "propagator": propagation.to_dict(self.propagator),
        }

    @classmethod
    def from_dict(cls, values: dict) -> ModelSettings:
        """Return the settings that `to_dict` described."""
        valence = values.get("valence", {"model": "none"})
        nested = {
            "depth": DepthGrid(**values["depth"]),
            "propagator": propagation.from_dict(values["propagator"]),
            # files of earlier versions have neither absorption nor valence nor nuisance terms,
            # leave no beam out and have none to second order; all shells had one radius
            "absorption": absorption.from_dict(values.get("absorption", {"model": "none"})),
            "prior": ThicknessPrior(**values["prior"]),
            "valence": ValenceSettings(**{"charge_radius": valence.get("radius"), **valence}),
            "nuisance": tuple(Term(**term) for term in values.get("nuisance", ())),
        }
        return cls(**{"left_out": None, "perturbation": None, **values, **nested})
