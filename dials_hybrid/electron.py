"""Relativistic electron optics: wavelength, voltage and the interaction constant.

Constants are the CODATA 2018 values. Lengths are in Angstrom, voltages in volt.
Formulae: E. J. Kirkland, Advanced Computing in Electron Microscopy, 3rd ed., 2020,
doi:10.1007/978-3-030-33260-0, section 2.3.
"""

from __future__ import annotations

import math

PLANCK = 6.62607015e-34  # J s
ELECTRON_MASS = 9.1093837015e-31  # kg
ELEMENTARY_CHARGE = 1.602176634e-19  # C
SPEED_OF_LIGHT = 299792458.0  # m / s
REST_ENERGY_V = ELECTRON_MASS * SPEED_OF_LIGHT**2 / ELEMENTARY_CHARGE  # about 511 kV
ANGSTROM = 1e-10  # m
BOHR = 0.529177210903  # A


def wavelength(voltage: float) -> float:
    """Return the relativistic wavelength (A) of electrons accelerated by `voltage` (V).

    Raises ValueError unless the voltage is positive.
    """
    if not voltage > 0:
        raise ValueError(f"the accelerating voltage must be positive, not {voltage}")
    energy = ELEMENTARY_CHARGE * voltage
    momentum_sq = 2 * ELECTRON_MASS * energy * (1 + voltage / (2 * REST_ENERGY_V))
    return PLANCK / math.sqrt(momentum_sq) / ANGSTROM


def voltage(wavelength_: float) -> float:
    """Return the accelerating voltage (V) that gives the wavelength (A); inverse of `wavelength`.

    Raises ValueError unless the wavelength is positive.
    """
    if not wavelength_ > 0:
        raise ValueError(f"the wavelength must be positive, not {wavelength_}")
    pc = PLANCK * SPEED_OF_LIGHT / (wavelength_ * ANGSTROM) / ELEMENTARY_CHARGE
    # sqrt(pc^2 + m^2) - m without the cancellation at low energy
    return pc**2 / (math.hypot(pc, REST_ENERGY_V) + REST_ENERGY_V)


def lorentz_factor(wavelength_: float) -> float:
    """Return gamma = 1 + eV / mc^2 of electrons of the given wavelength (A)."""
    return 1 + voltage(wavelength_) / REST_ENERGY_V


def potential_factor(wavelength_: float, cell_volume: float) -> float:
    """Return gamma / (pi V) in A^-3: multiplies F(g) in A to give U_g in A^-2."""
    return lorentz_factor(wavelength_) / (math.pi * cell_volume)
