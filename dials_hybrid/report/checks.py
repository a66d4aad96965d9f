"""What a crystallographer should look at before a result is published, in plain words.

Every check is a function that returns what it found, an empty list when all is well. Limits are
those of common practice (as in A. L. Spek 2003, doi:10.1107/S0021889802022112); none is a proof.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..data import Problem, Result, Structure
from ..freedom import least_u, u_equivalent
from .arrays import Arrays, arrays, as_numpy, r1_by
from .contacts import nearest, radii

ALERT, NOTE = "alert", "note"

SMALL_U, LARGE_U = 0.001, 0.15  # A^2
SHORT = 0.75  # of the sum of the covalent radii; the shortest bond, of N2, has 0.77
FULL = 1.01  # occupancies of two atoms of one place add up to less
FEWEST = 8  # reflections of a frame, and frames, that say something
OUTLYING = 5.0  # robust standard deviations
FRAME_RATIO = 1.5  # of R1 to the usual one
JUMP, JUMP_RATIO = 0.1, 6.0  # degree, and times the usual change between frames
FAR_TURN = 1.0  # degree
EDGE_WEIGHT = 0.05  # of p(t) in the last tenth of the grid
THIN_WEIGHT = 0.1  # of p(t) in the first tenth
STRETCHED = 3.0  # standard deviations of a prior
FREE_RATIO, FREE_MARGIN, FREE_FEWEST = 1.3, 0.02, 10
POOR_SITE, ODD_SITE, SITE_RATIO = 0.05, 0.02, 5.0  # A, A, times the usual s.u.
_NAMED = 6


@dataclass(frozen=True)
class Check:
    """One thing to look at. `kind` is for programs, `text` for people."""

    kind: str
    severity: str  # ALERT, something is wrong; NOTE, something is unusual
    text: str


def find(problem: Problem, result: Result, contract: dict) -> list[dict]:
    """Return what all checks found, alerts first, as plain values for JSON.

    `contract` holds plain values already: sites, agreement factors, valence, convergence.
    """
    data, structure = arrays(problem, result), result.structure
    found = [
        *convergence(contract),
        *agreement(contract),
        *displacements(contract["sites"]),
        *indefinite(structure),
        *short_contacts(structure),
        *occupancies(structure),
        *valence(contract["valence"] or {}),
        *uncertainties(result),
        *bad_frames(data),
        *orientations(data),
        *thickness(data),
    ]
    found.sort(key=lambda check: check.severity != ALERT)
    return [dataclasses.asdict(check) for check in found]


def _names(words) -> str:
    """Return a list in words, cut after the first few."""
    words = list(words)
    rest = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


# --- agreement ------------------------------------------------------------------------------


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
            f"{100 * final:.1f} %: the model may fit noise."
        )
        found.append(Check("free_r", NOTE, text))
    return found


# --- atoms ----------------------------------------------------------------------------------


def displacements(sites: list[dict]) -> list[Check]:
    """Tell of U (U_eq) in A^2 that are negative, near zero or very large."""
    u = {site["label"]: site["u_iso"] for site in sites}
    kinds = (
        ("negative_u", ALERT, lambda x: x < 0, "negative U"),
        ("small_u", NOTE, lambda x: 0 <= x < SMALL_U, "U near zero"),
        ("large_u", NOTE, lambda x: x > LARGE_U, "very large U"),
    )
    found = []
    for kind, severity, odd, what in kinds:
        names = [f"{label} ({value:.4f} Å²)" for label, value in u.items() if odd(value)]
        if names:
            text = f"Atoms of {what}: {_names(names)}. Look at element, occupancy and absorption."
            found.append(Check(kind, severity, text))
    return found


def indefinite(structure: Structure) -> list[Check]:
    """Tell of anisotropic atoms whose U tensor is not positive definite."""
    smallest = as_numpy(least_u(structure))
    bad = structure.anisotropic.cpu().numpy() & (smallest <= 0)
    if not bad.any():
        return []
    names = [f"{structure.labels[i]} ({smallest[i]:.4f} Å²)" for i in np.flatnonzero(bad)]
    text = (
        f"Displacement tensors that are not positive definite, with their smallest principal U: "
        f"{_names(names)}. Make these atoms isotropic, or restrain them."
    )
    return [Check("not_positive_definite", ALERT, text)]


def short_contacts(structure: Structure) -> list[Check]:
    """Tell of atoms that come nearer than any bond is short, alternatives of one place left out."""
    size, occ = radii(structure), as_numpy(structure.occ)
    names = [
        f"{structure.labels[i]}–{structure.labels[j]} {distance:.2f} Å"
        for i, j, distance in nearest(structure, 2 * SHORT * size.max())
        if distance < SHORT * (size[i] + size[j]) and occ[i] + occ[j] > FULL
    ]
    if not names:
        return []
    return [Check("short_contact", ALERT, f"Atoms too near to one another: {_names(names)}.")]


def occupancies(structure: Structure) -> list[Check]:
    """Tell of occupancies below zero or above one."""
    occ = as_numpy(structure.occ)
    odd = np.flatnonzero((occ < 0) | (occ > FULL))
    if len(odd) == 0:
        return []
    names = _names(f"{structure.labels[i]} ({occ[i]:.3f})" for i in odd)
    return [Check("occupancy", ALERT, f"Occupancies outside of 0 to 1: {names}.")]


def valence(found: dict) -> list[Check]:
    """Tell of charges and dipoles that only their prior holds."""
    names = []
    for element, q in found.get("charge", {}).items():
        if abs(q["value"]) > STRETCHED * found["charge_sigma"]:
            names.append(f"charge of {element} ({q['value']:.2f} e)")
    for label, dipole in found.get("dipole", {}).items():
        if max(map(abs, dipole["value"])) > STRETCHED * found["dipole_sigma"]:
            names.append(f"dipole of {label}")
    if not names:
        return []
    text = f"Much larger than expected, held by the prior alone: {_names(names)}."
    return [Check("at_limit", NOTE, text)]


def uncertainties(result: Result) -> list[Check]:
    """Tell of coordinates and U that the data hardly determine."""
    structure, found = result.structure, []
    su = np.nan_to_num(as_numpy(result.site_su)).max(1)
    usual = np.median(su[su > 0]) if (su > 0).any() else 0.0
    odd = (su > POOR_SITE) | ((su > ODD_SITE) & (su > SITE_RATIO * usual))
    if odd.any():
        names = _names(f"{structure.labels[i]} ({su[i]:.3f} Å)" for i in np.flatnonzero(odd))
        text = f"Unusually large s.u. of the position: {names}."
        found.append(Check("large_site_su", NOTE, text))
    u = as_numpy(u_equivalent(structure))
    loose = np.flatnonzero(np.nan_to_num(as_numpy(result.u_su)) > np.abs(u))
    if len(loose):
        names = _names(structure.labels[i] for i in loose)
        text = f"The s.u. of U is larger than U itself: {names}."
        found.append(Check("large_u_su", NOTE, text))
    return found


# --- scan -----------------------------------------------------------------------------------


def bad_frames(data: Arrays) -> list[Check]:
    """Tell of blocks whose R1 lies far above that of the others."""
    use, n = data.observed & ~data.free, len(data.block_angle)
    r1 = r1_by(data.block[use], n, data.i_obs[use], data.i_dynamical[use])
    many = np.bincount(data.block[use], minlength=n) >= FEWEST
    if many.sum() < FEWEST:
        return []
    usual = np.median(r1[many])
    spread = 1.4826 * np.median(np.abs(r1[many] - usual))
    limit = max(usual + OUTLYING * spread, FRAME_RATIO * usual)
    bad = np.flatnonzero(many & (np.nan_to_num(r1) > limit))
    if len(bad) == 0:
        return []
    worst = bad[np.argsort(-r1[bad])]
    names = _names(f"{_where(data, i)} ({100 * r1[i]:.0f} %)" for i in worst)
    text = (
        f"Blocks of frames with R1 far above the usual {100 * usual:.1f} %: {names}. Look at their "
        "orientation, at zone axes and at the images."
    )
    return [Check("bad_frames", NOTE, text)]


def _where(data: Arrays, block: int) -> str:
    """Return where a block is, for people."""
    angle = f"{data.block_angle[block]:.1f}°"
    place = next(i for i, blocks in enumerate(data.sweeps) if block in blocks)
    return angle if len(data.sweeps) == 1 else f"{angle} of sweep {place + 1}"


def orientations(data: Arrays) -> list[Check]:
    """Tell of jumps of the refined orientation between blocks, and of large turns."""
    before, after = [], []
    for blocks in data.sweeps:
        gap = np.diff(data.block_angle[blocks])
        near = gap <= 3 * np.median(gap) if len(gap) else gap.astype(bool)
        before += blocks[:-1][near].tolist()
        after += blocks[1:][near].tolist()
    change = np.linalg.norm(data.tilt[after] - data.tilt[before], axis=1)
    found = []
    if len(change) >= FEWEST:
        jumps = np.flatnonzero(change > max(JUMP, JUMP_RATIO * np.median(change)))
        names = _names(f"{_where(data, after[k])} ({change[k]:.2f}°)" for k in jumps)
        if len(jumps):
            text = (
                f"The refined orientation jumps at {names}: the crystal moved, or indexing is poor."
            )
            found.append(Check("orientation_jump", NOTE, text))
    largest = np.linalg.norm(data.tilt, axis=1)
    if largest.max() > FAR_TURN:
        text = (
            f"The orientation was turned by up to {largest.max():.1f}° (at "
            f"{_where(data, int(largest.argmax()))}): refine the geometry in DIALS or PETS first."
        )
        found.append(Check("large_turn", NOTE, text))
    return found


def thickness(data: Arrays) -> list[Check]:
    """Tell of weight of p(t) at either end of the grid."""
    tenth = len(data.depth) // 10
    if tenth == 0:
        return []
    last, first = (
        data.thickness[:, part].sum(1).mean() for part in (slice(-tenth, None), slice(tenth))
    )
    found = []
    if last > EDGE_WEIGHT:
        text = (
            f"{100 * last:.0f} % of the thickness distribution lie in the last tenth of the grid, "
            f"which ends at {data.depth[-1]:.0f} Å: raise depth.max."
        )
        found.append(Check("thickness_edge", ALERT, text))
    if first > THIN_WEIGHT:
        text = (
            f"{100 * first:.0f} % of the thickness distribution lie below "
            f"{data.depth[tenth - 1]:.0f} Å, where they soak up errors of the model."
        )
        found.append(Check("thickness_thin", NOTE, text))
    return found
