"""Restraints from a user's words and from SHELX instructions, with the bonds that cctbx finds."""

from __future__ import annotations

import collections
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from cctbx import sgtbx

from .data import Restraints
from .io_bonds import UNIT, neighbours
from .io_disorder import Parts
from .io_restraint_entries import ADP_ENTRIES, Entry, as_tensor, record
from .io_restraints_manager import entries_of
from .io_shelx_restraints import shelx_entries
from .records import InputError

SHELX_ENDINGS = (".ins", ".res")


@dataclass(frozen=True)
class RestraintOptions:
    """What restrains a structure; sigmas in A, degree, A^3 or A^2, None for no such restraints.

    The words of each entry are labels of atoms, then target (where there is one) and sigma:
    "Si1 O1 1.61 0.02". `shelx` takes the instructions of a .res or .ins file, `manager` a
    `smtbx.refinement.restraints.manager` whose proxies number the atoms as their file does.
    """

    shelx: bool = True
    distance: tuple[str, ...] = ()
    similar_distance: tuple[str, ...] = ()
    angle: tuple[str, ...] = ()
    plane: tuple[str, ...] = ()
    chirality: tuple[str, ...] = ()
    adp_similarity: float | None = None
    rigid_bond: float | None = None
    enhanced_rigid_bond: float | None = None
    isotropic_adp: float | None = None
    manager: object | None = None


def restraints_of(
    xray_structure, options: RestraintOptions, path, parts: Parts = ()
) -> Restraints | None:
    """Return the restraints that the options, and the structure's file, ask for; None if none.

    Those along bonds join no atoms whose `parts` exclude one another.
    Raises InputError, naming the parameter or the instruction, when one cannot be used.
    """
    entries = list(_written(xray_structure, options))
    chosen = range(xray_structure.scatterers().size())
    for kind in ADP_ENTRIES:
        sigma = getattr(options, kind)
        if sigma is not None:
            _require_positive(kind, sigma, sigma)
            entries += ADP_ENTRIES[kind](xray_structure, chosen, sigma, None, parts)
    if options.manager is not None:
        entries += entries_of(options.manager, len(chosen))
    if options.shelx and Path(path).suffix.lower() in SHELX_ENDINGS:
        entries += shelx_entries(path, xray_structure, parts)
    return record(entries) if entries else None


def count_kinds(restraints: Restraints) -> str:
    """Return how many restraints of each kind there are, as text."""
    counts = collections.Counter(restraints.kind)
    return ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in counts.items())


def in_basis(restraints: Restraints | None, operator: str, inverted: bool, xray_structure):
    """Return the restraints of a structure for one that is reindexed, and then inverted.

    `operator` is in the notation h,k,l.
    """
    if restraints is None:
        return None
    change = sgtbx.change_of_basis_op(operator)
    if inverted:
        group = xray_structure.space_group_info().change_basis(change)
        change = group.type().change_of_hand_op().new_denominators(change) * change
    rot = as_tensor(change.c().r().as_double()).reshape(3, 3)
    trans = as_tensor(change.c().t().as_double())
    moved = rot @ restraints.rot @ torch.linalg.inv(rot)
    hand = torch.where(
        torch.tensor([kind == "chirality" for kind in restraints.kind]), rot.det().sign(), 1.0
    )
    return restraints.replace(
        rot=moved,
        trans=restraints.trans @ rot.T + trans - moved @ trans,
        target=hand * restraints.target,
    )


# --- a user's words -------------------------------------------------------------------------

# (fewest atoms, most atoms, which atom the copies of the others are sought near, with a target)
_WORDS = {
    "distance": (2, 2, 0, True),
    "similar_distance": (4, None, None, False),
    "angle": (3, 3, 1, True),
    "plane": (4, None, 0, False),
    "chirality": (4, 4, 0, True),
}


def _written(xray_structure, options: RestraintOptions):
    """Yield the restraints that the user wrote as words."""
    for kind in _WORDS:
        for text in getattr(options, kind):
            yield from _from_words(kind, text, xray_structure)


def _from_words(kind: str, text: str, xray_structure) -> list[Entry]:
    fewest, most, centre, has_target = _WORDS[kind]
    words, numbers = text.split(), 2 if has_target else 1
    labels = words[:-numbers]
    known = {sc.label.upper(): i for i, sc in enumerate(xray_structure.scatterers())}
    try:
        values = [float(word) for word in words[-numbers:]]
    except ValueError:
        values = []
    right_count = fewest <= len(labels) <= (most or len(labels))
    if kind == "similar_distance" and len(labels) % 2:
        right_count = False
    if len(values) != numbers or not right_count:
        raise InputError(
            f"restraints.{kind}={text}: give {_number(fewest, most)} atoms, then "
            f"{'the target and ' if has_target else ''}sigma"
        )
    missing = [label for label in labels if label.upper() not in known]
    if missing:
        raise InputError(f"restraints.{kind}={text}: there is no atom {', '.join(missing)}")
    _require_positive(kind, text, values[-1])
    atoms = [known[label.upper()] for label in labels]
    target = values[0] if has_target else 0.0
    if not math.isfinite(target) or (kind == "distance" and target < 0):
        raise InputError(f"restraints.{kind}={text}: {target:g} is not a target for it")
    if kind == "distance":
        ends = _bonds_between(xray_structure, *atoms)
        return [Entry(kind, target, values[-1], ((atoms[0], UNIT), end)) for end in ends]
    return [Entry(kind, target, values[-1], _gathered(xray_structure, atoms, centre))]


def _require_positive(kind: str, given, sigma: float) -> None:
    if not 0 < sigma < math.inf:
        raise InputError(f"restraints.{kind}={given}: sigma must be positive")


def _number(fewest: int, most: int | None) -> str:
    return str(fewest) if most == fewest else f"{fewest} or more"


def _bonds_between(xray_structure, i: int, j: int) -> list[tuple]:
    """Return the bonds from atom i to copies of j, or the shortest contact if there is none."""
    ends = [group[0] for group in neighbours(xray_structure)[i] if group[0][0] == j]
    return ends or [(j, _nearest(xray_structure, i, j))]


def _gathered(xray_structure, atoms: list[int], centre: int | None) -> tuple:
    """Return members, the copy of each atom nearest to the central one, or by pairs."""
    if centre is None:
        pairs = zip(atoms[::2], atoms[1::2], strict=True)
        return tuple(
            member for i, j in pairs for member in ((i, UNIT), (j, _nearest(xray_structure, i, j)))
        )
    middle = atoms[centre]
    members, taken = [], []
    for place, atom in enumerate(atoms):
        own = place == centre
        operator = UNIT if own else _nearest(xray_structure, middle, atom, taken)
        if not own:
            taken.append((atom, operator))
        members.append((atom, operator))
    return tuple(members)


def _nearest(xray_structure, i: int, j: int, taken=()):
    """Return the operator to the copy of atom j next to atom i, itself and `taken` left out."""
    atoms, cell = xray_structure.scatterers(), xray_structure.unit_cell()
    here, there = atoms[i].site, atoms[j].site
    used = [here] + [operator * atoms[k].site for k, operator in taken]
    best, found = None, None
    for operator in xray_structure.space_group():
        moved = operator * there
        near = [round(a - b) for a, b in zip(here, moved, strict=True)]
        for step in itertools.product((-1, 0, 1), repeat=3):
            shift = tuple(a + b for a, b in zip(near, step, strict=True))
            site = tuple(a + b for a, b in zip(moved, shift, strict=True))
            length = cell.distance(here, site)
            new = all(cell.distance(site, other) > 0.1 for other in used)
            if new and (best is None or length < best - 1e-6):
                best, found = length, operator + shift
    return found
