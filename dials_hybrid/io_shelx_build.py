"""The structure of a SHELX .ins or .res file, and how the parameters of its atoms are coded."""

from __future__ import annotations

import collections
import io
from dataclasses import dataclass
from pathlib import Path

from iotbx import builders
from iotbx.shelx import lexer, parsers

from .io_shelx_lines import plain_shelx
from .io_site_symmetry import add_general


@dataclass(frozen=True)
class ShelxAtom:
    """An atom as its file has it."""

    name: str
    residue: int
    weight: float  # multiplicity over the order of the space group
    special: bool
    coding: tuple  # of x, y, z, occupancy and U_iso or six U_ij, as iotbx decodes it


class _Builder(builders.crystal_structure_builder):
    """Keeps, beside the structure, how every parameter was coded, and moves atoms by MOVE."""

    def __init__(self):
        super().__init__(set_grad_flags=False)
        self.atoms: list[ShelxAtom] = []
        self.shift, self.sign = (0.0, 0.0, 0.0), 1.0

    def move(self, dx: float = 0.0, dy: float = 0.0, dz: float = 0.0, sign: float = 1.0) -> None:
        """Put the atoms that follow at shift + sign * site."""
        self.shift, self.sign = (dx, dy, dz), sign

    def add_scatterer(self, scatterer, behaviour, *args, **kwargs):
        """Add an atom; called by the parser of iotbx."""
        scatterer.site = tuple(
            d + self.sign * x for d, x in zip(self.shift, scatterer.site, strict=True)
        )
        if kwargs.get("sym_excl_index"):  # of a PART below zero
            add_general(self.structure, scatterer)
        else:
            super().add_scatterer(scatterer, behaviour, *args, **kwargs)
        last = self.structure.scatterers()[-1]
        special = len(self.atoms) in self.structure.special_position_indices()
        residue = int(kwargs.get("residue_number") or 0)
        weight = last.weight_without_occupancy()
        self.atoms.append(
            ShelxAtom(scatterer.label.upper(), residue, weight, special, tuple(behaviour))
        )


def build(path: Path):
    """Return the cctbx structure of a SHELX file, and its atoms as the file has them.

    The label of an atom is its name, with the residue as in C1_2 where several residues have one
    of that name. Raises InputError, and what iotbx does, when the file cannot be read.
    """
    builder = _Builder()
    stream = lexer.command_stream(file=io.StringIO(plain_shelx(path)))
    stream = parsers.crystal_symmetry_parser(stream, builder)
    commands = _move(stream.filtered_commands(), builder)
    parsers.atom_parser(commands, builder, strictly_shelxl=False).parse()
    count = collections.Counter(atom.name for atom in builder.atoms)
    for scatterer, atom in zip(builder.structure.scatterers(), builder.atoms, strict=True):
        scatterer.label = atom.name
        if atom.residue and count[atom.name] > 1:
            scatterer.label = f"{atom.name}_{atom.residue}"
    return builder.structure, builder.atoms


def _move(commands, builder: _Builder):
    """Yield all commands but MOVE, which the builder is told of."""
    for command, line in commands:
        if command[0] == "MOVE":
            builder.move(*command[1])
        else:
            yield command, line
