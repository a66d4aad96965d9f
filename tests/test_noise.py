"""The variance of integrated intensities as a function of the intensity."""

import pytest
import torch

from dials_hybrid.error_model import ErrorModel
from dials_hybrid.noise import Noise


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def noise_of(intensity, sigma, sweep=None):
    none = torch.zeros(len(intensity), dtype=torch.int64)
    return Noise.of(intensity, sigma, none if sweep is None else sweep, none == 0)


def normal(n):
    return torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("gain", "square"), [(0, 0), (1.3, 0), (6, 0.01), (0, 0.002)])
def test_gain_and_square_are_found(gain, square):
    true = torch.logspace(0, 4, 500, dtype=torch.float64)
    sigma = (50 * (1 + 0.2 * normal(500)).abs() + gain * true + square * true.square()).sqrt()
    noise = noise_of(true, sigma)
    assert float(noise.gain[0]) == pytest.approx(gain, rel=0.05, abs=0.05)
    assert float(noise.square[0]) == pytest.approx(square, rel=0.1, abs=1e-5)
    strong = gain * true + square * true.square() > 9 * sigma.square() / 10
    assert torch.allclose(noise.variance(true)[~strong], sigma.square()[~strong], rtol=0.12)


def test_each_sweep_has_its_own_gain():
    true, sweep = torch.logspace(0, 4, 400, dtype=torch.float64), torch.arange(400) % 2
    gain = torch.where(sweep == 0, 1.0, 5.0).double()
    noise = noise_of(true, (30 + gain * true).sqrt(), sweep)
    assert torch.allclose(noise.gain, gain, rtol=1e-6)


def test_sigmas_that_fall_with_the_intensity_have_no_gain():
    true = torch.linspace(1, 100, 50, dtype=torch.float64)
    noise = noise_of(true, 10 - 0.05 * true)
    assert (noise.gain == 0).all() and (noise.square == 0).all()
    assert torch.allclose(noise.variance(5 * true), (10 - 0.05 * true).square())


def test_the_variance_is_positive_and_that_of_no_signal_below_zero():
    noise = noise_of(f64(-40, 0, 10, 1000, 30000), f64(6, 5, 6, 30, 170))
    assert (noise.variance(f64(-1e5, -1, 0, 0, 0)) > 0).all()
    assert torch.equal(noise.variance(f64(-9, -9, -9, -9, -9)), noise.background)


def test_counts_do_not_pull_the_model_down():
    """Weak reflections have the right mean by weights at the model, and not by their sigma."""
    generator = torch.Generator().manual_seed(0)
    true = torch.logspace(0.5, 3, 6000, dtype=torch.float64)
    background = torch.full_like(true, 20)
    counts = torch.poisson(true + background, generator)
    intensity = counts - background
    sigma = (intensity.abs() + background).sqrt()
    noise, model, weak = noise_of(intensity, sigma), ErrorModel(1.0, 0.0), true < 60

    def bias(errors):
        weight = errors[weak] ** -2
        return float((weight * (intensity - true)[weak]).sum() / weight.sum())

    assert abs(bias(model.sigma(noise, true))) < 0.25
    assert bias(sigma) < -0.7  # one count, nearly


def test_what_is_not_used_says_nothing():
    true, used = torch.logspace(0, 4, 400, dtype=torch.float64), torch.arange(400) % 2 == 0
    sigma = torch.where(used, 30 + true, 9000.0).sqrt()
    sweep = torch.where(torch.arange(400) < 390, 0, 1)
    noise = Noise.of(true, sigma, sweep, used & (sweep == 0))
    assert torch.allclose(noise.gain[:390], torch.ones(390).double(), rtol=1e-6)
    assert (noise.gain[390:] == 0).all()  # none of that sweep is used
