"""Absorption: form factors against integration and published ones, waves against theory."""

import dataclasses
import math

import numpy as np
import pytest
import tiny
import torch

from dials_hybrid import absorption, electron
from dials_hybrid.absorption import MODELS, NoAbsorption, Proportional, Thermal
from dials_hybrid.crystal import Atoms
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import (
    SCHEMES,
    Chebyshev,
    DepthGrid,
    MatrixExp,
    Moves,
    Probe,
    Splitting,
)
from dials_hybrid.records import InputError

VOLTAGE = 200e3
# L.-M. Peng et al. 1996, doi:10.1107/S0108767395014371, neutral atoms to s = 2 A^-1
GAUSSIANS = {
    "H": ([0.0349, 0.1201, 0.1970, 0.0573, 0.1195], [0.5347, 3.5867, 12.3471, 18.9525, 38.6269]),
    "O": ([0.0974, 0.2921, 0.6910, 0.6990, 0.2039], [0.2067, 1.3815, 4.6943, 12.7105, 32.4726]),
    "Si": ([0.2519, 0.6372, 1.3795, 2.5082, 1.0500], [0.3075, 2.0174, 9.6746, 29.3744, 80.4732]),
    "Pb": ([1.0891, 2.1867, 3.6160, 3.8031, 1.8994], [0.2552, 1.7174, 6.5131, 23.9170, 74.7039]),
}
# v/c f'(s) in A as sum of a exp(-b s^2) and a constant: a b a b a b a b c, for B in A^2.
# M. Thomas, A. Cleverley & R. Beanland 2024, Acta Cryst. A80, 146-150, supporting tables,
# from the same integral over form factors that have no upper limit of s
PUBLISHED = {
    ("O", 0.5): [
        *(0.00417413440, 1.63538346, 0.794641818, 5.32488009),
        *(0.00969439183, 0.159807285, -0.793138403, 5.32488005, -0.00496607493),
    ],
    ("O", 1.0): [
        *(0.00153620490, 6.71762838, -0.707881659, 2.24793005),
        *(0.0253456818, 0.151266556, 0.714889791, 2.24793001, -0.0182362349),
    ],
    ("Si", 0.5): [
        *(0.00238967541, 11.8881087, 0.0137404124, 0.236211822),
        *(0.0122856365, 0.236208169, 0.00775146520, 1.84039567, -0.00930129026),
    ],
    ("Si", 1.0): [
        *(0.00806258713, 3.98600078, 0.0243155156, 0.387796383),
        *(0.0227275435, 0.387800562, 0.00257783224, 17.3456329, -0.0183330006),
    ],
}


def atom(element):
    """Gaussians (1, G)."""
    return tuple(tiny.f64([values]) for values in GAUSSIANS[element])


def planck_over_speed() -> float:
    """h / m0 v in A."""
    gamma = 1 + VOLTAGE / electron.REST_ENERGY_V
    speed = electron.SPEED_OF_LIGHT * math.sqrt(1 - gamma**-2)
    return electron.PLANCK / (electron.ELECTRON_MASS * speed) / electron.ANGSTROM


def thermal(structure, hkl, wavelength=0.0251, **moved):
    """F'(g) of the atoms of a structure, some of their numbers replaced."""
    atoms = Atoms.of(structure)._replace(**moved)
    return Thermal().of_atoms(structure, hkl, atoms, None, wavelength).sum(-1)


def damped(element, s, along, across) -> np.ndarray:
    """exp(-B s^2) f'(s) in A, by the code under test."""
    s_sq = tiny.f64(s).square()[:, None]
    b = (tiny.f64([along]), tiny.f64([across]))
    values = absorption.thermal_form_factors(*atom(element), s_sq, *b)[:, 0]
    wavelength = electron.wavelength(VOLTAGE)
    return (2 * electron.lorentz_factor(wavelength) * wavelength * values).numpy()


def integrated(f, s: float, along: float, across: float, mixed: float = 0.0) -> float:
    """exp(-B s^2) f'(s) in A by summing over the plane; f is a function of s^2."""
    edge = np.linspace(0, 1, 1601)
    radius = 16 * ((edge[1:] + edge[:-1]) / 2) ** 2
    ring = 16 * np.diff(edge**2)
    turn = (np.arange(120) + 0.5) * 2 * np.pi / 120
    x, y = radius[:, None] * np.cos(turn), radius[:, None] * np.sin(turn)
    still = np.exp(-along * s**2)
    spread = along * x**2 + 2 * mixed * x * y + across * y**2
    moved = np.exp(-along * s**2 / 2 - 2 * spread)
    values = f((s / 2 + x) ** 2 + y**2) * f((s / 2 - x) ** 2 + y**2) * (still - moved)
    return 2 * planck_over_speed() * float(values.mean(1) @ (2 * np.pi * radius * ring))


def gaussian_sum(element):
    a, b = GAUSSIANS[element]
    return lambda s_sq: sum(x * np.exp(-y * s_sq) for x, y in zip(a, b, strict=True))


def with_tail(element):
    """Beyond 2 A^-1, where the Gaussians end, Rutherford's 1 / s^2."""
    inner = gaussian_sum(element)
    return lambda s_sq: np.where(s_sq < 4, inner(s_sq), inner(4.0) * 4 / np.maximum(s_sq, 4))


# --- form factors ---------------------------------------------------------------------------


@pytest.mark.parametrize("element", GAUSSIANS)
@pytest.mark.parametrize("along, across", [(0.1, 0.1), (0.5, 0.5), (5.0, 5.0), (0.3, 1.7)])
def test_form_factor_is_the_integral(element, along, across):
    s = [0.0, 0.3, 1.0, 2.0]
    expected = [integrated(gaussian_sum(element), x, along, across) for x in s]
    found = damped(element, s, along, across)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6 * found[0])


@pytest.mark.parametrize("element, b", PUBLISHED)
def test_form_factor_agrees_with_published_ones(element, b):
    """With the scattering beyond s = 2 A^-1, which the Gaussians lack: about a tenth."""
    p = np.array(PUBLISHED[element, b])
    gamma = 1 + VOLTAGE / electron.REST_ENERGY_V
    for s in (0.0, 0.2, 0.4):
        beta_f = p[0:8:2] @ np.exp(-p[1:8:2] * s**2) + p[8]
        published = beta_f / math.sqrt(1 - gamma**-2) * math.exp(-b * s**2)
        assert integrated(with_tail(element), s, b, b) == pytest.approx(published, rel=0.025)
        assert 0.88 * published < damped(element, [s], b, b)[0] < published


def test_still_atoms_do_not_absorb():
    assert np.abs(damped("Si", [0.0, 0.7, 2.0], 0.0, 0.0)).max() < 1e-15
    one, two = (damped("Si", [0.0, 0.7], b, b) for b in (1e-4, 2e-4))
    assert 0 < one[0] < 1e-4 and two == pytest.approx(2 * one, rel=1e-2)


def test_mean_absorption_is_the_cross_section():
    """A beam alone loses the fraction sigma / V per A that thermal scattering takes, by dOmega."""
    structure = tiny.triclinic([[0.1, 0.2, 0.3]], [2.0], [3.0])
    structure = structure.replace(u_iso=tiny.f64([0.01]))
    wavelength = electron.wavelength(VOLTAGE)
    f_zero = thermal(structure, torch.zeros(1, 3, dtype=torch.int64), wavelength)
    volume = 6 * 6 * 5.0
    u = electron.potential_factor(wavelength, volume) * f_zero.detach() * wavelength / 2
    grid = DepthGrid(100.0, 3)
    probe = Probe(torch.tensor([0]), torch.tensor([[0]]), torch.ones(1, 1, 1).double())
    out = Splitting()(1j * u[None, None], torch.zeros(1, 1, 1).double(), probe, grid)[0, 0]
    theta = np.linspace(0, 0.2, 40001)
    s_sq = (2 * np.sin(theta / 2) / wavelength / 2) ** 2  # |q| / 2
    gamma = electron.lorentz_factor(wavelength)
    rate = (gamma * 2.0 * np.exp(-3 * s_sq)) ** 2
    rate *= 1 - np.exp(-2 * 8 * math.pi**2 * 0.01 * s_sq)
    ring = rate * 2 * math.pi * np.sin(theta)
    sigma = float((ring[1:] + ring[:-1]).sum() / 2 * theta[1])
    expected = np.exp(-sigma / volume * grid.depths(dtype=torch.float64).numpy())
    assert out.numpy() == pytest.approx(expected, rel=1e-5)
    assert out[-1] < 0.999


def test_a_constant_form_factor_is_refused():
    structure = tiny.triclinic([[0, 0, 0]], [1.0], [0.0])
    with pytest.raises(InputError, match="absorption"):
        thermal(structure, torch.zeros(1, 3).long())


def test_empty_places_of_the_table_change_nothing():
    a, b = atom("O")
    wide = (torch.nn.functional.pad(x, (0, 2)) for x in (a, b))
    arguments = (tiny.f64([[0.0], [1.0]]), tiny.f64([0.7]), tiny.f64([0.9]))
    plain = absorption.thermal_form_factors(a, b, *arguments)
    assert torch.equal(absorption.thermal_form_factors(*wide, *arguments), plain)


# --- structure factors ----------------------------------------------------------------------

HKL = torch.tensor([[0, 0, 0], [1, 0, 0], [-1, 2, 3], [0, 0, 3], [4, -1, 2]])


def test_structure_factors_are_differentiable_in_all_of_the_motion():
    structure = tiny.quartz()

    def f(site, u_iso, u_star):
        return torch.view_as_real(
            thermal(structure, HKL[:4], site=site, u_iso=0.01 * u_iso, u_star=1e-3 * u_star)
        )

    inputs = (structure.site, structure.u_iso / 0.01 + 0.1, structure.u_star / 1e-3)
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(f, inputs, eps=1e-5, atol=1e-8, rtol=1e-5)


def test_negative_displacements_absorb_nothing():
    structure = tiny.quartz()
    found = thermal(structure, HKL, u_iso=tiny.f64([-0.05, 0]), u_star=-structure.u_star)
    assert found.abs().max() < 1e-12


def test_an_isotropic_tensor_is_the_same_as_u_iso():
    structure = tiny.quartz()
    isotropic = structure.replace(
        u_iso=tiny.f64([0.007, 0.012]), anisotropic=torch.tensor([False, False])
    )
    star = torch.linalg.inv(tiny.f64(_metric()))[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    tensor = isotropic.replace(
        u_star=tiny.f64([0.007, 0.012])[:, None] * star, anisotropic=torch.tensor([True, True])
    )
    assert torch.allclose(thermal(isotropic, HKL), thermal(tensor, HKL), rtol=1e-10)


@pytest.mark.parametrize("hkl", [(2, 0, 0), (1, 2, 0), (-1, 1, 3)])
def test_anisotropic_atoms_absorb_as_in_the_mean_over_directions_of_the_beam(hkl):
    """The integral over the plane across the beam, for the whole tensor, turned about g."""
    a, b = atom("Si")
    edges = np.array([6.0, 6, 5])
    u = np.array([[0.006, 0.002, -0.001], [0.002, 0.012, 0.003], [-0.001, 0.003, 0.009]])
    star = (u / np.outer(edges, edges))[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    structure = tiny.triclinic([[0.0, 0, 0]], [1.0], [1.0]).replace(
        ff_a=a, ff_b=b, u_star=tiny.f64([star.tolist()]), anisotropic=torch.tensor([True])
    )
    wavelength = electron.wavelength(VOLTAGE)
    found = thermal(structure, torch.tensor([hkl]), wavelength)
    g = np.array(hkl) / edges
    x = g / np.linalg.norm(g)
    y = np.cross(x, [0.3, -0.5, 0.8])
    y /= np.linalg.norm(y)
    z = np.cross(x, y)
    turns = [np.cos(t) * y + np.sin(t) * z for t in np.arange(6) * np.pi / 6]
    b_tensor = 8 * math.pi**2 * u
    each = [
        integrated(
            gaussian_sum("Si"),
            float(np.linalg.norm(g)) / 2,
            x @ b_tensor @ x,
            e @ b_tensor @ e,
            x @ b_tensor @ e,
        )
        for e in turns
    ]
    assert max(each) > 1.1 * min(each)
    assert float(found.real) == pytest.approx(np.mean(each), rel=0.02)


def _metric():
    a, _, c, *_ = tiny.CELL
    return [[a * a, -a * a / 2, 0], [-a * a / 2, a * a, 0], [0, 0, c * c]]


def test_absorption_has_the_symmetry_of_the_crystal():
    structure = tiny.quartz()
    f = thermal(structure, HKL)
    assert torch.allclose(thermal(structure, -HKL), f.conj(), rtol=1e-12)
    assert f[0].real > 0 and f[0].imag.abs() < 1e-15
    for rotation, shift in zip(structure.sym_rot, structure.sym_trans, strict=True):
        phase = torch.polar(torch.ones(len(HKL)).double(), -2 * math.pi * (HKL.double() @ shift))
        equivalent = (HKL.double() @ rotation).round().long()
        assert torch.allclose(thermal(structure, equivalent), f * phase, atol=1e-12)
    assert thermal(structure, torch.tensor([[0, 0, 1]])).abs() < 1e-12


def test_absorption_is_real_in_a_centrosymmetric_crystal():
    sites = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]
    structure = tiny.triclinic(sites, [2.0, 2.0], [3.0, 3.0]).replace(u_iso=tiny.f64([0.01, 0.01]))
    f = thermal(structure, HKL)
    assert f.imag.abs().max() < 1e-14 < 1e-3 < f.real.abs().max()


# --- waves ----------------------------------------------------------------------------------

GRID = DepthGrid(40.0, 6)


def matrix(n, f=1, size=1e-3, seed=0):
    """Complex matrices (F, N, N) in A^-1 of no symmetry."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(f, n, n, 2, generator=generator, dtype=torch.float64)
    return torch.view_as_complex(x) * size


def absorbing(n, f=1, size=1e-3, seed=0):
    """H + iP, H Hermitian and P positive: no combination of beams can grow."""
    x, y = matrix(n, f, size, seed), matrix(n, f, seed=seed + 100)
    return (x + x.mH) / 2 + 1j * 3e2 * (y @ y.mH) * size


def excitations(n, f=1, t=2, size=4e-3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(f, n, t, generator=generator, dtype=torch.float64)


def probe_all(n, f=1, t=2) -> Probe:
    weight = torch.full((f, n, t), 1 / t, dtype=torch.float64)
    return Probe(torch.zeros(f, dtype=torch.int64), torch.arange(n).expand(f, n), weight)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_splitting_agrees_with_the_exponential(scheme):
    n, f = 12, 2
    v, s, probe = absorbing(n, f), excitations(n, f), probe_all(n, f)
    expected = MatrixExp()(v, s, probe, GRID)
    assert expected.sum(1)[:, -1].max() < 0.99, "nothing was absorbed"
    found = Splitting(scheme, {"strang": 200, "saba_3": 60}.get(scheme, 6))(v, s, probe, GRID)
    assert (found - expected).abs().max() < 5e-6


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_chebyshev_series_agrees_with_the_exponential(dtype):
    """Also where the terms grow, as the waves of an absorbing crystal fall to a third."""
    n, f = 12, 2
    v, s, probe = absorbing(n, f), excitations(n, f, size=0.03), probe_all(n, f)
    v = v + 1e-4j * torch.eye(n)
    grid = DepthGrid(100.0, 20)
    expected = MatrixExp()(v, s, probe, grid)
    assert expected.sum(1)[:, -1].max() < 0.1
    found = Chebyshev()(v.to(dtype), s.to(dtype.to_real()), probe, grid)
    assert (found - expected).abs().max() < (1e-5 if dtype == torch.complex64 else 1e-11)


@pytest.mark.parametrize(
    "method", [Splitting(), Splitting("blanes_moan_4", 2), Chebyshev(), MatrixExp()]
)
def test_gradient_of_an_absorbing_potential(method):
    """By every element of a matrix without any symmetry, and by the excitation errors."""
    n, f = 3, 2
    parts = torch.view_as_real(absorbing(n, f) / 1e-3).clone().requires_grad_()
    s = (excitations(n, f) / 1e-3).requires_grad_()

    def profiles(parts, s):
        v = 1e-3 * torch.view_as_complex(parts.contiguous())
        return method(v, 1e-3 * s, probe_all(n, f), DepthGrid(60.0, 2))

    assert torch.autograd.gradcheck(profiles, (parts, s), eps=1e-5, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("method", [Splitting(), Chebyshev()])
def test_tangents_of_an_absorbing_potential_are_the_transpose_of_the_gradient(method):
    n, f = 5, 2
    v, s = absorbing(n, f).requires_grad_(), excitations(n, f).requires_grad_()
    probe, dv, ds = probe_all(n, f), matrix(n, f, seed=5), excitations(n, f, seed=7)
    out = method(v, s, probe, GRID)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()
    gv, gs = torch.autograd.grad((out * cotangent).sum(), (v, s))
    _, slopes = method.tangents(v.detach(), s.detach(), Moves(dv[None], ds[None]), probe, GRID)
    along_v, along_s = ((slope * cotangent).sum() for slope in slopes)
    assert float(along_v) == pytest.approx(float((gv.conj() * dv).real.sum()), rel=1e-9)
    assert float(along_s) == pytest.approx(float((gs * ds).sum()), rel=1e-9)


@pytest.mark.parametrize("method", [Splitting("aba_864", 4), Chebyshev(), MatrixExp()])
def test_two_beams_absorb_anomalously(method):
    """At S = 0 the Bloch waves C = (1, +-1) / sqrt 2 see U'_0 +- U'_g (P. B. Hirsch et al.,
    Electron Microscopy of Thin Crystals, 1965, chapter 9)."""
    mean, real, imaginary = 1.5e-4, 1.5e-3, 1.2e-4  # U'_0, U_g, U'_g over 2K
    phase = np.exp(0.7j)
    v = torch.zeros(1, 2, 2, dtype=torch.complex128)
    v[0, 0, 0] = v[0, 1, 1] = 1j * mean
    v[0, 1, 0], v[0, 0, 1] = (
        (real + 1j * imaginary) * phase,
        (real + 1j * imaginary) / phase,
    )
    grid = DepthGrid(50.0, 80)
    out = method(v, torch.zeros(1, 2, 1).double(), probe_all(2, t=1), grid)[0]
    t = 2 * math.pi * grid.depths(dtype=torch.float64)
    decay = torch.exp(-2 * mean * t)
    common, beat = torch.cosh(2 * imaginary * t), torch.cos(2 * real * t)
    assert (out[0] - decay * (common + beat) / 2).abs().max() < 1e-6
    assert (out[1] - decay * (common - beat) / 2).abs().max() < 1e-6
    # far inside, the wave that is between the atoms is left: it decays at U'_0 - U'_g
    last = torch.log(out.sum(0)[-20:])
    slope = float((last[-1] - last[0]) / (t[-1] - t[-20]))
    assert slope == pytest.approx(-2 * (mean - imaginary), rel=1e-3)


# --- the composed model ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return tiny.problem()


def total_intensity(model):
    """Sum over all beams, (f, D) for each batch."""
    table = model.potential_table().detach()
    for batch in model.batches:
        s = model.excitation(batch, model.orientation().detach())
        f, n, t = s.shape
        v = model.matrix(batch, table)
        yield model.settings.propagator(v, s, probe_all(n, f, t), model.settings.depth).sum(1)


@pytest.mark.parametrize("chosen", [NoAbsorption(), Proportional(0.08), Thermal()])
def test_only_absorption_loses_electrons(problem, chosen):
    model = HybridModel(problem, tiny.settings(absorption=chosen, depth=DepthGrid(40.0, 20)))
    for total in total_intensity(model):
        if chosen == NoAbsorption():
            assert (total - 1).abs().max() < 1e-12
        else:
            assert (torch.diff(total, dim=1) < 0).all() and (total[:, 0] < 1).all()
            assert total[:, -1].min() > 0.2 and total[:, -1].max() < 0.995


def test_the_matrix_has_the_mean_absorption_on_its_diagonal(problem):
    model = HybridModel(problem, tiny.settings(absorption=Thermal()))
    wavelength = problem.scan.wavelength
    zero = torch.zeros(1, 3, dtype=torch.int64)
    mean = thermal(problem.structure, zero, wavelength).real
    table = model.potential_table().detach()
    for batch in model.batches:
        v = model.matrix(batch, table)
        skew = (v - v.mH) / 2j  # U' m_g m_h / 2K
        # padded slots absorb nothing
        beams = torch.arange(v.shape[1]) < model.beams.counts[batch.blocks, None]
        expected = beams * model.matrix.factor * mean * batch.obliquity.square()
        assert torch.allclose(v.diagonal(dim1=1, dim2=2), 1j * expected, rtol=1e-12)
        assert torch.linalg.eigvalsh(skew).min() > -0.02 * float(expected.max())
        elastic = HybridModel(problem, tiny.settings())
        rest = elastic.matrix(batch, elastic.potential_table().detach())
        assert torch.allclose((v + v.mH) / 2, rest, atol=1e-15)


@pytest.mark.parametrize("chosen", [Proportional(), Thermal()])
def test_moves_of_the_table_agree_with_finite_differences(problem, chosen):
    model = HybridModel(problem, tiny.settings(absorption=chosen))
    moves, h, k = model.potential_moves(), 1e-4, 0
    for parameter in (model.crystal.site_shift, model.crystal.u_shift):
        for i in range(len(parameter)):
            tables = []
            for step in (h, -2 * h):
                with torch.no_grad():
                    parameter[i] += step
                    tables.append(model.potential_table())
            with torch.no_grad():
                parameter[i] += h
            expected = (tables[0] - tables[1]) / (2 * h)
            assert (moves[k] - expected).abs().max() < 1e-6 * expected.abs().max()
            k += 1


def test_profiles_and_their_tangents_agree(problem):
    """Forward mode, and the adjoint through the whole table, along one direction."""
    model = HybridModel(problem, tiny.settings(absorption=Thermal()))
    profiles, slopes, _ = model.tangents()
    out = model.profiles()
    assert torch.allclose(profiles, out, rtol=1e-9)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).double()
    (out * weight).sum().backward()
    gradient = torch.cat([p.grad for p in model.crystal.parameters()])
    expected = torch.einsum("ld,lpd->p", weight, slopes)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


def test_thermal_absorption_is_a_few_percent_of_the_potential(problem):
    model = HybridModel(problem, tiny.settings())
    hkl = problem.observations.hkl
    f = model.crystal(hkl).detach()
    absorbed = thermal(problem.structure, hkl, problem.scan.wavelength)
    ratio = (absorbed.abs() / f.abs())[f.abs() > 0.2 * f.abs().max()]
    assert ratio.min() > 0.002 and ratio.max() < 0.1


@pytest.mark.parametrize("name", MODELS)
def test_settings_come_back_from_plain_numbers(name):
    values = {"ratio": 0.07} if name == "proportional" else {}
    chosen = tiny.settings(absorption=MODELS[name](**values))
    plain = chosen.to_dict()
    assert plain["absorption"] == {"model": name, **values}
    assert ModelSettings.from_dict(plain) == chosen


def test_settings_of_older_files_are_elastic():
    plain = dataclasses.asdict(tiny.settings())
    del plain["absorption"]
    assert ModelSettings.from_dict(plain).absorption == NoAbsorption()
