"""What Gauss and Newton leave out: second derivatives of the intensities, learnt from steps.

The second derivative of half the squared residuals is J^T J + sum_r r d2I_r. Rocking curves of a
thick crystal have fringes, so that the second part is large for rotations: without it, steps
promise twice what they bring, and are held small for that. It need not be calculated: over a step
s the slopes of the intensities change, and S s = (J_new - J_old)^T r_new holds for the S that is
sought (J. E. Dennis, D. M. Gay & R. E. Welsch 1981, doi:10.1145/355958.355965). A local rotation
acts on the intensities of its own block alone, so S is one 2 x 2 matrix for each of F blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-3  # step, in sigma of the orientations, of which the change of slopes tells something


def updated(second: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """Return S (F, 2, 2) that obeys S step = change, else as near to `second` (F, 2, 2) as can be.

    `step` and `change` are (F, 2). The smallest symmetric change is made (M. J. D. Powell
    1970, in Nonlinear Programming, Academic Press, 31-65), after `second` has been made as small as
    it seems along the step, as Dennis, Gay and Welsch do.
    """
    length_sq = step.square().sum(1).clamp(min=SMALLEST**2)[:, None, None]
    expected = torch.einsum("fij,fj->fi", second, step)
    along = (step * expected).sum(1).abs().clamp(min=1e-30)
    size = ((step * change).sum(1).abs() / along).clamp(max=1.0)
    second, expected = size[:, None, None] * second, size[:, None] * expected
    error = change - expected
    crossed = error[:, :, None] * step[:, None, :]
    square = step[:, :, None] * step[:, None, :]
    excess = (error * step).sum(1)[:, None, None]
    moved = second + (crossed + crossed.mT - excess * square / length_sq) / length_sq
    tells = step.norm(dim=1) > SMALLEST
    return torch.where(tells[:, None, None], moved, second)


def positive(second: Tensor) -> Tensor:
    """Return the part of S (F, 2, 2) that is not negative: it can but shorten steps."""
    values, vectors = torch.linalg.eigh(second)
    return (vectors * values.clamp(min=0)[:, None, :]) @ vectors.mT
