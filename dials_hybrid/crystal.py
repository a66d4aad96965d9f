"""Free parameters of a crystal structure and its electron structure factors.

`CrystalModel` moves sites and displacement parameters only along directions that the site
symmetry allows; `structure_factors` sums over the asymmetric unit and the symmetry operators.
Form factors are the Gaussians that the Structure carries (Peng et al. 1996,
doi:10.1107/S0108767395014371), valid to s = |g|/2 = 2 A^-1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jacfwd

from . import freedom
from .calls import call
from .data import Structure
from .freedom import metric
from .records import InputError
from .valence import (
    INDEPENDENT_ATOMS,
    Shells,
    Valence,
    ValenceSettings,
    neutral_charges,
    shared_electrons,
)

G_LIMIT = 4.0  # A^-1, where the tabulated form factors end
SITE_UNIT = 0.01  # A, the step in which free site parameters are counted
U_UNIT = 0.003  # A^2, the same for displacement parameters: equal curvatures help the optimiser
OCC_UNIT = 0.05  # and for occupancies
_CHUNK_ELEMENTS = 200_000  # reflections x operators x atoms at once: what caches hold


def cell_volume(cell: Tensor) -> float:
    """Return the cell volume in A^3."""
    return float(torch.linalg.det(metric(cell)).sqrt())


def reciprocal_length_sq(cell: Tensor, hkl: Tensor) -> Tensor:
    """Return |g|^2 in A^-2 of reflections hkl (..., 3)."""
    g_star = torch.linalg.inv(metric(cell)).to(hkl.device)
    h = hkl.to(torch.float64)
    return torch.einsum("...i,ij,...j->...", h, g_star, h)


class Atoms(NamedTuple):
    """What makes each of A atoms scatter as it does, apart from its element."""

    site: Tensor  # (A, 3) fractional
    u_iso: Tensor  # (A,) A^2
    u_star: Tensor  # (A, 6)
    occ: Tensor  # (A,)
    charge: Tensor  # (A,) e
    dipole: Tensor  # (A, 3) e times fractional coordinates

    @classmethod
    def of(cls, structure: Structure) -> Atoms:
        """Return the atoms of a structure, without charges and dipoles."""
        none = torch.zeros_like(structure.site)
        values = (getattr(structure, name) for name in cls._fields[:4])
        return cls(*values, none[:, 0], none)


class CrystalModel(nn.Module):
    """Sites, displacement parameters and valence of a structure as free parameters.

    Parameters (zero at the start): `site_shift` in SITE_UNIT, `u_shift` in U_UNIT and
    `occ_shift` in OCC_UNIT, of each free parameter that the structure's `Freedom` has;
    `charge_shift` and `dipole_shift`, in the sigma of their priors.
    """

    def __init__(self, structure: Structure, valence: ValenceSettings = INDEPENDENT_ATOMS):
        super().__init__()
        self.structure = structure
        by_symmetry = freedom.basis(structure)
        free = structure.freedom or by_symmetry
        self.register_buffer("site_basis", free.site)
        self.register_buffer("u_iso_basis", free.u_iso)
        self.register_buffer("u_star_basis", free.u_star)
        self.register_buffer("occ_basis", free.occ)
        # an atom that rides, or is fixed, has a dipole of its own
        self.register_buffer("dipole_basis", by_symmetry.site)
        new = torch.zeros
        self.site_shift = nn.Parameter(new(len(self.site_basis), dtype=torch.float64))
        self.u_shift = nn.Parameter(new(len(self.u_iso_basis), dtype=torch.float64))
        self.occ_shift = nn.Parameter(new(len(self.occ_basis), dtype=torch.float64))
        self.valence_settings = valence
        radii = valence.radii(structure.elements) if valence.model != "none" else []
        self.register_buffer("charge_radius", torch.tensor(radii, dtype=torch.float64))
        self.register_buffer("charge_basis", self._charge_basis(structure, valence))
        dipoles = len(self.dipole_basis) if valence.model == "dipole" else 0
        self.charge_shift = nn.Parameter(new(len(self.charge_basis), dtype=torch.float64))
        self.dipole_shift = nn.Parameter(new(dipoles, dtype=torch.float64))

    @staticmethod
    def _charge_basis(structure: Structure, valence: ValenceSettings) -> Tensor:
        """(P, K) charges of the elements per free parameter, in the prior's sigma."""
        count = torch.zeros(len(structure.elements), dtype=torch.float64)
        atoms = (structure.weight * structure.occ).to("cpu", torch.float64)
        count.index_add_(0, structure.type.cpu(), atoms)
        basis = neutral_charges(count)
        return basis if valence.model != "none" else basis[:0]

    def site(self) -> Tensor:
        """Fractional coordinates, (A, 3)."""
        return self.structure.site + torch.einsum(
            "p,pai->ai", SITE_UNIT * self.site_shift, self.site_basis
        )

    def u_iso(self) -> Tensor:
        """Isotropic displacement parameters, (A,) A^2."""
        return self.structure.u_iso + U_UNIT * self.u_shift @ self.u_iso_basis

    def u_star(self) -> Tensor:
        """Anisotropic displacement parameters, (A, 6), dimensionless u_star."""
        return self.structure.u_star + torch.einsum(
            "p,pai->ai", U_UNIT * self.u_shift, self.u_star_basis
        )

    def occ(self) -> Tensor:
        """Occupancies of the sites, (A,)."""
        return self.structure.occ + OCC_UNIT * self.occ_shift @ self.occ_basis

    def valence(self) -> Valence | None:
        """Charges and dipoles, None if the model has none."""
        settings = self.valence_settings
        if settings.model == "none":
            return None
        dipole = settings.dipole_sigma * self.dipole_shift
        basis = self.dipole_basis[: len(dipole)]
        return Valence(
            settings.charge_sigma * self.charge_shift @ self.charge_basis,
            torch.einsum("p,pai->ai", dipole, basis),
            self.shells(),
        )

    def shells(self) -> Shells | None:
        """The shells of the atoms' charges and dipoles, None if the model has none."""
        if self.valence_settings.model == "none":
            return None
        radius = self.charge_radius[self.structure.type]
        return Shells(radius, torch.full_like(radius, self.valence_settings.radius))

    def atoms(self) -> Atoms:
        """Return what each atom scatters by; it is linear in the parameters."""
        valence, structure = self.valence(), self.structure
        atoms = Atoms.of(structure)._replace(
            site=self.site(), u_iso=self.u_iso(), u_star=self.u_star(), occ=self.occ()
        )
        if valence is None:
            return atoms
        return atoms._replace(charge=valence.charge[structure.type], dipole=valence.dipole)

    @property
    def count(self) -> int:
        """The number P of free parameters."""
        return sum(p.numel() for p in self.parameters())

    def atom_slopes(self) -> Atoms:
        """Return the derivatives of `atoms` by the P free parameters, with P > 0 as last axis."""

        def atoms(flat: Tensor) -> Atoms:
            values = {name: flat[part] for name, part in self.slices().items()}
            return call(lambda crystal: crystal.atoms(), self, values)

        return jacfwd(atoms)(torch.cat([p.detach() for p in self.parameters()]))

    def forward(self, hkl: Tensor) -> Tensor:
        """Return F(g) in A of reflections hkl (M, 3); complex128 (M,)."""
        atoms = self.atoms()
        return in_chunks(self.structure, hkl, lambda h: self.of_atoms(h, atoms).sum(-1))

    def of_atoms(self, hkl: Tensor, atoms: Atoms) -> Tensor:
        """Return what each atom, with its copies by symmetry, adds to F(g) in A, (M, A)."""
        return _of_atoms(self.structure, hkl, atoms, self.shells())

    def slices(self) -> dict[str, slice]:
        """Return where each parameter lies in the vector of all, in their fixed order."""
        out, start = {}, 0
        for name, parameter in self.named_parameters():
            out[name] = slice(start, start + parameter.numel())
            start = out[name].stop
        return out

    @torch.no_grad()
    def step(self, x: Tensor) -> None:
        """Add a vector of steps to the parameters, in the order of `slices`."""
        for name, part in self.slices().items():
            getattr(self, name).add_(x[part])

    def prior_residuals(self) -> Tensor:
        """Return the residuals of the priors of charges and dipoles."""
        return torch.cat([self.charge_shift, self.dipole_shift])

    @torch.no_grad()
    def refined(self) -> Structure:
        """Return the structure with the parameters' present values."""
        return self.structure.replace(
            site=self.site().clone(),
            u_iso=self.u_iso().clone(),
            u_star=self.u_star().clone(),
            occ=self.occ().clone(),
        )


def form_factors(structure: Structure, s_sq: Tensor) -> Tensor:
    """Return f_e (M, K) in A at s^2 = |g|^2/4 (M,) in A^-2.

    Raises InputError beyond s = 2 A^-1, where the tables end.
    """
    limit = (G_LIMIT / 2) ** 2
    if len(s_sq) and float(s_sq.max()) > limit * (1 + 1e-9):
        raise InputError(
            f"structure factors are needed to |g| = {2 * float(s_sq.max()) ** 0.5:.2f} A^-1, the "
            f"electron form factors end at {G_LIMIT} A^-1; set beams.g_max to "
            f"{G_LIMIT / 2} or less"
        )
    a, b = structure.ff_a, structure.ff_b
    return (a * torch.exp(-b * s_sq[:, None, None])).sum(-1)


def structure_factors(
    structure: Structure,
    hkl: Tensor,
    site: Tensor,
    u_iso: Tensor,
    u_star: Tensor,
    valence: Valence | None = None,
) -> Tensor:
    """Return F(g) = sum f_e occ T exp(2 pi i g.r) in A, complex128 (M,), for hkl (M, 3).

    The sign is the crystallographers' (International Tables B, 1.2); the order of indices in the
    room model takes it to the convention of the wave equation. `valence`, if given, adds what
    charges and dipoles scatter. Differentiable in all but the structure: site (A, 3), u_iso (A,)
    in A^2, u_star (A, 6), charge and dipole.
    """
    atoms, shells = Atoms.of(structure)._replace(site=site, u_iso=u_iso, u_star=u_star), None
    if valence is not None:
        charge, shells = valence.charge[structure.type], valence.shells
        atoms = atoms._replace(charge=charge, dipole=valence.dipole)
    return in_chunks(structure, hkl, lambda h: _of_atoms(structure, h, atoms, shells).sum(-1))


def in_chunks(structure: Structure, hkl: Tensor, calculate: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what `calculate` gives (m, ...) of some reflections (m, 3), of all hkl (M, 3)."""
    per_row = len(structure.sym_rot) * len(structure.labels)
    chunks = hkl.split(max(1, _CHUNK_ELEMENTS // per_row))
    return torch.cat([calculate(some) for some in chunks])


def _of_atoms(structure: Structure, hkl: Tensor, atoms: Atoms, shells: Shells | None) -> Tensor:
    """What each atom adds to F(g), (M, A); without `shells` that of free, spherical atoms."""
    g_sq = reciprocal_length_sq(structure.cell, hkl)
    h_rot, angle = rotated(structure, hkl, atoms.site)
    waves = torch.polar(_damping(structure, h_rot, atoms.u_star), angle)
    u_iso = torch.where(structure.anisotropic, torch.zeros_like(atoms.u_iso), atoms.u_iso)
    share = torch.exp(-2 * math.pi**2 * g_sq[:, None] * u_iso) * (atoms.occ * structure.weight)
    f = form_factors(structure, g_sq / 4)[:, structure.type]
    found = waves.sum(1) * f
    if shells is not None:
        charge, dipole = atoms.charge, atoms.dipole
        found = found + shared_electrons(g_sq / 4, h_rot, waves, charge, dipole, shells)
    return found * share


def _damping(structure: Structure, h_rot: Tensor, u_star: Tensor) -> Tensor:
    """Factors (M, S, A) by which atoms that vibrate anisotropically scatter less; others one."""
    if not structure.anisotropic.any():
        return h_rot.new_ones(()).expand(*h_rot.shape[:2], len(u_star))
    u_star = torch.where(structure.anisotropic[:, None], u_star, torch.zeros_like(u_star))
    return torch.exp(-2 * math.pi**2 * quadratic(h_rot, u_star))


def rotated(structure: Structure, hkl: Tensor, site: Tensor) -> tuple[Tensor, Tensor]:
    """Return h R (M, S, 3) of hkl (M, 3), and the phases 2 pi h.(R x + t) (M, S, A) of sites."""
    h = hkl.to(torch.float64)
    # h.(R x + t) = (h R).x + h.t: rotate the index, not the atoms
    h_rot = torch.einsum("mi,sij->msj", h, structure.sym_rot)
    phase = torch.einsum("msj,aj->msa", h_rot, site)
    return h_rot, 2 * math.pi * (phase + (h @ structure.sym_trans.T)[:, :, None])


def quadratic(h_rot: Tensor, u_star: Tensor) -> Tensor:
    """Return h U* h (M, S, A) of rotated indices (M, S, 3) and u_star (A, 6)."""
    x, y, z = h_rot.unbind(-1)
    products = torch.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], dim=-1)
    return torch.einsum("msk,ak->msa", products, u_star)
