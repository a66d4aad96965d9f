"""Where a refinement stands, and the file that another one continues from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from .data import Problem, Result
from .error_model import ErrorModel
from .losses import SOFTEST
from .model_settings import ModelSettings
from .records import InputError, load_records, save_records


@dataclass(frozen=True)
class RefineSettings:
    """Choices of the loop; see phil/hybrid_refine.phil for their meaning."""

    iterations: int = 40
    cost_tolerance: float = 1e-3
    site_tolerance: float = 5e-4  # A
    seed: int = 0
    checkpoint_seconds: float = 20.0
    device: str = "cpu"
    large: float | None = 3.0  # 10^12 operations of a pass, see `plan.make_plan`


DEFAULTS = RefineSettings()
RETIRED = ("error_model_updates", "stage_began")  # in files of earlier versions, without meaning


def _present(values: dict) -> dict:
    """Return the values but those that have no meaning any more."""
    return {name: value for name, value in values.items() if name not in RETIRED}


@dataclass
class State:
    """Where the loop stands; everything that a checkpoint needs beside the problem."""

    iteration: int = 0
    stage: int = 0  # of the plan
    proximity: float = 10.0
    error_model: ErrorModel = ErrorModel(3.0, 0.2)
    orientation_width: float = 1.0  # of the prior of orientations, in units of their sigma
    scale_stiffness: float = SOFTEST
    scale_follows: bool = False  # whether the data choose its stiffness by now
    term_widths: list = field(default_factory=list)  # of nuisance terms that follow the data
    terms_follow: bool = False  # whether the data choose these widths by now
    terms_opened: bool = False  # whether the terms were let go and have yet to move
    parameters: dict = field(default_factory=dict)
    second: list = field(default_factory=list)  # derivatives by rotations, see the room secant
    structure_step: list = field(default_factory=list)  # of its parameters, when last they moved
    start: dict = field(default_factory=dict)  # intensities before the atoms moved
    history: list = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict:
        """Return plain lists and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> State:
        """Return the state that `to_dict` described."""
        return cls(**{**_present(values), "error_model": ErrorModel(**values["error_model"])})


@dataclass(frozen=True)
class Checkpoint:
    """All that a refinement needs to begin or to go on, and its result once there is one."""

    problem: Problem
    model_settings: ModelSettings
    settings: RefineSettings = DEFAULTS
    state: State = field(default_factory=State)
    context: dict = field(default_factory=dict)  # for the one who continues
    result: Result | None = None

    def save(self, path) -> None:
        """Write an HDF5 file, whole or not at all."""
        save_records(
            path,
            problem=self.problem.to("cpu"),
            model_settings=self.model_settings.to_dict(),
            refine_settings=dataclasses.asdict(self.settings),
            state=self.state.to_dict(),
            context=self.context,
            **({} if self.result is None else {"result": self.result}),
        )

    @classmethod
    def load(cls, path) -> Checkpoint:
        """Read what `save` wrote.

        Raises InputError when the file is not of this kind or of another version.
        """
        records = load_records(path)
        needed = ("problem", "model_settings", "refine_settings", "state", "context")
        missing = [name for name in needed if name not in records]
        if missing:
            raise InputError(
                f"{path}: holds no {' or '.join(missing)}; give a file that dials.hybrid_refine "
                "wrote as output.problem"
            )
        try:
            return cls(
                records["problem"],
                ModelSettings.from_dict(records["model_settings"]),
                RefineSettings(**_present(records["refine_settings"])),
                State.from_dict(records["state"]),
                records["context"],
                records.get("result"),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}: its settings are not those of this version of dials_hybrid ({error}); "
                "refine again from the original files"
            ) from error

    @property
    def finished(self) -> bool:
        """Whether the result is there and no more iterations are asked for."""
        if self.result is None:
            return False
        return self.result.converged or self.state.iteration >= self.settings.iterations
