"""Are the standard uncertainties right? Simulated data of known truth, refined many times.

python -m benchmarks.uncertainties [COUNT]: data sets, 30 by default; each takes about half a minute
of a core with each of two models.

The data are Bloch waves averaged over p(t) in closed form (`dials_hybrid.simulate`), a path of
its own; the noise is that of counts and an error in proportion to the intensity. Every data set
has another noise, other orientation errors drawn from the size that the refinement expects, and
another displaced start. Normalised errors (value - truth) / s.u. should have the mean 0 and the
standard deviation 1.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time

import numpy as np
import torch
from cctbx import adptbx

from dials_hybrid import beams, crystal, electron, simulate, true_thickness
from dials_hybrid.data import Observations, Problem, Result, Scan, Structure
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import DepthGrid
from dials_hybrid.refine import Refinement, RefineSettings
from dials_hybrid.uncertainty import star_lengths
from dials_hybrid.valence import ValenceSettings

from . import cases, common

WAVELENGTH = electron.wavelength(200e3)  # A
BLOCKS, WIDTH, SAMPLES = 60, math.radians(1), 20
WINDOW = math.radians(0.6)  # half of the rotation over which a reflection is integrated
D_STAR_MAX = 1.25  # A^-1, of the reflections measured
THICKNESS = true_thickness.ThicknessMixture((250.0,), (60.0,), (1.0,), true_thickness.constant())
ORIENTATION_ERROR = math.radians(0.05), math.radians(1.5)  # size and correlation length
COUNTS = 300.0  # electrons of a mean reflection
PROPORTIONAL = 0.03  # error in proportion to the intensity
# the defaults, depths and start as the command finds them
SETTINGS = ModelSettings(depth=DepthGrid(40.0, 15), thickness_start=300.0)

# for times alone
QUICK = dataclasses.replace(SETTINGS, g_max=1.0, s_max=0.01, left_out=None, perturbation=None)


def true_structure() -> Structure:
    """Return quartz, Si isotropic and O anisotropic."""
    quartz = cases.quartz()
    oxygen = quartz.scatterers()[1]
    u_cif = (0.0156, 0.0115, 0.0119, 0.0092, -0.0029, -0.0046)  # A^2
    oxygen.flags.set_use_u_iso(False)
    oxygen.flags.set_use_u_aniso(True)
    oxygen.u_star = adptbx.u_cif_as_u_star(quartz.unit_cell(), u_cif)
    return to_structure(quartz)


def rotation(structure: Structure, offset=None) -> simulate.Rotation:
    """Return a rotation about x of a crystal in a general orientation, the beam along -z.

    `offset` takes angles (n,) to further small rotations (n, 3) rad.
    """
    upright = torch.linalg.inv(torch.linalg.cholesky(crystal.metric(structure.cell))).T
    start = beams.rotation_matrices(torch.tensor([[0.3, -0.5, 0.9]]).double())[0] @ upright

    def setting(angle: np.ndarray) -> np.ndarray:
        about_x = torch.zeros(len(angle), 3, dtype=torch.float64)
        about_x[:, 0] = torch.as_tensor(angle)
        out = beams.rotation_matrices(about_x) @ start
        if offset is not None:
            out = beams.rotation_matrices(torch.as_tensor(offset(angle))) @ out
        return out.numpy()

    return simulate.Rotation(setting, np.array([0, 0, -1 / WAVELENGTH]), 0.0, BLOCKS * WIDTH)


def scan(structure: Structure) -> Scan:
    """Return the sweep as the refinement sees it, without orientation errors."""
    step = WIDTH / SAMPLES
    angle = step * (torch.arange(BLOCKS * SAMPLES, dtype=torch.float64) + 0.5)
    setting = torch.as_tensor(rotation(structure).setting(angle.numpy()))
    along_z, along_x = torch.eye(3, dtype=torch.float64)[[2, 0]]
    return Scan(
        setting=setting.view(BLOCKS, SAMPLES, 3, 3),
        angle=angle.view(BLOCKS, SAMPLES),
        sample_width=torch.full((BLOCKS, SAMPLES), step, dtype=torch.float64),
        s0=(-along_z / WAVELENGTH).repeat(BLOCKS, 1),
        normal=(-along_z).repeat(BLOCKS, 1),
        sweep=torch.zeros(BLOCKS, dtype=torch.int64),
        axis=along_x.repeat(BLOCKS, 1),
    )


def windows(structure: Structure, scan_: Scan) -> tuple[simulate.Windows, np.ndarray, np.ndarray]:
    """Return the windows of all reflections that cross the Ewald sphere well within the sweep.

    Beside them come their first and last samples of the sweep: windows end where samples do.
    """
    hkl = beams.lattice_points(structure, D_STAR_MAX)
    vectors = torch.einsum("tij,mj->mti", scan_.setting.flatten(0, 1), hkl.double())[None]
    s = beams.excitation_errors(vectors, scan_.s0[:1], 1 / torch.tensor([WAVELENGTH]).double())[0]
    which, at = torch.nonzero(s[:, 1:] * s[:, :-1] < 0).T.numpy()
    half = round(WINDOW / (WIDTH / SAMPLES))
    first, last = at + 1 - half, at + half
    inside = (first >= 0) & (last < s.shape[1])
    which, first, last = which[inside], first[inside], last[inside]
    step = WIDTH / SAMPLES
    return simulate.Windows(hkl.numpy()[which], first * step, (last + 1) * step), first, last


def observations(windows_: simulate.Windows, first, last, intensity, sigma) -> Observations:
    """Return measured intensities (R,), linked to the blocks that their windows touch."""
    links = [
        (row, block, max(a - block * SAMPLES, 0), min(b - block * SAMPLES, SAMPLES - 1))
        for row, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True))
        for block in range(a // SAMPLES, b // SAMPLES + 1)
    ]
    link = torch.tensor(links)
    n = len(intensity)
    return Observations(
        hkl=torch.as_tensor(windows_.hkl),
        intensity=torch.as_tensor(intensity),
        sigma=torch.as_tensor(sigma),
        row=torch.arange(n),
        free=torch.zeros(n, dtype=torch.bool),
        sweep=torch.zeros(n, dtype=torch.int64),
        angle=torch.as_tensor((windows_.start + windows_.end) / 2),
        link_observation=link[:, 0],
        link_block=link[:, 1],
        link_first=link[:, 2],
        link_last=link[:, 3],
    )


def measured(structure: Structure, seed: int) -> tuple[Scan, Observations]:
    """Simulate one data set."""
    rng = np.random.default_rng(seed)
    sweep = scan(structure)
    windows_, first, last = windows(structure, sweep)
    size, length = ORIENTATION_ERROR
    knots = sweep.angle.flatten().numpy()
    curves = simulate.smooth_curves(knots, size, length, rng).T
    turned = rotation(structure, lambda a: np.stack([np.interp(a, knots, c) for c in curves], 1))
    accuracy = simulate.Accuracy(block_width=WIDTH, step=math.radians(0.05))
    made = simulate.simulate(structure, turned, windows_, THICKNESS, accuracy).intensity
    expected = made * COUNTS / made.mean()
    expected *= np.clip(1 + PROPORTIONAL * rng.normal(size=len(made)), 0, None)
    counts = simulate.count_electrons(expected, 20.0, 0.3, rng)
    return sweep, observations(windows_, first, last, counts.value, np.sqrt(counts.variance))


def displaced(structure: Structure, rng) -> Structure:
    """Return the structure with its atoms moved by about 0.02 A and U changed by a tenth."""
    model = crystal.CrystalModel(structure)
    with torch.no_grad():
        model.site_shift += 2 * torch.as_tensor(rng.normal(size=len(model.site_shift)))
        model.u_shift += 0.3 * torch.as_tensor(rng.normal(size=len(model.u_shift)))
    return model.refined()


U_NAMES = ("U11", "U22", "U33", "U12", "U13", "U23")


def normalised_errors(true: Structure, found: Result) -> dict[str, float]:
    """Return (value - truth) / s.u. of every coordinate and U that is free, by name."""
    out = {}
    site = (found.structure.site - true.site) * true.cell[:3] / found.site_su
    u_iso = (found.structure.u_iso - true.u_iso) / found.u_su
    u_aniso = (found.structure.u_star - true.u_star) / star_lengths(true.cell) / found.u_aniso_su
    for i, label in enumerate(true.labels):
        for axis, name in enumerate("xyz"):
            if found.site_su[i, axis] > 0:
                out[f"{name}({label})"] = float(site[i, axis])
        if not true.anisotropic[i]:
            out[f"U({label})"] = float(u_iso[i])
            continue
        for j, name in enumerate(U_NAMES):
            out[f"{name}({label})"] = float(u_aniso[i, j])
    return out


def run_case(seed: int, settings: ModelSettings = SETTINGS) -> dict[str, float]:
    """Simulate, refine from a displaced start, and return the normalised errors."""
    true = true_structure()
    sweep, measured_ = measured(true, seed)
    start = displaced(true, np.random.default_rng(1000 + seed))
    refinement = Refinement(Problem(start, sweep, measured_), settings, RefineSettings())
    return normalised_errors(true, refinement.run())


def in_p1() -> Structure:
    """Return the atoms of one cell without symmetry: 9 of quartz, 60 parameters or more."""
    quartz = cases.quartz().expand_to_p1()
    for atom in quartz.scatterers():
        if atom.scattering_type == "O":
            atom.convert_to_anisotropic(quartz.unit_cell())
    return to_structure(quartz)


def calculated(structure: Structure, seed: int) -> tuple[Scan, Observations]:
    """Return data of the refinement's own model, with noise: quick, and right for times."""
    sweep = scan(structure)
    windows_, first, last = windows(structure, sweep)
    nothing = np.ones(len(first))
    o = observations(windows_, first, last, nothing, nothing)
    model = HybridModel(Problem(structure, sweep, o), QUICK)
    with torch.no_grad():
        made = model.intensities(model.value_profiles())
    sigma = PROPORTIONAL * made + 0.01 * made.mean()
    noise = torch.as_tensor(np.random.default_rng(seed).normal(size=len(made)))
    return sweep, o.replace(intensity=made + sigma * noise, sigma=sigma)


class _Timed(Refinement):
    """Notes how long the result takes after the last iteration, s.u. and all."""

    def _result(self, *end):
        began = time.process_time()
        result = super()._result(*end)
        self.seconds = time.process_time() - began
        return result


def timing(true: Structure, seed: int = 0) -> dict:
    """Return the row of the table of times: of a refinement, and of its s.u. among it."""
    sweep, measured_ = calculated(true, seed)
    start = displaced(true, np.random.default_rng(1000 + seed))
    refinement = _Timed(Problem(start, sweep, measured_), QUICK, RefineSettings())
    began = time.process_time()
    result = refinement.run()
    total = time.process_time() - began
    return {
        "atoms": len(true.labels),
        "parameters of the structure": result.summary["n_parameters_structure"],
        "reflections": len(measured_.intensity),
        "iterations": result.summary["iterations"],
        "refinement / s": total - refinement.seconds,
        "s.u. / s": refinement.seconds,
        "ratio": refinement.seconds / (total - refinement.seconds),
    }


def table(errors: list[dict[str, float]]) -> list[dict]:
    """Return mean, its s.u., and standard deviation of every quantity, and of all together.

    The standard deviation is that from the truth: a mean that is not zero counts. The s.u. is by
    the scatter of the data sets, since the errors of one set are correlated.
    """
    values = np.array([list(e.values()) for e in errors])  # (sets, quantities)
    columns = {name: values[:, [i]] for i, name in enumerate(errors[0])} | {"all": values}
    return [
        {
            "quantity": name,
            "mean": float(z.mean()),
            "s.u. of the mean": float(z.mean(1).std(ddof=1) / len(z) ** 0.5),
            "s.d. from truth": float((z**2).mean() ** 0.5),
        }
        for name, z in columns.items()
    ]


def main() -> None:
    """Print the tables and write benchmarks/results/uncertainties.json."""
    seeds = range(int(sys.argv[1]) if sys.argv[1:] else 30)
    rows = []
    models = {
        "defaults": SETTINGS,
        "no valence, as in the truth": dataclasses.replace(
            SETTINGS, valence=ValenceSettings("none")
        ),
    }
    for name, settings in models.items():
        found = table([run_case(seed, settings) for seed in seeds])
        common.print_table(f"Errors over s.u., {len(seeds)} data sets, {name}", found)
        rows += [{"model": name, "data sets": len(seeds), **row} for row in found]
    times = [timing(true) for true in (true_structure(), in_p1())]
    common.print_table("Processor time of the s.u. beside that of the refinement", times)
    common.save("uncertainties", rows, times=times)


if __name__ == "__main__":
    main()
