"""CIF items of the measurement: radiation, instrument, cell, extent and completeness of the data.

There is no merging R factor: equivalents are not averaged, and multiple scattering makes them
differ.
"""

from __future__ import annotations

import math

from cctbx import miller
from cctbx.array_family import flex

from . import electron
from .data import Problem

FULL_RESOLUTION = 0.6  # A^-1, sin(theta) / lambda to which IUCr journals want data to be complete
_METHOD = "continuous-rotation 3D electron diffraction"
_PRECESSION = "precession-assisted 3D electron diffraction"
_MICROSCOPE = "transmission electron microscope"


def measurement_items(refined, problem: Problem) -> dict:
    """Return radiation, instrument, temperature, extent and completeness of the data.

    `refined` is the cctbx structure, for its cell and space group.
    """
    wavelength = problem.scan.wavelength
    o = problem.observations
    hkl = o.hkl.cpu().numpy()
    d = refined.unit_cell().d(_indices(problem))
    intensity, sigma = (x.cpu().numpy() for x in (o.intensity, o.sigma))
    provenance = problem.provenance
    temperature = provenance.get("temperature")
    reduced_by = _reduced_by(provenance)
    items = {
        "_cell_measurement_temperature": temperature,
        "_diffrn_ambient_temperature": temperature,
        "_computing_cell_refinement": reduced_by,
        "_computing_data_reduction": reduced_by,
        "_diffrn_source": _MICROSCOPE,
        "_diffrn_source_voltage": f"{electron.voltage(wavelength) / 1000:.1f}",
        "_diffrn_radiation_type": "electron",
        "_diffrn_radiation_probe": "electron",
        "_diffrn_radiation_wavelength": f"{wavelength:.6f}",
        "_diffrn_reflns_number": len(hkl),
        "_diffrn_reflns_theta_min": theta(wavelength, max(d)),
        "_diffrn_reflns_theta_max": theta(wavelength, min(d)),
        **_completeness(refined, problem, min(d)),
        "_diffrn_reflns_av_unetI/netI": f"{sigma.sum() / abs(intensity).sum():.4f}",
        "_reflns_d_resolution_high": f"{min(d):.3f}",
        "_reflns_d_resolution_low": f"{max(d):.3f}",
    }
    for i, axis in enumerate("hkl"):
        for limit, value in (("min", hkl[:, i].min()), ("max", hkl[:, i].max())):
            items[f"_diffrn_reflns_limit_{axis}_{limit}"] = int(value)
    measured = provenance.get("measurement") or {}
    return (
        items
        | _rotation_items(measured)
        | _detector_items(measured)
        | _crystal_items(measured)
        | _cell_items(measured, wavelength)
    )


def theta(wavelength: float, d: float) -> str:
    """Return the Bragg angle in degree of a spacing in A."""
    return f"{math.degrees(math.asin(wavelength / (2 * d))):.3f}"


def _indices(problem: Problem):
    return flex.miller_index([tuple(h) for h in problem.observations.hkl.tolist()])


def _completeness(refined, problem: Problem, d_min: float) -> dict:
    """Return the fractions of unique reflections, Friedel mates taken as one, that are there.

    Full is where data should be complete, or the resolution if that is lower.
    """
    symmetry = refined.crystal_symmetry()
    found = miller.set(symmetry, _indices(problem), anomalous_flag=False)
    found = found.map_to_asu().unique_under_symmetry()

    def fraction(limit: float) -> str:
        limit *= 1 - 1e-6  # the last reflection is one of them
        every = miller.build_set(symmetry, anomalous_flag=False, d_min=limit)
        return f"{found.common_set(every).size() / max(every.size(), 1):.4f}"

    full = max(d_min, 1 / (2 * FULL_RESOLUTION))
    return {
        "_diffrn_reflns_theta_full": theta(problem.scan.wavelength, full),
        "_diffrn_measured_fraction_theta_max": fraction(d_min),
        "_diffrn_measured_fraction_theta_full": fraction(full),
    }


def _reduced_by(provenance: dict) -> str | None:
    """Return the program that integrated; its version is not that of the one which refines."""
    unversioned = "DIALS" if provenance.get("dials_version") else None
    return provenance.get("integrated_by", unversioned)


def _rotation_items(measured: dict) -> dict:
    """How the crystal was turned; nothing where the files do not say it."""
    sweeps, frames = measured.get("sweeps") or [], measured.get("frames") or []
    if sweeps:
        scans = (f"{s['start']:g} to {s['end']:g} in {s['width']:g} degree" for s in sweeps)
        details = f"Rotation {'; '.join(scans)} per frame."
    elif frames and all(f["rotation"] for f in frames):
        scans = (
            f"{f['number']} of {f['width']:.2f} degree from {f['start']:.2f} to {f['end']:.2f}"
            for f in frames
        )
        details = f"Virtual frames of a rotation, {'; '.join(scans)}."
    elif frames and all(f.get("precession") for f in frames):
        return _precession_items(frames)
    else:
        return {}
    return {
        "_diffrn_measurement_device": _MICROSCOPE,
        "_diffrn_measurement_method": _METHOD,
        "_diffrn_measurement_details": details,
        "_diffrn_measurement.rotation_mode": "rotation",
        "_diffrn_measurement.method_precession": "no",
    }


def _precession_items(frames: list[dict]) -> dict:
    """What the files say of frames of precession."""
    scans = (
        f"{f['number']} of {f['precession']:.2f} degree, tilts from "
        f"{f['start'] + f['precession']:.2f} to {f['end'] - f['precession']:.2f}"
        for f in frames
    )
    return {
        "_diffrn_measurement_device": _MICROSCOPE,
        "_diffrn_measurement_method": _PRECESSION,
        "_diffrn_measurement_details": f"Frames of precession, {'; '.join(scans)}.",
        "_diffrn_measurement.method_precession": "yes",
        "_diffrn.precession_semi_angle": f"{frames[0]['precession']:.3f}",
    }


def _detector_items(measured: dict) -> dict:
    """The detector of the first sweep, which the .expt files tell."""
    sweeps = measured.get("sweeps")
    if not sweeps:
        return {}
    first = sweeps[0]
    pixel = first["pixel"]
    items = {
        "_diffrn_detector": "area detector",
        "_diffrn_detector_type": first["detector"],
        "_diffrn_detector_area_resol_mean": f"{1 / pixel[0]:.3f}",
        "_diffrn_detector.distance_sample": f"{first['distance']:.2f}",
    }
    if "image_size" in first:  # not in problems of earlier versions
        panels = "" if first["panels"] == 1 else f"{first['panels']} panels of "
        size, edge = (" x ".join(f"{x:g}" for x in pair) for pair in (first["image_size"], pixel))
        items["_diffrn_detector_details"] = f"{panels}{size} pixels of {edge} mm"
    return items


def _crystal_items(measured: dict) -> dict:
    """The mosaicity, where the profile model of the integration tells one."""
    if not measured.get("mosaicity"):
        return {}
    return {
        "_exptl_crystal.mosaicity": f"{measured['mosaicity']:.3f}",
        "_exptl_crystal.mosaic_method": measured["mosaic_method"],
    }


def _cell_items(measured: dict, wavelength: float) -> dict:
    """The reflections that the cell is from."""
    used = measured.get("cell_reflections")
    if not used:
        return {}
    return {
        "_cell_measurement_reflns_used": used["number"],
        "_cell_measurement_theta_min": theta(wavelength, used["d_max"]),
        "_cell_measurement_theta_max": theta(wavelength, used["d_min"]),
    }
