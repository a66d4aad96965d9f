"""CIF items beside the atoms: chemistry, refinement and who wrote the file.

Names are those of the core dictionary 3.3.0 (https://github.com/COMCIFS/cif_core), which has what
is of electron diffraction; those without a dot are its aliases of 2.4.5, which other programs look
for. None stands for unknown.
"""

from __future__ import annotations

import datetime
import math
from functools import reduce

import iotbx.cif.model
from cctbx import sgtbx
from cctbx.eltbx import tiny_pse

from . import __version__
from .data import Problem, Result
from .io_cctbx import with_uncertainty
from .io_cif_reflections import DETAILS as REFLECTIONS
from .io_constraints import hydrogen_treatment
from .io_elements import form_factor_registry, isotope, neutral
from .io_maps import ELECTRON_PER_ANGSTROM

# version, and how the names begin that the others have not
DICTIONARIES = {
    "cif_core.dic": ("3.3.0", "_"),
    "cif_ed.dic": ("1.0.0", "_diffrn_detector.distance_sample"),
    "cif_rstr.dic": ("3.1.1", "_restr_"),
}
_DALTON_PER_CUBIC_ANGSTROM = 1.66053907  # g cm^-3
_DEUTERIUM = 2.0141  # dalton; the table of cctbx has 2


def chemistry_items(refined, problem: Problem) -> dict:
    """Return formula, weight, Z, density and F(000), in A, of a cctbx structure.

    Ions count as neutral atoms, deuterium as D. Z is what the structure's file said, or the
    largest number that leaves whole atoms.
    """
    content = _cell_content(refined)
    z = formula_units(content, problem.provenance.get("formula_units"))
    mass = sum(n * _weight(element) for element, n in content.items())
    volume = refined.unit_cell().volume()
    registry = form_factor_registry(sorted({neutral(element) for element in content}))
    f_zero = sum(n * registry.gaussian(neutral(e)).at_stol(0) for e, n in content.items())
    return {
        "_chemical_formula_sum": formula({e: n / z for e, n in content.items()}),
        "_chemical_formula_weight": f"{mass / z:.2f}",
        "_cell_formula_units_Z": z,
        "_exptl_crystal_density_diffrn": f"{_DALTON_PER_CUBIC_ANGSTROM * mass / volume:.3f}",
        "_exptl_crystal_F_000": f"{f_zero:.2f}",
    }


def _cell_content(refined) -> dict:
    """Return the number of atoms of each element in the cell."""
    content: dict[str, float] = {}
    for sc in refined.scatterers():
        element = isotope(sc.scattering_type)
        number = sc.weight() * refined.space_group().order_z()
        content[element] = content.get(element, 0.0) + number
    return content


def _weight(element: str) -> float:
    """Return the mass of an atom in dalton."""
    return _DEUTERIUM if element == "D" else tiny_pse.table(element).weight()


def formula_units(content: dict, stated: str | None) -> int:
    """Return Z of a cell's content {element: number}: as stated, or as large as can be."""
    if stated and stated.isdigit() and int(stated) > 0:
        return int(stated)
    numbers = [round(n) for n in content.values()]
    whole = all(abs(n - m) < 0.01 and m > 0 for n, m in zip(content.values(), numbers, strict=True))
    return reduce(math.gcd, numbers) if whole else 1


def formula(content: dict) -> str:
    """Return a formula sum in Hill order: carbon and hydrogen first, the rest by the alphabet."""
    first = [e for e in ("C", "H") if "C" in content and e in content]
    order = [*first, *sorted(set(content) - set(first))]
    numbers = {e: f"{content[e]:.3f}".rstrip("0").rstrip(".") for e in order}
    return " ".join(e + ("" if numbers[e] == "1" else numbers[e]) for e in order)


def refinement_items(problem: Problem, result: Result, contract: dict) -> dict:
    """Return the agreement, the weights, the last shifts, the model and the difference map."""
    final = contract.get("final") or {}
    o = problem.observations

    def factor(name: str):
        return None if final.get(name) is None else f"{final[name]:.4f}"

    return {
        "_reflns_number_total": len(o.intensity),
        "_reflns_number_gt": int(o.observed.sum()),
        "_reflns_threshold_expression": "I>3\\s(I)",
        "_reflns_special_details": REFLECTIONS,
        "_refine.diffraction_theory": "dynamical",
        "_refine.diffraction_theory_details": _THEORY,
        "_refine_ls_structure_factor_coef": "Inet",
        "_refine_ls_matrix_type": "full",
        "_refine_ls_number_reflns": int((~o.free).sum()),
        "_refine_ls_number_parameters": contract.get("n_parameters"),
        "_refine_ls_hydrogen_treatment": hydrogen_treatment(result.structure),
        "_refine_ls_R_factor_gt": factor("r1_obs"),
        "_refine_ls_R_factor_all": factor("r1_all"),
        "_refine_ls_wR_factor_ref": factor("wr2_all"),
        "_refine_ls_wR_factor_gt": _weighted_r(problem, result, o.observed & ~o.free),
        "_refine_ls_goodness_of_fit_ref": factor("gof"),
        "_refine_ls_extinction_method": "none",  # multiple scattering is calculated
        "_chemical_absolute_configuration": _absolute_configuration(result, contract),
        "_refine_ls_abs_structure_details": _absolute_structure(contract),
        "_refine_ls.abs_structure_z-score": _z_score(contract),
        "_refine_ls_weighting_scheme": "calc",
        "_refine_ls_weighting_details": _weights(contract.get("error_model")),
        **_shifts(result),
        "_refine_ls.sample_thickness": _thickness(result),
        "_refine_ls.sample_shape_details": _SHAPE,
        **_map_items(contract.get("map_peaks")),
    }


_THEORY = """\
Bloch-wave intensities, integrated over the rotation and over a distribution of crystal
thicknesses, multiplied by a smooth scale. Atoms, crystal orientations, scale and thicknesses were
refined together."""
_SHAPE = "Mean of the refined distribution of thicknesses, over the whole rotation."


def _thickness(result: Result) -> str:
    """Return the mean thickness in nm, with its s.u. where the result holds that."""
    mean = float((result.thickness @ result.depth).mean())
    su = result.summary.get("thickness_su")
    return with_uncertainty(mean / 10, None if su is None else su / 10, digits=1)


def _weighted_r(problem: Problem, result: Result, chosen) -> str | None:
    """Return wR on intensities of the chosen reflections (R,) bool, with the final weights."""
    o = problem.observations
    weight = result.sigma_weight[chosen] ** -2
    observed, calculated = o.intensity[chosen], result.calculated[chosen]
    if not len(observed):
        return None
    misfit = weight * (observed - calculated).square()
    return f"{math.sqrt(misfit.sum() / (weight * observed.square()).sum()):.4f}"


def _absolute_configuration(result: Result, contract: dict) -> str:
    """Return the dictionary's code for how sure the hand of the atoms is.

    Groups with improper operations hold both hands of whatever is in them.
    """
    if not sgtbx.space_group(result.structure.hall_symbol).is_chiral():
        return "."
    verdict = (contract.get("absolute_structure") or {}).get("verdict") or ""
    return "dyn" if verdict.startswith("determined") else "unk"


def _absolute_structure(contract: dict) -> str | None:
    """The verdict and what it is by. The items for Flack's x are of anomalous scattering."""
    found = contract.get("absolute_structure") or {}
    if "verdict" not in found:
        return None
    how = "Dynamical refinement of both hands, Klar et al. (2023), doi:10.1038/s41557-023-01186-1."
    sentence = found["verdict"]
    return f"{sentence[0].upper()}{sentence[1:]}. {how if 'z_score' in found else ''}".strip()


def _z_score(contract: dict) -> str | None:
    """The z-score, or the dictionary's word for a structure that has none."""
    found = contract.get("absolute_structure") or {}
    if str(found.get("verdict")).startswith("not applicable"):
        return "."
    return f"{found['z_score']:.2f}" if "z_score" in found else None


def _weights(error_model: dict | None) -> str | None:
    """The weights in words; symbols as the dictionary writes them."""
    if not error_model:
        return None
    k, p, f = (float(error_model[name]) for name in ("k", "p", "freedom"))
    return (
        f"w=1/s^2^, s^2^=t^2^({f:g}+(I~o~-I~c~)^2^/t^2^)/{f + 1:g},\n"
        f"t^2^={k:.3f}^2^v+({p:.4f}I~c~)^2^ where v is \\s^2^(I) of the integration at I~c~"
    )


def _shifts(result: Result) -> dict:
    """Return shift/s.u. of the last step; of earlier versions a bound on that of the sites.

    The bound is the last step, in A, over the smallest s.u.
    """
    found = result.summary.get("shift_over_su")
    if found is not None:
        return {f"_refine_ls_shift/su_{kind}": f"{found[kind]:.3f}" for kind in ("max", "mean")}
    su = result.site_su[result.site_su > 0]
    if not len(su) or not result.history or "site_shift" not in result.history[-1]:
        return {"_refine_ls_shift/su_max": None}
    bound = float(result.history[-1]["site_shift"]) / float(su.min())
    return {"_refine_ls_shift/su_max_lt": f"{math.ceil(1000 * bound) / 1000:.3f}"}


def _map_items(peaks: dict | None) -> dict:
    """Extremes of the difference potential, in e/A as the dictionary has it."""
    names = {"max": "max", "min": "min", "rms": "RMS"}
    return {
        f"_refine_diff.potential_{name}": f"{peaks[key] / ELECTRON_PER_ANGSTROM:.4f}"
        for key, name in names.items()
        if peaks
    }


def audit_items() -> dict:
    """Return who wrote the file, and when."""
    program = f"dials_hybrid {__version__}"
    return {
        "_audit_creation_method": program,
        "_audit_creation_date": datetime.date.today().isoformat(),
        "_computing_structure_refinement": program,
    }


def dictionary_loop(names):
    """Return the loop of the dictionaries that define some of these names."""
    used = {
        dictionary: version
        for dictionary, (version, beginning) in DICTIONARIES.items()
        if any(name.startswith(beginning) for name in names)
    }
    data = {
        "_audit_conform_dict_name": list(used),
        "_audit_conform_dict_version": list(used.values()),
    }
    return iotbx.cif.model.loop(data=data)
