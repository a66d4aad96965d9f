"""Contacts of atoms that are not bonded."""

import math

import pytest

pytest.importorskip("cctbx", reason="cctbx is not installed")

from cctbx import crystal, xray
from cctbx.array_family import flex

from dials_hybrid.io_contacts import close_contacts
from dials_hybrid.io_structures import read_structure
from dials_hybrid.report import atom_checks

CELL = 12.0  # A


def crystal_of(*atoms, group="P 1"):
    """Return atoms (label, x, y, z in A, occupancy if not one) in a cubic cell."""
    symmetry = crystal.symmetry(unit_cell=(CELL,) * 3 + (90,) * 3, space_group_symbol=group)
    scatterers = [
        xray.scatterer(
            label,
            site=[value / CELL for value in rest[:3]],
            u=0.02,
            occupancy=rest[3] if len(rest) > 3 else 1.0,
            scattering_type="".join(c for c in label if c.isalpha()),
        )
        for label, *rest in atoms
    ]
    return xray.structure(crystal_symmetry=symmetry, scatterers=flex.xray_scatterer(scatterers))


def found_in(*atoms, **options):
    return [tuple(pair["atoms"]) for pair in close_contacts(crystal_of(*atoms, **options))]


def facing(first, second, apart, reach=1.0):
    """Return two bonds in one line, whose inner atoms are `apart`."""
    return [
        (f"{first[0]}1", 0, 3, 3),
        (f"{first[1]}2", reach, 3, 3),
        (f"{second[1]}3", reach + apart, 3, 3),
        (f"{second[0]}4", reach + apart + 1.0, 3, 3),
    ]


@pytest.mark.parametrize(
    ("first", "second", "apart", "found"),
    [
        ("CH", "CH", 0.60, True),
        ("CH", "CH", 1.70, True),
        ("CH", "CH", 2.10, False),
        ("CH", "CO", 1.57, True),
        ("CH", "CO", 2.20, False),
        ("OH", "CO", 1.57, False),  # a hydrogen bond
        ("OH", "OH", 1.57, True),
        ("CO", "CO", 1.70, True),
        ("CO", "CO", 1.47, False),  # a peroxide
        ("CO", "CO", 2.45, False),
    ],
)
def test_what_is_near_but_not_bonded(first, second, apart, found):
    pairs = found_in(*facing(first, second, apart))
    assert ((f"{first[1]}2", f"{second[1]}3") in pairs) == found
    assert found or pairs == []


def test_a_hydrogen_bond_has_its_hydrogen_between():
    """Donor at 0, hydrogen 1 A from it, acceptor 1.6 A from the hydrogen."""
    for angle, expected in ((180, []), (120, []), (80, [("H2", "O3")])):
        turn = math.radians(180 - angle)
        place = (1 + 1.6 * math.cos(turn), 3 + 1.6 * math.sin(turn), 3)
        found = found_in(("O1", 0, 3, 3), ("H2", 1, 3, 3), ("O3", *place))
        assert [pair for pair in found if "H2" in pair] == expected


def test_atoms_bonded_to_a_common_one_are_left_out():
    assert found_in(("C1", 3, 3, 3), ("O2", 4.2, 3, 3), ("O3", 1.8, 3, 3)) == []  # 2.4 A
    water = [("O1", 3, 3, 3), ("H2", 3.76, 3.59, 3), ("H3", 2.24, 3.59, 3)]
    assert found_in(*water) == []  # 1.52 A


def test_three_bonds_apart_atoms_may_be_nearer():
    """A ring of six has 2.78 A across; the ends of an impossible chain 2.4 A."""
    ring = [
        (f"C{i}", 4 + 1.39 * math.cos(i * math.pi / 3), 4 + 1.39 * math.sin(i * math.pi / 3), 4)
        for i in range(6)
    ]
    assert found_in(*ring) == []
    chain = [("C1", -0.45, 1.45, 3), ("C2", 0, 0, 3), ("C3", 1.5, 0, 3), ("C4", 1.95, 1.45, 3)]
    assert found_in(*chain) == [("C1", "C4")]


def test_metals_have_no_van_der_waals_contacts():
    assert found_in(("Cs1", 0, 0, 0), ("Br1", 3.0, 0, 0), ("Cs2", 3.0, 3.0, 0)) == []


def test_alternatives_are_not_there_together():
    near = facing("CO", "CO", 1.7)
    halves = [(*atom, 0.5) for atom in near]
    assert found_in(*near) and not found_in(*halves)
    assert close_contacts(crystal_of(*near), parts=(1, 1, 2, 2)) == []
    assert close_contacts(crystal_of(*near), parts=(1, 1, 1, 1))


def test_copies_by_symmetry_are_named_and_the_worst_comes_first():
    """An oxygen 0.85 A from a centre of inversion, and hydrogens of two molecules."""
    atoms = [
        *[("C1", 2.1, 0, 0), ("O1", 0.85, 0, 0)],
        *[("C2", 4, 4, 4), ("H2", 5.1, 4, 4), ("C3", 7.9, 4, 4), ("H3", 6.8, 4, 4)],
    ]
    first, second = close_contacts(crystal_of(*atoms, group="P -1"))
    assert first["atoms"] == ["O1", "O1"] and first["symmetry"] == [".", "2"]
    assert first["distance"] == pytest.approx(1.7) and first["limit"] == pytest.approx(2.3)
    assert second["atoms"] == ["H2", "H3"] and second["symmetry"] == [".", "."]


@pytest.mark.parametrize(
    "name",
    [
        "quartz_dials/quartz_xray.cif",
        "quartz_pets/enantiomer_1.cif",
        "cspbbr3_pets/cspbbr3.cif",
        "albite_jana/jana2006_albite.cif",
        "paracetamol_pets/paracetamol.cif",
    ],
)
def test_good_structures_have_none(data_folder, name):
    assert close_contacts(read_structure(data_folder / name)) == []


def test_a_molecule_moved_into_its_neighbour_is_found(data_folder):
    structure = read_structure(data_folder / "paracetamol_pets" / "paracetamol.cif")
    step = 1.2 / structure.unit_cell().parameters()[0]
    for atom in structure.scatterers():
        atom.site = (atom.site[0] + step, *atom.site[1:])
    assert len(close_contacts(structure)) >= 3


def test_the_note_names_the_atoms():
    (check,) = atom_checks.close_contacts(close_contacts(crystal_of(*facing("CH", "CH", 0.6))))
    assert check.severity == "note" and "H2–H3 0.60 Å" in check.text
    assert atom_checks.close_contacts([]) == []
