"""Constraints that a SHELX .ins or .res file asks for: AFIX, EXYZ, EADP, FVAR and 10+ values.

The meaning of the instructions is that of SHELXL (G. M. Sheldrick 2015,
doi:10.1107/S2053229614024218).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from iotbx.shelx import parsers

from .freedom import Constraints
from .io_fixed import AXES
from .io_hydrogen_sites import TURNING, HydrogenGroup
from .io_shelx_build import ShelxAtom, build
from .io_shelx_lines import is_shelx_atom, shelx_lines
from .records import InputError

logger = logging.getLogger("dials.hybrid.io_shelx")

SUFFIXES = (".ins", ".res")

# AFIX mn: the geometry m of hydrogen atoms, as the name of smtbx's class
GEOMETRIES = {
    1: "tertiary_xh_site",
    2: "secondary_xh2_sites",
    3: "staggered_terminal_tetrahedral_xh3_sites",
    4: "secondary_planar_xh_site",
    8: "terminal_tetrahedral_xh_site",  # as 14, but for what SHELXL sets up from HFIX
    9: "terminal_planar_xh2_sites",
    13: "terminal_tetrahedral_xh3_sites",
    14: "terminal_tetrahedral_xh_site",
    15: "polyhedral_bh_site",
    16: "terminal_linear_ch_site",
}
# n of AFIX mn whose atoms follow their parent, and what SHELXL refines beside that is fixed here
_RIDING = {3: "", 4: "the distance", 7: "", 8: "the distance"}
_TURNS = (7, 8)  # n that refines the torsion
_FIXED = (1, 2)  # n that fixes U: with the site, without it
_NOT_HONOURED = (
    *("SUMP", "HFIX", "ANIS", "BLOC", "SPEC"),
    *("BIND", "FREE", "CONN"),  # bonds
    *("TWIN", "BASF"),
)
_SAME_DISTANCE = 0.02  # A, between what AFIX and the coordinates say


@dataclass(frozen=True)
class Instructions:
    """What a SHELX file asks for; atoms by their number in the structure that is read."""

    constraints: Constraints
    hydrogens: tuple[HydrogenGroup, ...]  # AFIX of hydrogen atoms


def is_shelx(path) -> bool:
    """Return whether a file has the name of a SHELX file."""
    return Path(path).suffix.lower() in SUFFIXES


def read_instructions(path) -> Instructions:
    """Return the constraints of a SHELX file.

    One warning names what cannot be honoured. Raises InputError when the file cannot be read.
    """
    path = Path(path)
    try:
        structure, atoms = build(path)
        found = _Reading(atoms, structure)
        for words in shelx_lines(path):
            found.line(words)
        found.end_afix()
    except InputError:
        raise
    except Exception as error:  # iotbx raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path}: its constraints cannot be read ({reason}); correct the file, or give the "
            "model as CIF"
        ) from error
    constraints = found.constraints()
    if found.unhonoured:
        logger.warning(
            "%s: these instructions are not known here and have no effect: %s",
            path,
            ", ".join(dict.fromkeys(found.unhonoured)),
        )
    return Instructions(constraints, tuple(found.hydrogens))


class _Reading:
    """The instructions of a file, line after line."""

    def __init__(self, atoms: list[ShelxAtom], structure):
        self.atoms = atoms
        self.labels = [sc.label for sc in structure.scatterers()]
        self.sites, self.distance = structure.sites_frac(), structure.unit_cell().distance
        self.number = {(a.name, a.residue): i for i, a in enumerate(atoms)}
        self.next = 0  # the atom that comes next
        self.pivot = None  # the last atom that no AFIX moves
        self.afix, self.held = None, []  # (m, n, distance) and the atoms under it
        self.hydrogens, self.riding = [], []
        self.fixed_site, self.fixed_u = set(), set()
        self.same = {"EXYZ": [], "EADP": []}
        self.unhonoured: list[str] = []

    def line(self, words: list[str]) -> None:
        """Take in one instruction."""
        command, _, residue = words[0].partition("_")
        if command == "AFIX":
            self.end_afix()
            self._start_afix(words)
        elif command in self.same:
            self._share(command, residue, words)
        elif command in _NOT_HONOURED or command.startswith("+"):  # or a file to include
            self.unhonoured.append(command)
        elif is_shelx_atom(command, words) and self._is_next(words[0]):
            if self.afix is None:
                self.pivot = self.next
            else:
                self.held.append(self.next)
            self.next += 1

    def _is_next(self, name: str) -> bool:
        """Peaks of a difference map, which look like atoms, are in no structure."""
        return self.next < len(self.atoms) and self.atoms[self.next].name == name

    def _start_afix(self, words: list[str]) -> None:
        code = int(float(words[1])) if len(words) > 1 else 0
        m, n = divmod(abs(code), 10)
        length = float(words[2]) if len(words) > 2 else 0.0
        self.afix = (m, n, length or None) if code else None

    def end_afix(self) -> None:
        """Settle what the AFIX that ends here, if there is one, says of its atoms."""
        if self.afix is None:
            return
        (m, n, length), atoms = self.afix, self.held
        self.afix, self.held = None, []
        if n in _FIXED:
            self.fixed_u |= set(atoms)
            self.fixed_site |= set(atoms) if n == 1 else set()
        elif n in _RIDING and (m == 0 or m in GEOMETRIES) and self.pivot is not None:
            self.riding += [(atom, self.pivot) for atom in atoms]
            turns = n in _TURNS and GEOMETRIES.get(m) in TURNING
            if m:
                self.hydrogens.append(
                    HydrogenGroup(self.pivot, tuple(atoms), GEOMETRIES[m], length, turns)
                )
            if n in _TURNS and not turns:
                self.unhonoured.append(f"the torsion of AFIX {10 * m + n}")
            if _RIDING[n]:
                self.unhonoured.append(f"{_RIDING[n]} of AFIX {10 * m + n}")
            if length and self._at_another_distance(atoms, length):
                self.unhonoured.append(
                    f"the distance {length:g} A of AFIX {10 * m + n} (but with "
                    "parameters.hydrogens=riding)"
                )
        else:
            self.unhonoured.append(f"AFIX {10 * m + n}")
            self.pivot = atoms[-1] if atoms else self.pivot

    def _at_another_distance(self, atoms: list[int], length: float) -> bool:
        """Whether atoms are not at the distance of AFIX from their parent, where they stay."""
        apart = (self.distance(self.sites[self.pivot], self.sites[i]) for i in atoms)
        return any(abs(d - length) > _SAME_DISTANCE for d in apart)

    def _share(self, command: str, residue: str, words: list[str]) -> None:
        try:
            numbers = self._numbers(words[1:], int(residue or 0))
        except (KeyError, ValueError):
            self.unhonoured.append(" ".join(words))
            return
        self.same[command].append(tuple(dict.fromkeys(numbers)))

    def _numbers(self, words: list[str], residue: int) -> list[int]:
        """Return the atoms of a list such as C1 > C6 O1_2."""
        found: list[int] = []
        through = 0  # the direction of a range that waits for its end
        for word in words:
            if word in "<>":
                through = 1 if word == ">" else -1
                continue
            name, _, own = word.partition("_")
            number = self.number[name, int(own or residue)]
            if through:
                found += range(found[-1] + through, number, through)
            found.append(number)
            through = 0
        return found

    def constraints(self) -> Constraints:
        """Return what was found, with what the coding of the parameters says."""
        fixed_site, fixed_u = set(self.fixed_site), set(self.fixed_u)
        riding_u, linked_u, occ, along = [], {}, {}, []
        for i, atom in enumerate(self.atoms):
            site, occupancy, u = atom.coding[:3], atom.coding[3], atom.coding[4:]
            axes = self._fixed_axes(i, site)
            if len(axes) == len(site):
                fixed_site.add(i)
            else:
                along += [(i, axis) for axis in axes]
            if len(u) == 1 and isinstance(u[0], tuple):
                self._isotropic(i, u[0], riding_u, linked_u)
            elif self._all_fixed(i, u):
                fixed_u.add(i)
            if isinstance(occupancy, tuple):
                variable, share = _share_of_variable(occupancy)
                occ.setdefault(variable, []).append((i, share / atom.weight))
            elif occupancy == parsers.independent_parameter:
                occ[f"own {i}"] = [(i, 1.0)]
        same_u = [tuple((i, 1.0) for i in atoms) for atoms in self.same["EADP"]]
        return Constraints(
            frozenset(fixed_site),
            frozenset(fixed_u),
            tuple(self.same["EXYZ"]),
            tuple(self.riding),
            (*same_u, *(tuple(group) for group in linked_u.values() if len(group) > 1)),
            tuple(riding_u),
            tuple(tuple(group) for group in occ.values()),
            tuple(along),
        )

    def _isotropic(self, i: int, coding: tuple, riding_u: list, linked_u: dict) -> None:
        if coding[0] == parsers.constant_times_u_eq:
            riding_u.append((i, coding[2], coding[1]))
        else:
            variable, share = _share_of_variable(coding)
            linked_u.setdefault(variable, []).append((i, share))

    def _fixed_axes(self, i: int, codings: tuple) -> list[tuple[float, ...]]:
        """Return the axes along which a site is fixed."""
        self._tell_of_variables(i, codings, "coordinates")
        pairs = zip(AXES.values(), codings, strict=True)
        return [axis for axis, coding in pairs if coding == parsers.constant_parameter]

    def _all_fixed(self, i: int, codings: tuple) -> bool:
        """Whether all U_ij are fixed; those of special positions may be in part."""
        self._tell_of_variables(i, codings, "U")
        fixed = [coding == parsers.constant_parameter for coding in codings]
        if any(fixed) and not all(fixed) and not self.atoms[i].special:
            self.unhonoured.append(f"some of the U of {self.labels[i]} fixed")
        return all(fixed)

    def _tell_of_variables(self, i: int, codings: tuple, what: str) -> None:
        """Symmetry does for special positions what free variables were once needed for."""
        if not self.atoms[i].special and any(isinstance(coding, tuple) for coding in codings):
            self.unhonoured.append(f"FVAR for {what} of {self.labels[i]}")


def _share_of_variable(coding: tuple) -> tuple[int, float]:
    """Return the free variable and the change of a parameter per change of it."""
    _, share, variable = coding
    return variable, float(share)
