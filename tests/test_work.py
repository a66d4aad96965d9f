"""What passes have to do, and which method of propagation needs fewer operations."""

import dataclasses
import math

import pytest
import tiny
import torch

from dials_hybrid import depth_step
from dials_hybrid.absorption import Proportional
from dials_hybrid.data import Structure
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.plan import ladder, make_plan, operations, value_operations
from dials_hybrid.propagation import Chebyshev, DepthGrid, Eigen, MatrixExp, Splitting
from dials_hybrid.propagation.recurrence import coefficients, norm_bound, terms_needed
from dials_hybrid.work import work_of

LONG = DepthGrid(50.0, 24)


def centred() -> Structure:
    """Return a structure in P-1 with the origin at a centre, in the cell of quartz."""
    structure = tiny.triclinic([[0.1, 0.2, 0.3], [0.35, 0.6, 0.8]], [2, 3], [20, 10], tiny.CELL)
    inversion = torch.eye(3, dtype=torch.float64)
    return structure.replace(
        sym_rot=torch.stack([inversion, -inversion]), sym_trans=torch.zeros_like(inversion)[:2]
    )


@pytest.fixture(scope="module")
def problem():
    return tiny.problem(samples=30).replace(structure=centred())


@pytest.fixture(scope="module")
def many(problem):
    """A model of about a hundred beams."""
    return HybridModel(problem, tiny.settings(g_max=1.5, s_max=0.04, depth=LONG))


def test_real_potentials_are_seen(problem):
    assert work_of(HybridModel(problem, tiny.settings()), None).real
    assert not work_of(HybridModel(tiny.problem(), tiny.settings()), None).real
    absorbing = tiny.settings(absorption=Proportional(0.1))
    assert not work_of(HybridModel(problem, absorbing), None).real


def test_work_is_that_of_the_matrices(many):
    work, table = work_of(many, None), many.potential_table().detach()
    for batch in many.batches:
        s = many.excitation(batch, many.orientation()).detach()
        half = 0.5 * (s.amax(1) - s.amin(1))
        assert torch.allclose(work.half_range[batch.blocks, 0], half[:, 0], rtol=0.05)
        assert torch.allclose(work.half_range[batch.blocks, -1], half[:, -1], rtol=0.05)
        norm = norm_bound(many.matrix(batch, table))
        assert norm / 2 < work.coupling < 2 * norm
    assert torch.equal(work.beams, many.beams.counts) and work.samples == 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.002, 0.02, 0.2])
def test_terms_are_counted(radius, dtype):
    eps = torch.finfo(dtype).eps
    terms = coefficients(radius, LONG, max(eps / 4, 1e-14), 0.0)[0].shape[1]
    a = torch.tensor(2 * math.pi * radius * 1200, dtype=torch.float64)
    assert float(terms_needed(a, eps)) == pytest.approx(terms, rel=0.1)


def test_coefficients_are_those_of_the_exponential():
    radius, grid = 0.03, DepthGrid(25.0, 8)
    table = torch.from_numpy(coefficients(radius, grid, 1e-14, 0.0)[0])
    k = torch.arange(table.shape[1])
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    polynomials = torch.cos(k[:, None] * torch.arccos(x))
    found = (table * torch.where(k % 2 == 0, 1, 1j)) @ polynomials.to(torch.complex128)
    angle = 2 * math.pi * radius * grid.depths(dtype=torch.float64)[:, None] * x
    assert (found - torch.polar(torch.ones_like(angle), angle)).abs().max() < 1e-13


def test_bounds_of_matrices_are_not_too_small_and_not_much_too_large():
    v = torch.randn(3, 40, 40, dtype=torch.complex64)
    for matrix in (v, v + v.mH, 1e-12 * v, torch.zeros_like(v)):
        exact = float(torch.linalg.matrix_norm(matrix, 2).max())
        assert exact * (1 - 1e-5) <= norm_bound(matrix) <= 1.6 * exact


def with_method(model, propagator) -> HybridModel:
    settings = dataclasses.replace(model.settings, propagator=propagator)
    return HybridModel(model.problem, settings)


def test_the_plan_counts_the_series(many):
    """A real term is a quarter of a complex product, so that the series is less work."""
    series = with_method(many, Chebyshev())
    assert value_operations(series) < operations(series, 0) < operations(series)
    steps = with_method(many, Splitting(substeps=2))
    assert operations(series) < operations(steps)
    work = [operations(series), *(operations(series.coarser(r)) for r in ladder(series))]
    assert work == sorted(work, reverse=True) and work[-1] < work[0] / 3
    first, last = make_plan(series, 1e-6)
    assert (first.name, last.name) == ("coarse", "joint")


def test_the_series_is_taken_where_it_is_less_work(problem, caplog):
    settings = tiny.settings(g_max=1.2, s_max=0.04, depth=LONG, precision="single")
    with caplog.at_level("INFO", "dials.hybrid.depth_step"):
        chosen, check = depth_step.choose_step(problem, settings, 2e-6, others=(Chebyshev(),))
    assert chosen == dataclasses.replace(settings, propagator=Chebyshev())
    assert check.scheme == "chebyshev" and 0 < check.error_measured < 2e-6
    assert check.substeps == 1 and check.step == LONG.step
    assert "Propagation: chebyshev, one series to all depths" in caplog.text
    # in a crystal without a centre its terms are complex
    chosen, check = depth_step.choose_step(tiny.problem(), settings, 1e-3, others=(Chebyshev(),))
    assert isinstance(chosen.propagator, Splitting) and check.scheme == "aba_104"


def test_a_series_that_is_asked_for_is_checked(problem):
    settings = tiny.settings(propagator=Chebyshev())
    chosen, check = depth_step.choose_step(problem, settings, 1e-4)
    assert chosen == settings and check.error_measured < 1e-11


@pytest.mark.parametrize("method", [Splitting("strang", 3), Chebyshev(), Eigen(), MatrixExp()])
def test_methods_come_back_from_plain_numbers(method):
    settings = tiny.settings(propagator=method)
    assert ModelSettings.from_dict(settings.to_dict()) == settings


def test_settings_of_files_that_knew_the_splitting_alone_are_read():
    plain = tiny.settings().to_dict()
    plain["propagator"] = {"scheme": "strang", "substeps": 3}
    assert ModelSettings.from_dict(plain).propagator == Splitting("strang", 3)


@pytest.mark.parametrize(
    ("choices", "method"),
    [({}, Chebyshev), ({"any_method": False}, Splitting), ({"substeps": 2}, Splitting)],
)
def test_a_job_may_have_another_method_unless_steps_are_given(problem, choices, method):
    with_step = pytest.importorskip("dials_hybrid.choices", reason="no DIALS").with_step
    job_room = pytest.importorskip("dials_hybrid.job")
    settings = tiny.settings(g_max=1.2, s_max=0.04, depth=LONG, precision="single")
    numerics = job_room.Numerics(error=2e-6, **choices)
    options = job_room.Options(model=settings, numerics=numerics)
    job = with_step(job_room.Job(problem, None, None, options))
    assert isinstance(job.options.model.propagator, method)
    assert job.numerics["propagation"]["error_target"] == 2e-6
