"""Slow, exact propagation, one diagonalisation or exponential per orientation sample.

These are the references that tests and the run-time check compare with; gradients come from
autograd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import DepthGrid, Probe, start_waves


def _matrices(potential: Tensor, excitation: Tensor) -> Tensor:
    """Return M (F, T, N, N) = diag(S) + V of every sample."""
    diagonal = torch.diag_embed(excitation.transpose(1, 2).to(potential.dtype))
    return diagonal + potential[:, None]


def _require_hermitian(potential: Tensor) -> None:
    """Raise ValueError for a potential that absorbs."""
    size, skew = potential.abs().amax(), (potential - potential.mH).abs().amax()
    if skew > 1e-5 * size:
        raise ValueError(
            "Eigen needs a Hermitian potential; take Splitting or MatrixExp with absorption"
        )


def _weighted(amplitude: Tensor, probe: Probe) -> Tensor:
    """Sum weight |psi|^2 over the samples: amplitude (F, T, N) -> (F, B)."""
    index = probe.beam[:, None].expand(-1, amplitude.shape[1], -1)
    picked = torch.gather(amplitude, 2, index)
    intensity = picked.real.square() + picked.imag.square()
    return torch.einsum("ftb,fbt->fb", intensity, probe.weight.to(intensity.dtype))


@dataclass(frozen=True)
class Eigen:
    """Bloch waves: M = C diag(x) C^H (Humphreys 1979, doi:10.1088/0034-4885/42/11/002).

    Exact at every depth. The autograd gradient divides by differences of eigenvalues and is
    not finite where they coincide. Raises ValueError unless the potential is Hermitian.
    """

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""
        _require_hermitian(potential)
        values, vectors = torch.linalg.eigh(_matrices(potential, excitation))
        index = probe.incident[:, None, None, None].expand(*vectors.shape[:2], 1, vectors.shape[3])
        start = torch.gather(vectors, 2, index)[:, :, 0].conj()
        out = []
        for depth in grid.depths(dtype=values.dtype, device=values.device):
            phase = torch.polar(torch.ones_like(values), 2 * math.pi * depth * values)
            amplitude = torch.einsum("ftgj,ftj->ftg", vectors, phase * start)
            out.append(_weighted(amplitude, probe))
        return torch.stack(out, -1)


@dataclass(frozen=True)
class MatrixExp:
    """psi(z + step) = exp(2 pi i step M) psi(z), by torch.linalg.matrix_exp."""

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""
        step = torch.linalg.matrix_exp(2j * math.pi * grid.step * _matrices(potential, excitation))
        waves = start_waves(excitation, probe.incident, potential.dtype).transpose(1, 2)
        out = []
        for _ in range(grid.count):
            waves = torch.einsum("ftgh,fth->ftg", step, waves)
            out.append(_weighted(waves, probe))
        return torch.stack(out, -1)
