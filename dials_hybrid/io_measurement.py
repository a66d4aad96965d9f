"""What is known of a measurement beside the intensities, for CIF: plain values that travel."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .data import Problem
from .io_structures import cif_items
from .records import InputError

_CIF_ITEMS = {
    "temperature": ("_diffrn_ambient_temperature", "_cell_measurement_temperature"),
    "formula_units": ("_cell_formula_units_Z",),
}
_NUMBER = re.compile(r"\d[\d.]*(\(\d+\))?")
# an entry of the history of experiments: time|program|version|what it did
_INTEGRATED = re.compile(r"\|dials\.\w*integrate\w*\|\D*(\d[\w.+-]*)")
LEAST_REFLECTIONS = 3  # that a cell is said to be from
_SHELX_ZERO = 273.15  # K, of the degrees Celsius that TEMP gives


def measurement(experiments, reflections=None) -> dict:
    """Return facts of DIALS experiments, and of their reflection table, as JSON values.

    `cell_su` (A, degree; None where no crystal tells it); `mosaicity` (degree, a standard
    deviation; None without profile models of that kind) and `mosaic_method`; `cell_reflections`,
    which the geometry was refined on, with `number`, `d_min` and `d_max` (A; None if not known);
    and `sweeps`, of each the `detector` (its identifier), its `distance` and `pixel` (mm), its
    number of `panels` and the `image_size` of one, the rotation's `start`, `end` and `width` of an
    image (degree), and the numbers of the first and the last of the `images`.
    """
    return {
        "cell_su": _cell_su(experiments),
        "mosaicity": _mosaicity(experiments),
        "mosaic_method": "standard deviation of rocking curves, profile model of DIALS",
        "cell_reflections": None if reflections is None else _cell_reflections(reflections),
        "sweeps": [_sweep(e) for e in experiments],
    }


def _mosaicity(experiments) -> float | None:
    """The mean over the sweeps and their images of sigma_m, degree."""
    found = [getattr(e.profile, "sigma_m", None) for e in experiments]
    if not all(found):  # of another kind, or none
        return None
    return sum(float(np.mean(sigma_m(deg=True))) for sigma_m in found) / len(found)


def _cell_reflections(table) -> dict | None:
    used = table.select(table.get_flags(table.flags.used_in_refinement))
    if len(used) < LEAST_REFLECTIONS:
        return None
    d = used["d"].as_numpy_array()
    return {"number": len(used), "d_min": float(d.min()), "d_max": float(d.max())}


def integrated_by(expt_files) -> str:
    """Return DIALS with the version that integrated, where the files' history tells it.

    That of the program which runs now may be another one. Files before DIALS 3.2x have no history.
    """
    found = {}
    for name in expt_files:
        history = _texts(json.loads(Path(name).read_text(encoding="utf-8")).get("history", []))
        versions = [m.group(1) for entry in history if (m := _INTEGRATED.search(entry))]
        found |= dict.fromkeys(versions[-1:])
    return f"DIALS {', '.join(found)}".strip()


def _texts(value) -> Iterable[str]:
    """Yield the texts in nested lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def cell_su(problem: Problem) -> list[float] | None:
    """Return the s.u. of the cell (A, degree) that the data files told; None if they did not."""
    return (problem.provenance.get("measurement") or {}).get("cell_su")


def _cell_su(experiments) -> list[float] | None:
    """The s.u. of the mean cell: variances of independent sweeps add up."""
    found = [list(e.crystal.get_cell_parameter_sd()) for e in experiments]
    if not all(len(su) == 6 and any(su) for su in found):
        return None
    return [math.sqrt(sum(x * x for x in su)) / len(found) for su in zip(*found, strict=True)]


def _sweep(experiment) -> dict:
    panel = experiment.detector[0]
    start, end = experiment.scan.get_oscillation_range()
    return {
        "detector": panel.get_identifier() or None,
        "distance": abs(panel.get_directed_distance()),
        "pixel": list(panel.get_pixel_size()),
        "panels": len(experiment.detector),
        "image_size": list(panel.get_image_size()),
        "start": start,
        "end": end,
        "width": experiment.scan.get_oscillation()[1],
        "images": list(experiment.scan.get_image_range()),
    }


def stated(structure_path, block: str | None = None) -> dict:
    """Return what a CIF or SHELX file says of `temperature` (K) and `formula_units`, as text.

    Of a CIF that is the data block of the structure, chosen as `read_structure` does. What the
    file does not say is left out, as is all of a file that cannot be read.
    """
    path = Path(structure_path)
    if not path.is_file():
        return {}
    if path.suffix.lower() in (".res", ".ins"):
        text = path.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^TEMP\s+(-?\d+\.?\d*)", text, re.MULTILINE | re.IGNORECASE)
        return {"temperature": f"{float(found.group(1)) + _SHELX_ZERO:g}"} if found else {}
    return _stated_in_cif(path, block) if path.suffix.lower() in (".cif", ".mmcif") else {}


def _stated_in_cif(path: Path, block: str | None) -> dict:
    try:
        found = cif_items(path, [key for keys in _CIF_ITEMS.values() for key in keys], block)
    except InputError:
        return {}
    numbers = {key: text for key, text in found.items() if _NUMBER.fullmatch(text)}
    first = {name: [numbers[k] for k in keys if k in numbers] for name, keys in _CIF_ITEMS.items()}
    return {name: values[0] for name, values in first.items() if values}
