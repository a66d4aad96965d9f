"""Hydrogen atoms that ride: at the places of their geometry, and which bonds they turn about."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from .data import Structure
from .freedom import Constraints, neighbours, with_usual_riding_u
from .io_cctbx import update_xray_structure
from .io_disorder import Parts
from .io_elements import neutral
from .io_hydrogen_sites import (
    NUCLEAR_DISTANCE,
    TURNING,
    HydrogenGroup,
    bonds_of,
    substituents,
)
from .io_hydrogens import idealised, usual_groups
from .torsions import on_circles

logger = logging.getLogger("dials.hybrid.io_riding")

_SHORT = 0.95  # of the distance between nuclei


def with_usual_hydrogens(
    xray_structure,
    record: Structure,
    constraints: Constraints,
    known: tuple[HydrogenGroup, ...] = (),
    parts: Parts = (),
) -> tuple[Structure, Constraints]:
    """Return the record with ideal places and U of the H atoms that ride, and the constraints.

    To these, the groups are added that keep a geometry, and those that turn about a bond. `known`
    are the groups of a SHELX file. A warning names the H atoms with a parent that stay where they
    are.
    """
    parents = dict(constraints.riding)
    given = {group.parent for group in known}
    usual = [g for g in usual_groups(xray_structure, parents, parts) if g.parent not in given]
    groups = tuple(g for g in (*known, *usual) if set(g.atoms) <= parents.keys())
    ideal, placed = idealised(xray_structure, groups, parts)
    left = parents.keys() - {atom for group in placed for atom in group.atoms}
    if left:
        names = ", ".join(record.labels[i] for i in sorted(left))
        logger.warning("No usual geometry fits these H atoms, which ride as given: %s", names)
    sites = torch.tensor(list(ideal.sites_frac()), dtype=torch.float64)
    record = with_usual_riding_u(record.replace(site=sites), constraints)
    kept = tuple((g.parent, g.atoms, g.geometry, g.length) for g in placed)
    constraints = replace(constraints, ideal=kept)
    turning = [replace(g, turns=g.geometry in TURNING) for g in placed]
    turning += [g for g in known if g not in placed]
    return record, with_torsions(xray_structure, constraints, tuple(turning), parts)


def with_torsions(
    xray_structure,
    constraints: Constraints,
    groups: tuple[HydrogenGroup, ...],
    parts: Parts = (),
) -> Constraints:
    """Return the constraints with those of the groups that are to turn about a bond.

    It is the parent's shortest bond to another atom than hydrogen. A warning names the groups
    that have none.
    """
    riding = dict(constraints.riding)
    chosen = [g for g in groups if g.turns and all(riding.get(i) == g.parent for i in g.atoms)]
    if not chosen:
        return constraints
    atoms, bonds = xray_structure.scatterers(), bonds_of(xray_structure, parts)
    distance = xray_structure.unit_cell().distance
    turning, left = [], []
    for group in chosen:
        lengths = {
            distance(atoms[group.parent].site, op * atoms[j].site): j
            for j, op in substituents(bonds, group.parent, group.atoms[0], parts)
            if neutral(atoms[j].scattering_type) != "H"
        }
        if lengths:
            turning.append((lengths[min(lengths)], group.parent, group.atoms))
        else:
            left += [atoms[i].label for i in group.atoms]
    if left:
        names = ", ".join(left)
        logger.warning("No bond for these H atoms to turn about, so that they ride: %s", names)
    return replace(constraints, turning=tuple(turning))


def warn_of_xray_distances(record: Structure, constraints: Constraints) -> None:
    """Warn of riding H atoms that are nearer to C, N or O than nuclei are, on average by 5 %."""
    found: dict[str, list[float]] = {}
    for atom, parent in constraints.riding:
        element = record.elements[int(record.type[parent])]
        if element in NUCLEAR_DISTANCE:
            length = float(neighbours(record, atom)[0][parent])
            found.setdefault(element, []).append(length)
    means = {element: sum(lengths) / len(lengths) for element, lengths in found.items()}
    short = {e: mean for e, mean in means.items() if mean < _SHORT * NUCLEAR_DISTANCE[e]}
    if short:
        logger.warning(
            "Riding hydrogen atoms are where X-rays see them (%s on average), electrons see the "
            "nuclei; parameters.hydrogens=riding puts them at nuclear distances (%s)",
            ", ".join(f"{e}-H {mean:.2f} A" for e, mean in short.items()),
            ", ".join(f"{e}-H {NUCLEAR_DISTANCE[e]:.2f} A" for e in short),
        )


def put_back(
    xray_structure,
    start: Structure,
    refined: Structure,
    constraints: Constraints,
    parts: Parts = (),
) -> Structure:
    """Return a refined structure with the riding H atoms at the places of their geometry.

    Groups that only turn keep the shape that they had in `start`, by whose freedom the atoms were
    moved. `xray_structure` is that of cctbx with these atoms.
    """
    refined = on_circles(start, refined, constraints)
    groups = tuple(HydrogenGroup(*group) for group in constraints.ideal)
    if not groups:
        return refined
    ideal, _ = idealised(update_xray_structure(xray_structure, refined), groups, parts)
    sites = torch.tensor(list(ideal.sites_frac()), dtype=torch.float64)
    return refined.replace(site=sites)
