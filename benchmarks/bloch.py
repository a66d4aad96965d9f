"""Derivatives by the structure from Bloch waves: what they cost, and how wrong they are.

Real data, some frames, nothing refined, about one thickness. The reference carries a wave along
for each parameter, by the method that takes least work. Errors are those of the derivatives of
integrated intensities, all together, and the median over parameters.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from dials_hybrid import io_pets, plan
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_structures import read_structure
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import Bloch, Chebyshev, DepthGrid, Splitting

from . import common
from .frames import SETS, present, problem_of

SHARES = 1e-3, 5e-3, 2e-2  # of the current in Bloch waves that are left out
DEPTH = DepthGrid(40.0, 30)


def model_of(name: str) -> HybridModel:
    """Return the model of some frames of a set, and of the method of least work."""
    folder, structure, block, every, thickness = SETS[name]
    folder = common.data_folder() / folder
    loaded = io_pets.load(sorted(folder.glob("*.cif_pets")))
    crystal = read_structure(folder / structure, block=block)
    atoms = to_structure(loaded.reconcile(crystal, structure))
    settings = ModelSettings(depth=DEPTH, thickness="distribution", thickness_start=thickness)
    model = HybridModel(problem_of(loaded, atoms, 2 * every, 1.0), settings)
    methods = settings.propagator, Chebyshev()
    costs = [plan.operations(model.propagated_by(method)) for method in methods]
    return model.propagated_by(methods[costs.index(min(costs))])


def timed(model: HybridModel) -> tuple[Tensor, float]:
    """Return the derivatives (G, P) of integrated intensities, and the seconds they took."""
    began = time.perf_counter()
    _, slopes, _ = model.tangents(turns=False)
    seconds = time.perf_counter() - began
    return torch.einsum("gpd,gd->gp", slopes, model.thickness()[model.portions.block]), seconds


@torch.no_grad()
def rows_of(name: str) -> list[dict]:
    """Return the rows of the table of one set."""
    model = model_of(name)
    exact, seconds = timed(model)
    method = model.settings.propagator
    choices = {f"{share:g}": Bloch(method, share) for share in SHARES}
    choices["0.005, near beams"] = Bloch(method, far=False)
    if isinstance(method, Splitting):
        choices["SABA3"] = method.light()
    rows = []
    for choice, changed in choices.items():
        found, took = timed(model.propagated_by(changed))
        errors = (found - exact).norm(dim=0) / exact.norm(dim=0).clamp(min=1e-300)
        rows.append(
            {
                "set": name,
                "beams": round(float(model.beams.counts.double().mean())),
                "parameters": model.crystal.count,
                "left out": choice,
                "error": float((found - exact).norm() / exact.norm()),
                "by parameter": float(errors.median()),
                "time / s": took,
                "carried along / s": seconds,
                "ratio": seconds / took,
            }
        )
    return rows


def main() -> None:
    """Print the table and write benchmarks/results/bloch.json."""
    torch.set_num_threads(1)
    rows = [row for name in present() for row in rows_of(name)]
    if rows:
        common.print_table("Derivatives by the structure from Bloch waves", rows)
        common.save("bloch", rows)


if __name__ == "__main__":
    main()
