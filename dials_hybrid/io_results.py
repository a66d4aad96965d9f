"""Refined results back into DIALS files, and the check that outputs can be written."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from pathlib import Path

import numpy as np
from cctbx import sgtbx
from dials.array_family import flex
from dials.util.ext import streambuf
from dxtbx.model import Experiment, ExperimentList

from .data import Problem, Result
from .io_geometry import a_matrices_at, goniometer_rotations_at, rotation_matrices
from .records import InputError, replacing


def check_writable(paths) -> None:
    """Raise InputError unless every path (None is skipped) can be written."""
    for path in (Path(p) for p in paths if p is not None):
        folder = path.absolute().parent
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file for this output")
        if not folder.is_dir():
            raise InputError(
                f"{path}: there is no folder {folder}; make it, or name another output"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{path}: no permission to write in {folder}; name another output")


@contextlib.contextmanager
def writing(path):
    """Yield a temporary path that becomes `path` if the body succeeds.

    Raises InputError, and leaves an existing file as it was, when the system refuses.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written ({reason}); name another output") from error


def write_experiments(path, experiments, problem: Problem, result: Result) -> None:
    """Write the experiments with the refined orientations and space group.

    Every crystal becomes scan-varying. Raises InputError when the file cannot be written.
    """
    refined = ExperimentList()
    for sweep, experiment in enumerate(experiments):
        mine = (problem.scan.sweep == sweep).cpu().numpy()
        angle = problem.scan.block_angle.cpu().numpy()[mine]
        rotation = result.orientation.detach().cpu().numpy()[mine]
        crystal = _refined_crystal(experiment, angle, rotation)
        group = sgtbx.space_group(result.structure.hall_symbol)
        if crystal.get_space_group() != group:
            crystal.set_space_group(group)
        refined.append(_with_crystal(experiment, crystal))
    with writing(path) as temporary:
        refined.as_json(str(temporary))


def _with_crystal(experiment, crystal) -> Experiment:
    """Return an experiment that shares all models with another one but the crystal."""
    new = Experiment(
        beam=experiment.beam,
        detector=experiment.detector,
        goniometer=experiment.goniometer,
        scan=experiment.scan,
        crystal=crystal,
        profile=experiment.profile,
        imageset=experiment.imageset,
        scaling_model=experiment.scaling_model,
        identifier=experiment.identifier,
    )
    if getattr(experiment, "history", None) is not None:  # DIALS 3.2x and later
        new.history = copy.deepcopy(experiment.history)
    return new


def _refined_crystal(experiment, block_angle: np.ndarray, rotation: np.ndarray):
    """Return a copy of the crystal, turned by rotation vectors (n, 3) rad at angles (n,) rad.

    The refined setting is R(omega) G A with G = S R(phi) F, so A' = G^-1 R(omega) G A, omega
    between block centres interpolated. The static model is turned as in the middle of the scan;
    the cell and its uncertainty stay.
    """
    crystal = copy.deepcopy(experiment.crystal)
    start, width = (math.radians(x) for x in experiment.scan.get_oscillation())
    points = crystal.num_scan_points or experiment.scan.get_num_images() + 1
    angle = start + width * np.arange(points)
    turn = _turns(experiment, angle, block_angle, rotation)
    a_matrices = turn @ a_matrices_at(experiment, angle)
    covariance = crystal.get_B_covariance_at_scan_points()
    u_matrix = turn[points // 2] @ np.array(crystal.get_U()).reshape(3, 3)
    crystal.set_U(u_matrix.ravel().tolist())  # first, because it forgets the scan points
    crystal.set_A_at_scan_points([tuple(a.ravel().tolist()) for a in a_matrices])
    if covariance.size():
        crystal.set_B_covariance_at_scan_points(covariance)
    return crystal


def _turns(experiment, angle, block_angle, rotation) -> np.ndarray:
    """Return G^-1 R(omega) G, (n, 3, 3), at rotation angles (n,) rad."""
    omega = np.stack([np.interp(angle, block_angle, x) for x in rotation.T], axis=1)
    goniometer = goniometer_rotations_at(experiment, angle)
    return goniometer.transpose(0, 2, 1) @ rotation_matrices(omega) @ goniometer


def write_reflections(path, reflections, problem: Problem, result: Result) -> None:
    """Write the input rows with the calculated intensity, its scale and whether it was used.

    The columns intensity.hybrid.calc and intensity.hybrid.scale are 0 where hybrid.used is
    false. Raises InputError when the file cannot be written.
    """
    rows = problem.observations.row.cpu().numpy()
    columns = {"intensity.hybrid.calc": result.calculated, "intensity.hybrid.scale": result.scale}
    table = reflections.copy()
    for name, values in columns.items():
        column = np.zeros(len(table))
        column[rows] = values.detach().cpu().numpy()
        table[name] = flex.double(column)
    used = np.zeros(len(table), dtype=bool)
    used[rows] = True
    table["hybrid.used"] = flex.bool(used)
    # not as_file: settings of DIALS could make that write a pickle or another name
    with writing(path) as temporary, open(temporary, "wb") as handle:
        table.as_msgpack_to_file(streambuf(python_file_obj=handle))
