"""Checks of what changes over the rotation: agreement, orientation, thickness."""

from __future__ import annotations

import numpy as np

from .arrays import Arrays, r1_by
from .check import ALERT, NOTE, Check, listed

FEWEST = 8  # reflections of a frame, and changes between frames, that say something
FEW, FEWEST_RANGES = 3, 6  # reflections of a range of frames where there are no more; ranges
OUTLYING = 5.0  # robust standard deviations
FRAME_RATIO = 1.5  # of R1 to the usual one
JUMP, JUMP_RATIO = 0.1, 6.0  # degree, and times the usual change between frames
FAR_TURN = 1.0  # degree
EDGE_WEIGHT = 0.05  # of p(t) in the last tenth of the grid, mean of all blocks
BLOCK_EDGE_WEIGHT = 0.3  # the same of any block
THIN_WEIGHT = 0.1  # of p(t) in the first tenth


def find(data: Arrays) -> list[Check]:
    """Return what the checks of the scan found; see `checks.find`."""
    return [*bad_frames(data), *orientations(data), *thickness(data)]


def bad_frames(data: Arrays) -> list[Check]:
    """Tell of blocks, or ranges of blocks with few reflections, whose R1 is far above the usual.

    The spread of R1 goes with one over the root of the number of reflections.
    """
    use, n = data.observed & ~data.free, len(data.block_angle)
    count = np.bincount(data.block[use], minlength=n)
    ranges = [blocks for blocks in _ranges(data, count) if count[blocks].sum() >= FEW]
    if len(ranges) < FEWEST_RANGES:
        return []
    place = np.full(n, len(ranges))  # of each block; the last one is dropped
    for i, blocks in enumerate(ranges):
        place[blocks] = i
    r1 = r1_by(place[data.block[use]], len(ranges) + 1, data.i_obs[use], data.i_dynamical[use])[:-1]
    usual = np.median(r1)
    root = np.sqrt([count[blocks].sum() for blocks in ranges])
    spread = 1.4826 * np.median(np.abs(r1 - usual) * root)
    limit = np.maximum(usual + OUTLYING * spread / root, FRAME_RATIO * usual)
    bad = np.flatnonzero(r1 > limit)
    if len(bad) == 0:
        return []
    worst = bad[np.argsort(-r1[bad])]
    names = listed(f"{_where(data, ranges[i])} ({100 * r1[i]:.0f} %)" for i in worst)
    text = (
        f"Blocks of frames with R1 far above the usual {100 * usual:.1f} %: {names}. Look at their "
        "orientation, at zone axes and at the images."
    )
    return [Check("bad_frames", NOTE, text)]


def _runs(data: Arrays) -> list[np.ndarray]:
    """Return the blocks of each sweep in order, cut where the scan has a gap."""
    runs = []
    for blocks in data.sweeps:
        gap = np.diff(data.block_angle[blocks])
        runs += (
            np.split(blocks, np.flatnonzero(gap > 3 * np.median(gap)) + 1) if len(gap) else [blocks]
        )
    return runs


def _ranges(data: Arrays, count: np.ndarray) -> list[np.ndarray]:
    """Return single blocks of FEWEST reflections or more, and others joined to have as many.

    `count` (F,) are the reflections of each block. What stands between two blocks of many, or
    remains at an end, may have fewer.
    """
    ranges = []
    for run in _runs(data):
        waiting: list[int] = []
        for block in run.tolist():
            if count[block] >= FEWEST:
                ranges += [waiting, [block]]
                waiting = []
                continue
            waiting.append(block)
            if count[waiting].sum() >= FEWEST:
                ranges.append(waiting)
                waiting = []
        ranges.append(waiting)
    return [np.array(blocks) for blocks in ranges if blocks]


def _where(data: Arrays, blocks) -> str:
    """Return where a block, or a range of blocks of one sweep, is, for people."""
    blocks = np.atleast_1d(blocks)
    angle = f"{data.block_angle[blocks[0]]:.1f}°"
    if len(blocks) > 1:
        half = data.block_width[blocks] / 2
        first, last = data.block_angle[blocks] - half, data.block_angle[blocks] + half
        angle = f"{first.min():.1f} to {last.max():.1f}°"
    place = next(i for i, sweep in enumerate(data.sweeps) if blocks[0] in sweep)
    return angle if len(data.sweeps) == 1 else f"{angle} of sweep {place + 1}"


def orientations(data: Arrays) -> list[Check]:
    """Tell of jumps of the refined orientation between blocks, and of large turns."""
    runs = _runs(data)
    before, after = (np.concatenate(x) for x in ([r[:-1] for r in runs], [r[1:] for r in runs]))
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
            f"{_where(data, largest.argmax())}): refine the geometry in DIALS or PETS first."
        )
        found.append(Check("large_turn", NOTE, text))
    return found


def thickness(data: Arrays) -> list[Check]:
    """Tell of weight of p(t) at either end of the grid: of all blocks, or much of some of them."""
    tenth = len(data.depth) // 10
    if tenth == 0:
        return []
    last, first = (data.thickness[:, part].sum(1) for part in (slice(-tenth, None), slice(tenth)))
    found, far = [], last > BLOCK_EDGE_WEIGHT
    if last.mean() > EDGE_WEIGHT or far.any():
        where = listed(
            f"{100 * last[blocks].max():.0f} % at {_where(data, blocks)}"
            for blocks in _joined(data, far)
        )
        text = (
            f"{100 * last.mean():.0f} % of the thickness distribution lie in the last tenth of the "
            f"grid, which ends at {data.depth[-1]:.0f} Å: raise depth.max"
            f"{f' ({where})' if where else ''}."
        )
        found.append(Check("thickness_edge", ALERT, text))
    if first.mean() > THIN_WEIGHT:
        text = (
            f"{100 * first.mean():.0f} % of the thickness distribution lie below "
            f"{data.depth[tenth - 1]:.0f} Å, where they soak up errors of the model."
        )
        found.append(Check("thickness_thin", NOTE, text))
    return found


def _joined(data: Arrays, chosen: np.ndarray) -> list[np.ndarray]:
    """Return the chosen (F,) blocks, those that follow one another together, the longest first."""
    joined = []
    for run in _runs(data):
        borders = np.flatnonzero(np.diff(chosen[run])) + 1
        joined += [part for part in np.split(run, borders) if chosen[part[0]]]
    return sorted(joined, key=len, reverse=True)
