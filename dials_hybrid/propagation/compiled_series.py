"""Exponentials of the potential in machine code, for `compiled_stages`: as `series`.

Parts of matrices (3, N, N) are the real and the imaginary one, and their sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..parallel import alike, in_threads
from . import kernels, series
from .series import SHORTEST, is_noise, most_powers, noise_beside, polynomials, scaled
from .spare import room


def parts(x: Tensor) -> Tensor:
    """Return the parts (..., 3, N, N) of complex matrices (..., N, N).

    In one piece: a product with the transpose of a small matrix takes half as long again.
    """
    return torch.stack([x.real, x.imag, x.real + x.imag], -3).contiguous()


def factors_of(potential: Tensor, times: tuple, cores: int) -> Factors | PartFactors:
    """Return the exponentials for potential V (F, N, N) in A^-1 and `times` in A."""
    found = PartFactors.of(potential, times, cores)
    return found or Factors.of(scaled(potential, times), times, cores)


@dataclass(frozen=True)
class Factors(series.Factors):
    """Those by torch, also where polynomials are squared."""

    def ahead(self) -> Tensor:
        """Return the parts of the transposed exponentials (M, F, 3, N, N), less the identity."""
        return parts(self.values[-1].mT)

    def back(self) -> Tensor:
        """Return the parts of the exponentials (M, F, 3, N, N), less the identity."""
        return parts(self.values[-1])

    def adjoint(self, slopes: Tensor, dtype: torch.dtype) -> Tensor:
        """See `series`; what falls to exponentials has parts (M, F, 3, N, N)."""
        return super().adjoint(torch.complex(slopes[:, :, 0], slopes[:, :, 1]), dtype)


@dataclass(frozen=True)
class PartFactors:
    """Those of potentials that need no squaring, by powers of W^T, in machine code.

    See `series` for what the steps are. Of a real W there is one part alone.
    """

    matrices: Tensor  # (F, P, N, N) the parts of W^T
    table: np.ndarray  # (M, order) complex coefficients
    unit: float  # A
    values: Tensor  # (M, F, 3, N, N) the parts of exponentials of W^T, less the identity
    cores: int

    @classmethod
    def of(cls, potential: Tensor, times: tuple, cores: int) -> PartFactors | None:
        """Form them from V (F, N, N) in A^-1; None if polynomials would have to be squared."""
        given, unit = potential.resolve_conj().contiguous().numpy(), max(map(abs, times))
        real, imaginary = kernels.largest(given)
        count = 1 if is_noise(imaginary, real, potential.dtype) else 3
        powers = _room(potential, most_powers(potential), count)
        noise = noise_beside(max(real, imaginary), potential.dtype)
        kernels.set_parts(powers[0], given, 2 * math.pi * unit, noise)
        _on_cores(cores, kernels.multiply, powers[:SHORTEST], 1)
        fourth = torch.from_numpy(powers[SHORTEST - 1, :, :2]).flatten(1, 2)
        halvings, table = polynomials(fourth, times)
        if halvings:
            return None
        powers = powers[: table.shape[1]]
        _on_cores(cores, kernels.multiply, powers, SHORTEST)
        values = _room(potential, len(times), 3)
        _on_cores(cores, kernels.add_up, values, powers, *_pair(table, values))
        return cls(torch.from_numpy(powers[0].copy()), table, unit, torch.from_numpy(values), cores)

    def ahead(self) -> Tensor:
        """Return the parts of the transposed exponentials (M, F, 3, N, N), less the identity."""
        return self.values

    def back(self) -> Tensor:
        """Return the parts of the exponentials (M, F, 3, N, N), less the identity."""
        return self.values.mT.contiguous()

    def adjoint(self, slopes: Tensor, dtype: torch.dtype) -> Tensor:
        """See `series`; what falls to exponentials has parts (M, F, 3, N, N)."""
        w = self.matrices.mT.contiguous().numpy()
        count = 1 if not dtype.is_complex else 2 if w.shape[1] == 1 else 3
        terms = _room(slopes[0, :, 0], self.table.shape[1], count)
        _on_cores(self.cores, kernels.add_up, terms, slopes.numpy(), *_pair(self.table.T, terms))
        _on_cores(self.cores, kernels.add_right, terms, w)
        _on_cores(self.cores, kernels.add_left, terms, w)
        terms[0] *= 2 * math.pi * self.unit
        found = torch.from_numpy(terms[0])
        return found[:, 0] if count == 1 else torch.complex(found[:, 0], found[:, 1])


def _room(like: Tensor, count: int, parts: int) -> np.ndarray:
    """Return an empty array for parts (count, F, P, N, N) of matrices like those (F, N, N)."""
    f, n, _ = like.shape
    return room(like.new_empty(0, dtype=like.dtype.to_real()), count, f, parts, n, n).numpy()


def _pair(table: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return real and imaginary parts of a table in the precision of an array."""
    both = np.stack([table.real, table.imag]).astype(like.dtype)
    return both[0], both[1]


def _on_cores(cores: int, function: Callable, out: np.ndarray, *arguments) -> None:
    """Call the function, which fills `out` (K, F, P, N, N), with each core's blocks and rows.

    A core has blocks of its own; if there are too few, rows (or columns) of all.
    """
    _, f, _, n, _ = out.shape
    apart = alike(f, cores)
    edges = [(f if apart else n) * k // cores for k in range(cores + 1)]
    ranges = [(*x, 0, n) if apart else (0, f, *x) for x in itertools.pairwise(edges)]
    list(in_threads(lambda own: function(out, *arguments, *own), ranges, cores))
