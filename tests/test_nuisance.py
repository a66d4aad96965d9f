"""Nuisance terms: what they are told, their derivatives, what they find, and bad ones."""

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from dials_hybrid import correlations
from dials_hybrid.absorption import MODELS
from dials_hybrid.corrections import Term, load_class
from dials_hybrid.data import Problem
from dials_hybrid.evidence import likely_width
from dials_hybrid.kinematic import power_slopes, powers
from dials_hybrid.linear import CheapModel, Linearisation
from dials_hybrid.model_settings import DETECTOR, ModelSettings
from dials_hybrid.nuisance import (
    KINDS,
    NOTHING,
    SPREAD,
    About,
    Faint,
    Level,
    kinematic_rocking,
)
from dials_hybrid.propagation import DepthGrid
from dials_hybrid.records import InputError
from dials_hybrid.refine import Refinement, RefineSettings, State, build_model

EVERY = tuple(Term(kind, 0.1) for kind in KINDS)
DOCS = Path(__file__).resolve().parents[1] / "docs" / "nuisance.md"


def moved(problem, **choices):
    """Return a model with every parameter moved away from its start."""
    model = build_model(problem, tiny.settings(**choices), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator).double()
    return model


@pytest.fixture(scope="module")
def problem():
    return tiny.problem()


def about_of(problem, thickness=150.0) -> About:
    model = build_model(problem, tiny.settings(), seed=0)
    return About.of(problem, model.wavenumber, thickness)


# --- what terms are told --------------------------------------------------------------------


def test_rocking_curve_is_the_mean_over_thicknesses():
    s = torch.tensor([0.0, 1e-7, 1e-4, 2e-3, 0.01], dtype=torch.float64)
    mean, width = 300.0, SPREAD * 300.0
    t = torch.linspace(mean - 8 * width, mean + 8 * width, 4001, dtype=torch.float64)
    share = torch.exp(-0.5 * ((t - mean) / width) ** 2)
    wave = 2 * math.pi * t * torch.special.sinc(s[:, None] * t)
    expected = (share * wave.square()).sum(1) / share.sum()
    assert kinematic_rocking(s, mean) == pytest.approx(expected, rel=1e-6)


def test_kinematic_intensities_are_those_of_weak_scattering(problem):
    """The propagation itself, of a potential so weak that each electron scatters once."""
    weak = problem.structure.replace(ff_a=problem.structure.ff_a * 1e-4)
    choices = {"depth": DepthGrid(10.0, 60), "thickness_start": 200.0, "thickness": "distribution"}
    settings = tiny.settings(**choices, nuisance=EVERY)
    model = build_model(problem.replace(structure=weak), settings, seed=0)
    with torch.no_grad():
        plain = model.intensities(model.profiles())
        found = model.nuisance.about.replace(power=powers(model)).kinematic
    chosen = plain > 1e-3 * plain.max()
    assert chosen.sum() > 10
    # the grid has no crystal thinner than nothing
    assert found[chosen] == pytest.approx(plain[chosen], rel=0.02)


def test_offset_is_that_of_the_middle_in_units_of_the_half_width(problem):
    o, scan = problem.observations, problem.scan
    last = scan.angle.shape[1] - 1
    only = torch.arange(len(o.intensity))  # each in one whole block, as PETS2 frames are
    block = torch.tensor([int(o.link_block[o.link_observation == i][0]) for i in only])
    whole = o.replace(
        link_observation=only,
        link_block=block,
        link_first=torch.zeros_like(only),
        link_last=torch.full_like(only, last),
    )
    found = about_of(problem.replace(observations=whole)).offset
    g = torch.einsum("rtij,rj->rti", scan.setting[block], o.hkl.double())
    k = torch.tensor([0, 0, -1 / tiny.WAVELENGTH]).double()
    s = (k.norm() - (k + g).norm(dim=-1)).flatten(1)
    # the samples stand for all of the block, half a step beyond the outer two
    reach = (s[:, -1] - s[:, 0]).abs() / 2 * (last + 1) / last
    assert found == pytest.approx((s.mean(1) / reach).abs(), rel=0.03, abs=0.01)
    assert found.min() < 0.2 and found.max() > 0.6


def test_windows_over_several_blocks_count_as_one():
    narrow, wide = (tiny.problem(blocks=b, samples=24 // b, width=6 / b) for b in (3, 1))
    pairs = zip(about_of(narrow).exposure, about_of(wide).exposure, strict=True)
    assert all(float(a) == pytest.approx(float(b), rel=1e-9) for a, b in pairs)


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.5), (0.0, 2.0), (-0.3, 1.5), (0.5, 2.0)])
def test_faint_ones_lose_what_negative_pixels_set_to_zero_take(problem, mean, sigma):
    """A Gaussian spot on pixels with noise of one; what lies below zero is recorded as zero."""
    normal = torch.distributions.Normal(tiny.f64([0.0]), tiny.f64([1.0]))

    def recorded(value):
        return value * normal.cdf(value) + normal.log_prob(value).exp()

    x, frame = torch.arange(-8.0, 9).double(), torch.arange(-4.0, 5).double()
    along = torch.exp(-0.5 * (x / sigma) ** 2)
    spot = along[:, None, None] * along[:, None] * torch.exp(-(frame**2))
    intensity = torch.logspace(0, 5, 30, dtype=torch.float64)
    pixels = mean + intensity[:, None] * (spot / spot.sum()).flatten()
    kept = (recorded(pixels) - recorded(tiny.f64([mean]))).sum(1)
    about, worst = about_of(problem), []
    about = about.replace(noise=torch.ones_like(intensity))
    for half in torch.logspace(1, 3, 60):
        term = Faint(about, 1.0)
        with torch.no_grad():
            term.lost += -normal.cdf(tiny.f64([mean])).log()
            term.edge += (half / 4).log()
            worst.append(float(((term(intensity, about) - kept) / intensity).abs().max()))
    assert min(worst) < 0.02
    assert kept[0] / intensity[0] == pytest.approx(float(normal.cdf(tiny.f64([mean]))), rel=0.02)


# --- composition and derivatives ------------------------------------------------------------


@pytest.mark.parametrize("absorption", ["none", "proportional"])
def test_powers_and_their_slopes(problem, absorption):
    model = moved(problem, nuisance=EVERY, absorption=MODELS[absorption]())
    slopes, size = power_slopes(model), 1e-6
    for column, name in ((0, "site_shift"), (4, "u_shift")):
        parameter = getattr(model.crystal, name)
        with torch.no_grad():
            parameter[0] += size
            above = powers(model)
            parameter[0] -= 2 * size
            below = powers(model)
            parameter[0] += size
        expected = (above - below) / (2 * size)
        assert slopes[:, column] == pytest.approx(
            expected, rel=1e-5, abs=1e-6 * float(expected.max())
        )


def test_without_terms_and_with_terms_at_zero_nothing_changes(problem):
    plain, zero = (build_model(problem, tiny.settings(nuisance=n), 0) for n in ((), EVERY))
    profiles = plain.value_profiles()
    assert plain.nuisance.about is None
    assert torch.equal(plain.intensities(profiles), zero.intensities(profiles))
    assert (zero.prior_residuals()[-7:] == 0).all()
    cheap = CheapModel(plain, Linearisation(*plain.tangents()))
    assert cheap.parts.nuisance == slice(cheap.parts.size, cheap.parts.size)
    assert torch.equal(cheap.scales(), plain.scale(plain.scale_matrix))


def test_cheap_model_treats_terms_exactly(problem):
    model = moved(problem, nuisance=EVERY)
    cheap = CheapModel(model, Linearisation(*model.tangents()))
    intensity, prior = cheap.evaluate(cheap.start())
    assert torch.allclose(intensity, model.intensities(model.profiles()).detach(), rtol=1e-10)
    assert torch.allclose(prior, model.prior_residuals().detach(), rtol=1e-10, atol=1e-12)
    generator = torch.Generator().manual_seed(2)
    x = cheap.start() + 0.1 * torch.randn(cheap.parts.size, generator=generator).double()
    jacobian, d_prior = cheap.slopes(x)[1], cheap.prior_jacobian(x)
    parts = dataclasses.asdict(cheap.parts)
    assert parts["nuisance"].stop - parts["nuisance"].start == 3 + 6
    for part in ("crystal", "orientation", "thickness", "scale", "nuisance"):
        step = torch.zeros_like(x)
        step[parts[part]] = torch.randn(len(x[parts[part]]), generator=generator).double()
        above, below = (cheap.evaluate(x + h * step) for h in (1e-5, -1e-5))
        for i, slope in ((0, jacobian), (1, d_prior)):
            expected = (above[i] - below[i]) / 2e-5
            error = (slope @ step - expected).abs().max()
            assert error < 1e-6 * (1e-3 + expected.abs().max()), (part, i)


def test_gradient_of_the_model_by_atoms_and_terms(problem):
    """Autograd, which the background takes through |F|^2, against differences."""
    model = moved(problem, nuisance=EVERY)

    def total():
        return model.intensities(model.profiles()).sum()

    total().backward()
    names = ("terms.0.log_scale", "terms.1.share", "terms.4.lost", "terms.4.edge", "terms.5.level")
    for name in ("crystal.site_shift", *(f"nuisance.{name}" for name in names)):
        p = model.get_parameter(name)
        with torch.no_grad():
            p[0] += 1e-4
            above = total()
            p[0] -= 2e-4
            below = total()
            p[0] += 1e-4
        assert float(p.grad[0]) == pytest.approx(float(above - below) / 2e-4, rel=1e-5), name


def test_steps_are_written_back_and_a_moved_linearisation_stands_there(problem):
    model = moved(problem, nuisance=EVERY)
    cheap = CheapModel(model, Linearisation(*model.tangents()))
    generator = torch.Generator().manual_seed(3)
    x = cheap.start() + 0.1 * torch.randn(cheap.parts.size, generator=generator).double()
    there = cheap.evaluate(x)[0]
    cheap.apply(x)
    assert torch.equal(model.nuisance.flat(), x[cheap.parts.nuisance])
    found = CheapModel(model, cheap.moved(x)).intensities()
    # |F|^2 is that of the atoms there, and no longer linear in their steps
    assert torch.allclose(found, there, rtol=1e-4, atol=1e-4 * float(there.abs().max()))


def test_scales_are_the_slopes_by_what_the_propagation_gives(problem):
    model = moved(problem, nuisance=EVERY)
    cheap = CheapModel(model, Linearisation(*model.tangents()))
    profiles, size, flat = model.value_profiles(), 1e-6, model.nuisance.flat()
    with torch.no_grad():
        above, below = (model.intensities(profiles * (1 + h)) for h in (size, -size))
        model.nuisance.assign(torch.zeros_like(flat))
        raw = model.intensities(profiles) / model.scale(model.scale_matrix)
    model.nuisance.assign(flat)
    assert cheap.scales() == pytest.approx((above - below) / (2 * size) / raw, rel=1e-6)
    assert cheap.diffracted() == pytest.approx(cheap.scales() * raw, rel=1e-12)


# --- what a refinement finds ----------------------------------------------------------------


SETTINGS = tiny.settings(thickness="distribution", thickness_start=140.0)
FRAMES = {"blocks": 16, "width": 3.0, "samples": 8, "g_limit": 0.9}


def made(kind, sigma, value) -> Problem:
    """Return a problem whose intensities were made with a term, its parameters at values."""
    problem = tiny.problem(**FRAMES)
    plain = calculated(problem)
    o = problem.observations.replace(intensity=plain, sigma=0.01 * plain + 1e-4 * plain.max())
    intensity = calculated(problem.replace(observations=o), Term(kind, sigma), value=value)
    generator = torch.Generator().manual_seed(8)
    noise = torch.randn(len(intensity), generator=generator, dtype=torch.float64)
    return problem.replace(observations=o.replace(intensity=intensity + noise * o.sigma))


def calculated(problem, *terms, value=None) -> torch.Tensor:
    """Return the intensities of a model as it starts, the parameters of its terms at values."""
    model = build_model(problem, dataclasses.replace(SETTINGS, nuisance=terms), 0)
    with torch.no_grad():
        model.scale.log_scale += 12
        if terms:
            model.nuisance.assign(value.expand(len(model.nuisance.flat())))
        return model.intensities(model.value_profiles())


def refined(problem, terms, iterations=4, state=None):
    settings = dataclasses.replace(SETTINGS, nuisance=terms)
    return Refinement(problem, settings, RefineSettings(iterations), state=state)


@pytest.mark.parametrize(
    ("kind", "name", "sigma", "made_with", "expected"),
    [
        ("background", "share", 0.2, [1.5], 0.3),
        ("resolution", "b", 0.2, [3.0], 0.6),
        ("faint", "lost", 1.0, [1.5, 0.3], 1 - math.exp(-1.5)),
        ("level", "level", 1.0, [2.5], 2.5),
    ],
)
def test_a_refinement_finds_what_made_the_data(kind, name, sigma, made_with, expected):
    problem = made(kind, sigma, tiny.f64(made_with))
    without = refined(problem, ()).run().summary
    loop = refined(problem, (Term(kind, sigma),), iterations=30)
    result = loop.run()
    (found,) = result.summary["nuisance"]
    (value,), (su,) = found[name]["value"], found[name]["su"]
    assert found["term"] == kind and 0 < su < expected / 3
    assert abs(value - expected) < 4 * su
    assert found["expected"] == sigma
    assert found["stretched"] == pytest.approx(float(loop.model.nuisance.flat().abs().max()))
    assert result.summary["cross_validated"]["r1_all"] < without["cross_validated"]["r1_all"]
    assert without["nuisance"] == []


def test_terms_wait_until_steps_have_settled_and_then_follow_the_data():
    problem, level = made("level", 1.0, tiny.f64([2.5])), (Term("level", 1.0),)
    (early,) = refined(problem, level, iterations=1).run().summary["nuisance"]
    assert early["width"] == 0 and abs(early["level"]["value"][0]) < 0.01
    loop = refined(problem, level, iterations=30)
    (found,) = loop.run().summary["nuisance"]
    assert found["width"] > 0.5 and found["level"]["value"][0] > 1
    again = refined(problem, level, state=State.from_dict(loop.state.to_dict()))
    assert [term.width for term in again.model.nuisance.terms] == [found["width"]]


def test_terms_that_were_let_go_and_not_moved_yet_stay_so_when_gone_on_from():
    problem, level = made("level", 1.0, tiny.f64([2.5])), (Term("level", 1.0),)
    loop = refined(problem, level, iterations=1)
    loop.run()
    assert loop.evidence.is_loose()
    again = refined(problem, level, state=State.from_dict(loop.state.to_dict()))
    again.evidence.update(again.linearise())
    (term,) = again.model.nuisance.terms
    assert term.width == 1.0 and not again.state.terms_opened


def test_terms_that_the_data_do_not_ask_for_go():
    problem = tiny.problem(**FRAMES)
    exact = calculated(problem)
    o = problem.observations.replace(intensity=exact, sigma=0.01 * exact + 1e-4 * exact.max())
    loop = refined(problem.replace(observations=o), DETECTOR, iterations=30)
    found = loop.run().summary["nuisance"]
    assert loop.state.terms_follow and [term["width"] for term in found] == [0, 0]
    assert max(abs(found[0]["lost"]["value"][0]), abs(found[1]["level"]["value"][0])) < 0.01


def test_the_likely_width_is_that_of_the_value_beyond_its_error():
    about = SimpleNamespace(noise=torch.ones(1))
    term, exact, variance = Level(about, 1.0), 0.5, 0.01
    shrunk = variance / (1 + variance)  # posterior of a prior of width one
    with torch.no_grad():
        term.level += exact / (1 + variance)
    assert likely_width(term, shrunk) == pytest.approx((exact**2 - variance) ** 0.5)
    assert likely_width(term, 0.999) == NOTHING
    term.width = NOTHING
    assert likely_width(term, 1e-8) == NOTHING
    term.width, term.level.data[0] = 1.0, 5.0
    assert likely_width(term, 1e-4) == 1.0


def test_what_a_background_adds_is_taken_off_for_maps():
    problem = made("level", 1.0, tiny.f64([2.5]))
    loop = refined(problem, (Term("level", 1.0),), iterations=30)
    result, o = loop.run(), problem.observations
    measured, diffracted = result.proportional(o.intensity)
    added = result.summary["nuisance"][0]["level"]["value"][0] * o.noise.background.sqrt()
    assert diffracted == pytest.approx(result.calculated - added, rel=1e-9)
    assert measured == pytest.approx(o.intensity - added, rel=1e-9)
    old = result.replace(diffracted=None)  # of an earlier version
    assert old.proportional(o.intensity) == (o.intensity, result.calculated)


def test_frame_scales_are_found_stored_and_gone_on_from():
    generator = torch.Generator().manual_seed(4)
    log_scale = torch.randn(16, generator=generator).double()
    problem = made("frame_scale", 0.1, log_scale)
    loop = refined(problem, (Term("frame_scale", 0.1),))
    result = loop.run()
    value = torch.tensor(result.summary["nuisance"][0]["log_scale"]["value"])
    # a smooth scale can take over what of them is smooth
    assert torch.corrcoef(torch.stack([value, log_scale]))[0, 1] > 0.8
    names = {q.name for q in correlations.quantities(loop.linearise())}
    assert {"frame_scale log_scale 1", "frame_scale log_scale 16"} <= names
    state = State.from_dict(loop.state.to_dict())
    again = refined(problem, (Term("frame_scale", 0.1),), state=state)
    assert torch.equal(again.model.nuisance.flat(), loop.model.nuisance.flat())
    assert result.scale == pytest.approx(again.linearise().scales().numpy(), rel=1e-6)


def test_the_difference_map_is_of_what_was_measured(monkeypatch):
    """Data with scales of their frames; its gradient follows the scales, not only the smooth."""
    problem = made("frame_scale", 0.5, torch.ones(1).double())
    loop = refined(problem, (Term("frame_scale", 0.5),), iterations=1)
    result = loop.run()
    residual = problem.observations.intensity - result.calculated
    weight = residual / result.sigma_weight.square()
    model = loop.model.coarser(loop.plan[-1].slopes)  # of the gradients' steps
    table = model.potential_table().detach()

    def misfit(step):
        monkeypatch.setattr(model, "potential_table", lambda: table + step)
        with torch.no_grad():
            return weight @ model.intensities(model.profiles())

    terms = loop.with_fourier(result).fourier
    row = int(torch.nonzero((model.matrix.couplings.hkl == terms.hkl[3]).all(1)))
    mate = int(torch.nonzero((model.matrix.couplings.hkl == -terms.hkl[3]).all(1)))
    step = torch.zeros_like(table)
    step[row], step[mate] = 1e-7, 1e-7
    slope = (misfit(step) - misfit(-step)) / 2e-7 * model.matrix.factor
    other = int(torch.nonzero((terms.hkl == -terms.hkl[3]).all(1)))
    found = terms.gradient[0, 3].real + terms.gradient[0, other].real
    assert float(found) == pytest.approx(float(slope), rel=1e-4)


# --- files and terms of users ---------------------------------------------------------------


def test_settings_travel_and_old_files_have_no_terms():
    chosen = ModelSettings(nuisance=EVERY)
    plain = chosen.to_dict()
    assert ModelSettings.from_dict(plain) == chosen
    del plain["nuisance"]
    assert ModelSettings.from_dict(plain) == ModelSettings(nuisance=())
    assert {term.kind for term in ModelSettings().nuisance} == {"faint", "level"}


def example() -> str:
    """Return the Python of docs/nuisance.md."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return code


def test_the_example_of_the_documentation(tmp_path, monkeypatch):
    (tmp_path / "my_terms.py").write_text(example())
    monkeypatch.chdir(tmp_path)
    term = Term.named("my_terms.py:Damage 0.5")
    assert term == Term(f"{tmp_path / 'my_terms.py'}:Damage", 0.5)
    monkeypatch.chdir(tmp_path.parent)  # a continued problem finds it all the same
    problem = made(term.kind, 0.5, tiny.f64([2.0]))
    result = refined(problem, (term,)).run()
    found = result.summary["nuisance"][0]["b"]
    assert abs(found["value"][0] - 1.0) < 4 * found["su"][0] < 1.0


GOOD = """
import torch
from dials_hybrid.nuisance import Nuisance, zeros

class Mine(Nuisance):
    def __init__(self, about, sigma):
        super().__init__(about, sigma)
        self.a = zeros(1)

    def forward(self, intensity, about):
        return intensity * (1 + self.a)

class Other:
    pass
"""


def with_line(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("code", "name", "expected"),
    [
        (GOOD, "Absent", "holds no class Absent"),
        (GOOD, "Other", "holds no class Other derived from"),
        ("def (", "Mine", "importing it fails with SyntaxError"),
        ("import no_such_module", "Mine", "importing it fails with ModuleNotFoundError"),
        (with_line("(1 + self.a)", "(1.1 + self.a)"), "Mine", "unchanged where its parameters"),
        (with_line("self.a = zeros(1)", "self.a = 0.0"), "Mine", "its parameters must be there"),
        (with_line("zeros(1)", "torch.nn.Parameter(torch.zeros(1))"), "Mine", "torch.float64"),
        (
            with_line("(1 + self.a)", "(1 + self.a) + self.a * intensity.mean()"),
            "Mine",
            "by its own intensity alone",
        ),
        (with_line("intensity * (1 + self.a)", "self.b"), "Mine", "fails with AttributeError"),
    ],
)
def test_bad_terms_are_told_in_one_sentence(tmp_path, problem, code, name, expected):
    path = tmp_path / "bad.py"
    path.write_text(code)
    with pytest.raises(InputError, match="bad.py:") as caught:
        Term.named(f"{path}:{name}").build(about_of(problem))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("absent.py:Mine", "there is no such file"),
        ("Mine", "names no class"),
        ("no_such_package.terms:Mine 2", "ModuleNotFoundError"),
        ("torch:Tensor", "holds no class Tensor derived from"),
        ("torch:Tensor -1", "sigma must be a positive number"),
        ("torch:Tensor nan", "sigma must be a positive number"),
    ],
)
def test_bad_names_of_terms(text, expected):
    with pytest.raises(InputError, match=expected):
        Term.named(text)


def test_classes_of_packages_are_found():
    assert load_class("dials_hybrid.nuisance:Window") is KINDS["window"]
    assert Term.named(" dials_hybrid.nuisance:Window  0.3 ").sigma == 0.3
