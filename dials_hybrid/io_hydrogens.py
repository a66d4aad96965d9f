"""Hydrogen atoms: what they are bonded to, and their usual geometries, by smtbx."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from cctbx import xray
from cctbx.array_family import flex
from smtbx.refinement import constraints as smtbx_constraints
from smtbx.refinement.constraints.geometrical import hydrogens as geometries
from smtbx.utils import connectivity_table

from .data import Structure
from .freedom import neighbours
from .io_disorder import Parts, exclude
from .io_structures import neutral

logger = logging.getLogger("dials.hybrid.io_hydrogens")

# A, between nuclei, which is what electrons see: F. H. Allen & I. J. Bruno 2010,
# doi:10.1107/S0108768110012048, defaults for the normalisation of X-ray structures
NUCLEAR_DISTANCE = {"C": 1.089, "N": 1.015, "O": 0.993}
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


@dataclass(frozen=True)
class HydrogenGroup:
    """Hydrogen atoms of one parent, by their number, and their geometry, a class of smtbx.

    `length` in A is the distance to the parent; None takes the one between nuclei.
    """

    parent: int
    atoms: tuple[int, ...]
    geometry: str
    length: float | None = None


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
    siblings = sum(p == parent and not exclude(parts, atom, h) for h, p in parents.items())
    on_oxygen = structure.elements[int(structure.type[parent])] == "O"
    return 1.5 if on_oxygen or siblings >= 3 else 1.2


def usual_groups(
    xray_structure, parents: dict[int, int], parts: Parts = ()
) -> tuple[HydrogenGroup, ...]:
    """Return the groups of H whose geometry follows from the bonds of their parents.

    The H atoms of one parent that are in different `parts` of a disorder are groups of their own.
    """
    table = bond_table(xray_structure, parts).pair_asu_table.extract_pair_sym_table(
        skip_j_seq_less_than_i_seq=False, all_interactions_from_inside_asu=True
    )
    names = [neutral(sc.scattering_type) for sc in xray_structure.scatterers()]
    members: dict[tuple, list[int]] = {}
    for atom, parent in parents.items():
        members.setdefault((parent, parts[atom] if parts else 0), []).append(atom)
    groups = []
    for (parent, _), atoms in sorted(members.items()):
        others = sum(
            len(ops)
            for j, ops in table[parent].items()
            if names[j] != "H" and not exclude(parts, atoms[0], j)
        )
        geometry = _USUAL.get((names[parent], len(atoms), others))
        if geometry is not None:
            groups.append(HydrogenGroup(parent, tuple(atoms), geometry))
    return tuple(groups)


def bond_table(xray_structure, parts: Parts = ()):
    """Return smtbx's bonds, with none between parts that exclude one another."""
    if not parts:
        return connectivity_table(_plain(xray_structure))
    size_t = flex.size_t
    return connectivity_table(
        _plain(xray_structure),
        conformer_indices=size_t([max(part, 0) for part in parts]),
        sym_excl_indices=size_t([max(-part, 0) for part in parts]),
    )


def _plain(xray_structure):
    """Return a copy with neutral atoms, the names that smtbx has distances and radii for."""
    copy = xray_structure.deep_copy_scatterers()
    for scatterer in copy.scatterers():
        scatterer.scattering_type = neutral(scatterer.scattering_type)
    fresh = xray.structure(crystal_symmetry=copy.crystal_symmetry())
    fresh.add_scatterers(copy.scatterers())
    return fresh


def idealised(
    xray_structure,
    groups: tuple[HydrogenGroup, ...],
    parents: dict[int, int],
    parts: Parts = (),
):
    """Return a copy with the H atoms of the groups at their ideal places.

    The places are those of smtbx's geometrical constraints, torsions kept. A warning names the
    H atoms with a parent that stay as they are: in no group, or not near the ideal place.
    """
    moved = _plain(xray_structure)
    bonds = bond_table(xray_structure, parts)
    left = set(parents)
    for group in groups:
        try:
            sites = ideal_sites(moved, bonds, group)
        except (smtbx_constraints.InvalidConstraint, RuntimeError, IndexError):
            continue  # bonds that the geometry does not fit
        start = [xray_structure.scatterers()[i].site for i in group.atoms]
        distance = xray_structure.unit_cell().distance
        if max(map(distance, start, sites)) < _FARTHEST_MOVE:
            for i, site in zip(group.atoms, sites, strict=True):
                moved.scatterers()[i].site = site
            left -= set(group.atoms)
    if left:
        names = ", ".join(xray_structure.scatterers()[i].label for i in sorted(left))
        logger.warning("No usual geometry fits these H atoms, which ride as given: %s", names)
    result = xray_structure.deep_copy_scatterers()
    result.set_sites_frac(moved.sites_frac())
    return result


def ideal_sites(xray_structure, bonds, group: HydrogenGroup) -> list[tuple]:
    """Return the places of a group's atoms by its geometry and a `bond_table`, torsions kept.

    Raises what smtbx does, InvalidConstraint among others, where the geometry does not fit.
    """
    copy = xray_structure.deep_copy_scatterers()
    element = copy.scatterers()[group.parent].scattering_type
    constraint = getattr(geometries, group.geometry)(
        pivot=group.parent,
        constrained_site_indices=group.atoms,
        bond_length=group.length or NUCLEAR_DISTANCE.get(element),
    )
    reparametrisation = smtbx_constraints.reparametrisation(copy, [constraint], bonds)
    reparametrisation.linearise()
    reparametrisation.store()
    return [copy.scatterers()[i].site for i in group.atoms]
