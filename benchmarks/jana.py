"""Albite: our intensities against those that Jana2006 calculated for the same frames.

python -m benchmarks.jana [START_THICKNESS...]: by default from 250 and from 450 A; Jana's is
336.91 A. The structure is Jana's and stays as it is; the thickness of a plate, the tilts of every
frame and its scale are refined against Jana's calculated intensities in place of measured ones.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import iotbx.cif
import numpy as np
import torch

from dials_hybrid.checkpoint import Checkpoint
from dials_hybrid.command_line import hybrid_refine
from dials_hybrid.data import block_of
from dials_hybrid.history import Progress, format_row
from dials_hybrid.losses import r1
from dials_hybrid.refine import Refinement

from . import common

BLOCK = "5"  # of Jana's refinement, the one that these frames are
THICKNESS = 336.91  # A, as Jana refined it
# A plate, as Jana has it (its path through the crystal grows with the tilt), known sharper than its
# error; tilts and scales of the frames free of each other; all rows, the frames as sharp as Jana's
OPTIONS = (
    "parameters.fix=all all",
    "sampling.block_width=10",  # whole frames: Jana cuts no rocking curve off
    "thickness.model=plate",
    "valence.model=none",
    "depth.step=10",
    "depth.max=600",
    "orientation.sigma=0.2",
    "orientation.stiffness=0",
    "scale.spacing=1",
    "scale.stiffness=0",
    "selection.rsg_max=None",
    "selection.dsg_min=None",
    "selection.d_min=0.5",
    "free.fraction=0",
    "refinement.large=None",
    "hand_and_indexing.test=False",
    "output.problem_only=True",
)


def rows_of_jana(path: Path) -> dict[tuple, float]:
    """Return {(zone, h, k, l): calculated intensity} of the block."""
    table = iotbx.cif.reader(str(path)).model()["albite_dynamical"]
    names = ("scale_group_code", "index_h", "index_k", "index_l", "intensity_calc")
    out = {}
    for code, *hkl, value in zip(*(table[f"_refln_{name}"] for name in names), strict=True):
        zone, block = code.split("%")
        if block == BLOCK:
            out[(int(zone), *map(int, hkl))] = float(value)
    return out


def write_frames(source: Path, calculated: dict[tuple, float], out: Path) -> int:
    """Write the frames with the calculated intensities alone; return how many rows matched.

    An s.u. of 2 % in the amplitude weights strong and weak rows alike.
    """
    head, _, rows = source.read_text().partition("_refln_zone_axis_id\n")
    lines = []
    for line in rows.splitlines():
        *hkl, _, _, zone = line.split()
        value = calculated.get((int(zone), *map(int, hkl)))
        if value is not None:
            lines.append(f"{' '.join(hkl)} {value:.2f} {0.04 * value + 1:.2f} {zone}")
    # Jana's frames have sharp ends
    head = head.replace("mosaicity:  0.150", "mosaicity:  0.000")
    out.write_text(head + "_refln_zone_axis_id\n" + "\n".join(lines) + "\n")
    return len(lines)


def compare(folder: Path, start: float) -> dict:
    """Refine tilts, scales and thickness from one start and return the row of the table."""
    data = common.data_folder() / "albite_jana"
    jana = data / "jana2006_albite.cif"
    rows = write_frames(data / "pets2_albite.cif_pets", rows_of_jana(jana), folder / "j.cif_pets")
    began = time.monotonic()
    with contextlib.chdir(folder):
        hybrid_refine.run(["j.cif_pets", str(jana), *OPTIONS, f"thickness.start={start}"])
    given = Checkpoint.load(folder / "hybrid_refined.h5")
    progress = Progress(report=lambda row: print(format_row(row), flush=True))
    refinement = Refinement(given.problem, given.model_settings, given.settings, progress)
    result, o = refinement.run(), given.problem.observations
    block = block_of(o, given.problem.scan)
    frames = [r1(o.intensity, result.calculated, block == b) for b in torch.unique(block)]
    mean = (result.thickness * result.depth).sum(1) / result.thickness.sum(1)
    return {
        "thickness at the start / A": start,
        "thickness / A": round(float(mean.min()), 1),
        "Jana / A": THICKNESS,
        "rows": rows,
        "frames": len(frames),
        "R(sqrt I_calc)": r1(o.intensity, result.calculated),
        "median frame": float(np.median(frames)),
        "worst frame": max(frames),
        "converged": result.converged,
        "time / s": round(time.monotonic() - began),
    }


def main() -> None:
    """Print the table and write benchmarks/results/jana.json."""
    if not (common.data_folder() / "albite_jana").is_dir():
        print(f"no albite_jana in {common.data_folder()}; set DIALS_HYBRID_DATA")
        return
    rows = []
    for start in [float(x) for x in sys.argv[1:]] or [250.0, 450.0]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(Path(folder), start))
    common.save("jana", rows)
    common.print_table("Albite against Jana2006", rows)


if __name__ == "__main__":
    main()
