"""Displacement tensors that the data want indefinite, and steps that would leave all sense."""

import math

import pytest
import tiny
import torch

from dials_hybrid import refine as refine_room
from dials_hybrid.data import Problem, Result
from dials_hybrid.freedom import least_u, star_lengths
from dials_hybrid.linear import solve
from dials_hybrid.refine import Refinement, RefineSettings, build_model

SETTINGS = tiny.settings(thickness="distribution", thickness_start=140.0)


def with_oxygen(u_cif) -> torch.Tensor:
    """Return u_star (2, 6) of quartz whose oxygen has U11 U22 U33 U12 U13 U23 in A^2."""
    quartz = tiny.quartz()
    return torch.stack([quartz.u_star[0], tiny.f64(u_cif) * star_lengths(quartz.cell)])


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Data of an oxygen whose U33 is below zero; the refinement starts from a sound one."""
    sound = tiny.problem(blocks=10, width=3.0, samples=8)
    bad = with_oxygen([0.015, 0.012, -0.008, 0.006, 0.0, 0.0])
    model = build_model(sound.replace(structure=sound.structure.replace(u_star=bad)), SETTINGS, 0)
    with torch.no_grad():
        model.scale.log_scale += 12
        made = model.intensities(model.value_profiles())
    o = sound.observations.replace(intensity=made, sigma=0.01 * made + 1e-4 * made.max())
    return sound.replace(observations=o)


def numbers(result: Result) -> list[torch.Tensor]:
    s = result.structure
    errors = [result.site_su, result.u_su, result.u_aniso_su]
    return [s.site, s.u_iso, s.u_star, result.calculated, result.thickness, *errors]


def test_the_least_principal_u():
    quartz = tiny.quartz().replace(u_star=with_oxygen([0.01, 0.01, -0.008, 0.005, 0.0, 0.0]))
    # axes a and b at 120 degrees: U12 = U11 / 2 is isotropic in their plane
    assert least_u(quartz).tolist() == pytest.approx([0.007, -0.008])


def test_an_indefinite_tensor_is_refined_and_named(problem):
    result = Refinement(problem, SETTINGS, RefineSettings(12)).run()
    assert float(least_u(result.structure)[1]) == pytest.approx(-0.008, abs=0.002)
    assert all(bool(x.isfinite().all()) for x in numbers(result))
    checks = pytest.importorskip("dials_hybrid.report.atom_checks", reason="cctbx is not installed")
    (found,) = checks.indefinite(result.structure)
    assert found.severity == "alert" and "O1 (-0.00" in found.text and "Si1" not in found.text


def test_a_step_to_where_waves_are_no_numbers_is_taken_back(problem, monkeypatch):
    """exp(2 pi^2 g^2 50 A^2) is infinite: such a step is shortened, and the fit goes on."""
    wild = []

    def first_leap(least_squares, x, iterations):
        found = solve(least_squares, x, iterations)
        # neither where thickness and scale start, nor in the short rounds of the error model
        if least_squares.proximity < 1e9 and iterations > refine_room.SHORT and len(wild) < 2:
            part = least_squares.cheap.model.crystal.slices()["u_shift"]
            found[part] = -50 / 0.003
            wild.append(least_squares.proximity)
        return found

    monkeypatch.setattr(refine_room, "solve", first_leap)
    result = Refinement(problem, SETTINGS, RefineSettings(6)).run()
    assert len(wild) == 2 and wild[1] > wild[0]
    assert all(bool(x.isfinite().all()) for x in numbers(result))
    assert result.summary["final"]["r1_obs"] < 0.5 * result.summary["start"]["r1_obs"]
    assert math.isfinite(result.summary["final"]["gof"])
