"""How few random sums tell the curvature of the fit by every structure factor.

python -m benchmarks.difference_map hybrid_refined.h5 [MORE.h5]: files of dials.hybrid_refine. The
change of structure factors that the difference map shows is compared with that from 64 sums of
random signs over all observations: by a few such sums, as the map of DIALS data has it, and by one
sum over each part of them, as that of PETS2 frames. Correlations are of three draws each.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from dials_hybrid import fourier

from . import common
from .linearised import resumed

MANY, DRAWS = 64, 3


class Ended:
    """A refinement at its end, and the change of structure factors by sums of random signs."""

    def __init__(self, path: str):
        job, self.refinement = resumed(path)
        o = self.refinement.problem.observations
        sigma = job.result.sigma_weight
        self.residual = (o.intensity - job.result.calculated) / sigma
        self.root = ~o.free / sigma

    def change(self, sums: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return the change (M,) from factors (K, R) of the residuals' roots, and the seconds."""
        refinement, began = self.refinement, time.perf_counter()
        fidelity = refinement.plan[-1].slopes
        weight = torch.cat([self.residual[None], sums]) * self.root
        found = refinement.passes.potential_gradients(weight, fidelity=fidelity)
        terms = fourier.fourier(refinement.model.coarser(fidelity), found)
        return terms.change, time.perf_counter() - began

    def rows(self) -> list[dict]:
        """Return a row of the table for each way to take the sums."""
        generator = torch.Generator().manual_seed(1)

        def signs(count: int) -> torch.Tensor:
            drawn = torch.randint(0, 2, (count, len(self.root)), generator=generator)
            return drawn.double() * 2 - 1

        ways = {f"{fourier.SUMS} over all": lambda: signs(fourier.SUMS)}
        share = fourier.shares(self.refinement.model.portions)
        if len(share) == fourier.PARTS:
            ways[f"one over each of {len(share)} parts"] = lambda: share * signs(1)
        best, _ = self.change(signs(MANY))
        return [self._row(name, way, best) for name, way in ways.items()]

    def _row(self, name: str, way, best: torch.Tensor) -> dict:
        drawn = [self.change(way()) for _ in range(DRAWS)]
        alike = [_correlation(change, best) for change, _ in drawn]
        return {
            "sums of random signs": name,
            "least correlation": min(alike),
            "greatest": max(alike),
            "gradients / s": min(seconds for _, seconds in drawn),
        }


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.conj() * b).real.sum() / (a.norm() * b.norm()))


def main() -> None:
    """Print a table for each problem file and write benchmarks/results/difference_map_FILE.json."""
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    for path in sys.argv[1:]:
        rows = Ended(path).rows()
        common.print_table(f"{path}: change of structure factors, against {MANY} sums", rows)
        common.save(f"difference_map_{Path(path).stem}", rows)


if __name__ == "__main__":
    main()
