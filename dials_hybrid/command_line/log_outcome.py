"""The outcome of a refinement in the log."""

from __future__ import annotations

import logging
import math

from .. import api
from ..notation import with_uncertainty

logger = logging.getLogger("dials.hybrid.command_line")


def log_outcome(outcome: api.Outcome) -> None:
    """Log the R factors and the refined atoms."""
    c = outcome.contract
    final, start = c["final"], c["start"]
    logger.info("\n%s: %s", "Converged" if c["converged"] else "Stopped", c["stop_reason"])
    logger.info(
        "R1(obs) kinematic %.4f, dynamical before %.4f, after %.4f (all %.4f); free %s\n"
        "R1(obs) with each reflection left out once %s, of merged amplitudes %s\n"
        "wR2 %.4f, GooF %.2f, %d reflections, %d above 3 sigma, %d parameters",
        c["kinematic"]["r1_obs"],
        start["r1_obs"],
        final["r1_obs"],
        final["r1_all"],
        *(
            "-" if c[name]["r1_obs"] is None else f"{c[name]['r1_obs']:.4f}"
            for name in ("free", "cross_validated", "merged")
        ),
        final["wr2_all"],
        final["gof"],
        c["n_all"],
        c["n_obs"],
        c["n_parameters"],
    )
    mean = c["thickness"]["mean"]
    logger.info("Mean thickness over the rotation: %.0f to %.0f A", min(mean), max(mean))
    stiffness = c["scale"]["stiffness"]  # results of earlier versions have none
    logger.info("Stiffness of the scale: %s\n", "-" if stiffness is None else f"{stiffness:.3g}")
    rows = "\n".join(_atom_rows(c["sites"]))
    logger.info("Refined structure, %s\n%s\n", c["space_group"], rows)
    _log_valence(c["valence"] or {})
    _log_nuisance(c["nuisance"])
    _log_restraints(c["restraints"])
    _log_correlations(c)
    logger.info("Absolute structure: %s\n", c["absolute_structure"]["verdict"])
    if c["indexing_verdict"]:
        logger.info("Indexing: %s\n", c["indexing_verdict"])
    _log_peaks(c["map_peaks"])
    if c["checks"]:
        points = "\n".join(f"  {check['severity']}: {check['text']}" for check in c["checks"])
        logger.info("What to check:\n%s\n", points)


def _atom_rows(sites: list[dict]) -> list[str]:
    """Return a table of the atoms, with occupancies if any is refined."""
    occupied = any(site["occupancy_su"] for site in sites)
    head = ["x", "y", "z", "U", *(["occupancy"] if occupied else [])]
    rows = [("atom", head)]
    for site in sites:
        numbers = [*zip(site["xyz"], site["xyz_su"], strict=True)]
        numbers.append((site["u_iso"], site["u_iso_su"]))
        if occupied:
            numbers.append((site["occupancy"], site["occupancy_su"]))
        rows.append((site["label"], [with_uncertainty(value, su) for value, su in numbers]))
    return [f"  {label:<6} " + " ".join(f"{text:>12}" for text in row) for label, row in rows]


def _log_peaks(found: dict | None) -> None:
    """Log the highest peaks and deepest holes of the difference map."""
    if found is None:
        return
    rows = [f"  {'x':>8} {'y':>8} {'z':>8} {'V':>8} {'sigma':>7}  nearest atom"]
    for peak in [*found["peaks"][:3], *found["holes"][:2]]:
        xyz = " ".join(f"{x:8.4f}" for x in peak["xyz"])
        rows.append(
            f"  {xyz} {peak['height']:8.2f} {peak['sigma']:7.1f}  {peak['atom']}, "
            f"{peak['distance']:.2f} A"
        )
    logger.info("Difference map, r.m.s. %.2f V:\n%s\n", found["rms"], "\n".join(rows))


def _log_valence(valence: dict) -> None:
    """Log charges and dipoles, when there are any."""
    charges = [
        f"{element} {with_uncertainty(q['value'], q['su'])}"
        for element, q in valence.get("charge", {}).items()
    ]
    if charges:
        logger.info("Valence charges, e: %s", ", ".join(charges))
    dipoles = [
        f"{label} ({', '.join(map(with_uncertainty, m['value'], m['su']))})"
        for label, m in valence.get("dipole", {}).items()
        if any(m["su"])
    ]
    if dipoles:
        logger.info("Dipoles along the cell axes, e A: %s\n", ", ".join(dipoles))


def _log_nuisance(terms: list[dict]) -> None:
    """Log what the nuisance terms came to: the value, or the root mean square of several."""
    for term in terms:
        if term.get("width") == 0:
            logger.info("Nuisance term %s: the data do not ask for it", term["term"])
            continue
        for name, found in term.items():
            if not isinstance(found, dict):  # its name and size
                continue
            value, su = found["value"], found["su"]
            if len(value) == 1:
                told = with_uncertainty(value[0], su[0])
            else:
                rms = math.sqrt(sum(x * x for x in value) / len(value))
                told = f"{len(value)} values, r.m.s. {rms:.3g}"
            logger.info("Nuisance term %s, %s: %s", term["term"], name, told)


def _log_restraints(restraints: dict) -> None:
    """Log how many restraints there are and the largest deviation of each kind."""
    if not restraints:
        return
    rows = [f"  {'restraints':<20} {'number':>6} {'r.m.s./sigma':>12} {'worst/sigma':>11}  atoms"]
    for kind, found in restraints.items():
        worst = found["worst"]
        rows.append(
            f"  {kind.replace('_', ' '):<20} {found['number']:>6} {found['rms']:>12.2f} "
            f"{worst['deviation_over_sigma']:>11.2f}  {' '.join(worst['atoms'])}"
        )
    logger.info("%s\n", "\n".join(rows))


def _log_correlations(contract: dict) -> None:
    """Log the condition of the normal matrix and the strongest correlations."""
    condition, pairs = contract["condition"], contract["correlations"][:10]
    structure = condition["structure"]
    if condition["strong_correlations"] is None:  # a result of an earlier version
        return
    rows = [f"  {p['first']:<22} {p['second']:<22} {p['r']:6.2f}" for p in pairs]
    logger.info(
        "Condition of the normal matrix of the structure: %s; %d correlations above 0.5%s",
        f"{structure:.3g}" if structure else "-",
        condition["strong_correlations"],
        "".join(f"\n{row}" for row in rows) + "\n",
    )
