"""What the lines of a SHELX file mean: comments, continuation, defaults, names of atoms."""

import pytest

pytest.importorskip("cctbx.xray", reason="cctbx is not installed")
pytest.importorskip("smtbx.refinement.constraints", reason="smtbx is not installed")

import torch
from test_io_constraints import INS
from test_io_disorder import INS as PARTED

from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_constraints import Parameters, resolve
from dials_hybrid.io_disorder import parts_of
from dials_hybrid.io_restraints import RestraintOptions, restraints_of
from dials_hybrid.io_shelx import read_instructions
from dials_hybrid.io_shelx_lines import shelx_lines
from dials_hybrid.io_structures import read_structure
from dials_hybrid.job import cif_text
from dials_hybrid.records import InputError

HEAD = """\
TITL made up
CELL 0.0251 8 9 10 90 95 90
ZERR 4 0 0 0 0 0 0
LATT -1
SYMM -X, 0.5+Y, -Z
SFAC C H O
UNIT 8 8 4
FVAR 1.0 0.6
"""
ATOMS = """\
C1 1 0.1 0.2 0.3 11.0 0.02
O1 3 0.4 0.5 0.6 11.0 0.03
"""
TAIL = "HKLF 4\nEND\n"


@pytest.fixture
def write(tmp_path):
    """Call it with the text of a file for its path."""

    def written(text):
        path = tmp_path / "made.ins"
        path.write_text(text)
        return path

    return written


def labels(structure):
    return [atom.label for atom in structure.scatterers()]


# --- lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "REM Uiso = 0.05 assumed\n" + ATOMS + TAIL,
        HEAD + "REM the last = \n" + ATOMS + TAIL,
        HEAD.replace("made up", "quartz T=100K") + ATOMS + TAIL,
        HEAD.replace("made up", "made up =") + ATOMS + TAIL,
        HEAD + ATOMS.replace("0.02", "0.02 ! d=1.2") + TAIL,
        HEAD + ATOMS.replace("0.02", "0.02 ! =") + TAIL,
        HEAD + ATOMS.replace(" 11.0 0.02", " = ! goes on = there\n  11.0 0.02") + TAIL,
        HEAD + ATOMS.replace(" 0.1 0.2", " =\n 0.1 =\n\t0.2") + TAIL,
        HEAD + "   O9 3 0.4 0.5 0.1 11.0 0.03\n\n" + ATOMS + TAIL,
        HEAD + "CONN 4 = for all\n" + ATOMS + TAIL,
    ],
)
def test_no_atom_is_lost_or_won_by_comments(write, text):
    found = read_structure(write(text))
    assert labels(found) == ["C1", "O1"]
    assert found.unit_cell().parameters() == pytest.approx((8, 9, 10, 90, 95, 90))
    assert [a.site for a in found.scatterers()] == [(0.1, 0.2, 0.3), (0.4, 0.5, 0.6)]
    assert [a.u_iso for a in found.scatterers()] == pytest.approx([0.02, 0.03])


def test_a_line_goes_on_where_it_ends_in_an_equals_sign(write):
    path = write("DFIX 1.5 =\n  C1 C2 = x\nTITL A =\nC1 1 ! =\n!\nL.S. 4\nEND\n")
    assert list(shelx_lines(path)) == [["DFIX", "1.5", "C1", "C2"], ["C1", "1"], ["L.S.", "4"]]


RESTRAINED = """\
EQIV $1 1-X, 1/2+Y, -Z
RESI 1 LIG
DFIX_1 1.5 0.02 C1 O1
DFIX_LIG 2.5 C1 O1_$1
SIMU_* C1 > LAST
ISOR $C
"""


@pytest.mark.parametrize("text", [INS, PARTED, HEAD + RESTRAINED + ATOMS + TAIL])
def test_small_letters_are_capitals(write, text):
    """Also of instructions, elements, operators and names of atoms."""

    def everything(text):
        path = write(text)
        structure = read_structure(path)
        record, count = to_structure(structure), structure.scatterers().size()
        restraints = restraints_of(structure, RestraintOptions(), path)
        return record, read_instructions(path), parts_of(path, count), restraints

    large, small = everything(text), everything(text.lower())
    assert small[0].labels == large[0].labels and small[0].hall_symbol == large[0].hall_symbol
    assert small[0].elements == large[0].elements
    for name in ("site", "u_iso", "u_star", "occ", "type"):
        assert torch.equal(getattr(small[0], name), getattr(large[0], name))
    assert small[1:3] == large[1:3]
    assert (small[3] is None) == (large[3] is None) == (text == INS)
    if text != INS:
        assert small[3].kind == large[3].kind
        assert torch.equal(small[3].trans, large[3].trans)


# --- defaults -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latt", "order", "said"),
    [
        ("", 4, 1),
        ("LATT 1\n", 4, 0),
        ("LATT -1\n", 2, 0),
    ],
)
def test_without_a_lattice_it_is_primitive_and_centrosymmetric(
    write, warnings_logged, latt, order, said
):
    text = HEAD.replace("LATT -1\n", latt)
    path = write(text + ATOMS + TAIL)
    group = read_structure(path).space_group()
    read_instructions(path)
    assert (group.order_z(), group.is_centric()) == (order, order == 4)
    messages = warnings_logged()
    assert len(messages) == said and all("no LATT instruction" in m for m in messages)


# --- names of atoms -------------------------------------------------------------------------

RESIDUES = """\
C1 1 0.1 0.2 0.3 11.0 0.02
RESI 1 LIG
C1 1 0.4 0.2 0.3 11.0 0.03
O1 3 0.4 0.3 0.3 11.0 0.03
RESI LIG 2
C1 1 0.7 0.2 0.3 11.0 0.04
RESI 3
N1 1 0.9 0.2 0.3 11.0 0.05
"""


def test_names_of_several_residues_have_the_residue(write):
    path = write(HEAD + "EADP C1_2 C1\nSIMU_2 0.1 C1\nDFIX 3 C1_1 C1_2\n" + RESIDUES + TAIL)
    structure = read_structure(path)
    assert labels(structure) == ["C1", "C1_1", "O1", "C1_2", "N1"]
    found = read_instructions(path)
    assert found.constraints.linked_u == (((3, 1.0), (0, 1.0)),)
    restraints = restraints_of(structure, RestraintOptions(), path)
    assert restraints.kind == ("distance",) and restraints.atom.tolist() == [1, 3]
    words = RestraintOptions(distance=("C1_1 O1 1 0.1",), shelx=False)
    assert restraints_of(structure, words, path).atom.tolist() == [1, 2]
    record = to_structure(structure)
    assert resolve(record, Parameters(fix=("site C1_2",))).fixed_site == {3}
    assert resolve(record, Parameters(fix=("site C1_*",))).fixed_site == {1, 3}
    assert resolve(record, Parameters(fix=("site C1",))).fixed_site == {0}


def test_atoms_of_residues_come_back_from_a_cif(write, tmp_path):
    """Their displacements are looked up by label."""
    aniso = RESIDUES.replace("0.04", "0.04 0.05 0.06 0.01 0.0 0.0")
    structure = read_structure(write(HEAD + aniso + TAIL))
    path = tmp_path / "a.cif"
    path.write_text(cif_text(structure))
    back = read_structure(path)
    assert labels(back) == labels(structure)
    assert [a.flags.use_u_aniso() for a in back.scatterers()] == [False, False, False, True, False]
    assert [a.u_iso for a in back.scatterers()][:2] == pytest.approx([0.02, 0.03])


@pytest.mark.parametrize(
    ("atoms", "said"),
    [
        (ATOMS + ATOMS.lower(), "two atoms are called C1; give each its own name"),
        (RESIDUES + "RESI 2\n" + ATOMS, "two atoms of residue 2 are called C1; give"),
    ],
)
def test_two_atoms_of_one_name(write, atoms, said):
    with pytest.raises(InputError, match=said):
        read_structure(write(HEAD + atoms + TAIL))


# --- MOVE and AFIX --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        ("MOVE 1 1 1 -1", (0.6, 0.5, 0.4)),
        ("MOVE 0.5 0 0.1", (0.9, 0.5, 0.7)),
        ("MOVE 0.25", (0.65, 0.5, 0.6)),
        ("MOVE 1 1 1 -1\nMOVE", (0.4, 0.5, 0.6)),
    ],
)
def test_atoms_after_a_move_are_moved(write, move, expected):
    """The first atom stands before it; what is added to fix a parameter does not count."""
    first, second = ATOMS.splitlines()
    path = write(f"{HEAD}{first}\n{move}\n{second.replace(' 0.4 0.5', ' 10.4 10.5')}\n{TAIL}")
    sites = [a.site for a in read_structure(path).scatterers()]
    assert sites[0] == pytest.approx((0.1, 0.2, 0.3))
    assert sites[1] == pytest.approx(expected)


RIDER = "H1 2 0.1 0.29 0.3 10.5 0.07\nAFIX 0\n"


@pytest.mark.parametrize(
    ("afix", "rider", "occupancy", "u"),
    [
        ("AFIX 43 0.95 21.0", RIDER, 0.6, 0.07),
        ("AFIX 43 0.9 -21.0 -1.2", RIDER, 0.4, 0.024),
        ("AFIX 43 0.9 11 0.08", RIDER.replace("10.5 0.07", ""), 1.0, 0.08),
        ("AFIX 43", RIDER.replace("10.5 0.07", ""), 1.0, 0.05),
        ("AFIX 43", RIDER.replace("0.07", ""), 0.5, 0.05),
        ("PART 1 -21\nAFIX 43 0.9 11 0.08", RIDER, 0.4, 0.08),
        ("AFIX 43 0.9 11 0.08\nAFIX 3", RIDER, 0.5, 0.07),
    ],
)
def test_occupancy_and_u_of_afix(write, afix, rider, occupancy, u):
    """They hold up to the next AFIX; a PART with an occupancy is stronger."""
    carbon, oxygen = ATOMS.splitlines()
    path = write(f"{HEAD}{carbon}\n{afix}\n{rider}PART 0\n{oxygen}\n{TAIL}")
    atoms = read_structure(path).scatterers()
    assert [a.occupancy for a in atoms] == pytest.approx([1.0, occupancy, 1.0])
    assert [a.u_iso for a in atoms] == pytest.approx([0.02, u, 0.03], abs=1e-6)
    linked = [group for group in read_instructions(path).constraints.occ if group[0][0] == 1]
    signs = {"21": 1.0, "-21": -1.0}
    expected = [((1, signs[w]),) for w in afix.replace("21.0", "21").split() if w in signs]
    assert linked == expected


def test_u_of_afix_is_not_for_tensors(write):
    tensor = ATOMS.replace("11.0 0.03", "11.0 0.03 0.04 0.05 0.01 0 0")
    path = write(HEAD + "AFIX 1 1 10.5 0.09\n" + tensor + TAIL)
    carbon, oxygen = read_structure(path).scatterers()
    assert carbon.u_iso == pytest.approx(0.09) and carbon.occupancy == oxygen.occupancy == 0.5
    assert oxygen.flags.use_u_aniso()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("TWIN -1 0 0 0 -1 0 0 0 -1 2", "TWIN"),
        ("BASF 0.2", "BASF"),
        ("FREE C1 O1", "FREE"),
        ("BIND C1 O1", "BIND"),
        ("CONN 2 C1", "CONN"),
        ("+restraints.txt", "+RESTRAINTS.TXT"),
        ("MOVE 0 0 0\nDEFS 0.01", None),
    ],
)
def test_what_has_no_effect_is_named(write, warnings_logged, line, said):
    path = write(HEAD + line + "\n" + ATOMS + TAIL)
    read_instructions(path)
    restraints_of(read_structure(path), RestraintOptions(), path)
    found = warnings_logged()
    assert len(found) == (said is not None) and all(m.endswith(f"effect: {said}") for m in found)


@pytest.mark.parametrize(("length", "told"), [("0.81", False), ("", False), ("0.95", True)])
def test_a_distance_of_afix_that_the_atoms_do_not_have_is_named(
    write, warnings_logged, length, told
):
    rider = RIDER.replace("10.5", "11.0")
    path = write(f"{HEAD}{ATOMS.splitlines()[0]}\nAFIX 43 {length}\n{rider}{TAIL}")
    (group,) = read_instructions(path).hydrogens
    assert group.length == (float(length) if length else None)
    said = "the distance 0.95 A of AFIX 43 (but with parameters.hydrogens=riding)"
    assert [said in message for message in warnings_logged()] == [True] * told
