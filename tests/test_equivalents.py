"""One of each set of equivalent reflections tells the structure factors of all."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from dials_hybrid.beams import lattice_points
from dials_hybrid.crystal import CrystalModel
from dials_hybrid.equivalents import Equivalents, has_centre
from dials_hybrid.valence import ValenceSettings


def test_all_structure_factors_follow():
    """Of quartz with dipoles: screw axes and no inversion."""
    structure = tiny.quartz()
    model = CrystalModel(structure, ValenceSettings())
    with torch.no_grad():
        for p in model.parameters():
            p += torch.linspace(0.5, 1.5, len(p))
    hkl = lattice_points(structure, 1.5)
    found = Equivalents.of(structure, hkl)
    assert len(found.hkl) < len(hkl) / 5
    expected = model(hkl)
    assert torch.allclose(found.spread(model(found.hkl)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("shift", "centred"), [((0, 0, 0), True), ((1, -2, 0), True), ((0.5, 0, 0), False)]
)
def test_only_a_centre_at_the_origin_makes_structure_factors_real(shift, centred):
    structure = tiny.inverted(shift)
    assert has_centre(structure) == centred and not has_centre(tiny.quartz())
    f = CrystalModel(structure)(lattice_points(structure, 1.0)).detach()
    assert (f.imag.abs().max() < 1e-12 * f.real.abs().max()) == centred


@given(st.lists(st.tuples(*[st.integers(-6, 6)] * 3), max_size=20))
def test_any_reflections(indices):
    """Also those that are there without their mates, or twice, or none at all."""
    structure = tiny.quartz()
    hkl = torch.tensor(indices, dtype=torch.int64).view(-1, 3)
    found, model = Equivalents.of(structure, hkl), CrystalModel(structure)
    spread = found.spread(torch.stack([model(found.hkl), 2 * model(found.hkl)]))
    assert torch.allclose(spread, torch.stack([model(hkl), 2 * model(hkl)]), atol=1e-12)
