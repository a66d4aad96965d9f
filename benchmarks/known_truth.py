"""Known truth: crystals of two thicknesses that change with the tilt, from three displaced starts.

Each start has data with noise of their own: the errors of three runs on one noise are one error.
With --exact there is none, and all starts have the same data: what is left is what the method does.

python -m benchmarks.known_truth [--exact] [--with NAME=VALUE] [quartz] [cspbbr3] [paracetamol]:
quartz alone by default; with other parameters than the command's own no file is written. The data
are made by exact diagonalisation (`dials.hybrid_simulate`), which takes much longer than the
refinement where cells are large.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dials_hybrid.command_line import hybrid_refine, hybrid_simulate

from . import common
from .simulated import wasserstein


@dataclass(frozen=True)
class Crystal:
    """A structure, relative to the folder of data or absolute, and the two thicknesses in A.

    `options` of the simulation are for crystals of large cells, where it would take hours: thin
    ones do not ask for so fine a step, light ones not for so many beams.
    """

    model: str
    means: tuple[int, int]
    starts: tuple[float, float, float]  # A^2, mean-square displacements
    options: tuple[str, ...] = ()


CRYSTALS = {
    "quartz": Crystal(str(common.MODEL), (450, 800), (0.025, 0.05, 0.1)),
    "cspbbr3": Crystal(
        "cspbbr3_pets/cspbbr3.cif", (250, 450), (0.025, 0.05, 0.1), ("accuracy.step=0.04",)
    ),
    "paracetamol": Crystal(
        "paracetamol_pets/paracetamol.cif",
        (250, 450),
        (0.0025, 0.005, 0.01),
        ("accuracy.step=0.04", "accuracy.s_max=0.04", "accuracy.g_max=1.5", "d_min=0.75"),
    ),
}
WIDTHS = 0.09, 0.075  # of the two peaks, relative to their means
# what a run must reach: mean distance in A, U relative, W1 over the mean thickness at every tilt
LIMITS = {"position / A": 0.002, "U": 0.05, "W1": 0.05}


def simulate(name: str, folder: Path, seed: int, exact: bool) -> None:
    """Make data of a crystal with the noise of a seed, or none, in a folder."""
    chosen = CRYSTALS[name]
    model = common.data_folder() / chosen.model
    widths = [round(r * m) for r, m in zip(WIDTHS, chosen.means, strict=True)]
    with contextlib.chdir(folder):
        hybrid_simulate.run(
            [
                str(model),
                "thickness.mean={},{}".format(*chosen.means),
                "thickness.width={},{}".format(*widths),
                "thickness.shape=slab",
                f"noise.seed={seed}",
                f"noise.none={exact}",
                *chosen.options,
            ]
        )


def run_case(name: str, made: Path, own: Path, msd: float, options: Sequence[str] = ()) -> dict:
    """Refine the data of a folder once, in another one; return the row of the table.

    The start is displaced by `msd` A^2; `options` are parameters of the command.
    """
    model = common.data_folder() / CRYSTALS[name].model
    start = common.displaced(model, own / "start.cif", math.sqrt(msd), 1)
    data = [str(made / f"simulated.{kind}") for kind in ("expt", "refl")]
    with contextlib.chdir(own):
        hybrid_refine.run([*data, str(start), *options])
    found = json.loads((own / "dials.hybrid_refine.json").read_text())
    truth = json.loads((made / "simulated.json").read_text())
    row = {
        "crystal": name,
        "start / A^2": msd,
        "R1 start": found["start"]["r1_obs"],
        "R1": found["final"]["r1_obs"],
        "R1 free": found["free"]["r1_obs"],
        **_errors(own / "hybrid_refined.cif", model, found, truth),
    }
    row["all within limits"] = all(row[key] <= limit for key, limit in LIMITS.items())
    return row | {"time / s": round(found["wall_time_s"])}


def _errors(refined: Path, model: Path, found: dict, truth: dict) -> dict:
    """The mean distance, the largest relative error of a U, the largest W1 of all tilts."""
    try:
        position = float(np.mean(list(common.distances(refined, model).values())))
    except ValueError:
        position = math.inf  # another structure
    true_u = {site["label"]: site["u_iso"] for site in truth["sites"]}
    u = [abs(site["u_iso"] / true_u[site["label"]] - 1) for site in found["sites"]]
    return {"position / A": position, "U": max(u), "W1": _worst(found["thickness"], truth)}


def _worst(found: dict, truth: dict) -> float:
    """The largest W1 over the mean thickness, of the blocks and the truth at the same angle."""
    true = truth["thickness"]
    out = []
    for angle, p in zip(found["angle"], found["distribution"], strict=True):
        nearest = int(np.argmin(np.abs(np.asarray(true["angle"]) - angle)))
        w1 = wasserstein(found["grid"], p, true["grid"], true["distribution"][nearest])
        out.append(w1 / true["mean"][nearest])
    return max(out)


def main(argv=()) -> None:
    """Print the table and write benchmarks/results/known_truth_CRYSTAL[_exact].json of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("crystals", nargs="*", help=", ".join(CRYSTALS))
    parser.add_argument("--exact", action="store_true", help="data without noise")
    parser.add_argument("--with", dest="given", action="append", default=[], help="NAME=VALUE")
    options = parser.parse_args(argv)
    if unknown := set(options.crystals) - set(CRYSTALS):
        parser.error(f"no crystal {', '.join(unknown)}; there are {', '.join(CRYSTALS)}")
    everything = []
    for name in options.crystals or ["quartz"]:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for seed, msd in enumerate(CRYSTALS[name].starts):
                made, own = Path(folder) / "data", Path(folder) / f"start_{seed}"
                made.mkdir(exist_ok=True)
                own.mkdir()
                if seed == 0 or not options.exact:
                    simulate(name, made, seed, options.exact)
                rows.append(run_case(name, made, own, msd, options.given))
                if not options.given:
                    common.save(f"known_truth_{name}" + "_exact" * options.exact, rows)
        everything += rows
    common.print_table("Known truth, displaced starts", everything)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
