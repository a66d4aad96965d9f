"""Which atoms move the same way in all directions, and which have a displacement tensor."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from .data import Structure
from .freedom import Constraints

logger = logging.getLogger("dials.hybrid.io_displacements")

CHOICES = ("auto", "as_given")
# unique observed reflections for each free parameter of the structure; checkCIF asks for 7 to 8 of
# all reflections that were measured (tests PLAT089, PLAT090)
ENOUGH = 8.0
LEAST_U = 1e-3  # A^2, from which a tensor starts where the file has less, or none
HYDROGEN = ("H", "D", "T")


def candidates(structure: Structure, constraints: Constraints) -> list[int]:
    """Return the numbers of the atoms that may become anisotropic.

    Those are all but hydrogen and atoms whose U is fixed, rides on another's, is shared with such
    an atom, or is a multiple of another's.
    """
    names = [structure.elements[k] for k in structure.type.tolist()]
    left = {i for i, name in enumerate(names) if name in HYDROGEN} | constraints.fixed_u
    left |= {atom for atom, _, _ in constraints.riding_u}
    for group in constraints.linked_u:
        atoms, shares = {atom for atom, _ in group}, {share for _, share in group}
        left |= atoms if atoms & left or len(shares) > 1 else set()
    return [i for i in range(len(names)) if i not in left]


def with_displacements(
    xray_structure, anisotropic: Iterable[int] = (), isotropic: Iterable[int] = ()
):
    """Return a copy of a cctbx structure in which these atoms have another kind of displacement.

    Atoms are given by their numbers. A tensor starts at the sphere that U_iso is, and U_iso at
    the mean of the tensor's principal values. No tensor starts below `LEAST_U`.
    """
    changed = xray_structure.deep_copy_scatterers()
    cell = changed.unit_cell()
    for atom in anisotropic:
        scatterer = changed.scatterers()[atom]
        scatterer.u_iso = max(scatterer.u_iso, LEAST_U)
        scatterer.convert_to_anisotropic(unit_cell=cell)
    for atom in isotropic:
        changed.scatterers()[atom].convert_to_isotropic(unit_cell=cell)
    return changed


def enough(structure: Structure, unique: int) -> bool:
    """Return whether `unique` observed reflections suffice for the structure's freedom; log it."""
    parameters = structure.freedom.count
    good = unique >= ENOUGH * parameters
    logger.info(
        "Anisotropic displacements would take %d parameters of the structure, for %d unique "
        "observed reflections: atoms but hydrogen %s (parameters.displacements)",
        parameters,
        unique,
        "become anisotropic" if good else "stay isotropic",
    )
    return good
