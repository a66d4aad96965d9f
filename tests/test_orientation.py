"""The curve of small rotations, and the width of its prior that the data make most likely."""

import math

import pytest
import tiny
import torch
from test_refine import SETTINGS, make_truth

from dials_hybrid.orientation import NARROWEST, SIGMA, WIDEST, OrientationCurve
from dials_hybrid.refine import Refinement, RefineSettings, State

AUTO = tiny.settings(
    g_max=0.8, thickness="distribution", thickness_start=140.0, orientation_sigma=None
)


@pytest.fixture
def curve() -> OrientationCurve:
    return OrientationCurve(tiny.scan(blocks=150, width=1.0), math.radians(1), SIGMA, 0.0)


def estimate(curve, measured, error):
    """The best offsets and their covariance, of offsets measured with one error."""
    operator = curve.prior_operator()
    information = torch.eye(len(measured)).double() / error**2 + operator.T @ operator
    covariance = torch.linalg.inv(information)
    return covariance @ measured / error**2, covariance


@pytest.mark.parametrize("true, error", [(0.3, 0.2), (1.0, 0.2), (3.0, 2.0), (0.5, 0.05)])
def test_the_width_is_that_of_the_offsets_without_their_errors(curve, true, error):
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(2, curve.offset.numel(), generator=generator, dtype=torch.float64)
    measured = true * normal[0] + error * normal[1]
    for _ in range(30):
        curve.width = curve.likely_width(*estimate(curve, measured, error))
    expected = (float(measured.square().mean()) - error**2) ** 0.5
    assert curve.width == pytest.approx(expected, rel=1e-3)  # the closed form of this case
    assert curve.width == pytest.approx(true, rel=0.15)


def test_the_width_changes_by_steps_and_has_limits(curve):
    nothing, much = torch.zeros(curve.offset.numel()).double(), torch.ones(curve.offset.numel())
    known = 1e-6 * torch.eye(len(nothing)).double()
    assert curve.likely_width(nothing, known) == 0.5
    assert curve.likely_width(100 * much.double(), known) == 2.0
    for offset, limit in ((nothing, NARROWEST), (1e4 * much.double(), WIDEST)):
        for _ in range(12):
            curve.width = curve.likely_width(offset, known)
        assert curve.width == limit


def test_half_the_width_makes_prior_residuals_of_twice_the_size(curve):
    before = curve.prior_operator()
    curve.width = 0.5
    torch.testing.assert_close(curve.prior_operator(), 2 * before)


@pytest.fixture(scope="module")
def ends():
    """The ends of refinements of one problem whose crystal is where the experiment says."""
    problem, _ = make_truth()
    ran = [Refinement(problem, settings, RefineSettings(8)) for settings in (SETTINGS, AUTO)]
    return [(refinement, refinement.run()) for refinement in ran]


def test_orientations_without_errors_are_held_where_their_size_is_free(ends):
    (fixed, first), (free, second) = ends
    assert fixed.state.orientation_width == 1.0
    assert free.state.orientation_width < 0.5
    assert free.model.orientation().norm() < 0.7 * fixed.model.orientation().norm()
    for result, width in ((first, 1.0), (second, free.state.orientation_width)):
        assert result.summary["orientation"]["sigma"] == pytest.approx(0.05 * width)
    assert second.summary["n_parameters"] < first.summary["n_parameters"]


def test_a_continuation_has_the_width_that_was_found(ends):
    _, (free, _) = ends
    state = State.from_dict(free.state.to_dict())
    again = Refinement(free.problem, AUTO, RefineSettings(8), state=state)
    assert again.model.orientation.width == free.state.orientation_width
    torch.testing.assert_close(again.model.prior_residuals(), free.model.prior_residuals())
