"""What strong reflections deviate from the model by: with the reflection, the frame, or neither?

python -m benchmarks.scatter hybrid_refined.h5 [MORE.h5]: files of dials.hybrid_refine whose
reflections are in several frames. The logarithm of observed over calculated intensity above 10
sigma is fitted by a number for each reflection and its equivalents, which is what a better
structure could explain, one for each frame, which is a scale, or both. What is left of one
reflection in two neighbouring frames is then compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dials_hybrid.checkpoint import Checkpoint
from dials_hybrid.cross_validation import unique_groups

from . import common

STRONG = 10  # sigma


class Deviations:
    """Logarithms of observed over calculated intensities, with their reflections and frames."""

    def __init__(self, end: Checkpoint):
        o, scan = end.problem.observations, end.problem.scan
        frame = np.full(len(o.intensity), -1)
        frame[o.link_observation] = scan.frame[o.link_block]
        strong = (~o.free & (o.intensity > STRONG * o.sigma)).numpy()
        ratio = o.intensity.numpy()[strong] / end.result.calculated.numpy()[strong]
        self.value, self.frame = np.log(ratio), frame[strong]
        self.expected = float((o.sigma / o.intensity)[strong].median())
        self.reflection = unique_groups(end.problem.structure, o.hkl).numpy()[strong]

    def rest(self, *kinds: np.ndarray) -> tuple[np.ndarray, int]:
        """Return what numbers for each of some kinds leave, and how many they are."""
        columns = [np.ones((len(self.value), 1))]
        for kind in kinds:
            columns.append(kind[:, None] == np.unique(kind)[1:])
        design = np.hstack(columns).astype(float)
        solution, _, rank, _ = np.linalg.lstsq(design, self.value, rcond=None)
        return self.value - design @ solution, rank

    def deviation(self, *kinds: np.ndarray) -> float:
        """Return the standard deviation of the rest, for the numbers that were fitted."""
        rest, rank = self.rest(*kinds)
        return float(np.sqrt((rest**2).sum() / (len(rest) - rank)))

    def neighbours(self) -> float:
        """Return the correlation of the rests of a reflection in two frames that follow."""
        rest, _ = self.rest(self.reflection, self.frame)
        of = dict(zip(zip(self.reflection, self.frame, strict=True), rest, strict=True))
        pairs = [(x, of[r, f + 1]) for (r, f), x in of.items() if (r, f + 1) in of]
        return float(np.corrcoef(np.array(pairs).T)[0, 1])


def row_of(path: str) -> dict:
    """Return the row of the table of one file."""
    found = Deviations(Checkpoint.load(path))
    return {
        "file": Path(path).name,
        "strong": len(found.value),
        "median sigma / I": found.expected,
        "s.d.": found.deviation(),
        "one for each frame": found.deviation(found.frame),
        "one for each reflection": found.deviation(found.reflection),
        "both": found.deviation(found.reflection, found.frame),
        "correlation of neighbours": found.neighbours(),
    }


def main() -> None:
    """Print the table and write benchmarks/results/scatter_FILE.json of each file."""
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    rows = []
    for path in sys.argv[1:]:
        rows.append(row_of(path))
        common.save(f"scatter_{Path(path).stem}", rows[-1:])
    common.print_table("Deviations of log I, strong reflections", rows)


if __name__ == "__main__":
    main()
