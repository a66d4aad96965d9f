"""Atoms that are not bonded and come nearer than van der Waals radii allow.

Only nonmetals have such contacts: what lies near to a metal is bonded to it or held by charges.
"""

from __future__ import annotations

import numpy as np
from cctbx import crystal, sgtbx
from cctbx.eltbx import covalent_radii, van_der_waals_radii

from .io_bonds import UNIT, neighbours
from .io_disorder import Parts, exclude
from .io_elements import neutral
from .io_structure_checks import OVERLAP

FIRST_ROW = frozenset(("H", "C", "N", "O", "F"))
DONORS = frozenset(("N", "O", "F", "S"))  # of hydrogen bonds
ACCEPTORS = DONORS | {"Cl", "Se", "Br", "I"}
NONMETALS = FIRST_ROW | ACCEPTORS | {"B", "Si", "P", "As", "Te"}
# A below the sum of the radii: the shortest contacts of good structures, for example H...H 2.0,
# C-H...O 2.1, O...O 2.4 of a hydrogen bond; and across three or four bonds, C...C 2.6 in cages
MARGIN, WITHIN_GROUP = 0.6, 1.0
FARTHEST = 3.7  # A, twice the largest radius less the margin
# A beyond the sum of the covalent radii, to which bonds among the elements of FIRST_ROW are long;
# longer ones, of more than two electrons, are those of heavier elements
LONGEST_BOND = 0.3
SMALLEST_ANGLE = 100.0  # degree, at the hydrogen of a hydrogen bond
FULL = 1.01  # occupancies of two atoms of one place add up to less
_SAME = 0.01  # A


class _Surroundings:
    """The atoms about each atom; one is an (index, operator that takes it there)."""

    def __init__(self, xray_structure, parts: Parts):
        atoms = xray_structure.scatterers()
        self.parts, self.cell = parts, xray_structure.unit_cell()
        self.sites = [atom.site for atom in atoms]
        self.elements = [neutral(atom.scattering_type) for atom in atoms]
        self.occupancies = [atom.occupancy for atom in atoms]
        self.bonded = [
            [end for ends in groups for end in ends if self._is_bond(i, end)]
            for i, groups in enumerate(neighbours(xray_structure, parts))
        ]

    def distance(self, i: int, end) -> float:
        """Return the distance in A of an atom from another one."""
        return self.cell.distance(self.sites[i], end[1] * self.sites[end[0]])

    def limit(self, i: int, end) -> float:
        """Return how near in A two atoms may come: zero for those that may be anywhere."""
        j, op = end
        kinds = self.elements[i], self.elements[j]
        never = exclude(self.parts, i, j, not op.is_unit_mx())
        if never or not set(kinds) <= NONMETALS or self.occupancies[i] + self.occupancies[j] < FULL:
            return 0.0
        radii = [van_der_waals_radii.vdw.table[kind] for kind in kinds]
        if self.distance(i, end) >= sum(radii) - MARGIN:
            return sum(radii) - MARGIN
        one = self.bonded[i]
        two = self._beyond(one)
        if self._is_among(end, one + two) or self._is_hydrogen_bond(i, end):
            return 0.0
        three = self._beyond(two)
        near = self._is_among(end, three + self._beyond(three))
        return sum(radii) - (WITHIN_GROUP if near else MARGIN)

    def _is_bond(self, i: int, end) -> bool:
        """Tell whether a bond by covalent radii, and some more, is one indeed."""
        kinds = self.elements[i], self.elements[end[0]]
        if set(kinds) == {"H"}:
            return False
        if not set(kinds) <= FIRST_ROW:
            return True
        longest = sum(covalent_radii.table(kind).radius() for kind in kinds) + LONGEST_BOND
        return self.distance(i, end) < longest

    def _beyond(self, ends) -> list:
        """Return the atoms that are bonded to those given."""
        return [(k, op.multiply(further)) for j, op in ends for k, further in self.bonded[j]]

    def _place(self, end) -> np.ndarray:
        return np.array(self.cell.orthogonalize(end[1] * self.sites[end[0]]))

    def _is_among(self, end, ends) -> bool:
        """Tell whether an atom is one of those given; operators of special positions differ."""
        place = self._place(end)
        alike = [self._place((k, op)) for k, op in ends if k == end[0]]
        return any(np.linalg.norm(other - place) < _SAME for other in alike)

    def _is_hydrogen_bond(self, i: int, end) -> bool:
        """Tell whether one of two atoms is the hydrogen of a donor and points to the other."""
        return self._donates((i, UNIT), end) or self._donates(end, (i, UNIT))

    def _donates(self, hydrogen, acceptor) -> bool:
        if self.elements[hydrogen[0]] != "H" or self.elements[acceptor[0]] not in ACCEPTORS:
            return False
        middle, far = self._place(hydrogen), self._place(acceptor)
        donors = [d for d in self._beyond([hydrogen]) if self.elements[d[0]] in DONORS]
        return any(_angle(self._place(d) - middle, far - middle) > SMALLEST_ANGLE for d in donors)


def _angle(first: np.ndarray, second: np.ndarray) -> float:
    """Return the angle between two vectors in degree."""
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def close_contacts(xray_structure, parts: Parts = ()) -> list[dict]:
    """Return pairs of atoms nearer than the sum of their van der Waals radii allows.

    Each has `atoms`, the `symmetry` codes as CIF has them, the `distance` and the `limit` in A,
    the worst pair first. Left out are bonded atoms, those bonded to a common one, hydrogen bonds,
    copies of one another on a mixed site, and atoms that are never there together: by their
    `parts` or by their occupancies.
    """
    near = _Surroundings(xray_structure, parts)
    group = sgtbx.space_group_info(group=xray_structure.space_group())
    labels = [atom.label for atom in xray_structure.scatterers()]
    found = []
    for i, ends in enumerate(_within(xray_structure, FARTHEST)):
        for j, op in ends:
            distance = near.distance(i, (j, op))
            if j < i or distance <= OVERLAP:
                continue
            limit = near.limit(i, (j, op))
            if distance < limit:
                code = "." if op.is_unit_mx() else group.cif_symmetry_code(op)
                pair = {"atoms": [labels[i], labels[j]], "symmetry": [".", code]}
                found.append({**pair, "distance": distance, "limit": limit})
    return sorted(found, key=lambda pair: pair["distance"] - pair["limit"])


def _within(xray_structure, reach: float) -> list[list[tuple]]:
    """Return for each atom those nearer than `reach`, one of those equal by its site symmetry."""
    mappings = xray_structure.asu_mappings(buffer_thickness=reach)
    table = crystal.pair_asu_table(asu_mappings=mappings)
    table.add_all_pairs(distance_cutoff=reach)
    out = []
    for i, others in enumerate(table.table()):
        back = mappings.get_rt_mx(i, 0).inverse()
        firsts = [(j, next(iter(group))) for j, of_j in others.items() for group in of_j]
        out.append([(j, back.multiply(mappings.get_rt_mx(j, k))) for j, k in firsts])
    return out
