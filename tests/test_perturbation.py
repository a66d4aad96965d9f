"""Beams far from the sphere, to second order: against waves that have them, and derivatives."""

import dataclasses
import math

import pytest
import tiny
import torch

from dials_hybrid import perturbation
from dials_hybrid.absorption import Thermal
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import Chebyshev, DepthGrid, Eigen

SETTINGS = tiny.settings(
    g_max=1.6,
    s_max=0.015,
    depth=DepthGrid(40.0, 12),
    thickness_start=300.0,
    propagator=Chebyshev(),  # no step, which would be too long for the largest errors
)
SHAPES = (4, 3), (3, 4)  # of couplings to four weak beams, and back


@pytest.fixture(scope="module")
def problem():
    return tiny.problem(blocks=3, width=1.0, samples=10)


def amplitudes(problem, **choices):
    model = HybridModel(problem, dataclasses.replace(SETTINGS, **choices))
    with torch.no_grad():
        return model.intensities(model.value_profiles()).sqrt()


def test_one_far_beam_acts_as_its_error_and_couplings_say():
    """Two beams and a third one, solved with it and by second order."""
    s, far = 0.004, 0.05  # A^-1
    v = tiny.f64([[0, 2e-3, 3e-3], [2e-3, 0, 2.5e-3], [3e-3, 2.5e-3, 0]]).to(torch.complex128)
    depth = 2j * math.pi * 400.0
    every = torch.diag(tiny.f64([0, s, far])).to(v.dtype) + v
    few = every[:2, :2]
    more = perturbation.second_order(v[None, 2:, :2], v[None, :2, 2:], tiny.f64([[1 / far]]))[0]
    exact, left_out, found = (
        torch.linalg.matrix_exp(depth * m)[:2, 0].abs().square() for m in (every, few, few + more)
    )
    assert (found - exact).abs().max() < 0.2 * (left_out - exact).abs().max()


def test_what_it_leaves_of_the_error(problem):
    """On the scale that fits: the current in the far beams is no part of it."""
    whole = amplitudes(problem, s_max=0.1)

    def error(reach):
        found = amplitudes(problem, perturbation=reach)
        found = found * (found * whole).sum() / found.square().sum()
        return float((found - whole).abs().sum() / whole.sum())

    none, some = error(None), error(0.1)
    assert some < 0.5 * none


def test_beams_that_are_propagated_are_not_counted_twice(problem):
    model = HybridModel(problem, dataclasses.replace(SETTINGS, perturbation=0.1))
    for block in range(len(model.beams.hkl)):
        near = model.beams.hkl[block, model.beams.valid[block]].tolist()
        far = model.matrix.weak.hkl[block, model.matrix.weak.valid[block]].tolist()
        assert far and not {tuple(h) for h in near} & {tuple(h) for h in far}
    nothing = amplitudes(problem, perturbation=SETTINGS.s_max / 2)
    torch.testing.assert_close(nothing, amplitudes(problem), rtol=1e-12, atol=0)


@pytest.mark.parametrize("absorbs", [False, True])
def test_derivatives_are_those_of_the_intensities(problem, absorbs):
    """Carried along with the waves, and backwards through them."""
    choices = {"absorption": Thermal()} if absorbs else {}
    settings = dataclasses.replace(SETTINGS, g_max=1.0, perturbation=0.08, **choices)
    model = HybridModel(problem, settings)
    values = list(model.crystal.parameters())
    profiles, slopes, _ = model.tangents()
    weight = torch.linspace(0.5, 1.5, profiles.numel(), dtype=torch.float64).view_as(profiles)
    backwards = torch.autograd.grad((model.profiles() * weight).sum(), values)
    forwards = (slopes * weight[:, None]).sum((0, 2))
    torch.testing.assert_close(
        torch.cat([g.flatten() for g in backwards]), forwards, rtol=1e-6, atol=1e-9
    )
    step, place = 1e-4, 0
    for parameter in values:
        for i in range(parameter.numel()):
            moved = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[i] += sign * step
                    moved.append((model.profiles() * weight).sum())
                    parameter.view(-1)[i] -= sign * step
            slope = float(moved[0] - moved[1]) / (2 * step)
            assert slope == pytest.approx(float(forwards[place]), rel=1e-3, abs=1e-6)
            place += 1


def test_a_block_is_hermitian_with_them(problem):
    model = HybridModel(
        problem, dataclasses.replace(SETTINGS, perturbation=0.1, propagator=Eigen())
    )
    (batch, *_) = model.batches
    v = model.matrix(batch, model.potential_table()).detach()
    torch.testing.assert_close(v, v.mH)


def test_files_keep_the_choice():
    settings = ModelSettings(perturbation=0.07)
    assert ModelSettings.from_dict(settings.to_dict()) == settings
    old = {k: v for k, v in settings.to_dict().items() if k != "perturbation"}
    assert ModelSettings.from_dict(old).perturbation is None


def test_those_that_hardly_matter_are_not_counted(problem):
    """Most of them; what they would add is less than that of the others by far."""
    every = dict(perturbation=0.1, left_out=None)
    settings = dataclasses.replace(SETTINGS, **every)
    whole = HybridModel(problem, settings)
    few = HybridModel(problem, dataclasses.replace(settings, left_out=0.0))
    counts = [int(m.matrix.weak.valid.sum()) for m in (few, whole)]
    assert counts[0] < 0.7 * counts[1]
    none = amplitudes(problem)
    change, rest = (
        float((a - b).abs().sum() / none.sum())
        for a, b in (
            (amplitudes(problem, **every), none),
            (amplitudes(problem, perturbation=0.1, left_out=0.0), amplitudes(problem, **every)),
        )
    )
    assert rest < 0.25 * change


@pytest.mark.parametrize("real", [False, True])
def test_derivatives_of_what_a_weak_beam_adds(real):
    """Also by imaginary parts that are zero, as those of centrosymmetric crystals."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, *shape, dtype=torch.complex128, generator=generator) for shape in SHAPES)
    x, y = ((z.real + 0j if real else z).requires_grad_() for z in (x, y))
    inverse = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda *z: perturbation.second_order(*z, inverse), (x, y))


def test_rounding_does_not_make_denormal_numbers():
    """They would take two hundred times longer."""
    x, y = (torch.full((1, *shape), 1e-3 + 1e-19j, dtype=torch.complex64) for shape in SHAPES)
    found = perturbation.second_order(x, y, torch.ones(1, 4))
    assert (found.imag == 0).all() and torch.allclose(found.real, torch.tensor(-4e-6))
