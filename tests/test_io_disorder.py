"""Alternatives of a disorder: read from SHELX and CIF, never bonded to one another."""

import itertools
from types import SimpleNamespace

import pytest

pytest.importorskip("cctbx.xray", reason="cctbx is not installed")
pytest.importorskip("smtbx.refinement.constraints", reason="smtbx is not installed")

from dials_hybrid.io_bonds import bonds_and_angles, neighbours
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_constraints import Parameters, constrained
from dials_hybrid.io_disorder import cif_columns, exclude, group_of, parts_of
from dials_hybrid.io_hydrogens import parents_of_hydrogens, usual_groups
from dials_hybrid.io_restraints import RestraintOptions, restraints_of
from dials_hybrid.io_shelx import read_instructions
from dials_hybrid.io_structures import read_structure

# Made up: ethanol whose hydroxyl group has two places, each with its H, 0.9 A apart; H2B of one
# is nearer to the oxygen atom of the other
INS = """\
TITL made up
CELL 0.0251 10 10 10 90 90 90
ZERR 1 0 0 0 0 0 0
LATT -1
SFAC C H O
UNIT 2 6 1
FVAR 1.0 0.6
RIGU
C1 1 0.50 0.50 0.50 11.0 0.02 0.02 0.02 0 0 0
C2 1 0.65 0.50 0.50 11.0 0.02 0.02 0.02 0 0 0
PART 1
O1A 3 0.70 0.63 0.51 21.0 0.02 0.02 0.02 0 0 0
H1A 2 0.79 0.62 0.50 21.0 -1.5
PART 2
O1B 3 0.70 0.60 0.59 -21.0 0.02 0.02 0.02 0 0 0
H1B 2 0.76 0.66 0.54 -21.0 -1.5
PART 0
HKLF 4
END
"""
PARTS = (0, 0, 1, 1, 2, 2)
LABELS = ("C1", "C2", "O1A", "H1A", "O1B", "H1B")


@pytest.fixture
def ins(tmp_path):
    path = tmp_path / "made.ins"
    path.write_text(INS)
    return path


@pytest.fixture
def ethanol(ins):
    return read_structure(ins)


def test_parts_of_a_shelx_file(ins, tmp_path):
    assert parts_of(ins, 6) == PARTS
    peaks = tmp_path / "peaks.res"
    peaks.write_text(INS.replace("HKLF 4", "Q1 1 0.1 0.1 0.1 11.0 0.05 1.5\nHKLF 4"))
    assert parts_of(peaks, 6) == PARTS
    plain = tmp_path / "plain.ins"
    plain.write_text(INS.replace("PART", "REM PART"))
    assert parts_of(plain, 6) == ()


@pytest.mark.parametrize("groups", ["1 2", "A B"])
def test_groups_of_a_cif(tmp_path, groups):
    path, (first, second) = tmp_path / "a.cif", groups.split()
    head = "\n".join(
        f"_cell_length_{x} 9\n_cell_angle_{y} 90"
        for x, y in zip("abc", ("alpha", "beta", "gamma"), strict=True)
    )
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "disorder_group")
    loop = "\n".join(["loop_", *(f"_atom_site_{c}" for c in columns)])
    atoms = f"C1 C 0 0 0 .\nO1 O 0.1 0 0 {first}\nO2 O 0 0.1 0 {second}"
    path.write_text(f"data_a\n{head}\n_space_group_name_H-M_alt 'P 1'\n{loop}\n{atoms}\n")
    assert parts_of(path, 3) == (0, 1, 2)
    assert parts_of(path, 4) == (), "the parts of another structure"
    assert parts_of(tmp_path / "a.pdb", 3) == ()


def test_assemblies_of_a_cif_are_apart(tmp_path):
    """Group 1 of one and group 2 of another can be there together; also after writing."""
    names, groups = "A A B B . .", "1 2 1 2 . -1"
    path = tmp_path / "a.cif"
    head = "\n".join(
        f"_cell_length_{x} 9\n_cell_angle_{y} 90"
        for x, y in zip("abc", ("alpha", "beta", "gamma"), strict=True)
    )

    def read(*columns):
        keys = ("label", "fract_x", "fract_y", "fract_z", *(name for name, _ in columns))
        loop = "\n".join(["loop_", *(f"_atom_site_{key}" for key in keys)])
        rows = zip(*(values.split() for _, values in columns), strict=True)
        atoms = "\n".join(f"C{i} 0 0 0.{i} {' '.join(row)}" for i, row in enumerate(rows, 1))
        path.write_text(f"data_a\n{head}\n_space_group_name_H-M_alt 'P 1'\n{loop}\n{atoms}\n")
        return parts_of(path, 6)

    parts = read(("disorder_assembly", names), ("disorder_group", groups))
    pairs = [p for p in itertools.combinations(range(6), 2) if exclude(parts, *p)]
    assert pairs == [(0, 1), (2, 3)]
    assert exclude(parts, 5, 5, moved=True) and not exclude(parts, 4, 4, moved=True)
    assert [group_of(part) for part in parts] == [1, 2, 1, 2, 0, -1]
    columns = {k.removeprefix("_atom_site_"): " ".join(v) for k, v in cif_columns(parts).items()}
    assert columns == {"disorder_group": groups, "disorder_assembly": "A A B B . C"}
    assert read(*columns.items()) == parts
    assert read(("disorder_group", "1 2 1 2 . -1")) == (1, 2, 1, 2, 0, -1)
    many = cif_columns((1, 25001, 26001, 60002))["_atom_site_disorder_assembly"]
    assert many == ["A", "Z", "A1", "I2"]
    assert set(cif_columns((0, 1, 2))) == {"_atom_site_disorder_group"}


def test_which_atoms_exclude_one_another():
    parts = (0, 1, 2, -1)
    assert exclude(parts, 1, 2) and exclude(parts, 1, 3)
    assert not exclude(parts, 0, 1) and not exclude(parts, 1, 1, moved=True)
    assert exclude(parts, 3, 3, moved=True) and not exclude(parts, 3, 3)
    assert not exclude((), 1, 2)


def bonded(structure, parts):
    """Return the pairs of labels that have a bond."""
    return {
        frozenset((LABELS[i], LABELS[end[0]]))
        for i, groups in enumerate(neighbours(structure, parts))
        for ends in groups
        for end in ends
    }


def test_alternatives_have_no_bonds_and_angles(ethanol):
    joined = {frozenset(pair) for pair in (("O1A", "O1B"), ("O1A", "H1B"))}
    assert joined <= bonded(ethanol, ())
    kept = [("C1", "C2"), ("C2", "O1A"), ("C2", "O1B"), ("O1A", "H1A"), ("O1B", "H1B")]
    assert bonded(ethanol, PARTS) == {frozenset(pair) for pair in kept}
    found = bonds_and_angles(ethanol, SimpleNamespace(site_covariance=None), parts=PARTS)
    ends = {frozenset((a["atoms"][0], a["atoms"][2])) for a in found["angles"]}
    assert frozenset(("O1A", "O1B")) not in ends and frozenset(("C1", "O1A")) in ends


def test_atoms_of_two_assemblies_are_bonded(ethanol):
    """Those of the hydroxyl group and, next to it, of a C atom in two places of its own."""
    parts = (0, 1001, 1, 1, 2, 2)
    assert {frozenset(("C2", "O1A")), frozenset(("C2", "O1B"))} <= bonded(ethanol, parts)
    parents = parents_of_hydrogens(to_structure(ethanol), parts)
    groups = usual_groups(ethanol, parents, parts)
    assert [(g.parent, g.atoms) for g in groups] == [(2, (3,)), (4, (5,))]


def test_alternatives_are_not_restrained_to_one_another(ethanol, ins):
    def pairs(parts):
        found = restraints_of(ethanol, RestraintOptions(), ins, parts)
        atoms = found.atom.reshape(-1, 2).tolist()
        return {frozenset(LABELS[i] for i in pair) for pair in atoms}

    assert frozenset(("O1A", "O1B")) in pairs(())
    assert pairs(PARTS) == {
        frozenset(pair)
        for pair in (("C1", "C2"), ("C2", "O1A"), ("C2", "O1B"), ("C1", "O1A"), ("C1", "O1B"))
    }


def test_hydrogen_atoms_ride_on_atoms_of_their_own_part(ethanol, ins):
    record = to_structure(ethanol)
    assert parents_of_hydrogens(record)[5] == 2, "by distance alone"
    parents = parents_of_hydrogens(record, PARTS)
    assert parents == {3: 2, 5: 4}
    groups = {(g.parent, g.atoms, g.geometry) for g in usual_groups(ethanol, parents, PARTS)}
    geometry = "terminal_tetrahedral_xh_site"
    assert groups == {(2, (3,), geometry), (4, (5,), geometry)}
    given = read_instructions(ins)
    riding = Parameters(hydrogens="riding")
    moved, _, constraints = constrained(ethanol, riding, given, PARTS)
    assert dict(constraints.riding) == parents
    cell, sites = moved.unit_cell(), moved.sites_frac()
    for atom, parent in parents.items():
        assert cell.distance(sites[atom], sites[parent]) == pytest.approx(0.993, abs=1e-3)
