"""Every model of the thickness around the end of one refinement, the diffraction linearised there.

Profiles and derivatives are calculated once; then each model is fitted, with scale, orientations,
structure and error model, to first order in these. That is a matter of seconds where a whole
refinement takes minutes, and it is from several thicknesses at the start.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from dials_hybrid import cross_validation, losses, thickness, uncertainty
from dials_hybrid.checkpoint import Checkpoint
from dials_hybrid.data import block_of
from dials_hybrid.error_model import ErrorModel
from dials_hybrid.freedom import lengths
from dials_hybrid.linear import CheapModel, Linearisation
from dials_hybrid.model import HybridModel
from dials_hybrid.refine import Refinement
from dials_hybrid.thickness import Views

from .linearised import step, weighted

STARTS = (0.7, 0.8, 0.9, 1.0, 1.2)  # mean thickness over that of the refinement; the best counts
HELD, FREE = 1e9, 1e-2  # proximity: thickness and scale alone, then everything


class Around:
    """The end of a refinement, from which each model of the thickness is fitted."""

    def __init__(self, path: Path):
        stored = Checkpoint.load(path)
        loop = Refinement(
            stored.problem, stored.model_settings, stored.settings, state=stored.state
        )
        self.lin: Linearisation = loop.linearise().lin
        self.model: HybridModel = loop.model
        self.observed = self.model.problem.observations.intensity
        self.error_model = stored.state.error_model
        self.mean = float((self.model.thickness().detach() @ self.model.depth).mean())
        self.prior = self.model.settings.prior
        self.first: Tensor | None = None  # misfits of the first row
        self.others = {
            name: value.detach().clone()
            for name, value in self.model.named_parameters()
            if not name.startswith("thickness.")
        }

    def reset(self, name: str, start: float) -> None:
        """Give the model the thickness "name head features" at a start in A; all else as it was.

        Its prior is `prior`.
        """
        given = name.split()
        name, head, features = given + ["", "free", "angle"][len(given) :]
        model = self.model
        torch.manual_seed(0)
        views = Views.of(model.problem.scan, features)
        model.thickness = thickness.build(name, model.depth, views, start, self.prior, head)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if key in self.others:
                    value.copy_(self.others[key])

    def fitted(self, error_model: ErrorModel) -> CheapModel:
        """Fit thickness and scale, all else held; return the model there."""
        cheap = CheapModel(self.model, self.lin)
        for _ in range(2):
            cheap = step(cheap, error_model, HELD)
        return cheap

    def best(self, name: str) -> tuple[CheapModel, ErrorModel]:
        """Return the model "name head features" at its end from the best start, and its errors.

        The error model is that of the refinement until a start is chosen, then fitted as there.
        """
        costs = []
        for factor in STARTS:
            self.reset(name, factor * self.mean)
            cheap = self.fitted(self.error_model)
            costs.append(weighted(cheap, self.error_model).cost(cheap.start()))
        self.reset(name, STARTS[costs.index(min(costs))] * self.mean)
        cheap, error_model = self.fitted(self.error_model), self.error_model
        for _ in range(4):
            error_model = uncertainty.error_model_of(cheap, error_model)
            cheap = step(cheap, error_model, FREE)
        return cheap, error_model

    @torch.no_grad()
    def distribution(self) -> tuple[list, list]:
        """Return depths (n,) in A and p(t) (F, n) of the model fitted last."""
        depth, p = self.model.thickness.fine()
        return depth.tolist(), p.tolist()

    def against_first(self, unseen: Tensor, work: Tensor) -> dict:
        """Return what R1 of unseen intensities (R,) is above the first row's, and its s.u.

        Of the `work` reflections, as if their misfits were independent of each other.
        """
        fo, fc = (losses.amplitudes(i[work]) for i in (self.observed, unseen))
        misfit = (fo - fc).abs() / fo.mean()
        self.first = misfit if self.first is None else self.first
        more = misfit - self.first
        return {"above the first": float(more.mean()), "s.u.": float(more.std() / len(more) ** 0.5)}

    def row(self, name: str) -> dict:
        """Return the row of the table; the structure of the start is the true one."""
        began = time.monotonic()
        cheap, error_model = self.best(name)
        model, problem = self.model, weighted(cheap, error_model)
        o, true = model.problem.observations, model.problem.structure
        calculated = cheap.intensities()
        groups = cross_validation.unique_groups(true, o.hkl)
        unseen = cross_validation.left_out(problem, groups)
        frames = block_of(o, model.problem.scan)
        unseen_frames = cross_validation.left_out(problem, frames)
        work, free = o.observed & ~o.free, o.observed & o.free
        curvature = uncertainty.curvature_of(cheap, error_model)
        means = (model.thickness().detach() @ model.depth).tolist()
        moved = model.crystal.refined().site - true.site
        distance = lengths(true.cell, moved)
        return {
            "thickness": name,
            "R1": losses.r1(o.intensity, calculated, work),
            "R1 free": losses.r1(o.intensity, calculated, free),
            "R1 each left out": losses.r1(o.intensity, unseen, work),
            "R1 each frame left out": losses.r1(o.intensity, unseen_frames, work),
            **self.against_first(unseen, work),
            "parameters": round(curvature.effective_parameters),
            "mean to X-ray / A": float(distance.mean()),
            "mean t / A": sum(means) / len(means),
            "range of t / A": f"{min(means):.0f}-{max(means):.0f}",
            "error in proportion": error_model.p,
            "time / s": round(time.monotonic() - began),
        }
