"""Atoms and their neighbours in the crystal, as numpy arrays; lengths in A."""

from __future__ import annotations

import itertools

import numpy as np
from cctbx.eltbx import covalent_radii

from ..data import Structure
from ..freedom import to_cartesian
from .arrays import as_numpy

SAME = 0.01  # A, nearer images are the atom itself, on a special position
BOND_MARGIN = 0.4  # A beyond the sum of the radii, as the Cambridge Structural Database takes it
IONIC = frozenset(("Li", "Na", "K", "Rb", "Cs", "Ca", "Sr", "Ba"))  # no bonds are drawn to them


def axes(structure: Structure) -> np.ndarray:
    """Return the cell axes (3, 3) as columns, in Cartesian coordinates."""
    return as_numpy(to_cartesian(structure.cell))


def elements(structure: Structure) -> list[str]:
    """Return the element of each of the A atoms."""
    return [structure.elements[int(kind)] for kind in structure.type]


def radii(structure: Structure) -> np.ndarray:
    """Return covalent radii (A,) (B. Cordero et al. 2008, doi:10.1039/b801115j)."""
    return np.array([covalent_radii.table(name).radius() for name in elements(structure)])


def images(structure: Structure) -> np.ndarray:
    """Return the symmetry images (S, A, 3) of all sites, fractional."""
    turned = np.einsum("sij,aj->sai", as_numpy(structure.sym_rot), as_numpy(structure.site))
    return turned + as_numpy(structure.sym_trans)[:, None]


def nearest(structure: Structure, reach: float) -> list[tuple[int, int, float]]:
    """Return (i, j, distance) of atoms i <= j that come nearer than `reach` somewhere.

    The distance is the shortest of any images; j = i is an atom and a copy of itself.
    """
    cell, every = axes(structure), images(structure)
    # a lattice vector more than reaches beyond the cell's faces
    planes = np.linalg.norm(np.linalg.inv(cell), axis=1)
    counts = [range(-n, n + 1) for n in np.ceil(reach * planes + 0.5).astype(int)]
    shifts = np.array(list(itertools.product(*counts)), dtype=float)
    found = []
    for i, site in enumerate(as_numpy(structure.site)):
        apart = every[:, i:] - site
        apart = apart - np.round(apart)
        vectors = (apart[:, :, None] + shifts) @ cell.T
        distance = np.linalg.norm(vectors, axis=-1)
        distance[:, 0][distance[:, 0] < SAME] = np.inf
        shortest = distance.min((0, 2))
        found += [(i, i + int(k), float(shortest[k])) for k in np.flatnonzero(shortest < reach)]
    return found


def cartesian_u(structure: Structure) -> np.ndarray:
    """Return the displacement tensors (A, 3, 3) in A^2, in the Cartesian frame of `axes`."""
    cell = axes(structure)
    order = np.array([[0, 3, 4], [3, 1, 5], [4, 5, 2]])
    tensor = cell @ as_numpy(structure.u_star)[:, order] @ cell.T
    isotropic = as_numpy(structure.u_iso)[:, None, None] * np.eye(3)
    return np.where(structure.anisotropic.cpu().numpy()[:, None, None], tensor, isotropic)
