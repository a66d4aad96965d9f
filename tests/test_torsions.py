"""Groups that turn about a bond: what moves, how far, and where it ends."""

import pytest
import tiny
import torch

from dials_hybrid.crystal import SITE_UNIT, CrystalModel
from dials_hybrid.data import Structure
from dials_hybrid.freedom import Constraints, basis, to_cartesian
from dials_hybrid.torsions import on_circles

CELL = (7.0, 8.0, 9.0, 80.0, 95.0, 105.0)
# A: an axis atom, the parent, and three atoms around it
PLACES = tiny.f64(
    [[1.5, 1.0, 1.0], [3.0, 1.0, 1.2], [3.3, 1.9, 1.7], [3.4, 0.1, 1.6], [3.3, 1.1, 0.2]]
)
GROUP = (0, 1, (2, 3, 4))
RIDING = tuple((i, 1) for i in GROUP[2])
SITE = torch.linalg.solve(to_cartesian(tiny.f64(CELL)), PLACES.T).T


def methyl(site=SITE, **changes) -> Structure:
    """Return the group in P1."""
    ones = [1.0] * len(site)
    return tiny.triclinic(site.tolist(), ones, ones, cell=CELL).replace(**changes)


def centred(**changes) -> Structure:
    """Return the group in P-1."""
    return methyl(
        sym_rot=torch.stack([torch.eye(3), -torch.eye(3)]).double(),
        sym_trans=torch.zeros(2, 3).double(),
        hall_symbol="-P 1",
        **changes,
    )


def turning(structure: Structure, group=GROUP, **more) -> Structure:
    riding = tuple((i, group[1]) for i in group[2])
    found = Constraints(**{"riding": riding, "turning": (group,)} | more)
    return structure.replace(freedom=basis(structure, found))


def moved(structure: Structure, turn: float, rest: float = 0.0) -> Structure:
    """Return the structure with its torsion (the last parameter) moved, in A, and all others."""
    model = CrystalModel(structure)
    with torch.no_grad():
        model.site_shift.fill_(rest / SITE_UNIT)
        model.site_shift[-1] = turn / SITE_UNIT
    return model.refined()


def from_parent(structure: Structure) -> torch.Tensor:
    """Return the vectors from the parent to the atoms that ride, in A."""
    return (structure.site[2:] - structure.site[1]) @ to_cartesian(structure.cell).T


def shape(structure: Structure) -> torch.Tensor:
    """Return the distances between all atoms of the group and its axis."""
    x = structure.site @ to_cartesian(structure.cell).T
    first, second = torch.triu_indices(5, 5, 1)
    return (x[first] - x[second]).norm(dim=1)


def test_one_parameter_more_turns_the_group_about_its_bond():
    structure = turning(methyl())
    row = structure.freedom.site[-1]
    assert len(structure.freedom.site) == 3 + 3 + 1
    assert structure.freedom.torsions.tolist() == [False] * 6 + [True]
    assert structure.freedom.parent.tolist() == [-1, -1, 1, 1, 1]
    assert torch.equal(row[:2], torch.zeros(2, 3).double())
    step = row[2:] @ to_cartesian(structure.cell).T
    assert float(step.norm(dim=1).max()) == pytest.approx(1)
    bond = (structure.site[1] - structure.site[0]) @ to_cartesian(structure.cell).T
    assert float((step @ bond).abs().max()) < 1e-12
    assert float((step * from_parent(structure)).sum(1).abs().max()) < 1e-12
    # to first order nothing but the torsion changes
    change = shape(moved(structure, 1e-4)) - shape(structure)
    assert float(change.abs().max()) < 1e-7


@pytest.mark.parametrize("angle", [0.0, 0.3, -1.1])
def test_a_group_that_has_turned_keeps_its_shape_and_its_angle(angle):
    structure = turning(methyl())
    straight = moved(structure, float(torch.tan(torch.tensor(angle))), rest=0.02)
    found = on_circles(structure, straight, Constraints(turning=(GROUP,)))
    assert torch.equal(found.site[:2], straight.site[:2])
    assert torch.allclose(from_parent(found).norm(dim=1), from_parent(structure).norm(dim=1))
    d = from_parent(structure), from_parent(found)
    assert torch.allclose(d[0] @ d[0].T, d[1] @ d[1].T)
    bond = (structure.site[1] - structure.site[0]) @ to_cartesian(structure.cell).T
    bond = bond / bond.norm()
    flat = [x - torch.outer(x @ bond, bond) for x in d]
    radius = flat[0].norm(dim=1).max()
    sine = torch.linalg.cross(flat[0], flat[1]) @ bond / flat[0].norm(dim=1) ** 2
    cosine = (flat[0] * flat[1]).sum(1) / flat[0].norm(dim=1) ** 2
    expected = torch.atan(torch.tan(torch.tensor(angle)).double() / radius)
    assert torch.allclose(torch.atan2(sine, cosine), expected.expand(3))


def test_atoms_listed_elsewhere_turn_the_same_way():
    """Each at another copy by symmetry, and the axis atom too."""
    site = SITE.clone()
    for i, shift in ((0, 1), (2, -1), (3, 0)):
        site[i] = shift - site[i]
    site[4] = site[4] + 2
    near, away = turning(centred()), turning(centred(site=site))
    sign = torch.tensor([-1, 1, -1, -1, 1]).double()[:, None]
    assert torch.allclose(away.freedom.site[-1], sign * near.freedom.site[-1])
    change = []
    for structure in (away, near):
        end = on_circles(structure, moved(structure, 0.4), Constraints(turning=(GROUP,)))
        change.append(end.site - structure.site)
    assert torch.allclose(change[0], sign * change[1])


def test_the_axis_may_lead_to_the_parent_s_own_image():
    """Two groups with a centre of symmetry between them."""
    site = SITE - (SITE[0] + SITE[1]) / 2
    image = torch.cat([site[1:], -site[1:2]])
    known = turning(centred(site=image[[4, 0, 1, 2, 3]]))
    own = turning(centred(site=image), group=(0, 0, (1, 2, 3)))
    assert torch.allclose(own.freedom.site[-1, 1:4], known.freedom.site[-1, 2:])


def test_a_mirror_holds_a_group_and_an_axis_lets_it_turn():
    cell = (9.0, 9.0, 8.0, 90.0, 90.0, 120.0)
    scale = to_cartesian(tiny.f64(cell))
    third = tiny.f64([[0, -1, 0], [1, -1, 0], [0, 0, 1]])
    threefold = torch.stack([torch.eye(3).double(), third, third @ third])
    mirror = torch.stack([torch.eye(3).double(), tiny.f64([[0, 1, 0], [1, 0, 0], [0, 0, 1]])])
    # along the axis, and one atom that is off it but on the mirror
    places = tiny.f64([[0, 0, 0], [0, 0, 1.5], [0.5, 0.5 * 3**0.5, 1.9]])
    site = torch.linalg.solve(scale, places.T).T
    for rotations, rows in ((threefold, 1), (mirror, 0)):
        projector = rotations.mean(0)
        structure = tiny.triclinic(site.tolist(), [1.0] * 3, [1.0] * 3, cell=cell).replace(
            sym_rot=rotations,
            sym_trans=torch.zeros(len(rotations), 3).double(),
            site_projector=torch.stack([projector, projector, torch.eye(3).double()]),
            weight=tiny.f64([1 / len(rotations), 1 / len(rotations), 1]),
        )
        with_turn = turning(structure, group=(0, 1, (2,)))
        without = basis(structure, Constraints(riding=((2, 1),)))
        assert len(with_turn.freedom.site) - len(without.site) == rows
    # one of a disorder about the mirror is not held by it
    loose = structure.replace(
        weight=torch.ones(3).double(), site_projector=torch.eye(3).double().repeat(3, 1, 1)
    )
    assert turning(loose, group=(0, 1, (2,))).freedom.torsions.tolist() == [False] * 6 + [True]


def test_a_group_turns_only_where_all_its_atoms_ride():
    assert len(turning(methyl(), riding=RIDING[:2]).freedom.site) == 9
    fixed = turning(methyl(), fixed_site=frozenset({1}))
    assert len(fixed.freedom.site) == 3 + 1, "a fixed parent does not hold the torsion"
    assert len(turning(methyl(), riding=RIDING[:2], fixed_site=frozenset({4})).freedom.site) == 6


def test_turning_groups_go_through_a_file():
    given = Constraints(riding=RIDING, turning=(GROUP,))
    assert Constraints.from_dict(given.to_dict()) == given
