"""Elements and their form factors for electrons, as cctbx has them."""

from __future__ import annotations

from cctbx import crystal, xray
from cctbx.array_family import flex

ELECTRON_TABLE = "electron"


def isotope(scattering_type: str) -> str:
    """Return the symbol of a scattering type without its charge; D is not H."""
    return "".join(c for c in scattering_type if c.isalpha()).capitalize()


def neutral(scattering_type: str) -> str:
    """Return the element of a scattering type: the ions' tables lack the divergent term."""
    element = isotope(scattering_type)
    return "H" if element == "D" else element


def has_form_factor(element: str) -> bool:
    """Return whether the electron table knows the element."""
    try:
        return not form_factor_registry([element]).unassigned_types()
    except RuntimeError:
        return False


def form_factor_registry(elements):
    """Return the scattering type registry of one atom of each element, electron table."""
    symmetry = crystal.symmetry(unit_cell=(5, 5, 5, 90, 90, 90), space_group_symbol="P1")
    atoms = [xray.scatterer(e, scattering_type=e) for e in elements]
    probe = xray.structure(crystal_symmetry=symmetry, scatterers=flex.xray_scatterer(atoms))
    return probe.scattering_type_registry(table=ELECTRON_TABLE)
