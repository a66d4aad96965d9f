"""Constraints from the user's words, from SHELX files and for hydrogens, against smtbx."""

import json

import pytest
import tiny
import torch

pytest.importorskip("cctbx.xray", reason="cctbx is not installed")
pytest.importorskip("smtbx.refinement.constraints", reason="smtbx is not installed")

from cctbx import sgtbx
from test_freedom import alloy

from dials_hybrid import (
    io_bonds,
    io_cif_atoms,
    io_constraints,
    io_hydrogen_sites,
    io_hydrogens,
    io_restraint_entries,
    io_shelx,
)
from dials_hybrid.freedom import Constraints, basis, u_equivalent
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_constraints import Parameters, constrained, resolve
from dials_hybrid.io_structures import read_structure
from dials_hybrid.records import InputError

# Made up: a methyl and an aromatic H on sp2 carbons, a water, a mixed metal site, a half Br
INS = """\
TITL made up
CELL 0.0251 8.1 9.2 10.3 90 95 90
ZERR 4 0 0 0 0 0 0
LATT 1
SYMM -x, 1/2+y, 1/2-z
SFAC C H O NA K BR
UNIT 12 16 4 2 2 2
FVAR 1.0 0.6 0.04
NA1 4 0.0 0.0 0.0 20.5 0.02
K1 5 0.0 0.0 0.0 -20.5 0.02
EXYZ NA1 K1
EADP NA1 K1
O1 3 0.8 0.1 0.3 11.0 0.03
H1A 2 0.86 0.18 0.28 11.0 -1.5
H1B 2 0.72 0.14 0.36 11.0 31.0
BR1 6 10.3 10.75 10.7 11.0 10.05
BR2 6 0.32 0.5 0.72 0.5 31.0
C1 1 0.10 0.30 0.40 11.0 0.02 0.03 0.025 0.001 0.002 =
   0.003
C2 1 0.2500 0.3600 0.4600 11.0 0.025
AFIX 43
H2 2 0.26 0.46 0.47 11.0 -1.2
AFIX 0
C3 1 0.3700 0.2700 0.5100 11.0 0.03
AFIX 137
H3A 2 0.38 0.20 0.44 11.0 -1.5
H3B 2 0.47 0.32 0.53 11.0 -1.5
H3C 2 0.33 0.22 0.58 11.0 -1.5
AFIX 66
C4 1 0.6 0.6 0.1 11.0 0.03
AFIX 0
SUMP 1 0.01 1 2
HKLF 4
Q1 1 0.1 0.1 0.1 11.0 0.05 1.5
END
"""


@pytest.fixture
def ins(tmp_path):
    path = tmp_path / "made.ins"
    path.write_text(INS)
    return path


def numbers(structure):
    return {label: i for i, label in enumerate(structure.labels)}


# --- words of the user ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "atoms"),
    [
        (["all"], [0, 1, 2]),
        (["si1"], [0]),
        (["O"], [1, 2]),
        (["?1", "Si"], [0, 1, 2]),
        (["X*", "O1"], [1, 2]),
    ],
)
def test_atoms_are_chosen_by_label_element_and_wildcard(words, atoms):
    assert io_constraints.select_atoms(alloy(), words, "here") == atoms


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"fix": ("site Fe",)}, r'parameters\.fix="site Fe": no atom is called Fe.*Si1, O1, X1'),
        ({"fix": ("Si1",)}, r"site, x, y, z, u, occ, all.*for example site Si1"),
        ({"free": ("occ",)}, r'parameters\.free="occ"'),
        ({"same_site": ("O1",)}, "names one atom"),
        ({"same_u": ("O1 X1",)}, "O1, X1 are to share U"),
        ({"occupancies": ("O1 +",)}, "a side without atoms"),
        ({"occupancies": ("O1 + O*",)}, "on two sides"),
    ],
)
def test_bad_choices_are_one_sentence(choice, said):
    with pytest.raises(InputError, match=said) as caught:
        resolve(alloy(), Parameters(**choice))
    assert "\n" not in str(caught.value)


def test_long_lists_of_atoms_are_cut():
    many = tiny.triclinic([[0.01 * i, 0, 0] for i in range(40)], [1.0] * 40, [1.0] * 40)
    with pytest.raises(InputError, match=r"X29, \.\.\."):
        resolve(many, Parameters(fix=("u Fe",)))


def test_fix_and_free():
    parameters = Parameters(fix=("site all", "u O"), free=("site Si1", "occ X1"))
    assert resolve(alloy(), parameters) == Constraints(
        fixed_site=frozenset({1, 2}), fixed_u=frozenset({1, 2}), occ=(((2, 1.0),),)
    )
    everything = basis(alloy(), resolve(alloy(), Parameters(fix=("all all",))))
    assert len(everything.site) == len(everything.u_iso) == len(everything.occ) == 0


X, Y, Z = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def test_single_coordinates_are_fixed_and_freed():
    def found(fix=(), free=()):
        held = resolve(alloy(), Parameters(fix=fix, free=free))
        return held.fixed_site, held.fixed_along

    assert found(("y O1 X1", "Y O1", "z O1")) == (set(), ((1, Y), (2, Y), (1, Z)))
    assert found(("y O", "x O1"), ("y O1",)) == (set(), ((2, Y), (1, X)))
    assert found(("site O",), ("y O1",)) == ({2}, ((1, X), (1, Z)))
    assert found(("y O1", "x X1"), ("site O1",)) == (set(), ((2, X),))
    assert found(("y O1",), ("all O1",)) == found()


def test_what_rides_on_a_fixed_coordinate_still_does():
    given = io_shelx.Instructions(Constraints(riding=((2, 1),)), ())
    both = resolve(alloy(), Parameters(fix=("y O1 X1",)), given)
    assert both.riding == ((2, 1),) and both.fixed_along == ((1, Y),)
    alone = resolve(alloy(), Parameters(fix=("y X1",)), given)
    assert alone.riding == () and alone.fixed_along == ((2, Y),)


def test_fixed_coordinates_go_with_the_structure_to_another_setting():
    """Whatever the axes are called, the same shifts are allowed."""
    before = Constraints(fixed_along=((0, Y), (1, (1.0, 0.0, 1.0))), fixed_u=frozenset({1}))
    for operator in ("h,k,l", "k,h,-l", "-h-k,k,-l", "l,h,k"):
        after = io_constraints.in_basis(before, operator)
        assert after.fixed_u == before.fixed_u
        rot = tiny.f64(sgtbx.change_of_basis_op(operator).c().r().as_double()).reshape(3, 3)
        for (i, old), (j, new) in zip(before.fixed_along, after.fixed_along, strict=True):
            shift = torch.linalg.svd(tiny.f64([old]))[2][1:]
            assert i == j and (shift @ rot.T @ tiny.f64(new)).abs().max() < 1e-12
    assert io_constraints.in_basis(before, "h,k,l") == before


def test_the_origin_of_a_polar_axis(tmp_path, warnings_logged):
    """10 added to y of one atom in P21."""
    path = tmp_path / "polar.ins"
    head = INS[: INS.index("NA1")].replace("LATT 1", "LATT -1")
    body = "C1 1 0.1 10.2 0.3 11.0 0.02\nO1 3 0.3 0.4 0.3 11.0 0.03\nHKLF 4\nEND\n"
    path.write_text(head.replace("1/2-Z", "-Z").replace("1/2-z", "-z") + body)
    structure, record, constraints = constrained(
        read_structure(path), Parameters(), io_shelx.read_instructions(path)
    )
    assert constraints.fixed_along == ((0, Y),) and warnings_logged() == []
    assert record.freedom.site.shape[0] == 5
    assert record.freedom.site[:, 0, 1].abs().max() < 1e-15
    assert record.freedom.site[:, 0, [0, 2]].abs().amax(0).min() > 0
    assert record.site[0].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_mixed_site_in_words():
    found = resolve(alloy(), Parameters(same_site=("O1 X1",), occupancies=("O1 + X1", "Si1")))
    assert found.same_site == ((1, 2),)
    assert found.occ == (((1, 1.0), (2, -1.0)), ((0, 1.0),))


def test_three_atoms_of_a_constant_sum_have_two_parameters():
    three = alloy(occ=tiny.f64([0.2, 0.3, 0.5]))
    free = basis(three, resolve(three, Parameters(occupancies=("Si1 + O1 + X1",))))
    assert free.occ.shape == (2, 3) and torch.equal(free.occ.sum(1), torch.zeros(2).double())


def test_groups_that_touch_are_one():
    found = resolve(alloy(), Parameters(same_site=("O1 X1", "Si1 X1")))
    assert [sorted(group) for group in found.same_site] == [[0, 1, 2]]


# --- SHELX ----------------------------------------------------------------------------------


def test_instructions_of_a_shelx_file(ins, warnings_logged):
    n = numbers(to_structure(read_structure(ins)))
    found = io_shelx.read_instructions(ins)
    c = found.constraints
    assert c.same_site == ((n["NA1"], n["K1"]),)
    assert ((n["NA1"], 1.0), (n["K1"], 1.0)) in c.linked_u
    assert ((n["H1B"], 1.0), (n["BR2"], 1.0)) in c.linked_u
    assert c.fixed_site == {n["BR1"]} and c.fixed_u == {n["BR1"]}
    assert (n["H1A"], n["O1"], 1.5) in c.riding_u and (n["H3C"], n["C3"], 1.5) in c.riding_u
    assert (n["H2"], n["C2"], 1.2) in c.riding_u and len(c.riding_u) == 5
    assert c.riding == tuple(
        (n[h], n[p]) for h, p in (("H2", "C2"), ("H3A", "C3"), ("H3B", "C3"), ("H3C", "C3"))
    )
    # 20.5 and -20.5 of a site on an inversion centre, whose full occupancy is 0.5
    assert c.occ == (((n["NA1"], 1.0), (n["K1"], -1.0)), ((n["BR2"], 1.0),))
    assert [(g.parent, g.geometry) for g in found.hydrogens] == [
        (n["C2"], "secondary_planar_xh_site"),
        (n["C3"], "terminal_tetrahedral_xh3_sites"),
    ]
    said = warnings_logged()
    assert len(said) == 1
    assert all(w in said[0] for w in ("SUMP", "AFIX 66")) and "137" not in said[0]
    assert [group.turns for group in found.hydrogens] == [False, True]


def test_start_values_agree_with_the_constraints(ins):
    structure, record, constraints = constrained(
        read_structure(ins), Parameters(), io_shelx.read_instructions(ins)
    )
    n, u = numbers(record), u_equivalent(record)
    assert float(record.occ[n["NA1"]]) == pytest.approx(0.6)
    assert float(record.occ[n["K1"]]) == pytest.approx(0.4)
    for atom, parent, factor in constraints.riding_u:
        assert float(u[atom]) == pytest.approx(factor * float(u[parent]), abs=1e-6)
    assert float(u[n["BR2"]]) == float(u[n["H1B"]]) == pytest.approx(0.04)
    assert torch.equal(to_structure(structure).site, record.site)
    assert constraints.turning == ((n["C2"], n["C3"], (n["H3A"], n["H3B"], n["H3C"])),)
    moving = (record.freedom.site[-1] != 0).any(1).nonzero().flatten().tolist()
    assert [record.labels[i] for i in moving] == ["H3A", "H3B", "H3C"]
    sites = {i for i in range(len(record.labels)) if record.freedom.site[:, i].abs().max() > 0}
    assert sites == set(n.values()) - {n["NA1"], n["K1"], n["BR1"]}


def test_choices_are_stronger_than_instructions(ins):
    record, given = to_structure(read_structure(ins)), io_shelx.read_instructions(ins)
    n = numbers(record)
    free = resolve(record, Parameters(free=("all H2", "site BR1"), fix=("occ K1",)), given)
    assert n["H2"] not in dict(free.riding) and n["H2"] not in {t[0] for t in free.riding_u}
    assert free.fixed_site == set() and n["BR1"] in free.fixed_u
    assert free.occ == (((n["BR2"], 1.0),), ((n["H2"], 1.0),))
    free = resolve(record, Parameters(hydrogens="free"), given)
    assert free.riding == free.riding_u == ()
    # H1A and H1B, which have no AFIX
    riding = resolve(record, Parameters(hydrogens="riding"), given)
    assert len(riding.riding) == 6 and dict(riding.riding)[n["H1A"]] == n["O1"]
    assert len(riding.riding_u) == 5  # that of H1B is a free variable


def test_a_freed_atom_leaves_what_it_shared(ins):
    record, given = to_structure(read_structure(ins)), io_shelx.read_instructions(ins)
    n = numbers(record)
    na, k = n["NA1"], n["K1"]
    free = resolve(record, Parameters(free=("all NA1", "u H1B")), given)
    assert free.same_site == free.linked_u == ()
    assert sorted(free.occ) == sorted((((n["BR2"], 1.0),), ((k, -1.0),), ((na, 1.0),)))
    # the file's links of other kinds stay
    site = resolve(record, Parameters(free=("site NA1",)), given)
    assert site.same_site == () and ((na, 1.0), (k, 1.0)) in site.linked_u
    assert ((na, 1.0), (k, -1.0)) in site.occ


def test_a_freed_atom_leaves_the_others_their_sum():
    three = alloy(occ=tiny.f64([0.2, 0.3, 0.5]))
    words = {"occupancies": ("Si1 + O1 + X1",), "same_site": ("Si1 O1 X1",)}
    found = resolve(three, Parameters(**words, free=("occ Si1", "site X1")))
    assert found.occ == (((1, 1.0), (2, -1.0)), ((0, 1.0),))
    assert found.same_site == ((0, 1),)
    last = resolve(three, Parameters(**words, free=("occ O1 Si1",)))
    assert len(basis(three, last).occ) == 3


def test_ranges_and_residues(tmp_path):
    path = tmp_path / "ranges.ins"
    head = INS[: INS.index("NA1")]
    atoms = [f"C{i} 1 0.{i} 0.2 0.{i}5 11.0 0.02" for i in range(1, 6)]
    body = [*atoms, "RESI 2 LIG", "C1 1 0.9 0.7 0.2 11.0 0.02", "C2 1 0.8 0.6 0.2 11.0 0.02"]
    shared = ["EADP C5 < C3", "EADP_2 C1 C2", "EADP C1 C1_2", "EADP C9 C1", "EADP_LIG C1 C2"]
    path.write_text("\n".join([head.rstrip(), *shared, *body, "HKLF 4", "END", ""]))
    groups = io_shelx.read_instructions(path).constraints.linked_u
    assert [[i for i, _ in g] for g in groups] == [[4, 3, 2], [5, 6], [0, 5]]


def test_coordinates_by_free_variables_are_named(tmp_path, warnings_logged):
    """The file's warning comes from the coding of parameters too; what is fixed is."""
    path = tmp_path / "part.ins"
    head = INS[: INS.index("NA1")]
    path.write_text(f"{head}C1 1 21.0 0.2 10.3 11.0 0.02\nHKLF 4\nEND\n")
    fixed = Constraints(fixed_along=((0, (0.0, 0.0, 1.0)),))
    assert io_shelx.read_instructions(path).constraints == fixed
    (said,) = warnings_logged()
    assert said.endswith("effect: FVAR for coordinates of C1")


def test_instructions_that_make_no_sense_are_refused(tmp_path):
    path = tmp_path / "bad.ins"
    path.write_text(INS.replace("AFIX 43", "AFIX yes"))
    with pytest.raises(InputError, match="its constraints cannot be read"):
        io_shelx.read_instructions(path)


# --- hydrogens ------------------------------------------------------------------------------


@pytest.fixture
def paracetamol(data_folder):
    path = data_folder / "paracetamol_pets" / "paracetamol.cif"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return read_structure(path)


def test_hydrogens_of_paracetamol_ride(paracetamol):
    record = to_structure(paracetamol)
    counts = {}
    for hydrogens in io_constraints.HYDROGENS:
        free = basis(record, resolve(record, Parameters(hydrogens=hydrogens)))
        counts[hydrogens] = len(free.site), len(free.u_iso), int((free.parent >= 0).sum())
    assert counts == {"as_given": (33, 11, 9), "riding": (33, 11, 9), "free": (60, 20, 0)}


def test_as_given_leaves_the_start_alone(paracetamol):
    structure, record, _ = constrained(paracetamol, Parameters(), None)
    assert torch.equal(record.site, to_structure(paracetamol).site)
    assert torch.equal(record.u_iso, to_structure(paracetamol).u_iso)


def smtbx_model(structure, groups, turning=False):
    """Return smtbx's reparametrisation with its own way for H atoms to ride, and to turn."""
    from smtbx.refinement import constraints
    from smtbx.utils import connectivity_table

    for atom in structure.scatterers():
        atom.flags.set_grad_site(True)
    made = [
        getattr(io_hydrogen_sites.geometries, g.geometry)(
            pivot=g.parent,
            constrained_site_indices=g.atoms,
            bond_length=io_hydrogen_sites.NUCLEAR_DISTANCE[
                structure.scatterers()[g.parent].scattering_type
            ],
            rotating=turning,
        )
        for g in groups
    ]
    model = constraints.reparametrisation(structure, made, connectivity_table(structure))
    model.linearise()
    return model


def test_ideal_hydrogens_and_their_riding_are_those_of_smtbx(paracetamol):
    structure, record, found = constrained(paracetamol, Parameters(hydrogens="riding"), None)
    parents = dict(found.riding)
    groups = io_hydrogens.usual_groups(paracetamol, parents)
    assert sorted(i for g in groups for i in g.atoms) == sorted(parents)
    theirs = paracetamol.deep_copy_scatterers()
    model = smtbx_model(theirs, groups)
    model.store()
    place = torch.tensor(list(theirs.sites_frac()), dtype=torch.float64)
    assert (place - record.site).abs().max() < 1e-9
    assert (record.site - to_structure(paracetamol).site).abs().max() > 1e-3
    assert torch.equal(to_structure(structure).site, record.site)
    # smtbx: columns of the Jacobian of each H by x, y, z of its parent
    jacobian = model.jacobian_transpose.as_dense_matrix().as_numpy_array()
    for atom, parent in parents.items():
        of = [model.asu_scatterer_parameters[i].site.index for i in (atom, parent)]
        together = record.freedom.site[: -len(found.turning)]
        mine = torch.stack([together[:, i] for i in (atom, parent)])
        their = torch.from_numpy(jacobian)[:, [of[0] + k for k in range(3)]]
        of_parent = torch.from_numpy(jacobian)[:, [of[1] + k for k in range(3)]]
        assert torch.allclose(their, of_parent) and their.abs().max() == 1
        assert torch.equal(mine[0], mine[1]) and mine[0].abs().max() > 0


def test_torsions_are_those_of_smtbx(paracetamol):
    """The methyl and the hydroxyl group turn, as its azimuths have them."""
    structure, record, found = constrained(paracetamol, Parameters(hydrogens="riding"), None)
    groups = io_hydrogens.usual_groups(structure, dict(found.riding))
    groups = [g for g in groups if g.geometry in io_hydrogen_sites.TURNING]
    assert [g.atoms for g in groups] == [atoms for _, _, atoms in found.turning]
    assert sorted(len(g.atoms) for g in groups) == [1, 3]
    model = smtbx_model(structure, groups, turning=True)
    jacobian = model.jacobian_transpose.as_dense_matrix().as_numpy_array()
    rows = record.freedom.site[-2:]
    for group, row in zip(groups, rows, strict=True):
        mine = row[list(group.atoms)].flatten()
        first = model.asu_scatterer_parameters[group.atoms[0]].site.index  # of all the group
        their = torch.from_numpy(jacobian[:, first : first + len(mine)])
        likeness = (their @ mine) / their.norm(dim=1).clamp(min=1e-9) / mine.norm()
        assert float(likeness.abs().max()) == pytest.approx(1, abs=1e-9)
        others = [i for i in range(len(record.labels)) if i not in group.atoms]
        assert float(row[others].abs().max()) == 0


def test_distances_and_riding_u_of_the_usual_geometry(paracetamol):
    structure, record, found = constrained(paracetamol, Parameters(hydrogens="riding"), None)
    sites, length = structure.sites_frac(), {"O": 0.993, "N": 1.015, "C": 1.089}
    for atom, parent in found.riding:
        distance = structure.unit_cell().distance(sites[atom], sites[parent])
        assert distance == pytest.approx(length[record.labels[parent][0]], abs=1e-6)
    n, u = numbers(record), u_equivalent(record)
    factor = {record.labels[atom]: f for atom, _, f in found.riding_u}
    assert [factor[f"H{i}"] for i in range(1, 10)] == [1.2, 1.2, 1.5, 1.2, 1.2, 1.2, 1.5, 1.5, 1.5]
    assert float(u[n["H3"]]) == pytest.approx(1.5 * float(u[n["O1"]]))


def test_hydrogens_without_a_usual_geometry_are_named(ins, warnings_logged):
    _, record, _ = constrained(
        read_structure(ins), Parameters(hydrogens="riding"), io_shelx.read_instructions(ins)
    )
    start = to_structure(read_structure(ins))
    n = numbers(start)
    assert torch.equal(record.site[n["H1A"]], start.site[n["H1A"]])
    assert any("H1A, H1B" in message for message in warnings_logged())


def test_without_hydrogens_nothing_changes():
    assert resolve(alloy()) == Constraints()


# --- the CIF --------------------------------------------------------------------------------


def test_flags_of_a_cif(ins):
    _, record, _ = constrained(read_structure(ins), Parameters(), io_shelx.read_instructions(ins))
    flags = {k.removeprefix("_atom_site_"): v for k, v in io_cif_atoms.atom_flags(record).items()}
    n = numbers(record)
    found = {
        name: [column[n[name]] for column in flags.values()]
        for name in ("H2", "H3A", "NA1", "C1", "H1A")
    }
    assert found == {
        "H2": ["calc", "R", ".", "."],
        "H3A": ["calc", "GR", ".", "."],
        "NA1": ["d", "S", ".", "P"],
        "C1": ["d", ".", ".", "."],
        "H1A": ["d", ".", ".", "."],
    }
    assert io_constraints.hydrogen_treatment(record) == "mixed"
    assert io_constraints.hydrogen_treatment(alloy()) == "undef"


def test_flags_of_restraints(ins):
    """D for atoms of restrained geometry, U for those of displacement parameters, beside others."""
    _, record, _ = constrained(read_structure(ins), Parameters(), io_shelx.read_instructions(ins))
    n = numbers(record)
    unit = io_bonds.UNIT

    def entry(kind, *names):
        return io_restraint_entries.Entry(kind, 0.0, 0.1, tuple((n[x], unit) for x in names))

    entries = [
        entry("distance", "C1", "H2"),
        entry("similar_distance", "C1", "H2", "NA1", "C2"),
        entry("isotropic_adp", "C1"),
        entry("rigid_bond", "C2", "NA1"),
    ]
    flags = io_cif_atoms.atom_flags(record, io_restraint_entries.record(entries))
    position, u = (flags[f"_atom_site_refinement_flags_{x}"] for x in ("posn", "adp"))
    assert {x: position[n[x]] for x in ("C1", "H2", "NA1", "C2", "H1A")} == {
        "C1": "D",
        "H2": "DR",
        "NA1": "DS",
        "C2": "D",
        "H1A": ".",
    }
    free = io_cif_atoms.atom_flags(record)["_atom_site_refinement_flags_adp"]
    assert {x: u[n[x]] for x in ("C1", "C2", "NA1")} == {
        x: f"{free[n[x]]}U".removeprefix(".") for x in ("C1", "C2", "NA1")
    }
    assert u[n["H2"]] == free[n["H2"]]


def test_constraints_go_through_a_file():
    """Plain lists and back, as a checkpoint holds them."""
    given = Constraints(
        fixed_site=frozenset({3, 1}),
        same_site=((0, 2),),
        riding=((4, 1), (5, 1)),
        linked_u=(((0, 1.0), (2, 1.2)),),
        riding_u=((4, 1, 1.5),),
        occ=(((0, 1.0), (2, -1.0)),),
        fixed_along=((0, (0.0, 1.0, 0.0)),),
    )
    assert Constraints.from_dict(json.loads(json.dumps(given.to_dict()))) == given
    assert Constraints.from_dict({}) == Constraints()
