"""Bonds and angles with standard uncertainties, from the full covariance of sites and cell."""

from __future__ import annotations

import itertools
import math

import numpy as np
from cctbx import crystal, geometry, sgtbx, uctbx
from cctbx.array_family import flex

from .data import Result
from .io_disorder import Parts, exclude
from .io_elements import neutral
from .io_structure_checks import OVERLAP

BOND_BUFFER = 3.5  # A around the asymmetric unit in which bonds are looked for
TIED = 1e-6  # A or degree; a smaller s.u. belongs to what symmetry or a constraint holds
UNIT = sgtbx.rt_mx()


def neighbours(xray_structure, parts: Parts = ()) -> list[list[list[tuple]]]:
    """Return, for each atom, its bonds by covalent radii: groups equal by its site symmetry.

    A bond is (index of the other atom, operator that takes that atom to the bond's end). Atoms
    nearer than OVERLAP, which share a site, and those whose `parts` exclude one another are not
    bonded.
    """
    mappings = xray_structure.asu_mappings(buffer_thickness=BOND_BUFFER)
    table = crystal.pair_asu_table(asu_mappings=mappings)
    types = [neutral(sc.scattering_type) for sc in xray_structure.scatterers()]
    table.add_covalent_pairs(flex.std_string(types))
    cell, sites = xray_structure.unit_cell(), xray_structure.sites_frac()
    out = []
    for i, others in enumerate(table.table()):
        back = mappings.get_rt_mx(i, 0).inverse()
        groups = [
            [(j, back.multiply(mappings.get_rt_mx(j, k))) for k in group]
            for j, of_j in others.items()
            for group in of_j
        ]
        apart = [
            [
                (j, op)
                for j, op in ends
                if cell.distance(sites[i], op * sites[j]) > OVERLAP
                and not exclude(parts, i, j, not op.is_unit_mx())
            ]
            for ends in groups
        ]
        out.append([ends for ends in apart if ends])
    return out


def cell_covariance(xray_structure, cell_su) -> np.ndarray | None:
    """Return the covariance (6, 6) of the cell in A and degree, None if its s.u. is not known.

    `cell_su` are the six s.u., or None. Parameters that the space group
    makes equal have a correlation of one, others of zero: files do not hold it.
    """
    if cell_su is None:
        return None
    su = np.array(cell_su)
    tied = _tied_parameters(xray_structure)
    free = tied.diagonal() > 0.01
    correlation = np.where(np.outer(free, free), tied, 0)
    size = np.sqrt(np.where(free, tied.diagonal(), 1))
    return correlation / np.outer(size, size) * np.outer(su, su)


def volume_su(xray_structure, cell_cov: np.ndarray) -> float:
    """Return the s.u. of the cell's volume in A^3 from the covariance of the cell."""
    cell, step = np.array(xray_structure.unit_cell().parameters()), 1e-4
    ends = [
        [uctbx.unit_cell(tuple((cell + sign * unit).tolist())).volume() for sign in (1, -1)]
        for unit in step * np.eye(6)
    ]
    slopes = np.array([(after - before) / (2 * step) for after, before in ends])
    return math.sqrt(max(slopes @ cell_cov @ slopes, 0.0))


def _tied_parameters(xray_structure) -> np.ndarray:
    """(6, 6): how the averaging over the space group's symmetry mixes the cell's parameters."""
    group, step = xray_structure.space_group(), 1e-3
    cell = np.array(xray_structure.unit_cell().parameters())
    columns = []
    for unit in step * np.eye(6):
        both = [
            np.array(group.average_unit_cell(uctbx.unit_cell(tuple(moved))).parameters())
            for moved in ((cell + unit).tolist(), (cell - unit).tolist())
        ]
        columns.append((both[0] - both[1]) / (2 * step))
    tied = np.array(columns).T
    return np.where(np.abs(tied) > 0.01, tied, 0)


class _Sites:
    """Sites of a structure and how sure they are."""

    def __init__(self, xray_structure, result: Result, cell_cov: np.ndarray | None):
        self.cell = xray_structure.unit_cell()
        self.sites = [sc.site for sc in xray_structure.scatterers()]
        self.cell_cov, self.covariance, self.parent = cell_cov, None, {}
        if result.site_covariance is not None:
            turn = np.array(self.cell.orthogonalization_matrix()).reshape(3, 3)
            fractional = result.site_covariance.detach().cpu().double().numpy()
            self.covariance = np.einsum("xi,aibj,yj->axby", turn, fractional, turn)
            freedom = result.structure.freedom
            self.parent = {} if freedom is None else dict(enumerate(freedom.parent.tolist()))

    def cartesian(self, ends):
        """Return the places of the atoms (index, operator)."""
        return [self.cell.orthogonalize(op * self.sites[i]) for i, op in ends]

    def packed(self, ends):
        """Return the covariance of the atoms before they are moved, as cctbx packs it."""
        chosen = [i for i, _ in ends]
        part = self.covariance[chosen][:, :, chosen].reshape(3 * len(ends), -1)
        return flex.double(part[np.triu_indices(len(part))].tolist())

    def ride(self, centre: int, *others: int) -> bool:
        """Whether an atom bonded to a centre rides on it, or is what the centre rides on."""
        parent = self.parent.get
        return any(parent(i) == centre or parent(centre) == i for i in others)

    def su(self, site_variance: float, by_cell) -> float | None:
        """Return the s.u. from the variance by the sites and the slopes by the cell's parameters.

        What the sites leave sure, as symmetry may, has the s.u. that the cell gives it.
        """
        variance = max(site_variance, 0.0)
        if self.cell_cov is not None:
            variance += float(np.array(by_cell) @ self.cell_cov @ np.array(by_cell))
        su = math.sqrt(variance)
        return su if su > TIED else None

    def length(self, ends) -> float:
        """Return the distance in A of two atoms."""
        return geometry.distance(self.cartesian(ends)).distance_model

    def distance(self, ends) -> dict:
        """Return the length in A and its s.u. of a bond."""
        found = geometry.distance(self.cartesian(ends))
        su = None
        if self.covariance is not None and not self.ride(ends[0][0], ends[1][0]):
            variance = found.variance(self.packed(ends), self.cell, ends[1][1])
            su = self.su(variance, found.d_distance_d_cell_params(self.cell))
        return {"length": found.distance_model, "su": su}

    def angle(self, ends) -> dict:
        """Return the angle in degree and its s.u. at the second of three atoms."""
        found = geometry.angle(self.cartesian(ends))
        su = None
        if self.covariance is not None and not self.ride(ends[1][0], ends[0][0], ends[2][0]):
            operators = tuple(op for _, op in ends)
            variance = found.variance(self.packed(ends), self.cell, operators)
            # cctbx has them in radian, other than those by the sites
            slopes = np.degrees(found.d_angle_d_cell_params(self.cell))
            su = self.su(variance, slopes)
        return {"angle": found.angle_model, "su": su}


def bonds_and_angles(xray_structure, result: Result, cell_cov=None, parts: Parts = ()) -> dict:
    """Return lists `bonds` and `angles` with lengths in A, angles in degree, and their s.u.

    `cell_cov` is the covariance of the cell, see `cell_covariance`; `parts` are those of a
    disorder. Each entry names its atoms
    and, as CIF does, their symmetry codes. A bond between two atoms stands once, one of two
    atoms of an orbit at each of them. The s.u. is None where it is not known or nothing is free,
    and of what the geometry of riding atoms fixes, as by SHELXL.
    """
    sites = _Sites(xray_structure, result, cell_cov)
    group = sgtbx.space_group_info(group=xray_structure.space_group())
    labels = [sc.label for sc in xray_structure.scatterers()]

    def named(ends) -> dict:
        codes = ["." if op.is_unit_mx() else group.cif_symmetry_code(op) for _, op in ends]
        return {"atoms": [labels[i] for i, _ in ends], "symmetry": codes}

    bonds, angles = [], []
    for i, groups in enumerate(neighbours(xray_structure, parts)):
        others = sorted(
            (end for ends in groups for end in ends),
            key=lambda end: sites.length(((i, UNIT), end)),
        )
        for end in others:
            if end[0] >= i:
                bond = ((i, UNIT), end)
                bonds.append({**named(bond), **sites.distance(bond)})
        for first, last in itertools.combinations(others, 2):
            between = first[1].inverse().multiply(last[1])
            alternative = exclude(parts, first[0], last[0], not between.is_unit_mx())
            if alternative or sites.length((first, last)) <= OVERLAP:
                continue  # never there together, or of a mixed site
            corner = (first, (i, UNIT), last)
            angles.append({**named(corner), **sites.angle(corner)})
    return {"bonds": bonds, "angles": angles}
