"""Numbers with their standard uncertainty."""

import math

import pytest

from dials_hybrid.notation import with_uncertainty


@pytest.mark.parametrize(
    "value, su, text",
    [
        (0.46971, 0.00034, "0.4697(3)"),
        (0.46971, 0.00014, "0.46971(14)"),
        (0.46971, 0.000194, "0.46971(19)"),
        (0.46971, 0.000196, "0.4697(2)"),
        (0.46971, 0.00096, "0.4697(10)"),
        (-0.00001, 0.0003, "0.0000(3)"),
        (-0.47053, 0.02, "-0.47(2)"),
        (0.0093, 0.012, "0.009(12)"),
        (12.3451, 0.5, "12.3(5)"),
        (620.4, 34.0, "620(34)"),
        (2 / 3, None, "0.66667"),
        (2 / 3, 0.0, "0.66667"),
        (-1e-9, math.nan, "0.00000"),
        (-0.5, math.inf, "-0.50000"),
        (6e-17, 3e-17, "0.00000"),
        (None, None, "–"),
    ],
)
def test_standard_uncertainties_stand_in_parentheses(value, su, text):
    assert with_uncertainty(value, su, digits=5) == text
