"""Crystals of a simple form, wholly in the beam: p(t) is that of the paths through it.

A form gives the path at M places, which share the illuminated area by fixed weights. Every
place adds a Gaussian one grid step wide, so that p(t) is smooth in the parameters, also where
that of the ideal form has an edge or a pole. Each sweep has a crystal of its own. At the start
all forms have the same mean thickness over the scan.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import ThicknessModel, ThicknessPrior
from .views import Views

# A plate is not endless: seen along its face, the path is that many times its thickness
LONGEST_PATH = 10.0
SIZE_SIGMA, TILT_SIGMA, LOGIT_SIGMA = 1.0, 1.0, 2.0  # widths of the priors about the start
START_SPREAD = 0.6  # of a wedge: (t_max - t_min) / (t_max + t_min)
START_FLATNESS = 0.5  # of an ellipsoid: thickness / diameter


class Shape(ThicknessModel):
    """A form with parameters of each sweep: the logarithm of its size, and those of `sigmas`.

    All are zero at the start, and the prior of each is a Gaussian about that, of width
    SIZE_SIGMA and `sigmas`.
    """

    sigmas: tuple[float, ...] = ()

    def __init__(self, depth: Tensor, views: Views, start: float, prior: ThicknessPrior):
        super().__init__(depth)
        self.register_buffer("beam", _components(views))
        self.register_buffer("sweep", views.sweep)
        sweeps = range(int(views.sweep.max()) + 1)
        first = [int(torch.nonzero(views.sweep == i)[0]) for i in sweeps]
        self.register_buffer("first", torch.tensor(first, device=depth.device))
        sigma = torch.tensor([SIZE_SIGMA, *self.sigmas], dtype=torch.float64)
        self.register_buffer("sigma", sigma.to(depth.device))
        weight = self.weights(self.places()).to(depth.device)
        self.register_buffer("log_weight", (weight / weight.sum()).log())
        self.values = nn.Parameter(torch.zeros(len(sweeps), len(sigma), dtype=torch.float64))
        zero = self.values.detach()[views.sweep.cpu()].to(depth.device)
        self.size = start / float((self.paths(zero[:, 1:]) * self.log_weight.exp()).sum(1).mean())

    def places(self) -> Tensor:
        """Return M numbers evenly spread over (0, 1), as dense as the grid at least."""
        count = max(64, len(self.depth))
        places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        return places.to(self.depth.device)

    def weights(self, places: Tensor) -> Tensor:
        """Return the area at each of the places, (M,), in any unit; the same here."""
        return torch.ones_like(places)

    def paths(self, parameters: Tensor) -> Tensor:
        """Return the paths (F, M), or (F, 1) if all are the same, of a form of the size one.

        `parameters` (F, P) are those of the block's sweep without the size.
        """
        raise NotImplementedError("subclasses give the paths")

    def outputs(self) -> Tensor:
        """Return the parameters of the block's sweep, (F, 1 + P)."""
        return self.values[self.sweep]

    def distribution(self, outputs: Tensor, depth: Tensor) -> Tensor:
        """See the base class."""
        length = self.size * outputs[:, :1].exp() * self.paths(outputs[:, 1:])
        off = (depth[:, None] - length[:, None, :]) / (self.depth[1] - self.depth[0])
        return torch.softmax(torch.logsumexp(self.log_weight - 0.5 * off**2, 2), 1)

    def penalties(self, outputs: Tensor) -> Tensor:
        """See the base class."""
        return (outputs[self.first] / self.sigma).flatten()

    def _stretch(self, normal: Tensor) -> Tensor:
        """Return 1 / |cos| (F, 1) of the angle between the beam and a normal (F, 3)."""
        cosine = (self.beam * normal).sum(1, keepdim=True) / normal.norm(dim=1, keepdim=True)
        return (cosine.square() + LONGEST_PATH**-2).rsqrt()


def _components(views: Views) -> Tensor:
    """The beam (F, 3) along axes of each sweep: its mean, the rotation axis, and across both."""
    out = torch.zeros_like(views.beam)
    for index in range(int(views.sweep.max()) + 1):
        mine = views.sweep == index
        # the middle of the scan: a sum over a full turn would be zero
        order = torch.argsort(views.angle[mine])
        middle = views.beam[mine][order[len(order) // 2]]
        axis = views.axis[mine].mean(0)
        axis = axis - (axis @ middle) * middle
        axis = axis / axis.norm().clamp(min=1e-6)
        basis = torch.stack([middle, axis, torch.linalg.cross(middle, axis)])
        out[mine] = views.beam[mine] @ basis.T
    return out


def _normal(tilts: Tensor) -> Tensor:
    """A normal (F, 3) that is the beam in the middle of the scan if both tilts (F, 2) are zero."""
    return torch.cat([torch.ones_like(tilts[:, :1]), tilts], 1)


class Plate(Shape):
    """A plate of thickness T: t = T / |cos| of the angle between the beam and its normal.

    The tangents of the normal's tilts about and towards the rotation axis are refined.
    """

    narrow = True
    sigmas = (TILT_SIGMA, TILT_SIGMA)

    def paths(self, parameters: Tensor) -> Tensor:
        """See the base class."""
        return self._stretch(_normal(parameters))


class Wedge(Shape):
    """A plate whose thickness changes evenly from t_min to t_max: p(t) is uniform between them.

    Both are stretched as a plate's. Refined are their mean, the logit of their difference over
    their sum, and the plate's tilts.
    """

    sigmas = (LOGIT_SIGMA, TILT_SIGMA, TILT_SIGMA)

    def paths(self, parameters: Tensor) -> Tensor:
        """See the base class."""
        spread = torch.sigmoid(math.log(START_SPREAD / (1 - START_SPREAD)) + parameters[:, :1])
        return self._stretch(_normal(parameters[:, 1:])) * (1 + spread * (2 * self.places() - 1))


class Lens(Shape):
    """A flat lens of paraboloids: t = T (1 - r^2 / R^2), p(t) is uniform from 0 to T.

    The area is even in r^2, hence in t. Tilts stretch T as a plate's, and are refined.
    """

    sigmas = (TILT_SIGMA, TILT_SIGMA)

    def paths(self, parameters: Tensor) -> Tensor:
        """See the base class."""
        return self._stretch(_normal(parameters)) * self.places()


class Ellipsoid(Shape):
    """An ellipsoid of revolution, thickness T and diameter W > T: p(t) = 2 t / C^2 up to C.

    Along the beam the longest chord is C = T / sqrt(cos^2 + (T / W)^2 sin^2) of the angle to the
    short axis, and t = C sqrt(1 - r^2) in a section whose area is even in r^2. Refined are
    T, the logit of T / W, and the tilts of the short axis.
    """

    sigmas = (LOGIT_SIGMA, TILT_SIGMA, TILT_SIGMA)

    def weights(self, places: Tensor) -> Tensor:
        """See the base class."""
        return places

    def paths(self, parameters: Tensor) -> Tensor:
        """See the base class."""
        ratio = torch.sigmoid(math.log(START_FLATNESS / (1 - START_FLATNESS)) + parameters[:, :1])
        short = _normal(parameters[:, 1:])
        cosine = (self.beam * short).sum(1, keepdim=True) / short.norm(dim=1, keepdim=True)
        chord = (cosine.square() + ratio.square() * (1 - cosine.square())).rsqrt()
        return chord * self.places()


class Cylinder(Shape):
    """A needle of diameter D across the beam: p(t) = t / (C sqrt(C^2 - t^2)) up to C.

    C = D / sin of the angle between the beam and the needle, and t = C cos(a) at the height
    C/2 sin(a) of the round section, whose width is even in sin(a). The needle starts halfway
    between the rotation axis and the direction across it and the beam in the middle of the
    scan: its angle in the plane of both, and the tangent of that out of it, are refined.
    """

    sigmas = (TILT_SIGMA, TILT_SIGMA)

    def weights(self, places: Tensor) -> Tensor:
        """See the base class."""
        return torch.cos(math.pi / 2 * places)

    def paths(self, parameters: Tensor) -> Tensor:
        """See the base class."""
        turn = math.pi / 4 + parameters[:, :1]
        needle = torch.cat([parameters[:, 1:], turn.cos(), turn.sin()], 1)
        cosine = (self.beam * needle).sum(1, keepdim=True) / needle.norm(dim=1, keepdim=True)
        sine_sq = 1 - cosine.square() + LONGEST_PATH**-2
        return sine_sq.rsqrt() * torch.cos(math.pi / 2 * self.places())
