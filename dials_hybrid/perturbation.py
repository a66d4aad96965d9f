"""What beams far from the Ewald sphere do to the others, to second order (Bethe potentials).

A beam w of large excitation error follows those near the sphere, psi_w = -sum_h V_wh psi_h / S_w,
and scatters back into them: V_gh becomes V_gh - sum_w V_gw V_wh / S_w (H. A. Bethe 1928,
doi:10.1002/andp.19283921704; J. M. Zuo & A. L. Weickenmeier 1995,
doi:10.1016/0304-3991(94)00190-X). V = U / 2K and S in A^-1. 1/S_w is its mean over the orientations
of a block, as the experiment has them. The current in those beams is left out of account.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .beams import BeamSet, excitation_of, lattice_points, near_sphere, obliquity, padded
from .data import Scan, Structure
from .parallel import in_threads
from .propagation.series import plain, product
from .records import Record
from .relevance import Relevance

NEAREST = 0.005  # A^-1, |S| of a beam that is left out though it is near: it is no perturbation
NEGLIGIBLE = 0.02  # part of what all of them do to the potential, of the beams that are not counted


@dataclass(frozen=True)
class Reach:
    """Which beams may act to second order: |g| <= g_max and |S| <= s_max, in A^-1.

    `wavenumber` (F,) in A^-1 is that inside the crystal. Without `relevance` all of them do.
    """

    g_max: float
    s_max: float
    wavenumber: Tensor
    relevance: Relevance | None


@dataclass(frozen=True)
class WeakBeams(Record):
    """The beams of F blocks that act to second order, padded to M."""

    hkl: Tensor  # (F, M, 3) int64, zero where padded
    valid: Tensor  # (F, M) bool
    obliquity: Tensor  # (F, M) m_w
    inverse: Tensor  # (F, M) A, mean of 1 / (S_w m_w^2); zero where padded

    @classmethod
    def of(cls, structure: Structure, scan: Scan, strong: BeamSet, reach: Reach) -> WeakBeams:
        """Choose, of the beams within reach that are not in `strong`, those that matter."""
        hkl, k = lattice_points(structure, reach.g_max), reach.wavenumber

        def of_block(block: int) -> tuple[Tensor, Tensor]:
            own = strong.hkl[block, strong.valid[block]]
            near, s = near_sphere(hkl, scan, block, k, reach.s_max)
            crossed = (s.amax(0) > 0) & (s.amin(0) < 0)
            chosen = (s.abs().amin(0) >= NEAREST) & ~crossed & ~_among(near, own)
            weak, inverse = near[chosen], (1 / s[:, chosen]).mean(0)
            if reach.relevance is not None:
                own_s = excitation_of(own, scan, block, k)
                coupling = reach.relevance.coupling(weak, own, own_s)
                matters = _leading(coupling * inverse.abs())
                weak, inverse = weak[matters], inverse[matters]
            return weak, inverse

        blocks = range(len(scan.setting))
        found = list(in_threads(of_block, blocks, torch.get_num_threads()))
        weak, inverse = (padded(list(parts)) for parts in zip(*found, strict=True))
        m = obliquity(scan, torch.arange(len(found)), weak, k)
        return cls(weak, inverse != 0, m, inverse / m.square())


def _leading(effect: Tensor) -> Tensor:
    """Return (M,) bool, true but for the smallest effects (M,) that add up to NEGLIGIBLE."""
    ascending, order = effect.sort()
    out = torch.ones_like(effect, dtype=torch.bool)
    out[order[ascending.cumsum(0) <= NEGLIGIBLE * effect.sum()]] = False
    return out


def _among(hkl: Tensor, others: Tensor) -> Tensor:
    """Return (M,) bool, the hkl (M, 3) that are among others (n, 3)."""
    reach = torch.cat([hkl, others]).abs().amax(0)
    sizes = 2 * reach + 1
    step = torch.stack([sizes[1] * sizes[2], sizes[2], torch.ones_like(sizes[2])])
    return torch.isin((hkl * step).sum(-1), (others * step).sum(-1))


def second_order(into: Tensor, back: Tensor, inverse: Tensor) -> Tensor:
    """Return -sum_w V_gw V_wh / S_w (f, N, N) in A^-1.

    `into` (f, M, N) is V_wh, `back` (f, N, M) is V_gw, `inverse` (f, M) is 1 / S_w in A.
    """
    return _SecondOrder.apply(into, back, inverse)


class _SecondOrder(torch.autograd.Function):
    """The sum without what rounding left of imaginary parts, differentiable by these as well.

    In centrosymmetric crystals those are so small that products of them are denormal numbers, which
    take two hundred times longer.
    """

    @staticmethod
    def forward(ctx, into: Tensor, back: Tensor, inverse: Tensor) -> Tensor:
        """See `second_order`."""
        dtype = torch.promote_types(into.dtype, back.dtype)
        into, back = (plain(x) if x.is_complex() else x for x in (into, back))
        ctx.save_for_backward(into, back, inverse)
        return -product(back * inverse[:, None], into).to(dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradients by `into` and `back`."""
        into, back, inverse = ctx.saved_tensors
        dtype, grad = grad.dtype, plain(grad)
        by_into = -product((back * inverse[:, None]).mH, grad)
        by_back = -product(grad, into.mH) * inverse[:, None]
        return by_into.to(dtype), by_back.to(dtype), None
