"""Residuals of restraints: values that are known, derivatives, and their part in a refinement."""

import dataclasses
import math

import h5py
import pytest
import tiny
import torch

from dials_hybrid.crystal import CrystalModel, metric
from dials_hybrid.data import Problem, Restraints
from dials_hybrid.linear import CheapModel, Linearisation
from dials_hybrid.refine import Refinement, RefineSettings, build_model
from dials_hybrid.restraints import KINDS, RestrainedCrystal, Restrainer, summary

CELL = (6.0, 7.0, 5.0, 90.0, 90.0, 90.0)
TURN = tiny.f64([[0, -1, 0], [1, -1, 0], [0, 0, 1]])  # three-fold of a hexagonal lattice
MEMBERS = {
    "distance": 2,
    "similar_distance": 6,
    "angle": 3,
    "plane": 5,
    "chirality": 4,
    "adp_similarity": 2,
    "rigid_bond": 2,
    "enhanced_rigid_bond": 2,
    "isotropic_adp": 1,
}


def restraints(*entries, rot=None, trans=None) -> Restraints:
    """Return restraints (kind, target, sigma, atoms); `rot`, `trans` move the last member."""
    atoms = [list(entry[3]) for entry in entries]
    owner = [i for i, members in enumerate(atoms) for _ in members]
    all_rot = torch.eye(3).double().repeat(len(owner), 1, 1)
    all_trans = torch.zeros(len(owner), 3).double()
    if rot is not None:
        all_rot[-1], all_trans[-1] = rot, trans
    return Restraints(
        kind=tuple(entry[0] for entry in entries),
        target=tiny.f64([entry[1] for entry in entries]),
        sigma=tiny.f64([entry[2] for entry in entries]),
        owner=torch.tensor(owner),
        atom=torch.tensor([a for members in atoms for a in members]),
        rot=all_rot,
        trans=all_trans,
    )


def atoms(cartesian, u=None):
    """Return a structure in P1 with atoms at places in A, anisotropic with u (A, 6) in A^2."""
    lengths = tiny.f64(CELL[:3])
    sites = tiny.f64(cartesian) / lengths
    structure = tiny.triclinic(sites.tolist(), [1.0] * len(sites), [2.0] * len(sites), CELL)
    if u is None:
        return structure
    pairs = tiny.f64([1, 1, 1, 1, 1, 1])
    for k, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))):
        pairs[k] = 1 / (lengths[i] * lengths[j])
    return structure.replace(
        u_star=tiny.f64(u) * pairs, anisotropic=torch.ones(len(sites), dtype=torch.bool)
    )


def residuals(entry, structure):
    """Return the residuals of one restraint."""
    values = structure.site, structure.u_iso, structure.u_star
    return Restrainer(restraints(entry), structure)(*values)


CORNER = [[0, 0, 0], [1.0, 0, 0], [0, 2.0, 0], [0, 0, 1.5]]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (("distance", 1.1, 0.02, [0, 1]), [-5.0]),
        (("similar_distance", 0, 0.5, [0, 1, 0, 2]), [-1.0, 1.0]),
        (("angle", 80.0, 2.0, [1, 0, 2]), [5.0]),
        (("chirality", 1.0, 0.5, [0, 1, 2, 3]), [4.0]),
        (("chirality", 1.0, 0.5, [0, 2, 1, 3]), [-8.0]),
    ],
)
def test_values_of_a_corner(entry, expected):
    found = residuals(entry, atoms(CORNER))
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_heights_over_a_plane():
    """Four corners of a rectangle, up and down in turn: the plane is between."""
    square = [[1, 1, 1.3], [3, 1, 0.9], [3, 2, 1.3], [1, 2, 0.9]]
    found = residuals(("plane", 0, 0.1, [0, 1, 2, 3]), atoms(square))
    assert found.abs().tolist() == pytest.approx([2.0] * 4)
    assert float(found.sum()) == pytest.approx(0, abs=1e-9)


U = [[0.010, 0.020, 0.030, 0.001, 0.002, 0.003], [0.012, 0.015, 0.020, 0.001, -0.002, 0.001]]


@pytest.mark.parametrize(
    ("kind", "sum_of_squares"),
    [
        # components 11 22 33 and, twice, 12 13 23
        ("adp_similarity", 0.002**2 + 0.005**2 + 0.01**2 + 2 * (0.004**2 + 0.002**2)),
        ("rigid_bond", 0.01**2),  # the bond is along z
        # loosened by the distance, 1.5 A, and the mean displacements, 0.02 and 0.047 / 3
        (
            "enhanced_rigid_bond",
            (0.01**2 + 0.004**2 + 0.002**2) / 1.5**2 / (1 + (0.02 + 0.047 / 3) / 0.25),
        ),
    ],
)
def test_displacements_along_z(kind, sum_of_squares):
    found = residuals((kind, 0, 0.01, [0, 1]), atoms([[0, 0, 0], [0, 0, 1.5]], U))
    assert float(found.square().sum()) == pytest.approx(sum_of_squares / 1e-4)


def test_isotropic_tensors_are_isotropic():
    round_ = atoms([[0, 0, 0]], [[0.02, 0.02, 0.02, 0, 0, 0]])
    assert residuals(("isotropic_adp", 0, 0.1, [0]), round_).abs().max() < 1e-12
    long = atoms([[0, 0, 0]], [[0.05, 0.02, 0.02, 0, 0, 0]])
    found = residuals(("isotropic_adp", 0, 0.1, [0]), long)
    assert float(found.square().sum()) == pytest.approx(6 * 0.01**2 / 0.01)


def test_two_isotropic_atoms_have_one_difference():
    pair = atoms([[0, 0, 0], [0, 0, 1.5]]).replace(u_iso=tiny.f64([0.02, 0.03]))
    assert residuals(("adp_similarity", 0, 0.01, [0, 1]), pair).tolist() == pytest.approx([-1.0])


def random_structure(anisotropic=True):
    """Return five atoms in a hexagonal cell, all values arbitrary."""
    torch.manual_seed(3)
    cell = (6.0, 6.0, 5.0, 90.0, 90.0, 120.0)
    structure = tiny.triclinic(torch.rand(6, 3).tolist(), [1.0] * 6, [2.0] * 6, cell)
    return structure.replace(
        u_iso=0.01 + 0.02 * torch.rand(6).double(),
        u_star=1e-3 * torch.rand(6, 6).double(),
        anisotropic=torch.full((6,), anisotropic),
    )


def test_every_kind_is_tried():
    assert set(MEMBERS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anisotropic", [True, False])
def test_gradients(kind, anisotropic):
    """Of the cost: heights over a plane are exact to first order where the plane is best."""
    structure = random_structure(anisotropic)
    entry = (kind, 0.5, 0.1, range(MEMBERS[kind]))
    restrainer = Restrainer(restraints(entry, rot=TURN, trans=tiny.f64([0.1, 0.2, 0.3])), structure)

    def cost(*values):
        return restrainer(*values).square().sum()

    values = [structure.site, structure.u_iso, structure.u_star]
    assert torch.autograd.gradcheck(cost, [v.clone().requires_grad_() for v in values])


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_of_all_members_changes_nothing(kind):
    """A rotation of the lattice leaves distances, angles and tensors' differences as they are."""
    structure = random_structure()
    plain = restraints((kind, 0.0, 0.1, range(MEMBERS[kind])))
    count = len(plain.atom)
    shift = tiny.f64([0.1, 0.2, 0.3]).repeat(count, 1)
    turned = plain.replace(rot=TURN.repeat(count, 1, 1), trans=shift)
    values = structure.site, structure.u_iso, structure.u_star
    costs = [Restrainer(r, structure)(*values).square().sum() for r in (plain, turned)]
    assert float(costs[0]) == pytest.approx(float(costs[1]), rel=1e-9)
    assert float(costs[0]) > 0


def test_unknown_kind():
    with pytest.raises(ValueError, match="torsion"):
        Restrainer(restraints(("torsion", 0, 1, [0, 1, 0, 1])), tiny.quartz())


def test_derivatives_by_the_parameters_of_a_crystal():
    """With a square plane, whose in-plane axes are arbitrary, and with symmetry."""
    square = atoms([[0, 0, 0.02], [1.4, 0, 0], [1.4, 1.4, 0.02], [0, 1.4, 0]])
    entries = (
        ("plane", 0, 0.1, [0, 1, 2, 3]),
        ("distance", 1.5, 0.02, [0, 1]),
        ("adp_similarity", 0, 0.01, [2, 3]),
    )
    crystal = CrystalModel(square)
    restrained = RestrainedCrystal(crystal, Restrainer(restraints(*entries), square))
    size = sum(p.numel() for p in crystal.parameters())
    step = 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(1)).double()
    jacobian = restrained.jacobian(step)
    h = 1e-5
    numeric = [
        (restrained.after(step + h * e) - restrained.after(step - h * e)) / (2 * h)
        for e in torch.eye(size).double()
    ]
    # away from the best plane the held frame differs to second order only
    assert (jacobian - torch.stack(numeric, 1)).abs().max() < 2e-4 * jacobian.abs().max()
    crystal.step(step)
    assert torch.equal(restrained.after(torch.zeros(size).double()), restrained())


BONDS = (("distance", 1.65, 0.004, [0, 1]), ("angle", 109.0, 0.5, [0, 1, 0]))
MATE = {"rot": TURN, "trans": tiny.f64([1.0, 1.0, 2 / 3])}


def restrained_problem(**choices):
    return tiny.problem(**choices).replace(restraints=restraints(*BONDS, **MATE))


def test_residuals_join_those_of_the_priors():
    model = build_model(restrained_problem(), tiny.settings(), seed=0)
    cheap = CheapModel(model, Linearisation(*model.tangents()))
    x = cheap.start()
    x[cheap.parts.crystal] += 0.2
    prior, jacobian = cheap.prior(x), cheap.prior_jacobian(x)
    plain = build_model(tiny.problem(), tiny.settings(), seed=0)
    assert len(prior) == len(plain.prior_residuals()) + 2
    h = 1e-6
    for k in range(cheap.parts.crystal.start, cheap.parts.crystal.stop):
        move = torch.zeros_like(x)
        move[k] = h
        ahead, behind = (cheap.evaluate(x + s * move)[1] for s in (1, -1))
        assert torch.allclose((ahead - behind) / (2 * h), jacobian[:, k], rtol=1e-5, atol=1e-5)
    cheap.apply(x)
    assert torch.allclose(model.prior_residuals().detach(), prior, rtol=1e-9, atol=1e-9)


def length(structure) -> float:
    """Return the distance of Si and O in A."""
    step = structure.site[1] - structure.site[0]
    return math.sqrt(float(step @ metric(structure.cell) @ step))


def made(seed=0):
    """A problem with exact intensities of the quartz structure."""
    settings = tiny.settings(thickness="distribution", thickness_start=140.0)
    problem = tiny.problem(blocks=8, width=3.0)
    model = build_model(problem, settings, seed)
    with torch.no_grad():
        model.scale.log_scale += 12
        intensity = model.intensities(model.value_profiles())
    sigma = 0.05 * intensity + 1e-3 * intensity.max()
    observed = problem.observations.replace(intensity=intensity, sigma=sigma)
    return problem.replace(observations=observed), settings


def test_a_tight_restraint_moves_the_atoms_and_lessens_their_errors():
    problem, settings = made()
    target = length(problem.structure) + 0.02
    tight = restraints(("distance", target, 1e-4, [0, 1]))
    results = [
        Refinement(p, settings, RefineSettings(6)).run()
        for p in (problem, problem.replace(restraints=tight))
    ]
    lengths = [length(result.structure) for result in results]
    assert lengths[1] == pytest.approx(target, abs=1e-3)
    assert abs(lengths[0] - target) > 0.01
    assert results[0].summary["restraints"] == {}
    assert results[1].summary["restraints"]["distance"]["number"] == 1
    su = [length_su(result) for result in results]
    assert su[1] < 1.1e-4 * max(1, results[1].summary["final"]["gof"]) < su[0]


def length_su(result) -> float:
    """Return the s.u. of the distance of Si and O from the covariance of the sites."""
    structure = result.structure
    step = structure.site[1] - structure.site[0]
    slope = metric(structure.cell) @ step / length(structure)
    slopes = torch.stack([-slope, slope])
    return math.sqrt(float(torch.einsum("ai,aibj,bj->", slopes, result.site_covariance, slopes)))


def test_errors_of_sites_are_the_diagonal_of_their_covariance():
    problem, settings = made()
    result = Refinement(problem, settings, RefineSettings(1)).run()
    variance = torch.einsum("aiai->ai", result.site_covariance)
    expected = variance.sqrt() * problem.structure.cell[:3]
    assert torch.allclose(result.site_su, expected, rtol=1e-9, atol=1e-12)
    assert float(expected.max()) > 0


def test_the_summary_names_the_worst():
    entries = (("distance", 1.1, 0.02, [0, 1]), ("distance", 1.8, 0.02, [0, 2]))
    found = summary(restraints(*entries), atoms(CORNER))["distance"]
    assert (found["number"], found["rows"]) == (2, 2)
    assert found["worst"]["atoms"] == ["X0", "X2"]
    assert found["worst"]["deviation"] == pytest.approx(0.2)
    assert found["rms"] == pytest.approx(math.sqrt((25 + 100) / 2))


def test_files(tmp_path):
    """Restraints travel with the problem; a file of a version without them has none."""
    path = tmp_path / "problem.h5"
    problem = restrained_problem()
    problem.save(path)
    loaded = Problem.load(path).restraints
    for field in dataclasses.fields(loaded):
        mine, theirs = getattr(problem.restraints, field.name), getattr(loaded, field.name)
        assert torch.equal(mine, theirs) if torch.is_tensor(mine) else mine == theirs
    with h5py.File(path, "a") as handle:
        del handle["problem/restraints"]
    assert Problem.load(path).restraints is None


@pytest.mark.parametrize(
    "change",
    [
        {"sigma": tiny.f64([0.0, 1.0])},
        {"sigma": tiny.f64([1.0])},
        {"owner": torch.tensor([0, 0, 0, 0, 0])},
        {"owner": torch.tensor([1, 1, 0, 0, 0])},
    ],
)
def test_records_that_cannot_be(change):
    with pytest.raises(ValueError):
        restraints(*BONDS).replace(**change)
