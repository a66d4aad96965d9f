"""Stages of a refinement: coarser passes, how much work they are, and where they end."""

import dataclasses

import pytest
import tiny
import torch
from test_model import disturbed
from test_refine import continued, distances, make_truth

from dials_hybrid import depth_step, plan
from dials_hybrid.fidelity import Fidelity, thinned
from dials_hybrid.history import Progress
from dials_hybrid.kinematic import _nearest_samples
from dials_hybrid.plan import (
    SELDOM,
    TERA,
    format_plan,
    ladder,
    light_fidelity,
    make_plan,
    operations,
    value_operations,
)
from dials_hybrid.propagation import Chebyshev, DepthGrid, Splitting, light
from dials_hybrid.propagation.splitting import LIGHT
from dials_hybrid.refine import Refinement, RefineSettings, build_model

LONG = DepthGrid(40.0, 20)


@pytest.fixture(scope="module")
def problem():
    return tiny.problem(blocks=9, samples=10)


@pytest.fixture(scope="module")
def model(problem):
    return disturbed(problem)


def enough(model) -> float:
    """Return the limit that all passes of one stage keep."""
    by_structure = operations(model.coarser(light_fidelity(model)))
    return max(by_structure / SELDOM, operations(model, 0)) / TERA


def same(model, **changes) -> Fidelity:
    """Return the fidelity of the model itself, but for some changes."""
    settings = model.settings
    own = {"g_max": settings.g_max, "s_max": settings.s_max, "left_out": settings.left_out}
    return Fidelity(**{**own, **changes})


def lighter(model) -> Fidelity:
    return same(model, propagator=light(model.settings.propagator))


# --- thinning -------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_thinned_samples_stand_for_the_whole_rotation(problem, factor):
    fewer = thinned(problem, factor)
    assert fewer.scan.angle.shape == (9, -(-10 // factor))
    widths = (problem.scan.sample_width.sum(1), fewer.scan.sample_width.sum(1))
    assert torch.allclose(*widths, rtol=1e-12)
    # each new sample is one of the old ones, with all that belongs to it
    for block in range(9):
        for new, angle in enumerate(fewer.scan.angle[block]):
            old = int((problem.scan.angle[block] - angle).abs().argmin())
            assert torch.equal(problem.scan.setting[block, old], fewer.scan.setting[block, new])


@pytest.mark.parametrize("factor", [2, 3])
def test_thinned_windows_keep_their_place(factor):
    wide = tiny.problem(blocks=9, samples=10, window=2.5)
    old, new = wide.observations, thinned(wide, factor).observations
    samples = -(-10 // factor)
    assert (new.link_first <= new.link_last).all() and (new.link_last < samples).all()
    assert torch.equal(new.link_block, old.link_block)
    whole = (old.link_first == 0) & (old.link_last == 9)
    assert whole.any() and not whole.all()
    assert (new.link_first[whole] == 0).all() and (new.link_last[whole] == samples - 1).all()
    assert ((new.link_first * factor - old.link_first).abs() <= factor).all()
    assert (((new.link_last + 1) * factor - old.link_last - 1).abs() <= factor).all()


def test_not_thinned_is_the_same(problem):
    assert thinned(problem, 1) is problem


# --- coarser models -------------------------------------------------------------------------


def test_a_model_as_fine_gives_the_same_tangents(model):
    for a, b in zip(model.tangents(), model.tangents(fidelity=same(model)), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-18)


def test_parameters_are_shared(problem):
    model = disturbed(problem)
    names = [name for name, _ in model.named_parameters()]
    coarse = model.coarser(same(model, s_max=0.005))
    assert coarse is model.coarser(same(model, s_max=0.005))
    assert model.coarser(None) is model
    assert [name for name, _ in model.named_parameters()] == names
    before = coarse.value_profiles()
    with torch.no_grad():
        model.crystal.site_shift += 1
    after = coarse.value_profiles()
    assert not torch.allclose(before, after, rtol=1e-3)


def test_a_coarser_model_is_near(model):
    fine = model.tangents()
    coarse = model.tangents(fidelity=same(model, s_max=0.008))
    for a, b in zip(fine, coarse, strict=True):
        assert a.shape == b.shape
        assert 1e-9 < float((a - b).norm() / a.norm()) < 0.3


# --- the plan -------------------------------------------------------------------------------


def test_rungs_are_less_and_less_work(model):
    work = [operations(model), *(operations(model.coarser(rung)) for rung in ladder(model))]
    assert work == sorted(work, reverse=True) and work[-1] < work[0] / 3
    assert value_operations(model) < work[0] / 10
    assert value_operations(model) < operations(model, 0) < work[0] / 4


def test_a_small_problem_has_one_stage(model):
    for limit in (None, enough(model)):
        (stage,) = make_plan(model, limit)
        assert stage.values is None and stage.turns is None and not stage.rough
        assert stage.slopes == lighter(model)


@pytest.mark.parametrize("method", [Splitting("strang", 20), Chebyshev()])
def test_methods_that_cannot_be_lighter_give_their_own_derivatives(problem, method):
    settings = tiny.settings(propagator=method)
    (stage,) = make_plan(build_model(problem, settings, 0), None)
    assert stage.slopes is None


def test_light_steps_use_the_beams_and_blocks_of_the_model(model):
    coarse = model.coarser(lighter(model))
    assert coarse.beams is model.beams and coarse.batches is model.batches
    assert coarse.settings.propagator == Splitting(LIGHT, model.settings.propagator.substeps)
    assert model.settings.propagator.scheme != LIGHT


@pytest.mark.parametrize("factor", [1, 5])
def test_derivatives_from_light_steps_are_right_to_some_hundredths(factor):
    """At the steps that are chosen for |dI| of 1e-4, also of a heavy crystal."""
    light_atoms = tiny.problem(blocks=9, samples=10)
    structure = light_atoms.structure.replace(ff_a=factor * light_atoms.structure.ff_a)
    problem, settings = light_atoms.replace(structure=structure), tiny.settings(depth=LONG)
    settings, check = depth_step.choose_step(problem, settings, 1e-4)
    assert check.error_measured < 1e-4
    model = build_model(problem, settings, 0)
    exact, found = (model.tangents(fidelity=f)[1] for f in (None, lighter(model)))
    assert 1e-4 < float((found - exact).norm() / exact.norm()) < 0.03


def test_the_log_says_where_standard_uncertainties_come_from(model):
    said = "Standard uncertainties come from these coarser derivatives"
    assert format_plan(make_plan(model, 1e-6)).endswith(said)
    assert "Standard" not in format_plan(make_plan(model, None))


@pytest.mark.parametrize("share", [0.9, 0.2, 1e-6])
def test_passes_keep_the_limit_if_a_rung_does(model, share):
    limit = share * enough(model)
    first, last = make_plan(model, limit)
    rungs = ladder(model)
    assert last.values is None and first.values == rungs[0]
    assert first.slopes == last.slopes
    within = operations(model.coarser(last.slopes)) <= SELDOM * limit * TERA
    assert within or last.slopes.of_beams == rungs[-1].of_beams


# --- refinement in stages -------------------------------------------------------------------


# more beams than there need be, so that fewer of them are not far off
SETTINGS = tiny.settings(g_max=1.0, s_max=0.03, thickness="distribution", thickness_start=140.0)


@pytest.fixture(scope="module")
def truth():
    return make_truth(SETTINGS)


def limit_of(problem, share=0.4) -> float:
    """Return a limit that the full model exceeds, with light steps too."""
    model = build_model(problem, SETTINGS, 0)
    return share * enough(model)


def refinement(problem, iterations=20, report=None, **choices) -> Refinement:
    settings = RefineSettings(iterations, large=limit_of(problem), **choices)
    return Refinement(problem, SETTINGS, settings, Progress(report=report or (lambda row: None)))


@pytest.fixture(scope="module")
def staged(truth):
    loop = refinement(truth[0])
    assert len(loop.plan) == 2
    return loop, loop.run()


def assert_of_the_full_model(loop, result):
    """What is reported is what the full model calculates."""
    made = loop.model.intensities(loop.model.value_profiles()).detach()
    assert torch.allclose(result.calculated, made, rtol=1e-9)
    assert torch.isfinite(result.sigma_weight).all()


def test_stages_find_displaced_sites(truth, staged):
    problem, sites = truth
    loop, result = staged
    assert distances(problem, result.structure.site, sites).max() < 0.002
    assert result.converged
    assert_of_the_full_model(loop, result)
    names = [row["stage"] for row in result.history]
    assert names == sorted(names, key=["thickness", "coarse", "joint"].index)
    assert len(set(names)) == 3


def test_stages_end_and_start_where_a_single_one_does(truth, staged):
    problem, _ = truth
    whole = Refinement(problem, SETTINGS, RefineSettings(20)).run()
    result = staged[1]
    for part, other in ((result.site_su, whole.site_su), (result.u_su, whole.u_su)):
        assert torch.allclose(part, other, rtol=0.2)
    apart = (result.structure.site - whole.structure.site).abs() * problem.structure.cell[:3]
    assert (apart <= 0.5 * whole.site_su + 1e-6).all()
    first, second = (x.summary for x in (result, whole))
    assert first["start"]["r1_obs"] == pytest.approx(second["start"]["r1_obs"], rel=1e-3)
    assert first["final"]["r1_obs"] == pytest.approx(second["final"]["r1_obs"], rel=0.03)
    assert len(second["stages"]) == 1 and len(first["stages"]) == 2


def test_light_derivatives_lead_where_exact_ones_do(truth, monkeypatch):
    problem, sites = truth
    loops = []
    for exact in (False, True):
        if exact:
            monkeypatch.setattr(plan, "light_fidelity", lambda model: None)
        loops.append(Refinement(problem, SETTINGS, RefineSettings(20)))
    assert loops[0].plan[0].slopes is not None and loops[1].plan[0].slopes is None
    led, exact = (loop.run() for loop in loops)
    assert_of_the_full_model(loops[0], led)
    assert led.converged and distances(problem, led.structure.site, sites).max() < 0.002
    apart = (led.structure.site - exact.structure.site).abs() * problem.structure.cell[:3]
    assert (apart <= 0.2 * exact.site_su + 1e-6).all()
    assert torch.allclose(led.site_su, exact.site_su, rtol=0.05)


def test_derivatives_are_formed_anew_once_the_structure_has_changed(truth):
    loop = Refinement(truth[0], SETTINGS, RefineSettings(20))
    loop.linearise()
    assert not loop.passing.is_stale(0, 0.0)
    with torch.no_grad():
        loop.model.crystal.site_shift += 1.0
    assert loop.passing.is_stale(0, 0.01) and not loop.passing.is_stale(0, 1e3)
    assert not loop.passing.is_stale(1, 0.01), "no step was made"


@pytest.mark.parametrize("when", [1, 3])
def test_a_stop_in_the_first_stage_gives_the_full_model_and_goes_on(truth, staged, when, tmp_path):
    def interrupt(row):
        if row["iteration"] == when:
            raise KeyboardInterrupt

    loop = refinement(truth[0], report=interrupt)
    result = loop.run()
    assert "interrupted" in result.stop_reason
    assert_of_the_full_model(loop, result)
    assert loop.state.stage == 0 and loop.state.iteration == when
    loop.save(tmp_path / "checkpoint.h5")
    again = continued(tmp_path / "checkpoint.h5", 20)
    assert again.plan == loop.plan and again.stage is again.plan[0]
    end = again.run()
    assert end.converged and "joint" in [row["stage"] for row in end.history]
    whole = staged[1]
    assert distances(truth[0], end.structure.site, whole.structure.site).max() < 5e-4


def test_a_checkpoint_in_the_last_stage_stays_there(truth, staged, tmp_path):
    def interrupt(row):
        if row["stage"] == "joint":
            raise KeyboardInterrupt

    loop = refinement(truth[0], report=interrupt)
    loop.run()
    loop.save(tmp_path / "checkpoint.h5")
    again = continued(tmp_path / "checkpoint.h5", 20)
    assert again.stage is again.plan[-1]
    end = again.run()
    assert distances(truth[0], end.structure.site, staged[1].structure.site).max() < 5e-4


def test_the_last_stage_gets_iterations_even_when_there_are_few(truth):
    names = [row["stage"] for row in refinement(truth[0], 2).run().history]
    assert names == ["thickness", "coarse", "joint"]


def test_an_estimate_does_not_make_a_full_pass(truth, monkeypatch):
    loop = refinement(truth[0])
    monkeypatch.setattr(loop.model, "batch_tangents", None)
    seconds, held = loop.estimate()
    assert 0 < seconds < 600 and held > 0


def test_settings_of_the_stage_reach_the_propagation(model):
    coarse = model.settings.coarser(Fidelity(0.5, 0.004, None))
    assert (coarse.g_max, coarse.s_max) == (0.5, 0.004)
    assert coarse.propagator == model.settings.propagator
    twice = dataclasses.replace(model.settings.propagator, substeps=2)
    fine = dataclasses.replace(model.settings, propagator=twice)
    assert fine.coarser(
        Fidelity(0.5, 0.004, None, propagator=light(twice))
    ).propagator == Splitting(LIGHT, 2)


# --- the sample nearest to a centroid -------------------------------------------------------


def test_nearest_samples_are_found_by_search():
    problem = tiny.problem(blocks=5, sweeps=2)
    o, scan = problem.observations, problem.scan
    beyond = torch.tensor([-1.0, 9.0], dtype=torch.float64)
    o = o.replace(angle=torch.cat([o.angle[:-2] + 1e-4, beyond]))
    found = _nearest_samples(o, scan)
    sweep = scan.sweep.repeat_interleave(scan.angle.shape[1])
    assert torch.equal(sweep[found], o.sweep)
    for row in range(len(found)):
        distance = (scan.angle.flatten() - o.angle[row]).abs()
        least = distance[sweep == o.sweep[row]].min()
        assert float(distance[found[row]]) == pytest.approx(float(least), abs=1e-12)
