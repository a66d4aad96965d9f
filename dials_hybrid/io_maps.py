"""Maps of the electrostatic potential: coefficients, peaks and holes, CCP4 files.

The difference coefficients are what the data say of every structure factor (room `fourier`), with
phases of their own. Phases lean towards the model's: where much is missing, a peak lies off its
atom by up to about a tenth of the resolution.
"""

from __future__ import annotations

import itertools

import iotbx.ccp4_map
import numpy as np
import torch
from cctbx import maptbx, miller
from cctbx.array_family import flex

from .data import Fourier, Result
from .io_results import writing

VOLT = 47.87801  # V A^2, h^2 / (2 pi m_e e): potential of a unit of scattering length per volume
ELECTRON_PER_ANGSTROM = 14.399645  # V, e / (4 pi epsilon_0 A)
_GRID = 1 / 5  # of the resolution
_PEAKS = 8
_APART = 0.4  # A, nearer peaks are taken for one


def map_coefficients(symmetry, fourier: Fourier) -> dict:
    """Return merged complex coefficients in A by name.

    f_calc -- of the refined model with its charges and dipoles
    difference -- the change that the data ask for, see the room fourier. It leaves F alone on
        which the data hardly depend, so that peaks are lower than the atoms that are missing.
    sum -- f_calc and difference, the potential that the data ask for
    """
    unique, sums, count = _merged(
        symmetry, fourier.hkl, torch.stack([fourier.f_calc, fourier.change])
    )
    f_calc, change = sums / count
    named = {"f_calc": f_calc, "difference": change, "sum": f_calc + change}
    return {n: miller.array(unique, data=flex.complex_double(x.copy())) for n, x in named.items()}


def amplitude_su(symmetry, fourier: Fourier):
    """Return the s.u. of |F| in A that the data allow at best, as a merged miller array.

    One over the root of the curvature along F: what is left of an amplitude on which the
    intensities hardly depend. A derivative by the unique member is the sum of those by all
    equivalents.
    """
    rows = torch.cat([fourier.f_calc[None], fourier.gradient[1:]])
    unique, sums, _ = _merged(symmetry, fourier.hkl, rows)
    along = (sums[1:].conj() * np.exp(1j * np.angle(sums[0]))).real
    curvature = np.maximum((along**2).mean(0), 1e-30)
    return miller.array(unique, data=flex.double(curvature**-0.5))


def _merged(symmetry, hkl, values):
    """Return the unique set of hkl (M, 3), sums (K, U) of values (K, M), and how many (U,).

    Values are brought to the phase of the unique member. Absent reflections are left out.
    """
    every = miller.set(symmetry, flex.miller_index([tuple(h) for h in hkl.tolist()]), False)
    columns = []
    for row in values.numpy():
        moved = miller.array(every, data=flex.complex_double(row.copy())).map_to_asu()
        columns.append(moved.data().as_numpy_array())
    indices = np.array(moved.indices().as_vec3_double()).round().astype(int).reshape(-1, 3)
    unique, group, count = np.unique(indices, axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((len(columns), len(unique)), dtype=complex)
    for row, column in zip(sums, columns, strict=True):
        np.add.at(row, group.reshape(-1), column)
    members = miller.set(symmetry, flex.miller_index([tuple(h) for h in unique.tolist()]), False)
    present = ~members.sys_absent_flags().data()
    kept = present.as_numpy_array()
    return members.select(present), sums[:, kept], count[kept]


def potential_map(coefficients):
    """Return the cctbx fft_map of coefficients in A, in volt, on a grid that keeps symmetry."""
    fft_map = coefficients.fft_map(
        resolution_factor=_GRID, symmetry_flags=maptbx.use_space_group_symmetry
    )
    fft_map.apply_volume_scaling()
    return fft_map


def map_summary(xray_structure, result: Result) -> dict | None:
    """Return peaks, holes, extremes and r.m.s. (V) of the difference map; None without one.

    Each peak has `height` (V), `sigma` (height over r.m.s.), the nearest `atom` as the structure
    lists it, its `distance` (A), and the peak's `xyz` beside that atom.
    """
    if result.fourier is None:
        return None
    symmetry = xray_structure.crystal_symmetry()
    difference = map_coefficients(symmetry, result.fourier)["difference"]
    values = potential_map(difference).real_map_unpadded().as_numpy_array() * VOLT
    rms = float(values.std())
    return {
        "unit": "V",
        "rms": rms,
        "max": float(values.max()),
        "min": float(values.min()),
        "peaks": _peaks(xray_structure, difference, 1, rms),
        "holes": _peaks(xray_structure, difference, -1, rms),
    }


def _peaks(xray_structure, difference, sign: int, rms: float) -> list[dict]:
    """Return the highest peaks of a map, or of its negative, the highest first."""
    signed = difference.customized_copy(data=sign * difference.data())
    parameters = maptbx.peak_search_parameters(
        peak_search_level=1,
        interpolate=True,
        min_distance_sym_equiv=_APART,
        min_cross_distance=_APART,
        max_clusters=_PEAKS,
    )
    found = potential_map(signed).peak_search(parameters, verify_symmetry=False)
    found = found.all(max_clusters=_PEAKS)
    rows = []
    for xyz, height in zip(found.sites(), found.heights(), strict=True):
        if height <= 0:
            continue
        moved, atom, distance = beside_an_atom(xray_structure, xyz)
        rows.append(
            {
                "xyz": moved,
                "height": sign * height * VOLT,
                "sigma": sign * height * VOLT / rms,
                "atom": atom,
                "distance": distance,
            }
        )
    return rows


def beside_an_atom(xray_structure, xyz) -> tuple[list[float], str, float]:
    """Return a fractional site moved by symmetry next to the atom nearest to it.

    With it come that atom's label and the distance in A.
    """
    turn = np.array(xray_structure.unit_cell().orthogonalization_matrix()).reshape(3, 3)
    atoms = np.array(xray_structure.sites_frac()).reshape(-1, 3)
    images = np.array([op(xyz) for op in xray_structure.space_group()])
    # the nearest copy by lattice translations may be one over in an oblique cell
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    apart = images[:, None] - atoms
    apart = (apart - np.round(apart))[:, :, None] + shifts
    distance = np.linalg.norm(apart @ turn.T, axis=-1)
    image, atom, shift = np.unravel_index(distance.argmin(), distance.shape)
    moved = atoms[atom] + apart[image, atom, shift]
    return moved.tolist(), xray_structure.scatterers()[int(atom)].label, float(distance.min())


def write_map(path, xray_structure, result: Result) -> None:
    """Write the difference map over one cell, in volt, as a CCP4 file.

    Raises InputError when the file cannot be written.
    """
    symmetry = xray_structure.crystal_symmetry()
    difference = map_coefficients(symmetry, result.fourier)["difference"]
    fft_map = potential_map(difference)
    with writing(path) as temporary:
        iotbx.ccp4_map.write_ccp4_map(
            file_name=str(temporary),
            unit_cell=symmetry.unit_cell(),
            space_group=symmetry.space_group(),
            map_data=fft_map.real_map_unpadded() * VOLT,
            labels=flex.std_string(["dials_hybrid difference potential, V"]),
        )
