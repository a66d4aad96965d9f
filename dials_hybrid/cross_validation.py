"""Agreement with observations that a fit has not seen: held out, or left out one after another.

A few free reflections give an R factor of large error. To first order around the refined point,
what a fit to all the others would predict for a group of observations follows from the normal
matrix (PRESS; D. M. Allen 1974, doi:10.1080/00401706.1974.10489157), so that every reflection
can be left out once, at no cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import losses
from .data import Structure
from .equivalents import images, numbered
from .linear import LeastSquares

_NO_FREEDOM = 1e-8  # 1 - leverage that rounding alone leaves


def unique_groups(structure: Structure, hkl: Tensor) -> Tensor:
    """Return (R,) int: the same number for reflections that are equivalent, or mates of Friedel.

    Symmetry operators act on the indices hkl (R, 3) as h R.
    """
    every = images(structure, hkl)
    rank = numbered(torch.cat([every, -every])).amax(0)
    return torch.unique(rank, return_inverse=True)[1]


def choose_free(groups: Tensor, fraction: float, seed: int) -> Tensor:
    """Return (R,) bool: the members of a random share of the groups (R,).

    A share above zero is one group at least, unless there is no other.
    """
    names, place = torch.unique(groups, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(names), dtype=torch.bool)
    count = round(fraction * len(names))
    if fraction > 0 and len(names) > 1:
        count = max(1, count)
    chosen[torch.randperm(len(names), generator=generator)[:count]] = True
    return chosen[place]


@torch.no_grad()
def left_out(problem: LeastSquares, groups: Tensor) -> Tensor:
    """Return the intensities (R,) that fits to all working observations but a group predict for it.

    `groups` (R,) numbers the groups. Free observations were in no fit: theirs are as calculated.
    To first order: the residuals of a group with its part H of the hat matrix are (1 - H)^-1
    times those of the fit to everything. Observations that alone determine a parameter, with
    a leverage of one, are predicted as they were fitted.
    """
    cheap, weight = problem.cheap, problem.weight
    calculated, j = cheap.slopes(cheap.start())
    j = j * weight[:, None]
    information = j.T @ j + cheap.prior_matrix(cheap.start())
    covariance = torch.linalg.pinv(information, rtol=1e-12, hermitian=True)
    residual = (problem.observed - calculated) * weight
    out = calculated.clone()
    for group in torch.unique(groups).tolist():
        rows = torch.nonzero((groups == group) & (weight > 0)).flatten()
        kept = torch.eye(len(rows)).to(j) - j[rows] @ covariance @ j[rows].T
        inverse = torch.linalg.pinv(kept, atol=_NO_FREEDOM, rtol=0.0, hermitian=True)
        unseen = inverse @ residual[rows]
        out[rows] = problem.observed[rows] - unseen / weight[rows]
    return out


def merged_r1(observed: Tensor, calculated: Tensor, sigma: Tensor, f_sq, groups) -> float:
    """Return R1 of amplitudes merged over equivalents, each with its own dynamical correction.

    The merged |Fo| is |F| sqrt(k), k = sum w Io Ic / sum w Ic^2 over the members of a group with
    w = 1 / sigma^2; groups with k > 3 s.u. count. `observed` and `calculated` intensities, both in
    proportion to the diffracted ones, `sigma` and `f_sq` = |F|^2 are (R,), of the work set. NaN
    if nothing counts.
    """
    _, place = torch.unique(groups, return_inverse=True)
    weight, ic = sigma**-2, calculated

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(int(place.max()) + 1).index_add(0, place, values)

    norm = total(weight * ic.square()).clamp(min=1e-300)
    ratio = total(weight * observed * ic) / norm
    power = total(f_sq) / total(torch.ones_like(ic))
    return losses.r1(power * ratio, power, ratio > 3 / norm.sqrt())
