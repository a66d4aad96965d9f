"""How coarsely a pass is calculated, and the problem that a coarser pass works on.

A coarser pass takes fewer beams, fewer orientation samples and simpler steps; blocks, links and
depths stay the same, so that its profiles and their derivatives stand in for those of a finer one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Problem, Scan
from .propagation import Propagator


@dataclass(frozen=True)
class Fidelity:
    """Cut-offs of the beams, samples of the rotation that become one, and the method.

    g_max and s_max are in A^-1, `left_out` is the share of the current in beams left out. No
    propagator stands for that of the model.
    """

    g_max: float
    s_max: float
    left_out: float | None
    thinning: int = 1
    propagator: Propagator | None = None

    @property
    def of_beams(self) -> Fidelity:
        """The beams and samples alone."""
        return Fidelity(self.g_max, self.s_max, self.left_out, self.thinning)


def thinned(problem: Problem, factor: int) -> Problem:
    """Return the problem with each `factor` neighbouring orientation samples as one.

    The middle one stands for the rotation of all. Blocks and links keep their numbers; the ends
    of a link move to the nearest sample, so that windows keep their width to one new sample.
    """
    if factor == 1:
        return problem
    scan, o = problem.scan, problem.observations
    samples = scan.angle.shape[1]
    groups = torch.arange(samples).split(factor)
    middle = torch.tensor([int(group[len(group) // 2]) for group in groups])

    def summed(weight: Tensor) -> Tensor:
        return torch.stack([weight[:, group].sum(1) for group in groups], 1)

    fewer = Scan(
        setting=scan.setting[:, middle],
        angle=scan.angle[:, middle],
        sample_width=summed(scan.sample_width),
        s0=scan.s0,
        normal=scan.normal,
        sweep=scan.sweep,
        axis=scan.axis,
    )
    first = ((o.link_first + factor // 2) // factor).clamp(max=len(groups) - 1)
    last = torch.maximum((o.link_last + 1 + factor // 2) // factor - 1, first)
    last = torch.where(o.link_last == samples - 1, len(groups) - 1, last)
    weight = None if o.link_weight is None else summed(o.link_weight)
    return problem.replace(
        scan=fewer,
        observations=o.replace(link_first=first, link_last=last, link_weight=weight),
    )
