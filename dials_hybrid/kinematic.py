"""Kinematic intensities: what the data would be without multiple scattering."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .crystal import reciprocal_length_sq
from .losses import amplitudes, r1

_REACH = 3.0  # s.d. of a peak, of the window to either side


@torch.no_grad()
def kinematic_intensities(model, reference: Tensor) -> Tensor:
    """Return kinematic intensities of every observation, (R,), as their authors would fit them.

    |F|^2 with one scale and one overall B, by least squares on amplitudes with I > 3 sigma;
    with the Lorentz factor 1 / |dS/dphi| or without it, whichever agrees better (multiple
    scattering weakens strong low-angle reflections, which leaving it out imitates).
    `reference` gives the dtype and device.
    """
    problem = model.problem
    o, scan = problem.observations, problem.scan
    f_sq = model.crystal(o.hkl).abs().square() * recorded(o, scan)
    s_sq = reciprocal_length_sq(problem.structure.cell, o.hkl) / 4
    rate = _crossing_rates(o, scan, model.wavenumber).clamp(min=1e-6)
    fits = [_fitted(o, raw, s_sq) for raw in (f_sq, f_sq / rate)]
    return min(fits, key=lambda fit: r1(o.intensity, fit, o.observed)).to(reference)


def recorded(o, scan) -> Tensor:
    """Return the part of each kinematic peak that the scan recorded, (R,): 1 unless it is cut.

    The window of integration reaches _REACH s.d. of the peak to either side of the centroid; its
    shorter side ends at an end of the scan where that cuts it.
    """
    half = scan.sample_width / 2
    first = (scan.angle - half)[o.link_block, o.link_first]
    last = (scan.angle + half)[o.link_block, o.link_last]
    start, end = o.angle.new_full((2, len(o.angle)), math.inf)
    start = start.scatter_reduce(0, o.link_observation, first, "amin")
    end = (-end).scatter_reduce(0, o.link_observation, last, "amax")
    before, after = o.angle - start, end - o.angle
    share = recorded_fraction(o.angle, torch.maximum(before, after), _REACH, (start, end))
    # ends of windows are those of samples
    cut = (before - after).abs() > 4 * half.max()
    at_end = torch.zeros_like(cut)
    for index in torch.unique(o.sweep):
        angles = scan.angle[scan.sweep == index]
        mine = (start < angles.min()) | (end > angles.max())
        at_end |= mine & (o.sweep == index)
    return torch.where(cut & at_end, share, 1.0)


def recorded_fraction(centre: Tensor, half: Tensor, n_sigma: float, limits: tuple) -> Tensor:
    """Return the partiality (R,): the share of each reflection's profile that lies in the limits.

    Those are of the scan, for all or for each. The profile is the Gaussian of width half / n_sigma
    that DIALS assumes (W. Kabsch 2010, doi:10.1107/S0907444909047374), cut off at the ends of the
    window centre +- half.
    """
    start, end = limits
    sigma = half / n_sigma * math.sqrt(2)
    low = ((centre - half).clamp(min=start) - centre) / sigma
    high = ((centre + half).clamp(max=end) - centre) / sigma
    mass = (torch.erf(high) - torch.erf(low)) / (2 * math.erf(n_sigma / math.sqrt(2)))
    whole = (centre - half >= start) & (centre + half <= end)
    return torch.where(whole, 1.0, mass.clamp(min=0))


def _fitted(o, raw: Tensor, s_sq: Tensor) -> Tensor:
    """Scale and overall B by least squares on amplitudes, B searched in steps of 0.1 A^2."""
    mask = o.observed if o.observed.any() else torch.ones_like(o.free)
    fo = amplitudes(o.intensity)
    best, best_cost = raw, float("inf")
    for b in torch.arange(-3.0, 3.05, 0.1).tolist():
        fc = raw.sqrt() * torch.exp(-b * s_sq)
        scale = (fo[mask] * fc[mask]).sum() / fc[mask].square().sum()
        cost = float((fo - scale * fc)[mask].square().sum())
        if cost < best_cost:
            best, best_cost = (scale * fc).square(), cost
    return best


def _crossing_rates(o, scan, wavenumber: Tensor) -> Tensor:
    """|dS/dphi| in A^-1 per rad at the sample nearest to each centroid, (R,)."""
    nearest = _nearest_samples(o, scan)
    block = nearest // scan.angle.shape[1]
    setting = scan.setting.flatten(0, 1)[nearest]
    g = torch.einsum("rij,rj->ri", setting, o.hkl.double())
    velocity = torch.linalg.cross(scan.axis[block], g)
    s0 = scan.s0[block] + 0.0
    rate = ((s0 + g) * velocity).sum(-1) / s0.norm(dim=-1)
    return rate.abs()


def _nearest_samples(o, scan) -> Tensor:
    """Index into the flattened samples (F T) of the one nearest to each centroid, (R,)."""
    angle, sweep = scan.angle.flatten(), scan.sweep.repeat_interleave(scan.angle.shape[1])
    out = torch.zeros_like(o.sweep)
    for index in torch.unique(o.sweep):
        rows = torch.nonzero(o.sweep == index).flatten()
        mine = torch.nonzero(sweep == index).flatten()
        mine = mine[torch.argsort(angle[mine], stable=True)]
        there, wanted = angle[mine], o.angle[rows]
        above = torch.searchsorted(there, wanted).clamp(max=len(mine) - 1)
        below = (above - 1).clamp(min=0)
        nearer = (wanted - there[below]).abs() <= (there[above] - wanted).abs()
        out[rows] = mine[torch.where(nearer, below, above)]
    return out


def powers(model) -> Tensor | None:
    """Return |U_g / 2K|^2 (R,) in A^-2 of every observation; None where no nuisance term asks."""
    if not model.nuisance.asks_power:
        return None
    v = model.optical()(-model.problem.observations.hkl) * model.matrix.factor  # M_g0 = U_-g
    return v.real.square() + v.imag.square()


@torch.no_grad()
def power_slopes(model) -> Tensor:
    """Return the derivatives (R, P) of `powers` by the free parameters of the structure."""
    mates = -model.problem.observations.hkl
    v = model.optical()(mates) * model.matrix.factor
    return 2 * (v.conj() * model.structure_factor_moves(mates)).real.T
