"""R factors, scales and the curves below them."""

import math

import pytest
import torch

from dials_hybrid import losses
from dials_hybrid.curves import CurveBasis
from dials_hybrid.losses import SOFTEST, STIFFEST, SmoothScale


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- R factors ------------------------------------------------------------------------------


def test_r1_by_hand():
    # Fo 3, 2, 0 (negative intensity), Fc 2, 2.5, 1
    assert losses.r1(f64(9, 4, -5), f64(4, 6.25, 1)) == pytest.approx(2.5 / 5)


def test_r1_of_a_selection():
    mask = torch.tensor([True, False, True])
    assert losses.r1(f64(9, 4, 16), f64(4, 100, 16), mask) == pytest.approx(1 / 7)


def test_r1_of_nothing_is_nan():
    assert math.isnan(losses.r1(f64(9, 4), f64(4, 4), torch.tensor([False, False])))


def test_wr2_by_hand():
    # weights 1 and 1/4: ((10 - 8)^2 + (4 - 5)^2 / 4) / (100 + 16 / 4)
    assert losses.wr2(f64(10, 4), f64(8, 5), f64(1, 2)) == pytest.approx((4.25 / 104) ** 0.5)


def test_amplitudes_of_negative_intensities_are_zero():
    assert losses.amplitudes(f64(-3, 0, 16)).tolist() == [0, 0, 4]


# --- curves ---------------------------------------------------------------------------------


ANGLE = torch.cat([torch.linspace(-1, 1.5, 40), torch.linspace(3, 3.7, 15)]).double()
SWEEP = torch.tensor([0] * 40 + [1] * 15)


@pytest.fixture(scope="module")
def basis():
    return CurveBasis.over(ANGLE, SWEEP, 0.5)


def test_knots_are_near_the_spacing_asked_for(basis):
    assert basis.start == pytest.approx((-1, 3))
    assert basis.spacing == pytest.approx((0.5, 0.35))
    assert basis.count == (5 + 3, 2 + 3) and basis.size == 13


def test_splines_add_up_to_one_and_are_positive(basis):
    matrix = basis.matrix(ANGLE, SWEEP)
    assert torch.allclose(matrix.sum(1), torch.ones(55).double(), atol=1e-14)
    assert (matrix >= 0).all() and ((matrix > 0).sum(1) <= 4).all()


def test_sweeps_do_not_share_coefficients(basis):
    matrix = basis.matrix(ANGLE, SWEEP)
    assert (matrix[SWEEP == 0, 8:] == 0).all() and (matrix[SWEEP == 1, :8] == 0).all()


@pytest.mark.parametrize("power", [0, 1, 2, 3])
def test_cubic_polynomials_are_reproduced(basis, power):
    matrix, wanted = basis.matrix(ANGLE, SWEEP), ANGLE**power
    found = torch.linalg.lstsq(matrix, wanted[:, None]).solution
    assert torch.allclose((matrix @ found)[:, 0], wanted, atol=1e-9)
    # and between the angles that were fitted
    between = (ANGLE[:39] + ANGLE[1:40]) / 2
    values = basis.matrix(between, torch.zeros(39, dtype=torch.int64)) @ found
    assert torch.allclose(values[:, 0], between**power, atol=1e-9)


def test_curves_have_two_smooth_derivatives(basis):
    h, knot = 1e-3, 0.5
    x = knot + h * torch.arange(-4, 5, dtype=torch.float64)
    values = basis.matrix(x, torch.zeros(9, dtype=torch.int64))[:, :8]
    second = torch.diff(values, n=2, dim=0) / h**2
    # the second derivative is continuous: it changes by no more than (third derivative) h
    assert (torch.diff(second, dim=0).abs().max()) < 1.01 * 3 * h / basis.spacing[0] ** 3


def test_outside_its_range_a_curve_is_constant(basis):
    x = f64(-5.0, -1.0, 1.5, 9.0)
    matrix = basis.matrix(x, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(matrix[0], matrix[1]) and torch.equal(matrix[2], matrix[3])


def test_curves_along_rows_are_the_matrix_row_by_row():
    basis = CurveBasis.over(f64(0.0, 4.0), torch.tensor([0, 0]), 0.5)
    generator = torch.Generator().manual_seed(2)
    coefficients = torch.randn(3, basis.size, generator=generator).double()
    points = 6 * torch.rand(3, 20, generator=generator).double() - 1
    found = basis.along_rows(coefficients, points)
    for row, x, c in zip(found, points, coefficients, strict=True):
        assert torch.allclose(row, basis.matrix(x, torch.zeros(20, dtype=torch.int64)) @ c)
    moving = points.clamp(0.01, 3.99).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: basis.along_rows(coefficients, x), moving)


def test_roughness_is_zero_for_straight_lines_within_sweeps_alone(basis):
    rough = basis.roughness()
    assert rough.shape == (6 + 3, 13)
    line = torch.cat([torch.arange(8), 40 - 3 * torch.arange(5)]).double()
    assert (rough @ line).abs().max() < 1e-13
    assert (rough @ line**2).abs().min() > 1


def test_a_single_angle_is_a_curve_too():
    basis = CurveBasis.over(f64(0.3), torch.tensor([0]), 0.1)
    assert basis.matrix(f64(0.3), torch.tensor([0])).sum() == pytest.approx(1)


# --- scale ----------------------------------------------------------------------------------


def test_scale_is_the_exponential_of_the_curve(basis):
    scale, matrix = SmoothScale(basis, 1.0), basis.matrix(ANGLE, SWEEP)
    assert torch.allclose(scale(matrix), torch.ones(55).double())
    with torch.no_grad():
        scale.log_scale[:8] = math.log(3)
    found = scale(matrix).detach()
    assert torch.allclose(found, torch.where(SWEEP == 0, 3.0, 1.0).double())


@pytest.mark.parametrize(("bend", "error"), [(0.05, 1e-3), (0.3, 0.05)])
def test_the_likely_stiffness_is_that_of_the_bends_without_their_errors(bend, error):
    angle = torch.arange(400.0).double()
    scale = SmoothScale(CurveBasis.over(angle, torch.zeros(400).long(), 1.0))
    n = scale.basis.size
    bends, errors = torch.randn(2, n, generator=torch.Generator().manual_seed(1)).double()
    measured = (bend * bends).cumsum(0).cumsum(0) + error * errors
    for _ in range(30):
        operator = scale.prior_operator()
        covariance = torch.linalg.inv(torch.eye(n) / error**2 + operator.T @ operator)
        with torch.no_grad():
            scale.log_scale.copy_(covariance @ measured / error**2)
        scale.stiffness = scale.likely_stiffness(covariance)
    assert scale.stiffness == pytest.approx(bend**-2, rel=0.2)


def test_the_stiffness_changes_by_steps_and_has_limits(basis):
    scale, known = SmoothScale(basis), 1e-9 * torch.eye(13).double()
    assert scale.likely_stiffness(known) == 4 * SOFTEST
    for bend, limit in ((0.0, STIFFEST), (100.0, SOFTEST)):
        with torch.no_grad():
            scale.log_scale[:] = bend * torch.tensor([1.0, -1.0]).repeat(7)[:13]
        for _ in range(9):
            scale.stiffness = scale.likely_stiffness(known)
        assert scale.stiffness == limit


def test_scale_prior_is_free_for_a_straight_logarithm(basis):
    scale = SmoothScale(basis, 4.0)
    line = torch.cat([torch.arange(8) - 2.0, 5 - torch.arange(5)]).double()
    assert (scale.prior_operator() @ line).abs().max() < 1e-13
    bump = torch.zeros(13).double()
    bump[3] = 1
    # second differences 1, -2, 1
    assert float((scale.prior_operator() @ bump).square().sum()) == pytest.approx(4 * 6)
