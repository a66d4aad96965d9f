"""Structure matrices of three real crystals, as propagation meets them.

A case is one block of a rotation: U of N beams, and their excitation errors at T orientations.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import iotbx.cif
import torch
from cctbx import crystal, xray
from cctbx.array_family import flex
from torch import Tensor

from dials_hybrid import beams, electron
from dials_hybrid.crystal import CrystalModel, cell_volume, metric
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.propagation import DepthGrid, Probe

from . import common

G_MAX = 2.0  # A^-1
TO_800, TO_440 = DepthGrid(20.0, 40), DepthGrid(20.0, 22)
CASES = (  # crystal, beams, orientations and depths
    ("quartz", 50, 42, TO_800),
    ("quartz", 140, 42, TO_800),
    ("albite", 280, 42, TO_800),
    ("CsPbBr3", 680, 60, TO_440),
)
WAVELENGTH = electron.wavelength(200e3)  # A


def quartz():
    """Return the alpha-quartz of examples/ (Levien, Prewitt & Weidner 1980)."""
    reader = iotbx.cif.reader(str(common.MODEL))
    return reader.build_crystal_structures()["quartz"]


def albite():
    """Return low albite, R. T. Downs, R. M. Hazen & L. W. Finger 1994, Am. Mineral. 79, 1042.

    Displacement parameters are one rounded value per element.
    """
    sites = {
        "Na": (0.2684, 0.9887, 0.1461),
        "Al1o": (0.0089, 0.1684, 0.2081),
        "Si1m": (0.0037, 0.8203, 0.2372),
        "Si2o": (0.6919, 0.1102, 0.3149),
        "Si2m": (0.6816, 0.8817, 0.3606),
        "OA1": (0.0053, 0.1310, 0.9664),
        "OA2": (0.5919, 0.9972, 0.2805),
        "OBo": (0.8121, 0.1099, 0.1907),
        "OBm": (0.8203, 0.8509, 0.2582),
        "OCo": (0.0140, 0.3021, 0.2697),
        "OCm": (0.0241, 0.6935, 0.2299),
        "ODo": (0.2075, 0.1091, 0.3890),
        "ODm": (0.1836, 0.8682, 0.4358),
    }
    u_iso = {"Na": 0.025, "Al": 0.007, "Si": 0.007, "O": 0.011}
    return _structure("Hall: -C 1", (8.142, 12.785, 7.159, 94.19, 116.61, 87.68), sites, u_iso)


def cspbbr3():
    """Return orthorhombic CsPbBr3, sites rounded from C. C. Stoumpos et al. 2013.

    doi:10.1021/cg400645t; one displacement parameter per element.
    """
    sites = {
        "Cs": (0.990, 0.030, 0.25),
        "Pb": (0.5, 0.0, 0.0),
        "Br1": (0.050, 0.494, 0.25),
        "Br2": (0.794, 0.206, 0.026),
    }
    cell = (8.207, 8.255, 11.759, 90, 90, 90)
    return _structure("P b n m", cell, sites, {"Cs": 0.05, "Pb": 0.02, "Br": 0.035})


def _structure(group: str, cell: tuple, sites: dict, u_iso: dict):
    symmetry = crystal.symmetry(unit_cell=cell, space_group_symbol=group)
    scatterers = flex.xray_scatterer()
    for label, site in sites.items():
        element = next(e for e in sorted(u_iso, key=len, reverse=True) if label.startswith(e))
        scatterers.append(
            xray.scatterer(label=label, scattering_type=element, site=site, u=u_iso[element])
        )
    return xray.structure(crystal_symmetry=symmetry, scatterers=scatterers)


@dataclass(frozen=True)
class Case:
    """Blocks of N beams and T orientations; beam 0 is the incident one."""

    name: str
    potential: Tensor  # (F, N, N) complex128, U / 2K in A^-1
    excitation: Tensor  # (F, N, T) float64, A^-1
    grid: DepthGrid

    @property
    def size(self) -> dict:
        """N, the orientations and the depths, as rows of the table name them."""
        _, n, samples = self.excitation.shape
        depth = self.grid.step * self.grid.count
        return {"n": n, "orientations": samples, "depth": depth, "depths": self.grid.count}

    def spread(self, samples: int) -> Tensor:
        """Return the indices of fewer orientations, spread over the same rotation."""
        return torch.linspace(0, self.excitation.shape[2] - 1, samples).round().long()

    def fewer(self, samples: int) -> Case:
        """Return the case with fewer orientations."""
        excitation = self.excitation[:, :, self.spread(samples)]
        return dataclasses.replace(self, excitation=excitation)

    def repeated(self, blocks: int) -> Case:
        """Return the same block several times."""
        return Case.joined([self] * blocks)

    @staticmethod
    def joined(cases: list[Case]) -> Case:
        """Return one case of all blocks; they have the same size."""
        return dataclasses.replace(
            cases[0],
            potential=torch.cat([c.potential for c in cases]),
            excitation=torch.cat([c.excitation for c in cases]),
        )

    def probe(self, dtype=torch.float64) -> Probe:
        """Ask for every beam and every orientation, with equal weights."""
        f, n, samples = self.excitation.shape
        weight = torch.full((f, n, samples), 1 / samples, dtype=dtype)
        return Probe(torch.zeros(f, dtype=torch.int64), torch.arange(n).expand(f, n), weight)


def make_case(name: str, n: int, samples: int, grid: DepthGrid, angle: float = 40.0) -> Case:
    """Return the `n` beams nearest to the Ewald sphere during a rotation of one degree.

    The crystal is turned by `angle` (degree) about a general axis, which puts no zone axis in
    the beam, then by -0.5 to 0.5 degree about x, across the beam.
    """
    structure = to_structure({"quartz": quartz, "albite": albite, "CsPbBr3": cspbbr3}[name]())
    model, volume = CrystalModel(structure), cell_volume(structure.cell)
    factor = electron.potential_factor(WAVELENGTH, volume)
    zero = model(torch.zeros(1, 3, dtype=torch.int64)).real.detach()
    s0 = torch.tensor([[0.0, 0.0, -1 / WAVELENGTH]], dtype=torch.float64)
    k = beams.inner_wavenumber(s0, factor * zero)
    hkl = beams.lattice_points(structure, G_MAX)
    scan = torch.linspace(-0.5, 0.5, samples, dtype=torch.float64)
    setting = _settings(structure.cell, angle, scan)
    s = beams.excitation_errors(_vectors(setting, hkl), s0, k)[0]
    near = torch.argsort(s.abs().amin(1))[: n - 1]
    chosen = torch.cat([torch.zeros(1, 3, dtype=torch.int64), hkl[near]])
    vectors = _vectors(setting, chosen)
    # the specimen's normal is the beam: K_n = K, g_n = g.s0 / |s0|
    along = -vectors[0, :, samples // 2, 2]
    m = (1 + along / k).rsqrt()
    s = beams.excitation_errors(vectors, s0, k) * m.square()[None, :, None]
    difference = chosen[None, :, :] - chosen[:, None, :]
    distinct, place = torch.unique(difference.reshape(-1, 3), dim=0, return_inverse=True)
    u = _without_noise(model(distinct).detach() * factor / (2 * k))
    potential = u[place].reshape(n, n) * m[:, None] * m[None, :]
    potential.fill_diagonal_(0)
    return Case(name, potential[None], s, grid)


def _without_noise(u: Tensor) -> Tensor:
    """Set real and imaginary parts that rounding alone made to zero.

    In single precision their products are denormal numbers, which slow torch's matrix_exp down.
    """
    parts = torch.view_as_real(u)
    return torch.view_as_complex(parts.where(parts.abs() > 1e-12 * parts.abs().max(), 0.0))


def _settings(cell: Tensor, angle: float, scan: Tensor) -> Tensor:
    """(T, 3, 3) A^-1, hkl to the laboratory frame."""
    a = torch.linalg.inv(torch.linalg.cholesky(metric(cell)).T).T
    axis = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / math.sqrt(14)
    turn = beams.rotation_matrices(math.radians(angle) * axis)
    about_x = torch.zeros(len(scan), 3, dtype=torch.float64)
    about_x[:, 0] = torch.deg2rad(scan)
    return beams.rotation_matrices(about_x) @ turn @ a


def _vectors(setting: Tensor, hkl: Tensor) -> Tensor:
    return torch.einsum("tij,nj->nti", setting, hkl.to(torch.float64))[None]
