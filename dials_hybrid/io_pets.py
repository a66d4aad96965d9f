"""PETS2 files (.cif_pets): frames of rotation or precession, read as blocks of a scan.

The laboratory frame is that of PETS: the beam along -z, the rocking axis across it, turned from x
by the rotation axis position. R = Rz(omega) Rx(alpha) Ry(beta) takes UB hkl, and the zone axis of
the frame to +z. Frames may overlap. L. Palatinus et al. 2019, doi:10.1107/S2052520619007534.

A row was integrated over the whole of its own frame; or, in most files, over the whole rocking
curve of the reflection, and the same number stands in every frame that the reflection passes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .data import Observations, Scan
from .io_cctbx import in_measured_cell
from .io_dials import check_agreement, origin
from .io_geometry import Sampling
from .io_pets_frames import (
    CONTINUOUS,
    PRECESSION,
    Frames,
    Window,
    blocks_of,
    cone_weights,
    excitation,
    has_whole_curves,
    measurement_of,
    most_central,
    must_be_precession,
    path_of,
    pieces_of,
    pieces_passed,
    vectors,
)
from .io_pets_read import read
from .io_reflections import USABLE, Selection, apply_filters, limits
from .records import InputError, require_file

logger = logging.getLogger("dials.hybrid.io_pets")

SUFFIX = ".cif_pets"
TAIL = 0.02  # A^-1, beyond which a rocking curve is cut off


@dataclass(frozen=True)
class Loaded:
    """The frames of several files; rows and frames are counted over all of them."""

    parts: tuple[Frames, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files."""
        return tuple(part.file for part in self.parts)

    def reconcile(self, xray_structure, structure_path):
        """Return the structure in the mean cell of the files.

        The files tell no space group: the structure's is taken. Raises InputError when the
        cells differ by more than 5 % or 5 degrees; above 1 % or 1 degree it warns.
        """
        cells = [part.cell for part in self.parts]
        mean = tuple(sum(values) / len(cells) for values in zip(*cells, strict=True))
        advice = "give the model in the axes of the data"
        return in_measured_cell(xray_structure, mean, structure_path, ", ".join(self.files), advice)

    def select(self, selection: Selection):
        """Return (row numbers kept, table of (filter, removed, left)).

        Raises InputError when nothing is left, in all or in one of the files.
        """
        return select_rows(self, selection)

    def observed(self, rows, sampling: Sampling, selection: Selection):
        """Return the scan and the observations of the chosen rows."""
        return scan_and_observations(self, rows, sampling, selection.rocking_curve)

    def provenance(self, structure_path) -> dict:
        """Return the files with their SHA-256, versions and what they say of the measurement."""
        measured = measurement_of(self.parts)
        return {**origin(self.files, [], structure_path), "measurement": measured}


def is_pets(path) -> bool:
    """Tell by its name whether a file is of PETS2."""
    return Path(path).suffix.lower() == SUFFIX


def load(paths, geometry: str = "auto") -> Loaded:
    """Read any number of .cif_pets files of the same crystal structure.

    `geometry` is rotation or precession, or auto: as the files say, unless that cannot be.
    Raises InputError with one sentence that names the file, what was found and what to do.
    """
    names = [str(path) for path in paths]
    for i, name in enumerate(names):
        require_file(name, f"give the {SUFFIX} file of PETS2")
        if Path(name).resolve() in {Path(other).resolve() for other in names[:i]}:
            raise InputError(f"{name}: given twice; give each file once")
    parts = tuple(_believed(read(name)) if geometry == "auto" else read(name) for name in names)
    parts = tuple(part.taken_as(geometry) for part in parts)
    check_agreement([p.wavelength for p in parts], [p.cell for p in parts], names)
    for part in parts:
        logger.info(
            "%s: %d frames of %g degrees%s, %g to %g degrees, mosaicity %g degrees, %d rows",
            part.file,
            len(part.alpha),
            (1 if part.precession else 2) * part.half_width.max(),
            " of precession" if part.precession else "",
            part.alpha.min(),
            part.alpha.max(),
            part.mosaicity,
            len(part.hkl),
        )
    return Loaded(parts)


def geometry_taken(measurement: dict) -> str:
    """Return the geometry with which `load` reads files again as they were read before.

    `measurement` is that of `Loaded.provenance`. Files of both kinds can only have been read as
    they say.
    """
    kinds = {
        PRECESSION if frames.get("precession") else "rotation"
        for frames in measurement.get("frames", [])
    }
    return kinds.pop() if len(kinds) == 1 else "auto"


def _believed(part: Frames) -> Frames:
    """Return the frames as of what they must be, with a warning where the file says otherwise."""
    if part.precession or not must_be_precession(part):
        return part
    logger.warning(
        "%s: says %s, but single frames %.1f degrees apart reach %.1f degrees, and reflections are "
        "there that only precession excites: taken as precession of %.1f degrees; "
        "selection.geometry=rotation takes it at its word",
        part.file,
        CONTINUOUS,
        np.median(np.diff(np.sort(part.alpha))),
        2 * part.half_width.max(),
        part.half_width.max(),
    )
    return part.taken_as(PRECESSION)


# --- selection ------------------------------------------------------------------------------


def select_rows(loaded: Loaded, selection: Selection):
    """Apply the filters in turn; see `Loaded.select`."""
    intensity, sigma = (
        np.concatenate([getattr(part, name) for part in loaded.parts])
        for name in ("intensity", "sigma")
    )
    s, reach = (np.concatenate(x) for x in zip(*map(excitation, loaded.parts), strict=True))
    finite = np.isfinite(intensity) & np.isfinite(sigma)
    filters = [(USABLE, finite & (sigma > 0))]
    if selection.rsg_max is not None:
        filters.append((f"R_Sg < {selection.rsg_max:g}", np.abs(s) < selection.rsg_max * reach))
    if selection.dsg_min is not None:
        name = f"D_Sg > {selection.dsg_min:g} 1/A"
        filters.append((name, reach - np.abs(s) > selection.dsg_min))
    filters += limits(selection, _spacings(loaded), intensity, sigma)
    whole = [has_whole_curves(part, selection.rocking_curve) for part in loaded.parts]
    for part in (part for part, is_whole in zip(loaded.parts, whole, strict=True) if is_whole):
        logger.info(
            "%s: intensities are those of whole rocking curves; each counts once, in the frame "
            "that has it nearest to its middle",
            part.file,
        )
    if any(whole):
        central = [
            most_central(part) if is_whole else np.ones(len(part.hkl), dtype=bool)
            for part, is_whole in zip(loaded.parts, whole, strict=True)
        ]
        filters.append(("nearest to the middle of a frame", np.concatenate(central)))
    rows, table = apply_filters(len(intensity), filters)
    kept = np.bincount(_file_of_rows(loaded)[rows], minlength=len(loaded.parts))
    if not kept.all():
        empty = loaded.files[int(kept.argmin())]
        raise InputError(f"{empty}: no row is left after the selection; leave this file out")
    return rows, table


def _spacings(loaded: Loaded) -> np.ndarray:
    """(R,) A: the distance of the lattice planes of every row."""
    g = np.concatenate([vectors(part) for part in loaded.parts])
    return 1 / np.maximum(np.linalg.norm(g, axis=1), 1e-9)


def _file_of_rows(loaded: Loaded) -> np.ndarray:
    return np.repeat(np.arange(len(loaded.parts)), [len(p.hkl) for p in loaded.parts])


# --- scan and observations ------------------------------------------------------------------


def scan_and_observations(
    loaded: Loaded, rows: np.ndarray, sampling: Sampling, rocking_curve: str = "auto"
):
    """Return the `Scan` and the `Observations` of the chosen rows.

    Every frame that has some is cut into blocks of about the width in `sampling`, since fewer
    beams are excited in each of them. All have the same number of samples, evenly at about its
    step. A row is linked to those blocks of its frame in which it comes within TAIL of the sphere;
    frames reach beyond their ends where intensities are those of whole rocking curves.
    """
    parts = loaded.parts
    windows = [Window.of(p, rocking_curve) for p in parts]
    pieces = [
        pieces_of(p, window, sampling.block_width) for p, window in zip(parts, windows, strict=True)
    ]
    paths = (path_of(p, window) / n for p, window, n in zip(parts, windows, pieces, strict=True))
    samples = max(1, round(max(paths) / sampling.step))
    blocks = [
        blocks_of(p, i, window, n, samples)
        for i, (p, window, n) in enumerate(zip(parts, windows, pieces, strict=True))
    ]
    row, block, weight, frame = _links(parts, windows, rows, blocks, pieces)
    kept = np.isin(frame, frame[block])  # frames of which there are rows
    scan = Scan(**{k: torch.cat([b[k] for b in blocks])[kept] for k in blocks[0]})
    chosen = {
        name: torch.from_numpy(np.concatenate([getattr(p, name) for p in parts])[rows])
        for name in ("hkl", "intensity", "sigma")
    }
    alpha = np.concatenate([p.alpha[p.frame] for p in parts])
    observations = Observations(
        **chosen,
        row=torch.from_numpy(rows),
        free=torch.zeros(len(rows), dtype=torch.bool),
        sweep=torch.from_numpy(_file_of_rows(loaded)[rows]),
        angle=torch.from_numpy(np.radians(alpha[rows])),
        link_observation=torch.from_numpy(row),
        link_block=torch.from_numpy((np.cumsum(kept) - 1)[block]),
        link_first=torch.zeros(len(row), dtype=torch.int64),
        link_last=torch.full((len(row),), samples - 1),
        link_weight=torch.from_numpy(weight) if any(p.precession for p in parts) else None,
    )
    return scan, observations


def _links(parts, windows, rows: np.ndarray, blocks, pieces) -> tuple[np.ndarray, ...]:
    """Return which of the chosen rows (L,) is linked to which block (L,), over all files.

    Beside them come what the samples count for (L, T) in rad, and the frame of each block (F,).
    """
    found, frames, first = [], [], 0
    for part, window, fields, count in zip(parts, windows, blocks, pieces, strict=True):
        setting = fields["setting"].numpy()
        of_row, piece = np.nonzero(pieces_passed(part, setting, count, TAIL))
        place = part.frame[of_row] * count + piece
        weight = (
            cone_weights(part, window, setting, count)[of_row, piece]
            if part.precession
            else fields["sample_width"].numpy()[place]
        )
        found.append((of_row, sum(map(len, frames)) + place, weight))
        frames.append(first + np.repeat(np.arange(len(part.alpha)), count))
        first += len(part.alpha)
    starts = np.cumsum([0, *(len(part.hkl) for part in parts)])
    row = np.concatenate([start + r for start, (r, *_) in zip(starts, found, strict=False)])
    block, weight = (np.concatenate([f[k] for f in found]) for k in (1, 2))
    place = np.full(starts[-1], -1)
    place[rows] = np.arange(len(rows))
    kept = place[row] >= 0
    return place[row][kept], block[kept], weight[kept], np.concatenate(frames)
