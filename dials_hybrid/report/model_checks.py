"""Checks of the model: parameters at their limits or not told apart, hand and indexing."""

from __future__ import annotations

import numpy as np

from ..data import LOWEST_U, Structure
from ..freedom import least_u
from .arrays import as_numpy
from .check import ALERT, NOTE, Check, listed

STRETCHED = 3.0  # standard deviations of a prior or a restraint
NEAR_FLOOR = 0.9  # of the lowest U that a refinement goes to
ONE_PARAMETER = 0.95  # |r| of parameters of the structure
BETTER = "undetermined: the other one agrees better"


def find(structure: Structure, contract: dict) -> list[Check]:
    """Return what the checks of the model found; see `checks.find`."""
    return [
        *limits(contract["valence"] or {}, contract["nuisance"], structure),
        *restraints(contract["restraints"]),
        *correlations(contract["correlations"]),
        *hand(contract["absolute_structure"] or {}),
        *indexing(contract["indexing_verdict"]),
    ]


def limits(valence: dict, nuisance: list[dict], structure: Structure) -> list[Check]:
    """Tell of charges, dipoles and corrections that only a prior holds, and of U at its floor."""
    found = []
    names = [*_of_valence(valence), *_of_corrections(nuisance)]
    if names:
        text = f"Much larger than expected, held by the prior alone: {listed(names)}."
        found.append(Check("at_limit", NOTE, text))
    lowest = as_numpy(least_u(structure))
    low = np.flatnonzero(lowest < NEAR_FLOOR * LOWEST_U)
    if len(low):
        names = [f"{structure.labels[i]} ({lowest[i]:.3f} Å²)" for i in low]
        text = f"U at the lowest value that a refinement goes to, {LOWEST_U} Å²: {listed(names)}."
        found.append(Check("u_at_floor", ALERT, text))
    return found


def _of_valence(found: dict) -> list[str]:
    names = []
    for element, q in found.get("charge", {}).items():
        if abs(q["value"]) > STRETCHED * found["charge_sigma"]:
            names.append(f"charge of {element} ({q['value']:.2f} e)")
    for label, dipole in found.get("dipole", {}).items():
        if max(map(abs, dipole["value"])) > STRETCHED * found["dipole_sigma"]:
            names.append(f"dipole of {label}")
    return names


def _of_corrections(terms: list[dict]) -> list[str]:
    return [
        f"{term['term'].rpartition(':')[2].replace('_', ' ')} ({term['stretched']:.1f} times "
        f"{term['expected']:g})"
        for term in terms
        if term.get("stretched", 0.0) > STRETCHED
    ]


def restraints(found: dict) -> list[Check]:
    """Tell of the worst restraint of each kind that the data contradict."""
    names = [
        f"{kind.replace('_', ' ')} of {' '.join(entry['worst']['atoms'])} "
        f"({entry['worst']['deviation_over_sigma']:.1f} sigma)"
        for kind, entry in found.items()
        if entry["worst"]["deviation_over_sigma"] > STRETCHED
    ]
    if not names:
        return []
    text = (
        f"Restraints that the data pull away from: {listed(names)}. Look for a wrong target, a "
        "sigma too small, or a wrong model."
    )
    return [Check("strained_restraint", NOTE, text)]


def correlations(pairs: list[dict]) -> list[Check]:
    """Tell of parameters of the structure that move as one."""
    names = [
        f"{pair['first']} and {pair['second']} ({pair['r']:+.2f})"
        for pair in pairs
        if abs(pair["r"]) > ONE_PARAMETER and set(pair.get("kinds", ())) == {"structure"}
    ]
    if not names:
        return []
    text = (
        f"The data hardly tell apart {listed(names)}: fix or restrain one of each, or look for "
        "symmetry that was missed."
    )
    return [Check("strong_correlation", NOTE, text)]


def hand(found: dict) -> list[Check]:
    """Tell of a hand that is not known, and of another one that was not refined to its end."""
    checks = _undetermined("absolute_structure", "The absolute structure", found.get("verdict"))
    if (found.get("refined") or {}).get("other_hand_converged") is False:
        text = (
            "The refinement of the other hand did not converge, so that its R1 may be too high: "
            "raise refinement.iterations before you tell the absolute structure."
        )
        checks.append(Check("other_hand_not_converged", NOTE, text))
    return checks


def indexing(sentence: str | None) -> list[Check]:
    """Tell of an indexing that is not known."""
    return _undetermined("indexing", "The indexing", sentence)


def _undetermined(kind: str, what: str, sentence: str | None) -> list[Check]:
    if not (sentence or "").startswith("undetermined"):
        return []
    severity = ALERT if sentence.startswith(BETTER) else NOTE
    return [Check(kind, severity, f"{what} is {sentence}.")]
