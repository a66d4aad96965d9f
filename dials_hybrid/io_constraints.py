"""What is refined of a structure: the user's choices, SHELX instructions and riding hydrogens."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace

import torch

from .data import InputError, Structure
from .freedom import Constraints, basis, tied, with_usual_riding_u
from .io_cctbx import to_structure, update_xray_structure, with_cell
from .io_disorder import Parts
from .io_displacements import candidates, enough, with_displacements
from .io_hydrogens import idealised, parents_of_hydrogens, usual_groups, usual_u_factor
from .io_shelx import Instructions

KINDS = ("site", "u", "occ", "all")
HYDROGENS = ("as_given", "riding", "free")
_NAMES_SHOWN = 30


@dataclass(frozen=True)
class Parameters:
    """What the user wants refined; the words of the PHIL scope `parameters`.

    `fix` and `free` hold a kind of KINDS and atoms, such as "site Si1 O*"; the others hold
    atoms: labels, elements, labels with * and ?, or all. In `occupancies` a lone + stands
    between the sides whose sum is kept. `hydrogens` is one of HYDROGENS. `displacements`, one of
    io_displacements.CHOICES, says whether atoms of an isotropic structure become anisotropic where
    data are enough; `anisotropic` and `isotropic` hold atoms that are made so.
    """

    fix: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    same_site: tuple[str, ...] = ()
    same_u: tuple[str, ...] = ()
    occupancies: tuple[str, ...] = ()
    hydrogens: str = "as_given"
    displacements: str = "auto"
    anisotropic: tuple[str, ...] = ()
    isotropic: tuple[str, ...] = ()


DEFAULTS = Parameters()


def constrained(
    xray_structure,
    parameters: Parameters,
    instructions: Instructions | None,
    parts: Parts = (),
    unique: int = 0,
):
    """Return a cctbx structure that meets the constraints at the start, its record, and these.

    The record has the freedom that they leave. `instructions` are those of a SHELX file; None
    without. `parts` are those of a disorder. `unique` is the number of unique observed
    reflections, which decides on the kind of displacements where the user leaves that open.
    Raises InputError when the choices do not fit the structure.
    """
    chosen = _with_chosen_displacements(xray_structure, parameters)
    found = _constrained(chosen, parameters, instructions, parts)
    _, record, constraints = found
    if not unique or _displacements_are_chosen(record, parameters):
        return found
    tensors = candidates(record, constraints)
    if not tensors:
        return found
    chosen = with_displacements(chosen, anisotropic=tensors)
    fuller = _constrained(chosen, parameters, instructions, parts)
    return fuller if enough(fuller[1], unique) else found


def _constrained(xray_structure, parameters: Parameters, instructions, parts: Parts):
    """Return what `constrained` does, for the kinds of displacements that the structure has."""
    record = to_structure(xray_structure)
    constraints = resolve(record, parameters, instructions, parts)
    if parameters.hydrogens == "riding":
        known = instructions.hydrogens if instructions else ()
        record = _with_usual_hydrogens(xray_structure, record, constraints, known, parts)
    record = tied(record, constraints)
    moved = update_xray_structure(xray_structure, record)
    if constraints.same_site:  # an atom may have come to a special position
        moved = with_cell(moved, moved.unit_cell())
        record = to_structure(moved)
    return moved, with_freedom(record, constraints), constraints


def _with_chosen_displacements(xray_structure, parameters: Parameters):
    """Return the structure with the atoms that the user names made anisotropic or isotropic."""
    record = to_structure(xray_structure)

    def named(name: str) -> set[int]:
        texts = getattr(parameters, name)
        return {
            atom
            for text in texts
            for atom in select_atoms(record, _words(text), f'parameters.{name}="{text}"')
        }

    both = named("anisotropic") & named("isotropic")
    if both:
        names = ", ".join(record.labels[atom] for atom in sorted(both))
        raise InputError(f"{names}: parameters.anisotropic and parameters.isotropic both name them")
    return with_displacements(xray_structure, named("anisotropic"), named("isotropic"))


def _displacements_are_chosen(record: Structure, parameters: Parameters) -> bool:
    """Whether the user, or the structure with an anisotropic atom, has decided on the kinds."""
    by_user = parameters.anisotropic or parameters.isotropic
    return bool(parameters.displacements != "auto" or by_user or record.anisotropic.any())


def _with_usual_hydrogens(xray_structure, record, constraints, known, parts: Parts) -> Structure:
    """Return the record with ideal places and U of the H atoms that ride.

    `known` are the groups of a SHELX file.
    """
    parents = dict(constraints.riding)
    given = {group.parent for group in known}
    usual = [g for g in usual_groups(xray_structure, parents, parts) if g.parent not in given]
    groups = tuple(g for g in (*known, *usual) if set(g.atoms) <= parents.keys())
    ideal = idealised(xray_structure, groups, parents, parts)
    sites = torch.tensor(list(ideal.sites_frac()), dtype=torch.float64)
    return with_usual_riding_u(record.replace(site=sites), constraints)


def with_freedom(structure: Structure, constraints: Constraints) -> Structure:
    """Return the structure with the free parameters that the constraints leave."""
    return structure.replace(freedom=basis(structure, constraints))


def resolve(
    structure: Structure,
    parameters: Parameters = DEFAULTS,
    instructions: Instructions | None = None,
    parts: Parts = (),
) -> Constraints:
    """Return the constraints that hold: of the file, of hydrogens, and the user's on top.

    Raises InputError when a choice names no atom or cannot be met.
    """
    found = instructions.constraints if instructions else Constraints()
    if parameters.hydrogens == "free":
        found = replace(found, riding=(), riding_u=())
    elif parameters.hydrogens == "riding" or instructions is None:
        found = _with_riding_hydrogens(structure, found, parts)
    found = _with_shared(structure, found, parameters)
    for text in parameters.occupancies:
        found = _with_linked_occupancies(structure, found, text)
    for text in parameters.fix:
        found = _fixed(found, *_kind_and_atoms(structure, "fix", text))
    for text in parameters.free:
        found = _freed(found, *_kind_and_atoms(structure, "free", text))
    _require_one_kind_of_u(structure, found)
    return found


# --- atoms ----------------------------------------------------------------------------------


def select_atoms(structure: Structure, words: list[str], choice: str) -> list[int]:
    """Return the numbers of the atoms that any of the words names.

    A word is a label, else an element, in upper or lower case; a label with * and ?; or all.
    Raises InputError, with the PHIL name `choice`, for a word that names no atom.
    """
    labels = [label.upper() for label in structure.labels]
    elements = [structure.elements[k].upper() for k in structure.type.tolist()]
    chosen: set[int] = set()
    for given in words:
        word = given.upper()
        if word == "ALL":
            found = range(len(labels))
        elif word in labels:
            found = [i for i, label in enumerate(labels) if label == word]
        elif "*" in word or "?" in word:
            found = [i for i, label in enumerate(labels) if fnmatch.fnmatchcase(label, word)]
        else:
            found = [i for i, element in enumerate(elements) if element == word]
        if not found:
            shown = ", ".join(structure.labels[:_NAMES_SHOWN])
            more = ", ..." if len(labels) > _NAMES_SHOWN else ""
            raise InputError(f"{choice}: no atom is called {given}; there are {shown}{more}")
        chosen |= set(found)
    return sorted(chosen)


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _kind_and_atoms(structure: Structure, name: str, text: str) -> tuple[str, set[int]]:
    choice = f'parameters.{name}="{text}"'
    words = _words(text)
    if len(words) < 2 or words[0].lower() not in KINDS:
        raise InputError(
            f"{choice}: give what ({', '.join(KINDS)}) and then atoms, for example site Si1 O*"
        )
    return words[0].lower(), set(select_atoms(structure, words[1:], choice))


def _shared_atoms(structure: Structure, name: str, text: str) -> tuple[int, ...]:
    choice = f'parameters.{name}="{text}"'
    atoms = select_atoms(structure, _words(text), choice)
    if len(atoms) < 2:
        raise InputError(f"{choice}: names one atom; give at least two that share something")
    return tuple(atoms)


# --- hydrogens ------------------------------------------------------------------------------


def _with_riding_hydrogens(structure: Structure, found: Constraints, parts: Parts) -> Constraints:
    """Let all H atoms ride that have a parent, also where the file says nothing of them."""
    parents = parents_of_hydrogens(structure, parts) | dict(found.riding)
    known = {atom for atom, _, _ in found.riding_u} | found.fixed_u
    known |= {atom for group in found.linked_u for atom, _ in group}
    riding_u = tuple(
        (atom, parent, usual_u_factor(structure, parents, atom, parts))
        for atom, parent in parents.items()
        if atom not in known and not bool(structure.anisotropic[atom])
    )
    held = found.fixed_site | {atom for group in found.same_site for atom in group}
    riding = tuple((atom, parent) for atom, parent in parents.items() if atom not in held)
    return replace(found, riding=riding, riding_u=found.riding_u + riding_u)


# --- shared parameters ----------------------------------------------------------------------


def _with_shared(structure: Structure, found: Constraints, parameters: Parameters) -> Constraints:
    sites = [_shared_atoms(structure, "same_site", text) for text in parameters.same_site]
    u = [_shared_atoms(structure, "same_u", text) for text in parameters.same_u]
    same_site = _merged([*found.same_site, *sites])
    equal = _merged([*(g for g in map(_atoms_if_equal, found.linked_u) if g), *u])
    unequal = [group for group in found.linked_u if not _atoms_if_equal(group)]
    on_site = {atom for group in same_site for atom in group}
    with_u = {atom for group in equal for atom in group}
    return replace(
        found,
        same_site=same_site,
        linked_u=(*unequal, *(tuple((atom, 1.0) for atom in group) for group in equal)),
        riding=tuple(pair for pair in found.riding if pair[0] not in on_site),
        riding_u=tuple(triple for triple in found.riding_u if triple[0] not in with_u),
    )


def _atoms_if_equal(group) -> tuple[int, ...]:
    return tuple(atom for atom, _ in group) if all(share == 1 for _, share in group) else ()


def _merged(groups) -> tuple[tuple[int, ...], ...]:
    """Return the groups, those that have an atom in common made one."""
    merged: list[tuple[int, ...]] = []
    for group in groups:
        touching = [other for other in merged if set(other) & set(group)]
        merged = [other for other in merged if other not in touching]
        merged.append(tuple(dict.fromkeys(atom for g in (*touching, group) for atom in g)))
    return tuple(merged)


def _require_one_kind_of_u(structure: Structure, found: Constraints) -> None:
    for group in found.linked_u:
        if len({bool(structure.anisotropic[atom]) for atom, _ in group}) > 1:
            names = ", ".join(structure.labels[atom] for atom, _ in group)
            raise InputError(
                f"the atoms {names} are to share U, but some are isotropic and some are not; give "
                "all of them the same kind of U"
            )


def _with_linked_occupancies(structure: Structure, found: Constraints, text: str) -> Constraints:
    """Add one free parameter less than there are sides, or one for a lone side."""
    choice = f'parameters.occupancies="{text}"'
    sides: list[list[str]] = [[]]
    for word in _words(text):
        if word == "+":
            sides.append([])
        else:
            sides[-1].append(word)
    if not all(sides):
        raise InputError(f"{choice}: a side without atoms; for example Ca1 + Mg1")
    chosen = [select_atoms(structure, side, choice) for side in sides]
    atoms = [atom for side in chosen for atom in side]
    if len(atoms) != len(set(atoms)):
        raise InputError(f"{choice}: an atom is on two sides of a sum")
    up = [tuple((atom, 1.0) for atom in side) for side in chosen]
    down = tuple((atom, -1.0) for atom in chosen[-1])
    groups = up if len(up) == 1 else [(*side, *down) for side in up[:-1]]
    kept = tuple(g for g in found.occ if not {atom for atom, _ in g} & set(atoms))
    return replace(found, occ=(*kept, *groups))


# --- fix and free ---------------------------------------------------------------------------


def _fixed(found: Constraints, kind: str, atoms: set[int]) -> Constraints:
    if kind in ("site", "all"):
        riding = tuple(pair for pair in found.riding if pair[0] not in atoms)
        found = replace(found, riding=riding, fixed_site=found.fixed_site | atoms)
    if kind in ("u", "all"):
        riding_u = tuple(triple for triple in found.riding_u if triple[0] not in atoms)
        found = replace(found, riding_u=riding_u, fixed_u=found.fixed_u | atoms)
    if kind in ("occ", "all"):
        found = replace(found, occ=tuple(g for g in found.occ if not {a for a, _ in g} & atoms))
    return found


def _freed(found: Constraints, kind: str, atoms: set[int]) -> Constraints:
    if kind in ("site", "all"):
        same_site = (tuple(i for i in group if i not in atoms) for group in found.same_site)
        found = replace(
            found,
            fixed_site=found.fixed_site - atoms,
            same_site=tuple(group for group in same_site if len(group) > 1),
            riding=tuple(pair for pair in found.riding if pair[0] not in atoms),
        )
    if kind in ("u", "all"):
        found = replace(
            found,
            fixed_u=found.fixed_u - atoms,
            linked_u=tuple(group for group in _without(found.linked_u, atoms) if len(group) > 1),
            riding_u=tuple(triple for triple in found.riding_u if triple[0] not in atoms),
        )
    if kind in ("occ", "all"):
        found = replace(found, occ=_with_own_occupancies(found.occ, atoms))
    return found


def _without(groups, atoms: set[int]) -> list[tuple]:
    """Return groups of (atom, share) without some atoms."""
    return [tuple(pair for pair in group if pair[0] not in atoms) for group in groups]


def _with_own_occupancies(groups, atoms: set[int]) -> tuple:
    """Return the groups with a parameter for each of some atoms, which leave their own groups.

    Whom they leave alone keeps its parameter, unless another group moves it already.
    """
    rest = _without(groups, atoms)
    shared = [group for group in rest if len(group) > 1]
    moved = {atom for group in shared for atom, _ in group}
    alone = {group[0][0]: group for group in rest if len(group) == 1}
    kept = [group for atom, group in alone.items() if atom not in moved]
    return (*shared, *kept, *(((atom, 1.0),) for atom in sorted(atoms)))


# --- what a CIF says of the atoms ------------------------------------------------------------


def hydrogen_treatment(structure: Structure) -> str:
    """Return the code of _refine_ls_hydrogen_treatment in the core CIF dictionary."""
    freedom = structure.freedom or basis(structure)
    names = [structure.elements[k] for k in structure.type.tolist()]
    atoms = [i for i, name in enumerate(names) if name == "H"]
    rides = {bool(freedom.parent[i] >= 0) for i in atoms}
    moves = {bool((freedom.site[:, i] != 0).any()) for i in atoms}
    if not atoms:
        return "undef"
    if rides == {True}:
        return "constr"
    if rides == {False}:
        return {(True,): "refall", (False,): "noref"}.get(tuple(moves), "mixed")
    return "mixed"
