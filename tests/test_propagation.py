"""Propagation: one conformance suite for all methods, and what is particular to splitting."""

import math

import pytest
import torch

from dials_hybrid.propagation import (
    METHODS,
    SCHEMES,
    DepthGrid,
    Eigen,
    MatrixExp,
    Moves,
    Probe,
    Splitting,
    splitting,
)
from dials_hybrid.propagation.splitting import _Series, exponential_tangents, exponentials

GRID = DepthGrid(20.0, 5)

# every scheme at a step fine enough for 1e-6
EXACT = [
    pytest.param(Eigen(), id="eigen"),
    pytest.param(MatrixExp(), id="matrix_exp"),
    pytest.param(Splitting("strang", 400), id="strang"),
    pytest.param(Splitting("blanes_moan_4", 10), id="blanes_moan_4"),
    pytest.param(Splitting("aba_864", 10), id="aba_864"),
    pytest.param(Splitting("aba_104", 10), id="aba_104"),
]
COARSE = [pytest.param(Splitting(scheme, 1), id=f"coarse {scheme}") for scheme in SCHEMES]


def hermitian(n, f=1, size=4e-4, seed=0, dtype=torch.complex128):
    """Return coupling matrices (F, N, N) in A^-1 without a diagonal; size as in real crystals."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(f, n, n, 2, generator=generator, dtype=torch.float64)
    x = torch.view_as_complex(x) * size
    h = (x + x.mH) / 2
    return (h - torch.diag_embed(h.diagonal(dim1=1, dim2=2))).to(dtype)


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


# --- conformance ----------------------------------------------------------------------------


def test_every_method_is_in_the_suite():
    tested = {type(p.values[0]) for p in EXACT}
    assert tested == set(METHODS.values())
    assert {p.values[0].scheme for p in EXACT if hasattr(p.values[0], "scheme")} == set(SCHEMES)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
@pytest.mark.parametrize("method", EXACT)
def test_agrees_with_a_separate_exponential(method, n):
    v, s, t = hermitian(n, f=2), excitations(n, f=2), 3
    found = method(v, s, probe_all(n, 2, t), GRID)
    for block in range(2):
        expected = torch.zeros(n, GRID.count).double()
        for sample in range(t):
            m = torch.diag(s[block, :, sample]).to(v.dtype) + v[block]
            for d, depth in enumerate([20.0, 40, 60, 80, 100]):
                wave = torch.linalg.matrix_exp(2j * math.pi * depth * m)[:, 0]
                expected[:, d] += wave.abs().square() / t
        assert (found[block] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("n", [2, 40])
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


@pytest.mark.parametrize(
    ("scheme", "order"),
    [("strang", 2), ("blanes_moan_4", 4), ("aba_864", 4), ("aba_104", 4)],
)
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


@pytest.mark.parametrize("scheme", ["blanes_moan_4", "aba_864", "aba_104"])
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


@pytest.mark.parametrize(
    "method",
    [*COARSE, pytest.param(Splitting("aba_864", 2), id="substeps"), EXACT[1]],
)
def test_gradient_agrees_with_finite_differences(method):
    n, f = 3, 2
    grid = DepthGrid(60.0, 2)
    parts = parts_of(hermitian(n, f, size=1e-3) / UNIT)
    s = (excitations(n, f, t=2, size=4e-3) / UNIT).requires_grad_()
    probe = probe_all(n, f, t=2)

    def profile(parts, s):
        return method(UNIT * from_parts(parts), UNIT * s, probe, grid)

    assert torch.autograd.gradcheck(profile, (parts, s), eps=1e-5, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_is_right_at_degenerate_eigenvalues(scheme):
    """All eigenvalues coincide: S = 0 and no coupling, then a coupling of two beams alone."""
    n, probe = 4, probe_all(4, t=1)
    s = torch.zeros(1, n, 1, dtype=torch.float64, requires_grad=True)
    for coupled in (0.0, 1.0):
        v = torch.zeros(1, n, n, dtype=torch.complex128)
        v[0, 0, 1] = v[0, 1, 0] = coupled

        def profile(parts, s):
            return Splitting(scheme)(UNIT * from_parts(parts), UNIT * s, probe, GRID)

        assert torch.autograd.gradcheck(profile, (parts_of(v), s), eps=1e-5, atol=1e-7)


def test_single_precision_gradient_agrees_with_double():
    n = 20
    grads = []
    for dtype in (torch.complex128, torch.complex64):
        v = hermitian(n, dtype=dtype).requires_grad_()
        s = excitations(n).to(dtype.to_real()).requires_grad_()
        out = Splitting()(v, s, probe_all(n), GRID)
        coefficients = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
        grads.append(torch.autograd.grad((out * coefficients).sum(), (v, s)))
    for exact, single in zip(*grads, strict=True):
        assert (single - exact).abs().max() < 1e-3 * exact.abs().max()


def test_gradient_reaches_only_what_asks_for_it():
    v, s = hermitian(4), excitations(4).requires_grad_()
    Splitting()(v, s, probe_all(4), GRID).square().sum().backward()
    assert v.grad is None and s.grad.abs().max() > 0


@pytest.mark.parametrize("method", COARSE)
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


def test_tangents_are_the_transpose_of_the_gradient():
    n, f, t = 6, 2, 3
    v, s = hermitian(n, f).requires_grad_(), excitations(n, f, t).requires_grad_()
    probe, dv, ds = probe_all(n, f, t), hermitian(n, f, seed=5), excitations(n, f, t, seed=7)
    out = Splitting()(v, s, probe, GRID)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()
    gv, gs = torch.autograd.grad((out * cotangent).sum(), (v, s))
    _, slopes = Splitting().tangents(v.detach(), s.detach(), Moves(dv[None], ds[None]), probe, GRID)
    along_v, along_s = ((slope * cotangent).sum() for slope in slopes)
    assert float(along_v) == pytest.approx(float((gv.conj() * dv).real.sum()), rel=1e-9)
    assert float(along_s) == pytest.approx(float((gs * ds).sum()), rel=1e-9)


def test_tangents_without_directions_give_the_profiles():
    v, s, probe = hermitian(3), excitations(3), probe_all(3)
    moves = Moves(v.new_zeros(0, 1, 3, 3), s.new_zeros(0, 1, 3, 3))
    profiles, slopes = Splitting().tangents(v, s, moves, probe, GRID)
    assert torch.allclose(profiles, Splitting()(v, s, probe, GRID), atol=1e-14)
    assert slopes.shape == (0, 1, 3, GRID.count)


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
    found = exponential_tangents(v, dv, times)
    for k, d in enumerate(dv):
        above, below = exponentials(v + h * d, times), exponentials(v - h * d, times)
        for i in range(len(times)):
            expected = (above[i] - below[i]) / (2 * h)
            assert (found[i][k] - expected).abs().max() < 1e-5 * expected.abs().max()


# V of a centrosymmetric crystal, with the noise of double precision in the other part
def test_rounding_noise_is_dropped_before_single_precision():
    v = hermitian(6).real + 1e-21j * hermitian(6, seed=3).real
    series = _Series.of(v.to(torch.complex64), (3.0, 17.0))
    assert (series.x.real == 0).all() and (series.powers()[1].imag == 0).all()


# without and with squarings
@pytest.mark.parametrize("size", [1e-4, 2e-2])
def test_adjoint_of_the_series_is_the_transpose_of_its_tangents(size):
    v, dv, times = hermitian(5, 2, size=size), hermitian(5, 2, size=1, seed=3), (3.0, 17.0)
    series = _Series.of(v, times)
    slopes = torch.stack([hermitian(5, 2, size=1, seed=k) + 1j for k in (4, 5)])
    moved = series.derivatives(dv[None])[:, 0]
    by_values = torch.einsum("tfij,tfji->", slopes, moved)
    by_v = torch.einsum("fij,fji->", series.adjoint(slopes, series.values()), dv)
    assert abs(by_v - by_values) < 1e-9 * abs(by_values)


def test_blocks_in_several_chunks_agree_with_one(monkeypatch):
    n, f, t = 5, 7, 3
    probe = probe_all(n, f, t)
    found = []
    for chunk in (10**6, 2 * n * t):
        monkeypatch.setattr(splitting, "_CHUNK", chunk)
        v, s = hermitian(n, f).requires_grad_(), excitations(n, f, t).requires_grad_()
        out = Splitting()(v, s, probe, GRID)
        found.append((out, *torch.autograd.grad(out.square().sum(), (v, s))))
    for one, several in zip(*found, strict=True):
        assert torch.allclose(one, several, rtol=0, atol=1e-12 * float(one.detach().abs().max()))


def test_single_precision_does_not_lose_electrons_step_by_step():
    n = 200
    v, s = hermitian(n, size=2e-4), excitations(n, t=1, size=0.03)
    out = Splitting()(v.to(torch.complex64), s.float(), probe_all(n, t=1), DepthGrid(20.0, 40))
    assert abs(float(out[0, :, -1].double().sum()) - 1) < 5e-6
