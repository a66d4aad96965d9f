"""The step in depth by its error, against the whole model of a block solved exactly."""

import dataclasses

import pytest
import tiny
import torch

from dials_hybrid import depth_step
from dials_hybrid.beams import choose_beams
from dials_hybrid.model import HybridModel
from dials_hybrid.propagation import DepthGrid, Eigen, Probe, Splitting


@pytest.fixture(scope="module")
def problem():
    return tiny.problem()


def coarse(**choices):
    """Settings whose one step per depth is far too long."""
    return tiny.settings(depth=DepthGrid(100.0, 6), propagator=Splitting("strang"), **choices)


def largest_error(problem, settings, block):
    """Return max |dI| over the whole model of one block, every sample, beam and depth."""
    model = HybridModel(problem, settings)
    (batch,) = [b for b in model.batches if block in b.blocks]
    at = int((batch.blocks == block).nonzero())
    v = model.matrix(batch, model.potential_table())[at].detach()
    worst = 0.0
    for s in model.excitation(batch, model.orientation())[at].detach().T:
        probe = Probe(torch.tensor([0]), torch.arange(len(s))[None], torch.ones(1, len(s), 1))
        pair = [
            method(v[None], s[None, :, None], probe, settings.depth)
            for method in (settings.propagator, Eigen())
        ]
        worst = max(worst, float((pair[0] - pair[1]).abs().max()))
    return worst


# --- step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3e-2, 1e-2])
def test_the_step_meets_the_target_and_no_longer_one_does(problem, target):
    settings = coarse()
    chosen, check = depth_step.choose_step(problem, settings, target)
    block = depth_step.fullest_block(problem, settings)
    assert check.substeps == chosen.propagator.substeps > 1
    assert check.step == pytest.approx(100 / check.substeps)
    assert (check.scheme, check.error_target) == ("strang", target)
    assert check.error_measured <= target
    # it looks at a few samples; all of them may be a little worse
    assert largest_error(problem, chosen, block) < 1.5 * target
    shorter = depth_step.SUBSTEPS[depth_step.SUBSTEPS.index(check.substeps) - 1]
    longer_step = dataclasses.replace(settings, propagator=Splitting("strang", shorter))
    assert largest_error(problem, longer_step, block) > target
    assert dataclasses.replace(chosen, propagator=settings.propagator) == settings


def test_the_measured_error_is_that_of_the_precision_in_use(problem):
    settings = tiny.settings(propagator=Splitting("blanes_moan_4"))
    errors = {
        precision: depth_step.choose_step(
            problem, dataclasses.replace(settings, precision=precision), 1e-13, allowed=(40,)
        )[1].error_measured
        for precision in ("single", "double")
    }
    assert errors["double"] < 1e-9 < 1e-8 < errors["single"] < 1e-4


def test_a_target_out_of_reach_is_warned_of(problem, warnings_logged):
    chosen, check = depth_step.choose_step(problem, coarse(), 1e-9)
    assert check.substeps == chosen.propagator.substeps == max(depth_step.SUBSTEPS)
    assert check.error_measured > 1e-9
    (message,) = warnings_logged()
    assert "propagation.error" in message and "1.0e-09" in message


def test_a_target_that_is_met_is_not_warned_of(problem, warnings_logged):
    _, check = depth_step.choose_step(problem, tiny.settings(), 1e-3)
    assert check.substeps == 1 and warnings_logged() == []


def test_every_intensity_is_that_of_each_sample_alone(problem):
    model = HybridModel(problem, tiny.settings())
    batch = model.batches[0]
    v = model.matrix(batch, model.potential_table()).detach()
    s = model.excitation(batch, model.orientation()).detach()[..., :3]
    grid = DepthGrid(50.0, 2)
    found = depth_step.every_intensity(Splitting(), v, s, grid)
    f, n, t = s.shape
    assert found.shape == (f, n, t, 2)
    probe = Probe(
        torch.zeros(f, dtype=torch.int64), torch.arange(n).expand(f, n), torch.ones(f, n, 1)
    )
    for k in range(t):
        alone = Splitting()(v, s[..., k, None], probe, grid)
        assert torch.allclose(found[:, :, k], alone, atol=1e-14)


def test_the_fullest_block_has_most_beams():
    problem, settings = tiny.problem(blocks=6), tiny.settings()
    best = depth_step.fullest_block(problem, settings)
    o = problem.observations
    counts = choose_beams(problem.structure, problem.scan, o, settings.g_max, settings.s_max).counts
    # it counts at the middle of the block alone
    assert counts[best] >= 0.9 * counts.max()
