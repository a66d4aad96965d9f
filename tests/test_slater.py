"""Sizes of valence shells."""

import pytest

from dials_hybrid.electron import BOHR
from dials_hybrid.slater import SYMBOLS, valence_radius


def test_hydrogen_is_exact():
    """<r^2> = 3 a_0^2."""
    assert valence_radius("H") == pytest.approx(3**0.5 * BOHR)


@pytest.mark.parametrize(
    ("symbol", "charge", "effective"),
    # Z - s of the examples of the paper and of textbooks, n*
    [("C", 3.25, 2), ("O", 4.55, 2), ("Na", 2.2, 3), ("Si", 4.15, 3), ("K", 2.2, 3.7)],
)
def test_what_is_screened(symbol, charge, effective):
    zeta = charge / effective
    expected = BOHR * ((2 * effective + 1) * (2 * effective + 2)) ** 0.5 / (2 * zeta)
    assert valence_radius(symbol) == pytest.approx(expected)


@pytest.mark.parametrize(("symbol", "hartree_fock"), [("O", 0.65), ("Si", 1.30)])
def test_near_the_exponents_of_self_consistent_fields(symbol, hartree_fock):
    """Of E. Clementi & D. L. Raimondi 1963, doi:10.1063/1.1733573, which are tabulated."""
    assert valence_radius(symbol) == pytest.approx(hartree_fock, rel=0.12)


def test_every_element_has_a_shell():
    for symbol in SYMBOLS:
        assert 0.2 < valence_radius(symbol) < 6


def test_a_symbol_of_no_element():
    with pytest.raises(ValueError, match="Xx"):
        valence_radius("Xx")
