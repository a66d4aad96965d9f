"""Scores of two hands, twin fractions, and what is said of them."""

import pytest
import tiny
import torch

from dials_hybrid.absolute_structure import TwinFraction, ZScore, twin_fraction, verdict, z_score
from dials_hybrid.error_model import ErrorModel
from dials_hybrid.uncertainty import Curvature


def test_the_score_counts_reflections():
    observed = tiny.f64([10] * 100)
    first, second = tiny.f64([11] * 75 + [14] * 25), tiny.f64([13] * 100)
    every = torch.ones(100, dtype=torch.bool)
    score = z_score(observed, first, second, every)
    assert score == ZScore(100, 75) and score.z == pytest.approx(5)
    assert z_score(observed, second, first, every).z == pytest.approx(-5)
    assert score.probability == pytest.approx(1 - 2.87e-7, abs=1e-9)
    assert z_score(observed, first, second, every & (first < 12)) == ZScore(75, 75)


def test_equal_models_have_no_score():
    observed, model = tiny.f64([1, 2, 3]), tiny.f64([1.1, 2.2, 3.3])
    score = z_score(observed, model, model.clone(), torch.ones(3, dtype=torch.bool))
    assert score == ZScore(0, 0) and score.z == 0 and score.probability == 0.5


def crystal(x: float, seed: int, absorbed: float):
    """Residuals of a twin, refined as if it were none; one of three parameters takes part of it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    difference = 2 * normal(300)
    jacobian = normal(300, 3)
    jacobian[:, 0] += absorbed * difference
    model = ErrorModel()
    residual = x * difference + 0.83 * normal(300)
    priors = torch.zeros(3).double(), torch.zeros(3, 3).double()
    step = Curvature(residual, jacobian, *priors, model).minimum()
    return Curvature(residual - jacobian @ step, jacobian, *priors, model), difference


@pytest.mark.parametrize("absorbed", [0.0, 1.0])
@pytest.mark.parametrize("x", [0.0, 0.3])
def test_twin_fractions_are_found_with_their_uncertainty(x, absorbed):
    """Also where other parameters had taken a part of the twin's intensities."""
    found = [twin_fraction(*crystal(x, seed, absorbed)) for seed in range(60)]
    value, su = tiny.f64([t.value for t in found]), tiny.f64([t.su for t in found])
    normalised = (value - x) / su
    assert float(normalised.mean().abs()) < 0.45
    assert 0.8 < float(normalised.std()) < 1.25
    assert float(su.mean()) < 0.1


def test_hands_that_do_not_differ_have_no_twin_fraction():
    curvature, difference = crystal(0.0, 0, 0.0)
    assert twin_fraction(curvature, torch.zeros_like(difference)) == TwinFraction(None, None)


@pytest.mark.parametrize(
    "score, twin, start",
    [
        (ZScore(800, 500), TwinFraction(0.01, 0.02), "determined, P 32 2 1: R1 differs by +0.02"),
        (ZScore(800, 410), TwinFraction(0.01, 0.02), "undetermined"),
        (ZScore(800, 300), TwinFraction(0.01, 0.02), "undetermined: the other one agrees better"),
        (ZScore(800, 500), TwinFraction(0.1, 0.3), "undetermined"),
        (ZScore(800, 500), TwinFraction(None, None), "undetermined"),
        (ZScore(800, 500), TwinFraction(0.4, 0.05), "undetermined"),
        (ZScore(800, 500), TwinFraction(0.9, 0.05), "undetermined"),
        (ZScore(800, 500), TwinFraction(0.2, 0.02), "determined, P 32 2 1, with a twin"),
    ],
)
def test_the_verdict_says_what_is_known(score, twin, start):
    sentence = verdict(score, twin, "P 32 2 1", 0.02)
    assert sentence.startswith(start)
    assert f"z = {score.z:.1f}" in sentence


@pytest.mark.parametrize(
    "twin, words",
    [
        (TwinFraction(0.003179, 0.01157), "inversion-twin fraction is 0.003(12)"),
        (TwinFraction(None, None), "inversion-twin fraction is not known"),
    ],
)
def test_the_twin_fraction_is_told_with_its_uncertainty(twin, words):
    assert words in verdict(ZScore(800, 500), twin, "P 32 2 1", 0.02)


def test_the_verdict_has_the_score_of_predictions_too():
    sentence = verdict(
        ZScore(400, 260), TwinFraction(0.02, 0.02), "P 31", 0.01, unseen=ZScore(400, 250)
    )
    assert "z = 6.0 over 400 reflections (5.0 with each left out once)" in sentence
