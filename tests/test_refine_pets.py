"""dials.hybrid_refine on PETS2 files, as a user runs it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import pets
import synthetic
import torch
from commands import PETS_OUTPUTS, failure

from dials_hybrid import accuracy, api, io_cctbx, io_pets
from dials_hybrid.checkpoint import Checkpoint
from dials_hybrid.command_line import hybrid_refine
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import DepthGrid
from dials_hybrid.refine import Refinement

THICKNESS = 500.0
# few beams and depths: these tests look at the command, not at the physics
QUICK = ("beams.g_max=1.4", "beams.s_max=0.005", "selection.d_min=0.75", "depth.max=800")
ONCE = ("hand_and_indexing.test=False",)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Ten overlapping frames of a crystal of one thickness, and its structure."""
    folder = tmp_path_factory.mktemp("frames")
    model, path = folder / "quartz.cif", folder / "data.cif_pets"
    model.write_text(synthetic.QUARTZ_CIF)
    structure = io_cctbx.to_structure(synthetic.quartz_structure())
    alpha = tuple(-9 + 1.8 * i for i in range(10))
    file = pets.PetsFile(alpha=alpha, mosaicity=0.05).with_rows_in_frames(structure, 1.3)
    job = api.load(
        [file.write(path)],
        model,
        api.Options(
            selection=api.Selection(rsg_max=None, dsg_min=None, rocking_curve="frame"),
            sampling=api.Sampling(1.0, 0.1),
        ),
    )
    settings = ModelSettings(
        g_max=1.4,
        s_max=0.01,
        depth=DepthGrid(20.0, 30),
        thickness="single",
        thickness_start=THICKNESS,
        precision="double",
    )
    simulated = HybridModel(job.problem, settings)
    with torch.no_grad():
        intensity = 1e8 * simulated.intensities(simulated.profiles())
    sigma = 0.02 * intensity + 0.002 * intensity.max()
    file.with_intensities(intensity.tolist(), sigma.tolist()).write(path)
    return SimpleNamespace(path=path, model=model, rows=len(file.rows))


def refine(*arguments) -> dict:
    hybrid_refine.run([str(a) for a in arguments])
    return json.loads(Path("dials.hybrid_refine.json").read_text())


def test_frames_are_refined_and_a_stopped_run_goes_on(frames, here, monkeypatch):
    quick = (*QUICK, "sampling.step=0.1", "thickness.model=single")
    found = refine(frames.path, frames.model, *quick, "refinement.iterations=2")
    assert sorted(p.name for p in here.iterdir()) == sorted(PETS_OUTPUTS)
    assert found["space_group"] == "P 32 2 1"
    assert found["final"]["r1_obs"] < 0.03 < found["kinematic"]["r1_obs"]
    mean = found["thickness"]["mean"]
    assert len(mean) == 10 and sum(mean) / 10 == pytest.approx(THICKNESS, rel=0.1)
    log = Path("dials.hybrid_refine.log").read_text()
    assert "R_Sg < 0.9" in log and "10 frames of 2 degrees" in log
    assert "No .expt and .refl: there are no DIALS files to write back to" in log
    assert "hybrid_refined.expt" not in log.split("Written: ")[1]

    moved = frames.path.rename(frames.path.with_suffix(".moved"))
    try:
        more = refine("hybrid_refined.h5", "refinement.iterations=3")
    finally:
        moved.rename(frames.path)
    assert more["iterations"] == 3 and not any(".expt" in w for w in more["warnings"])
    monkeypatch.delattr(Refinement, "__init__")  # nothing is refined again
    again = refine("hybrid_refined.h5", "refinement.iterations=3", "output.pets=new.cif_pets")
    assert again["final"] == more["final"]
    assert "new.cif_pets" in Path("dials.hybrid_refine.log").read_text().split("Written: ")[1]
    new, old = (io_pets.load([name]).parts[0] for name in ("new.cif_pets", frames.path))
    assert len(new.hkl) == frames.rows and 1e-6 < abs(new.setting - old.setting).max() < 1e-3
    assert not Path("hybrid_refined.expt").exists()


def test_the_step_can_be_chosen_by_the_data(frames, here, monkeypatch):
    monkeypatch.setattr(accuracy, "SAMPLING_STEPS", (0.1, 0.115))
    automatic = ("sampling.step=Auto", "beams.r_change=0.1", "output.problem_only=True")
    hybrid_refine.run([str(frames.path), str(frames.model), *QUICK, *ONCE, *automatic])
    # half of the frame of 2 degrees and three standard deviations of 0.05 degrees on either side
    assert api.resume("hybrid_refined.h5").problem.scan.angle.shape == (20, 10)


def test_limits_are_parameters(frames, here):
    everything = ("selection.rsg_max=None", "selection.dsg_min=None", "output.problem_only=True")
    far = "beams.perturbation=0.05"
    hybrid_refine.run([str(frames.path), str(frames.model), *QUICK[:2], *ONCE, *everything, far])
    assert len(api.resume("hybrid_refined.h5").problem.observations.row) == frames.rows
    assert Checkpoint.load("hybrid_refined.h5").model_settings.perturbation == 0.05


MY_TERMS = """
from dials_hybrid.nuisance import Nuisance, zeros

class Tilt(Nuisance):
    def __init__(self, about, sigma):
        super().__init__(about, sigma)
        self.slope = zeros(1)

    def forward(self, intensity, about):
        return intensity * (1 + self.sigma * self.slope * about.angle)
"""


def test_nuisance_terms_are_refined_told_and_gone_on_with(frames, here):
    Path("my_terms.py").write_text(MY_TERMS)
    terms = ("nuisance.frame_scale=0.05", "nuisance.window=0.1")
    mine = "nuisance.module=my_terms.py:Tilt 0.2"
    quick = (*QUICK, *ONCE, "thickness.model=single", "hand_and_indexing.refine=none")
    found = refine(frames.path, frames.model, *quick, *terms, mine, "refinement.iterations=1")
    scale, window, faint, level, own = found["nuisance"]
    assert {"term", "expected", "lost", "edge"} < faint.keys() and "level" in level
    assert [scale["term"], window["term"]] == ["frame_scale", "window"]
    assert len(scale["log_scale"]["value"]) == len(scale["log_scale"]["su"]) == 10
    assert own["term"] == f"{here / 'my_terms.py'}:Tilt" and len(own["slope"]["su"]) == 1
    log = Path("dials.hybrid_refine.log").read_text()
    assert "Nuisance term frame_scale, log_scale: 10 values, r.m.s." in log
    assert "Nuisance term window, at_end: " in log
    more = refine("hybrid_refined.h5", "refinement.iterations=2", "hand_and_indexing.refine=none")
    assert [term["term"] for term in more["nuisance"]] == [t["term"] for t in found["nuisance"]]
    Path("my_terms.py").unlink()
    gone = failure("hybrid_refined.h5", "refinement.iterations=3")
    assert "my_terms.py:Tilt: there is no such file" in gone


def test_bad_nuisance_terms_are_one_sentence(frames, here):
    Path("bad.py").write_text("class Tilt: pass\n")
    files = (frames.path, frames.model)
    absent = failure(*files, "nuisance.module=absent.py:Tilt")
    assert "absent.py:Tilt: there is no such file" in absent
    assert "holds no class Tilt" in failure(*files, "nuisance.module=bad.py:Tilt")
    assert "nuisance.window" in failure(*files, "nuisance.window=-1")
    assert "nuisance.faint" in failure(*files, "nuisance.faint=0")
    assert "nuisance.windows" in failure(*files, "nuisance.windows=1")


def test_bad_input_is_one_sentence(frames, here):
    assert "absent.cif_pets: no such file" in failure("absent.cif_pets", frames.model)
    assert "exactly one structure" in failure(frames.path)
    assert ".cif_pets of PETS2" in failure(frames.model)
    mixed = failure(frames.path, "a.expt", "a.refl", frames.model)
    assert "is of PETS2 and a.expt is not" in mixed
    nothing = failure(frames.path, frames.model, "selection.rsg_max=0.0001")
    assert "no reflection is left" in nothing
    named = failure(frames.path, frames.model, "output.pets=new.cif")
    assert "the name must end in .cif_pets" in named
