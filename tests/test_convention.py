"""The sign and index conventions, against the Schroedinger equation on a real-space grid.

Waves are psi = exp(2 pi i q.r), so a potential U(r) transmits exp(+i pi U dz / K) and free space
multiplies by exp(-i pi q^2 dz / K). The crystal has no centre of symmetry: a conjugated F(g) or
a transposed matrix makes its mirror image.
"""

import math

import pytest
import tiny
import torch

from dials_hybrid import beams, electron
from dials_hybrid.crystal import CrystalModel, cell_volume
from dials_hybrid.model import HybridModel
from dials_hybrid.propagation import DepthGrid, Eigen, Probe

K = 1 / tiny.WAVELENGTH
EDGE, PIXELS, THICKNESS, REACH = 6.0, 48, 150.0, 9
SITES = [[1 / 6, 1 / 6, 0.0], [0.43, 0.22, 0.0], [0.28, 0.52, 0.0]]
A, B = (5.0, 3.0, 1.8), (9.0, 9.0, 9.0)


@pytest.fixture(scope="module")
def structure():
    return tiny.triclinic(SITES, A, B, cell=(EDGE, EDGE, 4.0, 90, 90, 90))


@pytest.fixture(scope="module")
def factor(structure):
    return electron.potential_factor(tiny.WAVELENGTH, cell_volume(structure.cell))


@pytest.fixture(scope="module")
def multislice(factor):
    """Intensities (PIXELS, PIXELS) by spatial frequency, down the zone axis."""
    x = torch.arange(PIXELS, dtype=torch.float64) / PIXELS
    potential = torch.zeros(PIXELS, PIXELS, dtype=torch.float64)
    for (u, v, _), a, b in zip(SITES, A, B, strict=True):
        dx, dy = (((x - c + 0.5) % 1 - 0.5) * EDGE for c in (u, v))
        r_sq = dx[:, None] ** 2 + dy**2
        # f = a exp(-b g^2 / 4) is the transform of a Gaussian
        gaussian = torch.exp(-4 * math.pi**2 * r_sq / b)
        potential += factor * EDGE**2 * a * 4 * math.pi / b * gaussian
    q = torch.fft.fftfreq(PIXELS, EDGE / PIXELS, dtype=torch.float64)
    steps = 300
    dz = THICKNESS / steps
    half = torch.exp(-0.5j * math.pi * (q[:, None] ** 2 + q**2) / K * dz)
    transmission = torch.exp(1j * math.pi * potential / K * dz)
    psi = torch.ones(PIXELS, PIXELS, dtype=torch.complex128)
    for _ in range(steps):
        psi = torch.fft.ifft2(torch.fft.fft2(psi) * half) * transmission
        psi = torch.fft.ifft2(torch.fft.fft2(psi) * half)
    return (torch.fft.fft2(psi) / PIXELS**2).abs().square()


@pytest.fixture(scope="module")
def beam_set():
    """The zone h k 0, the incident beam first."""
    hk = torch.cartesian_prod(*[torch.arange(-REACH, REACH + 1)] * 2)
    hk = hk[(hk.square().sum(1) <= REACH**2) & (hk != 0).any(1)]
    hkl = torch.cat([torch.zeros(1, 3, dtype=torch.int64), torch.nn.functional.pad(hk, (0, 1))])
    return beams.BeamSet(hkl[None], torch.ones(1, len(hkl), dtype=torch.bool), torch.zeros(0))


def bloch(potential, hkl):
    """Intensities (N,) at THICKNESS for the beam along -z and couplings (1, N, N)."""
    s0 = tiny.f64([[0, 0, -K]])
    s = beams.excitation_errors(hkl.double() / EDGE, s0, tiny.f64([K]))[..., None]
    n = hkl.shape[1]
    probe = Probe(torch.tensor([0]), torch.arange(n)[None], torch.ones(1, n, 1).double())
    return Eigen()(potential, s, probe, DepthGrid(THICKNESS, 1))[0, :, 0]


def unique_couplings(beam_set):
    """Return unique h - g (M, 3) and the place of every pair of beams (F, N, N)."""
    found = beams.Couplings.of(beam_set)
    own = beam_set.hkl, beam_set.valid
    return found.hkl, found.places(own, own)


@pytest.fixture(scope="module")
def couplings(structure, factor, beam_set):
    """(1, N, N) U / 2K as the model forms it."""
    unique, place = unique_couplings(beam_set)
    f = CrystalModel(structure)(unique).detach() * factor / (2 * K)
    f = f * (unique != 0).any(1)  # U_0 is part of K
    return torch.cat([f, f.new_zeros(1)])[place]


def test_bloch_waves_agree_with_multislice(multislice, beam_set, couplings):
    hkl = beam_set.hkl
    expected = multislice[hkl[0, :, 0] % PIXELS, hkl[0, :, 1] % PIXELS]
    assert multislice.sum() == pytest.approx(1, abs=1e-10)
    assert expected[0] < 0.6, "the scattering must be dynamical"
    assert (bloch(couplings, hkl) - expected).abs().max() < 1e-3


def test_the_opposite_index_order_disagrees(multislice, beam_set, couplings):
    hkl = beam_set.hkl
    expected = multislice[hkl[0, :, 0] % PIXELS, hkl[0, :, 1] % PIXELS]
    assert (bloch(couplings.mT, hkl) - expected).abs().max() > 1e-2


def test_couplings_are_column_minus_row(beam_set):
    unique, place = unique_couplings(beam_set)
    hkl = beam_set.hkl[0]
    n = len(hkl)
    difference = hkl[None, :] - hkl[:, None]  # row g, column h: h - g
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    assert torch.equal(unique[place[0][off_diagonal]], difference[off_diagonal])
    assert (unique[place[0].diagonal()] == 0).all()
    assert len(torch.unique(unique, dim=0)) == len(unique)


def test_padded_beams_couple_to_nothing():
    hkl = torch.tensor([[[0, 0, 0], [1, 0, -2], [0, 3, 1]], [[0, 0, 0], [1, 1, 0], [0, 0, 0]]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    unique, place = unique_couplings(beams.BeamSet(hkl, valid, torch.zeros(0)))
    assert (place[1, 2] == len(unique)).all() and (place[1, :, 2] == len(unique)).all()
    assert unique[place[0, 1, 2]].tolist() == [-1, 3, 3]


def test_the_model_couples_with_the_potential_of_its_structure():
    problem = tiny.problem()
    model = HybridModel(problem, tiny.settings())
    table = model.potential_table().detach()
    structure = problem.structure
    factor = electron.potential_factor(tiny.WAVELENGTH, cell_volume(structure.cell))
    f_zero = CrystalModel(structure)(torch.zeros(1, 3, dtype=torch.int64)).real.detach()
    k = float(K**2 + factor * f_zero) ** 0.5
    for batch in model.batches:
        own = batch.hkl, batch.valid
        v = table[model.matrix.couplings.places(own, own)]
        assert torch.allclose(v, v.mH, atol=1e-12)
        difference = (batch.hkl[:, None] - batch.hkl[:, :, None])[0]
        f = CrystalModel(structure)(difference.flatten(0, 1)).detach().view(difference.shape[:2])
        count = int(model.beams.counts[batch.blocks[0]])
        off = ~torch.eye(count, dtype=torch.bool)
        expected = (f * factor / (2 * k))[:count, :count][off]
        assert torch.allclose(v[0, :count, :count][off], expected, atol=1e-12)
