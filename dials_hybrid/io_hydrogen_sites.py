"""Where hydrogen atoms are by the geometry of their parents' bonds, by smtbx.

smtbx knows one place for each atom of the asymmetric unit. What is around a parent is therefore
copied into a box without symmetry, so that atoms count that are there by symmetry alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from cctbx import crystal, xray
from smtbx.refinement import constraints as smtbx_constraints
from smtbx.refinement.constraints.geometrical import hydrogens as geometries
from smtbx.utils import connectivity_table

from .io_bonds import UNIT, neighbours
from .io_disorder import Parts, exclude
from .io_elements import neutral
from .io_structure_checks import OVERLAP

# A, between nuclei, which is what electrons see: F. H. Allen & I. J. Bruno 2010,
# doi:10.1107/S0108768110012048, defaults for the normalisation of X-ray structures
NUCLEAR_DISTANCE = {"C": 1.089, "N": 1.015, "O": 0.993}
# the geometries that leave the torsion open
TURNING = ("terminal_tetrahedral_xh3_sites", "terminal_tetrahedral_xh_site")
_MARGIN = 20.0  # A between a parent's surroundings and their next image

Bonds = list[list[tuple]]  # of each atom: (number of the other, operator that takes it there)


@dataclass(frozen=True)
class HydrogenGroup:
    """Hydrogen atoms of one parent, by their number, and their geometry, a class of smtbx.

    `length` in A is the distance to the parent; None takes the one between nuclei. `turns` says
    whether a file wants the torsion refined.
    """

    parent: int
    atoms: tuple[int, ...]
    geometry: str
    length: float | None = None
    turns: bool = False


def bonds_of(xray_structure, parts: Parts = ()) -> Bonds:
    """Return the bonds of every atom, with none between `parts` that exclude one another."""
    every = neighbours(xray_structure, parts)
    return [[end for ends in groups for end in ends] for groups in every]


def substituents(bonds: Bonds, atom: int, member: int, parts: Parts = ()) -> list[tuple]:
    """Return the bonds of an atom to those that can be there together with a `member`."""
    return [(j, op) for j, op in bonds[atom] if not exclude(parts, member, j, not op.is_unit_mx())]


def beside(xray_structure, atom: int, parent: int) -> tuple:
    """Return the copy of an atom by symmetry that is nearest to its parent, fractional.

    The atom's own place wins if no copy is nearer.
    """
    atoms, cell = xray_structure.scatterers(), xray_structure.unit_cell()
    own, there = atoms[atom].site, atoms[parent].site
    copies = []
    for operator in xray_structure.space_group():
        moved = operator * own
        near = tuple(x - round(x - y) for x, y in zip(moved, there, strict=True))
        copies.append((round(cell.distance(near, there), 6), near))
    if cell.distance(own, there) < min(copies)[0] + 1e-5:
        return own
    return min(copies)[1]


def ideal_sites(
    xray_structure, bonds: Bonds, group: HydrogenGroup, parts: Parts = ()
) -> list[tuple] | None:
    """Return the places of a group's atoms, fractional, by its geometry, torsions kept.

    None where the bonds are not those of the geometry. An atom that is listed away from its
    parent stays there, at the same place by symmetry.
    """
    hydrogens = _images(xray_structure, bonds, group, parts)
    if len(hydrogens) != number_of(group.geometry):
        return None
    others = _others(xray_structure, bonds, group, parts)
    ends = [(group.parent, UNIT), *hydrogens, *others]
    places = _ideal_places(_in_a_box(xray_structure, ends), group, len(hydrogens))
    if places is None:
        return None
    cell, sites = xray_structure.unit_cell(), xray_structure.sites_frac()
    start = sites[group.parent]
    places = [_plus(start, cell.fractionalize(place)) for place in places]
    present = [op * sites[i] for i, op in hydrogens]
    # the order of the atoms of a file need not be that of smtbx
    order = min(
        itertools.permutations(places),
        key=lambda chosen: sum(map(cell.distance, chosen, present)),
    )
    found = {}
    for (atom, operator), place in zip(hydrogens, order, strict=True):
        special = xray_structure.site_symmetry_table().get(atom).special_op()
        found.setdefault(atom, special * (operator.inverse() * place))
    return [found[atom] for atom in group.atoms]


def _plus(first, second) -> tuple:
    return tuple(x + y for x, y in zip(first, second, strict=True))


def number_of(geometry: str) -> int:
    """Return the number of hydrogen atoms that a class of smtbx places."""
    return 3 if "xh3" in geometry else 2 if "xh2" in geometry else 1


def _images(xray_structure, bonds: Bonds, group: HydrogenGroup, parts: Parts) -> list[tuple]:
    """Return the atoms of a group and their copies around the parent, as (number, operator).

    First come those of special positions, which the torsion has to suit, and of each the one
    that is where the atom is listed, if that is beside the parent.
    """
    atoms = xray_structure.scatterers()
    near = substituents(bonds, group.parent, group.atoms[0], parts)
    ordered = sorted(group.atoms, key=lambda i: atoms[i].weight_without_occupancy())
    return [
        end
        for i in ordered
        for end in sorted((e for e in near if e[0] == i), key=lambda e: not e[1].is_unit_mx())
    ]


def _others(xray_structure, bonds: Bonds, group: HydrogenGroup, parts: Parts) -> list[tuple]:
    """Return what else a parent is bonded to, and what these are bonded to but for hydrogen."""
    atoms, first = xray_structure.scatterers(), group.atoms[0]
    near = [
        end for end in substituents(bonds, group.parent, first, parts) if end[0] not in group.atoms
    ]
    next_ones = [
        (k, op.multiply(op_k))
        for j, op in near
        for k, op_k in substituents(bonds, j, first, parts)
        if neutral(atoms[k].scattering_type) != "H" and not exclude(parts, group.parent, k)
    ]
    cell, sites = xray_structure.unit_cell(), xray_structure.sites_frac()
    kept = [(group.parent, UNIT), *near]
    for k, op in next_ones:
        place = op * sites[k]
        if all(cell.distance(place, o * sites[i]) > OVERLAP for i, o in kept):
            kept.append((k, op))
    return kept[1:]


def _in_a_box(xray_structure, ends: list[tuple]):
    """Return the atoms (number, operator) as neutral ones in a box, the first in its middle."""
    cell, atoms = xray_structure.unit_cell(), xray_structure.scatterers()
    places = [cell.orthogonalize(op * atoms[i].site) for i, op in ends]
    apart = [[x - y for x, y in zip(place, places[0], strict=True)] for place in places]
    edge = 2 * max(abs(x) for vector in apart for x in vector) + _MARGIN
    box = xray.structure(crystal_symmetry=crystal.symmetry((edge,) * 3 + (90,) * 3, "P 1"))
    for number, ((i, _), vector) in enumerate(zip(ends, apart, strict=True)):
        element = neutral(atoms[i].scattering_type)
        site = tuple(0.5 + x / edge for x in vector)
        box.add_scatterer(xray.scatterer(f"{element}{number}", site=site, scattering_type=element))
    return box


def _ideal_places(box, group: HydrogenGroup, count: int) -> list[tuple] | None:
    """Return the places, A from the first atom of the box, of the `count` atoms after it."""
    element = box.scatterers()[0].scattering_type
    constraint = getattr(geometries, group.geometry)(
        pivot=0,
        constrained_site_indices=tuple(range(1, 1 + count)),
        bond_length=group.length or NUCLEAR_DISTANCE.get(element),
    )
    try:
        model = smtbx_constraints.reparametrisation(box, [constraint], connectivity_table(box))
    except (smtbx_constraints.InvalidConstraint, RuntimeError, IndexError):
        return None  # bonds that the geometry does not fit
    model.linearise()
    model.store()
    edge = box.unit_cell().parameters()[0]
    moved = [box.scatterers()[i].site for i in range(1, 1 + count)]
    return [tuple(edge * (x - 0.5) for x in site) for site in moved]
