"""Displacements of one size or a tensor for each atom: which predicts better what it has not seen?

python -m benchmarks.displacements [dials] [quartz] [cspbbr3] [paracetamol]: the first two by
default, since paracetamol takes hours. Each set is refined with atoms that move the same way in all
directions, and as the command chooses: with tensors of all but hydrogen, where there are enough
symmetry-independent reflections above 3 sigma for each parameter of the structure.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

from dials_hybrid.checkpoint import Checkpoint
from dials_hybrid.command_line import hybrid_refine
from dials_hybrid.cross_validation import unique_groups

from . import common, pets, thickness

KINDS = {
    "isotropic": ["parameters.displacements=as_given", "parameters.isotropic=all"],
    "chosen": [],
}


def files_of(name: str) -> list[Path]:
    """Return the data and the structure of a set, nothing if they are not there."""
    return common.integrated_quartz() if name == "dials" else pets.files_of(name)


def row_of(name: str, files: list[Path], kind: str, folder: Path) -> dict:
    """Refine a set with one kind of displacements and return the row of the table."""
    with contextlib.chdir(folder):
        hybrid_refine.run([*map(str, files), *thickness.FIXED, *KINDS[kind]])
    found = json.loads((folder / "dials.hybrid_refine.json").read_text())
    problem = Checkpoint.load(folder / "hybrid_refined.h5").problem
    o, parameters = problem.observations, problem.structure.freedom.count
    groups = unique_groups(problem.structure, o.hkl)
    unique = len(groups[o.observed & ~o.free].unique())
    return {
        "set": name,
        "displacements": kind,
        "parameters": parameters,
        "unique / parameter": unique / parameters,
        "R1": found["final"]["r1_obs"],
        "R1 each left out": found["cross_validated"]["r1_obs"],
        "R1 free": found["free"]["r1_obs"],
        "converged": found["converged"],
        "time / s": round(found["wall_time_s"]),
    }


def main() -> None:
    """Print the table and write benchmarks/results/displacements_SET.json of each set."""
    everything = []
    for name in sys.argv[1:] or ["dials", "quartz"]:
        files = files_of(name)
        if not files:
            continue
        rows = []
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(row_of(name, files, kind, Path(folder)))
        common.save(f"displacements_{name}", rows)
        everything += rows
    if everything:
        common.print_table("Isotropic and anisotropic displacements", everything)


if __name__ == "__main__":
    main()
