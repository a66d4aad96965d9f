"""The experiment of a simulation: geometry, crystal, and what it can record."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass

import numpy as np
import torch
from dials.algorithms.profile_model.gaussian_rs.model import Model as ProfileModel
from dials.algorithms.spot_prediction import (
    ScanStaticReflectionPredictor,
    ScanVaryingReflectionPredictor,
)
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.imageset import ImageSetFactory
from dxtbx.model import Crystal, Detector, Experiment, ExperimentList, Scan
from dxtbx.model.beam import BeamFactory
from dxtbx.model.goniometer import GoniometerFactory
from scipy.spatial.transform import Rotation as Turn

from .. import electron, simulate
from ..kinematic import recorded_fraction
from ..records import InputError

WOBBLE_LENGTH = math.radians(15)  # over which drift and orientation error change
FILL = 0.85  # share of the half image that d_min takes when the distance is chosen
FULL = 0.99  # reflections below it count as cut off by the ends of the scan


def make_experiment(xray_structure, params) -> Experiment:
    """Return the experiment that the parameters describe, for a cctbx xray.structure."""
    wavelength = electron.wavelength(1000 * params.beam.voltage)
    if params.d_min <= wavelength / 2:
        raise InputError(f"d_min must be above half the wavelength, {wavelength / 2:.3f} A")
    start, width, images = params.scan.start, params.scan.width, params.scan.images
    if images * width > 360:
        raise InputError(f"the scan covers {images * width:g} degrees; 360 are the most")
    beam = make_beam(wavelength)
    detector = make_detector(params.detector, wavelength, params.d_min)
    goniometer = GoniometerFactory.known_axis((1, 0, 0))
    scan = Scan((1, images), (start, width))
    # the images do not exist; DIALS programs read the geometry without them
    imageset = ImageSetFactory.make_sequence(
        "simulated_####.cbf",
        list(range(1, images + 1)),
        beam=beam,
        detector=detector,
        goniometer=goniometer,
        scan=scan,
        check_format=False,
    )
    profile = params.profile
    return Experiment(
        beam=beam,
        detector=detector,
        goniometer=goniometer,
        scan=scan,
        crystal=make_crystal(xray_structure, params.crystal, scan),
        profile=ProfileModel(None, profile.n_sigma, profile.sigma_b, profile.sigma_m, deg=True),
        imageset=imageset,
        identifier=_identifier(params),
    )


def _identifier(params) -> str:
    """Return an identifier that is the same for the same seeds."""
    rng = np.random.default_rng([params.crystal.seed, params.noise.seed])
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def make_beam(wavelength: float):
    """Return an unpolarised electron beam along -z, wavelength in A."""
    beam = BeamFactory.make_polarized_beam(
        sample_to_source=(0.0, 0.0, 1.0),
        wavelength=wavelength,
        polarization=(0, 1, 0),
        polarization_fraction=0.5,
    )
    if hasattr(beam, "set_probe"):  # older DIALS knows no probes
        beam.set_probe(beam.get_probe_from_name("electron"))
    return beam


def make_detector(params, wavelength: float, d_min: float) -> Detector:
    """Return a flat detector across the beam, by default at a distance that d_min fits."""
    size = np.array(params.image_size) * params.pixel_size
    distance = params.distance
    if distance is None:
        two_theta = 2 * math.asin(wavelength / (2 * d_min))
        distance = FILL * size.min() / 2 / math.tan(two_theta)
    detector = Detector()
    panel = detector.add_panel()
    panel.set_name("Panel")
    panel.set_type("SENSOR_PAD")
    panel.set_image_size(tuple(params.image_size))
    panel.set_pixel_size((params.pixel_size, params.pixel_size))
    panel.set_trusted_range((-1, 1e6))
    panel.set_frame((1, 0, 0), (0, -1, 0), (-size[0] / 2, size[1] / 2, -distance))
    return detector


def make_crystal(xray_structure, params, scan) -> Crystal:
    """Return the crystal in its orientation, scan-varying when it drifts."""
    rng = np.random.default_rng([params.seed, 1])
    if params.orientation is None:
        turn = Turn.from_quat(rng.normal(size=4))
    else:
        turn = Turn.from_euler("xyz", params.orientation, degrees=True)
    b = np.array(xray_structure.unit_cell().fractionalization_matrix()).reshape(3, 3).T
    a = turn.as_matrix() @ b
    crystal = Crystal(tuple(a.ravel()), xray_structure.space_group())
    if params.drift > 0:
        first, last = np.radians(scan.get_oscillation_range())
        angle = np.linspace(first, last, scan.get_num_images() + 1)
        wobble = simulate.smooth_curves(angle, math.radians(params.drift), WOBBLE_LENGTH, rng)
        at_points = Turn.from_rotvec(wobble).as_matrix() @ a
        crystal.set_A_at_scan_points([tuple(m.ravel()) for m in at_points])
    return crystal


@dataclass(frozen=True)
class OrientationError:
    """Smooth rotations of the crystal that the experiments do not know, laboratory frame."""

    deviation: float  # rad
    seed: int

    def vectors(self, angle: np.ndarray) -> np.ndarray:
        """Return rotation vectors (n, 3) in rad at rotation angles (n,) in rad."""
        rng = np.random.default_rng([self.seed, 2])
        return simulate.smooth_curves(angle, self.deviation, WOBBLE_LENGTH, rng)

    def matrices(self, angle: np.ndarray) -> np.ndarray:
        """Return rotation matrices (n, 3, 3) at rotation angles (n,) in rad."""
        return Turn.from_rotvec(self.vectors(angle)).as_matrix()


def predict(experiments: ExperimentList, d_min: float, min_zeta: float):
    """Return a reflection table of what the experiment can record to d_min, without intensities.

    Raises InputError when there is nothing.
    """
    experiment = experiments[0]
    crystal = experiment.crystal
    settings = {"dmin": d_min, "padding": experiment.profile.delta_m(deg=True)}
    if crystal.num_scan_points > 0:
        points = [crystal.get_A_at_scan_point(i) for i in range(crystal.num_scan_points)]
        predictor = ScanVaryingReflectionPredictor(experiment, **settings)
        table = predictor.for_ub(flex.mat3_double(points))
    else:
        # unlike for_ub, this index generator misses nothing in wide scans
        predictor = ScanStaticReflectionPredictor(experiment, **settings)
        table = predictor.for_ub_old_index_generator(crystal.get_A())
    table["id"] = flex.int(len(table), 0)
    table.experiment_identifiers()[0] = experiment.identifier
    table.compute_d(experiments)
    table.compute_zeta_multi(experiments)
    table = table.select((flex.abs(table["zeta"]) >= min_zeta) & (table["d"] >= d_min))
    angle, half = predicted_angles(table), _half_windows(table, experiment.profile)
    partiality = recorded_fraction(
        *map(torch.from_numpy, (angle, half)), experiment.profile.n_sigma(), scan_limits(experiment)
    ).numpy()
    table["partiality"] = flumpy.from_numpy(partiality)
    # what is cut by a hair would pass for whole
    wanted = (partiality == 1) | ((partiality < FULL) & (partiality > 1 - FULL))
    table = table.select(flumpy.from_numpy(wanted))
    if (wanted & (partiality == 1)).sum() == 0:
        raise InputError(
            f"the scan records no whole reflection to d_min={d_min:g} A; use a longer scan, a "
            "shorter detector.distance, a smaller d_min or a smaller profile.sigma_m"
        )
    table.compute_bbox(experiments)
    table.compute_corrections(experiments)
    return table


def scan_limits(experiment) -> tuple[float, float]:
    """Start and end of the scan, rad."""
    return experiment.scan.get_oscillation_range(deg=False)


def predicted_angles(table) -> np.ndarray:
    """Predicted rotation angle of every reflection, rad."""
    return flumpy.to_numpy(table["xyzcal.mm"].parts()[2])


def _half_windows(table, profile) -> np.ndarray:
    """Half of the rotation over which each reflection is integrated, rad."""
    return profile.delta_m(deg=False) / np.abs(flumpy.to_numpy(table["zeta"]))


def integration_windows(table, experiment) -> simulate.Windows:
    """Return the window of every reflection, centroid +- delta_m / |zeta| within the scan."""
    centre, half = predicted_angles(table), _half_windows(table, experiment.profile)
    low, high = scan_limits(experiment)
    hkl = np.array(table["miller_index"]).reshape(-1, 3).astype(np.int64)
    return simulate.Windows(hkl, np.maximum(centre - half, low), np.minimum(centre + half, high))
