"""Every model of the thickness on the same data: does the network beat crystals of simple form?

python -m benchmarks.thickness [linear] [dials] [simulated] [FOLDER]: real quartz that DIALS
integrated, around the end of one refinement (`thickness_linear`); the same, each model refined in
whole; and quartz simulated with thicknesses of two peaks. All by default. Files are kept in FOLDER,
if one is named; what is refined there already is not refined again.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from dials_hybrid.command_line import hybrid_refine, hybrid_simulate

from . import common, thickness_linear
from .simulated import wasserstein

# the network that is the default first, then from the simplest to the freest
MODELS = (
    "neural free",
    "single",
    "frames",
    "plate",
    "wedge",
    "lens",
    "ellipsoid",
    "cylinder",
    "distribution",
    "neural mean",
    "neural gaussian",
    "neural mixture",
    "neural free direction",
)
# the structure is the X-ray one, whose hand and indexing are known
FIXED = ("hand_and_indexing.test=False", "hand_and_indexing.refine=none")
SIMULATED = ("thickness.mean=450,800", "thickness.width=40,60", "noise.seed=0", "crystal.seed=0")


def options(name: str) -> list[str]:
    """Return the PHIL parameters of a model, its head and its features."""
    scope = [f"thickness.{key}" for key in ("model", "head", "features")]
    return [f"{key}={value}" for key, value in zip(scope, name.split(), strict=False)]


def refine(name: str, files: list, folder: Path) -> dict:
    """Refine in a folder, if that was not done, and return what the command wrote as JSON."""
    found = folder / "dials.hybrid_refine.json"
    if not found.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(folder):
            hybrid_refine.run([*map(str, files), *FIXED, *options(name)])
    return json.loads(found.read_text())


def row(name: str, found: dict, folder: Path) -> dict:
    """Return the row of the table."""
    distance = common.distances(folder / "hybrid_refined.cif")
    thickness = found["thickness"]["mean"]
    return {
        "thickness": name,
        "R1": found["final"]["r1_obs"],
        "R1 free": found["free"]["r1_obs"],
        "R1 each left out": found["cross_validated"]["r1_obs"],
        "parameters": found["n_parameters"],
        "mean to X-ray / A": float(np.mean(list(distance.values()))),
        "mean t / A": float(np.mean(thickness)),
        "range of t / A": f"{min(thickness):.0f}-{max(thickness):.0f}",
        "converged": found["converged"],
        "time / s": round(found["wall_time_s"]),
    }


def quartz() -> list[Path]:
    """Return the files of the real quartz, none if they are not there."""
    data = common.data_folder() / "quartz_dials"
    if not data.is_dir():
        print(f"thickness: no data in {data}; set DIALS_HYBRID_DATA")
        return []
    return [data / "integrated.expt", data / "integrated.refl", common.MODEL]


def linear(folder: Path) -> list[dict]:
    """Return the rows of the real quartz, around the end of the refinement with the network."""
    files, place = quartz(), folder / "dials" / "neural_free"
    if not files:
        return []
    refine(MODELS[0], files, place)
    end = thickness_linear.Around(place / "hybrid_refined.h5")
    return [end.row(name) for name in MODELS]


def dials(folder: Path) -> list[dict]:
    """Return the rows of the real quartz, refined in whole."""
    files, rows = quartz(), []
    for name in MODELS if files else ():
        place = folder / "dials" / name.replace(" ", "_")
        rows.append(row(name, refine(name, files, place), place))
    return rows


def simulated(folder: Path) -> list[dict]:
    """Return the rows of simulated quartz, with the distance from the true p(t) of each block."""
    folder = folder / "simulated"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "simulated.json").is_file():
        with contextlib.chdir(folder):
            hybrid_simulate.run([str(common.MODEL), *SIMULATED])
    files = [folder / "simulated.expt", folder / "simulated.refl", common.MODEL]
    truth = json.loads((folder / "simulated.json").read_text())["thickness"]
    p_true = np.mean(truth["distribution"], axis=0)
    mean = float(np.dot(truth["grid"], p_true) / np.sum(p_true))
    rows = []
    for name in MODELS:
        place = folder / name.replace(" ", "_")
        found = refine(name, files, place)
        grid, p = found["thickness"]["grid"], found["thickness"]["distribution"]
        w1 = [wasserstein(grid, block, truth["grid"], p_true) / mean for block in p]
        rows.append({**row(name, found, place), "W1 / mean t": float(np.mean(w1))})
    return rows


CASES = {"linear": linear, "dials": dials, "simulated": simulated}
TITLES = {
    "linear": "Quartz, integrated by DIALS, to first order around the end with the network",
    "dials": "Quartz, integrated by DIALS, from the X-ray structure",
    "simulated": "Simulated quartz, p(t) with peaks at 450 and 800 A, from the true structure",
}


def main(arguments: list[str] | None = None) -> None:
    """Print the tables and write benchmarks/results/thickness.json."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = [name for name in given if name in CASES] or list(CASES)
    folders = [Path(name).resolve() for name in given if name not in CASES]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = folders[0] if folders else Path(temporary)
        for case in chosen:
            found = CASES[case](folder)
            if found:
                common.print_table(TITLES[case], found)
            rows += [{"data": case, **row} for row in found]
    common.save("thickness", rows)


if __name__ == "__main__":
    main()
