"""Speed and accuracy of the propagation, beside other methods on the same beams.

    python -m benchmarks.propagation [--threads 2] [--only N]

Seconds are medians, with minimum and maximum beside them; `seconds_gradient` is the time of the
intensities and of the gradient of the sum of their squares by potential and excitation errors.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from dials_hybrid.propagation import (
    Chebyshev,
    DepthGrid,
    Probe,
    Propagator,
    Splitting,
    with_substeps,
)
from dials_hybrid.propagation.series import Series, plain
from dials_hybrid.propagation.splitting import make_plan

from . import common, peers
from .cases import CASES, TO_800, Case, make_case
from .peer_times import peer_rows
from .timing import Timing, best_in_turn, measure, measure_in_turn, times

OURS = {"splitting": Splitting(), "chebyshev": Chebyshev()}


# --- ours -----------------------------------------------------------------------------------


def single(case: Case) -> tuple[Tensor, Tensor, Probe]:
    """Return potential, excitation and probe of a case in single precision.

    In centrosymmetric crystals the potential stays real.
    """
    potential = plain(case.potential.to(torch.complex64))
    return potential, case.excitation.float(), case.probe(torch.float32)


def own_calls(case: Case, method: Propagator) -> tuple[Callable, Callable]:
    """Return what gives the profiles, and the gradient, of one block or of equal blocks."""
    potential, excitation, probe = single(case)

    def intensities(v, s):
        return method(v, s, probe, case.grid)

    def value():
        with torch.no_grad():
            return intensities(potential, excitation)

    return value, lambda: peers.value_and_gradient(potential, excitation, intensities)


def time_splitting(case: Case) -> tuple[Timing, Timing]:
    """Time the profiles, and profiles and gradient, of one block or of equal blocks."""
    value, gradient = own_calls(case, Splitting())
    return measure(value), measure(gradient)


def at_last_depth(case: Case, method: Propagator) -> Tensor:
    """Return the intensities (T, N) of every orientation apart, by the same steps."""
    potential, excitation, _ = single(case)
    _, n, samples = excitation.shape
    beam = torch.arange(n).repeat(samples)[None]
    sample = torch.arange(samples).repeat_interleave(n)
    weight = (sample[:, None] == torch.arange(samples)).float()[None]
    depth = DepthGrid(case.grid.step * case.grid.count, 1)
    method = with_substeps(method, case.grid.count)
    with torch.no_grad():
        out = method(potential, excitation, Probe(torch.tensor([0]), beam, weight), depth)
    return out.reshape(samples, n)


# --- share of the machine -------------------------------------------------------------------


def operations(case: Case, gradient: bool) -> float:
    """Return the floating point operations of all matrix products that the method needs.

    Eight real ones to a term of a complex product, also where three real products do. Stages: one
    complex product forward, two more backward. Powers for the exponentials: likewise;
    where the potential stays real, a product of powers is a quarter of a complex one.
    """
    f, n, samples = case.excitation.shape
    plan = make_plan(Splitting().scheme, case.grid, 1)
    powers = Series.of(case.potential.to(torch.complex64), plan.matrices).powers
    forward, backward = (1, 2) if powers.is_complex() else (1 / 4, 1 / 2)
    stages = plan.steps * len(plan.stages) * samples * (3 if gradient else 1)
    products = (len(powers) - 1) * n * (forward + (backward if gradient else 0))
    return 8 * f * n**2 * (stages + products)


def bytes_moved(case: Case, gradient: bool) -> float:
    """Return the bytes that cannot but be moved: waves of every stage out, and in backwards."""
    plan = make_plan(Splitting().scheme, case.grid, 1)
    stages = plan.steps * len(plan.stages)
    return 8 * case.excitation.numel() * stages * (2 if gradient else 1)


def product(a: Tensor, b: Tensor) -> tuple[float, Callable]:
    """Return how many real operations a product of complex matrices takes, and its call."""
    out = torch.bmm(a, b)
    work = 8 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
    return work, lambda: torch.bmm(a, b, out=out)


def copy_rate() -> float:
    """Return the best rate (bytes/s) of reading and writing memory."""
    source = torch.zeros(2**24)
    target = torch.empty_like(source)
    return 8 * len(source) / measure(lambda: target.copy_(source), 50, 0.5).low


def share_row(case: Case) -> dict:
    """Compare our best times with those of matrix products, each in its turn."""
    f, n, samples = case.excitation.shape

    def new(*shape):
        return torch.randn(*shape, dtype=torch.complex64)

    large, large_call = product(new(1, 1024, 1024), new(1, 1024, 1024))
    same, same_call = product(new(f, samples, n), new(f, n, n))
    value, gradient = own_calls(case, Splitting())
    calls = {"value": value, "gradient": gradient, "large": large_call, "same": same_call}
    best = best_in_turn(calls)
    large, same = large / best["large"], same / best["same"]
    row = {"n": n, "blocks": f, "GEMM_rate_large": large, "GEMM_rate_same_shape": same}
    for name in ("value", "gradient"):
        work = operations(case, name == "gradient")
        row |= {
            f"share_of_large_{name}": work / best[name] / large,
            f"share_of_same_shape_{name}": work / best[name] / same,
            f"lower_bound_operations_{name}": work / large,
            f"lower_bound_bytes_{name}": bytes_moved(case, name == "gradient") / copy_rate(),
        }
    return row | {"gradient_over_value": best["gradient"] / best["value"]}


# --- scaling --------------------------------------------------------------------------------


def scaling() -> list[dict]:
    """Return seconds of value and gradient against N, orientations, depths and blocks."""
    base = {"n": 100, "samples": 42, "depths": 20, "blocks": 1}
    sweeps = {
        "n": (50, 100, 200, 400),
        "samples": (21, 42, 84, 168),
        "depths": (10, 20, 40, 80),
        "blocks": (4, 8, 16, 32),
    }
    rows = []
    for name, sizes in sweeps.items():
        seconds = []
        for size in sizes:
            chosen = base | {name: size}
            grid = DepthGrid(20.0, chosen["depths"])
            case = make_case("quartz", chosen["n"], chosen["samples"], grid)
            seconds.append(time_splitting(case.repeated(chosen["blocks"]))[1].low)
        exponent = slope([math.log(s) for s in sizes], [math.log(t) for t in seconds])
        rows.append({"against": name, "sizes": sizes, "seconds": seconds, "exponent": exponent})
    return rows


def slope(x: list[float], y: list[float]) -> float:
    """Return the slope of a straight line through points."""
    return statistics.linear_regression(x, y).slope


# --- the whole ------------------------------------------------------------------------------


def rows_of(case: Case, threads: int) -> tuple[list[dict], dict]:
    """Return our rows and the peers' of one case, and our share of the machine's rate."""
    reference, calls = peers.reference_intensities(case), {}
    for name, method in OURS.items():
        calls[name, "value"], calls[name, "gradient"] = own_calls(case, method)
    found = measure_in_turn(calls)
    ours = []
    for name, method in OURS.items():
        error = float((at_last_depth(case, method).double() - reference).abs().max())
        row = {"method": name, "device": "cpu", "dtype": "complex64"}
        row |= times(found[name, "value"], found[name, "gradient"])
        ours.append(row | {"max_error": error, "extrapolated_from": None, "notes": ""})
    rows = [*ours, *peer_rows(case.size["n"], threads)]
    size = {"crystal": case.name, **case.size}
    return [size | row for row in rows], share_row(case)


def whole_rotations() -> tuple[list[dict], list[dict]]:
    """Time value and gradient of 99 frames of quartz, and return shares of the rate of batches."""
    grid = DepthGrid(40.0, 20)
    frames = Case.joined([make_case("quartz", 40, 42, grid, angle=a) for a in range(99)])
    value, gradient = time_splitting(frames)
    row = {"rotation": "quartz, 99 frames", **frames.size, **times(value, gradient)}
    batch = make_case("quartz", 50, 42, TO_800).repeated(16)
    return [row], [share_row(batch), share_row(frames)]


def main(argv=()) -> None:
    """Print the tables and write benchmarks/results/propagation.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=int, help="this number of beams alone; writes no file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows, shares = [], []
    versions = {"torch": torch.__version__, "threads": options.threads}

    def save(**extra) -> None:
        if options.only is None:
            common.save("propagation", rows, **versions, **extra)

    for name, n, samples, grid in CASES:
        if options.only in (None, n):
            found, share = rows_of(make_case(name, n, samples, grid), options.threads)
            rows += found
            shares.append(share)
            common.print_table(f"{name}, N = {n}", found)
            save(gemm_share=shares, complete=False)
    if options.only is not None:
        print(json.dumps(shares, indent=1))
        return
    batched, batched_shares = whole_rotations()
    shares += batched_shares
    common.print_table("Whole rotations", batched)
    common.print_table("Share of the rate of complex64 products", shares)
    save(whole_rotations=batched, gemm_share=shares, complete=False)
    fits = scaling()
    common.print_table("Scaling of value and gradient", fits)
    save(whole_rotations=batched, gemm_share=shares, scaling=fits, complete=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
