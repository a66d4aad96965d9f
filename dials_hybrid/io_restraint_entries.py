"""Restraints as entries, and those of displacement parameters, along bonds that cctbx finds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from cctbx import sgtbx

from .data import Restraints
from .io_bonds import UNIT, neighbours
from .io_disorder import Parts, exclude
from .io_elements import neutral
from .io_structure_checks import OVERLAP

SAME_DISTANCE = 3  # digits of A to which copies of a pair are told apart


@dataclass(frozen=True)
class Entry:
    """One restraint: its members are (index of the atom, operator of cctbx that moves it)."""

    kind: str
    target: float
    sigma: float
    members: tuple


def record(entries: Iterable[Entry]) -> Restraints:
    """Return restraints as tensors."""
    entries = list(entries)
    members = [(i, *member) for i, entry in enumerate(entries) for member in entry.members]
    operators = [op for _, _, op in members]
    return Restraints(
        kind=tuple(entry.kind for entry in entries),
        target=as_tensor([entry.target for entry in entries]),
        sigma=as_tensor([entry.sigma for entry in entries]),
        owner=torch.tensor([i for i, _, _ in members]),
        atom=torch.tensor([atom for _, atom, _ in members]),
        rot=as_tensor([op.r().as_double() for op in operators]).reshape(-1, 3, 3),
        trans=as_tensor([op.t().as_double() for op in operators]),
    )


def entries_in(restraints: Restraints, change=None) -> list[Entry]:
    """Return the entries that a record was made of, operators in another basis by `change`."""
    members: list[list] = [[] for _ in restraints.kind]
    for row, owner in enumerate(restraints.owner.tolist()):
        operator = operator_of(restraints, row)
        if change is not None:
            operator = change.apply(operator)
        members[owner].append((int(restraints.atom[row]), operator))
    numbers = restraints.target.tolist(), restraints.sigma.tolist()
    return [
        Entry(kind, target, sigma, tuple(own))
        for kind, target, sigma, own in zip(restraints.kind, *numbers, members, strict=True)
    ]


def operator_of(restraints: Restraints, row: int):
    """Return the operator of a member as cctbx has it."""
    rot = [round(x) for x in restraints.rot[row].flatten().tolist()]
    trans = [round(x * sgtbx.sg_t_den) for x in restraints.trans[row].tolist()]
    return sgtbx.rt_mx(sgtbx.rot_mx(rot), sgtbx.tr_vec(trans, sgtbx.sg_t_den))


def as_tensor(values) -> torch.Tensor:
    """Return a tensor in double precision."""
    return torch.tensor(values, dtype=torch.float64)


# --- displacement parameters ------------------------------------------------------------------


def _hydrogen(xray_structure) -> list[bool]:
    return [neutral(sc.scattering_type) == "H" for sc in xray_structure.scatterers()]


class _Pairs:
    """Bonded (1,2) and next (1,3) pairs of the atoms other than H, each once by symmetry."""

    def __init__(self, xray_structure, parts: Parts):
        self.structure, self.parts = xray_structure, parts
        hydrogen = _hydrogen(xray_structure)
        self.bonds = [
            [] if hydrogen[i] else [g for g in groups if not hydrogen[g[0][0]]]
            for i, groups in enumerate(neighbours(xray_structure, parts))
        ]
        self.seen: set[tuple] = set()

    def terminal(self, atom: int) -> bool:
        """Whether the atom has one bond or none."""
        return sum(map(len, self.bonds[atom])) <= 1

    def bonded(self):
        """Yield (i, j, operator of j) of the bonds."""
        for i, groups in enumerate(self.bonds):
            for group in groups:
                yield from self._new(i, UNIT, *group[0])

    def next(self):
        """Yield (i, j, operator of j) of atoms that are bonded to the same one, not mutually."""
        for groups in self.bonds:
            ends = [end for group in groups for end in group]
            for (i, op_i), (j, op_j) in itertools.combinations(ends, 2):
                yield from self._new(i, op_i, j, op_j)

    def _new(self, i: int, op_i, j: int, op_j):
        if j < i:
            i, op_i, j, op_j = j, op_j, i, op_i
        operator = op_i.inverse().multiply(op_j)
        atoms = self.structure.scatterers()
        length = self.structure.unit_cell().distance(atoms[i].site, operator * atoms[j].site)
        key = (i, j, round(length, SAME_DISTANCE))
        # an inversion relates equal tensors
        trivial = i == j and abs(operator.r().order()) <= 1 + (operator.r().determinant() < 0)
        # parts of a mixed site have no line between them, though both are bonded to a third atom
        apart = exclude(self.parts, i, j, not operator.is_unit_mx())
        if length > OVERLAP and key not in self.seen and not trivial and not apart:
            self.seen.add(key)
            yield i, j, operator


def _similar_adps(
    xray_structure, chosen, sigma: float, sigma_terminal: float | None, parts: Parts = ()
):
    pairs, chosen = _Pairs(xray_structure, parts), set(chosen)
    loose = sigma_terminal or 2 * sigma
    return [
        Entry(
            "adp_similarity",
            0.0,
            loose if pairs.terminal(i) or pairs.terminal(j) else sigma,
            ((i, UNIT), (j, operator)),
        )
        for i, j, operator in pairs.bonded()
        if {i, j} <= chosen
    ]


def _rigid(kind: str):
    def build(xray_structure, chosen, sigma: float, sigma_next: float | None, parts: Parts = ()):
        pairs = _Pairs(xray_structure, parts)
        chosen = set(chosen) & set(_anisotropic(xray_structure))
        both = itertools.chain(
            ((sigma, pair) for pair in pairs.bonded()),
            ((sigma_next or sigma, pair) for pair in pairs.next()),
        )
        return [
            Entry(kind, 0.0, width, ((i, UNIT), (j, operator)))
            for width, (i, j, operator) in both
            if {i, j} <= chosen
        ]

    return build


def _anisotropic(xray_structure) -> list[int]:
    return [i for i, sc in enumerate(xray_structure.scatterers()) if sc.flags.use_u_aniso()]


def _isotropic_adps(
    xray_structure, chosen, sigma: float, sigma_terminal: float | None, parts: Parts = ()
):
    pairs, hydrogen = _Pairs(xray_structure, parts), _hydrogen(xray_structure)
    loose = sigma_terminal or 2 * sigma
    return [
        Entry("isotropic_adp", 0.0, loose if pairs.terminal(i) else sigma, ((i, UNIT),))
        for i in sorted(set(chosen) & set(_anisotropic(xray_structure)))
        if not hydrogen[i]
    ]


ADP_ENTRIES = {
    "adp_similarity": _similar_adps,
    "rigid_bond": _rigid("rigid_bond"),
    "enhanced_rigid_bond": _rigid("enhanced_rigid_bond"),
    "isotropic_adp": _isotropic_adps,
}
