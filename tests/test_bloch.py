"""Derivatives from the Bloch waves that carry the current, against those of waves carried along."""

import pytest
import test_propagation as cases
import tiny
import torch

from dials_hybrid.absorption import Proportional, Thermal
from dials_hybrid.fidelity import Fidelity
from dials_hybrid.model import HybridModel
from dials_hybrid.propagation import Bloch, Chebyshev, DepthGrid, Moves, Probe, bloch

GRID = DepthGrid(50.0, 8)
WHOLE = Bloch(Chebyshev(), left_out=-1.0)


class Dense:
    """Changes dV (P, N, N) that are there as matrices."""

    def __init__(self, moved):
        self.moved, self.directions = moved, len(moved)

    def __call__(self, waves):
        dtype = torch.promote_types(self.moved.dtype, waves.dtype)
        return (self.moved.to(dtype) @ waves.to(dtype)).transpose(0, 1)


def slopes_of(method, v, s, moved, probe):
    """Profiles and slopes along changes (P, F, N, N) of all blocks."""
    actions = [Dense(moved[:, f]) for f in range(len(v))]
    return method.slopes(v, s, actions, probe, GRID)


def expected_of(v, s, moved, probe):
    none = s.new_zeros(0, *s.shape)
    return Chebyshev().tangents(v, s, Moves(moved, none), probe, GRID)


def error(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
@pytest.mark.parametrize("crystal", cases.CRYSTALS)
@pytest.mark.parametrize(("n", "f"), [(2, 1), (9, 3), (60, 2)])
def test_all_waves_give_what_other_methods_do(crystal, n, f, dtype):
    v, s, probe = crystal(n, f, size=1e-3), cases.excitations(n, f), cases.probe_all(n, f)
    moved = torch.stack([crystal(n, f, size=1e-3, seed=k) for k in range(5, 25)])
    expected = expected_of(v, s, moved, probe)
    given = v.to(dtype), s.to(dtype.to_real()), moved.to(dtype)
    found = slopes_of(WHOLE, *given, probe)
    tolerance = 1e-9 if dtype == torch.complex128 else 1e-4
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == dtype.to_real()
        assert error(a, b) < tolerance


@pytest.mark.parametrize("reach", [1, 3])
def test_degenerate_waves(reach):
    """Of a symmetric zone axis, whose Bloch waves have eigenvalues in common."""
    v, s, _ = cases.cubic_zone_axis(reach)
    n = len(v[0])
    moved, probe = cases.hermitian(n, seed=3)[None], cases.probe_all(n, 1, 1)
    found, expected = (
        f(v, s, moved, probe) for f in (lambda *x: slopes_of(WHOLE, *x), expected_of)
    )
    assert error(found[1], expected[1]) < 1e-9


def test_few_waves_are_enough():
    """As errors of the derivatives go with the current that is left out, not with its root."""
    n, f = 60, 2
    v, s, probe = cases.hermitian(n, f), cases.excitations(n, f), cases.probe_all(n, f)
    moved = torch.stack([cases.hermitian(n, f, seed=k) for k in (5, 6, 7)])
    expected = expected_of(v, s, moved, probe)
    errors = []
    for left_out in (3e-2, bloch.LEFT_OUT, 1e-3):
        profiles, slopes = slopes_of(Bloch(Chebyshev(), left_out), v, s, moved, probe)
        assert torch.allclose(profiles, expected[0], atol=1e-12)  # these are of all waves
        errors.append(error(slopes, expected[1]))
    assert errors[0] > errors[1] > errors[2] > 1e-6
    assert errors[1] < 0.06


@pytest.mark.parametrize("crystal", cases.CRYSTALS)
def test_what_is_absorbed_on_average_fades(crystal):
    n = 9
    v, s, probe = crystal(n), cases.excitations(n), cases.probe_all(n)
    lossy = v + 0.02j * v + 2e-5j * torch.eye(n)
    moved = (1 + 0.02j) * crystal(n, seed=5)[None]
    found, expected = slopes_of(WHOLE, lossy, s, moved, probe), expected_of(lossy, s, moved, probe)
    elastic = slopes_of(WHOLE, v, s, moved, probe)
    for a, b, without in zip(found, expected, elastic, strict=True):
        assert error(a, b) < 0.03
        assert error(a, b) < 0.4 * error(without, b)


def test_groups_of_samples_change_nothing(monkeypatch):
    n, f = 12, 2
    v, s = cases.hermitian(n, f, size=1e-3), cases.excitations(n, f, 5)
    probe, moved = cases.probe_all(n, f, 5), cases.hermitian(n, f, seed=5)[None]
    together = slopes_of(Bloch(Chebyshev()), v, s, moved, probe)
    monkeypatch.setattr(bloch, "_NUMBERS", 1)
    one_by_one = slopes_of(Bloch(Chebyshev()), v, s, moved, probe)
    for a, b in zip(together, one_by_one, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-15)


def test_slots_pick_and_weight_beams():
    n = 6
    v, s, moved = cases.hermitian(n, size=1e-3), cases.excitations(n), cases.hermitian(n, seed=5)
    beam, weight = torch.tensor([[3, 1, 3]]), torch.rand(1, 3, 3).double()
    found = slopes_of(WHOLE, v, s, moved[None], Probe(torch.tensor([0]), beam, weight))
    expected = expected_of(v, s, moved[None], Probe(torch.tensor([0]), beam, weight))
    assert error(found[1], expected[1]) < 1e-9


# --- in the model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return tiny.problem()


def fidelity(model, far: bool) -> Fidelity:
    s = model.settings
    return Fidelity(s.g_max, s.s_max, s.left_out, propagator=Bloch(s.propagator, far=far))


@pytest.mark.parametrize("absorption", [None, Proportional(0.05), Thermal()])
@pytest.mark.parametrize("far", [True, False])
def test_changes_act_as_their_matrices_do(problem, absorption, far):
    chosen = {} if absorption is None else {"absorption": absorption}
    model = HybridModel(problem, tiny.settings(perturbation=0.1 if far else None, **chosen))
    assert (model.matrix.far > 0) == far
    table, moved = model.potential_table().detach(), model.potential_moves()
    for batch in model.batches:
        matrices = model.matrix.moved(batch, table, moved)  # (P, f, N, N)
        actions = model.matrix.actions(batch, table, moved, far)
        waves = torch.randn(matrices.shape[2], 4, dtype=matrices.dtype)
        for f, act in enumerate(actions):
            expected = (matrices[:, f] @ waves).transpose(0, 1)
            assert torch.allclose(act(waves), expected, rtol=1e-9, atol=1e-15)


def test_near_beams_alone(problem):
    model = HybridModel(problem, tiny.settings(perturbation=0.1))
    table, moved = model.potential_table().detach(), model.potential_moves()
    waves = torch.eye(model.batches[0].hkl.shape[1], dtype=torch.complex128)
    (near, *_), (far, *_) = (
        model.matrix.actions(model.batches[0], table, moved, with_far) for with_far in (False, True)
    )
    assert 1e-6 < error(near(waves), far(waves)) < 0.2


@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize("absorption", [None, Thermal()])
def test_derivatives_of_the_model(problem, absorption, far):
    chosen = {} if absorption is None else {"absorption": absorption}
    model = HybridModel(problem, tiny.settings(perturbation=0.1, **chosen))
    found = model.tangents(fidelity=fidelity(model, far))
    for a, b in zip(found, model.tangents(), strict=True):
        assert a.shape == b.shape
        assert error(a, b) < 0.05
    alone = model.tangents(turns=False, fidelity=fidelity(model, far))
    assert torch.equal(alone[1], found[1]) and alone[2].shape[1] == 0
