"""Rotation-integrated dynamical intensities of a crystal whose thickness has a distribution.

This is a second path to the numbers that `model` predicts, kept apart from it so that the two
can check each other. It diagonalises the structure matrix of every orientation sample in
double precision, and averages over the thickness in closed form: with the Bloch waves
psi_g(t) = sum_j C_gj conj(C_0j) exp(2 pi i x_j t) (C. J. Humphreys 1979,
doi:10.1088/0034-4885/42/11/002), the mean of |psi_g(t)|^2 over p(t) needs of p nothing but its
characteristic function at the differences x_j - x_k*. No depth grid and no propagation enter.
With absorption the x_j are complex and (C^-1)_j0 takes the place of conj(C_0j).

Lengths in A, reciprocal lengths in A^-1 without 2 pi, angles in rad. The surface normal is
taken along the beam; the factors 1 / sqrt(1 + g_n / K_n) of the matrix elements then differ
from one by less than 0.1 % for every beam that counts, and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from . import beams, crystal, electron
from .absorption import ELASTIC, Absorption, NoAbsorption
from .crystal import CrystalModel
from .data import Structure
from .records import InputError
from .true_thickness import ThicknessMixture

MAX_STEP = math.radians(0.02)  # rad, orientation samples stand at most this far apart
REAL = 1e-12  # part of the potential that may be imaginary by rounding, at a centre of inversion
FAINT = 1e-9  # amplitude in all beams of a Bloch wave that is left out, as rounding would


def smooth_curves(angle: np.ndarray, deviation: float, length: float, rng) -> np.ndarray:
    """Return three smooth random functions of the rotation angle, (n, 3).

    Each is a Gaussian process of standard deviation `deviation` and correlation length `length`
    (rad), made of random cosines (A. Rahimi & B. Recht 2007, "Random features for large-scale
    kernel machines", NIPS 20).
    """
    terms = 64
    frequency = rng.normal(size=(3, terms)) / length
    phase = rng.uniform(0, 2 * math.pi, size=(3, terms))
    waves = np.cos(np.asarray(angle)[:, None, None] * frequency + phase)
    return deviation * math.sqrt(2 / terms) * waves.sum(-1)


@dataclass(frozen=True)
class Rotation:
    """How the crystal is turned in the beam.

    `setting` takes rotation angles (n,) rad to matrices (n, 3, 3) A^-1, hkl to the laboratory
    frame; `s0` (3,) A^-1 is the incident beam; the scan runs from `start` to `end`, rad.
    """

    setting: Callable[[np.ndarray], np.ndarray]
    s0: np.ndarray
    start: float
    end: float


@dataclass(frozen=True)
class Windows:
    """What is to be integrated: R reflections and the rotation range of each, rad."""

    hkl: np.ndarray  # (R, 3) int
    start: np.ndarray  # (R,)
    end: np.ndarray  # (R,)


@dataclass(frozen=True)
class Accuracy:
    """Cut-offs. A beam counts where |g| <= g_max and |S_g| <= s_max (A^-1) in its block."""

    g_max: float = 2.0
    s_max: float = 0.06
    block_width: float = math.radians(0.5)
    step: float = MAX_STEP


@dataclass(frozen=True)
class Simulated:
    """Integrated intensity (R,) in rad and its centroid (R,) in rad, and the work done."""

    intensity: np.ndarray
    centroid: np.ndarray
    samples: int
    mean_beams: float


def coarsest_step(reach: float, g_max: float) -> float:
    """Return the largest useful angle between samples, rad, for crystals up to `reach` A thick.

    The fringes of a rocking curve are 1 / t apart in S_g, and S_g changes by up to g per rad: a
    sum over samples is an integral, without aliases, when they stand closer than 1 / (g t).
    """
    return 1 / (reach * g_max)


def simulate(
    structure: Structure,
    rotation: Rotation,
    windows: Windows,
    thickness: ThicknessMixture,
    accuracy: Accuracy,
    progress: Callable[[Iterable], Iterable] = iter,
    absorption: Absorption = ELASTIC,
) -> Simulated:
    """Integrate |psi_g|^2 over the rotation window of every reflection and over p(t).

    Raises InputError when beams lie beyond 2 A^-1, which the form factors do not cover.
    """
    potential = _Potential(structure, rotation.s0, windows.hkl, accuracy.g_max, absorption)
    total, moment = np.zeros(len(windows.start)), np.zeros(len(windows.start))
    count = max(1, math.ceil((rotation.end - rotation.start) / accuracy.block_width - 1e-9))
    edges = np.linspace(rotation.start, rotation.end, count + 1)
    samples = beams_seen = 0
    for low, high in progress(list(zip(edges[:-1], edges[1:], strict=True))):
        linked = np.flatnonzero((windows.start < high) & (windows.end > low))
        if len(linked) == 0:
            continue
        block = _Block(potential, rotation, windows.hkl[linked], (low, high), accuracy)
        for angle, half_width, excitation in block.samples():
            # the part of this sample's interval that lies in each window
            weight = np.minimum(windows.end[linked], angle + half_width)
            weight = weight - np.maximum(windows.start[linked], angle - half_width)
            inside = weight > 0
            if not inside.any():
                continue
            intensity = block.intensities(excitation, block.place[inside], thickness, angle)
            total[linked[inside]] += weight[inside] * intensity
            moment[linked[inside]] += weight[inside] * intensity * angle
            samples += 1
            beams_seen += len(excitation)
    middle = (windows.start + windows.end) / 2
    centroid = np.where(total > 0, moment / np.where(total > 0, total, 1), middle)
    return Simulated(total, centroid, samples, beams_seen / max(samples, 1))


class _Potential:
    """(U_g + iU'_g) / 2K (A^-1) of every lattice point that couples two beams, a dense table."""

    def __init__(self, structure: Structure, s0, hkl: np.ndarray, g_max: float, absorption):
        self.candidates = beams.lattice_points(structure, g_max).numpy()
        self.cell = structure.cell
        largest = np.abs(np.concatenate([self.candidates, hkl])).max(0)
        self.reach = 2 * largest.astype(int)
        index = np.stack(
            np.meshgrid(*(np.arange(-n, n + 1) for n in self.reach), indexing="ij"), -1
        )
        flat = torch.from_numpy(index.reshape(-1, 3))
        # beams end at 2 A^-1, so no coupling is longer than this
        needed = crystal.reciprocal_length_sq(structure.cell, flat) <= crystal.G_LIMIT**2
        f, absorbed = _structure_factors(structure, flat[needed], absorption, s0)
        self.absorbs = absorbed is not None
        vacuum = float(np.linalg.norm(s0))
        volume = crystal.cell_volume(structure.cell)
        to_u = electron.potential_factor(1 / vacuum, volume)
        f_zero = f[(flat[needed] == 0).all(1).numpy()][0].real
        self.wavenumber = math.sqrt(vacuum**2 + to_u * f_zero)
        table = np.zeros(len(flat), dtype=complex)
        optical = f + 1j * absorbed if self.absorbs else f
        table[needed.numpy()] = optical * to_u / (2 * self.wavenumber)
        if np.abs(table.imag).max() <= REAL * np.abs(table).max():
            table = table.real  # real matrices are diagonalised several times faster
        self.table = table.reshape(index.shape[:3])

    def matrix(self, hkl: np.ndarray) -> np.ndarray:
        """Return (U + iU')_(h-g) / 2K for rows g and columns h of beams (N, 3), (N, N).

        It is real where a crystal without absorption has its origin at a centre of inversion.

        h - g and not g - h: F(g) has the crystallographers' sign of the phase, while a wave
        that moves along +k is exp(+2 pi i k.r) here. U_0, which K has already, stays on the
        diagonal: it turns all waves by the same phase.
        """
        difference = hkl[None, :, :] - hkl[:, None, :] + self.reach
        return self.table[tuple(np.moveaxis(difference, -1, 0))]


def _structure_factors(structure: Structure, hkl, absorption: Absorption, s0: np.ndarray):
    """F and F' (None where nothing is absorbed) in A of hkl (M, 3)."""
    with torch.no_grad():
        model = CrystalModel(structure)
        if isinstance(absorption, NoAbsorption):
            return model(hkl).numpy(), None
        atoms, wavelength = model.atoms(), 1 / float(np.linalg.norm(s0))

        def both(some):
            elastic = model.of_atoms(some, atoms)
            absorbed = absorption.of_atoms(structure, some, atoms, elastic, wavelength)
            return torch.stack([elastic, absorbed], 1).sum(-1)

        return crystal.in_chunks(structure, hkl, both).T.numpy()


class _Block:
    """The beams of one short piece of the rotation; beam 0 is the incident one."""

    def __init__(self, potential: _Potential, rotation: Rotation, linked, limits, accuracy):
        low, high = limits
        count = max(1, math.ceil((high - low) / accuracy.step - 1e-9))
        self.half_width = (high - low) / (2 * count)
        self.angle = low + self.half_width * (2 * np.arange(count) + 1)
        self.setting = rotation.setting(self.angle)
        self.s0, self.wavenumber = rotation.s0, potential.wavenumber
        near = self._near_sphere(potential.candidates, accuracy.s_max)
        self.hkl, self.place = _with_linked(near, linked)
        _check_reach(potential.cell, self.hkl)
        self.potential, self.absorbs = potential.matrix(self.hkl), potential.absorbs

    def _excitation(self, hkl: np.ndarray, setting: np.ndarray) -> np.ndarray:
        """S_g = (K^2 - |K + g|^2) / 2K with K along s0, (T, M) A^-1."""
        wave = self.s0 / np.linalg.norm(self.s0) * self.wavenumber
        g = np.einsum("tij,mj->tmi", setting, hkl)
        return -(g @ wave + np.einsum("tmi,tmi->tm", g, g) / 2) / self.wavenumber

    def _near_sphere(self, candidates: np.ndarray, s_max: float) -> np.ndarray:
        # a block is so short that S_g is almost linear within it
        few = self._excitation(candidates, self.setting[[0, len(self.setting) // 2, -1]])
        crosses = (few.max(0) > 0) & (few.min(0) < 0)
        return candidates[crosses | (np.abs(few).min(0) <= s_max)]

    def samples(self):
        """Yield (rotation angle, half of the width it stands for, S_g of every beam)."""
        for angle, excitation in zip(
            self.angle, self._excitation(self.hkl, self.setting), strict=True
        ):
            yield angle, self.half_width, excitation

    def intensities(
        self, excitation: np.ndarray, beam: np.ndarray, thickness: ThicknessMixture, angle: float
    ) -> np.ndarray:
        """Return the mean of |psi_g(t)|^2 over p(t) for the beams asked for, (B,)."""
        matrix = self.potential + np.diag(excitation)
        if self.absorbs:
            values, vectors = np.linalg.eig(matrix)
            start = np.linalg.solve(vectors, np.eye(len(matrix))[0])
        else:
            values, vectors = np.linalg.eigh(matrix)
            start = vectors[0].conj()
        rows = vectors[beam]
        kept = np.abs(start) * np.abs(rows).max(0) > FAINT
        values, start, rows = values[kept], start[kept], rows[:, kept]
        mean_phase = thickness.characteristic(values[:, None] - values.conj()[None, :], angle)
        pairs = start[:, None] * start.conj()[None, :] * mean_phase
        return ((rows @ pairs) * rows.conj()).sum(1).real


def _with_linked(near: np.ndarray, linked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct beams, the incident one first, and the place of each linked one."""
    every = [(0, 0, 0), *map(tuple, linked), *map(tuple, near)]
    place = {hkl: index for index, hkl in enumerate(dict.fromkeys(every))}
    return np.array(list(place)), np.array([place[tuple(hkl)] for hkl in linked])


def _check_reach(cell, hkl: np.ndarray) -> None:
    longest = float(crystal.reciprocal_length_sq(cell, torch.from_numpy(hkl)).max()) ** 0.5
    if longest > beams.BEAM_LIMIT * (1 + 1e-9):
        raise InputError(
            f"d_min asks for beams at {longest:.2f} A^-1; the form factors serve beams up to "
            f"{beams.BEAM_LIMIT} A^-1, so set d_min to {1 / beams.BEAM_LIMIT} A or more"
        )


@dataclass(frozen=True)
class Counts:
    """Counts (R,): intensity after background subtraction, its variance, the background."""

    value: np.ndarray
    variance: np.ndarray
    background: np.ndarray


def count_electrons(expected: np.ndarray, background: float, area_ratio: float, rng=None) -> Counts:
    """Return Poisson counts of expected intensities (R,) over a background per reflection.

    As in DIALS's summation, the background under the peak is estimated from an area
    1 / area_ratio times as large, and the variance is that of both (A. G. W. Leslie 1999,
    doi:10.1107/S090744499900846X). Without `rng` the counts are the expected ones. No variance
    is below that of one count.
    """
    flat = np.full(len(expected), float(background))
    if rng is None:
        found, estimate = expected + flat, flat
    else:
        found = rng.poisson(expected + flat).astype(float)
        estimate = rng.poisson(flat / area_ratio) * area_ratio
    value = found - estimate
    variance = np.abs(value) + estimate * (1 + area_ratio)
    return Counts(value, np.maximum(variance, 1.0), estimate)
