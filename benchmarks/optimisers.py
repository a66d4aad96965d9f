"""How many passes through the diffraction model do Adam, L-BFGS and Gauss-Newton need?

python -m benchmarks.optimisers: simulated quartz of known truth (`benchmarks.uncertainties`), the
same displaced start and the same cost for all: half the squared residuals at fixed weights and
those of the priors. Adam and L-BFGS take gradients by the adjoint, one of everything a pass;
Gauss-Newton takes tangents. Parameters are in the units of the refinement (0.01 A, priors' sigma).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from dials_hybrid.data import Problem
from dials_hybrid.error_model import ErrorModel
from dials_hybrid.linear import CheapModel, LeastSquares, Linearisation, solve
from dials_hybrid.model import HybridModel
from dials_hybrid.refine import build_model

from . import common, uncertainties

SEED = 1
PASSES = 100  # of Adam and L-BFGS, at most
STEPS = 12  # of Gauss-Newton
RATES = (0.1, 0.3)  # of Adam
NEAR = 0.01  # part of the gain that may be missing at the end


@dataclass
class Track:
    """The lowest cost after every pass, and the time in s."""

    began: float = field(default_factory=time.perf_counter)
    cost: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, cost: float, passes: int = 1) -> None:
        """Note the cost that so many passes led to."""
        lowest = min([cost, *self.cost[-1:]])
        self.cost += [*self.cost[-1:] * (passes - 1), lowest]
        self.seconds += [time.perf_counter() - self.began] * (len(self.cost) - len(self.seconds))

    def reached(self, level: float) -> tuple[float, float]:
        """Return (passes, seconds) until the cost was below the level, NaN if never."""
        for i, cost in enumerate(self.cost):
            if cost <= level:
                return i + 1, self.seconds[i]
        return math.nan, math.nan


@dataclass(frozen=True)
class Case:
    """A problem with fixed weights."""

    problem: Problem
    sigma_w: torch.Tensor

    def model(self) -> HybridModel:
        """Return the model at the start, its scale right."""
        model = build_model(self.problem, uncertainties.SETTINGS, SEED)
        with torch.no_grad():
            found = model.intensities(model.profiles())
            weight = self.sigma_w**-2
            observed = self.problem.observations.intensity
            factor = (weight * found * observed).sum() / (weight * found.square()).sum()
            model.scale.log_scale += factor.log()
        return model

    def cost(self, model: HybridModel) -> torch.Tensor:
        """Return half the sum of squared residuals, those of the priors included."""
        r = model.intensities(model.profiles()) - self.problem.observations.intensity
        prior = model.prior_residuals()
        return 0.5 * ((r / self.sigma_w).square().sum() + prior.square().sum())


def make_case() -> Case:
    """Return simulated quartz with displaced atoms and an error model that fits the noise."""
    true = uncertainties.true_structure()
    sweep, measured = uncertainties.measured(true, SEED)
    start = uncertainties.displaced(true, np.random.default_rng(1000 + SEED))
    errors = ErrorModel(k=1.0, p=uncertainties.PROPORTIONAL)
    return Case(Problem(start, sweep, measured), errors.sigma(measured.noise, measured.intensity))


def by_adam(case: Case, rate: float) -> Track:
    """Minimise by Adam (Kingma & Ba 2015, arXiv:1412.6980)."""
    model, track = case.model(), Track()
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(PASSES):
        optimiser.zero_grad()
        cost = case.cost(model)
        cost.backward()
        optimiser.step()
        track.add(float(cost.detach()))
    return track


def by_lbfgs(case: Case) -> Track:
    """Minimise by L-BFGS with a line search (Liu & Nocedal 1989, doi:10.1007/BF01589116)."""
    model, track = case.model(), Track()
    optimiser = torch.optim.LBFGS(
        model.parameters(),
        max_iter=PASSES,
        max_eval=PASSES,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        cost = case.cost(model)
        cost.backward()
        track.add(float(cost.detach()))
        return cost

    optimiser.step(closure)
    return track


def by_gauss_newton(case: Case) -> Track:
    """Minimise as the refinement does: all near one linearisation exactly, then the next.

    A pass is one with tangents of everything.
    """
    model, track, held = case.model(), Track(), 1.0
    for _ in range(STEPS):
        profiles, crystal, orientation = model.tangents()
        cheap = CheapModel(model, Linearisation(profiles, crystal, orientation))
        problem = LeastSquares(cheap, case.sigma_w, held)
        track.add(problem.cost(cheap.start()))
        cheap.apply(solve(problem, cheap.start(), 10))
        held = max(held / 4, 1e-2)
    return track


def main() -> None:
    """Print the table and write benchmarks/results/optimisers.json."""
    case = make_case()
    tracks = {
        "Gauss-Newton": by_gauss_newton(case),
        "L-BFGS": by_lbfgs(case),
        **{f"Adam, step {rate:g}": by_adam(case, rate) for rate in RATES},
    }
    start = tracks["Gauss-Newton"].cost[0]
    lowest = min(track.cost[-1] for track in tracks.values())
    rows = []
    for name, track in tracks.items():
        passes, seconds = track.reached(lowest + NEAR * (start - lowest))
        rows.append(
            {
                "optimiser": name,
                "cost at the start": track.cost[0],
                "lowest cost": track.cost[-1],
                "passes": len(track.cost),
                "time / s": track.seconds[-1],
                "passes to 99 % of the gain": passes,
                "time to 99 % of the gain / s": seconds,
            }
        )
    common.save("optimisers", rows)
    common.print_table("Passes through the diffraction model, simulated quartz", rows)


if __name__ == "__main__":
    main()
