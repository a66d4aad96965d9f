"""What a pass of a model has to do, for estimates of its operations."""

from __future__ import annotations

import torch
from torch import Tensor

from . import beams
from .crystal import reciprocal_length_sq
from .model import HybridModel
from .propagation import Work

COUPLINGS = 300  # of the shortest that are looked at
SAMPLES = 3  # of each block


@torch.no_grad()
def work_of(model: HybridModel, directions: int | None, dtype: torch.dtype | None = None) -> Work:
    """Return the work of a pass with derivatives by `directions` of the structure, or without.

    It is that of all blocks, whichever process they belong to, with waves of the model's or
    another complex dtype.
    """
    potential, eps = _strongest(model), torch.finfo(dtype or model.settings.dtype).eps
    links = model.problem.observations.link_block
    limit = 4 * eps * potential.real.abs().max()
    return Work(
        beams=model.beams.counts,
        slots=torch.bincount(links, minlength=len(model.beams.counts)),
        samples=model.problem.scan.angle.shape[1],
        directions=directions,
        half_range=_half_range(model),
        # of the incident beam's column, about a third of the largest eigenvalue in crystals
        coupling=3 * float(potential.abs().square().sum().sqrt()),
        real=bool(potential.imag.abs().max() <= limit),
        eps=eps,
    )


def _strongest(model: HybridModel) -> Tensor:
    """Return U_g / 2K (A^-1) of the shortest couplings, without g = 0."""
    hkl = model.matrix.couplings.hkl
    length = reciprocal_length_sq(model.problem.structure.cell, hkl)
    chosen = hkl[torch.argsort(length)[:COUPLINGS]]
    chosen = chosen[(chosen != 0).any(1)]
    if not len(chosen):
        return torch.zeros(1, dtype=torch.complex128)
    return model.optical()(chosen) * model.matrix.factor


def _half_range(model: HybridModel) -> Tensor:
    """Return half the range of S over the beams (A^-1), of a few samples of each block (F, k)."""
    scan, chosen = model.problem.scan, model.beams
    samples = torch.linspace(0, scan.angle.shape[1] - 1, SAMPLES).round().long()
    setting = scan.setting[:, samples.to(scan.setting.device)]
    # padding has the indices and S of the incident beam
    vectors = torch.einsum("ftij,fnj->fnti", setting, chosen.hkl.double())
    s = beams.excitation_errors(vectors, scan.s0, model.wavenumber)
    return 0.5 * (s.amax(1) - s.amin(1))
