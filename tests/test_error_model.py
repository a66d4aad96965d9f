"""The error model: its sigma, the t distribution, and how it is fitted."""

import math

import pytest
import torch

from dials_hybrid.error_model import NORMAL_SCALE, ErrorModel, fit_error_model
from dials_hybrid.noise import Noise


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def plain(sigma):
    """Noise of integrations whose sigma does not depend on the intensity."""
    return Noise(sigma.square(), torch.zeros_like(sigma), torch.zeros_like(sigma))


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_sigma_by_hand():
    # 6 and 8; a negative intensity adds nothing
    model = ErrorModel(k=2.0, p=0.1)
    assert model.sigma(plain(f64(3, 1)), f64(80, -5)).tolist() == pytest.approx([10, 2])
    # 4 (1 + 2 * 3 + 0.5 * 9) + 0.09
    noise = Noise(f64(1), f64(2), f64(0.5))
    assert model.sigma(noise, f64(3)).tolist() == pytest.approx([46.09**0.5])


def test_a_residual_of_one_sigma_keeps_its_weight():
    model, calculated, noise = ErrorModel(2.0, 0.1), f64(80.0, 80.0), plain(f64(3.0, 3.0))
    sigma_w = model.sigma(noise, calculated)
    found = model.robust_sigma(calculated + f64(1, -1) * sigma_w, calculated, noise)
    assert torch.allclose(found, sigma_w, rtol=1e-12)


def test_outliers_pull_less_and_less():
    model, zero = ErrorModel(1.0, 0.0), torch.zeros(5).double()
    residual = f64(0, 1, 3, 10, 1000)
    sigma = model.robust_sigma(residual, zero, plain(torch.ones(5).double()))
    assert (sigma.diff() > 0).all() and sigma[0] < 1
    # slope of the log of the t distribution: (f + 1) r / (f + r^2)
    f = model.freedom
    assert torch.allclose(residual / sigma**2, (f + 1) * residual / (f + residual**2))


@pytest.mark.parametrize(("k", "p"), [(1.0, 0.3), (3.0, 0.1), (6.0, 0.02)])
def test_fit_recovers_the_error_model(k, p):
    n, freedom = 4000, ErrorModel().freedom
    calculated = torch.logspace(0, 4, n, dtype=torch.float64)
    noise = Noise(torch.ones(n).double(), 0.04 * torch.ones(n).double(), torch.zeros(n).double())
    draws = normal(n, 5, seed=4)
    student = draws[:, 0] / (draws[:, 1:].square().sum(1) / freedom).sqrt()
    measured = calculated + student * ErrorModel(k, p).sigma(noise, calculated)
    none, all_ = torch.zeros(n).double(), torch.ones(n, dtype=torch.bool)
    found = fit_error_model(measured, calculated, noise, none, all_)
    assert found.k == pytest.approx(k, rel=0.15)
    assert found.p == pytest.approx(p, rel=0.2)
    # what is left out says nothing
    measured[::2], all_[::2] = math.inf, False
    found = fit_error_model(measured, calculated, noise, none, all_)
    assert found.k == pytest.approx(k, rel=0.2)


def test_fit_does_not_trust_data_beyond_their_sigmas():
    calculated, one = torch.linspace(1, 100, 50, dtype=torch.float64), torch.ones(50).double()
    used = torch.ones(50, dtype=torch.bool)
    found = fit_error_model(calculated, calculated, plain(one), torch.zeros(50).double(), used)
    assert found.k == pytest.approx(NORMAL_SCALE) and found.p > 0


def test_changes_are_of_logarithms():
    small, large = ErrorModel(1.0, 0.04, 4.0), ErrorModel(2.0, 0.01, 4.0)
    assert small.change(large) == pytest.approx((math.log(2), -math.log(4)))
    middle = small.midway(large)
    assert small.change(middle) == pytest.approx(middle.change(large))
    assert middle.freedom == 4.0
    assert small.is_like(ErrorModel(1.0005, 0.04)) and not small.is_like(ErrorModel(1.0, 0.0401))
