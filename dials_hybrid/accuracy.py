"""Numerical choices by their error: the beams, and the samples of the rotation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import beams, losses, validation
from .crystal import CrystalModel
from .data import Problem
from .model import HybridModel, relevance_of
from .model_settings import ModelSettings
from .propagation import DepthGrid

logger = logging.getLogger("dials.hybrid.accuracy")

S_MAX = (0.04, 0.03, 0.02, 0.015, 0.01, 0.0075, 0.005)  # A^-1
G_MAX = (2.0, 1.8, 1.6, 1.4)  # A^-1
SAMPLING_STEPS = (0.025, 1 / 30, 0.05, 1 / 15, 0.1)  # degree
FEASIBLE_BEAMS = 800
RUNS = 4  # stretches of the scan on which choices are compared
ENOUGH = 150  # reflections above 3 sigma to compare on, if there are as many
LONGEST_RUN = 8  # blocks


@dataclass(frozen=True)
class Agreement:
    """Calculated against observed amplitudes of the compared reflections, nothing refined."""

    row: Tensor  # (R,) row in the source table
    observed: Tensor  # (R,) above 3 sigma
    intensity: Tensor  # (R,) as measured
    calculated: Tensor  # (R,) on the scale of the measured
    beams: float  # per block, on average


@dataclass(frozen=True)
class Rung:
    """One choice on a ladder, against the finest one."""

    label: str
    beams: float  # per block, on average
    r1: float  # of the compared reflections above 3 sigma
    change: float  # of R1
    r_calc: float  # sum | |Fc| - |Fc, finest| | / sum |Fo|


def few_blocks(problem: Problem) -> Tensor:
    """Return (F,) bool: a few stretches of the scan, long enough to hold enough reflections.

    Only reflections that lie within the stretches count.
    """
    frame = problem.scan.frame
    total = int(frame[-1]) + 1
    chosen = torch.ones(total, dtype=torch.bool)
    for length in range(1, min(LONGEST_RUN, (total - 1) // RUNS) + 1):
        starts = torch.linspace(0, total - length, RUNS).round().long()
        chosen = torch.zeros(total, dtype=torch.bool)
        chosen[starts[:, None] + torch.arange(length)] = True
        part = validation.keep_blocks(problem, chosen[frame])
        complete = len(part.scan.sweep) < len(frame)
        if complete and int(part.observations.observed.sum()) >= ENOUGH:
            break
    return chosen[frame]


@torch.no_grad()
def agreement(problem: Problem, settings: ModelSettings, device: str = "cpu") -> Agreement:
    """Calculate the intensities of a problem with one thickness, `thickness_start`."""
    step = settings.depth.step
    grid = DepthGrid(step, max(1, round(settings.thickness_start / step)))
    settings = dataclasses.replace(settings, depth=grid, thickness="single")
    model = HybridModel(problem, settings, device)
    o = model.problem.observations
    raw = model.summed(model.value_profiles()[:, -1])
    return Agreement(
        o.row.cpu(),
        o.observed.cpu(),
        o.intensity.cpu(),
        (raw * validation.smooth_scales(model, raw)).cpu(),
        float(model.beams.counts.double().mean()),
    )


def compare(label: str, found: Agreement, finest: Agreement) -> Rung:
    """Return the rung of a choice, over the reflections that both have."""
    mine = torch.isin(found.row, finest.row) & found.observed
    other = torch.isin(finest.row, found.row) & finest.observed
    order, order_finest = found.row[mine].argsort(), finest.row[other].argsort()
    fo = losses.amplitudes(found.intensity[mine][order])
    fc = losses.amplitudes(found.calculated[mine][order])
    fc_finest = losses.amplitudes(finest.calculated[other][order_finest])
    r1, r1_finest, r_calc = (
        float((x - y).abs().sum() / fo.sum())
        for x, y in ((fc, fo), (fc_finest, fo), (fc, fc_finest))
    )
    return Rung(label, found.beams, r1, r1 - r1_finest, r_calc)


def descend(
    start: object,
    ladder: Iterable[tuple[str, object]],
    evaluate: Callable[[object], Agreement],
    finest: Agreement,
    tolerance: float,
) -> tuple[object, list[Rung]]:
    """Return the coarsest value that changes R1 by less than `tolerance`, and all rungs tried.

    `ladder` holds (label, value) from fine to coarse. The descent ends at the first value that
    changes R1 too much, so that a coarse value whose errors happen to cancel is not taken;
    `start` is returned when that is the first one.
    """
    chosen, rungs = start, []
    for label, value in ladder:
        rungs.append(compare(label, evaluate(value), finest))
        if abs(rungs[-1].change) >= tolerance:
            break
        chosen = value
    return chosen, rungs


def choose_cutoffs(
    problem: Problem,
    settings: ModelSettings,
    tolerance: float,
    free: tuple[str, ...] = ("s_max", "g_max"),
    device: str = "cpu",
) -> tuple[ModelSettings, list[Rung]]:
    """Return the settings with the fewest beams that change R1 by less than `tolerance`.

    R1 of the reflections above 3 sigma in a few stretches of the scan, structure, orientation
    and thickness fixed and the scale fitted, is compared with that of the largest feasible set
    of beams. The cut-offs named in `free` are chosen, s_max (A^-1) first; the others stay.
    """
    part = validation.keep_blocks(problem, few_blocks(problem))
    if "g_max" in free:
        settings = dataclasses.replace(settings, g_max=G_MAX[0])
    if "s_max" in free:
        settings = dataclasses.replace(settings, s_max=feasible_s_max(part, settings))
    finest = agreement(part, settings, device)
    rungs = [compare(_label(settings), finest, finest)]
    for name, ladder in (("s_max", S_MAX), ("g_max", G_MAX)):
        if name not in free:
            continue
        below = [x for x in ladder if x < getattr(settings, name)]
        values = [dataclasses.replace(settings, **{name: x}) for x in below]
        settings, tried = descend(
            settings,
            [(_label(v), v) for v in values],
            lambda v: agreement(part, v, device),
            finest,
            tolerance,
        )
        rungs += tried
    return settings, rungs


def _label(settings: ModelSettings) -> str:
    return f"g_max {settings.g_max:g}, s_max {settings.s_max:g}"


def feasible_s_max(problem: Problem, settings: ModelSettings) -> float:
    """Return the largest s_max (A^-1) of the ladder with which no block is too large."""
    kept = relevance_of(problem, settings, CrystalModel(problem.structure, settings.valence))
    for s_max in S_MAX:
        found = beams.choose_beams(
            problem.structure, problem.scan, problem.observations, settings.g_max, s_max, kept
        )
        if int(found.counts.max()) <= FEASIBLE_BEAMS:
            return s_max
    return S_MAX[-1]


def choose_sampling(
    sampled: Callable[[float], Problem],
    settings: ModelSettings,
    tolerance: float,
    device: str = "cpu",
) -> tuple[float, list[Rung]]:
    """Return the coarsest step of the rotation (degree) that changes R1 by less than `tolerance`.

    `sampled` makes the problem of a step. R1 is that of `choose_cutoffs`, against the finest.
    """
    finest_step, *coarser = SAMPLING_STEPS
    problem = sampled(finest_step)
    chosen = few_blocks(problem)
    finest = agreement(validation.keep_blocks(problem, chosen), settings, device)
    step, rungs = descend(
        finest_step,
        [(_step_label(step), step) for step in coarser],
        lambda step: agreement(validation.keep_blocks(sampled(step), chosen), settings, device),
        finest,
        tolerance,
    )
    return step, [compare(_step_label(finest_step), finest, finest), *rungs]


def _step_label(step: float) -> str:
    return f"step {step:.3g} degrees"


def format_rungs(rungs: list[Rung]) -> str:
    """Return a table of the rungs for the log."""
    head = f"  {'':<28} {'beams':>7} {'R1(obs)':>9} {'change':>9} {'R(calc)':>9}"
    lines = [
        f"  {r.label:<28} {r.beams:7.0f} {r.r1:9.4f} {r.change:9.4f} {r.r_calc:9.4f}" for r in rungs
    ]
    return "\n".join([head, *lines])
