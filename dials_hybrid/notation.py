"""Numbers as crystallographers write them: 0.4697(3)."""

from __future__ import annotations

import math
import re

ROUNDING = 1e-9  # a s.u. below it is that of a parameter which symmetry holds, and rounding
UNKNOWN = "–"


def with_uncertainty(value: float | None, su: float | None, digits: int = 6) -> str:
    """Return a number with its standard uncertainty in parentheses, in units of the last digit.

    The s.u. keeps two figures up to 19 and one beyond, 0.4697(3) or 0.46970(14); larger ones are
    in whole units, 620(34). Where it is not known (None, not finite, or zero) the number has
    `digits` decimals. A dash stands for None.
    """
    if value is None:
        return UNKNOWN
    if su is None or not math.isfinite(su) or su <= ROUNDING:
        return _without_negative_zero(f"{value:.{digits}f}")
    decimals = 1 - math.floor(math.log10(su))
    decimals = max(0, decimals - (round(su * 10**decimals) > 19))
    return _without_negative_zero(f"{value:.{decimals}f}") + f"({round(su * 10**decimals)})"


def _without_negative_zero(text: str) -> str:
    return re.sub(r"^-(0\.?0*)$", r"\1", text)
