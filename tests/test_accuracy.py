"""Numerical choices by their error: beams, samples of the rotation."""

import logging

import pytest
import tiny
import torch

from dials_hybrid import accuracy, validation
from dials_hybrid.accuracy import Agreement
from dials_hybrid.beams import choose_beams
from dials_hybrid.model import HybridModel
from dials_hybrid.propagation import DepthGrid


@pytest.fixture(scope="module")
def problem():
    return tiny.problem()


# --- beams and sampling ---------------------------------------------------------------------


def agreement_of(calculated, rows=None, beams=10.0):
    n = len(calculated)
    rows = torch.arange(n) if rows is None else rows
    fo = 10.0 * (1 + rows.double())
    return Agreement(rows, rows >= 0, fo.square(), torch.tensor(calculated).square(), beams)


def test_change_of_r1_is_over_the_reflections_that_both_have():
    finest = agreement_of([11.0, 20.0, 33.0])
    found = agreement_of([41.0, 29.0, 20.5], rows=torch.tensor([3, 2, 1]), beams=5.0)
    rung = accuracy.compare("few", found, finest)
    # rows 1 and 2: Fo = 20, 30
    assert rung.r1 == pytest.approx((0.5 + 1) / 50)
    assert rung.change == pytest.approx((0.5 + 1) / 50 - (0 + 3) / 50)
    assert rung.r_calc == pytest.approx((0.5 + 4) / 50)
    assert (rung.label, rung.beams) == ("few", 5.0)


@pytest.mark.parametrize(
    ("tolerance", "chosen", "tried"), [(0.5, 4, 4), (0.02, 2, 3), (0.01, 1, 2), (1e-4, 0, 1)]
)
def test_the_descent_stops_at_the_first_large_change(tolerance, chosen, tried):
    """The last value is as good as the finest one, by accident."""
    errors = {1: 0.05, 2: 0.5, 3: 1.0, 4: 0.0}
    finest = agreement_of([10.0, 20.0])
    found, rungs = accuracy.descend(
        0,
        [(str(k), k) for k in errors],
        lambda k: agreement_of([10.0, 20.0 + errors[k]]),
        finest,
        tolerance,
    )
    # the change of R1 is a thirtieth of the error
    assert [r.label for r in rungs] == [str(k) for k in range(1, tried + 1)]
    assert found == chosen


def test_a_few_stretches_hold_whole_reflections_spread_over_the_scan(monkeypatch):
    monkeypatch.setattr(accuracy, "ENOUGH", 20)
    problem = tiny.problem(blocks=24, samples=4)
    chosen = accuracy.few_blocks(problem)
    assert chosen[0] and chosen[-1] and chosen.sum() < 24
    part = validation.keep_blocks(problem, chosen)
    assert part.observations.observed.sum() >= 20
    monkeypatch.setattr(accuracy, "ENOUGH", 10**6)
    longest = accuracy.few_blocks(problem)
    assert chosen.sum() < longest.sum() < 24


def test_a_short_scan_is_taken_whole():
    assert accuracy.few_blocks(tiny.problem(blocks=3)).all()


@pytest.fixture(scope="module")
def measured():
    """A problem whose intensities are those that many beams give, with some noise."""
    problem = tiny.problem(blocks=4, samples=8)
    settings = tiny.settings(g_max=2.0, s_max=0.04)
    found = accuracy.agreement(problem, settings)
    model = HybridModel(problem, settings)
    o = model.problem.observations
    profile = model.value_profiles()[:, 5]  # 120 A
    raw = torch.zeros_like(o.intensity).index_add(0, o.link_observation, profile)
    noise = torch.randn(len(raw), generator=torch.Generator().manual_seed(1)).double()
    measured = raw * (1 + 0.1 * noise).square()
    assert len(found.row) == len(raw)
    return problem.replace(
        observations=o.replace(intensity=measured, sigma=measured.abs() / 10 + 1e-12)
    )


def test_cutoffs_are_as_coarse_as_the_tolerance_allows(measured):
    start = tiny.settings(depth=DepthGrid(40.0, 5))
    counts = {}
    for tolerance in (0.0, 1e-3, 1.0):
        chosen, rungs = accuracy.choose_cutoffs(measured, start, tolerance)
        model = HybridModel(measured, chosen)
        counts[tolerance] = int(model.beams.counts.sum())
        last = [r for r in rungs if r.label == f"g_max {chosen.g_max:g}, s_max {chosen.s_max:g}"]
        assert last and abs(last[0].change) <= tolerance
        assert rungs[0].change == 0 and rungs[0].r_calc == 0
        assert (chosen.depth, chosen.propagator) == (start.depth, start.propagator)
    assert counts[0.0] > counts[1e-3] > counts[1.0]
    assert (chosen.g_max, chosen.s_max) == (accuracy.G_MAX[-1], accuracy.S_MAX[-1])


def test_a_cutoff_that_is_given_stays(measured):
    start = tiny.settings(g_max=0.8, s_max=0.01)
    chosen, rungs = accuracy.choose_cutoffs(measured, start, 1.0, free=("s_max",))
    assert (chosen.g_max, chosen.s_max) == (0.8, accuracy.S_MAX[-1])
    assert all(r.label.startswith("g_max 0.8,") for r in rungs)


def test_the_largest_set_of_beams_is_a_feasible_one(measured, monkeypatch):
    settings = tiny.settings(g_max=2.0)
    assert accuracy.feasible_s_max(measured, settings) == accuracy.S_MAX[0]
    o = measured.observations
    counts = choose_beams(measured.structure, measured.scan, o, 2.0, 0.015).counts
    monkeypatch.setattr(accuracy, "FEASIBLE_BEAMS", int(counts.max()))
    assert accuracy.feasible_s_max(measured, settings) == 0.015


def test_sampling_is_as_coarse_as_the_tolerance_allows(measured):
    """Against the finest step; the model of coarse samples misses the rocking curves."""
    o = measured.observations

    def sampled(step):
        problem = tiny.problem(blocks=4, samples=max(2, round(0.8 / step)))
        rows = torch.isin(problem.observations.row, o.row)
        assert rows.all() and len(rows) >= 0.9 * len(o.row)
        keep = problem.observations.row
        return problem.replace(
            observations=problem.observations.replace(
                intensity=torch.ones(len(keep), dtype=torch.float64)
            )
        )

    settings = tiny.settings(depth=DepthGrid(40.0, 5), g_max=0.8)
    strict, rungs = accuracy.choose_sampling(sampled, settings, 0.0)
    assert strict == accuracy.SAMPLING_STEPS[0] and len(rungs) == 2
    loose, rungs = accuracy.choose_sampling(sampled, settings, 10.0)
    assert loose == accuracy.SAMPLING_STEPS[-1] and len(rungs) == len(accuracy.SAMPLING_STEPS)
    assert rungs[-1].r_calc > rungs[1].r_calc > 0


def test_the_table_names_every_rung():
    rungs = [accuracy.Rung("step 0.05 degrees", 12.0, 0.1, 0.0002, 0.003)]
    table = accuracy.format_rungs(rungs)
    assert "step 0.05 degrees" in table and "0.0002" in table
    logging.getLogger("dials.hybrid.accuracy").debug(table)
