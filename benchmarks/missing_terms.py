"""What terms that a model lacks would gain at the end of a refinement, to first order.

python -m benchmarks.missing_terms hybrid_refined.h5 [MORE.h5]: files of dials.hybrid_refine. For
each term one more column of derivatives is put beside those of everything that was refined, and the
minimum of the linear problem tells its value, its s.u. and how far the cost, the negative
logarithm of the likelihood and of the priors, falls (a score test: C. R. Rao 1948,
doi:10.1017/S0305004100023987). A fall of 2 is two s.u.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from dials_hybrid import uncertainty
from dials_hybrid.crystal import quadratic, reciprocal_length_sq, rotated
from dials_hybrid.freedom import to_cartesian
from dials_hybrid.valence import shell_form_factor

from . import common
from .linearised import at_end

SMALL = 1e-3  # change of the geometry whose differences are taken
BLUR = math.radians(0.03)
SHELL = 0.64  # A, of quadrupoles and octupoles: the valence shell of oxygen
AXES = "xyz"


class Ended:
    """A refinement at its end, linearised there once."""

    def __init__(self, path: str):
        _, refinement, cheap = at_end(path)
        self.model, error_model = refinement.model, refinement.state.error_model
        self.curvature = uncertainty.curvature_of(cheap, error_model)
        self.observations = self.model.problem.observations
        self.intensity = cheap.intensities()
        sigma = error_model.sigma(self.observations.noise, self.intensity)
        self.weight = torch.where(self.observations.free, 0.0, 1 / sigma)
        self.least = self._cost(self.curvature, self.curvature.minimum())

    def _cost(self, curvature, x: Tensor) -> float:
        """The cost at a step x of the linear problem, but for a constant."""
        used = (curvature.jacobian != 0).any(1)
        residual = (curvature.residual - curvature.jacobian @ x)[used]
        freedom = curvature.error_model.freedom
        data = (freedom + 1) / 2 * torch.log1p(residual.square() / freedom).sum()
        return float(data + curvature.prior_pull @ x + 0.5 * x @ curvature.prior_matrix @ x)

    def row(self, name: str, derivative: Tensor) -> dict:
        """Return what a term of one parameter would come to; its derivatives of I are (R,)."""
        more = self.curvature.with_parameter(derivative * self.weight)
        step = more.minimum()
        su = float(more.covariance[-1, -1].clamp(min=0)) ** 0.5
        fall = self.least - self._cost(more, step)
        return {"term": name, "value": float(step[-1]), "s.u.": su, "the cost falls by": fall}

    def rows(self) -> list[dict]:
        """Return the rows of all terms, but those that symmetry forbids."""
        terms = itertools.chain(self.of_intensities(), self.of_geometry(), self.of_scattering())
        return [self.row(name, slope) for name, slope in terms if bool(slope.abs().max() > 0)]

    def of_intensities(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and derivatives (R,) of changes that intensities may have as recorded."""
        i, noise = self.intensity.clamp(min=0), self.observations.noise.background.sqrt()
        s_sq = reciprocal_length_sq(self.model.problem.structure.cell, self.observations.hkl) / 4
        yield "background, its noise", noise
        yield "faint ones lost", -i / (1 + i / (4 * noise))
        yield "bright ones lost, I / max I", -i * i / i.max()
        yield "I s^2", i * s_sq
        yield "I s^4", i * s_sq.square()

    def of_geometry(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and derivatives (R,), per SMALL, of the cell and of a spread of tilts."""
        setting, one = self.model.problem.scan.setting, torch.eye(3, dtype=torch.float64)
        for axis in range(3):
            strain = torch.zeros_like(one)
            strain[axis, axis] = SMALL
            above, below = (self._set(setting @ (one + h * strain)) for h in (1, -1))
            yield f"reciprocal axis {'abc'[axis]}*, 0.1 %", (above - below) / 2
        for axis in range(2):
            turn = torch.zeros_like(one)
            i, j = (k for k in range(3) if k != axis)
            turn[i, j], turn[j, i] = -BLUR, BLUR
            sides = (self._set(torch.matrix_exp(h * turn) @ setting) for h in (1, -1))
            blurred = sum(sides) / 2 - self._set(setting)
            yield f"spread about {AXES[axis]}, (0.03 deg)^2", blurred

    def of_scattering(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and derivatives (R,) of the structure factors' changes, see `_moved`."""
        crystal = self.model.crystal
        labels, atoms = crystal.structure.labels, crystal.atoms()

        def shares(hkl: Tensor) -> Tensor:
            return crystal.of_atoms(hkl, atoms)

        yield "absorption, 1 % of U", self._moved(lambda hkl: 0.01j * shares(hkl).sum(1))
        for k, label in enumerate(labels):
            yield f"f_e of {label}, 1 %", self._moved(lambda hkl, k=k: 0.01 * shares(hkl)[:, k])
        for k, order in itertools.product(range(len(labels)), (2, 3)):
            for axes in itertools.combinations_with_replacement(range(3), order):
                kind = ("quadrupole", "octupole")[order - 2]
                name = f"{kind} {''.join(AXES[a] for a in axes)} of {labels[k]}, 0.1 e A^{order}"
                yield name, self._moved(lambda hkl, k=k, axes=axes: self._multipole(hkl, k, axes))

    def _multipole(self, hkl: Tensor, atom: int, axes: tuple[int, ...]) -> Tensor:
        """F(g) (M,) of a moment 0.1 along Cartesian axes of an atom, its traces taken off."""
        crystal = self.model.crystal
        structure, order = crystal.structure, len(axes)
        h_rot, angle = rotated(structure, hkl, crystal.site())
        g = torch.einsum("msj,ja->msa", h_rot, torch.linalg.inv(to_cartesian(structure.cell)))
        g_sq = reciprocal_length_sq(structure.cell, hkl)
        along = g[..., list(axes)].prod(-1)
        for a, b in itertools.combinations(range(order), 2):
            if axes[a] == axes[b]:
                rest = [axes[k] for k in range(order) if k not in (a, b)]
                along = along - g_sq[:, None] / (2 * order - 1) * g[..., rest].prod(-1)
        u = g_sq[:, None, None] * crystal.u_iso()
        u = torch.where(structure.anisotropic, quadratic(h_rot, crystal.u_star()), u)[..., atom]
        wave = torch.polar(torch.exp(-2 * math.pi**2 * u), angle[..., atom])
        share = (crystal.occ() * structure.weight)[atom]
        radius = torch.tensor([SHELL], dtype=torch.float64)
        shape = shell_form_factor(g_sq / 4, radius)[:, 0] * share
        factor = (2j * math.pi) ** order / math.factorial(order)
        return 0.1 * factor * shape * (wave * along).sum(1)

    @torch.no_grad()
    def _moved(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Derivative (R,) of the intensities by the amount of a change of F(g) in A, of hkl."""
        model = self.model
        moved = model.matrix.table(change)
        above, below = (model.intensities(model.profiles(h * moved)) for h in (1, -1))
        return (above - below) / 2

    @torch.no_grad()
    def _set(self, setting: Tensor) -> Tensor:
        """The intensities (R,) in another setting (F, T, 3, 3)."""
        model, before = self.model, self.model.problem
        scan = dataclasses.replace(before.scan, setting=setting)
        model.problem = before.replace(scan=scan)
        try:
            return model.intensities(model.profiles())
        finally:
            model.problem = before


def main() -> None:
    """Print a table for each file and write benchmarks/results/missing_terms_FOLDER.json."""
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    for path in sys.argv[1:]:
        rows = sorted(Ended(path).rows(), key=lambda row: -row["the cost falls by"])
        common.print_table(f"{path}: terms that are not there", rows)
        common.save(f"missing_terms_{Path(path).resolve().parent.name}", rows)


if __name__ == "__main__":
    main()
