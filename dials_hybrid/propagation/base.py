"""What all propagation methods share: their arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..records import Record

DIRECTIONS = 16  # changes of the potential that are worked on together


@dataclass(frozen=True)
class DepthGrid:
    """Depths step, 2 step, ... count step, in A."""

    step: float
    count: int

    def depths(self, **kwargs) -> Tensor:
        """Return the depths (D,) in A."""
        return self.step * torch.arange(1, self.count + 1, **kwargs)


@dataclass(frozen=True)
class Probe(Record):
    """The beams that are asked for, in B slots per block, and the weights of the samples.

    A slot that is not needed has weight zero; the same beam may fill several slots.
    """

    incident: Tensor  # (F,) index of the incident beam
    beam: Tensor  # (F, B) index of the beam of each slot
    weight: Tensor  # (F, B, T) real


@dataclass(frozen=True)
class Moves:
    """Directions of forward-mode derivatives: P of the potential, then Q of the excitation."""

    potential: Tensor  # (P, F, N, N)
    excitation: Tensor  # (Q, F, N, T)


class Action(Protocol):
    """P changes dV of one block's potential, as they act on waves."""

    directions: int  # P

    def __call__(self, waves: Tensor) -> Tensor:
        """Return dV waves (N, P, m) of waves (N, m)."""


class Changes(Protocol):
    """P changes dV of a batch's potential, made as they are used."""

    def __len__(self) -> int:
        """Return P."""

    def matrices(self) -> Iterator[Tensor]:
        """Yield them (p, F, N, N), at most DIRECTIONS at a time; no P is one group of none."""

    def actions(self, far: bool) -> list[Action]:
        """Return those of each block; unless `far`, what far beams do stays as it is."""


@dataclass(frozen=True)
class Size:
    """Beams, orientation samples and slots of a block, for estimates of memory."""

    beams: int
    samples: int
    slots: int


@dataclass(frozen=True)
class Work:
    """What a pass over some blocks has to do, for estimates of its operations.

    `half_range` is that of S over the beams, of a few samples of each block that are evenly
    spaced over its rotation; `coupling` is about the largest eigenvalue of the potential, which
    is a real matrix or not. `directions` are those of the potential in a pass with derivatives,
    beside two of the excitation; None is a pass for the intensities alone.
    """

    beams: Tensor  # (F,)
    slots: Tensor  # (F,) reflections that are asked for
    samples: int
    directions: int | None
    half_range: Tensor  # (F, k) A^-1
    coupling: float  # A^-1
    real: bool
    eps: float  # of the waves' precision

    @property
    def products(self) -> int:
        """Waves of a sample in a product of waves: those carried, and by changes of V."""
        return 1 if self.directions is None else 2 * self.directions + 3


class Propagator(Protocol):
    """The signature of a method; see the package's docstring."""

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor: ...

    def tangents(
        self, potential: Tensor, excitation: Tensor, moves: Moves, probe: Probe, grid: DepthGrid
    ) -> tuple[Tensor, Tensor]:
        """Return the profiles (F, B, D) and their derivatives (P + Q, F, B, D) along the moves."""
        raise NotImplementedError(f"{type(self).__name__} has no derivatives along moves")

    def derivatives(
        self,
        potential: Tensor,
        excitation: Tensor,
        changes: Changes,
        turns: Tensor,
        probe: Probe,
        grid: DepthGrid,
    ) -> tuple[Tensor, Tensor]:
        """Return the profiles (F, B, D) and their derivatives (P + Q, F, B, D).

        Those are by changes of the potential and, `turns` (Q, F, N, T), of the excitation. Changes
        go in groups, so that memory does not grow with them.
        """
        by_structure, by_turn = [], None
        for group in changes.matrices():
            moves = Moves(group, turns if by_turn is None else turns[:0])
            profiles, slopes = self.tangents(potential, excitation, moves, probe, grid)
            by_structure.append(slopes[: len(group)])
            by_turn = slopes[len(group) :] if by_turn is None else by_turn
        return profiles, torch.cat([*by_structure, by_turn])

    def gradient_numbers(self, size: Size, grid: DepthGrid) -> float:
        """Return a bound of the complex numbers that a gradient holds for each block."""

    def tangent_numbers(self, size: Size, grid: DepthGrid) -> float:
        """Return a bound of those that tangents hold for each block and direction."""

    def operations(self, work: Work, grid: DepthGrid) -> float:
        """Return the floating-point operations of a pass, about: those of matrix products."""


def start_waves(excitation: Tensor, incident: Tensor, dtype: torch.dtype) -> Tensor:
    """Return psi(0) (F, N, T): one in the incident beam, zero elsewhere."""
    waves = torch.zeros(excitation.shape, dtype=dtype, device=excitation.device)
    waves[torch.arange(len(incident), device=incident.device), incident] = 1
    return waves
