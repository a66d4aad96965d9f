"""Seconds of calls that take turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

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


def times(value: Timing, gradient: Timing | None) -> dict:
    """Return the columns of two times."""
    columns = {"seconds_value": value.median, "seconds_gradient": gradient and gradient.median}
    ranges = {"range_value": value, "range_gradient": gradient}
    return columns | {k: x and [x.low, x.high] for k, x in ranges.items()}
