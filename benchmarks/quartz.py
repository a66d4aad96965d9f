"""Real quartz, DIALS-integrated: the command with its defaults, from several starts."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from dials_hybrid.command_line import hybrid_refine
from dials_hybrid.io_structures import read_structure

from . import common


def refine(expt, refl, model, folder: Path) -> dict:
    """Run the command in a folder and return the row of the table."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    with contextlib.chdir(folder):
        hybrid_refine.run([str(expt), str(refl), str(model)])
    seconds = time.monotonic() - began
    found = json.loads((folder / "dials.hybrid_refine.json").read_text())
    distance = common.distances(folder / "hybrid_refined.cif")
    return {
        "R1 kinematic": found["kinematic"]["r1_obs"],
        "R1 start": found["start"]["r1_obs"],
        "R1": found["final"]["r1_obs"],
        "R1 free": found["free"]["r1_obs"],
        "observed": found["n_obs"],
        **{f"{label} to X-ray / A": d for label, d in distance.items()},
        "space group": found["space_group"],
        "converged": found["converged"],
        "time / s": round(seconds),
    }


def mirror_image(out: Path) -> Path:
    """Write the structure of the other hand."""
    common.write_structure(read_structure(common.MODEL).change_hand(), out)
    return out


def main() -> None:
    """Print the table and write benchmarks/results/quartz.json."""
    data = common.data_folder() / "quartz_dials"
    if not data.is_dir():
        print(f"quartz: no data in {data}; set DIALS_HYBRID_DATA")
        return
    files = data / "integrated.expt", data / "integrated.refl"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = {"X-ray": common.MODEL, "mirror image": mirror_image(folder / "mirror.cif")}
        for seed in (1, 2, 3):
            path = folder / f"displaced_{seed}.cif"
            starts[f"displaced 0.05 A, {seed}"] = common.displaced(common.MODEL, path, 0.05, seed)
        rows = [
            {"start": start, **refine(*files, os.path.abspath(model), folder / f"run_{i}")}
            for i, (start, model) in enumerate(starts.items())
        ]
    common.save("quartz", rows)
    common.print_table("Quartz, integrated by DIALS", rows)


if __name__ == "__main__":
    main()
