"""Sizes of valence shells, from Slater's rules.

An orbital of the principal quantum number n has the radial part r^(n* - 1) exp(-zeta r), with
zeta = (Z - s) / n* in inverse Bohr radii: what the other electrons screen of the nucleus, s, and
the effective n* are counted by rules (J. C. Slater 1930, doi:10.1103/PhysRev.36.57).
"""

from __future__ import annotations

import math

from .electron import BOHR

SYMBOLS = (
    *("H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S"),
    *("Cl", "Ar", "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga"),
    *("Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd"),
    *("Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm"),
    *("Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os"),
    *("Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa"),
    *("U", "Np", "Pu", "Am", "Cm", "Bk", "Cf"),
)
EFFECTIVE = (1.0, 2.0, 3.0, 3.7, 4.0, 4.2, 4.3)  # n* of n = 1, 2 ...; the last is extrapolated
SAME, SAME_FIRST, BELOW, INNER = 0.35, 0.30, 0.85, 1.0  # what an electron of a shell screens
# subshells (n, l) in the order in which they fill
FILLING = sorted(((n, k) for n in range(1, 8) for k in range(min(n, 4))), key=lambda x: (sum(x), x))


def valence_radius(symbol: str) -> float:
    """Return the r.m.s. radius in A of the outermost s and p electrons of a free atom.

    Raises ValueError where the symbol is none of an element.
    """
    shells = _electrons(symbol)
    n = max(shells)
    same = SAME if n > 1 else SAME_FIRST
    screened = same * (shells[n] - 1) + BELOW * shells.get(n - 1, 0)
    screened += INNER * sum(count for k, count in shells.items() if k < n - 1)
    effective = EFFECTIVE[n - 1]
    zeta = (sum(shells.values()) - screened) / effective
    return BOHR * math.sqrt((2 * effective + 1) * (2 * effective + 2)) / (2 * zeta)


def _electrons(symbol: str) -> dict[int, int]:
    """The numbers of electrons of each n of a free atom."""
    if symbol not in SYMBOLS:
        raise ValueError(f"{symbol} is not the symbol of an element up to {SYMBOLS[-1]}")
    left, shells = SYMBOLS.index(symbol) + 1, {}
    for n, k in FILLING:
        held = min(left, 2 * (2 * k + 1))
        if held:
            shells[n] = shells.get(n, 0) + held
        left -= held
    return shells
