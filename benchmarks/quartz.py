"""Real quartz, DIALS-integrated: the command with its defaults, from several starts.

python -m benchmarks.quartz [SEED...]: seeds of the displaced starts, by default 1 2 3.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

from dials_hybrid.command_line import hybrid_refine
from dials_hybrid.io_structures import read_structure

from . import common

CHOICES = (
    "nuisance.faint=None nuisance.level=None",
    "valence.model=none",
    "valence.charge_radius=0.68",
    "scale.stiffness=1",
    "orientation.sigma=Auto",
    "beams.perturbation=None",
)


def refine(files: list, folder: Path, first: Path) -> dict:
    """Run the command in a folder and return the row of the table.

    `files` are the arguments; `first` is the folder of the run whose end is compared with.
    """
    folder.mkdir(parents=True)
    began, used = time.monotonic(), time.process_time()
    with contextlib.chdir(folder):
        hybrid_refine.run([str(f) for f in files])
    seconds, used = time.monotonic() - began, time.process_time() - used
    found = json.loads((folder / "dials.hybrid_refine.json").read_text())
    distance = common.distances(folder / "hybrid_refined.cif")
    apart = common.distances(folder / "hybrid_refined.cif", first / "hybrid_refined.cif")
    return {
        "R1 kinematic": found["kinematic"]["r1_obs"],
        "R1 start": found["start"]["r1_obs"],
        "R1": found["final"]["r1_obs"],
        "R1 free": found["free"]["r1_obs"],
        "R1 each left out": found["cross_validated"]["r1_obs"],
        "R1 of all": found["final"]["r1_all"],
        "of all, each left out": found["cross_validated"]["r1_all"],
        "observed": found["n_obs"],
        **{f"{label} to X-ray / A": d for label, d in distance.items()},
        "mean to X-ray / A": sum(distance.values()) / len(distance),
        **{f"U of {site['label']} / A^2": site["u_iso"] for site in found["sites"]},
        **common.recorded(found),
        "from the first end / A": max(apart.values()),
        "space group": found["space_group"],
        "z": found["absolute_structure"]["z_score"],
        "z left out": found["absolute_structure"]["z_score_left_out"],
        "stiffness of the scale": found["scale"]["stiffness"],
        "converged": found["converged"],
        "refinement / s": round(found["wall_time_s"]),
        "time / s": round(seconds),
        "processor time / s": round(used),
    }


def mirror_image(out: Path) -> Path:
    """Write the structure of the other hand."""
    common.write_structure(read_structure(common.MODEL).change_hand(), out)
    return out


def main() -> None:
    """Print the table and write benchmarks/results/quartz.json."""
    files = common.integrated_quartz()[:2]
    if not files:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mirror = mirror_image(folder / "mirror.cif")
        runs = {"X-ray": [common.MODEL], "mirror image": [mirror]}
        for seed in map(int, sys.argv[1:] or (1, 2, 3)):
            path = folder / f"displaced_{seed}.cif"
            runs[f"displaced 0.05 A, {seed}"] = [common.displaced(common.MODEL, path, 0.05, seed)]
        for choice in CHOICES:
            runs[f"X-ray, {choice}"] = [common.MODEL, *choice.split()]
        rows = [
            {"start": start, **refine([*files, *given], folder / f"run_{i}", folder / "run_0")}
            for i, (start, given) in enumerate(runs.items())
        ]
    common.save("quartz", rows)
    common.print_table("Quartz, integrated by DIALS", rows)


if __name__ == "__main__":
    main()
