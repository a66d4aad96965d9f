"""Loops of bonds, angles and restraints for the CIF of a refined structure."""

from __future__ import annotations

import iotbx.cif.model
from cctbx import geometry, sgtbx

from .data import Restraints
from .io_cctbx import with_uncertainty
from .io_restraint_entries import operator_of


def add_geometry(block, contract: dict) -> None:
    """Add the loops _geom_bond and _geom_angle of the `bonds` and `angles` in the JSON summary."""
    for name, places, digits in (("bond", 2, 4), ("angle", 3, 1)):
        entries = contract.get(f"{name}s") or []
        value = "length" if name == "bond" else "angle"
        ends = (1, 2) if places == 2 else (1, 3)
        columns = {
            **_labels(f"_geom_{name}", [entry["atoms"] for entry in entries], places),
            "_geom_bond_distance" if name == "bond" else "_geom_angle": [
                with_uncertainty(entry[value], entry["su"], digits) for entry in entries
            ],
            **{
                f"_geom_{name}_site_symmetry_{k}": [entry["symmetry"][k - 1] for entry in entries]
                for k in ends
            },
        }
        if entries:
            block.add_loop(iotbx.cif.model.loop(data=columns))


def _labels(stem: str, atoms: list[list[str]], places: int) -> dict:
    return {f"{stem}_atom_site_label_{k + 1}": [a[k] for a in atoms] for k in range(places)}


def add_restraints(block, refined, restraints: Restraints | None, counted: dict) -> None:
    """Add the number of restraints, and the loops _restr_distance and _restr_angle.

    `refined` is the cctbx structure, `counted` what the JSON summary says of each kind.
    """
    rows = sum(entry["rows"] for entry in counted.values())
    block["_refine_ls_number_restraints"] = str(rows)
    for kind in ("distance", "angle"):
        found = [] if restraints is None else _of_kind(restraints, kind)
        if found:
            columns = _columns(kind, refined, restraints, found)
            block.add_loop(iotbx.cif.model.loop(data=columns))


def _of_kind(restraints: Restraints, kind: str) -> list[tuple[int, list[int]]]:
    """Return (index of the restraint, rows of its members) of all of a kind."""
    chosen = [i for i, name in enumerate(restraints.kind) if name == kind]
    owner = restraints.owner.tolist()
    return [(i, [row for row, of in enumerate(owner) if of == i]) for i in chosen]


def _columns(kind: str, refined, restraints: Restraints, found) -> dict:
    atoms, cell = refined.scatterers(), refined.unit_cell()
    group = sgtbx.space_group_info(group=refined.space_group())
    first = 2 if kind == "distance" else 1  # the first atom of a distance is where it is
    labels, codes, values = [], [], []
    for _, rows in found:
        members = [int(restraints.atom[row]) for row in rows]
        operators = [operator_of(restraints, row) for row in rows]
        if kind == "distance":
            back = operators[0].inverse()
            operators = [back.multiply(operator) for operator in operators]
        sites = [
            cell.orthogonalize(operator * atoms[i].site)
            for i, operator in zip(members, operators, strict=True)
        ]
        model = geometry.distance(sites) if kind == "distance" else geometry.angle(sites)
        labels.append([atoms[i].label for i in members])
        codes.append([group.cif_symmetry_code(operator) for operator in operators])
        values.append(getattr(model, f"{kind}_model"))
    stem, places = f"_restr_{kind}", len(labels[0])
    target = [float(restraints.target[i]) for i, _ in found]
    sigma = [float(restraints.sigma[i]) for i, _ in found]
    differences = [t - v for t, v in zip(target, values, strict=True)]
    if kind == "angle":  # of which the dictionary has the size alone
        differences = [abs(d) for d in differences]
    return {
        **_labels(stem, labels, places),
        **{
            f"{stem}_site_symmetry_{k}": [c[k - 1] for c in codes] for k in range(first, places + 1)
        },
        f"{stem}_target": [f"{t:.4f}" for t in target],
        f"{stem}_target_weight_param": [f"{s:.4f}" for s in sigma],
        f"{stem}_diff": [f"{d:.4f}" for d in differences],
    }
