"""The reflections of a refinement in its CIF, and the classes that tell where each was measured.

A class is a block of the rotation, or a frame of PETS2. Rows are told apart by _refln.id, since the
indices of a row stand once for every time that a reflection was measured.
"""

from __future__ import annotations

import math

import iotbx.cif.model
import numpy as np
import torch

from .data import Problem, Result, block_of

DETAILS = """\
The list holds single observations, not means over equivalents: indices repeat where a reflection
was measured in several frames or sweeps, and _refln.id tells its rows apart. The class of a
reflection is the block of the rotation nearest to its centre; a code counts the sweep, in the order
of the data files, and the block in the sweep. Scale groups are the classes: the dynamical intensity
for an incident beam of one is multiplied by the scale. Those with refinement status excl were held
out of the refinement to test it; R factors do not count them."""
_EDGE = 1e-6  # part of an image that rounding may add


def reflection_loops(problem: Problem, result: Result) -> list:
    """Return the loops of classes, scales and reflections; intensities are on the data's scale."""
    o = problem.observations
    first = problem.scan.frame_start
    block = problem.scan.frame[block_of(o, problem.scan)].cpu().numpy()
    codes = _codes(problem)
    used = np.unique(block)
    # a background that was too high makes some negative, which the dictionary does not allow
    numbers = {"meas": o.intensity, "calc": result.calculated.clamp(min=0), "sigma": o.sigma}
    reflections = {f"_refln_index_{x}": o.hkl[:, i].tolist() for i, x in enumerate("hkl")}
    for name, values in numbers.items():
        reflections[f"_refln_intensity_{name}"] = [f"{x:.6g}" for x in values.tolist()]
    reflections["_refln_include_status"] = ["o" if x else "<" for x in o.observed.tolist()]
    reflections["_refln_refinement_status"] = ["excl" if x else "incl" for x in o.free.tolist()]
    reflections["_refln_class_code"] = [codes[b] for b in block.tolist()]
    reflections["_refln.id"] = range(1, len(block) + 1)
    scales = {
        "_reflns_scale_group_code": [codes[b] for b in used.tolist()],
        "_reflns_scale_meas_intensity": [
            f"{x:.6g}" for x in result.block_scale[first][used].tolist()
        ],
    }
    return [
        iotbx.cif.model.loop(data={k: [str(x) for x in v] for k, v in data.items()})
        for data in (_classes(problem, result, block, codes), scales, reflections)
    ]


def _codes(problem: Problem) -> list[str]:
    """Return for every frame its sweep and its number there by the angle, both from 1."""
    scan, first = problem.scan, problem.scan.frame_start
    sweep, angle = (x[first].cpu().numpy() for x in (scan.sweep, scan.block_angle))
    codes = [""] * len(sweep)
    for number, which in enumerate(np.unique(sweep).tolist(), 1):
        members = np.flatnonzero(sweep == which)
        for place, b in enumerate(members[np.argsort(angle[members], kind="stable")].tolist(), 1):
            codes[b] = f"{number}:{place}"  # no number to any reader, as 1-14 is to some
    return codes


def _classes(problem: Problem, result: Result, block: np.ndarray, codes: list[str]) -> dict:
    """Return the columns of the loop of classes: what each is, its numbers and agreement."""
    o = problem.observations
    strong, work = o.observed.cpu().numpy(), ~o.free.cpu().numpy()
    fo, fc = (
        np.sqrt(np.maximum(x.detach().cpu().numpy(), 0)) for x in (o.intensity, result.calculated)
    )
    columns: dict[str, list] = {
        f"_reflns_class_{name}": []
        for name in ("code", "description", "number_total", "number_gt", "R_factor_gt")
    }
    for b in np.unique(block).tolist():
        mine = block == b
        counted = mine & strong & work
        r1 = np.abs(fo - fc)[counted].sum() / fo[counted].sum() if counted.any() else math.nan
        row = (
            codes[b],
            _description(problem, b, codes[b]),
            int(mine.sum()),
            int((mine & strong).sum()),
            f"{r1:.4f}" if counted.any() else ".",
        )
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return columns


def _description(problem: Problem, b: int, code: str) -> str:
    """Return the rotation, and the images where they are known, of a frame."""
    scan = problem.scan
    blocks = torch.nonzero(scan.frame == b).flatten()
    sweep, angle = int(scan.sweep[blocks[0]]), math.degrees(scan.block_angle[blocks[0]])
    stated = problem.provenance.get("measurement") or {}
    sweeps, frames = stated.get("sweeps") or [], stated.get("frames") or []
    text = f"sweep {code.split(':')[0]}"
    if sweep < len(frames) and frames[sweep].get("precession"):
        return f"{text}, at {angle:.2f} degree, precession of {frames[sweep]['precession']:.2f}"
    half = math.degrees(scan.sample_width[blocks].sum()) / 2
    ends = angle - half, angle + half
    text = f"{text}, rotation {ends[0]:.2f} to {ends[1]:.2f} degree"
    measured = sweeps[sweep] if sweep < len(sweeps) else {}
    if "images" not in measured:  # PETS2, or a problem of an earlier version
        return text
    first, last = measured["images"]
    at = [(end - measured["start"]) / measured["width"] for end in ends]
    images = (
        max(first, first + math.floor(at[0] + _EDGE)),
        min(last, first + math.ceil(at[1] - _EDGE) - 1),
    )
    return f"{text}, images {images[0]} to {images[1]}"
