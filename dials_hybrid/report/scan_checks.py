"""Checks of what changes over the rotation: agreement, orientation, thickness."""

from __future__ import annotations

import numpy as np

from .arrays import Arrays, r1_by
from .check import ALERT, NOTE, Check, listed

FEWEST = 8  # reflections of a frame, and frames, that say something
OUTLYING = 5.0  # robust standard deviations
FRAME_RATIO = 1.5  # of R1 to the usual one
JUMP, JUMP_RATIO = 0.1, 6.0  # degree, and times the usual change between frames
FAR_TURN = 1.0  # degree
EDGE_WEIGHT = 0.05  # of p(t) in the last tenth of the grid
THIN_WEIGHT = 0.1  # of p(t) in the first tenth


def find(data: Arrays) -> list[Check]:
    """Return what the checks of the scan found; see `checks.find`."""
    return [*bad_frames(data), *orientations(data), *thickness(data)]


def bad_frames(data: Arrays) -> list[Check]:
    """Tell of blocks whose R1 lies far above that of the others."""
    use, n = data.observed & ~data.free, len(data.block_angle)
    r1 = r1_by(data.block[use], n, data.i_obs[use], data.i_dynamical[use])
    many = np.bincount(data.block[use], minlength=n) >= FEWEST
    if many.sum() < FEWEST:
        return []
    usual = np.median(r1[many])
    spread = 1.4826 * np.median(np.abs(r1[many] - usual))
    limit = max(usual + OUTLYING * spread, FRAME_RATIO * usual)
    bad = np.flatnonzero(many & (np.nan_to_num(r1) > limit))
    if len(bad) == 0:
        return []
    worst = bad[np.argsort(-r1[bad])]
    names = listed(f"{_where(data, i)} ({100 * r1[i]:.0f} %)" for i in worst)
    text = (
        f"Blocks of frames with R1 far above the usual {100 * usual:.1f} %: {names}. Look at their "
        "orientation, at zone axes and at the images."
    )
    return [Check("bad_frames", NOTE, text)]


def _where(data: Arrays, block: int) -> str:
    """Return where a block is, for people."""
    angle = f"{data.block_angle[block]:.1f}°"
    place = next(i for i, blocks in enumerate(data.sweeps) if block in blocks)
    return angle if len(data.sweeps) == 1 else f"{angle} of sweep {place + 1}"


def orientations(data: Arrays) -> list[Check]:
    """Tell of jumps of the refined orientation between blocks, and of large turns."""
    before, after = [], []
    for blocks in data.sweeps:
        gap = np.diff(data.block_angle[blocks])
        near = gap <= 3 * np.median(gap) if len(gap) else gap.astype(bool)
        before += blocks[:-1][near].tolist()
        after += blocks[1:][near].tolist()
    change = np.linalg.norm(data.tilt[after] - data.tilt[before], axis=1)
    found = []
    if len(change) >= FEWEST:
        jumps = np.flatnonzero(change > max(JUMP, JUMP_RATIO * np.median(change)))
        names = listed(f"{_where(data, after[k])} ({change[k]:.2f}°)" for k in jumps)
        if len(jumps):
            text = (
                f"The refined orientation jumps at {names}: the crystal moved, or indexing is poor."
            )
            found.append(Check("orientation_jump", NOTE, text))
    largest = np.linalg.norm(data.tilt, axis=1)
    if largest.max() > FAR_TURN:
        text = (
            f"The orientation was turned by up to {largest.max():.1f}° (at "
            f"{_where(data, int(largest.argmax()))}): refine the geometry in DIALS or PETS first."
        )
        found.append(Check("large_turn", NOTE, text))
    return found


def thickness(data: Arrays) -> list[Check]:
    """Tell of weight of p(t) at either end of the grid."""
    tenth = len(data.depth) // 10
    if tenth == 0:
        return []
    last, first = (
        data.thickness[:, part].sum(1).mean() for part in (slice(-tenth, None), slice(tenth))
    )
    found = []
    if last > EDGE_WEIGHT:
        text = (
            f"{100 * last:.0f} % of the thickness distribution lie in the last tenth of the grid, "
            f"which ends at {data.depth[-1]:.0f} Å: raise depth.max."
        )
        found.append(Check("thickness_edge", ALERT, text))
    if first > THIN_WEIGHT:
        text = (
            f"{100 * first:.0f} % of the thickness distribution lie below "
            f"{data.depth[tenth - 1]:.0f} Å, where they soak up errors of the model."
        )
        found.append(Check("thickness_thin", NOTE, text))
    return found
