"""Hydrogen atoms of parents on special positions, at copies by symmetry, in any order."""

import importlib
import itertools
import math

import numpy as np
import pytest

pytest.importorskip("cctbx.xray", reason="cctbx is not installed")
pytest.importorskip("smtbx.refinement.constraints", reason="smtbx is not installed")

from cctbx import crystal, xray

from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_cif_atoms import atom_flags
from dials_hybrid.io_constraints import Parameters, constrained
from dials_hybrid.io_hydrogen_sites import NUCLEAR_DISTANCE
from dials_hybrid.io_riding import warn_of_xray_distances

RIDING = Parameters(hydrogens="riding")
CELL = (8, 9, 10, 90, 90, 90)
TETRAHEDRAL = math.degrees(math.acos(-1 / 3))


def made(group: str, atoms, cell=CELL):
    """Return a structure of atoms (label, place in A); the element is the label's first letter."""
    out = xray.structure(crystal_symmetry=crystal.symmetry(cell, group))
    for label, place in atoms:
        site = out.unit_cell().fractionalize(place)
        out.add_scatterer(xray.scatterer(label, site=site, u=0.03, scattering_type=label[0]))
    return out


def around(structure, label: str, reach=1.3):
    """Return the vectors, in A, from an atom to the H atoms that are near, all copies counted."""
    cell = structure.unit_cell()
    atoms = {sc.label: sc for sc in structure.scatterers()}
    start = np.array(cell.orthogonalize(atoms[label].site))
    found = []
    for sc in structure.scatterers():
        if sc.scattering_type != "H":
            continue
        for operator, shift in itertools.product(
            structure.space_group(), itertools.product((-1, 0, 1), repeat=3)
        ):
            x = np.array(operator * sc.site)
            vector = np.array(cell.orthogonalize(tuple(x - np.floor(x) + shift))) - start
            if np.linalg.norm(vector) < reach and not any(
                np.linalg.norm(vector - other) < 1e-3 for other in found
            ):
                found.append(vector)
    return np.array(found)


def angles(vectors):
    """Return the angles in degrees between all pairs of vectors."""
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    first, second = np.triu_indices(len(unit), 1)
    return np.degrees(np.arccos((unit @ unit.T)[first, second]))


def factors(constraints, structure):
    """Return U(H) / U(parent) by label."""
    labels = [sc.label for sc in structure.scatterers()]
    return {labels[atom]: factor for atom, _, factor in constraints.riding_u}


# H off the ideal places by about 0.1 A; the mirror is at y = 2.25 A
METHYL = [
    ("C1", (2.0, 2.25, 2.0)),
    ("C2", (3.5, 2.25, 2.1)),
    ("H1", (1.7, 2.25, 2.95)),
    ("H2", (1.6, 3.05, 1.55)),
]


@pytest.mark.parametrize("element", ["C", "N"])
def test_three_hydrogen_atoms_of_which_a_mirror_makes_one(element, warnings_logged):
    atoms = [(label.replace("C1", f"{element}1"), place) for label, place in METHYL]
    moved, record, constraints = constrained(made("P n m a", atoms), RIDING, None)
    assert warnings_logged() == []
    assert factors(constraints, moved) == {"H1": 1.5, "H2": 1.5}
    found = around(moved, f"{element}1")
    assert np.linalg.norm(found, axis=1) == pytest.approx([NUCLEAR_DISTANCE[element]] * 3)
    assert angles(found) == pytest.approx([TETRAHEDRAL] * 3)
    assert float(record.site[2, 1]) == 0.25
    assert atom_flags(record)["_atom_site_refinement_flags_posn"] == ["S", "S", "RS", "R"]


def test_a_group_whose_parent_is_on_an_axis():
    """CH2 on a two-fold axis along b at x = z = 0, NH3 on a three-fold one."""
    chain = [("C1", (0, 2, 0)), ("C2", (1.26, 2.85, 0.2)), ("H1", (-0.2, 1.4, 0.9))]
    moved, _, constraints = constrained(made("P 1 2 1", chain), RIDING, None)
    assert factors(constraints, moved) == {"H1": 1.2}
    found = around(moved, "C1")
    assert np.linalg.norm(found, axis=1) == pytest.approx([NUCLEAR_DISTANCE["C"]] * 2)
    assert 105 < angles(found)[0] < 112
    cell = (9, 9, 8, 90, 90, 120)
    ammonium = [("N1", (0, 0, 2)), ("C1", (0, 0, 3.48)), ("H1", (0.9, 0.1, 1.6))]
    moved, _, constraints = constrained(made("P 3", ammonium, cell), RIDING, None)
    assert factors(constraints, moved) == {"H1": 1.5}
    assert angles(around(moved, "N1")) == pytest.approx([TETRAHEDRAL] * 3)


def test_ammonium_of_which_a_mirror_makes_one_atom_turns():
    """It has no usual geometry, and the factor of groups that turn."""
    atoms = [
        ("N1", (2.0, 2.25, 2.0)),
        ("H1", (3.0, 2.25, 2.0)),
        ("H2", (1.7, 2.25, 2.95)),
        ("H3", (1.7, 3.05, 1.55)),
    ]
    moved, _, constraints = constrained(made("P n m a", atoms), RIDING, None)
    assert set(factors(constraints, moved).values()) == {1.5}


def test_bridges_are_counted_once():
    """An H atom at a centre between two O atoms is one for each of them."""
    bridge = [("N1", (1.2, 0, 0)), ("H1", (0, 0, 0)), ("C1", (1.9, 1.2, 0)), ("C2", (1.9, -1.2, 0))]
    moved, _, constraints = constrained(made("P -1", bridge), RIDING, None)
    assert factors(constraints, moved) == {"H1": 1.2}


def test_torsions_that_symmetry_leaves_are_refined():
    """A methyl group on a mirror does not turn, one on no symmetry element does."""
    rows = {}
    for group in ("P n m a", "P 21 21 21"):
        extra = [] if group == "P n m a" else [("H3", (1.65, 1.4, 1.6))]
        _, record, constraints = constrained(made(group, [*METHYL, *extra]), RIDING, None)
        assert [(axis, parent) for axis, parent, _ in constraints.turning] == [(1, 0)]
        rows[group] = len(record.freedom.site)
    assert rows == {"P n m a": 2 + 2, "P 21 21 21": 3 + 3 + 1}
    _, record, constraints = constrained(made("P 1", METHYL), Parameters(), None)
    assert constraints.turning == () and len(record.freedom.site) == 6, "as given from a CIF"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_the_atoms_of_a_methyl_group_does_not_matter(order, warnings_logged):
    h = [(1.7, 2.25, 2.95), (1.6, 3.05, 1.55), (1.65, 1.4, 1.6)]
    atoms = [*METHYL[:2], *((f"H{i}", h[i]) for i in order)]
    moved, record, _ = constrained(made("P 1", atoms), RIDING, None)
    assert warnings_logged() == []
    start = to_structure(made("P 1", atoms)).site
    assert float((record.site - start).abs().max() * 10) < 0.3
    assert angles(around(moved, "C1")) == pytest.approx([TETRAHEDRAL] * 3)


def test_hydrogen_atoms_listed_away_from_their_parents(warnings_logged):
    """At copies by symmetry: they get the same geometry as beside the parent."""
    h = [(1.7, 2.25, 2.95), (1.6, 3.05, 1.55), (1.65, 1.4, 1.6)]
    near = made("P 21 21 21", [*METHYL[:2], *((f"H{i}", x) for i, x in enumerate(h))])
    away = near.deep_copy_scatterers()
    operators = list(near.space_group())
    for i, shift in enumerate((0, 1, -2), 2):
        sc = away.scatterers()[i]
        sc.site = tuple(x + shift for x in operators[i - 1] * sc.site)
        assert near.unit_cell().distance(sc.site, near.scatterers()[0].site) > 2
    beside, _, _ = constrained(near, RIDING, None)
    found, record, constraints = constrained(away, RIDING, None)
    assert warnings_logged() == []
    assert [parent for _, parent in constraints.riding] == [0, 0, 0]
    order = [np.lexsort(np.round(around(s, "C1"), 6).T) for s in (beside, found)]
    mine, theirs = (around(s, "C1")[o] for s, o in zip((found, beside), order[::-1], strict=True))
    assert mine == pytest.approx(theirs, abs=1e-9)
    for sc, old in zip(found.scatterers(), away.scatterers(), strict=True):
        assert found.unit_cell().distance(sc.site, old.site) < 0.3, "listed where it was"
    assert (record.freedom.parent == 0).sum() == 3


@pytest.mark.parametrize(("length", "said"), [(0.96, 1), (1.07, 0)])
def test_distances_of_x_ray_structures_are_told_of(length, said, warnings_logged):
    """Where they are kept; on average, so that a single atom says nothing."""
    atoms = [("C1", (2, 2, 2)), ("C2", (3.5, 2, 2)), ("C3", (6, 6, 6))]
    atoms += [("H1", (2, 2, 2 + length)), ("H2", (3.5, 2 + length, 2)), ("H3", (6, 6, 6.98))]
    _, record, constraints = constrained(made("P 1", atoms), Parameters(), None)
    warn_of_xray_distances(record, constraints)
    messages = warnings_logged()
    assert len(messages) == said
    for message in messages:
        assert "C-H 0.97 A" in message and "parameters.hydrogens=riding" in message
        assert "(C-H 1.09 A)" in message


@pytest.mark.parametrize(("hydrogens", "said"), [("as_given", 1), ("riding", 0), ("free", 0)])
def test_a_job_tells_of_them_once(sweep, tmp_path, hydrogens, said):
    job = pytest.importorskip("dials_hybrid.job", reason="DIALS is not installed")
    synthetic = importlib.import_module("synthetic")
    path, z = tmp_path / "with_h.cif", 0.2
    lines = [f"C1 C 0.2 0.1 {z} 0.02 Uiso 1", f"H1 H 0.2 0.1 {z + 0.95 / 5.4054} 0.02 Uiso 1"]
    path.write_text(synthetic.QUARTZ_CIF.replace("O1 O", "\n".join([*lines, "O1 O"]), 1))
    options = job.Options(parameters=Parameters(hydrogens=hydrogens))
    found = job.load([sweep.expt, sweep.refl], path, options)
    assert sum("where X-rays see them" in message for message in found.messages) == said
