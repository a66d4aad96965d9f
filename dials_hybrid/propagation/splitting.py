"""Splitting propagator with a hand-written adjoint.

Within a block the beams are fixed, so the potential matrix is common to all orientation
samples and only the diagonal differs. One step of a composition

    exp(2 pi i a1 h S) exp(2 pi i b1 h V) exp(2 pi i a2 h S) ...

costs, per stage, one matrix product for all samples together and one elementwise product.
The exponentials of V are formed once per block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import DepthGrid, Moves, Probe, Propagator, Size, Work, start_waves
from .series import Series
from .strips import Cut, in_chunks, intensities


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


@dataclass(frozen=True)
class Plan:
    """Stage table of one step; the last phase of a step merges with the first of the next."""

    phases: tuple  # distinct phase times, A
    matrices: tuple  # distinct matrix times, A
    stages: tuple  # of each stage: phase index, matrix index, how often that matrix came before
    steps: int  # steps in all
    steps_per_depth: int

    @property
    def uses(self) -> tuple:
        """How often a step uses each distinct matrix."""
        return tuple(sum(m == k for _, m, _ in self.stages) for k in range(len(self.matrices)))

    def times_before(self, matrix: int) -> list[float]:
        """Return the times (A) of the phases right before each use of a matrix in a step."""
        return [self.phases[phase] for phase, m, _ in self.stages if m == matrix]


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


def phase_factors(excitation: Tensor, times: tuple) -> list[Tensor]:
    """Return exp(2 pi i t S) for each t (A) in `times`."""
    angles = [2 * math.pi * t * excitation for t in times]
    return [torch.complex(angle.cos(), angle.sin()) for angle in angles]


@dataclass(frozen=True)
class _Strip:
    """Some blocks or some samples of a sweep, which do not know of the others.

    Waves are rows, (F, T, N): a stage multiplies them by a phase and then by the transposed
    exponential from the right, of which the identity is apart.
    """

    plan: Plan
    values: Tensor  # exponentials less the identity (times, F, N, N)
    phases: list  # (F, T, N)
    waves: Tensor  # psi(0) (F, T, N)
    index: Tensor  # (F, T, B) picks the slots' beams
    weight: Tensor  # (F, T, B)

    @classmethod
    def of(cls, plan: Plan, values: Tensor, probe: Probe, excitation: Tensor) -> _Strip:
        waves = start_waves(excitation, probe.incident, values.dtype).mT.contiguous()
        return cls(
            plan=plan,
            values=values,
            phases=phase_factors(excitation.mT.contiguous(), plan.phases),
            waves=waves,
            index=probe.beam[:, None].expand(-1, waves.shape[1], -1),
            weight=probe.weight.mT.to(waves.dtype.to_real()),
        )

    def carry(self, transposed: Tensor, keep: bool) -> tuple[list[Tensor], Tensor]:
        """Return the waves before each matrix, and at each depth those asked for (F, D, T, B).

        The former are those of the last step alone unless `keep`; `transposed` are the
        transposes of `values`.
        """
        plan, waves = self.plan, self.waves.clone()
        before = _room(plan, waves, plan.steps if keep else 1)
        rows = _rows(plan, _views(before))
        stages = [(self.phases[p], transposed[m]) for p, m, _ in plan.stages]
        count = plan.steps // plan.steps_per_depth
        seen = waves.new_empty(len(waves), count, *self.index.shape[1:])
        depths = seen.unbind(1)
        for step in range(plan.steps):
            row = rows[step if keep else 0]
            for turned, (phase, matrix) in zip(row, stages, strict=True):
                torch.mul(waves, phase, out=turned)
                torch.baddbmm(turned, turned, matrix, out=waves)
            if (step + 1) % plan.steps_per_depth == 0:
                out = depths[step // plan.steps_per_depth]
                torch.gather(waves, 2, self.index, out=out)
        return before, seen

    def adjoint(self, before: list[Tensor], seen: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients by the exponentials, transposed (times, F, N, N), and S (F, N, T).

        The same stages are swept backwards with the conjugate factors. The gradient by a matrix
        is a product over many stages at once.
        """
        plan, matrices = self.plan, self.values.unbind()
        source = seen.conj() * (2 * grad.mT[:, :, None] * self.weight[:, None])
        # dL = Re sum(mu dpsi), mu = conj(dL/dpsi); transposes then replace adjoints
        mu = torch.zeros_like(self.waves)
        slopes, flow = torch.zeros_like(self.values), torch.zeros_like(mu)
        group = _steps_at_once(mu.shape[1], plan.steps)
        after = _room(plan, mu, group)
        # products of several blocks into what does not lie in one piece are made one by one
        ahead = [mu.new_empty(group * uses, *mu.shape) for uses in plan.uses]
        behind, onward = (_rows(plan, views) for views in (_views(after), ahead))
        turn = self.phases[0]
        for last in range(plan.steps, 0, -group):
            first = max(0, last - group)
            for step in reversed(range(first, last)):
                row = zip(plan.stages, behind[step - first], onward[step - first], strict=True)
                for place, ((phase, matrix, _), back, on) in reversed(list(enumerate(row))):
                    torch.mul(mu, turn, out=back)
                    if place == len(plan.stages) - 1:
                        _add_source(back, self.index, source, step, plan)
                    torch.baddbmm(back, back, matrices[matrix], out=on)
                    mu, turn = on, self.phases[phase]
            mu = mu.clone()  # its room is for products now
            for matrix, uses in enumerate(plan.uses):
                waves = before[matrix][:, first * uses : last * uses]
                few = slice((last - first) * uses)
                left, right = waves.flatten(1, 2), after[matrix][:, few].flatten(1, 2)
                slopes[matrix].baddbmm_(left.mT, right)
                # Im(mu psi) is the same on both sides of the phase
                products = ahead[matrix][few].mul_(waves.transpose(0, 1)).flatten(1)
                times = flow.new_tensor(plan.times_before(matrix) * (last - first))
                flow.add_((times @ products).view_as(flow), alpha=-2 * math.pi)
        return slopes, flow.imag.mT


class _Sweep(torch.autograd.Function):
    """Profiles of a plan, probe, potential and excitation, with the adjoint of the stage loop.

    The adjoint needs the waves before each matrix; they are kept in one array per distinct
    matrix. Each core works on a strip of its own.
    """

    @staticmethod
    def forward(ctx, plan: Plan, probe: Probe, potential: Tensor, excitation: Tensor) -> Tensor:
        """Return the profiles (F, B, D); keeps the waves if a gradient will be asked for."""
        keep = any(ctx.needs_input_grad)
        series = Series.of(potential, plan.matrices)
        values = series.values()
        cut = Cut.of(excitation)
        given = zip(cut.split(values[-1], 1), *cut.parts(probe, excitation), strict=True)
        strips = [_Strip.of(plan, *part) for part in given]
        work = zip(strips, cut.split(values[-1].mT.contiguous(), 1), strict=True)
        waves = cut.each(lambda strip, transposed: strip.carry(transposed, keep), work)
        if keep:
            ctx.kept = series, values, cut, strips, waves
        pairs = zip(strips, waves, strict=True)
        return cut.joined([intensities(seen, x.weight) for x, (_, seen) in pairs], 0)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradients by the potential (F, N, N) and excitation errors (F, N, T)."""
        series, values, cut, strips, waves = ctx.kept
        work = zip(strips, waves, cut.split(grad, 0), strict=True)
        found = cut.each(lambda strip, waves, grad: strip.adjoint(*waves, grad), work)
        slopes, flow = zip(*found, strict=True)
        by_potential = series.adjoint(cut.joined(slopes, 1), values)
        return None, None, by_potential.mH, torch.cat(flow, cut.dim)


_INNER = 256  # rows from which on the gradient by a matrix runs at the full speed of products


def _steps_at_once(samples: int, steps: int) -> int:
    """Return of how many steps the waves of some samples are kept on the way back."""
    return min(max(1, _INNER // samples), steps)


def _room(plan: Plan, waves: Tensor, steps: int) -> list[Tensor]:
    """Return, for each distinct matrix, room for the waves of its stages (F, K, T, N)."""
    f, *rest = waves.shape
    return [waves.new_empty(f, steps * uses, *rest) for uses in plan.uses]


def _views(room: list[Tensor]) -> list[Sequence[Tensor]]:
    """Return, for each distinct matrix, the waves of its stages (F, T, N) one by one."""
    return [x.unbind(1) for x in room]


def _rows(plan: Plan, views: list[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Return, for each step that there is room for, the waves of its stages (F, T, N) in order."""
    steps = len(views[0]) // plan.uses[0]
    return [[views[m][k * plan.uses[m] + use] for _, m, use in plan.stages] for k in range(steps)]


def _add_source(mu: Tensor, index: Tensor, source: Tensor, step: int, plan: Plan) -> None:
    """Add to mu, in place, what the profile of this step's depth sends back, if there is one."""
    if (step + 1) % plan.steps_per_depth == 0:
        mu.scatter_add_(2, index, source[:, step // plan.steps_per_depth])


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
        kept = 1 + 2 * _steps_at_once(size.samples, steps) / steps
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
        return _forward_mode(plan, _Stages.of(plan, potential, excitation, moves), probe)


@dataclass(frozen=True)
class _Stages:
    """Factors of the stages for waves that are rows, one of each distinct time."""

    phases: list  # (F, T, 1, N)
    turns: list  # derivatives of the phases' exponents (F, T, Q, N)
    matrices: list  # transposed exponentials less the identity (F, N, N)
    changes: list  # their derivatives, side by side: (F, N, P N)

    @classmethod
    def of(cls, plan: Plan, potential: Tensor, excitation: Tensor, moves: Moves) -> _Stages:
        series = Series.of(potential, plan.matrices)
        changes = series.derivatives(moves.potential)  # (times, P, F, N, N)
        spin = 2j * math.pi * moves.excitation.permute(1, 3, 0, 2).contiguous()
        return cls(
            phases=[p[:, :, None] for p in phase_factors(excitation.mT.contiguous(), plan.phases)],
            turns=[time * spin for time in plan.phases],
            matrices=list(series.values()[-1].mT.contiguous()),
            changes=list(changes.permute(0, 2, 4, 1, 3).flatten(3)),
        )


def _forward_mode(plan: Plan, stages: _Stages, probe: Probe) -> tuple[Tensor, Tensor]:
    """Carry the waves and their derivatives (F, T, 1 + P + Q, N) through all stages."""
    f, t, q, n = stages.turns[0].shape
    p = stages.changes[0].shape[2] // n
    waves = stages.matrices[0].new_zeros(f, t, 1 + p + q, n)
    waves[torch.arange(f, device=waves.device), :, 0, probe.incident] = 1
    moved = torch.empty_like(waves)
    index = probe.beam[:, None, None].expand(-1, t, 1 + p + q, -1)
    weight = probe.weight.mT.to(stages.phases[0].dtype.to_real())[:, :, None]
    profiles, tangents = [], []
    for step in range(plan.steps):
        for phase, matrix, _ in plan.stages:
            waves[:, :, 1 + p :].addcmul_(stages.turns[phase], waves[:, :, :1])
            waves *= stages.phases[phase]
            rows = waves.flatten(1, 2)
            torch.baddbmm(rows, rows, stages.matrices[matrix], out=moved.view(f, -1, n))
            by_potential = moved.view(f, t, -1)[:, :, n : (1 + p) * n]
            by_potential.baddbmm_(waves[:, :, 0], stages.changes[matrix])
            waves, moved = moved, waves
        if (step + 1) % plan.steps_per_depth == 0:
            picked = torch.gather(waves, 3, index)
            first = picked[:, :, :1]
            products = (picked.real * first.real).addcmul_(picked.imag, first.imag)
            products = products.mul_(weight).sum(1)  # (F, 1 + P + Q, B)
            profiles.append(products[:, 0])
            tangents.append(2 * products[:, 1:].transpose(0, 1))
    return torch.stack(profiles, -1), torch.stack(tangents, -1)
