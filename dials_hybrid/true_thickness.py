"""Distributions of the thickness that simulated crystals have, and how they change with the tilt.

Lengths in A, angles in rad.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .records import InputError

TRUTH_STEP = 10.0  # A, the coarsest grid on which a distribution is written down
MAX_TILT = math.radians(80)  # rad, beyond it 1/cos makes no sense of a real crystal

Trend = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def constant() -> Trend:
    """Thickness does not depend on the rotation."""
    return lambda angle: (np.ones_like(angle), np.zeros_like(angle))


def slab(zero: float) -> Trend:
    """A plate across the beam at the angle `zero` (rad): everything goes with 1/cos(tilt).

    The trend raises InputError where the tilt passes 80 degrees.
    """

    def trend(angle: np.ndarray):
        tilt = np.abs(angle - zero)
        if tilt.size and tilt.max() > MAX_TILT:
            raise InputError(
                f"thickness.shape=slab: the plate is tilted by {math.degrees(tilt.max()):.0f} "
                "degrees; change the scan or thickness.tilt_zero so that it stays within 80"
            )
        return 1 / np.cos(tilt), np.zeros_like(angle)

    return trend


def wedge(zero: float, slope: float) -> Trend:
    """The mean grows by `slope` (A / rad) from its value at the angle `zero` (rad)."""
    return lambda angle: (np.ones_like(angle), slope * (angle - zero))


@dataclass(frozen=True)
class ThicknessMixture:
    """A mixture of gamma distributions, given by mean and standard deviation (A).

    A gamma distribution is close to a Gaussian where it is narrow, and is never negative where
    it is broad. Width zero stands for exactly one thickness. `trend` gives, at rotation angles
    (rad), the factor on means and widths and what is then added to the means.
    """

    mean: tuple
    width: tuple
    weight: tuple
    trend: Trend

    def parts(self, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return means (n, K), widths (n, K) and weights (K,) at rotation angles (n,).

        Raises InputError where a mean is not positive.
        """
        factor, shift = self.trend(np.asarray(angle, dtype=float))
        mean = factor[:, None] * np.array(self.mean) + shift[:, None]
        if mean.min() <= 0:
            raise InputError(
                f"the mean thickness falls to {mean.min():.0f} A within the scan; "
                "increase thickness.mean or reduce thickness.tilt_slope"
            )
        weight = np.array(self.weight, dtype=float)
        return mean, factor[:, None] * np.array(self.width), weight / weight.sum()

    def overall_mean(self, angle: np.ndarray) -> np.ndarray:
        """Return the mean of the whole mixture at rotation angles, (n,) A."""
        mean, _, weight = self.parts(angle)
        return mean @ weight

    def reach(self, angle: np.ndarray) -> float:
        """Return the largest thickness (A) that matters: five widths above the highest mean."""
        mean, width, _ = self.parts(angle)
        return float((mean + 5 * width).max())

    def characteristic(self, x: np.ndarray, angle: float) -> np.ndarray:
        """Return the mean of exp(2 pi i x t) over p(t) at one rotation angle, x in A^-1, Im x >= 0.

        A gamma distribution of shape k and scale s has (1 - 2 pi i x s)^-k.
        """
        mean, width, weight = self.parts(np.array([angle]))
        total = np.zeros(x.shape, dtype=complex)
        for m, w, share in zip(mean[0], width[0], weight, strict=True):
            if w == 0:
                total += share * np.exp(2j * math.pi * m * x)
            else:
                total += share * np.exp(-((m / w) ** 2) * np.log(1 - 2j * math.pi * x * w**2 / m))
        return total

    def on_grid(self, depth: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Return p at the depths (D,) A for each rotation angle, (n, D), rows adding up to one."""
        mean, width, weight = self.parts(angle)
        out = np.zeros((len(mean), len(depth)))
        for m, w, share in zip(mean.T, width.T, weight, strict=True):
            out += share * (_nearest_two(depth, m) if w[0] == 0 else _gamma(depth, m, w))
        return out


def truth_grid(mixture: ThicknessMixture, angle: np.ndarray) -> np.ndarray:
    """Return depths (D,) A fine and far enough to write the mixture down at these angles."""
    finest = min([TRUTH_STEP, *(w / 2 for w in mixture.width if w > 0)])
    count = math.ceil(mixture.reach(angle) / finest) + 1
    return finest * np.arange(1, count + 1)


def _gamma(depth: np.ndarray, mean: np.ndarray, width: np.ndarray) -> np.ndarray:
    shape, scale = ((mean / width) ** 2)[:, None], (width**2 / mean)[:, None]
    log_p = (shape - 1) * np.log(depth) - depth / scale
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _nearest_two(depth: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Share one thickness between its two neighbours on the grid, so that the mean is right."""
    step = depth[1] - depth[0]
    return np.clip(1 - np.abs(depth - mean[:, None]) / step, 0, None)
