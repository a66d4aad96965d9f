"""Atoms of a disorder about a symmetry element: read, refined and written where they are."""

import pytest
import torch

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import iotbx.cif
import synthetic
from cctbx import miller
from cctbx.array_family import flex
from test_io_cctbx import RES
from test_io_results import CONTRACT

from dials_hybrid import api, crystal, io_cif_mtz, io_shelx_write, job
from dials_hybrid.io_cctbx import to_structure, with_cell
from dials_hybrid.io_constraints import Parameters, constrained
from dials_hybrid.io_disorder import KEY, parts_of
from dials_hybrid.io_settings import candidates
from dials_hybrid.io_shelx import read_instructions
from dials_hybrid.io_structures import read_structure

INS = """\
TITL made up, in P21/c
CELL 0.0251 7 8 9 90 105 90
ZERR 4 0 0 0 0 0 0
LATT 1
SYMM -X, 0.5+Y, 0.5-Z
SFAC C O
UNIT 6 4
FVAR 1.0
O1 2 0.3 0.4 0.2 11.0 0.02
PART -1
C1 1 0.02 0.01 0.01 10.5 0.03 0.04 0.05 0.01 0.0 0.0
PART 0
HKLF 4
END
"""
PLACE = (0.02, 0.01, 0.01)


@pytest.fixture
def ins(tmp_path):
    path = tmp_path / "disorder.ins"
    path.write_text(INS)
    return path


def test_an_atom_of_a_part_below_zero_stays_near_its_centre(ins):
    atom = read_structure(ins).scatterers()[1]
    assert atom.site == PLACE and atom.occupancy == 0.5
    record = to_structure(read_structure(ins))
    assert record.weight.tolist() == [1, 1]
    assert torch.equal(record.site_projector[1], torch.eye(3).double())
    assert torch.allclose(record.adp_projector[1], torch.eye(6).double())
    constraints = read_instructions(ins).constraints
    assert constraints.occ == () and constraints.fixed_along == ()
    ins.write_text(INS.replace("PART -1", "PART 1"))
    held = read_structure(ins).scatterers()[1]
    assert held.site == (0, 0, 0) and held.occupancy == 1, "as without a part"


def test_it_scatters_as_its_two_halves(ins):
    """The atom and its copy, half of each, in P1."""
    structure = read_structure(ins)
    whole = structure.expand_to_p1()
    assert sum(a.label == "C1" for a in whole.scatterers()) == 4
    whole.scattering_type_registry(table="electron")
    indices = miller.build_set(whole.crystal_symmetry(), True, d_min=1.0)
    expected = indices.structure_factors_from_scatterers(whole, algorithm="direct").f_calc()
    record = to_structure(structure)
    hkl = torch.tensor([list(h) for h in indices.indices()])
    found = crystal.structure_factors(record, hkl, record.site, record.u_iso, record.u_star)
    wanted = torch.from_numpy(expected.data().as_numpy_array())
    assert torch.allclose(found, wanted, atol=1e-9)


def test_it_stays_there_in_other_cells_and_settings(ins):
    structure = read_structure(ins)
    moved = with_cell(structure, (7.05, 8, 9, 90, 105, 90))
    assert moved.scatterers()[1].site == PLACE
    _, record, _ = constrained(moved, Parameters(), read_instructions(ins), parts_of(ins, 2))
    assert len(record.freedom.site) == 6 and len(record.freedom.u_iso) == 7
    for _, _, other in candidates(moved):
        assert list(other.special_position_indices()) == []
        assert to_structure(other).weight.tolist() == [1, 1]


def test_atoms_that_share_its_site_have_their_own_symmetry(ins):
    """O9 of the same part follows it; O9 without a part is at the centre, and it follows there."""
    given = "O9 2 0.02 0.01 0.012 10.5 0.03\n"
    before = INS.replace("PART -1", f"{given}EXYZ O9 C1\nPART -1")
    after = INS.replace("PART 0", f"{given}EXYZ C1 O9\nPART 0")
    for text, place, weights in ((after, PLACE, [1, 1]), (before, (0, 0, 0), [0.5, 1])):
        ins.write_text(text)
        structure, found = read_structure(ins), read_instructions(ins)
        moved, record, _ = constrained(structure, Parameters(), found, parts_of(ins, 3))
        assert record.site[1:].tolist() == [pytest.approx(place)] * 2
        assert record.weight[1:].tolist() == weights
        assert record.occ[1:].tolist() == [0.5 / w for w in weights]
        assert [a.site for a in moved.scatterers()][1:] == [pytest.approx(place)] * 2


@pytest.mark.parametrize("order", [None, "1", "2"])
def test_a_cif_says_it_too(ins, tmp_path, order):
    """By a group below zero, unless the order of the site symmetry is that of the element."""
    structure = read_structure(ins)
    model = iotbx.cif.reader(input_string=job.cif_text(structure, parts_of(ins, 2))).model()
    if order:
        column = flex.std_string(["1", order])
        model["start"].get_loop("_atom_site")["_atom_site_site_symmetry_order"] = column
    path = tmp_path / "a.cif"
    path.write_text(str(model))
    back, atom = read_structure(path), structure.scatterers()[1]
    found = back.scatterers()[1]
    if order == "2":
        assert found.site == (0, 0, 0)
        return
    assert found.site == pytest.approx(PLACE, abs=1e-6) and found.occupancy == 0.5
    assert found.u_star == pytest.approx(atom.u_star, abs=1e-7)
    assert to_structure(back).weight.tolist() == [1, 1]
    assert parts_of(path, 2) == (0, -1)


def test_a_checkpoint_keeps_it(ins):
    structure = read_structure(ins)
    text = job.cif_text(structure, (0, -1))
    assert api._structure_from_cif(text).scatterers()[1].site == pytest.approx(PLACE, abs=1e-6)
    assert api._structure_from_cif(job.cif_text(structure)).scatterers()[1].site == (0, 0, 0)


def test_results_hold_it(tmp_path, loaded):
    """A refined quartz with an atom next to a twofold axis, as CIF and as .res."""
    path = tmp_path / "a.res"
    path.write_text(RES.format(atoms="PART -1\nO2 2 0.3 0.02 0.675 10.5 0.02\nPART 0\n"))
    structure = read_structure(path)
    assert structure.scatterers()[2].site == (0.3, 0.02, 0.675)
    assert list(structure.special_position_indices()) == [0]
    record, parts = to_structure(structure), parts_of(path, 3)
    made = synthetic.make_problem(loaded)
    problem = made.replace(structure=record, provenance={**made.provenance, KEY: list(parts)})
    result = synthetic.make_result(problem)
    site = pytest.approx(result.structure.site[2].tolist(), abs=1e-4)
    io_cif_mtz.write_cif(tmp_path / "a.cif", structure, problem, result, CONTRACT)
    io_shelx_write.write_shelx(tmp_path / "b", structure, problem, result)
    for name in ("a.cif", "b.res"):
        back = read_structure(tmp_path / name)
        assert back.scatterers()[2].site == site and back.scatterers()[2].occupancy == 0.5
        assert list(back.special_position_indices()) == [0]
        assert parts_of(tmp_path / name, 3) == parts
