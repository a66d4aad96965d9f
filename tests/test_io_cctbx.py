"""Structures from files, in the cell of the experiment, and as tensors."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("cctbx.xray", reason="cctbx is not installed")

import synthetic
from cctbx import adptbx, crystal, miller, sgtbx, uctbx, xray

from dials_hybrid import crystal as physics
from dials_hybrid import io_cctbx
from dials_hybrid.records import InputError

CELL = synthetic.CELL

HEAD = """\
data_{name}
_cell_length_a 4.9160
_cell_length_b 4.9160
_cell_length_c 5.4054
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_space_group_name_H-M_alt 'P 32 2 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_U_iso_or_equiv
_atom_site_occupancy
"""
SILICON = "Si1 Si 0.4697 0 0.666667 0.007 1\n"
OXYGEN = "O1 O 0.4135 0.2669 0.785767 0.012 1\n"


def cif(*atoms, name="x") -> str:
    return HEAD.format(name=name) + "".join(atoms)


RES = """\
TITL quartz
CELL 0.02508 4.916 4.916 5.4054 90 90 120
ZERR 3 0.001 0.001 0.001 0 0 0
LATT -1
SYMM -Y, X-Y, 2/3+Z
SYMM -X+Y, -X, 1/3+Z
SYMM Y, X, -Z
SYMM X-Y, -Y, 1/3-Z
SYMM -X, -X+Y, 2/3-Z
SFAC SI O H
UNIT 3 6 1
L.S. 4
TWIN -1 0 0 0 -1 0 0 0 -1 2
NEUT
OMIT 1 0 2
FVAR 1.0
SI1 1 0.4697 0 0.666667 10.5 0.007
O1 2 0.4135 0.2669 0.785767 =
   11.0 0.012
{atoms}HKLF 4

END
WGHT 0.1 0.2
Q1 1 0.1 0.2 0.3 11.0 0.05 1.1
"""
PDB = """\
CRYST1    4.916    4.916    5.405  90.00  90.00 120.00 P 32 2 1      3
HETATM    1 SI1  UNL A   1       2.309   0.000   3.604  1.00  0.55          SI
HETATM    2  O1  UNL A   1       1.377   1.136   4.247  1.00  0.95           O
HETATM    3  O1  HOH A   2       0.377   2.136   2.247  0.30  0.95           O
END
"""


@pytest.fixture
def read(tmp_path):
    """Call it with a file name and its text for the structure read."""

    def write_and_read(name, text, **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return io_cctbx.read_structure(path, **options)

    return write_and_read


def atoms_of(structure):
    return {a.label.capitalize(): (a.scattering_type, a.site) for a in structure.scatterers()}


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "tolerance"),
    [
        ("quartz.cif", cif(SILICON, OXYGEN), 1e-9),
        ("quartz.cif", b"\xef\xbb\xbf# caf\xe9, \xc3\xa9\n" + cif(SILICON, OXYGEN).encode(), 1e-9),
        ("quartz.res", RES.format(atoms=""), 1e-9),
        ("quartz.ins", RES.format(atoms="").replace("\n", "\r\n"), 1e-9),
        ("quartz.PDB", PDB, 2e-3),
    ],
    ids=["cif", "cif with accents", "res", "ins of Windows", "pdb"],
)
def test_formats_agree(read, name, text, tolerance):
    structure = read(name, text)
    assert str(structure.space_group_info()) == "P 32 2 1"
    assert structure.unit_cell().parameters() == pytest.approx(CELL, abs=1e-3)
    atoms = atoms_of(structure)
    assert [atoms[label][0] for label in ("Si1", "O1")] == ["Si", "O"]
    assert atoms["Si1"][1] == pytest.approx((0.4697, 0, 2 / 3), abs=max(tolerance, 1e-6))
    assert atoms["O1"][1] == pytest.approx((0.4135, 0.2669, 0.785767), abs=tolerance)
    # the silicon is on a twofold axis, whose factor of one half is no occupancy
    assert structure.scatterers()[0].occupancy == pytest.approx(1)
    assert structure.scatterers()[0].weight_without_occupancy() == pytest.approx(0.5)
    assert structure.scatterers()[1].u_iso == pytest.approx(0.012, abs=1e-4)


def test_labels_of_pdb_atoms_are_unique(read):
    assert [a.label for a in read("a.pdb", PDB).scatterers()] == ["SI1", "O1", "O1_2"]


def test_anisotropic_displacements(read):
    structure = read("quartz.cif", synthetic.QUARTZ_CIF)
    oxygen = structure.scatterers()[1]
    u_cif = adptbx.u_star_as_u_cif(structure.unit_cell(), oxygen.u_star)
    assert u_cif == pytest.approx((0.0156, 0.0115, 0.0119, 0.0092, -0.0029, -0.0046))


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        ("Q1 1 0.1 0.2 0.3 11.0 0.05 1.1\nQ12 1 0.1 0.2 0.35 11.0 0.05 1.1\n", {}),
        ("AFIX 43\nH1 3 0.1 0.2 0.3 11.0 -1.2\nAFIX 0\n", {"H1": (1.0, 0.0144)}),
        (
            "PART 1\nO2 2 0.2 0.3 0.4 21.0 0.01\nPART 2\nO3 2 0.21 0.31 0.4 -21.0 0.01\nPART 0\n",
            {"O2": (0.6, 0.01), "O3": (0.4, 0.01)},
        ),
        ("FRAG 17\nC1 1 0.1 0.2 0.3\nFEND\n", {}),
    ],
    ids=["peaks", "riding hydrogen", "disorder", "fragment"],
)
def test_shelx_atoms(read, warnings_logged, atoms, expected):
    text = RES.format(atoms=atoms).replace("FVAR 1.0", "FVAR 1.0 0.6")
    found = {
        a.label: (pytest.approx(a.occupancy), pytest.approx(a.u_iso))
        for a in read("a.res", text).scatterers()
    }
    assert set(found) == {"SI1", "O1", *expected}
    assert all(found[label] == value for label, value in expected.items())
    assert warnings_logged() == []


@pytest.mark.parametrize(
    "sfac",
    [
        "SFAC SI\nSFAC O H",
        "SFAC SI 2.1293 57.7748 2.5333 16.4756 0.8349 2.8796 0.3216 0.3860 =\n"
        "     0.0000 0.0000 0.0000 0.0000 1.11 28.086\n"
        "SFAC O 0.4548 23.7803 0.9173 7.6220 0.4719 2.1440 0.1384 0.2959 =\n"
        "     0.0000 0.0000 0.0000 0.0000 0.66 15.999\nSFAC H",
    ],
    ids=["two lists", "explicit electron factors"],
)
def test_shelx_scattering_factors(read, sfac):
    structure = read("a.res", RES.format(atoms="").replace("SFAC SI O H", sfac))
    assert [a.scattering_type for a in structure.scatterers()] == ["Si", "O"]


def three_blocks():
    other = OXYGEN.replace("0.4135", "0.4200")
    empty = "data_global\n_audit_creation_method x\n"
    placeholder = cif("Si1 Si ? ? ? ? 1\n", name="none")
    return empty + placeholder + cif(SILICON, OXYGEN, name="one") + cif(SILICON, other, name="Two")


@pytest.mark.parametrize(
    ("block", "x", "warnings"), [(None, 0.4135, 1), ("one", 0.4135, 0), ("two", 0.4200, 0)]
)
def test_cif_of_several_blocks(read, warnings_logged, block, x, warnings):
    structure = read("many.cif", three_blocks(), block=block)
    assert atoms_of(structure)["O1"][1][0] == pytest.approx(x)
    assert len(warnings_logged()) == warnings
    assert all("using data block one; it also holds Two" in m for m in warnings_logged())


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("three", "no data block three; set structure.block to one of those there: global, none"),
        ("none", "data block none has no atoms with coordinates; .* to one that has: one, Two"),
    ],
)
def test_unusable_block(read, block, expected):
    with pytest.raises(InputError, match=expected):
        read("many.cif", three_blocks(), block=block)


NO_SYMMETRY = HEAD.replace("_space_group_name_H-M_alt 'P 32 2 1'\n", "")
NO_CELL = HEAD.replace("_cell_length_a 4.9160\n", "")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "", "not a structure format known here"),
        ("a.cif", "", "no data block has atoms"),
        ("a.cif", "data_x\n_cell_length_a 5\n", "no data block has atoms"),
        ("a.cif", cif("Si1 Si ? ? ? ? 1\n"), "no data block has atoms"),
        ("a.cif", cif("Si1 Si ? ? ? ? 1\n", OXYGEN), "no coordinates for the atoms Si1; add"),
        ("a.cif", cif("Si1 Si 0.4 . 0 0.01 1\n", OXYGEN), "no coordinates for the atoms Si1"),
        ("a.cif", cif("Si1 Si x 0 0 0.01 1\n", OXYGEN), "cannot be read as a crystal structure"),
        ("a.cif", cif(SILICON, OXYGEN)[:-8], "cannot be read as a crystal structure"),
        ("a.cif", "\x00\x01 ] [ loop_ _a", "cannot be read as a crystal structure"),
        ("a.cif", NO_SYMMETRY.format(name="x") + SILICON, "no space group; add"),
        ("a.cif", NO_CELL.format(name="x") + SILICON, "no unit cell; add _cell_length_a"),
        ("a.cif", cif("Xx1 Xx 0.1 0 0 0.01 1\n", OXYGEN), r"form factor .* Xx1 \(Xx\); correct"),
        ("a.cif", cif(OXYGEN.replace(" 1\n", " 0\n")), "every atom has zero occupancy"),
        ("a.cif", cif(SILICON, OXYGEN.replace(" 1\n", " -0.5\n")),
         r"negative occupancies, O1 \(-0\.5\)"),
        ("a.cif", cif(SILICON, "O1 O nan 0.2 0.1 0.012 1\n"), "not a finite number .* atoms O1"),
        ("a.cif", cif(SILICON, "O1 O 0.4 0.2 0.1 inf 1\n"), "not a finite number .* atoms O1"),
        ("a.cif", HEAD.replace("'P 32 2 1'", "'P 43 21 2'").format(name="x") + SILICON,
         "incompatible with unit cell parameters: .*P 43 21 2"),
        ("a.res", RES.format(atoms="").replace("CELL", "REM"), "no unit cell; add the CELL"),
        ("a.res", RES.format(atoms="").replace("SFAC", "REM"), "no list of elements"),
        ("a.res", RES.format(atoms="").split("SI1")[0] + "HKLF 4\n", "has no atoms; give a model"),
        ("a.res", RES.format(atoms="").split("HKLF")[0], "ends without HKLF or END"),
        ("a.res", RES.format(atoms="O2 2 0.1 0.2\n"), "cannot be read as a crystal structure"),
        ("a.res", RES.format(atoms="").replace("SFAC SI", "SFAC XX"), r"form factor .*\(XX\)"),
        ("a.pdb", PDB.split("\n", 1)[1], "no unit cell and space group"),
        ("a.pdb", PDB.replace(" P 32 2 1      3", ""), "no unit cell and space group"),
        ("a.pdb", "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n"
         + PDB.split("\n", 1)[1], "no unit cell and space group"),
        ("a.pdb", PDB.split("\n")[0] + "\nEND\n", "has no atoms; give a model"),
        ("a.pdb", "hello\n", "cannot be read as a crystal structure"),
    ],
)  # fmt: skip
def test_unusable_structure(read, tmp_path, name, text, expected):
    with pytest.raises(InputError, match=expected) as caught:
        read(name, text)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_missing_structure(tmp_path):
    with pytest.raises(InputError, match=r"absent\.cif: no such file; give the model as"):
        io_cctbx.read_structure(tmp_path / "absent.cif")
    (tmp_path / "folder.cif").mkdir()
    with pytest.raises(InputError, match=r"folder\.cif: a folder, not a file; give the model as"):
        io_cctbx.read_structure(tmp_path / "folder.cif")


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        ([SILICON, OXYGEN], None),
        ([SILICON, OXYGEN, OXYGEN.replace("O1", "O2")], "closer than 0.5 A .* O1-O2"),
        ([SILICON, OXYGEN.replace(" 1\n", " 0.4\n"), OXYGEN.replace("O1 O", "F1 F").replace(
            " 1\n", " 0.6\n")], None),
        ([SILICON, OXYGEN.replace(" 1\n", " 0\n")], "zero occupancy, .*: O1"),
        ([SILICON, OXYGEN.replace(" 1\n", " 1.7\n")], r"above one, .*: O1 \(1\.7\)"),
        ([SILICON, OXYGEN, OXYGEN.replace("0.4", "0.1", 1)], "several atoms of one label, .*: O1"),
        ([SILICON, OXYGEN.replace("0.012", "-0.012")], "missing, zero or negative: O1"),
        ([SILICON, OXYGEN.replace("0.012", "?")], "missing, zero or negative: .*O1"),
    ],
    ids=["good", "overlap", "mixed site", "empty atom", "too full an atom", "one label",
         "negative U", "no U"],
)  # fmt: skip
def test_warnings(read, warnings_logged, atoms, expected):
    read("a.cif", cif(*atoms))
    assert len(warnings_logged()) == (expected is not None)
    if expected:
        assert re.search(expected, warnings_logged()[0])


# --- tensors --------------------------------------------------------------------------------


def random_structure(space_group, cell, seed=5):
    """Return four atoms, isotropic and anisotropic, one of them at the origin."""
    generator = torch.Generator().manual_seed(seed)
    symmetry = crystal.symmetry(unit_cell=cell, space_group_symbol=space_group)
    structure = xray.structure(crystal_symmetry=symmetry)
    for i, element in enumerate(("C", "O", "Fe", "H")):
        site = (0, 0, 0) if i == 0 else torch.rand(3, generator=generator).tolist()
        occupancy = 1 - 0.2 * (i == 2)
        u = 0.01 + 0.005 * i
        if i in (0, 2):
            u_cif = (u, 1.2 * u, 0.9 * u, 0.1 * u, -0.2 * u, 0.15 * u)
            u = adptbx.u_cif_as_u_star(symmetry.unit_cell(), u_cif)
        structure.add_scatterer(
            xray.scatterer(f"{element}{i}", site=site, u=u, occupancy=occupancy)
        )
    return structure


GROUPS = [
    ("P -1", (5, 6, 7, 80, 95, 105)),
    ("P 1 21/c 1", (5, 6, 7, 90, 105, 90)),
    ("C 1 2 1", (8, 6, 7, 90, 105, 90)),
    ("P b n m", (8.1, 8.3, 11.7, 90, 90, 90)),
    ("P 32 2 1", (4.9, 4.9, 5.4, 90, 90, 120)),
    ("R -3 m :H", (5, 5, 14, 90, 90, 120)),
    ("F d -3 m :2", (8, 8, 8, 90, 90, 90)),
]


@pytest.mark.parametrize(("space_group", "cell"), GROUPS)
def test_structure_factors_agree_with_cctbx(space_group, cell):
    structure = random_structure(space_group, cell)
    structure.scattering_type_registry(table="electron")
    indices = miller.build_set(structure.crystal_symmetry(), True, d_min=0.9)
    expected = indices.structure_factors_from_scatterers(structure, algorithm="direct").f_calc()
    record = io_cctbx.to_structure(structure)
    hkl = torch.tensor([list(h) for h in indices.indices()])
    found = physics.structure_factors(record, hkl, record.site, record.u_iso, record.u_star)
    wanted = torch.from_numpy(expected.data().as_numpy_array())
    assert torch.allclose(found, wanted, rtol=0, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize(("space_group", "cell"), GROUPS)
def test_hall_symbol_gives_the_group_back(space_group, cell):
    structure = random_structure(space_group, cell)
    found = sgtbx.space_group(io_cctbx.to_structure(structure).hall_symbol)
    assert found == structure.space_group()


@pytest.mark.parametrize(("space_group", "cell"), GROUPS)
def test_projectors_keep_what_symmetry_allows(space_group, cell):
    record = io_cctbx.to_structure(random_structure(space_group, cell))
    for projector in (record.site_projector, record.adp_projector):
        assert torch.allclose(projector @ projector, projector, atol=1e-12)
    structure = random_structure(space_group, cell)
    shift = torch.einsum(
        "aij,j->ai", record.site_projector, torch.tensor([1e-3, 2e-3, -1e-3]).double()
    )
    change = torch.einsum("aij,aj->ai", record.adp_projector, 0.1 * record.u_star)
    moved = record.replace(site=record.site + shift, u_star=record.u_star + change)
    table = structure.site_symmetry_table()
    for i, atom in enumerate(io_cctbx.update_xray_structure(structure, moved).scatterers()):
        assert table.get(i).special_op() * atom.site == pytest.approx(atom.site, abs=1e-12)
        if atom.flags.use_u_aniso():
            assert table.get(i).average_u_star(atom.u_star) == pytest.approx(atom.u_star, abs=1e-15)


def test_update_returns_the_values_given():
    structure = random_structure("P 1 21/c 1", (5, 6, 7, 90, 105, 90))
    record = io_cctbx.to_structure(structure)
    changed = record.replace(
        site=record.site + 0.01,
        u_iso=record.u_iso + 0.001,
        u_star=1.1 * record.u_star,
        occ=record.occ / 2,
    )
    again = io_cctbx.to_structure(io_cctbx.update_xray_structure(structure, changed))
    assert torch.equal(again.site, changed.site) and torch.equal(again.occ, changed.occ)
    assert torch.allclose(again.u_iso[~again.anisotropic], changed.u_iso[~again.anisotropic])
    assert torch.equal(again.u_star, changed.u_star)
    assert torch.equal(io_cctbx.to_structure(structure).site, record.site)


@pytest.mark.parametrize(
    ("silicon", "oxygen", "elements", "warned"),
    [("Si", "O", ("O", "Si"), 0), ("Si4+", "O2-", ("O", "Si"), 1), ("D", "O", ("H", "O"), 0)],
)
def test_ions_and_deuterium(read, warnings_logged, silicon, oxygen, elements, warned):
    atoms = SILICON.replace(" Si ", f" {silicon} "), OXYGEN.replace(" O ", f" {oxygen} ")
    record = io_cctbx.to_structure(read("a.cif", cif(*atoms)))
    assert record.elements == elements
    assert len(warnings_logged()) == warned
    assert all("Ions O2-, Si4+ are treated as neutral atoms" in m for m in warnings_logged())


# --- the cell of the experiment -------------------------------------------------------------


class Experiments(list):
    """Crystals in place of experiments: the only model that is looked at."""

    def __init__(self, *crystals):
        super().__init__(SimpleNamespace(crystal=c) for c in crystals)


def dxtbx_crystal(cell=CELL, space_group="P 31 2 1"):
    return synthetic._crystal(cell, space_group)


def stretched(a=1.0, c=1.0):
    return tuple(x * f for x, f in zip(CELL, (a, a, c, 1, 1, 1), strict=True))


@pytest.mark.parametrize("theirs", ["P 31 2 1", "P 32 2 1", "P 3 2 1", "P -3 m 1"])
def test_space_group_of_the_structure_wins(theirs):
    experiments = Experiments(dxtbx_crystal(space_group=theirs))
    found = io_cctbx.reconcile(synthetic.quartz_structure(), experiments, "a.cif", "a.expt")
    assert str(found.space_group_info()) == "P 32 2 1"


def test_cell_is_the_mean_of_the_sweeps(warnings_logged):
    experiments = Experiments(dxtbx_crystal(), dxtbx_crystal(stretched(a=1.008)))
    before = synthetic.quartz_structure()
    found = io_cctbx.reconcile(before, experiments, "a.cif", "a.expt")
    assert found.unit_cell().parameters() == pytest.approx(stretched(a=1.004))
    for old, new in zip(before.scatterers(), found.scatterers(), strict=True):
        assert new.site == pytest.approx(old.site)
        u_old = old.u_iso_or_equiv(before.unit_cell())
        assert new.u_iso_or_equiv(found.unit_cell()) == pytest.approx(u_old, rel=1e-3)
    assert warnings_logged() == []


def test_cell_is_averaged_over_the_space_group():
    # the crystal was refined without the constraints of its lattice
    a, b, c, alpha, beta, gamma = CELL
    experiments = Experiments(dxtbx_crystal((a, b * 1.004, c, alpha, beta + 0.1, gamma), "P 1"))
    structure = io_cctbx.with_cell(
        synthetic.quartz_structure(), experiments[0].crystal.get_unit_cell()
    )
    found = structure.unit_cell().parameters()
    assert found[0] == pytest.approx(found[1]) and found[3:] == pytest.approx((90, 90, 120))
    assert found[0] == pytest.approx(a * 1.002, rel=1e-4)


def test_displacements_keep_their_printed_values():
    before = synthetic.quartz_structure()
    after = io_cctbx.with_cell(before, stretched(a=1.03, c=0.97))
    old, new = (
        adptbx.u_star_as_u_cif(s.unit_cell(), s.scatterers()[1].u_star) for s in (before, after)
    )
    assert new == pytest.approx(old)


@pytest.mark.parametrize(
    ("cell", "warned"),
    [
        (stretched(c=1.005), 0),
        (stretched(c=1.02), 1),
        (stretched(a=0.97, c=0.96), 1),
    ],
)
def test_cells_differ_a_little(warnings_logged, cell, warned):
    experiments = Experiments(dxtbx_crystal(cell))
    io_cctbx.reconcile(synthetic.quartz_structure(), experiments, "a.cif", "a.expt")
    assert len(warnings_logged()) == warned
    assert all("of a.cif and" in m and "of a.expt differ" in m for m in warnings_logged())


def message(structure, *crystals) -> str:
    with pytest.raises(InputError) as caught:
        io_cctbx.reconcile(structure, Experiments(*crystals), "a.cif", "a.expt")
    return str(caught.value)


def test_cells_differ_too_much():
    found = message(synthetic.quartz_structure(), dxtbx_crystal(stretched(c=1.06)))
    assert "(4.9160, 4.9160, 5.4054, 90.00, 90.00, 120.00) of a.cif" in found
    assert "(4.9160, 4.9160, 5.7297, 90.00, 90.00, 120.00) of a.expt differ too much" in found
    assert "the same setting" not in found and "give the model of this very crystal" in found


def test_cells_of_other_axes_or_centring_differ_too_much():
    found = message(synthetic.quartz_structure(), dxtbx_crystal(stretched(c=2)))
    assert "differ too much; reindex the data" in found


@pytest.mark.parametrize("angle", [97.0, 84.0])
def test_angles_differ_too_much(angle):
    structure = random_structure("P 1 21/c 1", (5, 6, 7, 90, 90.5, 90))
    found = message(structure, dxtbx_crystal((5, 6, 7, 90, angle, 90), "P 1 2/m 1"))
    assert "differ too much" in found


@pytest.mark.parametrize(
    ("mine", "cell", "theirs", "their_cell", "advice"),
    [
        ("P 32 2 1", CELL, "P 3 1 2", CELL, "same setting"),
        ("P 32 2 1", CELL, "P 6 2 2", CELL, "same setting"),
        ("P 32 2 1", CELL, "P 1", CELL, 'space_group="P 32 2 1"'),
        ("P 32 2 1", CELL, "P 1", (5, 6, 7, 80, 90, 100), "same setting"),
        (
            "P 1 21/c 1",
            (5, 6, 7, 90, 105, 90),
            "P 1 1 2/m",
            (5, 7, 6, 90, 90, 105),
            "same setting",
        ),
        ("P 1", CELL, "P 31 2 1", CELL, "same setting"),
    ],
    ids=["312", "622", "P1 data", "P1 other cell", "unique axis", "P1 model"],
)
def test_laue_groups_differ(mine, cell, theirs, their_cell, advice):
    found = message(random_structure(mine, cell), dxtbx_crystal(their_cell, theirs))
    assert f"space group {mine} (Laue group" in found and f"a.expt has {theirs} (Laue" in found
    assert advice in found and "dials.reindex" in found


def test_every_sweep_must_have_the_laue_group():
    crystals = dxtbx_crystal(), dxtbx_crystal(space_group="P 1")
    assert "a.expt has P 1 (" in message(synthetic.quartz_structure(), *crystals)


def test_real_quartz(quartz_dials):
    dials = pytest.importorskip("dials_hybrid.io_dials")
    loaded = dials.load([quartz_dials / "integrated.expt", quartz_dials / "integrated.refl"])
    model = quartz_dials / "quartz_xray.cif"
    found = io_cctbx.reconcile(
        io_cctbx.read_structure(model), loaded.experiments, model, loaded.expt_files[0]
    )
    assert str(found.space_group_info()) == "P 32 2 1"
    expected = uctbx.unit_cell((4.92489, 4.92489, 5.40137, 90, 90, 120))
    assert found.unit_cell().is_similar_to(expected, 1e-4, 1e-3)
    record = io_cctbx.to_structure(found)
    assert record.elements == ("O", "Si") and math.isclose(float(record.weight[0]), 0.5)
