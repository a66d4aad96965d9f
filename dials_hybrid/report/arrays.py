"""What the figures and tables show, as numpy arrays, and the statistics on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..data import Problem, Result, Scan, Structure, block_of
from ..freedom import metric


@dataclass(frozen=True)
class Arrays:
    """What the figures and tables need, in numpy; R reflections, F blocks, D depths."""

    hkl: np.ndarray  # (R, 3)
    d: np.ndarray  # (R,) A
    angle: np.ndarray  # (R,) degree
    sweep: np.ndarray  # (R,) number of the sweep, from 1
    block: np.ndarray  # (R,) block, here and below a whole frame of PETS2, of the nearest angle
    observed: np.ndarray  # (R,) bool, I > 3 sigma
    free: np.ndarray  # (R,) bool
    i_obs: np.ndarray  # (R,)
    i_dynamical: np.ndarray  # (R,)
    i_kinematic: np.ndarray  # (R,)
    sigma: np.ndarray  # (R,) of the error model
    block_angle: np.ndarray  # (F,) degree
    block_sweep: np.ndarray  # (F,)
    block_width: np.ndarray  # (F,) degree
    depth: np.ndarray  # (D,) A
    thickness: np.ndarray  # (F, D) probability
    thickness_mean_su: np.ndarray | None  # (F,) A, s.u. of its mean
    thickness_average_su: np.ndarray | None  # (D,) s.u. of its average over the blocks
    tilt: np.ndarray  # (F, 2) degree, about the rotation axis and across axis and beam
    scale: np.ndarray  # (F,)
    history: tuple
    structure: Structure  # refined

    @property
    def delta(self) -> np.ndarray:
        """(R,) residual (Io - Ic) / sigma."""
        return (self.i_obs - self.i_dynamical) / self.sigma

    @property
    def sweeps(self) -> list[np.ndarray]:
        """Blocks of each sweep in the order of their angle."""
        order = np.argsort(self.block_angle, kind="stable")
        return [order[self.block_sweep[order] == sweep] for sweep in np.unique(self.block_sweep)]


def arrays(problem: Problem, result: Result) -> Arrays:
    """Collect the arrays that the figures and tables draw from."""
    scan, observations = problem.scan, problem.observations
    hkl = observations.hkl.cpu().numpy()
    frame, first = (x.cpu().numpy() for x in (scan.frame, scan.frame_start))
    block_sweep = scan.sweep.cpu().numpy()[first]
    return Arrays(
        hkl=hkl,
        d=spacing(result.structure.cell, hkl),
        angle=np.degrees(as_numpy(observations.angle)),
        sweep=np.searchsorted(np.unique(block_sweep), observations.sweep.cpu().numpy()) + 1,
        block=frame[block_of(observations, scan).cpu().numpy()],
        observed=observations.observed.cpu().numpy(),
        free=observations.free.cpu().numpy(),
        i_obs=as_numpy(observations.intensity),
        i_dynamical=as_numpy(result.calculated),
        i_kinematic=as_numpy(result.kinematic),
        sigma=as_numpy(result.sigma_weight),
        block_angle=np.degrees(as_numpy(scan.block_angle))[first],
        block_sweep=block_sweep,
        block_width=np.bincount(frame, np.degrees(as_numpy(scan.sample_width).sum(1))),
        depth=as_numpy(result.depth),
        thickness=as_numpy(result.thickness)[first],
        thickness_mean_su=if_known(result.thickness_mean_su, first),
        thickness_average_su=if_known(result.thickness_average_su),
        tilt=np.degrees(_tilt_components(scan, result.orientation))[first],
        scale=as_numpy(result.block_scale)[first],
        history=result.history,
        structure=result.structure,
    )


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def if_known(tensor: torch.Tensor | None, chosen=slice(None)) -> np.ndarray | None:
    """Return the chosen rows of a tensor, None where there is none."""
    return None if tensor is None else as_numpy(tensor)[chosen]


def spacing(cell: torch.Tensor, hkl: np.ndarray) -> np.ndarray:
    """Return d in A of reflections hkl (R, 3)."""
    g_star = np.linalg.inv(as_numpy(metric(cell)))
    return 1 / np.sqrt(np.einsum("ri,ij,rj->r", hkl, g_star, hkl))


def _tilt_components(scan: Scan, orientation: torch.Tensor) -> np.ndarray:
    """Return (F, 2) rad, rotation about the scan axis and about axis x beam."""
    axis, beam = as_numpy(scan.axis), as_numpy(scan.s0)
    across = np.cross(axis, beam)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    vector = as_numpy(orientation)
    return np.stack([(vector * axis).sum(1), (vector * across).sum(1)], axis=1)


def r1_by(group, n: int, i_obs, i_calc) -> np.ndarray:
    """Return (n,) R1 = sum ||Fo| - |Fc|| / sum |Fo| of each group, NaN where empty."""
    f_obs, f_calc = (np.sqrt(np.maximum(i, 0)) for i in (i_obs, i_calc))
    misfit = np.bincount(group, np.abs(f_obs - f_calc), minlength=n)
    total = np.bincount(group, f_obs, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        return misfit / total
