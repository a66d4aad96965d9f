"""One .cif_pets file as it stands: its loops, cell and orientation, and what its details say."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import iotbx.cif
import numpy as np
from cctbx import uctbx

from .io_cctbx import CELL_ERROR, format_cell
from .io_dials import MAX_WAVELENGTH
from .io_pets_frames import CONTINUOUS, PRECESSION, Frames, X, Y, Z, geometry_of, rotations
from .records import InputError

logger = logging.getLogger("dials.hybrid.io_pets_read")

AXIS_TOLERANCE = 5.0  # degree, between the rotation axis position and the frames' omega

_ADVICE = "export it again from PETS2 for dynamical refinement"
_ZONE = ("id", "precession_angle", "alpha", "beta", "omega")
_REFLN = ("index_h", "index_k", "index_l", "intensity_meas", "intensity_sigma", "zone_axis_id")


def read(name: str) -> Frames:
    """Return the frames and rows of a .cif_pets file, as it says.

    Raises InputError with one sentence that names the file, what was found and what to do.
    """
    block = _data_block(name)
    zones = _loop(name, block, "_diffrn_zone_axis_", _ZONE, "zone axes")
    rows = _loop(name, block, "_refln_", _REFLN, "reflections")
    cell, wavelength, ub = _cell_and_orientation(name, block)
    alpha, beta, omega, half = (
        _numbers(name, key, zones[key]) for key in ("alpha", "beta", "omega", "precession_angle")
    )
    details = str(block.get("_diffrn_measurement_details", ""))
    _require_movement(name, details, half)
    turn = rotations(Z, omega) @ rotations(X, alpha) @ rotations(Y, beta)
    hkl = np.stack([_numbers(name, key, rows[key]) for key in _REFLN[:3]], axis=1)
    if not np.array_equal(hkl, np.rint(hkl)):
        raise InputError(
            f"{name}: indices that are not whole numbers; {_ADVICE}, without satellites"
        )
    return Frames(
        file=name,
        cell=cell,
        wavelength=wavelength,
        axis=rotations(Z, _axis_position(name, details, omega))[0] @ X,
        mosaicity=max(_stated(name, details, "mosaicity") or 0.0, 0.0),
        setting=turn @ ub,
        alpha=alpha,
        half_width=half,
        frame=_frames_of_rows(name, zones["id"], rows["zone_axis_id"]),
        hkl=np.rint(hkl).astype(np.int64),
        intensity=_numbers(name, "intensity_meas", rows["intensity_meas"], finite=False),
        sigma=_numbers(name, "intensity_sigma", rows["intensity_sigma"], finite=False),
        details=details,
        precession=PRECESSION in (geometry_of(details) or ""),
    )


def _data_block(name: str):
    """Return the first data block that has zone axes or else the first of all."""
    # comments hold names in any encoding; nothing else goes beyond ASCII
    text = Path(name).read_bytes().decode("ascii", errors="replace").replace("\ufffd", "?")
    try:
        model = iotbx.cif.reader(input_string=text, raise_if_errors=True).model()
    except Exception as error:  # CifParserError and others
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name}: cannot be read as CIF ({reason}); {_ADVICE}") from error
    blocks = list(model.values())
    if not blocks:
        raise InputError(f"{name}: holds no data block; {_ADVICE}")
    return next((b for b in blocks if b.get_loop("_diffrn_zone_axis") is not None), blocks[0])


def _loop(name: str, block, prefix: str, keys, what: str) -> dict:
    """Return the columns (text) of a loop by their names without the prefix."""
    missing = [prefix + key for key in keys if prefix + key not in block]
    if missing:
        lacks = f"no loop of {what}" if len(missing) == len(keys) else f"no {missing[0]}"
        raise InputError(f"{name}: holds {lacks}; {_ADVICE}")
    columns = {key: block[prefix + key] for key in keys}
    # a loop of one row reads as single values where it was written without loop_
    return {key: [c] if isinstance(c, str) else list(c) for key, c in columns.items()}


def _numbers(name: str, key: str, words, finite: bool = True) -> np.ndarray:
    """Return numbers, a standard uncertainty in parentheses left out."""
    try:
        values = np.array([float(word.split("(")[0]) for word in words])
    except ValueError as error:
        raise InputError(
            f"{name}: {key} holds what is not a number ({error}); {_ADVICE}"
        ) from error
    if finite and not np.isfinite(values).all():
        raise InputError(f"{name}: {key} holds NaN or infinite values; {_ADVICE}")
    return values


def _cell_and_orientation(name: str, block):
    """Return the cell, the wavelength and UB (3, 3) with the cell's metric, in A^-1.

    PETS users set the cell to its known dimensions after the indexing; the file's UB keeps the
    error of the camera length (1 % in published data), so only its rotation is taken.
    """
    parts = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    keys = [f"_cell_{part}" for part in parts]
    keys += [f"_diffrn_orient_matrix_UB_{i}{j}" for i in (1, 2, 3) for j in (1, 2, 3)]
    keys.append("_diffrn_radiation_wavelength")
    missing = [key for key in keys if not isinstance(block.get(key), str)]
    if missing:
        raise InputError(f"{name}: holds no {missing[0]}; {_ADVICE}")
    values = np.concatenate([_numbers(name, key, [block[key]]) for key in keys])
    cell, ub, wavelength = tuple(values[:6].tolist()), values[6:15].reshape(3, 3), values[15]
    if not 0 < wavelength <= MAX_WAVELENGTH:
        raise InputError(
            f"{name}: wavelength {wavelength:g} A, but electrons of 15 kV and more have less than "
            f"{MAX_WAVELENGTH} A; give electron diffraction data, or correct the file"
        )
    try:
        b_matrix = np.array(uctbx.unit_cell(cell).fractionalization_matrix()).reshape(3, 3).T
        left, stretch, right = np.linalg.svd(ub @ np.linalg.inv(b_matrix))
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"{name}: the cell {format_cell(cell)} is impossible; {_ADVICE}"
        ) from error
    strain = 100 * np.abs(stretch - 1).max()
    if strain > CELL_ERROR or np.linalg.det(ub) <= 0:
        raise InputError(
            f"{name}: the orientation matrix UB does not belong to the cell {format_cell(cell)}; "
            f"{_ADVICE}"
        )
    if strain > 0.1:
        logger.warning(
            "%s: UB is stretched by %.1f %% against the cell, which is used", name, strain
        )
    return cell, float(wavelength), left @ right @ b_matrix


def _stated(name: str, details: str, what: str) -> float | None:
    """Return the number after `what:` in the measurement details, None if there is none."""
    found = re.search(rf"{what}:[ \t]*(\S+)", details)
    return None if found is None else float(_numbers(name, what, [found.group(1)])[0])


def _require_movement(name: str, details: str, half_width: np.ndarray) -> None:
    geometry = geometry_of(details) or CONTINUOUS
    known = geometry == CONTINUOUS or PRECESSION in geometry
    if not known or not (half_width > 0).all():
        what = "frames without width" if known else geometry
        raise InputError(
            f"{name}: {what}, which cannot be refined; give data of continuous rotation or "
            "precession"
        )


def _axis_position(name: str, details: str, omega: np.ndarray) -> float:
    """Return the angle of the rocking axis from x, in degree.

    That is the rotation axis position; where it is absent or far from the omega of the frames,
    about whose x axis alpha turns, their median.
    """
    stated, median = _stated(name, details, "rotation axis position"), float(np.median(omega))
    if stated is None:
        return median
    if abs((stated - median + 180) % 360 - 180) > AXIS_TOLERANCE:
        logger.warning(
            "%s: rotation axis position %g, but the frames have omega about %g degrees, which is "
            "used",
            name,
            stated,
            median,
        )
        return median
    return stated


def _frames_of_rows(name: str, ids, row_ids) -> np.ndarray:
    place = {identifier: index for index, identifier in enumerate(ids)}
    if len(place) != len(ids):
        raise InputError(f"{name}: several zone axes have the same id; {_ADVICE}")
    unknown = sorted(set(row_ids) - set(place))
    if unknown:
        raise InputError(
            f"{name}: reflections of zone axis {unknown[0]}, which is not in the file; {_ADVICE}"
        )
    return np.array([place[identifier] for identifier in row_ids], dtype=np.int64)
