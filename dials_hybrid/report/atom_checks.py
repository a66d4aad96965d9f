"""Checks of the atoms: displacements, contacts, occupancies, uncertainties, the difference map."""

from __future__ import annotations

import numpy as np

from ..data import Result, Structure
from ..freedom import least_u, u_equivalent
from ..io_contacts import FULL
from .arrays import as_numpy
from .check import ALERT, NOTE, Check, listed
from .contacts import nearest, radii

SMALL_U, LARGE_U = 0.001, 0.15  # A^2
SHORT = 0.75  # of the sum of the covalent radii; the shortest bond, of N2, has 0.77
HIGH_PEAK = 6.0  # r.m.s. of the map; noise has about 4.5, a missing atom 10 and more
POOR_SITE, ODD_SITE, SITE_RATIO = 0.05, 0.02, 5.0  # A, A, times the usual s.u.


def find(result: Result, contract: dict) -> list[Check]:
    """Return what the checks of the atoms found; see `checks.find`."""
    structure = result.structure
    return [
        *displacements(contract["sites"]),
        *indefinite(structure),
        *short_contacts(structure),
        *close_contacts(contract["contacts"]),
        *occupancies(structure),
        *uncertainties(result),
        *difference_map(contract["map_peaks"]),
    ]


def displacements(sites: list[dict]) -> list[Check]:
    """Tell of U (U_eq) in A^2 that are negative, near zero or very large."""
    u = {site["label"]: site["u_iso"] for site in sites}
    kinds = (
        ("negative_u", ALERT, lambda x: x < 0, "negative U"),
        ("small_u", NOTE, lambda x: 0 <= x < SMALL_U, "U near zero"),
        ("large_u", NOTE, lambda x: x > LARGE_U, "very large U"),
    )
    found = []
    for kind, severity, odd, what in kinds:
        names = [f"{label} ({value:.4f} Å²)" for label, value in u.items() if odd(value)]
        if names:
            text = f"Atoms of {what}: {listed(names)}. Look at element, occupancy and absorption."
            found.append(Check(kind, severity, text))
    return found


def indefinite(structure: Structure) -> list[Check]:
    """Tell of anisotropic atoms whose U tensor is not positive definite."""
    smallest = as_numpy(least_u(structure))
    bad = structure.anisotropic.cpu().numpy() & (smallest <= 0)
    if not bad.any():
        return []
    names = [f"{structure.labels[i]} ({smallest[i]:.4f} Å²)" for i in np.flatnonzero(bad)]
    text = (
        f"Displacement tensors that are not positive definite, with their smallest principal U: "
        f"{listed(names)}. Make these atoms isotropic, or restrain them."
    )
    return [Check("not_positive_definite", ALERT, text)]


def short_contacts(structure: Structure) -> list[Check]:
    """Tell of atoms that come nearer than any bond is short, alternatives of one place left out."""
    size, occ = radii(structure), as_numpy(structure.occ)
    names = [
        f"{structure.labels[i]}–{structure.labels[j]} {distance:.2f} Å"
        for i, j, distance in nearest(structure, 2 * SHORT * size.max())
        if distance < SHORT * (size[i] + size[j]) and occ[i] + occ[j] > FULL
    ]
    if not names:
        return []
    return [Check("short_contact", ALERT, f"Atoms too near to one another: {listed(names)}.")]


def close_contacts(found: list[dict]) -> list[Check]:
    """Tell of atoms that are not bonded and nearer than van der Waals radii allow."""
    names = [f"{'–'.join(pair['atoms'])} {pair['distance']:.2f} Å" for pair in found]
    if not names:
        return []
    text = (
        f"Atoms that are not bonded come nearer than they do in other crystals: {listed(names)}. "
        "Look for a hydrogen that points the wrong way, or for disorder."
    )
    return [Check("close_contact", NOTE, text)]


def occupancies(structure: Structure) -> list[Check]:
    """Tell of occupancies below zero or above one."""
    occ = as_numpy(structure.occ)
    odd = np.flatnonzero((occ < 0) | (occ > FULL))
    if len(odd) == 0:
        return []
    names = listed(f"{structure.labels[i]} ({occ[i]:.3f})" for i in odd)
    return [Check("occupancy", ALERT, f"Occupancies outside of 0 to 1: {names}.")]


def uncertainties(result: Result) -> list[Check]:
    """Tell of coordinates and U that the data hardly determine."""
    structure, found = result.structure, []
    su = np.nan_to_num(as_numpy(result.site_su)).max(1)
    usual = np.median(su[su > 0]) if (su > 0).any() else 0.0
    odd = (su > POOR_SITE) | ((su > ODD_SITE) & (su > SITE_RATIO * usual))
    if odd.any():
        names = listed(f"{structure.labels[i]} ({su[i]:.3f} Å)" for i in np.flatnonzero(odd))
        text = f"Unusually large s.u. of the position: {names}."
        found.append(Check("large_site_su", NOTE, text))
    u = as_numpy(u_equivalent(structure))
    loose = np.flatnonzero(np.nan_to_num(as_numpy(result.u_su)) > np.abs(u))
    if len(loose):
        names = listed(structure.labels[i] for i in loose)
        text = f"The s.u. of U is larger than U itself: {names}."
        found.append(Check("large_u_su", NOTE, text))
    return found


def difference_map(found: dict | None) -> list[Check]:
    """Tell of the highest peak and the deepest hole, far above what noise has."""
    checks = []
    kinds = (
        ("peaks", "highest peak", "an atom may be missing"),
        ("holes", "deepest hole", "an element may be wrong, or a site partly occupied"),
    )
    for name, what, meaning in kinds:
        for peak in (found or {}).get(name, [])[:1]:
            if abs(peak["sigma"]) > HIGH_PEAK:
                text = (
                    f"The {what} of the difference map, {peak['height']:+.2f} V, is "
                    f"{abs(peak['sigma']):.1f} times its r.m.s., {peak['distance']:.2f} Å from "
                    f"{peak['atom']}: {meaning}."
                )
                checks.append(Check("map_peak", NOTE, text))
    return checks
