"""Which beams matter: the estimate against solved waves, and what leaving beams out changes."""

import dataclasses

import pytest
import tiny
import torch

from dials_hybrid import beams
from dials_hybrid.depth_step import every_intensity
from dials_hybrid.model import HybridModel, relevance_of
from dials_hybrid.propagation import DepthGrid, Eigen
from dials_hybrid.relevance import Relevance

SETTINGS = tiny.settings(g_max=1.6, s_max=0.04, thickness_start=600.0, depth=DepthGrid(20.0, 30))


@pytest.fixture(scope="module")
def problem():
    return tiny.problem(blocks=6, width=2.0, samples=16)


@pytest.fixture(scope="module")
def whole(problem):
    return HybridModel(problem, SETTINGS)


def two_beams(coupling: float, error: float, thickness: float = 1e6) -> float:
    """Return the estimated share of the second of two beams, coupling and error in A^-1."""
    structure = tiny.quartz()
    second = torch.tensor([[1, 0, 0]])

    def strength(hkl):
        return coupling * (hkl == second).all(1).double()

    found = Relevance(structure, strength, 0.5, thickness, 1e-3)
    return float(found.shares(second, tiny.f64([[error]]))[0])


def test_one_beam_takes_what_its_coupling_and_error_say():
    assert two_beams(1e-3, 0.0) == pytest.approx(1)
    assert two_beams(1e-3, 0.02) == pytest.approx(1 / 401)
    assert two_beams(0.0, 0.0) == 0 and two_beams(0.0, 0.01) == 0


def test_forbidden_beams_are_reached_by_way_of_others(whole, problem):
    """000l, l not 3n, of quartz has no structure factor, but is excited by multiple scattering."""
    none = dataclasses.replace(SETTINGS, left_out=0.0)
    kept = relevance_of(problem, none, whole.crystal)
    hkl = torch.tensor([[0, 0, 1], [1, 0, 0], [-1, 0, 1]])
    on_sphere = torch.zeros(1, 3).double()
    assert float(kept._strength(hkl)[0]) < 1e-12
    assert float(kept.shares(hkl, on_sphere)[0]) > 0.1


def test_the_estimate_finds_the_beams_that_have_the_current(whole, problem):
    """Of the exact waves, averaged over depths and samples, of one block."""
    batch = whole.batches[0]
    potential = whole.matrix(batch, whole.potential_table()).detach()
    excitation = whole.excitation(batch, whole.orientation()).detach()
    exact = every_intensity(Eigen(), potential, excitation, SETTINGS.depth).mean((2, 3))[0, 1:]
    kept = relevance_of(problem, dataclasses.replace(SETTINGS, left_out=1e-3), whole.crystal)
    count = int(whole.beams.counts[batch.blocks[0]])
    hkl, s = batch.hkl[0, 1:count], excitation[0, 1:count].T.double()
    found, exact = kept.shares(hkl, s), exact[: count - 1]
    ratio = (found / exact).log()
    assert float(ratio.median().abs()) < 1.2  # a factor of three
    assert float(torch.corrcoef(torch.stack([found.log(), exact.log()]))[0, 1]) > 0.9
    left = ~kept(hkl, s)
    assert 0.2 < float(left.double().mean()) < 0.9
    assert float(exact[left].sum()) < 5e-3


def change(whole, problem, **choices) -> tuple[float, float]:
    """Return R between amplitudes with some of the beams and with all, and the part of beams."""
    some = HybridModel(problem, dataclasses.replace(SETTINGS, **choices))
    with torch.no_grad():
        few, all_ = (m.intensities(m.value_profiles()).sqrt() for m in (some, whole))
    part = float(some.beams.counts.sum() / whole.beams.counts.sum())
    return float((few - all_).abs().sum() / all_.sum()), part


def test_leaving_out_by_current_is_better_than_by_excitation_error(whole, problem):
    r, part = change(whole, problem, left_out=1e-4)
    r_cut, part_cut = change(whole, problem, s_max=0.02)
    assert part < part_cut < 0.7 and r < 0.6 * r_cut
    assert change(whole, problem, left_out=3e-5)[0] < r < change(whole, problem, left_out=1e-3)[0]


def test_measured_reflections_are_beams_whatever_they_matter(problem):
    model = HybridModel(problem, dataclasses.replace(SETTINGS, left_out=0.1))
    o = problem.observations
    own = model.beams.hkl[o.link_block, model.beams.link_beam]
    assert torch.equal(own, o.hkl[o.link_observation])


def test_without_a_share_to_lose_all_beams_are_kept(problem, whole):
    assert relevance_of(problem, SETTINGS, whole.crystal) is None
    hkl, vacuum = beams.lattice_points(problem.structure, 1.6), problem.scan.s0.norm(dim=-1)
    near, s = beams.near_sphere(hkl, problem.scan, 0, vacuum, 0.04)
    none = relevance_of(problem, dataclasses.replace(SETTINGS, left_out=0.0), whole.crystal)
    assert bool(none(near, s).all())
