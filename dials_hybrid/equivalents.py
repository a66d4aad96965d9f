"""Symmetry-equivalent reflections: structure factors of one of each set tell those of all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Structure
from .records import Record


def images(structure: Structure, hkl: Tensor) -> Tensor:
    """Return h R of reflections hkl (M, 3) by the structure's S operators, (S, M, 3) int64."""
    # in double precision, since devices multiply no matrices of integers
    moved = torch.einsum("mi,sij->smj", hkl.to(structure.sym_rot), structure.sym_rot)
    return moved.round().to(torch.int64)


def has_centre(structure: Structure) -> bool:
    """Tell whether the origin is a centre of inversion: all F(g) are real and stay so."""
    turned, shift = structure.sym_rot.cpu(), structure.sym_trans.cpu()
    inverts = (turned + torch.eye(3).to(turned)).abs().amax((1, 2)) < 1e-9
    return bool((inverts & ((shift - shift.round()).abs().amax(1) < 1e-9)).any())


def numbered(hkl: Tensor) -> Tensor:
    """Return a number (...) for each of some reflections (..., 3), distinct ones for distinct."""
    span = 2 * int(hkl.abs().max()) + 1
    return (hkl[..., 0] * span + hkl[..., 1]) * span + hkl[..., 2]


@dataclass(frozen=True)
class Equivalents(Record):
    """One of each set of equivalent reflections, and how the M given ones follow from these U."""

    hkl: Tensor  # (U, 3) int64
    place: Tensor  # (M,) of the one that stands for each
    phase: Tensor  # (M,) exp(2 pi i h.t), complex128

    @classmethod
    def of(cls, structure: Structure, hkl: Tensor) -> Equivalents:
        """Return the sets of reflections hkl (M, 3) by the structure's operators."""
        hkl = hkl.to(structure.sym_rot.device)
        if not len(hkl):
            none = structure.sym_trans.new_zeros(0)
            return cls(hkl, hkl.new_zeros(0), torch.polar(none, none))
        moved = images(structure, hkl)
        key, operator = numbered(moved).max(0)
        _, place = torch.unique(key, return_inverse=True)
        chosen = hkl.new_zeros(int(place.max()) + 1, 3)
        chosen[place] = moved[operator, torch.arange(len(hkl), device=hkl.device)]
        # F(h) = exp(2 pi i h.t) F(h R)
        turn = 2 * math.pi * (hkl.double() * structure.sym_trans[operator]).sum(1)
        return cls(chosen, place, torch.polar(torch.ones_like(turn), turn))

    def spread(self, values: Tensor) -> Tensor:
        """Return structure factors (..., M) of all reflections from those (..., U) of the sets."""
        return values[..., self.place].mul_(self.phase)
