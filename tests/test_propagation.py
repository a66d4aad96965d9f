"""Propagation: one conformance suite for all methods, and what is particular to splitting."""

import math

import pytest
import tiny
import torch

from dials_hybrid.model import HybridModel
from dials_hybrid.propagation import (
    METHODS,
    SCHEMES,
    Chebyshev,
    DepthGrid,
    Eigen,
    MatrixExp,
    Moves,
    Probe,
    Splitting,
    chebyshev,
    recurrence,
    strips,
)
from dials_hybrid.propagation.series import (
    Series,
    _coefficients,
    series_order,
)
from dials_hybrid.records import InputError

GRID = DepthGrid(20.0, 5)

SERIES = pytest.param(Chebyshev(), id="chebyshev")

# every scheme at a step fine enough for 1e-6
EXACT = [
    pytest.param(Eigen(), id="eigen"),
    pytest.param(MatrixExp(), id="matrix_exp"),
    SERIES,
    pytest.param(Splitting("strang", 400), id="strang"),
    pytest.param(Splitting("saba_3", 80), id="saba_3"),
    pytest.param(Splitting("blanes_moan_4", 10), id="blanes_moan_4"),
    pytest.param(Splitting("aba_864", 10), id="aba_864"),
    pytest.param(Splitting("aba_104", 10), id="aba_104"),
    pytest.param(Splitting("aba_1064", 10), id="aba_1064"),
]
COARSE = [pytest.param(Splitting(scheme, 1), id=f"coarse {scheme}") for scheme in SCHEMES]
SECOND = ("strang", "saba_3")  # of order 2 where V is not small
DEFAULT = pytest.param(Splitting(substeps=4), id="splitting")
OURS = [pytest.param(Splitting(), id="splitting"), SERIES]
REFERENCES = [p for p in EXACT if p.id in ("eigen", "matrix_exp")]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason="torch finds no CUDA device here"
        ),
    ),
]
DTYPES = [torch.complex64, torch.complex128]


def hermitian(n, f=1, size=4e-4, seed=0, dtype=torch.complex128):
    """Return coupling matrices (F, N, N) in A^-1 without a diagonal; size as in real crystals."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(f, n, n, 2, generator=generator, dtype=torch.float64)
    x = torch.view_as_complex(x) * size
    h = (x + x.mH) / 2
    return (h - torch.diag_embed(h.diagonal(dim1=1, dim2=2))).to(dtype)


def centred(n, f=1, size=4e-4, seed=0):
    """Return the coupling matrices of centrosymmetric crystals: real and symmetric."""
    return hermitian(n, f, math.sqrt(2) * size, seed).real.to(torch.complex128)


CRYSTALS = [pytest.param(hermitian, id="acentric"), pytest.param(centred, id="centrosymmetric")]


def excitations(n, f=1, t=3, size=0.01, seed=1):
    """Return excitation errors (F, N, T) in A^-1; zero for the incident beam 0."""
    generator = torch.Generator().manual_seed(seed)
    s = size * (2 * torch.rand(f, n, t, generator=generator, dtype=torch.float64) - 1)
    s[:, 0] = 0
    return s


def probe_all(n, f=1, t=3, incident=0) -> Probe:
    """Ask for every beam, each sample with weight 1 / T: intensities of all beams sum to one."""
    return Probe(
        torch.full((f,), incident),
        torch.arange(n).expand(f, n),
        torch.full((f, n, t), 1 / t, dtype=torch.float64),
    )


def series_waves(v, s, depths):
    """Solve dpsi/dz = 2 pi i (diag(s) + V) psi from psi_0 = 1 by Taylor steps of 1 A on a vector.

    The solution that all methods are held against: it shares nothing with any of them.
    """
    m = 2j * math.pi * (torch.diag(s).to(v.dtype) + v)
    wave = torch.zeros(len(s), dtype=torch.complex128)
    wave[0] = 1
    out = []
    for z in range(1, max(depths) + 1):
        term = wave
        for k in range(1, 16):
            term = m @ term / k
            wave = wave + term
        if z in depths:
            out.append(wave)
    return torch.stack(out, -1)


def series_profiles(v, s, grid):
    """Return the mean over the samples of |psi|^2 of every beam, (F, N, D), by `series_waves`."""
    depths = [round(z) for z in grid.depths().tolist()]
    blocks = [
        sum(series_waves(m, sample, depths).abs().square() for sample in samples.T) / s.shape[2]
        for m, samples in zip(v, s, strict=True)
    ]
    return torch.stack(blocks)


def cubic_zone_axis(reach):
    """Return V (1, N, N), S (1, N, 1) and hkl of a cubic crystal with the beam along [001].

    Beams |h|, |k| <= reach of the zero layer; U depends on |g| alone, S_g = -g^2 / 2K.
    """
    hk = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * 2)
    hk = hk[torch.argsort(hk.square().sum(1), stable=True)]
    a, k = 4.0, 1 / 0.0251
    between = (hk[:, None] - hk[None]).square().sum(-1)
    v = 1.5e-3 * torch.exp(-0.3 * between.double()) * (between > 0)
    s = -hk.square().sum(1).double() / (2 * k * a**2)
    return v[None].to(torch.complex128), s[None, :, None], hk


# --- conformance ----------------------------------------------------------------------------


def test_every_method_is_in_the_suite():
    tested = {type(p.values[0]) for p in EXACT}
    assert tested == set(METHODS.values())
    assert {p.values[0].scheme for p in EXACT if hasattr(p.values[0], "scheme")} == set(SCHEMES)


@pytest.mark.parametrize("crystal", CRYSTALS)
@pytest.mark.parametrize("n", [1, 2, 5, 40])
@pytest.mark.parametrize("method", EXACT)
def test_agrees_with_a_separate_solution(method, n, crystal):
    v, s = crystal(n, f=2), excitations(n, f=2)
    found = method(v, s, probe_all(n, 2), GRID)
    assert (found - series_profiles(v, s, GRID)).abs().max() < 1e-6


@pytest.mark.parametrize("n", [200, 800])
@pytest.mark.parametrize("method", [*REFERENCES, DEFAULT, SERIES])
def test_large_problems_agree_with_a_separate_solution(method, n):
    grid = DepthGrid(20.0, 1)
    v, s = hermitian(n, size=0.024 / n), excitations(n, t=1)  # row sums as in real crystals
    found = method(v, s, probe_all(n, t=1), grid)
    assert (found - series_profiles(v, s, grid)).abs().max() < 1e-6


@pytest.mark.parametrize("method", EXACT)
def test_symmetric_zone_axis_gives_equivalent_beams_the_same_intensity(method):
    """Many eigenvalues coincide; any basis of their eigenvectors must give the same waves."""
    v, s, hk = cubic_zone_axis(2)
    gaps = torch.linalg.eigvalsh(v[0] + torch.diag(s[0, :, 0])).diff()
    assert (gaps < 1e-12).sum() >= 5
    found = method(v, s, probe_all(len(hk), t=1), GRID)
    assert (found - series_profiles(v, s, GRID)).abs().max() < 1e-6
    places = {tuple(x): i for i, x in enumerate(hk.tolist())}
    for turned in (torch.stack([-hk[:, 1], hk[:, 0]], 1), hk.flip(1), -hk):
        order = [places[tuple(x)] for x in turned.tolist()]
        assert (found[:, order] - found).abs().max() < 1e-11


@pytest.mark.parametrize("method", EXACT + COARSE)
def test_centrosymmetric_crystals_are_reciprocal(method):
    """V = V^T lets beam and incident beam change places, which an acentric crystal does not."""
    n, t = 6, 1
    s = excitations(n, t=t)
    for crystal, same in ((centred, True), (hermitian, False)):
        v = crystal(n, size=2e-3)
        there = method(v, s, probe_all(n, t=t), GRID)[0, 4]
        back = method(v, s, probe_all(n, t=t, incident=4), GRID)[0, 0]
        assert bool((there - back).abs().max() < 1e-9) == same


@pytest.mark.parametrize("method", [p for p in EXACT if p.id != "eigen"])
def test_absorption_agrees_with_a_separate_solution(method):
    """M with an anti-Hermitian part: electrons are lost, and more of them the deeper."""
    n = 8
    v, s = hermitian(n, size=2e-3), excitations(n)
    root = hermitian(n, size=1e-2, seed=3)
    v = v + 1j * root @ root.mH
    found = method(v, s, probe_all(n), GRID)
    assert (found - series_profiles(v, s, GRID)).abs().max() < 1e-6
    assert (found.sum(1).diff() < -1e-3).all()


def test_eigen_refuses_absorption():
    v = hermitian(4)
    v = v + 1e-5j * torch.eye(4)
    with pytest.raises(InputError, match="eigen needs a Hermitian potential"):
        Eigen()(v, excitations(4), probe_all(4), GRID)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", [*REFERENCES, DEFAULT, SERIES])
def test_value_and_gradient_on_every_device(method, device, dtype):
    """Against the default splitting in double precision on the processor."""
    n, f = 30, 2
    arguments = hermitian(n, f), excitations(n, f), probe_all(n, f)

    def value_and_gradient(method, device, dtype):
        v = arguments[0].to(device, dtype).requires_grad_()
        s = arguments[1].to(device, dtype.to_real()).requires_grad_()
        out = method(v, s, arguments[2].to(device), GRID)
        slope = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=device)
        grads = torch.autograd.grad((out * slope.view_as(out)).sum(), (v, s))
        assert out.dtype == dtype.to_real() and out.device.type == device
        return [x.cpu() for x in (out.detach(), *grads)]

    expected = value_and_gradient(DEFAULT.values[0], "cpu", torch.complex128)
    found = value_and_gradient(method, device, dtype)
    precision = 1e-3 if dtype == torch.complex64 else 1e-6
    for x, y in zip(found, expected, strict=True):
        assert (x - y).abs().max() < precision * y.abs().max()


@pytest.mark.parametrize("n", [2, 40, 200])
@pytest.mark.parametrize("method", [p for p in EXACT if p.id != "strang"] + COARSE)
def test_single_precision_agrees_with_double(method, n):
    v, s, probe = hermitian(n), excitations(n), probe_all(n)
    double = method(v, s, probe, GRID)
    single = method(v.to(torch.complex64), s.float(), probe, GRID)
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert (single - double).abs().max() < 1e-4


@pytest.mark.parametrize("method", EXACT + COARSE)
def test_no_electron_is_lost(method):
    n = 12
    out = method(hermitian(n, size=3e-3), excitations(n), probe_all(n), GRID)
    assert (out.sum(1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("s", [0.0, 0.002, -0.005])
def test_two_beams_follow_the_analytic_solution(method, s):
    coupling = 0.0015 * torch.exp(torch.tensor(0.7j, dtype=torch.complex128))
    v = torch.zeros(1, 2, 2, dtype=torch.complex128)
    v[0, 1, 0], v[0, 0, 1] = coupling, coupling.conj()
    out = method(v, torch.tensor([[[0.0], [s]]]).double(), probe_all(2, t=1), GRID)
    # (V / w)^2 sin^2(2 pi w t), w = sqrt((S / 2)^2 + V^2)
    w = math.hypot(s / 2, 0.0015)
    t = GRID.depths(dtype=torch.float64)
    expected = (0.0015 / w) ** 2 * torch.sin(2 * math.pi * w * t).square()
    assert (out[0, 1] - expected).abs().max() < 1e-6
    assert (out[0, 0] - (1 - expected)).abs().max() < 1e-6


@pytest.mark.parametrize("method", EXACT)
def test_potential_acts_on_the_column_index(method):
    """d psi_g / dz = 2 pi i sum_h V_gh psi_h: three beams, V unlike its transpose."""
    v = torch.zeros(1, 3, 3, dtype=torch.complex128)
    v[0, 1, 0] = v[0, 2, 1] = 1e-3
    v[0, 2, 0] = 1e-3j
    v = v + v.mH
    s = torch.tensor([[[0.0], [0.001], [0.004]]]).double()
    probe = probe_all(3, t=1)
    wave = torch.linalg.matrix_exp(2j * math.pi * 100 * (torch.diag(s[0, :, 0]) + v[0]))[:, 0]
    out = method(v, s, probe, GRID)
    assert (out[0, :, -1] - wave.abs().square()).abs().max() < 1e-6
    assert (method(v.mT, s, probe, GRID) - out).abs().max() > 1e-3


@pytest.mark.parametrize("method", EXACT + COARSE)
def test_batched_equals_one_by_one(method):
    n, f = 6, 3
    v, s, probe = hermitian(n, f), excitations(n, f), probe_all(n, f)
    together = method(v, s, probe, GRID)
    for i in range(f):
        alone = Probe(probe.incident[i, None], probe.beam[i, None], probe.weight[i, None])
        one = method(v[i, None], s[i, None], alone, GRID)
        assert torch.allclose(together[i, None], one, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", EXACT + COARSE)
def test_padding_changes_nothing(method):
    n, extra = 5, 3
    v, s = hermitian(n), excitations(n)
    wide_v = torch.zeros(1, n + extra, n + extra, dtype=v.dtype)
    wide_v[:, :n, :n] = v
    wide_s = torch.cat([s, torch.rand(1, extra, 3, dtype=torch.float64)], 1)
    plain, padded = (method(a, b, probe_all(n), GRID) for a, b in ((v, s), (wide_v, wide_s)))
    # the far beams make torch.linalg.matrix_exp square more often
    assert torch.allclose(plain, padded, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", EXACT + COARSE)
def test_slots_pick_and_weight_beams(method):
    n = 5
    v, s = hermitian(n, size=2e-3), excitations(n)
    weight = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0.5, 0, 2], [1, 0, 0]]]).double()
    probe = Probe(torch.tensor([0]), torch.tensor([[1, 3, 2, 3]]), weight)
    out = method(v, s, probe, GRID)
    samples = [method(v, s[..., k, None], probe_all(n, t=1), GRID)[0] for k in range(3)]
    assert (out[0, 0] == 0).all()
    assert torch.allclose(out[0, 1], samples[0][3], atol=1e-13)
    assert torch.allclose(out[0, 2], 0.5 * samples[0][2] + 2 * samples[2][2], atol=1e-13)
    assert torch.equal(out[0, 1], out[0, 3])


@pytest.mark.parametrize("method", EXACT)
def test_any_beam_can_be_the_incident_one(method):
    n, order = 5, torch.tensor([3, 0, 4, 1, 2])
    v, s = hermitian(n, size=2e-3), excitations(n)
    moved = method(v[:, order][:, :, order], s[:, order], probe_all(n, incident=1), GRID)
    assert torch.allclose(moved, method(v, s, probe_all(n), GRID)[:, order], atol=1e-7)


@pytest.mark.parametrize("method", EXACT + COARSE)
def test_a_beam_alone_stays_as_it_is(method):
    s = torch.full((1, 1, 3), 0.3, dtype=torch.float64)
    out = method(s.new_zeros(1, 1, 1) + 0j, s, probe_all(1), GRID)
    assert torch.allclose(out, torch.ones_like(out), rtol=0, atol=1e-12)


# --- splitting ------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_order_in_a_weak_potential(scheme):
    """To first order in V a step is the integral of exp(2 pi i S z) V by a quadrature rule.

    Its nodes are the depths of the V stages; a rule of order p integrates z^k, k < p, exactly.
    """
    order = {
        "strang": 2,
        "saba_3": 6,
        "blanes_moan_4": 4,
        "aba_864": 8,
        "aba_104": 10,
        "aba_1064": 10,
    }[scheme]
    a, b = (torch.tensor(x, dtype=torch.float64) for x in SCHEMES[scheme])
    nodes = a[:-1].cumsum(0)
    errors = [abs(float((b * nodes**k).sum()) - 1 / (k + 1)) for k in range(order + 1)]
    assert max(errors[:order]) < 1e-14 < 1e-9 < errors[order]


@pytest.mark.parametrize(("scheme", "order"), [(k, 2 if k in SECOND else 4) for k in SCHEMES])
def test_order_of_accuracy(scheme, order):
    n = 8
    v, s, probe = hermitian(n, size=4e-3), excitations(n, size=0.02), probe_all(n)
    exact = Eigen()(v, s, probe, DepthGrid(20.0, 3))
    errors = [
        float((Splitting(scheme, k)(v, s, probe, DepthGrid(20.0, 3)) - exact).abs().max())
        for k in (2, 4)
    ]
    assert errors[0] > 1e-10, "nothing is left to measure"
    assert math.log2(errors[0] / errors[1]) > order - 0.3


@pytest.mark.parametrize("scheme", [k for k in SCHEMES if k not in SECOND])
def test_one_step_per_depth_is_accurate_enough_for_a_crystal(scheme):
    n = 40
    v, s, probe = hermitian(n), excitations(n), probe_all(n)
    out = Splitting(scheme)(v, s, probe, GRID)
    assert (out - Eigen()(v, s, probe, GRID)).abs().max() < 5e-5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_are_symmetric_and_consistent(scheme):
    a, b = SCHEMES[scheme]
    assert len(a) == len(b) + 1
    assert a == a[::-1] and b == b[::-1]
    assert sum(a) == pytest.approx(1, abs=1e-14) and sum(b) == pytest.approx(1, abs=1e-14)


def from_parts(parts):
    """Hermitian matrix from real and imaginary parts (F, N, N, 2)."""
    x = torch.view_as_complex(parts.contiguous())
    return (x + x.mH) / 2


def parts_of(matrix):
    return torch.view_as_real(matrix).clone().requires_grad_()


# gradcheck perturbs by 1e-6: in units of 1e-3 A^-1 the inputs are of order one
UNIT = 1e-3


GRADIENTS = [*COARSE, pytest.param(Splitting(substeps=2), id="substeps"), *REFERENCES, SERIES]


@pytest.mark.parametrize("crystal", CRYSTALS)
@pytest.mark.parametrize("method", GRADIENTS)
def test_gradient_agrees_with_finite_differences(method, crystal):
    """Of sum_t p(t) I(t), by the potential, the excitation errors and p(t)."""
    n, f = 3, 2
    grid = DepthGrid(60.0, 2)
    parts = parts_of(crystal(n, f, size=1e-3) / UNIT)
    s = (excitations(n, f, t=2, size=4e-3) / UNIT).requires_grad_()
    p = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    probe = probe_all(n, f, t=2)

    def intensity(parts, s, p):
        return (method(UNIT * from_parts(parts), UNIT * s, probe, grid) * p).sum(-1)

    assert torch.autograd.gradcheck(intensity, (parts, s, p), eps=1e-5, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("method", GRADIENTS)
def test_gradient_is_right_at_degenerate_eigenvalues(method):
    """All eigenvalues coincide: S = 0 and no coupling, then a coupling of two beams alone."""
    n, probe = 4, probe_all(4, t=1)
    s = torch.zeros(1, n, 1, dtype=torch.float64, requires_grad=True)
    for coupled in (0.0, 1.0):
        v = torch.zeros(1, n, n, dtype=torch.complex128)
        v[0, 0, 1] = v[0, 1, 0] = coupled

        def profile(parts, s):
            return method(UNIT * from_parts(parts), UNIT * s, probe, GRID)

        assert torch.autograd.gradcheck(profile, (parts_of(v), s), eps=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", GRADIENTS)
def test_gradient_is_right_on_a_symmetric_zone_axis(method):
    v, s, hk = cubic_zone_axis(1)
    assert (torch.linalg.eigvalsh(v[0] + torch.diag(s[0, :, 0])).diff() < 1e-12).sum() >= 2
    probe = probe_all(len(hk), t=1)

    def profile(parts, s):
        return method(UNIT * from_parts(parts), UNIT * s, probe, DepthGrid(100.0, 2))

    inputs = (parts_of(v / UNIT), (s / UNIT).requires_grad_())
    assert torch.autograd.gradcheck(profile, inputs, eps=1e-5, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("method", [p for p in GRADIENTS if p.id != "eigen"])
def test_gradient_is_right_under_absorption(method):
    """Every element of the potential is free: nothing is Hermitian."""
    n, probe = 3, probe_all(3, t=2)
    v = hermitian(n, size=1) + 1j * hermitian(n, size=0.2, seed=4)
    s = (excitations(n, t=2, size=4e-3) / UNIT).requires_grad_()

    def profile(parts, s):
        return method(UNIT * torch.view_as_complex(parts), UNIT * s, probe, DepthGrid(60.0, 2))

    assert torch.autograd.gradcheck(profile, (parts_of(v), s), eps=1e-5, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("method", [*REFERENCES, DEFAULT, SERIES])
def test_gradients_of_large_problems_agree(method):
    """N = 200, by the derivative along one direction of the exact profiles."""
    n, grid = 200, DepthGrid(40.0, 2)
    v, s, probe = hermitian(n), excitations(n, t=1), probe_all(n, t=1)
    dv, ds = hermitian(n, size=1, seed=5), excitations(n, t=1, size=1, seed=6)
    slope = torch.linspace(-1, 1, 2 * n, dtype=torch.float64).view(1, n, 2)
    inputs = v.clone().requires_grad_(), s.clone().requires_grad_()
    loss = (method(*inputs, probe, grid) * slope).sum()
    gv, gs = torch.autograd.grad(loss, inputs)
    found = float((gv.conj() * dv).real.sum() + (gs * ds).sum())
    h = 1e-7
    sides = [series_profiles(v + k * dv, s + k * ds, grid) for k in (h, -h)]
    expected = float(((sides[0] - sides[1]) * slope).sum() / (2 * h))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", [*REFERENCES, *COARSE, SERIES])
def test_gradient_by_orientation_agrees_with_finite_differences(method):
    """Through the model, from the smooth curve of small rotations to every intensity."""
    problem = tiny.problem(blocks=2, samples=4)
    model = HybridModel(problem, tiny.settings(propagator=method, depth=DepthGrid(60.0, 2)))
    offset = model.orientation.offset
    with torch.no_grad():
        offset += 0.3
    profiles = model.profiles()
    slope = torch.linspace(-1, 1, profiles.numel(), dtype=torch.float64).view_as(profiles)
    (gradient,) = torch.autograd.grad((profiles * slope).sum(), offset)
    direction = torch.linspace(1, -0.5, offset.numel(), dtype=torch.float64).view_as(offset)
    sides, h = [], 1e-3
    for sign in (1, -1):
        with torch.no_grad():
            offset += sign * h * direction
            sides.append(float((model.profiles() * slope).sum()))
            offset -= sign * h * direction
    expected = (sides[0] - sides[1]) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", OURS)
def test_single_precision_gradient_agrees_with_double(method):
    n = 20
    grads = []
    for dtype in (torch.complex128, torch.complex64):
        v = hermitian(n, dtype=dtype).requires_grad_()
        s = excitations(n).to(dtype.to_real()).requires_grad_()
        out = method(v, s, probe_all(n), GRID)
        coefficients = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
        grads.append(torch.autograd.grad((out * coefficients).sum(), (v, s)))
    for exact, single in zip(*grads, strict=True):
        assert (single - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.parametrize("method", OURS)
def test_gradient_reaches_only_what_asks_for_it(method):
    v, s = hermitian(4), excitations(4).requires_grad_()
    method(v, s, probe_all(4), GRID).square().sum().backward()
    assert v.grad is None and s.grad.abs().max() > 0


@pytest.mark.parametrize("method", [*COARSE, SERIES])
def test_tangents_agree_with_finite_differences(method):
    n, f, t = 5, 2, 3
    v, s, probe = hermitian(n, f, size=2e-3), excitations(n, f, t), probe_all(n, f, t)
    dv = torch.stack([hermitian(n, f, size=1e-3, seed=k) for k in (5, 6)])
    ds = torch.stack([excitations(n, f, t, seed=k) for k in (7, 8, 9)])
    profiles, slopes = method.tangents(v, s, Moves(dv, ds), probe, GRID)
    assert torch.allclose(profiles, method(v, s, probe, GRID), atol=1e-13)
    assert slopes.shape == (5, f, n, GRID.count)
    h = 1e-4
    pairs = [(v + h * d, s, v - h * d, s) for d in dv] + [(v, s + h * d, v, s - h * d) for d in ds]
    for slope, (v1, s1, v2, s2) in zip(slopes, pairs, strict=True):
        expected = (method(v1, s1, probe, GRID) - method(v2, s2, probe, GRID)) / (2 * h)
        assert (slope - expected).abs().max() < 1e-5 * (1 + expected.abs().max())


@pytest.mark.parametrize("method", OURS)
def test_tangents_are_the_transpose_of_the_gradient(method):
    n, f, t = 6, 2, 3
    v, s = hermitian(n, f).requires_grad_(), excitations(n, f, t).requires_grad_()
    probe, dv, ds = probe_all(n, f, t), hermitian(n, f, seed=5), excitations(n, f, t, seed=7)
    out = method(v, s, probe, GRID)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()
    gv, gs = torch.autograd.grad((out * cotangent).sum(), (v, s))
    _, slopes = method.tangents(v.detach(), s.detach(), Moves(dv[None], ds[None]), probe, GRID)
    along_v, along_s = ((slope * cotangent).sum() for slope in slopes)
    assert float(along_v) == pytest.approx(float((gv.conj() * dv).real.sum()), rel=1e-9)
    assert float(along_s) == pytest.approx(float((gs * ds).sum()), rel=1e-9)


@pytest.mark.parametrize("method", OURS)
def test_tangents_without_directions_give_the_profiles(method):
    v, s, probe = hermitian(3), excitations(3), probe_all(3)
    moves = Moves(v.new_zeros(0, 1, 3, 3), s.new_zeros(0, 1, 3, 3))
    profiles, slopes = method.tangents(v, s, moves, probe, GRID)
    assert torch.allclose(profiles, method(v, s, probe, GRID), atol=1e-14)
    assert slopes.shape == (0, 1, 3, GRID.count)


def exponentials(v, times):
    """Return exp(2 pi i t V) for each time."""
    identity = torch.eye(v.shape[-1], dtype=v.dtype)
    return [identity + value for value in Series.of(v, times).values()[-1]]


# small, and large enough for the squarings
@pytest.mark.parametrize("size", [1e-4, 2e-2])
def test_exponentials_agree_with_torch(size):
    v, times = hermitian(6, 2, size=size), (3.0, -1.5, 17.0)
    for t, found in zip(times, exponentials(v, times), strict=True):
        assert torch.allclose(found, torch.linalg.matrix_exp(2j * math.pi * t * v), atol=1e-13)


@pytest.mark.parametrize("size", [1e-4, 2e-2])
def test_exponential_tangents_agree_with_finite_differences(size):
    v, times, h = hermitian(4, 2, size=size), (3.0, 17.0), 1e-5
    dv = torch.stack([hermitian(4, 2, size=1, seed=k) for k in (3, 4, 5)])
    found = Series.of(v, times).derivatives(dv)
    for k, d in enumerate(dv):
        above, below = exponentials(v + h * d, times), exponentials(v - h * d, times)
        for i in range(len(times)):
            expected = (above[i] - below[i]) / (2 * h)
            assert (found[i][k] - expected).abs().max() < 1e-5 * expected.abs().max()


# V of a centrosymmetric crystal, with the noise of double precision in the other part
def test_rounding_noise_is_dropped_before_single_precision():
    v = hermitian(6).real + 1e-21j * hermitian(6, seed=3).real
    assert not Series.of(v.to(torch.complex64), (3.0, 17.0)).powers.is_complex()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weak_acentric_part_is_kept(dtype):
    eps = torch.finfo(dtype).eps
    v = (centred(6) + 20j * eps * hermitian(6, seed=3).imag).to(dtype)
    assert Series.of(v, (3.0, 17.0)).powers.is_complex()


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_origin_of_a_centrosymmetric_crystal_does_not_matter(method, dtype):
    """Away from the centre of inversion U_g has the phase 2 pi g.r: V = D V_0 D^H is complex."""
    n, f, t = 20, 2, 3
    v, s, probe = centred(n, f).to(dtype), excitations(n, f, t), probe_all(n, f, t)
    s = s.to(dtype.to_real())
    angle = torch.linspace(0, 20, n, dtype=torch.float64)
    shift = torch.polar(torch.ones_like(angle), angle)
    shift = (shift[:, None] * shift.conj()).to(dtype)
    slope = torch.linspace(-1, 1, f * n * GRID.count, dtype=s.dtype).view(f, n, -1)
    found = []
    for matrix in (v, shift * v):
        inputs = matrix.requires_grad_(), s.clone().requires_grad_()
        out = method(*inputs, probe, GRID)
        by_v, by_s = torch.autograd.grad((out * slope).sum(), inputs)
        found.append((out.detach(), by_v, by_s))
    (real, real_v, real_s), (turned, turned_v, turned_s) = found
    assert real_v.imag.abs().max() > 0.1 * real_v.abs().max()  # also along acentric changes
    pairs = ((real, turned), (shift * real_v, turned_v), (real_s, turned_s))
    precision = 1e-12
    if dtype == torch.complex64:  # the series rounds to 3e-5 here, the splitting to 1e-5
        precision = 5e-5 if isinstance(method, Chebyshev) else 2e-5
    for x, y in pairs:
        assert (x - y).abs().max() < precision * y.abs().max()


@pytest.mark.parametrize("method", EXACT + COARSE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_potential_that_stays_real_has_the_real_part_of_the_gradient(method, dtype):
    n, f, t = 20, 2, 3
    v, s, probe = centred(n, f).to(dtype), excitations(n, f, t), probe_all(n, f, t)
    s = s.to(dtype.to_real())
    slope = torch.linspace(-1, 1, f * n * GRID.count, dtype=s.dtype).view(f, n, -1)
    found = []
    for matrix in (v.real.clone(), v):
        inputs = matrix.requires_grad_(), s.clone().requires_grad_()
        out = method(*inputs, probe, GRID)
        by_v, by_s = torch.autograd.grad((out * slope).sum(), inputs)
        found.append((out.detach(), by_v, by_s))
    (real, real_v, real_s), (out, by_v, by_s) = found
    assert real_v.dtype == s.dtype
    precision = 2e-5 if dtype == torch.complex64 else 1e-11
    for x, y in ((real, out), (real_v, by_v.real), (real_s, by_s)):
        assert (x - y).abs().max() <= precision * y.abs().max()


# in double precision what is left is the rounding of the coefficients
@pytest.mark.parametrize("eps", [1.2e-7, 2.2e-16])
@pytest.mark.parametrize("radius", [0.01, 0.3, 1.0, 2.0])
def test_polynomials_reach_rounding_on_their_interval(radius, eps):
    shares = (1.0, -0.4)
    order = series_order(radius, eps)
    x = torch.linspace(-radius, radius, 101, dtype=torch.float64)
    powers = x ** torch.arange(1, order + 1)[:, None]
    table = torch.from_numpy(_coefficients(shares, radius, order))
    for row, share in zip(table, shares, strict=True):
        exact = torch.polar(torch.ones_like(x), share * x) - 1
        assert ((row[:, None] * powers).sum(0) - exact).abs().max() < max(eps / 4, 2e-15)


# without and with squarings
@pytest.mark.parametrize("size", [1e-4, 2e-2])
def test_adjoint_of_the_series_is_the_transpose_of_its_tangents(size):
    v, dv, times = hermitian(5, 2, size=size), hermitian(5, 2, size=1, seed=3), (3.0, 17.0)
    series = Series.of(v, times)
    slopes = torch.stack([hermitian(5, 2, size=1, seed=k) + 1j for k in (4, 5)])
    moved = series.derivatives(dv[None])[:, 0]
    by_values = torch.einsum("tfij,tfji->", slopes, moved)
    by_v = torch.einsum("fij,fji->", series.adjoint(slopes, series.values(), v.dtype), dv)
    assert abs(by_v - by_values) < 1e-9 * abs(by_values)


@pytest.mark.parametrize("method", OURS)
def test_blocks_in_several_chunks_agree_with_one(method, monkeypatch):
    n, f, t = 5, 7, 3
    probe = probe_all(n, f, t)
    found = []
    for chunk in (10**6, 2 * n * t):
        monkeypatch.setattr(strips, "CHUNK", chunk)
        v, s = hermitian(n, f).requires_grad_(), excitations(n, f, t).requires_grad_()
        out = method(v, s, probe, GRID)
        found.append((out, *torch.autograd.grad(out.square().sum(), (v, s))))
    for one, several in zip(*found, strict=True):
        assert torch.allclose(one, several, rtol=0, atol=1e-12 * float(one.detach().abs().max()))


# two cores take two blocks each, or of three blocks some samples each
@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("f", [4, 3])
def test_cores_that_share_a_sweep_find_what_one_finds(method, f, monkeypatch):
    n, t = 5, 5
    monkeypatch.setattr(strips, "SHARED", 0)
    weight = torch.rand(f, n, t, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    probe = Probe(torch.arange(f) % n, torch.arange(n).expand(f, n), weight)
    found, threads = [], torch.get_num_threads()
    for cores in (1, 2):
        torch.set_num_threads(cores)
        v, s = hermitian(n, f).requires_grad_(), excitations(n, f, t).requires_grad_()
        try:
            assert len(strips.Cut.of(s).sizes) == cores
            out = method(v, s, probe, GRID)
            found.append((out, *torch.autograd.grad(out.square().sum(), (v, s))))
        finally:
            torch.set_num_threads(threads)
    for one, shared in zip(*found, strict=True):
        assert torch.allclose(one, shared, rtol=0, atol=1e-12 * float(one.detach().abs().max()))


@pytest.mark.parametrize(("count", "shift"), [(0, 0.0), (2, 0.0), (2, 1e-3)])
def test_terms_and_their_derivatives_are_real_where_the_potential_is(count, shift):
    n, f, t = 6, 2, 3
    v, s = centred(n, f), excitations(n, f, t)
    dv = torch.stack([centred(n, f, seed=k) for k in range(count)]) if count else v[None][:0]
    moves = Moves(dv * (1 + 1j * shift), excitations(n, f, t, seed=7)[None])
    terms = recurrence.Recurrence.of(recurrence.Potential.of(v), s, GRID)
    assert not terms.matrix.is_complex()
    assert chebyshev._Variation.of(terms, moves).matrix.is_complex() == (shift > 0)


@pytest.mark.parametrize("crystal", CRYSTALS)
def test_samples_in_groups_agree_with_all_together(crystal, monkeypatch):
    """Samples of a narrow range of S have a shorter series; which ones is no matter of order."""
    n, f, t = 6, 2, 9
    widths = 1 + torch.arange(t).double().sub(4).abs().roll(3)
    v, s = crystal(n, f), excitations(n, f, t, size=0.004) * widths
    weight = torch.rand(f, n, t, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    probe = Probe(torch.tensor([0, 3]), torch.arange(n).expand(f, n), weight)
    dv = torch.stack([crystal(n, f, seed=k) for k in (5, 6)])
    moves = Moves(dv, excitations(n, f, t, seed=7)[None])
    found = []
    for rows in (100, 2):
        monkeypatch.setattr(chebyshev, "_ROWS", rows)
        inputs = v.clone().requires_grad_(), s.clone().requires_grad_()
        out = Chebyshev()(*inputs, probe, GRID)
        gradients = torch.autograd.grad(out.square().sum(), inputs)
        found.append((out, *gradients, *Chebyshev().tangents(v, s, moves, probe, GRID)))
    assert len(chebyshev._alike(s)) == 4
    for together, apart in zip(*found, strict=True):
        error = (together - apart).abs().max()
        assert error < 1e-11 * float(together.detach().abs().max())


@pytest.mark.parametrize("method", OURS)
def test_single_precision_does_not_lose_electrons_step_by_step(method):
    n = 200
    v, s = hermitian(n, size=2e-4), excitations(n, t=1, size=0.03)
    out = method(v.to(torch.complex64), s.float(), probe_all(n, t=1), DepthGrid(20.0, 40))
    assert abs(float(out[0, :, -1].double().sum()) - 1) < 5e-6
