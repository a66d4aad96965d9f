"""Bloch waves of abTEM >= 1.0.11 on the same structure factors and beams, an independent code.

abTEM forms excitation errors, obliquity factors and the structure matrix by itself, and solves
it. Where it is installed it is asked; everywhere, its answers as they were are compared with.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from dials_hybrid import beams, crystal, electron
from dials_hybrid.crystal import CrystalModel
from dials_hybrid.propagation import DepthGrid, Eigen, Probe, Splitting

VOLTAGE = 200e3
TILT = (0.021, -0.034, 0.4)  # rad, of the lattice against the beam
GRID = DepthGrid(20.0, 20)
DEPTHS = (4, 9, 19)  # of the grid: 100, 200, 400 A
# abTEM 1.0.11: hkl of the eight strongest beams, then |psi|^2 at the three depths
PINNED = [
    (0, 0, 0, 0.888680598099, 0.842659262348, 0.708453562703),
    (-1, 2, 0, 0.020547362051, 0.068391460096, 0.213777506871),
    (0, -1, 0, 0.020697651147, 0.033632015594, 0.000391511763),
    (0, 1, 0, 0.016105253594, 0.009519722165, 0.023121537678),
    (-3, 5, 0, 0.002894106271, 0.010740937291, 0.009120124829),
    (0, -2, 0, 0.009559608624, 0.003982215800, 0.007627538155),
    (-1, 1, 0, 0.008711723208, 0.000915127676, 0.002858251843),
    (1, -2, 0, 0.006699752884, 0.000547533002, 0.000347157040),
]


def setting() -> torch.Tensor:
    """Return reciprocal axes as columns (3, 3) in A^-1, turned away from the beam along z."""
    metric = crystal.metric(tiny.quartz().cell)
    axes = torch.linalg.cholesky(metric)  # rows a, b, c
    turn = beams.rotation_matrices(tiny.f64([TILT]))[0]
    return turn @ torch.linalg.inv(axes)


def chosen() -> torch.Tensor:
    """Return the incident beam and all with |S| < 0.02 and |g| < 1.6, (N, 3)."""
    hkl = beams.lattice_points(tiny.quartz(), 1.6)
    g = (setting() @ hkl.double().T).T
    k = 1 / electron.wavelength(VOLTAGE)
    s = beams.excitation_errors(g[None], tiny.f64([[0, 0, k]]), tiny.f64([k]))[0]
    return torch.cat([torch.zeros(1, 3, dtype=torch.int64), hkl[s.abs() < 0.02]])


def potentials(hkl) -> torch.Tensor:
    """Return U_g in A^-2 of hkl (M, 3); none at g = 0."""
    structure = tiny.quartz()
    volume = crystal.cell_volume(structure.cell)
    u = CrystalModel(structure)(hkl).detach()
    u = u * electron.potential_factor(electron.wavelength(VOLTAGE), volume)
    return u * (hkl != 0).any(1)


def ours(method) -> torch.Tensor:
    """Return |psi_g|^2 (N, depths); abTEM's amplitudes are not divided by m_g, as ours are."""
    hkl, k = chosen(), 1 / electron.wavelength(VOLTAGE)
    n = len(hkl)
    valid = torch.ones(1, n, dtype=torch.bool)
    couplings = beams.Couplings.of(beams.BeamSet(hkl[None], valid, torch.zeros(0)))
    u = potentials(couplings.hkl) / (2 * k)
    z = tiny.f64([[0, 0, 1]])
    scan = SimpleNamespace(setting=setting()[None, None], normal=z, s0=k * z)
    m = beams.obliquity(scan, torch.tensor([0]), hkl[None], tiny.f64([k]))
    own = hkl[None], valid
    potential = u[couplings.places(own, own)] * m[:, :, None] * m[:, None, :]
    g = (setting() @ hkl.double().T).T
    s = beams.excitation_errors(g[None], k * z, tiny.f64([k])) * m.square()
    one = torch.ones(1, n, 1, dtype=torch.float64)
    probe = Probe(torch.tensor([0]), torch.arange(n)[None], one)
    found = method(potential, s[:, :, None], probe, GRID)[0]
    return (found * m[0, :, None].square())[:, list(DEPTHS)]


def theirs() -> np.ndarray:
    """Return abTEM's |psi_g|^2 (N, depths) from our U_g and beams."""
    from abtem.bloch import dynamical
    from abtem.core.constants import kappa
    from abtem.core.energy import energy2sigma, energy2wavelength

    hkl = chosen()
    unique = torch.unique((hkl[None] - hkl[:, None]).flatten(0, 1), dim=0)
    unit = energy2sigma(VOLTAGE) / (kappa * energy2wavelength(VOLTAGE) * np.pi)
    gpts = tuple((4 * unique.abs().amax(0) + 1).tolist())
    cell = torch.linalg.inv(setting()).numpy()
    given = potentials(unique).numpy() / unit, unique.numpy(), hkl.numpy(), cell, VOLTAGE
    matrix = dynamical.calculate_structure_matrix(*given, gpts)
    depths = GRID.depths(dtype=torch.float64)[list(DEPTHS)].numpy()
    waves = dynamical.calculate_dynamical_scattering(matrix, hkl.numpy(), cell, VOLTAGE, depths)
    return np.abs(waves.T) ** 2


@pytest.mark.parametrize("method", [Eigen(), Splitting(substeps=8)], ids=["eigen", "splitting"])
def test_pinned_intensities(method):
    found = {tuple(h): i for h, i in zip(chosen().tolist(), ours(method).tolist(), strict=True)}
    for row in PINNED:
        assert found[row[:3]] == pytest.approx(row[3:], abs=2e-8)


def test_all_intensities():
    pytest.importorskip("abtem", reason="abTEM is not installed; its pinned values are compared")
    assert np.abs(theirs() - ours(Eigen()).numpy()).max() < 1e-6
