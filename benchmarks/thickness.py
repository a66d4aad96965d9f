"""Every model of the thickness on the same data: does the network beat crystals of simple form?

python -m benchmarks.thickness [dials] [simulated] [whole] [FOLDER]: real quartz that DIALS
integrated, and quartz simulated with thicknesses of two peaks; both by default. Around the end of
one refinement all models are fitted to first order (`thickness_linear`); with `whole`, each is
refined in whole. Files are kept in FOLDER, if one is named; what is refined there already is not
refined again.
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


def simulated(folder: Path) -> list[Path]:
    """Return the files of simulated quartz, made if they are not in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "simulated.json").is_file():
        with contextlib.chdir(folder):
            hybrid_simulate.run([str(common.MODEL), *SIMULATED])
    return [folder / "simulated.expt", folder / "simulated.refl", common.MODEL]


def distance_from_truth(folder: Path, grid, distribution) -> dict:
    """Return the mean distance of p(t) (F, n) of the blocks from the true one, if it is known."""
    if not (folder / "simulated.json").is_file():
        return {}
    truth = json.loads((folder / "simulated.json").read_text())["thickness"]
    p_true = np.mean(truth["distribution"], axis=0)
    mean = float(np.dot(truth["grid"], p_true) / np.sum(p_true))
    found = [wasserstein(grid, p, truth["grid"], p_true) for p in distribution]
    return {"W1 / mean t": float(np.mean(found)) / mean}


def linear(files: list, folder: Path) -> list[dict]:
    """Return a row per model, around the end of the refinement with the network."""
    place = place_of(MODELS[0], folder)
    refine(MODELS[0], files, place)
    end, rows = thickness_linear.Around(place / "hybrid_refined.h5"), []
    for name in MODELS:
        values = end.row(name)
        rows.append({**values, **distance_from_truth(folder, *end.distribution())})
    return rows


def whole(files: list, folder: Path) -> list[dict]:
    """Return a row per model, each refined in whole."""
    rows = []
    for name in MODELS:
        place = place_of(name, folder)
        found = refine(name, files, place)
        p = found["thickness"]["grid"], found["thickness"]["distribution"]
        rows.append({**row(name, found, place), **distance_from_truth(folder, *p)})
    return rows


def place_of(name: str, folder: Path) -> Path:
    """Return the folder of a model's refinement."""
    return folder / name.replace(" ", "_")


DATA = {"dials": lambda folder: common.integrated_quartz(), "simulated": simulated}
TITLES = {
    "dials": "Quartz, integrated by DIALS, from the X-ray structure",
    "simulated": "Simulated quartz, p(t) with peaks at 450 and 800 A, from the true structure",
}


def main(arguments: list[str] | None = None) -> None:
    """Print the tables and write benchmarks/results/thickness.json."""
    given = sys.argv[1:] if arguments is None else arguments
    fits = {"linear": linear, "whole": whole} if "whole" in given else {"linear": linear}
    folders = [Path(name).resolve() for name in given if name not in (*DATA, "whole")]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = folders[0] if folders else Path(temporary)
        for data in [name for name in given if name in DATA] or DATA:
            files = DATA[data](folder / data)
            for fit, rows_of in fits.items() if files else ():
                found = rows_of(files, folder / data)
                common.print_table(f"{TITLES[data]}, {fit}", found)
                rows += [{"data": data, "fit": fit, **row} for row in found]
    common.save("thickness", rows)


if __name__ == "__main__":
    main()
