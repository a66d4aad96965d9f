"""Crystal structures from CIF, SHELX and PDB files, as cctbx xray.structure."""

from __future__ import annotations

import logging
from pathlib import Path

import iotbx.cif
import iotbx.pdb

from .io_shelx_build import build
from .io_shelx_lines import DEFAULT_LATTICE, plain_shelx, shelx_lines
from .io_site_symmetry import with_general_positions
from .io_structure_checks import check_structure
from .io_text import ascii_text
from .records import InputError, require_file

logger = logging.getLogger("dials.hybrid.io_structures")

LONGEST_REASON = 200  # characters of what a library says
_UNKNOWN = ("?", ".")


def read_structure(path, block: str | None = None):
    """Return a cctbx xray.structure from a CIF, SHELX .res/.ins or PDB file.

    Of a CIF with several data blocks the first that has atoms is taken, or the one named
    `block`. Raises InputError with one sentence on anything that cannot be used; what can be
    used but looks wrong is logged as a warning.
    """
    path = Path(path)
    require_file(path, "give the model as .cif, .res, .ins or .pdb")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: not a structure format known here; give the model as .cif, .res, .ins or .pdb"
        )
    try:
        structure = reader(path, block)
        check_structure(structure, path)
    except InputError:
        raise
    except Exception as error:  # iotbx raises many kinds, down to AssertionError
        reason = " ".join(str(error).split())[:LONGEST_REASON].rstrip(" :") or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as a crystal structure ({reason}); correct the file, or give "
            "the model in another format"
        ) from error
    return structure


# --- CIF ------------------------------------------------------------------------------------


def _read_cif(path: Path, block: str | None):
    reader = iotbx.cif.reader(input_string=ascii_text(path), raise_if_errors=True)
    model = reader.model()
    name = _choose_block(path, model, block)
    if block is None:
        _warn_of_other_blocks(path, model, name)
    if "_atom_site.Cartn_x" in model[name]:
        return _read_pdb(path, None)
    _require_cell_and_symmetry(path, model[name])
    _refuse_placeholders(path, model[name])
    structure = reader.build_crystal_structures(data_block_name=name)
    return with_general_positions(structure, model[name])


def _choose_block(path: Path, model, block: str | None) -> str:
    names = _blocks_with_sites(model)
    if block is not None:
        found = [name for name in model if name.lower() == block.lower()]
        if not found:
            known = ", ".join(model) or "none"
            raise InputError(
                f"{path}: no data block {block}; set structure.block to one of those there: {known}"
            )
        if found[0] not in names:
            raise InputError(
                f"{path}: data block {block} has no atoms with coordinates; set structure.block "
                f"to one that has: {', '.join(names) or 'none here'}"
            )
        return found[0]
    if not names:
        raise InputError(
            f"{path}: no data block has atoms with coordinates; give a CIF that holds a structure"
        )
    return names[0]


def _blocks_with_sites(model) -> list[str]:
    return [name for name in model if _has_sites(model[name])]


def _warn_of_other_blocks(path: Path, model, name: str) -> None:
    others = [other for other in _blocks_with_sites(model) if other != name]
    if others:
        logger.warning(
            "%s: using data block %s; it also holds %s (structure.block= chooses)",
            path,
            name,
            ", ".join(others),
        )


def cif_items(path, keys, block: str | None = None) -> dict[str, str]:
    """Return the items of some keys, where not in a loop, of the block that holds the structure.

    `block` as in `read_structure`. Raises InputError when there is no such block.
    """
    chosen = _structure_block(Path(path), block)
    return {key: chosen[key] for key in keys if isinstance(chosen.get(key), str)}


def cif_loop(path, key: str, block: str | None = None) -> list[str]:
    """Return the values of a key, in a loop or not, of the block that holds the structure.

    Empty where the key is not there. `block` as in `read_structure`; raises InputError when there
    is no such block.
    """
    chosen = _structure_block(Path(path), block)
    return _values(chosen, key) if key in chosen else []


def _structure_block(path: Path, block: str | None):
    """Return the items of the block that holds the structure, also of a CIF with errors in it."""
    model = iotbx.cif.reader(input_string=ascii_text(path), raise_if_errors=False).model()
    return model[_choose_block(path, model, block)]


def _values(block, key: str) -> list[str]:
    """Return a CIF item as a list, also when it stands outside a loop."""
    value = block[key]
    return [value] if isinstance(value, str) else list(value)


def _has_sites(block) -> bool:
    keys = ("_atom_site_fract_x", "_atom_site.Cartn_x")
    return any(v not in _UNKNOWN for key in keys if key in block for v in _values(block, key))


def _require_cell_and_symmetry(path: Path, block) -> None:
    if "_cell_length_a" not in block and "_cell.length_a" not in block:
        raise InputError(f"{path}: no unit cell; add _cell_length_a and the other cell items")
    symmetry = ("_space_group", "_symmetry")
    if not any(key.startswith(symmetry) for key in block):
        raise InputError(f"{path}: no space group; add _space_group_name_H-M_alt or the operators")


def _refuse_placeholders(path: Path, block) -> None:
    sites = zip(*(_values(block, f"_atom_site_fract_{x}") for x in "xyz"), strict=True)
    unknown = [i for i, site in enumerate(sites) if any(v in _UNKNOWN for v in site)]
    if unknown:
        labels = _values(block, "_atom_site_label") if "_atom_site_label" in block else None
        names = [labels[i] if labels else f"number {i + 1}" for i in unknown]
        raise InputError(
            f"{path}: no coordinates for the atoms {', '.join(names)}; add them, or remove these "
            "atoms"
        )


# --- SHELX ----------------------------------------------------------------------------------


def _read_shelx(path: Path, block: str | None):
    text = plain_shelx(path)
    for instruction, what in (("CELL", "unit cell"), ("SFAC", "list of elements")):
        if f"\n{instruction}" not in text:
            raise InputError(f"{path}: no {what}; add the {instruction} instruction")
    if not any(words[0] == "LATT" for words in shelx_lines(path)):
        logger.warning(
            "%s: no LATT instruction; it is read as %s, primitive with a centre of symmetry, as "
            "SHELXL does (LATT -1 is primitive without)",
            path,
            DEFAULT_LATTICE,
        )
    return build(path)[0]


# --- PDB ------------------------------------------------------------------------------------


def _read_pdb(path: Path, block: str | None):
    model = iotbx.pdb.input(file_name=str(path))
    symmetry = model.crystal_symmetry()
    complete = symmetry is not None and None not in (symmetry.unit_cell(), symmetry.space_group())
    if not complete:  # so are the symbolic 1 A cubes of models from microscopy
        raise InputError(f"{path}: no unit cell and space group; complete the CRYST1 record")
    structure = model.xray_structure_simple()
    _label_by_name(structure, model.atoms())
    return structure


def _label_by_name(structure, atoms) -> None:
    """Replace labels such as pdb=" O   HOH A   1 " by the atom's name, made unique."""
    seen: dict[str, int] = {}
    for scatterer, atom in zip(structure.scatterers(), atoms, strict=True):
        name = atom.name.strip()
        seen[name] = seen.get(name, 0) + 1
        scatterer.label = name if seen[name] == 1 else f"{name}_{seen[name]}"


_READERS = {
    ".cif": _read_cif,
    ".mmcif": _read_cif,
    ".res": _read_shelx,
    ".ins": _read_shelx,
    ".pdb": _read_pdb,
    ".ent": _read_pdb,
}
