"""What the user fixes, and frees, of the parameters of a structure."""

from __future__ import annotations

from dataclasses import replace

from .freedom import Constraints

AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
KINDS = ("site", *AXES, "u", "occ", "all")


def fixed(found: Constraints, kind: str, atoms: set[int]) -> Constraints:
    """Return the constraints with a kind of parameter, one of KINDS, of some atoms fixed."""
    if kind in ("site", "all"):
        riding = tuple(pair for pair in found.riding if pair[0] not in atoms)
        found = replace(found, riding=riding, fixed_site=found.fixed_site | atoms)
    if kind in AXES:
        found = _fixed_along(found, AXES[kind], atoms)
    if kind in ("u", "all"):
        riding_u = tuple(triple for triple in found.riding_u if triple[0] not in atoms)
        found = replace(found, riding_u=riding_u, fixed_u=found.fixed_u | atoms)
    if kind in ("occ", "all"):
        found = replace(found, occ=tuple(g for g in found.occ if not {a for a, _ in g} & atoms))
    return found


def _fixed_along(found: Constraints, axis: tuple[float, ...], atoms: set[int]) -> Constraints:
    """Hold a coordinate of atoms; what rides on one of them still does and follows it."""
    led = {atom for atom, parent in found.riding if {atom, parent} <= atoms}
    more = tuple((atom, axis) for atom in sorted(atoms - led))
    return replace(
        found,
        riding=tuple(pair for pair in found.riding if pair[0] not in atoms - led),
        fixed_along=tuple(dict.fromkeys((*found.fixed_along, *more))),
    )


def _freed_along(found: Constraints, axis: tuple[float, ...], atoms: set[int]) -> Constraints:
    """Let a coordinate of atoms go; of those that were fixed altogether, the others stay."""
    others = [other for other in AXES.values() if other != axis]
    rest = [(atom, other) for atom in sorted(atoms & found.fixed_site) for other in others]
    kept = [pair for pair in found.fixed_along if pair[0] not in atoms or pair[1] != axis]
    return replace(
        found,
        fixed_site=found.fixed_site - atoms,
        fixed_along=tuple(dict.fromkeys((*kept, *rest))),
    )


def freed(found: Constraints, kind: str, atoms: set[int]) -> Constraints:
    """Return the constraints with a kind of parameter, one of KINDS, of some atoms free."""
    if kind in ("site", "all"):
        same_site = (tuple(i for i in group if i not in atoms) for group in found.same_site)
        found = replace(
            found,
            fixed_site=found.fixed_site - atoms,
            fixed_along=tuple(pair for pair in found.fixed_along if pair[0] not in atoms),
            same_site=tuple(group for group in same_site if len(group) > 1),
            riding=tuple(pair for pair in found.riding if pair[0] not in atoms),
        )
    if kind in AXES:
        found = _freed_along(found, AXES[kind], atoms)
    if kind in ("u", "all"):
        found = replace(
            found,
            fixed_u=found.fixed_u - atoms,
            linked_u=tuple(group for group in _without(found.linked_u, atoms) if len(group) > 1),
            riding_u=tuple(triple for triple in found.riding_u if triple[0] not in atoms),
        )
    if kind in ("occ", "all"):
        found = replace(found, occ=_with_own_occupancies(found.occ, atoms))
    return found


def _without(groups, atoms: set[int]) -> list[tuple]:
    """Return groups of (atom, share) without some atoms."""
    return [tuple(pair for pair in group if pair[0] not in atoms) for group in groups]


def _with_own_occupancies(groups, atoms: set[int]) -> tuple:
    """Return the groups with a parameter for each of some atoms, which leave their own groups.

    Whom they leave alone keeps its parameter, unless another group moves it already.
    """
    rest = _without(groups, atoms)
    shared = [group for group in rest if len(group) > 1]
    moved = {atom for group in shared for atom, _ in group}
    alone = {group[0][0]: group for group in rest if len(group) == 1}
    kept = [group for atom, group in alone.items() if atom not in moved]
    return (*shared, *kept, *(((atom, 1.0),) for atom in sorted(atoms)))
