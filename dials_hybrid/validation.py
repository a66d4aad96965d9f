"""Tests of a structure against the data before it is refined: hand and indexing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import losses, thickness
from .data import Problem
from .model import HybridModel
from .model_settings import ModelSettings
from .propagation import Chebyshev
from .thickness import Views
from .work import work_of


@dataclass(frozen=True)
class Candidate:
    """One way to look at the structure, and how well it agrees."""

    operator: str  # change of basis from the given indexing
    hand: str  # "given" or "inverted"
    space_group: str
    r1_obs: float


def quick_r1(problem: Problem, settings: ModelSettings, device: str = "cpu") -> tuple[float, float]:
    """Return (R1 of I > 3 sigma, mean thickness in A) of an unrefined structure.

    The thickness distribution that the refinement would start from, its mean searched over the
    depth grid, and one smooth scale are fitted. A single thickness can agree equally well at
    several places, between which only the broad distribution decides.
    """
    model = HybridModel(problem, settings, device)
    methods, work = (settings.propagator, Chebyshev()), work_of(model, None)
    chosen = min(methods, key=lambda method: method.operations(work, settings.depth))
    profiles = model.propagated_by(chosen).value_profiles()
    means = model.depth[::2].tolist()
    return min((_r1_of(model, profiles, _start(model, mean)), mean) for mean in means)


def _start(model: HybridModel, mean: float) -> Tensor:
    """p(t) (D,) that a refinement starts from at a mean thickness in A."""
    settings = model.settings
    start = thickness.build(
        settings.thickness,
        model.depth,
        Views.of(model.problem.scan, settings.thickness_features).first(),
        mean,
        settings.prior,
        settings.thickness_head,
    )
    return start.to(model.depth.device)()[0]


@torch.no_grad()
def _r1_of(model: HybridModel, profiles: Tensor, p: Tensor) -> float:
    o = model.problem.observations
    raw = model.summed(profiles @ p)
    return losses.r1(o.intensity, raw * smooth_scales(model, raw), o.observed)


def smooth_scales(model: HybridModel, raw: Tensor) -> Tensor:
    """A scale that varies smoothly over the rotation, by local ratios of amplitudes."""
    o, weight = model.problem.observations, model.scale_matrix
    fo, fc = losses.amplitudes(o.intensity), losses.amplitudes(raw)
    above, below = weight.T @ (fo * fc), weight.T @ fc.square()
    total = (fo * fc).sum() / fc.square().sum()
    ratio = torch.where(below > 1e-3 * below.max(), above / below.clamp(min=1e-30), total)
    return (weight @ ratio).square()


def part_of(problem: Problem, number: int) -> Problem:
    """Return the problem reduced to about `number` of its frames, in a few runs over the scan.

    Observations that need other frames are left out; all are kept if there are fewer.
    """
    frame = problem.scan.frame
    total = int(frame[-1]) + 1
    if total <= number:
        return problem
    runs = max(1, number // 8)
    length = number // runs
    starts = torch.linspace(0, total - length, runs).round().to(torch.int64)
    chosen = torch.zeros(total, dtype=torch.bool)
    for start in starts.tolist():
        chosen[start : start + length] = True
    return keep_blocks(problem, chosen[frame])


def keep_blocks(problem: Problem, chosen: Tensor) -> Problem:
    """Return the problem with the chosen blocks (F,) and the observations that lie in them."""
    o, scan = problem.observations, problem.scan
    outside = ~chosen[o.link_block]
    lost = torch.zeros(len(o.intensity)).index_add(0, o.link_observation, outside.float()) > 0
    if bool(lost.all()):
        return problem
    rows, links = (torch.nonzero(x).flatten() for x in (~lost, ~lost[o.link_observation]))
    new_block = torch.cumsum(chosen, 0) - 1
    observations = o.chosen(rows, links, new_block[o.link_block[links]])
    return problem.replace(observations=observations, scan=scan.chosen(chosen))
