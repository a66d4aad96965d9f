"""CIF items beside the atoms: chemistry, measurement, refinement and reflections.

Names are those of the core dictionary (2.4.5) and, with a dot, of the electron diffraction
dictionary cif_ed.dic (1.0.0, https://github.com/COMCIFS/cif_ed). None stands for unknown.
"""

from __future__ import annotations

import datetime
import math
from functools import reduce

import iotbx.cif.model
from cctbx.array_family import flex
from cctbx.eltbx import tiny_pse

from . import __version__, electron
from .data import Problem, Result
from .io_cif_reflections import DETAILS as REFLECTIONS
from .io_constraints import hydrogen_treatment
from .io_maps import ELECTRON_PER_ANGSTROM

DICTIONARIES = (("cif_core.dic", "2.4.5"), ("cif_ed.dic", "1.0.0"))
_DALTON_PER_CUBIC_ANGSTROM = 1.66053907  # g cm^-3


def chemistry_items(neutral_structure, problem: Problem) -> dict:
    """Return formula, weight, Z, density and F(000), in A, of a structure of neutral atoms.

    Z is what the structure's file said, or the largest number that leaves whole atoms.
    """
    content = dict(neutral_structure.unit_cell_content())
    z = formula_units(content, problem.provenance.get("formula_units"))
    mass = sum(n * tiny_pse.table(element).weight() for element, n in content.items())
    volume = neutral_structure.unit_cell().volume()
    registry = neutral_structure.scattering_type_registry()
    f_zero = sum(n * registry.gaussian(element).at_stol(0) for element, n in content.items())
    return {
        "_chemical_formula_sum": formula({e: n / z for e, n in content.items()}),
        "_chemical_formula_weight": f"{mass / z:.2f}",
        "_cell_formula_units_Z": z,
        "_exptl_crystal_density_diffrn": f"{_DALTON_PER_CUBIC_ANGSTROM * mass / volume:.3f}",
        "_exptl_crystal_F_000": f"{f_zero:.2f}",
    }


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


def measurement_items(refined, problem: Problem) -> dict:
    """Return radiation, instrument, temperature and extent of the data."""
    wavelength = problem.scan.wavelength
    hkl = problem.observations.hkl.cpu().numpy()
    d = refined.unit_cell().d(flex.miller_index([tuple(h) for h in hkl.tolist()]))
    theta = [f"{math.degrees(math.asin(wavelength / (2 * x))):.3f}" for x in (max(d), min(d))]
    provenance = problem.provenance
    temperature = provenance.get("temperature")
    items = {
        "_cell_measurement_temperature": temperature,
        "_diffrn_ambient_temperature": temperature,
        "_computing_data_reduction": _reduced_by(provenance),
        "_diffrn_source": "transmission electron microscope",
        "_diffrn_source_voltage": f"{electron.voltage(wavelength) / 1000:.1f}",
        "_diffrn_radiation_type": "electron",
        "_diffrn_radiation_probe": "electron",
        "_diffrn_radiation_wavelength": f"{wavelength:.6f}",
        "_diffrn_reflns_number": len(hkl),
        "_diffrn_reflns_theta_min": theta[0],
        "_diffrn_reflns_theta_max": theta[1],
        "_reflns_d_resolution_high": f"{min(d):.3f}",
        "_reflns_d_resolution_low": f"{max(d):.3f}",
    }
    for i, axis in enumerate("hkl"):
        for limit, value in (("min", hkl[:, i].min()), ("max", hkl[:, i].max())):
            items[f"_diffrn_reflns_limit_{axis}_{limit}"] = int(value)
    return items | _instrument_items(provenance.get("measurement"))


def _reduced_by(provenance: dict) -> str | None:
    """Return the program that integrated; its version is not that of the one which refines."""
    unversioned = "DIALS" if provenance.get("dials_version") else None
    return provenance.get("integrated_by", unversioned)


def _instrument_items(measured: dict | None) -> dict:
    """What the .expt files tell; nothing of PETS2 data."""
    if not measured:
        return {}
    sweeps = measured["sweeps"]
    scans = "; ".join(f"{s['start']:g} to {s['end']:g} in {s['width']:g} degree" for s in sweeps)
    first = sweeps[0]
    return {
        "_diffrn_measurement_device": "transmission electron microscope",
        "_diffrn_measurement_method": "continuous-rotation 3D electron diffraction",
        "_diffrn_measurement_details": f"Rotation {scans} per frame.",
        "_diffrn_measurement.rotation_mode": "rotation",
        "_diffrn_detector_type": first["detector"],
        "_diffrn_detector_area_resol_mean": f"{1 / first['pixel'][0]:.3f}",
        "_diffrn_detector.distance_sample": f"{first['distance']:.2f}",
    }


def refinement_items(problem: Problem, result: Result, contract: dict) -> dict:
    """Return the agreement, the weights, the last shifts, the model and the difference map."""
    final = contract.get("final") or {}
    o = problem.observations
    thickness = float((result.thickness @ result.depth).mean())

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
        "_refine_ls_goodness_of_fit_ref": factor("gof"),
        "_refine_ls_abs_structure_details": _absolute_structure(contract),
        "_refine_ls.abs_structure_z-score": _z_score(contract),
        "_refine_ls_weighting_scheme": "calc",
        "_refine_ls_weighting_details": _weights(contract.get("error_model")),
        "_refine_ls_shift/su_max_lt": _largest_shift(result),
        "_refine_ls.sample_thickness": f"{thickness / 10:.1f}",
        "_refine_ls.sample_shape_details": _SHAPE,
        **_map_items(contract.get("map_peaks")),
    }


_THEORY = """\
Bloch-wave intensities, integrated over the rotation and over a distribution of crystal
thicknesses, multiplied by a smooth scale. Atoms, crystal orientations, scale and thicknesses were
refined together."""
_SHAPE = "Mean of the refined distribution of thicknesses, over the whole rotation."


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
        f"t^2^=({k:.3f}\\s(I))^2^+({p:.4f}P)^2^ where P=(max(I~o~,0)+2I~c~)/3"
    )


def _largest_shift(result: Result) -> str | None:
    """A bound on shift/s.u. of the sites: the last step, in A, over the smallest s.u."""
    su = result.site_su[result.site_su > 0]
    if not len(su) or not result.history or "site_shift" not in result.history[-1]:
        return None
    bound = float(result.history[-1]["site_shift"]) / float(su.min())
    return f"{math.ceil(1000 * bound) / 1000:.3f}"


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


def dictionary_loop():
    """Return the loop of the dictionaries that define the names."""
    names, versions = zip(*DICTIONARIES, strict=True)
    data = {"_audit_conform_dict_name": names, "_audit_conform_dict_version": versions}
    return iotbx.cif.model.loop(data={key: list(column) for key, column in data.items()})
