"""The refined structure as CIF, and reflections as cctbx miller arrays and MTZ."""

from __future__ import annotations

import re
from pathlib import Path

import iotbx.cif.model
import iotbx.mtz
import numpy as np
from cctbx import adptbx, miller
from cctbx.array_family import flex

from . import __version__, io_cif_items
from .data import Problem, Result
from .io_bonds import cell_covariance, volume_su
from .io_cctbx import update_xray_structure, with_uncertainty, write_cell
from .io_cif_atoms import atom_flags
from .io_cif_loops import add_geometry, add_restraints
from .io_cif_measurement import measurement_items
from .io_cif_reflections import reflection_loops
from .io_disorder import KEY, cif_columns
from .io_elements import ELECTRON_TABLE, neutral
from .io_maps import amplitude_su, map_coefficients
from .io_measurement import cell_su
from .io_results import writing

_FORM_FACTORS = "electrons, Peng et al. (1996), doi:10.1107/S0108767395014371"

# --- CIF ------------------------------------------------------------------------------------


def write_cif(path, xray_structure, problem: Problem, result: Result, contract: dict) -> None:
    """Write the refined structure with standard uncertainties and agreement factors.

    `contract` is the JSON summary. Raises InputError when the file cannot be written.
    """
    refined = update_xray_structure(xray_structure, result.structure)
    block = _neutral(refined).as_cif_block(format="coreCIF")
    for key in [key for key in block.keys() if key.startswith("_symmetry_")]:
        del block[key]  # superseded by those of _space_group_, which SHELXL writes alone
    write_cell(block, refined.crystal_symmetry(), digits=5)
    _add_cell_uncertainties(block, refined, problem)
    _add_atoms(block, refined, problem, result)
    _add_anisotropic_uncertainties(block, refined, result)
    _set_atom_types(block, refined)
    if parts := problem.provenance.get(KEY):
        for name, column in cif_columns(tuple(parts)).items():
            block.get_loop("_atom_site")[name] = flex.std_string(column)
    items = {
        **io_cif_items.audit_items(),
        **io_cif_items.chemistry_items(refined, problem),
        **measurement_items(refined, problem),
        **io_cif_items.refinement_items(problem, result, contract),
    }
    for key, value in items.items():
        block[key] = "?" if value is None else str(value)
    add_restraints(block, refined, problem.restraints, contract.get("restraints") or {})
    add_geometry(block, contract)
    for loop in reflection_loops(problem, result):
        block.add_loop(loop)
    block.add_loop(io_cif_items.dictionary_loop(list(block.keys())))
    model = iotbx.cif.model.cif()
    model[re.sub(r"\W+", "_", Path(path).stem) or "refined"] = block
    with writing(path) as temporary:
        temporary.write_text(f"{model}\n", encoding="utf-8")


def _add_cell_uncertainties(block, refined, problem: Problem) -> None:
    """Rewrite the cell with the s.u. that the experiments tell, where symmetry leaves it free."""
    su, cell = cell_su(problem), refined.unit_cell()
    if su is None:
        return
    names = [f"_cell_{x}" for x in ("length_a", "length_b", "length_c")]
    names += [f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma")]
    for name, value, of_it in zip(names, cell.parameters(), su, strict=True):
        if of_it > 0:
            block[name] = with_uncertainty(value, of_it)
    of_volume = volume_su(refined, cell_covariance(refined, su))
    block["_cell_volume"] = with_uncertainty(cell.volume(), of_volume, digits=5)


def _add_atoms(block, refined, problem: Problem, result: Result) -> None:
    """Write the atom loop in the standard notation, 0.4705(3), with how it was refined.

    What rides has no s.u. of its own, by the custom of SHELXL.
    """
    loop = block.get_loop("_atom_site")
    cell = refined.unit_cell()
    site_su = result.site_su.detach().cpu().numpy() / np.array(cell.parameters()[:3])
    u_su = result.u_su.detach().cpu().numpy()
    site_rides, u_rides = _riding(result)
    site_su, u_su = np.where(site_rides[:, None], np.nan, site_su), np.where(u_rides, np.nan, u_su)
    atoms = refined.scatterers()
    for axis, name in enumerate(("x", "y", "z")):
        values = [with_uncertainty(a.site[axis], site_su[i, axis]) for i, a in enumerate(atoms)]
        loop[f"_atom_site_fract_{name}"] = flex.std_string(values)
    u = [with_uncertainty(a.u_iso_or_equiv(cell), u_su[i]) for i, a in enumerate(atoms)]
    loop["_atom_site_U_iso_or_equiv"] = flex.std_string(u)
    if result.occ_su is not None:
        pairs = zip(atoms, result.occ_su.tolist(), strict=True)
        occ = [with_uncertainty(a.occupancy, su) for a, su in pairs]
        loop["_atom_site_occupancy"] = flex.std_string(occ)
    order = refined.space_group().order_z()
    orders = [str(order // a.multiplicity()) for a in atoms]
    loop["_atom_site_site_symmetry_order"] = flex.std_string(orders)
    for name, values in atom_flags(result.structure, problem.restraints).items():
        loop[name] = flex.std_string(values)


def _riding(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each atom's site, and whether its U, follows another atom's."""
    freedom, atoms = result.structure.freedom, len(result.structure.labels)
    parents = (None, None) if freedom is None else (freedom.parent, freedom.u_parent)
    # files of earlier versions do not tell all
    site, u = (np.full(atoms, -1) if p is None else p.cpu().numpy() for p in parents)
    return site >= 0, u >= 0


def _add_anisotropic_uncertainties(block, refined, result: Result) -> None:
    """Rewrite U_ij of the loop of anisotropic atoms in the standard notation."""
    loop = block.get_loop("_atom_site_aniso")
    if loop is None or result.u_aniso_su is None:
        return
    cell = refined.unit_cell()
    atoms = [(i, a) for i, a in enumerate(refined.scatterers()) if a.flags.use_u_aniso()]
    for j, name in enumerate(("11", "22", "33", "12", "13", "23")):
        values = [
            with_uncertainty(
                adptbx.u_star_as_u_cif(cell, a.u_star)[j], float(result.u_aniso_su[i, j])
            )
            for i, a in atoms
        ]
        loop[f"_atom_site_aniso_U_{name}"] = flex.std_string(values)


def _set_atom_types(block, refined) -> None:
    """Name the atom types as the input did, and where their form factors are from."""
    symbols = [a.scattering_type for a in refined.scatterers()]
    block.get_loop("_atom_site")["_atom_site_type_symbol"] = flex.std_string(symbols)
    types = sorted(set(symbols))
    if block.get_loop("_atom_type") is not None:
        del block["_atom_type"]
    columns = {"_atom_type_symbol": types, "_atom_type_scat_source": [_FORM_FACTORS] * len(types)}
    block.add_loop(iotbx.cif.model.loop(data=columns))


# --- miller arrays and MTZ ------------------------------------------------------------------


def _indices(problem: Problem):
    return flex.miller_index([tuple(h) for h in problem.observations.hkl.tolist()])


def miller_arrays(xray_structure, problem: Problem, result: Result) -> dict:
    """Return the reflections of a refinement as miller arrays, by name.

    observed, calculated -- unmerged intensities, as indexed and integrated; their order is that
        of the observations
    observed_merged, calculated_merged -- their means over symmetry equivalents, with the same
        weights 1 / sigma^2 of the error model, so that they can be compared
    corrected -- merged kinematical amplitudes |F| with s.u., absolute scale: |Fc| times the
        square root of sum w Io Ic / sum w Ic^2, Ic the dynamical intensity with its scale. For
        one reflection that is sqrt(Io) |Fc| / sqrt(Ic). What nuisance terms add to Ic is taken off
        both. The s.u. is at least what the curvature of the data by |F| allows: other beams may
        have more to do with Io than this one.
    f_calc -- complex kinematical structure factors, electron form factors, in A, with the
        charges and dipoles of the model, so that they are no feature of a difference
    free -- merged flags, True where none of the observations was refined against
    difference, sum -- coefficients of maps, see `io_maps.map_coefficients`; not there if the
        result is of an earlier version and has none
    """
    refined = update_xray_structure(xray_structure, result.structure)
    symmetry = refined.crystal_symmetry()
    every = miller.set(symmetry, _indices(problem), anomalous_flag=True)
    observed, calculated, sigma = (
        x.detach().cpu().numpy().astype(float)
        for x in (problem.observations.intensity, result.calculated, result.sigma_weight)
    )
    own_sigma = flex.double(problem.observations.sigma.cpu().numpy().astype(float))
    unique, group = _symmetry_groups(symmetry, every)

    def total(values):
        return np.bincount(group, weights=values / sigma**2, minlength=unique.size())

    weight = total(np.ones_like(observed))
    arrays = {
        "observed": _intensities(every, observed, own_sigma),
        "calculated": _intensities(every, calculated),
        "observed_merged": _intensities(
            unique, total(observed) / weight, flex.double(1 / np.sqrt(weight))
        ),
        "calculated_merged": _intensities(unique, total(calculated) / weight),
    }
    work = np.bincount(group, weights=~problem.observations.free.cpu().numpy())
    arrays["free"] = miller.array(unique, data=flex.bool((work == 0).tolist()))
    measured, diffracted = (
        x.detach().cpu().numpy().astype(float)
        for x in result.proportional(problem.observations.intensity.to(result.calculated))
    )
    present = flex.bool(total(diffracted**2) > 0) & ~unique.sys_absent_flags().data()
    kept = np.flatnonzero(present.as_numpy_array())
    f_calc = kinematic_structure_factors(refined, unique.select(present))
    least = np.zeros(f_calc.size())
    if result.fourier is not None:
        maps = map_coefficients(symmetry, result.fourier)
        f_calc = maps.pop("f_calc").common_set(f_calc)
        least = amplitude_su(symmetry, result.fourier).common_set(f_calc).data().as_numpy_array()
        arrays |= maps
    power = np.abs(f_calc.data().as_numpy_array()) ** 2
    norm = total(diffracted**2)[kept]
    intensity = power * total(measured * diffracted)[kept] / norm
    arrays["corrected"] = _amplitudes(f_calc, intensity, power / np.sqrt(norm), least)
    arrays["f_calc"] = f_calc
    return arrays


def _symmetry_groups(symmetry, every):
    """Return the unique set, Friedel mates taken as equal, and the member of each index."""
    asu = every.customized_copy(anomalous_flag=False).map_to_asu().indices()
    hkl = np.array(asu.as_vec3_double().as_numpy_array()).round().astype(int).reshape(-1, 3)
    unique, group = np.unique(hkl, axis=0, return_inverse=True)
    indices = flex.miller_index([tuple(h) for h in unique.tolist()])
    return miller.set(symmetry, indices, anomalous_flag=False), group.reshape(-1)


def _intensities(miller_set, values, sigmas=None):
    array = miller.array(miller_set, data=flex.double(values), sigmas=sigmas)
    return array.set_observation_type_xray_intensity()


def _amplitudes(miller_set, intensity, sigma, least):
    """Return |F| = sqrt(I) with s.u. sigma_I / (F + sqrt(I + sigma_I)), finite for I = 0.

    The s.u. is not below `least`.
    """
    intensity = np.maximum(intensity, 0)
    amplitude = np.sqrt(intensity)
    su = np.maximum(sigma / (amplitude + np.sqrt(intensity + sigma)), least)
    array = miller.array(miller_set, data=flex.double(amplitude), sigmas=flex.double(su))
    return array.set_observation_type_xray_amplitude()


def kinematic_structure_factors(xray_structure, miller_set):
    """Return F_calc in A with the electron form factors of neutral atoms."""
    structure = _neutral(xray_structure)
    return miller_set.structure_factors_from_scatterers(structure, algorithm="direct").f_calc()


def _neutral(xray_structure):
    """Return a copy with neutral atoms and the electron form factors."""
    copy = xray_structure.deep_copy_scatterers()
    for scatterer in copy.scatterers():
        scatterer.scattering_type = neutral(scatterer.scattering_type)
    copy.scattering_type_registry(table=ELECTRON_TABLE)
    return copy


class _Labels(iotbx.mtz.label_decorator):
    """The labels SIGI and PHIC, which other programs look for."""

    def sigmas(self, root_label, anomalous_sign=None):
        return "SIGI" if root_label == "I-obs" else super().sigmas(root_label, anomalous_sign)

    def phases(self, root_label, anomalous_sign=None):
        return "PHIC" if root_label == "FC" else f"PH{root_label}"


def write_mtz(path, xray_structure, problem: Problem, result: Result) -> None:
    """Write merged intensities, kinematically corrected amplitudes and F_calc.

    Columns I-obs SIGI I-calc FOBS_corr SIGFOBS_corr FC PHIC; 2FOFCWT PH2FOFCWT FOFCWT PHFOFCWT, by
    which Coot and Phenix know maps; and, if some are free, FreeR_flag with the convention of CCP4,
    0 for free and 1 for the others (Phenix takes the value that is rarer). See `miller_arrays`.
    Raises InputError when the file cannot be written.
    """
    arrays = miller_arrays(xray_structure, problem, result)
    free = arrays["free"]
    flags = free.customized_copy(data=(~free.data()).as_int())
    columns = {
        "I-obs": arrays["observed_merged"],
        "I-calc": arrays["calculated_merged"],
        "FOBS_corr": arrays["corrected"],
        "FC": arrays["f_calc"],
        "2FOFCWT": arrays.get("sum"),
        "FOFCWT": arrays.get("difference"),
        "FreeR_flag": flags if free.data().count(True) else None,
    }
    labels = _Labels()
    dataset = None
    for name, array in columns.items():
        if array is None:
            continue
        if dataset is None:
            dataset = array.as_mtz_dataset(
                column_root_label=name,
                label_decorator=labels,
                title=f"dials_hybrid {__version__}",
                wavelength=problem.scan.wavelength,
            )
        else:
            dataset.add_miller_array(array, column_root_label=name, label_decorator=labels)
    with writing(path) as temporary:
        dataset.mtz_object().write(file_name=str(temporary))
