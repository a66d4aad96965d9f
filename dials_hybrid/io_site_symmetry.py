"""Atoms that no symmetry element holds, however near they are to one.

Such are those of a PART below zero in SHELX, of a group below zero in _atom_site_disorder_group of
a CIF: a disorder about the element, whose alternatives are one another's copies.
"""

from __future__ import annotations

import iotbx.cif.builders
import iotbx.cif.model
from cctbx import sgtbx, xray

GROUP = "_atom_site_disorder_group"
_ORDER = "_atom_site_site_symmetry_order"


def add_general(structure, scatterer) -> None:
    """Add an atom to a cctbx structure, at its place and in a general position."""
    cell, group = structure.unit_cell(), structure.space_group()
    everywhere = sgtbx.site_symmetry(cell, group, scatterer.site, 0.0, False)
    structure.add_scatterer(scatterer, site_symmetry_ops=everywhere)


def with_general_positions(structure, block):
    """Return the cctbx structure of a CIF block, atoms of groups below zero where the block says.

    An atom whose order of the site symmetry is given as more than one is on its element.
    """
    general = _general(block)
    if not general:
        return structure
    as_given = iotbx.cif.builders.crystal_structure_builder(_without_symmetry(block)).structure
    whole = xray.structure(crystal_symmetry=structure.crystal_symmetry())
    pairs = zip(structure.scatterers(), as_given.scatterers(), strict=True)
    for i, (held, loose) in enumerate(pairs):
        if i in general:
            add_general(whole, loose)
        else:
            whole.add_scatterer(held)
    return whole


def _general(block) -> set[int]:
    groups, orders = _column(block, GROUP), _column(block, _ORDER)
    if len(orders) != len(groups):
        orders = ["1"] * len(groups)
    pairs = zip(groups, orders, strict=True)
    return {
        i for i, (group, order) in enumerate(pairs) if group[:1] == "-" and order in ("1", "?", ".")
    }


def _column(block, key: str) -> list[str]:
    value = block.get(key, [])
    return [value] if isinstance(value, str) else list(value)


def _without_symmetry(block):
    """Return the cell and the atoms of a CIF block, in the space group P1."""
    plain = iotbx.cif.model.block()
    for loop in block.loops.values():
        if any(key.startswith("_atom_site_") for key in loop.keys()):
            plain.add_loop(loop)
    for key in block.keys():
        if key.startswith(("_cell_", "_atom_site_")) and isinstance(block[key], str):
            plain[key] = block[key]
    plain["_space_group_name_H-M_alt"] = "P 1"
    return plain
