"""When a stage of a refinement ends: by what its steps move, promise and bring."""

from __future__ import annotations

from dataclasses import dataclass

from .checkpoint import RefineSettings, State
from .plan import Stage

UNHELD = 0.5  # proximity that hardly holds a step
LOOSENED = 3  # times that a step may be let go before the end
CALM = 2  # steps in turn that bring less than the tolerance, at the end of a stage


@dataclass(frozen=True)
class Step:
    """An outer iteration: the largest site shift (A), the parts of the cost promised and gained."""

    shift: float
    promise: float
    gain: float


class Ending:
    """Watches the steps of a refinement."""

    def __init__(self, settings: RefineSettings):
        self.settings = settings
        self.forget()

    def forget(self) -> None:
        """Begin anew, as if no step had been made."""
        self.calm = 0  # steps in turn that brought little
        self.loosened = 0  # times that an end was not one
        self.let_go = self.vain = False  # whether the next step is let go; whether the last was

    def tolerance(self, stage: Stage) -> float:
        """Return the part of the cost that a step of a stage must bring or promise."""
        return stage.loose * self.settings.cost_tolerance

    def settled(self, step: Step, stage: Stage) -> bool:
        """Whether a step moved little and promised little, or brought little, as the one before.

        Steps by approximate derivatives promise for ever what does not come.
        """
        tolerance = self.tolerance(stage)
        if self.let_go:
            self.let_go, self.vain = False, step.gain < tolerance
        if step.shift >= stage.loose * self.settings.site_tolerance:
            self.calm = 0
            return False
        self.calm = self.calm + 1 if 0 <= step.gain < tolerance else 0
        return step.promise < tolerance or self.calm >= CALM

    def may_be_held_back(self, stage: Stage, state: State) -> bool:
        """Whether steps may be small for what holds them alone: a proximity, or second derivatives.

        Those may be of where a refinement was long ago. Not once letting go was in vain, nor after
        a few times; never where derivatives are approximate, since they promise what does not
        come, nor where steps that are held no more than at the start have brought little.
        """
        if self.vain or self.loosened >= LOOSENED or stage.rough:
            return False
        if self.calm >= CALM and state.proximity <= State.proximity:
            return False
        return state.proximity > UNHELD or bool(state.second)

    def loosen(self) -> None:
        """Note that the next step is let go."""
        self.loosened += 1
        self.let_go = True
