"""What the benchmarks share: folders, displaced starts, distances, tables."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import numpy as np
from cctbx import euclidean_model_matching as emma
from cctbx import sgtbx
from iotbx.cif.model import cif as cif_file
from scitbx import matrix

from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_hydrogens import parents_of_hydrogens
from dials_hybrid.io_structures import read_structure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MODEL = ROOT / "examples" / "quartz.cif"


def data_folder() -> Path:
    """Return the folder of measured data: DIALS_HYBRID_DATA, or shared/data beside us."""
    return Path(os.environ.get("DIALS_HYBRID_DATA", ROOT.parent / "shared" / "data")).resolve()


def there(folder: Path) -> bool:
    """Whether a folder of data is there; say where it is looked for if not."""
    if not folder.is_dir():
        print(f"no data in {folder}; set DIALS_HYBRID_DATA")
    return folder.is_dir()


def integrated_quartz() -> list[Path]:
    """Return real quartz, integrated by DIALS, and its structure; nothing if it is not there."""
    data = data_folder() / "quartz_dials"
    return [data / "integrated.expt", data / "integrated.refl", MODEL] if there(data) else []


def displaced(path: Path, out: Path, rms: float, seed: int, u_iso: float | None = None) -> Path:
    """Write the structure with its atoms moved by `rms` A (over atoms), symmetry kept.

    Hydrogen atoms move with the atom that they are bonded to, one of the same molecule in the file.
    """
    structure = read_structure(path)
    rng = np.random.default_rng(seed)
    cell, table = structure.unit_cell(), structure.site_symmetry_table()
    shifts = []
    for i, scatterer in enumerate(structure.scatterers()):
        moved = np.array(scatterer.site) + np.array(cell.fractionalize(rng.normal(size=3)))
        shifts.append(np.array(table.get(i).special_op() * tuple(moved)) - scatterer.site)
    for hydrogen, parent in parents_of_hydrogens(to_structure(structure)).items():
        shifts[hydrogen] = shifts[parent]
    lengths = [cell.length(tuple(s)) for s in shifts]
    factor = rms / np.sqrt(np.mean(np.square(lengths)))
    for scatterer, shift in zip(structure.scatterers(), shifts, strict=True):
        scatterer.site = tuple(np.array(scatterer.site) + factor * shift)
        if u_iso is not None:
            scatterer.u_iso = u_iso
    write_structure(structure, out)
    return out


def write_structure(structure, out: Path) -> None:
    """Write a cctbx structure as CIF with all digits that matter."""
    model = cif_file()
    model["start"] = structure.as_cif_block(format="coreCIF")
    out.write_text(str(model))


def distances(path, reference: Path = MODEL) -> dict[str, float]:
    """Return the distance (A) of every atom of a refined CIF to the reference.

    Axes and origin may be others that describe the same structure; the reference's atoms name
    the distances. Raises ValueError when an atom has no partner within 0.5 A.
    """
    refined, true = (read_structure(p).as_emma_model() for p in (path, reference))
    found = emma.model_matches(true, refined, tolerance=0.5).refined_matches
    if not found or len(found[0].pairs) < len(true.positions()):
        raise ValueError(f"{path} is not the structure of {reference}")
    best, symmetry = found[0], read_structure(reference)
    out = {}
    for i, j in best.pairs:
        place = best.ref_model1[i]
        images = sgtbx.sym_equiv_sites(symmetry.site_symmetry(place.site))
        moved = tuple(best.rt * matrix.col(best.ref_model2[j].site))
        out[place.label] = sgtbx.min_sym_equiv_distance_info(images, moved).dist()
    return out


def recorded(found: dict) -> dict[str, float | None]:
    """Return what the terms of the detector came to, from the JSON of a run.

    None where a term was left out or the data do not ask for it.
    """
    there = {term["term"]: term for term in found["nuisance"] if term["width"]}
    places = {"faint lost": ("faint", "lost"), "background level": ("level", "level")}
    out = {}
    for name, (kind, quantity) in places.items():
        told = there[kind][quantity] if kind in there else {"value": [None], "su": [None]}
        (out[name],), (out[f"{name}, s.u."],) = told["value"], told["su"]
    return out


def machine() -> str:
    """Return the processor's model and the number of its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def save(name: str, rows: list[dict], **more) -> None:
    """Write benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": machine(), **more, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def print_table(title: str, rows: list[dict]) -> None:
    """Print rows as a Markdown table."""
    columns = list(rows[0])
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]
        print("| " + " | ".join(cells) + " |")
