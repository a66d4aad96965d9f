"""Steps that a refinement takes with and without second derivatives learnt on the way.

python -m benchmarks.steps: real quartz, of DIALS and of PETS2, one hand, all else by default. The
room secant says what is learnt; without it nothing is.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from unittest import mock

from dials_hybrid import secant
from dials_hybrid.command_line import hybrid_refine

from . import common

FILES = {
    "quartz, DIALS": ("quartz_dials", ("integrated.expt", "integrated.refl")),
    "quartz, PETS2": ("quartz_pets", ("quartz.cif_pets",)),
}
ITERATIONS = 60


def row(files: list[Path], folder: Path) -> dict:
    """Refine in a folder and return what the table tells of it."""
    folder.mkdir(parents=True)
    choices = [f"refinement.iterations={ITERATIONS}", "hand_and_indexing.refine=none"]
    with contextlib.chdir(folder):
        hybrid_refine.run([*map(str, files), str(common.MODEL), *choices])
    found = json.loads((folder / "dials.hybrid_refine.json").read_text())
    return {
        "steps": found["iterations"],
        "converged": found["converged"],
        "R1": found["final"]["r1_obs"],
        "R1 free": found["free"]["r1_obs"],
        "R1 each left out": found["cross_validated"]["r1_obs"],
        "refinement / s": round(found["wall_time_s"]),
    }


def main() -> None:
    """Print the table and write benchmarks/results/steps.json."""
    rows = []
    nothing = mock.patch.object(secant, "updated", lambda second, step, change: second)
    with tempfile.TemporaryDirectory() as name:
        for title, (folder, files) in FILES.items():
            data = common.data_folder() / folder
            if not data.is_dir():
                print(f"{title}: no data in {data}; set DIALS_HYBRID_DATA")
                continue
            for learnt in (True, False):
                place = Path(name) / f"{folder}_{learnt}"
                with contextlib.nullcontext() if learnt else nothing:
                    found = row([data / file for file in files], place)
                rows.append({"data": title, "second derivatives": learnt, **found})
    if rows:
        common.print_table("Steps with and without second derivatives", rows)
        common.save("steps", rows)


if __name__ == "__main__":
    main()
