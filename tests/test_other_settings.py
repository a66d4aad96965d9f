"""How a refinement of another hand or setting begins."""

import dataclasses
from types import SimpleNamespace

import pytest
import tiny
import torch

pytest.importorskip("cctbx", reason="cctbx is not installed")

import synthetic
from cctbx import crystal, xray
from cctbx.array_family import flex

from dials_hybrid import other_settings
from dials_hybrid.crystal import CrystalModel
from dials_hybrid.history import Progress
from dials_hybrid.io_cctbx import other_hand, to_structure
from dials_hybrid.job import Job, Options, context
from dials_hybrid.refine import Refinement, RefineSettings
from dials_hybrid.valence import ValenceSettings


def structure_in(group: str):
    """Return atoms on an axis and off it; the first is anisotropic."""
    symmetry = crystal.symmetry(unit_cell=(7, 7, 9, 90, 90, 90), space_group_symbol=group)
    sites = ((0, 0, 0.1), (0.13, 0.22, 0.31))
    atoms = [xray.scatterer(f"C{i}", site=site, u=0.01 + 0.01 * i) for i, site in enumerate(sites)]
    out = xray.structure(crystal_symmetry=symmetry, scatterers=flex.xray_scatterer(atoms))
    out.scatterers()[0].convert_to_anisotropic(unit_cell=out.unit_cell())
    return out


@pytest.mark.parametrize(
    "group, mirror", [("P 41", "P 43"), ("I 41", "I 41"), ("P 41 2 2", "P 43 2 2"), ("P 1", "P 1")]
)
def test_the_other_hand_is_that_of_cctbx(group, mirror):
    given = structure_in(group)
    moved, found = other_hand(given, to_structure(given))
    assert str(moved.space_group_info()) == mirror
    expected = to_structure(given.change_hand())
    for field in dataclasses.fields(found):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(mine, torch.Tensor):
            assert torch.allclose(mine.double(), theirs.double(), atol=1e-12), field.name
        else:
            assert mine == theirs


def test_the_other_hand_scatters_as_the_mirror_image_does():
    given = synthetic.quartz_structure()
    moved, found = other_hand(given, to_structure(given))
    assert str(moved.space_group_info()) == "P 31 2 1"
    hkl = torch.cartesian_prod(*[torch.arange(-3, 4)] * 3)
    assert torch.allclose(CrystalModel(found)(hkl), CrystalModel(to_structure(given))(-hkl))


@pytest.mark.parametrize("mirror", [True, False])
def test_it_begins_where_the_first_one_ended(mirror):
    problem = tiny.problem(blocks=3)
    settings = tiny.settings(valence=ValenceSettings("dipole"))
    first = Refinement(problem, settings, RefineSettings(7))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    first._remember()
    refined = first.model.crystal.refined()
    job = Job(problem, None, None, Options(model=settings))
    end = other_settings.Refined(job, first, SimpleNamespace(structure=refined))
    second = other_settings.started(end, problem.replace(structure=refined), mirror, Progress())
    assert torch.allclose(second.model.crystal.site(), first.model.crystal.site())
    assert torch.allclose(second.model.crystal.u_star(), first.model.crystal.u_star())
    own, other = first.model.crystal.valence(), second.model.crystal.valence()
    assert torch.allclose(own.charge, other.charge)
    assert torch.allclose(other.dipole, (-1 if mirror else 0) * own.dipole)
    for name in ("orientation.offset", "scale.log_scale"):
        a, b = (dict(r.model.named_parameters())[name] for r in (first, second))
        assert torch.equal(a, b)
    assert torch.equal(first.model.thickness(), second.model.thickness())
    assert second.settings.iterations == first.settings.iterations
    assert second.tolerance == pytest.approx(other_settings.LOOSE * first.tolerance)
    assert second.progress.checkpoint is None


def test_moves_after_moves_are_recorded():
    chosen = {"operator": "k,l,h", "inverted": True, "changed": True, "candidates": []}
    found = other_settings.moved_indexing(chosen, "-h,k,l", "inverted")
    assert found["operator"] == "-k,l,h" and not found["inverted"]
    assert other_settings.moved_indexing(chosen, "h,k,l", "given")["operator"] == "k,l,h"
    assert other_settings.moved_indexing({}, "h,k,l", "given") == {}


def test_checkpoints_of_the_hand_that_is_left_for_hold_its_own_structure():
    given, moved = structure_in("P 41"), structure_in("P 43")
    seen = {}
    refinement = SimpleNamespace(run=lambda: seen.update(refinement.context))
    first = SimpleNamespace(
        settings=None, context=context(Job(tiny.problem(), given, None, Options()))
    )
    job = Job(tiny.problem(), moved, None, Options(), {"operator": "h,k,l", "inverted": True})
    better = SimpleNamespace(job=job, refinement=refinement)
    other_settings._to_the_end(SimpleNamespace(refinement=first), better, Progress())
    assert seen["indexing"] == job.indexing
    assert "P 43" in seen["structure_cif"] and "P 41" not in seen["structure_cif"]


def test_a_comparison_that_is_interrupted_at_once_leaves_the_result(monkeypatch, caplog):
    def interrupted(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(other_settings, "restored", interrupted)
    result = SimpleNamespace(summary={}, fourier=object())
    job = Job(None, structure_in("P 41"), None, Options(), result=result)
    assert other_settings.compared(job, Progress()) is None
    assert caplog.messages[-1] == other_settings.NOT_COMPARED
