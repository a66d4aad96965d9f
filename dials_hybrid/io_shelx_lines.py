"""The instructions of a SHELX .ins or .res file, and those of them that make its structure.

The meaning is that of SHELXL (G. M. Sheldrick 2015, doi:10.1107/S2053229614024218).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iotbx.shelx.lexer import command_stream

from .io_text import ascii_text
from .records import InputError

# instructions of SHELXL that the parser of iotbx does not know and takes for atoms
_NEWER = {"ABIN", "ANSC", "ANSR", "NEUT", "PRIG", "SKIP", "TWST", "WIGL", "XNPD"}
DEFAULT_LATTICE = "LATT 1"  # primitive, with a centre of symmetry at the origin
_BEFORE_OCCUPANCY = 5  # words of an atom: name, element, x, y, z
_ISOTROPIC = 3  # words after these at most: occupancy, U_iso, and the height of a peak
_DEFAULTS = ["11.0", "0.05"]  # occupancy, fixed, and U_iso in A^2 where an atom has none
_FREE_TEXT = ("TITL", "REM")


def shelx_lines(path: Path) -> Iterator[list[str]]:
    """Yield the words of each instruction up to HKLF or END, in capitals, continued lines joined.

    Raises InputError when neither is there.
    """
    fragment = False  # the atoms between FRAG and FEND are a pattern to fit
    for line in _instructions(ascii_text(path)):
        words = line.upper().split()
        if not words:
            continue
        command = words[0]
        if command in ("HKLF", "END"):
            return
        fragment = command == "FRAG" or (fragment and command != "FEND")
        if not fragment:
            yield words
    raise InputError(f"{path}: ends without HKLF or END; give the complete file")


def _instructions(text: str) -> Iterator[str]:
    """Yield instructions with the lines that continue them, without titles and comments.

    A line is continued if = is its last character before a comment; what follows an = that is
    not the last one is a comment, too.
    """
    begun = ""
    for line in text.splitlines():
        if not begun and (line[:1].isspace() or line.upper().startswith(_FREE_TEXT)):
            continue
        said = line.split("!")[0].rstrip()
        if said.endswith("="):
            begun += said[:-1] + " "
        else:
            yield begun + said.split("=")[0]
            begun = ""
    yield begun


def is_shelx_atom(command: str, words: list[str]) -> bool:
    """Return whether the words of an instruction, named `command`, describe an atom."""
    if command in command_stream.shelx_commands or command in _NEWER:
        return False
    return len(words) > 1 and words[1].isdigit()


def residue_of(words: list[str]) -> tuple[int, str]:
    """Return the number and the class of a residue, which RESI has in either order."""
    number = next((int(word) for word in words[1:] if word.lstrip("-").isdigit()), 0)
    return number, next((word for word in words[1:] if word[0].isalpha()), "")


def plain_shelx(path: Path) -> str:
    """Return the symmetry, elements and atoms of a SHELX file, the rest left out.

    Explicit scattering factors, which files for electrons have (SFAC C 0.1361 0.3731 ...), and
    several SFAC become one plain list of elements: iotbx knows only that. It leaves out peaks.
    A lattice that is not given is that of SHELXL, DEFAULT_LATTICE. Raises InputError for atoms
    of the same name in one residue.
    """
    head, elements, atoms = [], [], _AtomList(path)
    for words in shelx_lines(path):
        command = words[0].split("_")[0]
        if command == "SFAC":
            explicit = len(words) > 2 and not words[2][0].isalpha()
            elements += words[1:2] if explicit else words[1:]
        elif command in ("CELL", "ZERR", "LATT", "SYMM"):
            head.append(" ".join(words))
        else:
            atoms.add(command, words)
    if not any(line.startswith("LATT") for line in head):
        head.append(DEFAULT_LATTICE)
    sfac = [" ".join(["SFAC", *elements])] if elements else []
    return "\n".join(["", *head, *sfac, *atoms.lines, "HKLF 4", "END", ""])


class _AtomList:
    """The atoms of a SHELX file, and what stands between them, for iotbx.

    Occupancy and U_iso of AFIX stand for those of the atoms up to the next one.
    """

    def __init__(self, path: Path):
        self.path, self.lines = path, []
        self.residue, self.taken = 0, set()
        self.of_afix: list[str] = []  # occupancy and U, none, one or both

    def add(self, command: str, words: list[str]) -> None:
        """Take in one instruction."""
        if command == "RESI":
            self.residue = residue_of(words)[0]
            self.lines.append(f"RESI {self.residue} X")  # iotbx wants the number first, and a class
        elif command == "AFIX":
            self.of_afix = words[3:5]
        elif command in ("FVAR", "PART", "MOVE"):
            self.lines.append(" ".join(words))
        elif is_shelx_atom(command, words):
            self._require_new(command)
            self.lines.append(" ".join(self._with_defaults(words)))

    def _with_defaults(self, words: list[str]) -> list[str]:
        """Return an atom with the occupancy and U that it lacks, or that AFIX says."""
        place, rest = words[:_BEFORE_OCCUPANCY], words[_BEFORE_OCCUPANCY:]
        if len(place) < _BEFORE_OCCUPANCY:
            return words
        rest = rest + _DEFAULTS[len(rest) :]
        mine = self.of_afix[:1] if len(rest) > _ISOTROPIC else self.of_afix
        return [*place, *mine, *rest[len(mine) :]]

    def _require_new(self, name: str) -> None:
        atom = self.residue, name
        if atom in self.taken and not name.startswith("Q"):
            where = f" of residue {self.residue}" if self.residue else ""
            raise InputError(
                f"{self.path}: two atoms{where} are called {name}; give each its own name"
            )
        self.taken.add(atom)
