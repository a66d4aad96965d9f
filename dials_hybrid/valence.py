"""Valence electrons: what tabulated form factors of free, spherical atoms leave out.

In a crystal atoms share electrons. Electron scattering sees it in the low orders, by the
Mott-Bethe relation (N. F. Mott 1930, doi:10.1098/rspa.1930.0082; H. Bethe 1930,
doi:10.1002/andp.19303970302)

    delta f_e(g) = (q + 2 pi i g.mu) exp(-b s^2) / (8 pi^2 a_0 s^2),  s = |g| / 2,

for a charge q (units of e, positive where electrons were lost) and a dipole moment mu (e A) of
an atom, the first two terms of a multipole expansion (N. K. Hansen & P. Coppens 1978,
doi:10.1107/S0567739478001886), spread over a Gaussian valence shell with
b = 8 pi^2 <r^2> / 3. Without the dipoles the sites answer for them. An electron leaves the
outermost shell of one element for that of another, which may be half as wide: for charges each
element has a radius of its own. Dipoles are of what is left, whose size differs less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .electron import BOHR
from .slater import valence_radius

MOTT_BETHE = 1 / (8 * math.pi**2 * BOHR)  # A^-1
MODELS = ("none", "charge", "dipole")


@dataclass(frozen=True)
class ValenceSettings:
    """Which terms are refined, and the Gaussian priors that hold them.

    `model`: "none"; "charge", one charge per element, the cell neutral; "dipole", these and the
    dipole of every atom that its site symmetry allows. `charge_radius` is the r.m.s. radius in A of
    the shells that charges leave, None takes that of each element by Slater's rules; `radius` is
    that of dipoles. `charge_sigma` (e) and `dipole_sigma` (e A) are the expected sizes.
    """

    model: str = "dipole"
    radius: float = 0.68
    charge_radius: float | None = None
    charge_sigma: float = 0.3
    dipole_sigma: float = 0.2

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"ValenceSettings.model is {self.model}, not one of {MODELS}")

    def radii(self, elements: tuple[str, ...]) -> list[float]:
        """Return the r.m.s. radii in A of the shells that the charges of elements leave.

        Raises ValueError where a symbol is none of an element.
        """
        given = self.charge_radius
        return [valence_radius(element) if given is None else given for element in elements]


INDEPENDENT_ATOMS = ValenceSettings("none")


@dataclass(frozen=True)
class Shells:
    """R.m.s. radii of the shells of A atoms, in A."""

    charge: Tensor  # (A,)
    dipole: Tensor  # (A,)


@dataclass(frozen=True)
class Valence:
    """Charges and dipoles of a structure of A atoms and K elements."""

    charge: Tensor  # (K,) e
    dipole: Tensor  # (A, 3) e times fractional coordinates
    shells: Shells


def shell_form_factor(s_sq: Tensor, radius: Tensor) -> Tensor:
    """Return the form factors (M, A) of unit charges in A at s^2 (M,) in A^-2; zero at s = 0.

    There the charges of a neutral cell cancel, and its dipole has no meaning in the bulk. `radius`
    (A,) is that of the shells in A.
    """
    b = 8 * math.pi**2 * radius**2 / 3
    away = (s_sq > 0)[:, None]
    safe = torch.where(away, s_sq[:, None], 1.0)
    return MOTT_BETHE * torch.exp(-b * safe) / safe * away


def shared_electrons(
    s_sq: Tensor, h_rot: Tensor, waves: Tensor, charge: Tensor, dipole: Tensor, shells: Shells
) -> Tensor:
    """Return what charges and dipoles of A atoms add to F(g) in A, (M, A), at s^2 (M,) in A^-2.

    `waves` (M, S, A) are what their copies by symmetry add to a sum of unit scatterers, at rotated
    indices h_rot (M, S, 3); `charge` (A,) is in e, `dipole` (A, 3) in e times fractional
    coordinates.
    """
    turned = torch.einsum("msj,aj->msa", h_rot, dipole)
    charges = charge * shell_form_factor(s_sq, shells.charge) * waves.sum(1)
    dipoles = shell_form_factor(s_sq, shells.dipole) * (waves * turned).sum(1)
    return charges + 2j * math.pi * dipoles


def neutral_charges(count: Tensor) -> Tensor:
    """Return an orthonormal basis (K - 1, K) of charges that leave the cell neutral.

    `count` (K,) is the number of atoms of each element.
    """
    return torch.linalg.svd(count[None].to(torch.float64))[2][1:]
