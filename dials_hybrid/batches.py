"""Batches of blocks, and how one at a time is differentiated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .beams import BeamSet, obliquity
from .data import Problem, sample_weights
from .propagation import Probe
from .records import Record


@dataclass(frozen=True)
class Batch(Record):
    """f blocks that are propagated together, padded to N beams and to B slots for links."""

    blocks: Tensor  # (f,)
    hkl: Tensor  # (f, N, 3)
    obliquity: Tensor  # (f, N) m_g = 1 / sqrt(1 + g_n / K_n)
    valid: Tensor  # (f, N) bool, false where padded
    probe: Probe
    portion: Tensor  # (l,) portion of each link of these blocks
    slot: Tensor  # (l,) flat index into (f, B)


@dataclass(frozen=True)
class Portions(Record):
    """The G portions of the observations: what one frame holds of each.

    The links of a portion share thickness and orientation, so that their sum is all that is
    needed. In a sweep of DIALS each link is its own portion.
    """

    of_link: Tensor  # (L,)
    observation: Tensor  # (G,) index into the R observations
    block: Tensor  # (G,) first block of the frame

    @classmethod
    def of(cls, problem: Problem) -> Portions:
        """Number them in the order of their first links."""
        o, scan = problem.observations, problem.scan
        pair = torch.stack([o.link_observation, scan.frame[o.link_block]], 1)
        distinct, place = torch.unique(pair, dim=0, return_inverse=True)
        first = torch.full((len(distinct),), len(pair)).scatter_reduce(
            0, place, torch.arange(len(pair)), "amin"
        )
        order = torch.argsort(first)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        observation, frame = distinct[order].T
        return cls(rank[place], observation, scan.frame_start[frame])


class Replayed(torch.autograd.Function):
    """A function of (batch, table, rotation) that keeps nothing and is run again backwards.

    The waves of one batch at a time are then held. torch.utils.checkpoint does not free what
    a propagator keeps outside its saved tensors.
    """

    @staticmethod
    def forward(ctx, function, batch: Batch, table: Tensor, rotation: Tensor) -> Tensor:
        ctx.function, ctx.batch = function, batch
        ctx.save_for_backward(table, rotation)
        return function(batch, table, rotation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = ctx.function(ctx.batch, *inputs)
        return (None, None, *torch.autograd.grad(out, inputs, grad))


def make_batch(
    problem: Problem, portions: Portions, beam_set: BeamSet, blocks: Tensor, wavenumber: Tensor
) -> Batch:
    """Collect the beams and links of some blocks (f,); `wavenumber` (F,) in A^-1 is that inside."""
    observations, scan = problem.observations, problem.scan
    n = int(beam_set.counts[blocks].max())
    where = torch.full((len(scan.sweep),), -1)
    where[blocks] = torch.arange(len(blocks))
    links = torch.nonzero(where[observations.link_block] >= 0).flatten()
    row = where[observations.link_block[links]]
    order = torch.argsort(row, stable=True)
    links, row = links[order], row[order]
    per_row = torch.bincount(row, minlength=len(blocks))
    column = torch.arange(len(row)) - (torch.cumsum(per_row, 0) - per_row)[row]
    slots = int(per_row.max())
    beam = torch.zeros(len(blocks), slots, dtype=torch.int64)
    beam[row, column] = beam_set.link_beam[links]
    weight = torch.zeros(len(blocks), slots, scan.angle.shape[1], dtype=torch.float64)
    weight[row, column] = sample_weights(observations, scan, links)
    return Batch(
        blocks=blocks,
        hkl=beam_set.hkl[blocks, :n],
        obliquity=obliquity(scan, blocks, beam_set.hkl[blocks, :n], wavenumber),
        valid=beam_set.valid[blocks, :n],
        probe=Probe(torch.zeros(len(blocks), dtype=torch.int64), beam, weight),
        portion=portions.of_link[links],
        slot=row * slots + column,
    )
