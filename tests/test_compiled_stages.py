"""Sweeps in machine code give what those by calls of torch give."""

import pytest
import torch
from test_propagation import centred, excitations, hermitian

from dials_hybrid.propagation import (
    DepthGrid,
    Moves,
    Probe,
    Splitting,
    spare,
    splitting,
)
from dials_hybrid.propagation.kernels import can_compile

pytestmark = pytest.mark.skipif(
    not can_compile(torch.zeros(1, dtype=torch.complex64)), reason="numba cannot be imported here"
)
PRECISION = {torch.complex64: 2e-5, torch.complex128: 1e-12}  # of the largest number
# blocks, samples, beams, slots; on the way back waves of some 128 samples are kept at once
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 70, 12, 4), (1, 150, 30, 30)]
GRID = DepthGrid(20.0, 5)


@pytest.fixture
def by_torch(monkeypatch):
    """Return a function that calls another one without machine code."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(splitting, "can_compile", lambda x: False)
            return function()

    return call


def real(*shape_and_size):
    """Return the potential of a crystal that stays centrosymmetric."""
    return centred(*shape_and_size).real


def in_precision(v, dtype):
    """Return a potential in the precision of a complex dtype; a real one stays real."""
    return v.to(dtype if v.is_complex() else dtype.to_real())


def problem(shape, dtype, crystal=hermitian):
    f, t, n, b = shape
    generator = torch.Generator().manual_seed(3)
    beam = torch.randint(n, (f, b), generator=generator)  # some of them twice
    weight = torch.rand(f, b, t, generator=generator, dtype=torch.float64)
    probe = Probe(torch.arange(f) % n, beam, weight)
    s = excitations(n, f, t).to(dtype.to_real())
    return in_precision(crystal(n, f, 1e-3), dtype), s, probe


def assert_same(found, expected, dtype):
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert torch.allclose(
            x, y, rtol=0, atol=PRECISION[dtype] * float(y.abs().max() if y.numel() else 0)
        )


@pytest.mark.parametrize("crystal", [hermitian, centred, real])
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", [Splitting(), Splitting("strang", 3), Splitting("aba_864", 2)])
def test_profiles_and_gradients_are_the_same(method, shape, dtype, crystal, by_torch):
    v, s, probe = problem(shape, dtype, crystal)

    def value_and_gradient():
        inputs = v.clone().requires_grad_(), s.clone().requires_grad_()
        out = method(*inputs, probe, GRID)
        slope = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        return out.detach(), *torch.autograd.grad((out * slope).sum(), inputs)

    found = value_and_gradient()
    assert_same(found, by_torch(value_and_gradient), dtype)
    with torch.no_grad():
        assert_same([method(v, s, probe, GRID)], found[:1], dtype)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("p", "q"), [(0, 0), (3, 0), (0, 2), (4, 2)])
def test_derivatives_along_moves_are_the_same(p, q, shape, dtype, by_torch):
    v, s, probe = problem(shape, dtype)
    changes = [hermitian(v.shape[1], len(v), seed=10 + k).to(dtype) for k in range(p)]
    turns = [excitations(*s.shape[1::-1], s.shape[2], seed=20 + k).to(s) for k in range(q)]
    moves = Moves(
        torch.stack(changes) if p else v.new_zeros(0, *v.shape),
        torch.stack(turns) if q else s.new_zeros(0, *s.shape),
    )

    def derivatives():
        return Splitting(substeps=2).tangents(v, s, moves, probe, GRID)

    assert_same(derivatives(), by_torch(derivatives), dtype)


def test_no_nan_is_lost():
    v, s, probe = problem((2, 3, 5, 4), torch.complex64)
    s[1, 2, 1] = torch.nan
    moves = Moves(v[None], s[None])
    for out in (Splitting()(v, s, probe, GRID), *Splitting().tangents(v, s, moves, probe, GRID)):
        blocks = out.isnan().transpose(0, -3).flatten(1).all(1)
        assert blocks.tolist() == [False, True]


def test_absorption_is_the_same(by_torch):
    """Exponentials are no unitary matrices."""
    v, s, probe = problem((1, 20, 60, 9), torch.complex64)
    v = v + 2e-5j * torch.eye(60)

    def profiles():
        return [Splitting()(v, s, probe, GRID)]

    assert_same(profiles(), by_torch(profiles), torch.complex64)


def test_memory_is_used_again_once_nothing_refers_to_it(monkeypatch):
    monkeypatch.setattr(spare, "_spare", [])
    like = torch.empty(0)
    first = spare.room(like, 500, 1000)
    part, place = first[3], first.data_ptr()
    del first
    second = spare.room(like, 500, 1000)
    assert second.data_ptr() != place
    del part
    third = spare.room(like, 400, 1000)
    assert third.data_ptr() == place and third.shape == (400, 1000)
