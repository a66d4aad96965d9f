"""Beams of each block, their excitation errors, and which differences h - g couple them.

S_g = (K^2 - |K + g|^2) / 2K with K inside the crystal. Vectors in A^-1, laboratory frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .crystal import reciprocal_length_sq
from .data import Observations, Scan, Structure
from .parallel import in_threads
from .records import InputError, Record

BEAM_LIMIT = 2.0  # A^-1: couplings g - h reach twice as far, and the form factors end at 4 A^-1


@dataclass(frozen=True)
class BeamSet(Record):
    """Beams of F blocks, padded to N; beam 0 of each block is the incident one."""

    hkl: Tensor  # (F, N, 3) int64, zero where padded
    valid: Tensor  # (F, N) bool
    link_beam: Tensor  # (L,) index of each link's reflection among the beams of its block

    @property
    def counts(self) -> Tensor:
        """(F,) number of beams of each block."""
        return self.valid.sum(1)


@dataclass(frozen=True)
class Couplings(Record):
    """The differences h - g that occur between beams of a block, each once.

    Which of them couples two beams is looked up when it is needed: (F, N, N) places of all
    blocks would be the largest array of a refinement.
    """

    hkl: Tensor  # (M, 3) int64
    lookup: Tensor  # place of every h - g in the box that holds them all, M where it is none
    reach: tuple  # of the box, per axis

    @classmethod
    def of(cls, beam_set: BeamSet, others: tuple[Tensor, Tensor] | None = None) -> Couplings:
        """Return the couplings of all blocks, g = 0 of the diagonal among them.

        Those with `others`, hkl (F, M, 3) and valid (F, M), are counted in both directions.
        """
        every = beam_set.hkl if others is None else torch.cat([beam_set.hkl, others[0]], 1)
        spread = every.amax(1) - every.amin(1)
        out = cls(torch.zeros(0, 3), torch.zeros(0), tuple(spread.amax(0).tolist()))
        a, b, c = (2 * n + 1 for n in out.reach)
        seen = torch.zeros(a * b * c, dtype=torch.bool)
        for block, (hkl, valid) in enumerate(zip(beam_set.hkl, beam_set.valid, strict=True)):
            mine = hkl[None, valid]
            seen[out._keys(mine, mine).flatten()] = True
            if others is not None:
                far = others[0][block, None, others[1][block]]
                for pair in ((mine, far), (far, mine)):
                    seen[out._keys(*pair).flatten()] = True
        found = torch.nonzero(seen).flatten()
        hkl = torch.stack([found // (b * c), found // c % b, found % c], 1)
        lookup = torch.full((len(seen),), len(found), dtype=torch.int32)
        lookup[found] = torch.arange(len(found), dtype=torch.int32)
        return out.replace(hkl=hkl - torch.tensor(out.reach), lookup=lookup)

    def places(self, of: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
        """Return the place of h - g for row g `of` N beams, column h of M beams `to`, (f, N, M).

        Both are hkl (f, n, 3) and valid (f, n). Beams that are not valid couple to none: their
        place is that of the zero at the end of a table.
        """
        both = of[1][:, :, None] & to[1][:, None, :]
        return torch.where(both, self.lookup[self._keys(of[0], to[0])], len(self.hkl)).long()

    def _keys(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Index of column less row into the flattened box."""
        a, b, c = self.reach
        step = rows.new_tensor([(2 * b + 1) * (2 * c + 1), 2 * c + 1, 1])
        middle = (a * (2 * b + 1) + b) * (2 * c + 1) + c
        return (columns * step).sum(-1)[:, None, :] - (rows * step).sum(-1)[:, :, None] + middle


def inner_wavenumber(s0: Tensor, mean_potential: Tensor) -> Tensor:
    """Return K = sqrt(k0^2 + U_0) in A^-1 for incident beams s0 (F, 3), U_0 in A^-2."""
    return (s0.square().sum(-1) + mean_potential).sqrt()


def excitation_errors(vectors: Tensor, s0: Tensor, wavenumber: Tensor) -> Tensor:
    """Return S_g in A^-1 for g `vectors` (F, ..., 3), beams s0 (F, 3) and K (F,)."""
    shape = (len(s0),) + (1,) * (vectors.ndim - 2)
    direction = (s0 / s0.norm(dim=-1, keepdim=True)).reshape(*shape, 3)
    along = (vectors * direction).sum(-1)
    return -along - vectors.square().sum(-1) / (2 * wavenumber.reshape(shape))


def excitation_moves(vectors: Tensor, s0: Tensor, wavenumber: Tensor, directions: Tensor) -> Tensor:
    """Return dS_g = -((K + g).(e x g)) / K (2, F, ...) in A^-1 per rad of rotations about e.

    For g `vectors` (F, ..., 3), beams s0 (F, 3), K (F,), and two e of each, directions (F, 2, 3).
    """
    shape = (len(s0),) + (1,) * (vectors.ndim - 2)
    k = wavenumber[:, None] * s0 / s0.norm(dim=-1, keepdim=True)
    k_plus_g = k.reshape(*shape, 3) + vectors
    out = []
    for e in directions.unbind(1):
        turned = torch.linalg.cross(e.reshape(*shape, 3).expand_as(vectors), vectors)
        out.append(-(k_plus_g * turned).sum(-1) / wavenumber.reshape(shape))
    return torch.stack(out)


def obliquity(scan: Scan, blocks: Tensor, hkl: Tensor, wavenumber: Tensor) -> Tensor:
    """Return m_g = 1 / sqrt(1 + g_n / K_n) of beams hkl (f, N, 3) of some blocks (f,).

    The components along the surface normal are those at the middle of each block. With the
    structure matrix scaled by them |psi_g|^2 is the current of a beam, and all currents add up
    to one (A. J. F. Metherell 1975, in Electron Microscopy in Materials Science, part II).
    """
    middle = scan.setting.shape[1] // 2
    vectors = torch.einsum("fij,fnj->fni", scan.setting[blocks, middle], hkl.to(torch.float64))
    normal, s0 = scan.normal[blocks], scan.s0[blocks]
    k_n = wavenumber[blocks] * (normal * s0).sum(-1) / s0.norm(dim=-1)
    g_n = (vectors * normal[:, None]).sum(-1)
    return (1 + g_n / k_n[:, None]).rsqrt()


def rotation_matrices(rotation_vector: Tensor) -> Tensor:
    """Return rotation matrices (..., 3, 3) of rotation vectors (..., 3) in rad."""
    x, y, z = rotation_vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
    return torch.linalg.matrix_exp(cross.reshape(*x.shape, 3, 3))


def lattice_points(structure: Structure, g_max: float) -> Tensor:
    """Return every hkl (M, 3) with 0 < |g| <= g_max that the lattice centring allows.

    Raises InputError when g_max is beyond what the form factors can serve.
    """
    if not 0 < g_max <= BEAM_LIMIT:
        raise InputError(
            f"beams.g_max is {g_max} A^-1; it must lie between 0 and {BEAM_LIMIT} A^-1, because "
            "couplings between beams reach twice as far and the form factors end at 4 A^-1"
        )
    cell = structure.cell.cpu()
    # |h| <= |g| |a|: the plane spacing argument in direct space
    limits = [int(g_max * float(length)) + 1 for length in cell[:3]]
    axes = [torch.arange(-n, n + 1) for n in limits]
    hkl = torch.cartesian_prod(*axes)
    g_sq = reciprocal_length_sq(cell, hkl)
    keep = (g_sq <= g_max**2) & (hkl != 0).any(1)
    return hkl[keep & ~centring_absent(structure, hkl)]


def centring_absent(structure: Structure, hkl: Tensor) -> Tensor:
    """Return (M,) bool, true where pure lattice translations extinguish hkl (M, 3)."""
    identity = torch.eye(3, dtype=torch.float64)
    pure = (structure.sym_rot.cpu() - identity).abs().amax((1, 2)) < 1e-9
    phase = hkl.to(torch.float64) @ structure.sym_trans.cpu()[pure].T
    return ((phase - phase.round()).abs() > 1e-6).any(1)


def choose_beams(
    structure: Structure,
    scan: Scan,
    observations: Observations,
    g_max: float,
    s_max: float,
    kept: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> BeamSet:
    """Choose the beams of each block.

    A beam is taken when |g| <= g_max and |S_g| <= s_max (A^-1) at some sample of the block and,
    where it is given, `kept` says of hkl (M, 3) and S (T, M) that it matters; or when an
    observation is linked to the block. Raises InputError when an observation lies beyond 2 A^-1.
    """
    hkl = lattice_points(structure, g_max)
    vacuum = scan.s0.norm(dim=-1)

    def of_block(block: int) -> tuple[Tensor, Tensor, Tensor]:
        links = torch.nonzero(observations.link_block == block).flatten()
        linked = observations.hkl[observations.link_observation[links]]
        near, excitation = near_sphere(hkl, scan, block, vacuum, s_max)
        if kept is not None:
            near = near[kept(near, excitation)]
        return links, *_merge(linked, near)

    per_block, link_beam = [], torch.zeros(len(observations.link_block), dtype=torch.int64)
    found = in_threads(of_block, range(len(scan.setting)), torch.get_num_threads())
    for links, chosen, place in found:
        link_beam[links] = place
        per_block.append(chosen)
    valid = padded([torch.ones(len(chosen), dtype=torch.bool) for chosen in per_block])
    return BeamSet(padded(per_block), valid, link_beam)


def padded(parts: list[Tensor]) -> Tensor:
    """Return parts (n, ...) of F blocks as one tensor (F, N, ...), with zeros at their ends."""
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def excitation_of(hkl: Tensor, scan: Scan, block: int, wavenumber: Tensor) -> Tensor:
    """Return S (T, M) in A^-1 of hkl (M, 3) at the samples of a block; `wavenumber` (F,) A^-1."""
    vectors = torch.einsum("tij,mj->tmi", scan.setting[block], hkl.to(torch.float64))
    return excitation_errors(vectors[None], scan.s0[block, None], wavenumber[block, None])[0]


def near_sphere(
    hkl: Tensor, scan: Scan, block: int, wavenumber: Tensor, s_max: float
) -> tuple[Tensor, Tensor]:
    """Return the hkl (M, 3) that cross the sphere in a block or have |S| <= s_max (A^-1) there.

    Beside them comes S (T, M) of its samples. `wavenumber` (F,) is in A^-1.
    """
    hkl = _in_reach(hkl, scan, block, wavenumber, s_max)
    s = excitation_of(hkl, scan, block, wavenumber)
    # a beam may cross the sphere between two samples
    crosses = (s.amax(0) > 0) & (s.amin(0) < 0)
    near = crosses | (s.abs().amin(0) <= s_max)
    return hkl[near], s[:, near]


def _in_reach(hkl: Tensor, scan: Scan, block: int, wavenumber: Tensor, s_max: float) -> Tensor:
    """Leave out hkl (M, 3) that are far from the sphere wherever the block takes them.

    From the middle of the block, no g moves by more than its length times what the others turn by.
    """
    setting = scan.setting[block]
    middle = setting[len(setting) // 2]
    turned = setting @ torch.linalg.inv(middle) - torch.eye(3).to(setting)
    most = 1.01 * float(torch.linalg.matrix_norm(turned, ord=2).max())
    vectors = hkl.to(torch.float64) @ middle.T
    s = excitation_errors(vectors[None], scan.s0[block, None], wavenumber[block, None])[0]
    return hkl[s.abs() <= s_max + most * vectors.norm(dim=1)]


def _merge(linked: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Return the incident beam and the distinct hkl of both, and the places of the linked."""
    origin = torch.zeros(1, 3, dtype=torch.int64)
    both = torch.cat([origin, linked, near])
    distinct, place = torch.unique(both, dim=0, return_inverse=True)
    first = int(place[0])
    order = torch.cat([torch.tensor([first]), _all_but(len(distinct), first)])
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return distinct[order], rank[place[1 : 1 + len(linked)]]


def _all_but(n: int, index: int) -> Tensor:
    every = torch.arange(n)
    return every[every != index]
