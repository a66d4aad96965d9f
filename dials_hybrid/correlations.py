"""Which parameters the data cannot tell apart: correlations and condition of a refinement.

The parameters of the optimiser are directions in the space of sites, displacement parameters
and network weights. People know coordinates, U, and the mean thickness: covariances are taken
over to these by their derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacfwd

from .calls import call
from .freedom import basis, star_lengths
from .linear import CheapModel
from .uncertainty import Curvature

STRONG = 0.5  # |r| that is reported
MOST = 40  # pairs that are reported
_DEPENDENT = 1e-6  # part of a gradient that earlier quantities leave
# part of a gradient that is unseen; a floating origin leaves each of n atoms 1 / n of it
_UNKNOWN = 0.9


@dataclass(frozen=True)
class Quantity:
    """Something with a name that depends on the parameters; `kind` is what it belongs to."""

    name: str
    kind: str  # "structure", "scale", "orientation", "nuisance" or "thickness"
    gradient: Tensor  # (n,)


@torch.no_grad()
def summary(cheap: CheapModel, curvature: Curvature) -> dict:
    """Return `correlations` and `condition` as plain values.

    correlations -- pairs of quantities with |r| > STRONG, the strongest first, at most MOST, and
        what each of them belongs to; neighbours on one curve (scale, orientation), which always
        correlate, are left out
    condition -- largest over smallest eigenvalue of the normal matrix scaled to a unit
        diagonal: of all parameters that are determined, and of the structure alone once the
        others are eliminated; how many directions neither data nor priors determine, the names
        of quantities of the structure that lie there, and the number of all pairs with
        |r| > STRONG
    """
    found = quantities(cheap)
    pairs, kinds = strongest(found, curvature.covariance), {q.name: q.kind for q in found}
    everything, undetermined = condition(curvature.information)
    return {
        "correlations": [
            {"first": a, "second": b, "r": r, "kinds": [kinds[a], kinds[b]]}
            for a, b, r in pairs[:MOST]
        ],
        "condition": {
            "all": everything,
            "structure": condition(curvature.eliminated(cheap.parts.crystal))[0],
            "undetermined": undetermined,
            "unknown": unknown(found, curvature.unseen),
            "strong_correlations": len(pairs),
        },
    }


def condition(matrix: Tensor) -> tuple[float | None, int]:
    """Return the condition number of a symmetric matrix scaled to a unit diagonal.

    Beside it comes the number of directions that are not determined: eigenvalues below 1e-12
    of the largest, which do not count. None for an empty matrix.
    """
    scale = matrix.diagonal().clamp(min=0).sqrt()
    seen = scale > 0
    scaled = matrix[seen][:, seen] / scale[seen] / scale[seen][:, None]
    values = torch.linalg.eigvalsh(scaled)
    if not len(values):
        return None, len(matrix)
    kept = values[values > 1e-12 * values[-1]]
    return float(kept[-1] / kept[0]), len(matrix) - len(kept)


def unknown(found: list[Quantity], unseen: Tensor) -> list[str]:
    """Return the names of quantities of the structure that lie in directions unseen (n, k)."""
    return [
        q.name
        for q in found
        if q.kind == "structure"
        and float((unseen.T @ q.gradient).square().sum() / q.gradient.square().sum()) > _UNKNOWN
    ]


def quantities(cheap: CheapModel) -> list[Quantity]:
    """Return the quantities that have names, each independent of those before it.

    A coordinate that symmetry ties to another is not listed again.
    """
    of_structure = _independent(_structure(cheap.model.crystal))
    found = [Quantity(n, "structure", _padded(g, cheap, "crystal")) for n, g in of_structure]
    unit = torch.eye(cheap.parts.size, dtype=torch.float64, device=cheap.model.depth.device)
    found += [Quantity(f"scale {i + 1}", "scale", g) for i, g in enumerate(unit[cheap.parts.scale])]
    for i, gradient in enumerate(unit[cheap.parts.orientation]):
        where = ("along", "across")[i % 2]  # the rotation axis
        found.append(Quantity(f"orientation {i // 2 + 1} {where}", "orientation", gradient))
    names = cheap.model.nuisance.names()
    for name, gradient in zip(names, unit[cheap.parts.nuisance], strict=True):
        found.append(Quantity(name, "nuisance", gradient))
    return found + _thickness(cheap)


def _padded(gradient: Tensor, cheap: CheapModel, part: str) -> Tensor:
    out = gradient.new_zeros(cheap.parts.size)
    out[getattr(cheap.parts, part)] = gradient
    return out


def _structure(crystal) -> list[tuple[str, Tensor]]:
    """Names and gradients, by the parameters of the structure, of what the structure has.

    What rides on another atom comes last.
    """
    structure = crystal.structure
    given = {name: p.detach() for name, p in crystal.named_parameters()}
    slopes = jacfwd(lambda values: call(_physical, crystal, values))(given)
    rows = torch.cat([slopes[name] for name in given], -1)
    names = [f"{axis}({label})" for label in structure.labels for axis in "xyz"]
    names += [f"U({label})" for label in structure.labels]
    ends = ("11", "22", "33", "12", "13", "23")
    names += [f"U{end}({label})" for label in structure.labels for end in ends]
    names += [f"occupancy({label})" for label in structure.labels]
    if crystal.valence() is not None:
        names += [f"charge({element})" for element in structure.elements]
        names += [f"dipole {axis}({label})" for label in structure.labels for axis in "xyz"]
    free = structure.freedom or basis(structure)
    rides = torch.cat([free.parent.repeat_interleave(3), free.u_parent]).ge(0).tolist()
    rides += [False] * (len(names) - len(rides))
    named = zip(names, rows, strict=True)
    return [row for _, row in sorted(zip(rides, named, strict=True), key=lambda x: x[0])]


def _physical(crystal) -> Tensor:
    """All coordinates, U, occupancies and valence terms of a structure in one vector."""
    u = crystal.u_star() / star_lengths(crystal.structure.cell).to(crystal.u_star())
    parts = [crystal.site().flatten(), crystal.u_iso(), u.flatten(), crystal.occ()]
    valence = crystal.valence()
    if valence is not None:
        parts += [valence.charge, valence.dipole.flatten()]
    return torch.cat(parts)


def _independent(rows: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Keep those whose gradients are not zero and not in the span of earlier ones."""
    kept, spanned = [], rows[0][1].new_zeros(0, len(rows[0][1]))
    for name, gradient in rows:
        rest = gradient
        for _ in range(2):  # Gram-Schmidt, twice against rounding
            rest = rest - spanned.T @ (spanned @ rest)
        if float(rest.norm()) > _DEPENDENT * float(gradient.norm()):
            kept.append((name, gradient))
            spanned = torch.cat([spanned, (rest / rest.norm())[None]])
    return kept


def _thickness(cheap: CheapModel) -> list[Quantity]:
    """The mean thickness of each sweep."""
    model = cheap.model
    change = cheap.distribution_slopes()  # (F, D, parameters)
    slope = torch.einsum("d,fdn->fn", model.depth, change)
    sweep = model.problem.scan.sweep
    return [
        Quantity(
            f"mean thickness, sweep {i + 1}",
            "thickness",
            _padded(slope[sweep == i].mean(0), cheap, "thickness"),
        )
        for i in range(int(sweep.max()) + 1)
    ]


def strongest(found: list[Quantity], covariance: Tensor) -> list[tuple[str, str, float]]:
    """Return (name, name, r) of all pairs with |r| > STRONG, the strongest first.

    Pairs on one curve are left out: scale and scale, orientation and orientation; so are two
    nuisance terms.
    """
    rows = torch.stack([q.gradient for q in found])
    mutual = rows @ covariance @ rows.T
    deviation = mutual.diagonal().clamp(min=0).sqrt()
    r = mutual / (deviation * deviation[:, None]).clamp(min=1e-300)
    first, second = torch.nonzero(torch.triu(r.abs() > STRONG, diagonal=1), as_tuple=True)
    pairs = []
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        if found[i].kind == "structure" or found[i].kind != found[j].kind:
            pairs.append((found[i].name, found[j].name, float(r[i, j])))
    return sorted(pairs, key=lambda pair: -abs(pair[2]))
