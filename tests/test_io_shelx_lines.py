"""What the lines of a SHELX file mean: comments, continuation, defaults, names of atoms."""

import pytest

pytest.importorskip("cctbx.xray", reason="cctbx is not installed")

from dials_hybrid.io_shelx_lines import shelx_lines
from dials_hybrid.io_structures import read_structure

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
