"""Restraints in and out as a `smtbx.refinement.restraints.manager`, the container of cctbx.

Its proxies hold atoms, operators, targets and weights, 1 / sigma^2, which are those of the entries
here. Residuals and gradients are calculated in the room restraints, so that they need no cctbx,
join those of the data on any device, and know of operators that cctbx's displacement restraints and
of planes that its linearised equations leave out; cctbx's residual sums are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from cctbx import adp_restraints, geometry_restraints
from cctbx.array_family import flex
from smtbx.refinement.restraints import manager as Manager

from .data import Restraints
from .io_bonds import UNIT
from .io_restraint_entries import Entry, entries_in
from .records import InputError

# kind: name in a manager, array of proxies
_GEOMETRY = {
    "distance": ("bond_proxies", geometry_restraints.shared_bond_simple_proxy),
    "similar_distance": (
        "bond_similarity_proxies",
        geometry_restraints.shared_bond_similarity_proxy,
    ),
    "angle": ("angle_proxies", geometry_restraints.shared_angle_proxy),
    "plane": ("planarity_proxies", geometry_restraints.shared_planarity_proxy),
    "chirality": ("chirality_proxies", geometry_restraints.shared_chirality_proxy),
}
_ADP = {  # kind: what cctbx calls it
    "adp_similarity": "adp_similarity",
    "rigid_bond": "rigid_bond",
    "enhanced_rigid_bond": "rigu",
    "isotropic_adp": "isotropic_adp",
}
_KINDS = {
    **_GEOMETRY,
    **{
        kind: (f"{name}_proxies", getattr(adp_restraints, f"shared_{name}_proxy"))
        for kind, name in _ADP.items()
    },
}
_OTHERS = (
    "dihedral_proxies",
    "fixed_u_eq_adp_proxies",
    "adp_u_eq_similarity_proxies",
    "adp_volume_similarity_proxies",
)


# --- from cctbx -------------------------------------------------------------------------------


def entries_of(manager, atoms: int) -> list[Entry]:
    """Return the restraints of a manager on a structure of that many atoms.

    Raises InputError for proxies that have no counterpart here, and for atoms that are not there.
    """
    for name in _OTHERS:
        if getattr(manager, name, None):
            raise InputError(f"restraints.manager: {name} are of a kind that is not supported")
    entries = []
    for kind, (name, _) in _KINDS.items():
        for proxy in getattr(manager, name, None) or ():
            entries.append(_entry(kind, name, proxy))
            largest = max(atom for atom, _ in entries[-1].members)
            if largest >= atoms:
                raise InputError(
                    f"restraints.manager: {name} name the atom number {largest}, counted from 0, "
                    f"of a structure that has {atoms}"
                )
    return entries


def _entry(kind: str, name: str, proxy) -> Entry:
    _require_plain(name, proxy)
    weight = _one_weight(name, proxy)
    target = next(
        (
            float(getattr(proxy, field))
            for field in ("distance_ideal", "angle_ideal", "volume_ideal")
            if hasattr(proxy, field)
        ),
        0.0,
    )
    return Entry(kind, target, weight**-0.5, tuple(_members(kind, proxy)))


def _require_plain(name: str, proxy) -> None:
    for field, usual in (("slack", 0), ("top_out", False), ("both_signs", False)):
        if getattr(proxy, field, usual) != usual:
            raise InputError(f"restraints.manager: {name} with {field} are not supported")


def _one_weight(name: str, proxy) -> float:
    weights = list(proxy.weights) if hasattr(proxy, "weights") else [proxy.weight]
    if min(weights) <= 0 or max(weights) - min(weights) > 1e-9 * max(weights):
        raise InputError(f"restraints.manager: {name} need one positive weight for all rows of one")
    return float(weights[0])


def _members(kind: str, proxy) -> Iterator[tuple]:
    """Yield (atom, operator) of the members of a proxy."""
    if kind == "distance":
        (i, j), operator = proxy.i_seqs, proxy.rt_mx_ji
        yield int(i), UNIT
        yield int(j), UNIT if operator is None else operator
    elif kind == "similar_distance":
        operators = proxy.sym_ops or [UNIT] * len(proxy.i_seqs)
        for (i, j), operator in zip(proxy.i_seqs, operators, strict=True):
            yield int(i), UNIT
            yield int(j), operator
    else:
        operators = getattr(proxy, "sym_ops", None) or [UNIT] * len(proxy.i_seqs)
        for i, operator in zip(proxy.i_seqs, operators, strict=True):
            yield int(i), operator


# --- to cctbx ---------------------------------------------------------------------------------


def manager_of(restraints: Restraints | None) -> tuple[Manager, list[int]]:
    """Return a manager, and the numbers of the restraints that cctbx has no proxy for.

    Those are of displacement parameters of an atom that is moved by a symmetry operator.
    """
    entries = [] if restraints is None else entries_in(restraints)
    arrays: dict[str, object] = {}
    left_out = []
    for number, entry in enumerate(entries):
        proxy = _proxy(entry)
        if proxy is None:
            left_out.append(number)
            continue
        name, array = _KINDS[entry.kind]
        if name not in arrays:
            arrays[name] = array()
        arrays[name].append(proxy)
    return Manager(**arrays), left_out


def _proxy(entry: Entry):
    """Return the proxy of an entry, None if there can be none."""
    weight = entry.sigma**-2
    atoms = [atom for atom, _ in entry.members]
    operators = [operator for _, operator in entry.members]
    if entry.kind in _ADP:
        if not all(operator.is_unit_mx() for operator in _relative(operators)):
            return None
        proxy = getattr(adp_restraints, f"{_ADP[entry.kind]}_proxy")
        return proxy(i_seqs=atoms, weight=weight)
    if entry.kind == "distance":
        return geometry_restraints.bond_simple_proxy(
            i_seqs=atoms,
            rt_mx_ji=_relative(operators)[1],
            distance_ideal=entry.target,
            weight=weight,
        )
    if entry.kind == "similar_distance":
        ends = [_relative(operators[k : k + 2])[1] for k in range(0, len(operators), 2)]
        return geometry_restraints.bond_similarity_proxy(
            i_seqs=[tuple(atoms[k : k + 2]) for k in range(0, len(atoms), 2)],
            sym_ops=ends,
            weights=flex.double(len(ends), weight),
        )
    if entry.kind == "plane":
        return geometry_restraints.planarity_proxy(
            i_seqs=flex.size_t(atoms), sym_ops=operators, weights=flex.double(len(atoms), weight)
        )
    given = {"i_seqs": atoms, "sym_ops": operators, "weight": weight}
    if entry.kind == "angle":
        return geometry_restraints.angle_proxy(angle_ideal=entry.target, **given)
    return geometry_restraints.chirality_proxy(volume_ideal=entry.target, both_signs=False, **given)


def _relative(operators: list) -> list:
    """Return operators with the first one taken back from all."""
    back = operators[0].inverse()
    return [back.multiply(operator) for operator in operators]
