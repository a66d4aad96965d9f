"""Exponentials of the potential for several depths at once, by polynomials that share powers.

In centrosymmetric crystals, with the origin at a centre of inversion, the potential is a real
matrix. Its powers are then real, too, and cost a quarter of complex ones; their adjoint costs half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from ..parallel import alike, in_threads

_LARGEST = 2.0  # bound of the eigenvalues of 2 pi t V above which shorter t are squared
SHORTEST = 4  # power that bounds the eigenvalues, and is always formed


@dataclass(frozen=True)
class Series:
    """Polynomials for exp(2 pi i t V) - 1, V = W / (2 pi unit), for several t that share W^k.

    The identity is left out, and added as the waves themselves: rounded together with it, the
    same error in every step would add up to 1e-4 in single precision at hundreds of beams.

    W is taken for the longest t, since powers of the small V leave the range of float32. A
    polynomial that is nearly the best on the interval of W's eigenvalues (Tal-Ezer & Kosloff 1984,
    doi:10.1063/1.448136) reaches machine precision with the fewest matrix products and needs no
    eigenvalues: degenerate ones and an absorptive (non-Hermitian) V are no special cases. Where V
    is large the polynomial is summed for t / 2^halvings and squared.
    """

    powers: Tensor  # (order, F, N, N) W, W^2, ...; real where the potential is
    unit: float  # A
    table: Tensor  # (times, order) complex coefficients
    halvings: int
    cores: int  # that form the powers, and the adjoint, together

    @classmethod
    def of(cls, potential: Tensor, times: tuple, cores: int = 1) -> Series:
        """Choose the order for potential (F, N, N) in A^-1 and `times` in A."""
        return cls.of_matrices(scaled(potential, times), times, cores)

    @classmethod
    def of_matrices(cls, w: Tensor, times: tuple, cores: int = 1) -> Series:
        """Choose the order for what `scaled` returns."""
        powers = w.new_empty(most_powers(w), *w.shape)
        powers[0] = w
        _on_cores(cores, partial(_multiply, known=1), powers[:SHORTEST], w, 2)
        halvings, table = polynomials(powers[SHORTEST - 1], times)
        if halvings:
            for k, power in enumerate(powers[:SHORTEST], 1):
                power *= 0.5 ** (halvings * k)
        powers = powers[: table.shape[1]]
        _on_cores(cores, partial(_multiply, known=SHORTEST), powers, powers[0], 2)
        dtype = w.dtype if w.is_complex() else w.dtype.to_complex()
        table = torch.from_numpy(table).to(w.device, dtype)
        return cls(powers, max(map(abs, times)) / 2**halvings, table, halvings, cores)

    def values(self) -> list[Tensor]:
        """Return exp(2 pi i t V) - 1 (times, F, N, N), before it what is still to be squared."""
        steps = [_combine(self.table, self.powers)]
        for _ in range(self.halvings):
            steps.append(2 * steps[-1] + steps[-1] @ steps[-1])
        return steps

    def derivatives(self, tangents: Tensor) -> Tensor:
        """Return the derivatives (times, P, F, N, N) along dV (P, F, N, N), term by term."""
        dw = plain(2 * math.pi * self.unit * tangents)
        if self.powers.is_complex():
            dw = dw.to(self.powers.dtype)
        dw, planes = _planes(dw, self.powers, 0)
        moved = dw.new_empty(len(self.powers), *dw.shape)
        moved[0] = dw
        for k in range(1, len(moved)):
            torch.add(moved[k - 1] @ self.powers[0], self.powers[k - 1] @ dw, out=moved[k])
        out = _combine(self.table, _joined(moved, planes, 1))
        for value in self.values()[: self.halvings]:
            value = value[:, None]
            out = 2 * out + out @ value + value @ out
        return out

    def adjoint(self, slopes: Tensor, steps: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Return H (F, N, N) with dL = Re tr(H dV), given dL = Re tr(slopes_t d exp(2 pi i t V)).

        d W^k = sum W^i dW W^(k-1-i), so that H = sum W^i H_k W^(k-1-i), where H_k is what falls
        to the k-th power; both sums are done by Horner's rule. `steps` are the values. A real
        `dtype` asks for the real part of H alone, for real V and dV.
        """
        for value in reversed(steps[:-1]):
            slopes = 2 * slopes + value @ slopes + slopes @ value
        terms = _combine(self.table.T, slopes)
        terms, planes = _planes(terms if dtype.is_complex else terms.real, self.powers, 1)
        w = self.powers[0].repeat(planes, 1, 1)
        _on_cores(self.cores, _add_right, terms, w, 2)
        _on_cores(self.cores, _add_left, terms, w, 3)
        return 2 * math.pi * self.unit * _joined(terms[0], planes, 0)


def _on_cores(cores: int, function: Callable, x: Tensor, w: Tensor, dim: int) -> None:
    """Call the function with each core's part of x (K, F, N, N) and of w (F, N, N).

    A core has blocks of its own; if there are too few, rows (dim 2) or columns (3) of all.
    """
    if alike(len(w), cores):
        parts = zip(x.tensor_split(cores, 1), w.tensor_split(cores), strict=True)
    else:
        parts = ((part, w) for part in x.tensor_split(cores, dim))
    list(in_threads(lambda part: function(*part), list(parts), cores))


def _add_right(terms: Tensor, w: Tensor) -> None:
    """Replace terms_k by sum_(j >= k) terms_j W^(j - k)."""
    for k in range(len(terms) - 2, -1, -1):
        terms[k].baddbmm_(terms[k + 1], w)


def _add_left(terms: Tensor, w: Tensor) -> None:
    """Replace terms_k by sum_(j >= k) W^(j - k) terms_j."""
    for k in range(len(terms) - 2, -1, -1):
        terms[k].baddbmm_(w, terms[k + 1])


def scaled(potential: Tensor, times: tuple) -> Tensor:
    """Return W for the longest of the times (A), halved no time; real where V (F, N, N) is."""
    return plain(2 * math.pi * max(map(abs, times)) * potential.detach())


def most_powers(w: Tensor) -> int:
    """Return how many powers are formed at most."""
    return series_order(_LARGEST, torch.finfo(w.dtype).eps)


def polynomials(power: Tensor, times: tuple) -> tuple[int, np.ndarray]:
    """Return halvings and coefficients (times, order), given W^4."""
    # of a Hermitian W the largest |eigenvalue|, and little more
    bound = largest_norm(power) ** (1 / SHORTEST)
    halvings = max(0, math.ceil(math.log2(bound / _LARGEST))) if bound else 0
    radius = 2.0 ** (math.ceil(8 * math.log2(max(bound / 2**halvings, 0.01))) / 8)
    radius = min(radius, _LARGEST)
    order = series_order(radius, torch.finfo(power.dtype).eps)
    longest = max(map(abs, times))
    return halvings, _coefficients(tuple(t / longest for t in times), radius, order)


def series_order(radius: float, eps: float) -> int:
    """Return the degree of polynomial that gives exp(ix) - 1, |x| <= radius, to rounding.

    The first Chebyshev coefficient that is left out, 2 J_k(radius) <= 2 (radius / 2)^k / k!,
    bounds the error.
    """
    order, term = 1, radius**2 / 4
    while order < SHORTEST or term > eps / 8:
        order += 1
        term *= radius / 2 / (order + 1)
    return order


@lru_cache(maxsize=256)
def _coefficients(shares: tuple, radius: float, order: int) -> np.ndarray:
    """Return c (shares, order), exp(i s x) - 1 = sum_k c_k x^k, k >= 1, for |x| <= radius.

    From exp(i a y) = J_0(a) + 2 sum_k i^k J_k(a) T_k(y) (Tal-Ezer & Kosloff 1984).
    """
    k = np.arange(order + 1)
    weight = np.where(k > 0, 2, 1) * 1j**k
    rows = [[_bessel(n, s * radius) for n in k.tolist()] for s in shares]
    return np.array([chebyshev.cheb2poly(weight * row)[1:] for row in rows]) / radius ** k[1:]


def _bessel(k: int, x: float) -> float:
    """Return J_k(x), |x| not large, by its power series."""
    terms = [(x / 2) ** k / math.factorial(k)]
    for m in range(1, 30):
        terms.append(-terms[-1] * (x / 2) ** 2 / (m * (m + k)))
    return math.fsum(terms)


def _multiply(rows: Tensor, w: Tensor, known: int) -> None:
    """Fill rows (K, F, R, N) of powers of w (F, N, N), of which some are known."""
    for k in range(known, len(rows)):
        torch.bmm(rows[k - 1], w, out=rows[k])


def largest_norm(x: Tensor) -> float:
    """Return the largest Frobenius norm of matrices (F, N, M); torch's takes far longer."""
    parts = torch.view_as_real(x).flatten(2) if x.is_complex() else x
    return float(torch.linalg.vector_norm(parts, dim=(1, 2)).max())


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b of matrices (..., n, m) and (..., m, l) of which either may be real."""
    if a.is_complex() == b.is_complex():
        return a @ b
    if a.is_complex():
        return torch.complex(a.real.contiguous() @ b, a.imag.contiguous() @ b)
    parts = torch.view_as_real(b.resolve_conj()).flatten(-2)
    return torch.view_as_complex((a @ parts).unflatten(-1, (-1, 2)))


def plain(x: Tensor) -> Tensor:
    """Return x without the noise of rounding, and as a real tensor if only that is imaginary."""
    return _real_if_it_is(_without_noise(x.resolve_conj()))


def _without_noise(x: Tensor) -> Tensor:
    """Set to zero the parts of x that rounding alone made, as in centrosymmetric crystals.

    Their products would be denormal numbers in float32, which take a hundred times longer.
    """
    if not x.numel():
        return x
    parts = torch.view_as_real(x) if x.is_complex() else x
    limit = noise_beside(float(parts.detach().abs().max()), x.dtype)
    parts = torch.nn.functional.hardshrink(parts, limit)
    return torch.view_as_complex(parts) if x.is_complex() else parts


def _real_if_it_is(x: Tensor) -> Tensor:
    """Return the real part alone if the imaginary one is not above rounding."""
    if not x.numel() or not x.is_complex():
        return x.real
    real, imaginary = (float(part.detach().abs().max()) for part in (x.real, x.imag))
    return x.real.contiguous() if is_noise(imaginary, real, x.dtype) else x


def noise_beside(largest: float, dtype: torch.dtype) -> float:
    """Return below what numbers are rounding's, beside a largest one."""
    return torch.finfo(dtype).eps ** 2 * largest


def is_noise(imaginary: float, real: float, dtype: torch.dtype) -> bool:
    """Tell whether imaginary parts are not above rounding beside real ones, by the largest."""
    return imaginary <= 4 * torch.finfo(dtype).eps * real


def _planes(x: Tensor, like: Tensor, dim: int) -> tuple[Tensor, int]:
    """Return x, and 1; or, complex beside a real `like`, its two parts joined along dim, and 2."""
    if x.is_complex() and not like.is_complex():
        return torch.cat([x.real, x.imag], dim), 2
    return x, 1


def _joined(x: Tensor, planes: int, dim: int) -> Tensor:
    """Undo `_planes`."""
    return x if planes == 1 else torch.complex(*(part.contiguous() for part in x.chunk(2, dim)))


def _combine(table: Tensor, terms: Tensor) -> Tensor:
    """Return sum_k table[j, k] terms[k] for every j, complex; the terms may be real."""
    flat = terms.reshape(len(terms), -1)
    if flat.is_complex():
        out = table @ flat
    else:
        out = torch.complex(table.real @ flat, table.imag @ flat)
    return out.reshape(len(table), *terms.shape[1:])


@dataclass(frozen=True)
class Factors:
    """Exponentials for a sweep by calls of torch, see `stages`."""

    series: Series
    values: list[Tensor]

    @classmethod
    def of(cls, w: Tensor, times: tuple, cores: int) -> Factors:
        """Form them from what `scaled` returns."""
        series = Series.of_matrices(w, times, cores)
        return cls(series, series.values())

    def ahead(self) -> Tensor:
        """Return the transposed exponentials (M, F, N, N), less the identity."""
        return self.values[-1].mT.contiguous()

    def back(self) -> Tensor:
        """Return the exponentials (M, F, N, N), less the identity."""
        return self.values[-1].contiguous()

    def adjoint(self, slopes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the gradient (F, N, N) by V, a tensor of `dtype`.

        `slopes` are what falls to the exponentials.
        """
        return self.series.adjoint(slopes, self.values, dtype)
