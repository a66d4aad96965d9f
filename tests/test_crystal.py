"""Structure factors and free parameters, against cctbx where it is installed."""

import functools
import math

import pytest
import tiny
import torch

from dials_hybrid import crystal as physics
from dials_hybrid.beams import centring_absent
from dials_hybrid.crystal import SITE_UNIT, U_UNIT, CrystalModel, structure_factors
from dials_hybrid.records import InputError

# Sites on special positions and one general: space group, cell, sites
CASES = {
    "C 1 2/m 1": (
        (9, 6, 7, 90, 105, 90),
        [(0, 0, 0), (0, 0.31, 0), (0.22, 0, 0.37), (0.13, 0.24, 0.71)],
    ),
    "P 32 2 1": ((4.9, 4.9, 5.4, 90, 90, 120), [(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7858)]),
    "P b c a": ((7, 8, 9, 90, 90, 90), [(0, 0, 0), (0.21, 0.13, 0.34)]),
    "F d -3 m :2": (
        (8, 8, 8, 90, 90, 90),
        [(1 / 8, 1 / 8, 1 / 8), (0, 0, 0), (0.21, 0.21, 0.21), (0.07, 0.07, 0.33)],
    ),
    "R -3 c :H": (
        (5, 5, 17, 90, 90, 120),
        [(0, 0, 0), (0, 0, 0.13), (0.26, 0, 0.25), (0.11, 0.37, 0.08)],
    ),
    "P 63/m m c": (
        (5, 5, 8, 90, 90, 120),
        [(1 / 3, 2 / 3, 0.25), (0.17, 0.34, 0.25), (0, 0.2, 0.6)],
    ),
}
every_case = pytest.mark.parametrize("group", CASES)


@functools.cache
def example(group, anisotropic=True):
    """Return a cctbx structure on special positions; every second atom anisotropic at most."""
    pytest.importorskip("cctbx.xray", reason="cctbx is not installed")
    from cctbx import adptbx, crystal, xray

    cell, sites = CASES[group]
    symmetry = crystal.symmetry(unit_cell=cell, space_group_symbol=group)
    structure = xray.structure(crystal_symmetry=symmetry)
    for i, site in enumerate(sites):
        u = 0.008 + 0.004 * i
        if anisotropic and i % 2 == 0:
            u_cif = (u, 1.3 * u, 0.8 * u, 0.2 * u, -0.1 * u, 0.15 * u)
            u = adptbx.u_cif_as_u_star(symmetry.unit_cell(), u_cif)
        element = ("Si", "O", "Fe", "C")[i]
        structure.add_scatterer(
            xray.scatterer(f"{element}{i}", site=site, u=u, occupancy=1 - 0.3 * (i == 1))
        )
    assert structure.special_position_indices().size() > 0
    return structure


def record(group, **choices):
    structure = example(group, **choices)
    from dials_hybrid import io_cctbx

    return io_cctbx.to_structure(structure)


def cctbx_factors(structure, hkl):
    """F(g) by direct summation with the electron table."""
    from cctbx import miller
    from cctbx.array_family import flex

    structure.scattering_type_registry(table="electron")
    indices = flex.miller_index([tuple(h) for h in hkl.tolist()])
    every = miller.set(structure.crystal_symmetry(), indices, anomalous_flag=True)
    found = every.structure_factors_from_scatterers(structure, algorithm="direct").f_calc()
    return torch.from_numpy(found.data().as_numpy_array())


def own_factors(structure, hkl):
    return structure_factors(structure, hkl, structure.site, structure.u_iso, structure.u_star)


def within(structure, g_max, reach=8):
    hkl = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * 3)
    hkl = hkl[physics.reciprocal_length_sq(structure.cell, hkl) <= g_max**2]
    # direct summation in cctbx takes the centring as a mere factor
    return hkl[~centring_absent(structure, hkl)]


# --- structure factors ----------------------------------------------------------------------


@pytest.mark.parametrize("anisotropic", [False, True])
@every_case
def test_factors_agree_with_direct_summation_in_cctbx(group, anisotropic):
    mine = record(group, anisotropic=anisotropic)
    hkl = within(mine, 1.3)
    expected = cctbx_factors(example(group, anisotropic=anisotropic), hkl)
    error = (own_factors(mine, hkl) - expected).abs().max()
    assert error < 1e-10 * expected.abs().max()


@pytest.mark.parametrize("group", ["C 1 2/m 1", "P 32 2 1"])
def test_factors_agree_with_cctbx_after_the_parameters_moved(group):
    from_cctbx = example(group)
    from dials_hybrid import io_cctbx

    model = moved_model(group)
    hkl = within(model.structure, 1.0)
    expected = cctbx_factors(io_cctbx.update_xray_structure(from_cctbx, model.refined()), hkl)
    assert (model(hkl).detach() - expected).abs().max() < 1e-10 * expected.abs().max()


def test_forward_scattering_is_the_sum_of_the_form_factors():
    structure = tiny.quartz()
    f_zero = own_factors(structure, torch.zeros(1, 3, dtype=torch.int64))
    assert complex(f_zero[0]) == pytest.approx(3 * 5.8 + 6 * 2.0, rel=1e-12)


def test_the_phase_is_exp_plus_two_pi_i_g_r():
    structure = tiny.triclinic([[0.1, 0.2, 0.3]], [2.0], [0.0])
    f = own_factors(structure, torch.tensor([[1, 2, -1]]))[0]
    assert complex(f) == pytest.approx(2 * complex(torch.exp(torch.tensor(0.4j * math.pi))))


def test_symmetry_and_systematic_absences_hold():
    structure = tiny.quartz()
    hkl = within(structure, 0.9)
    f = own_factors(structure, hkl)
    for rotation, shift in zip(structure.sym_rot, structure.sym_trans, strict=True):
        # F(h R) = F(h) exp(-2 pi i h.t)
        other = own_factors(structure, (hkl.double() @ rotation).round().to(torch.int64))
        turn = torch.exp(-2j * math.pi * (hkl.double() @ shift))
        assert torch.allclose(other, f * turn, atol=1e-12)
    axial = (hkl[:, :2] == 0).all(1) & (hkl[:, 2] % 3 != 0)
    assert axial.any() and f[axial].abs().max() < 1e-12


@pytest.mark.parametrize("group", ["C 1 2/m 1", "R -3 c :H"])
def test_centring_absences_are_zero(group):
    structure = record(group)
    hkl = torch.cartesian_prod(*[torch.arange(-3, 4)] * 3)
    absent = centring_absent(structure, hkl)
    f = own_factors(structure, hkl).abs()
    assert f[absent].max() < 1e-12 * f.max() and f[~absent].min() > 0


def test_friedel_mates_are_conjugate():
    hkl = within(tiny.quartz(), 0.8)
    f = own_factors(tiny.quartz(), hkl)
    assert torch.allclose(own_factors(tiny.quartz(), -hkl), f.conj(), atol=1e-12)


def test_chunks_change_nothing(monkeypatch):
    hkl = within(tiny.quartz(), 1.0)
    whole = own_factors(tiny.quartz(), hkl)
    monkeypatch.setattr(physics, "_CHUNK_ELEMENTS", 40)
    assert torch.allclose(own_factors(tiny.quartz(), hkl), whole, atol=1e-13)


def test_factors_beyond_the_tables_are_refused():
    structure = tiny.triclinic([[0, 0, 0]], [1.0], [1.0], cell=(10, 10, 10, 90, 90, 90))
    assert own_factors(structure, torch.tensor([[40, 0, 0]])).isfinite().all()
    with pytest.raises(InputError, match=r"4\.10 A\^-1.*beams\.g_max"):
        own_factors(structure, torch.tensor([[1, 0, 0], [41, 0, 0]]))


def test_volume_and_lengths_of_a_triclinic_cell():
    cell = tiny.f64([5, 6, 7, 80, 95, 105])
    a, b, g = (math.cos(math.radians(x)) for x in (80, 95, 105))
    volume = 5 * 6 * 7 * math.sqrt(1 - a * a - b * b - g * g + 2 * a * b * g)
    assert physics.cell_volume(cell) == pytest.approx(volume, rel=1e-12)
    a_star = 6 * 7 * math.sin(math.radians(80)) / volume
    length_sq = physics.reciprocal_length_sq(cell, torch.tensor([2, 0, 0]))
    assert float(length_sq) == pytest.approx(4 * a_star**2, rel=1e-12)


def test_gradient_agrees_with_finite_differences():
    structure = tiny.quartz()
    hkl = torch.tensor([[1, 0, 1], [-2, 1, 3], [0, 0, 3], [3, -1, -2]])
    inputs = [x.clone().requires_grad_() for x in (structure.site, structure.u_iso)]
    # in units of 1e-2, comparable with the others
    u_star = (100 * structure.u_star).requires_grad_()

    def factors(site, u_iso, u_star):
        return torch.view_as_real(structure_factors(structure, hkl, site, u_iso, u_star / 100))

    assert torch.autograd.gradcheck(factors, (*inputs, u_star), eps=1e-6, atol=1e-6)


# --- free parameters ------------------------------------------------------------------------


def moved_model(group, seed=0) -> CrystalModel:
    """Return the model of an example with every free parameter moved."""
    model = CrystalModel(record(group))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.rand(p.shape, generator=generator).double() - 0.3
    return model


def test_the_start_is_the_structure_itself():
    model = CrystalModel(tiny.quartz())
    start = model.refined()
    for name in ("site", "u_iso", "u_star"):
        assert torch.equal(getattr(start, name), getattr(tiny.quartz(), name))


@every_case
def test_there_are_as_many_parameters_as_in_cctbx(group):
    structure, model = example(group), CrystalModel(record(group))
    table = structure.site_symmetry_table()
    sites = u_aniso = u_iso = 0
    for i, atom in enumerate(structure.scatterers()):
        ops = table.get(i)
        general = not ops.is_point_group_1()
        sites += ops.site_constraints().n_independent_params() if general else 3
        if atom.flags.use_u_aniso():
            u_aniso += ops.adp_constraints().n_independent_params() if general else 6
        else:
            u_iso += 1
    assert len(model.site_shift) == sites
    assert len(model.u_shift) == u_aniso + u_iso


@every_case
def test_moved_atoms_keep_their_special_positions(group):
    structure, model = example(group), moved_model(group)
    refined = model.refined()
    table = structure.site_symmetry_table()
    for i, atom in enumerate(structure.scatterers()):
        site, u_star = refined.site[i].tolist(), refined.u_star[i].tolist()
        assert table.get(i).special_op() * site == pytest.approx(site, abs=1e-12)
        if atom.flags.use_u_aniso():
            assert table.get(i).average_u_star(u_star) == pytest.approx(u_star, abs=1e-15)
    if len(model.site_shift):
        assert (refined.site - model.structure.site).abs().max() > 1e-4
    assert (model.u_shift == 0).sum() == 0


@every_case
def test_every_parameter_moves_something_and_one_atom_alone(group):
    model = CrystalModel(record(group))
    site = model.site_basis.abs().amax(2)
    u = model.u_iso_basis + model.u_star_basis.abs().amax(2)
    for moves in (site, u):
        assert ((moves > 1e-6 * moves.max()).sum(1) == 1).all()
    assert len(model.occ_shift) == 0
    aniso = model.u_star_basis[model.u_iso_basis.abs().sum(1) == 0]
    for basis in (model.site_basis, aniso):
        if len(basis):
            assert torch.linalg.matrix_rank(basis.flatten(1)) == len(basis)


@every_case
def test_a_unit_of_a_site_parameter_is_a_hundredth_of_an_angstrom(group):
    model = CrystalModel(record(group))
    step = SITE_UNIT * model.site_basis.sum(1)
    length = torch.einsum("pi,ij,pj->p", step, physics.metric(model.structure.cell), step).sqrt()
    assert torch.allclose(length, torch.full_like(length, 0.01), rtol=1e-9)


def test_a_unit_of_u_iso():
    model = CrystalModel(tiny.quartz())
    with torch.no_grad():
        model.u_shift[0] += 2
    assert float(model.u_iso()[0].detach()) == pytest.approx(0.007 + 2 * U_UNIT)


def test_a_unit_of_u_star_changes_u_cif_by_as_much():
    model = CrystalModel(tiny.quartz())
    inverse = torch.linalg.inv(physics.metric(model.structure.cell)).diagonal().sqrt()
    first, second = torch.tensor([0, 1, 2, 0, 0, 1]), torch.tensor([0, 1, 2, 1, 2, 2])
    u_cif = model.u_star_basis[1:].sum(1) / (inverse[first] * inverse[second])
    assert torch.allclose(u_cif @ u_cif.T, torch.eye(6).double(), atol=1e-10)


def test_quartz_by_hand_has_its_free_parameters():
    model = CrystalModel(tiny.quartz())
    assert (len(model.site_shift), len(model.u_shift)) == (4, 7)


def test_atoms_without_freedom_have_no_site_parameters():
    structure = tiny.triclinic([[0, 0, 0]], [1.0], [1.0])
    fixed = structure.replace(site_projector=torch.zeros(1, 3, 3).double())
    model = CrystalModel(fixed)
    assert len(model.site_shift) == 0 and torch.equal(model.site(), fixed.site)
