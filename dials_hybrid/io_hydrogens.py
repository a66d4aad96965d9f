"""Hydrogen atoms: what they are bonded to, and their usual geometries, by smtbx."""

from __future__ import annotations

import torch

from .data import Structure
from .freedom import neighbours
from .io_disorder import Parts, exclude
from .io_elements import neutral
from .io_hydrogen_sites import HydrogenGroup, bonds_of, ideal_sites, substituents

# A, longest distance of a parent
_REACH = {
    **dict.fromkeys(("B", "C", "N", "O", "F"), 1.3),
    **dict.fromkeys(("Si", "P", "S", "Cl", "Ge", "As", "Se", "Br"), 1.7),
}
_FARTHEST_MOVE = 0.5  # A, of an H to its ideal place; beyond, the geometry is another one

# the usual geometry by element, number of H and of other neighbours
_USUAL = {
    ("C", 3, 1): "terminal_tetrahedral_xh3_sites",
    ("C", 2, 2): "secondary_xh2_sites",
    ("C", 2, 1): "terminal_planar_xh2_sites",
    ("C", 1, 3): "tertiary_xh_site",
    ("C", 1, 2): "secondary_planar_xh_site",
    ("C", 1, 1): "terminal_linear_ch_site",
    ("N", 3, 1): "terminal_tetrahedral_xh3_sites",
    ("N", 2, 2): "secondary_xh2_sites",
    ("N", 2, 1): "terminal_planar_xh2_sites",
    ("N", 1, 3): "tertiary_xh_site",
    ("N", 1, 2): "secondary_planar_xh_site",
    ("O", 1, 1): "terminal_tetrahedral_xh_site",
}


def parents_of_hydrogens(structure: Structure, parts: Parts = ()) -> dict[int, int]:
    """Return the nearest atom that each H atom is bonded to; H atoms without are left out.

    `parts` are those of a disorder.
    """
    names = [structure.elements[k] for k in structure.type.tolist()]
    reach = torch.tensor([_REACH.get(name, 0.0) for name in names], dtype=torch.float64)
    parents = {}
    for atom in (i for i, name in enumerate(names) if name == "H"):
        length = neighbours(structure, atom)[0]
        never = torch.tensor([exclude(parts, atom, other) for other in range(len(names))])
        length = torch.where((length < reach) & ~never, length, torch.inf)
        if bool(length.isfinite().any()):
            parents[atom] = int(length.argmin())
    return parents


def usual_u_factor(
    structure: Structure, parents: dict[int, int], atom: int, parts: Parts = ()
) -> float:
    """Return U_iso(H) / U_eq(parent): 1.5 on O and in groups of three, which turn, else 1.2."""
    parent = parents[atom]
    siblings = sum(
        _copies(structure, h, parent, parts)
        for h, p in parents.items()
        if p == parent and not exclude(parts, atom, h)
    )
    on_oxygen = structure.elements[int(structure.type[parent])] == "O"
    return 1.5 if on_oxygen or siblings >= 3 else 1.2


def _copies(structure: Structure, atom: int, parent: int, parts: Parts) -> int:
    """Return how many copies by symmetry of an H atom a parent has, itself counted."""
    if exclude(parts, atom, atom, moved=True):
        return 1
    return max(1, round(float(structure.weight[atom] / structure.weight[parent])))


def usual_groups(
    xray_structure, parents: dict[int, int], parts: Parts = ()
) -> tuple[HydrogenGroup, ...]:
    """Return the groups of H whose geometry follows from the bonds of their parents.

    The H atoms of one parent that are in different `parts` of a disorder are groups of their own.
    """
    bonds = bonds_of(xray_structure, parts)
    names = [neutral(sc.scattering_type) for sc in xray_structure.scatterers()]
    members: dict[tuple, list[int]] = {}
    for atom, parent in parents.items():
        members.setdefault((parent, parts[atom] if parts else 0), []).append(atom)
    groups = []
    for (parent, _), atoms in sorted(members.items()):
        ends = [j for j, _ in substituents(bonds, parent, atoms[0], parts)]
        hydrogens = sum(j in atoms for j in ends)
        others = sum(names[j] != "H" for j in ends)
        geometry = _USUAL.get((names[parent], hydrogens, others))
        if geometry is not None:
            groups.append(HydrogenGroup(parent, tuple(atoms), geometry))
    return tuple(groups)


def idealised(
    xray_structure, groups: tuple[HydrogenGroup, ...], parts: Parts = ()
) -> tuple[object, tuple[HydrogenGroup, ...]]:
    """Return a copy with H atoms at their ideal places, and the groups of which that is true.

    The places are those of smtbx's geometrical constraints, torsions kept. The others, whose bonds
    are not those of the geometry or which are not near these places, stay as they are.
    """
    moved = xray_structure.deep_copy_scatterers()
    bonds = bonds_of(xray_structure, parts)
    start, distance = xray_structure.sites_frac(), xray_structure.unit_cell().distance
    placed = []
    for group in groups:
        sites = ideal_sites(xray_structure, bonds, group, parts)
        pairs = zip(group.atoms, sites or (), strict=False)
        moves = [distance(start[i], site) for i, site in pairs]
        if not moves or max(moves) > _FARTHEST_MOVE:
            continue
        for i, site in zip(group.atoms, sites, strict=True):
            moved.scatterers()[i].site = site
        placed.append(group)
    return moved, tuple(placed)
