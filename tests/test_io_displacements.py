"""Which atoms become anisotropic: the user's words, what is in the file, and how many data."""

import pytest

pytest.importorskip("cctbx.xray", reason="cctbx is not installed")
pytest.importorskip("smtbx.refinement.constraints", reason="smtbx is not installed")

from synthetic import QUARTZ_CIF

from dials_hybrid import io_shelx
from dials_hybrid.io_constraints import DEFAULTS, Parameters, constrained
from dials_hybrid.io_displacements import ENOUGH, LEAST_U, with_displacements
from dials_hybrid.io_structures import read_structure
from dials_hybrid.records import InputError

ISOTROPIC = QUARTZ_CIF[: QUARTZ_CIF.rindex("loop_")].replace("Uani", "Uiso")
PARAMETERS = 14  # x of Si; x, y, z of O; four of six U of Si, all of O

# Made up: methanol whose H share or ride on the U of their parents, a fixed U, two U of which one
# is 1.5 times the other, and an atom that is not hydrogen whose U rides
INS = """\
TITL made up
CELL 0.0251 8 8 8 90 90 90
ZERR 1 0 0 0 0 0 0
LATT -1
SFAC C H O
UNIT 1 2 2
FVAR 1.0 0.02
EADP O1 H1
C1 1 0.50 0.50 0.50 11.0 0.02
H2 2 0.40 0.45 0.45 11.0 -1.2
O1 3 0.65 0.50 0.50 11.0 0.03
H1 2 0.70 0.60 0.50 11.0 0.03
O2 3 0.10 0.10 0.10 11.0 10.03
O3 3 0.10 0.10 0.30 11.0 21.0
C2 1 0.10 0.30 0.10 11.0 21.5
O4 3 0.10 0.30 0.30 11.0 -1.5
HKLF 4
END
"""


@pytest.fixture
def quartz(tmp_path):
    path = tmp_path / "isotropic.cif"
    path.write_text(ISOTROPIC)
    return path


def kinds(path, parameters=DEFAULTS, unique=10_000, instructions=None) -> list[bool]:
    """Return which atoms are anisotropic, in the cctbx structure and in its record."""
    moved, record, _ = constrained(read_structure(path), parameters, instructions, unique=unique)
    found = [sc.flags.use_u_aniso() for sc in moved.scatterers()]
    assert found == record.anisotropic.tolist()
    return found


def test_an_isotropic_structure_becomes_anisotropic_where_data_are_enough(quartz):
    enough = int(ENOUGH * PARAMETERS)
    assert kinds(quartz, unique=enough) == [True, True]
    assert kinds(quartz, unique=enough - 1) == [False, False]
    assert kinds(quartz, unique=0) == [False, False]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"displacements": "as_given"}, [False, False]),
        ({"anisotropic": ("O*",)}, [False, True]),
        ({"anisotropic": ("all",), "displacements": "as_given"}, [True, True]),
        ({"isotropic": ("Si1",)}, [False, False]),
        ({"fix": ("u Si1",)}, [False, True]),
        ({"fix": ("all all",)}, [False, False]),
        ({"same_u": ("Si1 O1",)}, [True, True]),
        ({"same_u": ("Si1 O1",), "fix": ("u O1",)}, [False, False]),
    ],
)
def test_what_the_user_says_comes_first(quartz, choice, expected):
    assert kinds(quartz, Parameters(**choice)) == expected


def test_what_the_file_has_stays_where_an_atom_is_anisotropic(tmp_path):
    path = tmp_path / "mixed.cif"
    path.write_text(QUARTZ_CIF)
    assert kinds(path) == [False, True]
    assert kinds(path, Parameters(isotropic=("O1",))) == [False, False]
    assert kinds(path, Parameters(anisotropic=("Si",))) == [True, True]


def test_hydrogen_and_fixed_u_stay_isotropic(tmp_path):
    path = tmp_path / "made.ins"
    path.write_text(INS)
    found = kinds(path, instructions=io_shelx.read_instructions(path))
    labels = [sc.label for sc in read_structure(path).scatterers()]
    chosen = [label for label, tensor in zip(labels, found, strict=True) if tensor]
    assert chosen == ["C1"]  # O1 shares its U with a hydrogen atom


def test_the_start_diffracts_as_it_did(quartz):
    before = read_structure(quartz)
    after = with_displacements(before, anisotropic=[0, 1])
    there_and_back = with_displacements(after, isotropic=[0, 1])
    assert not before.scatterers()[0].flags.use_u_aniso()
    expected = before.structure_factors(d_min=1.0, algorithm="direct").f_calc()
    for structure in (after, there_and_back):
        found = structure.structure_factors(d_min=1.0, algorithm="direct").f_calc()
        assert max(abs(a - b) for a, b in zip(found.data(), expected.data(), strict=True)) < 1e-6


def test_tensors_start_positive_where_the_file_has_less(quartz):
    before = read_structure(quartz)
    before.scatterers()[0].u_iso = -0.01
    after = with_displacements(before, anisotropic=[0])
    cell = before.unit_cell()
    assert after.scatterers()[0].u_iso_or_equiv(cell) == pytest.approx(LEAST_U)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"anisotropic": ("Fe",)}, r'parameters\.anisotropic="Fe": no atom is called Fe'),
        ({"anisotropic": ("all",), "isotropic": ("O1",)}, "O1: .*both name"),
    ],
)
def test_words_that_cannot_be_met(quartz, choice, said):
    with pytest.raises(InputError, match=said):
        kinds(quartz, Parameters(**choice))
