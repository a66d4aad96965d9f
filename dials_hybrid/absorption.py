"""Absorption: what takes electrons out of the Bragg beams, as an imaginary potential.

The wave equation sees the optical potential U + iU', so that the structure matrix gains the
anti-Hermitian part i U'_(h-g) m_g m_h / 2K, its diagonal included. A model of absorption is a
value with the method

    of_atoms(structure, hkl, atoms, elastic, wavelength) -> what each atom adds to F'(g) in A

complex (M, A) or None, of reflections hkl (M, 3), where U'_g = gamma / (pi V) F'(g) as for U_g,
`atoms` are the `Atoms`, `elastic` (M, A) is what they add to F(g), in A, and `wavelength` the
electrons', in A. None says that nothing is absorbed. F' describes a real potential
(F'(-g) = conj F'(g)); a positive mean F'(0) takes electrons away.

Thermal diffuse scattering: C. R. Hall & P. B. Hirsch 1965, doi:10.1098/rspa.1965.0136, for
atoms that vibrate independently; form of D. M. Bird & Q. A. King 1990,
doi:10.1107/S0108767389011906:

    f'(s, B) = (2 h / m0 v) int f(|s/2 + s'|) f(|s/2 - s'|) [1 - exp(-2B (s'^2 - s^2/4))] d^2s'

is a form factor of the same kind as f, in A, that has yet to be multiplied by the Debye-Waller
factor exp(-B s^2). The integral runs over the plane across the beam. The scale follows from the
loss of intensity, 2 pi U'_0 / K per A = sigma / V for one atom per cell, whose cross-section is
sigma = int |gamma f|^2 [1 - exp(-2B s'^2)] d Omega with d Omega = 4 d^2s' / K^2: thus
f'(0, B) = 2 gamma lambda int ..., and gamma lambda = h / m0 v. U' has one gamma of the mass in
U_g and a second one of the scattering, as f' grows with gamma lambda.

The form factors of `Structure` end at s = 2 A^-1, and so do these: f'(0) of O and Si is 4 to 9 %
smaller, for B from 1 to 0.5 A^2, than with the whole of Rutherford scattering (M. Thomas, A.
Cleverley & R. Beanland 2024, Acta Cryst. A80, 146-150); more where f' is weak, at high s.

Valence electrons, plasmons and core losses are not in it: they mostly scatter to angles so
small that the electrons stay within their reflections.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import jvp

from . import electron
from .crystal import Atoms, CrystalModel, in_chunks, quadratic, reciprocal_length_sq, rotated
from .data import Structure
from .freedom import equivalent_weights
from .records import InputError


class Absorption(Protocol):
    """The signature of a model; see the docstring of this room."""

    def of_atoms(
        self, structure: Structure, hkl: Tensor, atoms: Atoms, elastic: Tensor, wavelength: float
    ) -> Tensor | None: ...


@dataclass(frozen=True)
class NoAbsorption:
    """Elastic scattering alone: no electron is lost."""

    def of_atoms(self, structure, hkl, atoms, elastic, wavelength) -> None:
        """See the docstring of this room."""
        return None


@dataclass(frozen=True)
class Proportional:
    """U'_g = ratio U_g for all g, zero included."""

    ratio: float = 0.05

    def of_atoms(self, structure, hkl, atoms, elastic, wavelength) -> Tensor:
        """See the docstring of this room."""
        return self.ratio * elastic


@dataclass(frozen=True)
class Thermal:
    """Thermal diffuse scattering by each atom's own displacement parameters."""

    def of_atoms(self, structure, hkl, atoms, elastic, wavelength) -> Tensor:
        """See the docstring of this room."""
        return thermal_of_atoms(structure, hkl, atoms, wavelength)


ELASTIC = NoAbsorption()
MODELS = {"none": NoAbsorption, "proportional": Proportional, "thermal": Thermal}


def to_dict(absorption: Absorption) -> dict:
    """Return the name of the model in MODELS and its numbers, for files."""
    names = {kind: name for name, kind in MODELS.items()}
    return {"model": names[type(absorption)], **dataclasses.asdict(absorption)}


def from_dict(values: dict) -> Absorption:
    """Return the model that `to_dict` described."""
    numbers = {k: v for k, v in values.items() if k != "model"}
    return MODELS[values["model"]](**numbers)


class Optical(nn.Module):
    """F + iF' of a crystal; at g = 0, whose elastic part is in the wavenumber K, iF' alone."""

    def __init__(self, crystal: CrystalModel, absorption: Absorption, wavelength: float):
        super().__init__()
        self.crystal, self.absorption, self.wavelength = crystal, absorption, wavelength

    def forward(self, hkl: Tensor) -> Tensor:
        """Return F(g) + iF'(g) in A of reflections hkl (M, 3); complex128 (M,)."""
        atoms = self.crystal.atoms()
        structure = self.crystal.structure
        return in_chunks(structure, hkl, lambda h: self.of_atoms(h, atoms).sum(-1))

    def of_atoms(self, hkl: Tensor, atoms: Atoms) -> Tensor:
        """Return what each atom, with its copies by symmetry, adds to F(g) + iF'(g), (M, A)."""
        f, structure = self.crystal.of_atoms(hkl, atoms), self.crystal.structure
        absorbed = self.absorption.of_atoms(structure, hkl, atoms, f, self.wavelength)
        f = torch.where((hkl != 0).any(1, keepdim=True), f, torch.zeros_like(f))
        return f if absorbed is None else f + 1j * absorbed

    def slopes(self, hkl: Tensor) -> Tensor:
        """Return the derivatives (P, M) by each free parameter, in A per unit of it.

        An atom's part depends on its own few numbers alone, so that one derivative by, say, x of
        all atoms at once is enough, however many parameters there are.
        """
        crystal = self.crystal
        if not crystal.count:
            return hkl.new_zeros(0, len(hkl), dtype=torch.complex128)
        atoms, ways = Atoms(*(x.detach() for x in crystal.atoms())), _ways(crystal)

        def some(hkl: Tensor) -> Tensor:
            out = hkl.new_zeros(len(hkl), crystal.count, dtype=torch.complex128)
            for way, by_parameter in ways:
                _, own = jvp(lambda values: self.of_atoms(hkl, values), (atoms,), (way,))
                out += own @ by_parameter
            return out

        return in_chunks(crystal.structure, hkl, some).T


def _ways(crystal: CrystalModel) -> list[tuple[Atoms, Tensor]]:
    """Unit steps in one number of every atom, and how far each parameter takes it, (A, P).

    Numbers that no parameter changes are left out.
    """
    still, out = [torch.zeros_like(x) for x in crystal.atoms()], []
    for i, slopes in enumerate(crystal.atom_slopes()):
        numbers = slopes.to(torch.complex128).view(len(slopes), -1, crystal.count)
        for place, by_parameter in enumerate(numbers.unbind(1)):
            if by_parameter.any():
                step = torch.zeros_like(still[i]).view(len(slopes), -1)
                step[:, place] = 1.0
                out.append(
                    (Atoms(*still[:i], step.view_as(still[i]), *still[i + 1 :]), by_parameter)
                )
    return out


def thermal_of_atoms(structure: Structure, hkl: Tensor, atoms: Atoms, wavelength: float) -> Tensor:
    """Return what each atom adds to F'(g) = sum f' occ T exp(2 pi i g.r), in A, (M, A) complex128.

    Differentiable once in all of `atoms`. Raises InputError when a form factor has a constant
    term, for which the integral diverges.
    """
    if bool(((structure.ff_b <= 0) & (structure.ff_a != 0)).any()):
        raise InputError(
            "absorption.model=thermal needs form factors made of Gaussians alone, without a "
            "constant; use absorption.model=proportional"
        )
    s_sq = reciprocal_length_sq(structure.cell, hkl)[:, None, None] / 4
    h_rot, angle = rotated(structure, hkl, atoms.site)
    waves = torch.polar(torch.ones_like(angle), angle)
    a, b = structure.ff_a[structure.type], structure.ff_b[structure.type]
    still, moving = ~structure.anisotropic, structure.anisotropic
    found = []  # of those that vibrate isotropically, then of the others
    if still.any():
        along = 8 * math.pi**2 * atoms.u_iso[still].clamp(min=0)
        f = thermal_form_factors(a[still], b[still], s_sq, along, along)
        found.append((waves[..., still] * f).sum(1))
    if moving.any():
        along, across = _along_and_across(structure.cell, h_rot, s_sq, atoms.u_star[moving])
        f = thermal_form_factors(a[moving], b[moving], s_sq, along, across)
        found.append((waves[..., moving] * f).sum(1))
    order = torch.argsort(moving.long(), stable=True).argsort()
    scale = 2 * electron.lorentz_factor(wavelength) * wavelength
    return scale * torch.cat(found, 1)[:, order] * (atoms.occ * structure.weight)


def _along_and_across(cell: Tensor, h_rot: Tensor, s_sq: Tensor, u_star: Tensor):
    """B in A^2 along g and its mean over the directions across g, both (M, S, A), never negative.

    At g = 0 both are the mean over all directions.
    """
    zero = s_sq == 0
    unit = 2 * math.pi**2 / torch.where(zero, torch.ones_like(s_sq), s_sq)
    mean = 8 * math.pi**2 * (u_star @ equivalent_weights(cell).to(u_star))
    along = unit * quadratic(h_rot, u_star)
    along = torch.where(zero, mean.expand_as(along), along)
    return along.clamp(min=0), ((3 * mean - along) / 2).clamp(min=0)


def thermal_form_factors(
    a: Tensor, b: Tensor, s_sq: Tensor, along: Tensor, across: Tensor
) -> Tensor:
    """Return exp(-B s^2) f'(s, B) / (2 gamma lambda) of f = sum a exp(-b s^2); dimensionless.

    a (A, G) in A and b (A, G) in A^2 describe the atoms; s^2 in A^-2 and B in A^2 have shapes
    that broadcast to (..., A). Two Gaussians make a Gaussian, so the integral of this room's
    docstring is a double sum in closed form (S. L. Dudarev, L.-M. Peng & M. J. Whelan 1995,
    doi:10.1016/0039-6028(95)00464-5). The Debye-Waller factor is in it, because f' alone grows
    without bound.

    An anisotropic atom has a B along g and one across: exp(-B s^2) becomes exp(-M(g)), and its
    partner exp(-M(q) - M(g - q)) with q = g/2 + k becomes exp(-M(g)/2 - 2 M(k)), exactly. In the
    plane of k, g is one axis, and `across` stands for the other: for the mean over all
    directions of the beam across g, which leaves U' a property of the crystal alone. Products of
    k along and across vanish in this mean. It is met to about one per cent where U differs by
    two between directions; there a single direction of the beam can be ten per cent off.

    Differentiable once in `along` and `across`: the slopes are formed with the values, since
    taking many directions through the double sum would be costly.
    """
    value, slope_along, slope_across = _double_sum(a, b, s_sq, along.detach(), across.detach())
    value = value + slope_along * (along - along.detach())
    return value + slope_across * (across - across.detach())


def _double_sum(a, b, s_sq, along, across) -> tuple[Tensor, Tensor, Tensor]:
    """The integral and its derivatives by `along` and `across`, (..., A)."""
    value = slope_along = slope_across = torch.zeros_like(s_sq * along * across)
    for i in range(a.shape[1]):
        for j in range(i + 1):
            weight = math.pi * (1 if i == j else 2) * a[:, i] * a[:, j]
            if not weight.any():
                continue
            p, d_sq = b[:, i] + b[:, j], (b[:, i] - b[:, j]).square()
            p = torch.where(weight == 0, torch.ones_like(p), p)  # the table's empty places
            still = weight * torch.exp(-((p - d_sq / p) / 4 + along) * s_sq) / p
            p_along, p_across = p + 2 * along, p + 2 * across
            moved = torch.exp(-((p - d_sq / p_along) / 4 + along / 2) * s_sq)
            moved = weight * moved * (p_along * p_across).rsqrt()
            steep = (d_sq / p_along.square() + 1) * s_sq / 2 + 1 / p_along
            value = value + still - moved
            slope_along = slope_along + steep * moved - s_sq * still
            slope_across = slope_across + moved / p_across
    return value, slope_along, slope_across
