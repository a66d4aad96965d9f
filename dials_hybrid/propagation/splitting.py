"""Splitting propagator with a hand-written adjoint.

Within a block the beams are fixed, so the potential matrix is common to all orientation
samples and only the diagonal differs. One step of a composition

    exp(2 pi i a1 h S) exp(2 pi i b1 h V) exp(2 pi i a2 h S) ...

costs, per stage, one matrix product for all samples together and one elementwise product.
The exponentials of V are formed once per block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import DepthGrid, Probe, start_waves


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
    doi:10.1016/j.apnum.2013.01.003, table 3.
    """
    a = (0.0711334264982231177779, 0.241153427956640098736, 0.521411761772814789212)
    b = (0.183083687472197221962, 0.310782859898574869508, -0.0265646185119588006972)
    return _palindrome((*a, 0.5 - sum(a)), (*b, 1 - 2 * sum(b)))


def _aba_104() -> tuple[tuple, tuple]:
    """ABA(10,4), 7 stages, for |V| << |S|; source as for ABA(8,6,4)."""
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


SCHEMES = {
    "strang": _strang(),
    "blanes_moan_4": _blanes_moan_4(),
    "aba_864": _aba_864(),
    "aba_104": _aba_104(),
    "aba_1064": _aba_1064(),
}


def _series(potential: Tensor, times: tuple) -> tuple[int, int]:
    """Return (order, halvings) of a Taylor series that reaches the precision of the dtype."""
    norm = 2 * math.pi * float(potential.detach().abs().sum(-1).max()) * max(map(abs, times))
    halvings = max(0, math.ceil(math.log2(norm))) if norm > 1 else 0
    norm /= 2**halvings
    order, term = 1, norm
    while term > torch.finfo(potential.dtype).eps / 4:
        order += 1
        term *= norm / order
    return order, halvings


def exponentials(potential: Tensor, times: tuple) -> list[Tensor]:
    """Return exp(2 pi i t V) (F, N, N) for each t (A) in `times`, by one shared Taylor series.

    V is small against 1/t here, so a short series reaches machine precision at the speed of
    matrix products, and needs no eigenvalues: degenerate ones and an absorptive
    (non-Hermitian) V are no special cases. Differentiable.
    """
    order, halvings = _series(potential, times)
    x = 2j * math.pi * potential
    powers = [x]
    while len(powers) < order:
        powers.append(torch.bmm(powers[-1], x))
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    out = []
    for t in times:
        series = _polynomial(powers, t / 2**halvings, identity)
        for _ in range(halvings):
            series = torch.bmm(series, series)
        out.append(series)
    return out


def _polynomial(powers: list[Tensor], t: float, first: Tensor) -> Tensor:
    """Return first + sum t^k / k! powers[k - 1]."""
    out, factor = first, 1.0
    for k, power in enumerate(powers, start=1):
        factor *= t / k
        out = out + factor * power
    return out


def exponential_tangents(potential: Tensor, tangents: Tensor, times: tuple) -> list[Tensor]:
    """Return the derivatives (P, F, N, N) of `exponentials` along `tangents` (P, F, N, N).

    The same series, differentiated term by term.
    """
    order, halvings = _series(potential, times)
    x, dx = 2j * math.pi * potential, 2j * math.pi * tangents
    power, moved = x, [dx]
    while len(moved) < order:
        moved.append(moved[-1] @ x + power @ dx)
        power = torch.bmm(power, x)
    out = []
    for t in times:
        step = t / 2**halvings
        derivative = _polynomial(moved, step, torch.zeros_like(dx))
        value = exponentials(potential, (step,))[0] if halvings else None
        for _ in range(halvings):
            derivative = derivative @ value + value @ derivative
            value = torch.bmm(value, value)
        out.append(derivative)
    return out


@dataclass(frozen=True)
class Plan:
    """Stage table of one step: phase index, matrix index; the last phase merges with the next."""

    phases: tuple  # distinct phase times, A
    matrices: tuple  # distinct matrix times, A
    stages: tuple  # (phase index, matrix index) of each stage
    steps: int  # steps in all
    steps_per_depth: int


def make_plan(scheme: str, grid: DepthGrid, substeps: int) -> Plan:
    """Return the stage table of a scheme of SCHEMES with `substeps` steps between depths."""
    a, b = SCHEMES[scheme]
    h = grid.step / substeps
    # |psi|^2 does not see a trailing phase: it joins the first phase of the next step; at the
    # very start, where one beam alone is filled, the longer phase is a global one
    times = [h * (a[0] + a[-1]), *(h * t for t in a[1:-1])]
    phases = tuple(dict.fromkeys([round(t, 12) for t in times]))
    matrices = tuple(dict.fromkeys([round(h * t, 12) for t in b]))
    stages = tuple(
        (phases.index(round(t, 12)), matrices.index(round(h * s, 12)))
        for t, s in zip(times, b, strict=True)
    )
    return Plan(phases, matrices, stages, grid.count * substeps, substeps)


def _gather(waves: Tensor, beam: Tensor) -> Tensor:
    """Pick the slots' beams: waves (F, N, T) and beam (F, B) -> (F, B, T)."""
    return torch.gather(waves, 1, beam[:, :, None].expand(-1, -1, waves.shape[2]))


class _Sweep(torch.autograd.Function):
    """The stage loop. Inputs: plan, probe, phase factors' excitation, exponentials.

    The adjoint sweeps the same stages backwards with the conjugate factors. It needs the waves
    before and after each matrix; they are kept, one (F, N, T) array per stage.
    """

    @staticmethod
    def forward(ctx, plan: Plan, probe: Probe, excitation: Tensor, *matrices: Tensor) -> Tensor:
        """Return the profiles (F, B, D); keeps the waves if a gradient will be asked for."""
        need_grad = any(ctx.needs_input_grad)
        dtype = matrices[0].dtype
        waves = start_waves(excitation, probe.incident, dtype)
        phases = phase_factors(excitation, plan.phases)
        weight = probe.weight.to(excitation.dtype)
        before, seen, profiles = [], [], []
        for step in range(plan.steps):
            for phase, matrix in plan.stages:
                turned = waves * phases[phase]
                if need_grad:
                    before.append(turned)
                waves = torch.bmm(matrices[matrix], turned)
            if (step + 1) % plan.steps_per_depth == 0:
                picked = _gather(waves, probe.beam)
                profiles.append((torch.view_as_real(picked).square().sum(-1) * weight).sum(-1))
                if need_grad:
                    seen.append(picked)
        if need_grad:
            ctx.plan, ctx.probe, ctx.before, ctx.seen = plan, probe, before, seen
            ctx.save_for_backward(excitation, *matrices)
        return torch.stack(profiles, -1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradients by excitation errors (F, N, T) and exponentials (F, N, N)."""
        excitation, *matrices = ctx.saved_tensors
        plan, probe = ctx.plan, ctx.probe
        before, seen = reversed(ctx.before), reversed(ctx.seen)
        phases = phase_factors(excitation, plan.phases)
        # dL = Re sum(mu dpsi), mu = conj(dL/dpsi); transposes then replace adjoints
        mu = torch.zeros_like(ctx.before[-1])
        grad_matrix = [torch.zeros_like(m) for m in matrices]
        phase_flow = [torch.zeros_like(excitation) for _ in plan.phases]
        index = probe.beam[:, :, None].expand(-1, -1, mu.shape[2])
        source = 2 * grad[:, :, None, :] * probe.weight.to(grad.dtype)[..., None]
        for step in reversed(range(plan.steps)):
            if (step + 1) % plan.steps_per_depth == 0:
                depth = step // plan.steps_per_depth
                mu.scatter_add_(1, index, source[..., depth] * next(seen).conj())
            for phase, matrix in reversed(plan.stages):
                turned = next(before)
                grad_matrix[matrix].baddbmm_(mu, turned.transpose(1, 2))
                mu = torch.bmm(matrices[matrix].transpose(1, 2), mu)
                # Im(mu psi) is the same on both sides of the phase
                phase_flow[phase] -= (mu * turned).imag
                mu = mu * phases[phase]
        grad_s = sum(
            2 * math.pi * t * flow for t, flow in zip(plan.phases, phase_flow, strict=True)
        )
        return (None, None, grad_s, *(g.conj() for g in grad_matrix))


def phase_factors(excitation: Tensor, times: tuple) -> list[Tensor]:
    """Return exp(2 pi i t S) for each t (A) in `times`."""
    one = torch.ones_like(excitation)
    return [torch.polar(one, 2 * math.pi * t * excitation) for t in times]


@dataclass(frozen=True)
class Splitting:
    """Splitting integrator; `substeps` steps between neighbouring depths of the grid."""

    scheme: str = "aba_864"
    substeps: int = 1

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""
        plan = make_plan(self.scheme, grid, self.substeps)
        return _Sweep.apply(plan, probe, excitation, *exponentials(potential, plan.matrices))

    @torch.no_grad()
    def tangents(
        self, potential: Tensor, excitation: Tensor, moves: Moves, probe: Probe, grid: DepthGrid
    ) -> tuple[Tensor, Tensor]:
        """Return the profiles (F, B, D) and their derivatives (P + Q, F, B, D) along `moves`.

        Forward mode: the derivative waves travel beside the waves themselves. For few
        directions this costs less than one adjoint sweep per observation.
        """
        plan = make_plan(self.scheme, grid, self.substeps)
        matrices = exponentials(potential, plan.matrices)
        changes = exponential_tangents(potential, moves.potential, plan.matrices)
        return _forward_mode(plan, _Stages(matrices, changes, excitation, moves), probe)


@dataclass(frozen=True)
class Moves:
    """Directions of forward-mode derivatives: P of the potential, then Q of the excitation."""

    potential: Tensor  # (P, F, N, N)
    excitation: Tensor  # (Q, F, N, T)


@dataclass(frozen=True)
class _Stages:
    matrices: list  # exp(2 pi i b h V) of each distinct time
    changes: list  # their derivatives (P, F, N, N)
    excitation: Tensor
    moves: Moves


def _forward_mode(plan: Plan, stages: _Stages, probe: Probe) -> tuple[Tensor, Tensor]:
    p, q = len(stages.moves.potential), len(stages.moves.excitation)
    start = start_waves(stages.excitation, probe.incident, stages.matrices[0].dtype)
    f, n, t = start.shape
    waves = torch.cat([start[None], start.new_zeros(p + q, f, n, t)])
    phases = phase_factors(stages.excitation, plan.phases)
    turns = [2j * math.pi * time * stages.moves.excitation for time in plan.phases]
    wide = [m.expand(1 + p + q, f, n, n).reshape(-1, n, n) for m in stages.matrices]
    index = probe.beam[None, :, :, None].expand(1 + p + q, -1, -1, t)
    weight = probe.weight.to(stages.excitation.dtype)
    profiles, tangents = [], []
    for step in range(plan.steps):
        for phase, matrix in plan.stages:
            waves[1 + p :] += turns[phase] * waves[0]
            waves *= phases[phase]
            moved = torch.bmm(wide[matrix], waves.view(-1, n, t)).view_as(waves)
            for k, change in enumerate(stages.changes[matrix], start=1):
                moved[k].baddbmm_(change, waves[0])
            waves = moved
        if (step + 1) % plan.steps_per_depth == 0:
            picked = torch.view_as_real(torch.gather(waves, 2, index))
            profiles.append((picked[0].square().sum(-1) * weight).sum(-1))
            tangents.append(2 * ((picked[1:] * picked[0]).sum(-1) * weight).sum(-1))
    return torch.stack(profiles, -1), torch.stack(tangents, -1)
