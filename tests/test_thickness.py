"""Thickness distributions: what every model promises, and the priors."""

import dataclasses
import math

import pytest
import torch
from torch.func import functional_call

from dials_hybrid.thickness import MODELS, NeuralThickness, ThicknessPrior, angle_features

DEPTH = 20.0 * torch.arange(1, 41, dtype=torch.float64)
SWEEP = torch.tensor([0] * 6 + [1] * 5)
ANGLE = torch.cat([torch.linspace(-0.3, 0.3, 6), torch.linspace(0, 0.2, 5)]).double()
START = 300.0

every_model = pytest.mark.parametrize("name", MODELS)
free_models = pytest.mark.parametrize("name", [n for n in MODELS if n != "single"])


def only(**strengths) -> ThicknessPrior:
    """Return a prior of which only the named strengths are not zero."""
    zero = {f.name: 0.0 for f in dataclasses.fields(ThicknessPrior)}
    return ThicknessPrior(**zero | strengths)


def build(name, prior=None, seed=0):
    torch.manual_seed(seed)
    return MODELS[name](DEPTH, ANGLE, SWEEP, START, prior or ThicknessPrior())


def disturb(model, size=0.3, seed=5):
    """Move every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=generator).double()
    return model


def cost(model) -> float:
    return 0.5 * float(model.prior_residuals().detach().square().sum())


# --- conformance ----------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("moved", [False, True])
def test_rows_are_distributions(name, moved):
    model = build(name)
    p = (disturb(model) if moved else model)()
    assert p.shape == (len(ANGLE), len(DEPTH)) and p.dtype == torch.float64
    assert (p >= 0).all() and torch.allclose(p.sum(1), torch.ones(len(ANGLE)).double())


@every_model
def test_the_start_has_the_thickness_asked_for(name):
    p = build(name)().detach()
    assert torch.allclose(p, p[:1].expand_as(p), atol=1e-12)
    assert float(p[0] @ DEPTH) == pytest.approx(START, abs=15)
    assert float(DEPTH[p[0].argmax()]) == START


@every_model
def test_the_fine_distribution_is_the_same_curve(name):
    """On four times as many depths p(t) has the same shape, a quarter of the weight on each."""
    model = disturb(build(name), 0.05)
    depth, fine = model.fine()
    coarse = model().detach()
    assert depth[0] == DEPTH[0] and depth[-1] == DEPTH[-1]
    assert torch.allclose(depth[::4], DEPTH) and fine.shape == (len(ANGLE), len(depth))
    assert torch.allclose(fine.sum(1), torch.ones(len(ANGLE)).double())
    shared = fine[:, ::4] / fine[:, ::4].sum(1, keepdim=True)
    assert torch.allclose(shared, coarse, atol=1e-12)
    assert torch.allclose(fine @ depth, coarse @ DEPTH, atol=2.0)


@every_model
def test_the_same_seed_gives_the_same_model(name):
    first, second = (dict(build(name, seed=3).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


@every_model
@pytest.mark.parametrize("moved", [False, True])
def test_prior_residuals_are_finite(name, moved):
    model = build(name)
    residuals = (disturb(model, 3.0) if moved else model).prior_residuals()
    assert residuals.ndim == 1 and residuals.isfinite().all()


@every_model
def test_parameters_are_in_double_precision(name):
    model = build(name)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert model.prior_residuals().dtype == torch.float64


@every_model
@pytest.mark.parametrize("moved", [False, True])
def test_gradients_are_finite(name, moved):
    model = build(name)
    if moved:
        disturb(model)
    loss = (model() * torch.linspace(0, 1, len(DEPTH)).square()).sum()
    (loss + model.prior_residuals().square().sum()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)


@every_model
def test_gradients_agree_with_finite_differences(name):
    model = disturb(build(name), 0.1)
    names = [k for k, _ in model.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    weights = torch.linspace(-1, 1, len(DEPTH)).double().square()

    def both(*given):
        wrapped = functional_call(model, dict(zip(names, given, strict=True)), ())
        return wrapped @ weights

    assert torch.autograd.gradcheck(both, values, fast_mode=True)


@every_model
def test_one_block_and_one_sweep_are_enough(name):
    torch.manual_seed(0)
    model = MODELS[name](DEPTH, ANGLE[:1], SWEEP[:1], START, ThicknessPrior())
    assert model().shape == (1, len(DEPTH)) and model().isfinite().all()
    assert model.prior_residuals().isfinite().all()


# --- priors ---------------------------------------------------------------------------------


@free_models
def test_a_bell_is_free_of_the_smoothness_penalty(name):
    assert cost(build(name, only(smoothness=1.0))) < 1e-15
    assert cost(build(name, only(dip=1.0))) < 1e-15
    assert cost(disturb(build(name, only(smoothness=1.0)))) > 1e-2


@free_models
def test_blocks_that_are_alike_are_free_of_the_angle_penalty(name):
    assert cost(build(name, only(angle=1.0))) == 0


def shaped(prior, log_p):
    """Return a model of one common distribution with log p near the values given, (D,)."""
    model = build("distribution", prior)
    with torch.no_grad():
        wanted = (log_p - model.start(DEPTH))[:, None]
        model.shape.copy_(torch.linalg.lstsq(model.basis, wanted).solution[:, 0])
    return model


def bell(middle, width):
    return -0.5 * ((DEPTH - middle) / width) ** 2


BELL = bell(400.0, 150.0)


def mixed(*log_p):
    return torch.logsumexp(torch.stack(log_p), 0)


def test_a_spike_costs_more_than_a_bell():
    spike = mixed(BELL, bell(60.0, 15.0) + 2)
    for prior in (ThicknessPrior(), only(smoothness=1.0)):
        assert cost(shaped(prior, spike)) > cost(shaped(prior, BELL)) + 1


def test_a_sharp_distribution_costs_information():
    assert cost(shaped(only(entropy=1.0), bell(400.0, 40.0))) > 1 + cost(
        shaped(only(entropy=1.0), BELL)
    )


def test_information_is_relative_to_a_flat_distribution():
    flat = torch.zeros_like(DEPTH)
    assert cost(shaped(only(entropy=1.0), flat)) == pytest.approx(0, abs=1e-6)
    two = torch.where(DEPTH <= 400, 0.0, -40.0)  # half of all depths: log 2
    model = build("distribution", only(entropy=1.0))
    p = torch.softmax(two, 0)
    information = math.log(len(DEPTH)) + float((p * p.log()).sum())
    assert information == pytest.approx(math.log(2), rel=1e-6)
    model.log_shape = lambda outputs: torch.log_softmax(two, 0).expand(len(ANGLE), -1)
    assert cost(model) == pytest.approx(math.log(2), rel=1e-6)


def test_thin_crystal_costs():
    thin, thick = (cost(shaped(only(ends=1.0), bell(t, 50.0))) for t in (80.0, 500.0))
    assert thin > 20 * thick


def test_a_valley_costs():
    valley = mixed(bell(200.0, 60.0), bell(600.0, 60.0))
    assert cost(shaped(only(dip=1.0), valley)) > 0.1 + cost(shaped(only(dip=1.0), BELL))


def test_change_with_angle_costs_within_a_sweep_only():
    model = build("neural", only(angle=1.0))

    def price(blocks):
        log_p = torch.stack([bell(300.0 + 200 * b, 100.0) for b in blocks])
        model.log_shape = lambda outputs: torch.log_softmax(log_p, 1)
        return cost(model)

    assert price(SWEEP.tolist()) == 0
    assert price([0] * 3 + [1] * 8) > 0
    assert price([0] * 3 + [2] * 8) > price([0] * 3 + [1] * 8)


def test_a_stretch_stretches_p():
    model = build("neural")
    depth, before = model.fine()
    outputs = model.outputs()
    model.outputs = lambda: outputs + math.log(1.25) * (torch.arange(24) == 23)
    _, after = model.fine()
    expected = torch.exp(-0.5 * ((depth - 1.25 * START) / (1.25 * 0.35 * START)) ** 2)
    assert torch.allclose(after[0], expected / expected.sum(), atol=1e-12)
    assert not torch.allclose(after, before, atol=1e-4)


def test_a_stretch_that_changes_costs_stretch_alone():
    def price(prior):
        model = build("neural", prior)
        log_s = torch.where(SWEEP == 0, 5 * ANGLE, 0.0)
        model.outputs = lambda: log_s[:, None] * (torch.arange(24) == 23)
        return cost(model)

    assert price(only(angle=1.0, smoothness=1.0, dip=1.0)) < 1e-20
    # 34 degrees in five steps, log s growing by 5 per rad: 1/2 sum of change^2 / (rotation / 10)
    change = 5 * 0.6 / 5
    assert price(only(stretch=1.0)) == pytest.approx(
        0.5 * 5 * change**2 / (math.degrees(0.12) / 10), rel=1e-6
    )


def test_priors_grow_with_their_strength():
    for f in dataclasses.fields(ThicknessPrior):
        weak, strong = (
            cost(disturb(build("neural", only(**{f.name: s})), 1.0)) for s in (1.0, 4.0)
        )
        assert strong == pytest.approx(4 * weak, rel=1e-9) and weak > 0, f.name


# --- features -------------------------------------------------------------------------------


def test_features_span_each_sweep():
    x = angle_features(ANGLE, SWEEP)
    for sweep in (0, 1):
        mine = x[sweep == SWEEP]
        assert float(mine.min()) == pytest.approx(-1) and float(mine.max()) == pytest.approx(1)


def test_each_sweep_has_its_own_network():
    model = build("neural")
    assert isinstance(model, NeuralThickness) and len(model.networks) == 2
    before = model().detach()
    with torch.no_grad():
        model.networks[1][-1].bias.add_(torch.linspace(0, 1, model.basis.shape[1] + 1))
    change = (model().detach() - before).abs().amax(1)
    assert (change[SWEEP == 0] == 0).all() and (change[SWEEP == 1] > 1e-4).all()


def test_the_network_can_change_with_the_angle():
    p = disturb(build("neural"))()
    assert (p[0] - p[5]).abs().max() > 1e-4
