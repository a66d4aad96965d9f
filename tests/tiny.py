"""A small rotation sweep of alpha-quartz made by hand: it needs neither DIALS nor cctbx."""

from __future__ import annotations

import math

import torch

from dials_hybrid import beams, crystal, electron
from dials_hybrid.data import Observations, Problem, Scan, Structure
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import DepthGrid, Splitting

CELL = (4.916, 4.916, 5.4054, 90.0, 90.0, 120.0)
WAVELENGTH = electron.wavelength(200e3)
DEGREE = math.radians(1)

# P3221 as (rotation, third parts of c)
OPERATORS = [
    ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0),
    ([[0, -1, 0], [1, -1, 0], [0, 0, 1]], 2),
    ([[-1, 1, 0], [-1, 0, 0], [0, 0, 1]], 1),
    ([[0, 1, 0], [1, 0, 0], [0, 0, -1]], 0),
    ([[1, -1, 0], [0, -1, 0], [0, 0, -1]], 1),
    ([[-1, 0, 0], [-1, 1, 0], [0, 0, -1]], 2),
]


def f64(values) -> torch.Tensor:
    """Return a tensor in double precision."""
    return torch.tensor(values, dtype=torch.float64)


def quartz() -> Structure:
    """Return alpha-quartz in P3221: Si isotropic on a two-fold axis, O anisotropic."""
    return Structure(
        cell=f64(CELL),
        hall_symbol=' P 32 2"',
        sym_rot=f64([r for r, _ in OPERATORS]),
        sym_trans=f64([[0, 0, t / 3] for _, t in OPERATORS]),
        site=f64([[0.4697, 0, 2 / 3], [0.4135, 0.2669, 0.785767]]),
        u_iso=f64([0.007, 0.0]),
        u_star=f64([[0.0] * 6, [8.6e-4, 6.3e-4, 4.1e-4, 4.4e-4, -1.1e-4, -1.7e-4]]),
        anisotropic=torch.tensor([False, True]),
        occ=f64([1, 1]),
        weight=f64([0.5, 1]),
        site_projector=torch.stack(
            [f64([[1, -0.5, 0], [0, 0, 0], [0, 0, 0]]), torch.eye(3, dtype=torch.float64)]
        ),
        adp_projector=torch.eye(6, dtype=torch.float64).repeat(2, 1, 1),
        type=torch.tensor([1, 0]),
        # two Gaussians that follow the tabulated ones roughly
        ff_a=f64([[1.2, 0.8], [3.6, 2.2]]),
        ff_b=f64([[14.0, 2.5], [35.0, 4.0]]),
        labels=("Si1", "O1"),
        elements=("O", "Si"),
    )


def triclinic(sites, a, b, cell=(6.0, 6.0, 5.0, 90.0, 90.0, 90.0)) -> Structure:
    """Return a structure in P1, one Gaussian (a, b) per isotropic atom, without vibrations."""
    n = len(sites)
    return Structure(
        cell=f64(cell),
        hall_symbol=" P 1",
        sym_rot=torch.eye(3, dtype=torch.float64)[None],
        sym_trans=f64([[0, 0, 0]]),
        site=f64(sites),
        u_iso=torch.zeros(n, dtype=torch.float64),
        u_star=torch.zeros(n, 6, dtype=torch.float64),
        anisotropic=torch.zeros(n, dtype=torch.bool),
        occ=torch.ones(n, dtype=torch.float64),
        weight=torch.ones(n, dtype=torch.float64),
        site_projector=torch.eye(3, dtype=torch.float64).repeat(n, 1, 1),
        adp_projector=torch.eye(6, dtype=torch.float64).repeat(n, 1, 1),
        type=torch.arange(n),
        ff_a=f64([[x] for x in a]),
        ff_b=f64([[x] for x in b]),
        labels=tuple(f"X{i}" for i in range(n)),
        elements=tuple("C" for _ in range(n)),
    )


def inverted(shift=(0, 0, 0)) -> Structure:
    """Return a structure in P-1 of two atoms, with the operator -x + shift."""
    identity = torch.eye(3, dtype=torch.float64)
    structure = triclinic([[0.1, 0.2, 0.3], [0.35, 0.8, 0.45]], [4.0, 2.0], [8.0, 6.0])
    return structure.replace(
        hall_symbol="-P 1",
        sym_rot=torch.stack([identity, -identity]),
        sym_trans=f64([[0, 0, 0], shift]),
        u_iso=f64([0.01, 0.02]),
    )


def scan(blocks=3, samples=8, width=2.0, sweeps=1, cell=CELL) -> Scan:
    """Return sweeps about x of `blocks` blocks each, `width` degrees wide, the beam along -z."""
    part = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    angle = (torch.arange(blocks, dtype=torch.float64)[:, None] + part) * width * DEGREE
    angle = angle.repeat(sweeps, 1)
    sweep = torch.arange(sweeps).repeat_interleave(blocks)
    # an arbitrary orientation, another one for each sweep
    start = beams.rotation_matrices(
        torch.stack([f64([0.3, -0.5, 0.9]) * (1 + 0.7 * i) for i in range(sweeps)])
    )
    # b* vectors as columns: the inverse of the cell vectors as rows
    cell = torch.as_tensor(cell, dtype=torch.float64)
    reciprocal = torch.linalg.inv(torch.linalg.cholesky(crystal.metric(cell))).T
    axis = f64([1.0, 0, 0])
    turn = beams.rotation_matrices(angle[..., None] * axis)
    f = len(angle)
    return Scan(
        setting=turn @ (start @ reciprocal)[sweep][:, None],
        angle=angle,
        sample_width=torch.full_like(angle, width * DEGREE / samples),
        s0=f64([0, 0, -1 / WAVELENGTH]).repeat(f, 1),
        normal=f64([0, 0, -1]).repeat(f, 1),
        sweep=sweep,
        axis=axis.repeat(f, 1),
    )


def observations(structure, scan_, g_limit=0.9, window=0.6) -> Observations:
    """Return every reflection that crosses the Ewald sphere, linked to +- `window` degrees."""
    hkl = beams.lattice_points(structure, g_limit)
    rows, links = [], []
    for sweep in range(int(scan_.sweep.max()) + 1):
        mine = torch.nonzero(scan_.sweep == sweep).flatten()
        setting, samples = scan_.setting[mine].flatten(0, 1), scan_.angle.shape[1]
        vectors = torch.einsum("tij,mj->mti", setting, hkl.double())[None]
        s = beams.excitation_errors(vectors, scan_.s0[:1], 1 / f64([WAVELENGTH]))[0]
        angle = scan_.angle[mine].flatten()
        crossings = torch.nonzero(s[:, 1:] * s[:, :-1] < 0).tolist()
        for reflection, at in crossings:
            inside = torch.nonzero((angle - angle[at]).abs() <= window * DEGREE).flatten()
            for block in torch.unique(inside // samples).tolist():
                here = inside[inside // samples == block] % samples
                links.append((len(rows), int(mine[block]), int(here.min()), int(here.max())))
            rows.append((hkl[reflection].tolist(), sweep, float(angle[at])))
    n = len(rows)
    link = torch.tensor(links)
    return Observations(
        hkl=torch.tensor([r[0] for r in rows]),
        intensity=torch.ones(n, dtype=torch.float64),
        sigma=torch.full((n,), 0.1, dtype=torch.float64),
        row=torch.arange(n),
        free=torch.zeros(n, dtype=torch.bool),
        sweep=torch.tensor([r[1] for r in rows]),
        angle=f64([r[2] for r in rows]),
        link_observation=link[:, 0],
        link_block=link[:, 1],
        link_first=link[:, 2],
        link_last=link[:, 3],
    )


def problem(g_limit=0.9, window=0.6, structure=None, **scan_choices) -> Problem:
    """Return a structure, by default quartz, over a small sweep, all intensities one."""
    structure = structure or quartz()
    scan_ = scan(cell=structure.cell, **scan_choices)
    measured = observations(structure, scan_, g_limit, window)
    return Problem(structure, scan_, measured, {"made": "by hand"})


def settings(**choices) -> ModelSettings:
    """Return model settings in double precision with few beams and depths."""
    values = {
        "g_max": 0.8,
        "s_max": 0.01,
        "left_out": None,
        "perturbation": None,
        "depth": DepthGrid(20.0, 12),
        "propagator": Splitting(),
        "precision": "double",
        "thickness_start": 120.0,
        "nuisance": (),
    }
    return ModelSettings(**values | choices)
