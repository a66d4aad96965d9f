"""Corrections of intensities that diffraction does not explain, each a small module.

A term is a `Nuisance` built as `Kind(about, sigma)`. It gets the calculated intensities of all
observations on the way from the propagation, which is linear in them, to the scale, or after the
scale, as they are recorded, and returns them corrected:

- `forward(intensity, about) -> (R,)`: each observation by its own intensity alone, and as it came
  where all parameters are zero;
- `prior_residuals() -> (m,)`, half of whose squared sum is the negative log prior; by default
  the parameters themselves, which are then in units of `sigma`, their expected size.

Two constants of the class may be set. `recorded = True`: the intensities come with their scale, in
the units of the data (default: False). `asks_power = False`: it does not look at `about.power`
or `about.kinematic`, which then need not be kept up to date (default: True).
`follows = "name"`, of a parameter of one number: the width of its prior, relative to sigma, is the
term's `width`, which a refinement keeps at nothing until steps have settled, and then chooses (see
the room evidence).

The refinement needs nothing else: derivatives, standard uncertainties and cross-validation follow.
`About` holds no observed intensity, since a term that saw it could fit it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import beams
from .crystal import reciprocal_length_sq
from .data import Problem, block_of, sample_weights
from .records import Record

SPREAD = 0.35  # of the thickness, standard deviation over mean, for kinematic intensities
NOTHING = 1e-3  # relative width of a prior that holds a term where it does nothing
_EDGE = 4.0  # times the noise of its background is about where a spot of some pixels stands out


@dataclass(frozen=True)
class About(Record):
    """What a term may know of the R observations, beside their calculated intensities."""

    block: Tensor  # (R,) number of the block nearest to the centroid (of PETS2 data, of the frame)
    sweep: Tensor  # (R,) index of the sweep
    angle: Tensor  # (R,) rad, rotation angle
    s_sq: Tensor  # (R,) (sin theta / lambda)^2 in A^-2
    # (R,) |S| in the middle of the window over dS from there to its end: R_Sg of a PETS2 row
    offset: Tensor
    sigma: Tensor  # (R,) of the integration
    noise: Tensor  # (R,) the part of sigma that is not the reflection's own: of the background
    exposure: Tensor  # (R,) kinematic intensity of |U_g / 2K| = 1 A^-1, in A^2 rad
    power: Tensor  # (R,) |U_g / 2K|^2 in A^-2 of the structure as it is

    @property
    def kinematic(self) -> Tensor:
        """(R,) intensities without multiple scattering, comparable to the calculated ones."""
        return self.exposure * self.power

    @classmethod
    def of(cls, problem: Problem, wavenumber: Tensor, thickness: float) -> About:
        """Collect it for a problem; wavenumber (F,) A^-1, mean thickness in A; power is zero."""
        o, scan = problem.observations, problem.scan
        s, weight = _excitation(problem, wavenumber)

        def total(values: Tensor) -> Tensor:
            return torch.zeros_like(o.intensity).index_add(0, o.link_observation, values.sum(1))

        norm = total(weight).clamp(min=1e-12)
        mean = total(weight * s) / norm
        # a window of even weight reaches sqrt(3) standard deviations from its middle
        reach = (3 * (total(weight * s * s) / norm - mean.square()).clamp(min=0)).sqrt()
        return cls(
            block=torch.unique(block_of(o, scan), return_inverse=True)[1],
            sweep=o.sweep,
            angle=o.angle,
            s_sq=reciprocal_length_sq(problem.structure.cell, o.hkl) / 4,
            offset=mean.abs() / reach.clamp(min=1e-9),
            sigma=o.sigma,
            noise=o.noise.background.sqrt(),
            exposure=total(weight * kinematic_rocking(s, thickness)),
            power=torch.zeros_like(o.intensity),
        )


def _excitation(problem: Problem, wavenumber: Tensor) -> tuple[Tensor, Tensor]:
    """S_g in A^-1 and the weight in rad of each sample in the links' windows, both (L, T)."""
    o, scan = problem.observations, problem.scan
    hkl = o.hkl[o.link_observation].to(torch.float64)
    g = torch.einsum("ltij,lj->lti", scan.setting[o.link_block], hkl)
    s = beams.excitation_errors(g, scan.s0[o.link_block], wavenumber[o.link_block])
    return s, sample_weights(o, scan, torch.arange(len(s), device=s.device))


def kinematic_rocking(s: Tensor, thickness: float) -> Tensor:
    """Return |psi_g|^2 / |U_g / 2K|^2 in A^2 of a weak beam at S_g in A^-1.

    |2 pi sin(pi S t) / (pi S)|^2 (P. B. Hirsch et al. 1965, Electron Microscopy of Thin Crystals,
    chapter 4), the mean over thicknesses t in A of a normal distribution SPREAD times as wide.
    Integrated over S it is (2 pi)^2 t.
    """
    phase = 2 * math.pi * thickness * s
    damped = 1 - torch.exp(-0.5 * (SPREAD * phase).square()) * phase.cos()
    at_zero = 0.5 * (1 + SPREAD**2) * torch.ones_like(s)
    near = phase.abs() < 1e-3
    shape = torch.where(near, at_zero, damped / torch.where(near, 1.0, phase).square())
    return 2 * (2 * math.pi * thickness) ** 2 * shape


class Nuisance(nn.Module):
    """Base of the terms; see the docstring of this room. `sigma` is the size it may well have."""

    recorded = False
    asks_power = True
    follows: str | None = None

    def __init__(self, about: About, sigma: float):
        super().__init__()
        self.sigma, self.width = sigma, 1.0

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """Return the corrected intensities (R,)."""
        raise NotImplementedError("subclasses correct the intensities")

    def prior_residuals(self) -> Tensor:
        """Return the residuals (m,) of the priors; here the parameters, in units of sigma."""
        own = {self.follows: self.width}
        return torch.cat([p.flatten() / own.get(name, 1.0) for name, p in self.named_parameters()])

    def quantities(self) -> dict[str, Tensor]:
        """Return what the results tell of the term, by its name: sigma times the parameters."""
        return {name: self.sigma * p for name, p in self.named_parameters()}


def zeros(*shape: int) -> nn.Parameter:
    """Return a parameter of zeros in double precision."""
    return nn.Parameter(torch.zeros(*shape, dtype=torch.float64))


class FrameScale(Nuisance):
    """exp of a deviation of every block from the smooth scale; sigma is that of the logarithm."""

    asks_power = False

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.log_scale = zeros(int(about.block.max()) + 1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        return intensity * (self.sigma * self.log_scale)[about.block].exp()


class Background(Nuisance):
    """Crystal that scatters kinematically, beside the rest; sigma is that of its share.

    So do electrons that lose their phase on the way, and blocks of a bent or strained crystal too
    thin for more: what they add to a reflection goes with |F|^2.
    """

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.share = zeros(1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        return intensity + self.sigma * self.share * about.kinematic


class Window(Nuisance):
    """1 + a (|S| / dS)^2, for reflections that are cut by the end of their frame.

    sigma is that of a, the change of an intensity whose S = 0 lies at the very end.
    """

    asks_power = False

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.at_end = zeros(1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        return intensity * (1 + self.sigma * self.at_end * about.offset.square())


class ResolutionScale(Nuisance):
    """exp(-2 B s^2) with s = sin(theta) / lambda; sigma is that of B, in A^2.

    It is not the same as a common addition to all U, which weakens the potential that the waves
    travel in, but the data hardly tell the two apart where scattering is weak.
    """

    asks_power = False

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.b = zeros(1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        return intensity * torch.exp(-2 * self.sigma * self.b * about.s_sq)


class Faint(Nuisance):
    """I (1 - f / (1 + I / I_0)): a share f of faint reflections is lost, less of brighter ones.

    Frames whose negative pixels were set to zero do so: where a spot does not rise above the noise,
    what it adds to pixels below zero is lost. Of Gaussian spots on Gaussian noise the form is
    right within 2 % of I, with f = 1 / 2 for a noise about zero. I_0 is _EDGE times the noise of
    the background, times the exponential of the second parameter, whose prior has the width one;
    sigma is that of -log(1 - f), so that never more is lost than there is.
    """

    recorded = True
    asks_power = False
    follows = "lost"

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.lost, self.edge = zeros(1), zeros(1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        half = _EDGE * about.noise * self.edge.exp()
        return intensity * (1 + torch.expm1(-self.sigma * self.lost) / (1 + intensity.abs() / half))

    def quantities(self) -> dict[str, Tensor]:
        """Return f, and I_0 over the noise of the background."""
        return {"lost": -torch.expm1(-self.sigma * self.lost), "edge": _EDGE * self.edge.exp()}


class Level(Nuisance):
    """I + o b: a background that was found too low or too high, by o times its own noise b.

    sigma is that of o.
    """

    recorded = True
    asks_power = False
    follows = "level"

    def __init__(self, about: About, sigma: float):
        super().__init__(about, sigma)
        self.level = zeros(1)

    def forward(self, intensity: Tensor, about: About) -> Tensor:
        """See the base class."""
        return intensity + self.sigma * self.level * about.noise


KINDS = {
    "frame_scale": FrameScale,
    "background": Background,
    "window": Window,
    "resolution": ResolutionScale,
    "faint": Faint,
    "level": Level,
}
