"""Real PETS2 data: the command with its defaults, beside what other programs got.

python -m benchmarks.pets [quartz] [quartz_absorption] [quartz_near_beams] [quartz_loose_scale]
[quartz_one_radius] [quartz_no_detector] [albite] [albite_no_detector] [cspbbr3]
[cspbbr3_absorption] [paracetamol]: quartz alone by default, since the others take up to some hours
on two cores.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dials_hybrid import io_pets
from dials_hybrid.checkpoint import Checkpoint
from dials_hybrid.command_line import hybrid_refine
from dials_hybrid.freedom import least_u
from dials_hybrid.io_reflections import Selection
from dials_hybrid.losses import r1

from . import common

# R1(obs): Jana2020 as published (Malik et al. 2026, doi:10.1038/s41467-026-71673-9), elastic and
# with absorption; diffBloch 0.2.0, mean over frames; Jana2006 for albite, whose file holds two
# structures
SETS = {
    "quartz": ("quartz_pets", 0.0412, 0.0506),
    "quartz_absorption": ("quartz_pets", 0.0400, None),
    "quartz_near_beams": ("quartz_pets", 0.0412, 0.0506),
    "quartz_loose_scale": ("quartz_pets", 0.0412, 0.0506),
    "quartz_one_radius": ("quartz_pets", 0.0412, 0.0506),
    "quartz_no_detector": ("quartz_pets", 0.0412, 0.0506),
    "cspbbr3": ("cspbbr3_pets", 0.0640, 0.0654),
    "cspbbr3_absorption": ("cspbbr3_pets", 0.0526, 0.0537),
    "paracetamol": ("paracetamol_pets", None, None),
    "albite": ("albite_jana", 0.1003, None),
    "albite_no_detector": ("albite_jana", 0.1003, None),
}
ABSORPTION = ["absorption.model=thermal"]
NO_DETECTOR = ["nuisance.faint=None", "nuisance.level=None"]
ALBITE = ["structure.block=albite_kinematical"]
OPTIONS = {
    "albite": ALBITE,
    "albite_no_detector": [*ALBITE, *NO_DETECTOR],
    "quartz_no_detector": NO_DETECTOR,
    "quartz_absorption": ABSORPTION,
    "quartz_near_beams": ["beams.perturbation=None"],
    "quartz_loose_scale": ["scale.stiffness=1"],
    "quartz_one_radius": ["valence.charge_radius=0.68"],
    "cspbbr3_absorption": ABSORPTION,
}


def rows_of_frames(frames: Path, end: Checkpoint) -> tuple[int, float]:
    """Return the number of observed rows and their R1 as other programs count them.

    They take every row of every frame; here rows that repeat one intensity are one observation.
    """
    loaded = io_pets.load([frames])
    (part,), o = loaded.parts, end.problem.observations
    hkl = o.hkl.tolist()
    found = {(*hkl[i], float(o.intensity[i])): i for i in range(len(hkl)) if not o.free[i]}
    rows, _ = loaded.select(Selection(d_min=0.625, rocking_curve="frame"))
    keys = zip(*part.hkl[rows].T.tolist(), part.intensity[rows].tolist(), strict=True)
    used = np.array([found[key] for key in keys if key in found])
    used = used[o.observed.numpy()[used]]
    return len(used), r1(o.intensity[used], end.result.calculated[used])


def files_of(name: str) -> list[Path]:
    """Return the frames of a set and its structure, nothing if they are not there."""
    data = common.data_folder() / SETS[name][0]
    if not common.there(data):
        return []
    return [sorted(data.glob(pattern))[0] for pattern in ("*.cif_pets", "*.cif")]


def refine(name: str, files: list[Path], folder: Path) -> dict:
    """Run the command on one set and return the row of the table."""
    began = time.monotonic()
    with contextlib.chdir(folder):
        hybrid_refine.run([*map(str, files), *OPTIONS.get(name, [])])
    return row_of(name, files[0], folder, time.monotonic() - began)


def row_of(name: str, frames: Path, folder: Path, seconds: float) -> dict:
    """Return the row of the table of what the command wrote in a folder."""
    _, jana, diffbloch = SETS[name]
    found = json.loads((folder / "dials.hybrid_refine.json").read_text())
    end = Checkpoint.load(folder / "hybrid_refined.h5")
    count, r1_rows = rows_of_frames(frames, end)
    row = {
        "set": name,
        "observed": found["n_obs"],
        "R1 kinematic": found["kinematic"]["r1_obs"],
        "R1 start": found["start"]["r1_obs"],
        "R1": found["final"]["r1_obs"],
        "rows observed": count,
        "R1 of rows": r1_rows,
        "R1 frame mean": found["final"]["r1_obs_frame_mean"],
        "R1 merged": found["merged"]["r1_obs"],
        "R1 each left out": found["cross_validated"]["r1_obs"],
        "R1 free": found["free"]["r1_obs"],
        "R1 of all": found["final"]["r1_all"],
        "of all, each left out": found["cross_validated"]["r1_all"],
        "mean U / A^2": sum(site["u_iso"] for site in found["sites"]) / len(found["sites"]),
        "indefinite U": int((least_u(end.result.structure) <= 0).sum()),
        **common.recorded(found),
        "Jana R1": jana,
        "diffBloch frame mean": diffbloch,
        "stiffness of the scale": found["scale"]["stiffness"],
        "converged": found["converged"],
        "time / s": round(seconds),
        "refinement / s": round(found["wall_time_s"]),
        "s.u. / s": round(found["su_time_s"], 1),
    }
    if SETS[name][0] == SETS["quartz"][0]:
        for label, distance in common.distances(folder / "hybrid_refined.cif").items():
            row[f"{label} to X-ray / A"] = distance
    return row


def main() -> None:
    """Print the table and write benchmarks/results/pets_SET.json of each set."""
    rows = []
    for name in sys.argv[1:] or ["quartz"]:
        files = files_of(name)
        if not files:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(refine(name, files, Path(folder)))
        common.save(f"pets_{name}", rows[-1:])
    if rows:
        common.print_table("PETS2 data", rows)


if __name__ == "__main__":
    main()
