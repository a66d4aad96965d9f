"""Refined orientations as .cif_pets files: virtual frames for the dynamical refinement of Jana2020.

Jana integrates every row over the whole of its frame (L. Palatinus et al. 2019,
doi:10.1107/S2052520619007534). A reflection of a DIALS sweep is therefore written once, with the
frame about whose middle its integration window lies, and only if that frame holds the whole
window. The laboratory frame and the angles are those of `io_pets`.

Such a file says that there is no mosaic spread. The refined model has none; the spread of a
profile model of DIALS is the width of rocking curves whatever their cause, and taken as mosaic
blocks it would let every frame see beyond its ends.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cctbx import uctbx

from .data import Problem, Result
from .io_geometry import rotation_axis, rotation_matrices
from .io_pets import Loaded
from .io_pets_frames import Frames, rotations
from .io_results import writing
from .records import InputError

logger = logging.getLogger("dials.hybrid.io_pets_write")

WHOLE_SHARE = 90.0  # per cent of the windows that a frame of automatic width can hold anywhere
WIDTH_ROUNDING = 0.5  # degree
AXIS_TILT = 1.0  # degree
SINC_WIDTH = 0.886  # full width at half maximum of (sin pi x / pi x)^2

_X, _Y, _Z = np.eye(3)


@dataclass(frozen=True)
class Cutting:
    """How a sweep is cut into virtual frames, in degree.

    Middles of frames are at most `step` apart. `width` None takes the width that holds nine in
    ten of the integration windows wherever they lie.
    """

    step: float = 2.0
    width: float | None = None


@dataclass(frozen=True)
class _Sweep:
    """One sweep cut into F frames, with the n observations that one of them holds whole."""

    middle: np.ndarray  # (F,) degree
    width: float  # degree
    kept: np.ndarray  # (n,) index of the observation
    frame: np.ndarray  # (n,)
    left_out: int


def file_names(path, count: int) -> list[str]:
    """Return the names of `count` files, one for each sweep: PATH, or PATH with _1, _2 ..."""
    path = Path(path)
    if count == 1:
        return [str(path)]
    return [str(path.with_name(f"{path.stem}_{i + 1}{path.suffix}")) for i in range(count)]


# --- virtual frames of DIALS sweeps ---------------------------------------------------------


def cut(problem: Problem, cutting: Cutting) -> list[_Sweep]:
    """Cut every sweep of a problem of DIALS data into overlapping frames.

    Raises InputError when the frames of a sweep hold no window of a reflection whole, or when
    none of its reflections is used.
    """
    sweeps = range(int(problem.scan.sweep.max()) + 1)
    return [_cut_sweep(problem, index, cutting) for index in sweeps]


def _cut_sweep(problem: Problem, index: int, cutting: Cutting) -> _Sweep:
    scan = problem.scan
    mine = np.flatnonzero(problem.observations.sweep.numpy() == index)
    if len(mine) == 0:
        raise InputError(
            f"output.pets: no reflection of sweep {index + 1} is used; leave this sweep out, or "
            "relax selection.*"
        )
    low, high = (x[mine] for x in _windows(problem))
    blocks = scan.sweep.numpy() == index
    half_sample = np.degrees(scan.sample_width.numpy()[blocks].max()) / 2
    angle = np.degrees(scan.angle.numpy()[blocks])
    start, end = angle.min() - half_sample, angle.max() + half_sample
    width = min(cutting.width or _automatic_width(high - low, cutting.step), end - start)
    count = math.ceil((end - start - width) / cutting.step - 1e-9) + 1
    middle = np.linspace(start + width / 2, end - width / 2, count)
    offset = np.abs((low + high)[:, None] / 2 - middle)
    frame = offset.argmin(1)
    reach = offset[np.arange(len(mine)), frame] + (high - low) / 2
    whole = reach <= width / 2 + 1e-6
    if not whole.any():
        raise InputError(
            f"pets.frame_width={width:g}: no reflection of sweep {index + 1} lies whole in one; "
            f"half of the windows are wider than {np.median(high - low):.2g} degrees; set it to "
            "Auto, or larger"
        )
    used, frame = np.unique(frame[whole], return_inverse=True)
    return _Sweep(middle[used], width, mine[whole], frame.reshape(-1), int((~whole).sum()))


def _windows(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last angle, (R,) degree, over which each row is integrated."""
    scan, o = problem.scan, problem.observations
    block, row = o.link_block.numpy(), o.link_observation.numpy()
    angle, half = scan.angle.numpy(), scan.sample_width.numpy() / 2
    low, high = np.full(len(o.intensity), np.inf), np.full(len(o.intensity), -np.inf)
    first, last = (block, o.link_first.numpy()), (block, o.link_last.numpy())
    np.minimum.at(low, row, angle[first] - half[first])
    np.maximum.at(high, row, angle[last] + half[last])
    return np.degrees(low), np.degrees(high)


def _automatic_width(windows: np.ndarray, step: float) -> float:
    """Return the width that holds most of the windows (R,), wherever they lie, in degree."""
    longest = float(np.percentile(windows, WHOLE_SHARE)) + step
    return WIDTH_ROUNDING * math.ceil(longest / WIDTH_ROUNDING - 1e-6)


def virtual_frames(problem: Problem, result: Result, experiments, cutting: Cutting):
    """Return the frames of every sweep of DIALS data, refined orientations in them.

    Raises InputError when the frames of a sweep hold no reflection whole.
    """
    sweeps = zip(experiments, cut(problem, cutting), strict=True)
    return [
        _frames(problem, result, index, sweep, experiment)
        for index, (experiment, sweep) in enumerate(sweeps)
    ]


def _frames(problem: Problem, result: Result, index: int, sweep: _Sweep, experiment) -> Frames:
    o = problem.observations
    setting, beam = _refined_settings(problem, result, index, sweep.middle)
    upright = _to_beam_along_minus_z(beam)
    position = _axis_position((upright @ rotation_axis(experiment)).mean(0), index)
    order = np.lexsort((*o.hkl.numpy()[sweep.kept].T[::-1], sweep.frame))
    kept, frame = sweep.kept[order], sweep.frame[order]
    hkl = o.hkl.numpy()[kept]
    cell = tuple(problem.structure.cell.tolist())
    setting = upright @ setting
    longest = np.linalg.norm(np.einsum("rij,rj->ri", setting[frame], hkl), axis=1).max()
    logger.info(
        "Virtual frames of sweep %d: %d of %.3g degrees, %d reflections; %d lie whole in none",
        index + 1,
        len(sweep.middle),
        sweep.width,
        len(kept),
        sweep.left_out,
    )
    return Frames(
        file="",
        cell=cell,
        wavelength=problem.scan.wavelength,
        axis=rotations(_Z, position)[0] @ _X,
        mosaicity=0.0,
        setting=_rotation_parts(setting, cell) @ _b_matrix(cell),
        alpha=sweep.middle - _zero(sweep.middle),
        half_width=np.full(len(sweep.middle), sweep.width / 2),
        frame=frame,
        hkl=hkl,
        intensity=o.intensity.numpy()[kept],
        sigma=o.sigma.numpy()[kept],
        details=_details(longest, _rocking_width(result), position, experiment),
    )


def _refined_settings(problem: Problem, result: Result, index: int, middle: np.ndarray):
    """Return refined settings (F, 3, 3) and beams (F, 3) at angles (F,) degree of a sweep."""
    scan = problem.scan
    blocks = np.flatnonzero(scan.sweep.numpy() == index)
    samples = scan.angle.shape[1]
    angle = scan.angle.numpy()[blocks].ravel()
    wanted = np.radians(middle)
    near = np.abs(angle - wanted[:, None]).argmin(1)
    block, sample = blocks[near // samples], near % samples
    rest = (wanted - angle[near])[:, None] * scan.axis.numpy()[block]
    refined = result.orientation.numpy()[blocks]
    at = scan.block_angle.numpy()[blocks]
    omega = np.stack([np.interp(wanted, at, x) for x in refined.T], axis=1)
    setting = rotation_matrices(rest) @ scan.setting.numpy()[block, sample]
    return rotation_matrices(omega) @ setting, scan.s0.numpy()[block]


def _to_beam_along_minus_z(beam: np.ndarray) -> np.ndarray:
    """Return the smallest rotations (F, 3, 3) that take beams (F, 3) to -z; from +z about x."""
    beam = beam / np.linalg.norm(beam, axis=1, keepdims=True)
    normal = np.cross(beam, -_Z)
    sine = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = np.where(sine > 1e-9, normal / np.maximum(sine, 1e-9), _X)
    return rotation_matrices(np.arctan2(sine, -beam[:, 2:]) * normal)


def _axis_position(axis: np.ndarray, index: int) -> float:
    """Return the angle in degree from x of the rotation axis (3,), the beam being along -z.

    The format knows axes across the beam alone; it warns of one that is not.
    """
    tilt = math.degrees(math.asin(axis[2] / np.linalg.norm(axis)))
    if abs(tilt) > AXIS_TILT:
        logger.warning(
            "The rotation axis of sweep %d is %.1f degrees off the plane across the beam, of which "
            ".cif_pets knows nothing: orientations are right in the middle of each frame alone",
            index + 1,
            abs(tilt),
        )
    return math.degrees(math.atan2(axis[1], axis[0]))


def _zero(middle: np.ndarray) -> float:
    """Return what is subtracted from the angles (degree) of frames to give alpha.

    Nothing, unless alpha came near to 90 degrees, where beta and omega mean the same.
    """
    return 0.0 if np.abs(middle).max() < 80 else float(middle.min() + middle.max()) / 2


def _rocking_width(result: Result) -> float:
    """Return the full width at half maximum (A^-1) of S for the mean thickness, kinematic."""
    return SINC_WIDTH / float((result.thickness @ result.depth).mean())


def _details(dstarmax: float, width: float, position: float, experiment) -> str:
    """Return the measurement details as PETS2 words them, A^-1, degree and pixels."""
    return "\n".join(
        [
            "data collection geometry: continuous rotation",
            f"dstarmax:  {math.ceil(1000 * dstarmax) / 1000:.3f}",
            f"RC width:  {width:.5f}",
            "mosaicity:  0.000",
            f"rotation axis position:  {position:.3f}",
            f"reflection size:  {_reflection_size(experiment):.3f}",
        ]
    )


def _reflection_size(experiment) -> float:
    """Return the diameter of the integrated spots in pixels, 0 where no profile model tells."""
    if not hasattr(experiment.profile, "delta_b"):
        return 0.0
    panel = experiment.detector[0]
    radius = math.tan(float(np.mean(experiment.profile.delta_b(deg=False))))
    return 2 * radius * panel.get_directed_distance() / panel.get_pixel_size()[0]


# --- frames of PETS2 ------------------------------------------------------------------------


def refined_frames(loaded: Loaded, problem: Problem, result: Result) -> list[Frames]:
    """Return the frames of PETS2 files with all their rows, refined orientations in them.

    Frames of which no row was used keep their orientation.
    """
    o = problem.observations
    first = np.cumsum([0, *(len(part.alpha) for part in loaded.parts)])
    every = zip(loaded.parts, first, strict=False)
    frame_of_row = np.concatenate([start + part.frame for part, start in every])
    turn = np.tile(np.eye(3), (first[-1], 1, 1))
    linked = frame_of_row[o.row.numpy()[o.link_observation.numpy()]]
    turn[linked] = rotation_matrices(result.orientation.numpy())[o.link_block.numpy()]
    turns = np.split(turn, first[1:-1])
    return [
        dataclasses.replace(part, setting=mine @ part.setting)
        for part, mine in zip(loaded.parts, turns, strict=True)
    ]


# --- writing --------------------------------------------------------------------------------


def write(path, frames: Frames) -> None:
    """Write a .cif_pets file.

    Raises InputError when the system refuses.
    """
    with writing(path) as temporary:
        temporary.write_text(text(frames), encoding="ascii", errors="replace")


def text(frames: Frames) -> str:
    """Return the content of a .cif_pets file.

    The scale of every frame is one: Jana refines it.
    """
    u_matrix = _common_orientation(frames)
    ub = u_matrix @ _b_matrix(frames.cell)
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_pets"]
    lines += [f"_cell_{name} {x:.5f}" for name, x in zip(names, frames.cell, strict=True)]
    lines.append(f"_cell_volume {uctbx.unit_cell(frames.cell).volume():.5f}")
    lines.append(f"_diffrn_radiation_wavelength {frames.wavelength:.6f}")
    lines += [
        f"_diffrn_orient_matrix_UB_{i + 1}{j + 1} {ub[i, j]:.8f}"
        for i in range(3)
        for j in range(3)
    ]
    lines.append("_diffrn_pets_omega 0.00000")
    lines += ["_diffrn_measurement_details", ";", frames.details.strip("\n"), ";", ""]
    return "\n".join([*lines, *_zone_lines(frames, u_matrix), "", *_row_lines(frames), ""])


def _zone_lines(frames: Frames, u_matrix: np.ndarray) -> list[str]:
    columns = ("id", "u", "v", "w", "precession_angle", "alpha", "beta", "omega", "scale")
    turn = _rotation_parts(frames.setting, frames.cell) @ u_matrix.T
    alpha, beta, omega = tilts(turn, frames.alpha)
    zone = zone_axes(frames.setting)
    lines = ["loop_", *(f"_diffrn_zone_axis_{name}" for name in columns)]
    for i in range(len(alpha)):
        uvw = " ".join(f"{x:9.6f}" for x in zone[i])
        angles = f"{alpha[i]:10.5f} {beta[i]:10.5f} {omega[i]:10.5f}"
        lines.append(f"{i + 1:4d} {uvw} {frames.half_width[i]:8.4f} {angles} 1.000")
    return lines


def _row_lines(frames: Frames) -> list[str]:
    columns = ("index_h", "index_k", "index_l", "intensity_meas", "intensity_sigma")
    lines = ["loop_", *(f"_refln_{name}" for name in (*columns, "zone_axis_id"))]
    positive = frames.sigma[frames.sigma > 0]
    smallest = float(positive.min()) if len(positive) else 1.0
    decimals = max(2, 2 - math.floor(math.log10(smallest)))  # of intensities on any scale
    rows = zip(frames.hkl, frames.intensity, frames.sigma, frames.frame, strict=True)
    for (h, k, l), value, sigma, frame in rows:  # noqa: E741
        numbers = f"{value:12.{decimals}f} {sigma:12.{decimals}f}"
        lines.append(f"{h:4d} {k:4d} {l:4d} {numbers} {frame + 1:5d}")
    return lines


def zone_axes(setting: np.ndarray) -> np.ndarray:
    """Return the directions [uvw] (F, 3) that settings (F, 3, 3) take to +z, the largest |.| one.

    hkl [uvw] is the component of g along the zone axis: the third row of the setting.
    """
    return setting[:, 2] / np.abs(setting[:, 2]).max(1, keepdims=True)


def tilts(turn: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return alpha, beta and omega (F,) in degree of rotations Rz(omega) Rx(alpha) Ry(beta).

    Each rotation (F, 3, 3) has two such triples: the one with alpha nearest to `near` (F,) is
    returned.
    """
    alpha = np.degrees(np.arcsin(np.clip(turn[:, 2, 1], -1, 1)))
    beta = np.degrees(np.arctan2(-turn[:, 2, 0], turn[:, 2, 2]))
    omega = np.degrees(np.arctan2(-turn[:, 0, 1], turn[:, 1, 1]))
    first = np.stack([alpha, beta, omega])
    second = np.stack([180 - alpha, beta + 180, omega + 180])
    away = [np.abs(_within_half_turn(x[0] - near)) for x in (first, second)]
    chosen = np.where(away[0] <= away[1], first, second)
    return tuple(_within_half_turn(chosen))


def _within_half_turn(degrees: np.ndarray) -> np.ndarray:
    return (degrees + 180) % 360 - 180


def _common_orientation(frames: Frames) -> np.ndarray:
    """Return U (3, 3): the crystal at alpha = 0 that leaves beta and omega smallest.

    It is the mean, in the sense of least squares of the matrices, over the frames turned back.
    """
    position = math.degrees(math.atan2(frames.axis[1], frames.axis[0]))
    back = rotations(_X, -frames.alpha) @ rotations(_Z, -position)
    return _nearest_rotations((back @ _rotation_parts(frames.setting, frames.cell)).mean(0))


def _rotation_parts(setting: np.ndarray, cell) -> np.ndarray:
    """Return the rotations U (F, 3, 3) of settings that a strain of the cell may distort."""
    return _nearest_rotations(setting @ np.linalg.inv(_b_matrix(cell)))


def _nearest_rotations(matrices: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrices)
    return left @ right


def _b_matrix(cell) -> np.ndarray:
    """Return the reciprocal axes (3, 3) of a cell as columns, in A^-1."""
    return np.array(uctbx.unit_cell(cell).fractionalization_matrix()).reshape(3, 3).T
