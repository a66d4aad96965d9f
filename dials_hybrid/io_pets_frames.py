"""Virtual frames of PETS2: their geometry, and what of the rotation a row's intensity holds.

The laboratory frame is that of PETS: the beam along -z, the rocking axis across it. In frames of
precession the beam goes round a cone about it, whose half opening the file has as half width
(R. Vincent & P. A. Midgley 1994, doi:10.1016/0304-3991(94)90039-6).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import numpy as np
import torch

from .io_geometry import rotation_matrices

MOSAIC_REACH = 3.0  # standard deviations of the mosaic spread that a frame looks beyond its ends
TAILS = 0.25  # part of the half width that a frame looks beyond its ends for whole rocking curves
REPEATED = 0.9  # share of equal neighbours in files of whole rocking curves
ENOUGH = 10  # neighbours that tell
# as the files say it
CONTINUOUS = "continuous rotation"
PRECESSION = "precession"
GEOMETRY = "data collection geometry:"
# part of their width by which middles of single frames are apart where nothing else is wrong
APART = 0.75
RIM, BEYOND = 0.9, 1.3  # in and out of the reach of precession, in units of it
FEW = 20  # rows that say nothing
GOLDEN = (5**0.5 - 1) / 2
OPENINGS = 32  # cones that stand for those of all mosaic blocks
X, Y, Z = np.eye(3)  # of the laboratory


@dataclass(frozen=True)
class Frames:
    """The F virtual frames of one file and its R rows, as written there."""

    file: str
    cell: tuple[float, ...]  # A, degree
    wavelength: float  # A
    axis: np.ndarray  # (3,) unit vector, rocking axis
    mosaicity: float  # degree, standard deviation about the rocking axis
    setting: np.ndarray  # (F, 3, 3) A^-1, takes hkl to the laboratory at a frame's middle
    alpha: np.ndarray  # (F,) degree
    half_width: np.ndarray  # (F,) degree
    frame: np.ndarray  # (R,) index of each row's frame
    hkl: np.ndarray  # (R, 3) int
    intensity: np.ndarray  # (R,)
    sigma: np.ndarray  # (R,)
    details: str  # of the measurement, as the file words them
    precession: bool = False  # and not rotation

    def taken_as(self, geometry: str) -> Frames:
        """Return the same as of precession or rotation; "auto" leaves what the file says."""
        if geometry == "auto" or (geometry == PRECESSION) == self.precession:
            return self
        precession = geometry == PRECESSION
        said = PRECESSION if precession else CONTINUOUS
        details = re.sub(f"{GEOMETRY}.*", f"{GEOMETRY} {said}", self.details)
        return dataclasses.replace(self, precession=precession, details=details)


def geometry_of(details: str) -> str | None:
    """Return how the data were collected, None where the measurement's details do not say it."""
    found = re.search(rf"{GEOMETRY}[ \t]*(.*)", details)
    return None if found is None else found.group(1).strip()


def must_be_precession(part: Frames) -> bool:
    """Tell whether frames that are said to be of rotation cannot be.

    Neighbours in a continuous rotation overlap only where several frames were merged. Frames that
    are single and overlap all the same are of precession, if reflections whose excitation errors
    the beam reaches on its cone, but not the rotation, are there more often than those that
    neither reaches.
    """
    merged = re.search(r"number of merged frames:[ \t]*(\d+)", part.details)
    if merged is None or int(merged.group(1)) != 1 or len(part.alpha) < 2:
        return False
    apart = float(np.median(np.diff(np.sort(part.alpha))))
    if apart > APART * 2 * float(np.median(part.half_width)):
        return False
    s, rotated = excitation(part)
    reach = excitation(part.taken_as(PRECESSION))[1]
    s, seen = np.abs(s), part.intensity > 3 * part.sigma
    within = (s > rotated + (BEYOND - 1) * reach) & (s < RIM * reach)
    beyond = s > BEYOND * reach
    if within.sum() < FEW or beyond.sum() < FEW:
        return True
    return bool(seen[within].mean() > 2 * seen[beyond].mean())


def measurement_of(parts) -> dict:
    """Return what files say of the measurement, as JSON values.

    `mosaicity` (degree, None without) and `mosaic_method`, and for each file, in `frames`, their
    `number`, the `width` of one, `start` and `end` (degree), whether the file states that they
    are of a continuous `rotation`, and the half opening of the cone of `precession` (degree, None
    without).
    """
    spreads = [part.mosaicity for part in parts if part.mosaicity > 0]
    return {
        "mosaicity": sum(spreads) / len(spreads) if spreads else None,
        "mosaic_method": "as given by the program that wrote the virtual frames",
        "frames": [
            {
                "number": len(part.alpha),
                "width": 2 * float(part.half_width.mean()),
                "start": float((part.alpha - part.half_width).min()),
                "end": float((part.alpha + part.half_width).max()),
                "rotation": geometry_of(part.details) == CONTINUOUS,
                "precession": float(part.half_width.mean()) if part.precession else None,
            }
            for part in parts
        ],
    }


def rotations(axis: np.ndarray, degrees) -> np.ndarray:
    """Return right-handed rotations (n, 3, 3) about a unit vector by angles (n,) in degree."""
    return rotation_matrices(np.radians(np.atleast_1d(degrees))[:, None] * axis)


def vectors(part: Frames) -> np.ndarray:
    """Return (R, 3) A^-1: g of every row in the laboratory, at the middle of its frame."""
    return np.einsum("rij,rj->ri", part.setting[part.frame], part.hkl)


def excitation(part: Frames) -> tuple[np.ndarray, np.ndarray]:
    """Return S at the middle of the frame and dS, both (R,) in A^-1, of every row.

    S = (k^2 - |k + g|^2) / 2k with the beam along -z; dS = |dS/dphi| times the half width is how
    far S goes from the middle to the end of the frame, or to the rim of the cone (L. Palatinus
    et al. 2015, doi:10.1107/S2053273315001266).
    """
    g = vectors(part)
    s = g[:, 2] - part.wavelength * (g * g).sum(1) / 2
    rate = np.hypot(g[:, 0], g[:, 1]) if part.precession else np.abs(np.cross(part.axis, g)[:, 2])
    return s, rate * np.radians(part.half_width[part.frame])


def _neighbours(part: Frames) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (n,), (n,) of the same reflection in a frame and in the next."""
    order = np.lexsort((part.frame, *part.hkl.T))
    first, second = order[:-1], order[1:]
    same = (part.hkl[first] == part.hkl[second]).all(1)
    next_to = same & (part.frame[second] == part.frame[first] + 1)
    return first[next_to], second[next_to]


def _equal(part: Frames, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Tell (n,) which rows have the same intensity and sigma as others."""
    return (part.intensity[first] == part.intensity[second]) & (
        part.sigma[first] == part.sigma[second]
    )


def has_whole_curves(part: Frames, rocking_curve: str = "auto") -> bool:
    """Tell whether rows hold the intensity of the whole rocking curve, and not of their frame.

    `rocking_curve` says so (whole, frame), or lets the data tell (auto): the number that stands
    in one frame then stands in the next as well.
    """
    if part.precession:
        return False
    if rocking_curve != "auto":
        return rocking_curve == "whole"
    first, second = _neighbours(part)
    strong = part.intensity[first] > 3 * part.sigma[first]
    equal = _equal(part, first[strong], second[strong])
    return len(equal) >= ENOUGH and bool(equal.mean() > REPEATED)


def most_central(part: Frames) -> np.ndarray:
    """Tell (R,) which rows are, among the frames that repeat them, nearest to a frame's middle."""
    first, second = _neighbours(part)
    equal = _equal(part, first, second)
    before = np.arange(len(part.hkl))
    before[second[equal]] = first[equal]
    pass_of = before
    while (pass_of != before[pass_of]).any():  # to the first row of each
        pass_of = before[pass_of]
    s, reach = excitation(part)
    order = np.lexsort((np.abs(s) / np.maximum(reach, 1e-12), pass_of))
    out = np.zeros(len(before), dtype=bool)
    out[order[np.unique(pass_of[order], return_index=True)[1]]] = True
    return out


@dataclass(frozen=True)
class Window:
    """What the frames of a file see of the rotation, in degree from their middles."""

    reach: np.ndarray  # (F,)
    half_width: np.ndarray  # (F,)
    blur: float  # standard deviation of the ends

    @classmethod
    def of(cls, part: Frames, rocking_curve: str) -> Window:
        """Mosaic blocks, each of which scatters by itself, do not change a whole curve's area."""
        if part.precession:
            return cls(part.half_width, part.half_width, part.mosaicity)
        if has_whole_curves(part, rocking_curve):
            wider = (1 + TAILS) * part.half_width
            return cls(wider, wider, 0.0)
        reach = part.half_width + MOSAIC_REACH * part.mosaicity
        return cls(reach, part.half_width, part.mosaicity)

    def share(self, offset: np.ndarray) -> np.ndarray:
        """Return the share of the crystal that is seen at offsets (F, T) from the middle.

        One within the frame and zero beyond; the orientations of the mosaic blocks about the
        rocking axis are spread as a Gaussian, which blurs the ends.
        """
        if self.blur == 0:
            return np.ones_like(offset)
        half = self.half_width[:, None]
        scaled = [torch.from_numpy((offset + h) / self.blur) for h in (half, -half)]
        upper, lower = (torch.special.ndtr(x).numpy() for x in scaled)
        return upper - lower


def pieces_of(part: Frames, window: Window, width: float) -> int:
    """Return the number of blocks, of about `width` degree, that each frame is cut into."""
    return max(1, round(path_of(part, window) / width))


def path_of(part: Frames, window: Window) -> float:
    """Return the way of the beam through the crystal's orientations in a frame, in degree."""
    return (2 * np.pi if part.precession else 2) * float(window.reach.max())


def blocks_of(part: Frames, index: int, window: Window, pieces: int, samples: int) -> dict:
    """Return the fields of `Scan` of one file's frames, each cut into blocks of some samples.

    All of a frame have the angle of its middle: its setting was found for the frame, and what is
    wrong with it goes with the frame.
    """
    rock, weight = (_round if part.precession else _along)(part, window, pieces * samples)
    blocks = len(part.alpha) * pieces
    angle = np.radians(part.alpha).repeat(pieces * samples)
    s0 = np.tile([0.0, 0.0, -1 / part.wavelength], (blocks, 1))
    return {
        "setting": torch.from_numpy((rock @ part.setting[:, None]).reshape(blocks, samples, 3, 3)),
        "angle": torch.from_numpy(angle.reshape(blocks, samples)),
        "sample_width": torch.from_numpy(weight.reshape(blocks, samples)),
        "s0": torch.from_numpy(s0),
        "normal": torch.from_numpy(s0 * part.wavelength),
        "sweep": torch.full((blocks,), index),
        "axis": torch.from_numpy(np.tile(part.axis, (blocks, 1))),
    }


def pieces_passed(part: Frames, setting: np.ndarray, pieces: int, tail: float) -> np.ndarray:
    """Tell (R, pieces) in which blocks of its frame each row comes within `tail` of the sphere.

    `setting` (F pieces, T, 3, 3) is that of `blocks_of`, `tail` is in A^-1. The piece in which a
    row comes nearest is always among them.
    """
    along = setting[:, :, 2].reshape(len(part.alpha), pieces, -1, 3)[part.frame]
    g_sq = (vectors(part) ** 2).sum(1)
    s = np.einsum("rpti,ri->rpt", along, part.hkl) - part.wavelength * g_sq[:, None, None] / 2
    crossed = (s.min(2) < 0) & (s.max(2) > 0)
    nearest = np.where(crossed, 0.0, np.abs(s).min(2))
    return nearest <= np.maximum(tail, nearest.min(1, keepdims=True))


def _along(part: Frames, window: Window, samples: int):
    """Return turns (F, T, 3, 3) along the rotation, and the widths of samples (F, T) in rad."""
    even = (np.arange(samples) + 0.5) / samples * 2 - 1
    offset = window.reach[:, None] * even
    rock = rotations(part.axis, offset.ravel()).reshape(*offset.shape, 3, 3)
    step = np.radians(2 * window.reach / samples)
    return rock, step[:, None] * window.share(offset)


def _round(part: Frames, window: Window, samples: int):
    """Return the same round the cone of precession.

    Instead of the beam the crystal is turned, which differs by a turn about the beam only. Mosaic
    blocks see wider and narrower cones: the openings of the samples are those of their Gaussian, in
    an order by the golden section, in which no neighbours are alike.
    """
    count = np.arange(samples) + 0.5
    azimuth = 2 * np.pi * count / samples
    across = np.cross(Z, part.axis)
    directions = np.cos(azimuth)[:, None] * part.axis + np.sin(azimuth)[:, None] * across
    opening = window.half_width[:, None] + window.blur * _normal(count * GOLDEN % 1)
    turn = np.radians(opening)[..., None] * directions
    rock = rotation_matrices(turn.reshape(-1, 3)).reshape(*opening.shape, 3, 3)
    weight = np.tile(2 * np.pi * np.radians(window.half_width[:, None]) / samples, samples)
    return rock, weight


def _normal(share: np.ndarray) -> np.ndarray:
    """Return the standard deviations below which a share of a Gaussian lies."""
    return torch.special.ndtri(torch.from_numpy(share)).numpy()


def cone_weights(part: Frames, window: Window, setting: np.ndarray, pieces: int) -> np.ndarray:
    """Return what every sample of its frame's cone counts for in each row, (R, pieces, T) in rad.

    `setting` (F pieces, T, 3, 3) is that of `blocks_of`. What a reflection does follows its own S
    more than all else, and its S are known: a sample counts for that part of the cone whose S is
    nearer to its own than to those of the others. With equal weights it would take twice as many
    samples.
    """
    along = setting[:, :, 2].reshape(len(part.alpha), -1, 3)[part.frame]
    g, middle = vectors(part), part.setting[part.frame, 2]
    across = np.maximum(np.hypot(g[:, 0], g[:, 1]), 1e-9)
    # the part of the tilt that is along g, from the middle of the frame
    tilt = np.einsum("rti,ri->rt", along - middle[:, None], part.hkl) / across[:, None]
    order = np.argsort(tilt, axis=1)
    ascending = np.take_along_axis(tilt, order, 1)
    between = (ascending[:, 1:] + ascending[:, :-1]) / 2
    ends = np.zeros((len(g), 1))
    below = _below(between, np.radians(window.half_width[part.frame]), np.radians(window.blur))
    share = np.empty_like(tilt)
    np.put_along_axis(share, order, np.diff(np.hstack([ends, below, ends + 1]), axis=1), 1)
    whole = 2 * np.pi * np.radians(window.half_width[part.frame])
    return (share * whole[:, None]).reshape(len(g), pieces, -1)


def _below(tilt: np.ndarray, opening: np.ndarray, blur: float) -> np.ndarray:
    """Return the share of cones whose tilt along one direction is below `tilt` (R, n).

    The openings (R,) have a standard deviation `blur`, all in rad. On one cone r cos(a) is
    below x for the share 1 - arccos(x / r) / pi of the azimuths a.
    """
    out = np.zeros_like(tilt)
    for deviation in _normal((np.arange(OPENINGS) + 0.5) / OPENINGS):
        r = np.maximum(opening + blur * deviation, 1e-9)[:, None]
        out += 1 - np.arccos(np.clip(tilt / r, -1, 1)) / np.pi
    return out / OPENINGS
