"""Wavelengths, voltages and the interaction constant."""

import math

import pytest

from dials_hybrid import electron


# E. J. Kirkland, Advanced Computing in Electron Microscopy, table of wavelengths
@pytest.mark.parametrize(
    ("volts", "expected"), [(120e3, 0.033492), (200e3, 0.025079), (300e3, 0.019687)]
)
def test_wavelength_has_the_tabulated_value(volts, expected):
    assert electron.wavelength(volts) == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize("volts", [1.0, 1e3, 100e3, 300e3, 3e6])
def test_voltage_is_the_inverse_of_wavelength(volts):
    assert electron.voltage(electron.wavelength(volts)) == pytest.approx(volts, rel=1e-12)


def test_slow_electrons_have_the_classical_wavelength():
    # 12.2643 A / sqrt(V)
    assert electron.wavelength(1.0) == pytest.approx(12.26426, rel=1e-5)


@pytest.mark.parametrize("function", [electron.wavelength, electron.voltage])
@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_a_value_that_is_not_positive_is_refused(function, value):
    with pytest.raises(ValueError, match="must be positive"):
        function(value)


def test_lorentz_factor_at_200_kv():
    assert electron.lorentz_factor(electron.wavelength(200e3)) == pytest.approx(1.391390, abs=1e-6)


def test_potential_factor_gives_the_inner_potential_of_the_form_factors():
    # phi_0 = 2 pi a_0 (e / 4 pi eps_0) F(0) / V and U_0 = 2 gamma m e phi_0 / h^2
    volume, f_zero = 113.0, 41.0
    phi_zero = 2 * math.pi * 0.529177210903 * 14.3996454784 * f_zero / volume
    gamma = 1 + 200e3 / electron.REST_ENERGY_V
    per_volt = 2 * electron.ELECTRON_MASS * electron.ELEMENTARY_CHARGE / electron.PLANCK**2
    u_zero = electron.potential_factor(electron.wavelength(200e3), volume) * f_zero
    assert u_zero == pytest.approx(gamma * per_volt * electron.ANGSTROM**2 * phi_zero, rel=1e-8)
