"""Absolute structure: how much better one hand agrees than the other, and inversion twins.

Multiple scattering makes intensities depend on the hand of a crystal. Two refinements, one of
each hand, are compared reflection by reflection (P. B. Klar et al. 2023,
doi:10.1038/s41557-023-01186-1), and the share of the other hand in the crystal is estimated as
H. D. Flack did for X-rays (1983, doi:10.1107/S0108767383001762): both hands scatter
independently, I = (1 - x) I(hand) + x I(other hand), with one set of all other parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .notation import with_uncertainty
from .uncertainty import Curvature

SIGNIFICANT = 3.0  # |z| and multiples of s.u. from which something is taken as shown
POWER = 0.1  # s.u. of a twin fraction that still tells hands apart


@dataclass(frozen=True)
class ZScore:
    """How many of N reflections agree better with the first of two models, k of them."""

    reflections: int
    better: int

    @property
    def z(self) -> float:
        """Return (k - N/2) / (sqrt(N)/2), positive for the first model, 0 without reflections.

        If neither model were better, k would be binomial with mean N/2 and s.d. sqrt(N)/2.
        Errors of the measurement do not enter.
        """
        n = self.reflections
        return (2 * self.better - n) / math.sqrt(n) if n else 0.0

    @property
    def probability(self) -> float:
        """Return the probability that the first model is the right one, Phi(z)."""
        return 0.5 * math.erfc(-self.z / math.sqrt(2))


def z_score(observed: Tensor, first: Tensor, second: Tensor, chosen: Tensor) -> ZScore:
    """Compare |I_obs - I_calc| of two models over the chosen reflections (R,) bool.

    Reflections on which both models agree to one part in 1e9 say nothing and are not counted.
    """
    tells = chosen & ((first - second).abs() > 1e-9 * (first + second).abs())
    better = (observed - first).abs() < (observed - second).abs()
    return ZScore(int(tells.sum()), int((tells & better).sum()))


@dataclass(frozen=True)
class TwinFraction:
    """Share of the other hand in the crystal; both None where the data say nothing of it."""

    value: float | None
    su: float | None


def twin_fraction(curvature: Curvature, difference: Tensor) -> TwinFraction:
    """Estimate x of I = (1 - x) I(hand) + x I(other hand) at the end of a refinement.

    `difference` (R,) is I(other hand) - I(hand) with the structure inverted and all other
    parameters as they are, in units of sigma_w, zero for free reflections. The model is linear
    in x; x is found together with steps of all refined parameters, to first order, and with the
    robust cost of the refinement, so that its s.u. counts all of them.
    """
    joint = curvature.with_parameter(difference)
    variance = float(joint.covariance[-1, -1])
    if not variance > 0 or not bool(difference.abs().max() > 1e-6):
        return TwinFraction(None, None)
    return TwinFraction(float(joint.minimum()[-1]), math.sqrt(variance))


def verdict(
    score: ZScore,
    twin: TwinFraction,
    right: str,
    difference: float,
    share: str = "inversion-twin fraction",
    unseen: ZScore | None = None,
) -> str:
    """Return one sentence on the setting `right` (a space group, or words) against another.

    `difference` is by how much R1 of the other one is higher, `share` names the twin fraction,
    `unseen` is the score with every reflection predicted by fits to the others: it depends less on
    how much noise the wrong setting has been made to fit.
    """
    x = "not known" if twin.value is None else with_uncertainty(twin.value, twin.su)
    left_out = "" if unseen is None else f" ({unseen.z:.1f} with each left out once)"
    numbers = (
        f"R1 differs by {difference:+.4f}, z = {score.z:.1f} over {score.reflections} reflections"
        f"{left_out}, {share} is {x}"
    )
    known = twin.value is not None and twin.su < POWER
    if score.z <= -SIGNIFICANT:
        return f"undetermined: the other one agrees better: {numbers}"
    if score.z < SIGNIFICANT or not known:
        return f"undetermined: {numbers}"
    low, high = twin.value - SIGNIFICANT * twin.su, twin.value + SIGNIFICANT * twin.su
    if low < 0.5 < high:
        return f"undetermined: {numbers}, so that a half of either is possible"
    if low >= 0.5:
        return f"undetermined: {numbers}, which contradict each other"
    if low > 0:
        return f"determined, {right}, with a twin or errors of the model: {numbers}"
    return f"determined, {right}: {numbers}"
