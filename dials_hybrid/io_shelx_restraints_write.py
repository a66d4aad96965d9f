"""Restraints as instructions of a .res file, those that SHELXL has words for.

DFIX, SADI and FLAT name their atoms. Those of displacement parameters are instructions for sets of
atoms, of which SHELXL finds the pairs: SIMU, DELU, RIGU and ISOR are written where they give, along
the bonds that are found here, the restraints that there are. Angles and chiral volumes have no
instruction of their own (G. M. Sheldrick 2015, doi:10.1107/S2053229614024218).
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .data import Restraints
from .io_disorder import Parts
from .io_elements import neutral
from .io_restraint_entries import ADP_ENTRIES, Entry, entries_in
from .io_shelx_atoms import wrapped

_WORDS = {
    "adp_similarity": "SIMU",
    "rigid_bond": "DELU",
    "enhanced_rigid_bond": "RIGU",
    "isotropic_adp": "ISOR",
}
_LONGEST = 15.0  # A; a longer target means a free variable
_SIMU_REACH = 2.0  # A, as far as SIMU looks for pairs unless it is told otherwise


@dataclass
class Instructions:
    """Lines of a .res file; `left` names the restraints that cannot be written."""

    lines: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def instructions_of(
    refined, restraints: Restraints | None, labels: list[str], parts: Parts = (), change=None
) -> Instructions:
    """Return the instructions for the restraints of a refined cctbx structure.

    `labels` are the names of its atoms in the file. `change` is cctbx's change of basis from the
    setting of the restraints to that of the structure; None for the same.
    """
    if restraints is None:
        return Instructions()
    entries = entries_in(restraints, change)
    writer = _Writer(refined, labels, parts)
    writer.distances([e for e in entries if e.kind == "distance"])
    for entry in entries:
        if entry.kind == "similar_distance":
            writer.similar(entry)
        elif entry.kind == "plane":
            writer.plane(entry)
        elif entry.kind in ("angle", "chirality"):
            writer.leave([entry])
    for kind in _WORDS:
        writer.displacements(kind, [e for e in entries if e.kind == kind])
    equivalents = [f"EQIV ${n} {op.upper()}" for op, n in writer.operators.items()]
    return Instructions(equivalents + writer.lines, writer.left)


def _number(value: float) -> str:
    return np.format_float_positional(float(f"{value:.6g}"), trim="-")


class _Writer:
    """Collects lines, the operators that they name, and what is left."""

    def __init__(self, refined, labels: list[str], parts: Parts):
        self.refined, self.labels, self.parts = refined, labels, parts
        self.lines: list[str] = []
        self.left: list[str] = []
        self.operators: dict[str, int] = {}  # xyz -> n of $n

    def leave(self, entries: list[Entry]) -> None:
        atoms = dict.fromkeys(atom for entry in entries for atom, _ in entry.members)
        names = " ".join(self.labels[atom] for atom in atoms)
        self.left.append(f"{entries[0].kind.replace('_', ' ')} of {names}")

    def _names(self, members) -> list[str]:
        """Name atoms, the first as it stands in the file and the others beside it."""
        back = members[0][1].inverse()
        names = []
        for atom, operator in members:
            beside = back.multiply(operator)
            name = self.labels[atom]
            if not beside.is_unit_mx():
                number = self.operators.setdefault(beside.as_xyz(), len(self.operators) + 1)
                name += f"_${number}"
            names.append(name)
        return names

    def distances(self, entries: list[Entry]) -> None:
        """Write pairs of the same target and sigma together."""
        groups: dict[tuple[str, str], list[str]] = {}
        for entry in entries:
            if entry.target >= _LONGEST:
                self.leave([entry])
                continue
            key = (_number(entry.target), _number(entry.sigma))
            groups.setdefault(key, []).extend(self._names(entry.members))
        for numbers, names in groups.items():
            self.lines += wrapped("DFIX", [*numbers, *names])

    def similar(self, entry: Entry) -> None:
        pairs = zip(entry.members[::2], entry.members[1::2], strict=True)
        names = [name for pair in pairs for name in self._names(pair)]
        self.lines += wrapped("SADI", [_number(entry.sigma), *names])

    def plane(self, entry: Entry) -> None:
        self.lines += wrapped("FLAT", [_number(entry.sigma), *self._names(entry.members)])

    def displacements(self, kind: str, entries: list[Entry]) -> None:
        """Write one instruction for all of a kind, or one for each set of atoms that it ties."""
        if not entries:
            return
        whole = self._sigmas(kind, entries)
        for group in [entries] if whole else _tied(entries):
            sigmas = whole or self._sigmas(kind, group)
            if sigmas is None:
                self.leave(group)
                continue
            numbers = [_number(sigma) for sigma in sigmas]
            reach = max(map(self._length, group))
            if kind == "adp_similarity" and reach > _SIMU_REACH:
                numbers.append(f"{reach + 0.01:.2f}")
            self.lines += wrapped(_WORDS[kind], [*numbers, *self._set(group)])

    def _set(self, entries: list[Entry]) -> list[str]:
        """Name the atoms of some restraints; all but hydrogen go without saying."""
        atoms = {atom for entry in entries for atom, _ in entry.members}
        others = {
            i
            for i, sc in enumerate(self.refined.scatterers())
            if neutral(sc.scattering_type) != "H"
        }
        return [] if atoms == others else [self.labels[atom] for atom in sorted(atoms)]

    def _length(self, entry: Entry) -> float:
        atoms = self.refined.scatterers()
        ends = [operator * atoms[atom].site for atom, operator in entry.members]
        return self.refined.unit_cell().distance(ends[0], ends[-1])

    def _sigmas(self, kind: str, entries: list[Entry]) -> tuple[float, float] | None:
        """Return the sigmas of an instruction that gives these restraints, None if none does.

        The second is for atoms at an end of the molecule, or for next neighbours.
        """
        wanted = _counted(entries)
        atoms = {atom for entry in entries for atom, _ in entry.members}
        values = sorted({entry.sigma for entry in entries})
        for first, second in itertools.product(values, repeat=2):
            given = ADP_ENTRIES[kind](self.refined, atoms, first, second, self.parts)
            if _counted(given) == wanted:
                return first, second
        return None


def _counted(entries) -> Counter:
    """Count restraints by atoms and sigma: which of equivalent copies they name is the same."""
    return Counter(
        (tuple(sorted(atom for atom, _ in e.members)), f"{e.sigma:.6g}") for e in entries
    )


def _tied(entries: list[Entry]) -> list[list[Entry]]:
    """Return the restraints in sets that have no atom in common; those of one atom by sigma."""
    groups: list[tuple[set, list[Entry]]] = []
    for entry in entries:
        atoms = {atom for atom, _ in entry.members}
        mine = atoms if len(entry.members) > 1 else {f"{entry.sigma:.6g}"}
        touching = [group for group in groups if group[0] & mine]
        groups = [group for group in groups if group not in touching]
        joined = [e for _, others in touching for e in others]
        groups.append((mine.union(*(others for others, _ in touching)), [*joined, entry]))
    return [members for _, members in groups]
