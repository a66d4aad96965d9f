"""Numbers and findings of a refinement in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..notation import UNKNOWN


def percent(value: float | None) -> str:
    """Return a fraction in per cent, three figures below 10 %."""
    if value is None:
        return UNKNOWN
    return f"{100 * value:.{2 if abs(value) < 0.0995 else 1}f} %"


def duration(seconds: float | None) -> str:
    """Return a time as a person says it."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes / 60:.1f} h"


def scalar(value) -> str:
    """Return a value of any kind, numbers with four figures."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{float(f'{value:.4g}'):.10g}"  # 12340, not 1.234e+04
    return UNKNOWN if value is None else str(value)


def trimmed(value: float, decimals: int) -> str:
    """Return a number without zeros at its end: 12.345, 90."""
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def probability(z: float | None) -> str:
    """Return Phi(z) with the digits that tell it from zero and from one: 1 − 7e-18."""
    if z is None:
        return UNKNOWN
    rest = 0.5 * math.erfc(abs(z) / math.sqrt(2))
    if rest > 0.01:
        return f"{1 - rest if z > 0 else rest:.3f}"
    return f"{'1 − ' if z > 0 else ''}{rest:.0e}"


def facts(mapping: Mapping | None, prefix: str = "") -> list[tuple[str, str]]:
    """Return (name, value) rows of a mapping."""
    return [(prefix + key.replace("_", " "), scalar(v)) for key, v in (mapping or {}).items()]


def sentence(finding: str | None, what: str) -> str:
    """Return a verdict as a sentence: The indexing is undetermined: ..."""
    return f"{what} is {finding}." if finding else ""


def outcome(contract: dict) -> str:
    """Return what came out in a few sentences: agreement, its end, absolute structure, indexing."""
    words = [_agreement(contract)]
    absolute = (contract["absolute_structure"] or {}).get("verdict") or ""
    if not absolute.startswith("not applicable"):
        words.append(sentence(_head(absolute), "The absolute structure"))
    words.append(sentence(_head(contract["indexing_verdict"]), "The indexing"))
    return " ".join(word for word in words if word)


def _head(verdict: str | None) -> str:
    """Return a verdict without the numbers behind it."""
    return (verdict or "").partition(": ")[0]


def _agreement(contract: dict) -> str:
    kinematic, final = contract["kinematic"]["r1_obs"], contract["final"]["r1_obs"]
    free = contract["free"]
    if final is None:
        found = "No dynamical agreement factor was computed"
    elif kinematic is None:
        found = f"R1 of the dynamical model is {percent(final)}"
    elif final < kinematic:
        found = (
            f"Dynamical refinement lowered R1 from {percent(kinematic)} (kinematic) "
            f"to {percent(final)}"
        )
    else:
        found = (
            f"Dynamical refinement did not lower R1: {percent(kinematic)} kinematic, "
            f"{percent(final)} dynamical"
        )
    if contract["n_obs"] is not None:
        found += f" over {contract['n_obs']} reflections with I > 3σ"
    if free["r1_obs"] is not None:
        found += f", and {percent(free['r1_obs'])} over {free['n']} held out"
    end = "it converged" if contract["converged"] else "it stopped before convergence"
    reason = contract["stop_reason"]
    return f"{found}; {end}{f' ({reason})' if reason else ''}."
