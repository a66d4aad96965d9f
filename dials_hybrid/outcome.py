"""What a refinement has found: the Result, with agreement factors, s.u. and cross-validation."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from . import correlations, cross_validation, losses, restraints, thickness_errors, uncertainty
from .checkpoint import State
from .data import Observations, Result, block_of
from .linear import CheapModel, LeastSquares
from .plan import Stage
from .uncertainty import Curvature

logger = logging.getLogger("dials.hybrid.outcome")


@dataclass(frozen=True)
class End:
    """Where a refinement ended: the model linearised there, and how it came to that."""

    cheap: CheapModel
    state: State
    seed: int
    plan: tuple[Stage, ...]
    seconds: float
    converged: bool
    stop_reason: str

    @property
    def observations(self) -> Observations:
        """Those of the problem."""
        return self.cheap.model.problem.observations


def result_of(end: End) -> tuple[Result, uncertainty.Curvature]:
    """Return the result, on the processor, and the curvature of the cost at the end."""
    model, o, state = end.cheap.model, end.observations, end.state
    calculated = end.cheap.intensities().detach()
    sigma_w = state.error_model.robust_sigma(o.intensity, calculated, o.noise)
    final = LeastSquares(end.cheap, sigma_w, 0)
    began = time.monotonic()
    errors = uncertainty.standard_uncertainties(final, state.error_model)
    bands = thickness_errors.thickness_errors(end.cheap, errors.curvature.covariance)
    seconds = time.monotonic() - began
    start = calculated.new_tensor(state.start["calculated"])
    kinematic = calculated.new_tensor(state.start["kinematic"])
    with torch.no_grad():
        depth, thickness = model.thickness.fine()
        groups = cross_validation.unique_groups(model.problem.structure, o.hkl)
        unseen = cross_validation.left_out(final, groups)
        result = Result(
            structure=model.crystal.refined(),
            start_structure=model.problem.structure,
            calculated=calculated,
            start_calculated=start,
            kinematic=kinematic,
            scale=end.cheap.scales(),
            diffracted=end.cheap.diffracted(),
            sigma_weight=sigma_w,
            depth=depth,
            thickness=thickness,
            thickness_su=bands.distribution,
            thickness_mean_su=bands.mean,
            thickness_average_su=bands.average,
            unseen=unseen,
            orientation=model.orientation(),
            block_scale=model.scale(model.block_matrix),
            site_su=errors.site,
            u_su=errors.u,
            occ_su=errors.occ,
            site_covariance=errors.site_covariance,
            u_aniso_su=errors.u_aniso,
            state=state.parameters,
            history=tuple(state.history),
            summary={
                **_of_the_run(end, errors),
                "su_time_s": seconds,
                **_agreements(o, (kinematic, start, calculated), sigma_w),
                "cross_validated": {
                    "r1_obs": losses.r1(o.intensity, unseen, o.observed & ~o.free),
                    "r1_all": losses.r1(o.intensity, unseen, ~o.free),
                },
                **_correlations(end.cheap, errors.curvature),
                "shift_over_su": _shift_over_su(end, errors.curvature.covariance),
                "thickness_su": bands.overall,
                "valence": _valence(model, errors),
                "nuisance": _nuisance(end.cheap, errors.curvature.covariance),
                "restraints": restraints.summary(model.problem.restraints, model.crystal.refined()),
            },
            converged=end.converged,
            stop_reason=end.stop_reason,
        )
        result.summary["merged"] = {"r1_obs": number(_merged_r1(end.cheap, result, groups))}
        result.summary["final"] |= {
            "gof": errors.goodness_of_fit,
            "r1_obs_frame_mean": _frame_mean(o, model.problem.scan, calculated),
        }
    return result.to("cpu"), errors.curvature


def _correlations(cheap: CheapModel, curvature: Curvature) -> dict:
    found = correlations.summary(cheap, curvature)
    unknown = found["condition"]["unknown"]
    if unknown:
        logger.warning(
            "The data do not determine %s, and there is no s.u. of it; fix it (parameters.fix) or "
            "leave the atom out",
            ", ".join(unknown),
        )
    return found


def _of_the_run(end: End, errors: uncertainty.Uncertainties) -> dict:
    curve = end.cheap.model.orientation
    return {
        "n_parameters": round(errors.effective_parameters),
        "n_parameters_structure": errors.structure_parameters,
        "device": str(end.cheap.model.depth.device),
        "wall_time_s": end.seconds,
        "seed": end.seed,
        "iterations": end.state.iteration,
        "stages": [dataclasses.asdict(stage) for stage in end.plan],
        "error_model": dataclasses.asdict(end.state.error_model),
        "orientation": {"sigma": math.degrees(curve.width * curve.sigma)},
        "scale": {"stiffness": end.cheap.model.scale.stiffness},
    }


def _shift_over_su(end: End, covariance: Tensor) -> dict | None:
    """Largest and mean |step| / s.u. of the structure's parameters, when last they moved.

    They are of sites, displacements, occupancies and valence; those without a s.u., which neither
    data nor priors see, are not counted. None where nothing has moved.
    """
    part = end.cheap.parts.crystal
    su = covariance[part, part].diagonal().clamp(min=0).sqrt()
    step = su.new_tensor(end.state.structure_step).abs()
    if not len(step) or not bool((su > 0).any()):
        return None
    ratio = step[su > 0] / su[su > 0]
    return {"max": float(ratio.max()), "mean": float(ratio.mean())}


def _agreements(o: Observations, intensities, sigma_w: Tensor) -> dict:
    """Agreement of (kinematic, start, final) intensities."""
    kinematic, start, final = intensities
    work, free = ~o.free, o.free
    return {
        "n_all": int(work.sum()),
        "n_obs": int((work & o.observed).sum()),
        "kinematic": {"r1_obs": losses.r1(o.intensity, kinematic, work & o.observed)},
        "start": _agreement(o, start, sigma_w),
        "final": _agreement(o, final, sigma_w),
        "free": {
            "r1_obs": number(losses.r1(o.intensity, final, free & o.observed)),
            "n": int(free.sum()),
        },
    }


def _agreement(o: Observations, calculated: Tensor, sigma_w: Tensor) -> dict:
    work = ~o.free
    return {
        "r1_obs": losses.r1(o.intensity, calculated, work & o.observed),
        "r1_all": losses.r1(o.intensity, calculated, work),
        "wr2_all": losses.wr2(o.intensity[work], calculated[work], sigma_w[work]),
    }


@torch.no_grad()
def _merged_r1(cheap: CheapModel, result: Result, groups: Tensor) -> float:
    """R1 of merged amplitudes of the work set; what nuisance terms add is taken off."""
    model, o = cheap.model, cheap.model.problem.observations
    parts = *result.proportional(o.intensity), result.sigma_weight
    power, work = model.crystal(o.hkl).abs().square(), ~o.free
    return cross_validation.merged_r1(*(values[work] for values in (*parts, power, groups)))


def _frame_mean(o: Observations, scan, calculated: Tensor) -> float:
    """Unweighted mean of R1 over blocks, each reflection in the block of its centroid."""
    block, mask = block_of(o, scan), o.observed & ~o.free
    values = [
        losses.r1(o.intensity, calculated, mask & (block == b)) for b in torch.unique(block[mask])
    ]
    return sum(values) / len(values)


def _valence(model, errors: uncertainty.Uncertainties) -> dict:
    """Charges (e) and shells (A) of elements, dipoles (e A, along the cell axes) of atoms."""
    found, structure = model.crystal.valence(), model.problem.structure
    settings = dataclasses.asdict(model.settings.valence)
    if found is None:
        return settings
    dipole = found.dipole * structure.cell[:3]
    of_elements = zip(structure.elements, found.charge, errors.charge, strict=True)
    radii = dict(zip(structure.elements, model.crystal.charge_radius.tolist(), strict=True))
    of_atoms = zip(structure.labels, dipole, errors.dipole, strict=True)
    return {
        **settings,
        "charge_radius": radii,
        "charge": {e: {"value": float(q), "su": float(su)} for e, q, su in of_elements},
        "dipole": {e: {"value": m.tolist(), "su": su.tolist()} for e, m, su in of_atoms},
    }


def _nuisance(cheap: CheapModel, covariance: Tensor) -> list[dict]:
    """What the nuisance terms came to, with s.u.; none without terms."""
    part = cheap.parts.nuisance
    return cheap.model.nuisance.summary(covariance[part, part])


def number(value: float) -> float | None:
    """Return the value, None for NaN."""
    return None if math.isnan(value) else value
