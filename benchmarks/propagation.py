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
import time
from collections.abc import Callable
from dataclasses import dataclass

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
from dials_hybrid.propagation.series import Series
from dials_hybrid.propagation.splitting import make_plan

from . import common, peers
from .cases import Case, make_case

TO_800, TO_440 = DepthGrid(20.0, 40), DepthGrid(20.0, 22)
CASES = (
    ("quartz", 50, 42, TO_800),
    ("quartz", 140, 42, TO_800),
    ("albite", 280, 42, TO_800),
    ("CsPbBr3", 680, 60, TO_440),
)
OURS = {"splitting": Splitting(), "chebyshev": Chebyshev()}
BUDGET = 6.0  # s for the repeats of one figure


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, minimum, maximum."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> Timing:
        """Return the time of `factor` times the work."""
        return Timing(self.median * factor, self.low * factor, self.high * factor)


def measure(call: Callable, repeats: int = 15, budget: float = BUDGET) -> Timing:
    """Time a call within a budget (s); the first counts only if it takes all of that."""
    return measure_in_turn({"": call}, repeats, budget)[""]


def measure_in_turn(calls: dict, repeats: int = 15, budget: float = BUDGET) -> dict:
    """Time several calls (by name), each within a budget (s), round after round.

    A burst of other work on the machine then falls on all of them. The first round of a call
    counts only if it takes all of its budget.
    """
    seconds = {name: [] for name in calls}
    waiting = dict(calls)
    while waiting:
        for name, call in list(waiting.items()):
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
            if len(seconds[name]) > repeats or sum(seconds[name]) >= budget:
                del waiting[name]
    counted = {name: found[1:] or found for name, found in seconds.items()}
    return {k: Timing(statistics.median(x), min(x), max(x)) for k, x in counted.items()}


# --- ours -----------------------------------------------------------------------------------


def single(case: Case) -> tuple[Tensor, Tensor, Probe]:
    """Return potential, excitation and probe of a case in single precision."""
    potential = case.potential.to(torch.complex64)
    return potential, case.excitation.float(), case.probe(torch.float32)


def value_and_gradient(potential: Tensor, excitation: Tensor, intensities: Callable) -> tuple:
    """Return the gradients of the sum of squares of the intensities."""
    inputs = potential.detach().requires_grad_(), excitation.detach().requires_grad_()
    return torch.autograd.grad(intensities(*inputs).square().sum(), inputs)


def own_calls(case: Case, method: Propagator) -> tuple[Callable, Callable]:
    """Return what gives the profiles, and the gradient, of one block or of equal blocks."""
    potential, excitation, probe = single(case)

    def intensities(v, s):
        return method(v, s, probe, case.grid)

    def value():
        with torch.no_grad():
            return intensities(potential, excitation)

    return value, lambda: value_and_gradient(potential, excitation, intensities)


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


# --- peers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A method to compare with."""

    name: str
    function: Callable
    dtype: torch.dtype
    all_depths: bool = True
    differentiable: bool = True


def available_peers() -> list[Peer]:
    """Return torch's own ways, and abTEM where it is installed."""
    found = [
        Peer("eigh", peers.eigh, torch.complex128),
        Peer("matrix_exp", peers.matrix_exp, torch.complex64),
        Peer("matrix_exp, one depth", peers.matrix_exp_one_depth, torch.complex64, False),
    ]
    if peers.calculate_dynamical_scattering is not None:
        found.append(Peer("abTEM Bloch", peers.abtem, torch.complex128, True, False))
    return found


def timed_orientations(case: Case) -> int:
    """Orientations of which a peer is timed: fewer where one takes seconds."""
    n = case.size["n"]
    return case.size["orientations"] if n <= 140 else 8 if n <= 300 else 2


@dataclass
class PeerRun:
    """A peer on one case: one orientation after another where its matrices are large."""

    peer: Peer
    case: Case
    finite: bool = True

    def __post_init__(self):
        self.samples = timed_orientations(self.case)
        few, n = self.case.fewer(self.samples), self.case.size["n"]
        self.factor = self.case.size["orientations"] / self.samples
        self.potential = few.potential.to(self.peer.dtype)
        excitation = few.excitation.to(self.peer.dtype.to_real())
        self.parts = excitation.split(self.samples if n <= 140 else 1, dim=2)

    def intensities(self, v: Tensor, s: Tensor) -> Tensor:
        """Return |psi_g|^2 (T, N, depths)."""
        return self.peer.function(v, s, self.case.grid)

    def value(self) -> Tensor:
        """Return the intensities (T, N) at the last depth."""
        with torch.no_grad():
            found = [self.intensities(self.potential, s)[..., -1] for s in self.parts]
        return torch.cat(found)

    def gradients(self) -> None:
        """Form the gradients of every part."""
        for s in self.parts:
            found = value_and_gradient(self.potential, s, self.intensities)
            self.finite &= all(bool(x.isfinite().all()) for x in found)

    def calls(self) -> dict:
        """Return what is to be timed, by name."""
        calls = {(self.peer.name, "value"): self.value}
        if self.peer.differentiable:
            calls[self.peer.name, "gradient"] = self.gradients
        return calls

    def row(self, found: dict, reference: Tensor) -> dict:
        """Return the row of the table from all times and the exact intensities (T, N)."""
        peer = self.peer
        error = (self.value().double() - reference[self.case.spread(self.samples)]).abs().max()
        notes = [] if peer.all_depths else ["last depth alone"]
        notes += [] if peer.differentiable else ["no gradient"]
        notes += [] if self.finite else ["gradient not finite"]
        value, gradient = (found.get((peer.name, what)) for what in ("value", "gradient"))
        scaled = times(value.times(self.factor), gradient and gradient.times(self.factor))
        row = {"method": peer.name, "device": "cpu"}
        row |= {"dtype": str(peer.dtype).removeprefix("torch.")} | scaled
        row |= {"max_error": float(error)}
        row |= {"extrapolated_from": self.samples if self.factor > 1 else None}
        return row | {"notes": ", ".join(notes)}


def times(value: Timing, gradient: Timing | None) -> dict:
    """Return the columns of two times."""
    columns = {"seconds_value": value.median, "seconds_gradient": gradient and gradient.median}
    ranges = {"range_value": value, "range_gradient": gradient}
    return columns | {k: x and [x.low, x.high] for k, x in ranges.items()}


def reference_intensities(case: Case) -> Tensor:
    """Return the exact intensities (T, N) at the last depth, in double precision."""
    last = DepthGrid(case.grid.step * case.grid.count, 1)
    parts = case.excitation.split(1, dim=2)
    return torch.cat([peers.eigh(case.potential, s, last)[..., 0] for s in parts])


# --- share of the machine -------------------------------------------------------------------


def operations(case: Case, gradient: bool) -> float:
    """Return the floating point operations of all matrix products that the method needs.

    Eight real ones to a term of a complex product, also where three real products do. Stages: one
    complex product forward, two more backward. Powers for the exponentials: likewise;
    where the potential is real, a product of two powers is a quarter of a complex one, and a
    complex matrix times a power is half of one.
    """
    f, n, samples = case.excitation.shape
    plan = make_plan(Splitting().scheme, case.grid, 1)
    powers = Series.of(case.potential.to(torch.complex64), plan.matrices).powers
    forward, backward = (1, 2) if powers.is_complex() else (1 / 4, 1)
    stages = plan.steps * len(plan.stages) * samples * (3 if gradient else 1)
    products = (len(powers) - 1) * n * (forward + (backward if gradient else 0))
    return 8 * f * n**2 * (stages + products)


def bytes_moved(case: Case, gradient: bool) -> float:
    """Return the bytes that cannot but be moved: waves of every stage out, and in backwards."""
    plan = make_plan(Splitting().scheme, case.grid, 1)
    stages = plan.steps * len(plan.stages)
    return 8 * case.excitation.numel() * stages * (2 if gradient else 1)


def best_in_turn(calls: dict, rounds: int = 8, budget: float = 0.3) -> dict:
    """Return the shortest seconds of several calls (by name).

    In every round each call has its turn of `budget` seconds, in which it runs again and again, as
    in a refinement. All have the same chances to meet the machine at its best.
    """
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            best[name] = min(best[name], measure(call, 1000, budget).low)
    return best


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


def rows_of(case: Case) -> tuple[list[dict], dict]:
    """Return our rows and the peers' of one case, and our share of the machine's rate.

    All methods take turns.
    """
    reference = reference_intensities(case)
    runs = [PeerRun(peer, case) for peer in available_peers()]
    calls = {}
    for name, method in OURS.items():
        calls[name, "value"], calls[name, "gradient"] = own_calls(case, method)
    found = measure_in_turn(
        {k: v for part in (calls, *(r.calls() for r in runs)) for k, v in part.items()}
    )
    ours = []
    for name, method in OURS.items():
        error = float((at_last_depth(case, method).double() - reference).abs().max())
        row = {"method": name, "device": "cpu", "dtype": "complex64"}
        row |= times(found[name, "value"], found[name, "gradient"])
        ours.append(row | {"max_error": error, "extrapolated_from": None, "notes": ""})
    rows = [*ours, *(run.row(found, reference) for run in runs)]
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
            found, share = rows_of(make_case(name, n, samples, grid))
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
