"""The optimiser loop: damped Gauss-Newton steps of everything together.

Each outer iteration linearises the propagation in atoms and orientations (`model.tangents`),
solves the least-squares problem of all parameters near that point with the cheap model
(`linear.CheapModel`), and accepts the step if the true cost falls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time

import torch
from torch import Tensor

from . import estimates, fourier, losses, uncertainty
from .checkpoint import DEFAULTS, Checkpoint, RefineSettings, State
from .data import LOWEST_U, Problem, Result
from .ending import UNHELD, Ending, Step
from .error_model import ErrorModel
from .evidence import Evidence
from .freedom import least_u, lengths
from .history import Progress
from .kinematic import kinematic_intensities
from .linear import CheapModel, LeastSquares, solve
from .model import HybridModel
from .model_settings import ModelSettings
from .outcome import End, number, result_of
from .parallel import ALONE, Alone, Team, cores_used
from .passing import Passing
from .plan import Stage, make_plan
from .records import InputError

logger = logging.getLogger("dials.hybrid.refine")

NOTHING = 1e-4  # part of the cost that is not worth another trial
ROUNDS = 20  # of error model and step in turn, at one point of linearisation, at most
SHORT = 1  # iterations of such a step
SWING = 0.02  # change of the error model's logarithms, there and back, that does not end by itself
SHARED = 1e9  # operations of a normal matrix from which on several cores gain by sharing them
# part of the structure factors that changes derivatives too; where a step failed, a smaller one
CHANGED, SUSPECT = 0.03, 0.01


@contextlib.contextmanager
def out_of_memory_explained(advice: str):
    """Turn a lack of memory within the body into an InputError with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # what torch says of processors and of CUDA devices
        full = ("allocate memory", "out of memory")
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in full):
            raise
        raise InputError(f"there is not enough memory; {advice}") from error


def build_model(
    problem: Problem,
    settings: ModelSettings,
    seed: int,
    device: str = "cpu",
    share: Alone | Team = ALONE,
) -> HybridModel:
    """Return the model with its networks initialised from the seed."""
    torch.manual_seed(seed)
    return HybridModel(problem, settings, device, share)


class Refinement:
    """One refinement from start to end; `run` returns the Result."""

    def __init__(
        self,
        problem: Problem,
        model_settings: ModelSettings,
        settings: RefineSettings = DEFAULTS,
        progress: Progress | None = None,
        state: State | None = None,
        share: Alone | Team = ALONE,
    ):
        self.settings = settings
        self.progress = progress or Progress()
        self.model = build_model(problem, model_settings, settings.seed, settings.device, share)
        self.passes = share.lead(self.model)
        self.problem = self.model.problem
        self.state = state or State()
        # of the structure at the start, so that a continuation has the same
        self.plan = make_plan(self.model, settings.large)
        if self.state.parameters:
            self._restore()
        self.evidence = Evidence(self.model, self.state)
        self.passing = Passing(self.model, self.passes, self.state.second)
        self.state.stage = min(self.state.stage, len(self.plan) - 1)
        self.context: dict = {}  # written with every checkpoint, for the one who continues
        self.curvature: uncertainty.Curvature | None = None  # known once `run` has ended
        self.began = time.monotonic() - self.state.seconds
        self.saved = -math.inf
        self.ending = Ending(settings)
        self.error_change = (0.0, 0.0)  # of the error model in the last iteration

    @property
    def stage(self) -> Stage:
        """The stage that the loop is in."""
        return self.plan[self.state.stage]

    @property
    def tolerance(self) -> float:
        """The part of the cost that a step of the present stage must bring or promise."""
        return self.ending.tolerance(self.stage)

    def _restore(self) -> None:
        values = {k: torch.tensor(v, dtype=torch.float64) for k, v in self.state.parameters.items()}
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in own.items():
                if parameter.numel():
                    parameter.copy_(values[name].view_as(parameter))

    def estimate(self) -> tuple[float, float]:
        """Return (seconds of all passes, from one measured batch; bytes in all)."""
        return estimates.seconds(self.model, self.plan), estimates.size(self.model)

    def _remember(self) -> None:
        # a kind of which none is free is left out, as by earlier versions that had no such kind
        self.state.parameters = {
            k: v.detach().cpu().tolist() for k, v in self.model.named_parameters() if v.numel()
        }
        self.state.second = self.passing.second.cpu().tolist()
        self.state.seconds = time.monotonic() - self.began

    def linearise(self) -> CheapModel:
        """Propagate once, with derivatives, at the model's present parameters."""
        return self.passing.linearise(self.stage)

    def follow(self, cheap: CheapModel, x: Tensor | None = None) -> CheapModel:
        """Propagate at the present parameters, but keep the structure's derivatives of `cheap`.

        Those by orientation cost a fraction of theirs, and change most; if x, the step that led
        from `cheap` here, is given, their change tells second derivatives.
        """
        lin = self.passing.followed(self.stage, cheap)
        if x is not None:
            there = CheapModel(self.model, lin)
            calculated = self.intensities(there)
            problem = LeastSquares(there, self.sigma_w(calculated), 0)
            pull = (calculated - problem.observed) * problem.weight.square()
            self.passing.learn(cheap, x, there, pull)
        return self.passing.around(lin)

    def intensities(self, cheap: CheapModel) -> Tensor:
        """Return the calculated intensities at the point of linearisation."""
        return cheap.intensities()

    def sigma_w(self, calculated: Tensor) -> Tensor:
        """Return the standard deviations of the error model, outliers let go, (R,)."""
        o = self.problem.observations
        return self.state.error_model.robust_sigma(o.intensity, calculated, o.noise)

    def run(self) -> Result:
        """Refine until convergence, the iteration limit or an interrupt.

        Between passes one core works alone if there is little to share: to wake others would take
        longer, and what a refinement finds would depend on their number, by rounding.
        """
        parameters = sum(p.numel() for p in self.model.parameters())
        operations = len(self.problem.observations.intensity) * parameters**2
        with cores_used(1 if operations < SHARED else self.model.cores):
            return self._run()

    def _run(self) -> Result:
        reason, converged = "the iteration limit was reached", False
        try:
            cheap = self._begin()
            while self.state.iteration < self.settings.iterations:
                if self._stage_ends():
                    cheap = self._next_stage(cheap)
                if self.passing.is_stale(self.stage.stale, CHANGED):
                    cheap = self.linearise()
                cheap, step = self._iterate(cheap)
                if not self.ending.settled(step, self.stage):
                    continue
                if self._held_back(cheap) or self.evidence.is_loose():
                    self.ending.calm = 0
                    cheap = self.passing.around(cheap.lin)
                    continue
                if self.stage is self.plan[-1]:
                    reason, converged = "the last shifts are small against the errors", True
                    break
                cheap = self._next_stage(cheap)
        except KeyboardInterrupt:
            if not self.state.parameters:
                raise  # nothing is refined yet
            logger.warning("Interrupted: writing the results of iteration %d", self.state.iteration)
            reason, cheap = "interrupted by the user", None
            self._restore()
        return self._finish(cheap, converged, reason)

    def _finish(self, cheap: CheapModel | None, converged: bool, reason: str) -> Result:
        """Return the result, which is that of the last stage; the loop stays where it is."""
        stage, self.state.stage = self.state.stage, len(self.plan) - 1
        if cheap is None:
            cheap = self.linearise()
        elif stage != self.state.stage:
            cheap = self.follow(cheap)
        self._remember()
        result = self._result(cheap, converged, reason)
        self.state.stage = stage
        return result

    def _begin(self) -> CheapModel:
        """Return the first linearisation, after the start if that was not there yet."""
        self.ending.forget()
        if self.state.start:
            return self.linearise()
        if len(self.plan) == 1:
            cheap = self.linearise()
            self._start(self.passing.held(cheap.lin.profiles))
            return cheap
        self.state.stage = len(self.plan) - 1  # the start that is reported is the full model's
        try:
            self._start(self.passing.held(self.passes.value_profiles()))
        finally:
            self.state.stage = 0
        self._checkpoint()
        return self.linearise()

    def _stage_ends(self) -> bool:
        """Whether the iterations of a stage that is not the last are used up."""
        limit = int(self.stage.share * self.settings.iterations)
        return self.stage is not self.plan[-1] and self.state.iteration >= limit

    def _next_stage(self, cheap: CheapModel) -> CheapModel:
        """Go on to the next stage of the plan at the present parameters."""
        self.ending.calm = 0
        self.state.stage += 1
        self.passing.age += 1
        return self.follow(cheap)  # all stages have the same derivatives

    def _start(self, cheap: CheapModel) -> None:
        """Fit thickness and scale alone, atoms and orientations fixed."""
        intensity = self.problem.observations.intensity
        calculated = self.intensities(cheap)
        sigma = self.state.error_model.sigma(self.problem.observations.noise, intensity)
        weight = (~self.problem.observations.free) / sigma.square()
        factor = (calculated * intensity * weight).sum() / (calculated.square() * weight).sum()
        with torch.no_grad():
            self.model.scale.log_scale += factor.clamp(min=1e-30).log()
        for _ in range(3):
            problem = LeastSquares(cheap, self.sigma_w(self.intensities(cheap)), 1e9)
            cheap.apply(solve(problem, cheap.start(), 6))
            self.state.error_model = uncertainty.error_model_of(cheap, self.state.error_model)
        calculated = self.intensities(cheap)
        self.state.start = {
            "calculated": calculated.tolist(),
            "kinematic": kinematic_intensities(self.model, calculated).tolist(),
        }
        self._remember()
        self._record("thickness", LeastSquares(cheap, self.sigma_w(calculated), 0), 0.0)

    def _iterate(self, cheap: CheapModel) -> tuple[CheapModel, Step]:
        """One outer iteration: return the new linearisation, and the step that led there."""
        state = self.state
        self.evidence.update(cheap)
        x = self._update_error_model(cheap)
        sigma_w = self.sigma_w(self.intensities(cheap))
        before = LeastSquares(cheap, sigma_w, 0).cost(cheap.start())
        for _ in range(6):
            problem = LeastSquares(cheap, sigma_w, state.proximity)
            x = solve(problem, x, 20)
            predicted = before - problem.cost(x)
            sites, lowest = self.model.crystal.site().detach().clone(), self._lowest_u()
            cheap.apply(x)
            gain = -math.inf
            if self._lowest_u() >= min(LOWEST_U, lowest):
                fresh = self.follow(cheap, x)
                trial = LeastSquares(fresh, sigma_w, 0)
                gain = before - trial.cost(fresh.start())
            if gain > 0.8 * predicted:
                state.proximity = max(state.proximity / 4, 1e-2)
            elif gain < 0.4 * predicted:
                state.proximity *= 4
            if gain > 0 or (math.isfinite(gain) and predicted < NOTHING * before):
                state.structure_step = x[cheap.parts.crystal].tolist()
                self.passing.age += 1
                break
            self._restore()
            if abs(predicted) < self.tolerance * before:  # no more than a settled end may promise
                fresh, trial = cheap, LeastSquares(cheap, sigma_w, 0)
                break
            if self.passing.is_stale(self.stage.trusted, SUSPECT):
                cheap = self.linearise()
            else:
                cheap = self.passing.around(cheap.lin)
            x = cheap.start()
        else:
            fresh, trial = cheap, LeastSquares(cheap, sigma_w, 0)
        state.iteration += 1
        self._remember()
        step = Step(self._site_shift(sites), predicted / before, gain / before)
        self._record(self.stage.name, trial, step.shift)
        self._checkpoint()
        return fresh, step

    def _update_error_model(self, cheap: CheapModel) -> Tensor:
        """Fit the error model, then again where a step with it leads to; return where that is.

        Each follows the other slowly, and a propagation in between would take longer. Leverages
        hardly change meanwhile.
        """
        state, x, calculated = self.state, cheap.start(), self.intensities(cheap)
        began = state.error_model
        leverage = uncertainty.curvature_of(cheap, state.error_model).leverage
        for _ in range(ROUNDS):
            before = state.error_model
            state.error_model = uncertainty.error_model_of(cheap, before, calculated, leverage)
            if state.error_model.is_like(before):
                break
            problem = LeastSquares(cheap, self.sigma_w(calculated), state.proximity)
            x = solve(problem, x, SHORT)
            calculated = cheap.evaluate(x)[0]
        if self._met_halfway(began):
            x = solve(LeastSquares(cheap, self.sigma_w(calculated), state.proximity), x, SHORT)
        return x

    def _met_halfway(self, began: ErrorModel) -> bool:
        """Halve the change of the error model, from `began` on, if it takes the last one back.

        Leverages follow the error model in the next iteration: where few reflections hold many
        parameters, both may swing for ever. Returns whether it was halved.
        """
        state, last = self.state, self.error_change
        self.error_change = began.change(state.error_model)
        back = -sum(a * b for a, b in zip(last, self.error_change, strict=True))
        if back <= SWING**2:
            return False
        state.error_model = began.midway(state.error_model)
        self.error_change = began.change(state.error_model)
        return True

    def _lowest_u(self) -> float:
        """Smallest principal U of all atoms, in A^2."""
        return float(least_u(self.model.crystal.refined()).min())

    @torch.no_grad()
    def _site_shift(self, before: Tensor) -> float:
        """Largest distance that a site moved, in A."""
        moved = self.model.crystal.site() - before
        return float(lengths(self.problem.structure.cell, moved).max())

    def _held_back(self, cheap: CheapModel) -> bool:
        """Let the next step go if one that nothing holds promises more than a settled end may.

        Steps are held near the point of linearisation after one that went too far. Returns
        whether it was let go.
        """
        if not self.ending.may_be_held_back(self.stage, self.state):
            return False
        cheap = CheapModel(self.model, cheap.lin)
        sigma_w = self.sigma_w(self.intensities(cheap))
        free = LeastSquares(cheap, sigma_w, UNHELD)
        before = free.cost(cheap.start())
        promise = before - free.cost(solve(free, cheap.start(), 10))
        if promise < self.tolerance * before:
            return False
        self.ending.loosen()
        self.state.proximity = UNHELD
        self.passing.forget()
        return True

    def _record(self, stage: str, problem: LeastSquares, shift: float) -> None:
        o = self.problem.observations
        calculated = self.intensities(problem.cheap)
        row = {
            "iteration": self.state.iteration,
            "stage": stage,
            "loss": problem.cost(problem.cheap.start()),
            "r1_obs": losses.r1(o.intensity, calculated, o.observed & ~o.free),
            "r1_all": losses.r1(o.intensity, calculated, ~o.free),
            "r1_free": number(losses.r1(o.intensity, calculated, o.observed & o.free)),
            "site_shift": shift,
            "proximity": self.state.proximity,
            "error_model": dataclasses.asdict(self.state.error_model),
            "time": time.monotonic() - self.began,
        }
        self.state.history.append(row)
        self.progress.report(row)

    def _checkpoint(self) -> None:
        if self.progress.checkpoint is None:
            return
        if time.monotonic() - self.saved < self.settings.checkpoint_seconds:
            return
        self.save(self.progress.checkpoint)
        self.saved = time.monotonic()

    def checkpoint(self, result: Result | None = None) -> Checkpoint:
        """Return where the refinement stands."""
        return Checkpoint(
            self.problem, self.model.settings, self.settings, self.state, self.context, result
        )

    def save(self, path, result: Result | None = None) -> None:
        """Write the problem, the settings and the state, all that a continuation needs."""
        self.checkpoint(result).save(path)

    def _result(self, cheap: CheapModel, converged: bool, reason: str) -> Result:
        end = End(
            cheap,
            self.state,
            seed=self.settings.seed,
            plan=self.plan,
            seconds=time.monotonic() - self.began,
            converged=converged,
            stop_reason=reason,
        )
        result, self.curvature = result_of(end)
        return result

    def with_fourier(self, result: Result) -> Result:
        """Return the result of `run` with what its residuals say of every structure factor.

        That is of the work set, and as accurate as the derivatives of the last stage. After an
        interrupt the result returns as it is.
        """
        logger.info("Difference map: how the fit changes with every structure factor")
        try:
            terms = fourier.of_result(self.model, self.passes, self.plan[-1].slopes, result)
        except KeyboardInterrupt:
            logger.warning("Interrupted: no difference map is made")
            return result
        return result.replace(fourier=terms.to("cpu"))
