"""Slow, exact propagation, one diagonalisation or exponential per orientation sample.

These are the references that tests and the run-time check compare with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..records import InputError
from .base import DepthGrid, Probe, Propagator, Size, Work, start_waves

_MATRICES = 12  # (N, N) of a sample that a gradient holds at one time, about


def _matrices(potential: Tensor, excitation: Tensor) -> Tensor:
    """Return M (F, T, N, N) = diag(S) + V of every sample."""
    diagonal = torch.diag_embed(excitation.transpose(1, 2).to(potential.dtype))
    return diagonal + potential[:, None]


def _weighted(amplitude: Tensor, probe: Probe) -> Tensor:
    """Sum weight |psi|^2 over the samples: amplitude (F, T, N) -> (F, B)."""
    index = probe.beam[:, None].expand(-1, amplitude.shape[1], -1)
    picked = torch.gather(amplitude, 2, index)
    intensity = picked.real.square() + picked.imag.square()
    return torch.einsum("ftb,fbt->fb", intensity, probe.weight.to(intensity.dtype))


def is_hermitian(potential: Tensor) -> bool:
    """Tell whether V = V^H (..., N, N) to rounding: nothing is absorbed."""
    potential = potential.detach()
    rounding = 100 * torch.finfo(potential.dtype).eps * float(potential.abs().max())
    return float((potential - potential.mH).abs().max()) <= rounding


class _BlochWaves(torch.autograd.Function):
    """psi(z) = C exp(2 pi i z x) C^H psi(0) of M = C diag(x) C^H, at all depths z.

    The derivative of the exponential is, in the basis of the eigenvectors, an elementwise
    product with the divided differences of exp (Daleckii & Krein 1965; Higham 2008, Functions
    of Matrices, theorem 3.11, doi:10.1137/1.9780898717778). These are finite where eigenvalues
    coincide, unlike the derivatives of the eigenvectors themselves.
    """

    @staticmethod
    def forward(ctx, matrices: Tensor, incident: Tensor, depths: Tensor) -> Tensor:
        """Return psi (F, T, D, N) of Hermitian `matrices` (F, T, N, N) in A^-1, depths in A."""
        values, vectors = torch.linalg.eigh(matrices)
        block = torch.arange(len(incident), device=incident.device)
        start = vectors[block, :, incident].conj()
        ctx.save_for_backward(values, vectors, start, depths)
        excited = _phases(values, depths) * start[:, :, None]
        return excited @ vectors.transpose(-1, -2)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradient by every element of the matrices, as if each were free."""
        values, vectors, start, depths = ctx.saved_tensors
        inner = torch.zeros_like(vectors)
        along = (grad @ vectors.conj()).unbind(2)  # C^H dL/dpsi at each depth
        for g, depth in zip(along, depths, strict=True):
            outer = g[..., :, None] * start.conj()[..., None, :]
            inner += _divided_differences(values, depth).conj() * outer
        return vectors @ inner @ vectors.mH, None, None


def _phases(values: Tensor, depths: Tensor) -> Tensor:
    """Return exp(2 pi i z x): x (F, T, N), z (D,) -> (F, T, D, N)."""
    angle = 2 * math.pi * depths[:, None] * values[:, :, None]
    return torch.polar(torch.ones_like(angle), angle)


def _divided_differences(values: Tensor, depth: Tensor) -> Tensor:
    """Return (e(x) - e(y)) / (x - y), e(x) = exp(i c x), c = 2 pi z, of all pairs (..., N, N).

    Written i c exp(i c (x + y) / 2) sinc(c (x - y) / 2), which is i c e(x) where x = y.
    """
    half = _phases(0.5 * values, depth[None])[..., 0, :]
    mean = half[..., :, None] * half[..., None, :]
    gap = values[..., :, None] - values[..., None, :]
    return 2j * math.pi * depth * mean * torch.sinc(depth * gap)


class _SampleBySample(Propagator):
    """What methods need that work on the matrix of every orientation sample."""

    def gradient_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class: some matrices of every sample, and the waves of every depth."""
        waves = (_MATRICES * size.beams + 2 * grid.count + 40) * size.beams
        return 50 * size.beams**2 + (waves + 4 * grid.count * size.slots) * size.samples

    def tangent_numbers(self, size: Size, grid: DepthGrid) -> float:
        """See the base class: there are no tangents."""
        return 0.0

    def operations(self, work: Work, grid: DepthGrid) -> float:
        """See the base class: some products of matrices for every sample."""
        return float(8 * _MATRICES * work.samples * (work.beams.double() ** 3).sum())


@dataclass(frozen=True)
class Eigen(_SampleBySample):
    """Bloch waves: M = C diag(x) C^H (Humphreys 1979, doi:10.1088/0034-4885/42/11/002).

    Exact at every depth; the work is done in double precision whatever the arguments are.
    Raises InputError when the potential absorbs (is not Hermitian).
    """

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""
        if not is_hermitian(potential):
            raise InputError(
                "the propagation method eigen needs a Hermitian potential, and this one absorbs; "
                "use matrix_exp or splitting"
            )
        matrices = _matrices(potential.to(torch.complex128), excitation.double())
        depths = grid.depths(dtype=torch.float64, device=matrices.device)
        waves = _BlochWaves.apply(matrices, probe.incident, depths)
        out = [_weighted(wave, probe) for wave in waves.unbind(2)]
        return torch.stack(out, -1).to(excitation.dtype)


@dataclass(frozen=True)
class MatrixExp(_SampleBySample):
    """psi(z + step) = exp(2 pi i step M) psi(z), by torch.linalg.matrix_exp."""

    def __call__(
        self, potential: Tensor, excitation: Tensor, probe: Probe, grid: DepthGrid
    ) -> Tensor:
        """See the package's docstring."""
        step = torch.linalg.matrix_exp(2j * math.pi * grid.step * _matrices(potential, excitation))
        waves = start_waves(excitation, probe.incident, step.dtype).transpose(1, 2)
        out = []
        for _ in range(grid.count):
            waves = torch.einsum("ftgh,fth->ftg", step, waves)
            out.append(_weighted(waves, probe))
        return torch.stack(out, -1)
