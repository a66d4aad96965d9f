"""Hands and indexing settings of a structure that the lattice leaves open, by cctbx."""

from __future__ import annotations

from cctbx import sgtbx
from cctbx.sgtbx import cosets, lattice_symmetry

MAX_LATTICE_DELTA = 1.0  # degree, Le Page's measure of how far a lattice may be from symmetric


def indexing_operators(xray_structure) -> list[sgtbx.change_of_basis_op]:
    """Return the changes of basis, identity first, that keep the lattice but not the crystal.

    They represent the cosets of the crystal's Laue group in the lattice's holohedry.
    """
    symmetry = xray_structure.crystal_symmetry()
    to_reduced = symmetry.change_of_basis_op_to_niggli_cell()
    reduced = symmetry.change_basis(to_reduced)
    lattice = lattice_symmetry.group(reduced.unit_cell(), max_delta=MAX_LATTICE_DELTA)
    lattice.expand_inv(sgtbx.tr_vec((0, 0, 0)))
    point_group = reduced.space_group().build_derived_laue_group()
    found = cosets.left_decomposition_point_groups_only(g=lattice, h=point_group)
    group = xray_structure.space_group()
    return [_nicest(partition, to_reduced, group) for partition in found.partitions]


def _nicest(partition, to_reduced, group) -> sgtbx.change_of_basis_op:
    """Of the proper rotations of a coset, one that keeps the space group's setting if any does."""
    proper = [op for op in partition if op.r().determinant() > 0] or partition
    operators = []
    for op in proper:
        reindex = sgtbx.change_of_basis_op(op).new_denominators(to_reduced)
        operators.append(to_reduced.inverse() * reindex * to_reduced)
    keeping = [op for op in operators if group.change_basis(op) == group]
    return (keeping or operators)[0]


def candidates(xray_structure) -> list[tuple[str, str, object]]:
    """Return (operator, hand, structure) of every indexing setting and hand, the given first.

    A centrosymmetric structure has one hand. Operators that would leave the space group's
    setting (its translations) for another are given in that other setting.
    """
    out = []
    for operator in indexing_operators(xray_structure):
        moved = xray_structure.change_basis(operator)
        out.append((operator.as_hkl(), "given", moved))
        if not xray_structure.space_group().is_centric():
            out.append((operator.as_hkl(), "inverted", moved.change_hand()))
    return out
