"""Names, condition and correlations of what was refined."""

import math

import pytest
import tiny
import torch

from dials_hybrid import correlations
from dials_hybrid.correlations import Quantity
from dials_hybrid.data import Problem
from dials_hybrid.freedom import Constraints, basis
from dials_hybrid.refine import Refinement, RefineSettings
from dials_hybrid.valence import ValenceSettings


@pytest.fixture(scope="module")
def cheap():
    problem = tiny.problem(blocks=4, width=3.0, samples=6, sweeps=2)
    settings = tiny.settings(thickness="distribution", thickness_start=140.0)
    return Refinement(problem, settings, RefineSettings()).linearise()


def test_quantities_are_named_once_and_those_tied_by_symmetry_left_out(cheap):
    found = {q.name: q for q in correlations.quantities(cheap)}
    names = set(found)
    assert {"x(Si1)", "x(O1)", "y(O1)", "z(O1)", "U(Si1)", "U11(O1)", "U23(O1)"} <= names
    # Si lies on a two-fold axis along x; its U is one number, O's are six
    assert not {"y(Si1)", "z(Si1)", "U11(Si1)", "U(O1)"} & names
    # the cell is neutral: one charge follows from the other
    assert {n for n in names if n.startswith("charge")} == {"charge(O)"}
    assert {"scale 1", "orientation 1 along", "orientation 1 across"} <= names
    assert {n for n in names if "thickness" in n} == {
        "mean thickness, sweep 1",
        "mean thickness, sweep 2",
    }
    structure = [q for q in found.values() if q.kind == "structure"]
    assert len(structure) == cheap.parts.crystal.stop
    gradients = torch.stack([q.gradient for q in structure])
    assert int(torch.linalg.matrix_rank(gradients)) == len(structure)


def test_an_atom_that_rides_is_named_after_the_one_it_rides_on():
    """Si1 comes first, and O1, on which it rides, has a tensor: their U are one quantity."""
    problem = tiny.problem(blocks=2)
    structure = problem.structure
    free = basis(structure, Constraints(riding_u=((0, 1, 1.2),)))
    problem = problem.replace(structure=structure.replace(freedom=free))
    cheap = Refinement(problem, tiny.settings(thickness="single")).linearise()
    names = {q.name for q in correlations.quantities(cheap)}
    assert {f"U{end}(O1)" for end in ("11", "22", "33", "12", "13", "23")} <= names
    assert "U(Si1)" not in names and "x(Si1)" in names


def test_the_mean_thickness_moves_as_its_gradient_says(cheap):
    mean = correlations.quantities(cheap)[-1]
    x, step = cheap.start(), 1e-5

    def at(x):
        p = cheap._thickness(x[cheap.parts.thickness], False)[0]
        sweep = cheap.model.problem.scan.sweep
        return float((p[sweep == 1] @ cheap.model.depth).mean())

    generator = torch.Generator().manual_seed(1)
    move = torch.randn(len(x), generator=generator, dtype=torch.float64)
    slope = (at(x + step * move) - at(x - step * move)) / (2 * step)
    assert float(mean.gradient @ move) == pytest.approx(slope, rel=1e-5)


def test_strong_pairs_are_listed_strongest_first_without_neighbours_on_a_curve():
    unit = torch.eye(4).double()
    kinds = ("structure", "structure", "scale", "scale")
    found = [Quantity(f"{k} {i}", k, g) for i, (k, g) in enumerate(zip(kinds, unit, strict=True))]
    r = tiny.f64([[1, 0.6, 0.3, 0], [0.6, 1, -0.8, 0], [0.3, -0.8, 1, 0.9], [0, 0, 0.9, 1]])
    size = torch.diag(tiny.f64([1, 10, 0.1, 3]))
    pairs = correlations.strongest(found, size @ r @ size)
    assert [p[:2] for p in pairs] == [("structure 1", "scale 2"), ("structure 0", "structure 1")]
    assert [p[2] for p in pairs] == pytest.approx([-0.8, 0.6])


def test_the_condition_does_not_depend_on_units():
    r = tiny.f64([[1, 0.99], [0.99, 1]])
    size = torch.diag(tiny.f64([1e-4, 1e3]))
    assert correlations.condition(size @ r @ size) == pytest.approx((1.99 / 0.01, 0))
    # a parameter that nothing sees, and two that cannot be told apart
    full = torch.block_diag(r, tiny.f64([[0.0]]), tiny.f64([[1, 1], [1, 1]]))
    value, undetermined = correlations.condition(full)
    assert value == pytest.approx(2 / 0.01) and undetermined == 2
    assert correlations.condition(torch.zeros(0, 0).double()) == (None, 0)


def test_a_refinement_reports_them(cheap):
    problem = cheap.model.problem
    result = Refinement(problem, cheap.model.settings, RefineSettings(1)).run()
    found = result.summary
    assert found["condition"]["structure"] > 1 and found["condition"]["all"] > 1
    for pair in found["correlations"]:
        assert 0.5 < abs(pair["r"]) <= 1 + 1e-9 and math.isfinite(pair["r"])
        assert pair["first"] != pair["second"]
        of_atoms = [pair[name].endswith(")") for name in ("first", "second")]
        assert [kind == "structure" for kind in pair["kinds"]] == of_atoms
    assert len(found["correlations"]) <= correlations.MOST


def test_what_the_data_do_not_see_is_named(caplog):
    """The third atom is all but absent; the other two hold each other, wherever the origin is."""
    sites = [[0.1, 0.2, 0.3], [0.6, 0.5, 0.8], [0.3, 0.8, 0.1]]
    structure = tiny.triclinic(sites, (3.0, 4.0, 3.0), (8.0, 10.0, 9.0))
    structure = structure.replace(occ=tiny.f64([1, 1, 1e-9]), u_iso=tiny.f64([0.01] * 3))
    sweep = tiny.scan(blocks=4, cell=structure.cell.tolist())
    problem = Problem(structure, sweep, tiny.observations(structure, sweep), {})
    settings = tiny.settings(thickness="single", valence=ValenceSettings("none"))
    result = Refinement(problem, settings, RefineSettings(0)).run()
    names = ["x(X2)", "y(X2)", "z(X2)", "U(X2)"]
    assert result.summary["condition"]["unknown"] == names
    assert f"The data do not determine {', '.join(names)}" in caplog.text
    assert bool((result.site_su[:2] > 0).all())
    assert float(result.site_su[2].max()) < 1e-4  # as if it were known
