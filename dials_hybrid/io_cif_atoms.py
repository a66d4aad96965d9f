"""How each atom was refined, in the codes of the core CIF dictionary."""

from __future__ import annotations

import torch

from .data import Restraints, Structure
from .freedom import basis
from .io_restraint_entries import ADP_ENTRIES


def atom_flags(structure: Structure, restraints: Restraints | None = None) -> dict[str, list[str]]:
    """Return the columns of the core CIF dictionary that tell how each atom was refined.

    Of positions D is restrained, G is of a group that turns, R rides and S is held by symmetry, of
    displacements T is held by symmetry and U restrained; an atom may have several.
    """
    freedom = structure.freedom or basis(structure)
    identity = torch.eye(6, dtype=torch.float64)
    rides = (freedom.parent >= 0).tolist()
    on_element = (structure.site_projector - identity[:3, :3]).abs().amax((1, 2)) > 1e-6
    held = (structure.adp_projector - identity).abs().amax((1, 2)) > 1e-6
    refined = (freedom.occ != 0).any(0)
    partial = refined | ((structure.occ - 1).abs() > 1e-6)
    by_site, by_u = (_restrained(restraints, len(rides), of_u) for of_u in (False, True))
    turns = (freedom.site[freedom.torsions] != 0).any(2).any(0)
    in_order = {"D": by_site, "G": turns.tolist(), "R": rides, "S": on_element.tolist()}
    of_u = {"T": (held & structure.anisotropic).tolist(), "U": by_u}
    return {
        "_atom_site_calc_flag": ["calc" if r else "d" for r in rides],
        "_atom_site_refinement_flags_posn": _codes(in_order),
        "_atom_site_refinement_flags_adp": _codes(of_u),
        "_atom_site_refinement_flags_occupancy": _codes({"P": partial.tolist()}),
    }


def _restrained(restraints: Restraints | None, atoms: int, of_u: bool) -> list[bool]:
    """Whether restraints of displacement parameters, or else of positions, name each atom."""
    named = [False] * atoms
    if restraints is not None:
        for owner, atom in zip(restraints.owner.tolist(), restraints.atom.tolist(), strict=True):
            named[atom] |= (restraints.kind[owner] in ADP_ENTRIES) == of_u
    return named


def _codes(flags: dict[str, list[bool]]) -> list[str]:
    """Return the letters that hold for each atom, a dot for none."""
    rows = zip(*flags.values(), strict=True)
    return ["".join(k for k, on in zip(flags, row, strict=True) if on) or "." for row in rows]
