"""Error of splitting integrators against the number of matrix products per Angstrom.

The error is max |dI| over all beams, orientations and depths to 800 A, in double precision,
against Bloch waves. docs/integrators.md holds the table and what follows from it.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dials_hybrid import beams
from dials_hybrid.crystal import metric
from dials_hybrid.data import Observations, Problem, Scan
from dials_hybrid.io_cctbx import to_structure
from dials_hybrid.io_structures import read_structure
from dials_hybrid.model import HybridModel
from dials_hybrid.model_settings import ModelSettings
from dials_hybrid.propagation import SCHEMES, DepthGrid

from . import common

GRID = DepthGrid(80.0, 10)
SUBSTEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 40, 80)
MOST_PRODUCTS = 1.0  # per A
TARGETS = (1e-2, 1e-3, 1e-4, 1e-5)
WAVELENGTH = 0.0251  # A, 200 kV
CASES = tuple(itertools.product(("quartz", "CsPbBr3"), (0.01, 0.02, 0.03)))
G_MAX = {"quartz": 2.0, "CsPbBr3": 1.2}  # A^-1; below 320 beams
ORIENTATIONS = 4  # the first one along a zone axis
SAMPLES = 4  # over one degree

# Rounded room-temperature structure, Pbnm
CSPBBR3 = """\
data_cspbbr3
_cell_length_a 8.20
_cell_length_b 8.24
_cell_length_c 11.74
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P b n m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_U_iso_or_equiv
Cs1 Cs 0.51 0.55 0.75 0.037
Pb1 Pb 0.5 0 0.5 0.015
Br1 Br 0.30 0.70 0.47 0.027
Br2 Br 0.44 0.99 0.75 0.035
"""


def palindrome(a: tuple, b: tuple) -> tuple[tuple, tuple]:
    """Complete the first coefficients of a symmetric scheme that starts and ends with S.

    The coefficients at the middle follow from the sums, which are one.
    """
    if len(a) > len(b):  # the middle stage is S
        half = 0.5 - sum(b)
        return (*a, 1 - 2 * sum(a), *reversed(a)), (*b, half, half, *reversed(b))
    half = 0.5 - sum(a)
    return (*a, half, half, *reversed(a)), (*b, 1 - 2 * sum(b), *reversed(b))


def gauss(stages: int) -> tuple[tuple, tuple]:
    """SABA_n, order (2n, 2): S between Gauss-Legendre nodes, V with their weights.

    J. Laskar & P. Robutel 2001, doi:10.1023/A:1012098603882.
    """
    nodes, weights = np.polynomial.legendre.leggauss(stages)
    edges = np.concatenate([[0.0], (1 + nodes) / 2, [1.0]])
    return tuple(np.diff(edges).tolist()), tuple((weights / 2).tolist())


# Published schemes that were tried. McLachlan 1995, doi:10.1007/BF01737165; the others from
# Blanes et al. 2013, doi:10.1016/j.apnum.2013.01.003, tables 3 and 4 (ABAH: the coefficients
# for perturbations that split further).
TRIED = {
    **{f"saba_{n}": gauss(n) for n in (2, 4, 6)},
    "mclachlan_84": palindrome(
        (0.07534696026989288842, 0.51791685468825678230),
        (0.19022593937367661925, 0.84652407044352625706),
    ),
    "abah_844": palindrome(
        (0.2741402689434018762, -0.1075684384401642306, -0.04801850259060169269),
        (0.6408857951625127177, -0.8585754489567828566),
    ),
    "abah_864": palindrome(
        (
            0.06810235651658372085,
            0.2511360387221033233,
            -0.07507264957216562516,
            -0.009544719701745007811,
        ),
        (0.1684432593618954534, 0.4243177173742677224, -0.5858109694681756812),
    ),
}


def structure_of(name: str):
    """Return the record of one of the two crystals."""
    if name == "quartz":
        return to_structure(read_structure(common.MODEL))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cspbbr3.cif"
        path.write_text(CSPBBR3)
        return to_structure(read_structure(path))


def block(structure, orientation: Tensor) -> Problem:
    """Return a rotation by one degree about x, started from an orientation (3, 3)."""
    angle = torch.linspace(-0.5, 0.5, SAMPLES, dtype=torch.float64).deg2rad()
    axis = angle.new_tensor([1.0, 0, 0])
    reciprocal = torch.linalg.cholesky(torch.linalg.inv(metric(structure.cell).double())).T
    zero, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
    scan = Scan(
        setting=(beams.rotation_matrices(angle[:, None] * axis) @ orientation @ reciprocal)[None],
        angle=angle[None],
        sample_width=torch.ones_like(angle)[None],
        s0=angle.new_tensor([[0, 0, -1 / WAVELENGTH]]),
        normal=angle.new_tensor([[0, 0, -1]]),
        sweep=zero,
        axis=axis[None],
    )
    observation = Observations(
        hkl=nearest(structure, scan)[None],
        intensity=one,
        sigma=one,
        row=zero,
        free=zero.bool(),
        sweep=zero,
        angle=0 * one,
        link_observation=zero,
        link_block=zero,
        link_first=zero,
        link_last=zero + SAMPLES - 1,
    )
    return Problem(structure, scan, observation, {})


def nearest(structure, scan: Scan) -> Tensor:
    """Return the hkl (3,) that is nearest to the Ewald sphere at the first sample."""
    hkl = beams.lattice_points(structure, 1.0)
    vectors = hkl.double() @ scan.setting[0, 0].T
    s = beams.excitation_errors(vectors[None], scan.s0, scan.s0.norm(dim=-1))
    return hkl[s.abs().argmin()]


@torch.no_grad()
def matrices(name: str, s_max: float) -> list[tuple[Tensor, Tensor]]:
    """Return V (N, N) and S (N, T) in A^-1 of every orientation."""
    structure, out = structure_of(name), []
    settings = ModelSettings(g_max=G_MAX[name], s_max=s_max, perturbation=None, precision="double")
    generator = torch.Generator().manual_seed(0)
    for k in range(ORIENTATIONS):
        turn = 2 * torch.randn(3, generator=generator, dtype=torch.float64) * (k > 0)
        model = HybridModel(block(structure, beams.rotation_matrices(turn)), settings)
        batch = model.batches[0]
        potential = model.matrix(batch, model.potential_table())[0]
        out.append((potential, model.excitation(batch, model.orientation())[0]))
    return out


def bloch_waves(potential: Tensor, excitation: Tensor) -> Tensor:
    """Return |psi|^2 (D, N, T), one diagonalisation per sample."""
    out = []
    for s in excitation.T:
        values, vectors = torch.linalg.eigh(potential + torch.diag(s).to(potential.dtype))
        phase = torch.exp(2j * math.pi * GRID.depths(dtype=torch.float64)[:, None] * values)
        out.append(((phase * vectors[0].conj()) @ vectors.T).abs().square())
    return torch.stack(out, -1)


def split(potential: Tensor, excitation: Tensor, scheme: tuple, substeps: int) -> Tensor:
    """Return |psi|^2 (D, N, T) by a scheme (a, b) with `substeps` steps between depths."""
    a, b = scheme
    step = GRID.step / substeps
    values, vectors = torch.linalg.eigh(potential)
    exponentials = {
        t: (vectors * torch.exp(2j * math.pi * t * step * values)) @ vectors.mH for t in set(b)
    }
    phases = {t: torch.exp(2j * math.pi * t * step * excitation) for t in set(a)}
    waves = torch.zeros(excitation.shape, dtype=potential.dtype)
    waves[0] = 1
    out = []
    for k in range(GRID.count * substeps):
        for s, v in zip(a, b, strict=False):
            waves = exponentials[v] @ (phases[s] * waves)
        waves = phases[a[-1]] * waves
        if (k + 1) % substeps == 0:
            out.append(waves.abs().square())
    return torch.stack(out)


def measure(name: str, s_max: float) -> list[dict]:
    """Return a row for every scheme and step."""
    cases = [(v, s, bloch_waves(v, s)) for v, s in matrices(name, s_max)]
    beams_ = max(len(v) for v, _, _ in cases)
    rows = []
    for label, scheme in {**SCHEMES, **TRIED}.items():
        for substeps in SUBSTEPS:
            step = GRID.step / substeps
            products = len(scheme[1]) / step
            if products > MOST_PRODUCTS:
                break
            errors = [float((split(v, s, scheme, substeps) - i).abs().max()) for v, s, i in cases]
            rows.append(
                {
                    "crystal": name,
                    "s_max": s_max,
                    "beams": beams_,
                    "scheme": label,
                    "step": step,
                    "products_per_A": products,
                    "error": max(errors),
                }
            )
            if max(errors) < TARGETS[-1] / 3:
                break
    return rows


def cost(rows: list[dict], target: float) -> float:
    """Return the fewest products per A from which on every finer step meets the target too."""
    best = math.inf
    for row in sorted(rows, key=lambda r: -r["products_per_A"]):
        if row["error"] > target:
            break
        best = row["products_per_A"]
    return best


def table(rows: list[dict], show) -> list[dict]:
    """Return one line per scheme, with `show(rows of the scheme)` for every case."""
    lines = []
    for label, (_, b) in {**SCHEMES, **TRIED}.items():
        line = {"scheme": label, "stages": len(b)}
        for name, s_max in CASES:
            case = [r for r in rows if (r["crystal"], r["s_max"]) == (name, s_max)]
            mine = [r for r in case if r["scheme"] == label]
            line[f"{name} {s_max} (N {case[0]['beams']})"] = show(mine)
        lines.append(line)
    return lines


def main() -> None:
    """Print the tables and write benchmarks/results/integrators.json."""
    rows = [row for case in CASES for row in measure(*case)]
    common.save("integrators", rows)
    for target in TARGETS:

        def products(mine, target=target) -> str:
            found = cost(mine, target)
            return f"{found:.3f}" if math.isfinite(found) else "-"

        common.print_table(
            f"Matrix products per A for max |dI| <= {target:.0e} to 800 A, by crystal and s_max",
            table(rows, products),
        )
    common.print_table(
        "max |dI| with one step of 40 A",
        table(rows, lambda mine: f"{next(r['error'] for r in mine if r['step'] == 40.0):.1e}"),
    )


if __name__ == "__main__":
    main()
