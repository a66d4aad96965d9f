"""Which atoms are alternatives of one another: PART of SHELX, _atom_site_disorder_group of CIF.

The meaning is that of SHELXL (G. M. Sheldrick 2015, doi:10.1107/S2053229614024218): atoms of two
parts, both not zero, are never there together and are not bonded. Those of a part below zero are
not bonded to their symmetry equivalents either, nor held by a symmetry element that they are on or
near to. The assemblies of a CIF, each with parts of its own, have nothing to do with one another:
parts of the next assembly are greater by `_NEXT`.
"""

from __future__ import annotations

from pathlib import Path

from .io_shelx_lines import is_shelx_atom, shelx_lines
from .io_site_symmetry import GROUP
from .io_structures import cif_loop
from .records import InputError

Parts = tuple[int, ...]  # one for each atom, or none at all if no atom has one
KEY = "parts"  # of the provenance of a problem
_SHELX, _CIF = (".res", ".ins"), (".cif", ".mmcif")
ASSEMBLY = "_atom_site_disorder_assembly"
_NEXT = 1000


def parts_of(path, count: int, block: str | None = None) -> Parts:
    """Return the parts of the `count` atoms of a structure file; none where all are zero.

    Of a CIF that is the data block of the structure, chosen as `read_structure` does. Empty, too,
    where the file does not tell the parts of all atoms.
    """
    suffix = Path(path).suffix.lower()
    try:
        if suffix in _SHELX:
            found = _shelx_parts(Path(path))[:count]  # what follows are peaks
        elif suffix in _CIF:
            groups, names = (cif_loop(path, key, block) for key in (GROUP, ASSEMBLY))
            complete = len(names) == len(groups)
            found = _cif_parts(groups, names if complete else ["."] * len(groups))
        else:
            found = []
    except InputError:
        return ()
    return tuple(found) if len(found) == count and any(found) else ()


def _shelx_parts(path: Path) -> list[int]:
    part, found = 0, []
    for words in shelx_lines(path):
        command = words[0].split("_")[0]
        if command == "PART":
            part = int(float(words[1])) if len(words) > 1 else 0
        elif is_shelx_atom(command, words):
            found.append(part)
    return found


def _cif_parts(groups: list[str], assemblies: list[str]) -> list[int]:
    """Return the parts of atoms by the columns of a CIF."""
    order: dict[str, int] = {}  # the first assembly has the numbers of a file without any
    found = []
    for word, name in zip(groups, assemblies, strict=True):
        part = _number(word)
        if part:
            shift = _NEXT * order.setdefault("." if name == "?" else name, len(order))
            part += shift if part > 0 else -shift
        found.append(part)
    return found


def _number(word: str) -> int:
    """Return the number of a disorder group, letters in the order of the alphabet."""
    try:
        return int(word)
    except ValueError:
        return ord(word[0].upper()) - ord("A") + 1 if word[0].isalpha() else 0


def exclude(parts: Parts, i: int, j: int, moved: bool = False) -> bool:
    """Return whether atoms i and j are never there together; `moved`: j by symmetry."""
    if not parts or not parts[i] or not parts[j] or _assembly(parts[i]) != _assembly(parts[j]):
        return False
    return parts[i] != parts[j] or (parts[i] < 0 and moved)


def group_of(part: int) -> int:
    """Return the number of a part within its assembly, as SHELX has it."""
    return abs(part) % _NEXT * (1 if part > 0 else -1)


def _assembly(part: int) -> int:
    return abs(part) // _NEXT


def _letter(assembly: int) -> str:
    """Return the name of an assembly: A to Z, A1 to Z1 and so on."""
    more, letter = divmod(assembly, 26)
    return chr(ord("A") + letter) + (str(more) if more else "")


def cif_columns(parts: Parts) -> dict[str, list[str]]:
    """Return the columns of a CIF that tell the parts of all atoms."""
    columns = {GROUP: [str(group_of(part)) if part else "." for part in parts]}
    if any(map(_assembly, parts)):
        columns[ASSEMBLY] = [_letter(_assembly(part)) if part else "." for part in parts]
    return columns
