"""From which size on a sweep of the propagation is better cut into strips, one for each core.

    python -m benchmarks.cores

Seconds of value and of value and gradient, medians of calls in turn, on one core and in strips of
samples or of blocks. It wants a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

from dials_hybrid.parallel import cores_used
from dials_hybrid.propagation import DepthGrid, strips

from . import common
from .cases import Case, make_case
from .propagation import OURS, own_calls
from .timing import measure_in_turn

THREADS = 2
GRID = DepthGrid(20.0, 40)
# crystal, beams, samples, blocks
CASES = (
    ("quartz", 50, 42, 1),
    ("quartz", 85, 42, 1),
    ("quartz", 140, 42, 1),
    ("albite", 200, 42, 1),
    ("albite", 280, 42, 1),
    ("quartz", 60, 20, 27),
    ("albite", 200, 20, 8),
    ("CsPbBr3", 680, 60, 1),
)
WAYS = {"one core": (1, math.inf), "strips": (THREADS, 0)}  # threads, and strips.SHARED


@contextlib.contextmanager
def shared(threads: int, least: float) -> Iterator[None]:
    """Let sweeps of at least so many multiplications a stage be cut into strips."""
    with mock.patch.object(strips, "SHARED", least), cores_used(threads):
        yield


def row_of(case: Case, method: str) -> dict:
    """Return the row of the table of one case and method."""
    calls = {}
    for way, how in WAYS.items():
        for kind, call in zip(("value", "gradient"), own_calls(case, OURS[method]), strict=True):
            calls[f"{way}, {kind} / s"] = shared(*how)(call)
    found = measure_in_turn(calls, repeats=10, budget=4.0)
    blocks, n, samples = case.excitation.shape
    size = {"crystal": case.name, "n": n, "samples": samples, "blocks": blocks, "method": method}
    size["multiplications of a stage"] = blocks * n * n * samples
    return size | {name: timing.median for name, timing in found.items()}


def main() -> None:
    """Print the table and write benchmarks/results/cores.json."""
    rows = []
    for name, n, samples, blocks in CASES:
        case = make_case(name, n, samples, GRID).repeated(blocks)
        rows += [row_of(case, method) for method in OURS]
    common.save("cores", rows, threads=THREADS)
    common.print_table(f"A sweep on one core and in strips for {THREADS}", rows)


if __name__ == "__main__":
    main()
