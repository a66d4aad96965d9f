"""What the data say of every structure factor: the gradient of their misfit.

A kinematic difference map takes its phases from the model. A dynamical intensity depends on many
structure factors and on their phases, so the residuals themselves tell how each F(g) should
change, also where g was never measured: by the gradient

    G(g) = sum_i w_i (Io_i - Ic_i) dI_i/dF(g),   w_i = 1 / sigma_i^2,

the steepest descent of half the chi squared, against the curvature that one gets from random
signs e_i = +-1, since the mean of |sum_i e_i sqrt(w_i) dI_i/dF(g)|^2 is sum_i w_i |dI_i/dF(g)|^2
(M. F. Hutchinson 1989, doi:10.1080/03610918908812806). An observation counts by its error and
by how strongly it depends on F(g): a weak beam fed by others does not, however large its Io/Ic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .crystal import reciprocal_length_sq
from .data import Fourier
from .parallel import in_threads

PROBES = 16  # random signs; the curvature is known to sqrt(1 / PROBES) of itself


def seeds(observed: Tensor, calculated: Tensor, sigma: Tensor, work: Tensor) -> Tensor:
    """Return the weights (1 + PROBES, R) of dI_i/dF in the gradient and in its probes.

    All arguments are (R,); `work` is false where an observation is not to count. The signs are
    the same in every run.
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (PROBES, len(sigma)), generator=generator) * 2 - 1
    residual = ((observed - calculated) / sigma)[None]
    return torch.cat([residual, signs.to(sigma)]) * work / sigma


def gradients(model, weight: Tensor) -> Tensor:
    """Return sum_i weight_i dI_i/dt of the entries t of the potential table, (K, M + 1).

    `weight` is (K, R). A complex gradient is dI/dRe t + i dI/dIm t. Several processes sum in
    another order than one, so that the last digits may differ.
    """
    table, rotation = model.potential_table().detach(), model.orientation().detach()
    weight = weight.to(table.device, torch.float64)
    o = model.problem.observations
    per_link = (weight * model.scale(model.scale_matrix).detach())[:, o.link_observation]
    thickness = model.thickness().detach()[o.link_block]
    total = table.new_zeros(len(weight), len(table))
    found: dict[int, Tensor] = {}

    def propagate(i: int) -> None:
        links = model.batches[i].links
        own = table.clone().requires_grad_()
        with torch.enable_grad():
            profiles = model.batch_profiles(model.batches[i], own, rotation)
        rows = [w[links, None] * thickness[links] for w in per_link]
        found[i] = torch.stack(
            [torch.autograd.grad(profiles, own, row, retain_graph=True)[0] for row in rows]
        )

    # one for each thread at a time, since all together would not fit
    for start in range(0, len(model.batches), model.workers):
        some = range(start, min(start + model.workers, len(model.batches)))
        in_threads(propagate, some, model.workers)
        for i in some:  # in their order, so that every run sums alike
            total += found.pop(i)
    return torch.view_as_complex(model.share.collect(torch.view_as_real(total)))


@torch.no_grad()
def fourier(model, table_gradients: Tensor) -> Fourier:
    """Return structure factors and gradients by them, as far out as there are observations."""
    hkl, o = model.couplings.hkl, model.problem.observations
    cell = model.problem.structure.cell
    g_sq = reciprocal_length_sq(cell, hkl)
    inside = (g_sq > 0) & (g_sq <= reciprocal_length_sq(cell, o.hkl).max() * (1 + 1e-9))
    return Fourier(
        hkl=hkl[inside],
        f_calc=model.crystal(hkl[inside]),
        gradient=table_gradients[:, :-1][:, inside] * model.potential_factor,
    )
