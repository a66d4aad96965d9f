"""Gradients of the data by every structure factor, against differences of a calculation."""

import pytest
import tiny
import torch

from dials_hybrid import fourier
from dials_hybrid.absorption import ELASTIC, Thermal
from dials_hybrid.batches import Portions
from dials_hybrid.data import Result
from dials_hybrid.model import HybridModel
from dials_hybrid.records import load_records, save_records


@pytest.fixture(scope="module")
def model():
    return HybridModel(tiny.problem(blocks=2), tiny.settings(thickness="single"))


def intensities(model, table, monkeypatch):
    monkeypatch.setattr(model, "potential_table", lambda: table)
    with torch.no_grad():
        return model.intensities(model.profiles())


@pytest.mark.parametrize("direction", [1.0, 1j])
def test_gradient_by_a_structure_factor_and_its_mate(model, monkeypatch, direction):
    """A change of F(g), and of F(-g) to its conjugate, against central differences."""
    table = model.potential_table().detach()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, len(model.problem.observations.intensity), generator=generator).double()
    found = model.potential_gradients(weight)
    hkl = model.matrix.couplings.hkl
    for row in (5, 40):
        mate = int(torch.nonzero((hkl == -hkl[row]).all(1)))
        step = torch.zeros_like(table)
        step[row], step[mate] = direction, complex(direction).conjugate()
        size = 1e-7
        up, down = (intensities(model, table + s * size * step, monkeypatch) for s in (1, -1))
        expected = weight @ (up - down) / (2 * size)
        slope = (found.conj() @ step).real
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("absorption", [ELASTIC, Thermal()])
def test_gradients_of_a_centrosymmetric_crystal_are_those_by_real_parts(absorption):
    """Half the work finds the same, if nothing is absorbed."""
    problem = tiny.problem(blocks=2, structure=tiny.inverted())
    model = HybridModel(problem, tiny.settings(thickness="single", absorption=absorption))
    assert model.matrix.real == (absorption is ELASTIC)
    weight = torch.linspace(-1, 1, len(problem.observations.intensity)).double()[None]
    found = model.potential_gradients(weight)
    model.matrix.real = False
    expected = model.potential_gradients(weight)
    if absorption is ELASTIC:
        assert expected.imag.abs().max() > 0.1 * expected.real.abs().max()
        expected = expected.real.to(expected)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_random_sums_tell_the_curvature():
    """Over many signs the mean square is the sum of squares; the residual is the first row."""
    share = torch.ones(fourier.SUMS, 6).double()
    residual, root = torch.linspace(-1, 1, 6).double(), torch.arange(6).double()
    weight = fourier.seeds(residual, root, share)
    assert weight.shape == (1 + fourier.SUMS, 6)
    assert torch.allclose(weight[0], residual * root)
    assert torch.allclose(weight[1:].abs(), root.expand(fourier.SUMS, -1))
    assert (weight[1:] < 0).any() and (weight[1:] > 0).any()


def test_observations_of_one_frame_count_in_the_sum_of_its_part():
    """They stand in no order; neighbouring frames are in a part, all of which are as large."""
    observation, n = torch.randperm(100, generator=torch.Generator().manual_seed(0)), 100
    block = torch.arange(n) // 2
    share = fourier.shares(Portions(torch.arange(n), observation, block))
    assert share.shape == (fourier.PARTS, n)
    assert torch.allclose(share.square().mean(0), torch.ones(n).double())
    part = share[:, observation].argmax(0)
    assert (part.diff() >= 0).all() and set(part.bincount().tolist()) == {4, 5}


def test_observations_of_several_frames_count_in_all_sums():
    portions = Portions(torch.arange(3), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert torch.equal(fourier.shares(portions), torch.ones(fourier.SUMS, 2).double())


def test_rows_without_weights_in_some_blocks_are_summed_as_others(model):
    """A gradient of all observations is the sum of those of its parts."""
    n = len(model.problem.observations.intensity)
    half = torch.arange(n) < n // 2
    weight = torch.stack([torch.ones(n), half, ~half, torch.zeros(n)]).double()
    whole, first, second, none = model.potential_gradients(weight)
    assert torch.allclose(first + second, whole)
    assert (none == 0).all() and first.abs().max() > 0


def test_structure_factors_reach_as_far_as_the_observations(model):
    weight = torch.ones(3, len(model.problem.observations.intensity)).double()
    found = fourier.fourier(model, model.potential_gradients(weight))
    assert found.gradient.shape == (3, len(found.hkl))
    measured = {tuple(h) for h in model.problem.observations.hkl.tolist()}
    kept = {tuple(h) for h in found.hkl.tolist()}
    assert measured <= kept and (0, 0, 0) not in kept
    assert kept == {(-h, -k, -m) for h, k, m in kept}
    assert torch.allclose(found.f_calc, model.crystal(found.hkl))


def test_terms_travel_and_old_results_lack_them(tmp_path, model):
    terms = fourier.fourier(model, torch.ones(3, len(model.matrix.couplings.hkl) + 1).cdouble())
    save_records(tmp_path / "a.h5", terms=terms)
    read = load_records(tmp_path / "a.h5")["terms"]
    assert torch.equal(read.gradient, terms.gradient) and torch.equal(read.hkl, terms.hkl)
    old = Result.__dataclass_fields__["fourier"]
    assert old.default is None
