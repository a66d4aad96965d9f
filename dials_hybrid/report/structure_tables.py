"""The rows of tables on the structure: atoms, geometry, charges, restraints, difference map."""

from __future__ import annotations

from ..notation import with_uncertainty


def sites(contract: dict) -> list[dict]:
    """Return the sites with s.u. in parentheses."""
    return [
        {
            **site,
            "xyz": _numbers(site["xyz"], site["xyz_su"], 5),
            "u_iso": with_uncertainty(site["u_iso"], site["u_iso_su"], 4),
            "occupancy": _occupancy(site["occupancy"], site["occupancy_su"]),
        }
        for site in contract["sites"]
    ]


def _numbers(values, errors, digits: int) -> list[str]:
    pairs = zip(values, errors, strict=True)
    return [with_uncertainty(value, su, digits) for value, su in pairs]


def _occupancy(value: float, su: float | None) -> str:
    return with_uncertainty(value, su) if su else f"{value:.4g}"


def displacements(contract: dict) -> list[dict]:
    """Return U11 U22 U33 U12 U13 U23 of the anisotropic atoms, in A^2."""
    return [
        {"label": site["label"], "u": _numbers(site["u_aniso"], site["u_aniso_su"], 4)}
        for site in contract["sites"]
        if site["u_aniso"] is not None
    ]


def geometry(entries: list[dict], value: str, digits: int) -> list[dict]:
    """Return bonds or angles as their (label, symmetry code) and the value with its s.u."""
    return [
        {
            "ends": list(zip(entry["atoms"], entry["symmetry"], strict=True)),
            "value": with_uncertainty(entry[value], entry["su"], digits),
        }
        for entry in entries
    ]


def charges(contract: dict) -> list[dict]:
    """Return the charges of the elements in e."""
    found = (contract["valence"] or {}).get("charge") or {}
    return [
        {"element": element, "charge": with_uncertainty(q["value"], q["su"], 2)}
        for element, q in found.items()
    ]


def dipoles(contract: dict) -> list[dict]:
    """Return the dipoles of the atoms along the cell axes in e A, those that are free."""
    found = (contract["valence"] or {}).get("dipole") or {}
    return [
        {"label": label, "along": _numbers(m["value"], m["su"], 3)}
        for label, m in found.items()
        if any(m["su"])
    ]


def restraints(contract: dict) -> list[dict]:
    """Return, for each kind of restraint, its number and how far it is from its targets."""
    return [
        {
            "kind": kind.replace("_", " "),
            "number": found["number"],
            "rms": f"{found['rms']:.2f}",
            "worst": f"{found['worst']['deviation_over_sigma']:.2f}",
            "atoms": " ".join(found["worst"]["atoms"]),
        }
        for kind, found in contract["restraints"].items()
    ]


def peaks(contract: dict) -> list[dict]:
    """Return the peaks and holes of the difference map, the largest first."""
    found = contract["map_peaks"] or {"peaks": [], "holes": []}
    both = sorted([*found["peaks"], *found["holes"]], key=lambda p: -abs(p["height"]))
    return [
        {
            "xyz": [f"{x:.4f}" for x in peak["xyz"]],
            "height": f"{peak['height']:+.2f}",
            "sigma": f"{peak['sigma']:+.1f}",
            "atom": peak["atom"],
            "distance": f"{peak['distance']:.2f}",
        }
        for peak in both
    ]
