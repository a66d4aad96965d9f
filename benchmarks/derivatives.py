"""Derivatives by the structure from simpler passes: how wrong they are and what that does.

python -m benchmarks.derivatives hybrid_refined.h5 [MORE.h5]: files of dials.hybrid_refine. Where
a refinement ended, intensities and derivatives by the orientation stay those of the full model;
derivatives by the structure are taken from each simpler pass in turn, and the minimum is solved
for again. "apart" is how far that is from the minimum with exact derivatives, the largest of all
parameters of the structure in its s.u.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import torch

from dials_hybrid.fidelity import Fidelity
from dials_hybrid.linear import CheapModel, Linearisation, solve
from dials_hybrid.model import HybridModel
from dials_hybrid.propagation import Splitting
from dials_hybrid.uncertainty import curvature_of

from . import common
from .linearised import resumed, weighted

SCHEMES = {
    "SABA3": ("saba_3", 1),
    "Strang": ("strang", 1),
    "Strang, double": ("strang", 2),
}
BEAMS = {f"{share:g} of the current left out": share for share in (3e-4, 1e-3, 3e-3)}


def simpler(model: HybridModel) -> dict[str, HybridModel]:
    """Return models with parameters as they are, whose passes take less work."""
    settings = model.settings
    found = {}
    for name, (scheme, factor) in SCHEMES.items():
        method = Splitting(scheme, factor * settings.propagator.substeps)
        other = HybridModel(model.problem, dataclasses.replace(settings, propagator=method))
        other.load_state_dict(model.state_dict())
        found[name] = other
    limits = settings.g_max, settings.s_max
    for name, share in BEAMS.items():
        found[name] = model.coarser(Fidelity(*limits, share))
    found["every second sample"] = model.coarser(Fidelity(*limits, settings.left_out, 2))
    return found


def timed(model: HybridModel) -> tuple[torch.Tensor, float]:
    """Return the derivatives by the structure, and the seconds that they took."""
    began = time.perf_counter()
    slopes = model.tangents(turns=False)[1]
    return slopes, time.perf_counter() - began


def rows_of(path: str) -> list[dict]:
    """Return a row for each simpler pass."""
    _, refinement = resumed(path)
    model, error_model = refinement.model, refinement.state.error_model
    profiles, _, turns = model.tangents(structure=False)

    def minimum(slopes):
        cheap = CheapModel(model, Linearisation(profiles, slopes, turns))
        part = cheap.parts.crystal
        x = solve(weighted(cheap, error_model), cheap.start(), 40)
        covariance = curvature_of(cheap, error_model).covariance[part, part]
        return x[part], covariance.diagonal().sqrt()

    exact, seconds = timed(model)
    best, su = minimum(exact)
    rows = []
    for name, other in simpler(model).items():
        slopes, took = timed(other)
        x, other_su = minimum(slopes)
        ratio = other_su / su
        rows.append(
            {
                "derivatives": name,
                "error": float((slopes - exact).norm() / exact.norm()),
                "time": took / seconds,
                "apart / s.u.": float(((x - best).abs() / su).max()),
                "s.u. ratio, least": float(ratio.min()),
                "largest": float(ratio.max()),
            }
        )
    return rows


def main() -> None:
    """Print a table for each file and write benchmarks/results/derivatives.json."""
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    rows = []
    for path in sys.argv[1:]:
        found = rows_of(path)
        common.print_table(f"{path}: derivatives by the structure", found)
        rows += [{"file": Path(path).parent.name, **row} for row in found]
    common.save("derivatives", rows)


if __name__ == "__main__":
    main()
