"""What is refined of a structure: the user's choices, SHELX instructions and riding hydrogens."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace

import torch
from cctbx import sgtbx

from .data import Structure
from .freedom import Constraints, basis, tied
from .io_cctbx import to_structure, update_xray_structure, with_cell
from .io_disorder import Parts
from .io_displacements import candidates, enough, with_displacements
from .io_fixed import KINDS, fixed, freed
from .io_hydrogens import parents_of_hydrogens, usual_u_factor
from .io_riding import with_torsions, with_usual_hydrogens
from .io_shelx import Instructions
from .records import InputError

HYDROGENS = ("as_given", "riding", "free")
_NAMES_SHOWN = 30


@dataclass(frozen=True)
class Parameters:
    """What the user wants refined; the words of the PHIL scope `parameters`.

    `fix` and `free` hold a kind of KINDS and atoms, such as "site Si1 O*" or "y Si1"; the others
    hold atoms: labels, elements, labels with * and ?, or all. In `occupancies` a lone + stands
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
    known = instructions.hydrogens if instructions else ()
    if parameters.hydrogens == "riding":
        record, constraints = with_usual_hydrogens(
            xray_structure, record, constraints, known, parts
        )
    else:
        constraints = with_torsions(xray_structure, constraints, known, parts)
    record = tied(record, constraints)
    moved = update_xray_structure(xray_structure, record)
    if constraints.same_site:  # an atom may have come to a special position
        brought = {atom for _, *others in constraints.same_site for atom in others}
        brought -= {atom for atom in brought if parts and parts[atom] < 0}
        moved = with_cell(moved, moved.unit_cell(), brought)
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


def with_freedom(structure: Structure, constraints: Constraints) -> Structure:
    """Return the structure with the free parameters that the constraints leave."""
    return structure.replace(freedom=basis(structure, constraints))


def in_basis(constraints: Constraints, operator: str) -> Constraints:
    """Return the constraints of a structure for one that is reindexed ("h,k,l" notation).

    Inversion changes none of them.
    """
    rot = sgtbx.change_of_basis_op(operator).c().r().as_double()
    return constraints.turned(torch.tensor(rot, dtype=torch.float64).reshape(3, 3))


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
        found = fixed(found, *_kind_and_atoms(structure, "fix", text))
    for text in parameters.free:
        found = freed(found, *_kind_and_atoms(structure, "free", text))
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
    held |= {atom for atom, _ in found.fixed_along}
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
