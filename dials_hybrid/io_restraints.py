"""Restraints from a user's words and from SHELX instructions, with the bonds that cctbx finds."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from cctbx import sgtbx

from .data import InputError, Restraints
from .io_bonds import UNIT, neighbours
from .io_disorder import Parts
from .io_restraint_entries import ADP_ENTRIES, Entry, as_tensor, record
from .io_shelx_lines import is_shelx_atom, shelx_lines
from .io_structures import neutral

logger = logging.getLogger("dials.hybrid.io_restraints")

SHELX_ENDINGS = (".ins", ".res")


@dataclass(frozen=True)
class RestraintOptions:
    """What restrains a structure; sigmas in A, degree, A^3 or A^2, None for no such restraints.

    The words of each entry are labels of atoms, then target (where there is one) and sigma:
    "Si1 O1 1.61 0.02". `shelx` takes the instructions of a .res or .ins file.
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
            entries += ADP_ENTRIES[kind](xray_structure, chosen, sigma, None, parts)
    if options.shelx and Path(path).suffix.lower() in SHELX_ENDINGS:
        entries += _of_shelx(path, xray_structure, parts)
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
    if not values[-1] > 0:
        raise InputError(f"restraints.{kind}={text}: sigma must be positive")
    atoms = [known[label.upper()] for label in labels]
    target = values[0] if has_target else 0.0
    if kind == "distance":
        ends = _bonds_between(xray_structure, *atoms)
        return [Entry(kind, target, values[-1], ((atoms[0], UNIT), end)) for end in ends]
    return [Entry(kind, target, values[-1], _gathered(xray_structure, atoms, centre))]


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


# --- SHELX ----------------------------------------------------------------------------------

# G. M. Sheldrick (2015), doi:10.1107/S2053229614024218: sigmas that hold when none is given
_SHELX_SIGMA = {
    "DFIX": 0.02,
    "DANG": 0.04,
    "SADI": 0.02,
    "FLAT": 0.1,
    "SIMU": 0.04,
    "DELU": 0.01,
    "RIGU": 0.004,
    "ISOR": 0.1,
}
FREE_VARIABLE = 15.0  # A; DFIX 21.0 means the second free variable
_SHELX_ADP = {
    "SIMU": "adp_similarity",
    "DELU": "rigid_bond",
    "RIGU": "enhanced_rigid_bond",
    "ISOR": "isotropic_adp",
}
# SUMP is for constraints, and told of with them
_SHELX_UNUSED = ("BUMP", "CHIV", "NCSY", "SAME", "XNPD")


@dataclass
class _ShelxAtoms:
    """The atoms of a SHELX file by name and residue, and the operators of EQIV."""

    names: list = dataclasses.field(default_factory=list)  # (name, residue number)
    elements: list = dataclasses.field(default_factory=list)
    classes: dict = dataclasses.field(default_factory=dict)  # residue number -> class
    operators: dict = dataclasses.field(default_factory=dict)  # "$1" -> rt_mx
    parts: Parts = ()

    def residues(self, suffix: str | None) -> list[int]:
        """Return the residues that an instruction such as DFIX_4, DFIX_LEU or DFIX_* is for."""
        if suffix is None:
            return [0]
        if suffix == "*":
            return [number for number in self.classes if number]
        if suffix.isdigit():
            return [int(suffix)]
        return [number for number, name in self.classes.items() if name == suffix]

    def members(self, words: list[str], residue: int) -> list[tuple]:
        """Return the (index, operator) that names, ranges and elements stand for.

        Raises KeyError with the name that is not there.
        """
        out: list[tuple] = []
        towards = None
        for word in words:
            if word in "<>":
                towards = 1 if word == ">" else -1
            elif word.startswith("$"):
                mine = [e == word[1:].capitalize() for e in self.elements]
                out += [(i, UNIT) for i, chosen in enumerate(mine) if chosen]
            elif towards:
                first, last = out[-1][0], self._one(word, residue)[0]
                out += [(i, UNIT) for i in range(first + towards, last + towards, towards)]
                towards = None
            else:
                out.append(self._one(word, residue))
        return out

    def _one(self, word: str, residue: int) -> tuple:
        if word == "LAST":
            return len(self.names) - 1, UNIT
        name, *rest = word.split("_")
        operator = UNIT
        for part in rest:
            if part.startswith("$"):
                operator = self.operators[part]
            elif part in ("+", "-"):
                residue += 1 if part == "+" else -1
            else:
                residue = int(part)
        if (name, residue) not in self.names:
            raise KeyError(word)
        return self.names.index((name, residue)), operator


def _of_shelx(path, xray_structure, parts: Parts) -> list[Entry]:
    """Return the restraints of a SHELX file; what is not used is logged as a warning."""
    atoms, instructions = _shelx_contents(path, xray_structure)
    atoms.parts = parts
    entries, skipped = [], []
    for name, suffix, words in instructions:
        line = " ".join([name if suffix is None else f"{name}_{suffix}", *words])
        for residue in atoms.residues(suffix):
            try:
                entries += _shelx_entries(name, words, atoms, residue, xray_structure)
            except KeyError:
                if suffix is None:  # residues of one class need not all have every atom
                    skipped.append(line)
            except (IndexError, ValueError) as error:
                raise InputError(f"{path}: {line}: not a valid {name} instruction") from error
    if skipped:
        logger.warning("%s: these restraints are not used: %s", path, "; ".join(skipped))
    return entries


def _shelx_contents(path, xray_structure) -> tuple[_ShelxAtoms, list]:
    """Return the atoms and the instructions (name, residues, words) that restrain them."""
    atoms, found, residue = _ShelxAtoms(), [], 0
    for words in shelx_lines(Path(path)):
        command, _, suffix = words[0].partition("_")
        rest = words[1:]
        if command == "RESI":
            number = next((int(w) for w in rest if w.lstrip("-").isdigit()), 0)
            residue = number
            atoms.classes[number] = next((w for w in rest if w[0].isalpha()), "")
        elif command == "EQIV":
            atoms.operators[rest[0]] = sgtbx.rt_mx("".join(rest[1:]).lower())
        elif command in _SHELX_SIGMA or command in _SHELX_UNUSED:
            found.append((command, suffix or None, rest))
        elif is_shelx_atom(command, words) and not command.startswith("Q"):
            atoms.names.append((command, residue))
    types = [neutral(sc.scattering_type) for sc in xray_structure.scatterers()]
    if len(types) != len(atoms.names):
        raise InputError(
            f"{path}: the atoms that restraints name cannot be told apart; set "
            "restraints.shelx=False and give them as parameters"
        )
    atoms.elements = types
    return atoms, found


def _shelx_entries(name, words, atoms: _ShelxAtoms, residue: int, xray_structure) -> list[Entry]:
    """Return what one instruction asks for.

    Raises KeyError for what is not known here, IndexError and ValueError for what is not valid.
    """
    if name in _SHELX_UNUSED:
        raise KeyError(name)
    numbers = [float(word) for word in words if _is_number(word)]
    members = atoms.members([word for word in words if not _is_number(word)], residue)
    if name in _SHELX_ADP:
        chosen = [i for i, _ in members] or range(len(atoms.names))
        sigma, other = [*numbers, None, None][:2]
        return ADP_ENTRIES[_SHELX_ADP[name]](
            xray_structure, chosen, sigma or _SHELX_SIGMA[name], other, atoms.parts
        )
    target = numbers.pop(0) if name in ("DFIX", "DANG") else 0.0
    sigma = numbers[0] if numbers else _SHELX_SIGMA[name]
    if not 0 <= target < FREE_VARIABLE:  # below zero, a least distance
        raise KeyError(name)
    if name == "FLAT":
        if len(members) < 4:
            raise ValueError(name)
        return [Entry("plane", 0.0, sigma, tuple(members))]
    if len(members) % 2 or not members:
        raise ValueError(name)
    if name == "SADI":
        return [Entry("similar_distance", 0.0, sigma, tuple(members))]
    pairs = zip(members[::2], members[1::2], strict=True)
    return [Entry("distance", target, sigma, pair) for pair in pairs]


def _is_number(word: str) -> bool:
    return word[0].isdigit() or word[0] in "+-."
