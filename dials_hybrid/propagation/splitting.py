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


SCHEMES = {
    "strang": _strang(),
    "blanes_moan_4": _blanes_moan_4(),
    "aba_864": _aba_864(),
    "aba_104": _aba_104(),
    "aba_1064": _aba_1064(),
}


def series_order(potential: Tensor, times: tuple) -> tuple[int, int]:
    """Return (order, halvings) of a Taylor series that reaches the precision of the dtype."""
    norm = 2 * math.pi * float(potential.detach().abs().sum(-1).max()) * max(map(abs, times))
    halvings = max(0, math.ceil(math.log2(norm))) if norm > 1 else 0
    norm /= 2**halvings
    order, term = 1, norm
    while term > torch.finfo(potential.dtype).eps / 4:
        order += 1
        term *= norm / order
    return order, halvings


@dataclass(frozen=True)
class _Series:
    """Taylor series of exp(t X) - 1, X = 2 pi i V, for several t that share the powers of X.

    The identity is left out, and added as the waves themselves: rounded together with it, the
    same error in every step would add up to 1e-4 in single precision at hundreds of beams.

    X is taken for the longest t, since powers of the small V leave the range of float32. V is
    small against 1/t here, so a short series reaches machine precision at the speed of
    matrix products, and needs no eigenvalues: degenerate ones and an absorptive
    (non-Hermitian) V are no special cases. Where V is not so small the series is summed for
    t / 2^halvings and squared.
    """

    x: Tensor  # (F, N, N) 2 pi i V times the unit
    unit: float  # A
    table: Tensor  # (times, order) real: (t / unit)^k / k!
    halvings: int

    @classmethod
    def of(cls, potential: Tensor, times: tuple) -> _Series:
        """Choose the order for potential (F, N, N) in A^-1 and `times` in A."""
        order, halvings = series_order(potential, times)
        unit = max(map(abs, times)) / 2**halvings
        shares = [t / 2**halvings / unit for t in times]
        rows = [[s**k / math.factorial(k) for k in range(1, order + 1)] for s in shares]
        real = potential.dtype.to_real()
        table = torch.tensor(rows, dtype=torch.float64, device=potential.device).to(real)
        return cls(_without_noise(2j * math.pi * unit * potential), unit, table, halvings)

    def powers(self) -> Tensor:
        """Return X, X^2, ... (order, F, N, N)."""
        out = self.x.new_empty(self.table.shape[1], *self.x.shape)
        out[0] = self.x
        for k in range(1, len(out)):
            torch.bmm(out[k - 1], self.x, out=out[k])
        return out

    def values(self) -> list[Tensor]:
        """Return exp(t X) - 1 (times, F, N, N), and before it what is still to be squared."""
        steps = [_combine(self.table, self.powers())]
        for _ in range(self.halvings):
            steps.append(2 * steps[-1] + steps[-1] @ steps[-1])
        return steps

    def derivatives(self, tangents: Tensor) -> Tensor:
        """Return the derivatives (times, P, F, N, N) along dV (P, F, N, N), term by term."""
        dx, powers = _without_noise(2j * math.pi * self.unit * tangents), self.powers()
        moved = dx.new_empty(len(powers), *dx.shape)
        moved[0] = dx
        for k in range(1, len(moved)):
            torch.add(moved[k - 1] @ self.x, powers[k - 1] @ dx, out=moved[k])
        out = _combine(self.table, moved)
        for value in self.values()[: self.halvings]:
            value = value[:, None]
            out = 2 * out + out @ value + value @ out
        return out

    def adjoint(self, slopes: Tensor, steps: list[Tensor]) -> Tensor:
        """Return H (F, N, N) with dL = Re tr(H dV), given dL = Re tr(slopes_t d exp(t X)).

        d X^k = sum X^i dX X^(k-1-i), so that H = sum X^i H_k X^(k-1-i), where H_k is what falls
        to the k-th power; both sums are done by Horner's rule. `steps` are the values.
        """
        for value in reversed(steps[:-1]):
            slopes = 2 * slopes + value @ slopes + slopes @ value
        terms = _combine(self.table.T, slopes)
        right = total = terms[-1]
        for term in reversed(terms[:-1].unbind()):
            right = torch.baddbmm(term, right, self.x)
            total = torch.baddbmm(right, self.x, total)
        return 2j * math.pi * self.unit * total


def _without_noise(x: Tensor) -> Tensor:
    """Set to zero the parts of x that rounding alone made, as in centrosymmetric crystals.

    Their products would be denormal numbers in float32, which take a hundred times longer.
    """
    parts = torch.view_as_real(x)
    if not parts.numel():
        return x
    limit = torch.finfo(parts.dtype).eps ** 2 * parts.abs().max()
    return torch.view_as_complex(parts.where(parts.abs() > limit, 0.0))


def _combine(table: Tensor, terms: Tensor) -> Tensor:
    """Return sum_k table[j, k] terms[k] for every j: one real matrix product."""
    flat = torch.view_as_real(terms.contiguous()).reshape(len(terms), -1)
    out = (table @ flat).reshape(len(table), *terms.shape[1:], 2)
    return torch.view_as_complex(out)


def exponentials(potential: Tensor, times: tuple) -> list[Tensor]:
    """Return exp(2 pi i t V) (F, N, N) for each t (A) in `times`."""
    identity = torch.eye(potential.shape[-1], dtype=potential.dtype, device=potential.device)
    return [identity + value for value in _Series.of(potential, times).values()[-1]]


def exponential_tangents(potential: Tensor, tangents: Tensor, times: tuple) -> list[Tensor]:
    """Return the derivatives (P, F, N, N) of `exponentials` along `tangents` (P, F, N, N)."""
    return list(_Series.of(potential, times).derivatives(tangents))


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


class _Sweep(torch.autograd.Function):
    """Profiles of a plan, probe, potential and excitation, with the adjoint of the stage loop.

    Waves are rows, (F, T, N): a stage multiplies them by a phase and then by the transposed
    exponential from the right, of which the identity is apart. The adjoint sweeps the same
    stages backwards with the conjugate factors. It needs the waves before each matrix; they are
    kept in one array per distinct matrix, so that the gradient by that matrix is a product over
    many stages at once.
    """

    @staticmethod
    def forward(ctx, plan: Plan, probe: Probe, potential: Tensor, excitation: Tensor) -> Tensor:
        """Return the profiles (F, B, D); keeps the waves if a gradient will be asked for."""
        series = _Series.of(potential, plan.matrices)
        values = series.values()
        matrices = list(values[-1].mT.contiguous())
        phases = phase_factors(excitation.mT.contiguous(), plan.phases)
        waves = start_waves(excitation, probe.incident, potential.dtype).mT.contiguous()
        keep = any(ctx.needs_input_grad)
        before = _room(plan, waves, plan.steps if keep else 1)
        index, weight = _picking(probe, waves)
        seen = waves.new_empty(len(waves), plan.steps // plan.steps_per_depth, *index.shape[1:])
        for step in range(plan.steps):
            row = step if keep else 0
            for phase, matrix, use in plan.stages:
                turned = before[matrix][:, row * plan.uses[matrix] + use]
                torch.mul(waves, phases[phase], out=turned)
                torch.baddbmm(turned, turned, matrices[matrix], out=waves)
            if (step + 1) % plan.steps_per_depth == 0:
                seen[:, step // plan.steps_per_depth] = torch.gather(waves, 2, index)
        if keep:
            ctx.plan, ctx.series, ctx.values, ctx.phases = plan, series, values, phases
            ctx.before, ctx.seen, ctx.index, ctx.weight = before, seen, index, weight
        intensity = seen.real.square().addcmul_(seen.imag, seen.imag)
        return intensity.mul_(weight[:, None]).sum(2).mT

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradients by the potential (F, N, N) and excitation errors (F, N, T)."""
        plan, phases = ctx.plan, ctx.phases
        source = ctx.seen.conj() * (2 * grad.mT[:, :, None] * ctx.weight[:, None])
        matrices = list(ctx.values[-1])
        # dL = Re sum(mu dpsi), mu = conj(dL/dpsi); transposes then replace adjoints
        mu = torch.zeros_like(ctx.before[0][:, 0])
        flow, turn = torch.zeros_like(mu), phases[0]
        slopes = torch.zeros_like(ctx.values[-1])
        group = max(1, _INNER // mu.shape[1])
        after = _room(plan, mu, min(group, plan.steps))
        for first in reversed(range(0, plan.steps, group)):
            last = min(first + group, plan.steps)
            for step in reversed(range(first, last)):
                for phase, matrix, use in reversed(plan.stages):
                    uses = plan.uses[matrix]
                    behind = after[matrix][:, (step - first) * uses + use]
                    torch.mul(mu, turn, out=behind)
                    if (phase, matrix, use) == plan.stages[-1]:
                        _add_source(behind, ctx.index, source, step, plan)
                    torch.baddbmm(behind, behind, matrices[matrix], out=mu)
                    # Im(mu psi) is the same on both sides of the phase
                    turned = ctx.before[matrix][:, step * uses + use]
                    flow.addcmul_(mu, turned, value=-2 * math.pi * plan.phases[phase])
                    turn = phases[phase]
            for matrix, uses in enumerate(plan.uses):
                left = ctx.before[matrix][:, first * uses : last * uses].flatten(1, 2)
                right = after[matrix][:, : (last - first) * uses].flatten(1, 2)
                slopes[matrix].baddbmm_(left.mT, right)
        by_potential = ctx.series.adjoint(slopes, ctx.values)
        return None, None, by_potential.mH, flow.imag.mT


_INNER = 256  # rows from which on the gradient by a matrix runs at the full speed of products


def _room(plan: Plan, waves: Tensor, steps: int) -> list[Tensor]:
    """Return, for each distinct matrix, room for the waves of its stages (F, K, T, N)."""
    f, *rest = waves.shape
    return [waves.new_empty(f, steps * uses, *rest) for uses in plan.uses]


def _picking(probe: Probe, waves: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index (F, T, B) that picks the slots' beams, and their weights (F, T, B)."""
    index = probe.beam[:, None].expand(-1, waves.shape[1], -1)
    return index, probe.weight.mT.to(waves.dtype.to_real())


def _add_source(mu: Tensor, index: Tensor, source: Tensor, step: int, plan: Plan) -> None:
    """Add to mu, in place, what the profile of this step's depth sends back, if there is one."""
    if (step + 1) % plan.steps_per_depth == 0:
        mu.scatter_add_(2, index, source[:, step // plan.steps_per_depth])


@dataclass(frozen=True)
class Splitting:
    """Splitting integrator; `substeps` steps between neighbouring depths of the grid."""

    scheme: str = "aba_104"
    substeps: int = 1

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""
        plan = make_plan(self.scheme, grid, self.substeps)
        _, n, t = excitation.shape
        given = (probe.incident, probe.beam, probe.weight, potential, excitation)
        chunks = zip(*(x.split(max(1, _CHUNK // (n * t))) for x in given), strict=True)
        return torch.cat([_Sweep.apply(plan, Probe(*of), v, s) for *of, v, s in chunks])

    def waves_kept(self, beams: int, grid: DepthGrid) -> int:
        """See the base class: one for every stage."""
        return grid.count * self.substeps * len(SCHEMES[self.scheme][1])

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


_CHUNK = 32_768  # waves (blocks x beams x orientations) that stay in the processor's caches


@dataclass(frozen=True)
class Moves:
    """Directions of forward-mode derivatives: P of the potential, then Q of the excitation."""

    potential: Tensor  # (P, F, N, N)
    excitation: Tensor  # (Q, F, N, T)


@dataclass(frozen=True)
class _Stages:
    """Factors of the stages for waves that are rows, one of each distinct time."""

    phases: list  # (F, T, 1, N)
    turns: list  # derivatives of the phases' exponents (F, T, Q, N)
    matrices: list  # transposed exponentials less the identity (F, N, N)
    changes: list  # their derivatives, side by side: (F, N, P N)

    @classmethod
    def of(cls, plan: Plan, potential: Tensor, excitation: Tensor, moves: Moves) -> _Stages:
        series = _Series.of(potential, plan.matrices)
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
