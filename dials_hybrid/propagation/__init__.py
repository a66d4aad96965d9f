"""From the structure matrix to diffracted intensities, summed over orientation samples.

Every method is a callable value with one signature:

    profiles = method(potential, excitation, probe, grid)

- `potential` (F, N, N), complex A^-1: U_(g-h) m_g m_h / 2K, shared by all samples of a block;
  Hermitian, or with absorption an anti-Hermitian part iU', diagonal included (not for `Eigen`);
  a real tensor says that it stays real, as in centrosymmetric crystals: then the gradient by it is
  real, too, and takes about half the time;
- `excitation` (F, N, T), real A^-1: S_g m_g^2 of every beam and orientation sample;
- `probe` (`Probe`): which beams are asked for and how the samples are weighted;
- `grid` (`DepthGrid`): the depths at which the intensity is wanted;
- `profiles` (F, B, D): sum over samples of weight |psi_beam(depth)|^2.

All solve dpsi/dz = 2 pi i (diag(S) + V) psi with psi(0) = 1 for the incident beam.
"""

import dataclasses

from .base import DIRECTIONS, DepthGrid, Moves, Probe, Propagator, Size, Work
from .bloch import Bloch
from .chebyshev import Chebyshev
from .exact import Eigen, MatrixExp, is_hermitian
from .splitting import SCHEMES, Splitting

METHODS = {
    "splitting": Splitting,
    "chebyshev": Chebyshev,
    "eigen": Eigen,
    "matrix_exp": MatrixExp,
}

__all__ = [
    "DIRECTIONS",
    "METHODS",
    "SCHEMES",
    "Bloch",
    "Chebyshev",
    "DepthGrid",
    "Eigen",
    "MatrixExp",
    "Moves",
    "Probe",
    "Propagator",
    "Size",
    "Splitting",
    "Work",
    "from_dict",
    "is_hermitian",
    "light",
    "to_dict",
    "with_substeps",
]


def to_dict(method: Propagator) -> dict:
    """Return the method's name and its choices, for files."""
    (name,) = (name for name, kind in METHODS.items() if type(method) is kind)
    return {"method": name, **dataclasses.asdict(method)}


def from_dict(values: dict) -> Propagator:
    """Return the method that `to_dict` described; files of earlier versions have no name."""
    values = dict(values)
    return METHODS[values.pop("method", "splitting")](**values)


def light(method: Propagator) -> Propagator:
    """Return the method with steps of fewer stages, if it makes steps; see `Splitting.light`."""
    return method.light() if isinstance(method, Splitting) else method


def with_substeps(method: Propagator, substeps: int) -> Propagator:
    """Return the method with another number of steps between depths, if it makes steps."""
    if isinstance(method, Splitting):
        return dataclasses.replace(method, substeps=substeps)
    return method
