"""A .res and .hkl for SHELXL-type programs, read back by cctbx."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import synthetic
import test_io_constraints
import test_io_disorder
import test_io_hydrogens
import test_io_restraints
from cctbx import crystal, sgtbx, xray
from iotbx import reflection_file_reader

from dials_hybrid import (
    io_cctbx,
    io_cif_mtz,
    io_constraints,
    io_disorder,
    io_elements,
    io_restraints,
    io_shelx,
    io_shelx_write,
    io_structures,
)
from dials_hybrid.freedom import Constraints
from dials_hybrid.io_restraints import RestraintOptions
from dials_hybrid.records import InputError
from dials_hybrid.restraints import Restrainer


@pytest.fixture
def made(loaded):
    """(structure, problem, result) of the made-up sweep."""
    problem = synthetic.make_problem(loaded)
    problem = problem.replace(provenance={"temperature": "100(2)"})
    structure = io_cctbx.reconcile(
        synthetic.quartz_structure(), loaded.experiments, "a.cif", "a.expt"
    )
    return structure, problem, synthetic.make_result(problem)


def test_the_structure_is_read_back(tmp_path, made):
    structure, problem, result = made
    io_shelx_write.write_shelx(tmp_path / "a", structure, problem, result)
    found = io_structures.read_structure(tmp_path / "a.res")
    refined = io_cctbx.update_xray_structure(structure, result.structure)
    assert found.space_group() == refined.space_group()
    assert found.unit_cell().is_similar_to(refined.unit_cell(), 1e-4, 1e-3)
    for mine, theirs in zip(refined.scatterers(), found.scatterers(), strict=True):
        assert mine.scattering_type == theirs.scattering_type
        assert theirs.site == pytest.approx(mine.site, abs=1e-5)
        assert theirs.occupancy == pytest.approx(mine.occupancy, abs=1e-4)
        cell = refined.unit_cell()
        assert theirs.u_iso_or_equiv(cell) == pytest.approx(mine.u_iso_or_equiv(cell), abs=1e-4)
    text = (tmp_path / "a.res").read_text()
    assert "\nTEMP -173.1" in text and "\nZERR 3 " in text and "\nUNIT 6 3\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_data_are_read_back(tmp_path, made):
    """The corrected intensities, with their s.u., but for one scale."""
    structure, problem, result = made
    io_shelx_write.write_shelx(tmp_path / "a", structure, problem, result)
    reader = reflection_file_reader.any_reflection_file(f"{tmp_path / 'a.hkl'}=hklf4")
    found = reader.as_miller_arrays(crystal_symmetry=structure.crystal_symmetry())[0]
    wanted = io_cif_mtz.miller_arrays(structure, problem, result)["corrected"]
    found, wanted = found.map_to_asu().common_sets(wanted)
    assert found.size() == wanted.size() > 40
    intensity = wanted.data().as_numpy_array() ** 2
    ratio = found.data().as_numpy_array().sum() / intensity.sum()
    assert np.allclose(found.data(), ratio * intensity, atol=0.02)
    strong = intensity > 0.1 * intensity.max()
    su = 2 * np.sqrt(intensity) * wanted.sigmas().as_numpy_array()  # to first order
    assert np.allclose(found.sigmas().as_numpy_array()[strong], ratio * su[strong], rtol=0.1)


@pytest.mark.parametrize("element", ["H", "C", "O", "Si", "Br", "Cs", "Pb"])
def test_four_gaussians_follow_the_table(element):
    numbers = io_shelx_write.four_gaussians(element)
    a, b, c = numbers[:8:2], numbers[1:8:2], numbers[8]
    gaussian = io_elements.form_factor_registry([element]).gaussian(element)
    for s in np.linspace(0, 0.8, 17):
        found = (a * np.exp(-b * s * s)).sum() + c
        assert found == pytest.approx(gaussian.at_stol(s), rel=0.02)


def test_a_centre_that_is_not_at_the_origin_is_moved_there(made):
    symmetry = crystal.symmetry((6, 6, 9, 90, 90, 90), "P 4/n :1")
    structure = xray.structure(crystal_symmetry=symmetry)
    structure.add_scatterer(xray.scatterer("C1", site=(0.1, 0.2, 0.3), u=0.01))
    text = io_shelx_write.instructions(structure, made[1], "a")
    assert "\nLATT 1\n" in text
    site = [float(x) for x in re.search(r"\nC1 +1 (\S+) (\S+) (\S+)", text).groups()]
    assert site != pytest.approx([0.1, 0.2, 0.3])


def round_trip(made, path, given: str, **choices):
    """Return the text written of a SHELX file, and the constraints before and after."""
    path.write_text(given)
    structure = io_structures.read_structure(path)
    parts = io_disorder.parts_of(path, structure.scatterers().size())
    moved, _, constraints = io_constraints.constrained(
        structure, io_constraints.Parameters(**choices), io_shelx.read_instructions(path), parts
    )
    problem = made[1].replace(provenance={io_disorder.KEY: list(parts)})
    text = io_shelx_write.instructions(moved, problem, "a", constraints)
    path.write_text(text)
    return text, moved, constraints, io_shelx.read_instructions(path)


@pytest.mark.parametrize("hydrogens", ["as_given", "riding"])
def test_constraints_are_read_back(tmp_path, made, hydrogens, warnings_logged):
    """AFIX, EXYZ, EADP, U by free variables and multiples, linked occupancies, what is fixed."""
    given = test_io_constraints.INS
    path = tmp_path / "a.res"
    text, moved, before, after = round_trip(made, path, given, hydrogens=hydrogens)
    assert after.constraints == replace(before, turning=(), ideal=())
    assert [atoms for _, _, atoms in before.turning] == [(11, 12, 13)]
    # where the atoms are, they have no geometry that AFIX knows
    assert not any(group.turns for group in after.hydrogens)
    assert any("torsion of H3A H3B H3C" in message for message in warnings_logged())
    assert "\nFVAR 1.0 0.60000\n" in text and "\nEXYZ NA1 K1\n" in text
    found = io_structures.read_structure(path)
    for mine, theirs in zip(moved.scatterers(), found.scatterers(), strict=True):
        assert theirs.site == pytest.approx(mine.site, abs=1e-5)
        assert theirs.occupancy == pytest.approx(mine.occupancy, abs=1e-4)
    assert max(map(len, text.splitlines())) <= 80


def test_fixed_coordinates_are_read_back(tmp_path, made, warnings_logged):
    given = test_io_constraints.INS.replace("BR2 6 0.32 0.5 0.72", "BR2 6 0.32 0.5 10.72")
    fix = ("x C1", "z C1")
    text, _, before, after = round_trip(made, tmp_path / "a.res", given, fix=fix)
    assert after.constraints == replace(before, turning=()) and len(before.fixed_along) == 3
    assert " 10.100000 0.300000 10.400000 " in text
    assert " 0.320000 0.500000 10.720000 " in text
    structure = io_structures.read_structure(tmp_path / "a.res")
    slanted = Constraints(fixed_along=((0, (1.0, 1.0, 0.0)),))
    io_shelx_write.instructions(structure, made[1], "a", slanted)
    assert "a fixed direction of NA1" in warnings_logged()[-1]


def test_parts_and_ideal_hydrogen_atoms(tmp_path, made):
    """A geometry is named where the atoms are at its places, with their own distance."""
    path = tmp_path / "a.res"
    text, _, before, after = round_trip(made, path, test_io_disorder.INS, hydrogens="riding")
    assert io_disorder.parts_of(path, 6) == test_io_disorder.PARTS
    assert after.constraints == replace(before, turning=(), ideal=())
    assert text.count("\nAFIX 147 0.9930\n") == 2 and "\nPART 0\nHKLF" in text
    geometry = "terminal_tetrahedral_xh_site"
    assert {(g.parent, g.atoms, g.geometry, g.turns) for g in after.hydrogens} == {
        (2, (3,), geometry, True),
        (4, (5,), geometry, True),
    }
    crooked = round_trip(made, path, test_io_disorder.INS, hydrogens="as_given")[0]
    assert "AFIX 14" not in crooked


@pytest.mark.parametrize("total", [1.0, 0.8])
def test_a_sum_of_occupancies_is_kept(made, total):
    """By one free variable, in shares of the sum."""
    structure = xray.structure(crystal_symmetry=crystal.symmetry((6, 6, 6, 90, 90, 90), "P 1"))
    for label, part in (("Ca1", 0.6), ("Mg1", 0.4)):
        structure.add_scatterer(
            xray.scatterer(label, site=(0.1, 0.2, 0.3), u=0.01, occupancy=total * part)
        )
    group = ((0, 1.0), (1, -1.0))
    text = io_shelx_write.instructions(structure, made[1], "a", Constraints(occ=(group,)))
    assert "\nFVAR 1.0 0.60000\n" in text
    found = re.findall(r"\n(?:Ca1|Mg1) +\d \S+ \S+ \S+ (\S+)", text)
    assert found == [f"{20 + total:.5f}", f"{-20 - total:.5f}"]


def test_constraints_without_words_are_named(made, warnings_logged):
    structure = xray.structure(crystal_symmetry=crystal.symmetry((6, 6, 6, 90, 90, 90), "P 1"))
    for i, label in enumerate(("Ca1", "Mg1", "Fe1")):
        structure.add_scatterer(xray.scatterer(label, site=(0.1, 0.2, 0.3 + i / 5), u=0.01))
    three = Constraints(occ=(((0, 1.0), (2, -1.0)), ((1, 1.0), (2, -1.0))))
    text = io_shelx_write.instructions(structure, made[1], "a", three)
    (said,) = warnings_logged()
    assert "occupancies of Ca1 Fe1, occupancies of Mg1 Fe1" in said
    assert text.count(" 11.00000 ") == 3, "fixed"


def test_parts_of_every_assembly_have_their_own_numbers(made):
    structure = xray.structure(crystal_symmetry=crystal.symmetry((6, 6, 6, 90, 90, 90), "P 1"))
    for i in range(4):
        structure.add_scatterer(xray.scatterer(f"C{i}", site=(0.1, 0.2, i / 4), u=0.01))
    problem = made[1].replace(provenance={io_disorder.KEY: [1, -2, 1001, -1002]})
    text = io_shelx_write.instructions(structure, problem, "a")
    assert re.findall(r"PART (\S+)", text) == ["1", "-2", "1", "-2", "0"]


RESTRAINTS = (
    "DFIX 1.39 0.01 C1 C2 C2 C3",
    "DFIX 2.5 0.03 C3 C3_$1",
    "SADI 0.01 C1 C2 C3 C4 C5 O1_$1",
    "FLAT 0.05 C1 C2 C3 C4_$1 C5",
    "SIMU 0.02 0.05",
    "SIMU 0.01 0.03 C1 C2 C3 N1",
    "DELU 0.01 0.02 C1 C2 C3 C4 O1",
    "RIGU 0.003",
    "ISOR 0.05 0.1 C1 O1",
    "ISOR 0.05 0.07 C2 N1",
)


def restrained(tmp_path, made, *instructions, **options):
    """Return a structure, its restraints, and a problem of them."""
    path, structure = test_io_restraints.ins(tmp_path, *instructions)
    found = io_restraints.restraints_of(structure, RestraintOptions(**options), path)
    return structure, found, made[1].replace(restraints=found)


def values(restraints, structure):
    """Sums of squares of the residuals by kind."""
    record = io_cctbx.to_structure(structure)
    restrainer = Restrainer(restraints, record)
    rows = restrainer.by_term(record.site, record.u_iso, record.u_star)
    out: dict[str, float] = {}
    for term, row in zip(restrainer.terms, rows, strict=True):
        kind = restraints.kind[int(term.chosen[0])]
        out[kind] = out.get(kind, 0.0) + float(row.square().sum())
    return out


@pytest.mark.parametrize("line", [*RESTRAINTS, "\n".join(RESTRAINTS[:5]), "SIMU 0.02\nDELU 0.01"])
def test_restraints_are_read_back(tmp_path, made, warnings_logged, line):
    """With the operators of atoms beside, the sigmas of ends and of next neighbours."""
    structure, before, problem = restrained(tmp_path, made, line)
    text = io_shelx_write.instructions(structure, problem, "a")
    (tmp_path / "a.res").write_text(text)
    again = io_structures.read_structure(tmp_path / "a.res")
    after = io_restraints.restraints_of(again, RestraintOptions(), tmp_path / "a.res")
    assert not warnings_logged()
    assert sorted(after.kind) == sorted(before.kind)
    assert after.sigma.sort()[0].tolist() == pytest.approx(before.sigma.sort()[0].tolist())
    mine, theirs = values(before, structure), values(after, again)
    assert theirs == pytest.approx(mine, rel=2e-3) and mine  # digits of the file
    assert text.index("\nUNIT") < text.index(f"\n{line[:4]}") < text.index("\nFVAR")
    assert max(map(len, text.splitlines())) <= 80


def test_displacements_of_separate_sets_have_instructions_of_their_own(tmp_path, made):
    lines = "SIMU 0.01 0.02 C1 C2", "SIMU 0.03 0.06 C4 C5"
    structure, before, problem = restrained(tmp_path, made, *lines)
    text = io_shelx_write.instructions(structure, problem, "a")
    assert "\nSIMU 0.01 0.01 C1 C2\n" in text and "\nSIMU 0.03 0.03 C4 C5\n" in text
    assert len(before.kind) == 2


def test_pairs_that_are_far_apart_are_reached(made):
    """SIMU looks as far as 2 A unless it is told."""
    structure = xray.structure(crystal_symmetry=crystal.symmetry((9, 9, 9, 90, 90, 90), "P 1"))
    for label, x in (("Cs1", 0.1), ("Br1", 0.47)):
        structure.add_scatterer(xray.scatterer(label, site=(x, 0.2, 0.3), u=0.03))
    entries = io_restraints.ADP_ENTRIES["adp_similarity"](structure, range(2), 0.01, None)
    problem = made[1].replace(restraints=io_restraints.record(entries))
    assert len(entries) == 1
    text = io_shelx_write.instructions(structure, problem, "a")
    assert "\nSIMU 0.02 0.02 3.34\n" in text


def test_restraints_without_words_are_named(tmp_path, made, warnings_logged):
    options = {"angle": ("C1 C2 C3 120 1",), "chirality": ("C1 C2 C6 N1 2.0 0.1",)}
    structure, _, problem = restrained(tmp_path, made, "DFIX 1.4 0.01 C1 C2", **options)
    text = io_shelx_write.instructions(structure, problem, "a")
    assert "\nDFIX 1.4 0.01 C1 C2\n" in text
    (said,) = warnings_logged()
    assert said.startswith("a.res: these restraints cannot be written to it: ")
    assert "angle of C1 C2 C3" in said and "chirality of C1 C2 C6 N1" in said


def test_restraints_follow_a_centre_that_is_moved(made):
    """The distance to a copy is that of the copy, whose operator is another one."""
    symmetry = crystal.symmetry((6, 6, 9, 90, 90, 90), "P 4/n :1")
    structure = xray.structure(crystal_symmetry=symmetry)
    structure.add_scatterer(xray.scatterer("C1", site=(0.1, 0.2, 0.3), u=0.01))
    operator = structure.space_group()(0, 1, 1)
    length = structure.unit_cell().distance((0.1, 0.2, 0.3), operator * (0.1, 0.2, 0.3))
    members = ((0, sgtbx.rt_mx()), (0, operator))
    found = io_restraints.record([io_restraints.Entry("distance", length, 0.01, members)])
    text = io_shelx_write.instructions(structure, made[1].replace(restraints=found), "a")
    written = re.search(r"\nDFIX (\S+) 0.01 C1 C1_\$1\n", text).group(1)
    moved = sgtbx.rt_mx(re.search(r"\nEQIV \$1 (\S+)\n", text).group(1).lower())
    site = [float(x) for x in re.search(r"\nC1 +1 (\S+) (\S+) (\S+)", text).groups()]
    assert float(written) == pytest.approx(length, abs=1e-4)
    assert structure.unit_cell().distance(site, moved * site) == pytest.approx(length, abs=1e-4)


def test_a_riding_atom_is_written_beside_its_parent(made):
    """SHELXL adds the parent's shift to it, which turns with a copy by symmetry."""
    structure = xray.structure(crystal_symmetry=crystal.symmetry((6, 7, 8, 90, 90, 90), "P 1 21 1"))
    structure.add_scatterer(xray.scatterer("C1", site=(0.1, 0.2, 0.3), u=0.01))
    structure.add_scatterer(xray.scatterer("H1", site=(-0.2, 0.72, -0.35), u=0.02))
    riding = Constraints(riding=((1, 0),), riding_u=((1, 0, 1.2),))
    text = io_shelx_write.instructions(structure, made[1], "a", riding)
    assert "AFIX 3\nH1   2 0.200000 0.220000 0.350000 11.00000 -1.20000\nAFIX 0" in text


def test_a_geometry_is_named_of_hydrogen_atoms_listed_away_from_the_parent(made):
    """Its distance is that to the copy beside the parent."""
    methyl = test_io_hydrogens.METHYL
    near = test_io_hydrogens.made("P 21 21 21", [*methyl, ("H3", (1.65, 1.4, 1.6))])
    for i, operator in enumerate(list(near.space_group())[1:], 2):
        near.scatterers()[i].site = operator * near.scatterers()[i].site
    riding = io_constraints.Parameters(hydrogens="riding")
    moved, _, constraints = io_constraints.constrained(near, riding, None)
    text = io_shelx_write.instructions(moved, made[1], "a", constraints)
    assert "\nAFIX 137 1.0890\n" in text
    # of two atoms and the mirror image of one SHELXL knows no methyl group
    moved, _, constraints = io_constraints.constrained(
        test_io_hydrogens.made("P n m a", methyl), riding, None
    )
    text = io_shelx_write.instructions(moved, made[1], "a", constraints)
    assert "\nAFIX 3\n" in text and "AFIX 13" not in text


def test_labels_are_short_and_differ():
    taken = set()
    labels = ["C1", "C1'", "C1A", "C123456", "", "c1"]
    found = [io_shelx_write._short_label(label, "C", taken) for label in labels]
    assert found[:3] == ["C1", "C2", "C1A"]
    assert len({x.upper() for x in found}) == 6 and all(0 < len(x) <= 4 for x in found)


def test_old_files_survive_a_failure(tmp_path, made, monkeypatch):
    paths = [Path(name) for name in io_shelx_write.names(tmp_path / "a")]
    for path in paths:
        path.write_text("old")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left"):
        patch.setattr("dials_hybrid.records.os.replace", full)
        io_shelx_write.write_shelx(tmp_path / "a", *made)
    assert [path.read_text() for path in paths] == ["old", "old"]
    with pytest.raises(InputError, match="cannot be written"):
        io_shelx_write.write_shelx(tmp_path / "absent" / "a", *made)


def full(*_):
    """A disk that is."""
    raise OSError(28, "No space left on device")
