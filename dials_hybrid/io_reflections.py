"""Which integrated reflections are used, and the rotation window of each one."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch

from .data import Observations, Scan
from .records import InputError

logger = logging.getLogger("dials.hybrid.io_reflections")

_INTENSITIES = {"sum": "intensity.sum", "profile": "intensity.prf", "scale": "intensity.scale"}
_MIN_ZETA = 1e-3  # keeps the window of a reflection that never crosses the sphere finite


@dataclass(frozen=True)
class Selection:
    """Which integrated reflections are used.

    `intensity` is sum, profile or scale; `partiality` is the smallest part of a reflection that the
    scan recorded (of summed intensities, which are those of that part; others are estimates of the
    whole, and only WHOLE ones are used); `zeta` is the smallest |zeta|, the cosine between the
    rotation axis and the normal of the plane of s0 and s1; d_min and d_max are in A. None keeps
    all.

    Rows of PETS frames have, instead of these three and of overloads, the largest ratio
    R_Sg = |S| / dS and the smallest difference D_Sg = dS - |S| (A^-1) of their excitation error
    at the frame's middle and its change to the frame's end; None keeps all. `rocking_curve` is
    whole, frame or auto: see `io_pets.has_whole_curves`; `geometry` is rotation, precession or
    auto, as the file says.
    """

    intensity: str = "sum"
    partiality: float | None = 0.3
    zeta: float | None = 0.25
    d_min: float | None = None
    d_max: float | None = None
    i_over_sigma: float | None = None
    keep_overloaded: bool = False
    rsg_max: float | None = 0.9
    dsg_min: float | None = 0.0015
    rocking_curve: str = "auto"
    geometry: str = "auto"


def select_reflections(reflections, selection: Selection):
    """Apply the filters in turn.

    Returns (row numbers kept, table of (filter, removed, left)). Raises InputError when a
    needed column is missing or nothing is left.
    """
    value, variance = _intensity(reflections, selection.intensity)
    return apply_filters(len(reflections), _filters(reflections, selection, value, variance))


def apply_filters(count: int, filters):
    """Apply (name, rows that pass) filters to `count` rows in turn.

    Returns (row numbers kept, table of (filter, removed, left)). Raises InputError when nothing
    is left.
    """
    keep = np.ones(count, dtype=bool)
    table = [("read", 0, count)]
    for name, passed in filters:
        removed = int((keep & ~passed).sum())
        keep &= passed
        table.append((name, removed, int(keep.sum())))
        if name == USABLE and removed:
            logger.warning("%d reflections have no usable variance and are left out", removed)
    if not keep.any():
        steps = "; ".join(f"{name}: {removed} removed" for name, removed, _ in table[1:])
        raise InputError(f"no reflection is left after the selection ({steps}); relax selection.*")
    return np.flatnonzero(keep), table


USABLE = "finite intensity, positive variance"
WHOLE = 0.99  # partiality of what DIALS counts as recorded in full


def _filters(reflections, selection: Selection, value, variance) -> list:
    """Return the (name, rows that pass) of every filter asked for."""
    finite = np.isfinite(value) & np.isfinite(variance)
    filters = [
        (f"integrated ({selection.intensity})", _integrated(reflections, selection.intensity)),
        (USABLE, finite & (variance > 0)),
    ]
    smallest_of = {"partiality": _least_partiality(selection), "zeta": selection.zeta}
    for column, smallest in smallest_of.items():
        if smallest is None:
            continue
        if column in reflections:
            size = np.abs(reflections[column].as_numpy_array())
            filters.append((f"{column} >= {smallest:g}", size >= smallest))
        else:
            logger.info("The reflections have no column %s: not filtered by it", column)
    filters += _not_split(reflections)
    if not selection.keep_overloaded:
        overloaded = reflections.get_flags(reflections.flags.overloaded)
        filters.append(("not overloaded", ~overloaded.as_numpy_array()))
    d = None
    if selection.d_min is not None or selection.d_max is not None:
        _require_columns(reflections, ("d",))
        d = reflections["d"].as_numpy_array()
    sigma = np.sqrt(np.where(finite & (variance > 0), variance, np.inf))
    return filters + limits(selection, d, value, sigma)


def _least_partiality(selection: Selection) -> float | None:
    if selection.partiality is None or selection.intensity == "sum":
        return selection.partiality
    return max(selection.partiality, WHOLE)


def _not_split(reflections) -> list:
    """The filter of rows that are parts of one reflection, cut elsewhere than at a scan's end.

    Some integrators make such rows, one for each image. Nothing if there are none.
    """
    names = ("id", "partial_id")
    if not all(name in reflections for name in ("partiality", *names)):
        return []
    key = np.stack([reflections[name].as_numpy_array().astype(np.int64) for name in names])
    _, place, count = np.unique(key, axis=1, return_inverse=True, return_counts=True)
    whole = reflections["partiality"].as_numpy_array() >= WHOLE
    passed = whole | (count[place.reshape(-1)] == 1)
    return [] if passed.all() else [("not split into several rows", passed)]


def limits(selection: Selection, d, intensity, sigma) -> list:
    """Return the (name, rows that pass) of the limits on spacing d (n,) in A and I/sigma.

    `d` may be None if neither d_min nor d_max is set.
    """
    filters = []
    if selection.d_min is not None:
        filters.append((f"d >= {selection.d_min:g} A", d >= selection.d_min))
    if selection.d_max is not None:
        filters.append((f"d <= {selection.d_max:g} A", d <= selection.d_max))
    if selection.i_over_sigma is not None:
        strong = intensity >= selection.i_over_sigma * sigma
        filters.append((f"I/sigma >= {selection.i_over_sigma:g}", strong))
    return filters


def format_table(table) -> str:
    """Return the table of `select_reflections` as aligned text."""
    rows = [("Selection", "removed", "left")]
    rows += [(name, str(removed), str(left)) for name, removed, left in table]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {removed:>{widths[1]}}  {left:>{widths[2]}}"
        for name, removed, left in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _require_columns(reflections, columns) -> None:
    missing = [c for c in columns if c not in reflections]
    if missing:
        raise InputError(
            f"the reflections lack {', '.join(missing)}; run dials.integrate first and give "
            "its integrated.refl"
        )


def _intensity(reflections, kind: str):
    """Return value and variance of every row on the scale of the rotation-integrated intensity.

    dials.scale multiplies by the Lorentz and polarisation correction first, which the model
    does not want, and leaves its own scale factor in a column of its own.
    """
    column = _INTENSITIES[kind]
    if kind == "scale" and f"{column}.value" not in reflections:
        raise InputError(
            "the reflections are not scaled; set selection.intensity=sum, or run dials.scale and "
            "give its scaled.expt and scaled.refl"
        )
    _require_columns(reflections, (f"{column}.value", f"{column}.variance"))
    value = reflections[f"{column}.value"].as_numpy_array()
    variance = reflections[f"{column}.variance"].as_numpy_array()
    if kind == "scale":
        _require_columns(reflections, ("inverse_scale_factor", "lp"))
        factor = reflections["inverse_scale_factor"].as_numpy_array()
        factor = factor * reflections["lp"].as_numpy_array()
        with np.errstate(divide="ignore", invalid="ignore"):
            return value / factor, variance / factor**2
    return value, variance


def _integrated(reflections, kind: str) -> np.ndarray:
    flags = reflections.flags
    flag = {"sum": flags.integrated_sum, "profile": flags.integrated_prf, "scale": flags.scaled}
    indexed = reflections["id"].as_numpy_array() >= 0
    return indexed & reflections.get_flags(flag[kind]).as_numpy_array()


def observations_from_reflections(reflections, rows, experiments, scan: Scan, selection: Selection):
    """Return the `Observations` of the chosen rows.

    A reflection was integrated over its centroid +- delta_m / |zeta| (Kabsch 2010,
    doi:10.1107/S0907444909047374, the profile model's mosaicity delta_m). Raises InputError
    when no reflection lies within the scan.
    """
    value, variance = _intensity(reflections, selection.intensity)
    sweep = reflections["id"].as_numpy_array()[rows]
    angle = reflections["xyzcal.mm"].parts()[2].as_numpy_array()[rows]
    half = _half_windows(reflections, rows, experiments)
    links = _links(scan, sweep, angle, half)
    kept, link_observation = np.unique(links[0], return_inverse=True)
    if len(kept) == 0:
        raise InputError("no reflection lies within the scan; give .expt and .refl of one sweep")
    hkl = np.array(reflections["miller_index"].as_vec3_double().as_numpy_array())[rows]
    tensors = {
        "hkl": np.rint(hkl).astype(np.int64),
        "intensity": value[rows],
        "sigma": np.sqrt(variance[rows]),
        "row": rows,
        "free": np.zeros(len(rows), dtype=bool),
        "sweep": sweep.astype(np.int64),
        "angle": angle,
    }
    return Observations(
        **{k: torch.from_numpy(np.ascontiguousarray(v[kept])) for k, v in tensors.items()},
        link_observation=torch.from_numpy(link_observation.reshape(-1)),
        link_block=torch.from_numpy(links[1]),
        link_first=torch.from_numpy(links[2]),
        link_last=torch.from_numpy(links[3]),
    )


def _half_windows(reflections, rows, experiments) -> np.ndarray:
    """(n,) rad: half of the rotation over which each reflection was integrated."""
    sweep = reflections["id"].as_numpy_array()[rows]
    half = np.zeros(len(rows))
    for index, experiment in enumerate(experiments):
        mine = sweep == index
        if hasattr(experiment.profile, "delta_m"):
            _require_columns(reflections, ("zeta",))
            zeta = np.abs(reflections["zeta"].as_numpy_array()[rows][mine])
            frame = reflections["xyzcal.px"].parts()[2].as_numpy_array()[rows][mine]
            half[mine] = _delta_m(experiment, frame) / np.maximum(zeta, _MIN_ZETA)
        elif "bbox" in reflections:
            first, last = (x.as_numpy_array()[rows][mine] for x in reflections["bbox"].parts()[4:6])
            width = math.radians(experiment.scan.get_oscillation()[1])
            half[mine] = (last - first) * width / 2
        else:
            raise InputError(
                "the experiments have no profile model and the reflections no bbox; give "
                "integrated.expt and integrated.refl as dials.integrate wrote them"
            )
    return np.minimum(half, math.pi)


def _delta_m(experiment, frame: np.ndarray) -> np.ndarray:
    """Return the profile model's half width (rad) at frames counted from the first image."""
    delta = np.atleast_1d(np.array(experiment.profile.delta_m(deg=False), dtype=float))
    if len(delta) == 1:
        return np.full(len(frame), delta[0])
    # a scan-varying profile model has one value per image
    place = np.floor(frame).astype(int) - experiment.scan.get_array_range()[0]
    return delta[np.clip(place, 0, len(delta) - 1)]


def _links(scan: Scan, sweep, angle, half):
    """Return arrays (observation, block, first, last) of the samples inside each window."""
    samples = scan.angle.shape[1]
    out = []
    for index in np.unique(sweep):
        blocks = np.flatnonzero(scan.sweep.numpy() == index)
        grid = scan.angle.numpy()[blocks].ravel()
        width = float(scan.sample_width[blocks[0], 0])
        for obs in np.flatnonzero(sweep == index):
            centre = (angle[obs] - grid[0]) / width
            reach = half[obs] / width
            first = max(0, math.ceil(centre - reach))
            last = min(len(grid) - 1, math.floor(centre + reach))
            for block in range(first // samples, last // samples + 1 if last >= first else 0):
                low = max(first - block * samples, 0)
                high = min(last - block * samples, samples - 1)
                out.append((obs, blocks[block], low, high))
    return np.array(out, dtype=np.int64).reshape(-1, 4).T
