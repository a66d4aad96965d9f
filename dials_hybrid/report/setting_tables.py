"""The rows of tables on hand and indexing."""

from __future__ import annotations

import math

from ..notation import with_uncertainty
from .words import percent, probability, scalar


def candidates(contract: dict) -> list[dict]:
    """Return the indexings and hands that were tested before the refinement, the best first."""
    found = (contract["indexing"] or {}).get("candidates") or []
    scores = [(math.inf if c.get("r1_obs") is None else c["r1_obs"], c) for c in found]
    names = ("operator", "hand", "space_group")
    return [
        {**{name: scalar(c.get(name)) for name in names}, "r1_obs": percent(c.get("r1_obs"))}
        for _, c in sorted(scores, key=lambda pair: pair[0])
    ]


def chosen(contract: dict) -> str:
    """Return which of them was refined, in a sentence; empty if none was chosen."""
    found = contract["indexing"] or {}
    if "operator" not in found:
        return ""
    if not found.get("changed"):
        return "The structure was refined in the hand and the indexing that were given."
    hand = "inverted" if found.get("inverted") else "in the hand that was given"
    return f"The structure was refined {hand}, reindexed by {found['operator']}."


def settings(contract: dict) -> list[dict]:
    """Return the result and what it was compared with, as rows of a table."""
    return [
        {
            **row,
            "r1_obs": percent(row["r1_obs"]),
            "z": scalar(None) if row["z_score"] is None else f"{row['z_score']:+.1f}",
            "twin": with_uncertainty(row.get("twin_fraction"), row.get("twin_fraction_su")),
            "how": "refined" if row.get("refined", True) else "as it stands",
        }
        for row in contract["settings_refined"]
    ]


def absolute_structure(contract: dict) -> list[tuple[str, str]]:
    """Return (name, value) rows on two refined hands; none if one was not refined."""
    found = contract["absolute_structure"] or {}
    refined, z = found.get("refined") or {}, found.get("z_score")
    unseen = found.get("z_score_left_out")
    if not refined or z is None:
        return []
    own, other = refined["r1_obs"], refined["r1_obs_other_hand"]
    rows = [
        ("R1 of this hand", _of(percent(own), found.get("space_group"))),
        ("R1 of the other hand", _of(percent(other), refined.get("space_group_other_hand"))),
        ("Difference of R1", f"{100 * (other - own):+.2f} %"),
        ("z-score", f"{z:.1f} over {found['reflections']} reflections"),
        ("z-score, each left out once", scalar(None) if unseen is None else f"{unseen:.1f}"),
        ("Probability of this hand", probability(z)),
        (
            "Inversion-twin fraction",
            with_uncertainty(found["twin_fraction"], found["twin_fraction_su"]),
        ),
    ]
    if "other_hand_converged" in refined:
        rows.append(("Other hand converged", scalar(refined["other_hand_converged"])))
    return rows


def _of(value: str, group: str | None) -> str:
    return value if group is None else f"{value} ({group})"
