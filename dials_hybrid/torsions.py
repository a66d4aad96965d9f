"""Groups that have turned about a bond, put back on their circles.

The refinement moves atoms along straight lines, so that a group that turns grows on its tangents
(see the room freedom).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .data import Structure
from .freedom import Constraints, beside, bond_direction, to_cartesian


def on_circles(start: Structure, refined: Structure, constraints: Constraints) -> Structure:
    """Return the refined structure, groups that turned in the shape that they had at the start.

    `start` is the structure by whose freedom the atoms were moved. A group keeps the angle by
    which its atoms have turned.
    """
    site, scale = refined.site.clone(), to_cartesian(start.cell)
    shift = refined.site - start.site
    for axis, parent, atoms in constraints.turning:
        direction = bond_direction(start, parent, axis)
        found = [beside(start, atom, parent) for atom in atoms]
        before = torch.stack([vector for vector, _ in found])
        turns = torch.stack([turn for _, turn in found])
        own = torch.linalg.solve(turns, shift[list(atoms)]) - shift[parent]
        after = before + own @ scale.T
        there = _rotated(before, direction, _angle(before, after, direction))
        back = torch.linalg.solve(scale, (there - after).T).T
        site[list(atoms)] += torch.einsum("aij,aj->ai", turns, back)
    return refined.replace(site=site)


def _angle(before: Tensor, after: Tensor, direction: Tensor) -> Tensor:
    """Return the angle in rad by which vectors (n, 3) have turned about a direction."""
    flat = before - torch.outer(before @ direction, direction)
    sine = (torch.linalg.cross(flat, after) @ direction).sum()
    return torch.atan2(sine, (flat * after).sum())


def _rotated(vectors: Tensor, direction: Tensor, angle: Tensor) -> Tensor:
    """Return vectors (n, 3) turned about a direction by an angle in rad."""
    along = torch.outer(vectors @ direction, direction)
    across = torch.linalg.cross(direction.expand_as(vectors), vectors)
    return along + (vectors - along) * angle.cos() + across * angle.sin()
