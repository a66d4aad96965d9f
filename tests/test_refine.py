"""The optimiser loop on made-up data, and the parts of a problem that validation makes."""

import dataclasses
import itertools

import pytest
import tiny
import torch

from dials_hybrid import freedom, validation
from dials_hybrid import model as model_room
from dials_hybrid import plan as plan_room
from dials_hybrid import refine as refine_room
from dials_hybrid.checkpoint import Checkpoint
from dials_hybrid.crystal import metric
from dials_hybrid.data import Problem, Result
from dials_hybrid.ending import UNHELD, Step
from dials_hybrid.history import Progress
from dials_hybrid.losses import SOFTEST
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.records import load_records, save_records
from dials_hybrid.refine import Refinement, RefineSettings, State, build_model
from dials_hybrid.valence import ValenceSettings

NOISE = 0.01  # relative error of the intensities
SETTINGS = tiny.settings(g_max=0.8, thickness="distribution", thickness_start=140.0)


def make_truth(settings=SETTINGS) -> tuple[Problem, torch.Tensor]:
    """Return a problem whose intensities a displaced structure made, and its true sites."""
    problem = tiny.problem(blocks=16, width=3.0, samples=8, g_limit=0.9)
    model = build_model(problem, settings, seed=0)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        model.crystal.site_shift += 3 * torch.randn(4, generator=generator).double().sign()
        model.scale.log_scale += 12
        made = model.intensities(model.value_profiles())
    sigma = NOISE * made + 1e-4 * made.max()
    noise = torch.randn(len(made), generator=generator, dtype=torch.float64)
    o = problem.observations.replace(intensity=made + noise * sigma, sigma=sigma)
    return problem.replace(observations=o), model.crystal.site().detach()


@pytest.fixture(scope="module")
def truth():
    return make_truth()


def distances(problem, sites, other):
    """Distance in A between the sites of every atom in two structures, (A,)."""
    d = sites - other
    return torch.einsum("ai,ij,aj->a", d, metric(problem.structure.cell), d).sqrt()


def refinement(problem, iterations=24, report=None, state=None, **choices) -> Refinement:
    progress = Progress(report=report or (lambda row: None))
    return Refinement(problem, SETTINGS, RefineSettings(iterations, **choices), progress, state)


@pytest.fixture(scope="module")
def refined(truth):
    """A finished refinement: the loop, its result and the rows that it reported."""
    rows = []
    loop = refinement(truth[0], report=rows.append)
    return loop, loop.run(), rows


# --- what a refinement finds ----------------------------------------------------------------


def test_displaced_sites_are_found(truth, refined):
    problem, sites = truth
    _, result, _ = refined
    assert distances(problem, problem.structure.site, sites).min() > 0.02
    assert distances(problem, result.structure.site, sites).max() < 0.002


def test_displacement_parameters_stay_where_they_were(truth, refined):
    _, result, _ = refined
    start = truth[0].structure
    assert float((result.structure.u_iso - start.u_iso).abs().max()) < 0.001
    assert float((result.structure.u_star - start.u_star).abs().max()) < 1e-4


def test_the_fit_reaches_the_noise(refined):
    _, result, rows = refined
    assert result.converged and "small against the errors" in result.stop_reason
    assert result.summary["final"]["r1_obs"] < NOISE
    assert result.summary["final"]["r1_obs"] < 0.2 * result.summary["start"]["r1_obs"]
    assert result.summary["start"]["r1_obs"] < result.summary["kinematic"]["r1_obs"]
    assert rows[-1]["r1_obs"] == pytest.approx(result.summary["final"]["r1_obs"], rel=1e-6)


def test_every_iteration_is_reported_once(refined):
    _, result, rows = refined
    assert [row["iteration"] for row in rows] == list(range(len(rows)))
    assert list(result.history) == rows
    assert result.summary["iterations"] == rows[-1]["iteration"]


def test_standard_uncertainties_are_plausible(truth, refined):
    _, result, _ = refined
    problem, sites = truth
    free = torch.tensor([[True, False, False], [True, True, True]])
    assert (result.site_su[free] > 0).all() and (result.u_su > 0).all()
    assert (result.site_su[~free] == 0).all()  # Si lies on an axis along x
    error = (result.structure.site - sites).abs() * problem.structure.cell[:3]
    assert (error[free] < 4 * result.site_su[free]).all()
    assert result.site_su.max() < 0.005
    assert 0.5 < result.summary["final"]["gof"] < 2


def test_uncertainties_follow_the_noise(truth):
    """Ten times the sigmas and the noise: ten times the uncertainties, about."""
    problem, _ = truth
    o = problem.observations
    made = o.intensity
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(made), generator=generator, dtype=torch.float64)
    noisy = o.replace(intensity=made + 10 * o.sigma * noise, sigma=10 * o.sigma)
    results = [refinement(problem.replace(observations=x)).run() for x in (o, noisy)]
    ratio = results[1].site_su[1] / results[0].site_su[1]
    assert (ratio > 4).all() and (ratio < 25).all()


def test_the_result_is_complete(truth, refined, tmp_path):
    from dials_hybrid.records import save_records

    problem, _ = truth
    _, result, _ = refined
    n, blocks = len(problem.observations.intensity), len(problem.scan.sweep)
    assert result.calculated.shape == (n,) and result.thickness.shape == (blocks, 4 * 11 + 1)
    assert torch.allclose(result.thickness.sum(1), torch.ones(blocks).double())
    assert (result.scale > 0).all() and (result.sigma_weight > 0).all()
    save_records(tmp_path / "result.h5", result=result)
    back = load_records(tmp_path / "result.h5")["result"]
    assert isinstance(back, Result) and torch.equal(back.calculated, result.calculated)
    assert back.summary == result.summary
    assert torch.equal(back.thickness_su, result.thickness_su)
    assert back.thickness_su.shape == result.thickness.shape and (result.thickness_su > 0).any()
    assert back.thickness_mean_su.shape == (blocks,) and (result.thickness_mean_su > 0).all()
    assert back.thickness_average_su.shape == (4 * 11 + 1,)


def crystal_parameters(loop) -> torch.Tensor:
    """All free parameters of the structure in their order, as the loop remembers them."""
    names = (f"crystal.{name}" for name in loop.model.crystal.slices())
    values = [tiny.f64(loop.state.parameters.get(name, [])).flatten() for name in names]
    return torch.cat(values)


def test_the_last_shift_is_told_in_units_of_its_uncertainty(truth, tmp_path):
    """Of sites, displacements, occupancies and valence; also once it is saved and loaded."""
    problem = truth[0]
    whole = freedom.basis(problem.structure, freedom.Constraints(occ=(((0, 1.0),),)))
    problem = problem.replace(structure=problem.structure.replace(freedom=whole))
    loop, seen = refinement(problem, 3), []
    loop.progress.report = lambda row: seen.append(crystal_parameters(loop))
    result = loop.run()
    part = slice(0, len(seen[-1]))
    su = loop.curvature.covariance[part, part].diagonal().sqrt()
    steps = [after - before for before, after in itertools.pairwise(seen)]
    moved = next(step for step in reversed(steps) if (step != 0).any())
    ratio = (moved / su).abs()
    assert len(ratio) == sum(p.numel() for p in loop.model.crystal.parameters()) > 8
    expected = {"max": float(ratio.max()), "mean": float(ratio.mean())}
    assert result.summary["shift_over_su"] == pytest.approx(expected, rel=1e-6)
    assert 0 < expected["mean"] < expected["max"]
    loop.save(tmp_path / "end.h5", result)
    back = load_records(tmp_path / "end.h5")
    assert back["result"].summary["shift_over_su"] == result.summary["shift_over_su"]
    assert State.from_dict(back["state"]).structure_step == pytest.approx(moved.tolist())


def test_states_of_earlier_versions_have_no_last_shift(truth):
    loop = refinement(truth[0], 1)
    loop.run()
    old = loop.state.to_dict()
    del old["structure_step"]
    result = refinement(truth[0], 1, state=State.from_dict(old)).run()
    assert result.summary["shift_over_su"] is None
    assert refinement(truth[0], 0).run().summary["shift_over_su"] is None


# --- repeating, interrupting, continuing ----------------------------------------------------


def same_state(first, second, rel=1e-9) -> None:
    a, b = ({k: tiny.f64(v) for k, v in x.state.items()} for x in (first, second))
    assert a.keys() == b.keys()
    for k in a:
        scale = float(a[k].abs().max()) + 1e-12
        assert float((a[k] - b[k]).abs().max()) <= rel * scale, k


SMALL = {"shift": 0.0, "promise": 5e-4, "gain": 5e-4}


@pytest.mark.parametrize(
    ("steps", "settled"),
    [
        ([{}], [True]),
        ([{"shift": 0.01}], [False]),
        ([{"promise": 0.1}, {"promise": 0.1}], [False, True]),  # promised, and did not bring
        ([{"promise": 0.1}, {"promise": 0.1, "shift": 0.01}, {"promise": 0.1}], [False] * 3),
        ([{"promise": 0.1}, {"promise": 0.1, "gain": 0.05}, {"promise": 0.1}], [False] * 3),
        ([{"promise": 0.1, "gain": -1e-3}] * 3, [False] * 3),
    ],
)
def test_a_stage_ends_where_steps_promise_or_bring_little(truth, steps, settled):
    loop = refinement(truth[0], 2)
    assert [loop.ending.settled(Step(**{**SMALL, **step}), loop.stage) for step in steps] == settled


def test_a_hold_is_loosened_until_that_is_in_vain(truth):
    loop = refinement(truth[0], 2)
    cheap = loop.linearise()

    def held_back() -> bool:
        loop.state.proximity = 1e3
        return loop._held_back(cheap)

    assert held_back() and loop.state.proximity == UNHELD
    assert not loop._held_back(cheap)  # nothing holds it
    loop.ending.settled(Step(0.0, 0.1, 0.1), loop.stage)
    loop.ending.settled(Step(0.0, 0.1, 5e-4), loop.stage)  # long after it was let go
    assert held_back()
    loop.ending.settled(Step(0.0, 0.1, 5e-4), loop.stage)
    assert not held_back()
    loop._begin()
    assert held_back()


def test_second_derivatives_alone_may_hold_a_step(truth):
    loop = refinement(truth[0], 2)
    cheap = loop.linearise()
    loop.state.proximity = UNHELD
    assert not loop._held_back(cheap)  # nothing holds it
    loop.passing.second = loop.passing.second + torch.eye(2).double()
    loop._remember()
    assert loop._held_back(cheap) and not loop.passing.second.any()


def test_a_refinement_can_be_repeated(truth):
    first, second = (refinement(truth[0], 2).run() for _ in range(2))
    same_state(first, second, rel=0)
    assert torch.equal(first.calculated, second.calculated)


def test_a_scale_that_does_not_change_is_held_once_steps_have_settled(truth, refined):
    loop, result, _ = refined
    assert loop.state.scale_stiffness > 100 * SOFTEST
    assert result.summary["scale"]["stiffness"] == loop.state.scale_stiffness
    again = Refinement(truth[0], SETTINGS, state=State.from_dict(loop.state.to_dict()))
    assert again.model.scale.stiffness == loop.state.scale_stiffness
    assert refinement(truth[0], 1).run().summary["scale"]["stiffness"] == SOFTEST


def test_a_stiffness_that_is_given_stays(truth):
    given = dataclasses.replace(SETTINGS, scale_stiffness=3.0)
    result = Refinement(truth[0], given, RefineSettings(20)).run()
    assert result.converged and result.summary["scale"]["stiffness"] == 3.0


@pytest.fixture
def three_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("shared", "between"), [(0, 3), (refine_room.SHARED, 1)])
def test_cores_share_passes_and_only_large_problems_between(
    truth, monkeypatch, three_cores, shared, between
):
    used = {"solve": set(), "in_threads": set()}

    def watched(room, name):
        function = getattr(room, name)

        def call(*arguments):
            used[name].add(torch.get_num_threads())
            return function(*arguments)

        monkeypatch.setattr(room, name, call)

    watched(refine_room, "solve")
    watched(model_room, "in_threads")
    monkeypatch.setattr(refine_room, "SHARED", shared)
    refinement(truth[0], 1).run()
    assert used == {"solve": {between}, "in_threads": {3}}
    assert torch.get_num_threads() == 3


def test_the_seed_chooses_the_networks(truth):
    neural = dataclasses.replace(SETTINGS, thickness="neural")
    models = [build_model(truth[0], neural, seed) for seed in (0, 0, 1)]
    first, again, other = (m.thickness.networks[0][0].weight for m in models)
    assert torch.equal(first, again) and not torch.equal(first, other)


def continued(path, iterations) -> Refinement:
    """Return the loop that a file describes, with another limit."""
    values = load_records(path)
    return Refinement(
        values["problem"],
        ModelSettings.from_dict(values["model_settings"]),
        RefineSettings(**{**values["refine_settings"], "iterations": iterations}),
        state=State.from_dict(values["state"]),
    )


def test_a_saved_state_continues_the_same_way(truth, tmp_path, monkeypatch):
    # derivatives are not saved: both sides must make them anew in every iteration
    whole_plan = plan_room.Stage("joint", None, None, None, 1.0, stale=1)
    monkeypatch.setattr(refine_room, "make_plan", lambda *_: (whole_plan,))
    monkeypatch.setattr(refine_room, "CHANGED", 0.0)
    whole = refinement(truth[0], 4).run()
    part = refinement(truth[0], 2)
    part.run()
    part.save(tmp_path / "checkpoint.h5")
    again = continued(tmp_path / "checkpoint.h5", 4)
    assert again.state.iteration == 2 and again.state.proximity == part.state.proximity
    assert again.state.error_model == part.state.error_model
    result = again.run()
    same_state(whole, result)
    assert [row["iteration"] for row in result.history] == [0, 1, 2, 3, 4]
    assert torch.allclose(whole.start_calculated, result.start_calculated, rtol=1e-12)
    assert torch.allclose(whole.kinematic, result.kinematic, rtol=1e-12)
    assert result.summary["wall_time_s"] >= part.state.seconds


def test_a_continued_refinement_ends_where_an_unbroken_one_does(truth, refined, tmp_path):
    part = refinement(truth[0], 3)
    part.run()
    part.save(tmp_path / "checkpoint.h5")
    result = continued(tmp_path / "checkpoint.h5", 20).run()
    _, whole, _ = refined
    assert result.converged
    assert distances(truth[0], result.structure.site, whole.structure.site).max() < 5e-4


def test_a_checkpoint_is_written_while_the_loop_runs(truth, tmp_path):
    path = tmp_path / "checkpoint.h5"
    loop = refinement(truth[0], 1, checkpoint_seconds=0.0)
    loop.progress.checkpoint = str(path)
    loop.context = {"indexing": "h,k,l"}
    loop.run()
    values = load_records(path)
    assert values["state"]["iteration"] == 1 and values["context"] == {"indexing": "h,k,l"}
    assert isinstance(Problem.load(path), Problem)


def test_an_interrupt_before_anything_is_refined_goes_on(truth, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    loop = refinement(truth[0])
    monkeypatch.setattr(refine_room.uncertainty, "error_model_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.run()


@pytest.mark.parametrize("when", [0, 1, 3])
def test_an_interrupt_gives_the_result_so_far(truth, when):
    def interrupt(row):
        if row["iteration"] == when:
            raise KeyboardInterrupt

    result = refinement(truth[0], report=interrupt).run()
    assert "interrupted" in result.stop_reason and not result.converged
    assert result.summary["iterations"] == when
    reference = refinement(truth[0], when).run()
    same_state(reference, result)
    # the intensities are those of the structure that is returned
    assert torch.allclose(result.calculated, reference.calculated, rtol=1e-6)


def test_a_structure_all_fixed_leaves_thickness_and_orientation(truth):
    problem, _ = truth
    held = freedom.Constraints(fixed_site=frozenset({0, 1}), fixed_u=frozenset({0, 1}))
    structure = problem.structure
    fixed = structure.replace(freedom=freedom.basis(structure, held))
    settings = dataclasses.replace(SETTINGS, valence=ValenceSettings("none"))
    fixed = problem.replace(structure=fixed)
    result = Refinement(fixed, settings, RefineSettings(iterations=2)).run()
    assert torch.equal(result.structure.site, structure.site)
    assert result.summary["n_parameters_structure"] == 0
    assert result.summary["final"]["r1_obs"] < result.summary["start"]["r1_obs"]


def test_the_iteration_limit_is_a_stop_reason(truth):
    result = refinement(truth[0], 1).run()
    assert "iteration limit" in result.stop_reason and not result.converged


def test_free_reflections_do_not_steer(truth):
    """Nonsense in the free set changes no parameter."""
    problem, _ = truth
    o = problem.observations
    free = torch.zeros_like(o.free)
    free[::7] = True
    wrong = torch.where(free, 3 * o.intensity + 1, o.intensity)
    first, second = (
        refinement(problem.replace(observations=o.replace(intensity=i, free=free)), 2).run()
        for i in (o.intensity, wrong)
    )
    for name in ("site", "u_iso", "u_star"):
        a, b = getattr(first.structure, name), getattr(second.structure, name)
        assert torch.allclose(a, b, atol=1e-9), name
    assert first.summary["free"]["n"] == int(free.sum())
    assert first.summary["n_all"] == int((~free).sum())
    assert second.summary["free"]["r1_obs"] > first.summary["free"]["r1_obs"] + 0.1


def test_estimate_gives_time_and_memory(truth):
    seconds, held = refinement(truth[0]).estimate()
    assert 0 < seconds < 60 and held > 0


# --- validation -----------------------------------------------------------------------------


def test_kept_blocks_hold_whole_observations(truth):
    problem, _ = truth
    chosen = torch.zeros(16, dtype=torch.bool)
    chosen[[2, 3, 4, 9]] = True
    kept = validation.keep_blocks(problem, chosen)
    old, new = problem.observations, kept.observations
    assert torch.equal(kept.scan.setting, problem.scan.setting[chosen])
    blocks = torch.nonzero(chosen).flatten()
    # every link is one of the old problem, seen through the row and the block's number
    before = {}
    for i in range(len(old.link_block)):
        key = int(old.row[old.link_observation[i]])
        link = (int(old.link_block[i]), int(old.link_first[i]), int(old.link_last[i]))
        before.setdefault(key, set()).add(link)
    after = {}
    for i in range(len(new.link_block)):
        key = int(new.row[new.link_observation[i]])
        link = (int(blocks[new.link_block[i]]), int(new.link_first[i]), int(new.link_last[i]))
        after.setdefault(key, set()).add(link)
    allowed = set(blocks.tolist())
    whole = {k: v for k, v in before.items() if {block for block, *_ in v} <= allowed}
    assert after == whole and 0 < len(whole) < len(before)
    assert torch.equal(new.intensity, old.intensity[torch.isin(old.row, new.row)])


def test_kept_blocks_predict_the_same_intensities(truth):
    problem, _ = truth
    chosen = torch.arange(16) < 5
    kept = validation.keep_blocks(problem, chosen)
    whole, part = (build_model(p, SETTINGS, 0) for p in (problem, kept))
    rows = torch.isin(problem.observations.row, kept.observations.row)
    a = whole.intensities(whole.value_profiles())[rows]
    # a beam that only a lost observation asked for is missing
    assert torch.allclose(a, part.intensities(part.value_profiles()), rtol=0.05)


def test_blocks_without_a_whole_observation_leave_the_problem_alone(truth):
    problem, _ = truth
    assert validation.keep_blocks(problem, torch.zeros(16, dtype=torch.bool)) is problem


@pytest.mark.parametrize("blocks", [4, 8, 15, 16, 100])
def test_a_part_has_about_as_many_blocks(truth, blocks):
    part = validation.part_of(truth[0], blocks)
    assert len(part.scan.sweep) == min(blocks, 16)


def test_the_true_thickness_has_the_lowest_r1(truth):
    problem, sites = truth
    exact = problem.replace(structure=problem.structure.replace(site=sites))
    r1, thickness = validation.quick_r1(exact, SETTINGS)
    assert 60 <= thickness <= 180 and r1 < 0.2
    assert r1 < validation.quick_r1(problem, SETTINGS)[0]


def test_the_wrong_hand_agrees_less_well(truth):
    """Intensities of electrons tell P3221 from P3121."""
    problem, sites = truth
    s = problem.structure
    mirrored = s.replace(site=-sites, sym_trans=-s.sym_trans, site_projector=s.site_projector)
    right = problem.replace(structure=s.replace(site=sites))
    wrong = problem.replace(structure=mirrored)
    assert validation.quick_r1(wrong, SETTINGS)[0] > 1.1 * validation.quick_r1(right, SETTINGS)[0]


def test_files_of_earlier_versions_go_on(truth, tmp_path):
    """They tell of a limit of error models, which there is no more."""
    loop = refinement(truth[0], 1)
    loop.run()
    loop.save(tmp_path / "now.h5")
    records = load_records(tmp_path / "now.h5")
    records["refine_settings"]["error_model_updates"] = 5
    records["state"]["stage_began"] = 0
    save_records(tmp_path / "before.h5", **records)
    before, now = (Checkpoint.load(tmp_path / name) for name in ("before.h5", "now.h5"))
    assert before.settings == now.settings and before.state == now.state
