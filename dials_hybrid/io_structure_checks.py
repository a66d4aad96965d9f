"""What a refinement cannot use of a structure, and what looks wrong in it."""

from __future__ import annotations

import collections
import logging
import math

from .io_elements import has_form_factor, neutral
from .records import InputError

logger = logging.getLogger("dials.hybrid.io_structure_checks")

OVERLAP = 0.5  # A, nearer atoms are taken for copies of one another
ROUNDED = 0.01  # by which occupancies may be wrong


def check_structure(structure, path) -> None:
    """Raise InputError, or warn, about what a refinement could not use."""
    if structure.scatterers().size() == 0:
        raise InputError(f"{path}: the structure has no atoms; give a model with atoms in it")
    unknown = [
        f"{sc.label} ({sc.scattering_type})"
        for sc in structure.scatterers()
        if not has_form_factor(neutral(sc.scattering_type))
    ]
    if unknown:
        raise InputError(
            f"{path}: no electron form factor is known for {', '.join(unknown)}; "
            "correct the element symbols"
        )
    _check_numbers(structure, path)
    _check_occupancies(structure, path)
    _warn_labels(structure, path)
    _warn_ions(structure)
    _warn_displacements(structure, path)
    _warn_overlaps(structure, path)


def _check_numbers(structure, path) -> None:
    """Refuse what is not a finite number: cctbx fails on it where it no longer knows the atom."""
    bad = [
        sc.label
        for sc in structure.scatterers()
        if not all(map(math.isfinite, (*sc.site, sc.occupancy, sc.u_iso, *sc.u_star)))
    ]
    if bad:
        raise InputError(
            f"{path}: not a finite number among the values of the atoms {', '.join(bad)}; correct "
            "them"
        )


def _check_occupancies(structure, path) -> None:
    atoms = structure.scatterers()
    negative = [f"{sc.label} ({sc.occupancy:g})" for sc in atoms if sc.occupancy < 0]
    if negative:
        raise InputError(f"{path}: negative occupancies, {', '.join(negative)}; correct them")
    full = [f"{sc.label} ({sc.occupancy:g})" for sc in atoms if sc.occupancy > 1 + ROUNDED]
    if full:
        logger.warning("%s: occupancies above one, more than fits: %s", path, ", ".join(full))
    empty = [sc.label for sc in atoms if sc.occupancy == 0]
    if len(empty) == structure.scatterers().size():
        raise InputError(f"{path}: every atom has zero occupancy; correct the occupancies")
    if empty:
        logger.warning("%s: zero occupancy, these atoms do not count: %s", path, ", ".join(empty))


def _warn_labels(structure, path) -> None:
    count = collections.Counter(sc.label for sc in structure.scatterers())
    several = [label for label, times in count.items() if times > 1]
    if several:
        logger.warning(
            "%s: several atoms of one label, which names all of them in parameters and restraints: "
            "%s",
            path,
            ", ".join(several),
        )


def _warn_ions(structure) -> None:
    types = {sc.scattering_type for sc in structure.scatterers()}
    ions = sorted(t for t in types if any(c in t for c in "+-"))
    if ions:
        logger.warning(
            "Ions %s are treated as neutral atoms: the electron tables of ions lack the "
            "divergent term at small angles",
            ", ".join(ions),
        )


def _warn_displacements(structure, path) -> None:
    cell = structure.unit_cell()
    bad = [sc.label for sc in structure.scatterers() if not sc.is_positive_definite_u(cell)]
    if bad:
        logger.warning(
            "%s: displacement parameters that are missing, zero or negative: %s",
            path,
            ", ".join(bad),
        )


def _warn_overlaps(structure, path) -> None:
    """Warn of atoms at one place whose occupancies add up to more than one."""
    pairs = structure.pair_asu_table(distance_cutoff=OVERLAP).extract_pair_sym_table()
    atoms = structure.scatterers()
    close = [
        f"{atoms[i].label}-{atoms[j].label}"
        for i, neighbours in enumerate(pairs)
        for j in neighbours.keys()
        if atoms[i].occupancy + atoms[j].occupancy > 1 + ROUNDED
    ]
    if close:
        logger.warning(
            "%s: atoms closer than %g A whose occupancies add up to more than one: %s",
            path,
            OVERLAP,
            ", ".join(close),
        )
