"""Restraints that a SHELX .ins or .res file asks for, such as DFIX, SADI, FLAT, SIMU and RIGU.

The meaning of the instructions is that of SHELXL (G. M. Sheldrick 2015,
doi:10.1107/S2053229614024218).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path

from cctbx import sgtbx

from .io_bonds import UNIT
from .io_disorder import Parts
from .io_elements import neutral
from .io_restraint_entries import ADP_ENTRIES, Entry
from .io_shelx_lines import is_shelx_atom, residue_of, shelx_lines
from .records import InputError

logger = logging.getLogger("dials.hybrid.io_shelx_restraints")

# sigmas that hold when none is given, by DEFS too
_SIGMA = {
    "DFIX": 0.02,
    "DANG": 0.04,
    "SADI": 0.02,
    "FLAT": 0.1,
    "SIMU": 0.04,
    "DELU": 0.01,
    "RIGU": 0.004,
    "ISOR": 0.1,
}
_DEFS = (0.02, 0.1, 0.01, 0.04)  # of distances, planes, DELU and SIMU
FREE_VARIABLE = 15.0  # A; DFIX 21.0 means the second free variable
_ADP = {
    "SIMU": "adp_similarity",
    "DELU": "rigid_bond",
    "RIGU": "enhanced_rigid_bond",
    "ISOR": "isotropic_adp",
}
_WITH_TARGET = ("DFIX", "DANG")
# SUMP is for constraints, and told of with them
_UNUSED = ("BUMP", "CHIV", "NCSY", "SAME", "XNPD")
_EVERYWHERE = "_*"  # after the name of an atom: in every residue that has it


@dataclass(frozen=True)
class _Instruction:
    """A restraint as written: residues, None or what follows the name, words; default sigma."""

    name: str
    suffix: str | None
    words: list[str]
    sigma: float

    @property
    def numbers(self) -> list[float]:
        """The numbers among the words; raises ValueError for what begins like one and is none."""
        return [float(word) for word in self.words if _is_number(word)]

    @property
    def target(self) -> float:
        """The distance of DFIX and DANG, zero of others; raises IndexError if there is none."""
        return self.numbers[0] if self.name in _WITH_TARGET else 0.0

    @property
    def sigmas(self) -> list[float]:
        """The sigma, and that of terminal atoms or 1,3-pairs where it is given."""
        first = 1 if self.name in _WITH_TARGET else 0
        most = 2 if self.name in _ADP else 1
        return self.numbers[first : first + most] or [self.sigma]

    def __str__(self) -> str:
        return " ".join([self.name + (f"_{self.suffix}" if self.suffix else ""), *self.words])


@dataclass
class _Atoms:
    """The atoms of a SHELX file by name and residue, and the operators of EQIV."""

    names: list = dataclasses.field(default_factory=list)  # (name, residue number)
    elements: list = dataclasses.field(default_factory=list)
    classes: dict = dataclasses.field(default_factory=lambda: {0: ""})  # residue number -> class
    operators: dict = dataclasses.field(default_factory=dict)  # "$1" -> rt_mx
    parts: Parts = ()

    def residues(self, suffix: str | None) -> list[int | None]:
        """Return the residues that an instruction such as DFIX_4, DFIX_LEU or DFIX_* is for.

        None stands for no choice: names are those of residue 0, elements of all.
        """
        if suffix is None:
            return [None]
        if suffix == "*":
            return list(self.classes)
        if suffix.isdigit():
            return [int(suffix)]
        return [number for number, name in self.classes.items() if name == suffix]

    def members(self, words: list[str], residue: int | None) -> list[tuple]:
        """Return the (index, operator) that names, ranges and elements stand for.

        Raises KeyError with the name that is not there.
        """
        out: list[tuple] = []
        for item in _items(words):
            everywhere = any(word.endswith(_EVERYWHERE) for word in item)
            out += self._everywhere(item) if everywhere else self._item(item, residue)
        return out

    def _everywhere(self, item: list[str]) -> list[tuple]:
        """Return what a name or range such as C1_* stands for in all residues that have it."""
        plain = [word.removesuffix(_EVERYWHERE) for word in item]
        out: list[tuple] = []
        for residue in self.classes:
            try:
                out += self._item(plain, residue)
            except KeyError:
                continue
        if not out and not item[0].startswith("$"):
            raise KeyError(item[0])
        return out

    def _item(self, item: list[str], residue: int | None) -> list[tuple]:
        if item[0].startswith("$"):
            return self._of_element(item[0], residue)
        out = [self._one(item[0], residue or 0)]
        for sign, word in zip(item[1::2], item[2::2], strict=True):
            towards = 1 if sign == ">" else -1
            first, last = out[-1][0], self._one(word, residue or 0)[0]
            out += [(i, UNIT) for i in range(first + towards, last + towards, towards)]
        return out

    def _of_element(self, word: str, residue: int | None) -> list[tuple]:
        element, _, suffix = word[1:].partition("_")
        wanted = self.residues(suffix or None) if suffix or residue is None else [residue]
        pairs = zip(self.elements, self.names, strict=True)
        return [
            (i, UNIT)
            for i, (mine, (_, number)) in enumerate(pairs)
            if mine == element.capitalize() and (wanted == [None] or number in wanted)
        ]

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


def _items(words: list[str]) -> list[list[str]]:
    """Return names by themselves, and ranges such as C1 > C6 together."""
    items: list[list[str]] = []
    for word in words:
        if word in "<>" or (items and items[-1][-1] in "<>"):
            items[-1].append(word)
        else:
            items.append([word])
    return items


def shelx_entries(path, xray_structure, parts: Parts) -> list[Entry]:
    """Return the restraints of a SHELX file; what is not used is logged as a warning.

    Raises InputError, naming the instruction, for one that is not valid.
    """
    atoms, instructions = _contents(path, xray_structure)
    atoms.parts = parts
    entries, skipped = [], []
    for instruction in instructions:
        used = False
        with _naming(path, instruction):
            _require_positive(instruction)
            for residue, own in _spread(instruction, atoms):
                try:
                    entries += _entries(own, atoms, residue, xray_structure)
                    used = True
                except KeyError:
                    continue  # residues of one class need not all have every atom
        if not used:
            skipped.append(str(instruction))
    if skipped:
        logger.warning("%s: these restraints are not used: %s", path, "; ".join(skipped))
    return entries


@contextlib.contextmanager
def _naming(path, instruction):
    """Turn what an instruction that is not valid raises into InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {instruction}: {error}") from error
    except (IndexError, ValueError, RuntimeError) as error:
        name = str(instruction).split()[0].split("_")[0]
        raise InputError(f"{path}: {instruction}: not a valid {name} instruction") from error


def _require_positive(instruction: _Instruction) -> None:
    if instruction.name in _SIGMA and not all(0 < sigma < math.inf for sigma in instruction.sigmas):
        raise InputError(
            "sigma must be positive; give one, or leave it out here and in DEFS for the usual one"
        )


def _spread(given: _Instruction, atoms: _Atoms) -> list[tuple]:
    """Return the residues that an instruction is for, each with what it is there.

    DFIX 1.5 C1_* C2_* has no pairs that go from one residue to another: it is DFIX_* 1.5 C1 C2.
    """
    if given.name not in _ADP and any(word.endswith(_EVERYWHERE) for word in given.words):
        words = [word.removesuffix(_EVERYWHERE) for word in given.words]
        given = dataclasses.replace(given, suffix="*", words=words)
    return [(residue, given) for residue in atoms.residues(given.suffix)]


def _sigmas(numbers: list[float]) -> dict[str, float]:
    """Return the sigmas of the restraints after a DEFS instruction."""
    distance, plane, rigid, similar = (*numbers, *_DEFS[len(numbers) :])[:4]
    new = {"DFIX": distance, "DANG": 2 * distance, "SADI": distance, "FLAT": plane}
    return {**_SIGMA, **new, "DELU": rigid, "SIMU": similar}


def _contents(path, xray_structure) -> tuple[_Atoms, list]:
    """Return the atoms and the instructions that restrain them."""
    atoms, found, residue, sigmas = _Atoms(), [], 0, _SIGMA
    for words in shelx_lines(Path(path)):
        command, _, suffix = words[0].partition("_")
        rest = words[1:]
        if command == "RESI":
            residue, name = residue_of(words)
            atoms.classes[residue] = name
        elif command == "EQIV":
            with _naming(path, " ".join(words)):
                atoms.operators[rest[0]] = sgtbx.rt_mx("".join(rest[1:]).lower())
        elif command == "DEFS":
            with _naming(path, " ".join(words)):
                sigmas = _sigmas([float(word) for word in rest])
        elif command in _SIGMA or command in _UNUSED:
            sigma = sigmas.get(command, 0.0)
            found.append(_Instruction(command, suffix or None, rest, sigma))
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


def _entries(given: _Instruction, atoms: _Atoms, residue, xray_structure) -> list[Entry]:
    """Return what one instruction asks for.

    Raises KeyError for what is not known here, IndexError and ValueError for what is not valid.
    """
    name = given.name
    if name in _UNUSED:
        raise KeyError(name)
    sigma, other = [*given.sigmas, None][:2]
    names = [word for word in given.words if not _is_number(word)]
    members = atoms.members(names, residue)
    if name in _ADP:
        chosen = _chosen(names, members, atoms, residue)
        return ADP_ENTRIES[_ADP[name]](xray_structure, chosen, sigma, other, atoms.parts)
    if not 0 <= given.target < FREE_VARIABLE:  # below zero, a least distance
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
    return [Entry("distance", given.target, sigma, pair) for pair in pairs]


def _chosen(names, members, atoms: _Atoms, residue: int | None) -> list[int]:
    """Return the atoms that are named; those of the residue, or all, if nothing is.

    Raises KeyError where the names stand for no atom.
    """
    if names and not members:
        raise KeyError(names[0])
    if names:
        return [i for i, _ in members]
    return [i for i, (_, number) in enumerate(atoms.names) if residue in (None, number)]


def _is_number(word: str) -> bool:
    return word[0].isdigit() or word[0] in "+-."
