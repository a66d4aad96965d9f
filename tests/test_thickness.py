"""Thickness distributions: what every model promises, and the priors."""

import dataclasses
import math

import pytest
import tiny
import torch
from torch.func import functional_call

from dials_hybrid import beams, thickness
from dials_hybrid.calls import call
from dials_hybrid.thickness import HEADS, MODELS, ThicknessPrior, Views, angle_features

DEPTH = 20.0 * torch.arange(1, 41, dtype=torch.float64)
SWEEP = torch.tensor([0] * 6 + [1] * 5)
ANGLE = torch.cat([torch.linspace(-0.3, 0.3, 6), torch.linspace(0, 0.2, 5)]).double()
START = 300.0
# the names of all models, of the neural one with each head: "neural mixture"
NAMES = [n for n in MODELS if n != "neural"] + [f"neural {head}" for head in HEADS]
FREE = ("distribution", "neural free")
CHANGING = ("neural mean", "neural gaussian", "neural mixture", "neural free", "frames")
SHAPES = ("plate", "wedge", "lens", "ellipsoid", "cylinder")

every_model = pytest.mark.parametrize("name", NAMES)
free_models = pytest.mark.parametrize("name", FREE)


def only(**strengths) -> ThicknessPrior:
    """Return a prior of which only the named strengths are not zero."""
    zero = {f.name: 0.0 for f in dataclasses.fields(ThicknessPrior)}
    return ThicknessPrior(**zero | strengths)


def looking(angle=ANGLE, sweep=SWEEP) -> Views:
    """Return views of a crystal that turns about its z axis, the beam along x at angle zero."""
    zero = torch.zeros_like(angle)
    beam, axis = (
        torch.stack([angle.cos(), angle.sin(), zero], 1),
        torch.stack([zero, zero, zero + 1]),
    )
    return Views(angle, sweep, beam, axis.T, *angle_features(angle, sweep))


def build(name, prior=None, seed=0, views=None):
    torch.manual_seed(seed)
    model, _, head = name.partition(" ")
    views, prior = views or looking(), prior or ThicknessPrior()
    return thickness.build(model, DEPTH, views, START, prior, head or "free")


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
    assert float((p @ DEPTH).mean()) == pytest.approx(START, abs=15)
    if name in SHAPES:
        return  # theirs changes with the tilt, and is no bell
    assert torch.allclose(p, p[:1].expand_as(p), atol=1e-12)
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
    # a lens has its share of the thinnest crystal, where the two grids begin half a step apart
    assert torch.allclose(fine @ depth, coarse @ DEPTH, atol=5.0 if name == "lens" else 2.0)


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
    model = build(name, views=looking(ANGLE[:1], SWEEP[:1]))
    assert model().shape == (1, len(DEPTH)) and model().isfinite().all()
    assert model.prior_residuals().isfinite().all()


@every_model
def test_a_block_depends_on_its_own_outputs_alone(name):
    """The refinement differentiates p(t) of all blocks at once, by one output of each."""
    model = disturb(build(name), 0.1)
    outputs = model.outputs().detach()
    before = model.distribution(outputs, DEPTH)
    outputs[3] += 0.1
    change = (model.distribution(outputs, DEPTH) - before).abs().amax(1)
    assert change[3] > 1e-4 and (change[torch.arange(len(ANGLE)) != 3] == 0).all()


@every_model
def test_slopes_of_outputs_and_priors_agree_with_finite_differences(name):
    model = disturb(build(name), 0.1)
    given = (model.outputs().detach().requires_grad_(),)
    weights = torch.linspace(-1, 1, len(DEPTH)).double().square()
    assert torch.autograd.gradcheck(
        lambda x: model.distribution(x, DEPTH) @ weights, given, fast_mode=True
    )
    assert torch.autograd.gradcheck(model.penalties, given, fast_mode=True)


@every_model
def test_slopes_are_those_of_torch(name):
    """Models may have ways of their own."""
    model, fine = disturb(build(name), 0.1), torch.linspace(100, 900, 50).double()
    names, given = zip(*model.named_parameters(), strict=True)
    sizes = [p.numel() for p in given]

    def outputs(flat):
        parts = zip(flat.split(sizes), given, strict=True)
        values = dict(zip(names, (v.view_as(p) for v, p in parts), strict=True))
        return call(lambda module: module.outputs(), model, values)

    flat = torch.cat([p.detach().flatten() for p in given])
    expected = torch.func.jacfwd(outputs)(flat)
    assert torch.allclose(model.output_slopes(), expected, rtol=1e-10, atol=1e-12)
    out = model.outputs().detach()
    for depth in (DEPTH, fine):
        slopes = thickness.slopes_of_blocks(lambda x, z=depth: model.distribution(x, z), out)
        assert slopes.abs().max() > 1e-4
        found = model.distribution_slopes(out, depth)
        assert torch.allclose(found, slopes, rtol=1e-10, atol=1e-12)
    move = torch.linspace(-1, 1, out.numel()).double().view_as(out)[..., None]
    by_move = torch.func.jvp(model.penalties, (out,), (move[..., 0],))[1]
    found = model.penalty_slopes(out, move)[:, 0]
    assert torch.allclose(found, by_move, rtol=1e-10, atol=1e-12)
    square = model.penalty_matrix(out, move)
    assert torch.allclose(square, (by_move @ by_move).view(1, 1), rtol=1e-10, atol=1e-12)


@every_model
def test_far_from_the_grid_all_stays_finite(name):
    """A trial step may go anywhere; it must be worse, not undefined."""
    model = build(name)
    for size in (-8.0, 8.0):
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(size)
        assert model().isfinite().all() and model.prior_residuals().isfinite().all()


@every_model
def test_a_narrow_model_says_so(name):
    p = build(name)().detach()
    mean = p @ DEPTH
    width = (p @ DEPTH**2 - mean**2).sqrt()
    head = name.partition(" ")[2] or "free"
    assert thickness.is_narrow(name.split()[0], head) == bool((width < 25).all())


# --- shapes ---------------------------------------------------------------------------------

SHARES = torch.linspace(0.1, 0.9, 9).double()


def one_view(angle=0.0) -> Views:
    """Return the start of a scan whose middle looks along x, and the angle of its first block."""
    return looking(torch.tensor([angle, 0.0, -angle]).double(), torch.zeros(3).long())


def quantiles(model, block=0):
    """Return the thicknesses (A) below which the shares of p(t) of a block lie."""
    depth, p = model.fine()
    below = torch.cumsum(p[block].detach(), 0) - p[block].detach() / 2
    return depth[torch.searchsorted(below, SHARES)]


# with x the share, from p(t) of the docstring of each form, T from the mean START
QUANTILES = {
    "wedge": START * (1 + 0.6 * (2 * SHARES - 1)),
    "lens": 20 + (2 * START - 20) * SHARES,  # the grid begins at 20 A
    "ellipsoid": 1.5 * START * SHARES.sqrt(),
    "cylinder": 4 / math.pi * START * (1 - (1 - SHARES) ** 2).sqrt(),
}


@pytest.mark.parametrize("name", QUANTILES)
def test_a_shape_has_the_thicknesses_of_its_formula(name):
    """But for the blur of one grid step, 20 A, which acts most at edges and poles."""
    found = quantiles(build(name, views=one_view()))
    inner = slice(2, 7)
    assert torch.allclose(found[inner], QUANTILES[name][inner], atol=12)


@pytest.mark.parametrize("name", ["plate", "wedge", "lens"])
def test_a_tilted_plate_is_thicker_by_one_over_the_cosine(name):
    model = build(name, views=one_view(math.radians(45)))
    straight, tilted = (float(model.fine()[1][i].detach() @ model.fine()[0]) for i in (1, 0))
    # paths end where the crystal does: not quite sqrt 2
    stretch = math.sqrt((1 + 0.01) / (0.5 + 0.01))
    assert tilted / straight == pytest.approx(stretch, rel=0.03)


def test_the_normal_can_be_tilted_away_from_the_middle_of_the_scan():
    model = build("plate", views=one_view(math.radians(30)))
    with torch.no_grad():
        model.values[0, 2] = math.tan(math.radians(30))
    p = model().detach()
    mean = p @ DEPTH
    thinner, thicker = sorted([float(mean[0]), float(mean[2])])
    assert thinner < float(mean[1]) < thicker
    # along the normal, and 60 degrees from it
    assert thicker / thinner == pytest.approx(math.sqrt(1.01 / 0.26), rel=0.02)


def test_a_round_body_seen_from_the_side_is_as_wide_as_it_is():
    quarter = one_view(math.radians(90))
    model = build("ellipsoid", views=quarter)
    assert torch.allclose(quantiles(model, 0)[2:6], 2 * quantiles(model, 1)[2:6], rtol=0.05)


def test_a_needle_about_the_rotation_axis_is_the_same_from_all_sides():
    model = build("cylinder", views=one_view(math.radians(60)))
    before = model().detach()
    assert (before[0] - before[1]).abs().max() > 1e-2
    with torch.no_grad():
        model.values[0, 1] = -math.pi / 4
    after = model().detach()
    assert torch.allclose(after[0], after[1], atol=1e-12)


def test_every_sweep_has_a_crystal_of_its_own():
    model = build("lens")
    before = model().detach()
    with torch.no_grad():
        model.values[1, 0] = 0.2
    change = (model().detach() - before).abs().amax(1)
    assert (change[SWEEP == 0] == 0).all() and (change[SWEEP == 1] > 1e-4).all()


# --- heads ----------------------------------------------------------------------------------


def test_a_gaussian_has_the_mean_and_width_of_its_outputs():
    model = build("neural gaussian")
    outputs = torch.tensor([[math.log(0.8), math.log(1.2)]]).double().repeat(len(ANGLE), 1)
    depth = model.fine_depth()
    p = model.distribution(outputs, depth).detach()[0]
    expected = torch.exp(-0.5 * ((depth - 1.2 * START) / (1.2 * 0.8 * 0.35 * START)) ** 2)
    assert torch.allclose(p, expected / expected.sum(), atol=1e-12)


def test_a_mixture_can_have_two_peaks():
    model = build("neural mixture")
    outputs = torch.zeros(len(ANGLE), 10).double()
    outputs[:, :3] = torch.tensor([0.7, 1.0, 1.3]).log()  # apart
    outputs[:, 3:6] = -1.0  # narrow
    outputs[:, 7] = -9.0  # without the middle one
    p = model.distribution(outputs, DEPTH)[0]
    peaks = (p[1:-1] > p[:-2]) & (p[1:-1] > p[2:]) & (p[1:-1] > 1e-3)
    assert int(peaks.sum()) == 2
    assert float(p @ DEPTH) == pytest.approx(START, rel=0.2)


@pytest.mark.parametrize("name", CHANGING)
def test_change_over_the_rotation_costs(name):
    """Within a sweep, not from the first to the second, which begins with block 6."""
    model = build(name, only(stretch=1.0))
    outputs = model.outputs().detach()

    def price(first):
        moved = outputs.clone()
        moved[first:, -1] += 0.3
        moved[:, -1] -= moved[:, -1].mean()
        return 0.5 * float(model.penalties(moved).square().sum())

    # 34 degrees in five steps
    assert price(3) == pytest.approx(0.5 * 0.3**2 / (math.degrees(0.12) / 10))
    assert price(6) == pytest.approx(0, abs=1e-12)


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
        wanted = (log_p - model.head.start(DEPTH))[:, None]
        model.shape.copy_(torch.linalg.lstsq(model.head.basis, wanted).solution[:, 0])
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
    model.head.log_shape = lambda outputs: torch.log_softmax(two, 0).expand(len(ANGLE), -1)
    assert cost(model) == pytest.approx(math.log(2), rel=1e-6)


def test_thin_crystal_costs():
    thin, thick = (cost(shaped(only(ends=1.0), bell(t, 50.0))) for t in (80.0, 500.0))
    assert thin > 20 * thick


def test_a_valley_costs():
    valley = mixed(bell(200.0, 60.0), bell(600.0, 60.0))
    assert cost(shaped(only(dip=1.0), valley)) > 0.1 + cost(shaped(only(dip=1.0), BELL))


def test_change_with_angle_costs_within_a_sweep_only():
    model = build("neural free", only(angle=1.0))

    def price(blocks):
        log_p = torch.stack([bell(300.0 + 200 * b, 100.0) for b in blocks])
        model.head.log_shape = lambda outputs: torch.log_softmax(log_p, 1)
        return cost(model)

    assert price(SWEEP.tolist()) == 0
    assert price([0] * 3 + [1] * 8) > 0
    assert price([0] * 3 + [2] * 8) > price([0] * 3 + [1] * 8)


def test_a_stretch_stretches_p():
    model = build("neural free")
    depth, before = model.fine()
    outputs = model.outputs()
    model.outputs = lambda: outputs + math.log(1.25) * (torch.arange(24) == 23)
    _, after = model.fine()
    expected = torch.exp(-0.5 * ((depth - 1.25 * START) / (1.25 * 0.35 * START)) ** 2)
    assert torch.allclose(after[0], expected / expected.sum(), atol=1e-12)
    assert not torch.allclose(after, before, atol=1e-4)


def test_a_stretch_that_changes_costs_stretch_alone():
    def price(prior):
        model = build("neural free", prior)
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
            cost(disturb(build("neural free", only(**{f.name: s})), 1.0)) for s in (1.0, 4.0)
        )
        assert strong == pytest.approx(4 * weak, rel=1e-9) and weak > 0, f.name


# --- features -------------------------------------------------------------------------------


def test_features_span_each_sweep():
    x, network = angle_features(ANGLE, SWEEP)
    assert torch.equal(network, SWEEP)
    for sweep in (0, 1):
        mine = x[sweep == SWEEP]
        assert float(mine.min()) == pytest.approx(-1) and float(mine.max()) == pytest.approx(1)


def test_each_sweep_has_its_own_network():
    model = build("neural free")
    assert len(model.networks) == 2
    before = model().detach()
    with torch.no_grad():
        model.networks[1][-1].bias.add_(torch.linspace(0, 1, model.head.size))
    change = (model().detach() - before).abs().amax(1)
    assert (change[SWEEP == 0] == 0).all() and (change[SWEEP == 1] > 1e-4).all()


def test_the_network_can_change_with_the_angle():
    p = disturb(build("neural free"))()
    assert (p[0] - p[5]).abs().max() > 1e-4


def test_the_beam_is_seen_from_the_crystal():
    """The orientation of the scan is known: setting = R(angle) U B with B upper triangular."""
    scan = tiny.scan(blocks=4, samples=8, width=2.0, sweeps=2)
    seen = Views.of(scan)
    first = beams.rotation_matrices(tiny.f64([[0.3, -0.5, 0.9], [0.51, -0.85, 1.53]]))
    middle = scan.angle[:, 4, None] * tiny.f64([1.0, 0, 0])
    turn = beams.rotation_matrices(middle) @ first[scan.sweep]
    assert torch.allclose(seen.beam, turn.mT @ tiny.f64([0, 0, -1.0]))
    assert torch.allclose(seen.axis, turn.mT @ tiny.f64([1.0, 0, 0]))
    # the angle between them is that of the laboratory, and the axis stands still
    assert torch.allclose(seen.axis[:4], seen.axis[:1].expand(4, 3))


def test_two_sweeps_of_the_same_views_have_the_same_distribution_with_one_network():
    scan = tiny.scan(blocks=4, sweeps=2)
    again = scan.replace(setting=scan.setting[:4].repeat(2, 1, 1, 1))
    backwards = again.replace(s0=again.s0 * tiny.f64([1.0] * 4 + [-1.0] * 4)[:, None])
    for same in (again, backwards):
        model = disturb(build("neural free", views=Views.of(same, "direction")))
        assert len(model.networks) == 1
        p = model().detach()
        assert torch.allclose(p[:4], p[4:], atol=1e-12) and (p[0] - p[3]).abs().max() > 1e-4
    p = disturb(build("neural free", views=Views.of(again)))().detach()
    assert len(build("neural free", views=Views.of(again)).networks) == 2
    assert (p[:4] - p[4:]).abs().max() > 1e-4


def test_features_of_the_direction_are_of_the_size_of_one():
    for width in (0.1, 5.0):
        x = Views.of(tiny.scan(blocks=9, width=width), "direction").features
        assert x.shape == (9, 6) and float(x.abs().max()) == pytest.approx(1)
