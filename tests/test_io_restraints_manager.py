"""Restraints in and out as cctbx's manager: the same values and gradients."""

import io

import numpy as np
import pytest

pytest.importorskip("cctbx")
import test_io_restraints as own
from cctbx import adp_restraints, xray
from cctbx import geometry_restraints as geometry
from iotbx.shelx import parse_smtbx_refinement_model
from smtbx.refinement.restraints import manager as Manager

from dials_hybrid.io_bonds import UNIT
from dials_hybrid.io_restraint_entries import Entry, record
from dials_hybrid.io_restraints import RestraintOptions, restraints_of
from dials_hybrid.io_restraints_manager import entries_of, manager_of
from dials_hybrid.records import InputError

ADPS = [
    Entry(kind, 0.0, 0.05, tuple((i, UNIT) for i in group))
    for kind, (_, groups) in own.ADPS.items()
    for group in groups
]
GEOMETRY = [entry for entries, *_ in own.GEOMETRY.values() for entry in entries]
INSTRUCTIONS = (
    "DFIX 1.39 0.01 C1 C2 C2 C3",
    "DFIX 2.5 0.03 C3 C3_$1",
    "SADI C3 O1_$1 C4 C5",
    "FLAT C1 C2 C3 C4_$1",
    "SIMU 0.02 0.05 C1 C2 C3 N1",
    "DELU 0.01 0.02 C1 C2 C3 C4 O1",
    "RIGU C1 C2 C3 C4 O1",
    "ISOR 0.05 0.1 C1 O1",
)


@pytest.fixture
def molecule(tmp_path):
    return own.ins(tmp_path)[1]


def test_there_and_back(molecule):
    """Operators of pairs are then those of the second member, targets and sigmas the same."""
    given = GEOMETRY + ADPS
    manager, left_out = manager_of(record(given))
    again = entries_of(manager, molecule.scatterers().size())
    assert not left_out and len(again) == len(given)
    for kind in {entry.kind for entry in given}:
        first, second = ([e for e in es if e.kind == kind] for es in (given, again))
        assert [e.target for e in first] == [e.target for e in second]
        assert [e.sigma for e in first] == pytest.approx([e.sigma for e in second])
        expected = own.cost(record(first), molecule)
        found = own.cost(record(second), molecule)
        for one, other in zip(expected, found, strict=True):
            assert np.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_the_manager_of_a_shelx_file(tmp_path):
    """What cctbx reads from instructions restrains as much as what is read here."""
    path, structure = own.ins(tmp_path, *INSTRUCTIONS)
    theirs = parse_smtbx_refinement_model(file=io.StringIO(path.read_text())).restraints_manager
    mine = restraints_of(structure, RestraintOptions(), path)
    given = restraints_of(structure, RestraintOptions(shelx=False, manager=theirs), path)
    assert len(given.kind) == len(mine.kind)
    assert own.cost(given, structure)[0] == pytest.approx(own.cost(mine, structure)[0], rel=1e-9)


@pytest.mark.parametrize("kind", ["distance", "angle", "chirality", "rigid_bond"])
def test_gradients_as_of_its_linearised_equations(molecule, kind):
    """Those that a refinement with smtbx has.

    Others differ there from cctbx's own residual sums, which test_io_restraints has: planes are
    left out, components of tensors off the diagonal count once, and similar distances lack the
    slope of their mean.
    """
    entries = [entry for entry in GEOMETRY + ADPS if entry.kind == kind]
    if kind == "chirality":  # cctbx has no derivatives of moved atoms
        members = tuple((atom, UNIT) for atom, _ in entries[0].members)
        entries = [Entry(kind, 2.0, 0.05, members)]
    restraints = record(entries)
    for atom in molecule.scatterers():
        atom.flags.set_grad_site(True)
        atom.flags.set_grad_u_iso(atom.flags.use_u_iso())
        atom.flags.set_grad_u_aniso(atom.flags.use_u_aniso())
    parameters = xray.parameter_map(molecule.scatterers())
    equations = manager_of(restraints)[0].build_linearised_eqns(molecule, parameters)
    weighted = equations.weights * equations.deltas
    total, by_site, by_star, _ = own.cost(restraints, molecule)
    assert total == pytest.approx(sum(weighted * equations.deltas), rel=1e-9)
    theirs = 2 * (equations.design_matrix.transpose() * weighted).as_numpy_array()
    frame = np.array(molecule.unit_cell().orthogonalization_matrix()).reshape(3, 3)
    mine = np.zeros_like(theirs)
    for i, places in enumerate(parameters):
        if kind != "rigid_bond":  # whose direction cctbx takes for constant
            mine[places.site : places.site + 3] = by_site[i] @ frame
        if places.u_aniso >= 0:
            mine[places.u_aniso : places.u_aniso + 6] = by_star[i]
    assert np.abs(theirs).max() > 0
    assert np.allclose(theirs, mine, rtol=0, atol=1e-7 * np.abs(theirs).max())


def test_mates_that_cctbx_cannot_hold_are_told(molecule):
    entries = [
        Entry("rigid_bond", 0.0, 0.01, ((0, UNIT), (1, own.SCREW))),
        Entry("rigid_bond", 0.0, 0.01, ((0, own.SCREW), (1, own.SCREW))),
    ]
    manager, left_out = manager_of(record(entries))
    assert left_out == [0] and manager.rigid_bond_proxies.size() == 1


def bonds(**choices):
    proxy = geometry.bond_simple_proxy(
        **{"i_seqs": (0, 1), "distance_ideal": 1.4, "weight": 1.0, **choices}
    )
    return Manager(bond_proxies=geometry.shared_bond_simple_proxy([proxy]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: bonds(slack=0.1), "bond_proxies with slack"),
        (lambda: bonds(weight=0.0), "bond_proxies need one positive weight"),
        (lambda: bonds(i_seqs=(0, 9)), "atom number 9, counted from 0, of a structure that has 9"),
        (
            lambda: Manager(
                dihedral_proxies=geometry.shared_dihedral_proxy(
                    [geometry.dihedral_proxy(i_seqs=(0, 1, 2, 3), angle_ideal=0.0, weight=1.0)]
                )
            ),
            "dihedral_proxies are of a kind",
        ),
        (
            lambda: Manager(
                fixed_u_eq_adp_proxies=adp_restraints.shared_fixed_u_eq_adp_proxy(
                    [adp_restraints.fixed_u_eq_adp_proxy((0,), 1.0, 0.03)]
                )
            ),
            "fixed_u_eq_adp_proxies are of a kind",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused(molecule, tmp_path, make, words):
    with pytest.raises(InputError, match=words):
        restraints_of(molecule, RestraintOptions(manager=make()), tmp_path / "model.cif")
