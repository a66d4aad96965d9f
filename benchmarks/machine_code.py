"""Sweeps of the splitting in machine code, and by calls of torch.

    python -m benchmarks.machine_code

Seconds on one core, medians of calls in turn: of the value, of value and gradient, and of
derivatives by two rotations and four parameters of a structure.
"""

from __future__ import annotations

from unittest import mock

import torch

from dials_hybrid.parallel import cores_used
from dials_hybrid.propagation import DepthGrid, Moves, Splitting, splitting

from . import common
from .cases import Case, make_case
from .propagation import own_calls, single
from .timing import measure_in_turn

GRID = DepthGrid(20.0, 40)
# crystal, beams, samples, blocks
CASES = (
    ("quartz", 40, 42, 16),
    ("quartz", 85, 42, 1),
    ("quartz", 140, 42, 1),
    ("albite", 280, 42, 1),
    ("CsPbBr3", 680, 60, 1),
)
DIRECTIONS = 4


def by_torch(call):
    """Return the call without machine code."""
    return mock.patch.object(splitting, "can_compile", lambda x: False)(call)


def derivatives(case: Case):
    """Return what gives profiles and derivatives along some directions."""
    v, s, probe = single(case)
    torch.manual_seed(0)
    change = torch.randn(DIRECTIONS, *v.shape, dtype=v.dtype) * 1e-2 * v.abs().max()
    moves = Moves(change + change.mH, 1e-3 * torch.randn(2, *s.shape))
    return lambda: Splitting().tangents(v, s, moves, probe, case.grid)


def row_of(case: Case) -> dict:
    """Return the row of the table of one case."""
    value, gradient = own_calls(case, Splitting())
    kinds = {"value": value, "gradient": gradient, "derivatives": derivatives(case)}
    calls = {}
    for kind, call in kinds.items():
        call()  # where it is compiled
        calls |= {(kind, "torch"): by_torch(call), (kind, "compiled"): call}
    found = measure_in_turn(calls, repeats=10, budget=4.0)
    blocks, n, samples = case.excitation.shape
    row = {"crystal": case.name, "n": n, "samples": samples, "blocks": blocks}
    for kind in kinds:
        slow, fast = (found[kind, way].median for way in ("torch", "compiled"))
        row |= {f"{kind}, torch / s": slow, f"{kind} / s": fast, f"{kind}, ratio": slow / fast}
    return row


def main() -> None:
    """Print the table and write benchmarks/results/machine_code.json."""
    rows = []
    with cores_used(1):
        for name, n, samples, blocks in CASES:
            rows.append(row_of(make_case(name, n, samples, GRID).repeated(blocks)))
    common.save("machine_code", rows)
    common.print_table("Sweeps by calls of torch and in machine code, one core", rows)


if __name__ == "__main__":
    main()
