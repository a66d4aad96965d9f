"""Which beams may be left out: cut-offs, and shares of the current, against nearly all beams.

Real data, some frames, nothing refined, one thickness: R(calc) = sum ||Fc| - |Fc, all|| / sum |Fo|
over reflections above 3 sigma, and R1, for each choice.
"""

from __future__ import annotations

import dataclasses
import time

import torch

from dials_hybrid import accuracy, api, validation
from dials_hybrid.propagation import DepthGrid

from . import common

# files, structure, its block, every how many-th frame, thickness / A, s_max of nearly all beams
SETS = {
    "quartz, DIALS": (
        ("quartz_dials/integrated.expt", "quartz_dials/integrated.refl"),
        "quartz_dials/quartz_xray.cif",
        None,
        2,
        600.0,
        0.05,
    ),
    "quartz, PETS2": (
        ("quartz_pets/quartz.cif_pets",),
        "quartz_pets/quartz_kinematical.cif",
        None,
        6,
        600.0,
        0.05,
    ),
    "albite": (
        ("albite_jana/pets2_albite.cif_pets",),
        "albite_jana/jana2006_albite.cif",
        "albite_kinematical",
        10,
        540.0,
        0.04,
    ),
    "CsPbBr3": (
        ("cspbbr3_pets/CsPbBr_P67-crot-050_dyn.cif_pets",),
        "cspbbr3_pets/cspbbr3.cif",
        None,
        30,
        500.0,
        0.04,
    ),
    "paracetamol": (
        ("paracetamol_pets/APAP_dyn_reference.cif_pets",),
        "paracetamol_pets/paracetamol.cif",
        None,
        25,
        700.0,
        0.02,
    ),
}
CHOICES = (
    (0.02, None),
    (0.01, None),
    (0.04, 1e-4),
    (0.03, 3e-5),
    (0.03, 1e-4),
    (0.03, 3e-4),
    (0.03, 1e-3),
    (0.03, 3e-3),
    (0.03, 1e-2),
)


def some_frames(name: str):
    """Return the problem of some frames of a set, and the settings of the model."""
    files, structure, block, every, thickness, _ = SETS[name]
    folder = common.data_folder()
    options = api.Options(block=block)
    job = api.load([folder / file for file in files], folder / structure, options)
    chosen = job.problem.scan.frame % every == every // 2
    settings = dataclasses.replace(
        options.model,
        perturbation=None,
        depth=DepthGrid(40.0, 1),
        thickness_start=thickness,
    )
    return validation.keep_blocks(job.problem, chosen), settings


def rows_of(name: str) -> list[dict]:
    """Return the rows of the table of one set."""
    problem, settings = some_frames(name)
    finest = dataclasses.replace(settings, s_max=SETS[name][-1], left_out=None)
    truth, rows = None, []
    for s_max, left_out in ((finest.s_max, None), *CHOICES):
        chosen = dataclasses.replace(settings, s_max=s_max, left_out=left_out)
        began = time.process_time()
        found = accuracy.agreement(problem, chosen)
        seconds = time.process_time() - began
        truth = truth or found
        rung = accuracy.compare("", found, truth)
        rows.append(
            {
                "set": name,
                "s_max": s_max,
                "left_out": left_out,
                "beams": round(rung.beams),
                "R(calc)": rung.r_calc,
                "R1": rung.r1,
                "processor time / s": seconds,
            }
        )
    return rows


def main() -> None:
    """Print the table and write benchmarks/results/beams.json."""
    torch.set_num_threads(1)
    rows = []
    for name, (files, *_) in SETS.items():
        if not (common.data_folder() / files[0]).is_file():
            print(f"{name}: no data in {common.data_folder()}; set DIALS_HYBRID_DATA")
            continue
        rows += rows_of(name)
    if rows:
        common.save("beams", rows)
        common.print_table("Beams left out", rows)


if __name__ == "__main__":
    main()
