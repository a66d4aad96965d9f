"""The method and the step of the propagation, by their error against an exact solution."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from . import beams
from .data import Problem
from .model import HybridModel
from .model_settings import ModelSettings
from .propagation import (
    SCHEMES,
    Bloch,
    DepthGrid,
    Eigen,
    MatrixExp,
    Probe,
    Propagator,
    Splitting,
    Work,
    is_hermitian,
    light,
    to_dict,
    with_substeps,
)
from .work import work_of

logger = logging.getLogger("dials.hybrid.depth_step")

SUBSTEPS = (1, 2, 3, 4, 6, 8)
FOLLOWING = 4  # passes with derivatives by the orientation, of one with those by the structure
CHECKED_SAMPLES = 4


@dataclass(frozen=True)
class StepCheck:
    """The method and step of the propagation that were chosen, and their error as measured.

    Errors are max |dI|, the incident beam being one; `step` is in A. `scheme` is that of the
    splitting or the name of another method, which has one step from depth to depth.
    """

    scheme: str
    substeps: int
    step: float
    error_measured: float
    error_target: float
    beams: int


@torch.no_grad()
def choose_step(
    problem: Problem,
    settings: ModelSettings,
    target: float,
    device: str = "cpu",
    allowed: tuple[int, ...] = SUBSTEPS,
    others: tuple[Propagator, ...] = (),
) -> tuple[ModelSettings, StepCheck]:
    """Return the settings with the fewest steps between depths that meet an error target.

    The error is max |dI| over all beams, all depths and a few orientation samples of the block
    with most beams, against the exact solution in double precision; it holds the rounding of
    the waves' own precision too. If no allowed number of steps meets the target, the one with
    the smallest error is returned, and a warning logged. Of `others`, methods without such
    steps, one is taken instead if the passes of that block (`_Trial.operations`) need fewer
    operations and the error is not larger than the target or than that of the steps.
    """
    trial = _Trial.of(problem, settings, device)
    given = settings.propagator
    steps = allowed if isinstance(given, Splitting) else (1,)
    tried: list[tuple[float, int]] = []
    for substeps in steps:
        tried.append((trial.error(with_substeps(given, substeps)), substeps))
        if tried[-1][0] <= target:
            break
    error, substeps = min(tried)
    chosen = with_substeps(given, substeps)
    for other in others:
        if trial.operations(other) < trial.operations(chosen):
            found = trial.error(other)
            if found <= max(target, error):
                chosen, error, substeps = other, found, 1
    check = StepCheck(
        getattr(chosen, "scheme", to_dict(chosen)["method"]),
        substeps,
        settings.depth.step / substeps,
        error,
        target,
        trial.potential.shape[-1],
    )
    _log_step(check)
    return dataclasses.replace(settings, propagator=chosen), check


@dataclass(frozen=True)
class _Trial:
    """The block with most beams, at a few samples of the rotation, with its exact intensities."""

    settings: ModelSettings
    potential: Tensor  # (1, N, N) A^-1
    excitation: Tensor  # (1, N, t) A^-1
    truth: Tensor  # (1, N, t, D)
    work: Work  # of a pass with all derivatives, all samples

    @classmethod
    def of(cls, problem: Problem, settings: ModelSettings, device: str) -> _Trial:
        """Solve that block exactly in double precision, and count the work of a pass."""
        model = HybridModel(
            _one_block(problem, fullest_block(problem, settings)),
            dataclasses.replace(settings, precision="double"),
            device,
        )
        batch = model.batches[0]
        potential = model.matrix(batch, model.potential_table())
        excitation = model.excitation(batch, model.orientation())
        last = excitation.shape[2] - 1
        samples = torch.linspace(0, last, CHECKED_SAMPLES).round().long().unique()
        excitation = excitation[..., samples.to(excitation.device)]
        exact = Eigen() if is_hermitian(potential) else MatrixExp()
        truth = every_intensity(exact, potential, excitation, settings.depth)
        directions = model.crystal.count
        work = work_of(model, directions, settings.dtype)
        return cls(settings, potential, excitation, truth, work)

    def error(self, propagator: Propagator) -> float:
        """Return max |dI| in the precision of the settings."""
        dtype = self.settings.dtype
        given = self.potential.to(dtype), self.excitation.to(dtype.to_real())
        found = every_intensity(propagator, *given, self.settings.depth)
        return float((found.double() - self.truth).abs().max())

    def operations(self, propagator: Propagator) -> float:
        """Return the operations of this block in a pass and those that usually follow it.

        The first has derivatives by the structure, from light steps or Bloch waves, the others by
        the orientation alone.
        """
        depth, turns = self.settings.depth, dataclasses.replace(self.work, directions=0)
        ways = light(propagator), Bloch(propagator)
        first = min(way.operations(self.work, depth) for way in ways)
        return first + FOLLOWING * propagator.operations(turns, depth)


def _log_step(check: StepCheck) -> None:
    stepwise = check.scheme in SCHEMES
    logger.info(
        "Propagation: %s, %s; max |dI| %.1e against the exact solution (target %.1e, %d beams)",
        check.scheme,
        f"step {check.step:.3g} A" if stepwise else "one series to all depths",
        check.error_measured,
        check.error_target,
        check.beams,
    )
    if check.error_measured > check.error_target:
        logger.warning(
            "The propagation is accurate to %.1e in intensity, not to the %.1e asked for by "
            "propagation.error%s; %scompute.precision=double may help",
            check.error_measured,
            check.error_target,
            f", even with {check.substeps} steps between depths" if stepwise else "",
            "a smaller depth.step or " if stepwise else "",
        )


def every_intensity(
    propagator: Propagator, potential: Tensor, excitation: Tensor, grid: DepthGrid
) -> Tensor:
    """Return |psi|^2 of every beam, sample and depth, (F, N, T, D), beam 0 being the incident.

    `potential` (F, N, N) and `excitation` (F, N, T) in A^-1 as for any propagator.
    """
    f, n, t = excitation.shape
    device = excitation.device
    one_sample = torch.eye(t, dtype=excitation.dtype, device=device)
    probe = Probe(
        torch.zeros(f, dtype=torch.int64, device=device),
        torch.arange(n, device=device).repeat_interleave(t).expand(f, -1),
        one_sample.repeat(n, 1).expand(f, -1, -1),
    )
    return propagator(potential, excitation, probe, grid).unflatten(1, (n, t))


def fullest_block(problem: Problem, settings: ModelSettings) -> int:
    """Return the block with observations that has most beams near the Ewald sphere."""
    scan = problem.scan
    hkl = beams.lattice_points(problem.structure, settings.g_max).double()
    middle = scan.setting[:, scan.setting.shape[1] // 2].cpu().double()
    vectors = torch.einsum("fij,mj->fmi", middle, hkl)
    s0 = scan.s0.cpu().double()
    s = beams.excitation_errors(vectors, s0, s0.norm(dim=-1))
    near = (s.abs() <= settings.s_max).sum(1)
    seen = torch.zeros_like(near, dtype=torch.bool)
    seen[problem.observations.link_block.cpu()] = True
    return int(torch.where(seen, near, -1).argmax())


def _one_block(problem: Problem, block: int) -> Problem:
    """Return one block with its links; windows that reach into other blocks are cut."""
    scan, o = problem.scan, problem.observations
    links = torch.nonzero(o.link_block == block).flatten()
    rows = torch.unique(o.link_observation[links])
    return problem.replace(
        scan=scan.chosen(torch.tensor([block], device=scan.sweep.device)),
        observations=o.chosen(rows, links, torch.zeros_like(links)),
    )
