"""Kinematic intensities: what the data would be without multiple scattering."""

from __future__ import annotations

import torch
from torch import Tensor

from . import beams


@torch.no_grad()
def kinematic_intensities(model, reference: Tensor) -> Tensor:
    """Return |F|^2 / |dS/dphi| of every observation, (R,), on the scale of the observations.

    One scale for all, by least squares on amplitudes of the reflections with I > 3 sigma.
    `reference` gives the dtype and device.
    """
    problem = model.problem
    o, scan = problem.observations, problem.scan
    f_sq = model.crystal(o.hkl).abs().square()
    raw = f_sq / _crossing_rates(o, scan, model.wavenumber).clamp(min=1e-6)
    fo, fc = o.intensity.clamp(min=0).sqrt(), raw.sqrt()
    mask = o.observed if o.observed.any() else torch.ones_like(o.free)
    scale = (fo[mask] * fc[mask]).sum() / fc[mask].square().sum()
    return (scale.square() * raw).to(reference)


def _crossing_rates(o, scan, wavenumber: Tensor) -> Tensor:
    """|dS/dphi| in A^-1 per rad at the sample nearest to each centroid, (R,)."""
    flat_angle, blocks = scan.angle.flatten(), scan.sweep.repeat_interleave(scan.angle.shape[1])
    distance = (o.angle[:, None] - flat_angle).abs() + 1e3 * (o.sweep[:, None] != blocks)
    nearest = distance.argmin(1)
    block = nearest // scan.angle.shape[1]
    setting = scan.setting.flatten(0, 1)[nearest]
    g = torch.einsum("rij,rj->ri", setting, o.hkl.double())
    velocity = torch.linalg.cross(scan.axis[block], g)
    s0 = scan.s0[block] + 0.0
    rate = ((s0 + g) * velocity).sum(-1) / s0.norm(dim=-1)
    return rate.abs()
