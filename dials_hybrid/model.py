"""The hybrid model: crystal, orientation, propagation, thickness and scale together."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from . import absorption, beams, crystal, electron, fourier, thickness
from .absorption import NoAbsorption
from .batches import Batch, Portions, Replayed, make_batch
from .corrections import Terms
from .curves import CurveBasis
from .data import Problem
from .fidelity import Fidelity, thinned
from .kinematic import powers
from .losses import SmoothScale
from .model_settings import ModelSettings
from .nuisance import About
from .orientation import SIGMA, OrientationCurve
from .parallel import ALONE, Alone, Team, cores_used, in_threads
from .perturbation import Reach, WeakBeams
from .propagation import DIRECTIONS, Propagator, Size
from .relevance import Relevance
from .restraints import RestrainedCrystal, Restrainer
from .structure_matrix import StructureMatrix
from .thickness import Views

_FAR = 5  # arrays over beams and those that act on them to second order
_CACHE_ELEMENTS = 300_000  # waves of a batch that still fit the processor's caches


def _potential_factor(problem: Problem) -> float:
    """Return U in A^-2 for F = 1 A."""
    return electron.potential_factor(
        problem.scan.wavelength, crystal.cell_volume(problem.structure.cell)
    )


@torch.no_grad()
def relevance_of(
    problem: Problem, settings: ModelSettings, structure_factor: crystal.CrystalModel
) -> Relevance | None:
    """Return what tells the beams that matter, None where all are to be kept."""
    if settings.left_out is None:
        return None
    factor = _potential_factor(problem) * problem.scan.wavelength / 2
    return Relevance(
        problem.structure,
        lambda hkl: structure_factor(hkl).abs() * factor,
        settings.g_max,
        settings.thickness_start,
        settings.left_out,
    )


class HybridModel(nn.Module):
    """Predicted intensities of a `Problem`.

    The costly part, `profiles`, depends on the atoms and orientations; the cheap part,
    `intensities`, combines its result with thickness and scale.
    """

    def __init__(
        self,
        problem: Problem,
        settings: ModelSettings,
        device: str = "cpu",
        share: Alone | Team = ALONE,
    ):
        super().__init__()
        self.problem, self.settings = problem.to("cpu", torch.float64), settings
        self.share = share  # `batches` are those of this process alone
        self._coarser: dict[Fidelity, HybridModel] = {}
        problem = self.problem
        scan, observations = problem.scan, problem.observations
        self.crystal = crystal.CrystalModel(problem.structure, settings.valence)
        relevance = relevance_of(problem, settings, self.crystal)
        cutoffs = settings.g_max, settings.s_max
        self.beams = beams.choose_beams(problem.structure, scan, observations, *cutoffs, relevance)
        self.restrainer = Restrainer(problem.restraints, problem.structure)
        self.orientation = OrientationCurve(
            scan,
            settings.orientation_spacing,
            settings.orientation_sigma or SIGMA,
            settings.orientation_stiffness,
        )
        depth = settings.depth.depths(dtype=torch.float64)
        self.thickness = thickness.build(
            settings.thickness,
            depth,
            Views.of(scan, settings.thickness_features),
            settings.thickness_start,
            settings.prior,
            settings.thickness_head,
        )
        basis = CurveBasis.over(scan.block_angle, scan.sweep, settings.scale_spacing)
        self.scale = SmoothScale(basis)
        if settings.scale_stiffness is not None:
            self.scale.stiffness = settings.scale_stiffness
        self.register_buffer("scale_matrix", basis.matrix(observations.angle, observations.sweep))
        self.register_buffer("block_matrix", basis.matrix(scan.block_angle, scan.sweep))
        self.register_buffer("depth", depth)
        self._prepare(relevance, device)
        self.nuisance = Terms(
            settings.nuisance,
            lambda: About.of(problem, self.wavenumber, settings.thickness_start),
        )
        self._move(device)

    def _move(self, device: str) -> None:
        """Take all tensors, which were made on the processor, to the device."""
        self.to(device)
        self.problem = self.problem.to(device)
        self.crystal.structure = self.crystal.structure.to(device)
        self.beams, self.portions = self.beams.to(device), self.portions.to(device)
        self.wavenumber = self.wavenumber.to(device)
        self.matrix.to(device)
        self.batches = [batch.to(device) for batch in self.batches]
        self.nuisance.move(device)

    def _prepare(self, relevance: Relevance | None, device: str) -> None:
        f_zero = self.crystal(torch.zeros(1, 3, dtype=torch.int64)).real.detach()
        factor = _potential_factor(self.problem)
        self.wavenumber = beams.inner_wavenumber(self.problem.scan.s0, factor * f_zero)
        self.matrix = StructureMatrix(
            self.problem.structure,
            self.beams,
            self._weak_beams(relevance),
            factor / (2 * float(self.wavenumber.mean())),
            self.settings.dtype,
            hermitian=isinstance(self.settings.absorption, NoAbsorption),
        )
        self.portions = Portions.of(self.problem)
        self.cores = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
        self.workers = self._workers()
        order = torch.argsort(self.beams.counts, descending=True)
        batches = order.split(self._batch_size())
        work = [len(blocks) * int(self.beams.counts[blocks].max()) ** 2 for blocks in batches]
        self.batches = [
            make_batch(self.problem, self.portions, self.beams, blocks, self.wavenumber)
            for blocks in self.share.mine(batches, work)
        ]

    def _weak_beams(self, relevance: Relevance | None) -> WeakBeams | None:
        """Choose the beams that act to second order, None without them."""
        settings, problem = self.settings, self.problem
        if settings.perturbation is None:
            return None
        reach = Reach(settings.g_max, settings.perturbation, self.wavenumber, relevance)
        return WeakBeams.of(problem.structure, problem.scan, self.beams, reach)

    def coarser(self, fidelity: Fidelity | None) -> HybridModel:
        """Return a model of the same parameters that propagates more coarsely; None: this one.

        Its profiles belong to the same portions and depths.
        """
        if fidelity is None:
            return self
        if fidelity not in self._coarser:
            self._coarser[fidelity] = self._made_coarser(fidelity)
        return self._coarser[fidelity]

    def _made_coarser(self, fidelity: Fidelity) -> HybridModel:
        beams = fidelity.of_beams
        own = self.settings.g_max, self.settings.s_max, self.settings.left_out
        if beams == Fidelity(*own):
            model = copy.copy(self)  # of the same beams and blocks
        elif beams != fidelity:
            model = copy.copy(self.coarser(beams))
        else:
            model = self._of_beams(fidelity)
        model.settings = self.settings.coarser(fidelity)
        return model

    def propagated_by(self, method: Propagator) -> HybridModel:
        """Return a model of the same parameters, beams and blocks with another method."""
        model = copy.copy(self)
        model.settings = dataclasses.replace(self.settings, propagator=method)
        return model

    def _of_beams(self, fidelity: Fidelity) -> HybridModel:
        problem = thinned(self.problem.to("cpu"), fidelity.thinning)
        settings, device = self.settings.coarser(fidelity), str(self.depth.device)
        with cores_used(self.cores):
            model = HybridModel(problem, settings, device, self.share)
        for name, module in self.named_children():
            setattr(model, name, module)
        return model

    def _workers(self) -> int:
        """Batches that are worked on at the same time: one per core, as far as they fit."""
        return max(1, min(self.cores, int(self.settings.memory // self.block_bytes())))

    def _batch_size(self) -> int:
        """Blocks per batch: large enough to keep the processor busy, small enough to fit."""
        waves = (DIRECTIONS + 3) * int(self.beams.counts.max()) * self.problem.scan.angle.shape[1]
        fits = int(self.settings.memory // (self.workers * self.block_bytes()))
        return max(1, min(fits, _CACHE_ELEMENTS // waves))

    def block_bytes(self) -> float:
        """Bytes that a pass works with for the block of most beams: an upper estimate.

        That is more than `settings.memory` if not even one block fits. What grows with the number
        of depths is what the method keeps: see its `gradient_numbers` and `tangent_numbers`.
        """
        slots = int(torch.bincount(self.problem.observations.link_block).max())
        size = Size(int(self.beams.counts.max()), self.problem.scan.angle.shape[1], slots)
        depth, propagator = self.settings.depth, self.settings.propagator
        structure = self.crystal.count
        # these count arrays that are alive together; tests/test_memory.py holds them up
        tangents = DIRECTIONS * propagator.tangent_numbers(size, depth)
        tangents += 2.5 * (structure + 2) * slots * depth.count
        gradient = propagator.gradient_numbers(size, depth)
        far = _FAR * self.matrix.far * size.beams
        return self.dtype_bytes * (max(tangents, gradient) + far)

    def working_bytes(self) -> float:
        """Bytes that a pass works with, the same for any number of frames: an upper estimate."""
        largest = max(len(batch.blocks) for batch in self.batches)
        return self.workers * self.block_bytes() * largest

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one complex number of the waves."""
        return 8 if self.settings.precision == "single" else 16

    def potential_table(self) -> Tensor:
        """Return (U_g + iU'_g) / 2K (A^-1) of all couplings; see `StructureMatrix.table`."""
        return self.matrix.table(self.optical())

    def optical(self) -> absorption.Optical:
        """Return the module that gives F + iF' of the crystal."""
        return absorption.Optical(
            self.crystal, self.settings.absorption, self.problem.scan.wavelength
        )

    def excitation(self, batch: Batch, rotation: Tensor) -> Tensor:
        """Return S_g m_g^2 (f, N, T) in A^-1 of a batch, in double precision."""
        scan, blocks = self.problem.scan, batch.blocks
        vectors = self._vectors(batch, rotation)
        s = beams.excitation_errors(vectors, scan.s0[blocks], self.wavenumber[blocks])
        return s * batch.obliquity.square()[:, :, None]

    def _vectors(self, batch: Batch, rotation: Tensor) -> Tensor:
        """g in the laboratory frame, (f, N, T, 3) A^-1."""
        turn = beams.rotation_matrices(rotation[batch.blocks])[:, None]
        setting = turn @ self.problem.scan.setting[batch.blocks]
        return torch.einsum("ftij,fnj->fnti", setting, batch.hkl.double())

    def batch_profiles(self, batch: Batch, table: Tensor, rotation: Tensor) -> Tensor:
        """Return the profiles of the links of one batch, (l, D)."""
        dtype = self.settings.dtype
        excitation = self.excitation(batch, rotation).to(dtype.to_real())
        potential = self.matrix(batch, table)
        out = self.settings.propagator(potential, excitation, batch.probe, self.settings.depth)
        return out.flatten(0, 1)[batch.slot].double()

    def profiles(self, moved: Tensor | None = None) -> Tensor:
        """Return, for every portion and depth, the intensity integrated over its windows, (G, D).

        `moved` (M + 1,) in A^-1 is added to the potential table.
        """
        table = self.potential_table()
        table = table if moved is None else table + moved.to(table)
        table, rotation = self.share.spread(table, self.orientation())
        out = self._per_portion()

        def propagate(batch):
            return Replayed.apply(self.batch_profiles, batch, table, rotation)

        # the graph of a gradient is built in one thread
        found = self.of_batches(propagate, 1 if torch.is_grad_enabled() else self.workers)
        for batch, per_link in zip(self.batches, found, strict=True):
            out = out.index_put((batch.portion,), per_link, accumulate=True)
        return self.share.collect(out, table, rotation)

    def of_batches(self, function: Callable, workers: int) -> Iterator:
        """Yield the function's values of the batches, on all cores that the model was made for."""
        with cores_used(self.cores):
            yield from in_threads(function, self.batches, workers)

    def _per_portion(self) -> Tensor:
        """Zeros (G, D) that the batches of all processes fill."""
        return self.depth.new_zeros(len(self.portions.block), len(self.depth))

    @torch.no_grad()
    def value_profiles(
        self, fidelity: Fidelity | None = None, moved: Tensor | None = None
    ) -> Tensor:
        """Return `profiles` of `coarser(fidelity)` without the means to differentiate them."""
        return self.coarser(fidelity).profiles(moved)

    def intensities(self, profiles: Tensor) -> Tensor:
        """Return the calculated intensity of every observation, (R,)."""
        raw = self.summed((self.thickness()[self.portions.block] * profiles).sum(1))
        return self.nuisance(raw, powers(self), self.scale(self.scale_matrix))

    def summed(self, values: Tensor) -> Tensor:
        """Return the sums (R,) over each observation of values (G,) of the portions."""
        out = values.new_zeros(len(self.problem.observations.intensity))
        return out.index_add(0, self.portions.observation, values)

    @property
    def restrained(self) -> RestrainedCrystal:
        """The residuals of the restraints, none if there are none, by the crystal's parameters."""
        return RestrainedCrystal(self.crystal, self.restrainer)

    def potential_gradients(self, weight: Tensor, fidelity: Fidelity | None = None) -> Tensor:
        """Return what `fourier.gradients` does, of the passes at a fidelity; None: this model's."""
        return fourier.gradients(self.coarser(fidelity), weight)

    def prior_residuals(self) -> Tensor:
        """Return the residuals of all priors; half their squared sum is the negative log."""
        offset = self.orientation.offset.flatten()
        return torch.cat(
            [
                self.thickness.prior_residuals(),
                self.scale.prior_operator() @ self.scale.log_scale,
                self.orientation.prior_operator() @ offset,
                self.crystal.prior_residuals(),
                self.restrained(),
                self.nuisance.prior_residuals(),
            ]
        )

    @torch.no_grad()
    def tangents(
        self, structure: bool = True, turns: bool = True, fidelity: Fidelity | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return profiles (G, D) and their derivatives by structure and orientation.

        (G, P, D) per unit of each free parameter of the structure, none of them unless
        `structure`, and (G, 2, D) per local rotation of one prior sigma about the two directions
        across the beam, none unless `turns`. All are those of `coarser(fidelity)`.
        """
        if fidelity is not None:
            return self.coarser(fidelity).tangents(structure, turns)
        table = self.potential_table()
        moved = self.potential_moves() if structure else table.new_zeros(0, len(table))
        rotation = self.orientation()
        profiles = self._per_portion()
        # sums over directions, of which a refinement makes hundreds, want them side by side
        slopes = profiles.new_zeros(*profiles.shape, len(moved) + 2 * turns)

        def propagate(batch):
            return self.batch_tangents(batch, table, moved, rotation, turns)

        found = self.of_batches(propagate, self.workers)
        for batch, (value, slope) in zip(self.batches, found, strict=True):
            profiles.index_put_((batch.portion,), value, accumulate=True)
            slopes.index_put_((batch.portion,), slope.mT, accumulate=True)
        profiles, slopes = self.share.collect(profiles), self.share.collect(slopes).mT
        return profiles, slopes[:, : len(moved)], slopes[:, len(moved) :]

    def potential_moves(self) -> Tensor:
        """(P, M + 1): derivative of the potential table by each free structure parameter."""
        return self.matrix.table(self.optical().slopes)

    def structure_factor_moves(self, hkl: Tensor) -> Tensor:
        """(P, m): derivative of U_g / 2K in A^-1 of some g (m, 3) by each structure parameter."""
        return self.optical().slopes(hkl) * self.matrix.factor

    def batch_tangents(
        self, batch, table, moved, rotation, turns: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return profiles (l, D) and slopes (l, P + 2, D) of one batch, (l, P, D) without turns."""
        settings, real = self.settings, self.settings.dtype.to_real()
        excitation = self.excitation(batch, rotation).to(real)
        tilts = excitation.new_zeros(0, *excitation.shape)
        if turns:
            tilts = self.excitation_moves(batch, rotation).to(real)
        profiles, slopes = settings.propagator.derivatives(
            self.matrix(batch, table),
            excitation,
            self.matrix.changes(batch, table, moved),
            tilts,
            batch.probe,
            settings.depth,
        )
        picked = slopes.permute(1, 2, 0, 3).flatten(0, 1)[batch.slot]
        return profiles.flatten(0, 1)[batch.slot].double(), picked.double()

    def excitation_moves(self, batch: Batch, rotation: Tensor) -> Tensor:
        """m_g^2 dS_g/d(local rotation) (2, f, N, T) in A^-1 per prior sigma of the rotation."""
        scan, blocks = self.problem.scan, batch.blocks
        moves = beams.excitation_moves(
            self._vectors(batch, rotation),
            scan.s0[blocks],
            self.wavenumber[blocks],
            self.orientation.directions[blocks],
        )
        return self.orientation.sigma * batch.obliquity.square()[:, :, None] * moves
