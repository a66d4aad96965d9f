"""Smooth functions of the rotation angle, one curve per sweep: uniform cubic B-splines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CurveBasis:
    """Uniform cubic B-splines over the rotation range of each sweep.

    `start`, `spacing` (rad) and `count` hold one entry per sweep; the coefficients of all
    sweeps stand one after the other.
    """

    start: tuple
    spacing: tuple
    count: tuple

    @classmethod
    def over(cls, angle: Tensor, sweep: Tensor, spacing: float) -> CurveBasis:
        """Cover angles (n,) in rad of each sweep with knots about `spacing` rad apart."""
        start, step, count = [], [], []
        for index in range(int(sweep.max()) + 1):
            mine = angle[sweep == index]
            low, high = float(mine.min()), float(mine.max())
            intervals = max(1, math.ceil((high - low) / spacing - 1e-9))
            start.append(low)
            step.append(max(high - low, 1e-6) / intervals)
            count.append(intervals + 3)
        return cls(tuple(start), tuple(step), tuple(count))

    @property
    def size(self) -> int:
        """Number of coefficients of all sweeps."""
        return sum(self.count)

    def matrix(self, angle: Tensor, sweep: Tensor) -> Tensor:
        """Return the values of every basis function, (n, size), at angles (n,) of each sweep.

        Rows add up to one; angles outside the range take the value at its end.
        """
        out = torch.zeros(len(angle), self.size, dtype=torch.float64, device=angle.device)
        offset = 0
        for index, (start, spacing, count) in enumerate(
            zip(self.start, self.spacing, self.count, strict=True)
        ):
            rows = torch.nonzero(sweep == index).flatten()
            first, pieces = _pieces_at(angle[rows], start, spacing, count)
            for k, value in enumerate(pieces):
                out[rows, offset + first + k] = value
            offset += count
        return out

    def along_rows(self, coefficients: Tensor, points: Tensor) -> Tensor:
        """Return the values (F, n) of F curves over one range, each at points (n,) of its own.

        `coefficients` is (F, size), `points` (F, n); the basis must be that of a single sweep.
        """
        (start,), (spacing,), (count,) = self.start, self.spacing, self.count
        first, pieces = _pieces_at(points, start, spacing, count)
        return sum(v * coefficients.gather(1, first + k) for k, v in enumerate(pieces))

    def roughness(self, device=None) -> Tensor:
        """Return the second-difference operator (m, size) of the coefficients within a sweep."""
        rows, offset = [], 0
        for count in self.count:
            for i in range(count - 2):
                row = torch.zeros(self.size, dtype=torch.float64)
                row[offset + i : offset + i + 3] = torch.tensor([1.0, -2.0, 1.0]).double()
                rows.append(row)
            offset += count
        return torch.stack(rows).to(device)


def wider(operator: Tensor, values: Tensor, covariance: Tensor) -> float:
    """Return the factor on the variance of a prior that the data make more likely, to first order.

    The squared sum of prior residuals, `operator` (m, n) of full rank times the best values (n,),
    then equals the number of those directions that the data determine, which the covariance (n, n)
    tells (D. J. C. MacKay 1992, doi:10.1162/neco.1992.4.3.415). One call changes the variance by a
    factor of four at most: away from the best values the number says little.
    """
    rank = min(operator.shape)
    determined = rank - float((operator @ covariance @ operator.T).trace())
    ratio = float((operator @ values).square().sum()) / max(determined, 1e-3)
    return min(max(ratio, 0.25), 4.0)


def _pieces_at(points: Tensor, start: float, spacing: float, count: int):
    """Return the first of the four coefficients that act at points, and their splines there."""
    u = ((points - start) / spacing).clamp(0, count - 3)
    cell = u.detach().floor().clamp(max=count - 4)
    return cell.to(torch.int64), _cubic_pieces(u - cell)


def _cubic_pieces(u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four uniform cubic B-splines that are not zero on an interval, at u in [0, 1]."""
    return (
        (1 - u) ** 3 / 6,
        (3 * u**3 - 6 * u**2 + 4) / 6,
        (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6,
        u**3 / 6,
    )
