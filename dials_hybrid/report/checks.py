"""What a crystallographer should look at before a result is published, in plain words.

Every check is a function that returns what it found, an empty list when all is well. Limits are
those of common practice (as in A. L. Spek 2003, doi:10.1107/S0021889802022112); none is a proof.
Those of the atoms, of the model and of the scan have rooms of their own.
"""

from __future__ import annotations

import dataclasses

from ..data import Problem, Result
from . import atom_checks, model_checks, scan_checks
from .arrays import arrays
from .check import ALERT, NOTE, Check

FREE_RATIO, FREE_MARGIN, FREE_FEWEST = 1.3, 0.02, 10


def find(problem: Problem, result: Result, contract: dict) -> list[dict]:
    """Return what all checks found, alerts first, as plain values for JSON.

    `contract` holds plain values already: sites, agreement factors, valence, convergence.
    """
    data = arrays(problem, result)
    found = [
        *convergence(contract),
        *agreement(contract),
        *atom_checks.find(result, contract),
        *model_checks.find(result.structure, contract),
        *scan_checks.find(data),
    ]
    found.sort(key=lambda check: check.severity != ALERT)
    return [dataclasses.asdict(check) for check in found]


def convergence(contract: dict) -> list[Check]:
    """Tell when the refinement was stopped before its end."""
    if contract["converged"]:
        return []
    text = f"The refinement did not converge: {contract['stop_reason']}. Continue it."
    return [Check("not_converged", ALERT, text)]


def agreement(contract: dict) -> list[Check]:
    """Tell of held-out reflections that agree much worse, and of a useless dynamical model."""
    final, kinematic = contract["final"]["r1_obs"], contract["kinematic"]["r1_obs"]
    free, found = contract["free"], []
    if final is None:
        return []
    if kinematic is not None and final >= kinematic:
        text = (
            f"The dynamical model (R1 {100 * final:.1f} %) is no better than the kinematic one "
            f"({100 * kinematic:.1f} %): look for a wrong hand, orientation or cell."
        )
        found.append(Check("no_better_than_kinematic", ALERT, text))
    held_out = free["r1_obs"]
    enough = held_out is not None and (free["n"] or 0) >= FREE_FEWEST
    if enough and held_out > FREE_RATIO * final + FREE_MARGIN:
        text = (
            f"R1 of the {free['n']} held-out reflections, {100 * held_out:.1f} %, is much above "
            f"{100 * final:.1f} %: the model may fit noise. R1 with each reflection left out "
            "once says more than so few."
        )
        found.append(Check("free_r", NOTE, text))
    return found
