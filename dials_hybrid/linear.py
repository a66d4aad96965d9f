"""Calculated intensities and their Jacobian around a linearisation of the diffraction model.

Propagation is the costly part; it is linearised in atoms and orientations once, and within a
trust region the intensities are then a cheap function

    I = T(scale(phi), sum_t p(t | phi) (P + dP_c . c + dP_o . o))

of the steps c and o and, exactly, of thickness, scale and what the nuisance terms T correct.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp

from . import secant
from .calls import call
from .kinematic import power_slopes, powers
from .model import HybridModel

DAMPING_FLOOR = 1e-2  # keeps network weights that the data hardly see from jumping


@dataclass(frozen=True)
class Linearisation:
    """Profiles of the G portions of observations at D depths and their derivatives.

    Derivatives by neighbouring parameters lie side by side in memory: sums over them are many.
    """

    profiles: Tensor  # (G, D)
    crystal: Tensor  # (G, P, D) along the free parameters of the structure
    orientation: Tensor  # (G, 2, D) along the two local rotations, in their prior's sigma

    @classmethod
    def held(cls, profiles: Tensor, parameters: int) -> Linearisation:
        """Return that in which the parameters of the structure, and the rotations, do nothing."""
        portions, depths = profiles.shape
        none = profiles.new_zeros(1, 1, 1)
        return cls(profiles, *(none.expand(portions, n, depths) for n in (parameters, 2)))

    @property
    def still(self) -> bool:
        """Whether it is a held one, whose zeros are a single number."""
        return not any(self.crystal.stride())

    def moved(self, steps: Tensor, turns: Tensor) -> Tensor:
        """Return the profiles (G, D) after steps (P,) of parameters and rotations (G, 2)."""
        if self.still:
            return self.profiles
        moved = torch.einsum("p,lpd->ld", steps, self.crystal)
        moved += torch.einsum("lk,lkd->ld", turns, self.orientation)
        return self.profiles + moved

    def weighted(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over depth with weight (G, D): of parameters (G, P), rotations (G, 2)."""
        if self.still:
            return self.crystal[..., 0], self.orientation[..., 0]
        slopes = self.crystal, self.orientation
        return tuple(torch.einsum("ld,lpd->lp", weight, x) for x in slopes)


@dataclass(frozen=True)
class Parts:
    """Where each group of parameters lies in the vector of all."""

    crystal: slice
    orientation: slice
    thickness: slice
    scale: slice
    nuisance: slice
    size: int


class CheapModel:
    """Residuals and Jacobian of everything, given a `Linearisation`.

    The vector x holds steps of the structure and orientation away from the point of
    linearisation, then the values of thickness, scale and nuisance parameters. `second` (F, 2, 2),
    if given, are the second derivatives of the cost by local rotations that residuals make, see the
    room secant.
    """

    def __init__(
        self, model: HybridModel, linearisation: Linearisation, second: Tensor | None = None
    ):
        self.model, self.lin = model, linearisation
        self.second = None if second is None else secant.positive(second)
        self.block, self.observation = model.portions.block, model.portions.observation
        mine = [(b, torch.nonzero(self.block == b)[:, 0]) for b in self.block.unique()]
        self.of_blocks = [(block, rows, self.observation[rows]) for block, rows in mine]
        self.rows = len(model.problem.observations.intensity)
        self.names = [n for n, _ in model.thickness.named_parameters()]
        self.shapes = [p.shape for p in model.thickness.parameters()]
        counts = [
            linearisation.crystal.shape[1],  # the valence terms, which have priors, come last
            model.orientation.offset.numel(),
            sum(p.numel() for p in model.thickness.parameters()),
            model.scale.log_scale.numel(),
            sum(p.numel() for p in model.nuisance.parameters()),
        ]
        ends = torch.tensor([0, *counts]).cumsum(0).tolist()
        self.parts = Parts(*(slice(a, b) for a, b in zip(ends, ends[1:], strict=False)), ends[-1])
        self.valence = slice(ends[1] - len(model.crystal.prior_residuals()), ends[1])
        with torch.no_grad():
            self.powers = powers(model)  # None unless a nuisance term asks
            self.power_slopes = None if self.powers is None else power_slopes(model)
        self.priors_near: Tensor | None = None  # `prior_matrix` where `solve` last asked for it

    def start(self) -> Tensor:
        """Return x at the model's present parameters: zero steps."""
        x = torch.zeros(self.parts.size, dtype=torch.float64, device=self.model.depth.device)
        flat = [p.detach().flatten() for p in self.model.thickness.parameters()]
        x[self.parts.thickness] = torch.cat(flat)
        x[self.parts.scale] = self.model.scale.log_scale.detach()
        x[self.parts.nuisance] = self.model.nuisance.flat()
        return x

    @torch.no_grad()
    def apply(self, x: Tensor) -> None:
        """Write x into the model's parameters, steps added."""
        model, parts = self.model, self.parts
        model.crystal.step(x[parts.crystal])
        model.orientation.offset += x[parts.orientation].view_as(model.orientation.offset)
        for p, value in zip(
            model.thickness.parameters(), self._split(x[parts.thickness]), strict=True
        ):
            p.copy_(value)
        model.scale.log_scale.copy_(x[parts.scale])
        model.nuisance.assign(x[parts.nuisance])

    def _split(self, flat: Tensor) -> list[Tensor]:
        sizes = [s.numel() for s in self.shapes]
        return [v.view(s) for v, s in zip(flat.split(sizes), self.shapes, strict=True)]

    def _thickness(self, flat: Tensor, jacobian: bool) -> tuple[Tensor, tuple | None]:
        """p(t) (F, D), and its derivatives (F, D, K) by the outputs and theirs (F, K, n).

        Each block's p(t) follows from its own few outputs: the many parameters need not meet
        the depth grid.
        """
        module = self.model.thickness
        if not jacobian:
            return module.distribution(self._outputs(flat), module.depth), None
        out, by_parameter = self._outputs_and_slopes(flat)
        by_output = module.distribution_slopes(out, module.depth)
        return module.distribution(out, module.depth), (by_output, by_parameter)

    def _thickness_penalties(self, flat: Tensor) -> Tensor:
        return self.model.thickness.penalties(self._outputs(flat))

    def _outputs(self, flat: Tensor) -> Tensor:
        """The outputs (F, K) of the thickness model with the parameters (n,)."""
        return self._of_thickness(lambda module: module.outputs(), flat)

    def _outputs_and_slopes(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs (F, K) and their derivatives (F, K, n) by the parameters (n,)."""
        return self._of_thickness(lambda module: (module.outputs(), module.output_slopes()), flat)

    def _of_thickness(self, function, flat: Tensor):
        """What a function of the thickness model gives with the parameters (n,)."""
        given = dict(zip(self.names, self._split(flat), strict=True))
        return call(function, self.model.thickness, given)

    def intensities(self) -> Tensor:
        """Return the calculated intensities (R,) at the point of linearisation."""
        return self.evaluate(self.start())[0]

    @torch.no_grad()
    def scales(self) -> Tensor:
        """Return the derivatives (R,) of intensities by what the propagation gives, at `start`."""
        nuisance, scale = self.model.nuisance, self.model.scale(self.model.scale_matrix)
        return nuisance.slopes(nuisance.flat(), self._raw(), self.powers, scale).by_intensity

    @torch.no_grad()
    def diffracted(self) -> Tensor:
        """Return the part (R,) of the intensities that goes with what the propagation gives."""
        return self.scales() * self._raw()

    def _raw(self) -> Tensor:
        """What the propagation gives for each observation, (R,), at `start`."""
        return self._summed((self.model.thickness()[self.block] * self.lin.profiles).sum(1))

    @torch.no_grad()
    def distribution_slopes(self) -> Tensor:
        """Return the derivatives (F, D, n) of p(t) by the thickness parameters at their values."""
        by_output, by_parameter = self._thickness(self.start()[self.parts.thickness], True)[1]
        return by_output @ by_parameter

    @torch.no_grad()
    def output_slopes(self) -> tuple[Tensor, Tensor]:
        """Return the outputs (F, K) of the thickness model, and their derivatives (F, K, n)."""
        return self._outputs_and_slopes(self.start()[self.parts.thickness])

    def _summed(self, values: Tensor) -> Tensor:
        """Sums (R, ...) over the portions of each observation, of values (G, ...)."""
        out = values.new_zeros(self.rows, *values.shape[1:])
        # index_add of matrices fails in threads where cctbx was imported before torch
        return out.index_put_((self.observation,), values, accumulate=True)

    def _moved_profiles(self, x: Tensor) -> Tensor:
        return self.lin.moved(x[self.parts.crystal], self.local_rotation(x)[self.block])

    def moved(self, x: Tensor) -> Linearisation:
        """Return the linearisation about x to first order; derivatives stay as they are."""
        return dataclasses.replace(self.lin, profiles=self._moved_profiles(x))

    def _moved_powers(self, x: Tensor) -> Tensor | None:
        """|U_g / 2K|^2 (R,) in A^-2 of the moved structure."""
        if self.powers is None:
            return None
        return self.powers + self.power_slopes @ x[self.parts.crystal]

    def local_rotation(self, x: Tensor) -> Tensor:
        """Return the rotations (F, 2) of the blocks that x steps away by, in sigma."""
        orientation = self.model.orientation
        return orientation.matrix @ x[self.parts.orientation].view_as(orientation.offset)

    @torch.no_grad()
    def local_gradient(self, pull: Tensor, slopes: Tensor) -> Tensor:
        """Return the derivatives (F, 2) of sum_r pull_r I_r by the blocks' rotations, at `start`.

        `pull` is (R,), `slopes` (G, 2, D) are derivatives of the profiles.
        """
        weight = self.model.thickness()[self.block]
        local = torch.einsum("ld,lkd->lk", weight, slopes)
        local *= (self.scales() * pull)[self.observation, None]
        out = local.new_zeros(len(self.model.orientation.matrix), 2)
        return out.index_put_((self.block,), local, accumulate=True)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the intensities (R,) and the residuals (m,) of all priors at x."""
        return self._intensities(x, False)[0], self.prior(x)

    def slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the intensities (R,) and their derivatives (R, n) at x."""
        return self._intensities(x, True)

    def _intensities(self, x: Tensor, jacobian: bool) -> tuple[Tensor, Tensor | None]:
        """Return the intensities (R,) and, or None, their derivatives (R, n) at x."""
        parts, model = self.parts, self.model
        p, dp = self._thickness(x[parts.thickness], jacobian)
        scale = (model.scale_matrix @ x[parts.scale]).exp()
        profiles = self._moved_profiles(x)
        weight = p[self.block]
        raw = self._summed((weight * profiles).sum(1))
        powers, nuisance = self._moved_powers(x), x[parts.nuisance]
        intensity = model.nuisance.corrected(nuisance, raw, powers, scale)
        if not jacobian:
            return intensity, None
        by_crystal, by_turn = self.lin.weighted(weight)
        blocks = [
            self._summed(by_crystal),
            self._orientation_jacobian(by_turn),
            self._thickness_jacobian(profiles, *dp),
        ]
        slopes = model.nuisance.slopes(nuisance, raw, powers, scale)
        columns = [slopes.by_intensity[:, None] * block for block in blocks]
        if slopes.by_power is not None:
            columns[0] += slopes.by_power[:, None] * self.power_slopes
        columns.append(slopes.by_scale[:, None] * model.scale_matrix)
        columns.append(slopes.by_parameter)
        return intensity, torch.cat(columns, 1)

    def prior(self, x: Tensor) -> Tensor:
        """Return the residuals (m,) of all priors at x."""
        return torch.cat([self._thickness_penalties(x[self.parts.thickness]), self._others(x)])

    def _others(self, x: Tensor) -> Tensor:
        """The residuals of all priors but those of the thickness."""
        parts, model = self.parts, self.model
        smooth = model.scale.prior_operator() @ x[parts.scale]
        offset = model.orientation.offset.detach().flatten() + x[parts.orientation]
        wobble = model.orientation.prior_operator() @ offset
        valence = model.crystal.prior_residuals().detach() + x[self.valence]
        restrained = model.restrained.after(x[parts.crystal])
        penalties = model.nuisance.penalties(x[parts.nuisance])
        return torch.cat([smooth, wobble, valence, restrained, penalties])

    def _slopes_of_other_priors(self, x: Tensor) -> list[tuple[slice, Tensor]]:
        """The columns and derivatives of all parts of `prior` after that of the thickness."""
        parts, model = self.parts, self.model
        identity = torch.eye(self.valence.stop - self.valence.start).to(x)
        return [
            (parts.scale, model.scale.prior_operator()),
            (parts.orientation, model.orientation.prior_operator()),
            (self.valence, identity),
            (parts.crystal, model.restrained.jacobian(x[parts.crystal])),
            (parts.nuisance, model.nuisance.penalty_slopes(x[parts.nuisance])),
        ]

    def prior_jacobian(self, x: Tensor) -> Tensor:
        """Return the derivatives (m, n) of `prior`."""
        outputs = self._outputs_and_slopes(x[self.parts.thickness])
        slopes = self.model.thickness.penalty_slopes(*outputs)
        rows = []
        for columns, block in [(self.parts.thickness, slopes), *self._slopes_of_other_priors(x)]:
            row = x.new_zeros(len(block), self.parts.size)
            row[:, columns] = block
            rows.append(row)
        return torch.cat(rows)

    def prior_matrix(self, x: Tensor) -> Tensor:
        """Return J^T J (n, n) of J = `prior_jacobian`, part by part."""
        part = self.parts.thickness
        out = x.new_zeros(self.parts.size, self.parts.size)
        outputs = self._outputs_and_slopes(x[part])
        out[part, part] = self.model.thickness.penalty_matrix(*outputs)
        for columns, block in self._slopes_of_other_priors(x):
            out[columns, columns] += block.T @ block
        return out

    def prior_gradient(self, x: Tensor) -> Tensor:
        """Return the derivatives (n,) of half the squared sum of `prior`.

        Those of the thickness go backwards through its model, in a fraction of the time that
        their matrix takes.
        """
        out = torch.zeros_like(x)
        penalties, back = vjp(self._thickness_penalties, x[self.parts.thickness])
        (out[self.parts.thickness],) = back(penalties)
        slopes = self._slopes_of_other_priors(x)
        others = self._others(x).split([len(block) for _, block in slopes])
        for (columns, block), residual in zip(slopes, others, strict=True):
            out[columns] += block.T @ residual
        return out

    def _orientation_jacobian(self, local: Tensor) -> Tensor:
        """(R, n): of each observation by the rotations of its blocks (G, 2), then by the knots'."""
        knots = self.model.orientation.matrix
        turned = local.new_zeros(self.rows, local.shape[1], len(knots))
        one = torch.arange(local.shape[1], device=local.device)
        place = self.observation[:, None], one, self.block[:, None]
        turned.index_put_(place, local, accumulate=True)
        return (turned @ knots).transpose(1, 2).flatten(1)

    def _thickness_jacobian(self, profiles: Tensor, by_output: Tensor, slopes: Tensor) -> Tensor:
        """(R, n): sums over depth by the outputs (F, D, K), times their slopes (F, K, n)."""
        out = profiles.new_zeros(self.rows, slopes.shape[2])
        for block, mine, observation in self.of_blocks:
            own = profiles[mine] @ by_output[block] @ slopes[block]
            out.index_put_((observation,), own, accumulate=True)
        return out


class LeastSquares:
    """1/2 sum of squared residuals of the working reflections and of the priors.

    `proximity` holds the steps of structure and orientation near the point of linearisation.
    """

    def __init__(self, cheap: CheapModel, sigma_w: Tensor, proximity: float):
        observations = cheap.model.problem.observations
        self.cheap, self.proximity = cheap, proximity
        self.observed = observations.intensity
        self.weight = torch.where(observations.free, torch.zeros_like(sigma_w), 1 / sigma_w)
        self.steps = slice(0, cheap.parts.orientation.stop)

    def cost(self, x: Tensor) -> float:
        """Return the cost without the proximity term."""
        intensity, prior = self.cheap.evaluate(x)
        r = (intensity - self.observed) * self.weight
        return 0.5 * float(r @ r + prior @ prior + self._second(x))

    def _second(self, x: Tensor) -> Tensor | float:
        """Twice the cost of second derivatives."""
        if self.cheap.second is None:
            return 0.0
        turned = self.cheap.local_rotation(x)
        return torch.einsum("fi,fij,fj->", turned, self.cheap.second, turned)

    def total(self, x: Tensor) -> float:
        """Return the cost with the proximity term."""
        return self.cost(x) + 0.5 * self.proximity * float(x[self.steps].square().sum())

    def normal_equations(self, x: Tensor, priors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the gradient (n,) and the Gauss-Newton matrix (n, n), proximity included.

        `priors` is the part of the priors in the matrix, by default that at x.
        """
        intensity, j = self.cheap.slopes(x)
        j = j * self.weight[:, None]
        gradient = j.T @ ((intensity - self.observed) * self.weight) + self.cheap.prior_gradient(x)
        matrix = j.T @ j + (self.cheap.prior_matrix(x) if priors is None else priors)
        gradient[self.steps] += self.proximity * x[self.steps]
        matrix.diagonal()[self.steps] += self.proximity
        if self.cheap.second is not None:
            self._add_second(x, gradient, matrix)
        return gradient, matrix

    def _add_second(self, x: Tensor, gradient: Tensor, matrix: Tensor) -> None:
        second, knots = self.cheap.second, self.cheap.model.orientation.matrix
        part, count = self.cheap.parts.orientation, 2 * knots.shape[1]
        pull = torch.einsum("fij,fj->fi", second, self.cheap.local_rotation(x))
        gradient[part] += (knots.T @ pull).flatten()
        spread = torch.einsum("fk,fij->fikj", knots, second).flatten(2)  # (F, 2, 2 K)
        matrix[part, part] += torch.einsum("fk,fin->kin", knots, spread).reshape(count, count)


@torch.no_grad()
def solve(problem: LeastSquares, x: Tensor, iterations: int) -> Tensor:
    """Levenberg-Marquardt (Marquardt 1963, doi:10.1137/0111030) from x; returns the best x.

    The part of the priors in the matrix, which costs more than all else, is kept, by the cheap
    model from one problem to the next, as long as steps are good at once.
    """
    damping, cost, cheap = 1e-2, problem.total(x), problem.cheap
    for _ in range(iterations):
        if cheap.priors_near is None:
            cheap.priors_near = cheap.prior_matrix(x)
        gradient, matrix = problem.normal_equations(x, cheap.priors_near)
        tried = damping
        for _ in range(12):
            damped = matrix + torch.diag(damping * (matrix.diagonal() + DAMPING_FLOOR))
            step = torch.linalg.solve(damped, -gradient)
            trial = problem.total(x + step)
            if trial < cost:
                break
            damping *= 5
        else:
            return x
        gain, cost, x = cost - trial, trial, x + step
        if gain < 1e-4 * cost:
            break
        if damping > tried:
            cheap.priors_near = None
        damping = max(damping / 5, 1e-7)
    return x
