"""Reflections that an end of the scan cuts: how well each part of them is described.

python -m benchmarks.partial: real quartz, integrated by DIALS, refined with all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile

import numpy as np
from dials.array_family import flex

from dials_hybrid.command_line import hybrid_refine

from . import common

EDGES = 0.01, 0.1, 0.3, 0.6, 0.9, 0.99, 1.01


def rows_of(table) -> list[dict]:
    """Return R1 of the refined reflections above 3 sigma by the part that was recorded."""
    names = "partiality", "intensity.sum.value", "intensity.sum.variance", "intensity.hybrid.calc"
    part, intensity, variance, calculated = (table[name].as_numpy_array() for name in names)
    used = table["hybrid.used"].as_numpy_array().astype(bool)
    strong = used & (intensity > 3 * np.sqrt(np.maximum(variance, 0)))
    rows = []
    for low, high in itertools.pairwise(EDGES):
        mine = used & (part >= low) & (part < high)
        chosen = mine & strong
        observed, found = np.sqrt(intensity[chosen]), np.sqrt(np.maximum(calculated[chosen], 0))
        rows.append(
            {
                "recorded": f"{low:g} to {min(high, 1):g}",
                "reflections": int(mine.sum()),
                "observed": len(observed),
                "R1": float(np.abs(observed - found).sum() / observed.sum()),
            }
        )
    return rows


def main() -> None:
    """Print the table and write benchmarks/results/partial.json."""
    files = common.integrated_quartz()
    if not files:
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        hybrid_refine.run([*map(str, files), f"selection.partiality={EDGES[0]}"])
        rows = rows_of(flex.reflection_table.from_file("hybrid_refined.refl"))
    common.save("partial", rows)
    common.print_table("Reflections by the part that was recorded", rows)


if __name__ == "__main__":
    main()
