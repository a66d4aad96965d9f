"""Residues in the restraints of a SHELX file, defaults of their sigmas, and what is refused."""

import pytest

pytest.importorskip("cctbx")
pytest.importorskip("smtbx.refinement.constraints", reason="smtbx is not installed")

from test_io_restraints import INS, labels_of

from dials_hybrid.io_restraints import RestraintOptions, restraints_of
from dials_hybrid.io_structures import read_structure
from dials_hybrid.records import InputError


@pytest.fixture
def restrained(tmp_path):
    """Call it with instructions for what they restrain in a molecule of three residues.

    Residue 0 has C1 C2, residue 1 of the class XYZ C3 C4 C5, residue 2 of ABC C6 N1 O1 H1.
    """

    def restraints(*instructions, rename=()):
        text = INS.format(instructions="\n".join(instructions))
        text = text.replace("\nC3 ", "\nRESI 1 XYZ\nC3 ").replace("\nC6 ", "\nRESI ABC 2\nC6 ")
        for old, new in rename:
            text = text.replace(f"\n{old} ", f"\n{new} ")
        path = tmp_path / "residues.ins"
        path.write_text(text)
        return restraints_of(read_structure(path), RestraintOptions(), path)

    return restraints


def atoms_of(found):
    """Return the labels of the atoms that are restrained."""
    return sorted({name for members in labels_of(found) for name in members}) if found else []


CARBON = ["C1", "C2", "C3", "C4", "C5", "C6"]


# --- residues -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ISOR $C_*", CARBON),
        ("ISOR $C", CARBON),
        ("ISOR $C_1", ["C3", "C4", "C5"]),
        ("ISOR $C_XYZ", ["C3", "C4", "C5"]),
        ("ISOR_1 $C", ["C3", "C4", "C5"]),
        ("ISOR_1 $C_*", CARBON),
        ("ISOR_1", ["C3", "C4", "C5"]),
        ("ISOR_*", [*CARBON, "O1"]),
        ("ISOR", [*CARBON, "O1"]),
        ("ISOR C1_* C4_*", ["C1", "C4"]),
        ("ISOR_ABC C6 O1", ["C6", "O1"]),
        ("ISOR C3_1 > C5_1 $O_*", ["C3", "C4", "C5", "O1"]),
        ("ISOR $C_* $BR_*", CARBON),
    ],
)
def test_atoms_of_residues(restrained, warnings_logged, line, expected):
    assert atoms_of(restrained(line)) == expected
    assert warnings_logged() == []


@pytest.mark.parametrize("line", ["SIMU C1_* C2_*", "SIMU C1_* > C2_*"])
def test_names_and_ranges_of_every_residue(restrained, line):
    """Two residues have a C1 and a C2, bonded to one another in each; C2 to the other C1, too."""
    found = labels_of(restrained(line, rename=(("C3", "C1"), ("C4", "C2"))))
    assert found == [["C1", "C2"], ["C2", "C3"], ["C3", "C4"]]


def test_no_atom_is_restrained_twice(restrained):
    """SIMU_* is for each residue by itself."""
    pairs = labels_of(restrained("SIMU_*"))
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == 3
    assert ["C2", "C3"] not in pairs and ["C2", "C3"] in labels_of(restrained("SIMU"))


def test_pairs_are_of_one_residue(restrained):
    names = (("C3", "C1"), ("C4", "C2"))
    expected = [["C1", "C2"], ["C3", "C4"]]
    assert labels_of(restrained("DFIX 1.4 C1_* C2_*", rename=names)) == expected
    assert labels_of(restrained("DFIX_* 1.4 C1 C2", rename=names)) == expected


@pytest.mark.parametrize(
    "line",
    ["SIMU $BR", "SIMU $BR_*", "SIMU_1 $N", "SIMU C9_*", "SIMU_XYZ C1", "SIMU_NON C1", "ISOR C9"],
)
def test_words_without_an_atom_restrain_nothing(restrained, warnings_logged, line):
    assert restrained(line) is None
    assert any(line in message for message in warnings_logged())


# --- sigmas ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "usual", "of_defs"),
    [
        ("DFIX 1.4 C1 C2", 0.02, 0.03),
        ("DANG 2.4 C1 C2", 0.04, 0.06),
        ("SADI C1_0 C2_0 C3_1 C4_1", 0.02, 0.03),
        ("FLAT C1_0 C2_0 C3_1 C4_1", 0.1, 0.2),
        ("DELU C1 C2", 0.01, 0.02),
        ("SIMU C1 C2", 0.04, 0.05),
        ("RIGU C1 C2", 0.004, 0.004),
        ("DFIX 1.4 0.007 C1 C2", 0.007, 0.007),
    ],
)
def test_defs_changes_the_sigmas_of_what_follows(restrained, line, usual, of_defs):
    for before, after, expected in (
        ("", "", usual),
        ("DEFS 0.03 0.2 0.02 0.05 1", "", of_defs),
        ("", "DEFS 0.03 0.2 0.02 0.05", usual),
        ("DEFS 0.5\nDEFS", "", usual),
    ):
        assert set(restrained(before, line, after).sigma.tolist()) == {expected}


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["DFIX 1.5 0 C1 C2"], "DFIX 1.5 0 C1 C2"),
        (["DFIX 1.5 -0.02 C1 C2"], "DFIX 1.5 -0.02 C1 C2"),
        (["DANG 2.4 0.0 C1 C2"], "DANG 2.4 0.0 C1 C2"),
        (["DANG 2.4 1E999 C1 C2"], "DANG 2.4 1E999 C1 C2"),
        (["SADI 0 C1 C2"], "SADI 0 C1 C2"),
        (["SIMU 0"], "SIMU 0"),
        (["RIGU 0.01 -1 C1 C2"], "RIGU 0.01 -1 C1 C2"),
        (["DEFS 0", "DFIX 1.5 C1 C2"], "DFIX 1.5 C1 C2"),
    ],
)
def test_a_sigma_that_is_not_positive_is_refused(restrained, tmp_path, lines, named):
    with pytest.raises(InputError) as caught:
        restrained(*lines)
    assert str(caught.value) == (
        f"{tmp_path / 'residues.ins'}: {named}: sigma must be positive; give one, or leave it out "
        "here and in DEFS for the usual one"
    )


@pytest.mark.parametrize("line", ["EQIV $2 nonsense", "EQIV", "DEFS x", "SIMU 0.1.2 C1", "DFIX"])
def test_instructions_that_cannot_be_read(restrained, line):
    with pytest.raises(InputError, match=f"not a valid {line.split()[0]} instruction") as caught:
        restrained(line)
    assert line.upper() in str(caught.value) and "\n" not in str(caught.value)
