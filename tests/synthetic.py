"""A made-up rotation sweep of alpha-quartz with electrons, as DIALS objects and files."""

from __future__ import annotations

import math
from pathlib import Path

import iotbx.cif
import numpy as np
import torch
from cctbx import crystal, miller
from dials.algorithms.profile_model.gaussian_rs import Model as GaussianModel
from dials.array_family import flex
from dxtbx.imageset import ImageSetFactory
from dxtbx.model import (
    BeamFactory,
    Crystal,
    DetectorFactory,
    Experiment,
    ExperimentList,
    GoniometerFactory,
    Scan,
)

from dials_hybrid import io_cctbx, io_dials
from dials_hybrid.data import Problem, Result

CELL = (4.916, 4.916, 5.4054, 90, 90, 120)
WAVELENGTH = 0.0251  # A

QUARTZ_CIF = """\
data_quartz
_cell_length_a 4.9160
_cell_length_b 4.9160
_cell_length_c 5.4054
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_space_group_name_H-M_alt 'P 32 2 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_U_iso_or_equiv
_atom_site_adp_type
_atom_site_occupancy
Si1 Si 0.4697 0 0.666667 0.007 Uiso 1
O1 O 0.4135 0.2669 0.785767 0.012 Uani 1
loop_
_atom_site_aniso_label
_atom_site_aniso_U_11
_atom_site_aniso_U_22
_atom_site_aniso_U_33
_atom_site_aniso_U_12
_atom_site_aniso_U_13
_atom_site_aniso_U_23
O1 0.0156 0.0115 0.0119 0.0092 -0.0029 -0.0046
"""


def quartz_structure():
    """Return alpha-quartz as cctbx xray.structure: P3221, Si isotropic and O anisotropic."""
    return iotbx.cif.reader(input_string=QUARTZ_CIF).build_crystal_structures()["quartz"]


def make_experiment(
    images=20, start=-10.0, width=1.0, cell=CELL, space_group="P 31 2 1", scan_points=False
) -> Experiment:
    """Return a sweep with all models, the goniometer's setting and fixed rotations not unity."""
    goniometer = GoniometerFactory.known_axis((0.9999, 0.0141, 0.0))
    goniometer.set_fixed_rotation(_turn((0, 0, 1), 20))
    goniometer.set_setting_rotation(_turn((0, 1, 0), 3))
    quartz = _crystal(cell, space_group)
    if scan_points:
        turns = [_turn((0.2, 1, -0.4), 0.02 * i) for i in range(images + 1)]
        quartz.set_A_at_scan_points([_product(turn, quartz.get_A()) for turn in turns])
    models = {
        "beam": BeamFactory.simple(WAVELENGTH),
        "detector": DetectorFactory.simple(
            "PAD", 780.0, (28.2, 28.2), "+x", "-y", (0.055, 0.055), (1024, 1024), (-1, 65535), []
        ),
        "goniometer": goniometer,
        "scan": Scan((1, images), (start, width)),
    }
    # DIALS predicts stills without an image sequence; the images need not exist
    sequence = ImageSetFactory.make_sequence(
        f"sweep_{start:g}_####.tif", list(range(1, images + 1)), check_format=False, **models
    )
    return Experiment(
        **models,
        crystal=quartz,
        profile=GaussianModel(None, 3, 0.01, 0.15, deg=True),
        imageset=sequence,
        identifier=f"sweep {start:g} {images} x {width:g}",
    )


def _crystal(cell, space_group) -> Crystal:
    symmetry = crystal.symmetry(unit_cell=cell, space_group_symbol=space_group)
    orthogonal = np.array(symmetry.unit_cell().orthogonalization_matrix()).reshape(3, 3)
    vectors = np.array(_turn((1, 2, 3), 40)).reshape(3, 3) @ orthogonal
    a, b, c = (tuple(x) for x in vectors.T.tolist())
    return Crystal(a, b, c, symmetry.space_group())


def _turn(axis, degrees) -> tuple:
    axis = np.array(axis) / np.linalg.norm(axis)
    x, y, z = axis * math.radians(degrees)
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return tuple(torch.linalg.matrix_exp(cross).ravel().tolist())


def _product(a, b) -> tuple:
    return tuple((np.reshape(a, (3, 3)) @ np.reshape(b, (3, 3))).ravel().tolist())


def make_reflections(experiments, d_min=0.8, seed=1):
    """Return integrated reflections of the experiments, kinematical intensities with noise."""
    joined = None
    rng = np.random.default_rng(seed)
    for index, experiment in enumerate(experiments):
        table = flex.reflection_table.from_predictions(experiment, dmin=d_min)
        table["id"] = flex.int(len(table), index)
        table["imageset_id"] = flex.int(len(table), index)
        table["d"] = experiment.crystal.get_unit_cell().d(table["miller_index"])
        table.compute_zeta(experiment)
        single = ExperimentList([experiment])
        table["id"] = flex.int(len(table), 0)
        table.compute_bbox(single)
        table.compute_partiality(single)
        table["id"] = flex.int(len(table), index)
        _set_intensities(table, rng)
        table.experiment_identifiers()[index] = experiment.identifier
        if joined is None:
            joined = table
        else:
            joined.extend(table)
    return joined


def _set_intensities(table, rng) -> None:
    structure = quartz_structure()
    structure.scattering_type_registry(table="electron")
    unique = miller.set(structure.crystal_symmetry(), table["miller_index"], anomalous_flag=True)
    f_calc = unique.structure_factors_from_scatterers(structure, algorithm="direct").f_calc()
    intensity = 50 * np.abs(f_calc.data().as_numpy_array()) ** 2
    intensity *= table["partiality"].as_numpy_array()
    variance = intensity + 25
    intensity = intensity + rng.normal(size=len(table)) * np.sqrt(variance)
    for kind in ("sum", "prf"):
        table[f"intensity.{kind}.value"] = flex.double(intensity)
        table[f"intensity.{kind}.variance"] = flex.double(variance)
    every = flex.bool(len(table), True)
    table.set_flags(every, table.flags.integrated_sum)
    table.set_flags(every, table.flags.integrated_prf)


def make_sweep(folder, name="integrated", **models):
    """Write one sweep and return the paths of its .expt and .refl; see `make_experiment`."""
    experiments = ExperimentList([make_experiment(**models)])
    return write_pair(folder, name, experiments, make_reflections(experiments))


def write_pair(folder, name, experiments, reflections) -> tuple[Path, Path]:
    """Write experiments and reflections as NAME.expt and NAME.refl."""
    paths = Path(folder) / f"{name}.expt", Path(folder) / f"{name}.refl"
    experiments.as_json(str(paths[0]))
    reflections.as_msgpack_file(str(paths[1]))
    return paths


def make_problem(loaded, block_width=1.0) -> Problem:
    """Return the problem of loaded files with the structure of quartz."""
    structure = io_cctbx.reconcile(quartz_structure(), loaded.experiments, "model", "data")
    scan = io_dials.scan_from_experiments(loaded.experiments, io_dials.Sampling(block_width, 0.2))
    selection = io_dials.Selection(partiality=0.9)
    rows, _ = io_dials.select_reflections(loaded.reflections, selection)
    observations = io_dials.observations_from_reflections(
        loaded.reflections, rows, loaded.experiments, scan, selection
    )
    provenance = {"dials_version": "DIALS 3.test"}
    return Problem(io_cctbx.to_structure(structure), scan, observations, provenance)


def make_result(problem: Problem, **changes) -> Result:
    """Return a made-up result: the intensities are met within the noise."""
    generator = torch.Generator().manual_seed(3)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, f = len(problem.observations.intensity), len(problem.scan.sweep)
    calculated = problem.observations.intensity.abs() + 1
    structure = problem.structure
    atoms = len(structure.labels)
    moved = (
        structure.site
        + torch.einsum("aij,aj->ai", structure.site_projector, noise(atoms, 3)) * 1e-3
    )
    values = {
        "structure": structure.replace(site=moved),
        "start_structure": structure,
        "calculated": calculated,
        "start_calculated": calculated,
        "kinematic": calculated,
        "scale": torch.full((n,), 7.0, dtype=torch.float64),
        "sigma_weight": 1.5 * problem.observations.sigma,
        "depth": torch.tensor([200.0, 400.0], dtype=torch.float64),
        "thickness": torch.full((f, 2), 0.5, dtype=torch.float64),
        "orientation": 1e-3 * noise(f, 3),
        "block_scale": torch.ones(f, dtype=torch.float64),
        "site_su": torch.where(structure.site_projector.abs().sum(2) > 0, 0.002, math.nan),
        "u_su": torch.full((atoms,), 0.0012, dtype=torch.float64),
        "state": {},
        "history": (),
        "summary": {},
        "converged": True,
        "stop_reason": "made up",
    }
    return Result(**values | changes)
