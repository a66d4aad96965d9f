"""Restraints against cctbx's own, from words and from SHELX files; bonds with s.u."""

import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("cctbx")
import iotbx.cif
from cctbx import adp_restraints, adptbx, crystal, sgtbx, uctbx, xray
from cctbx import geometry_restraints as geometry
from cctbx.array_family import flex
from iotbx.shelx import parse_smtbx_refinement_model

from dials_hybrid import io_bonds, io_restraint_entries, io_restraints, io_settings, io_shelx
from dials_hybrid.io_bonds import UNIT, bonds_and_angles, cell_covariance, neighbours
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_cif_loops import add_geometry, add_restraints
from dials_hybrid.io_restraint_entries import Entry, record
from dials_hybrid.io_restraints import RestraintOptions, in_basis, restraints_of
from dials_hybrid.io_structures import read_structure
from dials_hybrid.records import InputError
from dials_hybrid.restraints import Restrainer, summary

# a flat ring with a tail, near an inversion centre; the geometry is rough on purpose
INS = """TITL made up
CELL 0.0251 8.1 9.3 10.2 90 104.5 90
ZERR 4 0.001 0.001 0.001 0 0.01 0
LATT 1
SYMM -X, 0.5+Y, 0.5-Z
SFAC C H N O
UNIT 24 20 4 4
EQIV $1 -X+1, -Y+1, -Z+1
{instructions}
FVAR 1.0
C1    1  0.200000 0.220000 0.300000 11.0 0.030 0.025 0.041 0.002 0.004 0.003
C2    1  0.365000 0.230000 0.312000 11.0 0.021 0.035 0.030 -0.002 0.005 0.001
C3    1  0.450000 0.350000 0.345000 11.0 0.020 0.031 0.038 0.001 0.007 0.006
C4    1  0.370000 0.475000 0.370000 11.0 0.028 0.026 0.035 -0.003 0.004 0.002
C5    1  0.203000 0.470000 0.355000 11.0 0.033 0.030 0.030 0.001 0.009 -0.004
C6    1  0.118000 0.342000 0.320000 11.0 0.024 0.040 0.033 0.004 0.006 0.002
N1    3  0.120000 0.090000 0.270000 11.0 0.040
O1    4  0.450000 0.600000 0.412000 11.0 0.022 0.030 0.050 -0.005 0.005 -0.003
H1    2  0.140000 0.565000 0.370000 11.0 -1.2
HKLF 4
END
"""
LABELS = ("C1", "C2", "C3", "C4", "C5", "C6", "N1", "O1", "H1")


def ins(tmp_path, *instructions):
    """Write the molecule with some instructions; return the path and the structure."""
    path = tmp_path / "model.ins"
    path.write_text(INS.format(instructions="\n".join(instructions)))
    return path, read_structure(path)


@pytest.fixture
def molecule(tmp_path):
    return ins(tmp_path)[1]


@pytest.fixture
def quartz():
    import synthetic

    return synthetic.quartz_structure()


def cost(restraints, xray_structure):
    """Return the sum of squares and its derivatives by cartesian sites, u_star and u_iso."""
    structure = to_structure(xray_structure)
    values = [
        v.clone().requires_grad_() for v in (structure.site, structure.u_iso, structure.u_star)
    ]
    total = Restrainer(restraints, structure)(*values).square().sum()
    slopes = torch.autograd.grad(total, values, allow_unused=True)
    by_site, by_iso, by_star = (
        torch.zeros_like(v) if s is None else s for s, v in zip(slopes, values, strict=True)
    )
    fraction = np.array(xray_structure.unit_cell().fractionalization_matrix()).reshape(3, 3)
    return float(total.detach()), by_site.numpy() @ fraction, by_star.numpy(), by_iso.numpy()


def parameters(xray_structure):
    """Return what restraints of displacement parameters are a function of, for cctbx."""
    atoms, cell = xray_structure.scatterers(), xray_structure.unit_cell()
    return adp_restraints.adp_restraint_params(
        sites_cart=xray_structure.sites_cart(),
        u_cart=atoms.extract_u_cart(cell),
        u_iso=atoms.extract_u_iso(),
        use_u_aniso=xray_structure.use_u_aniso(),
    )


WEIGHT = 1 / 0.05**2
MATE = sgtbx.rt_mx("-x+1,-y+1,-z+1")
SCREW = sgtbx.rt_mx("-x+1,y-1/2,-z+3/2")


def bond(i, j, op):
    return geometry.bond_simple_proxy(i_seqs=(i, j), rt_mx_ji=op, distance_ideal=1.4, weight=WEIGHT)


def chirality_residual_sum(unit_cell, sites_cart, proxies, gradient_array):
    """As cctbx has it for other kinds: its own one refuses gradients of moved atoms."""
    frame = np.array(unit_cell.orthogonalization_matrix()).reshape(3, 3)
    total = 0.0
    for proxy in proxies:
        found = geometry.chirality(unit_cell=unit_cell, sites_cart=sites_cart, proxy=proxy)
        total += found.residual()
        for i, op, slope in zip(proxy.i_seqs, proxy.sym_ops, found.gradients(), strict=True):
            turn = frame @ np.array(op.r().as_double()).reshape(3, 3) @ np.linalg.inv(frame)
            gradient_array[i] = tuple(np.array(gradient_array[i]) + turn.T @ np.array(slope))
    return total


GEOMETRY = {
    "distance": (
        [Entry("distance", 1.4, 0.05, ((0, UNIT), (1, op))) for op in (UNIT, MATE, SCREW)],
        lambda: geometry.shared_bond_simple_proxy([bond(0, 1, op) for op in (UNIT, MATE, SCREW)]),
        geometry.bond_residual_sum,
    ),
    "angle": (
        [Entry("angle", 110.0, 0.05, ((0, UNIT), (2, SCREW), (4, MATE)))],
        lambda: geometry.shared_angle_proxy(
            [
                geometry.angle_proxy(
                    i_seqs=(0, 2, 4), sym_ops=(UNIT, SCREW, MATE), angle_ideal=110.0, weight=WEIGHT
                )
            ]
        ),
        geometry.angle_residual_sum,
    ),
    "plane": (
        [Entry("plane", 0.0, 0.05, ((0, UNIT), (1, UNIT), (2, UNIT), (3, MATE), (7, SCREW)))],
        lambda: geometry.shared_planarity_proxy(
            [
                geometry.planarity_proxy(
                    i_seqs=flex.size_t([0, 1, 2, 3, 7]),
                    sym_ops=(UNIT, UNIT, UNIT, MATE, SCREW),
                    weights=flex.double([WEIGHT] * 5),
                )
            ]
        ),
        geometry.planarity_residual_sum,
    ),
    "chirality": (
        [Entry("chirality", 2.0, 0.05, ((0, UNIT), (1, UNIT), (5, MATE), (6, SCREW)))],
        lambda: geometry.shared_chirality_proxy(
            [
                geometry.chirality_proxy(
                    i_seqs=(0, 1, 5, 6),
                    sym_ops=(UNIT, UNIT, MATE, SCREW),
                    volume_ideal=2.0,
                    both_signs=False,
                    weight=WEIGHT,
                )
            ]
        ),
        chirality_residual_sum,
    ),
    "similar_distance": (
        [
            Entry(
                "similar_distance",
                0.0,
                0.05,
                ((0, UNIT), (1, UNIT), (1, UNIT), (2, MATE), (3, UNIT), (7, SCREW)),
            )
        ],
        lambda: geometry.shared_bond_similarity_proxy(
            [
                geometry.bond_similarity_proxy(
                    i_seqs=[(0, 1), (1, 2), (3, 7)],
                    sym_ops=(UNIT, MATE, SCREW),
                    weights=flex.double([WEIGHT] * 3),
                )
            ]
        ),
        geometry.bond_similarity_residual_sum,
    ),
}


@pytest.mark.parametrize("kind", GEOMETRY)
def test_geometry_as_cctbx_has_it(molecule, kind):
    """Values and gradients, with members that operators move."""
    entries, proxies, residual_sum = GEOMETRY[kind]
    gradients = flex.vec3_double(molecule.scatterers().size())
    expected = residual_sum(
        unit_cell=molecule.unit_cell(),
        sites_cart=molecule.sites_cart(),
        proxies=proxies(),
        gradient_array=gradients,
    )
    # cctbx divides the residuals of similar distances by their sum of weights, 3 WEIGHT
    factor = 3 * WEIGHT if kind == "similar_distance" else 1
    total, by_site, _, _ = cost(record(entries), molecule)
    assert total == pytest.approx(factor * expected, rel=1e-9)
    theirs = factor * gradients.as_double().as_numpy_array().reshape(-1, 3)
    assert np.allclose(by_site, theirs, rtol=1e-7, atol=1e-7 * np.abs(theirs).max())


ADPS = {
    "adp_similarity": ("adp_similarity", [(0, 1), (0, 6), (6, 0), (6, 8)]),
    "rigid_bond": ("rigid_bond", [(0, 1), (2, 7)]),
    "enhanced_rigid_bond": ("rigu", [(0, 1), (2, 7)]),
    "isotropic_adp": ("isotropic_adp", [(0,), (7,)]),
}


@pytest.mark.parametrize("kind", ADPS)
def test_displacements_as_cctbx_has_them(molecule, kind):
    """Also of pairs of which one or both are isotropic."""
    name, groups = ADPS[kind]
    proxy, shared, residual_sum = (
        getattr(adp_restraints, text)
        for text in (f"{name}_proxy", f"shared_{name}_proxy", f"{name}_residual_sum")
    )
    proxies = shared([proxy(i_seqs=group, weight=WEIGHT) for group in groups])
    by_cart = flex.sym_mat3_double(molecule.scatterers().size(), (0,) * 6)
    by_iso = flex.double(molecule.scatterers().size())
    arrays = [by_cart, by_iso] if kind == "adp_similarity" else [by_cart]
    expected = residual_sum(parameters(molecule), proxies, *arrays)
    entries = [Entry(kind, 0.0, 0.05, tuple((i, UNIT) for i in group)) for group in groups]
    total, _, found_star, found_iso = cost(record(entries), molecule)
    assert total == pytest.approx(expected, rel=1e-9)
    theirs = adptbx.grad_u_cart_as_u_star(molecule.unit_cell(), by_cart)
    theirs = np.array([theirs[i] for i in range(theirs.size())])
    # cctbx takes the weights of enhanced rigid bonds for constant, though they depend on U
    tolerance = 0.05 if kind == "enhanced_rigid_bond" else 1e-9
    assert np.allclose(found_star, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
    assert np.allclose(found_iso, by_iso.as_numpy_array(), rtol=1e-9, atol=1e-9)


def test_displacements_of_a_mate_are_turned(molecule):
    """As of an atom that stands at the mate's place, with its tensor."""
    moved = molecule.deep_copy_scatterers()
    atom = molecule.scatterers()[1].customized_copy(label="X")
    cart = adptbx.u_star_as_u_cart(molecule.unit_cell(), atom.u_star)
    turn = np.array(SCREW.r().as_double()).reshape(3, 3)
    frame = np.array(molecule.unit_cell().orthogonalization_matrix()).reshape(3, 3)
    turn = frame @ turn @ np.linalg.inv(frame)
    a, b, c, d, e, f = cart
    tensor = turn @ np.array([[a, d, e], [d, b, f], [e, f, c]]) @ turn.T
    order = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    atom.site = SCREW * atom.site
    atom.u_star = adptbx.u_cart_as_u_star(molecule.unit_cell(), tuple(tensor[k] for k in order))
    moved.add_scatterer(atom)
    for kind in ("adp_similarity", "rigid_bond", "enhanced_rigid_bond"):
        by_operator = record([Entry(kind, 0.0, 0.05, ((0, UNIT), (1, SCREW)))])
        in_place = record([Entry(kind, 0.0, 0.05, ((0, UNIT), (9, UNIT)))])
        expected = cost(in_place, moved)[0]
        assert cost(by_operator, molecule)[0] == pytest.approx(expected, rel=1e-9)
        assert expected > 0


# --- SHELX ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "proxies"),
    [
        ("DFIX 1.39 0.01 C1 C2 C2 C3", "bond"),
        ("DFIX 1.39 C1 C2", "bond"),
        ("DANG 2.4 C1 C3 C2 C4", "bond"),
        ("DFIX 2.5 0.03 C3 C3_$1", "bond"),
        ("SADI 0.01 C1 C2 C3 C4 C5 C6", "bond_similarity"),
        ("SADI C3 O1_$1 C4 C5", "bond_similarity"),
        ("FLAT 0.05 C1 C2 C3 C4 C5", "planarity"),
        ("FLAT C1 C2 C3 C4_$1", "planarity"),
        ("SIMU 0.02 0.05 C1 C2 C3 N1", "adp_similarity"),
        ("SIMU", "adp_similarity"),
        ("DELU 0.01 0.02 C1 C2 C3 C4 O1", "rigid_bond"),
        ("RIGU C1 C2 C3 C4 O1", "rigu"),
        ("ISOR 0.05 0.1 C1 O1", "isotropic_adp"),
    ],
)
def test_instructions_mean_what_they_mean_to_cctbx(tmp_path, line, proxies):
    path, structure = ins(tmp_path, line)
    builder = parse_smtbx_refinement_model(file=io.StringIO(path.read_text()))
    theirs = getattr(builder.restraints_manager, f"{proxies}_proxies")
    mine = restraints_of(structure, RestraintOptions(), path)
    assert len(mine.kind) == theirs.size() > 0
    if proxies in ("bond", "bond_similarity", "planarity"):
        residual_sum = getattr(geometry, f"{proxies}_residual_sum")
        expected = residual_sum(
            unit_cell=structure.unit_cell(),
            sites_cart=structure.sites_cart(),
            proxies=theirs,
            gradient_array=None,
        )
        if proxies == "bond_similarity":
            expected *= sum(theirs[0].weights)
    else:
        arrays = [flex.sym_mat3_double(9, (0,) * 6)]
        if proxies == "adp_similarity":
            arrays.append(flex.double(9))
        residual_sum = getattr(adp_restraints, f"{proxies}_residual_sum")
        expected = residual_sum(parameters(structure), theirs, *arrays)
    assert cost(mine, structure)[0] == pytest.approx(expected, rel=1e-9)


def labels_of(restraints):
    """Return the labels of each restraint's members."""
    names = [LABELS[i] for i in restraints.atom.tolist()]
    owner = restraints.owner.tolist()
    return [[n for n, o in zip(names, owner, strict=True) if o == k] for k in sorted(set(owner))]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("FLAT C2 > C6", [["C2", "C3", "C4", "C5", "C6"]]),
        ("FLAT C6 < C2", [["C6", "C5", "C4", "C3", "C2"]]),
        ("ISOR C6 > LAST", [["C6"], ["O1"]]),
        ("ISOR $O", [["O1"]]),
    ],
)
def test_ranges_and_elements(tmp_path, line, expected):
    path, structure = ins(tmp_path, line)
    assert labels_of(restraints_of(structure, RestraintOptions(), path)) == expected


def test_residues(tmp_path):
    """DFIX_* is for each residue, a suffix of an atom for one."""
    text = INS.format(instructions="DFIX_* 1.4 C1 C2\nDFIX 1.5 N1_2 O1_2\nDFIX_ABC 1.3 C3 C4")
    lines = text.splitlines()
    lines.insert(next(i for i, x in enumerate(lines) if x.startswith("C1 ")), "RESI 1 XYZ")
    lines.insert(next(i for i, x in enumerate(lines) if x.startswith("N1 ")), "RESI 2 ABC")
    path = tmp_path / "residues.ins"
    path.write_text("\n".join(lines) + "\n")
    found = restraints_of(read_structure(path), RestraintOptions(), path)
    assert labels_of(found) == [["C1", "C2"], ["N1", "O1"]]
    assert found.target.tolist() == [1.4, 1.5]


@pytest.mark.parametrize(
    "line", ["DFIX -2.5 C1 O1", "DFIX 21.0 C1 C2", "SAME C1 > C6", "DFIX 1.4 C1 C9", "CHIV C1"]
)
def test_what_is_not_used_is_told(tmp_path, warnings_logged, line):
    path, structure = ins(tmp_path, "DFIX 1.4 C1 C2", line)
    assert len(restraints_of(structure, RestraintOptions(), path).kind) == 1
    assert any(line in message for message in warnings_logged())


def test_what_constraints_tell_of_is_not_told_again(tmp_path, warnings_logged):
    path, structure = ins(tmp_path, "DFIX 1.4 C1 C2", "SUMP 1 0.01 1 2")
    io_shelx.read_instructions(path)
    assert len(restraints_of(structure, RestraintOptions(), path).kind) == 1
    assert sum("SUMP" in message for message in warnings_logged()) == 1


@pytest.mark.parametrize("line", ["DFIX C1 C2", "DFIX 1.4 C1", "FLAT C1 C2 C3", "SADI C1 C2 C3"])
def test_instructions_that_are_wrong(tmp_path, line):
    path, structure = ins(tmp_path, line)
    with pytest.raises(InputError, match=f"{line}: not a valid"):
        restraints_of(structure, RestraintOptions(), path)


def test_without_instructions_nothing_is_restrained(tmp_path, quartz):
    path, structure = ins(tmp_path)
    assert restraints_of(structure, RestraintOptions(), path) is None
    path, structure = ins(tmp_path, "DFIX 1.4 C1 C2")
    assert restraints_of(structure, RestraintOptions(shelx=False), path) is None
    assert restraints_of(quartz, RestraintOptions(), "quartz.cif") is None


# --- words ----------------------------------------------------------------------------------


def test_a_distance_is_every_bond_between_two_atoms(quartz):
    found = restraints_of(quartz, RestraintOptions(distance=("Si1 O1 1.61 0.02",)), "q.cif")
    assert found.kind == ("distance", "distance")
    deviation = Restrainer(found, to_structure(quartz)).by_term(
        *(getattr(to_structure(quartz), n) for n in ("site", "u_iso", "u_star"))
    )[0]
    lengths = sorted((1.61 + 0.02 * deviation.flatten()).tolist())
    bonds = neighbours(quartz)[0]
    expected = sorted(
        quartz.unit_cell().distance(quartz.scatterers()[0].site, op * quartz.scatterers()[1].site)
        for ((_, op), *_) in bonds
    )
    assert lengths == pytest.approx(expected, abs=1e-9)
    assert lengths[1] - lengths[0] > 0.001


def test_copies_are_the_nearest(quartz):
    """Around Si there are four O, and two Si beside an O, though the list names one of each."""
    structure = to_structure(quartz)
    options = RestraintOptions(angle=("O1 Si1 O1 109.5 1", "Si1 O1 Si1 144 1"))
    found = restraints_of(quartz, options, "quartz.cif")
    values = structure.site, structure.u_iso, structure.u_star
    deviation = Restrainer(found, structure)(*values)
    assert deviation.abs().max() < 3
    assert restraints_of(
        quartz, RestraintOptions(similar_distance=("Si1 O1 Si1 Si1 0.1",)), "quartz.cif"
    ).rot.shape == (4, 3, 3)


def test_displacements_of_bonded_atoms_by_symmetry(quartz):
    """Si has two bonds to O that its two-fold axis does not relate; both are O1."""
    pairs = io_restraint_entries.ADP_ENTRIES["adp_similarity"](quartz, range(2), 0.04, None)
    assert [[i for i, _ in entry.members] for entry in pairs] == [[0, 1], [0, 1]]
    assert {entry.sigma for entry in pairs} == {0.04}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": ("Si1 O1 1.61",)}, "the target and sigma"),
        ({"distance": ("Si1 O9 1.61 0.02",)}, "no atom O9"),
        ({"distance": ("Si1 O1 1.61 -0.02",)}, "sigma must be positive"),
        ({"distance": ("Si1 O1 1.61 inf",)}, "sigma must be positive"),
        ({"distance": ("Si1 O1 nan 0.02",)}, "nan is not a target"),
        ({"distance": ("Si1 O1 -1.61 0.02",)}, "-1.61 is not a target"),
        ({"rigid_bond": 0.0}, "restraints.rigid_bond=0.0: sigma must be positive"),
        ({"angle": ("Si1 O1 144 1",)}, "give 3 atoms"),
        ({"plane": ("Si1 O1 Si1 0.1",)}, "give 4 or more atoms"),
        ({"similar_distance": ("Si1 O1 Si1 O1 Si1 0.1",)}, "give 4 or more atoms"),
        ({"chirality": ("Si1 O1 O1 O1 O1 2.5 x",)}, "give 4 atoms"),
    ],
)
def test_words_that_cannot_be_used(quartz, options, message):
    with pytest.raises(InputError, match=message):
        restraints_of(quartz, RestraintOptions(**options), "quartz.cif")


def test_restraints_follow_the_structure_to_other_settings(quartz):
    options = RestraintOptions(
        distance=("Si1 O1 1.62 0.01",),
        angle=("O1 Si1 O1 108 1",),
        chirality=("Si1 O1 O1 O1 2.0 0.1",),
        adp_similarity=0.01,
    )
    found = restraints_of(quartz, options, "quartz.cif")
    expected = cost(found, quartz)[0]
    settings = io_settings.candidates(quartz)
    assert len(settings) == 4
    for operator, hand, moved in settings:
        carried = in_basis(found, operator, hand == "inverted", quartz)
        assert cost(carried, moved)[0] == pytest.approx(expected, rel=1e-9)
    assert in_basis(None, "h,k,l", True, quartz) is None


def mixed_site(*shift):
    """Two anisotropic atoms on one site, or apart by a shift in A, and O 1.9 A off the first."""
    symmetry = crystal.symmetry(unit_cell=(8, 9, 10, 90, 90, 90), space_group_symbol="P1")
    second = tuple(0.2 + s / a for s, a in zip(shift or (0, 0, 0), (8, 9, 10), strict=True))
    sites = [
        ("Ca1", "Ca", (0.2,) * 3),
        ("Mg1", "Mg", second),
        ("O1", "O", (0.2 + 1.9 / 8, 0.2, 0.2)),
    ]
    atoms = []
    for i, (label, element, site) in enumerate(sites):
        u_cart = (0.02 + 0.01 * i, 0.03, 0.02, 0.0, 0.001, 0.0)
        u_star = adptbx.u_cart_as_u_star(symmetry.unit_cell(), u_cart)
        atoms.append(xray.scatterer(label, site=site, u=u_star, scattering_type=element))
    return xray.structure(crystal_symmetry=symmetry, scatterers=flex.xray_scatterer(atoms))


@pytest.mark.parametrize("shift", [(), (0.4, 0, 0)])
def test_atoms_of_one_site_are_not_bonded(shift):
    structure = mixed_site(*shift)
    ends = [{end[0] for group in groups for end in group} for groups in neighbours(structure)]
    assert ends == [{2}, {2}, {0, 1}]
    assert all(all(groups) for groups in neighbours(structure))
    options = RestraintOptions(rigid_bond=0.01, enhanced_rigid_bond=0.004)
    restraints = restraints_of(structure, options, "model.cif")
    assert all(np.isfinite(found).all() for found in cost(restraints, structure))
    table = bonds_and_angles(structure, made_result(torch.tensor(random_covariance(3))))
    assert [set(b["atoms"]) for b in table["bonds"]] == [{"Ca1", "O1"}, {"Mg1", "O1"}]
    assert all(b["length"] > 1 for b in table["bonds"])
    assert table["angles"] == []


# --- bonds and angles -----------------------------------------------------------------------


def made_result(covariance):
    """Return what of a result the s.u. of bonds come from, without riding atoms."""
    structure = SimpleNamespace(freedom=None)
    return SimpleNamespace(site_covariance=covariance, structure=structure)


def random_covariance(count, size=1e-3):
    """Return a covariance (A, 3, A, 3) that ties all coordinates to each other."""
    root = size * np.random.default_rng(1).normal(size=(3 * count, 3 * count))
    return (root @ root.T).reshape(count, 3, count, 3)


def values_of(xray_structure, site, cell, ends, group):
    """The length in A, or the angle in degree, of atoms at some sites in some cell."""
    unit_cell = uctbx.unit_cell(tuple(map(float, cell)))
    places = [sgtbx.rt_mx(op) * tuple(site[i]) for i, op in ends]
    if len(ends) == 2:
        return unit_cell.distance(*places)
    return unit_cell.angle(*places)


def operator_of(code, group):
    """Return the operator of a CIF symmetry code."""
    if code == ".":
        return "x,y,z"
    number, shift = code.split("_") if "_" in code else (code, "555")
    op = list(group)[int(number) - 1]
    return str(op + tuple(int(c) - 5 for c in shift))


@pytest.mark.parametrize("with_cell", [False, True])
@pytest.mark.parametrize("name", ["molecule", "quartz"])
def test_errors_of_bonds_and_angles(request, name, with_cell):
    """Against finite differences by all coordinates and the cell."""
    structure = request.getfixturevalue(name)
    if name == "molecule":
        structure = structure.select(~structure.hd_selection())
    count = structure.scatterers().size()
    covariance = random_covariance(count)
    tied = np.diag([1.0, 1.0, 1.0, 0, 0, 0])
    if name == "quartz":
        tied[0, 1] = tied[1, 0] = 1
    cell_cov = (tied if name == "quartz" else np.diag([1.0, 1, 1, 0, 20.0**2, 0])) * 0.002**2
    found = bonds_and_angles(
        structure,
        made_result(torch.tensor(covariance)),
        cell_cov if with_cell else None,
    )
    labels = [sc.label for sc in structure.scatterers()]
    site = np.array([sc.site for sc in structure.scatterers()])
    cell = np.array(structure.unit_cell().parameters())
    group = structure.space_group()
    for entry in found["bonds"] + found["angles"]:
        operators = [operator_of(code, group) for code in entry["symmetry"]]
        ends = [(labels.index(a), op) for a, op in zip(entry["atoms"], operators, strict=True)]

        def value(site, cell, ends=ends):
            return values_of(structure, site, cell, ends, group)

        assert entry.get("length", entry.get("angle")) == pytest.approx(value(site, cell))
        slope = np.zeros((count, 3))
        for i, k in itertools.product(range(count), range(3)):
            step = np.zeros((count, 3))
            step[i, k] = 1e-5
            slope[i, k] = (value(site + step, cell) - value(site - step, cell)) / 2e-5
        variance = np.einsum("ai,aibj,bj->", slope, covariance, slope)
        if with_cell:
            steps = 1e-4 * np.eye(6)
            by_cell = [(value(site, cell + s) - value(site, cell - s)) / 2e-4 for s in steps]
            variance += np.array(by_cell) @ cell_cov @ by_cell
        assert entry["su"] == pytest.approx(variance**0.5, rel=1e-3)
    assert len(found["bonds"]) == (4 if name == "quartz" else 8)


def test_every_angle_is_there(quartz):
    """Six around Si, of four bonds of which two and two are equal, one at O."""
    found = bonds_and_angles(quartz, SimpleNamespace(site_covariance=None))
    corners = [entry["atoms"][1] for entry in found["angles"]]
    assert (corners.count("Si1"), corners.count("O1")) == (6, 1)
    assert all(entry["su"] is None for entry in found["bonds"] + found["angles"])


def test_errors_of_the_cell(quartz):
    """Two axes of one length are one number."""
    su = (0.002, 0.002, 0.003, 0.0, 0.0, 0.0)
    one = cell_covariance(quartz, su)
    assert one[0, 1] == pytest.approx(one[0, 0]) == pytest.approx(4e-6)
    assert one[2, 2] == pytest.approx(9e-6)
    assert np.abs(one[3:]).max() == np.abs(one[2, :2]).max() == 0
    assert cell_covariance(quartz, None) is None


def test_a_bond_that_symmetry_holds_has_no_error():
    """Atoms at fixed places have the errors that the cell gives them."""
    symmetry = crystal.symmetry(unit_cell=(4.2, 4.2, 4.2, 90, 90, 90), space_group_symbol="Pm-3m")
    atoms = [xray.scatterer("Na1", (0, 0, 0), u=0.01), xray.scatterer("F1", (0.5, 0, 0), u=0.01)]
    salt = xray.structure(crystal_symmetry=symmetry, scatterers=flex.xray_scatterer(atoms))
    sure = made_result(torch.zeros(2, 3, 2, 3).double())
    assert {b["su"] for b in bonds_and_angles(salt, sure)["bonds"]} == {None}
    su = cell_covariance(salt, (0.002, 0.002, 0.002, 0, 0, 0))
    found = bonds_and_angles(salt, sure, su)
    assert all(b["su"] == pytest.approx(0.001) for b in found["bonds"])
    assert {a["su"] for a in found["angles"]} == {None}


def test_loops_of_the_cif(quartz):
    options = RestraintOptions(distance=("Si1 O1 1.61 0.02",), angle=("O1 Si1 O1 109.5 1",))
    found = restraints_of(quartz, options, "quartz.cif")
    result = made_result(torch.tensor(random_covariance(2, 3e-4)))
    contract = bonds_and_angles(quartz, result)
    block = iotbx.cif.model.block()
    add_restraints(block, quartz, found, summary(found, to_structure(quartz)))
    add_geometry(block, contract)
    model = iotbx.cif.model.cif()
    model["refined"] = block
    back = iotbx.cif.reader(input_string=str(model)).model()["refined"]
    assert back["_refine_ls_number_restraints"] == "3"
    assert list(back["_restr_distance_atom_site_label_2"]) == ["O1", "O1"]
    diff = [float(x) for x in back["_restr_distance_diff"]]
    lengths = {round(b["length"], 4) for b in contract["bonds"]}
    assert {round(1.61 - d, 4) for d in diff} == lengths
    assert float(back["_restr_angle_target"][0]) == 109.5
    assert abs(float(back["_restr_angle_diff"][0])) < 3
    assert len(back["_geom_bond_distance"]) == 4
    assert all("(" in text for text in back["_geom_bond_distance"])
    assert len(back["_geom_angle"]) == 7
    assert set(back["_geom_angle_site_symmetry_1"]) > {"."}


def test_a_structure_without_bonds_has_no_loops():
    block = iotbx.cif.model.block()
    add_geometry(block, {"bonds": [], "angles": []})
    add_restraints(block, None, None, {})
    assert list(block.keys()) == ["_refine_ls_number_restraints"]
    assert io_bonds.UNIT.is_unit_mx() and io_restraints.SHELX_ENDINGS
