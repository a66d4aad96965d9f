"""Which ways the atoms may go: the free parameters of a structure as directions.

Site symmetry, fixed and shared parameters, riding atoms and linked occupancies are all linear:
a free parameter moves a set of atoms together. `basis` turns `Constraints` into the record
`Freedom`, from which the model of the crystal takes its parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from .data import Freedom, Structure

KEPT = 1e-6  # a singular value below is none
TOUCHING = 0.5  # A, nearer images are of the same atom


@dataclass(frozen=True)
class Constraints:
    """What holds beside the symmetry; atoms by their number in the structure.

    Of atoms that share a parameter, the first is the one that the others follow.
    """

    fixed_site: frozenset[int] = frozenset()
    fixed_u: frozenset[int] = frozenset()
    same_site: tuple[tuple[int, ...], ...] = ()
    riding: tuple[tuple[int, int], ...] = ()  # (atom, parent): moves as its parent does
    linked_u: tuple[tuple[tuple[int, float], ...], ...] = ()  # groups of (atom, share)
    riding_u: tuple[tuple[int, int, float], ...] = ()  # (atom, parent, U_iso / U_eq of parent)
    occ: tuple[tuple[tuple[int, float], ...], ...] = ()  # one parameter each, of (atom, share)
    # (atom, n): the fractional shift s of the site has n . s = 0; n is an axis where x, y or z is
    # fixed, and what becomes of that in another setting
    fixed_along: tuple[tuple[int, tuple[float, ...]], ...] = ()
    # groups that turn about the bond from an atom to their parent: (atom, parent, riding atoms)
    turning: tuple[tuple[int, int, tuple[int, ...]], ...] = field(default=(), kw_only=True)
    # groups that keep a geometry: (parent, riding atoms, its name, distance in A or None); the
    # basis does not hold it, atoms are put back to it (see the room io_riding)
    ideal: tuple[tuple[int, tuple[int, ...], str, float | None], ...] = field(
        default=(), kw_only=True
    )

    def turned(self, rot: Tensor) -> Constraints:
        """Return the constraints in another setting, to which `rot` (3, 3) takes shifts."""
        back = torch.linalg.inv(rot)
        along = ((i, tuple((torch.tensor(n).to(rot) @ back).tolist())) for i, n in self.fixed_along)
        return replace(self, fixed_along=tuple(along))

    def to_dict(self) -> dict:
        """Return lists of plain numbers, for files."""
        return {f.name: _as(list, getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: dict) -> Constraints:
        """Return the constraints that `to_dict` described."""
        kinds = {"fixed_site": frozenset, "fixed_u": frozenset}
        return cls(**{k: kinds.get(k, tuple)(_as(tuple, v)) for k, v in values.items()})


def _as(kind: type, value):
    """Return nested sequences as lists or as tuples."""
    if isinstance(value, list | tuple | frozenset):
        ordered = sorted(value) if isinstance(value, frozenset) else value
        return kind(_as(kind, inner) for inner in ordered)
    return value


SYMMETRY_ALONE = Constraints()


def metric(cell: Tensor) -> Tensor:
    """Return the real-space metric tensor (3, 3) in A^2 of a cell (6,) in A and degree."""
    a, b, c, alpha, beta, gamma = (float(x) for x in cell)
    ca, cb, cg = (math.cos(math.radians(x)) for x in (alpha, beta, gamma))
    rows = [
        [a * a, a * b * cg, a * c * cb],
        [a * b * cg, b * b, b * c * ca],
        [a * c * cb, b * c * ca, c * c],
    ]
    return torch.tensor(rows, dtype=torch.float64)


def lengths(cell: Tensor, vectors: Tensor) -> Tensor:
    """Return the lengths (...) in A of fractional vectors (..., 3)."""
    g = metric(cell).to(vectors)
    return torch.einsum("...i,ij,...j->...", vectors, g, vectors).clamp(min=0).sqrt()


def to_cartesian(cell: Tensor) -> Tensor:
    """Return the cell axes (3, 3) in A as columns, a along x and b in the plane of x and y."""
    return torch.linalg.cholesky(metric(cell)).T.contiguous()


def star_lengths(cell: Tensor) -> Tensor:
    """Return a*_i a*_j in A^-2 for 11 22 33 12 13 23: u_star over U of the CIF, (6,)."""
    length = torch.linalg.inv(metric(cell)).diagonal().sqrt()
    first, second = torch.tensor([[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]])
    return length[first] * length[second]


def equivalent_weights(cell: Tensor) -> Tensor:
    """Return the weights (6,) in A^2 whose product with u_star is U_eq = trace(G u_star) / 3."""
    g = metric(cell)
    paired = [g[0, 0], g[1, 1], g[2, 2], 2 * g[0, 1], 2 * g[0, 2], 2 * g[1, 2]]
    return torch.stack(paired) / 3


def u_equivalent(structure: Structure) -> Tensor:
    """Return U_iso, or U_eq of anisotropic atoms, (A,) A^2."""
    weights = equivalent_weights(structure.cell).to(structure.u_star)
    return torch.where(structure.anisotropic, structure.u_star @ weights, structure.u_iso)


def least_u(structure: Structure) -> Tensor:
    """Return the smallest principal U of every atom, (A,) A^2; negative where U is indefinite."""
    order = torch.tensor([[0, 3, 4], [3, 1, 5], [4, 5, 2]])
    axes = to_cartesian(structure.cell).to(structure.u_star)
    tensor = axes @ structure.u_star[:, order] @ axes.T
    least = torch.linalg.eigvalsh(tensor)[:, 0]
    return torch.where(structure.anisotropic, least, structure.u_iso)


def neighbours(structure: Structure, atom: int) -> tuple[Tensor, Tensor]:
    """Return the distance in A of every atom to `atom`, and the operator of its nearest image.

    Both (A,). Right for distances that are short against the cell.
    """
    images = torch.einsum("sij,aj->sai", structure.sym_rot, structure.site)
    apart = structure.site[atom] - images - structure.sym_trans[:, None]
    apart = apart - apart.round()
    length, operator = lengths(structure.cell, apart).min(0)
    return length, operator


def tied(structure: Structure, constraints: Constraints) -> Structure:
    """Return the structure with the start values that shared parameters ask for: the first's."""
    site, u_iso, u_star = (x.clone() for x in (structure.site, structure.u_iso, structure.u_star))
    for first, *others in constraints.same_site:
        site[others] = site[first].clone()
    for (first, share), *others in constraints.linked_u:
        for atom, own_share in others:
            u_iso[atom], u_star[atom] = u_iso[first] * own_share / share, u_star[first]
    return structure.replace(site=site, u_iso=u_iso, u_star=u_star)


def with_usual_riding_u(structure: Structure, constraints: Constraints) -> Structure:
    """Return the structure, every riding U_iso at its multiple of the parent's U_eq."""
    u, u_iso = u_equivalent(structure), structure.u_iso.clone()
    for atom, parent, factor in constraints.riding_u:
        u_iso[atom] = factor * u[parent]
    return structure.replace(u_iso=u_iso)


def basis(structure: Structure, constraints: Constraints = SYMMETRY_ALONE) -> Freedom:
    """Return the free parameters that symmetry and constraints leave."""
    structure = structure.to("cpu")
    riding = {
        atom: parent for atom, parent in constraints.riding if _rides(structure, atom, parent)
    }
    u_iso, u_star = _u_basis(structure, constraints)
    atoms = len(structure.labels)
    occ = torch.zeros(len(constraints.occ), atoms, dtype=torch.float64)
    for row, group in zip(occ, constraints.occ, strict=True):
        for atom, share in group:
            row[atom] = share
    parent, u_parent = torch.full((2, atoms), -1)
    for atom, its_parent in riding.items():
        parent[atom] = its_parent
    for atom, its_parent, _ in constraints.riding_u:
        u_parent[atom] = its_parent
    site = _site_basis(structure, constraints, riding)
    return Freedom(site, u_iso, u_star, occ, parent, u_parent)


def _orthonormal_directions(projector: Tensor, scale: Tensor) -> Tensor:
    """Return an orthonormal basis (m, n) of the projector's range, measured in units of `scale`.

    `scale` (n, n) takes the vectors to A or A^2, so that a unit step of a free parameter moves
    the atom by about that much.
    """
    in_units = scale @ projector @ torch.linalg.inv(scale)
    u, s, _ = torch.linalg.svd(in_units)
    return torch.linalg.solve(scale, u[:, s > KEPT]).T


def _common_directions(projectors: list[Tensor], turns: list[Tensor], scale: Tensor) -> Tensor:
    """Return the directions (m, n) of a leader that are allowed to all whom it leads.

    A member moves by its turn times the leader's shift, and may be there with several projectors.
    Lengths as in `_orthonormal_directions`.
    """
    if len(projectors) == 1:
        return _orthonormal_directions(projectors[0], scale)
    identity = torch.eye(len(scale)).to(scale)
    pairs = zip(projectors, turns, strict=True)
    forbidden = [scale @ (identity - p) @ t @ torch.linalg.inv(scale) for p, t in pairs]
    _, s, vh = torch.linalg.svd(torch.cat(forbidden))
    return torch.linalg.solve(scale, vh[s <= KEPT].T).T


# --- sites ----------------------------------------------------------------------------------


def _rides(structure: Structure, atom: int, parent: int) -> bool:
    """Whether all that the parent may do keeps the atom on its special position."""
    turn, projector = _turn(structure, atom, parent), structure.site_projector
    leaves = (torch.eye(3).to(turn) - projector[atom]) @ turn @ projector[parent]
    return float(leaves.abs().max()) < KEPT


def _turn(structure: Structure, atom: int, parent: int) -> Tensor:
    """(3, 3), what takes a shift of the parent to that of its image next to the atom."""
    return structure.sym_rot[neighbours(structure, atom)[1][parent]]


def _without(normal: tuple[float, ...]) -> Tensor:
    """(3, 3), a projector onto the fractional shifts s with normal . s = 0."""
    n = torch.tensor(normal, dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) - torch.outer(n, n) / (n @ n)


def _site_basis(structure: Structure, constraints: Constraints, riding: dict) -> Tensor:
    """(P, A, 3) fractional shift of every atom per A of each free site parameter."""
    leader = {i: i for i in range(len(structure.labels))}
    for first, *others in constraints.same_site:
        leader |= dict.fromkeys(others, first)
    turns = {i: torch.eye(3, dtype=torch.float64) for i in leader}
    for atom, parent in riding.items():
        leader[atom], turns[atom] = leader[parent], _turn(structure, atom, parent)
    scale = to_cartesian(structure.cell)
    rows = []
    for first in sorted(set(leader.values())):
        members = [i for i in leader if leader[i] == first]
        if constraints.fixed_site & set(members):
            continue
        projectors = [structure.site_projector[i] for i in members]
        chain = [turns[i] for i in members]
        for i, normal in constraints.fixed_along:
            if i in members:
                projectors.append(_without(normal))
                chain.append(turns[i])
        for direction in _common_directions(projectors, chain, scale):
            row = torch.zeros(len(leader), 3, dtype=torch.float64)
            for i in members:
                row[i] = turns[i] @ direction
            rows.append(row)
    for group in constraints.turning:
        _, parent, atoms = group
        if all(riding.get(i) == parent for i in atoms) and _keeps_symmetry(structure, group):
            rows.append(_turning_row(structure, group))
    return torch.stack(rows) if rows else torch.zeros(0, len(leader), 3).double()


# --- torsions -------------------------------------------------------------------------------


def beside(structure: Structure, atom: int, other: int) -> tuple[Tensor, Tensor]:
    """Return the vector (3,) in A that takes `other` to the image of `atom` next to it.

    Beside it stands the rotation (3, 3), on fractional coordinates, from that image to the atom.
    """
    operator = neighbours(structure, atom)[1][other]
    turn = structure.sym_rot[operator]
    away = structure.site[atom] - turn @ structure.site[other] - structure.sym_trans[operator]
    away = torch.linalg.solve(turn, away - away.round())
    return to_cartesian(structure.cell) @ away, turn


def bond_direction(structure: Structure, atom: int, other: int) -> Tensor:
    """Return the unit vector (3,) to an atom from the nearest image of another, or of its own."""
    images = structure.sym_rot @ structure.site[other] + structure.sym_trans
    away = structure.site[atom] - images
    away = away - away.round()
    length = lengths(structure.cell, away)
    nearest = torch.where(length > TOUCHING, length, torch.inf).argmin()
    return to_cartesian(structure.cell) @ away[nearest] / length[nearest]


def _turning_row(structure: Structure, group: tuple) -> Tensor:
    """(A, 3) fractional shifts where the atom farthest from the axis moves by 1 A."""
    axis, parent, atoms = group
    scale = to_cartesian(structure.cell)
    direction = bond_direction(structure, parent, axis)
    row = torch.zeros(len(structure.labels), 3, dtype=torch.float64)
    for atom in atoms:
        away, turn = beside(structure, atom, parent)
        row[atom] = turn @ torch.linalg.solve(scale, torch.linalg.cross(direction, away))
    return row / lengths(structure.cell, row).max()


def _keeps_symmetry(structure: Structure, group: tuple) -> bool:
    """Whether the symmetry of the parent's site lets a group turn: about the axis, no mirror."""
    axis, parent, _ = group
    if float(structure.weight[parent]) == 1:
        return True  # also those of a disorder about an element that they are near to
    site = structure.site[parent]
    away = structure.sym_rot @ site + structure.sym_trans - site
    own = structure.sym_rot[lengths(structure.cell, away - away.round()) < TOUCHING]
    scale = to_cartesian(structure.cell)
    direction = bond_direction(structure, parent, axis)
    # a turn is an axial vector
    moved = torch.linalg.det(own)[:, None] * (scale @ own @ torch.linalg.inv(scale) @ direction)
    return float((moved - direction).abs().max()) < KEPT


# --- displacement parameters ----------------------------------------------------------------


def _u_basis(structure: Structure, constraints: Constraints) -> tuple[Tensor, Tensor]:
    """(Q, A) change of U_iso and (Q, A, 6) of u_star per A^2 of each free parameter.

    Isotropic atoms come first.
    """
    taken = {atom for group in constraints.linked_u for atom, _ in group}
    taken |= {atom for atom, _, _ in constraints.riding_u}
    single = [((i, 1.0),) for i in range(len(structure.labels)) if i not in taken]
    groups = sorted([*single, *constraints.linked_u])
    groups = [g for g in groups if not constraints.fixed_u & {atom for atom, _ in g}]
    moving = [bool(structure.anisotropic[group[0][0]]) for group in groups]
    rows_iso = [
        _iso_row(structure, g) for g, moves in zip(groups, moving, strict=True) if not moves
    ]
    rows_star = [
        row
        for group, moves in zip(groups, moving, strict=True)
        if moves
        for row in _star_rows(structure, group)
    ]
    atoms = len(structure.labels)
    u_iso = torch.zeros(len(rows_iso) + len(rows_star), atoms, dtype=torch.float64)
    u_star = torch.zeros(*u_iso.shape, 6, dtype=torch.float64)
    for i, row in enumerate(rows_iso):
        u_iso[i] = row
    for i, row in enumerate(rows_star, len(rows_iso)):
        u_star[i] = row
    slopes = u_iso + u_star @ equivalent_weights(structure.cell)
    for atom, parent, factor in constraints.riding_u:
        u_iso[:, atom] = factor * slopes[:, parent]
    return u_iso, u_star


def _iso_row(structure: Structure, group) -> Tensor:
    row = torch.zeros(len(structure.labels), dtype=torch.float64)
    for atom, share in group:
        row[atom] = share
    return row


def _star_rows(structure: Structure, group) -> list[Tensor]:
    to_u_cif = torch.diag(1 / star_lengths(structure.cell))
    members = [atom for atom, _ in group]
    identity = torch.eye(6, dtype=torch.float64)
    projectors = [structure.adp_projector[i] for i in members]
    rows = []
    for direction in _common_directions(projectors, [identity] * len(members), to_u_cif):
        row = torch.zeros(len(structure.labels), 6, dtype=torch.float64)
        row[members] = direction
        rows.append(row)
    return rows
