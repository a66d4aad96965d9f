"""Strengths of the priors on p(t): how well the fit predicts what it has not seen.

python -m benchmarks.priors [dials] [simulated] [FOLDER]: around the end of one refinement, to
first order (see `thickness_linear`), each strength is a tenth of and ten times the default. Frames
are left out one after another, and sets of equivalent reflections; simulated data tell the
distance of p(t) and of the atoms from the truth, too.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from dials_hybrid.freedom import u_equivalent
from dials_hybrid.thickness import ThicknessPrior

from . import common
from .thickness import DATA, MODELS, TITLES, distance_from_truth, place_of, refine
from .thickness_linear import Around

FACTORS = (0.1, 10.0)
DEFAULT = ThicknessPrior()


def choices() -> list[tuple[str, ThicknessPrior]]:
    """Return names of priors and the priors, the default first."""
    strengths = dataclasses.asdict(DEFAULT)
    changed = [
        (f"{name}={factor * value:g}", dataclasses.replace(DEFAULT, **{name: factor * value}))
        for name, value in strengths.items()
        for factor in FACTORS
    ]
    weaker = {name: 0.1 * strengths[name] for name in ("smoothness", "entropy", "dip")}
    stiffer = {name: 10 * strengths[name] for name in ("angle", "stretch")}
    together = [
        ("shape 0.1", dataclasses.replace(DEFAULT, **weaker)),
        ("rotation 10", dataclasses.replace(DEFAULT, **stiffer)),
        ("shape 0.1, rotation 10", dataclasses.replace(DEFAULT, **weaker, **stiffer)),
    ]
    return [("default", DEFAULT), *changed, *together]


def rows_of(end: Path, folder: Path) -> list[dict]:
    """Return a row per choice around the end of a refinement, a file written by the command."""
    around, rows = Around(end), []
    for name, prior in choices():
        around.prior = prior
        values = around.row(MODELS[0])
        u = u_equivalent(around.model.crystal.refined()).tolist()
        labels = around.model.problem.structure.labels
        del values["thickness"]
        rows.append(
            {
                "prior": name,
                **values,
                **{f"U({a})": x for a, x in zip(labels, u, strict=True)},
                **distance_from_truth(folder, *around.distribution()),
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Print the tables and write benchmarks/results/priors.json."""
    given = sys.argv[1:] if arguments is None else arguments
    folders = [Path(name).resolve() for name in given if name not in DATA]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = folders[0] if folders else Path(temporary)
        for data in [name for name in given if name in DATA] or DATA:
            files = DATA[data](folder / data)
            if not files:
                continue
            place = place_of(MODELS[0], folder / data)
            refine(MODELS[0], files, place)
            found = rows_of(place / "hybrid_refined.h5", folder / data)
            common.print_table(TITLES[data], found)
            rows += [{"data": data, **row} for row in found]
    common.save("priors", rows)


if __name__ == "__main__":
    main()
