"""The variance that an integration gives, as a function of the intensity."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_BACKGROUND = 0.1  # of an integration's variance: what does not come from the signal


@dataclass(frozen=True)
class Noise:
    """Variance of the integration as a function of the intensity: v = b + g I + q I^2.

    Counts have a variance equal to their number, and the integration can but take it from what it
    found: a reflection that came out too weak by chance also seems to be known too well. Fits that
    weight with such errors are pulled below the true intensities, by about the gain g for each
    reflection, which is much of a weak one. The variance that counts is the one at the intensity
    that the model expects.
    """

    background: Tensor  # (R,) variance without the reflection's own signal
    gain: Tensor  # (R,) of intensity, the variance per intensity
    square: Tensor  # (R,) variance per squared intensity, as scaling programs add it

    @classmethod
    def of(cls, intensity: Tensor, sigma: Tensor, sweep: Tensor, used: Tensor) -> Noise:
        """Find it from measured intensities and their sigma, index of the sweep, all (R,).

        Gain and square, neither of them negative, are those by which sigma^2 goes with |I| in each
        sweep among the `used` (R,), bool; the rest is background, no less than LEAST_BACKGROUND of
        sigma^2.
        """
        gain, square = torch.zeros_like(intensity), torch.zeros_like(intensity)
        for index in sweep.unique():
            mine = sweep == index
            tell = mine & used
            gain[mine], square[mine] = _signal_terms(intensity[tell].abs(), sigma[tell])
        variance, found = sigma.square(), intensity.abs()
        signal = gain * found + square * found.square()
        background = torch.maximum(variance - signal, LEAST_BACKGROUND * variance)
        return cls(background, gain, square)

    def variance(self, intensity: Tensor) -> Tensor:
        """Return the variance (R,) were the intensities those given (R,); none below zero."""
        signal = intensity.clamp(min=0)
        return self.background + self.gain * signal + self.square * signal.square()


def _signal_terms(intensity: Tensor, sigma: Tensor) -> Tensor:
    """Return the g and q (2,), not negative, by which b + g I + q I^2 is nearest to sigma^2.

    Nearest in proportion, so that weak reflections, most of all, tell of b. Of the few sets of
    terms that may be zero, the best without a negative one is the least-squares solution.
    """
    terms = torch.stack([torch.ones_like(intensity), intensity, intensity.square()], 1)
    terms = terms / sigma.square()[:, None]
    length = terms.norm(dim=0).clamp(min=torch.finfo(terms.dtype).tiny)
    terms, one = terms / length, torch.ones_like(intensity)
    best, out = torch.inf, torch.zeros(3).to(terms)
    for chosen in itertools.product([True, False], repeat=3):
        used = torch.tensor(chosen, device=terms.device)
        found = torch.zeros(3).to(terms)
        part = terms[:, used]
        found[used] = torch.linalg.pinv(part.T @ part, hermitian=True) @ (part.T @ one)
        misfit = float((terms @ found - one).square().sum())
        if misfit < best and bool((found >= 0).all()):
            best, out = misfit, found / length
    return out[1:]
