"""Virtual frames of PETS2: their geometry, and what of the rotation a row's intensity holds.

The laboratory frame is that of PETS: the beam along -z, the rocking axis across it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

from .io_geometry import rotation_matrices

MOSAIC_REACH = 3.0  # standard deviations of the mosaic spread that a frame looks beyond its ends
TAILS = 0.25  # part of the half width that a frame looks beyond its ends for whole rocking curves
REPEATED = 0.9  # share of equal neighbours in files of whole rocking curves
ENOUGH = 10  # neighbours that tell
CONTINUOUS = "continuous rotation"  # as the files say it
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


def geometry_of(details: str) -> str | None:
    """Return how the data were collected, None where the measurement's details do not say it."""
    found = re.search(r"data collection geometry:[ \t]*(.*)", details)
    return None if found is None else found.group(1).strip()


def measurement_of(parts) -> dict:
    """Return what files say of the measurement, as JSON values.

    `mosaicity` (degree, None without) and `mosaic_method`, and for each file, in `frames`, their
    `number`, the `width` of one, `start` and `end` (degree) and whether the file states that they
    are of a continuous `rotation`.
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
    far S goes from the middle to the end of the frame (L. Palatinus et al. 2015,
    doi:10.1107/S2053273315001266).
    """
    g = vectors(part)
    s = g[:, 2] - part.wavelength * (g * g).sum(1) / 2
    rate = np.abs(np.cross(part.axis, g)[:, 2])
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


def blocks_of(part: Frames, index: int, window: Window, samples: int) -> dict:
    """Return the fields of `Scan` of one file's frames."""
    frames, reach = len(part.alpha), window.reach
    even = (np.arange(samples) + 0.5) / samples * 2 - 1
    offset = reach[:, None] * even
    rock = rotations(part.axis, offset.ravel()).reshape(frames, samples, 3, 3)
    step = np.radians(2 * reach / samples)
    weight = step[:, None] * window.share(offset)
    s0 = np.tile([0.0, 0.0, -1 / part.wavelength], (frames, 1))
    return {
        "setting": torch.from_numpy(rock @ part.setting[:, None]),
        "angle": torch.from_numpy(np.radians(part.alpha[:, None] + offset)),
        "sample_width": torch.from_numpy(weight),
        "s0": torch.from_numpy(s0),
        "normal": torch.from_numpy(s0 * part.wavelength),
        "sweep": torch.full((frames,), index),
        "axis": torch.from_numpy(np.tile(part.axis, (frames, 1))),
    }
