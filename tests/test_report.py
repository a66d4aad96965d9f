"""The JSON contract and the HTML page, on a synthetic quartz refinement."""

import dataclasses
import itertools
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import h5py
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dials_hybrid import electron, report
from dials_hybrid.data import Observations, Problem, Result, Scan, Structure, block_of
from dials_hybrid.records import load_records, save_records
from dials_hybrid.report import (
    arrays,
    canvas,
    figures,
    history_figures,
    page,
    reflection_figures,
    scan_figures,
    setting_tables,
    tables,
    words,
)

NAN = float("nan")


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def quartz() -> Structure:
    """Alpha-quartz, P3221, with Si isotropic and O anisotropic."""
    rot = [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, -1, 0], [1, -1, 0], [0, 0, 1]],
        [[-1, 1, 0], [-1, 0, 0], [0, 0, 1]],
        [[0, 1, 0], [1, 0, 0], [0, 0, -1]],
        [[1, -1, 0], [0, -1, 0], [0, 0, -1]],
        [[-1, 0, 0], [-1, 1, 0], [0, 0, -1]],
    ]
    trans = [[0, 0, z / 3] for z in (0, 2, 1, 0, 1, 2)]
    a, c = 4.9137, 5.4047
    g_star = [4 / (3 * a**2), 4 / (3 * a**2), 1 / c**2, 2 / (3 * a**2), 0, 0]
    f64 = {"dtype": torch.float64}
    return Structure(
        cell=torch.tensor([a, a, c, 90, 90, 120], **f64),
        hall_symbol=' P 32 2"',
        sym_rot=torch.tensor(rot, **f64),
        sym_trans=torch.tensor(trans, **f64),
        site=torch.tensor([[0.4697, 0, 2 / 3], [0.4135, 0.2669, 0.7858]], **f64),
        u_iso=torch.tensor([0.009, 0.0], **f64),
        # U = 0.012 A^2 in all directions: u* is U times the reciprocal metric
        u_star=torch.tensor([[0] * 6, [0.012 * g for g in g_star]], **f64),
        anisotropic=torch.tensor([False, True]),
        occ=torch.ones(2, **f64),
        weight=torch.tensor([0.5, 1.0], **f64),
        site_projector=torch.eye(3, **f64).expand(2, 3, 3).clone(),
        adp_projector=torch.eye(6, **f64).expand(2, 6, 6).clone(),
        type=torch.tensor([0, 1]),
        ff_a=torch.tensor([[2.0, 1.0], [1.5, 0.5]], **f64),
        ff_b=torch.tensor([[20.0, 3.0], [12.0, 2.0]], **f64),
        labels=("Si<b>1</b>", "O1"),
        elements=("Si", "O"),
    )


def make_scan(n_sweeps=2, n_blocks=6, n_samples=5, width=1.0) -> Scan:
    """Sweeps of consecutive blocks, each `width` degrees wide, about the x axis."""
    f, f64 = n_sweeps * n_blocks, {"dtype": torch.float64}
    first = torch.arange(n_blocks, **f64).repeat(n_sweeps) * width
    inside = (torch.arange(n_samples, **f64) + 0.5) / n_samples * width
    return Scan(
        setting=torch.eye(3, **f64).expand(f, n_samples, 3, 3) / 5,
        angle=torch.deg2rad(first[:, None] + inside),
        sample_width=torch.full((f, n_samples), math.radians(width / n_samples), **f64),
        s0=torch.tensor([0, 0, -1 / 0.02508], **f64).expand(f, 3).clone(),
        normal=torch.tensor([0, 0, -1], **f64).expand(f, 3).clone(),
        sweep=torch.arange(n_sweeps).repeat_interleave(n_blocks),
        axis=torch.tensor([1, 0, 0], **f64).expand(f, 3).clone(),
    )


def make_observations(scan: Scan, n: int, rng) -> Observations:
    hkl = rng.integers(-6, 7, (n, 3))
    hkl[(hkl == 0).all(1)] = (1, 0, 0)
    block = rng.integers(0, len(scan.sweep), n)
    spread = float(scan.sample_width.sum(1).mean())
    angle = scan.block_angle.numpy()[block] + rng.uniform(-0.49, 0.49, n) * spread
    s_sq = (hkl**2).sum(1) / 50
    intensity = rng.exponential(4000 * np.exp(-2.5 * s_sq)) + rng.normal(0, 3, n)
    return Observations(
        hkl=torch.tensor(hkl),
        intensity=torch.tensor(intensity),
        sigma=torch.tensor(3 + 0.02 * np.abs(intensity)),
        row=torch.arange(n),
        free=torch.tensor(rng.random(n) < 0.06),
        sweep=scan.sweep[block],
        angle=torch.tensor(angle),
        link_observation=torch.arange(n),
        link_block=torch.tensor(block),
        link_first=torch.zeros(n, dtype=torch.long),
        link_last=torch.full((n,), scan.angle.shape[1] - 1),
    )


def make_problem(n=200, seed=1, **scan_options) -> Problem:
    scan = make_scan(**scan_options)
    observations = make_observations(scan, n, np.random.default_rng(seed))
    provenance = {
        "experiments": [{"file": "/data/<i>x</i>/integrated.expt", "sha256": "ab12"}],
        "structure": {"file": "quartz <1>.cif", "sha256": "cd34"},
    }
    return Problem(quartz(), scan, observations, provenance)


def make_history(n=40) -> list[dict]:
    return [
        {
            "iteration": i,
            "stage": "scale" if i < 8 else "thickness" if i < 20 else "all",
            "loss": 9 * math.exp(-i / 9) + 1,
            "r1_obs": 0.12 * math.exp(-i / 12) + 0.07,
            "r1_free": None if i % 5 else 0.11 * math.exp(-i / 12) + 0.085,
            "time": 0.2 * i,
        }
        for i in range(n)
    ]


def make_summary() -> dict:
    return {
        "n_all": 200,
        "n_obs": 141,
        "n_parameters": 37,
        "device": "cpu",
        "wall_time_s": 83.4,
        "kinematic": {"r1_obs": 0.2071},
        "start": {"r1_obs": 0.1212, "r1_all": 0.15, "wr2_all": 0.31},
        "final": {
            "r1_obs": 0.0765,
            "r1_all": 0.0912,
            "wr2_all": 0.1533,
            "gof": 1.84,
            "r1_obs_frame_mean": 0.0812,
        },
        "free": {"r1_obs": 0.0871, "n": 12},
        "absolute_structure": {"hand": "as given", "r1_obs_inverted": NAN},
        "indexing": {
            "operator": "-h-k,k,-l",
            "inverted": False,
            "changed": True,
            "candidates": [
                {
                    "operator": "h,k,l",
                    "hand": "inverted",
                    "space_group": "P 31 2 1",
                    "r1_obs": 0.2214,
                },
                {
                    "operator": "-h-k,k,-l",
                    "hand": "as given",
                    "space_group": "P 32 2 1",
                    "r1_obs": 0.1411,
                },
            ],
        },
        "error_model": {"a": 1.31, "b": 0.042},
        "settings_refined": [
            {
                "operator": "h,k,l",
                "hand": "given",
                "space_group": "P 32 2 1",
                "r1_obs": 0.0765,
                "z_score": None,
            },
            {
                "operator": "h,k,l",
                "hand": "inverted",
                "space_group": "P 31 2 1",
                "r1_obs": 0.1534,
                "z_score": -11.43,
            },
        ],
        "correlations": [{"first": "U(Si1)", "second": "scale 3", "r": -0.8234}],
        "condition": {
            "all": 3.2e7,
            "structure": 41.6,
            "undetermined": 12,
            "strong_correlations": 1,
        },
    }


def make_result(problem: Problem, seed=2) -> Result:
    rng = np.random.default_rng(seed)
    structure, scan, observations = problem.structure, problem.scan, problem.observations
    r = len(observations.intensity)
    intensity = observations.intensity.numpy()

    def noisy(relative):
        noise = 1 + relative * rng.normal(size=r)
        return torch.tensor(np.maximum(intensity, 0) * noise**2 + rng.exponential(3, r))

    depth = np.arange(1, 31) * 40.0
    angle = np.degrees(scan.block_angle.numpy())
    mean = 620 + 80 * np.sin(angle / 15)
    p = np.exp(-0.5 * ((depth - mean[:, None]) / 140) ** 2)
    orientation = 0.001 * np.stack([np.sin(angle / 9), np.cos(angle / 7), angle / 50], 1)
    site_su = [[0.00147411, NAN, NAN], [0.003, 0.0028, 0.0021]]
    return Result(
        structure=structure,
        start_structure=structure,
        calculated=noisy(0.08),
        start_calculated=noisy(0.15),
        kinematic=noisy(0.25),
        scale=torch.ones(r, dtype=torch.float64),
        sigma_weight=1.3 * observations.sigma + 0.06 * observations.intensity.abs(),
        depth=torch.tensor(depth),
        thickness=torch.tensor(p / p.sum(1, keepdims=True)),
        orientation=torch.tensor(orientation),
        block_scale=torch.tensor(1.2 + 0.2 * np.cos(angle / 20)),
        site_su=torch.tensor(site_su, dtype=torch.float64),
        u_su=torch.tensor([0.0004, NAN], dtype=torch.float64),
        state={},
        history=tuple(make_history()),
        summary=make_summary(),
        converged=True,
        stop_reason="loss changes by less than 1e-4",
    )


class Page(HTMLParser):
    """Tags, ids, links and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.attributes, self.words = Counter(), Counter(), [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in attrs:
            self.attributes.append((tag, name, value))
            if name == "id":
                self.ids[value] += 1

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)


WARNING = "labels hold <script>alert(1)</script> & more"


def make_contract(problem, result):
    return report.contract(problem, result, space_group="P 32 2 1", warnings=[WARNING])


def write_page(path, problem, result) -> str:
    report.write_html(path, problem, result, make_contract(problem, result))
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def problem():
    return make_problem()


@pytest.fixture(scope="module")
def result(problem):
    return make_result(problem)


@pytest.fixture(scope="module")
def html(problem, result, tmp_path_factory):
    before = dict(matplotlib.rcParams)
    text = write_page(tmp_path_factory.mktemp("page") / "report.html", problem, result)
    assert dict(matplotlib.rcParams) == before, "drawing changed the settings of matplotlib"
    return text


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their figures, which take time."""
    names = [*figures._FIGURES, *figures._SCAN_FIGURES, *figures._HISTORY_FIGURES]
    monkeypatch.setattr(page, "draw_all", lambda data: dict.fromkeys(names, "<svg></svg>"))


# ------------------------------------------------------------------ contract


def paths(mapping, prefix=""):
    for key, value in mapping.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{key}.")


CONTRACT = {
    "program",
    "version",
    "dials_version",
    "device",
    "wall_time_s",
    "n_all",
    "n_obs",
    "n_parameters",
    "converged",
    "stop_reason",
    "kinematic.r1_obs",
    "start.r1_obs",
    "start.r1_all",
    "start.wr2_all",
    "final.r1_obs",
    "final.r1_all",
    "final.wr2_all",
    "final.gof",
    "final.r1_obs_frame_mean",
    "free.r1_obs",
    "free.n",
    "thickness.grid",
    "thickness.mean",
    "thickness.distribution",
    "thickness.angle",
    "sites",
    "space_group",
    "absolute_structure",
    "indexing",
    "error_model",
    "warnings",
    "settings_refined",
    "correlations",
    "condition.structure",
    "condition.all",
}


def test_contract_has_every_key(problem, result):
    assert set(paths(make_contract(problem, result))) >= CONTRACT


def test_contract_has_every_key_even_when_no_stage_filled_it(problem, result):
    found = report.contract(problem, result.replace(summary={"free": None, "n_all": 3}))
    assert set(paths(found)) >= CONTRACT
    assert found["n_all"] == 3 and found["final"]["gof"] is None and found["warnings"] == []


def test_contract_survives_strict_json(problem, result, tmp_path):
    found = make_contract(problem, result)
    report.write_json(tmp_path / "a.json", found)
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == found
    assert found["absolute_structure"]["r1_obs_inverted"] is None


def test_contract_values(problem, result):
    found = make_contract(problem, result)
    thickness = found["thickness"]
    assert np.shape(thickness["distribution"]) == (12, 30)
    assert thickness["mean"][0] == pytest.approx(620, abs=5)
    assert thickness["angle"][:2] == pytest.approx([0.5, 1.5])
    silicon, oxygen = found["sites"]
    assert silicon["xyz"] == pytest.approx([0.4697, 0, 2 / 3])
    assert silicon["xyz_su"] == [pytest.approx(0.0003, rel=1e-3), None, None]
    assert oxygen["xyz_su"][2] == pytest.approx(0.0021 / 5.4047)
    assert (silicon["adp_type"], oxygen["adp_type"]) == ("Uiso", "Uani")
    assert (silicon["u_iso"], silicon["u_iso_su"]) == (0.009, 0.0004)
    assert oxygen["u_iso"] == pytest.approx(0.012) and oxygen["u_iso_su"] is None
    assert (silicon["element"], oxygen["occupancy"]) == ("Si", 1.0)
    assert silicon["u_aniso"] is None and silicon["u_aniso_su"] is None
    assert np.shape(oxygen["u_aniso"]) == (6,) and oxygen["u_aniso_su"] == [None] * 6


def test_contract_of_float32_result(problem, result):
    found = make_contract(problem, result.to(dtype=torch.float32))
    assert found["thickness"]["mean"][0] == pytest.approx(620, abs=5)


# ------------------------------------------------------------------ numbers


def test_r1_by_group():
    i_obs, i_calc = np.array([100.0, 400, -5, 900]), np.array([81.0, 484, 4, 900])
    r1 = arrays.r1_by(np.array([0, 0, 0, 2]), 3, i_obs, i_calc)
    assert r1[[0, 2]] == pytest.approx([(1 + 2 + 2) / 30, 0])
    assert math.isnan(r1[1])


def test_spacing():
    d = arrays.spacing(quartz().cell, np.array([[1, 0, 0], [0, 0, 2], [1, 1, 0]]))
    assert d == pytest.approx([4.9137 * math.sqrt(3) / 2, 5.4047 / 2, 4.9137 / 2])


def test_block_of_an_observation_stays_in_the_sweep(problem):
    expected = problem.observations.link_block
    assert torch.equal(block_of(problem.observations, problem.scan), expected)


def test_tilt_components(problem, result):
    turns = torch.zeros(12, 3, dtype=torch.float64)
    turns[0, 0], turns[1, 1], turns[2, 2] = 0.01, 0.02, 0.03
    tilt = arrays.arrays(problem, result.replace(orientation=turns)).tilt
    # the scan axis is x, the beam -z: a turn about z changes no excitation error
    assert tilt[0] == pytest.approx([math.degrees(0.01), 0])
    assert np.abs(tilt[1]) == pytest.approx([0, math.degrees(0.02)])
    assert tilt[2] == pytest.approx([0, 0])


@pytest.mark.parametrize(
    "changes, told",
    [
        ({}, "lowered R1 from 20.7 % (kinematic) to 7.65 % over 141 reflections"),
        ({"final": {"r1_obs": 0.3}}, "did not lower R1: 20.7 % kinematic, 30.0 % dynamical"),
        ({"converged": False}, "it stopped before convergence (loss changes"),
        ({"free": {"r1_obs": None, "n": 0}}, "I > 3σ; it converged"),
        ({"final": {"r1_obs": None}}, "No dynamical agreement factor"),
    ],
)
def test_the_outcome_in_a_sentence(problem, result, changes, told):
    assert told in words.outcome({**make_contract(problem, result), **changes})


# ------------------------------------------------------------------ page

SECTIONS = {
    "summary",
    "warnings",
    "structure",
    "agreement",
    "thickness",
    "experiment",
    "residuals",
    "correlations",
    "tests",
    "convergence",
    "citations",
}


def test_page_has_every_section_and_figure(html):
    found = Page(html)
    assert set(found.ids) >= SECTIONS
    assert found.tags["figure"] == found.tags["svg"] == 14
    for told in ("20.7 %", "12.1 %", "7.65 %", "8.71 %", "1.84", "1 min 23 s", "P 31 2 1"):
        assert told in found.text
    order = [found.text.rindex(operator) for operator in ("-h-k,k,-l", "h,k,l inverted")]
    assert order == sorted(order), "candidates are not in the order of their R1"


def test_page_tells_correlations_and_refined_settings(html):
    text = Page(html).text
    assert "U(Si1) scale 3 -0.82" in text and "Condition number, structure 41.6" in text
    assert "inverted P 31 2 1 refined 15.3 % -11.4" in text
    assert "given P 32 2 1 refined 7.65 % –" in text


@pytest.mark.usefixtures("undrawn")
def test_page_without_the_normal_matrix_has_no_such_section(problem, result, tmp_path):
    bare = {**make_summary(), "correlations": [], "condition": None, "settings_refined": []}
    found = result.replace(summary=bare)
    report.write_html(tmp_path / "a.html", problem, found, make_contract(problem, found))
    text = (tmp_path / "a.html").read_text()
    assert 'id="correlations"' not in text and "Settings refined" not in text


def test_page_needs_no_network_and_runs_nothing(html):
    found = Page(html)
    assert not set(found.tags) & {"script", "link", "iframe", "object", "embed", "base", "img"}
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "xlink:href"):
            local = value.startswith(("#", "data:"))
            assert local or (tag == "a" and value.startswith("https://doi.org/")), value
    assert "@import" not in html
    assert {target[0] for target in re.findall(r"url\((.)", html)} == {"#"}
    without_links = re.sub(r'<a href="https://doi.org[^"]*"', "", html)
    assert "http:" not in without_links and "https:" not in without_links
    assert len(html) < 600_000


def test_ids_are_unique_and_references_resolve(html):
    found = Page(html)
    assert max(found.ids.values()) == 1
    targets = re.findall(r'(?:href="|url\()#([^")]+)', html)
    assert targets and set(targets) <= set(found.ids)


def test_user_strings_are_escaped(html):
    assert "Si&lt;b&gt;1&lt;/b&gt;" in html and "<b>1</b>" not in html
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html
    assert "quartz &lt;1&gt;.cif" in html
    assert "/data/" not in html, "the folder of the user's files"


def test_unknown_uncertainty_shows_none(html):
    text = Page(html).text
    assert "Si 0.4697(3) 0.00000 0.66667 0.0090(4) Uiso" in text
    assert "O 0.4135(6) 0.2669(6) 0.7858(4) 0.0120 Uani" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


@pytest.mark.usefixtures("undrawn")
def test_peaks_of_the_difference_map_stand_in_the_order_of_their_height(problem, result, tmp_path):
    def peak(height, atom):
        return {
            "xyz": [0.1, 0.2, 0.3],
            "height": height,
            "sigma": height / 2,
            "atom": atom,
            "distance": 1.05,
        }

    found = {
        "unit": "V",
        **{"rms": 2.0, "max": 9.0, "min": -12.0},
        "peaks": [peak(9.0, "Xa1"), peak(4.0, "Xb1")],
        "holes": [peak(-12.0, "Xc1")],
    }
    contract = report.contract(problem, result, map_peaks=found)
    report.write_html(tmp_path / "a.html", problem, result, contract)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    rows = re.findall(r"<td>([+-][\d.]+)</td><td>([+-][\d.]+)</td><td[^>]*>(X\w+)</td>", text)
    assert rows == [("-12.00", "-6.0", "Xc1"), ("+9.00", "+4.5", "Xa1"), ("+4.00", "+2.0", "Xb1")]


def refined_hands(**changes):
    """What a comparison of two refined hands leaves in the summary."""
    return {
        "tested": True,
        "verdict": "determined, P 32 2 1: R1 differs by +0.0388, z = 8.5 over 297 reflections, "
        "inversion-twin fraction is 0.003(12)",
        "space_group": "P 32 2 1",
        "refined": {
            "r1_obs": 0.0138,
            "r1_obs_other_hand": 0.0526,
            "r1_difference": 0.0388,
            "space_group_other_hand": "P 31 2 1",
            "other_hand_converged": True,
            "other_hand_iterations": 10,
            "other_hand_time_s": 87.06,
        },
        "z_score": 8.53,
        "probability": 1.0,
        "reflections": 297,
        "better": 222,
        "twin_fraction": 0.003179,
        "twin_fraction_su": 0.01157,
        **changes,
    }


def page_with(problem, result, path, **summary):
    found = result.replace(summary={**result.summary, **summary})
    return Page(write_page(path / "a.html", problem, found))


@pytest.mark.usefixtures("undrawn")
def test_the_absolute_structure_is_told_first_and_in_words(problem, result, tmp_path):
    indexing = "determined, as indexed and not as -h,-k,l: R1 differs by +0.5"
    found = page_with(
        problem,
        result,
        tmp_path,
        absolute_structure=refined_hands(),
        indexing_verdict=indexing,
    )
    opening = found.text[: found.text.index("What to check")]
    assert (
        "The absolute structure is determined, P 32 2 1. The indexing is determined, as" in opening
    )
    section = found.text[found.text.rindex("Hand and indexing") :]
    assert section.startswith(
        "Hand and indexing The absolute structure is determined, P 32 2 1: R1"
    )
    for words_in_order in (
        "R1 of this hand 1.38 % (P 32 2 1)",
        "R1 of the other hand 5.26 % (P 31 2 1)",
        "Difference of R1 +3.88 %",
        "z-score 8.5 over 297 reflections",
        "Probability of this hand 1 − 7e-18",
        "Inversion-twin fraction 0.003(12)",
        "Other hand converged yes",
    ):
        assert words_in_order in section
    for raw in ("+-", "±", "other hand time", "Better", "su 0.01157", "Tested"):
        assert raw not in section


@pytest.mark.usefixtures("undrawn")
def test_hands_that_were_not_refined_have_a_verdict_alone(problem, result, tmp_path):
    unknown = {"tested": False, "verdict": "undetermined: the other hand was not refined"}
    found = page_with(problem, result, tmp_path, absolute_structure=unknown)
    assert "The absolute structure is undetermined. " in found.text
    assert "undetermined: the other hand was not refined." in found.text
    assert "z-score" not in found.text and "Inversion-twin" not in found.text
    none = {"tested": False, "verdict": "not applicable: centrosymmetric"}
    assert "absolute structure is not" not in words.outcome(
        {**make_contract(problem, result), "absolute_structure": none}
    )


@pytest.mark.parametrize(
    "z, text",
    [(0.0, "0.500"), (1.0, "0.841"), (-1.0, "0.159"), (4.0, "1 − 3e-05"), (-8.5, "9e-18")],
)
def test_probabilities_have_the_digits_that_tell(z, text):
    assert words.probability(z) == text
    assert words.probability(None) == "–"


@pytest.mark.usefixtures("undrawn")
def test_crystal_and_radiation_are_told_in_full(problem, result, tmp_path):
    told = {
        "formula_units": "3",
        "temperature": "100(2)",
        "measurement": {"cell_su": [0.0011, 0.0011, 0.0005, 0, 0, 0], "sweeps": []},
    }
    plain = page_with(problem, result, tmp_path).text
    assert "Formula O2 Si" in plain and "Space group, Z P 32 2 1, 3" in plain
    assert "Cell 4.9137, 4.9137, 5.4047 Å; 90, 90, 120°" in plain
    assert "Volume 113.01 Å³" in plain and "Temperature" not in plain
    voltage = electron.voltage(0.02508) / 1000
    assert f"electrons of {voltage:.1f} kV, 0.02508 Å" in plain and 199 < voltage < 201
    known = problem.replace(provenance={**problem.provenance, **told})
    text = page_with(known, result, tmp_path).text
    assert "Cell 4.9137(11), 4.9137(11), 5.4047(5) Å; 90, 90, 120°" in text
    assert "Temperature 100(2) K" in text
    contract = make_contract(known, result)
    assert contract["crystal"]["formula_units"] == 3 and contract["crystal"]["cell_su"][2] == 5e-4
    cell = problem.structure.replace(cell=f64([12.3454, 11, 10, 90, 100.25, 90]))
    other = make_contract(problem.replace(structure=cell), result.replace(structure=cell))
    rows = dict(tables.conditions(other, arrays.arrays(problem, result)))
    assert rows["Cell"] == "12.3454, 11, 10 Å; 90, 100.25, 90°"


def test_resolution_has_the_digits_of_its_limit(problem, result):
    data = dataclasses.replace(arrays.arrays(problem, result), d=np.array([5.4132, 0.6253]))
    rows = dict(tables.conditions(make_contract(problem, result), data))
    assert rows["Resolution"] == "5.413–0.625 Å"


@pytest.mark.usefixtures("undrawn")
def test_anisotropic_displacements_have_a_table(problem, result, tmp_path):
    su = torch.zeros(2, 6, dtype=torch.float64)
    su[1] = f64([0.0011, 0.0012, 0.0013, 0.0004, 0.0005, 0.00021])
    text = page_with(problem, result.replace(u_aniso_su=su), tmp_path).text
    row = "O1 0.0120(11) 0.0120(12) 0.0120(13) 0.0060(4) 0.0000(5) 0.0000(2)"
    assert row in text and "Anisotropic displacements" in text
    structure = result.structure.replace(anisotropic=torch.tensor([False, False]))
    isotropic = page_with(problem, result.replace(structure=structure), tmp_path).text
    assert "Anisotropic displacements" not in isotropic


@pytest.mark.usefixtures("undrawn")
def test_charges_dipoles_restraints_and_corrections_are_told(problem, result, tmp_path):
    valence = {
        "charge": {"O": {"value": 0.0374, "su": 0.0206}},
        "dipole": {
            "Si1": {"value": [0.0, 0.0, 0.0], "su": [0.0, 0.0, 0.0]},
            "O1": {"value": [-0.0762, 0.1443, 0.0], "su": [0.0243, 0.0222, 0.0]},
        },
        **{"charge_sigma": 0.3, "dipole_sigma": 0.2},
    }
    worst = {"atoms": ["Si1", "O1"], "deviation_over_sigma": 2.716}
    terms = [
        {
            "term": "/a/my.py:Mine",
            **{"expected": 0.1, "stretched": 0.5},
            "b": value([0.05], [0.02]),
        },
        {"term": "frame_scale", "log_scale": value([0.003, -0.004], [0.01, 0.01])},
    ]
    text = page_with(
        problem,
        result,
        tmp_path,
        valence=valence,
        restraints={"rigid_bond": {"number": 2, "rms": 1.234, "worst": worst}},
        nuisance=terms,
    ).text
    assert "O 0.04(2)" in text and "O1 -0.08(2) 0.14(2) 0.000" in text
    assert "Si1 0.000" not in text, "a dipole that symmetry forbids"
    assert "rigid bond 2 1.23 2.72 Si1 O1" in text
    assert "Mine b 1 0.05(2) 0.1 0.5" in text
    assert "frame scale log scale 2 r.m.s. 0.00354 – –" in text
    bare = page_with(problem, result, tmp_path).text
    for title in ("Charges and dipoles", "Restraints", "Corrections of the intensities"):
        assert title in text and title not in bare


def value(values, errors):
    return {"value": values, "su": errors}


def bond(su, *ends):
    labels, codes = zip(*ends, strict=True)
    return {"atoms": list(labels), "symmetry": list(codes), "length": 1.6123, "su": su}


def page_of_bonds(problem, result, path, bonds, angles=()):
    contract = report.contract(problem, result, bonds=bonds, angles=list(angles))
    report.write_html(path / "a.html", problem, result, contract)
    return (path / "a.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_bonds_and_angles_stand_with_symmetry_and_uncertainty(problem, result, tmp_path):
    bonds = [
        bond(0.0021, ("Si1", "."), ("O1", "3_565")),
        bond(None, ("C1", "."), ("H<1>", ".")),
    ]
    angle = {"atoms": ["O1", "Si1", "O1"], "symmetry": ["2_655", ".", "."]}
    angle |= {"angle": 109.474, "su": 0.15}
    text = page_of_bonds(problem, result, tmp_path, bonds, [angle])
    assert "Si1–O1<sup>3_565</sup></th><td>1.612(2)</td>" in text
    assert "C1–H&lt;1&gt;</th><td>1.6123</td>" in text
    assert "O1<sup>2_655</sup>–Si1–O1</th><td>109.47(15)</td>" in text
    assert text.count("<details open>") == 4 and "2 bonds" in text and "1 angle<" in text


def test_a_long_table_of_bonds_is_folded(problem, result, tmp_path, html):
    many = [bond(0.002, ("Si1", "."), ("O1", "."))] * 31
    assert "<details>\n<summary>31 bonds" in page_of_bonds(problem, result, tmp_path, many)
    assert "Bonds and angles" not in html, "a section without bonds"


def test_candidates_without_a_score_come_last():
    scores = [None, 0.3, None, 0.2]
    found = [{"operator": str(i), "hand": "as given", "r1_obs": r} for i, r in enumerate(scores)]
    rows = setting_tables.candidates({"indexing": {"candidates": found}})
    assert [row["operator"] for row in rows] == ["3", "1", "0", "2"]
    assert [row["r1_obs"] for row in rows] == ["20.0 %", "30.0 %", "–", "–"]


@pytest.mark.parametrize(
    "found, told",
    [
        ({}, ""),
        ({"operator": "h,k,l", "inverted": False, "changed": False}, "indexing that were given"),
        ({"operator": "h,k,l", "inverted": True, "changed": True}, "inverted, reindexed by h,k,l"),
        ({"operator": "-h,-k,l", "inverted": False, "changed": True}, "given, reindexed by -h"),
    ],
)
def test_the_setting_that_was_chosen(found, told):
    words_of_it = setting_tables.chosen({"indexing": found})
    assert told in words_of_it and bool(told) == bool(words_of_it)


def test_worst_reflection_comes_first(problem, result):
    observations = problem.observations
    calculated = observations.intensity.clone()
    calculated[17] += 100 * result.sigma_weight[17]
    data = arrays.arrays(problem, result.replace(calculated=calculated))
    first = tables.worst(data)[0]
    assert first["hkl"].split() == [str(h) for h in observations.hkl[17].tolist()]
    assert first["delta"] == "-100.0"
    assert first["sweep"] == int(observations.sweep[17]) + 1
    assert float(first["angle"]) == pytest.approx(math.degrees(observations.angle[17]), abs=0.01)


def test_page_is_the_same_each_time(problem, result, html, tmp_path):
    assert write_page(tmp_path / "again.html", problem, result) == html


def drawn(draw, data) -> Figure:
    figure = Figure(layout="constrained")
    draw(figure, data)
    return figure


def on_paper(draw, data, size=(4.6, 3.1)) -> Figure:
    """Draw a figure as the page has it, so that its parts have a place."""
    with matplotlib.style.context(["default", canvas.STYLE]):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, data)
        figure.canvas.draw()
    return figure


def test_no_legend_lies_over_a_plot(problem, result):
    data = arrays.arrays(problem, with_bands(result))
    draws = (
        scan_figures.draw_thickness_mean,
        scan_figures.draw_thickness_scan,
        history_figures.draw_r1_history,
        reflection_figures.draw_residual,
    )
    for draw in draws:
        figure = on_paper(draw, data)
        (legend,) = figure.legends
        assert not any(axes.get_legend() for axes in figure.axes)
        top = max(axes.get_window_extent().y1 for axes in figure.axes)
        box = legend.get_window_extent()
        assert box.y0 > top and box.y1 <= figure.bbox.y1 and box.x1 <= figure.bbox.x1, draw
    assert len(on_paper(draws[0], data).legends[0].get_texts()) == 4


@pytest.mark.parametrize("count", [4, 16, 60])
def test_names_of_stages_stand_apart_and_iterations_are_whole(problem, result, count):
    """The first stages have one iteration each."""
    names = ["scale", "thickness", "coarse", *["joint"] * count][:count]
    history = tuple({**h, "stage": n} for h, n in zip(make_history(count), names, strict=True))
    data = arrays.arrays(problem, result.replace(history=history))
    for draw in (history_figures.draw_loss, history_figures.draw_r1_history):
        figure = on_paper(draw, data)
        (axes,) = figure.axes
        boxes = [text.get_window_extent() for text in axes.texts]
        assert [text.get_text() for text in axes.texts] == ["scale", "thickness", "coarse", "joint"]
        for first, second in itertools.combinations(boxes, 2):
            assert not first.overlaps(second)
        assert all(box.y1 <= figure.bbox.y1 for box in boxes)
        legends = [legend.get_window_extent() for legend in figure.legends]
        assert not any(box.overlaps(legend) for box in boxes for legend in legends)
        assert all(tick == round(tick) for tick in axes.get_xticks())


def test_each_model_is_drawn_under_its_name(problem, result):
    perfect = problem.observations.intensity
    data = arrays.arrays(problem, result.replace(kinematic=perfect))
    (kinematic, dynamical) = drawn(reflection_figures.draw_shells, data).axes[0].containers
    assert kinematic.get_label() == "kinematic"
    assert {bar.get_height() for bar in kinematic} == {0}
    assert max(bar.get_height() for bar in dynamical) > 3
    lines = drawn(scan_figures.draw_frames, data).axes[0].get_lines()
    assert [(line.get_label(), line.get_ydata().max() > 0) for line in lines] == [
        ("kinematic", False),
        ("dynamical", True),
    ]
    diagonal, *points = drawn(reflection_figures.draw_scatter_kinematic, data).axes[0].get_lines()
    assert all((line.get_xdata() == line.get_ydata()).all() for line in points)


def test_r1_of_shells_and_blocks_add_up_to_the_whole(problem, result):
    data = arrays.arrays(problem, result)
    use = data.observed & ~data.free
    f_obs = np.sqrt(data.i_obs[use])
    misfit = np.abs(f_obs - np.sqrt(data.i_dynamical[use])).sum()
    per_block = arrays.r1_by(data.block[use], 12, data.i_obs[use], data.i_dynamical[use])
    weight = np.bincount(data.block[use], f_obs, minlength=12)
    assert (per_block * weight).sum() == pytest.approx(misfit)
    labels = [text.get_text() for text in drawn(reflection_figures.draw_shells, data).axes[0].texts]
    assert sum(map(int, labels)) == use.sum()


def test_thickness_map_has_depth_upwards_and_angle_to_the_right(problem, result):
    p = torch.zeros(12, 30, dtype=torch.float64)
    p[:, 4] = 1
    p[8] = 0
    p[8, 20] = 1  # third block of the second sweep
    data = arrays.arrays(problem, result.replace(thickness=p))
    figure = drawn(scan_figures.draw_thickness_map, data)
    mesh = figure.axes[1].collections[0]
    values = np.asarray(mesh.get_array()).reshape(30, 6)
    assert values[20, 2] == values.max() and values[4, 2] == 0
    corner = np.asarray(mesh.get_coordinates())[20, 2].tolist()
    assert corner == pytest.approx([2, 820])  # degree, A: a grid of 40 A from 40 A
    mean = figure.axes[1].get_lines()[-1].get_ydata().tolist()
    assert mean == pytest.approx([200, 200, 840, 200, 200, 200])


def with_bands(result):
    mean_su = 10.0 + torch.arange(12).double()
    su = 0.1 * result.thickness
    return result.replace(
        thickness_su=su, thickness_mean_su=mean_su, thickness_average_su=su.mean(0)
    )


def test_bands_are_as_wide_as_the_uncertainties(problem, result):
    data = arrays.arrays(problem, with_bands(result))
    axes = drawn(scan_figures.draw_thickness_scan, data).axes
    bands = [{c.get_label(): c for c in a.collections}["mean ± s.u."] for a in axes[:2]]
    mean, first = data.thickness @ data.depth, data.sweeps[0]
    for band, blocks in zip(bands, data.sweeps, strict=True):
        corners = band.get_paths()[0].vertices
        for x, block in zip(data.block_angle[blocks], blocks, strict=True):
            here = corners[np.isclose(corners[:, 0], x), 1]
            expected = mean[block] - 10 - block, mean[block] + 10 + block
            assert (here.min(), here.max()) == pytest.approx(expected)
    assert len(first) == 6
    average = drawn(scan_figures.draw_thickness_mean, data).axes[0]
    (band,) = (c for c in average.collections if c.get_label() == "± s.u.")
    peak = data.thickness.mean(0).max() * 100 / 40
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(1.1 * peak)


def test_a_result_of_an_earlier_version_has_no_bands(problem, result, tmp_path):
    """Its file has no s.u. of the thickness; the page and the numbers do without."""
    values = {"result": result}
    save_records(tmp_path / "old.h5", **values)
    with h5py.File(tmp_path / "old.h5", "a") as file:
        for name in ("thickness_su", "thickness_mean_su", "thickness_average_su"):
            del file["result"][name]
    old = load_records(tmp_path / "old.h5")["result"]
    assert old.thickness_mean_su is None
    found = make_contract(problem, old)["thickness"]
    assert found["mean_su"] is found["distribution_su"] is found["average_su"] is None
    figure = drawn(scan_figures.draw_thickness_scan, arrays.arrays(problem, old))
    assert [c.get_label() for c in figure.axes[0].collections] == ["s.d. of p(t)"]


def test_the_uncertainties_of_the_thickness_are_in_the_numbers(problem, result):
    found = make_contract(problem, with_bands(result))["thickness"]
    assert found["mean_su"] == [10.0 + i for i in range(12)]
    assert np.shape(found["distribution_su"]) == (12, 30) == np.shape(found["distribution"])
    assert np.shape(found["average_su"]) == (30,)


def test_many_reflections_become_a_bitmap(problem, result):
    size, draw = (4.6, 4.6), reflection_figures.draw_scatter_dynamical
    few = canvas.svg("few", size, draw, arrays.arrays(problem, result))
    assert few.count("<use") >= 200 and "<image" not in few
    large = make_problem(n=6000)
    many = canvas.svg("many", size, draw, arrays.arrays(large, make_result(large)))
    assert many.count("<use") < 100 and "<image" in many
    assert len(many) < 300_000


def test_smallest_problem(tmp_path):
    """One block, one depth, one weak reflection, nothing refined."""
    problem = make_problem(n=1, n_sweeps=1, n_blocks=1)
    weak = problem.observations.replace(intensity=torch.tensor([-1.0]).double())
    problem = problem.replace(observations=weak, provenance={})
    result = make_result(problem).replace(
        depth=torch.tensor([600.0]).double(),
        thickness=torch.ones(1, 1).double(),
        history=(),
        summary={},
    )
    found = Page(write_page(tmp_path / "small.html", problem, result))
    assert "convergence" not in found.ids and found.tags["svg"] == 12
    assert "Neither was tested" in found.text


def test_many_sweeps_take_the_width_of_the_page(tmp_path):
    problem = make_problem(n=60, n_sweeps=4, n_blocks=2)
    html = write_page(tmp_path / "many.html", problem, make_result(problem))
    assert html.count('<figure class="wide">') == html.count('viewBox="0 0 691.2') == 5
    assert "sweep 4" in Page(html).text


# ------------------------------------------------------------------ files


def test_refused_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        report.write_json(path, {"final": {"r1_obs": NAN}})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["json", "html"])
def test_failed_write_leaves_the_old_file(kind, problem, result, tmp_path, monkeypatch):
    path = tmp_path / f"report.{kind}"
    path.write_text("old")
    contract = make_contract(problem, result)

    def disk_full(self, text, **options):
        with open(self, "w", encoding="utf-8") as handle:
            handle.write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", disk_full)
    with pytest.raises(OSError, match="No space"):
        if kind == "json":
            report.write_json(path, contract)
        else:
            report.write_html(path, problem, result, contract)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
