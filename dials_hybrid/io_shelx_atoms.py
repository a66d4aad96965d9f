"""Atoms of a .res file with the constraints that SHELXL has words for.

AFIX for riding hydrogen atoms, PART, EXYZ, EADP, U as a multiple of the parent's, free variables
for linked occupancies, and 10 added to what is fixed (G. M. Sheldrick 2015,
doi:10.1107/S2053229614024218). SHELXL finds the constraints of special positions itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from cctbx import adptbx

from .freedom import Constraints
from .io_disorder import Parts, group_of
from .io_elements import neutral
from .io_fixed import AXES
from .io_hydrogen_sites import HydrogenGroup, beside, bonds_of, ideal_sites, number_of
from .io_hydrogens import usual_groups
from .io_shelx import GEOMETRIES

RIDES, TURNS = 3, 7  # n of AFIX mn: sites follow their parent's, and turn about its bond
_CODES = {geometry: m for m, geometry in GEOMETRIES.items()}
_IDEAL = 0.02  # A, farther from the place of a geometry, AFIX would move an atom
_SAME = 1e-3  # relative, occupancies that are in the ratio of their shares
_LONGEST = 75  # characters of a line


@dataclass
class Coding:
    """How the parameters of atoms are written, by their number.

    `variables` are the free variables from the second on; `left` names what cannot be written.
    """

    occupancy: dict[int, str] = field(default_factory=dict)
    u: dict[int, str] = field(default_factory=dict)
    variables: list[float] = field(default_factory=list)
    shared: list[tuple[str, list[int]]] = field(default_factory=list)  # EXYZ and EADP
    left: list[str] = field(default_factory=list)

    def variable(self, value: float) -> int:
        """Add a free variable and return its number."""
        self.variables.append(value)
        return len(self.variables) + 1


def coding(refined, constraints: Constraints) -> Coding:
    """Return how shared and linked parameters of a refined cctbx structure are written."""
    found = Coding()
    found.shared = [("EXYZ", list(group)) for group in constraints.same_site]
    for group in constraints.linked_u:
        _linked_u(found, refined, group)
    counts: dict[int, int] = {}
    for atom, _ in itertools.chain.from_iterable(constraints.occ):
        counts[atom] = counts.get(atom, 0) + 1
    for group in constraints.occ:
        _linked_occupancies(found, refined, group, all(counts[atom] == 1 for atom, _ in group))
    return found


def _linked_u(found: Coding, refined, group) -> None:
    atoms = refined.scatterers()
    if all(share == group[0][1] for _, share in group):
        found.shared.append(("EADP", [atom for atom, _ in group]))
    elif all(0 < share < 5 for _, share in group):
        first, share = group[0]
        number = found.variable(atoms[first].u_iso / share)
        found.u |= {atom: f"{10 * number + share:.5f}" for atom, share in group}
    else:
        found.left.append("U of " + _names(refined, group))


def _linked_occupancies(found: Coding, refined, group, alone: bool) -> None:
    """Write occupancies o = k s v, or k |s| (1 - v) for shares s < 0, v the free variable."""
    atoms = refined.scatterers()
    up = [atoms[atom].occupancy / share for atom, share in group if share > 0]
    down = [atoms[atom].occupancy / -share for atom, share in group if share < 0]
    if alone and len(group) == 1:
        found.occupancy[group[0][0]] = f"{atoms[group[0][0]].weight():.5f}"
        return
    equal = all(max(x) - min(x) <= _SAME * abs(max(x)) for x in (up, down) if x)
    total = max(up, default=0.0) + max(down, default=0.0) if down else 1.0
    codes = {atom: total * share * atoms[atom].weight_without_occupancy() for atom, share in group}
    if not (alone and equal and up and total > 0 and all(abs(p) < 5 for p in codes.values())):
        found.left.append("occupancies of " + _names(refined, group))
        return
    number = found.variable(up[0] / total)
    for atom, p in codes.items():
        found.occupancy[atom] = f"{10 * number + p if p > 0 else p - 10 * number:.5f}"


def _names(refined, group) -> str:
    return " ".join(refined.scatterers()[atom].label for atom, _ in group)


def fvar_lines(variables: list[float]) -> list[str]:
    """Return the FVAR instructions: the scale, of which nothing is known, and the variables."""
    return wrapped("FVAR", ["1.0", *(f"{v:.5f}" for v in variables)])


def wrapped(command: str, words: list[str]) -> list[str]:
    """Return an instruction as lines, those after the first as its continuation."""
    lines, line = [], command
    for word in words:
        if len(line) + 1 + len(word) > _LONGEST:
            lines.append(f"{line} =")
            line = " "
        line = f"{line} {word}"
    return [*lines, line]


class AtomLines:
    """Writes the atoms of a structure, those that ride right after their parents."""

    def __init__(
        self,
        refined,
        labels: list[str],
        elements: list[str],
        constraints: Constraints,
        parts: Parts,
    ):
        self.refined, self.labels, self.elements = refined, labels, elements
        self.constraints, self.parts = constraints, parts
        self.coding = coding(refined, constraints)
        self.parent = dict(constraints.riding)
        self.factor = {atom: (parent, k) for atom, parent, k in constraints.riding_u}
        self.turning = {atoms for _, _, atoms in constraints.turning}
        self.part = 0
        self.lines: list[str] = []

    def write(self) -> list[str]:
        """Return the lines of all atoms, and what stands between them."""
        groups = self._groups()
        followers = {atom for group in groups for atom in group.atoms}
        for i in range(len(self.labels)):
            if i in followers:
                continue
            self._atom(i, pivot=None)
            # U of 1.2 U_eq is that of the last atom without such a U
            mine = [group for group in groups if group.parent == i]
            for group in sorted(mine, key=lambda g: not self._all_follow(g)):
                self._follow(group)
        self._enter(0)
        return self.lines

    def _groups(self) -> list[HydrogenGroup]:
        """The atoms that are written after a parent: of a geometry, or as they are."""
        usual = usual_groups(self.refined, self.parent, self.parts)
        groups = [group for group in usual if self._is_ideal(group)]
        taken = {atom for group in groups for atom in group.atoms}
        parents = {atom: parent for atom, (parent, _) in self.factor.items()} | self.parent
        rest: dict[tuple, list[int]] = {}
        for atom in sorted(parents.keys() - taken):
            kind = (parents[atom], self._part(atom), atom in self.parent, atom in self.factor)
            rest.setdefault(kind, []).append(atom)
        return [*groups, *(HydrogenGroup(kind[0], tuple(a), "") for kind, a in rest.items())]

    def _is_ideal(self, group: HydrogenGroup) -> bool:
        """Whether atoms are where the geometry, with their mean distance, puts them.

        SHELXL wants all of them listed, also those that are there by symmetry.
        """
        if len(group.atoms) != number_of(group.geometry):
            return False
        sites, distance = self.refined.sites_frac(), self.refined.unit_cell().distance
        group = HydrogenGroup(group.parent, group.atoms, group.geometry, self._length(group))
        bonds = bonds_of(self.refined, self.parts)
        ideal = ideal_sites(self.refined, bonds, group, self.parts)
        if ideal is None:
            return False
        return max(map(distance, ideal, (sites[i] for i in group.atoms))) < _IDEAL

    def _length(self, group: HydrogenGroup) -> float:
        sites, distance = self.refined.sites_frac(), self.refined.unit_cell().distance
        near = [beside(self.refined, i, group.parent) for i in group.atoms]
        lengths = [distance(sites[group.parent], site) for site in near]
        return sum(lengths) / len(lengths)

    def _all_follow(self, group: HydrogenGroup) -> bool:
        return all(self.factor.get(i, (None,))[0] == group.parent for i in group.atoms)

    def _follow(self, group: HydrogenGroup) -> None:
        """Write the atoms of a parent; without a geometry they keep their place to it."""
        rides = group.atoms[0] in self.parent
        self._enter(self._part(group.atoms[0]))
        turns = group.atoms in self.turning
        if rides and group.geometry:
            code = 10 * _CODES[group.geometry] + (TURNS if turns else RIDES)
            self.lines.append(f"AFIX {code} {self._length(group):.4f}")
        elif rides:
            if turns:
                self.coding.left.append(
                    "torsion of " + " ".join(self.labels[i] for i in group.atoms)
                )
            self.lines.append(f"AFIX {RIDES}")
        for atom in group.atoms:
            self._atom(atom, pivot=group.parent if self._all_follow(group) else None)
        if rides:
            self.lines.append("AFIX 0")

    def _part(self, i: int) -> int:
        return group_of(self.parts[i]) if self.parts else 0

    def _enter(self, part: int) -> None:
        if part != self.part:
            self.lines.append(f"PART {part}")
            self.part = part

    def _atom(self, i: int, pivot: int | None) -> None:
        self._enter(self._part(i))
        sc, held = self.refined.scatterers()[i], self.constraints
        site = beside(self.refined, i, self.parent[i]) if i in self.parent else sc.site
        fixed = self._fixed_axes(i)
        shifts = [10 if i in held.fixed_site or axis in fixed else 0 for axis in AXES.values()]
        place = " ".join(f"{x + shift:.6f}" for x, shift in zip(site, shifts, strict=True))
        occupancy = self.coding.occupancy.get(i, f"{10 + sc.weight():.5f}")
        kind = self.elements.index(neutral(sc.scattering_type)) + 1
        words = [self.labels[i].ljust(4), str(kind), place, occupancy, *self._u(i, pivot)]
        self.lines += wrapped(words[0], words[1:])

    def _fixed_axes(self, i: int) -> list[tuple[float, ...]]:
        """Return the axes along which a site is fixed; others than those cannot be written."""
        normals = [normal for atom, normal in self.constraints.fixed_along if atom == i]
        axes = [tuple(abs(x) / max(map(abs, n)) for x in n) for n in normals]
        if not set(axes) <= set(AXES.values()):
            self.coding.left.append(f"a fixed direction of {self.labels[i]}")
        return axes

    def _u(self, i: int, pivot: int | None) -> list[str]:
        """U_iso, or U11 U22 U33 U23 U13 U12; 10 is added to what is fixed."""
        sc = self.refined.scatterers()[i]
        shift = 10 if i in self.constraints.fixed_u else 0
        if sc.flags.use_u_aniso():
            u11, u22, u33, u12, u13, u23 = adptbx.u_star_as_u_cif(
                self.refined.unit_cell(), sc.u_star
            )
            return [f"{u + shift:.5f}" for u in (u11, u22, u33, u23, u13, u12)]
        if i in self.factor:
            factor = self.factor[i][1]
            if pivot is not None and 0.5 < factor < 5:
                return [f"{-factor:.5f}"]
            self.coding.left.append(f"U of {self.labels[i]}")
        return [self.coding.u.get(i, f"{sc.u_iso + shift:.5f}")]
