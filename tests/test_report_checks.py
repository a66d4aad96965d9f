"""The list of what to check, the geometry behind it, and the picture of the unit cell."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("cctbx", reason="cctbx is not installed")

import test_report
import tiny

from dials_hybrid import report
from dials_hybrid.absolute_structure import TwinFraction, ZScore, verdict
from dials_hybrid.report import (
    arrays,
    atom_checks,
    contacts,
    model_checks,
    picture,
    scan_checks,
)
from dials_hybrid.report.json_contract import equivalent_u

ELEMENTS = ("C", "H")


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def molecule(sites, cell=(9.0, 9.0, 9.0, 90.0, 90.0, 90.0), **changes):
    """Return carbon atoms in P1 at Cartesian or fractional sites, U = 0.02 A^2."""
    plain = tiny.triclinic(sites, [1.0] * len(sites), [5.0] * len(sites), cell)
    kinds = {"elements": ELEMENTS, "type": torch.zeros(len(sites), dtype=torch.int64)}
    two = {"ff_a": torch.ones(2, 1).double(), "ff_b": torch.ones(2, 1).double()}
    return plain.replace(
        u_iso=torch.full((len(sites),), 0.02).double(), **{**kinds, **two, **changes}
    )


# --- geometry -------------------------------------------------------------------------------


def test_neighbours_in_quartz():
    found = {(i, j): d for i, j, d in contacts.nearest(tiny.quartz(), 3.2)}
    assert found[0, 1] == pytest.approx(1.60, abs=0.02)  # Si-O
    assert found[1, 1] == pytest.approx(2.61, abs=0.05)  # O-O of a tetrahedron
    assert found[0, 0] == pytest.approx(3.06, abs=0.05)  # Si-Si


def test_neighbours_in_an_oblique_cell():
    """Against all of a large box of cells."""
    rng = np.random.default_rng(4)
    sites = rng.random((4, 3))
    structure = molecule(sites.tolist(), cell=(4.0, 6.0, 5.0, 65.0, 112.0, 60.0))
    axes = contacts.axes(structure)
    expected = {}
    for i, j in itertools.combinations_with_replacement(range(4), 2):
        shifts = np.array(list(itertools.product(range(-6, 7), repeat=3)))
        d = np.linalg.norm((sites[j] - sites[i] + shifts) @ axes.T, axis=1)
        expected[i, j] = d[d > 0.01].min()
    found = {(i, j): d for i, j, d in contacts.nearest(structure, 3.5)}
    assert found == pytest.approx({k: d for k, d in expected.items() if d < 3.5})


def test_an_atom_beside_a_special_position_is_near_to_its_copy():
    quartz = tiny.quartz()
    away = quartz.site + f64([[0, 0.02, 0], [0, 0, 0]])
    found = {(i, j): d for i, j, d in contacts.nearest(quartz.replace(site=away), 0.5)}
    # the two-fold axis is along a: b sin(120 degrees) from it on either side
    assert found == {(0, 0): pytest.approx(2 * 0.02 * 4.916 * math.sin(math.radians(120)))}
    assert contacts.nearest(quartz, 0.5) == []


def test_displacements_in_cartesian_coordinates():
    tensor = contacts.cartesian_u(test_report.quartz())
    assert np.allclose(tensor[0], 0.009 * np.eye(3))
    assert np.allclose(tensor[1], 0.012 * np.eye(3), rtol=0, atol=1e-9)
    tensor = contacts.cartesian_u(tiny.quartz())
    trace = np.trace(tensor, axis1=1, axis2=2) / 3
    assert np.allclose(trace, equivalent_u(tiny.quartz()))
    assert np.allclose(tensor, tensor.transpose(0, 2, 1))


# --- atoms ----------------------------------------------------------------------------------


def kinds(found):
    return [(check.kind, check.severity) for check in found]


def site(u_iso, label="O1"):
    return {"label": label, "u_iso": u_iso}


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        (-0.002, [("negative_u", "alert")]),
        (0.0004, [("small_u", "note")]),
        (0.02, []),
        (0.2, [("large_u", "note")]),
    ],
)
def test_displacements(u, expected):
    found = atom_checks.displacements([site(0.01, "Si1"), site(u)])
    assert kinds(found) == expected
    assert all("O1" in check.text and "Si1" not in check.text for check in found)


def test_many_atoms_are_counted():
    (found,) = atom_checks.displacements([site(-0.01, f"C{i}") for i in range(10)])
    assert "C5" in found.text and "C6" not in found.text and "and 4 more" in found.text


def test_tensors_that_are_not_positive_definite():
    structure = molecule([[0, 0, 0], [0.5, 0.5, 0.5]])
    # U11 U22 < U12^2 although all three diagonal terms are positive
    u_star = f64([[0.01, 0.01, 0.01, 0.02, 0, 0], [0.01, 0.01, 0.01, 0.005, 0, 0]]) / 81
    every = structure.replace(u_star=u_star, anisotropic=torch.tensor([True, True]))
    (found,) = atom_checks.indefinite(every)
    assert found.severity == "alert" and "X0 (-0.0100" in found.text and "X1" not in found.text
    assert atom_checks.indefinite(every.replace(anisotropic=torch.tensor([False, True]))) == []


@pytest.mark.parametrize(
    ("distance", "occ", "kind", "short"),
    [
        (1.20, (1, 1), (0, 0), False),  # acetylene
        (1.10, (1, 1), (0, 0), True),
        (1.10, (0.6, 0.4), (0, 0), False),  # alternatives
        (0.95, (1, 1), (0, 1), False),  # C-H
        (0.70, (1, 1), (0, 1), True),
    ],
)
def test_short_contacts(distance, occ, kind, short):
    # over the face of the cell
    sites = [[0.98, 0.5, 0.5], [(0.98 + distance / 9) % 1, 0.5, 0.5]]
    structure = molecule(sites, occ=f64(occ), type=torch.tensor(kind))
    found = atom_checks.short_contacts(structure)
    assert bool(found) == short
    assert not short or f"X0–X1 {distance:.2f} Å" in found[0].text


def test_occupancies():
    structure = molecule([[0, 0, 0], [0.5, 0.5, 0.5]], occ=f64([1.0, 1.2]))
    (found,) = atom_checks.occupancies(structure)
    assert "X1 (1.200)" in found.text and "X0" not in found.text


def test_values_that_only_a_prior_holds():
    valence = {
        "charge_sigma": 0.3,
        "dipole_sigma": 0.2,
        "charge": {"O": {"value": -1.2, "su": 0.1}, "Si": {"value": 0.6, "su": 0.1}},
        "dipole": {"O1": {"value": [0.1, -0.7, 0], "su": [0.1] * 3}},
    }
    terms = [
        {"term": "background", "expected": 0.1, "stretched": 4.2},
        {"term": "/a/b.py:My_own", "expected": 2, "stretched": 3.1},
        {"term": "frame_scale", "expected": 0.1, "stretched": 2.9},
        {"term": "window"},  # of an earlier version
    ]
    (check,) = model_checks.limits(valence, terms, tiny.quartz())
    assert "charge of O (-1.20 e), dipole of O1, background (4.2 times 0.1)" in check.text
    assert "My own (3.1 times 2)" in check.text and "frame" not in check.text
    none = {"model": "none", "charge_sigma": 0.3, "dipole_sigma": 0.2}
    assert model_checks.limits(none, terms[2:], tiny.quartz()) == []


def test_u_at_its_floor():
    quartz = test_report.quartz()
    low = quartz.replace(u_iso=f64([-0.047, 0.0]))
    (check,) = model_checks.limits({}, [], low)
    assert check.severity == "alert" and "(-0.047 Å²)" in check.text and "O1" not in check.text
    assert model_checks.limits({}, [], quartz.replace(u_iso=f64([-0.04, 0.0]))) == []


def test_restraints_that_the_data_contradict():
    def entry(deviation):
        return {"worst": {"atoms": ["Si1", "O1"], "deviation_over_sigma": deviation}}

    found = {"distance": entry(6.7), "rigid_bond": entry(3.2), "angle": entry(2.9)}
    (check,) = model_checks.restraints(found)
    assert "distance of Si1 O1 (6.7 sigma), rigid bond of Si1 O1 (3.2 sigma)." in check.text
    assert model_checks.restraints({"angle": entry(2.9)}) == model_checks.restraints({}) == []


def test_parameters_of_the_structure_that_move_as_one():
    def pair(r, *kinds):
        return {"first": "x(O1)", "second": "x(O2)", "r": r, "kinds": list(kinds)}

    both = ("structure", "structure")
    (check,) = model_checks.correlations([pair(-0.97, *both), pair(0.9, *both)])
    assert "apart x(O1) and x(O2) (-0.97):" in check.text
    assert model_checks.correlations([pair(0.99, "structure", "scale"), pair(0.94, *both)]) == []
    assert model_checks.correlations([{"first": "a", "second": "b", "r": 1.0}]) == []


def test_what_is_known_of_hand_and_indexing():
    assert model_checks.hand({}) == model_checks.indexing(None) == []
    good = {"verdict": "determined, P 32 2 1: z = 9", "refined": {"other_hand_converged": True}}
    assert model_checks.hand(good) == model_checks.indexing(good["verdict"]) == []
    assert model_checks.hand({"verdict": "not applicable: centrosymmetric"}) == []
    unknown = {"verdict": "undetermined: z = 1.0", "refined": {"other_hand_converged": False}}
    first, second = model_checks.hand(unknown)
    assert (first.severity, first.kind) == ("note", "absolute_structure")
    assert first.text == "The absolute structure is undetermined: z = 1.0."
    assert (second.severity, second.kind) == ("note", "other_hand_not_converged")
    score, twin = ZScore(100, 20), TwinFraction(None, None)
    sentence = verdict(score, twin, "as indexed", -0.01)
    (worse,) = model_checks.indexing(sentence)
    assert (worse.severity, worse.kind) == ("alert", "indexing") and sentence in worse.text


def test_peaks_far_above_the_noise():
    def peak(sigma, atom):
        return {"height": 3.7 * sigma, "sigma": sigma, "atom": atom, "distance": 1.04}

    found = {"peaks": [peak(9.8, "O1"), peak(7.0, "O2")], "holes": [peak(-5.9, "Si1")]}
    (check,) = atom_checks.difference_map(found)
    assert "+36.26 V, is 9.8 times its r.m.s., 1.04 Å from O1" in check.text
    (check,) = atom_checks.difference_map({"peaks": [], "holes": [peak(-6.1, "Si1")]})
    assert "deepest hole" in check.text and "6.1 times" in check.text
    assert atom_checks.difference_map(None) == []


# --- a whole result -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return test_report.make_problem(n=600, n_sweeps=1, n_blocks=12)


@pytest.fixture(scope="module")
def result(problem):
    made = test_report.make_result(problem)
    return made.replace(u_su=f64([0.0004, 0.0006]))


def found_in(problem, result):
    return {check["kind"]: check for check in report.contract(problem, result)["checks"]}


def test_nothing_is_found_where_all_is_well(problem, result):
    assert found_in(problem, result) == {}


def with_summary(result, **changes):
    return result.replace(summary={**result.summary, **changes})


def turned(result, *steps):
    """Return the result with turns about the axis, (block, degree), added from a block on."""
    orientation = result.orientation.clone()
    for block, degree in steps:
        orientation[block:, 0] += math.radians(degree)
    return result.replace(orientation=orientation)


def worse_in_block(problem, result, block):
    mine = problem.observations.link_block == block
    return result.replace(calculated=torch.where(mine, 3.0, 1.0) * result.calculated)


def in_depth(result, first, last):
    p = torch.zeros_like(result.thickness)
    p[:, first:last] = 1 / (last - first)
    return result.replace(thickness=p)


def final(result, r1):
    return {**result.summary["final"], "r1_obs": r1}


TROUBLES = {
    "not_converged": (
        lambda p, r: r.replace(converged=False, stop_reason="the limit"),
        "did not converge: the limit",
    ),
    "no_better_than_kinematic": (
        lambda p, r: with_summary(r, final=final(r, 0.21)),
        "R1 21.0 %) is no better than the kinematic one (20.7 %)",
    ),
    "free_r": (
        lambda p, r: with_summary(r, free={"r1_obs": 0.15, "n": 12}),
        "12 held-out reflections, 15.0 %",
    ),
    "large_site_su": (
        lambda p, r: r.replace(site_su=f64([[0.002] * 3, [0.002, 0.07, 0.002]])),
        "O1 (0.070 Å)",
    ),
    "large_u_su": (lambda p, r: r.replace(u_su=f64([0.02, 0.001])), "larger than U itself: Si"),
    "bad_frames": (lambda p, r: worse_in_block(p, r, 7), "7.5° ("),
    "orientation_jump": (lambda p, r: turned(r, (5, 0.4)), "jumps at 5.5° (0."),
    "large_turn": (lambda p, r: turned(r, (0, 1.5)), "turned by up to 1."),
    "thickness_edge": (lambda p, r: in_depth(r, 20, 30), "ends at 1200 Å: raise depth.max"),
    "thickness_thin": (lambda p, r: in_depth(r, 0, 15), "lie below 120 Å"),
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_troubles_are_found_alone(problem, result, kind):
    spoil, words = TROUBLES[kind]
    found = found_in(problem, spoil(problem, result))
    assert list(found) == [kind] and words in found[kind]["text"]


def test_single_blocks_at_the_edge_of_the_grid_are_seen(problem, result):
    """Two of twelve blocks and a third one apart, not enough to count in the mean."""
    p = result.thickness.clone()
    for block, weight in ((3, 0.35), (4, 0.2), (9, 0.31)):
        p[block] *= (1 - weight) / p[block].sum()
        p[block, -1] += weight
    last = p[:, -3:].sum(1)
    assert float(last.mean()) < 0.08
    (found,) = scan_checks.thickness(arrays.arrays(problem, result.replace(thickness=p)))
    assert found.severity == "alert" and "(35 % at 3.5°, 31 % at 9.5°)." in found.text
    p[4] = p[3]
    (found,) = scan_checks.thickness(arrays.arrays(problem, result.replace(thickness=p)))
    assert "(35 % at 3.0 to 5.0°, 31 % at 9.5°)." in found.text
    few = result.thickness.clone()
    few[3] = 0
    few[3, [0, -1]] = torch.tensor([0.55, 0.45]).double()
    (found,) = scan_checks.thickness(arrays.arrays(problem, result.replace(thickness=few)))
    assert found.text.startswith("4 %"), "below the limit of the mean"


def test_few_free_reflections_say_nothing(problem, result):
    few = with_summary(result, free={"r1_obs": 0.2, "n": 5})
    assert found_in(problem, few) == {}


def test_gaps_between_blocks_are_no_jumps(problem, result):
    """After a gap of the scan, as when frames were left out, the crystal may stand elsewhere."""
    scan = problem.scan
    later = scan.angle + math.radians(30) * (torch.arange(12)[:, None] >= 5)
    apart = problem.replace(scan=scan.replace(angle=later))
    data = arrays.arrays(apart, turned(result, (5, 0.4)))
    assert scan_checks.orientations(data) == []


def few_in_blocks(problem, result, fewer):
    """Return the problem and the result with at most `fewer` observed reflections in each block."""
    o = problem.observations
    seen = torch.zeros(len(problem.scan.sweep))
    weak = torch.zeros(len(o.intensity), dtype=torch.bool)
    for i, block in enumerate(o.link_block.tolist()):
        if bool(o.observed[i]) and not bool(o.free[i]):
            seen[block] += 1
            weak[i] = seen[block] > fewer
    sigma = torch.where(weak, o.intensity.abs(), o.sigma)
    return problem.replace(observations=o.replace(sigma=sigma)), result


@pytest.mark.parametrize(
    ("fewer", "bad", "words"),
    [
        (4, (6, 7), "6.0 to 8.0° ("),  # two blocks together have eight
        (3, (6, 7, 8), "6.0 to 9.0° ("),
        (50, (7,), ": 7.5° ("),
    ],
)
def test_bad_frames_of_few_reflections_are_seen(fewer, bad, words):
    problem = test_report.make_problem(n=1200, n_sweeps=1, n_blocks=24)
    result = test_report.make_result(problem)
    problem, result = few_in_blocks(problem, result, fewer)
    assert scan_checks.bad_frames(arrays.arrays(problem, result)) == []
    for block in bad:
        result = worse_in_block(problem, result, block)
    (found,) = scan_checks.bad_frames(arrays.arrays(problem, result))
    assert words in found.text


def test_every_reflection_is_in_one_range():
    """Ranges of two sweeps, the first of which has a gap."""
    problem = test_report.make_problem(n=60, n_sweeps=2, n_blocks=12)
    later = math.radians(30) * ((torch.arange(24) >= 5) & (torch.arange(24) < 12))
    scan = problem.scan.replace(angle=problem.scan.angle + later[:, None])
    data = arrays.arrays(problem.replace(scan=scan), test_report.make_result(problem))
    count = np.full(24, 3)
    count[[2, 20]] = 8
    ranges = [blocks.tolist() for blocks in scan_checks._ranges(data, count)]
    first = [[0, 1], [2], [3, 4], [5, 6, 7], [8, 9, 10], [11]]
    assert ranges == [*first, [12, 13, 14], [15, 16, 17], [18, 19], [20], [21, 22, 23]]


def test_alerts_come_first_and_are_plain_values(problem, result):
    spoilt = worse_in_block(problem, in_depth(result, 20, 30), 7)
    found = report.contract(problem, spoilt)["checks"]
    assert [check["severity"] for check in found] == ["alert", "note"]
    assert json.loads(json.dumps(found)) == found


def test_the_page_shows_them(problem, result, tmp_path):
    spoilt = in_depth(result, 20, 30)
    page = test_report.Page(test_report.write_page(tmp_path / "a.html", problem, spoilt))
    assert page.ids["checks"] == 1 and "raise depth.max" in page.text
    page = test_report.Page(test_report.write_page(tmp_path / "b.html", problem, result))
    assert page.ids["checks"] == 1 and "found nothing unusual" in page.text


# --- picture --------------------------------------------------------------------------------


def test_the_cell_of_quartz_is_complete():
    drawing = picture.compose(tiny.quartz())
    vectors = drawing.place[drawing.bonds[:, 0]] - drawing.place[drawing.bonds[:, 1]]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.61, abs=0.03)
    fractional = drawing.place @ np.linalg.inv(drawing.view).T
    inside = ((fractional > -0.02) & (fractional < 1.02)).all(1)
    silicon = np.flatnonzero((drawing.atom == 0) & inside)
    bonds = np.bincount(drawing.bonds.ravel(), minlength=len(drawing.atom))
    assert (bonds[silicon] == 4).all()
    # three Si, which lie on faces and are there twice
    assert len(silicon) == 6 and (inside & (drawing.atom == 1)).sum() == 6


def test_the_shortest_axis_points_to_the_eye():
    drawing = picture.compose(molecule([[0.1, 0.2, 0.3]], cell=(9.0, 5.0, 8.0, 90.0, 110.0, 90.0)))
    assert drawing.along == "b"
    assert drawing.view[:, 1] == pytest.approx([0, 0, 5])
    assert drawing.view[1, 2] == pytest.approx(0) and drawing.view[0, 2] > 0
    assert np.linalg.det(drawing.view) > 0  # not its mirror image


def test_ellipsoids_turn_with_the_atoms():
    quartz = tiny.quartz()
    drawing = picture.compose(quartz)
    sizes = np.linalg.eigvalsh(drawing.tensor[drawing.atom == 1])
    assert np.allclose(sizes, sizes[0], rtol=1e-9)
    # the long axis makes the same angle with the bond to the nearest Si in every image
    _, axes = np.linalg.eigh(drawing.tensor)
    silicon = drawing.place[drawing.atom == 0]
    angles = []
    for k in np.flatnonzero(drawing.atom == 1):
        apart = silicon - drawing.place[k]
        distance = np.linalg.norm(apart, axis=1)
        near = distance < 1.7
        along = np.abs(apart[near] @ axes[k][:, 2] / distance[near])
        if near.sum() == 2:
            angles.append(sorted(along))
    assert len(angles) >= 6 and np.allclose(angles, angles[0], rtol=0, atol=1e-6)


def test_an_ellipsoid_holds_half_of_the_probability():
    width, height, angle = picture.outline(np.diag([0.04, 0.01, 0.02]))
    assert (width, height) == pytest.approx((0.2 * 1.5382, 0.4 * 1.5382))
    assert abs(math.sin(math.radians(angle))) == pytest.approx(1)  # the narrow one is along y
    points = torch.randn(200000, 3, generator=torch.Generator().manual_seed(0))
    share = (points.norm(dim=1) < picture.HALF_PROBABILITY).double().mean()
    assert float(share) == pytest.approx(0.5, abs=0.004)
    assert picture.outline(np.diag([-0.01, -0.01, 0.02]))[:2] == (0, 0)


def test_ionic_and_alternative_atoms_are_not_bonded():
    sites = [[0.1, 0.1, 0.1], [0.1 + 2.0 / 9, 0.1, 0.1], [0.1 + 0.3 / 9, 0.1, 0.1]]
    salt = molecule(sites, elements=("Na", "Cl"), type=torch.tensor([0, 1, 0]))
    assert len(picture.compose(salt).bonds) == 0
    covalent = dataclasses.replace(salt, elements=("Si", "Cl"))
    assert sorted(map(tuple, picture.compose(covalent).bonds.tolist())) == [(0, 1), (1, 2)]


def test_a_large_structure_shows_its_asymmetric_unit(monkeypatch):
    monkeypatch.setattr(picture, "MOST", 5)
    drawing = picture.compose(tiny.quartz())
    assert set(drawing.atom) == {0, 1} and len(drawing.atom) < 12
