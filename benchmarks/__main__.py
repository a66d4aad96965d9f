"""Run benchmarks and print their tables: python -m benchmarks [NAME...], by default DEFAULT.

The others take from some minutes to an hour each.
"""

import importlib
import sys

DEFAULT = ("propagation", "integrators", "quartz", "pets", "simulated")
OTHERS = (
    "beams",
    "bloch",
    "cores",
    "derivatives",
    "difference_map",
    "displacements",
    "frames",
    "jana",
    "known_truth",
    "missing_atoms",
    "nuisance",
    "optimisers",
    "precession",
    "priors",
    "quadrature",
    "scatter",
    "steps",
    "thickness",
    "uncertainties",
    "weights",
)

if __name__ == "__main__":
    chosen = sys.argv[1:] or DEFAULT
    unknown = set(chosen) - {*DEFAULT, *OTHERS}
    if unknown:
        sys.exit(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(DEFAULT + OTHERS)}"
        )
    sys.argv[1:] = []  # those that take arguments run with their defaults
    for name in chosen:
        importlib.import_module(f"benchmarks.{name}").main()
