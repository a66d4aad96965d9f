"""From where the beam looks at the crystal: what a thickness can depend on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Scan


@dataclass(frozen=True)
class Views:
    """The view of the crystal in each of F blocks, and the inputs of a network.

    The crystal's Cartesian frame is that of W. R. Busing & H. A. Levy (1967,
    doi:10.1107/S0365110X67000970): x along a*, y in the plane of a* and b*.
    """

    angle: Tensor  # (F,) rad, rotation angle
    sweep: Tensor  # (F,) index of the sweep
    beam: Tensor  # (F, 3) unit vector in the crystal's frame
    axis: Tensor  # (F, 3) rotation axis, unit vector in the crystal's frame
    features: Tensor  # (F, n) inputs of a network, about from -1 to 1
    network: Tensor  # (F,) index of the network that sees the block

    @classmethod
    def of(cls, scan: Scan, features: str = "angle") -> Views:
        """Return the views of a scan at the middles of its blocks; `features` one of FEATURES."""
        middle = scan.setting[:, scan.setting.shape[1] // 2]
        # A = U B with B upper triangular and its diagonal positive
        u, b = torch.linalg.qr(middle.double())
        u = u * torch.diagonal(b, dim1=1, dim2=2).sign()[:, None, :]
        beam = scan.s0 / scan.s0.norm(dim=1, keepdim=True)
        beam, axis = (torch.einsum("fij,fi->fj", u, v.double()) for v in (beam, scan.axis))
        inputs, network = FEATURES[features](scan.block_angle, scan.sweep, beam)
        return cls(scan.block_angle, scan.sweep, beam, axis, inputs, network)

    def first(self) -> Views:
        """Return the view of the first block alone, as of one sweep."""
        zero = torch.zeros_like(self.sweep[:1])
        ones = (x[:1] for x in (self.beam, self.axis, self.features))
        return Views(self.angle[:1], zero, *ones, zero)


def angle_features(angle: Tensor, sweep: Tensor, beam: Tensor | None = None):
    """Return (F, 1), the angle (F,) scaled to [-1, 1] within each sweep, and the sweep (F,)."""
    out = torch.zeros(len(angle), 1, dtype=torch.float64, device=angle.device)
    for index in range(int(sweep.max()) + 1):
        mine = sweep == index
        low, high = angle[mine].min(), angle[mine].max()
        out[mine, 0] = (2 * angle[mine] - low - high) / (high - low).clamp(min=1e-6)
    return out, sweep


def direction_features(angle: Tensor, sweep: Tensor, beam: Tensor):
    """Return (F, 6), products of the components of the beam (F, 3), and one network for all.

    Products, since a path through the crystal is as long in one direction as in the other.
    They are centred, and divided by the largest.
    """
    first, second = torch.triu_indices(3, 3, device=beam.device)
    products = beam[:, first] * beam[:, second]
    low, high = products.amin(0), products.amax(0)
    centred = products - (low + high) / 2
    return centred / centred.abs().max().clamp(min=1e-6), torch.zeros_like(sweep)


FEATURES = {"angle": angle_features, "direction": direction_features}
