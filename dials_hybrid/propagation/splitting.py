"""Splitting propagator with a hand-written adjoint.

Within a block the beams are fixed, so the potential matrix is common to all orientation
samples and only the diagonal differs. One step of a composition

    exp(2 pi i a1 h S) exp(2 pi i b1 h V) exp(2 pi i a2 h S) ...

costs, per stage, one matrix product for all samples together and one elementwise product.
The exponentials of V are formed once per block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from . import compiled_stages, stages
from .base import DepthGrid, Moves, Probe, Propagator, Size, Work
from .kernels import can_compile
from .series import scaled
from .stages import Plan
from .strips import Cut, in_chunks


def _palindrome(a: tuple, b: tuple) -> tuple[tuple, tuple]:
    """Complete the first coefficients of a symmetric scheme that starts and ends with S."""
    if len(a) > len(b):  # the middle stage is a phase
        return (*a, *reversed(a[:-1])), (*b, *reversed(b))
    return (*a, *reversed(a)), (*b, *reversed(b[:-1]))


def _blanes_moan_4() -> tuple[tuple, tuple]:
    """S. Blanes & P. C. Moan 2002, doi:10.1016/S0377-0427(01)00492-7, order 4, 6 stages."""
    a = (0.0792036964311957, 0.353172906049774, -0.0420650803577195)
    b = (0.209515106613362, -0.143851773179818)
    return _palindrome((*a, 1 - 2 * sum(a)), (*b, 0.5 - sum(b)))


def _aba_864() -> tuple[tuple, tuple]:
    """ABA(8,6,4), 7 stages, for |V| << |S|.

    S. Blanes, F. Casas, A. Farres, J. Laskar, J. Makazaga & A. Murua 2013,
    doi:10.1016/j.apnum.2013.01.003.
    """
    a = (0.0711334264982231177779, 0.241153427956640098736, 0.521411761772814789212)
    b = (0.183083687472197221962, 0.310782859898574869508, -0.0265646185119588006972)
    return _palindrome((*a, 0.5 - sum(a)), (*b, 1 - 2 * sum(b)))


def _aba_104() -> tuple[tuple, tuple]:
    """ABA(10,4), 7 stages, for |V| << |S|: same source as ABA(8,6,4).

    Of all here the most accurate at steps that leave errors of 1e-5 to 1e-3; ABA(8,6,4) is
    better at shorter ones.
    """
    a = (0.04706710064597250613, 0.1847569354170881069, 0.2827060056798362053)
    b = (0.1188819173681970200, 0.2410504605515015658, -0.2732866667053238061)
    return _palindrome((*a, 0.5 - sum(a)), (*b, 1 - 2 * sum(b)))


def _aba_1064() -> tuple[tuple, tuple]:
    """ABA(10,6,4), 8 stages, for |V| << |S|; source as for ABA(8,6,4)."""
    a = (0.03809449742241219546, 0.1452987161169137493, 0.2076276957255412507)
    a = (*a, 0.4359097036515261592)
    b = (0.09585888083707521061, 0.2044461531429987807, 0.2170703479789911017)
    return _palindrome((*a, 1 - 2 * sum(a)), (*b, 0.5 - sum(b)))


def _strang() -> tuple[tuple, tuple]:
    """G. Strang 1968, doi:10.1137/0705041, order 2, one stage."""
    return (0.5, 0.5), (1.0,)


def _saba_3() -> tuple[tuple, tuple]:
    """SABA3, 3 stages, for |V| << |S|: V where Gauss and Legendre integrate over a step.

    R. I. McLachlan 1995, doi:10.1007/BF01737165; J. Laskar & P. Robutel 2001,
    doi:10.1023/A:1012098603882. The error is of order |V|^2 h^2.
    """
    node = math.sqrt(15) / 10
    return (0.5 - node, node, node, 0.5 - node), (5 / 18, 4 / 9, 5 / 18)


SCHEMES = {
    "strang": _strang(),
    "saba_3": _saba_3(),
    "blanes_moan_4": _blanes_moan_4(),
    "aba_864": _aba_864(),
    "aba_104": _aba_104(),
    "aba_1064": _aba_1064(),
}


# intensities to a few thousandths, their derivatives to two hundredths, where ABA(10,4) with the
# same steps has max |dI| of 1e-4
LIGHT = "saba_3"


@lru_cache(maxsize=64)
def make_plan(scheme: str, grid: DepthGrid, substeps: int) -> Plan:
    """Return the stage table of a scheme of SCHEMES with `substeps` steps between depths."""
    a, b = SCHEMES[scheme]
    h = grid.step / substeps
    # |psi|^2 does not see a trailing phase: it joins the first phase of the next step; at the
    # very start, where one beam alone is filled, the longer phase is a global one
    phase_times = [round(t, 12) for t in (h * (a[0] + a[-1]), *(h * t for t in a[1:-1]))]
    matrix_times = [round(h * t, 12) for t in b]
    phases, matrices = tuple(dict.fromkeys(phase_times)), tuple(dict.fromkeys(matrix_times))
    stages = tuple(
        (phases.index(s), matrices.index(t), matrix_times[:i].count(t))
        for i, (s, t) in enumerate(zip(phase_times, matrix_times, strict=True))
    )
    return Plan(phases, matrices, stages, grid.count * substeps, substeps)


class _Sweep(torch.autograd.Function):
    """Profiles of a plan, probe, potential and excitation, with the adjoint of the stage loop.

    The adjoint needs the waves before each matrix; they are kept. Each core works on a strip of its
    own.
    """

    @staticmethod
    def forward(ctx, plan: Plan, probe: Probe, potential: Tensor, excitation: Tensor) -> Tensor:
        """Return the profiles (F, B, D); keeps the waves if a gradient will be asked for."""
        keep = any(ctx.needs_input_grad)
        room = compiled_stages if can_compile(potential) else stages
        cut = Cut.of(excitation)
        with cut.cores_beside():
            exponentials = room.factors_of(potential, plan.matrices, cut.beside)
            factors = cut.split(exponentials.ahead(), 1)
            given = zip(*cut.parts(probe, excitation), strict=True)
            strips = [stages.Strip.of(plan, *own) for own in given]
            pairs = zip(strips, factors, strict=True)
            profiles, waves = cut.swept([room.carry(*pair, keep) for pair in pairs])
        if keep:
            ctx.kept = room, cut, exponentials, strips, waves
            ctx.dtype = potential.dtype
        return cut.joined(profiles, 0)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradients by the potential (F, N, N) and excitation errors (F, N, T)."""
        room, cut, exponentials, strips, waves = ctx.kept
        with cut.cores_beside():
            factors = cut.split(exponentials.back(), 1)
            work = zip(strips, factors, waves, cut.split(grad, 0), strict=True)
            slopes, flow = cut.swept([room.adjoint(*own) for own in work])
            by_potential = exponentials.adjoint(cut.joined(slopes, 1), ctx.dtype)
        return None, None, by_potential.mH, torch.cat([x.mT for x in flow], cut.dim)


_POWERS = 24  # products in the series of an exponential's derivative, twice those of its own


@dataclass(frozen=True)
class Splitting(Propagator):
    """Splitting integrator; `substeps` steps between neighbouring depths of the grid."""

    scheme: str = "aba_104"
    substeps: int = 1

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""
        plan = make_plan(self.scheme, grid, self.substeps)
        return in_chunks(
            lambda probe, v, s: _Sweep.apply(plan, probe, v, s), potential, excitation, probe
        )

    def light(self) -> Splitting:
        """Return the method with the same steps, of fewer stages if it can be."""
        if len(SCHEMES[LIGHT][1]) < len(SCHEMES[self.scheme][1]):
            return replace(self, scheme=LIGHT)
        return self

    def _stages(self, grid: DepthGrid) -> int:
        return grid.count * self.substeps * len(SCHEMES[self.scheme][1])

    def gradient_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class: the waves of every stage, and powers of the potential."""
        steps = grid.count * self.substeps
        kept = 1 + 2 * stages.steps_at_once(size.samples, steps) / steps
        waves = (kept * self._stages(grid) + 10) * size.beams + 4 * grid.count * size.slots
        return 50 * size.beams**2 + waves * size.samples

    def tangent_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class: derivatives of powers of the potential, and waves."""
        return 38 * size.beams**2 + (6 * size.beams + 5 * size.slots) * size.samples

    def operations(self, work: Work, grid: DepthGrid) -> float:
        """See the base class: of complex waves in every stage, and of the powers of V."""
        directions = 0.0 if work.directions is None else work.directions
        powers = _POWERS * (directions + 0.5) * (0.25 if work.real else 1)
        waves = work.samples * self._stages(grid) * work.products
        beams = work.beams.double()
        return float(8 * (beams**2 * waves + powers * beams**3).sum())

    @torch.no_grad()
    def tangents(
        self, potential: Tensor, excitation: Tensor, moves: Moves, probe: Probe, grid: DepthGrid
    ) -> tuple[Tensor, Tensor]:
        """Return the profiles (F, B, D) and their derivatives (P + Q, F, B, D) along `moves`.

        Forward mode: the derivative waves travel beside the waves themselves. For few
        directions this costs less than one adjoint sweep per observation.
        """
        plan = make_plan(self.scheme, grid, self.substeps)
        room = compiled_stages if can_compile(potential) else stages
        exponentials = room.Factors.of(scaled(potential, plan.matrices), plan.matrices, 1)
        strip = stages.Strip.of(plan, probe, excitation)
        moved = exponentials.series.derivatives(moves.potential)
        return room.forward(strip, exponentials.ahead(), moved, moves.excitation)
