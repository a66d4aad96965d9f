"""The scan of DIALS experiments as orientation samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .data import Scan


@dataclass(frozen=True)
class Sampling:
    """How the rotation is cut up. Angles in degree."""

    block_width: float
    step: float


def scan_from_experiments(experiments, sampling: Sampling) -> Scan:
    """Cut every sweep into blocks of orientation samples.

    The setting of a sample at phi is S R(phi) F A(phi), A interpolated between scan points.
    """
    step = math.radians(sampling.step)
    samples = max(1, round(math.radians(sampling.block_width) / step))
    parts = [
        _sweep_blocks(experiment, index, sampling.block_width, samples)
        for index, experiment in enumerate(experiments)
    ]
    return Scan(**{k: torch.cat([p[k] for p in parts]) for k in parts[0]})


def _sweep_blocks(experiment, index: int, block_width: float, samples: int) -> dict:
    start, end = (math.radians(x) for x in experiment.scan.get_oscillation_range())
    blocks = max(1, round(math.degrees(end - start) / block_width))
    width = (end - start) / (blocks * samples)
    angle = start + width * (np.arange(blocks * samples) + 0.5)
    setting = settings_at(experiment, angle).reshape(blocks, samples, 3, 3)
    angle = angle.reshape(blocks, samples)
    s0 = _s0_at(experiment, angle.mean(axis=1))
    return {
        "setting": torch.from_numpy(setting),
        "angle": torch.from_numpy(angle),
        "sample_width": torch.full((blocks, samples), width, dtype=torch.float64),
        "s0": torch.from_numpy(s0),
        "normal": torch.from_numpy(s0 / np.linalg.norm(s0, axis=1, keepdims=True)),
        "sweep": torch.full((blocks,), index),
        "axis": torch.from_numpy(np.tile(rotation_axis(experiment), (blocks, 1))),
    }


def rotation_axis(experiment) -> np.ndarray:
    """Return the rotation axis (3,) in the laboratory frame."""
    setting = np.array(experiment.goniometer.get_setting_rotation()).reshape(3, 3)
    return setting @ np.array(experiment.goniometer.get_rotation_axis_datum())


def settings_at(experiment, angle: np.ndarray) -> np.ndarray:
    """Return S R(phi) F A(phi), (n, 3, 3) in A^-1, at rotation angles (n,) in rad."""
    return goniometer_rotations_at(experiment, angle) @ a_matrices_at(experiment, angle)


def goniometer_rotations_at(experiment, angle: np.ndarray) -> np.ndarray:
    """Return S R(phi) F, (n, 3, 3), at rotation angles (n,) in rad."""
    goniometer = experiment.goniometer
    fixed = np.array(goniometer.get_fixed_rotation()).reshape(3, 3)
    axis = np.array(goniometer.get_rotation_axis_datum())
    rotation = rotation_matrices(angle[:, None] * axis / np.linalg.norm(axis))
    n = goniometer.num_scan_points
    if n:
        points = np.array([goniometer.get_setting_rotation_at_scan_point(i) for i in range(n)])
        setting = _between_scan_points(points.reshape(n, 3, 3), experiment.scan, angle)
    else:
        setting = np.array(goniometer.get_setting_rotation()).reshape(3, 3)
    return setting @ rotation @ fixed


def rotation_matrices(vectors: np.ndarray) -> np.ndarray:
    """Return the rotations (n, 3, 3) of rotation vectors (n, 3) in rad."""
    x, y, z = torch.as_tensor(vectors, dtype=torch.float64).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(-1, 3, 3)
    return torch.linalg.matrix_exp(cross).numpy()


def a_matrices_at(experiment, angle: np.ndarray) -> np.ndarray:
    """Return A(phi), (n, 3, 3) in A^-1, at rotation angles (n,) in rad."""
    crystal = experiment.crystal
    n = crystal.num_scan_points
    if n == 0:
        return np.tile(np.array(crystal.get_A()).reshape(3, 3), (len(angle), 1, 1))
    points = np.array([crystal.get_A_at_scan_point(i) for i in range(n)]).reshape(n, 3, 3)
    return _between_scan_points(points, experiment.scan, angle)


def _s0_at(experiment, angle: np.ndarray) -> np.ndarray:
    beam = experiment.beam
    if beam.num_scan_points == 0:
        return np.tile(np.array(beam.get_s0()), (len(angle), 1))
    points = [beam.get_s0_at_scan_point(i) for i in range(beam.num_scan_points)]
    return _between_scan_points(np.array(points), experiment.scan, angle)


def _between_scan_points(points: np.ndarray, scan, angle: np.ndarray) -> np.ndarray:
    """Interpolate values at the edges of the images (n, ...) linearly to angles (rad)."""
    start, width = (math.radians(x) for x in scan.get_oscillation())
    position = np.clip((angle - start) / width, 0, len(points) - 1)
    low = np.minimum(position.astype(int), max(len(points) - 2, 0))
    part = (position - low).reshape(-1, *(1,) * (points.ndim - 1))
    return points[low] * (1 - part) + points[np.minimum(low + 1, len(points) - 1)] * part
