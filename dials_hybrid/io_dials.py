"""DIALS experiments and reflections: reading, checking and matching the files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dials.array_family import flex
from dials.util.version import dials_version
from dxtbx.model import ExperimentList

from . import __version__
from .io_cctbx import CELL_ERROR, CELL_WARNING, cell_difference, format_cell, reconcile
from .io_geometry import Sampling, rotation_axis, scan_from_experiments, settings_at
from .io_measurement import integrated_by, measurement
from .io_reflections import (
    Selection,
    format_table,
    observations_from_reflections,
    select_reflections,
)
from .records import InputError, require_file

__all__ = [
    "Loaded",
    "Sampling",
    "Selection",
    "fingerprint",
    "format_table",
    "load",
    "observations_from_reflections",
    "origin",
    "rotation_axis",
    "scan_from_experiments",
    "select_reflections",
    "settings_at",
]

logger = logging.getLogger("dials.hybrid.io_dials")

MAX_WAVELENGTH = 0.1  # A, electrons of 15 kV
WAVELENGTH_TOLERANCE = 1e-3

_COLUMNS = ("id", "flags", "miller_index", "xyzcal.mm", "xyzcal.px")
_INTENSITY_COLUMNS = ("intensity.sum.value", "intensity.sum.variance")


@dataclass(frozen=True)
class Loaded:
    """Matched experiments and reflections; column id of a reflection is its experiment."""

    experiments: ExperimentList
    reflections: flex.reflection_table
    expt_files: tuple[str, ...]
    refl_files: tuple[str, ...]

    def reconcile(self, xray_structure, structure_path):
        """Return the structure in the mean cell of the experiments; see `io_cctbx.reconcile`."""
        files = ", ".join(self.expt_files)
        return reconcile(xray_structure, self.experiments, structure_path, files)

    def select(self, selection: Selection):
        """Return (row numbers kept, table of (filter, removed, left)).

        Raises InputError when a needed column is missing or nothing is left.
        """
        return select_reflections(self.reflections, selection)

    def observed(self, rows, sampling: Sampling, selection: Selection):
        """Return the scan and the observations of the chosen rows."""
        scan = scan_from_experiments(self.experiments, sampling)
        observations = observations_from_reflections(
            self.reflections, rows, self.experiments, scan, selection
        )
        return scan, observations

    def provenance(self, structure_path) -> dict:
        """Return the files with their SHA-256 and the versions of the programs, for JSON."""
        files = origin(self.expt_files, self.refl_files, structure_path)
        return {
            **files,
            "dials_version": dials_version(),
            "integrated_by": integrated_by(self.expt_files),
            "measurement": measurement(self.experiments, self.reflections),
        }


def load(paths) -> Loaded:
    """Read any number of .expt and .refl files and match them by experiment identifiers.

    The reflections are joined into one table whose id counts the experiments from 0. Columns d
    and zeta are computed where a file lacks them. Raises InputError with one sentence that
    names the file, what was found and what to do.
    """
    expt_files, refl_files = _by_kind([str(path) for path in paths])
    found, origins = [], []
    for name in expt_files:
        new = list(_read_experiments(name))
        found += new
        origins += [_where(name, i, len(new)) for i in range(len(new))]
    expected = _identifiers(found, origins)
    experiments = ExperimentList(found)
    for experiment, where in zip(experiments, origins, strict=True):
        _check_experiment(experiment, where)
    wavelengths = [e.beam.get_wavelength() for e in experiments]
    cells = [e.crystal.get_unit_cell().parameters() for e in experiments]
    check_agreement(wavelengths, cells, origins)
    tables = [_read_reflections(name) for name in refl_files]
    places = _match(expected, origins, tables, refl_files)
    _require_reflections(origins, places)
    reflections = _join(experiments, tables, places)
    return Loaded(experiments, reflections, tuple(expt_files), tuple(refl_files))


def _by_kind(paths: list[str]) -> tuple[list[str], list[str]]:
    """Return the names of the experiment and of the reflection files, all present."""
    kinds: dict[str, list[str]] = {".expt": [], ".refl": []}
    for path in paths:
        kind = kinds.get(".expt" if path.endswith(".json") else Path(path).suffix.lower())
        if kind is None:
            raise InputError(f"{path}: neither .expt nor .refl; give the files of dials.integrate")
        require_file(path, "give the files of dials.integrate")
        if Path(path).resolve() in {Path(other).resolve() for other in kind}:
            raise InputError(f"{path}: given twice; give each file once")
        kind.append(path)
    for suffix, found in kinds.items():
        if not found:
            given = ", ".join(paths) or "nothing"
            raise InputError(f"no {suffix} file among {given}; give .expt and .refl files together")
    return kinds[".expt"], kinds[".refl"]


def _where(name: str, index: int, count: int) -> str:
    return name if count == 1 else f"{name} (experiment {index})"


# --- experiments ----------------------------------------------------------------------------


def _read_experiments(name: str) -> ExperimentList:
    try:
        experiments = ExperimentList.from_file(name, check_format=False)
    except Exception as error:  # JSONDecodeError, KeyError, IndexError, TypeError, its own ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name}: cannot be read as a DIALS experiment list ({reason}); the file is damaged "
            "or of another kind, write it again with DIALS"
        ) from error
    if len(experiments) == 0:
        raise InputError(f"{name}: holds no experiments; give the .expt of dials.integrate")
    return experiments


def _identifiers(experiments, origins) -> dict[str, int]:
    """Return the place of each identifier; the same experiment twice is an error."""
    found: dict[str, int] = {}
    for index, experiment in enumerate(experiments):
        name = experiment.identifier
        if name and name in found:
            raise InputError(
                f"{origins[index]}: the same experiment as {origins[found[name]]}; give each sweep "
                "once"
            )
        found[name] = index
    return found


def _check_experiment(experiment, where: str) -> None:
    """Raise InputError unless this is an indexed electron rotation sweep."""
    if experiment.crystal is None:
        raise InputError(f"{where}: has no crystal; run dials.index and dials.integrate first")
    if experiment.scan is None:
        raise InputError(f"{where}: still images, which cannot be used; give a rotation sweep")
    width = _oscillation_width(experiment.scan)
    if width <= 0:  # DIALS itself turns the axis for sweeps in the negative sense
        raise InputError(
            f"{where}: the rotation per image is {width:g} degrees; give a rotation sweep, or "
            "import the images again with geometry.scan.oscillation="
        )
    if experiment.goniometer is None:
        raise InputError(f"{where}: has no goniometer; import the images again with its axis")
    if experiment.beam is None or experiment.detector is None:
        raise InputError(f"{where}: has no beam or no detector; give the .expt of dials.integrate")
    wavelength = _wavelength(experiment.beam)
    if not 0 < wavelength <= MAX_WAVELENGTH:
        raise InputError(
            f"{where}: wavelength {wavelength:g} A, but electrons of 15 kV and more have less than "
            f"{MAX_WAVELENGTH} A; give electron diffraction data, or correct the wavelength with "
            "dials.modify_experiments"
        )


def _oscillation_width(scan) -> float:
    """Return the rotation per image in degree, 0 for scans that do not rotate."""
    try:
        return scan.get_oscillation()[1]
    except RuntimeError:  # the scan is along something else, such as time of flight
        return 0.0


def _wavelength(beam) -> float:
    try:
        return beam.get_wavelength()
    except RuntimeError:  # a polychromatic beam
        return math.inf


def check_agreement(wavelengths, cells, origins) -> None:
    """Raise InputError unless all sweeps have the same wavelength and about the same cell.

    `origins` names the sweeps for messages.
    """
    wavelength, cell = wavelengths[0], cells[0]
    for other, theirs, where in zip(wavelengths, cells, origins, strict=True):
        if abs(other / wavelength - 1) > WAVELENGTH_TOLERANCE:
            raise InputError(
                f"{where}: wavelength {other:g} A, but {origins[0]} has {wavelength:g} A; refine "
                "data of different voltages separately"
            )
        difference = cell_difference(cell, theirs)
        both = f"cell {format_cell(theirs)}, but {origins[0]} has {format_cell(cell)}"
        if difference > CELL_ERROR:
            raise InputError(
                f"{where}: {both}; index the sweeps in the same setting (dials.reindex, "
                "dials.cosym), or leave this one out"
            )
        if difference > CELL_WARNING:
            logger.warning("%s: %s; their mean is used", where, both)


# --- reflections ----------------------------------------------------------------------------


def _read_reflections(name: str):
    """Return the reflection table of a file; only the format DIALS writes, never a pickle."""
    try:
        table = flex.reflection_table.from_msgpack(Path(name).read_bytes())
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{name}: not a complete DIALS reflection file ({str(error).splitlines()[0]}); write "
            "it again with dials.integrate"
        ) from error
    if len(table) == 0:
        raise InputError(f"{name}: holds no reflections; give the .refl of dials.integrate")
    missing = [c for c in (*_COLUMNS, *_INTENSITY_COLUMNS) if c not in table]
    flags = table.flags
    if missing or not table.get_flags(flags.integrated, all=False).count(True):
        found = f"lacks {', '.join(missing)}" if missing else "no reflection is flagged integrated"
        raise InputError(f"{name}: not integrated yet ({found}); run dials.integrate first")
    return table


def _match(expected, origins, tables, refl_files) -> list[dict[int, int]]:
    """Return, for every table, which experiment each value of its id column stands for.

    `expected` is the place of each identifier, `origins` names the experiments for messages.
    """
    ids = [np.unique(table["id"].as_numpy_array()).tolist() for table in tables]
    ids = [[i for i in mine if i >= 0] for mine in ids]  # -1: not indexed
    names = [dict(table.experiment_identifiers()) for table in tables]
    named = all(names[t].get(i) for t, mine in enumerate(ids) for i in mine)
    if "" in expected or not named:
        return _match_by_order(len(origins), ids, refl_files)
    places: list[dict[int, int]] = []
    for table_ids, identifiers, name in zip(ids, names, refl_files, strict=True):
        unknown = [identifiers[i] for i in table_ids if identifiers[i] not in expected]
        if unknown:
            raise InputError(
                f"{name}: reflections of experiment {unknown[0]}, which is in none of "
                f"{', '.join(sorted(set(origins)))}; give the .expt and .refl that one run of "
                "DIALS wrote"
            )
        places.append({i: expected[identifiers[i]] for i in table_ids})
    _require_one_table_each(places, origins, refl_files)
    return places


def _match_by_order(experiments: int, ids, refl_files) -> list[dict[int, int]]:
    """Match files without identifiers by their order."""
    count = sum(len(mine) for mine in ids)
    if count != experiments:
        raise InputError(
            f"{', '.join(refl_files)}: {count} sets of reflections for {experiments} "
            "experiments, without identifiers that would tell which belong together; run "
            "dials.assign_experiment_identifiers on them"
        )
    if count > 1:
        logger.warning("Experiments and reflections are matched by order: they lack identifiers")
    places, start = [], 0
    for mine in ids:
        places.append({old: start + k for k, old in enumerate(mine)})
        start += len(mine)
    return places


def _require_one_table_each(places, origins, refl_files) -> None:
    owner: dict[int, str] = {}
    for place, name in zip(places, refl_files, strict=True):
        for index in place.values():
            if index in owner:
                raise InputError(
                    f"{name}: reflections of {origins[index]}, of which {owner[index]} holds some "
                    "too; give one .refl for each sweep"
                )
            owner[index] = name


def _require_reflections(origins, places) -> None:
    found = {index for place in places for index in place.values()}
    missing = [where for index, where in enumerate(origins) if index not in found]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: none of the .refl files has reflections of it; give its .refl "
            "too, or leave it out"
        )


def _join(experiments, tables, places):
    """Return one table of all reflections with id and imageset_id counted over all sweeps."""
    some_partiality = any("partiality" in table for table in tables)
    for table, place in zip(tables, places, strict=True):
        _renumber(table, place, experiments)
        if some_partiality and "partiality" not in table:
            table["partiality"] = flex.double(len(table), 1.0)
        _complete(table, experiments)
    joined = tables[0]
    for table in tables[1:]:
        joined.extend(table)
    for index, experiment in enumerate(experiments):
        if experiment.identifier:
            joined.experiment_identifiers()[index] = experiment.identifier
    return joined


def _renumber(table, place: dict[int, int], experiments) -> None:
    """Set id and imageset_id by the place of the experiment, and forget the identifiers."""
    old = table["id"].as_numpy_array()
    new = np.full(len(old), -1, dtype=np.int32)
    for before, index in place.items():
        new[old == before] = index
    table["id"] = flex.int(new)
    if "imageset_id" in table and len(experiments) > 1:
        imagesets = experiments.imagesets()
        number = np.array([*(imagesets.index(e.imageset) for e in experiments), -1], dtype=np.int32)
        table["imageset_id"] = flex.int(number[new])
    for key in list(table.experiment_identifiers().keys()):
        del table.experiment_identifiers()[key]


def _complete(table, experiments) -> None:
    """Add the columns d and zeta where they are missing and can be computed."""
    if "d" not in table:
        table.compute_d(experiments)
    if "zeta" not in table and "s1" in table:
        s1 = table["s1"].as_numpy_array().reshape(-1, 3)
        zeta = np.zeros(len(table))
        for index, experiment in enumerate(experiments):
            mine = table["id"].as_numpy_array() == index
            normal = np.cross(s1[mine], np.array(experiment.beam.get_s0()))
            size = np.linalg.norm(normal, axis=1)
            zeta[mine] = normal @ rotation_axis(experiment) / np.where(size > 0, size, 1)
        table["zeta"] = flex.double(zeta)


# --- provenance -----------------------------------------------------------------------------


def origin(experiments, reflections, structure_path) -> dict:
    """Return the files with their SHA-256 and the versions of the programs but for DIALS."""
    return {
        "program": "dials_hybrid",
        "version": __version__,
        "cctbx_version": _package_version("cctbx"),
        "experiments": [fingerprint(name) for name in experiments],
        "reflections": [fingerprint(name) for name in reflections],
        "structure": fingerprint(structure_path),
    }


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # as in builds from source
        return None


def fingerprint(name) -> dict[str, str]:
    """Return the absolute path and the SHA-256 of a file."""
    path = Path(name).resolve()
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
