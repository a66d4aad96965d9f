"""Where to put the orientation samples of a block: evenly, or as Gauss and Legendre would.

All beams of a block are propagated together, so that they share its samples. The integral of a
rocking curve over one degree is taken with few samples and compared with that of 400, for beams
that cross the Ewald sphere in the inner half. "samples" is the fewest from which on every larger
number that was tried meets R(calc) = sum | sqrt I - sqrt I_400 | / sum sqrt I_400 of 0.003. Rates
are those of the excitation error over the rotation: the sampling that a beam needs goes with its
rate, and a block could take fewer samples where its fastest beam is slow.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dials_hybrid.propagation import DepthGrid, Eigen, Probe

from . import common
from .cases import Case, make_case

DENSE = 400
COUNTS = (6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 27, 30, 33, 36, 40, 45, 50, 60, 70, 80, 100)
TARGET = 0.003  # of R(calc)
THICKNESSES = (400.0, 800.0)  # A
CRYSTALS = {"quartz": 60, "albite": 100, "CsPbBr3": 150}
ANGLES = range(0, 180, 20)  # degrees, of the blocks whose rates are compared


def midpoints(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return even places in (-1, 1) and weights whose sum is one."""
    return (2 * np.arange(n) + 1) / n - 1, np.full(n, 1 / n)


def gauss(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places in (-1, 1) of Gauss and Legendre and weights whose sum is one."""
    places, weights = np.polynomial.legendre.leggauss(n)
    return places, weights / 2


RULES = {"even": midpoints, "Gauss-Legendre": gauss}


class Curves:
    """Rocking curves of a block at any orientations; S is a polynomial of the angle."""

    def __init__(self, case: Case, thickness: float):
        self.case = case
        _, _, samples = case.excitation.shape
        self.grid = DepthGrid(thickness, 1)
        place = np.linspace(-1, 1, samples)
        s = case.excitation[0].numpy()
        self.polynomial = np.polynomial.chebyshev.chebfit(place, s.T, 6)
        sign = np.sign(s[:, samples // 4]) != np.sign(s[:, 3 * samples // 4])
        self.crossing = torch.as_tensor(sign & (np.abs(s).max(1) > 0))

    def integrals(self, places: np.ndarray, weights: np.ndarray) -> Tensor:
        """Return the integrals over the block (K,) of the beams that cross the sphere within."""
        s = torch.as_tensor(np.polynomial.chebyshev.chebval(places, self.polynomial))[None]
        n = s.shape[1]
        weight = torch.as_tensor(weights).expand(1, n, -1)
        probe = Probe(torch.zeros(1, dtype=torch.int64), torch.arange(n)[None], weight)
        out = Eigen()(self.case.potential, s, probe, self.grid)
        return out[0, self.crossing, -1]


def needed(curves: Curves) -> dict[str, int | str]:
    """Return the samples that each rule needs."""
    truth = curves.integrals(*midpoints(DENSE)).sqrt()
    found = {}
    for name, rule in RULES.items():
        errors = [
            float((curves.integrals(*rule(n)).clamp(min=0).sqrt() - truth).abs().sum())
            for n in COUNTS
        ]
        good = [error <= TARGET * float(truth.sum()) for error in errors]
        first = max((i + 1 for i, ok in enumerate(good) if not ok), default=0)
        found[name] = COUNTS[first] if first < len(COUNTS) else f"> {COUNTS[-1]}"
    return found


def rates(name: str, n: int) -> np.ndarray:
    """Return the rates (A^-1 per degree) of the fastest beam that crosses in each block."""
    out = []
    for angle in ANGLES:
        case = make_case(name, n, 41, DepthGrid(400.0, 1), angle=angle)
        curves, s = Curves(case, 400.0), case.excitation[0]
        out.append(float((s[curves.crossing, -1] - s[curves.crossing, 0]).abs().max()))
    return np.array(out)


def main() -> None:
    """Print the table and write benchmarks/results/quadrature.json."""
    rows = []
    for name, n in CRYSTALS.items():
        fastest = rates(name, n)
        for thickness in THICKNESSES:
            case = make_case(name, n, 41, DepthGrid(thickness, 1))
            curves = Curves(case, thickness)
            rows.append(
                {
                    "crystal": name,
                    "beams": n,
                    "thickness / A": thickness,
                    "curves": int(curves.crossing.sum()),
                    **needed(curves),
                    "fastest beam, mean over blocks / largest": float(
                        fastest.mean() / fastest.max()
                    ),
                }
            )
    common.print_table(f"Samples of one degree for R(calc) {TARGET}", rows)
    common.save("quadrature", rows)


if __name__ == "__main__":
    main()
