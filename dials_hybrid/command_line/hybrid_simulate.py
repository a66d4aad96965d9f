"""
Simulate a 3D electron diffraction data set of a crystal structure.

The intensities are dynamical: Bloch waves of the whole structure, integrated over the
rotation and averaged over a distribution of thicknesses, with counting noise. The results
look as if they came from dials.integrate, and can be refined; what went into them is
written beside them. This shows what a refinement can find out about a structure from data
of given quality, and tests the refinement itself, since the simulation does not share its
propagation, its sampling or its thickness grid.

Examples::

  dials.hybrid_simulate model.cif

  dials.hybrid_simulate model.cif thickness.mean=450,800 thickness.width=40,60

  dials.hybrid_simulate model.cif crystal.orientation_error=0.05 noise.counts=500

  dials.hybrid_refine simulated.expt simulated.refl model.cif
"""

from __future__ import annotations

import json
import logging
import math
import time

import libtbx.phil
import numpy as np
from dials.array_family import flex
from dials.util import progress
from dxtbx import flumpy
from dxtbx.model import ExperimentList

from .. import __version__, simulate
from ..absorption import to_dict
from ..data import Structure
from ..io_cctbx import read_structure, to_structure
from ..io_dials import settings_at
from ..phil_files import phil_text
from ..records import InputError, replacing
from ..report.json_contract import equivalent_u
from ..true_thickness import ThicknessMixture, constant, slab, truth_grid, wedge
from . import common
from .simulated_experiment import (
    FULL,
    OrientationError,
    integration_windows,
    make_experiment,
    predict,
    scan_limits,
)

logger = logging.getLogger("dials.hybrid.command_line.hybrid_simulate")

phil_scope = libtbx.phil.parse(phil_text("hybrid_simulate.phil"))

OUTPUTS = ("experiments", "reflections", "truth", "log")
CITATIONS = (
    "C. J. Humphreys (1979) Rep. Prog. Phys. 42, 1825-1887. "
    "https://doi.org/10.1088/0034-4885/42/11/002",
    "L.-M. Peng et al. (1996) Acta Cryst. A52, 257-276. https://doi.org/10.1107/S0108767395014371",
)


@common.reports_input_errors
def run(args: list[str] | None = None, phil: libtbx.phil.scope = phil_scope) -> None:
    """Run dials.hybrid_simulate as from the command line.

    Args:
        args: the arguments of the user (default: sys.argv[1:])
        phil: the PHIL scope of the parameters
    """
    usage = "dials.hybrid_simulate [options] model.cif"
    parser = common.Parser(usage=usage, phil=phil, epilog=__doc__)
    params, options, files = parser.parse(args)
    if len(files) != 1:
        raise InputError(
            f"give exactly one structure (.cif, .res, .ins or .pdb), not {len(files)}"
            + (f": {', '.join(files)}" if files else "")
        )
    common.check_outputs({f"output.{n}": getattr(params.output, n) for n in OUTPUTS}, files)
    with common.logging_to(params.output.log, options.verbose):
        common.log_parameters(parser)
        simulate_files(files[0], params)
        common.log_citations(CITATIONS)


def simulate_files(model: str, params) -> None:
    """Simulate the structure in the file `model` and write the outputs.

    Raises InputError when the structure or a parameter cannot be used.
    """
    xray_structure = read_structure(model, params.structure.block)
    structure = to_structure(xray_structure)
    mixture = thickness_mixture(params.thickness)
    experiment = make_experiment(xray_structure, params)
    experiments = ExperimentList([experiment])
    table = predict(experiments, params.d_min, params.profile.min_zeta)
    error = OrientationError(math.radians(params.crystal.orientation_error), params.crystal.seed)
    rotation = simulate.Rotation(
        lambda angle: error.matrices(angle) @ settings_at(experiment, angle),
        np.array(experiment.beam.get_s0()),
        *scan_limits(experiment),
    )
    accuracy = accuracy_settings(params.accuracy, mixture, rotation)
    windows = integration_windows(table, experiment)
    absorption = common.absorption_model(params.absorption)
    result = timed_simulation(structure, rotation, windows, mixture, accuracy, absorption)
    scale = fill_table(table, result, params.noise, experiment)
    truth = describe(params, structure, mixture, error, experiment)
    truth |= {"model": str(model), "hall_symbol": structure.hall_symbol, "scale": scale}
    write_outputs(experiments, table, truth, params.output)


def accuracy_settings(params, mixture, rotation: simulate.Rotation) -> simulate.Accuracy:
    """Return the cut-offs of the scope `accuracy`, the step fitting the thickest crystal."""
    angle = np.linspace(rotation.start, rotation.end, 101)
    limit = simulate.coarsest_step(mixture.reach(angle), params.g_max)
    step = min(simulate.MAX_STEP, limit / 2)
    if params.step is not None:
        step = math.radians(params.step)
    if step > limit:
        logger.warning(
            "accuracy.step=%g misses fringes of the thickest crystals; %.4f would not",
            params.step,
            math.degrees(limit),
        )
    return simulate.Accuracy(params.g_max, params.s_max, math.radians(params.block_width), step)


def thickness_mixture(params) -> ThicknessMixture:
    """Return the mixture that the scope `thickness` describes.

    Raises InputError when the lists do not have the same length or no weight is positive.
    """
    mean, width = params.mean, params.width
    width = width * len(mean) if len(width) == 1 else width
    weight = params.weight or [1.0] * len(mean)
    if not len(mean) == len(width) == len(weight):
        raise InputError(
            "thickness.mean, width and weight need one value for each part; they have "
            f"{len(mean)}, {len(width)} and {len(weight)}"
        )
    if sum(weight) <= 0:
        raise InputError("thickness.weight: at least one weight must be above zero")
    zero = math.radians(params.tilt_zero)
    trends = {
        "constant": constant(),
        "slab": slab(zero),
        "wedge": wedge(zero, math.degrees(params.tilt_slope)),
    }
    if params.tilt_slope and params.shape != "wedge":
        raise InputError("thickness.tilt_slope needs thickness.shape=wedge")
    return ThicknessMixture(tuple(mean), tuple(width), tuple(weight), trends[params.shape])


def timed_simulation(
    structure, rotation, windows, mixture, accuracy, absorption
) -> simulate.Simulated:
    """Run the simulation with a progress bar on a terminal, and log what it cost."""
    degrees = math.degrees(rotation.end - rotation.start)
    logger.info(
        "Simulating %d reflections over %g degrees, in steps of %.4f degrees",
        len(windows.start),
        degrees,
        math.degrees(accuracy.step),
    )
    begin = time.perf_counter()
    result = simulate.simulate(
        structure, rotation, windows, mixture, accuracy, progress, absorption
    )
    logger.info(
        "%d orientation samples of %.0f beams on average took %.1f s",
        result.samples,
        result.mean_beams,
        time.perf_counter() - begin,
    )
    return result


def fill_table(table, result: simulate.Simulated, params, experiment) -> float:
    """Add counts and all else that dials.integrate writes; return counts per unit intensity.

    The unit is that of `simulate`, rad. `params` is the scope `noise`.
    """
    whole = flumpy.to_numpy(table["partiality"]) == 1
    scale = params.counts / result.intensity[whole].mean()
    _add_pixels(table, experiment)
    foreground = flumpy.to_numpy(table["num_pixels.foreground"])
    background = flumpy.to_numpy(table["num_pixels.background"])
    rng = None if params.none else np.random.default_rng([params.seed, 3])
    counts = simulate.count_electrons(
        scale * result.intensity, params.background, foreground / background, rng
    )
    for kind in ("sum", "prf"):
        table[f"intensity.{kind}.value"] = flumpy.from_numpy(counts.value)
        table[f"intensity.{kind}.variance"] = flumpy.from_numpy(counts.variance)
    table["background.sum.value"] = flumpy.from_numpy(counts.background)
    spread = counts.background * (1 + foreground / background)
    table["background.sum.variance"] = flumpy.from_numpy(spread)
    table["background.mean"] = flumpy.from_numpy(counts.background / foreground)
    table["profile.correlation"] = flex.double(len(table), 1.0)
    signal = counts.value / np.sqrt(counts.variance)
    _add_centroids(table, result.centroid, experiment, signal, rng)
    _add_flags(table, signal > 3)
    ordinal = np.arange(len(table), dtype=np.uint64)
    table["partial_id"] = flumpy.from_numpy(ordinal)
    table["imageset_id"] = flex.int(len(table), 0)
    return float(scale)


def _add_pixels(table, experiment) -> None:
    """Clip the bounding boxes to the images and count pixels in and around the spots."""
    boxes = [flumpy.to_numpy(part) for part in table["bbox"].parts()]
    width, height = experiment.detector[0].get_image_size()
    for axis, size in enumerate((width, height, experiment.scan.get_num_images())):
        low, high = boxes[2 * axis], boxes[2 * axis + 1]
        boxes[2 * axis] = np.clip(low, 0, size - 1)
        boxes[2 * axis + 1] = np.maximum(np.clip(high, 1, size), boxes[2 * axis] + 1)
    table["bbox"] = flex.int6(*(flumpy.from_numpy(b.astype(np.int32)) for b in boxes))
    valid = np.prod([boxes[2 * i + 1] - boxes[2 * i] for i in range(3)], axis=0)
    # the boxes are made twice as wide and high as the elliptic spots
    foreground = np.maximum(1, np.rint(valid * math.pi / 16))
    numbers = {"valid": valid, "foreground": foreground}
    numbers |= {"background": valid - foreground, "background_used": valid - foreground}
    for name, value in numbers.items():
        table[f"num_pixels.{name}"] = flumpy.from_numpy(np.maximum(value, 1).astype(np.int32))


def _add_centroids(table, centroid: np.ndarray, experiment, signal: np.ndarray, rng) -> None:
    """Add observed positions: on the detector as predicted, in rotation as simulated (rad).

    The centre of a Gaussian is known to its width over the signal-to-noise ratio; with `rng`
    the positions are that wrong, since DIALS's outlier rejection fails where none is.
    """
    panel, scan = experiment.detector[0], experiment.scan
    signal = np.clip(signal, 3, None)
    spot = panel.get_distance() * experiment.profile.sigma_b(deg=False) / signal
    turn = experiment.profile.sigma_m(deg=False) / np.abs(flumpy.to_numpy(table["zeta"])) / signal
    spread = np.stack([spot, spot, turn], 1)
    x, y, _ = (flumpy.to_numpy(part) for part in table["xyzcal.mm"].parts())
    found = np.stack([x, y, centroid], 1)
    if rng is not None:
        found += spread * rng.normal(size=found.shape)
    start, width = scan.get_oscillation(deg=False)
    unit = np.array([*panel.get_pixel_size(), width])
    in_pixels = (found - [0, 0, start]) / unit + [0, 0, scan.get_array_range()[0]]
    columns = {"mm.value": found, "mm.variance": spread**2}
    columns |= {"px.value": in_pixels, "px.variance": (spread / unit) ** 2}
    for name, value in columns.items():
        table[f"xyzobs.{name}"] = flumpy.vec_from_numpy(np.ascontiguousarray(value))


def _add_flags(table, strong: np.ndarray) -> None:
    flags = table.flags
    every = flex.bool(len(table), True)
    table.set_flags(every, flags.predicted | flags.integrated_sum | flags.integrated_prf)
    found = flags.indexed | flags.strong | flags.used_in_refinement
    table.set_flags(flumpy.from_numpy(strong), found)


def describe(params, structure: Structure, mixture, error: OrientationError, experiment) -> dict:
    """Return what went into the simulation, as plain values for JSON; degrees and A."""
    low, high = scan_limits(experiment)
    edges = np.linspace(low, high, experiment.scan.get_num_images() + 1)
    angle = (edges[:-1] + edges[1:]) / 2
    grid = truth_grid(mixture, angle)
    u_eq = equivalent_u(structure)
    sites = [
        {
            "label": label,
            "element": structure.elements[int(structure.type[i])],
            "xyz": structure.site[i].tolist(),
            "adp_type": "Uani" if structure.anisotropic[i] else "Uiso",
            "u_iso": float(u_eq[i]),
            "u_star": structure.u_star[i].tolist() if structure.anisotropic[i] else None,
            "occupancy": float(structure.occ[i]),
        }
        for i, label in enumerate(structure.labels)
    ]
    return {
        "program": "dials.hybrid_simulate",
        "version": __version__,
        "cell": structure.cell.tolist(),
        "sites": sites,
        "thickness": {
            "angle": np.degrees(angle).tolist(),
            "grid": grid.tolist(),
            "mean": mixture.overall_mean(angle).tolist(),
            "distribution": mixture.on_grid(grid, angle).tolist(),
        },
        "orientation_error": {
            "angle": np.degrees(angle).tolist(),
            "rotation_vector": np.degrees(error.vectors(angle)).tolist(),
        },
        "absorption": to_dict(common.absorption_model(params.absorption)),
        "seed": {"crystal": params.crystal.seed, "noise": params.noise.seed},
        "noise_free": params.noise.none,
    }


def write_outputs(experiments: ExperimentList, table, truth: dict, output) -> None:
    """Write the files; none of them appears, or changes, unless it is complete."""
    writers = {
        output.experiments: lambda path: experiments.as_file(str(path)),
        output.reflections: lambda path: table.as_file(str(path)),
        output.truth: lambda path: path.write_text(json.dumps(truth, allow_nan=False) + "\n"),
    }
    writers.pop(None, None)
    for name, write in writers.items():
        with replacing(name) as path:
            write(path)
    whole = int((table["partiality"] >= FULL).count(True))
    strong = int(table.get_flags(table.flags.strong).count(True))
    logger.info(
        "%d reflections, %d whole, %d above 3 sigma, written to %s",
        len(table),
        whole,
        strong,
        ", ".join(writers),
    )


if __name__ == "__main__":
    run()
