"""Other ways from the structure matrix to intensities, written as well as their tools allow.

Each takes a `Case` and returns |psi_g|^2 (T, N, depths) of every orientation apart; what its
inputs ask for, autograd differentiates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dials_hybrid import electron
from dials_hybrid.propagation import DepthGrid

try:
    from abtem.bloch.dynamical import calculate_dynamical_scattering
except ImportError:
    calculate_dynamical_scattering = None


def _matrices(potential: Tensor, excitation: Tensor) -> Tensor:
    """M (T, N, N) = diag(S) + V from V (1, N, N) and S (1, N, T)."""
    return torch.diag_embed(excitation[0].T.to(potential.dtype)) + potential


def _square(waves: Tensor) -> Tensor:
    return torch.view_as_real(waves).square().sum(-1)


def eigh(potential, excitation, grid) -> Tensor:
    """Bloch waves: one diagonalisation per orientation gives every depth."""
    values, vectors = torch.linalg.eigh(_matrices(potential, excitation))
    depth = grid.depths(dtype=values.dtype)
    phase = torch.polar(torch.ones(()).to(values), 2 * math.pi * values[..., None] * depth)
    return _square(vectors.to(phase.dtype) @ (phase * vectors[:, 0, :, None].conj()))


def matrix_exp(potential, excitation, grid) -> Tensor:
    """One exponential per orientation, for the distance between depths, applied repeatedly."""
    step = torch.linalg.matrix_exp(2j * math.pi * grid.step * _matrices(potential, excitation))
    waves = [step[:, :, :1]]
    while len(waves) < grid.count:
        waves.append(torch.bmm(step, waves[-1]))
    return _square(torch.cat(waves, 2))


def matrix_exp_one_depth(potential, excitation, grid) -> Tensor:
    """One exponential per orientation, for the last depth alone."""
    depth = grid.step * grid.count
    waves = torch.linalg.matrix_exp(2j * math.pi * depth * _matrices(potential, excitation))
    return _square(waves[:, :, :1])


def abtem(potential, excitation, grid) -> Tensor:
    """abTEM's Bloch solver (NumPy, every depth, no gradient), given the same matrices."""
    hkl = np.zeros((excitation.shape[1], 3), dtype=int)
    hkl[:, 0] = np.arange(len(hkl))  # all it asks of them is which one is the incident beam
    depths = grid.depths(dtype=torch.float64).numpy()
    cell, voltage = np.eye(3), 200e3
    matrices = (2 / electron.wavelength(voltage) * _matrices(potential, excitation)).numpy()
    waves = [
        calculate_dynamical_scattering(m, hkl, cell, voltage, depths, use_wave_eq=True)
        for m in matrices
    ]
    return torch.from_numpy(np.abs(np.stack(waves)).transpose(0, 2, 1) ** 2)


def value_and_gradient(potential: Tensor, excitation: Tensor, intensities: Callable) -> tuple:
    """Return the gradients of the sum of squares of the intensities."""
    inputs = potential.detach().requires_grad_(), excitation.detach().requires_grad_()
    return torch.autograd.grad(intensities(*inputs).square().sum(), inputs)


def reference_intensities(case) -> Tensor:
    """Return the exact intensities (T, N) at the last depth, in double precision."""
    last = DepthGrid(case.grid.step * case.grid.count, 1)
    parts = case.excitation.split(1, dim=2)
    return torch.cat([eigh(case.potential, s, last)[..., 0] for s in parts])
