"""Frames of PETS2 cut into blocks with beams of their own, and far beams to second order.

Real data, some frames, nothing refined, one thickness. R(calc) = sum ||Fc| - |Fc, ref|| / sum |Fc|
over I > 3 sigma, the reference being the last row of each set: blocks of a degree, beams of twice
the excitation errors, a tenth of the current in those left out, and the far ones to second order.
"""

from __future__ import annotations

import time

import torch

from dials_hybrid import io_pets
from dials_hybrid.data import Problem
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_geometry import Sampling
from dials_hybrid.io_reflections import Selection
from dials_hybrid.io_structures import read_structure
from dials_hybrid.losses import amplitudes
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import Chebyshev, DepthGrid

from . import common

# files, block of the CIF, every how many-th frame, thickness in A
SETS = {
    "quartz": ("quartz_pets", "enantiomer_1.cif", None, 10, 600.0),
    "albite": ("albite_jana", "jana2006_albite.cif", "albite_kinematical", 15, 340.0),
    "CsPbBr3": ("cspbbr3_pets", "cspbbr3.cif", None, 20, 450.0),
    "paracetamol": ("paracetamol_pets", "paracetamol.cif", None, 25, 450.0),
}
WHOLE, STEP = 1000.0, 0.05  # degree
# width of the blocks in degree, |S| of the beams in A^-1, current through those left out, and |S|
# up to which beams act to second order
CHOICES = (
    (WHOLE, 0.03, 1e-4, None),
    (1.0, 0.03, 1e-4, None),
    (0.5, 0.03, 1e-4, None),
    (1.0, 0.02, 1e-4, None),
    (1.0, 0.03, 1e-4, 0.1),
    (1.0, 0.02, 1e-4, 0.1),
    (1.0, 0.02, 1e-3, 0.1),
    (1.0, 0.06, 1e-5, 0.1),
)


def problem_of(loaded, structure, every: int, width: float) -> Problem:
    """Return some frames of a file as a problem of blocks of a width (degree)."""
    (part,), selection = loaded.parts, Selection(d_min=0.625)
    rows, _ = loaded.select(selection)
    rows = rows[part.frame[rows] % every == every // 2]
    return Problem(structure, *loaded.observed(rows, Sampling(width, STEP), selection))


def run_case(name: str) -> list[dict]:
    """Return the rows of the table of one set."""
    folder, model, block, every, thickness = SETS[name]
    folder = common.data_folder() / folder
    loaded = io_pets.load(sorted(folder.glob("*.cif_pets")))
    crystal = read_structure(folder / model, block=block)
    structure = to_structure(loaded.reconcile(crystal, model))
    rows, calculated = [], []
    for width, s_max, left_out, far in CHOICES:
        settings = ModelSettings(
            s_max=s_max,
            left_out=left_out,
            perturbation=far,
            depth=DepthGrid(40.0, round(2 * thickness / 40)),
            propagator=Chebyshev(),  # without a step that large excitation errors would shorten
            thickness_start=thickness,
        )
        problem = problem_of(loaded, structure, every, width)
        model_of = HybridModel(problem, settings)
        began = time.process_time()
        with torch.no_grad():
            intensity = model_of.intensities(model_of.value_profiles())
        seconds = time.process_time() - began
        o = problem.observations
        fo, fc = amplitudes(o.intensity)[o.observed], amplitudes(intensity)[o.observed]
        fc = fc * (fo * fc).sum() / fc.square().sum()
        calculated.append(fc)
        rows.append(
            {
                "set": name,
                "width / degree": "frame" if width == WHOLE else width,
                "s_max": s_max,
                "left out": left_out,
                "second order to": far,
                "observed": len(fo),
                "blocks": len(problem.scan.angle),
                "samples": problem.scan.angle.shape[1],
                "beams": float(model_of.beams.counts.double().mean()),
                "processor time / s": seconds,
                "R1": float((fo - fc).abs().sum() / fo.sum()),
            }
        )
    for row, fc in zip(rows, calculated, strict=True):
        row["R(calc)"] = float((fc - calculated[-1]).abs().sum() / calculated[-1].sum())
    return rows


def present() -> list[str]:
    """Return the sets whose data are there, and say where they are looked for if none is."""
    found = [
        name for name, (folder, *_) in SETS.items() if (common.data_folder() / folder).is_dir()
    ]
    if not found:
        print(f"no data in {common.data_folder()}; set DIALS_HYBRID_DATA")
    return found


def main() -> None:
    """Print the table and write benchmarks/results/frames.json."""
    torch.set_num_threads(1)
    rows = [row for name in present() for row in run_case(name)]
    if rows:
        common.save("frames", rows)
        common.print_table("Frames of PETS2, whole and cut", rows)


if __name__ == "__main__":
    main()
