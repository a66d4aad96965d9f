"""What the data say of every structure factor: the gradient of their misfit.

A kinematic difference map takes its phases from the model. A dynamical intensity depends on many
structure factors and on their phases, so the residuals themselves tell how each F(g) should
change, also where g was never measured: by the gradient

    G(g) = sum_i w_i (Io_i - Ic_i) dI_i/dF(g),   w_i = 1 / sigma_i^2,

the steepest descent of half the chi squared, against the curvature that one gets from random
signs e_i = +-1, since the mean of |sum_i e_i sqrt(w_i) dI_i/dF(g)|^2 is sum_i w_i |dI_i/dF(g)|^2
(M. F. Hutchinson 1989, doi:10.1080/03610918908812806). An observation counts by its error and
by how strongly it depends on F(g): a weak beam fed by others does not, however large its Io/Ic.
The squares of PARTS sums, each of some neighbouring frames alone, have the same mean in total.
Where an observation lies in one frame they cost two to four sweeps over the blocks together, the
fewer the more frames there are, and are as good as SUMS sums over everything, of which each costs a
sweep (`python -m benchmarks.difference_map`). A reflection of DIALS crosses many blocks.

Gradient over curvature is the direction in which all F(g) should change. How far is tried: an
intensity is no linear function of F(g), and where much is missing a linear step goes wrong by a
factor of two either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .batches import Portions
from .crystal import reciprocal_length_sq
from .data import Fourier, Result, Structure
from .equivalents import images, numbered

SUMS = 6  # of random signs over all observations
PARTS = 24  # of the observations in their place, where each lies in one frame
_SHELL = 40  # F(g) of about the same |g| whose curvatures are averaged
_SHELL_SUMS = 2  # that this average counts as
TRIALS = 4  # lengths of the change that are tried
_LONGEST = 3.0  # times the last trial that the next one may be


def of_result(model, passes, fidelity, result: Result) -> Fourier:
    """Return what the residuals of the work set say of every structure factor at a result.

    `passes` makes the passes of the model, at a fidelity or, None, its own.
    """
    o = model.problem.observations
    calculated, sigma = (x.to(o.intensity) for x in (result.calculated, result.sigma_weight))
    weight = seeds((o.intensity - calculated) / sigma, ~o.free / sigma, shares(model.portions))
    smooth = model.scale(model.scale_matrix).detach()
    weight = weight * (result.scale.to(smooth) / smooth)  # what the nuisance terms change
    gradients = passes.potential_gradients(weight, fidelity=fidelity)
    coarser = model.coarser(fidelity)
    terms = fourier(coarser, gradients)

    def misfit(length: float) -> float:
        moved = table_change(coarser, length * terms.change).cpu()
        with torch.no_grad():
            profiles = passes.value_profiles(fidelity=fidelity, moved=moved)
            residual = (o.intensity - coarser.intensities(profiles)) / sigma
        return 0.5 * float(residual[~o.free].square().sum())

    slope = -float((terms.gradient[0].conj() * terms.change).real.sum())
    return terms.replace(change=best_length(misfit, slope) * terms.change)


def shares(portions: Portions) -> Tensor:
    """Return what each observation counts in each random sum, (K, R); its mean square is one.

    That is one in SUMS of them, or the root of PARTS in the one of PARTS that its frame is in.
    """
    observation = portions.observation.cpu()
    count = int(observation.max()) + 1
    if _divided(portions):
        return torch.ones(SUMS, count, dtype=torch.float64)
    place = torch.empty(count, dtype=torch.long)
    place[observation[torch.argsort(portions.block.cpu(), stable=True)]] = torch.arange(count)
    own = place * PARTS // count == torch.arange(PARTS)[:, None]
    return math.sqrt(PARTS) * own.double()


def sweeps(portions: Portions) -> int:
    """Return about how often `gradients` sweeps each block for the gradient and these sums."""
    return 1 + (SUMS if _divided(portions) else 2)


def _divided(portions: Portions) -> bool:
    """Whether some observations lie in several frames."""
    return len(portions.observation) > int(portions.observation.max()) + 1


def seeds(residual: Tensor, root_weight: Tensor, share: Tensor) -> Tensor:
    """Return the weights (1 + K, R) of dI_i/dF in the gradient and in its random sums.

    Residuals (R,) are in units of their sigma; roots of the weights (R,) are zero where an
    observation is not to count; `share` (K, R) is that of `shares`. The signs are the same in every
    run.
    """
    generator = torch.Generator().manual_seed(0)
    signs = (torch.randint(0, 2, share.shape, generator=generator) * 2 - 1).to(residual)
    return torch.cat([residual[None], signs * share.to(residual)]) * root_weight


def gradients(model, weight: Tensor) -> Tensor:
    """Return sum_i weight_i dI_i/dt of the entries t of the potential table, (K, M + 1).

    `weight` is (K, R); a batch of blocks without weights in a row has no part in it. A complex
    gradient is dI/dRe t + i dI/dIm t; where t is real by symmetry, dI/dRe t alone. Several
    processes sum in another order than one, so that the last digits may differ.
    """
    table, rotation = model.potential_table().detach(), model.orientation().detach()
    weight = weight.to(table.device, torch.float64)
    portions = model.portions
    scaled = (weight * model.scale(model.scale_matrix).detach())[:, portions.observation]
    thickness = model.thickness().detach()[portions.block]
    total = table.new_zeros(len(weight), len(table))

    def propagate(batch) -> tuple[Tensor, Tensor]:
        own, portion = (table.real if model.matrix.real else table).clone(), batch.portion
        own.requires_grad_()
        weights, rows = scaled[:, portion], scaled[:, portion].any(1).nonzero()[:, 0]
        found = table.new_zeros(len(rows), len(table))
        if len(rows):
            with torch.enable_grad():
                profiles = model.batch_profiles(batch, own, rotation)
            for place, row in zip(found, rows, strict=True):
                seed = weights[row, :, None] * thickness[portion]
                place.copy_(torch.autograd.grad(profiles, own, seed, retain_graph=True)[0])
        return rows, found

    for rows, found in model.of_batches(propagate, model.workers):
        total[rows] += found  # in the order of the batches, so that every run sums alike
    return torch.view_as_complex(model.share.collect(torch.view_as_real(total)))


@torch.no_grad()
def fourier(model, table_gradients: Tensor) -> Fourier:
    """Return structure factors and gradients by them, as far out as there are observations.

    The change of all of them has the length of one linear step.
    """
    structure, inside = model.problem.structure, _inside(model)
    hkl = model.matrix.couplings.hkl[inside]
    gradient = table_gradients[:, :-1][:, inside] * model.matrix.factor
    return Fourier(
        hkl=hkl,
        f_calc=model.crystal(hkl),
        gradient=gradient,
        change=linear_change(structure, hkl, gradient),
    )


def table_change(model, change: Tensor) -> Tensor:
    """Return the change (M + 1,) in A^-1 of the model's potential table by that of `fourier`."""
    inside = _inside(model)
    moved = change.new_zeros(len(inside) + 1)
    moved[:-1][inside] = change * model.matrix.factor
    return moved


def _inside(model) -> Tensor:
    """Return which couplings (M,) lie within the observations, the origin left out."""
    cell = model.problem.structure.cell
    g_sq = reciprocal_length_sq(cell, model.matrix.couplings.hkl)
    limit = reciprocal_length_sq(cell, model.problem.observations.hkl).max() * (1 + 1e-9)
    return (g_sq > 0) & (g_sq <= limit)


def linear_change(structure: Structure, hkl: Tensor, gradient: Tensor) -> Tensor:
    """Return the change (M,) in A of the structure factors that a gradient (1 + P, M) asks for.

    The gradient of each set of equivalents over its curvature, which is damped by its median, so
    that nothing is made of F on which the data hardly depend. The length follows from the
    curvature along that direction.
    """
    orbits = _Orbits(structure, hkl)
    summed = orbits.summed(gradient)
    # of a centric reflection one component can change, of others two
    curvature = summed[1:].abs().square().mean(0) / (2 - orbits.centric.double())
    g_sq = reciprocal_length_sq(structure.cell, hkl)
    curvature = _steadied(curvature, g_sq, orbits.present, len(gradient) - 1)
    typical = curvature[orbits.present].median().clamp(min=1e-30)
    change = torch.where(orbits.present, summed[0] / (curvature + typical), 0.0)
    along = (gradient.conj() * change).real.sum(1)
    return change * along[0] / along[1:].square().mean().clamp(min=1e-30)


def _steadied(curvature: Tensor, g_sq: Tensor, present: Tensor, sums: int) -> Tensor:
    """Return curvatures (M,) of few random sums, each drawn to the mean of its shell in |g|."""
    # equivalents, whose |g| differ by rounding, stay together
    _, same, counts = torch.unique(g_sq.round(decimals=9), return_inverse=True, return_counts=True)
    shell = ((counts.cumsum(0) - counts) // _SHELL)[same]
    total = torch.bincount(shell, curvature * present)
    mean = (total / torch.bincount(shell, present.double()).clamp(min=1))[shell]
    return (sums * curvature + _SHELL_SUMS * mean) / (sums + _SHELL_SUMS)


class _Orbits:
    """The equivalents of reflections hkl (M, 3), which hold both mates of each, others or not."""

    def __init__(self, structure: Structure, hkl: Tensor):
        hkl = hkl.to(structure.sym_rot.device)
        moved = images(structure, hkl)
        own, *wanted = numbered(torch.cat([hkl[None], moved, -hkl[None]]))
        key, order = own.sort()
        found = torch.searchsorted(key, torch.stack(wanted)).clamp(max=len(key) - 1)
        *rotated, self.mates = order[found]  # (M,) of -h
        self.place = torch.stack(rotated)  # (S, M) of h R
        # F(h) = exp(2 pi i h.t) F(h R)
        turn = 2 * math.pi * (structure.sym_trans @ hkl.double().T)
        there = (hkl[self.place] == moved).all(-1)
        self.phase = torch.polar(there.double(), turn)
        same, opposite = ((moved == sign * hkl).all(-1) for sign in (1, -1))
        self.copies = (same.sum(0) + opposite.sum(0)).double()
        self.centric = opposite.any(0)
        # the phases of an absent reflection's copies cancel
        self.present = (self.phase * same).sum(0).abs() > 0.5

    def summed(self, values: Tensor) -> Tensor:
        """Return the sums (..., M) over equivalents, brought to the phase of each member."""
        sums = (self.phase * values[..., self.place]).sum(-2)
        return (sums + sums[..., self.mates].conj()) / self.copies


def best_length(misfit: Callable[[float], float], slope: float) -> float:
    """Return the factor on a change at which a misfit is least, zero if none lowers it.

    `slope` < 0 is that of the misfit at zero. Each of TRIALS calls goes to where a parabola
    through start, slope and the last trial has its minimum; the first to one.
    """
    start, length = misfit(0.0), 1.0
    best, least = 0.0, start
    for _ in range(TRIALS):
        value = misfit(length)
        if value < least:
            best, least = length, value
        bend = (value - start - slope * length) / length**2
        further = -slope / (2 * bend) if bend > 0 else math.inf
        length = min(further, _LONGEST * length)
    return best
