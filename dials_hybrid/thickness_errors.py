"""Standard uncertainties of the thickness distribution: Laplace's approximation.

The posterior of the parameters is taken for a Gaussian about its maximum (D. J. C. MacKay 1992,
doi:10.1162/neco.1992.4.3.448), p(t) for linear in the parameters within its width. The
covariance is that of all parameters of the refinement, so that atoms, orientations and scale,
which can make up for the thickness, are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vmap

from .linear import CheapModel


@dataclass(frozen=True)
class ThicknessErrors:
    """Standard uncertainties at the n depths of `ThicknessModel.fine`, F blocks."""

    mean: Tensor  # (F,) A, of the mean of p(t)
    distribution: Tensor  # (F, n) of p(t)
    average: Tensor  # (n,) of p(t) averaged over the blocks
    overall: float  # A, of the mean of that


@torch.no_grad()
def thickness_errors(cheap: CheapModel, covariance: Tensor) -> ThicknessErrors:
    """Return the s.u. from the covariance (N, N) of all parameters, at the present ones.

    Each block's p(t) follows from its K outputs, so that their covariances suffice, but for
    the average, for which blocks are correlated.
    """
    module, part = cheap.model.thickness, cheap.parts.thickness
    covariance = covariance[part, part]
    outputs, by_parameter = cheap.output_slopes()  # (F, K), (F, K, P)
    depth = module.fine_depth()

    def slope(move):
        return jvp(lambda values: module.distribution(values, depth), (outputs,), (move,))[1]

    unit = torch.eye(outputs.shape[1]).to(outputs)[:, None, :].expand(-1, *outputs.shape)
    by_output = vmap(slope)(unit).permute(1, 2, 0)  # (F, n, K)
    of_outputs = by_parameter @ covariance @ by_parameter.mT  # (F, K, K)
    of_mean = torch.einsum("fnk,n->fk", by_output, depth)
    average = torch.einsum("fnk,fkp->np", by_output, by_parameter) / len(outputs)
    return ThicknessErrors(
        mean=_su(torch.einsum("fk,fkj,fj->f", of_mean, of_outputs, of_mean)),
        distribution=_su(((by_output @ of_outputs) * by_output).sum(2)),
        average=_su(((average @ covariance) * average).sum(1)),
        overall=float(_su(depth @ average @ covariance @ average.T @ depth)),
    )


def _su(variance: Tensor) -> Tensor:
    return variance.clamp(min=0).sqrt()
