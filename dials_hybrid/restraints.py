"""What chemistry expects of a structure, as residuals beside those of the data.

The kinds and their values, with the units that target and sigma have:

    distance            A, between two atoms
    similar_distance    A, distances of pairs of atoms less their mean
    angle               degree, at the second of three atoms
    plane               A, heights of atoms over their least-squares plane
    chirality           A^3, (r2 - r1) . ((r3 - r1) x (r4 - r1))
    adp_similarity      A^2, differences of the components of two U
    rigid_bond          A^2, difference of the mean-square displacements along a bond
                        (F. L. Hirshfeld 1976, doi:10.1107/S0567739476001533)
    enhanced_rigid_bond A^2, the same, and of U13 and U23, z along the bond (A. Thorn, B. Dittrich
                        & G. M. Sheldrick 2012, doi:10.1107/S0108767312014535), over the distance
                        d in A and sqrt(1 + (Ueq1 + Ueq2) / p^2), p = 0.5 A, as in SHELXL
    isotropic_adp       A^2, deviation of U from its isotropic part

A residual is (value - target) / sigma, on the scale of data whose error model gives a goodness
of fit of one: sigma is what it says, whatever the number of reflections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd

from .data import Restraints, Structure
from .freedom import metric, to_cartesian

_OFF_DIAGONAL = 2**0.5  # each stands twice in the norm of a symmetric matrix
_RIGU_P = 0.5  # A, of the weights of enhanced rigid bonds
_TINY = 1e-12  # A^2, keeps square roots differentiable for straight angles and lines


def _length(vector: Tensor) -> Tensor:
    return vector.square().sum(-1).sqrt()


def _distance(xyz: Tensor, u: Tensor) -> Tensor:
    return _length(xyz[:, 1] - xyz[:, 0])[:, None]


def _similar_distance(xyz: Tensor, u: Tensor) -> Tensor:
    lengths = _length(xyz[:, 1::2] - xyz[:, ::2])
    return lengths - lengths.mean(1, keepdim=True)


def _angle(xyz: Tensor, u: Tensor) -> Tensor:
    first, second = xyz[:, 0] - xyz[:, 1], xyz[:, 2] - xyz[:, 1]
    across = (torch.linalg.cross(first, second).square().sum(-1) + _TINY).sqrt()
    return torch.rad2deg(torch.atan2(across, (first * second).sum(-1)))[:, None]


def _plane(xyz: Tensor, u: Tensor) -> Tensor:
    """Heights over the plane of least squares.

    The frame of the plane is held, and what a move turns the plane by is a regression in it: the
    derivatives of eigenvectors do not exist where a group of atoms is as long as it is wide.
    """
    from_centre = xyz - xyz.mean(1, keepdim=True)
    held = from_centre.detach()
    frame = torch.linalg.eigh(held.transpose(1, 2) @ held)[1]
    # the signs of eigenvectors are arbitrary; those of heights must not jump
    largest = frame.gather(1, frame.abs().argmax(1, keepdim=True))
    frame = frame * torch.where(largest < 0, -1.0, 1.0)
    height, in_plane = torch.split(from_centre @ frame, [1, 2], dim=2)
    moments = in_plane.transpose(1, 2) @ in_plane + _TINY * torch.eye(2).to(xyz)
    slope = torch.linalg.solve(moments, in_plane.transpose(1, 2) @ height)
    return (height - in_plane @ slope)[..., 0]


def _chirality(xyz: Tensor, u: Tensor) -> Tensor:
    a, b, c = (xyz[:, 1:] - xyz[:, :1]).unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(-1)[:, None]


def _components(u: Tensor) -> Tensor:
    """Six numbers with the norm of the symmetric matrices (n, 3, 3)."""
    diagonal = u.diagonal(dim1=1, dim2=2)
    off = torch.stack([u[:, 0, 1], u[:, 0, 2], u[:, 1, 2]], 1)
    return torch.cat([diagonal, _OFF_DIAGONAL * off], 1)


def _adp_similarity(xyz: Tensor, u: Tensor) -> Tensor:
    return _components(u[:, 0] - u[:, 1])


def _u_iso_similarity(xyz: Tensor, u: Tensor) -> Tensor:
    return (u[:, 0] - u[:, 1])[:, :1, 0]


def _isotropic_adp(xyz: Tensor, u: Tensor) -> Tensor:
    u_eq = u[:, 0].diagonal(dim1=1, dim2=2).mean(1)
    return _components(u[:, 0] - u_eq[:, None, None] * torch.eye(3).to(u))


def _along(xyz: Tensor) -> Tensor:
    bond = xyz[:, 1] - xyz[:, 0]
    return bond / _length(bond)[:, None]


def _rigid_bond(xyz: Tensor, u: Tensor) -> Tensor:
    z = _along(xyz)
    return torch.einsum("ni,nij,nj->n", z, u[:, 0] - u[:, 1], z)[:, None]


def _enhanced_rigid_bond(xyz: Tensor, u: Tensor) -> Tensor:
    z = _along(xyz)
    # any direction not along the bond will do: the two off-diagonal terms have equal weights
    helper = torch.eye(3).to(z)[z.detach().abs().argmin(1)]
    x = torch.linalg.cross(z, helper)
    x = x / _length(x)[:, None]
    frame = torch.stack([x, torch.linalg.cross(z, x), z], 1)
    u_eq = u.diagonal(dim1=2, dim2=3).mean(2).sum(1)
    looser = _length(xyz[:, 1] - xyz[:, 0]) * (1 + u_eq / _RIGU_P**2).sqrt()
    return torch.einsum("nki,nij,nj->nk", frame, u[:, 0] - u[:, 1], z) / looser[:, None]


_VALUES = {
    "distance": _distance,
    "similar_distance": _similar_distance,
    "angle": _angle,
    "plane": _plane,
    "chirality": _chirality,
    "adp_similarity": _adp_similarity,
    "rigid_bond": _rigid_bond,
    "enhanced_rigid_bond": _enhanced_rigid_bond,
    "isotropic_adp": _isotropic_adp,
}
KINDS = tuple(_VALUES)


class _Term(nn.Module):
    """Restraints of one kind with the same number of members."""

    def __init__(self, value, restraints: Restraints, chosen: list[int]):
        super().__init__()
        self.value = value
        place = torch.cat([torch.nonzero(restraints.owner == i) for i in chosen], 1).T
        self.register_buffer("chosen", torch.tensor(chosen))
        self.register_buffer("atom", restraints.atom[place])
        self.register_buffer("rot", restraints.rot[place])
        self.register_buffer("trans", restraints.trans[place])
        self.register_buffer("target", restraints.target[chosen])
        self.register_buffer("sigma", restraints.sigma[chosen])

    def forward(self, site: Tensor, u: Tensor, to_cartesian: Tensor) -> Tensor:
        """Residuals (n, rows) at fractional sites (A, 3) and tensors u_star (A, 3, 3)."""
        moved = torch.einsum("nkij,nkj->nki", self.rot, site[self.atom]) + self.trans
        turn = to_cartesian @ self.rot
        u_cart = turn @ u[self.atom] @ turn.transpose(-1, -2)
        value = self.value(moved @ to_cartesian.T, u_cart)
        return (value - self.target[:, None]) / self.sigma[:, None]


class Restrainer(nn.Module):
    """The residuals of all restraints of a structure."""

    def __init__(self, restraints: Restraints | None, structure: Structure):
        """Sort the restraints by kind; raises ValueError for a kind that is not known."""
        super().__init__()
        self.register_buffer("anisotropic", structure.anisotropic)
        self.register_buffer("to_cartesian", to_cartesian(structure.cell))
        self.register_buffer("isotropic_u_star", torch.linalg.inv(metric(structure.cell)))
        groups: dict[tuple, list[int]] = {}
        if restraints is not None:
            sizes = torch.bincount(restraints.owner).tolist()
            isotropic = (~structure.anisotropic)[restraints.atom].split(sizes)
            for i, (kind, size) in enumerate(zip(restraints.kind, sizes, strict=True)):
                if kind not in _VALUES:
                    raise ValueError(f"no restraint of the kind {kind}")
                scalar = kind == "adp_similarity" and bool(isotropic[i].all())
                value = _u_iso_similarity if scalar else _VALUES[kind]
                groups.setdefault((value, size), []).append(i)
        self.terms = nn.ModuleList(
            _Term(value, restraints, chosen) for (value, _), chosen in groups.items()
        )

    def forward(self, site: Tensor, u_iso: Tensor, u_star: Tensor) -> Tensor:
        """Return the residuals (Q,) at site (A, 3), u_iso (A,) A^2, u_star (A, 6)."""
        rows = self.by_term(site, u_iso, u_star)
        return torch.cat([row.flatten() for row in rows]) if rows else site.new_zeros(0)

    def by_term(self, site: Tensor, u_iso: Tensor, u_star: Tensor) -> list[Tensor]:
        """Return the residuals (n, rows) of each group of like restraints."""
        a, b, c, d, e, f = u_star.unbind(-1)
        tensor = torch.stack([a, d, e, d, b, f, e, f, c], -1).unflatten(-1, (3, 3))
        isotropic = u_iso[:, None, None] * self.isotropic_u_star
        tensor = torch.where(self.anisotropic[:, None, None], tensor, isotropic)
        return [term(site, tensor, self.to_cartesian) for term in self.terms]


class RestrainedCrystal(nn.Module):
    """Residuals of the restraints as a function of the parameters of a crystal model."""

    def __init__(self, crystal: nn.Module, restrainer: Restrainer):
        super().__init__()
        self.crystal, self.restrainer = crystal, restrainer

    def forward(self) -> Tensor:
        """Return the residuals (Q,) at the present parameters."""
        crystal = self.crystal
        return self.restrainer(crystal.site(), crystal.u_iso(), crystal.u_star())

    def after(self, step: Tensor) -> Tensor:
        """Return the residuals (Q,) after a step (P,) of the crystal's parameters."""
        moved = {
            f"crystal.{name}": getattr(self.crystal, name).detach() + step[part]
            for name, part in self.crystal.slices().items()
        }
        return functional_call(self, moved, ())

    def jacobian(self, step: Tensor) -> Tensor:
        """Return the derivatives (Q, P) of `after`."""
        if not self.restrainer.terms or not len(step):
            return step.new_zeros(len(self.after(step)), len(step))
        return jacfwd(self.after)(step)


def summary(restraints: Restraints | None, structure: Structure) -> dict:
    """Return, for each kind, how many there are and the worst: numbers, labels of the atoms.

    `rows` counts the numbers that a restraint holds, as six of the difference of two tensors.
    """
    if restraints is None:
        return {}
    restraints, structure = restraints.to("cpu"), structure.to("cpu")
    restrainer = Restrainer(restraints, structure)
    residuals = restrainer.by_term(structure.site, structure.u_iso, structure.u_star)
    out: dict[str, dict] = {}
    for term, rows in zip(restrainer.terms, residuals, strict=True):
        kind = restraints.kind[int(term.chosen[0])]
        entry = out.setdefault(kind, {"number": 0, "rows": 0, "rms": 0.0, "worst": None})
        worst, where = rows.abs().amax(1).max(0)
        entry["rms"] += float(rows.square().sum())  # the sum as long as terms are added
        entry["number"] += len(rows)
        entry["rows"] += rows.numel()
        if entry["worst"] is None or float(worst) > entry["worst"]["deviation_over_sigma"]:
            sigma = float(term.sigma[where])
            entry["worst"] = {
                "atoms": [structure.labels[a] for a in term.atom[where].tolist()],
                "deviation_over_sigma": float(worst),
                "deviation": float(worst) * sigma,
                "sigma": sigma,
            }
    for entry in out.values():
        entry["rms"] = (entry["rms"] / entry["rows"]) ** 0.5
    return out
