"""The refined structure and corrected data for SHELXL-type programs: .res and .hkl (HKLF 4)."""

from __future__ import annotations

import io
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
from cctbx import miller, sgtbx
from cctbx.array_family import flex
from cctbx.eltbx import covalent_radii, tiny_pse
from scipy.optimize import least_squares

from . import __version__, io_cif_mtz
from .data import Problem, Result
from .freedom import SYMMETRY_ALONE, Constraints
from .io_cctbx import update_xray_structure
from .io_cif_items import formula_units
from .io_disorder import KEY
from .io_elements import form_factor_registry, neutral
from .io_measurement import cell_su
from .io_results import writing
from .io_shelx_atoms import AtomLines, fvar_lines, wrapped
from .io_shelx_restraints_write import instructions_of

logger = logging.getLogger("dials.hybrid.io_shelx_write")

_LARGEST = 9999.0  # of the intensities: HKLF 4 has eight columns for a number
_S_MAX = 1.0  # A^-1, as far as the four Gaussians of SFAC have to follow the form factors
_LATTICES = "PIRFABC"


def names(prefix) -> tuple[str, str]:
    """Return the names of the .res and the .hkl file of a prefix."""
    return f"{prefix}.res", f"{prefix}.hkl"


def write_shelx(
    prefix,
    xray_structure,
    problem: Problem,
    result: Result,
    constraints: Constraints = SYMMETRY_ALONE,
) -> None:
    """Write PREFIX.res and PREFIX.hkl, from which a kinematical refinement can go on.

    The intensities are the merged |F|^2 that `io_cif_mtz.miller_arrays` has as `corrected`, on a
    new scale. A warning names the `constraints`, and the restraints of the problem, that SHELXL has
    no words for. Raises InputError when a file cannot be written.
    """
    refined = update_xray_structure(xray_structure, result.structure)
    corrected = io_cif_mtz.miller_arrays(xray_structure, problem, result)["corrected"]
    title = Path(prefix).name
    texts = (instructions(refined, problem, title, constraints), hklf(corrected))
    for path, text in zip(names(prefix), texts, strict=True):
        with writing(path) as temporary:
            temporary.write_text(text, encoding="ascii", errors="replace")


def hklf(corrected) -> str:
    """Return amplitudes with s.u. as intensities in the format HKLF 4."""
    f, su = corrected.data(), corrected.sigmas()
    intensity, sigma = f * f, su * (su + 2 * f)  # the inverse of su = sigma / (F + sqrt(I + sigma))
    scale = _LARGEST / max(flex.max(intensity), flex.max(sigma))
    array = miller.array(corrected, data=scale * intensity, sigmas=scale * sigma)
    buffer = io.StringIO()
    array.export_as_shelx_hklf(buffer)
    return buffer.getvalue()


def instructions(
    refined, problem: Problem, title: str, constraints: Constraints = SYMMETRY_ALONE
) -> str:
    """Return the text of a .res file of a cctbx structure."""
    change = _to_centre(refined.space_group())
    if change is not None:
        refined = refined.change_basis(change)
    content, labels = _content(refined), _labels(refined)
    parts = tuple(problem.provenance.get(KEY, ()))
    atoms = AtomLines(refined, labels, list(content), constraints, parts)
    atom_lines = atoms.write()
    held = instructions_of(refined, problem.restraints, labels, parts, change)
    for kind, left in (("constraints", atoms.coding.left), ("restraints", held.left)):
        if left:
            what = ", ".join(left)
            logger.warning("%s.res: these %s cannot be written to it: %s", title, kind, what)
    shared = [
        line
        for command, group in atoms.coding.shared
        for line in wrapped(command, [labels[i] for i in group])
    ]
    lines = [
        f"TITL {title} in {refined.space_group_info()}",
        f"REM dials_hybrid {__version__}; data corrected for multiple scattering",
        *_cell(refined, problem, formula_units(content, problem.provenance.get("formula_units"))),
        *_symmetry(refined.space_group()),
        *[line for element in content for line in _form_factor(element)],
        f"UNIT {' '.join(f'{n:g}' for n in content.values())}",
        *(["TEMP " + _celsius(t)] if (t := problem.provenance.get("temperature")) else []),
        "L.S. 10",
        "LIST 4",
        "FMAP 2",
        "PLAN 20",
        "BOND",
        "CONF",
        "WGHT 0.1",
        *held.lines,
        *shared,
        *fvar_lines(atoms.coding.variables),
        *atom_lines,
        "HKLF 4",
        "END",
    ]
    return "\n".join(lines) + "\n"


def _to_centre(group):
    """Return the change of basis that puts a centre of inversion at the origin, as LATT wants it.

    None where it is there, or where there is none. Intensities stay.
    """
    if not group.is_centric() or group.is_origin_centric():
        return None
    inversion = group(0, 1, 0).t()
    half = [Fraction(n, 2 * inversion.den()) for n in inversion.num()]
    shift = ",".join(f"{axis}-{x}" for axis, x in zip("xyz", half, strict=True))
    return sgtbx.change_of_basis_op(shift)


def _content(refined) -> dict:
    """Atoms of each element in the cell, carbon and hydrogen first."""
    found: dict[str, float] = {}
    for sc in refined.scatterers():
        element = neutral(sc.scattering_type)
        found[element] = found.get(element, 0) + sc.weight() * refined.space_group().order_z()
    order = sorted(found, key=lambda e: (e != "C", e != "H", e))
    return {e: round(found[e], 2) for e in order}


def _celsius(kelvin: str) -> str:
    return f"{float(kelvin.split('(')[0]) - 273.15:.1f}"


def _cell(refined, problem: Problem, z: int) -> list[str]:
    cell = refined.unit_cell().parameters()
    su = cell_su(problem) or [0.0] * 6
    number = "{:.5f} {:.5f} {:.5f} {:.4f} {:.4f} {:.4f}".format
    return [
        f"CELL {problem.scan.wavelength:.5f} {number(*cell)}",
        f"ZERR {z} {number(*su)}",
    ]


def _symmetry(group) -> list[str]:
    lattice = 1 + _LATTICES.index(group.conventional_centring_type_symbol())
    operators = [group(0, 0, i) for i in range(group.n_smx())]
    sign = 1 if group.is_origin_centric() else -1
    return [
        f"LATT {sign * lattice}",
        *[f"SYMM {op.as_xyz().upper()}" for op in operators if not op.is_unit_mx()],
    ]


def four_gaussians(element: str) -> np.ndarray:
    """Return (a1, b1, .. a4, b4, c) of f_e in A at s = |g|/2 up to 1 A^-1, by least squares.

    SFAC has no room for the five Gaussians of the table (Peng et al. 1996,
    doi:10.1107/S0108767395014371).
    """
    gaussian = form_factor_registry([element]).gaussian(element)
    s_sq = np.linspace(0, _S_MAX, 101) ** 2
    target = np.array([gaussian.at_stol_sq(x) for x in s_sq])
    a, b = np.array(gaussian.array_of_a()), np.array(gaussian.array_of_b())
    chosen = np.argsort(-a)[:4]
    start = np.concatenate([np.log(a[chosen]), np.log(b[chosen]), [0.0]])

    def misfit(x):
        curve = (np.exp(x[:4]) * np.exp(-s_sq[:, None] * np.exp(x[4:8]))).sum(1) + x[8]
        return (curve - target) / target

    x = least_squares(misfit, start).x
    pairs = np.stack([np.exp(x[:4]), np.exp(x[4:8])], 1)
    return np.append(pairs.ravel(), x[8])


def _form_factor(element: str) -> list[str]:
    """SFAC with explicit numbers: no dispersion and absorption, but
    radius and weight of the atom."""
    radius, weight = covalent_radii.table(element).radius(), tiny_pse.table(element).weight()
    a1, b1, a2, b2, a3, b3, a4, b4, c = (f"{x:.4f}" for x in four_gaussians(element))
    return [
        f"SFAC {element} {a1} {b1} {a2} {b2} {a3} {b3} =",
        f"  {a4} {b4} {c} 0 0 0 {radius:.2f} {weight:.3f}",
    ]


def _labels(refined) -> list[str]:
    taken: set[str] = set()
    atoms = refined.scatterers()
    return [_short_label(sc.label, neutral(sc.scattering_type), taken) for sc in atoms]


def _short_label(label: str, element: str, taken: set) -> str:
    """A label of at most four letters and digits that no atom before has."""
    plain = "".join(c for c in label if c.isalnum())
    number = 1
    while not plain or len(plain) > 4 or plain.upper() in taken or not plain[0].isalpha():
        plain = f"{element}{number}"
        number += 1
    taken.add(plain.upper())
    return plain
