"""Run benchmarks and print their tables: python -m benchmarks [NAME...], by default DEFAULT.

The others take from some minutes to an hour each. Those that read a refinement's .h5 are not among
them: python -m benchmarks.derivatives, difference_map, nuisance or scatter, and the files.
"""

import importlib
import sys

DEFAULT = ("propagation", "integrators", "quartz", "pets", "simulated")
OTHERS = (
    "beams",
    "bloch",
    "cores",
    "displacements",
    "frames",
    "jana",
    "known_truth",
    "machine_code",
    "missing_atoms",
    "optimisers",
    "precession",
    "priors",
    "quadrature",
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
