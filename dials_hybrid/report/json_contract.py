"""The numbers of a refinement as JSON.

Lengths in Angstrom, U in A^2, angles in degree, agreement factors as fractions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import torch

from .. import __version__, electron
from ..data import Problem, Result, Structure
from ..freedom import metric, star_lengths, u_equivalent
from ..io_cif_items import formula, formula_units
from ..io_elements import neutral
from ..io_measurement import cell_su
from ..records import replacing
from . import checks
from .arrays import as_numpy, if_known

PROGRAM = "dials.hybrid_refine"

_R_NAMES = ("r1_obs", "r1_all", "wr2_all")
# Every key that readers may rely on; a value that no stage has filled stays null.
_KEYS = {
    **dict.fromkeys(("program", "version", "dials_version", "device", "wall_time_s", "su_time_s")),
    **dict.fromkeys(("n_all", "n_obs", "n_parameters", "converged", "stop_reason")),
    "kinematic": {"r1_obs": None},
    "start": dict.fromkeys(_R_NAMES),
    "final": dict.fromkeys((*_R_NAMES, "gof", "r1_obs_frame_mean")),
    "free": {"r1_obs": None, "n": 0},
    "cross_validated": {"r1_obs": None, "r1_all": None},
    "merged": {"r1_obs": None},
    "propagation": dict.fromkeys(
        ("scheme", "step", "substeps", "error_measured", "error_target", "beams")
    ),
    **dict.fromkeys(("space_group", "absolute_structure", "indexing", "error_model", "valence")),
    "orientation": {"sigma": None},  # degrees, of the prior
    "scale": {"stiffness": None},  # of the prior
    "nuisance": [],
    "restraints": {},
    "bonds": [],
    "angles": [],
    "contacts": [],
    "settings_refined": [],
    "indexing_verdict": None,
    "hydrogens_put_back": [],
    "correlations": [],
    "condition": dict.fromkeys(
        ("all", "structure", "undetermined", "unknown", "strong_correlations")
    ),
    "checks": [],
    "map_peaks": None,
    "warnings": [],
}


def contract(problem: Problem, result: Result, **extra) -> dict:
    """Return the numbers of a refinement as plain JSON values, NaN as None.

    `extra` adds or replaces top-level keys: space_group, warnings, dials_version.
    """
    scan, first = problem.scan, problem.scan.frame_start
    found = {
        "program": PROGRAM,
        "version": __version__,
        **result.summary,
        "converged": result.converged,
        "stop_reason": result.stop_reason,
        "thickness": {
            "grid": result.depth,
            "mean": as_numpy(result.thickness[first]) @ as_numpy(result.depth),
            "mean_su": if_known(result.thickness_mean_su, first),
            "distribution": result.thickness[first],
            "distribution_su": if_known(result.thickness_su, first),
            "average_su": result.thickness_average_su,
            "angle": torch.rad2deg(scan.block_angle[first]),
            "sweep": scan.sweep[first],
        },
        "sites": _sites(result),
        **extra,
    }
    found |= {"crystal": crystal(problem, result.structure), "radiation": radiation(problem)}
    plain = _plain(_filled(_KEYS, found))
    plain["checks"] = checks.find(problem, result, plain)
    return plain


def crystal(problem: Problem, structure: Structure) -> dict:
    """Return formula, Z, cell (A, degree) with its s.u., volume (A^3), temperature (K, as stated).

    What the input files do not tell is None; Z is then the largest number that leaves whole atoms.
    """
    provenance = problem.provenance
    number = structure.weight * len(structure.sym_rot) * structure.occ
    content: dict[str, float] = {}
    for kind, n in zip(structure.type.tolist(), number.tolist(), strict=True):
        element = neutral(structure.elements[kind])
        content[element] = content.get(element, 0.0) + n
    z = formula_units(content, provenance.get("formula_units"))
    return {
        "formula": formula({element: n / z for element, n in content.items()}),
        "formula_units": z,
        "cell": structure.cell,
        "cell_su": cell_su(problem),
        "volume": float(metric(structure.cell).det().sqrt()),
        "temperature": provenance.get("temperature"),
    }


def radiation(problem: Problem) -> dict:
    """Return the wavelength in A and the voltage in kV."""
    wavelength = problem.scan.wavelength
    return {"wavelength": wavelength, "voltage": electron.voltage(wavelength) / 1000}


def _filled(keys: Mapping, found: Mapping) -> dict:
    """Return `found` with every key of `keys` present, nested ones too."""
    merged = {**keys, **found}
    for name, inner in keys.items():
        if isinstance(inner, Mapping):
            merged[name] = {**inner, **(found.get(name) or {})}
    return merged


def _plain(value):
    """Return a value as JSON knows it: lists, numbers of 8 digits, None for NaN."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _sites(result: Result) -> list[dict]:
    """Return one entry per atom: fractional xyz, U in A^2, their s.u.

    u_aniso has U11 U22 U33 U12 U13 U23 as the CIF defines them, None for isotropic atoms.
    """
    structure = result.structure
    xyz_su = as_numpy(result.site_su) / as_numpy(structure.cell)[:3]
    u_eq, u_aniso = equivalent_u(structure), anisotropic_u(structure)
    u_aniso_su = result.u_aniso_su
    if u_aniso_su is None:
        u_aniso_su = np.full_like(u_aniso, math.nan)
    return [
        {
            "label": label,
            "element": structure.elements[int(structure.type[i])],
            "xyz": structure.site[i],
            "xyz_su": xyz_su[i],
            "u_iso": u_eq[i],
            "u_iso_su": result.u_su[i],
            "adp_type": "Uani" if structure.anisotropic[i] else "Uiso",
            "u_aniso": u_aniso[i] if structure.anisotropic[i] else None,
            "u_aniso_su": u_aniso_su[i] if structure.anisotropic[i] else None,
            "occupancy": structure.occ[i],
            "occupancy_su": None if result.occ_su is None else result.occ_su[i],
        }
        for i, label in enumerate(structure.labels)
    ]


def equivalent_u(structure: Structure) -> np.ndarray:
    """Return U_iso, or U_eq of anisotropic atoms, (A,) A^2."""
    return as_numpy(u_equivalent(structure))


def anisotropic_u(structure: Structure) -> np.ndarray:
    """Return U11 U22 U33 U12 U13 U23 (A, 6) in A^2 as the CIF defines them, u*_ij / (a*_i a*_j)."""
    return as_numpy(structure.u_star) / as_numpy(star_lengths(structure.cell))


def write_json(path, contract: dict) -> None:
    """Write the contract, one top-level key per line; an old file goes only at the end.

    Raises ValueError when a value is NaN or infinite.
    """
    lines = [
        f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}"
        for key, value in contract.items()
    ]
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
